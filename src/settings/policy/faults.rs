//! What the types of a policy alone do not show.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::once;
use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Uri};

use super::{
    BasicAuthSettings, BodySettings, CompressSettings, CorsSettings, ForwardAuthSettings, HeaderRules,
    PolicySettings, RateLimitBy, RateLimitSettings, RedirectSettings, SignedLinkSettings, TimeoutsSettings,
};
use crate::settings::SettingsFault;

/// More of them nobody oversees; each has a bit of a number.
const POLICIES_MAX: usize = 32;
const BUFFER_MAX: u32 = 16 * 1024 * 1024;
const PAGE_MAX: usize = 64 * 1024;
const LINK_KEY_MIN: usize = 32;
/// Each is tried for a link that none of them signed.
const LINK_KEYS_MAX: usize = 8;
/// Longer nobody waits for an answer that only says whether it may be asked for.
const AUTH_TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Fields of one hop, and those that frame a message: who changes them changes what the message is.
const FRAMING: &[&str] = &[
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

const KINDS: &str = "write one of redirect, ip, basic_auth, signed_link, forward_auth, rate_limit, cors, headers, body, timeouts, compress and \
                     error_pages in each policy";
const NAME: &str = "write a header's name: X-Frame-Options";
const METHOD: &str = "write methods in capitals: [GET, POST]";

/// What is wrong below one key path.
struct Finder<'a> {
    at: String,
    faults: &'a mut Vec<SettingsFault>,
}

/// Everything that is wrong with a list of policies that stands under `key`.
pub fn policy_faults(key: &str, policies: &[PolicySettings], faults: &mut Vec<SettingsFault>) {
    let mut find = Finder { at: key.to_owned(), faults };
    find.unless(policies.len() <= POLICIES_MAX, "", "has more than 32 policies", "leave out some");
    for (at, policy) in policies.iter().enumerate() {
        policy.faults(&mut find.below(&format!("[{at}]")));
        let is_alone = policies[..at].iter().all(|before| !before.wants_another_link_than(policy));
        let detail = "is not that of another signed_link for the same paths, and no link could open them";
        find.unless(is_alone, &format!("[{at}].signed_link.key"), detail, "take one key, or paths apart");
    }
}

impl Finder<'_> {
    fn below(&mut self, key: &str) -> Finder<'_> {
        let at =
            if key.starts_with('[') { format!("{}{key}", self.at) } else { format!("{}.{key}", self.at) };
        Finder { at, faults: self.faults }
    }

    fn add(&mut self, key: &str, value: Option<&str>, detail: &str, remedy: &'static str) {
        let field = match key {
            "" => self.at.clone(),
            _ if key.starts_with('[') => format!("{}{key}", self.at),
            _ => format!("{}.{key}", self.at),
        };
        let value = value.map(str::to_owned);
        self.faults.push(SettingsFault { field, value, detail: detail.to_owned(), remedy });
    }

    fn unless(&mut self, is_good: bool, key: &str, detail: &str, remedy: &'static str) {
        if !is_good {
            self.add(key, None, detail, remedy);
        }
    }

    /// Each of a list, with its value told.
    fn each(
        &mut self,
        key: &str,
        all: &[String],
        is_good: impl Fn(&str) -> bool,
        detail: &str,
        remedy: &'static str,
    ) {
        for (at, one) in all.iter().enumerate().filter(|(_, one)| !is_good(one)) {
            self.add(&format!("{key}[{at}]"), Some(one), detail, remedy);
        }
    }
}

impl PolicySettings {
    fn faults(&self, find: &mut Finder<'_>) {
        let kinds = [
            self.redirect.is_some(),
            self.ip.is_some(),
            self.basic_auth.is_some(),
            self.signed_link.is_some(),
            self.forward_auth.is_some(),
            self.rate_limit.is_some(),
            self.cors.is_some(),
            self.headers.is_some(),
            self.body.is_some(),
            self.timeouts.is_some(),
            self.compress.is_some(),
            self.error_pages.is_some(),
        ];
        match kinds.into_iter().filter(|is_there| *is_there).count() {
            1 => {}
            0 => find.add("", None, "says nothing of what it is", KINDS),
            _ => find.add("", None, "has more than one kind, and their order would not be told", KINDS),
        }
        let prefix = "write a prefix as /admin, without . and .. segments, * and %";
        find.each("paths", &self.paths, is_prefix, "is not a path prefix", prefix);
        find.each("except", &self.except, is_prefix, "is not a path prefix", prefix);
        find.each("methods", &self.methods, is_method, "is not a method", METHOD);
        if let Some(redirect) = &self.redirect {
            redirect.faults(&mut find.below("redirect"));
        }
        if let Some(ip) = &self.ip {
            let has_any = !ip.allow.is_empty() || !ip.deny.is_empty();
            find.unless(has_any, "ip", "names no network", "name some in allow or deny: [10.0.0.0/8]");
        }
        if let Some(auth) = &self.basic_auth {
            auth.faults(&mut find.below("basic_auth"));
        }
        if let Some(link) = &self.signed_link {
            link.faults(&mut find.below("signed_link"));
        }
        if let Some(auth) = &self.forward_auth {
            auth.faults(&mut find.below("forward_auth"));
        }
        if let Some(limit) = &self.rate_limit {
            limit.faults(&mut find.below("rate_limit"));
        }
        if let Some(cors) = &self.cors {
            cors.faults(&mut find.below("cors"));
        }
        if let Some(headers) = &self.headers {
            let has_any = headers.request.has_any() || headers.response.has_any();
            find.unless(
                has_any,
                "headers",
                "changes nothing",
                "write request or response, with set, add or remove",
            );
            headers.request.faults(true, &mut find.below("headers").below("request"));
            headers.response.faults(false, &mut find.below("headers").below("response"));
        }
        if let Some(body) = &self.body {
            body.faults(&mut find.below("body"));
        }
        if let Some(timeouts) = &self.timeouts {
            timeouts.faults(&mut find.below("timeouts"));
        }
        if let Some(compress) = &self.compress {
            compress.faults(&mut find.below("compress"));
        }
        if let Some(pages) = &self.error_pages {
            page_faults(pages, &mut find.below("error_pages"));
        }
    }
}

impl PolicySettings {
    /// Whether some request needs a link of either, and no link is one of both.
    fn wants_another_link_than(&self, other: &Self) -> bool {
        let (Some(own), Some(others)) = (&self.signed_link, &other.signed_link) else { return false };
        let is_for = |method: &String| self.methods.is_empty() || self.methods.contains(method);
        let share_methods =
            other.methods.is_empty() || self.methods.is_empty() || other.methods.iter().any(is_for);
        // Where two prefixes meet one of them lies below the other.
        let mut places = self.paths.iter().chain(&other.paths).map(String::as_str).chain(["/"]);
        own != others && share_methods && places.any(|path| self.may_cover(path) && other.may_cover(path))
    }

    fn may_cover(&self, path: &str) -> bool {
        let lower = path.to_lowercase();
        let is_in =
            self.paths.is_empty() || self.paths.iter().any(|prefix| is_under(&lower, &prefix.to_lowercase()));
        is_in && !self.except.iter().any(|prefix| is_under(path, prefix))
    }
}

impl RedirectSettings {
    fn faults(&self, find: &mut Finder<'_>) {
        let is_host = |host: &str| !host.is_empty() && !host.contains([':', '/', ' ', '*', '@']);
        find.each("hosts", &self.hosts, is_host, "is not a host name", "write it as www.example.com");
        if !is_place(&self.to) {
            let remedy =
                "write an origin as https://example.com, or a place as /new or https://example.com/new";
            find.add("to", Some(&self.to), "is no place to send anybody to", remedy);
        }
        let is_redirect = matches!(self.status, 301 | 302 | 303 | 307 | 308);
        find.unless(
            is_redirect,
            "status",
            "is not the status of a redirect",
            "write 301, 302, 303, 307 or 308",
        );
    }
}

impl BasicAuthSettings {
    fn faults(&self, find: &mut Finder<'_>) {
        find.unless(!self.users.is_empty(), "users", "is empty, and nobody could come", "name somebody");
        let mut names = BTreeSet::new();
        for (at, user) in self.users.iter().enumerate() {
            let mut find = find.below(&format!("users[{at}]"));
            let is_name =
                !user.user.is_empty() && !user.user.contains(':') && !user.user.contains(char::is_control);
            find.unless(is_name, "user", "is empty or contains a colon", "write a name");
            find.unless(names.insert(&user.user), "user", "is there twice", "give each a name of their own");
            let has_password = !user.password.expose().is_empty();
            find.unless(has_password, "password", "is not given", "write one: '${file:/run/secrets/…}'");
        }
        let is_realm = |realm: &String| !realm.contains(['"', '\\']) && HeaderValue::from_str(realm).is_ok();
        find.unless(
            self.realm.as_ref().is_none_or(is_realm),
            "realm",
            "has quotes or control characters",
            "use words",
        );
        if let Some(name) = &self.user_header
            && !is_changeable(name)
        {
            find.add("user_header", Some(name), "is no header that may be set", NAME);
        }
    }
}

impl SignedLinkSettings {
    fn faults(&self, find: &mut Finder<'_>) {
        let remedy = "write one from a file, '${file:/run/secrets/links}', made by: openssl rand -hex 32";
        let also = self.also.iter().enumerate().map(|(at, key)| (format!("also[{at}]"), key));
        for (field, key) in once(("key".to_owned(), &self.key)).chain(also) {
            let length = key.expose().len();
            let detail = if length == 0 {
                "is not given"
            } else {
                "is shorter than 32 characters, and could be guessed"
            };
            find.unless(length >= LINK_KEY_MIN, &field, detail, remedy);
        }
        let detail = "has more than 7 keys beside the one that signs";
        find.unless(self.also.len() < LINK_KEYS_MAX, "also", detail, "leave out those whose links are over");
    }
}

impl ForwardAuthSettings {
    fn faults(&self, find: &mut Finder<'_>) {
        if self.parts().is_none() {
            let remedy = "write it with an IP address: http://10.0.0.7:9000/verify";
            find.add("url", Some(&self.url), "is no place to ask", remedy);
        }
        find.each("headers", &self.headers, is_changeable, "is no header that may be set", NAME);
        let is_in_bounds = self.timeout.0 > Duration::ZERO && self.timeout.0 <= AUTH_TIMEOUT_MAX;
        find.unless(is_in_bounds, "timeout", "is not between 1ms and 60s", "write 5s");
    }

    /// Whom to ask, and by which path and query.
    #[must_use]
    pub fn parts(&self) -> Option<(SocketAddr, Uri)> {
        let rest = self.url.strip_prefix("http://")?;
        let (address, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let address: SocketAddr = address.parse().ok().filter(|address: &SocketAddr| address.port() > 0)?;
        let path = if path.is_empty() { "/" } else { path };
        let uri: Uri = path.parse().ok().filter(|_| !path.contains('#'))?;
        Some((address, uri))
    }
}

impl RateLimitSettings {
    fn faults(&self, find: &mut Finder<'_>) {
        find.unless(self.requests > 0, "requests", "is 0, and nobody could come", "write how many may come");
        find.unless(self.per.0 > Duration::ZERO, "per", "is no time", "write 1s, 1m or 1h");
        find.unless(
            self.burst != Some(0),
            "burst",
            "is 0, and nobody could come",
            "leave it out, or write 1 or more",
        );
        match (self.by, &self.header) {
            (RateLimitBy::Header, Some(name)) if HeaderName::from_bytes(name.as_bytes()).is_err() => {
                find.add("header", Some(name), "is not a header's name", NAME);
            }
            (RateLimitBy::Header, None) => find.add("header", None, "is not given", "name it, as X-Api-Key"),
            (RateLimitBy::Client | RateLimitBy::Everyone, Some(_)) => {
                find.add("header", None, "is for by: header", "write by: header, or leave it out");
            }
            (RateLimitBy::Header, Some(_)) | (RateLimitBy::Client | RateLimitBy::Everyone, None) => {}
        }
    }
}

impl CorsSettings {
    fn faults(&self, find: &mut Finder<'_>) {
        find.unless(!self.origins.is_empty(), "origins", "is empty", "write https://app.example.com, or '*'");
        let remedy =
            "write scheme and host, and the port if it is not the usual one: https://app.example.com";
        let is_good = |origin: &str| origin == "*" || is_origin(origin);
        find.each("origins", &self.origins, is_good, "is not an origin", remedy);
        let is_named = !self.credentials || self.origins.iter().all(|origin| origin != "*");
        let detail = "is true, and with origins '*' any page could act as its visitor";
        find.unless(is_named, "credentials", detail, "name the origins");
        find.each("methods", &self.methods, is_method, "is not a method", METHOD);
        let is_name = |name: &str| HeaderName::from_bytes(name.as_bytes()).is_ok();
        find.each("headers", &self.headers, is_name, "is not a header's name", NAME);
        find.each("expose", &self.expose, is_name, "is not a header's name", NAME);
    }
}

impl HeaderRules {
    fn has_any(&self) -> bool {
        !self.remove.is_empty() || !self.set.is_empty() || !self.add.is_empty()
    }

    fn faults(&self, is_request: bool, find: &mut Finder<'_>) {
        let detail = "is no header that may be changed";
        find.each("remove", &self.remove, is_changeable, detail, NAME);
        for (key, all) in [("set", &self.set), ("add", &self.add)] {
            for (name, value) in all {
                // A route may name another host to its app; two of them would be refused by it.
                let is_host = is_request && key == "set" && name.eq_ignore_ascii_case("host");
                if !is_changeable(name) && !is_host {
                    find.add(key, Some(name), detail, NAME);
                }
                let has_value = HeaderValue::from_str(value).is_ok() && (!is_host || is_authority(value));
                let detail = "has what no such header's value may have";
                find.unless(has_value, &format!("{key}.{name}"), detail, "write visible characters");
            }
        }
    }
}

impl BodySettings {
    fn faults(&self, find: &mut Finder<'_>) {
        let has_any = self.max_bytes.is_some() || self.buffer_bytes.is_some();
        find.unless(has_any, "", "says nothing", "write max_bytes or buffer_bytes");
        let is_in_bounds = self.buffer_bytes.is_none_or(|bytes| (1..=BUFFER_MAX).contains(&bytes));
        find.unless(is_in_bounds, "buffer_bytes", "is not between 1 and 16777216", "write 1048576");
    }
}

impl TimeoutsSettings {
    fn faults(self, find: &mut Finder<'_>) {
        let all = [
            ("body_idle", self.body_idle),
            ("response_head", self.response_head),
            ("response_idle", self.response_idle),
        ];
        find.unless(
            all.iter().any(|(_, limit)| limit.is_some()),
            "",
            "says nothing",
            "write response_head: 5m",
        );
        for (key, limit) in all {
            let is_time = limit.is_none_or(|limit| limit.0 > Duration::ZERO);
            find.unless(is_time, key, "is no time", "write 30s or 5m; a long time is as good as none");
        }
    }
}

impl CompressSettings {
    fn faults(&self, find: &mut Finder<'_>) {
        find.unless(!self.types.is_empty(), "types", "is empty", "leave it out for the usual ones");
        let is_type = |text: &str| {
            let is_token = |part: &str| {
                !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic() && byte != b';')
            };
            text.split_once('/').is_some_and(|(kind, sub)| is_token(kind) && kind != "*" && is_token(sub))
        };
        find.each("types", &self.types, is_type, "is not a media type", "write application/json or text/*");
    }
}

fn page_faults(pages: &BTreeMap<String, String>, find: &mut Finder<'_>) {
    find.unless(!pages.is_empty(), "", "has no pages", "write '503': <html>…, or '5xx'");
    for (status, page) in pages {
        let is_status = matches!(status.as_str(), "4xx" | "5xx")
            || status.parse().is_ok_and(|status: u16| (400..600).contains(&status)) && status.len() == 3;
        if !is_status {
            find.add("", Some(status), "is not the status of an error", "write 404, 503, 4xx or 5xx");
        }
        find.unless(page.len() <= PAGE_MAX, status, "is longer than 64 KiB", "write a smaller page");
    }
}

/// In normal form whatever is done to it: nothing that could be spelt in another way.
fn is_prefix(path: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/!$&'()+,=:@".contains(&byte);
    let has_dots = || path.split('/').any(|segment| matches!(segment, "." | ".."));
    path.starts_with('/') && path.bytes().all(is_plain) && !path.contains("//") && !has_dots()
}

fn is_under(path: &str, prefix: &str) -> bool {
    let rest = path.strip_prefix(prefix.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn is_method(text: &str) -> bool {
    Method::from_bytes(text.as_bytes()).is_ok() && !text.bytes().any(|byte| byte.is_ascii_lowercase())
}

fn is_changeable(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    HeaderName::from_bytes(name.as_bytes()).is_ok()
        && !FRAMING.contains(&name.as_str())
        && name != "host"
        && !name.starts_with("lockgate-")
}

/// `scheme://host[:port]` and nothing behind it, as browsers write it in `Origin`.
fn is_origin(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| is_authority(rest) && !rest.bytes().any(|byte| byte.is_ascii_uppercase()))
}

fn is_authority(text: &str) -> bool {
    !text.contains('@') && text.parse::<http::uri::Authority>().is_ok()
}

fn is_place(to: &str) -> bool {
    if HeaderValue::from_str(to).is_err() || to.contains(['\\', ' ']) || !to.is_ascii() {
        return false;
    }
    if to.starts_with('/') {
        // Browsers take `//x` for another host.
        return !to.starts_with("//") && to.parse::<Uri>().is_ok();
    }
    let rest = to.strip_prefix("https://").or_else(|| to.strip_prefix("http://"));
    let authority = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    authority.is_some_and(is_authority) && to.parse::<Uri>().is_ok()
}

#[cfg(test)]
mod tests;
