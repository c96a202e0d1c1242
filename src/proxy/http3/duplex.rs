//! One stream as an upgraded connection has it: bytes that come and go in DATA frames (RFC 9114 section 4.4).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h3::error::StreamError;
use h3::server::RequestStream;
use http::Response;
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::Incoming;
use super::quic::Sending;

/// Bytes that go at once, of which one part may wait for the client.
const PART: usize = 64 * 1024;

type Stream = Box<RequestStream<Sending, Bytes>>;
type Going = Pin<Box<dyn Future<Output = (Stream, Result<(), StreamError>)>>>;

/// Both directions. Dropping it resets what has not ended.
pub(super) struct Duplex {
    receiving: Incoming,
    /// Came, and not yet read.
    held: Bytes,
    sending: Side,
    is_finished: bool,
}

enum Side {
    Open(Stream),
    /// Something is on its way, which holds the stream meanwhile.
    Busy(Going),
    Gone,
}

impl Duplex {
    pub(super) fn new(sending: RequestStream<Sending, Bytes>, receiving: Incoming) -> Self {
        Self { receiving, held: Bytes::new(), sending: Side::Open(Box::new(sending)), is_finished: false }
    }

    /// Begins with the head of the response.
    pub(super) fn send_head(&mut self, head: Response<()>) {
        self.begin(|mut stream| async move {
            let sent = stream.send_response(head).await;
            (stream, sent)
        });
    }

    /// Whether the client was told that nothing more comes.
    pub(super) fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// Ready when nothing is on its way.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.sending {
            Side::Open(_) => Poll::Ready(Ok(())),
            Side::Gone => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Side::Busy(going) => {
                let (stream, gone) = ready!(going.as_mut().poll(cx));
                self.sending = if gone.is_ok() { Side::Open(stream) } else { Side::Gone };
                Poll::Ready(gone.map_err(io::Error::other))
            }
        }
    }

    /// Begins something, if nothing is on its way.
    fn begin<F: Future<Output = (Stream, Result<(), StreamError>)> + 'static>(
        &mut self,
        going: impl FnOnce(Stream) -> F,
    ) {
        match std::mem::replace(&mut self.sending, Side::Gone) {
            Side::Open(stream) => self.sending = Side::Busy(Box::pin(going(stream))),
            other => self.sending = other,
        }
    }
}

impl AsyncRead for Duplex {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.held.is_empty() {
            match ready!(Pin::new(&mut this.receiving).poll_frame(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(frame)) => this.held = frame.into_data().unwrap_or_default(),
                Some(Err(fault)) => return Poll::Ready(Err(io::Error::other(fault))),
            }
        }
        let taken = this.held.len().min(buf.remaining());
        buf.put_slice(&this.held[..taken]);
        this.held.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(this.poll_idle(cx))?;
        let part = Bytes::copy_from_slice(&buf[..buf.len().min(PART)]);
        let length = part.len();
        this.begin(|mut stream| async move {
            let sent = stream.send_data(part).await;
            (stream, sent)
        });
        // What does not go at once is waited for before anything else goes.
        match this.poll_idle(cx) {
            Poll::Ready(sent) => Poll::Ready(sent.map(|()| length)),
            Poll::Pending => Poll::Ready(Ok(length)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_idle(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_idle(cx))?;
        if !std::mem::replace(&mut this.is_finished, true) {
            this.begin(|mut stream| async move {
                let ended = stream.finish().await;
                (stream, ended)
            });
        }
        this.poll_idle(cx)
    }
}
