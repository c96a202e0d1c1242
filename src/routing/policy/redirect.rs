//! Where a client is sent instead (RFC 9110 section 15.4). The place is the configuration's: nothing that a client writes
//! becomes a host.

use http::{StatusCode, Uri};

use crate::routing::host::HostName;
use crate::settings::policy::RedirectSettings;

/// A place that clients are sent to.
#[derive(Debug)]
pub struct Redirect {
    /// Only from these; from all if empty.
    hosts: Box<[HostName]>,
    to: Box<str>,
    /// Scheme and authority, if it has them.
    origin: Option<(Box<str>, Box<str>)>,
    /// The path; `None` if that of the request is kept.
    path: Option<Box<str>>,
    status: StatusCode,
}

impl Redirect {
    pub(super) fn new(settings: &RedirectSettings) -> Option<Self> {
        let uri: Uri = settings.to.parse().ok()?;
        let origin = uri
            .scheme_str()
            .zip(uri.authority())
            .map(|(scheme, authority)| (scheme.into(), authority.as_str().to_ascii_lowercase().into()));
        // `http` reads an origin without a path as one with `/`.
        let ends_in_origin =
            settings.to.split("://").nth(1).is_some_and(|rest| !rest.contains(['/', '?', '#']));
        Some(Self {
            hosts: settings.hosts.iter().map(|host| host.parse().ok()).collect::<Option<_>>()?,
            to: settings.to.as_str().into(),
            origin,
            path: (!ends_in_origin).then(|| uri.path().into()),
            status: StatusCode::from_u16(settings.status).ok()?,
        })
    }

    /// Its status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// `Location` for a request to `authority` and `target`, the path with its query; `None` if the request is not for
    /// it, or is there already.
    #[must_use]
    pub fn location(&self, scheme: &str, authority: &str, target: &str) -> Option<String> {
        if !self.hosts.is_empty() {
            let host = HostName::from_authority(authority).ok()?;
            if !self.hosts.contains(&host) {
                return None;
            }
        }
        let is_there = self.origin.as_ref().is_none_or(|(to_scheme, to_authority)| {
            let usual = if scheme == "https" { ":443" } else { ":80" };
            let bare = |text: &str| text.strip_suffix(usual).unwrap_or(text).to_ascii_lowercase();
            **to_scheme == *scheme && bare(to_authority) == bare(authority)
        });
        let path = target.split('?').next().unwrap_or_default();
        let is_same = self.path.as_deref().is_none_or(|own| own == path);
        if is_there && is_same {
            return None;
        }
        Some(if self.path.is_some() { self.to.to_string() } else { format!("{}{target}", self.to) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect(hosts: &[&str], to: &str) -> Redirect {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        Redirect::new(&RedirectSettings { hosts, to: to.to_owned(), status: 308 }).unwrap()
    }

    #[test]
    fn an_origin_keeps_path_and_query_and_sends_nobody_in_a_circle() {
        let to = redirect(&[], "https://example.com");
        assert_eq!(to.location("https", "www.example.com", "/a?b=c").unwrap(), "https://example.com/a?b=c");
        assert_eq!(to.location("http", "example.com", "/a").unwrap(), "https://example.com/a");
        assert_eq!(to.location("https", "Example.com", "/a"), None);
        assert_eq!(to.location("https", "example.com:443", "/a"), None);
        assert_eq!(to.location("https", "x", "//evil.test").unwrap(), "https://example.com//evil.test");
    }

    #[test]
    fn only_its_hosts_are_sent() {
        let to = redirect(&["www.example.com"], "https://example.com");
        assert!(to.location("https", "WWW.example.com:443", "/").is_some());
        assert_eq!(to.location("https", "api.example.com", "/"), None);
        assert_eq!(to.location("https", "[::1", "/"), None);
    }

    #[test]
    fn a_place_is_the_same_for_all_and_for_who_is_there() {
        let to = redirect(&[], "/new");
        assert_eq!(to.location("http", "a.test", "/old?x=1").unwrap(), "/new");
        assert_eq!(to.location("http", "a.test", "/new?x=1"), None);
        let far = redirect(&[], "https://b.test/new?y=2");
        assert_eq!(far.location("https", "a.test", "/new").unwrap(), "https://b.test/new?y=2");
        assert_eq!(far.location("https", "b.test", "/new"), None);
    }
}
