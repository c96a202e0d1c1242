//! Versions, and their instances.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Failure;
use crate::clock::Timestamp;
use crate::ids::{AppName, DeploymentId, EnvironmentName, EphemeralLabel, InstanceId, OperationId};
use crate::settings::AppSettings;

/// An immutable snapshot of one version, and where it is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    pub id: DeploymentId,
    pub app: AppName,
    pub environment: EnvironmentName,
    /// Orders all deployments.
    pub ordinal: u64,
    /// Orders the deployments of an environment.
    pub sequence: u64,
    pub status: DeploymentStatus,
    pub desired_state: DesiredState,
    pub settings: AppSettings,
    pub git: GitFacts,
    /// JSON of `runtime::Pinned`, once the image or command is pinned.
    pub pinned: Option<String>,
    /// Over digest, env and settings: equal means an equal deploy.
    pub state_hash: Option<String>,
    pub label: Option<EphemeralLabel>,
    pub expires_at: Option<Timestamp>,
    pub failure: Option<Failure>,
    pub operation: OperationId,
    pub created_at: Timestamp,
    /// When it last became live; what a rollback looks for.
    pub live_at: Option<Timestamp>,
}

/// What a deployment is made of at its beginning.
#[derive(Clone, Debug)]
pub struct NewDeployment {
    pub id: DeploymentId,
    pub settings: AppSettings,
    pub git: GitFacts,
    /// Of the version that it is made of; it must not be another one.
    pub pinned: Option<String>,
    pub label: Option<EphemeralLabel>,
    pub expires_at: Option<Timestamp>,
}

/// A label that led somewhere once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedLabel {
    pub app: AppName,
    pub label: EphemeralLabel,
    pub deployment: DeploymentId,
    pub expired_at: Timestamp,
}

/// Where a version comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GitFacts {
    /// Full commit hash.
    pub commit: Option<String>,
    pub branch: Option<String>,
    /// First line of the commit's message.
    pub subject: Option<String>,
}

/// Where a deployment is in its life, in that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeploymentStatus {
    Pending,
    Building,
    Starting,
    Checking,
    Finalizing,
    Ready,
    Failed,
    Cancelled,
    Superseded,
}

/// Whether its instances should run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DesiredState {
    Running,
    /// Stopped, kept, can be woken.
    Standby,
    /// Gone; can be deployed again, not woken.
    Archived,
}

/// One instance as Lockgate means it to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceRow {
    pub id: InstanceId,
    pub app: AppName,
    pub environment: EnvironmentName,
    pub deployment: DeploymentId,
    pub operation: OperationId,
    pub phase: InstancePhase,
    /// The life of it that was last seen.
    pub handle: Option<String>,
    pub address: Option<String>,
    pub started_at: Option<Timestamp>,
    /// Set before the stop signal is sent: it is sent once.
    pub stop_signalled_at: Option<Timestamp>,
    /// Not yet one of the replicas, or no longer. Given when the row is made; only [`crate::store::Store::resize`]
    /// changes it.
    pub spare: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InstancePhase {
    /// The runtime was or will be asked to start it.
    Starting,
    Running,
    /// Its gate is closed and it will be stopped.
    Draining,
    /// Stopped and kept.
    Stopped,
}

impl DeploymentStatus {
    /// Whether nothing moves it any more.
    #[must_use]
    pub const fn is_end(self) -> bool {
        match self {
            Self::Pending | Self::Building | Self::Starting | Self::Checking | Self::Finalizing => false,
            Self::Ready | Self::Failed | Self::Cancelled | Self::Superseded => true,
        }
    }

    /// Whether a deployment of this status may move to `next`: forward along the list, or to an end.
    /// A ready one that did not hold after its cutover becomes `failed`.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        if let (Self::Ready, Self::Failed) = (self, next) {
            return true;
        }
        !self.is_end() && (next as u8) > (self as u8)
    }

    /// All of them, in the order of life.
    pub const ALL: [Self; 9] = [
        Self::Pending,
        Self::Building,
        Self::Starting,
        Self::Checking,
        Self::Finalizing,
        Self::Ready,
        Self::Failed,
        Self::Cancelled,
        Self::Superseded,
    ];

    /// The statuses from which `self` can be reached: for a compare-and-set.
    #[must_use]
    pub fn predecessors(self) -> Vec<Self> {
        Self::ALL.into_iter().filter(|from| from.may_become(self)).collect()
    }
}

impl InstanceRow {
    /// Of an instance that is about to be started.
    #[must_use]
    pub fn new(deployment: &Deployment, operation: OperationId) -> Self {
        Self {
            id: InstanceId::generate(),
            app: deployment.app.clone(),
            environment: deployment.environment.clone(),
            deployment: deployment.id,
            operation,
            phase: InstancePhase::Starting,
            handle: None,
            address: None,
            started_at: None,
            stop_signalled_at: None,
            spare: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_only_moves_forward_and_never_from_an_end_but_for_a_ready_one_that_did_not_hold() {
        for from in DeploymentStatus::ALL {
            for to in DeploymentStatus::ALL {
                let legal = match (from, to) {
                    (DeploymentStatus::Ready, DeploymentStatus::Failed) => true,
                    (from, to) => !from.is_end() && (from as u8) < (to as u8),
                };
                assert_eq!(from.may_become(to), legal, "{from:?} to {to:?}");
            }
        }
    }
}
