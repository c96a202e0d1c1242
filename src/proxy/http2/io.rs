//! The client's socket as h2 sees it: its frames are counted.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proxy::client::Client;
use crate::proxy::io::ClientIo;

use super::flood::{Allowance, Frames};

const PREFACE_LEN: usize = 24;

/// A client's socket.
pub(super) struct ConnectionIo {
    socket: ClientIo,
    frames: Frames,
    allowance: Rc<Allowance>,
}

impl ConnectionIo {
    pub(super) fn new(client: Rc<Client>, read: Bytes, allowance: Rc<Allowance>) -> Self {
        Self { socket: ClientIo::new(client, read), frames: Frames::behind(PREFACE_LEN), allowance }
    }

    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &polled {
            self.allowance.sent(*bytes);
        }
        polled
    }
}

impl AsyncRead for ConnectionIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if !this.socket.give_unread(buf) {
            ready!(this.socket.poll(|stream| stream.poll_read(cx, buf)))?;
        }
        this.frames.follow(&buf.filled()[before..], &this.allowance);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ConnectionIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.wrote(self.socket.poll(|stream| stream.poll_write(cx, buf)))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.wrote(self.socket.poll(|stream| stream.poll_write_vectored(cx, bufs)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll(|stream| stream.poll_shutdown(cx))
    }
}
