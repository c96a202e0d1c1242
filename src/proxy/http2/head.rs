//! A request's head of HTTP/2 or HTTP/3 in the words of HTTP/1.1, so that one set of rules is for all (RFC 9113 sections 8.2 and 8.3,
//! RFC 9114 sections 4.2 and 4.3), and a response's in theirs.
//!
//! h2 has refused what is malformed: pseudo-headers that are unknown, late, missing or there twice, fields that concern the
//! connection, names with capitals, line ends and zero bytes in values, and a length that is not that of the data.

use bytes::BytesMut;
use h2::ext::Protocol;
use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, DATE, HOST, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::uri::Scheme;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;

use crate::proxy::client::Client;
use crate::proxy::error::ForwardError;
use crate::proxy::settings::Limits;
use crate::proxy::validate;

/// Fields of one head: what names of one byte expand to is bounded by nothing else.
const FIELDS_MAX: usize = 100;

/// Makes it what a request of HTTP/1.1 would have been: its authority in `Host`, its target a path, its cookies one field.
///
/// # Errors
/// How it is refused.
pub(crate) fn to_http1(head: &mut Parts, limits: &Limits) -> Result<(), ForwardError> {
    let bytes: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if head.headers.len() > FIELDS_MAX || bytes > limits.head_bytes {
        return Err(ForwardError::HeadTooLarge);
    }
    if head.headers.values().any(is_padded) {
        return Err(ForwardError::BadRequest("A header value begins or ends with a space."));
    }
    join_cookies(&mut head.headers);
    match head.extensions.get::<Protocol>() {
        Some(protocol) if protocol.as_str() == "websocket" => upgrade(head),
        // Its target is an authority, or it is for what nobody serves: it is refused for what it is.
        Some(_) | None if head.method == Method::CONNECT => return Ok(()),
        Some(_) | None => {}
    }
    if let Some(authority) = head.uri.authority() {
        if head.uri.scheme().is_none_or(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
            return Err(ForwardError::BadRequest("The request target's scheme is not served."));
        }
        let authority = HeaderValue::from_str(authority.as_str())
            .map_err(|_not_text| ForwardError::BadRequest("The request target's host is not valid."))?;
        let mut hosts = head.headers.get_all(HOST).iter();
        if hosts.any(|host| !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes())) {
            return Err(ForwardError::BadRequest("The Host header is not that of the request target."));
        }
        head.headers.insert(HOST, authority);
        head.uri = validate::origin_form(std::mem::take(&mut head.uri), None);
    }
    Ok(())
}

/// A WebSocket's handshake, which HTTP/1.1 asks a proof of that it was understood (RFC 8441 section 5.1).
fn upgrade(head: &mut Parts) {
    head.method = Method::GET;
    let headers = &mut head.headers;
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(key) = HeaderValue::from_str(&generate_key()) {
        headers.insert(SEC_WEBSOCKET_KEY, key);
    }
    headers.entry(SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
}

/// Says in the words of HTTP/1.1 that there is no body, where one would be expected.
pub(crate) fn tell_empty(request: &mut Request<impl Body>) {
    let expects = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
    if expects && request.body().is_end_stream() {
        request.headers_mut().entry(CONTENT_LENGTH).or_insert(HeaderValue::from_static("0"));
    }
}

/// Takes off a response what is of HTTP/1.1 alone, and adds what its server would add.
pub(crate) fn to_client(headers: &mut HeaderMap, client: &Client) {
    headers.remove(CONNECTION);
    if !headers.contains_key(DATE) {
        headers.insert(DATE, client.worker.date());
    }
}

/// Gives values memory of their own, all of them one piece. HPACK's table keeps some for as long as the connection lives (RFC 7541
/// section 2.3.2), and one that is a slice of what was read would keep all of that, a hundred times what the table may hold.
pub(crate) fn own_values(headers: &mut HeaderMap) {
    let mut copied = BytesMut::with_capacity(headers.values().map(HeaderValue::len).sum());
    headers.values().for_each(|value| copied.extend_from_slice(value.as_bytes()));
    let mut copied = copied.freeze();
    for value in headers.values_mut() {
        // What was a value is one.
        if let Ok(mut own) = HeaderValue::from_maybe_shared(copied.split_to(value.len())) {
            own.set_sensitive(value.is_sensitive());
            *value = own;
        }
    }
}

/// Makes of an agreement to an upgrade one to an extended CONNECT (RFC 8441 section 5, RFC 9220 section 3).
pub(crate) fn to_agreement(head: &mut Response<()>) {
    *head.status_mut() = StatusCode::OK;
    for name in [UPGRADE, SEC_WEBSOCKET_ACCEPT] {
        head.headers_mut().remove(name);
    }
}

fn is_padded(value: &HeaderValue) -> bool {
    let is_space = |byte: Option<&u8>| byte.is_some_and(|byte| matches!(byte, b' ' | b'\t'));
    is_space(value.as_bytes().first()) || is_space(value.as_bytes().last())
}

/// RFC 9113 section 8.2.3.
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else { return };
    let mut joined = BytesMut::from(first.as_bytes());
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    let is_secret = first.is_sensitive();
    if let Ok(mut joined) = HeaderValue::from_maybe_shared(joined.freeze()) {
        joined.set_sensitive(is_secret);
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_value_of_its_own_keeps_nothing_of_what_it_was_read_with() {
        let read = Bytes::from(b"HTTP/1.1 200 OK\r\nX: y".to_vec());
        let value = || HeaderValue::from_maybe_shared(read.slice(20..)).unwrap();
        let mut secret = value();
        secret.set_sensitive(true);
        let mut headers = HeaderMap::new();
        headers.append(DATE, value());
        headers.append(DATE, secret);
        headers.append(COOKIE, HeaderValue::from_static(""));
        own_values(&mut headers);
        assert!(read.is_unique(), "nobody else has it");
        let dates: Vec<_> =
            headers.get_all(DATE).iter().map(|date| (date.as_bytes(), date.is_sensitive())).collect();
        assert_eq!(dates, [(&b"y"[..], false), (&b"y"[..], true)]);
        assert_eq!(headers[COOKIE], "");
    }
}
