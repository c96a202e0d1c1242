//! The data plane for HTTP/1.1 and HTTP/2, with TLS or without: from a client's connection to a target and back.
//!
//! A request: `worker → server → handle → routing → gate.enter → upstream::send → body`. Each arrow is one call.
//!
//! # Invariants
//! 1. A request reaches a target only through its gate, and its guard lives until the last byte of the response
//!    and of the request, the end of both directions of a tunnel, or the abort.
//! 2. A refused request resolves its route again; the client does not notice.
//! 3. What goes upstream is written anew from what was parsed and checked; no received byte of framing is passed on.
//! 4. Once a response has begun, its only end other than its own is a connection that is visibly cut.
//! 5. A client's connection is never closed because a route changed.
//!
//! # One thread
//! A connection stays with the worker that accepted it, and all that it uses is that worker's own: nothing here is
//! locked, and nothing is counted where another worker writes.

mod access_log;
mod addresses;
mod body;
mod client;
mod error;
mod error_page;
mod exchange;
mod grpc;
mod headers;
mod hold;
mod http2;
mod io;
mod memo;
mod plane;
mod preview_auth;
mod proxied;
mod raw_heads;
mod request_id;
mod response;
mod retry;
mod server;
mod settings;
mod skew;
mod socket;
mod split;
mod sweep;
mod tls;
mod trace;
mod tunnel;
mod unsent;
mod upload;
mod validate;
mod websocket;
mod worker;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body as _;

use crate::gate::Refused;
use crate::proxy_header;
use crate::upstream::{self, Answer, LocalTarget, RequestBody, RequestGuard, ResponseBody, Source, balance};

use body::Body;
use client::Client;
use error::ForwardError;
use error_page::Form;
use exchange::{End, Exchange, Mark, Shape};
pub use plane::{DataPlane, StartError, start};
use retry::Tries;
pub use settings::{AccessLogFormat, AccessLogSink, Limits, ProxySettings, TlsSettings};
use skew::Wish;
use tunnel::{Upgrade, Upstream};
use validate::{Checked, Seen};

/// Answers one request.
async fn handle(client: Rc<Client>, request: Request<Source>) -> Result<Response<Body>, Infallible> {
    let mut exchange = Box::new(Exchange::begin(&client, &request));
    let form = if grpc::is_call(&request) {
        let timeout = grpc::timeout(request.headers()).unwrap_or_default();
        client.activity.begin_call(client.worker.settings.limits.ticks(timeout));
        Form::Grpc
    } else {
        Form::of(request.headers().get(http::header::ACCEPT))
    };
    let served = {
        let mut serving = std::pin::pin!(forward(&client, &mut exchange, request));
        std::future::poll_fn(|cx| unless_aborted(&client, serving.as_mut(), cx)).await
    };
    let mut response = match served {
        Ok(Served::Upstream(answer, seen)) => respond(*answer, &seen, exchange),
        Ok(Served::Upgraded(answer, seen)) => upgrade(*answer, &seen, exchange),
        Ok(Served::Own(response)) => own(response.status(), response, exchange),
        Err(error) => refuse(&error, form, exchange),
    };
    if client.worker.is_draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    }
    if client.tls.is_some()
        && let Some(hsts) = client.worker.settings.tls.as_ref().and_then(|tls| tls.hsts.as_ref())
    {
        // An application may say something else.
        response.headers_mut().entry(http::header::STRICT_TRANSPORT_SECURITY).or_insert_with(|| hsts.clone());
    }
    Ok(response)
}

/// What a request came to.
enum Served {
    Upstream(Box<Answer>, response::Seen),
    Upgraded(Box<Answer>, response::Seen),
    Own(Response<Bytes>),
}

/// Takes a request to a target: checked, routed, admitted, sent; and again where that is safe.
async fn forward(
    client: &Rc<Client>,
    exchange: &mut Exchange,
    request: Request<Source>,
) -> Result<Served, ForwardError> {
    let worker = &client.worker;
    let (mut head, body) = request.into_parts();
    if head.version == Version::HTTP_2 {
        http2::head::to_http1(&mut head, &worker.settings.limits)?;
    }
    let checked = validate::check(&head, exchange.has_body, &worker.settings.limits)?;
    if client.raw_heads.borrow().has_fragment() {
        return Err(ForwardError::BadRequest("The request target has a fragment."));
    }
    if checked.seen.has(Seen::TRANSFER_ENCODING) && client.raw_heads.borrow().has_length() {
        return Err(ForwardError::BadRequest("There is a Content-Length beside a Transfer-Encoding."));
    }
    if checked.is_server_options {
        return Ok(Served::Own(server_options()));
    }
    // Before the route: whatever is asked of requests there, who validates a challenge of ours is asked nothing.
    if let Some(tls) = &worker.settings.tls
        && let Some(answer) = tls::challenge(tls, head.uri.path())
    {
        return Ok(Served::Own(answer));
    }
    let wish = checked.seen.has(Seen::OURS).then(|| head.headers.get(&skew::DEPLOYMENT).cloned()).flatten();
    let mut unsent = Some(to_upstream(client, exchange, &checked, head, body)?);
    let mut tries = Tries::new(Wish::new(wish));
    let mut now = exchange.started;
    let mut let_in = None;
    while let Some(request) = &mut unsent {
        let memo = client.resolve(&checked.authority)?;
        let route = memo.found.route(tries.path(request), now)?;
        exchange.is_preview = route.is_preview;
        if let Some(https) = &memo.https
            && let Some(answer) = https.answer(request)?
        {
            return Ok(Served::Own(answer));
        }
        if let Some(auth) = route.auth
            && let_in.as_ref() != Some(auth)
        {
            if let Some(answer) = preview_auth::open(auth, request, worker.clock.wall())? {
                return Ok(Served::Own(answer));
            }
            // What it was let in by is taken off: another try does not have it.
            let_in = Some(Arc::clone(auth));
        }
        let (leads_to, mark) = match (route.route.skew(), route.route.split(), route.label) {
            (None, None, None) | (_, _, Some(_)) => (route.backend, Mark::None),
            (None, Some(split), None) => split::choose(worker, request, &route, split),
            (Some(skew), _, None) => skew::choose(worker, request, &route, skew, &tries.wish),
        };
        tries.is_pinned = matches!(mark, Mark::Pinned);
        let backend = memo.backend(leads_to, &worker.upstreams);
        if let Some(hold) = &backend.backend.hold
            && !hold.lets_by(|| client.address(request.headers()))
        {
            if request.uri().path().starts_with(tls::ACME_CHALLENGES) {
                // Who looks whether a name is served here is no reason to start what serves it.
                return Err(ForwardError::Held(hold.full(now)));
            }
            // Boxed because it is rare.
            now = Box::pin(hold::wait(client, exchange, &backend, hold, request)).await?;
            tries.released()?;
            continue;
        }
        let random = &mut || worker.ids.random();
        let judge = worker.judge(now);
        let Some(target) = balance::choose(&backend, tries.failed.as_ref(), judge, random) else {
            let comeback = backend.backend.comeback.seconds_from(now);
            exchange.backend = Some(backend);
            return Err(comeback.map_or(ForwardError::NoBackend, ForwardError::CoolDown));
        };
        let Ok(guard) = admit(target) else {
            exchange.backend = Some(Rc::clone(&backend));
            tries.refused(client).await?;
            continue;
        };
        exchange.serve(&backend, target, guard, memo.generation);
        exchange.mark = mark;
        tries.address(request, &route, client, memo.generation);
        let cells = &backend.backend.stats.of(worker.number).connects;
        let sent = match target.target.proxy_protocol {
            None => upstream::send(target, &mut unsent, cells).await,
            Some(version) => {
                let header = proxy_header::of_client(version, client.ends(request.headers())?);
                // Boxed because it is rare.
                Box::pin(upstream::send_for(&header, target, &mut unsent, cells)).await
            }
        };
        match sent {
            Ok(answer) => {
                exchange.reached(&answer);
                if answer.response.status().is_server_error() {
                    worker.blame(&backend, target);
                } else {
                    target.answered(judge);
                }
                return accept(answer, &checked);
            }
            Err(error) => {
                exchange.failed(&error);
                tries.again(client, (error, unsent.is_some()), &backend, target, memo.generation)?
            }
        }
    }
    Err(ForwardError::Draining)
}

/// What goes upstream, all but what the route adds.
fn to_upstream(
    client: &Client,
    exchange: &mut Exchange,
    checked: &Checked,
    mut head: Parts,
    body: Source,
) -> Result<Request<RequestBody>, ForwardError> {
    let length = body.size_hint().exact();
    let limit = client.worker.settings.limits.body_bytes;
    if length.is_some_and(|length| length > limit) {
        return Err(ForwardError::RequestBody(upstream::BodyFault::TooLarge));
    }
    headers::to_upstream(&mut head.headers, (&head.method, head.version), checked, length, client)?;
    if head.uri.authority().is_some() {
        head.headers.insert(http::header::HOST, checked.authority.clone());
    }
    if !crate::fault::sabotaged("no_ids") {
        head.headers.insert(headers::X_REQUEST_ID, exchange.id.clone());
        trace::pass_on(&mut head.headers, checked.seen, &client.worker.ids);
    }
    exchange.trace(&head.headers);
    head.uri = validate::origin_form(head.uri, None);
    head.version = Version::HTTP_11;
    Ok(Request::from_parts(head, RequestBody::new(body, limit, &client.activity, validate::is_managed)))
}

/// Lets the request through the target's gate.
fn admit(target: &Rc<LocalTarget>) -> Result<Option<RequestGuard>, Refused> {
    if crate::fault::sabotaged("no_gate") {
        return Ok(None);
    }
    target.enter().map(Some)
}

/// Takes an answer that may be passed on.
fn accept(answer: Answer, checked: &Checked) -> Result<Served, ForwardError> {
    let seen = response::check(&answer.response, checked)?;
    let is_upgrade = answer.response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if checked.is_connect && !is_upgrade && answer.response.status().is_success() {
        // Its client would take it for an agreement.
        return Err(ForwardError::UpgradeRefused);
    }
    let answer = Box::new(answer);
    Ok(if is_upgrade { Served::Upgraded(answer, seen) } else { Served::Upstream(answer, seen) })
}

/// Passes the upstream's response on.
fn respond(answer: Answer, seen: &response::Seen, mut exchange: Box<Exchange>) -> Response<Body> {
    let Answer { mut response, .. } = answer;
    let worker = &exchange.client.worker;
    if let ResponseBody::Http1 { connection, .. } = response.body_mut() {
        if seen.is_ambiguous() {
            connection.never_keep();
        } else if let Some(seconds) = seen.keep_alive {
            connection.keep_for(worker.keep_for(seconds));
        }
    }
    response::to_client(&mut response, seen, &exchange.method, &exchange.id, worker.via.as_ref());
    exchange.mark(response.status(), response.headers_mut());
    exchange.respond(response.status(), seen.shape);
    response.map(|body| Body::upstream(body, exchange))
}

/// Passes the upgrade on; the connection's task goes on with the tunnel.
fn upgrade(answer: Answer, seen: &response::Seen, mut exchange: Box<Exchange>) -> Response<Body> {
    let client = Rc::clone(&exchange.client);
    let (head, body) = answer.response.into_parts();
    let mut response = Response::from_parts(head, ());
    let protocol = response.headers().get(http::header::UPGRADE).cloned();
    response::to_client(&mut response, seen, &exchange.method, &exchange.id, client.worker.via.as_ref());
    let (status, headers) = (response.status(), response.headers_mut());
    exchange.mark(status, headers);
    headers.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
    let mut is_websocket = false;
    if let Some(protocol) = protocol {
        is_websocket = protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
        headers.insert(http::header::UPGRADE, protocol);
    }
    exchange.upgraded();
    let upstream = match body {
        ResponseBody::Http1 { connection, .. } => Upstream::Connection(connection),
        ResponseBody::Http2(stream) => Upstream::Stream(stream),
    };
    client.upgrade.replace(Some(Upgrade { upstream, exchange, is_websocket }));
    response.map(|()| Body::none())
}

/// Answers for Lockgate itself; `status` is what is counted, whatever the answer says.
fn own(status: StatusCode, mut response: Response<Bytes>, mut exchange: Box<Exchange>) -> Response<Body> {
    if exchange.end == End::Open {
        exchange.end = End::Complete;
    }
    exchange.respond(status, Shape::Plain);
    exchange.mark_preview(response.headers_mut());
    response.headers_mut().insert(headers::X_REQUEST_ID, exchange.id.clone());
    let is_head = exchange.method == http::Method::HEAD;
    response.map(|bytes| Body::own(if is_head { Bytes::new() } else { bytes }, exchange))
}

/// Answers a request that cannot be served.
fn refuse(error: &ForwardError, form: Form, mut exchange: Box<Exchange>) -> Response<Body> {
    if let ForwardError::Aborted(upstream::Abort::ResponseTimeout) = error
        && let (Some(backend), Some(target)) = (&exchange.backend, &exchange.target)
    {
        exchange.client.worker.blame(backend, target);
    }
    let mut verdict = error.verdict();
    // What is left of a body must not be taken for the next request.
    verdict.closes |= exchange.client.activity.is_receiving();
    tracing::debug!(code = verdict.code, error = %crate::error::chain(error), "request refused");
    exchange.guard = None;
    exchange.failed(error);
    let response = error_page::render(verdict, form, &exchange.id);
    exchange.end = End::Own(verdict.code);
    own(verdict.status, response, exchange)
}

/// The whole answer to a head that cannot be read, or did not come in time: there is no request, and the connection is
/// over. `cause` is for the log.
fn refuse_unread(
    client: &Rc<Client>,
    error: &ForwardError,
    cause: &(dyn std::error::Error + 'static),
) -> Vec<u8> {
    let mut exchange = Exchange::unread(client);
    let verdict = error.verdict();
    tracing::debug!(code = verdict.code, error = %crate::error::chain(cause), "request head refused");
    let mut response = error_page::render(verdict, Form::Json, &exchange.id);
    response.headers_mut().insert(headers::X_REQUEST_ID, exchange.id.clone());
    exchange.failed(cause);
    exchange.end = End::Own(verdict.code);
    exchange.respond(response.status(), Shape::Plain);
    exchange.response_bytes = response.body().len() as u64;
    error_page::to_bytes(response, client.worker.clock.wall())
}

/// `OPTIONS *` asks the proxy, not an application (RFC 9110 section 9.3.7).
fn server_options() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(http::header::ALLOW, error_page::ALLOWED);
    error_page::mark_own(response.headers_mut(), "server_options");
    response
}

/// Polls `serving` until the connection's sweep or an order ends the request.
fn unless_aborted<T>(
    client: &Client,
    serving: Pin<&mut impl Future<Output = Result<T, ForwardError>>>,
    cx: &mut Context<'_>,
) -> Poll<Result<T, ForwardError>> {
    if let Some(abort) = client.activity.take_abort() {
        return Poll::Ready(Err(ForwardError::Aborted(abort)));
    }
    serving.poll(cx).map_err(|error| match client.activity.body_fault() {
        // What the upstream made of a broken request is not the upstream's fault.
        Some(fault) => ForwardError::RequestBody(fault),
        None => error,
    })
}
