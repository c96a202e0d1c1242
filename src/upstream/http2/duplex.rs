//! The two directions of a stream as one that is read and written: what follows an extended CONNECT (RFC 8441).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that one write takes.
const PART: usize = 64 * 1024;

/// A stream that carries bytes. Dropping it resets what has not ended.
pub(crate) struct Duplex {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Came, and not yet read.
    held: Bytes,
    is_finished: bool,
}

impl Duplex {
    pub(crate) fn new(send: SendStream<Bytes>, receive: RecvStream) -> Self {
        Self { send, receive, held: Bytes::new(), is_finished: false }
    }
}

impl AsyncRead for Duplex {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.held.is_empty() {
            match ready!(this.receive.poll_data(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(data) => this.held = data.map_err(io::Error::other)?,
            }
        }
        let taken = this.held.len().min(buf.remaining());
        buf.put_slice(&this.held[..taken]);
        this.held.advance(taken);
        // The window opens as the other side takes what came.
        Poll::Ready(this.receive.flow_control().release_capacity(taken).map_err(io::Error::other))
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut room = this.send.capacity();
        if room == 0 {
            this.send.reserve_capacity(buf.len().min(PART));
        }
        while room == 0 {
            room = match ready!(this.send.poll_capacity(cx)) {
                Some(capacity) => capacity.map_err(io::Error::other)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let part = &buf[..room.min(buf.len())];
        this.send.send_data(Bytes::copy_from_slice(part), false).map_err(io::Error::other)?;
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.is_finished, true) {
            this.send.send_data(Bytes::new(), true).map_err(io::Error::other)?;
        }
        Poll::Ready(Ok(()))
    }
}
