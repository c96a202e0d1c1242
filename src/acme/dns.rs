//! TXT records that prove a name (RFC 8555 section 8.4): set, and taken back.

mod hook;
mod message;
pub(super) mod name;
mod tsig;
mod update;

use serde::{Deserialize, Serialize};

use super::settings::{DnsMeans, DnsSettings};
use crate::clock::Clock;
use hook::{Act, HookError};
use update::UpdateError;

/// Of the name at which a record is looked for.
pub(super) const PREFIX: &str = "_acme-challenge.";

/// A TXT record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) value: String,
}

/// Why a record is not set, or not taken back.
#[derive(Debug, thiserror::Error)]
pub(super) enum DnsError {
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Update(#[from] UpdateError),
}

impl DnsSettings {
    /// Sets `record`, and returns once the authority may look for it.
    pub(super) async fn present(&self, record: &Record, clock: &dyn Clock) -> Result<(), DnsError> {
        match &self.means {
            DnsMeans::Hook(hook) => hook.run(Act::Present, record).await?,
            DnsMeans::Update(update) => update.add(record, clock).await?,
        }
        tokio::time::sleep(self.propagation).await;
        Ok(())
    }

    /// Takes `record` back; what is gone already is no error.
    pub(super) async fn clean_up(&self, record: &Record, clock: &dyn Clock) -> Result<(), DnsError> {
        match &self.means {
            DnsMeans::Hook(hook) => hook.run(Act::Cleanup, record).await?,
            DnsMeans::Update(update) => update.delete(record, clock).await?,
        }
        Ok(())
    }
}
