//! Lockgate's own listeners, which are nobody's upstream: requests would go in a circle, or reach the admin API.

use std::net::{IpAddr, SocketAddr};

use super::diagnose::Findings;
use super::document::Document;
use super::tls::TlsConfig;

/// By the key that each is given with.
#[derive(Debug)]
pub(super) struct Listeners(Vec<(&'static str, SocketAddr)>);

impl Listeners {
    pub(super) fn of(document: &Document, tls: &TlsConfig) -> Self {
        let http = document.listeners.http.addresses().into_iter().map(|address| ("listeners.http", address));
        let https = tls.listen.iter().map(|address| ("listeners.https", *address));
        let admin = document.admin.address.into_iter().map(|address| ("admin.address", address));
        Self(http.chain(https).chain(admin).collect())
    }

    /// Adds a finding if the upstream at `path` is one of them. An address of this machine that no file names is not
    /// known here: the request's `Via` ends that circle.
    pub(super) fn refuse(&self, path: &str, text: &str, upstream: SocketAddr, findings: &mut Findings<'_>) {
        if let Some((key, _)) = self.0.iter().find(|(_, listener)| reaches(upstream, *listener)) {
            let message = format!("{} is Lockgate's own listener, {key}", findings.shown(path, text));
            findings.add(path, message, "write where the service itself listens");
        }
    }
}

/// Whether who connects to `upstream` comes to `listener`. What is connected to 0.0.0.0 goes to the machine itself.
fn reaches(upstream: SocketAddr, listener: SocketAddr) -> bool {
    let (to, at) = (upstream.ip().to_canonical(), listener.ip().to_canonical());
    let is_here = to.is_loopback() || to.is_unspecified();
    // [::] takes IPv4 as well; 0.0.0.0 takes nothing else.
    let is_heard_by_all = match at {
        IpAddr::V4(_) => at.is_unspecified() && to.is_ipv4(),
        IpAddr::V6(_) => at.is_unspecified(),
    };
    let is_same = to == at || to.is_unspecified() && at.is_loopback() && to.is_ipv4() == at.is_ipv4();
    upstream.port() == listener.port() && (is_same || is_here && is_heard_by_all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_an_own_listener_where_a_connection_to_it_would_come_back() {
        for (upstream, listener, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:81", "127.0.0.1:80", false),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("127.9.9.9:80", "0.0.0.0:80", true),
            ("10.0.0.5:80", "0.0.0.0:80", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "[::]:80", true),
            ("[::1]:80", "[::]:80", true),
            ("[::1]:80", "0.0.0.0:80", false),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true),
            ("127.0.0.2:80", "127.0.0.1:80", false),
            ("10.0.0.5:80", "10.0.0.5:80", true),
        ] {
            let (to, at) = (upstream.parse().unwrap(), listener.parse().unwrap());
            assert_eq!(reaches(to, at), expected, "{upstream} to {listener}");
        }
    }
}
