//! How the places that Lockgate serves are written as URLs, for people and for the apps themselves.

use std::fmt;
use std::sync::Arc;

type Origin = dyn Fn(&str) -> String + Send + Sync;

/// Says the origin of a host name: scheme, host, and the port if it is not the scheme's own.
#[derive(Clone)]
pub struct Urls(Arc<Origin>);

impl Urls {
    /// `origin` says it now: certificates come and go.
    pub fn new(origin: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self(Arc::new(origin))
    }

    /// Of `place`, a host name and perhaps a path behind it.
    pub(super) fn of(&self, place: &str) -> String {
        let (host, path) = place.split_at(place.find('/').unwrap_or(place.len()));
        format!("{}{path}", (self.0)(host))
    }
}

/// Plain HTTP at its own port.
impl Default for Urls {
    fn default() -> Self {
        Self::new(|host| format!("http://{host}"))
    }
}

impl fmt::Debug for Urls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Urls").field(&self.of("host")).finish()
    }
}
