//! The service that says whether a request may go on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::header::HeaderName;

use crate::ids::InstanceId;
use crate::routing::{Backend, Target};
use crate::settings::policy::ForwardAuthSettings;
use crate::telemetry::BackendStats;

/// Whom to ask, and what of the answer the app is told.
#[derive(Debug)]
pub struct ForwardAuth {
    pub backend: Arc<Backend>,
    pub address: SocketAddr,
    pub uri: Uri,
    pub headers: Box<[HeaderName]>,
    pub timeout: Duration,
}

impl ForwardAuth {
    pub(super) fn new(settings: &ForwardAuthSettings, workers: usize) -> Option<Self> {
        let (address, uri) = settings.parts()?;
        let target = Arc::new(Target::new(InstanceId::generate(), address, workers));
        // Its counters are shown nowhere: what it answers is no response of the route's.
        let stats = Arc::new(BackendStats::for_service("forward_auth", workers));
        let name = |text: &String| HeaderName::from_bytes(text.as_bytes()).ok();
        Some(Self {
            backend: Arc::new(Backend::new([target].into(), stats)),
            address,
            uri,
            headers: settings.headers.iter().map(name).collect::<Option<_>>()?,
            timeout: settings.timeout.0,
        })
    }
}
