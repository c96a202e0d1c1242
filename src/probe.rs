//! One look at whether something answers: a TCP connect or an HTTP GET, straight at an instance's address.
//!
//! No redirects are followed, at most [`BODY_BYTES_MAX`] of an answer are read, and everything has one deadline.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::USER_AGENT;
use http::request::Builder;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::clock::Clock;
use crate::proxy_header::{self, Ends};
use crate::routing::tls::{HTTP_2, TargetTls};
use crate::settings::{Protocol, ProxyProtocol, StatusRange};

/// Of an answer; the rest is not read.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// What to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    Tcp,
    /// GET of this path, which begins with `/`; one of these statuses is a success.
    Http {
        path: String,
        status: StatusRange,
        protocol: Protocol,
        /// The connection begins with a PROXY header, as those of clients do.
        proxy_protocol: Option<ProxyProtocol>,
    },
}

/// Why the answer was no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    #[error("connect to {address} failed: {detail}")]
    Connect { address: SocketAddr, detail: String },
    #[error("the TLS handshake with {address} failed: {detail}")]
    Tls { address: SocketAddr, detail: String },
    #[error("GET {}://{address}{path} failed: {detail}", protocol.scheme())]
    Broken { address: SocketAddr, protocol: Protocol, path: String, detail: String },
    #[error("GET {}://{address}{path} answered {status} after {elapsed_ms} ms{}{begin}", protocol.scheme(), if begin.is_empty() { "" } else { ": " })]
    Status {
        address: SocketAddr,
        protocol: Protocol,
        path: String,
        status: u16,
        expected: StatusRange,
        /// Of a redirect.
        location: Option<String>,
        /// Of the body.
        begin: String,
        elapsed_ms: u128,
    },
    #[error("no answer from {address} within {limit:?}")]
    TimedOut { address: SocketAddr, limit: Duration },
}

impl Probe {
    /// Asks once; by `tls` where that is what the protocol is spoken over.
    ///
    /// # Errors
    /// What was seen instead of a success.
    pub async fn ask(
        &self,
        address: SocketAddr,
        tls: Option<&TargetTls>,
        limit: Duration,
        clock: &Arc<dyn Clock>,
    ) -> Result<(), ProbeError> {
        let asked = async {
            let mut stream = TcpStream::connect(address)
                .await
                .map_err(|error| ProbeError::Connect { address, detail: error.to_string() })?;
            match self {
                Self::Tcp => Ok(()),
                Self::Http { path, status, protocol, proxy_protocol } => {
                    let (protocol, expected, began) = (*protocol, *status, clock.now());
                    let asked = Asked { address, protocol, path, expected, began };
                    if let Some(version) = proxy_protocol {
                        let introduced = introduce(&mut stream, *version).await;
                        introduced.map_err(|error| asked.broken(error.to_string()))?;
                    }
                    match protocol {
                        Protocol::Http1 => get(stream, &asked, clock).await,
                        Protocol::H2c => get_http2(stream, &asked, clock).await,
                        Protocol::Https => get(shake(stream, tls, &asked).await?, &asked, clock).await,
                        Protocol::H2 => get_http2(shake(stream, tls, &asked).await?, &asked, clock).await,
                    }
                }
            }
        };
        timeout(limit, asked).await.unwrap_or(Err(ProbeError::TimedOut { address, limit }))
    }
}

impl ProbeError {
    /// What a person may want to change.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Connect { address, .. } => {
                format!("make the app listen on 0.0.0.0 and on the port in PORT (here {})", address.port())
            }
            Self::Status { location: Some(location), .. } if has_scheme_https(location) => {
                "the app redirects its health check to https: let it answer plain http when X-Forwarded-Proto is https, \
                 or exempt the health path"
                    .to_owned()
            }
            Self::Status { path, expected, location: Some(_), .. } => format!(
                "set health.path to where {path} redirects to, or health.status to 200-399 if a redirect is well (now {expected})"
            ),
            Self::Status { path, expected, .. } => {
                format!("make {path} answer {expected}, or set health.path to one that does")
            }
            Self::Tls { .. } => "see that the app speaks TLS there, and HTTP/2 with protocol h2, and that its certificate is as tls.server_name and tls.ca say".to_owned(),
            Self::Broken { .. } => "the port is open but does not speak HTTP as protocol says: check port and protocol, or use readiness_mode tcp".to_owned(),
            Self::TimedOut { .. } => "raise health.timeout, or find out what the app waits for".to_owned(),
        }
    }
}

fn has_scheme_https(location: &str) -> bool {
    location.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
}

/// One GET.
struct Asked<'a> {
    address: SocketAddr,
    protocol: Protocol,
    path: &'a str,
    expected: StatusRange,
    began: Instant,
}

impl Asked<'_> {
    fn broken(&self, detail: String) -> ProbeError {
        ProbeError::Broken {
            address: self.address,
            protocol: self.protocol,
            path: self.path.to_owned(),
            detail,
        }
    }

    fn request(&self, uri: &str) -> Result<Builder, ProbeError> {
        let uri: http::Uri =
            uri.parse().map_err(|error: http::uri::InvalidUri| self.broken(error.to_string()))?;
        Ok(http::Request::get(uri)
            .header(USER_AGENT, concat!("lockgate/", env!("CARGO_PKG_VERSION"), " (health check)"))
            .header("x-forwarded-proto", "https"))
    }

    /// The answer is not as it should be; `body` is what came of it.
    fn refused(&self, head: &http::response::Parts, body: &[u8], clock: &Arc<dyn Clock>) -> ProbeError {
        ProbeError::Status {
            address: self.address,
            protocol: self.protocol,
            path: self.path.to_owned(),
            status: head.status.as_u16(),
            expected: self.expected,
            location: head
                .headers
                .get(http::header::LOCATION)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned),
            begin: String::from_utf8_lossy(&body[..body.len().min(120)]).escape_debug().to_string(),
            elapsed_ms: clock.now().duration_since(self.began).as_millis(),
        }
    }
}

/// Says that the connection is nobody's but ours.
async fn introduce(stream: &mut TcpStream, version: ProxyProtocol) -> std::io::Result<()> {
    let ends = Ends { source: stream.local_addr()?, destination: stream.peer_addr()? };
    stream.write_all(&proxy_header::of_own(version, ends)).await
}

/// What is not who it has to be is asked nothing.
async fn shake(
    stream: TcpStream,
    tls: Option<&TargetTls>,
    asked: &Asked<'_>,
) -> Result<TlsStream<TcpStream>, ProbeError> {
    let failed = |detail: String| ProbeError::Tls { address: asked.address, detail };
    let tls = tls.ok_or_else(|| failed("nobody is known who could say who it is".to_owned()))?;
    let connecting = TlsConnector::from(tls.config()).connect(tls.name(), stream);
    let stream = connecting.await.map_err(|error| failed(crate::error::chain(&error)))?;
    if asked.protocol.is_http2() && stream.get_ref().1.alpn_protocol() != Some(HTTP_2) {
        return Err(failed("it does not agree on HTTP/2".to_owned()));
    }
    Ok(stream)
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    asked: &Asked<'_>,
    clock: &Arc<dyn Clock>,
) -> Result<(), ProbeError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| asked.broken(error.to_string()))?;
    let request = asked
        .request(asked.path)?
        .header(http::header::HOST, asked.address.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|error| asked.broken(error.to_string()))?;
    let answered = async {
        let response =
            sender.send_request(request).await.map_err(|error| asked.broken(crate::error::chain(&error)))?;
        let (head, body) = response.into_parts();
        if asked.expected.contains(head.status.as_u16()) {
            return Ok(());
        }
        // A body that breaks off changes nothing about the verdict; what came of it is enough.
        let body = Limited::new(body, BODY_BYTES_MAX)
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default();
        Err(asked.refused(&head, &body, clock))
    };
    tokio::pin!(answered);
    tokio::select! {
        answer = &mut answered => answer,
        // The connection's end comes with the answer or instead of it; the answer tells which.
        _ = connection => answered.await,
    }
}

async fn get_http2(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    asked: &Asked<'_>,
    clock: &Arc<dyn Clock>,
) -> Result<(), ProbeError> {
    let broken = |error: h2::Error| asked.broken(crate::error::chain(&error));
    let (mut sender, connection) = h2::client::handshake(stream).await.map_err(broken)?;
    let request = asked
        .request(&format!("{}://{}{}", asked.protocol.scheme(), asked.address, asked.path))?
        .version(http::Version::HTTP_2)
        .body(())
        .map_err(|error| asked.broken(error.to_string()))?;
    let answered = async {
        let (response, _) = sender.send_request(request, true).map_err(broken)?;
        let (head, mut body) = response.await.map_err(broken)?.into_parts();
        if asked.expected.contains(head.status.as_u16()) {
            return Ok(());
        }
        // The first part is enough to tell what it is.
        let begin = body.data().await.and_then(Result::ok).unwrap_or_default();
        Err(asked.refused(&head, &begin, clock))
    };
    tokio::pin!(answered);
    tokio::select! {
        answer = &mut answered => answer,
        _ = connection => answered.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_app_that_is_told_whose_connections_come_is_told_of_a_check() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let clock: Arc<dyn Clock> = Arc::new(crate::clock::SystemClock);
        for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let app = async {
                let (mut stream, peer) = listener.accept().await.unwrap();
                let expected = match version {
                    ProxyProtocol::V1 => {
                        let (from, to) = (peer.port(), address.port());
                        format!("PROXY TCP4 127.0.0.1 127.0.0.1 {from} {to}\r\n").into_bytes()
                    }
                    ProxyProtocol::V2 => b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec(),
                };
                let mut got = vec![0; expected.len() + 4];
                stream.read_exact(&mut got).await.unwrap();
                assert_eq!(got, [&expected[..], b"GET "].concat());
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                stream
            };
            let probe = Probe::Http {
                path: "/up".to_owned(),
                status: StatusRange::default(),
                protocol: Protocol::Http1,
                proxy_protocol: Some(version),
            };
            let asked = probe.ask(address, None, Duration::from_secs(60), &clock);
            let (_stream, answer) = tokio::join!(app, asked);
            answer.unwrap();
        }
    }

    #[test]
    fn a_redirect_is_told_apart_by_where_it_leads() {
        let remedy = |location: Option<&str>| {
            let error = ProbeError::Status {
                protocol: Protocol::Http1,
                address: ([127, 0, 0, 1], 80).into(),
                path: "/up".to_owned(),
                status: 301,
                expected: StatusRange::default(),
                location: location.map(str::to_owned),
                begin: String::new(),
                elapsed_ms: 1,
            };
            error.remedy()
        };
        for https in ["https://a.test/up", "HTTPS://a.test/"] {
            assert!(remedy(Some(https)).contains("redirects its health check to https"), "{https}");
        }
        for elsewhere in ["/login", "http://a.test/", "é"] {
            assert!(remedy(Some(elsewhere)).contains("health.status to 200-399"), "{elsewhere}");
        }
        assert!(remedy(None).contains("make /up answer 200-299"));
    }
}
