//! The client's socket as hyper sees it: every byte is progress, and hyper's own answers do not get through.
//!
//! A head and a small body are written as one buffer: copying them costs less than what the kernel does for a second one.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::client::Client;
use super::socket::{self, Socket};

/// Bytes that are copied so that one buffer is written.
const GATHERED_MAX: usize = 4096;

/// A client's socket. It stays with the [`Client`], so that its task can end the connection in an orderly way
/// whatever became of hyper's side.
pub(crate) struct ClientIo {
    client: Rc<Client>,
    /// What was read of it before, and is still to be served.
    unread: Bytes,
}

impl ClientIo {
    pub(super) fn new(client: Rc<Client>, unread: Bytes) -> Self {
        Self { client, unread }
    }

    /// Gives out what was read before, if there is any.
    pub(super) fn give_unread(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        if self.unread.is_empty() {
            return false;
        }
        let here = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread.split_to(here));
        true
    }

    /// Whatever hyper may see of the socket.
    pub(super) fn poll<T>(
        &self,
        poll: impl FnOnce(Pin<&mut Socket>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut *self.client.socket.borrow_mut() {
            Some(stream) => poll(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_write_one(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.client.writes_last() {
            return self.poll(|mut stream| stream.poll_write_last(cx, buf));
        }
        self.poll(|stream| stream.poll_write(cx, buf))
    }

    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        // What TLS takes is not yet sent: that is counted below it.
        if self.client.tls.is_none() {
            socket::count(Some(&self.client.activity), &polled);
        }
        polled
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.give_unread(buf) {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(self.poll(|stream| stream.poll_read(cx, buf)))?;
        let read = &buf.filled()[before..];
        if !read.is_empty() {
            self.client.read(read);
            if self.client.speaks_http2() {
                // Not to hyper's side for HTTP/1.1, which ends here.
                return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.client.withholds(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        self.wrote(self.poll_write_one(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.client.withholds(bufs.first().map_or(&[], |first| first)) {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        let bytes: usize = bufs.iter().map(|buf| buf.len()).sum();
        if bytes > GATHERED_MAX {
            return self.wrote(self.poll(|stream| stream.poll_write_vectored(cx, bufs)));
        }
        if let [only] = bufs {
            return self.wrote(self.poll_write_one(cx, only));
        }
        let mut lent = self.client.worker.scratch.borrow_mut();
        let mut end = 0;
        for buf in bufs {
            lent[end..end + buf.len()].copy_from_slice(buf);
            end += buf.len();
        }
        self.wrote(self.poll_write_one(cx, &lent[..end]))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper flushes when it has written all that it has.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.client.tls.is_some() {
            ready!(self.poll(|stream| stream.poll_flush(cx)))?;
        }
        self.client.flushed();
        Poll::Ready(Ok(()))
    }

    /// How a connection ends is for its task to say, once hyper is done with it.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
