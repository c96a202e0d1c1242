//! All that one transaction changes, where it is more than a row.

use super::{InstanceRow, RouteRow, Timer};
use crate::clock::Timestamp;
use crate::ids::{AppName, DeploymentId, EnvironmentName, InstanceId, OperationId};
use crate::settings::Replicas;

/// All that one swap changes.
#[derive(Clone, Debug)]
pub struct SwapPlan {
    pub operation: OperationId,
    pub app: AppName,
    pub environment: EnvironmentName,
    pub to: DeploymentId,
    /// Of the environment, when the plan was made.
    pub expected_generation: u64,
    /// The new value of the flag.
    pub rolled_back: bool,
    /// Routes that lead to `to` from now on.
    pub routes: Vec<RouteRow>,
    /// Timer of the deployment that was live until now; replaces any that it has, and all that the operation has armed.
    pub retire: Option<Timer>,
    /// What was stopped for the swap: it is in standby from its commit on, so that nobody takes it for one that ended.
    pub stopped: Option<DeploymentId>,
    /// With it what else runs and is not live, as after a rollback, goes to rest, each after its own time, by timers of
    /// this nonce, which the operation's id ends.
    pub left_over: Option<String>,
    /// JSON of `deploy::cutover::Cutover`: what a resume needs.
    pub cutover: String,
    pub at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwapCommitted {
    /// The environment's new one.
    pub generation: u64,
    /// What was live until now.
    pub from: Option<DeploymentId>,
}

/// All that changes with a number of instances.
#[derive(Clone, Debug)]
pub struct Resize {
    pub app: AppName,
    pub environment: EnvironmentName,
    /// Of the environment; `None` leaves it as it is.
    pub replicas: Option<Replicas>,
    pub deployment: Option<Resized>,
    /// The operation that it belongs to, and what a resume needs to know: it is resumed forward from then on.
    pub journal: Option<(OperationId, String)>,
    pub at: Timestamp,
}

/// The deployment that has another number of instances from then on.
#[derive(Clone, Debug)]
pub struct Resized {
    pub id: DeploymentId,
    pub replicas: Replicas,
    pub state_hash: Option<String>,
    /// Instances that are spare no longer.
    pub joining: Vec<InstanceId>,
    /// Instances that are spare from then on.
    pub leaving: Vec<InstanceId>,
}

/// All that changes when a version that was in standby serves again.
#[derive(Clone, Debug)]
pub struct WakePlan {
    pub deployment: DeploymentId,
    /// As they were seen ready.
    pub instances: Vec<InstanceRow>,
    /// When it goes to rest again; replaces any that it has. `None` leaves that alone.
    pub rest: Option<Timer>,
}
