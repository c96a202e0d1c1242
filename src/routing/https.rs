//! What an app says of https for itself: whether who comes without is sent there, and for how long browsers are to come by it
//! alone. What it does not say, the listeners do.

use std::sync::Arc;

use http::HeaderValue;

use crate::settings::{Delay, HttpsMode};

/// An app's or a service's own word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnHttps {
    pub mode: Option<HttpsMode>,
    pub hsts: Option<Hsts>,
}

/// Whether browsers are told to come by https alone (RFC 6797).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hsts {
    Untold,
    /// The value of `Strict-Transport-Security`.
    Told(HeaderValue),
}

impl OwnHttps {
    /// `None` if nothing is said.
    #[must_use]
    pub fn of(mode: Option<HttpsMode>, hsts: Option<Delay>) -> Option<Arc<Self>> {
        let is_said = mode.is_some() || hsts.is_some();
        is_said.then(|| Arc::new(Self { mode, hsts: hsts.map(Hsts::of) }))
    }

    /// For people.
    #[must_use]
    pub fn told(&self) -> Vec<String> {
        let mode = self.mode.map(|mode| match mode {
            HttpsMode::Redirect => "without TLS it is sent to https, where a certificate covers the name",
            HttpsMode::Allow => "without TLS it is served",
        });
        let hsts = self.hsts.as_ref().map(|hsts| match hsts.value() {
            Some(value) => {
                format!("over TLS browsers are told to stay there: {}", value.to_str().unwrap_or_default())
            }
            None => "browsers are not told to come by https alone".to_owned(),
        });
        mode.map(str::to_owned).into_iter().chain(hsts).collect()
    }
}

impl Hsts {
    /// For so long; below a second they are not told.
    #[must_use]
    pub fn of(delay: Delay) -> Self {
        match delay.0.as_secs() {
            0 => Self::Untold,
            seconds => HeaderValue::try_from(format!("max-age={seconds}")).map_or(Self::Untold, Self::Told),
        }
    }

    #[must_use]
    pub fn value(&self) -> Option<&HeaderValue> {
        match self {
            Self::Untold => None,
            Self::Told(value) => Some(value),
        }
    }
}
