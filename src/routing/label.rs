//! Ephemeral deployments by label: what the first label of a host name leads to.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::backend::Backend;
use super::preview_auth::PreviewAuth;

/// The labels of one app, live ones and those whose time is over.
#[derive(Clone, Debug, Default)]
pub struct Labels(HashMap<Box<str>, Labelled>);

/// What a label leads to.
#[derive(Clone, Debug)]
pub struct Labelled {
    pub backend: Arc<Backend>,
    /// From then on the label is expired, whether or not a sweep has come by.
    pub expires_at: Instant,
    /// What a request must have; `None` where anybody may see it.
    pub auth: Option<Arc<PreviewAuth>>,
}

/// A label that is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelMiss {
    Unknown,
    Expired,
}

impl Labels {
    /// Leads `label` to `labelled` from now on.
    pub fn insert(&mut self, label: &str, labelled: Labelled) {
        self.0.insert(label.into(), labelled);
    }

    /// The live deployment behind `label` at the time `now`.
    ///
    /// # Errors
    /// Whether it was never known or is over.
    pub fn find(&self, label: &str, now: Instant) -> Result<&Labelled, LabelMiss> {
        match self.0.get(label) {
            None => Err(LabelMiss::Unknown),
            Some(labelled) if labelled.expires_at <= now => Err(LabelMiss::Expired),
            Some(labelled) => Ok(labelled),
        }
    }
}
