//! The response's body. It drives the upstream connection that it comes over, and holds the guard until its end.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use crate::upstream::{Connection, ResponseBody, Stream};

use super::exchange::{End, Exchange};
use super::response;
use super::upload::Rest;

/// The body of a response.
pub(crate) struct Body {
    kind: Kind,
    /// `None` once the response is over.
    exchange: Option<Box<Exchange>>,
}

enum Kind {
    Own(Bytes),
    Upstream { incoming: Incoming, connection: Option<Box<Connection>> },
    Stream(Option<Box<Stream>>),
}

/// The response cannot be completed: the client must see that it was cut short.
#[derive(Debug, thiserror::Error)]
#[error("the response was cut short")]
pub(crate) struct CutShort;

impl Body {
    /// A body of Lockgate's own.
    pub(crate) fn own(bytes: Bytes, exchange: Box<Exchange>) -> Self {
        Self { kind: Kind::Own(bytes), exchange: Some(exchange) }
    }

    /// No body, and the exchange goes on elsewhere.
    pub(crate) fn none() -> Self {
        Self { kind: Kind::Own(Bytes::new()), exchange: None }
    }

    /// The body of an upstream's response.
    pub(crate) fn upstream(body: ResponseBody, exchange: Box<Exchange>) -> Self {
        let kind = match body {
            ResponseBody::Http1 { incoming, connection } => {
                Kind::Upstream { incoming, connection: Some(connection) }
            }
            ResponseBody::Http2(stream) => Kind::Stream(Some(stream)),
        };
        let mut body = Self { kind, exchange: Some(exchange) };
        if http_body::Body::is_end_stream(&body) {
            body.complete();
        }
        body
    }

    /// Has the request go on while the response is held up.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        // Whether it is over is seen by whoever asks for the next frame.
        let _over = match &mut self.kind {
            Kind::Upstream { connection: Some(connection), .. } => connection.poll_drive(cx),
            Kind::Stream(Some(stream)) => stream.poll_upload(cx),
            Kind::Own(_) | Kind::Upstream { connection: None, .. } | Kind::Stream(None) => return,
        };
    }

    /// The last byte has come: the connection is free for the next request, or for the rest of this one's body.
    fn complete(&mut self) {
        let Some(mut exchange) = self.exchange.take() else { return };
        if exchange.end == End::Open {
            exchange.end = End::Complete;
        }
        let rest = match &mut self.kind {
            Kind::Own(_) => return,
            Kind::Upstream { connection, .. } => {
                let Some(mut connection) = connection.take() else { return };
                if connection.is_free() || !exchange.has_body {
                    return connection.release();
                }
                Rest::Connection(connection)
            }
            Kind::Stream(stream) => match stream.take() {
                Some(stream) if !stream.is_sent() => Rest::Stream(stream),
                Some(_) | None => return,
            },
        };
        let guard = exchange.guard.take();
        exchange.client.worker.uploads.go_on(&exchange.client, rest, guard);
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = CutShort;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
        let this = self.get_mut();
        let mut polled = match &mut this.kind {
            Kind::Own(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Own(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Upstream { connection: None, .. } => Poll::Ready(None),
            Kind::Upstream { incoming, connection: Some(connection), .. } => {
                poll_upstream(incoming, connection, cx)
            }
            Kind::Stream(None) => Poll::Ready(None),
            Kind::Stream(Some(stream)) => stream.poll_frame(cx).map_err(|_reset| CutShort),
        };
        match &mut polled {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    response::trailers_to_client(trailers);
                }
                if let (Some(bytes), Some(exchange)) = (frame.data_ref(), &mut this.exchange) {
                    exchange.response_bytes += bytes.len() as u64;
                    exchange.client.activity.progressed();
                }
                if http_body::Body::is_end_stream(this) {
                    this.complete();
                }
            }
            Poll::Ready(None) => this.complete(),
            Poll::Ready(Some(Err(CutShort))) => {
                if let Some(exchange) = &mut this.exchange {
                    exchange.end = End::Truncated;
                }
                this.exchange = None;
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Own(bytes) => bytes.is_empty(),
            Kind::Upstream { incoming, .. } => incoming.is_end_stream(),
            Kind::Stream(stream) => stream.as_ref().is_none_or(|stream| stream.is_end()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Own(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Upstream { incoming, .. } => incoming.size_hint(),
            Kind::Stream(None) => SizeHint::with_exact(0),
            Kind::Stream(Some(stream)) => {
                stream.missing().map_or_else(SizeHint::default, SizeHint::with_exact)
            }
        }
    }
}

/// The next frame. Nothing but the connection makes one ready, and it is driven right before the body is asked
/// again: so the body needs no waker, and does not wake the task that polls it.
fn poll_upstream(
    incoming: &mut Incoming,
    connection: &mut Connection,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
    let mut quiet = Context::from_waker(Waker::noop());
    let mut next = |incoming: &mut Incoming| {
        let polled = http_body::Body::poll_frame(Pin::new(incoming), &mut quiet);
        polled.map_err(|_truncated| CutShort)
    };
    if let ready @ Poll::Ready(_) = connection.quietly(|| next(incoming)) {
        return ready;
    }
    let over = connection.poll_drive(cx);
    match connection.quietly(|| next(incoming)) {
        Poll::Pending if over.is_ready() => {
            connection.give_up();
            next(incoming)
        }
        polled => polled,
    }
}
