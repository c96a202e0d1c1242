//! How the authority is asked: over TLS, within a limit of time and of size.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::Full;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use crate::clock::Clock;
use crate::outbound;
use crate::retry_after::wait_of;

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
    #[error(transparent)]
    Outbound(#[from] outbound::AskError),
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
        let asked = outbound::ask(Some(&self.tls), authority, request, ANSWER_BYTES_MAX);
        let response = tokio::time::timeout(REQUEST_TIMEOUT, asked)
            .await
            .map_err(|_elapsed| AskError::Late(place.clone()))??
            .map(Full::new);
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
