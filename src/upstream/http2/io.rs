//! The socket of an HTTP/2 connection, whose bytes are counted.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::upstream::socket::Socket;

/// What went over a connection.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) read: Cell<u64>,
    pub(super) written: Cell<u64>,
}

/// The socket. Once it takes nothing more, what is written is dropped, and it is read to its end: a target that closes has
/// said before which requests it did not begin with.
pub(super) struct CountedIo {
    stream: Socket,
    traffic: Rc<Traffic>,
    is_deaf: bool,
}

impl CountedIo {
    pub(super) fn new(stream: Socket, traffic: Rc<Traffic>) -> Self {
        Self { stream, traffic, is_deaf: false }
    }

    fn wrote(&mut self, polled: Poll<io::Result<usize>>, all: usize) -> Poll<io::Result<usize>> {
        match ready!(polled) {
            Ok(written) => {
                self.traffic.written.set(self.traffic.written.get() + written as u64);
                Poll::Ready(Ok(written))
            }
            Err(_closed) => {
                self.is_deaf = true;
                Poll::Ready(Ok(all))
            }
        }
    }
}

impl AsyncRead for CountedIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        this.traffic.read.set(this.traffic.read.get() + read as u64);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for CountedIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_deaf {
            return Poll::Ready(Ok(buf.len()));
        }
        let polled = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.wrote(polled, buf.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let all = bufs.iter().map(|buf| buf.len()).sum();
        if this.is_deaf {
            return Poll::Ready(Ok(all));
        }
        let polled = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.wrote(polled, all)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What TLS took and the socket did not.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.is_deaf && ready!(Pin::new(&mut this.stream).poll_flush(cx)).is_err() {
            this.is_deaf = true;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::upstream::socket::tests::both_ends;

    /// The library writes no more once a request is out, and nothing else would push on what TLS still has of it.
    #[tokio::test]
    async fn what_tls_took_while_the_socket_was_full_goes_out_by_a_flush() {
        let (socket, mut app) = both_ends().await;
        let mut io = CountedIo::new(socket, Rc::default());
        let write = |io: &mut CountedIo, cx: &mut Context<'_>| Pin::new(io).poll_write(cx, &[7; 16_384]);
        let mut taken = 0;
        while let Poll::Ready(written) = poll_fn(|cx| Poll::Ready(write(&mut io, cx))).await {
            taken += written.unwrap();
        }
        assert_eq!(io.traffic.written.get(), taken as u64);
        let reading = async {
            let mut got = vec![0; taken];
            app.read_exact(&mut got).await.unwrap();
            got.iter().all(|byte| *byte == 7)
        };
        let all = async { tokio::join!(io.flush(), reading) };
        let (flushed, is_whole) =
            tokio::time::timeout(std::time::Duration::from_secs(60), all).await.expect("it does not go out");
        flushed.unwrap();
        assert!(is_whole);
    }
}
