//! How the authority is asked: one connection for each request, over TLS, within a limit of time and of size. There are
//! few requests, and nothing has to be kept between two orders.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::clock::{Clock, Timestamp};

/// For one request and its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Asks, and remembers when the authority does not want to be asked again.
#[derive(Clone)]
pub(super) struct Http {
    tls: TlsConnector,
    clock: Arc<dyn Clock>,
    refusal: Arc<Mutex<Option<Refusal>>>,
}

/// The authority wants less of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
}

impl Refusal {
    /// It has no time for anybody, whatever he asks.
    pub(super) fn is_busy(self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("{0} is no https URL")]
    Url(Uri),
    #[error("cannot connect to {0}")]
    Connect(String, #[source] io::Error),
    #[error("the TLS handshake with {0} failed")]
    Handshake(String, #[source] io::Error),
    #[error("the connection to {0} failed")]
    Connection(String, #[source] hyper::Error),
    #[error("the answer of {0} cannot be read")]
    Body(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{0} answered {1}")]
    Status(String, StatusCode),
    #[error("{0} did not answer within 30 s")]
    Late(String),
}

impl Http {
    /// Believes `roots`, or the system's authorities.
    pub(super) fn new(
        roots: Option<&[CertificateDer<'static>]>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, rustls::Error> {
        let mut store = RootCertStore::empty();
        match roots {
            Some(roots) => {
                for root in roots {
                    store.add(root.clone())?;
                }
            }
            None => {
                store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_safe_default_protocol_versions()?;
        let mut config = builder.with_root_certificates(store).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), clock, refusal: Arc::default() })
    }

    /// What the authority refused since the last time that somebody asked.
    pub(super) fn take_refusal(&self) -> Option<Refusal> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn ask(self, request: Request<BodyWrapper<Bytes>>) -> Result<Response<Full<Bytes>>, AskError> {
        let uri = request.uri().clone();
        let (Some("https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(AskError::Url(uri));
        };
        let place = authority.to_string();
        let asked = self.exchange(&place, authority.host(), authority.port_u16().unwrap_or(443), request);
        let response = tokio::time::timeout(REQUEST_TIMEOUT, asked)
            .await
            .map_err(|_elapsed| AskError::Late(place.clone()))??;
        let (status, is_problem) = (response.status(), is_problem(&response));
        if status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::SERVICE_UNAVAILABLE {
            let value = response.headers().get(RETRY_AFTER);
            let retry_after = value.and_then(|value| wait_of(value, self.clock.wall()));
            let refusal = Refusal { status, retry_after };
            self.refusal.lock().unwrap_or_else(PoisonError::into_inner).replace(refusal);
        }
        // What is no problem document says nothing that could be told (RFC 8555 section 6.7).
        if is_problem || status.is_success() || status.is_redirection() {
            return Ok(response);
        }
        Err(AskError::Status(place, status))
    }

    async fn exchange(
        &self,
        place: &str,
        host: &str,
        port: u16,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Result<Response<Full<Bytes>>, AskError> {
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let connect = |error| AskError::Connect(place.to_owned(), error);
        let stream = TcpStream::connect((name, port)).await.map_err(connect)?;
        let server =
            ServerName::try_from(name.to_owned()).map_err(|error| connect(io::Error::other(error)))?;
        let stream = self.tls.connect(server, stream).await;
        let stream = stream.map_err(|error| AskError::Handshake(place.to_owned(), error))?;
        let failed = |error| AskError::Connection(place.to_owned(), error);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        let mut connection = pin!(connection);
        let answered = async {
            let response = sender.send_request(origin_form(request, place)).await.map_err(failed)?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| AskError::Body(place.to_owned(), error))?.to_bytes();
            Ok(Response::from_parts(parts, Full::new(body)))
        };
        let mut answered = pin!(answered);
        tokio::select! {
            answer = &mut answered => answer,
            // It ends as its last answer was read, or because something is wrong, which the answer tells.
            _ended = &mut connection => answered.await,
        }
    }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let http = self.clone();
        Box::pin(async move {
            let answer = http.ask(request).await.map_err(|error| Error::Other(Box::new(error)))?;
            Ok(BytesResponse::from(answer))
        })
    }
}

/// Whether its body says what was wrong.
fn is_problem(response: &Response<Full<Bytes>>) -> bool {
    response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.to_str().is_ok_and(|kind| kind.starts_with("application/problem+json")))
}

/// As an origin server is asked (RFC 9112 section 3.2.1).
fn origin_form(mut request: Request<BodyWrapper<Bytes>>, place: &str) -> Request<BodyWrapper<Bytes>> {
    if let Ok(host) = HeaderValue::try_from(place) {
        request.headers_mut().insert(HOST, host);
    }
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    if let Ok(uri) = target.parse() {
        *request.uri_mut() = uri;
    }
    request
}

/// The value of a `Retry-After`: seconds, or a date (RFC 9110 section 10.2.3).
fn wait_of(value: &HeaderValue, now: Timestamp) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(SystemTime::from(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_in_seconds_or_as_a_date() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Thu, 01 Jan 2026 00:02:00 GMT", Some(120)),
            ("Wed, 31 Dec 2025 00:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let wait = wait_of(&HeaderValue::from_static(text), now);
            assert_eq!(wait, expected.map(Duration::from_secs), "{text}");
        }
    }
}
