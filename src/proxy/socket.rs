//! A client's socket, with TLS or without: the same to all who read and write it.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use rustix::net::SendFlags;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::upstream::Activity;

/// A client's socket.
pub(crate) enum Socket {
    Plain(TcpStream),
    /// Boxed because most of what it is has to be there once.
    Tls(Box<TlsStream<Wire>>),
}

/// What is under TLS. What it takes is progress: what was encrypted and is still here is not.
pub(crate) struct Wire {
    stream: TcpStream,
    activity: Option<Rc<Activity>>,
}

/// What a look at a client tells whose request is being served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It closed its side.
    End,
    /// It sent more than its request.
    More,
}

impl Socket {
    /// From now on what goes over it is counted.
    pub(crate) fn count(&mut self, activity: &Rc<Activity>) {
        match self {
            Self::Plain(_) => {}
            Self::Tls(stream) => stream.get_mut().0.activity = Some(Rc::clone(activity)),
        }
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.get_ref().0.stream,
        }
    }

    /// Writes the last that the connection carries. It waits for the end that follows at once, and goes in one segment with it.
    pub(super) fn poll_write_last(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let stream = match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => return Pin::new(stream).poll_write(cx, buf),
        };
        loop {
            ready!(stream.poll_write_ready(cx))?;
            let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
            let written = stream.try_io(Interest::WRITABLE, || Ok(rustix::net::send(&*stream, buf, flags)?));
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    /// Looks what has come, and leaves it there.
    pub(crate) fn poll_heard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Heard>> {
        match self {
            Self::Plain(stream) => {
                let mut byte = [MaybeUninit::uninit()];
                let seen = ready!(stream.poll_peek(cx, &mut ReadBuf::uninit(&mut byte)))?;
                Poll::Ready(Ok(if seen == 0 { Heard::End } else { Heard::More }))
            }
            Self::Tls(stream) => poll_decrypted(stream, cx),
        }
    }
}

/// What comes has to be decrypted to tell the end from more; what is, stays in the session until it is read.
fn poll_decrypted(stream: &mut TlsStream<Wire>, cx: &mut Context<'_>) -> Poll<io::Result<Heard>> {
    let (wire, session) = stream.get_mut();
    loop {
        let state = session
            .process_new_packets()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if state.plaintext_bytes_to_read() > 0 {
            return Poll::Ready(Ok(Heard::More));
        }
        if state.peer_has_closed() {
            return Poll::Ready(Ok(Heard::End));
        }
        ready!(wire.stream.poll_read_ready(cx))?;
        match session.read_tls(&mut Ready(&wire.stream)) {
            Ok(0) => return Poll::Ready(Ok(Heard::End)),
            Ok(_) => {}
            // Then the socket is not ready any more, and tells when it is.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// Reads what is there.
struct Ready<'a>(&'a TcpStream);

impl io::Read for Ready<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buf)
    }
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, activity: None }
    }

    /// Waits for the first byte, and leaves it there.
    pub(crate) async fn first_byte(&self) -> io::Result<u8> {
        let mut byte = [0];
        match self.stream.peek(&mut byte).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(byte[0]),
        }
    }

    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        count(self.activity.as_deref(), &written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        count(self.activity.as_deref(), &written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What a write to a client came to.
pub(crate) fn count(activity: Option<&Activity>, written: &Poll<io::Result<usize>>) {
    match (activity, written) {
        (Some(activity), Poll::Ready(Ok(bytes))) => activity.wrote(*bytes),
        (Some(activity), Poll::Pending) => activity.await_reader(),
        (Some(_), Poll::Ready(Err(_))) | (None, _) => {}
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
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
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
