//! What is taken off and put on a request's head on its way upstream (RFC 9110 section 7.6, RFC 7239).

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Version};
use ipnet::IpNet;

use crate::proxy_header::Ends;
use crate::upstream::{Added, Lines};

use super::client::Client;
use super::error::ForwardError;
use super::settings::Scheme;
use super::validate::{Checked, Seen, is_managed, is_ours, lists_nothing, max_forwards, tokens};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const FORWARDED: HeaderName = header::FORWARDED;
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const X_ROBOTS_TAG: HeaderName = HeaderName::from_static("x-robots-tag");
pub(crate) const LABEL: HeaderName = HeaderName::from_static("lockgate-ephemeral-label");
pub(crate) const GENERATION: HeaderName = HeaderName::from_static("lockgate-generation");
pub(crate) const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
pub(crate) const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Fields that are put on: room for them at once, and not by and by.
const ADDED: usize = 9;

/// How often our own name may stand in `Via` before it is a loop.
const LOOP_MAX: usize = 5;

/// What is known of the peer of a client connection, made ready once.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    is_trusted: bool,
    pub(crate) scheme: Scheme,
    text: HeaderValue,
    /// That it came to.
    port: u16,
    port_text: HeaderValue,
    /// What an application is told of it, unless its requests say something else.
    lines: Rc<Lines>,
    /// Its connection's, if a proxy said so by a PROXY header.
    pub(crate) ends: Option<Rc<Ends>>,
}

/// `Via` as we write it.
#[derive(Debug)]
pub(crate) struct Via {
    name: String,
    from_11: HeaderValue,
    from_10: HeaderValue,
    from_20: HeaderValue,
    from_30: HeaderValue,
}

impl Peer {
    pub(crate) fn new(peer: SocketAddr, (scheme, port): (Scheme, u16), trusted: &[IpNet]) -> Self {
        // An IPv4 peer of an IPv6 listener is still an IPv4 peer.
        let address = peer.ip().to_canonical();
        let text = HeaderValue::from_str(&address.to_string());
        let text = text.unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        let port_text = HeaderValue::from(port);
        let lines = Rc::new(Lines::new(vec![
            (X_FORWARDED_FOR, text.clone()),
            (X_FORWARDED_PROTO, HeaderValue::from_static(scheme.as_str())),
            (X_FORWARDED_PORT, port_text.clone()),
            (X_REAL_IP, text.clone()),
        ]));
        Self {
            address,
            is_trusted: trusted.iter().any(|net| net.contains(&address)),
            scheme,
            text,
            port,
            port_text,
            lines,
            ends: None,
        }
    }

    /// The same, on a connection of which a proxy said that.
    pub(crate) fn with(self, ends: Option<Rc<Ends>>) -> Self {
        Self { ends, ..self }
    }

    /// Whether it is what is known of another connection of `peer` to `port`.
    pub(crate) fn is_of(&self, peer: SocketAddr, (scheme, port): (Scheme, u16)) -> bool {
        (self.scheme, self.port) == (scheme, port) && self.address == peer.ip().to_canonical()
    }

    #[cfg(feature = "http3")]
    pub(crate) fn came_to(&self, port: u16) -> bool {
        self.port == port
    }

    pub(crate) fn is_trusted(&self) -> bool {
        self.is_trusted
    }

    /// The client's address: the first untrusted one from the right.
    pub(crate) fn client(&self, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
        if !self.is_trusted {
            return self.address;
        }
        let mut client = self.address;
        let mut hops: Vec<&[u8]> = tokens(headers, &X_FORWARDED_FOR).collect();
        while let Some(hop) = hops.pop() {
            let Some(address) = std::str::from_utf8(hop).ok().and_then(|hop| hop.parse::<IpAddr>().ok())
            else {
                break;
            };
            client = address.to_canonical();
            if !trusted.iter().any(|net| net.contains(&client)) {
                break;
            }
        }
        client
    }
}

impl Via {
    /// `None` if `name` is not a token.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let value = |version| HeaderValue::from_str(&format!("{version} {name}")).ok();
        Some(Self {
            name: name.to_owned(),
            from_11: value("1.1")?,
            from_10: value("1.0")?,
            from_20: value("2.0")?,
            from_30: value("3.0")?,
        })
    }

    pub(crate) fn append(&self, headers: &mut HeaderMap, version: Version) {
        headers.append(header::VIA, self.value(version));
    }

    fn value(&self, version: Version) -> HeaderValue {
        let value = match version {
            Version::HTTP_10 => &self.from_10,
            Version::HTTP_2 => &self.from_20,
            Version::HTTP_3 => &self.from_30,
            _ => &self.from_11,
        };
        value.clone()
    }

    fn check_loop(&self, headers: &HeaderMap) -> Result<(), ForwardError> {
        let is_own = |hop: &&[u8]| {
            hop.split(|byte| *byte == b' ').nth(1).is_some_and(|name| name == self.name.as_bytes())
        };
        if tokens(headers, &header::VIA).filter(is_own).count() >= LOOP_MAX {
            return Err(ForwardError::Loop);
        }
        Ok(())
    }
}

/// Makes the head of a request what goes upstream, but for what it tells ([`tell`], [`tell_apart`]) and what depends on the
/// route.
pub(crate) fn to_upstream(
    headers: &mut HeaderMap,
    method: &Method,
    checked: &Checked,
    exact_body: Option<u64>,
) -> Result<(), ForwardError> {
    let seen = checked.seen;
    let takes_trailers = seen.has(Seen::TE)
        && tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case(b"trailers"));
    if seen.has(Seen::CONNECTION) && !lists_nothing(headers) {
        remove_listed(headers)?;
    }
    remove_hop_by_hop(headers, checked);
    frame(headers, seen, exact_body);
    if seen.has(Seen::OURS) {
        remove_all(headers, is_ours);
    }
    if takes_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
    if checked.upgrade.is_some() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if seen.has(Seen::MAX_FORWARDS)
        && *method == Method::OPTIONS
        && let Some(left) = max_forwards(headers)
    {
        headers.insert(header::MAX_FORWARDS, HeaderValue::from(left.saturating_sub(1)));
    }
    Ok(())
}

/// Tells by `headers` what this hop adds: the client, and this proxy in `Via`.
pub(crate) fn tell(
    headers: &mut HeaderMap,
    version: Version,
    checked: &Checked,
    client: &Client,
) -> Result<(), ForwardError> {
    headers.reserve(ADDED);
    if let Some(via) = &client.worker.via {
        if checked.seen.has(Seen::VIA) {
            via.check_loop(headers)?;
        }
        via.append(headers, version);
    }
    let settings = &client.worker.settings;
    tell_client(headers, checked, &client.peer, &settings.trusted_proxies);
    if settings.forwarded {
        tell_hop(headers, checked, &client.peer);
    }
    Ok(())
}

/// The same beside `headers` that have none of these fields ([`Seen::TOLD`]).
pub(crate) fn tell_apart(
    headers: &mut HeaderMap,
    version: Version,
    checked: &Checked,
    client: &Client,
) -> Added {
    if client.worker.settings.forwarded {
        tell_hop(headers, checked, &client.peer);
    }
    let is_told = !crate::fault::sabotaged("no_forwarded");
    let mut added = if is_told { Added::new(&client.peer.lines) } else { Added::default() };
    if let Some(via) = &client.worker.via {
        added.push(header::VIA, via.value(version));
    }
    if is_told {
        added.push(X_FORWARDED_HOST, checked.authority.clone());
    }
    added
}

/// Takes off what `Connection` lists. A field that must reach the other end cannot be listed away.
fn remove_listed(headers: &mut HeaderMap) -> Result<(), ForwardError> {
    let mut listed = Vec::new();
    for token in tokens(headers, &header::CONNECTION) {
        let is_usual = [&b"keep-alive"[..], b"close", b"upgrade", b"te", b""];
        if is_usual.iter().any(|usual| token.eq_ignore_ascii_case(usual)) {
            continue;
        }
        let name = HeaderName::from_bytes(token).map_err(|_not_a_name| {
            ForwardError::BadRequest("The Connection header lists what is not a name.")
        })?;
        if is_managed(name.as_str()) && name != header::VIA && name != header::TRAILER {
            return Err(ForwardError::BadRequest("The Connection header lists a field that has to arrive."));
        }
        listed.push(name);
    }
    for name in listed {
        headers.remove(name);
    }
    Ok(())
}

fn remove_hop_by_hop(headers: &mut HeaderMap, checked: &Checked) {
    let seen = checked.seen;
    if seen.has(Seen::CONNECTION) {
        headers.remove(header::CONNECTION);
    }
    if seen.has(Seen::HOP) {
        for name in [
            &KEEP_ALIVE,
            &PROXY_CONNECTION,
            &header::PROXY_AUTHENTICATE,
            &header::PROXY_AUTHORIZATION,
            &HTTP2_SETTINGS,
        ] {
            headers.remove(name);
        }
    }
    if seen.has(Seen::TE) {
        headers.remove(header::TE);
    }
    if seen.has(Seen::UPGRADE) && checked.upgrade.is_none() {
        headers.remove(header::UPGRADE);
    }
    if seen.has(Seen::EXPECT) {
        headers.remove(header::EXPECT);
    }
}

/// Says how the body is framed, in one way: its length, or that it comes in chunks.
fn frame(headers: &mut HeaderMap, seen: Seen, exact_body: Option<u64>) {
    match exact_body {
        None => {
            headers.remove(header::CONTENT_LENGTH);
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        Some(length) => {
            if seen.has(Seen::TRANSFER_ENCODING) {
                headers.remove(header::TRANSFER_ENCODING);
            }
            if seen.has(Seen::TRAILER) {
                headers.remove(header::TRAILER);
            }
            if seen.has(Seen::ODD_LENGTH) {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            }
        }
    }
}

pub(super) fn remove_all(headers: &mut HeaderMap, which: impl Fn(&str) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| which(name.as_str())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Who the client is: what an untrusted peer said of it is replaced, what a trusted one said is appended to.
fn tell_client(headers: &mut HeaderMap, checked: &Checked, peer: &Peer, trusted: &[IpNet]) {
    if crate::fault::sabotaged("no_forwarded") {
        return;
    }
    if peer.is_trusted && checked.seen.has(Seen::FORWARDED) {
        let client = peer.client(headers, trusted);
        let listed: Vec<&[u8]> = tokens(headers, &X_FORWARDED_FOR).collect();
        let mut hops = listed.join(&b", "[..]);
        if !hops.is_empty() {
            hops.extend_from_slice(b", ");
        }
        hops.extend_from_slice(peer.text.as_bytes());
        let hops = HeaderValue::from_bytes(&hops).unwrap_or_else(|_| peer.text.clone());
        headers.insert(X_FORWARDED_FOR, hops);
        keep_nearest(headers, X_FORWARDED_PROTO, || HeaderValue::from_static(peer.scheme.as_str()));
        keep_nearest(headers, X_FORWARDED_HOST, || checked.authority.clone());
        keep_nearest(headers, X_FORWARDED_PORT, || peer.port_text.clone());
        // Not what the peer says: many pass on what their clients wrote there.
        let client = HeaderValue::from_str(&client.to_string()).unwrap_or_else(|_| peer.text.clone());
        headers.insert(X_REAL_IP, client);
        return;
    }
    if checked.seen.has(Seen::FORWARDED) {
        headers.remove(FORWARDED);
        remove_all(headers, |name| name.starts_with("x-forwarded-"));
    }
    headers.insert(X_FORWARDED_FOR, peer.text.clone());
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(peer.scheme.as_str()));
    headers.insert(X_FORWARDED_HOST, checked.authority.clone());
    headers.insert(X_FORWARDED_PORT, peer.port_text.clone());
    headers.insert(X_REAL_IP, peer.text.clone());
}

/// The same by `Forwarded`: what is left of it there, a trusted proxy said.
fn tell_hop(headers: &mut HeaderMap, checked: &Checked, peer: &Peer) {
    let node = match peer.address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("\"[{address}]\""),
    };
    let authority = String::from_utf8_lossy(checked.authority.as_bytes());
    let own = format!("for={node};host=\"{authority}\";proto={}", peer.scheme.as_str());
    let before: Vec<&[u8]> = headers.get_all(FORWARDED).iter().map(HeaderValue::as_bytes).collect();
    let all = before.into_iter().chain([own.as_bytes()]).collect::<Vec<_>>().join(&b", "[..]);
    match HeaderValue::from_bytes(&all) {
        Ok(value) => drop(headers.insert(FORWARDED, value)),
        Err(_not_a_value) => drop(headers.remove(FORWARDED)),
    }
}

/// Of several fields of that name the last stays, which the nearest proxy wrote; `otherwise` stands for none.
fn keep_nearest(headers: &mut HeaderMap, name: HeaderName, otherwise: impl FnOnce() -> HeaderValue) {
    let last = headers.get_all(&name).iter().next_back().cloned();
    headers.insert(name, last.unwrap_or_else(otherwise));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against the sentence itself: the first untrusted address from the right, and nothing to the left of what is
        /// no address.
        #[test]
        fn a_client_is_the_first_untrusted_address_from_the_right(
            hops in prop::collection::vec("10\\.0\\.0\\.[0-9]|192\\.0\\.2\\.[0-9]|2001:db8::[0-9]|::ffff:10\\.0\\.0\\.1|unknown|[a-z ,]{0,4}", 0..6),
            fields in 1..4_usize,
            is_trusted in any::<bool>(),
        ) {
            let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
            let peer = if is_trusted { "10.9.9.9:1" } else { "198.51.100.7:1" };
            let peer = Peer::new(peer.parse().unwrap(), (Scheme::Http, 80), &trusted);
            let mut headers = HeaderMap::new();
            for part in hops.chunks(hops.len().div_ceil(fields).max(1)) {
                headers.append(X_FORWARDED_FOR, HeaderValue::from_str(&part.join(", ")).unwrap());
            }
            let is_ours = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
            let mut expected = peer.address;
            let all = hops.join(",");
            for hop in all.split(',').rev() {
                if hops.is_empty() || !is_ours(&expected) {
                    break;
                }
                let Ok(address) = hop.trim().parse::<IpAddr>() else { break };
                expected = address.to_canonical();
            }
            prop_assert_eq!(peer.client(&headers, &trusted), expected);
        }
    }
}
