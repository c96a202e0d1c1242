//! One stream: a request, and its response as fast as its client's windows let it through.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::ext::Protocol;
use h3::error::{Code, StreamError};
use h3::server::{RequestResolver, RequestStream};
use http::{Method, Request, Response, StatusCode, header};
use http_body::Body as _;

use crate::proxy::body::Body;
use crate::proxy::http2::head as as_http1;
use crate::proxy::tunnel::{self, Upgrade};
use crate::upstream::{Abort, Phase, Source};

use super::body::Incoming;
use super::duplex::Duplex;
use super::fields::Pseudo;
use super::quic::{Flow, Quic, Sending};
use super::{Shared, head};

/// A stream ends before its response does.
enum Over {
    /// Its client wants no more of it.
    Left,
    /// It is reset.
    Failed,
}

impl Over {
    /// It is reset with that `code`.
    fn by(flow: &Flow, code: Code) -> Self {
        flow.fail_with(code);
        Self::Failed
    }
}

/// Serves one request.
pub(super) async fn serve(flow: Rc<Flow>, connection: Rc<Shared>, resolver: RequestResolver<Quic, Bytes>) {
    let _listed = flow.client.worker.list(&flow.client);
    flow.is_watched.set(true);
    if let Err(Over::Left) = answer(&flow, &connection, resolver).await {
        tracing::trace!(stream = flow.id, "left");
    }
    flow.is_watched.set(false);
}

async fn answer(
    flow: &Rc<Flow>,
    connection: &Shared,
    resolver: RequestResolver<Quic, Bytes>,
) -> Result<(), Over> {
    let client = &flow.client;
    let begun = begin(flow, resolver).await;
    if begun.is_err() {
        // Nobody was asked for anything, but it cost as much to read as what somebody is.
        connection.was_reset();
    }
    let Begun { request, mut stream, tunnel } = begun?;
    let mut expects = request.headers().contains_key(header::EXPECT);
    client.activity.begin_request(!request.body().is_end_stream());
    let answered = {
        let mut handling = pin!(crate::proxy::handle(Rc::clone(client), request));
        let (mut unused, mut going_on) = (Some(&mut stream), None);
        let answered = std::future::poll_fn(|cx| {
            begin_poll(flow, cx);
            if flow.poll_over(cx).is_ready() {
                return Poll::Ready(None);
            }
            let polled = handling.as_mut().poll(cx);
            if polled.is_ready() {
                return polled.map(Some);
            }
            if flow.poll_over(cx).is_ready() {
                // As was seen when its body was read.
                return Poll::Ready(None);
            }
            if expects && client.activity.awaits_client() {
                expects = false;
                going_on = unused.take().map(|stream| Box::pin(go_on(stream)));
            }
            if going_on.as_mut().is_some_and(|going_on| going_on.as_mut().poll(cx).is_ready()) {
                going_on = None;
            }
            Poll::Pending
        })
        .await;
        if let Some(mut going_on) = going_on {
            unless_over(flow, |cx| going_on.as_mut().poll(cx)).await?;
        }
        answered
    };
    connection.client.learn_from(client);
    let Some(Ok(response)) = answered else {
        connection.was_reset();
        return Err(Over::by(flow, Code::H3_REQUEST_CANCELLED));
    };
    if flow.is_malformed() {
        return Err(Over::by(flow, Code::H3_MESSAGE_ERROR));
    }
    let upgrade = client.upgrade.borrow_mut().take();
    match (upgrade, tunnel) {
        (Some(upgrade), Some(tunnel)) => agree(flow, upgrade, response, Duplex::new(stream, tunnel)).await,
        _ => send(flow, stream, response).await,
    }
}

/// A request whose head has come.
struct Begun {
    request: Request<Source>,
    /// What its response goes over.
    stream: RequestStream<Sending, Bytes>,
    /// What its client sends if it asked for an extended CONNECT.
    tunnel: Option<Incoming>,
}

/// Tells the client that the application agreed (RFC 9220 section 3), and carries bytes.
async fn agree(
    flow: &Flow,
    upgrade: Upgrade,
    response: Response<Body>,
    mut downstream: Duplex,
) -> Result<(), Over> {
    let mut head = response.map(|_none| ());
    as_http1::to_client(head.headers_mut(), &flow.client);
    as_http1::to_agreement(&mut head);
    // As a tunnel ends that breaks (RFC 9114 section 4.4).
    flow.fail_with(Code::H3_CONNECT_ERROR);
    downstream.send_head(head);
    // Whoever carries bytes sees that its client is gone.
    flow.is_watched.set(false);
    Box::pin(tunnel::run(&flow.client, upgrade, &mut downstream, Bytes::new())).await;
    if !downstream.is_finished() {
        return Err(Over::Failed);
    }
    // What its client has not taken is still looked after.
    flow.client.activity.enter(Phase::Response);
    unless_over(flow, |_| Poll::Pending).await
}

/// The head of the request.
async fn begin(flow: &Rc<Flow>, resolver: RequestResolver<Quic, Bytes>) -> Result<Begun, Over> {
    flow.client.activity.enter(Phase::Head);
    let mut resolving = pin!(resolver.resolve_request());
    let resolved = unless_over(flow, |cx| resolving.as_mut().poll(cx)).await?;
    let (head, mut stream) = match resolved {
        Ok(resolved) => resolved,
        Err(error) => {
            // h3 has reset it, or ended the connection.
            tracing::debug!(%error, client = %flow.client.peer.address, "no request");
            let is_malformed = flow.is_malformed();
            return Err(Over::by(
                flow,
                if is_malformed { Code::H3_MESSAGE_ERROR } else { Code::H3_REQUEST_CANCELLED },
            ));
        }
    };
    let length = match head::length(head.headers()) {
        Ok(length) if !head::is_malformed(&head, flow.pseudo.get()) => length,
        Ok(_) | Err(_) => {
            stream.stop_sending(Code::H3_MESSAGE_ERROR);
            return Err(Over::by(flow, Code::H3_MESSAGE_ERROR));
        }
    };
    let (stream, receiving) = stream.split();
    if flow.pseudo.get().has(Pseudo::PROTOCOL) {
        // What follows is no body.
        let mut request = head.map(|()| Source::Empty);
        if flow.pseudo.get().has(Pseudo::WEBSOCKET) {
            request.extensions_mut().insert(Protocol::from_static("websocket"));
        }
        let tunnel = Some(Incoming::new(receiving, Rc::clone(flow), None));
        return Ok(Begun { request, stream, tunnel });
    }
    let mut body = Incoming::new(receiving, Rc::clone(flow), length);
    // Whether there is a body is told by the end of the stream alone, which may come after the head.
    let has_body = match length {
        Some(length) => length > 0,
        None => matches!(*head.method(), Method::POST | Method::PUT | Method::PATCH),
    };
    unless_over(flow, |cx| {
        let begun = body.poll_begin(cx);
        if has_body { Poll::Ready(()) } else { begun }
    })
    .await?;
    let mut request = head.map(|()| Source::Http3(Box::pin(body)));
    as_http1::tell_empty(&mut request);
    Ok(Begun { request, stream, tunnel: None })
}

/// The upstream reads the body (RFC 9110 section 10.1.1).
async fn go_on(stream: &mut RequestStream<Sending, Bytes>) {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::CONTINUE;
    if let Err(error) = stream.send_response(response).await {
        tracing::debug!(%error, "100 was not sent");
    }
}

/// Sends a response, and waits until its client has all of it.
async fn send(
    flow: &Flow,
    mut stream: RequestStream<Sending, Bytes>,
    response: Response<Body>,
) -> Result<(), Over> {
    let (parts, mut body) = response.into_parts();
    let mut head = Response::from_parts(parts, ());
    as_http1::to_client(head.headers_mut(), &flow.client);
    carry(flow, &mut body, stream.send_response(head)).await?;
    while !body.is_end_stream() {
        let frame = match unless_over(flow, |cx| Pin::new(&mut body).poll_frame(cx)).await? {
            None => break,
            Some(Ok(frame)) => frame,
            Some(Err(_cut_short)) => return Err(Over::by(flow, Code::H3_INTERNAL_ERROR)),
        };
        match frame.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(data) => carry(flow, &mut body, stream.send_data(data)).await?,
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    carry(flow, &mut body, stream.send_trailers(trailers)).await?;
                }
            }
        }
    }
    drop(body);
    // The request is over, but what its client has not taken is still looked after.
    flow.client.activity.enter(Phase::Response);
    if let Err(error) = stream.finish().await {
        tracing::debug!(%error, "the end of a response was not sent");
    }
    match unless_over(flow, |_| Poll::<()>::Pending).await {
        Ok(()) | Err(Over::Left) => Ok(()),
        Err(Over::Failed) => Err(Over::Failed),
    }
}

/// Sends a part of a response, while its request goes on.
async fn carry(
    flow: &Flow,
    body: &mut Body,
    sending: impl Future<Output = Result<(), StreamError>>,
) -> Result<(), Over> {
    if body.is_end_stream() {
        flow.client.activity.enter(Phase::Response);
    }
    let mut sending = pin!(sending);
    let sent = unless_over(flow, |cx| {
        let polled = sending.as_mut().poll(cx);
        if polled.is_pending() {
            body.drive(cx);
        }
        polled
    });
    sent.await?.map_err(|error| {
        tracing::debug!(%error, "a part of a response was not sent");
        Over::by(flow, Code::H3_INTERNAL_ERROR)
    })
}

/// Polls `work` as long as the stream goes on.
async fn unless_over<T>(flow: &Flow, mut work: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Result<T, Over> {
    std::future::poll_fn(|cx| {
        begin_poll(flow, cx);
        let failed = match flow.client.activity.abort() {
            None if flow.is_malformed() => Some(Code::H3_MESSAGE_ERROR),
            None => None,
            Some(Abort::HeadTimeout) => Some(Code::H3_REQUEST_INCOMPLETE),
            Some(Abort::ReaderTooSlow | Abort::Idle) => Some(Code::H3_REQUEST_CANCELLED),
            Some(_) => Some(Code::H3_INTERNAL_ERROR),
        };
        if let Some(code) = failed {
            return Poll::Ready(Err(Over::by(flow, code)));
        }
        if flow.poll_over(cx).is_ready() {
            return Poll::Ready(Err(Over::Left));
        }
        work(cx).map(Ok)
    })
    .await
}

fn begin_poll(flow: &Flow, cx: &Context<'_>) {
    let client = &flow.client;
    client.activity.keep_waker(cx.waker());
    client.polls.set(client.polls.get().wrapping_add(1));
}
