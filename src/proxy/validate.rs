//! What a request must be before it is routed. hyper sees to the grammar of messages; policy is here.
//!
//! One look at the head decides everything that later steps need to know, so that routing, policy, log and
//! forwarding work on the same values. Strict where a sane client never notices.

use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::uri::Scheme;
use http::{Method, Uri, Version};

use crate::routing::HostName;

use super::error::ForwardError;
use super::link::Passes;
use super::settings::Limits;

/// What a request asks for, checked.
#[derive(Debug)]
pub(crate) struct Checked {
    /// The one authority: it routes, and it is what `Host` says upstream.
    pub(crate) authority: HeaderValue,
    /// `OPTIONS` of `*`, or one that may go no further: asked of the proxy itself.
    pub(crate) is_server_options: bool,
    /// The protocol to which the connection is to be upgraded.
    pub(crate) upgrade: Option<HeaderValue>,
    /// It came as a CONNECT of HTTP/2 or HTTP/3, to which every success is an agreement.
    pub(crate) is_connect: bool,
    pub(crate) seen: Seen,
}

/// Which of the fields that need work are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen(u32);

impl Seen {
    pub(crate) const CONNECTION: Self = Self(1);
    /// Fields that only concern one hop, beside `Connection` and the framing.
    pub(crate) const HOP: Self = Self(1 << 1);
    pub(crate) const TE: Self = Self(1 << 2);
    pub(crate) const TRANSFER_ENCODING: Self = Self(1 << 3);
    pub(crate) const CONTENT_LENGTH: Self = Self(1 << 4);
    /// A length that is not in its shortest form.
    pub(crate) const ODD_LENGTH: Self = Self(1 << 5);
    pub(crate) const UPGRADE: Self = Self(1 << 6);
    pub(crate) const EXPECT: Self = Self(1 << 7);
    pub(crate) const VIA: Self = Self(1 << 8);
    /// Fields that tell who the client is.
    pub(crate) const FORWARDED: Self = Self(1 << 9);
    pub(crate) const REQUEST_ID: Self = Self(1 << 10);
    /// Fields of ours, or other spellings of fields that we set.
    pub(crate) const OURS: Self = Self(1 << 11);
    pub(crate) const TRAILER: Self = Self(1 << 12);
    pub(crate) const MAX_FORWARDS: Self = Self(1 << 13);
    pub(crate) const TRACEPARENT: Self = Self(1 << 14);
    pub(crate) const TRACESTATE: Self = Self(1 << 15);
    /// Cookies that signed links became.
    pub(crate) const PASS: Self = Self(1 << 16);

    /// Any of the fields that go upstream with another value than they came with.
    pub(crate) const TOLD: Self =
        Self(Self::VIA.0 | Self::FORWARDED.0 | Self::REQUEST_ID.0 | Self::TRACEPARENT.0 | Self::TRACESTATE.0);

    pub(crate) fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// Checks the head of a request with or without a body.
///
/// # Errors
/// How it is refused.
pub(crate) fn check(head: &Parts, has_body: bool, limits: &Limits) -> Result<Checked, ForwardError> {
    check_method(&head.method)?;
    let mut seen = Seen::default();
    let mut host = Hosts::None;
    for (name, value) in &head.headers {
        if value.len() > limits.field_bytes {
            return Err(ForwardError::HeadTooLarge);
        }
        look_at(name.as_str(), value, &mut seen, &mut host)?;
    }
    if seen.has(Seen::EXPECT) && head.version >= Version::HTTP_11 {
        check_expect(&head.headers)?;
    }
    if seen.has(Seen::TRANSFER_ENCODING) {
        check_coding(&head.headers)?;
    }
    let authority = check_target(head, host, limits)?;
    let upgrade = if seen.has(Seen::UPGRADE) { upgrade_of(head, has_body)? } else { None };
    let is_server_options = head.uri.path() == "*" || ends_here(head, seen);
    let is_connect = upgrade.is_some() && head.version >= Version::HTTP_2;
    Ok(Checked { authority, is_server_options, upgrade, is_connect, seen })
}

#[derive(Clone, Copy)]
enum Hosts<'a> {
    None,
    One(&'a HeaderValue),
    Many,
}

fn look_at<'a>(
    name: &str,
    value: &'a HeaderValue,
    seen: &mut Seen,
    host: &mut Hosts<'a>,
) -> Result<(), ForwardError> {
    let found = match name {
        "host" => {
            *host = if let Hosts::None = host { Hosts::One(value) } else { Hosts::Many };
            return Ok(());
        }
        "max-forwards" => Seen::MAX_FORWARDS,
        "content-length" => {
            if !is_shortest_number(value.as_bytes()) {
                seen.add(Seen::ODD_LENGTH);
            }
            Seen::CONTENT_LENGTH
        }
        "transfer-encoding" => Seen::TRANSFER_ENCODING,
        "connection" => Seen::CONNECTION,
        "keep-alive"
        | "proxy-connection"
        | "proxy-authenticate"
        | "proxy-authorization"
        | "http2-settings" => Seen::HOP,
        "te" => Seen::TE,
        "trailer" => Seen::TRAILER,
        "upgrade" => Seen::UPGRADE,
        "expect" => Seen::EXPECT,
        "via" => Seen::VIA,
        "x-request-id" => Seen::REQUEST_ID,
        "traceparent" => Seen::TRACEPARENT,
        "tracestate" => Seen::TRACESTATE,
        "cookie" if Passes::may_be_in(value.as_bytes()) => Seen::PASS,
        "forwarded" | "x-real-ip" => Seen::FORWARDED,
        other if other.starts_with("x-forwarded-") => Seen::FORWARDED,
        other if is_ours(other) => Seen::OURS,
        _ => return Ok(()),
    };
    seen.add(found);
    Ok(())
}

/// A field of ours, or one that an application could take for a field that we set: `X_Forwarded_For`.
pub(crate) fn is_ours(name: &str) -> bool {
    if !name.bytes().any(|byte| byte == b'_' || byte == b'.') {
        return name.starts_with("lockgate-");
    }
    let plain = name.replace(['_', '.'], "-");
    plain.starts_with("lockgate-") || is_managed(&plain)
}

/// Fields that concern one connection, or the framing of a message: none of them may be one of trailers (RFC 9110 section 6.5.1),
/// and a response or request of HTTP/2 that has one there is not sent to its end.
pub(crate) fn is_of_one_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "content-length"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Fields that do not go upstream in trailers: those of the proxy, and those that say how a message is to be taken (RFC 9110
/// section 6.5.1), because some applications take trailers for fields.
pub(crate) fn is_no_trailer(name: &str) -> bool {
    is_managed(name)
        || is_ours(name)
        || is_of_one_hop(name)
        || matches!(
            name,
            "cache-control"
                | "content-encoding"
                | "content-range"
                | "content-type"
                | "http2-settings"
                | "max-forwards"
                | "proxy-authenticate"
                | "proxy-authorization"
                | "proxy-connection"
                | "set-cookie"
                | "traceparent"
                | "tracestate"
        )
}

/// Fields that the proxy sets, reads, or takes off: nobody else may spell them.
pub(crate) fn is_managed(name: &str) -> bool {
    name.starts_with("x-forwarded-")
        || name.starts_with("lockgate-")
        || matches!(
            name,
            "host"
                | "content-length"
                | "transfer-encoding"
                | "connection"
                | "upgrade"
                | "te"
                | "trailer"
                | "expect"
                | "forwarded"
                | "x-real-ip"
                | "x-request-id"
                | "via"
                | "authorization"
                | "cookie"
        )
}

fn check_method(method: &Method) -> Result<(), ForwardError> {
    match *method {
        Method::CONNECT | Method::TRACE => Err(ForwardError::MethodNotAllowed),
        _ if method.as_str().len() > 32 => Err(ForwardError::MethodNotAllowed),
        _ => Ok(()),
    }
}

/// RFC 9110 section 10.1.1; hyper answers 100 when the upstream reads the body.
fn check_expect(headers: &HeaderMap) -> Result<(), ForwardError> {
    let mut values = headers.get_all(header::EXPECT).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => Ok(()),
        _ => Err(ForwardError::ExpectationFailed),
    }
}

/// RFC 9110 section 7.6.2.
fn ends_here(head: &Parts, seen: Seen) -> bool {
    seen.has(Seen::MAX_FORWARDS) && head.method == Method::OPTIONS && max_forwards(&head.headers) == Some(0)
}

pub(crate) fn max_forwards(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::MAX_FORWARDS)?.to_str().ok()?.parse().ok()
}

/// Whether `Connection` is one field that lists nothing but the usual word; nearly always it does.
pub(crate) fn lists_nothing(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONNECTION).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => {
            let value = value.as_bytes();
            value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close")
        }
        _ => false,
    }
}

/// Whether `Connection` is one field that says `close` and nothing else.
pub(crate) fn asks_for_the_end(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONNECTION).iter();
    let first = values.next();
    first.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close")) && values.next().is_none()
}

/// Exactly one `chunked`: in a list, somebody else may see another end of the message.
fn check_coding(headers: &HeaderMap) -> Result<(), ForwardError> {
    let mut values = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        (Some(_), None) => Err(ForwardError::CodingUnknown),
        _ => Err(ForwardError::BadRequest("There is more than one Transfer-Encoding.")),
    }
}

/// RFC 9112 section 3.2: which authority counts, and which forms of target are served.
fn check_target(head: &Parts, host: Hosts<'_>, limits: &Limits) -> Result<HeaderValue, ForwardError> {
    let host = match host {
        Hosts::One(host) => host,
        Hosts::None => return Err(ForwardError::BadRequest("The Host header is missing.")),
        Hosts::Many => return Err(ForwardError::BadRequest("There is more than one Host header.")),
    };
    let uri = &head.uri;
    let path = uri.path_and_query().map_or("", |path| path.as_str());
    if path.len() > limits.target_bytes {
        return Err(ForwardError::TargetTooLong);
    }
    if !path.is_ascii() || uri.path().contains('\\') {
        return Err(ForwardError::BadRequest("The request target has characters that must be encoded."));
    }
    match (uri.scheme(), uri.authority()) {
        (None, None) if path.starts_with('/') => Ok(host.clone()),
        (None, None) if path == "*" && head.method == Method::OPTIONS => Ok(host.clone()),
        (Some(scheme), Some(authority)) if is_http(scheme) && !authority.as_str().contains('@') => {
            // It does not count, but it has to be one.
            if !host.to_str().is_ok_and(|host| HostName::from_authority(host).is_ok()) {
                return Err(ForwardError::BadRequest("The host name is not valid."));
            }
            HeaderValue::from_str(authority.as_str())
                .map_err(|_not_text| ForwardError::BadRequest("The request target's host is not valid."))
        }
        _ => Err(ForwardError::BadRequest("The request target is not a path.")),
    }
}

fn is_http(scheme: &Scheme) -> bool {
    *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS
}

/// An upgrade is for HTTP/1.1, or what a CONNECT of HTTP/2 was made into, named in `Connection`, a GET, and without a body, which the new protocol's first
/// bytes could be taken for. `h2c`, with its drafts, is left out of the request instead: it would lead past everything here.
fn upgrade_of(head: &Parts, has_body: bool) -> Result<Option<HeaderValue>, ForwardError> {
    let mut values = head.headers.get_all(header::UPGRADE).iter();
    let (Some(protocol), None) = (values.next(), values.next()) else {
        return Err(ForwardError::BadRequest("There is more than one Upgrade header."));
    };
    let is_offered = head.version >= Version::HTTP_11
        && tokens(&head.headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    if !is_offered || !is_tunnelled(protocol.as_bytes()) {
        return Ok(None);
    }
    if has_body {
        return Err(ForwardError::BadRequest("An upgrade cannot have a body."));
    }
    if head.method != Method::GET {
        return Err(ForwardError::BadRequest("Only GET can be upgraded."));
    }
    Ok(Some(protocol.clone()))
}

fn is_tunnelled(protocol: &[u8]) -> bool {
    let is_token = !protocol.is_empty()
        && protocol.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._+/".contains(byte));
    let lower = protocol.to_ascii_lowercase();
    is_token && !lower.starts_with(b"h2") && !lower.starts_with(b"http/") && !lower.starts_with(b"tls/")
}

/// The comma-separated tokens of all fields called `name`.
pub(crate) fn tokens<'a>(
    headers: &'a HeaderMap,
    name: &header::HeaderName,
) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    let values = headers.get_all(name).into_iter();
    values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

pub(crate) fn is_shortest_number(text: &[u8]) -> bool {
    matches!(text, [b'0'] | [b'1'..=b'9', ..])
}

/// The path and query that go upstream: as they came, or without the route's prefix.
pub(crate) fn origin_form(uri: Uri, stripped: Option<String>) -> Uri {
    let path = match stripped {
        Some(path) => {
            let query = uri.query().map(|query| format!("{path}?{query}"));
            query.unwrap_or(path).parse().ok()
        }
        None if uri.scheme().is_none() => return uri,
        None => uri.into_parts().path_and_query,
    };
    // What an authority and a fragment leave is an empty path, which reads as `/` and is written as nothing.
    path.filter(|path| path.as_str() != "/").map_or_else(|| Uri::from_static("/"), Uri::from)
}
