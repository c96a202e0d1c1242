//! What of a request decides which target it goes to, and the cookie that keeps a visitor with one.
//!
//! The cookie holds a name that only Lockgate can tell, and is set when a visitor has none that leads to where it was
//! served: at first, after its target is gone, and after a swap. It names no version and takes no part in which one a
//! visitor gets.

use std::rc::Rc;

use http::{HeaderMap, HeaderValue, Request, header};

use crate::routing::balance::{Balance, HashBy};
use crate::upstream::balance::{Wanted, seed};
use crate::upstream::{LocalBackend, LocalTarget, RequestBody};

use super::client::Client;
use super::headers::X_FORWARDED_PROTO;
use super::retry::Tries;

const COOKIE: &str = "__lockgate_target";

/// Where the request is to go.
pub(crate) fn wanted(
    client: &Client,
    request: &Request<RequestBody>,
    tries: &Tries,
    backend: &LocalBackend,
) -> Wanted {
    let headers = request.headers();
    let key = match &backend.backend.balance {
        Balance::TwoChoices | Balance::RoundRobin => None,
        Balance::Hash(HashBy::Client) => Some(seed(client.address(headers).to_string().as_bytes())),
        Balance::Hash(HashBy::Path) => Some(seed(tries.path(request).as_bytes())),
        Balance::Hash(HashBy::Header(name)) => headers.get(name).map(|value| seed(value.as_bytes())),
        Balance::Hash(HashBy::Cookie(name)) => cookies(headers, name).next().map(seed),
        Balance::Sticky(_) => {
            if let Some(at) = cookies(headers, COOKIE).find_map(|name| backend.named(name)) {
                return Wanted::Target(at);
            }
            // A page of another version than the live one, whose cookie is for that one, stays together all the same.
            cookies(headers, COOKIE).next().filter(|_| tries.is_pinned).map(seed)
        }
    };
    key.map_or(Wanted::Any, Wanted::Key)
}

/// The `Set-Cookie` that keeps the visitor with `target`, if one has to be set.
pub(crate) fn keep(
    request: &Request<RequestBody>,
    tries: &Tries,
    path: &str,
    backend: &LocalBackend,
    target: &Rc<LocalTarget>,
) -> Option<Box<HeaderValue>> {
    let Balance::Sticky(_) = backend.backend.balance else { return None };
    let (headers, name) = (request.headers(), backend.name_of(target)?);
    if tries.is_pinned
        || cookies(headers, COOKIE).find_map(|known| backend.named(known)) == backend.named(name.as_bytes())
    {
        return None;
    }
    // By now it says what the client used, or what a trusted proxy told of it.
    let is_secure = headers.get(X_FORWARDED_PROTO).is_some_and(|scheme| scheme == "https");
    let secure = if is_secure { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={name}; Path={path}; HttpOnly; SameSite=Lax{secure}");
    HeaderValue::try_from(cookie).ok().map(Box::new)
}

/// The values of the cookies of that name.
fn cookies<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let fields = headers.get_all(header::COOKIE).iter();
    fields
        .flat_map(|field| field.as_bytes().split(|byte| *byte == b';'))
        .filter_map(move |cookie| cookie.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}
