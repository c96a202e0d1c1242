//! The data plane for HTTP/1.1, HTTP/2 and HTTP/3, with TLS or without: from a client's connection to a target and back.
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
mod balance;
mod beside;
mod body;
mod client;
mod error;
mod error_page;
mod exchange;
mod give_back;
mod grpc;
mod headers;
mod hold;
mod http2;
#[cfg(feature = "http3")]
mod http3;
mod io;
mod link;
mod memo;
mod plane;
mod policy;
mod preview_auth;
mod proxied;
mod queue;
mod raw_heads;
mod request_id;
mod resets;
mod response;
mod retry;
mod room;
mod server;
mod settings;
mod skew;
mod socket;
mod spans;
mod split;
mod streams;
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
use crate::upstream::balance::choose;
use crate::upstream::{self, Added, Answer, LocalTarget, RequestBody, RequestGuard, ResponseBody, Source};

use body::Body;
use client::Client;
use error::ForwardError;
use error_page::Form;
use exchange::{End, Exchange, Mark, Preview, Shape};
#[cfg(feature = "http3")]
pub use http3::SetupError as Http3SetupError;
use link::Passes;
pub use plane::{DataPlane, StartError, start};
use retry::Tries;
pub use settings::{AccessLogFormat, AccessLogSink, AltSvc, Limits, ProxySettings, TlsSettings};
use skew::Wish;
use tunnel::{Upgrade, Upstream};
use validate::{Checked, Seen};

/// Answers one request.
async fn handle(client: Rc<Client>, request: Request<Source>) -> Result<Response<Body>, Infallible> {
    let mut exchange = Box::new(Exchange::begin(&client, &request));
    #[cfg(feature = "http3")]
    let version = exchange.version;
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
    let own_https = exchange.https.take();
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
        && let Some(own) = own_https
        && let Some(hsts) = tls::hsts(&client.worker.settings, own.as_deref())
    {
        // An application may say something else.
        response.headers_mut().entry(http::header::STRICT_TRANSPORT_SECURITY).or_insert_with(|| hsts.clone());
    }
    #[cfg(feature = "http3")]
    http3::advertise(&client, version, response.headers_mut());
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
    if head.version >= Version::HTTP_2 {
        http2::head::to_http1(&mut head, &worker.settings.limits)?;
    }
    let checked = validate::check(&head, exchange.has_body, &worker.settings.limits)?;
    client.ends_behind(checked.seen.has(Seen::CONNECTION) && validate::asks_for_the_end(&head.headers));
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
    let passes =
        if checked.seen.has(Seen::PASS) { Passes::take(&mut head.headers) } else { Passes::default() };
    let (request, mut added) = to_upstream(client, exchange, &checked, head, body)?;
    let mut unsent = Some(request);
    let mut tries = Tries::new(Wish::new(wish));
    let mut now = exchange.started;
    let mut let_in = None;
    while let Some(request) = &mut unsent {
        let memo = client.resolve(&checked.authority)?;
        let route = memo.found.route(tries.path(request), now)?;
        exchange.preview = if route.is_preview { Preview::Yes } else { Preview::No };
        exchange.https = Some(route.backend.https.clone());
        if let Some(https) = &memo.https
            && let Some(answer) = https.answer(request, route.backend.https.as_deref())?
        {
            return Ok(Served::Own(answer));
        }
        if route.auth.is_some() || route.route.skew().is_some() || route.route.split().is_some() {
            // Their cookies are for how the client came.
            added.settle(request.headers_mut());
        }
        if let Some(auth) = route.auth
            && let_in.as_ref() != Some(auth)
        {
            // Whatever it answers is counted and logged as the preview's.
            exchange.backend = Some(memo.backend(route.backend, &worker.upstreams));
            exchange.preview = Preview::AtDoor;
            if let Some(answer) = preview_auth::open(auth, (request, &passes), worker.clock.wall())? {
                return Ok(Served::Own(answer));
            }
            exchange.preview = Preview::Yes;
            tries.take_off_token(request, &link::PREVIEW);
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
        if backend.backend.reads_fields() {
            added.settle(request.headers_mut());
        }
        if let Some(policies) = &backend.backend.policies
            && !policy::has_passed(exchange, policies)
        {
            let asked = (&checked.authority, &*tries.target(request));
            // Whatever they answer is counted and logged as its.
            exchange.backend = Some(Rc::clone(&backend));
            // Boxed because it is rare.
            let enforced =
                Box::pin(policy::enforce(client, exchange, policies, (request, &passes), asked)).await;
            if let Some(answer) = enforced? {
                return Ok(Served::Own(answer));
            }
            if exchange.policed.as_ref().is_some_and(|policed| policed.is_by_link()) {
                tries.take_off_token(request, &link::SIGNED);
            }
        }
        if let Some(hold) = &backend.backend.hold
            && !hold.lets_by(|| client.address(request.headers()))
        {
            if tls::is_challenge(request.uri().path()) {
                // Who looks whether a name is served here is no reason to start what serves it.
                return Err(ForwardError::Held(hold.full(now)));
            }
            // Boxed because it is rare.
            now = Box::pin(hold::wait(client, exchange, &backend, hold, request)).await?;
            tries.released()?;
            continue;
        }
        let wanted = balance::wanted(client, request, &tries, &backend);
        let mut place = None;
        if let Some(queue) = &backend.backend.queue
            && !backend.targets.is_empty()
        {
            // Of a try before.
            exchange.place = None;
            let (authority, not) = (&checked.authority, tries.failed.as_ref());
            let asked = queue::Request { client, authority, memo: &memo, backend: &backend, wanted, not };
            // Boxed because it is rare.
            place = Box::pin(queue::place(&asked, exchange, queue, &mut tries.queued)).await?;
            if place.is_none() {
                continue;
            }
            now = worker.clock.now();
        }
        let random = &mut || worker.ids.random();
        let judge = worker.judge(now);
        let target = match &place {
            Some((at, _)) => backend.targets.get(*at),
            None => choose(&backend, wanted, tries.failed.as_ref(), judge, random),
        };
        let Some(target) = target else {
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
        exchange.place = place.map(|(_, place)| place);
        exchange.mark = mark;
        exchange.pin = balance::keep(request, &tries, route.route.prefix.as_str(), &backend, target);
        tries.address(request, &route, client, memo.generation);
        if let Some(traced) = &mut exchange.traced {
            traced.attempt(worker, &target.target, request);
        }
        let cells = &backend.backend.stats.of(worker.number).connects;
        let sent = match target.target.proxy_protocol {
            None => upstream::send(target, &mut unsent, &mut added, cells).await,
            Some(version) => {
                let header = proxy_header::of_client(version, client.ends(request.headers())?);
                // Boxed because it is rare.
                Box::pin(upstream::send_for(&header, target, &mut unsent, &added, cells)).await
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
                if let Some(traced) = &mut exchange.traced {
                    traced.attempt_failed(worker, error::code_of(&error));
                }
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
) -> Result<(Request<RequestBody>, Added), ForwardError> {
    let length = body.size_hint().exact();
    let limit = client.worker.settings.limits.body_bytes;
    if length.is_some_and(|length| length > limit) {
        return Err(ForwardError::RequestBody(upstream::BodyFault::TooLarge));
    }
    headers::to_upstream(&mut head.headers, &head.method, checked, length)?;
    if head.uri.authority().is_some() {
        head.headers.insert(http::header::HOST, checked.authority.clone());
    }
    let added = tell(client, exchange, checked, &mut head)?;
    head.uri = validate::origin_form(head.uri, None);
    head.version = Version::HTTP_11;
    let body = RequestBody::new(body, limit, &client.activity, validate::is_no_trailer);
    Ok((Request::from_parts(head, body), added))
}

/// What this hop tells, beside the head where that has nothing of the kind.
fn tell(
    client: &Client,
    exchange: &mut Exchange,
    checked: &Checked,
    head: &mut Parts,
) -> Result<Added, ForwardError> {
    let (ids, has_ids) = (&client.worker.ids, !crate::fault::sabotaged("no_ids"));
    if exchange.traced.is_none() && !checked.seen.has(Seen::TOLD) {
        let mut added = headers::tell_apart(&mut head.headers, head.version, checked, client);
        if has_ids {
            let traceparent = trace::start(ids);
            exchange.trace(Some(&traceparent));
            added.push(headers::X_REQUEST_ID, exchange.id.clone());
            added.push(trace::TRACEPARENT, traceparent);
        }
        return Ok(added);
    }
    headers::tell(&mut head.headers, head.version, checked, client)?;
    if has_ids {
        head.headers.insert(headers::X_REQUEST_ID, exchange.id.clone());
        trace::pass_on(&mut head.headers, checked.seen, ids, exchange.traced.as_deref());
    }
    exchange.trace(head.headers.get(trace::TRACEPARENT));
    Ok(Added::default())
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
    if let ResponseBody::Http1(connection) = response.body_mut()
        && let Some(seconds) = seen.keep_alive
    {
        connection.keep_for(worker.keep_for(seconds));
    }
    response::to_client(&mut response, seen, &exchange.method, &exchange.id, worker.via.as_ref());
    exchange.mark(response.status(), response.headers_mut());
    exchange.respond(response.status(), seen.shape);
    let Some(policed) = &exchange.policed else { return response.map(|body| Body::upstream(body, exchange)) };
    let encoder = policed.compress(&exchange.method, response.status(), response.headers_mut());
    response.map(|body| Body::upstream(body, exchange).encoded_by(encoder))
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
        ResponseBody::Http1(connection) => Upstream::Connection(connection),
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
    exchange.mark_policed(response.headers_mut());
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
    exchange.place = None;
    exchange.failed(error);
    let mut response = error_page::render(verdict, form, &exchange.id);
    if let ForwardError::Unauthorized(challenge) = error {
        response.headers_mut().insert(http::header::WWW_AUTHENTICATE, challenge.clone());
    }
    if form == Form::Html {
        policy::show_page(exchange.policed.as_deref(), &mut response);
    }
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
