//! What an upstream's response must be to be passed on, and what is taken off and put on its head.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, Version};

use super::error::ForwardError;
use super::exchange::Shape;
use super::grpc;
use super::headers::{KEEP_ALIVE, PROXY_CONNECTION, Via, X_REQUEST_ID, remove_all};
use super::validate::{Checked, is_of_one_hop, is_shortest_number, lists_nothing, tokens};

const OURS: &str = "lockgate-";

/// What one look at a response's head found.
#[expect(clippy::struct_excessive_bools, reason = "each is a field that is there or not")]
#[derive(Debug, Default)]
pub(crate) struct Seen {
    has_connection: bool,
    has_hop: bool,
    has_trailer: bool,
    /// Fields that only we may set: a client would take them for ours.
    has_ours: bool,
    codings: u32,
    length: Option<u64>,
    /// More than once, or not in its shortest form.
    has_odd_length: bool,
    pub(crate) shape: Shape,
    /// How long the upstream says that it keeps an idle connection, in seconds.
    pub(crate) keep_alive: Option<u32>,
}

/// Checks a response's head.
///
/// # Errors
/// If it cannot be passed on, or must not be.
pub(crate) fn check(response: &Response<impl Sized>, checked: &Checked) -> Result<Seen, ForwardError> {
    let mut seen = Seen::default();
    for (name, value) in response.headers() {
        match *name {
            header::CONNECTION => seen.has_connection = true,
            header::TRANSFER_ENCODING => {
                seen.codings += 1;
                // Also where there is no body that it could frame.
                if seen.codings > 1 || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                    return Err(ForwardError::ResponseInvalid);
                }
            }
            header::CONTENT_LENGTH => {
                // Of HTTP/1.1 only those are left that no body follows, and of HTTP/2 all of them.
                let length = length_of(value).ok_or(ForwardError::ResponseInvalid)?;
                if seen.length.is_some_and(|before| before != length) {
                    return Err(ForwardError::ResponseInvalid);
                }
                seen.has_odd_length |= seen.length.is_some() || !is_shortest_number(value.as_bytes());
                seen.length = Some(length);
            }
            header::TRAILER => seen.has_trailer = true,
            header::CONTENT_TYPE => seen.shape = shape_of(value),
            header::UPGRADE | header::PROXY_AUTHENTICATE => seen.has_hop = true,
            _ if *name == KEEP_ALIVE => {
                seen.has_hop = true;
                seen.keep_alive = keep_alive_of(value);
            }
            _ if *name == PROXY_CONNECTION => seen.has_hop = true,
            _ => seen.has_ours |= name.as_str().starts_with(OURS),
        }
    }
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS if !is_asked_for(response.headers(), checked) => {
            Err(ForwardError::UpgradeUnasked)
        }
        status if status.as_u16() > 599 => Err(ForwardError::ResponseInvalid),
        _ => Ok(seen),
    }
}

/// Makes the head what goes downstream.
pub(crate) fn to_client(
    response: &mut Response<impl Sized>,
    seen: &Seen,
    method: &Method,
    id: &HeaderValue,
    via: Option<&Via>,
) {
    let status = response.status();
    let version = std::mem::replace(response.version_mut(), Version::HTTP_11);
    let headers = response.headers_mut();
    if seen.has_connection {
        if !lists_nothing(headers) {
            remove_listed(headers);
        }
        headers.remove(header::CONNECTION);
    }
    if seen.has_hop {
        for name in [&KEEP_ALIVE, &PROXY_CONNECTION, &header::UPGRADE, &header::PROXY_AUTHENTICATE] {
            headers.remove(name);
        }
    }
    if seen.codings > 0 {
        // hyper frames the body itself; left in place, the field makes it drop the client without an answer.
        headers.remove(header::TRANSFER_ENCODING);
    } else if seen.has_trailer
        && *method != Method::HEAD
        && (version != Version::HTTP_2 || seen.length.is_some())
    {
        headers.remove(header::TRAILER);
    }
    if let Some(length) = seen.length {
        settle_length(headers, seen, length, status);
    }
    if seen.has_ours {
        remove_all(headers, |name| name.starts_with(OURS));
    }
    if !crate::fault::sabotaged("no_ids") {
        headers.insert(X_REQUEST_ID, id.clone());
    }
    if let Some(via) = via {
        via.append(headers, version);
    }
}

/// Takes off what a client would take for ours, as [`to_client`] does from the head, and what trailers must not have.
pub(crate) fn trailers_to_client(trailers: &mut HeaderMap) {
    remove_all(trailers, |name| name.starts_with(OURS) || is_of_one_hop(name));
}

/// One length in its shortest form, or none where there must not be one.
fn settle_length(headers: &mut HeaderMap, seen: &Seen, length: u64, status: StatusCode) {
    if seen.codings > 0 || status == StatusCode::NO_CONTENT || status == StatusCode::SWITCHING_PROTOCOLS {
        headers.remove(header::CONTENT_LENGTH);
    } else if seen.has_odd_length {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// Digits and nothing else.
fn length_of(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok()
}

/// Takes off what `Connection` lists, but for what frames the message.
pub(super) fn remove_listed(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(|name| !matches!(*name, header::CONTENT_LENGTH | header::TRANSFER_ENCODING))
        .collect();
    for name in listed {
        headers.remove(name);
    }
}

/// Whether the upstream switches to the protocol that the client asked for.
fn is_asked_for(headers: &HeaderMap, checked: &Checked) -> bool {
    match (&checked.upgrade, headers.get(header::UPGRADE)) {
        (Some(asked), Some(given)) => asked.as_bytes().eq_ignore_ascii_case(given.as_bytes()),
        _ => false,
    }
}

fn shape_of(content_type: &HeaderValue) -> Shape {
    if is_event_stream(content_type) {
        Shape::EventStream
    } else if grpc::is_of_call(content_type) {
        Shape::Call
    } else {
        Shape::Plain
    }
}

fn is_event_stream(content_type: &HeaderValue) -> bool {
    let essence = content_type.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

fn keep_alive_of(value: &HeaderValue) -> Option<u32> {
    let timeout = value.to_str().ok()?.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    timeout.trim().parse().ok()
}
