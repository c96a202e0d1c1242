//! Journaled runs of commands, and what is told of them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::ids::{AppName, DeploymentId, EnvironmentName, OperationId};

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

impl std::fmt::Debug for KeptAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptAnswer").field("status", &self.status).finish_non_exhaustive()
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
