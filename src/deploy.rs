//! Decides what runs and what is served: the operation engine.
//!
//! A swap, as a reader follows it: [`Orchestrator::submit`] → `executor` → `live` → `cutover` → `watching` → `drain` → `receipt`.
//!
//! # Invariants
//! 1. Operations of one (app, environment) run one after the other, in the order in which they were accepted.
//! 2. The order of a cutover is `commit → publish → close gates → answer → drain → stop`; `cutover` keeps it by types.
//! 3. An instance gets its stop signal only when its gate is closed and nothing is in flight, or its deadline has passed.
//! 4. What is journaled before a crash is finished or undone after it; nothing is done that was not journaled.

mod access;
mod asked;
mod behind;
mod clone;
mod concealed;
mod cutover;
mod doctor;
mod drain;
mod engine;
mod environments;
mod evidence;
mod executor;
mod handover;
mod health;
mod history;
mod host_change;
mod hosts;
mod hours;
mod idle;
mod instances;
mod links;
mod live;
mod moves;
mod names;
mod preview;
mod progressive;
mod published;
mod publisher;
mod readiness;
pub mod receipt;
mod reconcile;
mod release;
mod removal;
mod renaming;
mod restarts;
mod retired;
mod revive;
mod scale;
mod schedule;
pub mod steps;
mod submit;
mod take_back;
mod tls;
mod urls;
mod version;
mod volumes;
mod wake;
mod warm;
mod watching;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

pub use self::access::{MaintenanceRequest, PauseRequest};
pub use self::doctor::{Finding, FindingKind};
use self::engine::Engine;
pub use self::evidence::{Evidence, Figures};
pub use self::host_change::HostChange;
pub use self::moves::Action;
pub use self::published::Published;
pub use self::publisher::{ServiceRoute, parse_host};
pub use self::receipt::{Counts, Receipt, RestReceipt, ScaleReceipt};
pub use self::urls::Urls;
pub use self::volumes::VolumeView;
use crate::clock::Clock;
use crate::ids::{AppName, DeploymentId, EnvironmentName, EphemeralLabel, InstanceId, OperationId};
use crate::routing::{HostName, Routing};
use crate::runtime::Runtime;
use crate::settings::{Delay, Percent, Replicas, RuntimeKind};
use crate::store::{GitFacts, IdempotencyKey, Store, StoreError};
use crate::telemetry::ControlStats;

/// How the engine is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Generated host names live under it.
    pub apex: Option<HostName>,
    /// How a host name becomes a URL.
    pub urls: Urls,
    /// Whether there is a listener for https.
    pub https: bool,
    /// Time to live of an ephemeral deployment that names none.
    pub ephemeral_ttl: Delay,
    /// Ephemeral deployments of one app; past that the one that expires soonest goes.
    pub ephemeral_max_per_app: usize,
    /// Between two looks at all that has expired, beside the timers of each.
    pub ephemeral_sweep_every: Delay,
    /// Without a request for so long a preview goes to standby, where its app says nothing else; zero: never.
    pub idle_after: Delay,
    /// Labels that nobody may have, beside `www` and `admin`.
    pub reserved_labels: Vec<String>,
    /// For how long operations, deployments that serve nothing any more, and the audit trail are kept; zero: for good.
    pub history_keep: Delay,
    /// Who may see previews of apps that do not say so themselves.
    pub preview_auth: Option<crate::settings::PreviewAuthSettings>,
    /// What is counted of its work.
    pub stats: Arc<ControlStats>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            apex: None,
            urls: Urls::default(),
            https: false,
            ephemeral_ttl: Delay::seconds(24 * 60 * 60),
            ephemeral_max_per_app: 10,
            ephemeral_sweep_every: Delay::seconds(5 * 60),
            idle_after: Delay::seconds(60 * 60),
            reserved_labels: Vec::new(),
            preview_auth: None,
            history_keep: Delay::seconds(90 * 24 * 60 * 60),
            stats: Arc::default(),
        }
    }
}

/// What can be asked of the engine.
#[derive(Clone, Debug)]
pub enum Command {
    /// A new version of an app.
    Deploy(DeployRequest),
    /// Make a ready deployment live.
    Swap(SwapRequest),
    /// Make an earlier version live, and keep deploys from going live.
    Rollback(RollbackRequest),
    /// Make a version live, or confirm that the live one stays, and let deploys go live again.
    Promote(PromoteRequest),
    /// Another number of instances of the live version.
    Scale(ScaleRequest),
    /// Start a disabled app again, and open it once it is ready.
    Enable(AppName),
    /// Start a version that is in standby; nothing where it runs.
    Wake(DeploymentId),
}

/// A new version of an app. What it does not name comes from the app's settings.
#[expect(clippy::struct_excessive_bools, reason = "each is an answer to a question of its own")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeployRequest {
    /// Set by the route, not by the body.
    #[serde(skip)]
    pub app: Option<AppName>,
    /// `production` if not given. One that is not there is made, for previews: with what is live in it, and host names
    /// under `apex`, of its own.
    pub environment: Option<EnvironmentName>,
    /// Image reference; replaces the app's.
    pub image: Option<String>,
    /// Command and arguments; replaces the app's.
    pub command: Option<Vec<String>>,
    /// Deploy that version again instead of what the app says: its settings, env vars, git facts and exact image.
    pub version: Option<DeploymentId>,
    /// Added to the env vars of the app or version, replacing those of the same name. Never shown again.
    #[serde(skip_serializing)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub env: crate::store::Env,
    pub git: GitFacts,
    /// Makes it an ephemeral deployment: never live, reached at `<label>.<any host of the app>`.
    pub label: Option<EphemeralLabel>,
    /// Instead of a label: what one is made of, as the name of a branch, in lower case and with hyphens for `_`, `/` and
    /// `.`, without what cannot be in one.
    pub label_of: Option<String>,
    /// Of an ephemeral deployment; the configured default if not given.
    pub ttl: Option<Delay>,
    /// Of an ephemeral deployment, where there are too many: `false` refuses it instead of ending another one.
    pub evict: bool,
    /// Of an ephemeral deployment: it is reached at once, and starts with its first request.
    pub lazy: bool,
    /// Deploy even if an equal deployment is live.
    pub force: bool,
    /// `false`: become ready on its own host names and do not take the traffic.
    pub cutover: bool,
    /// `false`: be refused with `operation_in_progress` instead of waiting in line.
    pub queue: bool,
    /// Shares of the visitors that get the new version one after the other, rising, the last one `100%`: each stays on
    /// its version by a cookie. None: all at once.
    pub steps: Vec<Percent>,
    /// How long each step before the last lasts; a minute if not given.
    pub step_for: Option<Delay>,
}

impl Default for DeployRequest {
    fn default() -> Self {
        Self {
            app: None,
            environment: None,
            image: None,
            command: None,
            version: None,
            env: crate::store::Env::new(),
            git: GitFacts::default(),
            label: None,
            label_of: None,
            ttl: None,
            evict: true,
            lazy: false,
            force: false,
            cutover: true,
            queue: true,
            steps: Vec::new(),
            step_for: None,
        }
    }
}

/// What an operation is told, as it is journaled.
#[derive(Debug, Serialize)]
struct InSteps<Flags> {
    #[serde(flatten)]
    flags: Flags,
    #[serde(flatten)]
    steps: progressive::Steps,
}

/// What of a [`DeployRequest`] still matters once its deployment is written down.
#[expect(clippy::struct_excessive_bools, reason = "each is an answer to a question of its own")]
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct DeployFlags {
    force: bool,
    cutover: bool,
    /// Goes live even if the environment is rolled back, and lets deploys go live again.
    #[serde(default)]
    promote: bool,
    /// It starts with its first request.
    #[serde(default)]
    lazy: bool,
    /// Where there are too many ephemeral ones it ends another one.
    #[serde(default = "yes")]
    evict: bool,
}

/// What of a [`SwapRequest`] is decided when it runs.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SwapFlags {
    expected_generation: Option<u64>,
}

/// Make a ready deployment live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SwapRequest {
    /// Set by the route, not by the body.
    #[serde(skip)]
    pub app: Option<AppName>,
    /// `production` if not given.
    #[serde(default)]
    pub environment: Option<EnvironmentName>,
    pub deployment: DeploymentId,
    /// Refuse if the environment's generation is another one.
    #[serde(default)]
    pub expected_generation: Option<u64>,
    /// `false`: be refused with `operation_in_progress` instead of waiting in line.
    #[serde(default = "yes")]
    pub queue: bool,
    /// Shares of the visitors that get it one after the other, rising, the last one `100%`: each stays on its version
    /// by a cookie. None: all at once.
    #[serde(default)]
    pub steps: Vec<Percent>,
    /// How long each step before the last lasts; a minute if not given.
    #[serde(default)]
    pub step_for: Option<Delay>,
}

/// Go back to an earlier version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RollbackRequest {
    /// Set by the route, not by the body.
    #[serde(skip)]
    pub app: Option<AppName>,
    /// `production` if not given.
    pub environment: Option<EnvironmentName>,
    /// What is expected to be live; the live one if not given.
    pub source: Option<DeploymentId>,
    /// The newest earlier one that was live if not given.
    pub target: Option<DeploymentId>,
    /// `false`: be refused with `operation_in_progress` instead of waiting in line.
    pub queue: bool,
}

impl Default for RollbackRequest {
    fn default() -> Self {
        Self { app: None, environment: None, source: None, target: None, queue: true }
    }
}

/// Make a version live, and let deploys go live again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PromoteRequest {
    /// Set by the route, not by the body.
    #[serde(skip)]
    pub app: Option<AppName>,
    /// `production` if not given.
    #[serde(default)]
    pub environment: Option<EnvironmentName>,
    /// The live one, after a rollback: no host moves, and deploys go live again.
    #[serde(default)]
    pub deployment: Option<DeploymentId>,
    /// Instead of a deployment: what this label leads to becomes a new deployment, of the same image, with the
    /// environment's own settings and env vars.
    #[serde(default)]
    pub from_preview: Option<EphemeralLabel>,
    /// `false`: be refused with `operation_in_progress` instead of waiting in line.
    #[serde(default = "yes")]
    pub queue: bool,
}

/// Another number of instances of the version that is live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScaleRequest {
    /// Set by the route, not by the body.
    #[serde(skip)]
    pub app: Option<AppName>,
    /// `production` if not given.
    #[serde(default)]
    pub environment: Option<EnvironmentName>,
    /// 1 to 100. Later deploys have as many too, until the app's own setting is changed.
    pub replicas: Replicas,
}

/// Start a version that is in standby: there is nothing to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WakeRequest {}

/// Change the desired state of a deployment at a later time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleRequest {
    pub state: ScheduledState,
    /// From now; at once if not given.
    #[serde(default)]
    pub delay: Delay,
    /// `false`: leave alone what is pending already.
    #[serde(default = "yes")]
    pub overwrite: bool,
}

/// What a deployment can be scheduled to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduledState {
    /// Woken, if it is in standby then.
    Running,
    /// Stopped, kept, can be made live again.
    Standby,
    /// Removed; it can be deployed again.
    Archived,
}

impl From<ScheduledState> for crate::store::DesiredState {
    fn from(state: ScheduledState) -> Self {
        match state {
            ScheduledState::Running => Self::Running,
            ScheduledState::Standby => Self::Standby,
            ScheduledState::Archived => Self::Archived,
        }
    }
}

fn yes() -> bool {
    true
}

/// What becomes of an app's volumes when it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volumes {
    /// An app of the same name finds them again.
    Keep,
    Remove,
}

/// Another name for an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameRequest {
    pub name: AppName,
}

/// Move the expiry of an ephemeral deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtendRequest {
    /// From now.
    pub ttl: Delay,
}

/// Sign a link to a preview.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkRequest {
    /// How long it is good, from now.
    #[serde(rename = "for")]
    pub good_for: Delay,
}

/// Sign a link to what a policy opens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignRequest {
    pub host: String,
    /// It opens this path, and what is below it; `/` if not given.
    #[serde(default = "root")]
    pub path: String,
    /// How long it is good, from now.
    #[serde(rename = "for")]
    pub good_for: Delay,
}

fn root() -> String {
    "/".to_owned()
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller {
    /// For the audit trail: `uid 0`, `token ci`, `config`.
    pub actor: String,
    pub idempotency: Option<IdempotencyKey>,
}

/// An accepted command.
#[derive(Clone, Debug)]
pub struct Submitted {
    pub operation: OperationId,
    pub deployment: Option<DeploymentId>,
    /// The same idempotency key, or an equal deploy that still runs, had begun this operation before.
    pub repeated: bool,
    progress: Option<watch::Receiver<Progress>>,
}

/// How far an operation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    Running,
    /// Clients are served by the new version, and it held for `watch`; the old one drains.
    CutOver,
    Ended,
}

/// Why a command is not accepted. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    #[error("no app {app}")]
    AppNotFound { app: AppName },
    #[error("app {app} is disabled")]
    AppDisabled { app: AppName },
    #[error("app {app} is in maintenance")]
    AppInMaintenance { app: AppName },
    #[error("there is an app {app} already")]
    AppExists { app: AppName },
    #[error("no environment {environment} of app {app}")]
    EnvironmentNotFound { app: AppName, environment: EnvironmentName },
    #[error("production of app {app} goes with the app alone")]
    EnvironmentIsProduction { app: AppName },
    #[error("no deployment {deployment}")]
    DeploymentNotFound { deployment: DeploymentId },
    #[error("no operation {operation}")]
    OperationNotFound { operation: OperationId },
    #[error("deployment {deployment} belongs to another environment")]
    DifferentEnvironment { deployment: DeploymentId },
    #[error("deployment {deployment} is not ready: it is {status}")]
    DeploymentNotReady { deployment: DeploymentId, status: String },
    #[error("deployment {deployment} is live already")]
    DeploymentIsLive { deployment: DeploymentId },
    #[error("{0}")]
    Gate(Gate),
    #[error("there is no earlier deployment that was live and can serve")]
    NothingToGoBackTo,
    #[error("the app has {count} ephemeral deployments, and may have no more")]
    TooManyEphemerals { count: usize },
    #[error("label {label} of app {app} leads to no deployment")]
    LabelNotFound { app: AppName, label: EphemeralLabel },
    #[error("label {label} of app {app} is not opened by links")]
    LinksOff { app: AppName, label: EphemeralLabel },
    #[error("environment {environment} of app {app} is not opened by links")]
    EnvironmentLinksOff { app: AppName, environment: EnvironmentName },
    #[error("no policy wants a signed link at {place}")]
    SignedLinksOff { place: String },
    #[error("operation {operation} is not between the steps of a cutover")]
    NotInSteps { operation: OperationId },
    #[error("deployment {deployment} is not ephemeral, and does not expire")]
    NotEphemeral { deployment: DeploymentId },
    #[error("generation {found} is not the expected {expected}")]
    GenerationChanged { expected: u64, found: u64 },
    #[error("operation {holder} is in progress")]
    OperationInProgress { holder: OperationId },
    #[error("{waiting} operations wait for this environment already")]
    QueueFull { waiting: usize },
    #[error("{detail}")]
    Invalid { field: String, detail: String, remedy: Option<String> },
    #[error("the app has no host {host}")]
    HostNotFound { host: String },
    #[error("host {host} belongs to app {owner}")]
    HostTaken { host: String, owner: AppName },
    #[error("no volume {place}")]
    VolumeNotFound { place: String },
    #[error("deployment {by} runs with volume {place}, or can")]
    VolumeInUse { place: String, by: DeploymentId },
    #[error("the next version of app {app} would find volume {place}: its settings name it")]
    VolumeDeclared { place: String, app: AppName },
    #[error("the volume is not removed")]
    VolumeNotRemoved {
        #[source]
        source: crate::runtime::RuntimeError,
    },
    #[error("the runtime is not available")]
    RuntimeUnavailable {
        #[source]
        source: crate::runtime::RuntimeError,
    },
    #[error("the store is not available")]
    Store {
        #[source]
        source: StoreError,
    },
    #[error("lockgate is shutting down")]
    ShuttingDown,
}

/// What keeps a rollback or a promote from being accepted, or from running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Gate {
    #[error("source and target are the same deployment")]
    SameDeployment,
    #[error("the source is not live")]
    SourceNotLive,
    #[error("the app has no host names, so there is nothing to move")]
    NoRoutes,
    #[error("the deployment still drains")]
    DeploymentDraining,
    #[error("the deployment does not belong to production")]
    DeploymentNotProduction,
    #[error("nothing is live: swap the deployment in instead")]
    NoLiveDeployment,
    #[error("the deployment is live already")]
    DeploymentIsLive,
}

impl Denied {
    /// Stable, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::AppNotFound { .. } => "app_not_found",
            Self::AppExists { .. } => "app_exists",
            Self::AppDisabled { .. } => "app_disabled",
            Self::AppInMaintenance { .. } => "app_maintenance",
            Self::EnvironmentNotFound { .. } => "environment_not_found",
            Self::EnvironmentIsProduction { .. } => "environment_is_production",
            Self::DeploymentNotFound { .. } | Self::NothingToGoBackTo => "deployment_not_found",
            Self::OperationNotFound { .. } => "operation_not_found",
            Self::DifferentEnvironment { .. } => "different_environment",
            Self::DeploymentNotReady { .. } => "deployment_not_ready",
            Self::DeploymentIsLive { .. } | Self::Gate(Gate::DeploymentIsLive) => "deployment_is_live",
            Self::Gate(Gate::SameDeployment) => "same_deployment",
            Self::Gate(Gate::SourceNotLive) => "source_not_live",
            Self::Gate(Gate::NoRoutes) => "no_routes",
            Self::Gate(Gate::DeploymentDraining) => "deployment_draining",
            Self::Gate(Gate::DeploymentNotProduction) => "deployment_not_production",
            Self::Gate(Gate::NoLiveDeployment) => "no_live_deployment",
            Self::TooManyEphemerals { .. } => "too_many_ephemerals",
            Self::LabelNotFound { .. } => "ephemeral_unknown",
            Self::LinksOff { .. } | Self::EnvironmentLinksOff { .. } => "preview_links_off",
            Self::SignedLinksOff { .. } => "signed_links_off",
            Self::NotEphemeral { .. } => "not_ephemeral",
            Self::NotInSteps { .. } => "not_in_steps",
            Self::GenerationChanged { .. } => "generation_changed",
            Self::OperationInProgress { .. } => "operation_in_progress",
            Self::QueueFull { .. } => "queue_full",
            Self::Invalid { .. } => "invalid",
            Self::HostNotFound { .. } => "host_not_found",
            Self::HostTaken { .. } => "host_taken",
            Self::VolumeNotFound { .. } => "volume_not_found",
            Self::VolumeInUse { .. } => "volume_in_use",
            Self::VolumeDeclared { .. } => "volume_declared",
            Self::VolumeNotRemoved { .. } => "volume_not_removed",
            Self::RuntimeUnavailable { .. } => "runtime_unavailable",
            Self::Store { source: StoreError::KeyReused { .. } } => "idempotency_key_reused",
            Self::Store { .. } => "store_unavailable",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

/// An instance with what is in flight at it, as the data plane counts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceView {
    pub id: InstanceId,
    pub app: AppName,
    pub environment: EnvironmentName,
    pub deployment: DeploymentId,
    pub phase: crate::store::InstancePhase,
    pub healthy: bool,
    pub address: Option<String>,
    pub requests: u64,
    pub streams: u64,
}

/// The last lines that an instance wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceLogs {
    pub instance: InstanceId,
    pub lines: Vec<String>,
}

/// The engine's handle: cheap to clone, safe to share.
#[derive(Clone, Debug)]
pub struct Orchestrator {
    engine: Arc<Engine>,
}

impl Orchestrator {
    /// [`Published::of_store`] and [`Published::begin`] in one.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn start(
        store: Arc<dyn Store>,
        runtime: Arc<dyn Runtime>,
        routing: Arc<Routing>,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Result<Self, StoreError> {
        Published::of_store(store, routing, clock).await?.begin(runtime, options).await
    }

    /// Replaces the static services of the configuration; their routes follow at once.
    pub fn set_services(&self, services: Vec<ServiceRoute>) {
        self.engine.publisher.set_services(services);
    }

    /// Which runtime it works with.
    #[must_use]
    pub fn runtime_kind(&self) -> RuntimeKind {
        self.engine.runtime.kind()
    }

    /// Stops and removes every instance of this installation, for good. Nothing may be served any more.
    ///
    /// # Errors
    /// What the runtime says; the others are removed all the same.
    pub async fn remove_instances(
        &self,
        grace: std::time::Duration,
    ) -> Result<(), crate::runtime::RuntimeError> {
        let runtime = &self.engine.runtime;
        let removals = runtime.list().await?.into_iter().map(|instance| async move {
            runtime.stop(&instance.id, None, grace).await?;
            runtime.remove(&instance.id).await
        });
        futures_util::future::join_all(removals).await.into_iter().collect()
    }

    /// Begins nothing more, and returns when the engine's tasks have ended or `grace` is over. Instances go on; what is
    /// unfinished is resumed at the next start.
    pub async fn shutdown(&self, grace: std::time::Duration) {
        self.engine.stopping.cancel();
        self.engine.tasks.close();
        tokio::select! {
            () = self.engine.tasks.wait() => {}
            () = self.engine.clock.sleep(grace) => {}
        }
    }
}

impl Submitted {
    /// Waits until the operation has come at least that far, and returns how far. The operation does not depend on it.
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait and nothing else.
    pub async fn reached(&mut self, at_least: Progress) -> Progress {
        match &mut self.progress {
            None => Progress::Ended,
            Some(progress) => {
                progress.wait_for(|now| *now >= at_least).await.map_or(Progress::Ended, |now| *now)
            }
        }
    }
}
