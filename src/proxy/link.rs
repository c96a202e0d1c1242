//! A signed link that becomes a cookie, so that pages find their assets, and its token is seen no more: of previews, and of
//! policies.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, COOKIE, HeaderMap, LOCATION, REFERRER_POLICY, SET_COOKIE};
use http::{HeaderValue, Method, Response, StatusCode};

use crate::routing::link;

use super::error_page;
use super::headers::X_FORWARDED_PROTO;

/// How links of a kind are written.
pub(super) struct Kind {
    /// The query parameter that has the token.
    pub(super) parameter: &'static str,
    /// What its cookies' names begin with.
    pub(super) cookie: &'static str,
    /// The code of the answer to a good one.
    pub(super) code: &'static str,
}

/// Of links to previews.
pub(super) const PREVIEW: Kind =
    Kind { parameter: "lockgate_link", cookie: "lockgate_preview", code: "preview_link" };
/// Of links that a policy wants.
pub(super) const SIGNED: Kind = Kind { parameter: link::SIGNED, cookie: link::SIGNED, code: "signed_link" };

const KINDS: [Kind; 2] = [PREVIEW, SIGNED];

/// So many of a kind are looked at: browsers send those of the longest paths first, and each is work that a stranger may ask for.
const LOOKED_AT: usize = 8;

/// The cookies that links became, by their names. They are taken off each request before anybody knows where it goes: a browser sends
/// them to all that lies below their path, and there may be other applications.
#[derive(Debug, Default)]
pub(super) struct Passes(Vec<(&'static str, String)>);

/// What a browser gets for a good link.
pub(super) struct Pass<'a> {
    /// What tells it from others that are sent to the same paths: behind the name of its kind.
    pub(super) suffix: &'a str,
    pub(super) value: &'a str,
    /// Below which path it is sent back.
    pub(super) path: &'a str,
    pub(super) seconds: i64,
}

impl Kind {
    /// The token of a link: a link is for reading.
    pub(super) fn token<'a>(&self, method: &Method, query: Option<&'a str>) -> Option<&'a str> {
        if *method != Method::GET && *method != Method::HEAD {
            return None;
        }
        let (_, token) = query?.split('&').find(|pair| self.is_token(pair))?.split_once('=')?;
        Some(token)
    }

    fn is_token(&self, pair: &str) -> bool {
        pair.split_once('=').is_some_and(|(name, _)| name == self.parameter)
    }

    /// The answer to a good link: to the same place without the token, and with the cookie.
    pub(super) fn answer(
        &self,
        (path, query): (&str, Option<&str>),
        headers: &HeaderMap,
        pass: &Pass<'_>,
    ) -> Option<Response<Bytes>> {
        let location = place(path, &self.without_token(query.unwrap_or_default()));
        let is_secure = headers.get(X_FORWARDED_PROTO).is_some_and(|scheme| scheme == "https");
        let cookie = format!(
            "{}{}={}; Path={}; HttpOnly; SameSite=Lax; Max-Age={}{}",
            self.cookie,
            pass.suffix,
            pass.value,
            pass.path,
            pass.seconds,
            if is_secure { "; Secure" } else { "" },
        );
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = StatusCode::SEE_OTHER;
        let headers = response.headers_mut();
        headers.insert(LOCATION, HeaderValue::from_str(&location).ok()?);
        headers.insert(SET_COOKIE, HeaderValue::from_str(&cookie).ok()?);
        error_page::mark_own(headers, self.code);
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
        Some(response)
    }

    /// Path and query without tokens; `None` if there are none.
    pub(super) fn bare(&self, target: &str) -> Option<String> {
        let (path, query) = target.split_once('?')?;
        if !query.split('&').any(|pair| self.is_token(pair)) {
            return None;
        }
        let query = self.without_token(query);
        Some(if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") })
    }

    fn is_name(&self, name: &[u8]) -> bool {
        name.strip_prefix(self.cookie.as_bytes()).is_some_and(|suffix| matches!(suffix, [] | [b'_', ..]))
    }

    fn without_token(&self, query: &str) -> String {
        query.split('&').filter(|pair| !self.is_token(pair)).collect::<Vec<_>>().join("&")
    }
}

impl Passes {
    /// Whether a `Cookie` field may have one.
    pub(super) fn may_be_in(field: &[u8]) -> bool {
        std::str::from_utf8(field).map_or(true, |text| {
            // One search for nearly all requests.
            text.contains("lockgate_") && KINDS.iter().any(|kind| text.contains(kind.cookie))
        })
    }

    /// Takes them off a request's head.
    pub(super) fn take(headers: &mut HeaderMap) -> Self {
        let (mut passes, mut kept) = (Self::default(), Vec::new());
        for field in headers.get_all(COOKIE) {
            let pairs = field.as_bytes().split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let others: Vec<&[u8]> = pairs.filter(|pair| !pair.is_empty() && !passes.add(pair)).collect();
            // What was a header value is one without some of its parts.
            if let Some(value) =
                HeaderValue::from_bytes(&others.join(&b"; "[..])).ok().filter(|_| !others.is_empty())
            {
                kept.push(value);
            }
        }
        headers.remove(COOKIE);
        for field in kept {
            headers.append(COOKIE, field);
        }
        passes
    }

    /// Whether one of that kind is good.
    pub(super) fn has_good(&self, kind: &Kind, is_good: impl Fn(&str) -> bool) -> bool {
        let own = self.0.iter().filter(|(name, _)| *name == kind.cookie);
        own.take(LOOKED_AT).any(|(_, value)| is_good(value))
    }

    /// Whether it is one, which is kept.
    fn add(&mut self, pair: &[u8]) -> bool {
        let Some(at) = pair.iter().position(|byte| *byte == b'=') else { return false };
        let (name, value) = (pair[..at].trim_ascii(), &pair[at + 1..]);
        let Some(kind) = KINDS.iter().find(|kind| kind.is_name(name)) else { return false };
        if let Ok(value) = std::str::from_utf8(value) {
            self.0.push((kind.cookie, value.to_owned()));
        }
        true
    }
}

/// On this host, whatever the path looks like: browsers take `//x` and `/\x` for another host.
fn place(path: &str, query: &str) -> String {
    let path = path.trim_start_matches('/').replace('\\', "%5C");
    if query.is_empty() { format!("/{path}") } else { format!("/{path}?{query}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_never_leaves_the_host() {
        for (path, query, expected) in [
            ("/", "", "/"),
            ("/a/b", "x=1", "/a/b?x=1"),
            ("//evil.test/x", "", "/evil.test/x"),
            ("/\\evil.test", "", "/%5Cevil.test"),
        ] {
            assert_eq!(place(path, query), expected);
        }
    }
}
