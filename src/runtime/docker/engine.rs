//! Calls to the engine: each under a deadline, few at a time, and with an error that keeps the engine's words.

use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bollard::errors::Error;
use http::uri::PathAndQuery;
use http::{Request, Uri};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::clock::Clock;
use crate::error::chain;
use crate::ids::InstanceId;
use crate::runtime::RuntimeError;

/// What the engine answers at once when it is well.
pub(super) const QUICK: Duration = Duration::from_secs(5);
/// What makes it work: create, start, remove.
pub(super) const SLOW: Duration = Duration::from_secs(30);

const QUICK_CALLS: usize = 16;
/// Apart from the quick ones, so that many starts at once do not make an inspection late.
const SLOW_CALLS: usize = 8;
const PULLS: usize = 3;

/// The engine's socket and what is known of the engine behind it.
#[derive(Debug)]
pub(super) struct Engine {
    socket: PathBuf,
    /// Made at the first call: bollard refuses to be built while the socket is not there, and engines restart.
    client: OnceLock<bollard::Docker>,
    version: Arc<ApiVersion>,
    quick: Semaphore,
    slow: Semaphore,
    pub(super) pulls: Semaphore,
    clock: Arc<dyn Clock>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum EngineError {
    /// No answer, none in time, or none that can be read: the outcome is unknown.
    #[error("{0}")]
    Unavailable(String),
    /// The engine refused, and said why.
    #[error("{message}")]
    Answer { status: u16, message: String },
}

/// Minor number of the API version that both sides speak; 0 until the engine was asked.
#[derive(Debug, Default)]
struct ApiVersion(AtomicUsize);

impl Engine {
    pub(super) fn new(socket: PathBuf, clock: Arc<dyn Clock>) -> Self {
        Self {
            socket,
            client: OnceLock::new(),
            version: Arc::default(),
            quick: Semaphore::new(QUICK_CALLS),
            slow: Semaphore::new(SLOW_CALLS),
            pulls: Semaphore::new(PULLS),
            clock,
        }
    }

    pub(super) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The client, for a future to hand to [`Engine::call`] and for streams.
    pub(super) fn client(&self) -> Result<&bollard::Docker, EngineError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        // Bollard's own limit ends before the body and would cut a long pull or wait; ours cover the whole call.
        const NO_LIMIT: u64 = u32::MAX as u64;
        let client = bollard::Docker::connect_with_unix(
            &self.socket.to_string_lossy(),
            NO_LIMIT,
            bollard::API_DEFAULT_VERSION,
        )
        .map_err(|cause| EngineError::from_bollard("connect", cause))?;
        let version = Arc::clone(&self.version);
        let client = client.with_request_modifier(move |mut request| {
            version.stamp(&mut request);
            request
        });
        Ok(self.client.get_or_init(|| client))
    }

    /// Awaits `request` for at most `limit`, its turn included.
    pub(super) fn call<T>(
        &self,
        limit: Duration,
        what: &'static str,
        request: impl Future<Output = Result<T, Error>>,
    ) -> impl Future<Output = Result<T, EngineError>> {
        // Boxed: bollard's futures hold whole request bodies, and ours hold several of them.
        let request = Box::pin(request);
        let turns = if limit > QUICK { &self.slow } else { &self.quick };
        let answered = async move {
            let _turn = turn(turns).await?;
            if self.version.is_unknown() {
                Box::pin(self.agree()).await?;
            }
            request.await.map_err(|cause| EngineError::from_bollard(what, cause))
        };
        self.within(limit, what, answered)
    }

    /// Awaits `work` for at most `limit`.
    pub(super) async fn within<T>(
        &self,
        limit: Duration,
        what: &'static str,
        work: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        tokio::select! {
            done = work => done,
            () = self.clock.sleep(limit) => {
                Err(EngineError::Unavailable(format!("no answer to {what} within {} s", limit.as_secs())))
            }
        }
    }

    /// Asks the engine what it is, and from then on speaks the newest version that both know.
    pub(super) async fn ping(&self) -> Result<String, EngineError> {
        let asked = async {
            let _turn = turn(&self.quick).await?;
            self.agree().await
        };
        self.within(QUICK, "version", Box::pin(asked)).await
    }

    /// Asks for the version, which every call waits for until it is known: a newer engine's own words may be none that
    /// bollard has.
    async fn agree(&self) -> Result<String, EngineError> {
        let told =
            self.client()?.version().await.map_err(|cause| EngineError::from_bollard("version", cause))?;
        let api = told.api_version.unwrap_or_default();
        self.version.agree(&api);
        Ok(format!("Docker Engine {}, API {api}", told.version.as_deref().unwrap_or("of unknown version")))
    }
}

/// Waits for a place among the calls under way; its holder gives it back by dropping it.
pub(super) async fn turn(turns: &Semaphore) -> Result<SemaphorePermit<'_>, EngineError> {
    turns.acquire().await.map_err(|closed| EngineError::Unavailable(closed.to_string()))
}

impl EngineError {
    pub(super) fn from_bollard(what: &'static str, cause: Error) -> Self {
        match cause {
            Error::DockerResponseServerError { status_code, message } => {
                Self::Answer { status: status_code, message: message.trim().to_owned() }
            }
            Error::DockerStreamError { error } => Self::Answer { status: 500, message: error },
            Error::JsonDataError { message, .. } => {
                Self::Unavailable(format!("its answer to {what} is not understood: {message}"))
            }
            Error::HyperLegacyError { err } => Self::Unavailable(chain(&err)),
            other => Self::Unavailable(chain(&other)),
        }
    }

    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Unavailable(_) => None,
            Self::Answer { status, .. } => Some(*status),
        }
    }

    /// A refusal that is about `instance`.
    pub(super) fn refused(self, action: &'static str, instance: InstanceId) -> RuntimeError {
        match self {
            Self::Unavailable(detail) => unavailable(detail),
            Self::Answer { message, .. } => RuntimeError::Refused { action, instance, detail: message },
        }
    }
}

impl From<EngineError> for RuntimeError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Unavailable(detail) => unavailable(detail),
            EngineError::Answer { status, message } => {
                unavailable(format!("it answered {status}: {message}"))
            }
        }
    }
}

pub(super) fn unavailable(detail: String) -> RuntimeError {
    RuntimeError::Unavailable { runtime: "docker", detail }
}

impl ApiVersion {
    fn is_unknown(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    fn agree(&self, engine: &str) {
        let minor = engine.strip_prefix("1.").and_then(|minor| minor.parse::<usize>().ok()).unwrap_or(0);
        // Relaxed: a call that still goes out without a version asks for it once more.
        self.0.store(minor.min(bollard::API_DEFAULT_VERSION.minor_version), Ordering::Relaxed);
    }

    /// Puts the version before the path. Bollard 0.21 leaves it out (bollard#736), and a newer engine would
    /// then use words that our bollard has no variants for. Goes when bollard sends it.
    fn stamp<B>(&self, request: &mut Request<B>) {
        let minor = self.0.load(Ordering::Relaxed);
        let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
        if minor == 0 || path == "/version" || path.starts_with("/v1.") {
            return;
        }
        let mut parts = request.uri().clone().into_parts();
        parts.path_and_query = format!("/v1.{minor}{path}").parse().ok();
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamped(version: &ApiVersion, path: &str) -> String {
        let mut request = Request::new(());
        *request.uri_mut() = format!("unix://2f72756e{path}").parse().unwrap();
        version.stamp(&mut request);
        request.uri().path_and_query().unwrap().to_string()
    }

    #[test]
    fn calls_carry_the_newest_version_that_both_sides_speak() {
        let version = ApiVersion::default();
        assert_eq!(stamped(&version, "/containers/json?all=true"), "/containers/json?all=true");
        version.agree("1.41");
        assert_eq!(stamped(&version, "/containers/json?all=true"), "/v1.41/containers/json?all=true");
        assert_eq!(stamped(&version, "/version"), "/version", "an upgraded engine may have dropped 1.41");
        version.agree("1.99");
        let ours = bollard::API_DEFAULT_VERSION.minor_version;
        assert_eq!(stamped(&version, "/events"), format!("/v1.{ours}/events"));
    }
}
