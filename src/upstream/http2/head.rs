//! A request's head of HTTP/1.1 as a stream of HTTP/2 begins (RFC 9113 sections 8.2 and 8.3).

use http::header::{CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Uri, Version};

/// The head as it goes out. What it is made from stays, because the request may have to go out once more.
pub(super) fn of(head: &Parts) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.version_mut() = Version::HTTP_2;
    let mut headers = head.headers.clone();
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let authority = headers.get(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    match authority.and_then(|authority| absolute(authority, path)) {
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

fn absolute(authority: Authority, path: PathAndQuery) -> Option<Uri> {
    Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(path).build().ok()
}
