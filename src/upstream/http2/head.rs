//! A request's head of HTTP/1.1 as a stream of HTTP/2 begins (RFC 9113 sections 8.2 and 8.3).

use h2::ext::Protocol;
use http::header::{CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// The head as it goes out. What it is made from stays, because the request may have to go out once more.
pub(super) fn of(head: &Parts, scheme: &Scheme) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.version_mut() = Version::HTTP_2;
    let mut headers = head.headers.clone();
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let authority = headers.get(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    match authority.and_then(|authority| absolute(scheme.clone(), authority, path)) {
        Some(uri) => {
            headers.remove(HOST);
            *request.uri_mut() = uri;
        }
        // What a host name may be and an authority may not: then the field says it, as it does in HTTP/1.1.
        None => {
            *request.uri_mut() = head.uri.clone();
            *request.version_mut() = Version::HTTP_11;
        }
    }
    *request.headers_mut() = headers;
    request
}

/// Whether what the request is to be upgraded to is a WebSocket.
pub(super) fn is_websocket(head: &Parts) -> bool {
    head.headers.get(UPGRADE).is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The head of a WebSocket's handshake, which is an extended CONNECT (RFC 8441 section 5).
pub(super) fn connecting(head: &Parts, scheme: &Scheme) -> Request<()> {
    let mut request = of(head, scheme);
    *request.method_mut() = Method::CONNECT;
    request.headers_mut().remove(SEC_WEBSOCKET_KEY);
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    request
}

/// The answer to that in the words of HTTP/1.1: an agreement is 101, with the proof that whoever asked by a key expects.
pub(super) fn switched<T>(mut response: Response<T>, head: &Parts) -> Response<T> {
    if !response.status().is_success() {
        return response;
    }
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Some(key) = head.headers.get(SEC_WEBSOCKET_KEY)
        && let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
    {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

fn absolute(scheme: Scheme, authority: Authority, path: PathAndQuery) -> Option<Uri> {
    Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build().ok()
}
