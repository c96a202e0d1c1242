//! The door of a preview: name and password, or a signed link that becomes a cookie, so that pages find their assets.
//!
//! What is refused goes no further: no target is chosen, and none is woken. What opened the door is taken off before the
//! request goes upstream.

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, COOKIE, HeaderMap, LOCATION, REFERRER_POLICY, SET_COOKIE};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};

use crate::clock::Timestamp;
use crate::routing::preview_auth::{LinkKey, PreviewAuth};

use super::error::ForwardError;
use super::error_page;

/// The query parameter of a link.
const PARAMETER: &str = "lockgate_link";
const COOKIE_NAME: &str = "lockgate_preview";
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Lets the request in, or says what to answer instead: a link is followed by a redirect to where it leads, with the
/// cookie.
pub(super) fn open<B>(
    auth: &PreviewAuth,
    request: &mut Request<B>,
    now: Timestamp,
) -> Result<Option<Response<Bytes>>, ForwardError> {
    match auth {
        PreviewAuth::Basic(hash) => {
            if !has_credential(request.headers(), *hash) {
                return Err(ForwardError::PreviewPassword);
            }
            request.headers_mut().remove(AUTHORIZATION);
            Ok(None)
        }
        PreviewAuth::Link(key) => {
            if let Some(answer) = follow(key, request, now) {
                return Ok(Some(answer));
            }
            if !take_cookie(key, request.headers_mut(), now) {
                return Err(ForwardError::PreviewLink);
            }
            Ok(None)
        }
    }
}

fn has_credential(headers: &HeaderMap, hash: blake3::Hash) -> bool {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (Some(only), None) = (all.next(), all.next()) else { return false };
    let text = only.as_bytes();
    let Some((scheme, credential)) = text.split_at_checked("basic ".len()) else { return false };
    scheme.eq_ignore_ascii_case(b"basic ") && blake3::hash(credential.trim_ascii()) == hash
}

/// The answer to a good link: to the same place without the token, and with the cookie.
fn follow<B>(key: &LinkKey, request: &Request<B>, now: Timestamp) -> Option<Response<Bytes>> {
    if *request.method() != Method::GET && *request.method() != Method::HEAD {
        return None;
    }
    let query = request.uri().query()?;
    let is_token = |pair: &&str| pair.split_once('=').is_some_and(|(name, _)| name == PARAMETER);
    let (_, token) = query.split('&').find(is_token)?.split_once('=')?;
    let until = key.verify(token, now.as_second())?;
    let rest: Vec<&str> = query.split('&').filter(|pair| !is_token(pair)).collect();
    let location = place(request.uri().path(), &rest.join("&"));
    let is_secure = request.headers().get(X_FORWARDED_PROTO).is_some_and(|scheme| scheme == "https");
    let cookie = format!(
        "{COOKIE_NAME}={token}; Path=/; HttpOnly; SameSite=Lax; Max-Age={}{}",
        until - now.as_second(),
        if is_secure { "; Secure" } else { "" },
    );
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers = response.headers_mut();
    headers.insert(LOCATION, HeaderValue::from_str(&location).ok()?);
    headers.insert(SET_COOKIE, HeaderValue::from_str(&cookie).ok()?);
    error_page::mark_own(headers, "preview_link");
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
    Some(response)
}

/// On this host, whatever the path looks like: browsers take `//x` and `/\x` for another host.
fn place(path: &str, query: &str) -> String {
    let path = path.trim_start_matches('/').replace('\\', "%5C");
    if query.is_empty() { format!("/{path}") } else { format!("/{path}?{query}") }
}

/// Whether there is a good cookie of ours; none of ours goes upstream.
fn take_cookie(key: &LinkKey, headers: &mut HeaderMap, now: Timestamp) -> bool {
    let mut is_good = false;
    let mut kept = Vec::new();
    for line in headers.get_all(COOKIE) {
        let Ok(text) = line.to_str() else {
            kept.push(line.clone());
            continue;
        };
        let others = text.split(';').map(str::trim).filter(|pair| match pair.split_once('=') {
            Some((COOKIE_NAME, token)) => {
                is_good |= key.verify(token, now.as_second()).is_some();
                false
            }
            _ => !pair.is_empty(),
        });
        let others = others.collect::<Vec<_>>().join("; ");
        // What was a header value is one without some of its parts.
        if let Some(value) = HeaderValue::from_str(&others).ok().filter(|_| !others.is_empty()) {
            kept.push(value);
        }
    }
    headers.remove(COOKIE);
    for line in kept {
        headers.append(COOKIE, line);
    }
    is_good
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
