//! Connections to the target, and one request on one of them. Nothing is ever sent again.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::RecvStream;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, USER_AGENT};
use http::uri::Authority;
use http::{HeaderValue, Request, Response, Uri, Version};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

use super::http2::Http2;
use super::plan::{Reuse, Slot};
use super::tally::{Fault, Tally};
use super::tls::{self, Stream};
use super::{Target, VerifyOptions};
use crate::clock::Clock;
use crate::error::chain;

/// Idle connections are closed from this side after this long, well before any sane idle time-out; so a close
/// from the other side was never asked for.
const KEEP_IDLE: Duration = Duration::from_secs(20);

/// Every request's body.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What the requests of one run share.
pub(super) struct Client {
    target: Target,
    hosts: Vec<Authority>,
    /// Of an https target; an error is told by each request.
    tls: Option<Result<TlsConnector, rustls::Error>>,
    /// The same for HTTP/2.
    tls_http2: Option<Result<TlsConnector, rustls::Error>>,
    timeout: Duration,
    clock: Arc<dyn Clock>,
    tally: Arc<Tally>,
    /// Idle connections, longest idle first: taking from the front keeps each of them in use.
    idle: Mutex<VecDeque<Idle>>,
    /// Connections that speak HTTP/2.
    pub(super) http2: Http2,
    /// Drives the connections.
    pub(super) drivers: TaskTracker,
}

#[derive(Debug)]
struct Idle {
    sender: SendRequest<Body>,
    /// That its certificate was looked at for.
    host: usize,
    since: Instant,
}

/// An answer whose head is here.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response<Received>,
    /// The connection, if it may be used again once the body is read.
    pub(super) kept: Option<(SendRequest<Body>, usize)>,
}

/// The body of an answer.
#[derive(Debug)]
pub(super) enum Received {
    Http1(Incoming),
    Http2(RecvStream),
}

/// A body that was read whole.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) length: u64,
    pub(super) digest: String,
    /// The beginning: all of it, if the body was short.
    pub(super) text: String,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("target", &self.target)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

impl Client {
    pub(super) fn new(options: &VerifyOptions, clock: Arc<dyn Clock>, tally: Arc<Tally>) -> Self {
        let is_https = options.target.is_https();
        Self {
            target: options.target.clone(),
            hosts: options.hosts().to_vec(),
            tls: is_https.then(|| tls::connector(options.ca.as_ref(), options.insecure, b"http/1.1")),
            tls_http2: is_https.then(|| tls::connector(options.ca.as_ref(), options.insecure, b"h2")),
            timeout: options.timeout.into(),
            clock,
            tally,
            idle: Mutex::default(),
            http2: Http2::default(),
            drivers: TaskTracker::new(),
        }
    }

    /// Where the slot's request goes, as HTTP/2 says it.
    pub(super) fn uri(&self, slot: &Slot, path: &Uri) -> Option<Uri> {
        let scheme = if self.target.is_https() { "https" } else { "http" };
        let path = path.path_and_query()?.clone();
        Uri::builder()
            .scheme(scheme)
            .authority(self.hosts[slot.host].clone())
            .path_and_query(path)
            .build()
            .ok()
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether a connection is for the host that its certificate was looked at for.
    pub(super) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The `Host` of the slot's request.
    pub(super) fn host(&self, slot: &Slot) -> HeaderValue {
        // An authority consists of characters that a header value may have.
        HeaderValue::from_str(self.hosts[slot.host].as_str())
            .unwrap_or_else(|_| HeaderValue::from_static("-"))
    }

    /// Sends the request and waits for the head of its answer; `extra` is how much longer than usual the
    /// request's body takes.
    pub(super) async fn send(
        &self,
        slot: &Slot,
        mut request: Request<Body>,
        extra: Duration,
    ) -> Result<Answer, Fault> {
        let headers = request.headers_mut();
        headers.insert(HOST, self.host(slot));
        headers.insert(USER_AGENT, HeaderValue::from_static("lockgate-verify"));
        if slot.kind.is_http2() {
            return self.send_http2(slot, request).await;
        }
        if slot.reuse == Reuse::Close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let mut sender = self.sender(slot).await?;
        let sent = self.clock.now();
        let response = tokio::time::timeout(self.timeout + extra, sender.send_request(request))
            .await
            .map_err(|_elapsed| Fault::Failed("no answer in time".to_owned()))?
            .map_err(|error| before_the_answer(&error))?;
        self.tally.saw(slot, response.headers(), sent, self.clock.now());
        let keep = slot.reuse == Reuse::Kept && stays_open(&response);
        Ok(Answer { response: response.map(Received::Http1), kept: keep.then_some((sender, slot.host)) })
    }

    /// The next frame of a body, or its end.
    pub(super) async fn frame(&self, body: &mut Received) -> Result<Option<Bytes>, Fault> {
        let body = match body {
            Received::Http1(body) => body,
            Received::Http2(body) => return self.frame_http2(body).await,
        };
        while let Some(frame) = self.in_time("more of the body", body.frame()).await? {
            let frame = frame.map_err(|error| Fault::Truncated(chain(&error)))?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// Reads the body to its end and keeps the connection where the slot says so.
    pub(super) async fn read(&self, answer: Answer) -> Result<Content, Fault> {
        let Answer { response, kept } = answer;
        let mut body = response.into_body();
        let mut hasher = blake3::Hasher::new();
        let mut text = Vec::new();
        while let Some(data) = self.frame(&mut body).await? {
            hasher.update(&data);
            if text.len() < 4096 {
                text.extend_from_slice(&data);
            }
        }
        if let Some((sender, host)) = kept {
            let idle = Idle { sender, host, since: self.clock.now() };
            self.lock().push_back(idle);
        }
        Ok(Content {
            length: hasher.count(),
            digest: hasher.finalize().to_hex().to_string(),
            text: String::from_utf8_lossy(&text).into_owned(),
        })
    }

    /// A new connection to the target, for requests as the slot's.
    pub(super) async fn connect(&self, slot: &Slot) -> Result<Stream, Fault> {
        let address = (self.target.name(), self.target.port());
        let connected = self.in_time("a connection", TcpStream::connect(address)).await?;
        let stream = connected.map_err(|error| match error.kind() {
            ErrorKind::ConnectionRefused => Fault::Failed("connection refused".to_owned()),
            ErrorKind::ConnectionReset => Fault::Reset("while connecting".to_owned()),
            _ => Fault::Failed(format!("cannot connect: {error}")),
        })?;
        stream.set_nodelay(true).map_err(|error| Fault::Reset(format!("right after connecting: {error}")))?;
        let tls = if slot.kind.is_http2() { &self.tls_http2 } else { &self.tls };
        match tls {
            None => Ok(Stream::Left(stream)),
            Some(Ok(connector)) => {
                let host = self.hosts[slot.host].host().trim_start_matches('[').trim_end_matches(']');
                let name = ServerName::try_from(host.to_owned())
                    .map_err(|error| Fault::Failed(format!("{host} is no name for TLS: {error}")))?;
                let shaken = self.in_time("TLS handshake", connector.connect(name, stream)).await?;
                let stream = shaken.map_err(|error| match error.kind() {
                    ErrorKind::InvalidData => Fault::Failed(format!("TLS handshake: {}", chain(&error))),
                    _ => Fault::Reset(format!("in the TLS handshake: {}", chain(&error))),
                })?;
                Ok(Stream::Right(Box::new(stream)))
            }
            Some(Err(error)) => Err(Fault::Failed(format!("TLS cannot be set up: {}", chain(error)))),
        }
    }

    /// Waits no longer than the run's time-out.
    pub(super) async fn in_time<T>(&self, what: &str, future: impl Future<Output = T>) -> Result<T, Fault> {
        tokio::time::timeout(self.timeout, future)
            .await
            .map_err(|_elapsed| Fault::Failed(format!("no {what} in time")))
    }

    /// Closes the idle connections, counts those that the other side had closed, and waits for the drivers.
    pub(super) async fn close(&self) {
        let idle = std::mem::take(&mut *self.lock());
        for idle in idle.into_iter().filter(|idle| idle.sender.is_closed()) {
            self.tally.closed_idle(idle.since, self.clock.now());
        }
        self.http2.close(self);
        self.drivers.close();
        if self.in_time("end of the connections", self.drivers.wait()).await.is_err() {
            tracing::debug!(open = self.drivers.len(), "connections outlive the run");
        }
    }

    /// A connection on which no request is in flight.
    async fn sender(&self, slot: &Slot) -> Result<SendRequest<Body>, Fault> {
        while slot.reuse == Reuse::Kept
            && let Some(mut idle) = self.take_idle(slot.host)
        {
            if self.clock.now() - idle.since > KEEP_IDLE {
                continue;
            }
            if !idle.sender.is_closed() && self.in_time("free connection", idle.sender.ready()).await?.is_ok()
            {
                return Ok(idle.sender);
            }
            self.tally.closed_idle(idle.since, self.clock.now());
        }
        let stream = TokioIo::new(self.connect(slot).await?);
        let (sender, connection) =
            http1::handshake(stream).await.map_err(|error| Fault::Reset(chain(&error)))?;
        self.drivers.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = chain(&error), "connection ended");
            }
        });
        Ok(sender)
    }

    /// With TLS a connection is for the host that its certificate was looked at for.
    fn take_idle(&self, host: usize) -> Option<Idle> {
        let mut idle = self.lock();
        let at = idle.iter().position(|idle| self.tls.is_none() || idle.host == host)?;
        idle.remove(at)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses every answer but a success.
pub(super) fn success<B>(response: &Response<B>) -> Result<(), Fault> {
    if response.status().is_success() {
        return Ok(());
    }
    let reason = response.headers().get("lockgate-reason").and_then(|reason| reason.to_str().ok());
    let status = response.status().as_u16();
    Err(Fault::Failed(match reason {
        Some(reason) => format!("status {status} {reason}"),
        None => format!("status {status}"),
    }))
}

/// What it means that there is no head. The request may have reached the other side or not: that the
/// connection was only just closed is no excuse, because whoever promises not to close it must not.
fn before_the_answer(error: &hyper::Error) -> Fault {
    if error.is_parse() {
        return Fault::Failed(format!("malformed answer: {}", chain(error)));
    }
    Fault::Reset(format!("before the answer: {}", chain(error)))
}

/// Whether the other side has not announced that it will close the connection after this answer.
fn stays_open<B>(response: &Response<B>) -> bool {
    let headers = response.headers();
    let says_close = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("close"));
    // Without either, the close is the end of the body.
    let framed = headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING);
    response.version() == Version::HTTP_11 && framed && !says_close
}
