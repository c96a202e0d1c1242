//! The wire types of the admin API, shared by the server and the command line. Nothing secret is in them: env vars
//! appear by name alone.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::clock::Timestamp;
use crate::deploy::{Finding, InstanceLogs, InstanceView};
use crate::ids::{AppName, DeploymentId, EnvironmentName, EphemeralLabel, InstanceId, OperationId, TokenId};
use crate::settings::{AppSettings, Enforcement, Replicas, Secret};
use crate::store::{self, AuditEntry, EnvironmentKind, InstancePhase, OperationKind, Origin, Step, Sticky};

pub use crate::deploy::{
    Action, Counts, DeployRequest, ExtendRequest, LinkRequest, MaintenanceRequest, PauseRequest,
    PromoteRequest, Receipt, RenameRequest, RestReceipt, RollbackRequest, ScaleReceipt, ScaleRequest,
    ScheduleRequest, ScheduledState, SignRequest, SwapRequest, VolumeView as Volume, WakeRequest,
};
pub use crate::store::{
    Access, DeploymentStatus, DesiredState, Event, EventKind, Failure, GitFacts, HostRow, OperationState,
};

/// A list, and where it goes on.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct List<T> {
    pub items: Vec<T>,
    /// `offset` of the next piece; `null` at the end.
    pub next_offset: Option<u32>,
}

/// At most this many items are answered at once.
pub const LIMIT_MAX: u32 = 200;

/// Which piece of a list.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// 1 to 200.
    #[serde(default = "default_limit")]
    pub limit: u32,
    #[serde(default)]
    pub offset: u32,
}

fn default_limit() -> u32 {
    50
}

/// Which operations.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OperationsQuery {
    /// 1 to 200.
    #[serde(default = "default_limit")]
    pub limit: u32,
    #[serde(default)]
    pub offset: u32,
    /// Of this app alone.
    pub app: Option<AppName>,
    /// Of the environment of this name alone.
    pub environment: Option<EnvironmentName>,
}

/// Which volumes.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct VolumesQuery {
    /// 1 to 200.
    #[serde(default = "default_limit")]
    pub limit: u32,
    #[serde(default)]
    pub offset: u32,
    /// Of this app alone.
    pub app: Option<AppName>,
}

/// One of them.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct VolumeQuery {
    /// As the list has it.
    pub place: String,
}

/// Creates an app or replaces what it is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutApp {
    /// Host names: `www.example.com`, `*.example.com`, `*`.
    #[serde(default)]
    pub hosts: Vec<HostInput>,
    /// Env vars of the settings are written, never read back.
    #[serde(default)]
    pub settings: AppSettings,
    /// Names and values; a separate key so that clients can send what they cannot read.
    #[serde(default, skip_serializing)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub env: std::collections::BTreeMap<String, Secret>,
}

/// A signed link to a preview, or to what a policy keeps.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PreviewLink {
    /// Whoever has it may see what it leads to.
    pub url: String,
    #[schema(value_type = String, format = DateTime)]
    pub good_until: Timestamp,
}

/// A host name with its path prefix.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct HostInput {
    pub host: String,
    #[serde(default = "root")]
    pub path: String,
    /// Take the prefix off before the path goes upstream.
    #[serde(default)]
    pub strip: bool,
}

fn root() -> String {
    "/".to_owned()
}

/// Gives a host name's place to another one.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameHost {
    pub from: HostInput,
    pub to: HostInput,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct App {
    pub name: AppName,
    pub hosts: Vec<HostRow>,
    pub settings: AppSettings,
    /// Names only.
    pub env: Vec<String>,
    pub origin: Origin,
    /// Whether clients reach it.
    #[serde(default)]
    pub access: Access,
    /// At all of its instances, now.
    #[serde(default)]
    pub in_flight: Counts,
    pub environments: Vec<Environment>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Environment {
    pub name: EnvironmentName,
    pub kind: EnvironmentKind,
    pub live: Option<DeploymentId>,
    pub rolled_back: bool,
    pub generation: u64,
    /// To how many instances it was scaled; the app's own setting if nobody did.
    pub replicas: Option<Replicas>,
    /// While a cutover goes in steps.
    pub split: Option<Split>,
}

/// A share of the visitors gets another version than the live one.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Split {
    pub operation: OperationId,
    pub to: DeploymentId,
    /// In a hundred.
    pub share: u8,
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Deployment {
    pub id: DeploymentId,
    pub app: AppName,
    pub environment: EnvironmentName,
    pub sequence: u64,
    pub status: DeploymentStatus,
    pub desired_state: DesiredState,
    /// Whether the environment's live pointer is here.
    pub live: bool,
    pub settings: AppSettings,
    /// Names only.
    pub env: Vec<String>,
    pub git: GitFacts,
    /// What it is pinned to.
    pub digest: Option<String>,
    pub label: Option<EphemeralLabel>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    pub failure: Option<Failure>,
    pub operation: OperationId,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub live_at: Option<Timestamp>,
    /// Where it is or will be reached.
    pub url: Option<String>,
    /// What may be asked of it now.
    pub available_actions: Vec<Action>,
    /// A change of its desired state that is pending; one that nobody asked for spares what `min_warm` keeps running.
    pub scheduled: Option<Scheduled>,
}

/// A desired state for later.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Scheduled {
    pub state: DesiredState,
    #[schema(value_type = String, format = DateTime)]
    pub due: Timestamp,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    pub id: OperationId,
    pub kind: OperationKind,
    pub app: AppName,
    pub environment: EnvironmentName,
    pub deployment: Option<DeploymentId>,
    pub state: OperationState,
    /// The same call was made before, and this is its operation.
    #[serde(default)]
    pub repeated: bool,
    /// An equal deployment was live: nothing was done.
    pub noop: bool,
    pub actor: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    pub failure: Option<Failure>,
    pub receipt: Option<Receipt>,
    /// The receipt of a scaling.
    #[serde(default)]
    pub scaled: Option<ScaleReceipt>,
    /// Why a version went to rest or away outside a cutover, and what was cut.
    #[serde(default)]
    pub rested: Option<RestReceipt>,
    pub steps: Vec<Step>,
}

/// What is not as it should be.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Diagnosis {
    pub findings: Vec<Finding>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    pub id: InstanceId,
    pub app: AppName,
    pub environment: EnvironmentName,
    pub deployment: DeploymentId,
    pub phase: InstancePhase,
    pub healthy: bool,
    pub address: Option<String>,
    /// In flight now.
    pub requests: u64,
    pub streams: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Route {
    pub host: String,
    pub path: String,
    pub strip: bool,
    /// Of a route to an app, as are `app` and `environment`.
    pub sticky: Option<Sticky>,
    pub app: Option<AppName>,
    pub environment: Option<EnvironmentName>,
    pub deployment: Option<DeploymentId>,
    /// Of a route to a static service of the configuration.
    pub service: Option<String>,
    /// While a cutover goes in steps: who else is served.
    #[serde(default)]
    pub split: Option<RouteSplit>,
}

/// Another version that a share of the visitors gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteSplit {
    pub deployment: String,
    /// In a hundred.
    pub share: u8,
}

/// How a host name and path are resolved.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    pub host: String,
    pub path: String,
    /// Of the route table that answered.
    pub generation: u64,
    /// What was tried, in order.
    pub trail: Vec<String>,
    /// `null` if nothing serves it; then `code` says with which answer.
    pub deployment: Option<String>,
    pub app: Option<String>,
    pub label: Option<String>,
    pub targets: Vec<ExplainedTarget>,
    /// While a cutover goes in steps: the other version that a share of the visitors gets.
    #[serde(default)]
    pub split: Option<RouteSplit>,
    /// Of that version.
    #[serde(default)]
    pub split_targets: Vec<ExplainedTarget>,
    pub code: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ExplainedTarget {
    pub instance: InstanceId,
    pub address: String,
    pub healthy: bool,
    /// Whether its gate admits requests.
    pub open: bool,
    pub requests: u64,
    pub streams: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub version: String,
    pub lockgate: String,
    pub runtime: String,
    pub runtime_available: bool,
    /// How far instances are held to their `resources`.
    pub limits: Enforcement,
    pub apps: usize,
    pub routes: usize,
    /// Of the route table.
    pub generation: u64,
    pub requests: u64,
    pub streams: u64,
    /// Operations that have not ended.
    pub operations: Vec<OperationId>,
    pub listen: Vec<String>,
    /// Those that are offered over TLS.
    pub certificates: Vec<Certificate>,
}

/// A certificate that is offered over TLS.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Certificate {
    /// That it is offered for.
    pub names: Vec<String>,
    #[schema(value_type = String, format = DateTime)]
    pub not_after: Timestamp,
    /// It expires within 14 days, or has.
    pub expires_soon: bool,
}

/// Creates an API token.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    pub name: String,
    /// `read`, `deploy`, `admin`; each includes those before it.
    pub scopes: Vec<Scope>,
    /// Days until it is no longer valid; 90 if not given, 0 for never.
    #[serde(default)]
    pub expires_days: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    Read,
    Deploy,
    Admin,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Token {
    pub id: TokenId,
    pub name: String,
    pub scopes: Vec<String>,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// Shown once, when the token is made.
    pub secret: Option<String>,
    /// An earlier call with the same `Idempotency-Key` made it; the secret was in that answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeated: bool,
}

/// A line that an instance wrote: the data of a `line` event.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    pub instance: InstanceId,
    pub line: String,
}

/// Why an instance's lines end before the instance: the data of a `broken` event.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LogBroken {
    pub instance: InstanceId,
    pub detail: String,
}

/// An error, as `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    pub status: u16,
    /// Stable, for programs.
    pub code: String,
    /// The cause, in one sentence.
    pub title: String,
    /// What was seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
    /// What clients are served by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
}

/// What a reload of the configuration did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reloaded {
    /// Keys that changed, with their old and new values; secrets are not shown.
    pub changes: Vec<String>,
    /// Of those, what waits for a restart.
    pub needs_restart: Vec<String>,
}

pub type Audit = AuditEntry;
pub type Logs = InstanceLogs;

impl From<HostRow> for HostInput {
    fn from(row: HostRow) -> Self {
        Self { host: row.host, path: row.path, strip: row.strip }
    }
}

impl Deployment {
    /// As the store has it and its environment.
    #[must_use]
    pub fn of(
        found: store::Deployment,
        environment: Option<&store::Environment>,
        timer: Option<&store::Timer>,
        url: Option<String>,
        available_actions: Vec<Action>,
    ) -> Self {
        let digest = found
            .pinned
            .as_deref()
            .and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok())
            .and_then(|pinned| Some(pinned.get("digest")?.as_str()?.to_owned()));
        Self {
            live: environment.and_then(|environment| environment.live) == Some(found.id),
            id: found.id,
            app: found.app,
            environment: found.environment,
            sequence: found.sequence,
            status: found.status,
            desired_state: found.desired_state,
            env: found.settings.env.keys().cloned().collect(),
            settings: found.settings,
            git: found.git,
            digest,
            label: found.label,
            expires_at: found.expires_at,
            failure: found.failure,
            operation: found.operation,
            created_at: found.created_at,
            live_at: found.live_at,
            url,
            available_actions,
            scheduled: timer.map(|timer| Scheduled { state: timer.state, due: timer.due }),
        }
    }
}

impl Operation {
    /// As the store has it.
    #[must_use]
    pub fn of(found: store::Operation, steps: Vec<Step>, repeated: bool) -> Self {
        let noop =
            found.state.is_success() && found.failure.as_ref().is_some_and(|failure| failure.code == "noop");
        Self {
            id: found.id,
            kind: found.kind,
            app: found.app,
            environment: found.environment,
            deployment: found.deployment,
            state: found.state,
            repeated,
            noop,
            actor: found.actor,
            created_at: found.created_at,
            ended_at: found.ended_at,
            failure: found.failure,
            receipt: found.receipt.as_deref().and_then(|text| serde_json::from_str(text).ok()),
            scaled: found.receipt.as_deref().and_then(|text| serde_json::from_str(text).ok()),
            rested: found.receipt.as_deref().and_then(|text| serde_json::from_str(text).ok()),
            steps,
        }
    }
}

impl From<store::Environment> for Environment {
    fn from(found: store::Environment) -> Self {
        Self {
            name: found.name,
            kind: found.kind,
            live: found.live,
            rolled_back: found.rolled_back,
            generation: found.generation,
            replicas: found.replicas,
            split: found.split.map(Split::from),
        }
    }
}

impl From<store::Split> for Split {
    fn from(found: store::Split) -> Self {
        Self { operation: found.operation, to: found.to, share: found.share, since: found.since }
    }
}

impl From<InstanceView> for Instance {
    fn from(found: InstanceView) -> Self {
        Self {
            id: found.id,
            app: found.app,
            environment: found.environment,
            deployment: found.deployment,
            phase: found.phase,
            healthy: found.healthy,
            address: found.address,
            requests: found.requests,
            streams: found.streams,
        }
    }
}

impl From<store::RouteRow> for Route {
    fn from(row: store::RouteRow) -> Self {
        Self {
            host: row.host.host,
            path: row.host.path,
            strip: row.host.strip,
            sticky: Some(row.sticky),
            app: Some(row.app),
            environment: Some(row.environment),
            deployment: row.deployment,
            service: None,
            split: None,
        }
    }
}
