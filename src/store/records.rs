//! What the store keeps: one type for each kind of row, and the words that stand in its columns.

mod apps;
mod audit;
mod changes;
mod deployments;
mod operations;
mod routes;
mod timers;

pub use apps::*;
pub use audit::*;
pub use changes::*;
pub use deployments::*;
pub use operations::*;
pub use routes::*;
pub use timers::*;

use crate::ids::{AppName, DeploymentId, EnvironmentName};

/// Whose deployments or operations.
#[derive(Clone, Debug, Default)]
pub struct Of {
    pub app: Option<AppName>,
    pub environment: Option<EnvironmentName>,
}

/// A piece of a list: at most `limit`, from `offset` on.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    pub offset: u32,
    pub limit: u32,
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Busy, read-only, full, damaged: nothing is known to be written.
    #[error("the store failed to {action}: {detail}")]
    Failed { action: &'static str, detail: String },
    #[error("cannot open the store at {path}: {detail}")]
    Open { path: String, detail: String },
    #[error("host {host} belongs to app {owner}")]
    HostTaken { host: String, owner: AppName },
    #[error("the environment changed meanwhile: expected generation {expected}, found {found}")]
    Outdated { expected: u64, found: u64 },
    #[error("idempotency key {key:?} was used for another request")]
    KeyReused { key: String },
    #[error("no {what} {name}")]
    NotFound { what: &'static str, name: String },
    #[error("deployment {deployment} is archived")]
    Archived { deployment: DeploymentId },
}

/// Rows that were deleted because they are old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    pub deployments: usize,
    pub operations: usize,
    pub audit: usize,
}

impl Pruned {
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}
