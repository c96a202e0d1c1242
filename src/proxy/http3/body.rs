//! The body of a request that comes over HTTP/3, held to the length that its head says (RFC 9114 section 4.1.2).

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h3::error::{Code, StreamError};
use h3::server::RequestStream;
use http_body::{Body, Frame, SizeHint};

use crate::upstream::BodyFault;

use super::quic::{Flow, Receiving};

pub(super) struct Incoming {
    stream: RequestStream<Receiving, Bytes>,
    flow: Rc<Flow>,
    /// What of the length that the head says has not come.
    left: Option<u64>,
    /// Read before it was asked for.
    first: Option<Result<Frame<Bytes>, BodyFault>>,
    next: Next,
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Data,
    Trailers,
    Nothing,
    /// It cannot be read on.
    Broken(BodyFault),
}

impl Incoming {
    pub(super) fn new(stream: RequestStream<Receiving, Bytes>, flow: Rc<Flow>, length: Option<u64>) -> Self {
        Self { stream, flow, left: length, first: None, next: Next::Data }
    }

    /// Ready when it has begun, or is known to be none.
    pub(super) fn poll_begin(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.first.is_none() {
            self.first = ready!(self.poll_next(cx));
        }
        Poll::Ready(())
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyFault>>> {
        loop {
            let received = ready!(self.stream.poll_recv_data(cx));
            let received = received.map(|data| data.map(|mut data| data.copy_to_bytes(data.remaining())));
            let data = match received {
                Ok(Some(data)) => data,
                Ok(None) if self.left.is_some_and(|left| left > 0) => {
                    return Poll::Ready(Some(Err(self.malformed())));
                }
                Ok(None) => {
                    self.next = Next::Trailers;
                    return Poll::Ready(None);
                }
                Err(error) => return self.fail(&error).map(|fault| Some(Err(fault))),
            };
            self.flow.took(data.len());
            if let Some(left) = &mut self.left {
                match left.checked_sub(data.len() as u64) {
                    Some(less) => *left = less,
                    None => return Poll::Ready(Some(Err(self.malformed()))),
                }
            }
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(data)));
            }
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        if self.next == Next::Data
            && let Some(data) = ready!(self.poll_data(cx))
        {
            return Poll::Ready(Some(data.map(Frame::data)));
        }
        match self.next {
            Next::Data | Next::Trailers => {}
            Next::Nothing => return Poll::Ready(None),
            // Whoever serves it sees that by itself.
            Next::Broken(BodyFault::Truncated) if self.flow.is_watched.get() => return Poll::Pending,
            Next::Broken(fault) => return Poll::Ready(Some(Err(fault))),
        }
        match ready!(self.stream.poll_recv_trailers(cx)) {
            Ok(trailers) => {
                self.next = Next::Nothing;
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
            Err(error) => self.fail(&error).map(|fault| Some(Err(fault))),
        }
    }

    /// Pending if the client took its request back and that is seen by whoever serves it.
    fn fail(&mut self, error: &StreamError) -> Poll<BodyFault> {
        tracing::debug!(%error, "a request's body ended");
        if self.flow.is_malformed() {
            return Poll::Ready(self.malformed());
        }
        let is_seen = self.flow.was_reset();
        self.next = Next::Broken(BodyFault::Truncated);
        if is_seen { Poll::Pending } else { Poll::Ready(BodyFault::Truncated) }
    }

    fn malformed(&mut self) -> BodyFault {
        self.next = Next::Broken(BodyFault::Malformed);
        self.flow.was_malformed();
        self.stream.stop_sending(Code::H3_MESSAGE_ERROR);
        BodyFault::Malformed
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let this = self.get_mut();
        match this.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => this.poll_next(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.next == Next::Nothing
    }

    fn size_hint(&self) -> SizeHint {
        let Some(left) = self.left else { return SizeHint::default() };
        let first = self.first.as_ref().and_then(|first| first.as_ref().ok()?.data_ref());
        SizeHint::with_exact(left + first.map_or(0, Bytes::len) as u64)
    }
}
