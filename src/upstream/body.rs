//! The request's body on its way upstream: counted, bounded, and its faults kept apart from the upstream's.

use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::activity::Activity;

/// The body of a request as it goes upstream.
pub(crate) enum RequestBody {
    Empty,
    Streaming(Streaming),
    /// Boxed because it is rare.
    Again(Box<Again>),
}

/// A body of which something was read before: for a request that nobody acted on and that goes out once more, or for one
/// whose client is slower than its application should have to wait for.
pub(crate) struct Again {
    pub(crate) first: VecDeque<Bytes>,
    pub(crate) rest: RequestBody,
    pub(crate) trailers: Option<HeaderMap>,
}

/// Where the body of a request comes from.
pub(crate) enum Source {
    Http1(Incoming),
    Http2(StreamBody),
    #[cfg(feature = "http3")]
    Http3(Pin<Box<dyn Body<Data = Bytes, Error = BodyFault>>>),
    /// None: what follows the request is not its body.
    Empty,
}

/// The body of a request that came over HTTP/2.
pub(crate) struct StreamBody {
    stream: RecvStream,
    length: Option<u64>,
    has_data: bool,
}

/// A body that comes from a client.
pub(crate) struct Streaming {
    incoming: Source,
    left: u64,
    activity: Rc<Activity>,
    /// Names that a trailer may not have.
    is_reserved: fn(&str) -> bool,
}

/// What the client did wrong in the body of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyFault {
    #[error("the client ended in the middle of its request")]
    Truncated,
    #[error("the request's chunks are malformed")]
    Malformed,
    #[error("the request's body is too large")]
    TooLarge,
}

impl RequestBody {
    /// `incoming`, at most `limit` bytes of it, and no trailers with reserved names.
    pub(crate) fn new(
        incoming: Source,
        limit: u64,
        activity: &Rc<Activity>,
        is_reserved: fn(&str) -> bool,
    ) -> Self {
        if incoming.is_end_stream() {
            return Self::Empty;
        }
        activity.pass_body(true);
        Self::Streaming(Streaming { incoming, left: limit, activity: Rc::clone(activity), is_reserved })
    }

    /// At most `limit` bytes more of it, whatever was said before.
    ///
    /// # Errors
    /// If more has been read already.
    pub(crate) fn bound(&mut self, limit: u64) -> Result<(), BodyFault> {
        match self {
            Self::Empty => Ok(()),
            Self::Streaming(body) => {
                body.left = limit;
                Ok(())
            }
            Self::Again(again) => {
                let read: usize = again.first.iter().map(Bytes::len).sum();
                again.rest.bound(limit.checked_sub(read as u64).ok_or(BodyFault::TooLarge)?)
            }
        }
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.activity.pass_body(false);
        self.activity.await_client(false);
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let body = match self.get_mut() {
            Self::Empty => return Poll::Ready(None),
            Self::Streaming(body) => body,
            Self::Again(again) => return again.poll_frame(cx),
        };
        let Streaming { incoming, left, activity, is_reserved } = body;
        let polled = Pin::new(&mut *incoming).poll_frame(cx);
        activity.await_client(polled.is_pending());
        let Some(frame) = ready!(polled) else {
            activity.received_all();
            return Poll::Ready(None);
        };
        activity.progressed();
        if incoming.is_end_stream() {
            activity.received_all();
        }
        let checked = frame.and_then(|mut frame| {
            let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
            activity.received(bytes);
            *left = left.checked_sub(bytes).ok_or(BodyFault::TooLarge)?;
            if let Some(trailers) = frame.trailers_mut() {
                remove_reserved(trailers, *is_reserved);
            }
            Ok(frame)
        });
        if let Err(fault) = checked {
            activity.body_failed(fault);
        }
        Poll::Ready(Some(checked))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Streaming(body) => body.incoming.is_end_stream(),
            Self::Again(again) => {
                again.first.is_empty() && again.trailers.is_none() && again.rest.is_end_stream()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Streaming(body) => body.incoming.size_hint(),
            // Its head says it, if anybody does.
            Self::Again(_) => SizeHint::default(),
        }
    }
}

impl Again {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        if let Some(data) = self.first.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match ready!(Pin::new(&mut self.rest).poll_frame(cx)) {
            None => Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))),
            more => Poll::Ready(more),
        }
    }
}

impl StreamBody {
    /// Of a request that says that it has `length` bytes, if it says so; h2 holds it to that.
    pub(crate) fn new(stream: RecvStream, length: Option<u64>) -> Self {
        let length = if stream.is_end_stream() { Some(0) } else { length };
        Self { stream, length, has_data: true }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        if self.has_data {
            if let Some(data) = ready!(self.stream.poll_data(cx)) {
                let data = data.map_err(|_reset| BodyFault::Truncated)?;
                // The window opens as the upstream takes what came.
                self.stream
                    .flow_control()
                    .release_capacity(data.len())
                    .map_err(|_reset| BodyFault::Truncated)?;
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            self.has_data = false;
        }
        let trailers = ready!(self.stream.poll_trailers(cx)).map_err(|_reset| BodyFault::Truncated)?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

impl Body for Source {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        match self.get_mut() {
            Self::Http1(incoming) => Pin::new(incoming).poll_frame(cx).map_err(|error| fault_of(&error)),
            Self::Http2(body) => body.poll_next(cx),
            #[cfg(feature = "http3")]
            Self::Http3(body) => body.as_mut().poll_frame(cx),
            Self::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(incoming) => incoming.is_end_stream(),
            Self::Http2(body) => body.stream.is_end_stream(),
            #[cfg(feature = "http3")]
            Self::Http3(body) => body.is_end_stream(),
            Self::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(incoming) => incoming.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
            Self::Http2(body) => body.length.map_or_else(SizeHint::default, SizeHint::with_exact),
            #[cfg(feature = "http3")]
            Self::Http3(body) => body.size_hint(),
        }
    }
}

fn remove_reserved(trailers: &mut HeaderMap, is_reserved: fn(&str) -> bool) {
    let reserved: Vec<_> = trailers.keys().filter(|name| is_reserved(name.as_str())).cloned().collect();
    for name in reserved {
        trailers.remove(name);
    }
}

/// hyper tells malformed chunks by the kind of the io error inside.
fn fault_of(error: &hyper::Error) -> BodyFault {
    use std::error::Error as _;
    let cause = error.source().and_then(|cause| cause.downcast_ref::<std::io::Error>());
    match cause.map(std::io::Error::kind) {
        Some(std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput) => BodyFault::Malformed,
        _ => BodyFault::Truncated,
    }
}
