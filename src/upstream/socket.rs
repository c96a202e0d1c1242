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
use crate::routing::tls::HTTP_2;

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
        let Some(tls) = &target.tls else {
            let is_plain = !target.protocol.is_tls();
            let nobody = || UpstreamError::Tls(io::Error::other("nobody is known who could say who it is"));
            return is_plain.then_some(Self::Plain(stream)).ok_or_else(nobody);
        };
        let stream = TlsConnector::from(tls.config()).connect(tls.name(), stream).await;
        let stream = stream.map_err(UpstreamError::Tls)?;
        if target.protocol.is_http2() && stream.get_ref().1.alpn_protocol() != Some(HTTP_2) {
            return Err(UpstreamError::NotHttp2);
        }
        Ok(Self::Tls(Box::new(stream)))
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
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

#[cfg(test)]
pub(super) mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use rustls::ServerConfig;
    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::ids::InstanceId;
    use crate::routing::tls::{Believed, ClientTls};

    /// Takes whatever certificate there is.
    pub(in crate::upstream) async fn both_ends() -> (Socket, tokio_rustls::server::TlsStream<TcpStream>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        let certificate = certificate.self_signed(&key).unwrap();
        let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tls = ClientTls::new(Believed::Anybody).unwrap().to("a.test".try_into().unwrap());
        let target = Target::new(InstanceId::generate(), listener.local_addr().unwrap(), 1).over(Some(tls));
        let accepting = async {
            let stream = listener.accept().await.unwrap().0;
            TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap()
        };
        let (socket, app) = tokio::join!(Socket::open(&target, None), accepting);
        (socket.unwrap_or_else(|error| panic!("{error:?}")), app)
    }

    /// What TLS took and the socket did not is still here, and nobody may write more to push it on.
    #[tokio::test]
    async fn what_was_taken_while_the_socket_was_full_goes_out_by_a_flush() {
        let (mut socket, mut app) = both_ends().await;
        let mut taken = 0;
        let write = |socket: &mut Socket, cx: &mut Context<'_>| Pin::new(socket).poll_write(cx, &[7; 16_384]);
        while let Poll::Ready(written) = poll_fn(|cx| Poll::Ready(write(&mut socket, cx))).await {
            taken += written.unwrap();
        }
        let reading = async {
            let mut got = vec![0; taken];
            app.read_exact(&mut got).await.unwrap();
            got.iter().all(|byte| *byte == 7)
        };
        let all = async { tokio::join!(socket.flush(), reading) };
        let (flushed, is_whole) =
            tokio::time::timeout(std::time::Duration::from_secs(60), all).await.expect("it does not go out");
        flushed.unwrap();
        assert!(is_whole);
    }
}
