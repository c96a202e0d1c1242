//! A connection to a target below HTTP, with TLS or without: the same to all who read and write it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::routing::Target;

use super::UpstreamError;

/// A target's socket.
pub(crate) enum Socket {
    Plain(TcpStream),
    /// Boxed because it is large, and others do not need the room.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// Connects to `target`, as far as it can be asked for something. `header` is the first that it gets, if it gets one.
    ///
    /// # Errors
    /// Why not. A target that has to speak TLS, and does not, or is not who it has to be, is sent nothing else.
    pub(super) async fn open(target: &Target, header: Option<&[u8]>) -> Result<Self, UpstreamError> {
        let mut stream = connect(target.address).await.map_err(UpstreamError::Connect)?;
        if let Some(header) = header {
            stream.write_all(header).await.map_err(UpstreamError::Connect)?;
        }
        let Some(tls) = &target.tls else { return Ok(Self::Plain(stream)) };
        let stream = TlsConnector::from(tls.config()).connect(tls.name(), stream).await;
        stream.map(|stream| Self::Tls(Box::new(stream))).map_err(UpstreamError::Tls)
    }
}

pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_nodelay(true)?;
    socket.connect(address).await
}

/// TLS leaves the end in order to whoever ends.
impl Drop for Socket {
    fn drop(&mut self) {
        if let Self::Tls(stream) = self {
            let (tcp, session) = stream.get_mut();
            session.send_close_notify();
            // What is not taken at once is not waited for: the connection is over.
            let _taken_or_not = session.write_tls(&mut AtOnce(tcp));
        }
    }
}

/// Takes what the socket takes without waiting.
struct AtOnce<'a>(&'a TcpStream);

impl io::Write for AtOnce<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
