//! Who may: the uid behind the Unix socket, or a bearer token; and no browser page of somebody else.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;
use tracing::warn;

use super::problem::Refusal;
use super::{Admin, Peer, body};
use crate::api::Scope;
use crate::error::chain;
use crate::ids::OperationId;
use crate::store::AuditEntry;

/// Calls over TCP that were not let in within [`WINDOW`]; further ones are answered 429 and not written down.
const FAILURES_MAX: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);

/// Who was let in; in the request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct Actor {
    pub(crate) name: String,
    scope: Scope,
}

/// The operation that a handler began; in the response's extensions, for the audit trail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Began(pub(crate) OperationId);

/// How many calls over TCP were not let in, and since when: all peers are on this machine. It keeps those without a
/// token from filling the audit trail, and stands in nobody's way who has one.
#[derive(Debug, Default)]
pub struct Failures(Mutex<Option<(u32, Instant)>>);

/// Why a call is not let in.
enum Kept {
    /// It is written down if it is a mutation.
    Out(Refusal),
    /// One of too many.
    Quiet(Refusal),
}

/// Lets in who may, and writes down every mutation, refused ones included.
pub(crate) async fn guard(
    State(admin): State<Arc<Admin>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let method = request.method().clone();
    let is_mutation = !matches!(method, Method::GET | Method::HEAD | Method::OPTIONS);
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let target = request.uri().path().to_owned();
    let needed = scope_of(&method, &route);
    let (actor, response) = match admit(&admin, &peer, request.uri(), request.headers()).await {
        Ok(actor) if actor.scope >= needed => {
            let name = actor.name.clone();
            request.extensions_mut().insert(actor);
            (Some(name), answer(is_mutation, request, next).await)
        }
        Ok(actor) => (Some(actor.name), scope_missing(needed).into_response()),
        Err(Kept::Out(refusal)) => (Some(peer.to_string()), refusal.into_response()),
        Err(Kept::Quiet(refusal)) => (None, refusal.into_response()),
    };
    // Where there is no route nothing could have been changed.
    if let Some(actor) = actor.filter(|_| is_mutation && !route.is_empty()) {
        let entry = AuditEntry {
            id: 0,
            at: admin.clock.wall(),
            actor,
            action: format!("{method} {route}"),
            target,
            status: response.status().as_u16(),
            operation: response.extensions().get::<Began>().map(|began| began.0),
        };
        if let Err(error) = admin.store.append_audit(&entry).await {
            warn!(error = chain(&error), action = entry.action, "audit entry not written");
        }
    }
    response
}

/// Keeps web pages away from what needs no token: what it shows is for this machine alone.
pub(crate) async fn guard_open(
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    match peer {
        Peer::Unix { .. } => next.run(request).await,
        Peer::Tcp { .. } => match refuse_browsers(request.uri(), request.headers()) {
            Ok(()) => next.run(request).await,
            Err(refusal) => refusal.into_response(),
        },
    }
}

/// What every answer says to browsers: keep nothing, guess nothing, show it nowhere.
pub(crate) async fn protect(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(
        HeaderName::from_static("content-security-policy"),
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    );
    response
}

async fn answer(is_mutation: bool, request: Request, next: Next) -> Response {
    if !is_mutation {
        return next.run(request).await;
    }
    match body::read(request).await {
        Ok(request) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

async fn admit(admin: &Admin, peer: &Peer, uri: &Uri, headers: &HeaderMap) -> Result<Actor, Kept> {
    let admitted = match peer {
        Peer::Unix { uid } => return admit_uid(*uid).map_err(Kept::Out),
        Peer::Tcp { .. } => match refuse_browsers(uri, headers) {
            Ok(()) => admit_token(admin, secret(headers)).await,
            Err(refusal) => Err(refusal),
        },
    };
    admitted.map_err(|refusal| {
        if !admin.failures.count(admin.clock.now()) {
            return Kept::Out(refusal);
        }
        let title =
            format!("more than {FAILURES_MAX} calls in a minute were refused; this one: {}", refusal.0.title);
        Kept::Quiet(
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too_many_failures", title)
                .remedy("ask with a valid token: that is never refused for the wrong ones of others"),
        )
    })
}

fn scope_missing(needed: Scope) -> Refusal {
    let title = format!("the token lacks scope {needed:?}").to_lowercase();
    Refusal::new(StatusCode::FORBIDDEN, "scope_missing", title)
        .remedy("use a token with that scope: `lockgate token create`")
}

fn admit_uid(uid: Option<u32>) -> Result<Actor, Refusal> {
    let own = rustix::process::geteuid().as_raw();
    match uid {
        Some(uid) if uid == 0 || uid == own => Ok(Actor { name: format!("uid {uid}"), scope: Scope::Admin }),
        _ => Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            "only root and lockgate's own user may use the socket",
        )),
    }
}

/// DNS rebinding and cross-site requests: a page of somebody else, in a browser on this machine, has no business here.
fn refuse_browsers(uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().and_then(|value| value.to_str().ok()).unwrap_or_default();
    // The authority of an absolute target wins over Host (RFC 9112 3.2.2): both must be ours.
    let is_ours = is_loopback(host)
        && hosts.next().is_none()
        && uri.authority().is_none_or(|authority| is_loopback(authority.as_str()));
    if !is_ours {
        return Err(Refusal::new(
            StatusCode::MISDIRECTED_REQUEST,
            "foreign_host",
            "the Host is not a loopback name",
        ));
    }
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    if headers.contains_key(header::ORIGIN)
        || site.is_some_and(|site| site != b"none" && site != b"same-origin")
    {
        return Err(Refusal::new(StatusCode::FORBIDDEN, "cross_site", "requests of web pages are refused"));
    }
    Ok(())
}

fn is_loopback(host: &str) -> bool {
    let name =
        host.rsplit_once(':').map_or(host, |(name, port)| if port.ends_with(']') { host } else { name });
    name.eq_ignore_ascii_case("localhost")
        || name
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

/// The bearer token; empty if there is none. The scheme's case does not matter (RFC 9110 11.1).
fn secret(headers: &HeaderMap) -> &str {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (scheme, secret) = value.split_once(' ').unwrap_or_default();
    if scheme.eq_ignore_ascii_case("bearer") { secret.trim() } else { "" }
}

async fn admit_token(admin: &Admin, secret: &str) -> Result<Actor, Refusal> {
    let hash = token_hash(secret);
    let now = admin.clock.wall();
    let mut found = None;
    // All are compared, so that the time says nothing about which came near.
    for token in admin.store.tokens().await? {
        if bool::from(token.hash.ct_eq(&hash)) && token.expires_at.is_none_or(|at| at > now) {
            found = Some(token);
        }
    }
    let Some(token) = found else {
        return Err(Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", "a valid token is needed")
            .remedy("make one on the server: `lockgate token create NAME --scope deploy`"));
    };
    let scope = token.scopes.iter().filter_map(|scope| scope_named(scope)).max();
    let scope = scope
        .ok_or_else(|| Refusal::new(StatusCode::FORBIDDEN, "scope_missing", "the token has no scope"))?;
    Ok(Actor { name: format!("token {}", token.name), scope })
}

/// Keyed by what it is for, so that the hash is of no use elsewhere.
#[must_use]
pub fn token_hash(secret: &str) -> Vec<u8> {
    blake3::derive_key("lockgate 2026 admin token", secret.as_bytes()).to_vec()
}

/// What a call needs; to hear that there is no such path (`route` is empty), any token will do.
fn scope_of(method: &Method, route: &str) -> Scope {
    if route.is_empty() {
        return Scope::Read;
    }
    if route.starts_with("/v1/tokens") || route == "/v1/audit" {
        return Scope::Admin;
    }
    match *method {
        Method::GET | Method::HEAD | Method::OPTIONS => Scope::Read,
        Method::PUT if !route.starts_with("/v1/deployments") => Scope::Admin,
        _ if route.starts_with("/v1/config") => Scope::Admin,
        // As by PUT of the app: which names are whose is not decided by who deploys.
        _ if route.starts_with("/v1/apps/{app}/hosts") || route == "/v1/apps/{app}/rename" => Scope::Admin,
        // Nobody can make again what is in a volume.
        Method::DELETE if route == "/v1/apps/{app}" || route == "/v1/volumes" => Scope::Admin,
        _ => Scope::Deploy,
    }
}

fn scope_named(name: &str) -> Option<Scope> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
}

impl Failures {
    /// Counts one; says whether there were too many of late.
    fn count(&self, now: Instant) -> bool {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, since) =
            failures.filter(|(_, since)| now.duration_since(*since) < WINDOW).unwrap_or((0, now));
        *failures = Some((count.saturating_add(1), since));
        count >= FAILURES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn the_socket_is_for_root_and_the_own_user() {
        let own = rustix::process::geteuid().as_raw();
        for uid in [0, own] {
            assert!(admit_uid(Some(uid)).is_ok_and(|actor| actor.scope == Scope::Admin), "{uid}");
        }
        for uid in [Some(own + 1), Some(own + 2), None] {
            assert_eq!(admit_uid(uid).unwrap_err().0.status, 403, "{uid:?}");
        }
    }

    #[test]
    fn a_minute_after_the_first_wrong_call_the_count_begins_anew() {
        let clock = crate::clock::SystemClock;
        let begin = clock.now();
        let failures = Failures::default();
        let is_over: Vec<_> = (0..12).map(|_| failures.count(begin + WINDOW / 2)).collect();
        assert_eq!(is_over, [[false; 10].as_slice(), &[true; 2]].concat());
        assert!(failures.count(begin + WINDOW), "half a minute later");
        assert!(!failures.count(begin + WINDOW * 2), "another minute later");
    }
}
