//! Lets by who comes with a signed link, or with the cookie that it became.

use std::cell::LazyCell;

use bytes::Bytes;
use http::header::HeaderMap;
use http::{HeaderValue, Method, Response};

use crate::clock::Timestamp;
use crate::routing::HostName;
use crate::routing::policy::place::SeenPath;
use crate::routing::policy::signed_link::SignedLink;

use super::super::error::ForwardError;
use super::super::link::{Pass, Passes, SIGNED};

/// Lets the request by; or says what to answer: a link is followed by a redirect to where it leads, with
/// the cookie. `original` is its head before other policies took something off, and `passes` what came with it.
///
/// # Errors
/// If it has neither.
pub(super) fn open(
    link: &SignedLink,
    (method, original, passes): (&Method, &HeaderMap, &Passes),
    (authority, target): (&HeaderValue, &str),
    now: Timestamp,
) -> Result<Option<Response<Bytes>>, ForwardError> {
    let host = authority.to_str().ok().and_then(|text| HostName::from_authority(text).ok());
    let Some(host) = host else { return Err(ForwardError::SignedLink) };
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let now = now.as_second();
    if let Some(token) = SIGNED.token(method, query)
        && let Some(until) = link.verify(token, &host, path, now)
    {
        let kept = SignedLink::kept(token, path);
        // Where it would end the attribute the browser sends it to all paths, beside those of other such links.
        let (suffix, below) = if path.contains(';') { (suffix_of(path), "/") } else { (String::new(), path) };
        let pass = Pass { suffix: &suffix, value: &kept, path: below, seconds: until - now };
        return SIGNED.answer((path, query), original, &pass).ok_or(ForwardError::SignedLink).map(Some);
    }
    // Once for all cookies, and not where there are none.
    let seen = LazyCell::new(|| SeenPath::new(path));
    let is_let_by = passes.has_good(&SIGNED, |kept| link.opens(kept, &host, &seen, now));
    if is_let_by { Ok(None) } else { Err(ForwardError::SignedLink) }
}

fn suffix_of(path: &str) -> String {
    format!("_{:.16}", blake3::hash(path.as_bytes()).to_hex().as_str())
}
