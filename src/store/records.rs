//! What the store keeps: one type for each kind of row, and the words that stand in its columns.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::ids::{
    AppName, DeploymentId, EnvironmentName, EphemeralLabel, InstanceId, OperationId, TokenId, WorkspaceName,
};
use crate::settings::{AppSettings, Replicas};

/// What is deployed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    pub workspace: WorkspaceName,
    pub name: AppName,
    pub hosts: Vec<HostRow>,
    /// With its env vars, which the store encrypts.
    pub settings: AppSettings,
    pub origin: Origin,
}

/// Who says what an app is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The configuration file; a reload that no longer names it hands it to the API.
    Config,
    Api,
}

/// Whether clients reach an app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "mode")]
pub enum Access {
    #[default]
    Open,
    /// New requests wait, up to that time and that many; they are refused past either.
    Paused {
        #[schema(value_type = String, format = DateTime)]
        until: Timestamp,
        queue: u32,
    },
    /// Requests are refused but from the networks in `allow`; the instances go on running.
    Maintenance {
        message: Option<String>,
        #[schema(value_type = Vec<String>)]
        allow: Vec<IpNet>,
    },
    /// Requests are refused, and the instances do not run.
    Disabled,
}

/// A host name of an app: a pattern in text form, checked by whoever made it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct HostRow {
    /// `www.example.com`, `*.example.com` or `*`.
    pub host: String,
    /// `/` or a path prefix.
    pub path: String,
    /// Whether the prefix is taken off before the path goes upstream.
    pub strip: bool,
}

/// A place for deployments: production, or a preview of something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    pub app: AppName,
    pub name: EnvironmentName,
    pub kind: EnvironmentKind,
    pub live: Option<DeploymentId>,
    /// Somebody rolled back; deploys do not go live until a promote.
    pub rolled_back: bool,
    /// Counts the changes that clients can see.
    pub generation: u64,
    /// To how many instances it was scaled; the app's own setting if nobody did.
    pub replicas: Option<Replicas>,
    /// Another version that a share of the visitors gets, while a cutover goes in steps.
    pub split: Option<Split>,
}

/// A share of the visitors gets another version than the live one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// Whose step it is.
    pub operation: OperationId,
    pub to: DeploymentId,
    /// In a hundred.
    pub share: u8,
    /// When the share was committed.
    pub since: Timestamp,
    /// JSON of `deploy::Figures`: what the new version is held against.
    pub baseline: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EnvironmentKind {
    Production,
    Preview,
}

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

/// Why something failed, for a person: cause, evidence, remedy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// Stable, for programs.
    pub code: String,
    /// One sentence.
    pub cause: String,
    /// What was seen: last probe, exit code, log lines.
    #[serde(default)]
    pub evidence: Vec<String>,
    /// What to do about it.
    #[serde(default)]
    pub remedy: Option<String>,
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
    /// Not yet one of the replicas, or no longer. Given when the row is made; only [`super::Store::resize`] changes it.
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

/// What somebody asked for, about to be journaled.
#[derive(Clone, Debug)]
pub struct NewOperation {
    pub id: OperationId,
    pub kind: OperationKind,
    pub app: AppName,
    pub environment: EnvironmentName,
    /// What it is about, if that is there already.
    pub deployment: Option<DeploymentId>,
    /// What was asked for, as JSON, without secrets.
    pub request: String,
    pub actor: String,
    pub idempotency: Option<IdempotencyKey>,
    pub at: Timestamp,
}

/// A client's own name for a call, and a digest over what it asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    pub key: String,
    pub fingerprint: String,
}

/// What a call was answered with.
#[derive(Clone, PartialEq, Eq)]
pub struct KeptAnswer {
    /// Of HTTP.
    pub status: u16,
    pub content_type: Option<String>,
    /// May hold what is secret.
    pub body: Vec<u8>,
}

impl std::fmt::Debug for KeptAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptAnswer").field("status", &self.status).finish_non_exhaustive()
    }
}

/// The answer to a new operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    New,
    /// The same call was made before; this is its operation.
    Repeated(OperationId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OperationKind {
    Deploy,
    Swap,
    Rollback,
    Promote,
    Scale,
    Enable,
    /// Start a version that is in standby.
    Wake,
    /// A version was put into standby. Noted once it is done; nobody submits it.
    Standby,
    /// A version was taken away. Noted as well.
    Archive,
}

/// One journaled run of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    pub id: OperationId,
    pub kind: OperationKind,
    pub app: AppName,
    pub environment: EnvironmentName,
    pub deployment: Option<DeploymentId>,
    pub request: String,
    pub actor: String,
    pub state: OperationState,
    pub cancel_requested: bool,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    /// JSON of `deploy::cutover::Cutover`, once a swap of it was committed: it is resumed forward.
    pub cutover: Option<String>,
    pub failure: Option<Failure>,
    /// JSON of the receipt.
    pub receipt: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    Queued,
    Running,
    Succeeded,
    /// It worked; something around it did not and is tried again.
    SucceededWithWarnings,
    /// The new version did not hold; the old one serves.
    RolledBack,
    Failed,
    Superseded,
    Cancelled,
}

/// How an operation ended.
#[derive(Clone, Debug)]
pub struct OperationEnd {
    /// One of the states after `Running`.
    pub state: OperationState,
    pub failure: Option<Failure>,
    pub receipt: Option<String>,
    pub at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    pub name: String,
    #[schema(value_type = String, format = DateTime)]
    pub began_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    pub outcome: Option<StepOutcome>,
    pub detail: Option<String>,
}

#[derive(Clone, Debug)]
pub struct StepEnd {
    pub outcome: StepOutcome,
    pub detail: Option<String>,
    pub at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StepOutcome {
    Done,
    Failed,
    Skipped,
}

/// Something worth following, about to be written.
#[derive(Clone, Debug)]
pub struct NewEvent {
    pub operation: OperationId,
    pub kind: EventKind,
    pub text: String,
    pub at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    pub id: i64,
    pub operation: OperationId,
    pub kind: EventKind,
    /// For people; for `step-began` the step's name, for `step-ended` name and outcome.
    pub text: String,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    StepBegan,
    StepEnded,
    /// A line of progress.
    Progress,
    /// Clients are served by the new version from here on.
    Cutover,
    Warning,
    /// The operation's last.
    Ended,
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

/// All that changes when a version that was in standby serves again.
#[derive(Clone, Debug)]
pub struct WakePlan {
    pub deployment: DeploymentId,
    /// As they were seen ready.
    pub instances: Vec<InstanceRow>,
    /// When it goes to rest again; replaces any that it has. `None` leaves that alone.
    pub rest: Option<Timer>,
}

/// One route: host pattern and path prefix → deployment, and what moves it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RouteRow {
    pub host: HostRow,
    pub sticky: Sticky,
    pub app: AppName,
    pub environment: EnvironmentName,
    /// `None` while nothing was ever live there.
    pub deployment: Option<DeploymentId>,
}

/// What a route sticks to, and so what moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Sticky {
    /// The live pointer.
    Live,
    /// The newest of the environment.
    Environment,
    /// The branch's newest.
    Branch,
    Deployment,
    Commit,
    Ephemeral,
}

/// A change of desired state at a later time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    pub deployment: DeploymentId,
    /// Makes this arming different from an earlier and a later one.
    pub nonce: String,
    pub state: DesiredState,
    pub due: Timestamp,
}

/// What a due timer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fired {
    Done,
    /// Replaced or cleared meanwhile: no effect, and that is right.
    NotArmed,
    /// The deployment is live: the timer is removed and nothing else changed.
    IsLive,
}

/// An API token; its secret is only known as a hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub id: TokenId,
    pub name: String,
    /// Keyed blake3 of the secret.
    pub hash: Vec<u8>,
    pub scopes: Vec<String>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
}

/// Who did what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// Set by the store.
    pub id: i64,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub actor: String,
    /// `POST /v1/apps/{app}/deployments`
    pub action: String,
    /// What it was done to: `web/production`.
    pub target: String,
    /// HTTP status of the answer.
    pub status: u16,
    pub operation: Option<OperationId>,
}

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

impl OperationState {
    /// Whether it is over.
    #[must_use]
    pub const fn is_end(self) -> bool {
        match self {
            Self::Queued | Self::Running => false,
            Self::Succeeded
            | Self::SucceededWithWarnings
            | Self::RolledBack
            | Self::Failed
            | Self::Superseded
            | Self::Cancelled => true,
        }
    }

    /// Whether what was asked for is the case.
    #[must_use]
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Succeeded | Self::SucceededWithWarnings)
    }
}

impl Failure {
    /// A failure with a stable code and one sentence.
    #[must_use]
    pub fn new(code: &str, cause: impl Into<String>) -> Self {
        Self { code: code.to_owned(), cause: cause.into(), ..Self::default() }
    }

    /// With what was seen.
    #[must_use]
    pub fn seen(mut self, evidence: impl IntoIterator<Item = String>) -> Self {
        self.evidence.extend(evidence);
        self
    }

    /// With what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// The env vars of an app by name, as the store encrypts them.
pub type Env = BTreeMap<String, crate::settings::Secret>;

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
