//! Which version a request gets while pages stay with the one that they came from.
//!
//! Who goes to a page gets what everybody gets, and from then on a cookie has the rest of the page come from the same
//! version. A script says it for itself in a field, which counts before the cookie.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};

use crate::routing::Backend;
use crate::routing::skew::{Pin, Skew};
use crate::routing::table::RouteMatch;
use crate::upstream::RequestBody;

use super::error_page::Form;
use super::exchange::Mark;
use super::headers::X_FORWARDED_PROTO;
use super::split;
use super::worker::Worker;

pub(crate) const DEPLOYMENT: HeaderName = HeaderName::from_static("lockgate-deployment");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_PURPOSE: HeaderName = HeaderName::from_static("sec-purpose");

/// The version that a request is for, as far as it says so and as long as something comes of it.
#[derive(Debug, Default)]
pub(crate) struct Wish {
    /// What its field named: fields of ours go no further than here.
    field: Option<HeaderValue>,
    is_in_vain: bool,
}

impl Wish {
    pub(crate) fn new(field: Option<HeaderValue>) -> Self {
        Self { field, is_in_vain: false }
    }

    /// What it is for does not serve it: it goes where everybody goes.
    pub(crate) fn give_up(&mut self) {
        self.is_in_vain = true;
    }

    fn pin<'a>(&self, headers: &HeaderMap, skew: &'a Skew) -> Option<Pin<'a>> {
        if self.is_in_vain {
            return None;
        }
        match &self.field {
            Some(name) => skew.pin(name.as_bytes()),
            None => headers.get_all(header::COOKIE).iter().find_map(|field| skew.pin_in(field.as_bytes())),
        }
    }
}

/// The version that the request goes to, and what its answer tells the browser.
pub(crate) fn choose<'a>(
    worker: &Worker,
    request: &Request<RequestBody>,
    route: &RouteMatch<'a>,
    skew: &'a Skew,
    wish: &Wish,
) -> (&'a Arc<Backend>, Mark) {
    let is_page = wish.field.is_none() && is_page(request);
    if !is_page {
        match wish.pin(request.headers(), skew) {
            Some(Pin::Live) => return (route.backend, Mark::None),
            Some(Pin::To(backend)) => return (backend, Mark::Pinned),
            None => {}
        }
    }
    let (backend, mark) = match route.route.split() {
        Some(split) => split::choose(worker, request, route, split),
        None => (route.backend, Mark::None),
    };
    if !is_page {
        return (backend, mark);
    }
    let visitor = if let Mark::Visitor(cookie) = mark { Some(cookie) } else { None };
    // By now it says what the client used, or what a trusted proxy told of it.
    let is_secure = request.headers().get(X_FORWARDED_PROTO).is_some_and(|scheme| scheme == "https");
    let cookie = skew.cookie(backend, route.route.prefix.as_str(), is_secure);
    (backend, Mark::Page { cookie: HeaderValue::try_from(cookie).ok(), visitor })
}

/// Whether a browser goes to a page, and not for a part of one. What it only prefetches may never be shown, and a form
/// is answered by the version that made it.
fn is_page(request: &Request<RequestBody>) -> bool {
    let headers = request.headers();
    if !matches!(*request.method(), Method::GET | Method::HEAD) || headers.contains_key(SEC_PURPOSE) {
        return false;
    }
    match (headers.get(SEC_FETCH_DEST), headers.get(SEC_FETCH_MODE)) {
        (Some(dest), _) => dest == "document",
        (None, Some(mode)) => mode == "navigate",
        // Browsers do not say it over plain HTTP.
        (None, None) => Form::of(headers.get(header::ACCEPT)) == Form::Html,
    }
}

/// Whether a response is a page, or says that the one in the browser's cache is.
pub(super) fn is_page_shown(status: StatusCode, headers: &HeaderMap) -> bool {
    let is_html = |value: &HeaderValue| {
        let essence = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        essence.eq_ignore_ascii_case(b"text/html") || essence.eq_ignore_ascii_case(b"application/xhtml+xml")
    };
    status == StatusCode::NOT_MODIFIED || headers.get(header::CONTENT_TYPE).is_some_and(is_html)
}

/// Keeps caches that several clients share from storing what is not meant for all of them.
pub(super) fn keep_private(headers: &mut HeaderMap) {
    let is_kept = headers.get_all(header::CACHE_CONTROL).iter().any(|field| {
        field.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).any(|directive| {
            directive.eq_ignore_ascii_case(b"private") || directive.eq_ignore_ascii_case(b"no-store")
        })
    });
    if !is_kept {
        headers.append(header::CACHE_CONTROL, HeaderValue::from_static("private"));
    }
}
