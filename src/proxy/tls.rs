//! The handshake of a client's connection, what of it is remembered, and what TLS asks of requests: that they come over
//! a connection that was made for their host, or by https at all.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Request, Response, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::{HandshakeKind, ProtocolVersion, server::Acceptor};
use tokio_rustls::server::TlsStream;

use crate::certs::{Certs, Session};
use crate::error::chain;
use crate::routing::HostName;
use crate::routing::https::OwnHttps;
use crate::settings::HttpsMode;
use crate::telemetry::HandshakeCells;

use super::error::ForwardError;
use super::error_page;
use super::headers::X_FORWARDED_PROTO;
use super::server::linger;
use super::settings::{ProxySettings, TlsSettings};
use super::socket::{Socket, Wire};
use super::worker::Worker;

/// The first byte of every TLS connection: a record of a handshake.
const HANDSHAKE: u8 = 0x16;

/// Below it ACME looks for its answers, by plain HTTP.
const ACME_CHALLENGES: &str = "/.well-known/acme-challenge/";

const NOT_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain\r\n\
    cache-control: no-store\r\nserver: lockgate\r\nlockgate-reason: tls_required\r\ncontent-length: 55\r\n\r\n\
    This port speaks TLS: ask for https:// instead of http\n";

/// What is known of a connection with TLS.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    session: Session,
    /// As it stands in the access log: `1.3`.
    pub(crate) version: &'static str,
    /// HTTP/2 was agreed upon.
    pub(crate) is_http2: bool,
}

/// Where requests come by https for a host that a certificate covers.
#[derive(Debug)]
pub(crate) struct ToHttps {
    /// `https://host`: a host that a route matched, and no header as it was sent.
    origin: Box<str>,
    /// Whether they are sent there where the route says nothing of it.
    is_usual: bool,
    /// Whether some may come by plain HTTP all the same.
    is_open: bool,
}

/// A connection that does not become one.
enum Failure {
    Handshake(io::Error),
    /// The client speaks another protocol.
    NotTls,
    TimedOut,
    /// Who validates a challenge of ACME has seen the answer, and wants nothing else.
    Challenge,
}

/// Carries out the handshake. `None`: it failed, which is counted and costs nobody else.
pub(crate) async fn accept(worker: &Worker, certs: &Certs, stream: TcpStream) -> Option<(Socket, Tls)> {
    let cells = &worker.cells().handshakes;
    let began = worker.clock.now();
    let mut wire = Some(Wire::new(stream));
    match shake(certs, &mut wire, worker.settings.limits.handshake).await {
        Ok((stream, session)) => {
            let connection = stream.get_ref().1;
            let is_13 = connection.protocol_version() == Some(ProtocolVersion::TLSv1_3);
            let (version, count) = if is_13 { ("1.3", &cells.tls13) } else { ("1.2", &cells.tls12) };
            count.add(1);
            cells.took.observe(worker.clock.now().saturating_duration_since(began));
            if connection.handshake_kind() == Some(HandshakeKind::Resumed) {
                cells.resumed.add(1);
            }
            let is_http2 = connection.alpn_protocol() == Some(b"h2");
            Some((Socket::Tls(Box::new(stream)), Tls { session, version, is_http2 }))
        }
        Err(failure) => {
            failed(cells, &failure);
            if let (Failure::NotTls, Some(wire)) = (failure, wire) {
                linger(Socket::Plain(wire.into_stream()), NOT_TLS).await;
            }
            None
        }
    }
}

async fn shake(
    certs: &Certs,
    wire: &mut Option<Wire>,
    within: Duration,
) -> Result<(TlsStream<Wire>, Session), Failure> {
    let shaken = async {
        let Some(first) = wire.as_ref() else { return Err(Failure::NotTls) };
        if first.first_byte().await.map_err(Failure::Handshake)? != HANDSHAKE {
            return Err(Failure::NotTls);
        }
        let Some(first) = wire.take() else { return Err(Failure::NotTls) };
        let started =
            LazyConfigAcceptor::new(Acceptor::default(), first).await.map_err(Failure::Handshake)?;
        if let Some(config) = certs.challenges().tls(&started.client_hello()) {
            let mut stream = started.into_stream(config).await.map_err(Failure::Handshake)?;
            stream.shutdown().await.map_err(Failure::Handshake)?;
            return Err(Failure::Challenge);
        }
        let offer = certs.offer(started.client_hello().server_name());
        let stream = started.into_stream(offer.config).await.map_err(Failure::Handshake)?;
        Ok((stream, offer.session))
    };
    // One limit over all of it.
    tokio::time::timeout(within, shaken).await.unwrap_or(Err(Failure::TimedOut))
}

fn failed(cells: &HandshakeCells, failure: &Failure) {
    match failure {
        Failure::Handshake(error) => {
            cells.failed.add(1);
            tracing::debug!(error = chain(error), "TLS handshake failed");
        }
        Failure::NotTls => cells.not_tls.add(1),
        Failure::TimedOut => cells.timed_out.add(1),
        Failure::Challenge => cells.challenges.add(1),
    }
}

/// For how long browsers are told to come by https alone: the route's own word, or that of the listener.
pub(crate) fn hsts<'a>(settings: &'a ProxySettings, own: Option<&'a OwnHttps>) -> Option<&'a HeaderValue> {
    match own.and_then(|own| own.hsts.as_ref()) {
        Some(own) => own.value(),
        None => settings.tls.as_ref()?.hsts.as_ref(),
    }
}

/// Whether `path` is one that ACME asks for (RFC 8555 section 8.3), and in no reading anything else.
pub(crate) fn is_challenge(path: &str) -> bool {
    let is_token = |token: &str| {
        !token.is_empty()
            && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    };
    path.strip_prefix(ACME_CHALLENGES).is_some_and(is_token)
}

/// The answer to a challenge of ACME, if `path` asks for one of ours; whatever else is below that path is the apps'.
pub(crate) fn challenge(settings: &TlsSettings, path: &str) -> Option<Response<Bytes>> {
    let token = path.strip_prefix(ACME_CHALLENGES)?;
    let text = settings.certs.challenges().http(token)?;
    let mut response = Response::new(Bytes::copy_from_slice(text.as_bytes()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    Some(response)
}

impl Tls {
    /// Of QUIC.
    #[cfg(feature = "http3")]
    pub(crate) fn of_quic(session: Session) -> Self {
        Self { session, version: "1.3", is_http2: false }
    }

    pub(crate) fn carries(&self, host: &HostName, certs: &Certs) -> bool {
        self.session.carries(host, certs)
    }
}

impl ToHttps {
    /// For requests for `host` by plain HTTP; `None` if there is no such place, and they may come so.
    pub(crate) fn of(host: &HostName, settings: &TlsSettings) -> Result<Option<Self>, ForwardError> {
        let (is_open, is_usual) = (settings.certs.is_open(host), settings.redirects);
        // Nobody is sent to where his client refuses the certificate.
        match (settings.port, settings.certs.covers(host)) {
            (443, true) => Ok(Some(Self { origin: format!("https://{host}").into(), is_usual, is_open })),
            (port, true) => {
                Ok(Some(Self { origin: format!("https://{host}:{port}").into(), is_usual, is_open }))
            }
            (_, false) if is_open => Ok(None),
            (_, false) => Err(ForwardError::Misdirected),
        }
    }

    /// The answer that sends a client to https, if that is what the route says or, where it says nothing, the listener; none
    /// where ACME asks, or a trusted proxy says that it came by https.
    pub(crate) fn answer<B>(
        &self,
        request: &Request<B>,
        own: Option<&OwnHttps>,
    ) -> Result<Option<Response<Bytes>>, ForwardError> {
        let is_sent = match own.and_then(|own| own.mode) {
            Some(HttpsMode::Redirect) => true,
            Some(HttpsMode::Allow) => false,
            None => self.is_usual,
        };
        let is_secure = || request.headers().get(X_FORWARDED_PROTO).is_some_and(|scheme| scheme == "https");
        if !is_sent || is_secure() || is_challenge(request.uri().path()) {
            return if self.is_open { Ok(None) } else { Err(ForwardError::Misdirected) };
        }
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        let location = HeaderValue::try_from(format!("{}{target}", self.origin));
        let location =
            location.map_err(|_not_a_value| ForwardError::BadRequest("The request target is not valid."))?;
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
        response.headers_mut().insert(LOCATION, location);
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(0));
        error_page::mark_own(response.headers_mut(), "https_redirect");
        Ok(Some(response))
    }
}
