//! Asks of a request what the policies of its route ask, and changes what they change; see [`crate::routing::policy`] for
//! what each of them says.
//!
//! On the way up they are taken in their order, before anything waits or is woken for the request; on the way down those that
//! it passed in the opposite order, on Lockgate's own answers as well: so one that stands before others also sees what they
//! answered.

mod encoder;
mod forward_auth;
mod lead;
mod signed_link;

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, LOCATION,
    ORIGIN, VARY,
};
use http::{Method, Request, Response, StatusCode};

use crate::routing::policy::compress::Coding;
use crate::routing::policy::cors::Cors;
use crate::routing::policy::place::SeenPath;
use crate::routing::policy::{Policies, Rule};
use crate::settings::Delay;
use crate::settings::policy::TimeoutsSettings;
use crate::upstream::{BodyFault, OwnLimits, RequestBody};

use super::client::Client;
use super::error::ForwardError;
use super::error_page::REASON;
use super::exchange::Exchange;
use super::headers::X_FORWARDED_PROTO;
use super::link::{Passes, SIGNED};
use super::skew::keep_private;

pub(super) use encoder::Encoder;

/// What the policies of its route know of a request.
pub(crate) struct Policed {
    policies: Arc<Policies>,
    /// The request's head before they changed it.
    original: HeaderMap,
    /// By a bit for each: it is for this request.
    covering: u32,
    /// By a bit for each: the request passed it.
    passed: u32,
    origin: Option<HeaderValue>,
    coding: Option<Coding>,
}

/// Whether `policies` have let the request by already: another try asks nothing again.
pub(super) fn has_passed(exchange: &Exchange, policies: &Arc<Policies>) -> bool {
    exchange.policed.as_ref().is_some_and(|policed| Arc::ptr_eq(&policed.policies, policies))
}

/// Asks and changes what `policies` do; `target` is the path and query as the client sent them. An answer is given in the
/// application's place.
///
/// # Errors
/// Why the request goes no further.
pub(super) async fn enforce(
    client: &Rc<Client>,
    exchange: &mut Exchange,
    policies: &Arc<Policies>,
    (request, passes): (&mut Request<RequestBody>, &Passes),
    (authority, target): (&HeaderValue, &str),
) -> Result<Option<Response<Bytes>>, ForwardError> {
    let mut most = client.worker.settings.limits.body_bytes;
    if let Some(before) = exchange.policed.take() {
        // Another version serves it than the one that was asked for: it is as if that one had not been there.
        *request.headers_mut() = before.original;
        request.body_mut().bound(most).map_err(ForwardError::RequestBody)?;
        client.activity.limit(OwnLimits::default());
    }
    let path = target.split('?').next().unwrap_or_default();
    let policed = exchange.policed.insert(Box::new(Policed::new(policies, request, path)));
    let (address, now) = (client.address(&policed.original), client.worker.clock.now());
    for (at, policy) in policies.list().iter().enumerate() {
        if policed.covering & (1 << at) == 0 {
            continue;
        }
        match &policy.rule {
            Rule::Redirect(redirect) => {
                let scheme = policed.original.get(X_FORWARDED_PROTO).and_then(|scheme| scheme.to_str().ok());
                let authority = authority.to_str().unwrap_or_default();
                if let Some(location) = redirect.location(scheme.unwrap_or("http"), authority, target) {
                    return send_to(redirect.status(), &location).map(Some);
                }
            }
            Rule::Ip(rules) if !rules.admits(address) => return Err(ForwardError::AddressRefused),
            Rule::Ip(_) | Rule::ErrorPages(_) => {}
            Rule::BasicAuth(auth) => {
                if !auth.admit(request.headers_mut()) {
                    return Err(ForwardError::Unauthorized(auth.challenge().clone()));
                }
            }
            Rule::SignedLink(link) => {
                let (asked, wall) = ((authority, target), client.worker.clock.wall());
                let who = (request.method(), &policed.original, passes);
                if let Some(answer) = signed_link::open(link, who, asked, wall)? {
                    return Ok(Some(answer));
                }
            }
            Rule::ForwardAuth(auth) => {
                // Who reads a token may come by it.
                let bare = policed.wants_link().then(|| SIGNED.bare(target)).flatten();
                let target = bare.as_deref().unwrap_or(target);
                let asked = forward_auth::Asked { head: &policed.original, authority, target };
                if let Some(answer) = forward_auth::ask(client, auth, &asked, request).await? {
                    return Ok(Some(answer));
                }
            }
            Rule::RateLimit(limit) => limit.admit(address, &policed.original, now).map_err(|wait| {
                let seconds = wait.as_millis().div_ceil(1000).max(1);
                ForwardError::RateLimited(u16::try_from(seconds).unwrap_or(u16::MAX))
            })?,
            Rule::Cors(cors) => {
                if Cors::is_preflight(request.method(), request.headers()) {
                    return Ok(Some(preflight(cors, policed.origin.as_ref())));
                }
            }
            Rule::Headers(headers) => headers.request.apply(request.headers_mut()),
            Rule::Body(settings) => {
                if let Some(max) = settings.max_bytes.filter(|max| *max < most) {
                    bound(request, max)?;
                    most = max;
                }
                if let Some(bytes) = settings.buffer_bytes {
                    lead::read(request.body_mut(), bytes as usize).await?;
                }
            }
            Rule::Timeouts(timeouts) => limit(client, *timeouts),
            Rule::Compress(_) => policed.coding = Coding::accepted(&policed.original),
            Rule::Unreadable => return Err(ForwardError::PolicyUnreadable),
        }
        policed.passed |= 1 << at;
    }
    Ok(None)
}

impl Policed {
    fn new(policies: &Arc<Policies>, request: &Request<RequestBody>, path: &str) -> Self {
        let list = policies.list();
        let has_paths = list.iter().any(|policy| policy.place.has_paths());
        let path = has_paths.then(|| SeenPath::new(path));
        let method = asked_for(request);
        let covers = |at: &usize| list[*at].place.covers(&method, path.as_ref());
        Self {
            policies: Arc::clone(policies),
            original: request.headers().clone(),
            covering: (0..list.len()).filter(covers).map(|at| 1 << at).sum(),
            passed: 0,
            origin: request.headers().get(ORIGIN).cloned(),
            coding: None,
        }
    }

    /// Whether the request goes on to the application, as far as they are concerned.
    pub(super) fn let_by(&self) -> bool {
        self.passed == self.covering
    }

    /// Whether a signed link let the request by.
    pub(super) fn is_by_link(&self) -> bool {
        self.has_link_among(self.passed)
    }

    /// Whether the request needs a signed link, which one that it has met already or comes to asks for.
    fn wants_link(&self) -> bool {
        self.has_link_among(self.covering)
    }

    fn has_link_among(&self, bits: u32) -> bool {
        let mut policies = self.policies.list().iter().enumerate();
        policies.any(|(at, policy)| bits & (1 << at) != 0 && matches!(policy.rule, Rule::SignedLink(_)))
    }

    /// Changes the head of a response, the application's or one of Lockgate's own.
    pub(super) fn mark(&self, headers: &mut HeaderMap) {
        for (at, policy) in self.policies.list().iter().enumerate().rev() {
            if self.passed & (1 << at) == 0 {
                continue;
            }
            match &policy.rule {
                Rule::Cors(cors) => cors.mark(self.origin.as_ref(), headers),
                Rule::Headers(rules) => rules.response.apply(headers),
                // A cache that several share would give it to who has no link.
                Rule::SignedLink(_) => keep_private(headers),
                Rule::Redirect(_)
                | Rule::Ip(_)
                | Rule::BasicAuth(_)
                | Rule::ForwardAuth(_)
                | Rule::RateLimit(_)
                | Rule::Body(_)
                | Rule::Timeouts(_)
                | Rule::Compress(_)
                | Rule::ErrorPages(_)
                | Rule::Unreadable => {}
            }
        }
    }

    /// What an application's response is compressed by, if it is; says so in its head.
    pub(super) fn compress(
        &self,
        method: &Method,
        status: StatusCode,
        headers: &mut HeaderMap,
    ) -> Option<Box<Encoder>> {
        let is_compressed = self.policies.list().iter().enumerate().any(|(at, policy)| {
            self.passed & (1 << at) != 0
                && matches!(&policy.rule, Rule::Compress(compress) if compress.suits(method, status, headers))
        });
        if !is_compressed {
            return None;
        }
        // Also where this client takes none: a cache has to tell them apart.
        headers.append(VARY, HeaderValue::from_static("accept-encoding"));
        let coding = self.coding?;
        let encoder = Encoder::new(coding).ok()?;
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.as_str()));
        headers.remove(CONTENT_LENGTH);
        // Ranges of one form are not those of the other.
        headers.remove(ACCEPT_RANGES);
        weaken(headers);
        Some(Box::new(encoder))
    }

    /// The page that is shown in place of Lockgate's own.
    pub(super) fn page(&self, status: StatusCode) -> Option<Bytes> {
        let covering =
            self.policies.list().iter().enumerate().filter(|(at, _)| self.covering & (1 << at) != 0);
        let mut pages = covering.filter_map(|(_, policy)| match &policy.rule {
            Rule::ErrorPages(pages) => pages.page(status),
            _ => None,
        });
        pages.next().cloned()
    }
}

/// Puts the page of its route on an error that is shown to a person.
pub(super) fn show_page(policed: Option<&Policed>, response: &mut Response<Bytes>) {
    let Some(page) = policed.and_then(|policed| policed.page(response.status())) else { return };
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(page.len()));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    *response.body_mut() = page;
}

/// The method that a policy may be for; what a browser asks before another request counts as that one.
fn asked_for<B>(request: &Request<B>) -> Method {
    let headers = request.headers();
    let asked = || headers.get(http::header::ACCESS_CONTROL_REQUEST_METHOD).map(HeaderValue::as_bytes);
    let preflight = Cors::is_preflight(request.method(), headers).then(asked).flatten();
    preflight.and_then(|name| Method::from_bytes(name).ok()).unwrap_or_else(|| request.method().clone())
}

fn send_to(status: StatusCode, location: &str) -> Result<Response<Bytes>, ForwardError> {
    let location = HeaderValue::try_from(location)
        .map_err(|_not_a_value| ForwardError::BadRequest("The request target is not valid."))?;
    let mut response = own(status, "redirect");
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

fn preflight(cors: &Cors, origin: Option<&HeaderValue>) -> Response<Bytes> {
    let mut response = own(StatusCode::NO_CONTENT, "cors_preflight");
    response.headers_mut().remove(CONTENT_LENGTH);
    cors.answer_preflight(origin, response.headers_mut());
    response
}

fn own(status: StatusCode, code: &'static str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(0));
    response.headers_mut().insert(REASON, HeaderValue::from_static(code));
    response
}

/// At most so much of a body is taken.
fn bound(request: &mut Request<RequestBody>, max: u64) -> Result<(), ForwardError> {
    let length =
        request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > max) {
        return Err(ForwardError::RequestBody(BodyFault::TooLarge));
    }
    request.body_mut().bound(max).map_err(ForwardError::RequestBody)
}

fn limit(client: &Client, timeouts: TimeoutsSettings) {
    let limits = &client.worker.settings.limits;
    let ticks = |limit: Option<Delay>| limit.map(|limit| limits.ticks(limit.0));
    let before = client.activity.own_limits();
    client.activity.limit(OwnLimits {
        body_idle: ticks(timeouts.body_idle).or(before.body_idle),
        response_head: ticks(timeouts.response_head).or(before.response_head),
        response_idle: ticks(timeouts.response_idle).or(before.response_idle),
    });
}

/// Compressed it is not the same to the byte (RFC 9110 section 8.8.3.1).
fn weaken(headers: &mut HeaderMap) {
    let Some(tag) = headers.get(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/")) else { return };
    match HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()) {
        Ok(weak) => headers.insert(ETAG, weak),
        Err(_not_a_value) => headers.remove(ETAG),
    };
}
