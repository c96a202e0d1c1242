//! The response's body. It drives the upstream connection that it comes over, and holds the guard until its end.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use crate::upstream::{Connection, ResponseBody, Stream};

use super::beside::Responding;
use super::exchange::{End, Exchange};
use super::policy::Encoder;
use super::response;
use super::upload::Rest;

/// The body of a response.
pub(crate) struct Body {
    kind: Kind,
    /// `None` once the response is over.
    exchange: Option<Box<Exchange>>,
    /// It is compressed on its way; `None` nearly always.
    encoded: Option<Box<Encoded>>,
}

/// What is on its way out of an encoder.
struct Encoded {
    encoder: Box<Encoder>,
    trailers: Option<HeaderMap>,
}

enum Kind {
    Own(Bytes),
    /// `None` once it has come whole.
    Connection(Option<Responding<Connection>>),
    Stream(Option<Responding<Stream>>),
}

/// The response cannot be completed: the client must see that it was cut short.
#[derive(Debug, thiserror::Error)]
#[error("the response was cut short")]
pub(crate) struct CutShort;

impl Body {
    /// A body of Lockgate's own.
    pub(crate) fn own(bytes: Bytes, exchange: Box<Exchange>) -> Self {
        Self { kind: Kind::Own(bytes), exchange: Some(exchange), encoded: None }
    }

    /// No body, and the exchange goes on elsewhere.
    pub(crate) fn none() -> Self {
        Self { kind: Kind::Own(Bytes::new()), exchange: None, encoded: None }
    }

    /// The body of an upstream's response.
    pub(crate) fn upstream(body: ResponseBody, exchange: Box<Exchange>) -> Self {
        let kind = match body {
            ResponseBody::Http1(connection) => {
                Kind::Connection(Some(Responding::new(connection, &exchange.client)))
            }
            ResponseBody::Http2(stream) => Kind::Stream(Some(Responding::new(stream, &exchange.client))),
        };
        let mut body = Self { kind, exchange: Some(exchange), encoded: None };
        if body.has_come() {
            body.complete();
        }
        body
    }

    /// The body of a response that is no client's.
    pub(crate) fn bare(body: ResponseBody) -> Self {
        let kind = match body {
            ResponseBody::Http1(connection) => Kind::Connection(Some(Responding::Alone(connection))),
            ResponseBody::Http2(stream) => Kind::Stream(Some(Responding::Alone(stream))),
        };
        Self { kind, exchange: None, encoded: None }
    }

    /// The same, compressed.
    pub(crate) fn encoded_by(self, encoder: Option<Box<Encoder>>) -> Self {
        let encoded = encoder.map(|encoder| Box::new(Encoded { encoder, trailers: None }));
        Self { encoded, ..self }
    }

    /// Has the request go on while the response is held up.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        // Whether it is over is seen by whoever asks for the next frame.
        let _over = match &mut self.kind {
            Kind::Connection(Some(responding)) => {
                responding.with_mut(|connection| connection.poll_upload(cx))
            }
            Kind::Stream(Some(responding)) => responding.with_mut(|stream| stream.poll_upload(cx)),
            Kind::Own(_) | Kind::Connection(None) | Kind::Stream(None) => return,
        };
    }

    /// The last byte has come: the connection is free for the next request, or for the rest of this one's body.
    fn complete(&mut self) {
        let Some(mut exchange) = self.exchange.take() else {
            if let Kind::Connection(responding) = &mut self.kind
                && let Some(connection) = responding.take().and_then(Responding::into_inner)
            {
                connection.release();
            }
            return;
        };
        if exchange.end == End::Open {
            exchange.end = End::Complete;
        }
        let rest = match &mut self.kind {
            Kind::Own(_) => return,
            Kind::Connection(responding) => {
                let Some(connection) = responding.take().and_then(Responding::into_inner) else {
                    return;
                };
                if connection.is_free() || !exchange.has_body {
                    return connection.release();
                }
                Rest::Connection(connection)
            }
            Kind::Stream(responding) => match responding.take().and_then(Responding::into_inner) {
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
        if this.encoded.is_some() { this.poll_encoded(cx) } else { this.poll_plain(cx) }
    }

    fn is_end_stream(&self) -> bool {
        match &self.encoded {
            None => self.has_come(),
            Some(encoded) => encoded.encoder.has_ended() && encoded.trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        if self.encoded.is_some() {
            return SizeHint::default();
        }
        match &self.kind {
            Kind::Own(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Connection(None) | Kind::Stream(None) => SizeHint::with_exact(0),
            Kind::Connection(Some(responding)) => {
                responding.with(Connection::missing).map_or_else(SizeHint::default, SizeHint::with_exact)
            }
            Kind::Stream(Some(responding)) => {
                responding.with(Stream::missing).map_or_else(SizeHint::default, SizeHint::with_exact)
            }
        }
    }
}

impl Body {
    /// Whether all of it has come.
    fn has_come(&self) -> bool {
        match &self.kind {
            Kind::Own(bytes) => bytes.is_empty(),
            Kind::Connection(responding) => {
                responding.as_ref().is_none_or(|responding| responding.with(Connection::is_end))
            }
            Kind::Stream(responding) => {
                responding.as_ref().is_none_or(|responding| responding.with(Stream::is_end))
            }
        }
    }

    /// As it came.
    fn poll_plain(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
        let mut polled = match &mut self.kind {
            Kind::Own(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Own(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Connection(None) | Kind::Stream(None) => Poll::Ready(None),
            Kind::Connection(Some(responding)) => {
                responding.with_mut(|connection| connection.poll_frame(cx)).map_err(|_truncated| CutShort)
            }
            Kind::Stream(Some(responding)) => {
                responding.with_mut(|stream| stream.poll_frame(cx)).map_err(|_reset| CutShort)
            }
        };
        match &mut polled {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    response::trailers_to_client(trailers);
                }
                if let (Some(bytes), Some(exchange)) = (frame.data_ref(), &mut self.exchange) {
                    exchange.response_bytes += bytes.len() as u64;
                    exchange.client.activity.progressed();
                }
                if self.has_come() {
                    self.complete();
                }
            }
            Poll::Ready(None) => self.complete(),
            Poll::Ready(Some(Err(CutShort))) => {
                if let Some(exchange) = &mut self.exchange {
                    exchange.end = End::Truncated;
                }
                self.exchange = None;
            }
        }
        polled
    }

    /// Compressed. What has come goes out before more is waited for.
    fn poll_encoded(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
        loop {
            let has_ended = self.encoded.as_ref().is_none_or(|encoded| encoded.encoder.has_ended());
            let polled = if has_ended { Poll::Ready(None) } else { self.poll_plain(cx) };
            let Some(Encoded { encoder, trailers }) = self.encoded.as_deref_mut() else {
                return Poll::Ready(None);
            };
            let is_pending = polled.is_pending();
            let out = match polled {
                Poll::Pending => encoder.flush(),
                Poll::Ready(Some(Err(cut))) => return Poll::Ready(Some(Err(cut))),
                Poll::Ready(None) if has_ended => {
                    return Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
                }
                Poll::Ready(None) => encoder.finish(),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => encoder.write(&data),
                    Err(frame) => {
                        *trailers = frame.into_trailers().ok();
                        encoder.finish()
                    }
                },
            };
            // It writes to memory: that fails no more often than anything else that allocates.
            let Ok(out) = out else { return Poll::Ready(Some(Err(CutShort))) };
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out))));
            }
            if is_pending {
                return Poll::Pending;
            }
        }
    }
}
