//! The door of a preview: name and password, or a signed link that becomes a cookie.
//!
//! What is refused goes no further: no target is chosen, and none is woken. What opened the door is taken off before the
//! request goes upstream.

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Request, Response};

use crate::clock::Timestamp;
use crate::routing::preview_auth::{LinkKey, PreviewAuth};

use super::error::ForwardError;
use super::link::{PREVIEW, Pass, Passes};

/// Lets the request in, or says what to answer instead: a link is followed by a redirect to where it leads, with the
/// cookie. `passes` came with it.
pub(super) fn open<B>(
    auth: &PreviewAuth,
    (request, passes): (&mut Request<B>, &Passes),
    now: Timestamp,
) -> Result<Option<Response<Bytes>>, ForwardError> {
    match auth {
        PreviewAuth::Basic(credential) => {
            if !credential.is_in(request.headers()) {
                return Err(ForwardError::PreviewPassword);
            }
            request.headers_mut().remove(AUTHORIZATION);
            Ok(None)
        }
        PreviewAuth::Link(key) => {
            if let Some(answer) = follow(key, request, now) {
                return Ok(Some(answer));
            }
            if !passes.has_good(&PREVIEW, |token| key.verify(token, now.as_second()).is_some()) {
                return Err(ForwardError::PreviewLink);
            }
            Ok(None)
        }
    }
}

/// The answer to a good link.
fn follow<B>(key: &LinkKey, request: &Request<B>, now: Timestamp) -> Option<Response<Bytes>> {
    let token = PREVIEW.token(request.method(), request.uri().query())?;
    let until = key.verify(token, now.as_second())?;
    let pass = Pass { suffix: "", value: token, path: "/", seconds: until - now.as_second() };
    PREVIEW.answer((request.uri().path(), request.uri().query()), request.headers(), &pass)
}
