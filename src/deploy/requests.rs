//! What can be asked of the engine, and what of it is journaled.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::progressive::Steps;
use crate::ids::{AppName, DeploymentId, EnvironmentName, EphemeralLabel};
use crate::settings::{Delay, Percent, Replicas};
use crate::store::GitFacts;

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

/// What an operation is told, as it is journaled.
#[derive(Debug, Serialize)]
pub(super) struct InSteps<Flags> {
    #[serde(flatten)]
    pub(super) flags: Flags,
    #[serde(flatten)]
    pub(super) steps: Steps,
}

/// What of a [`DeployRequest`] still matters once its deployment is written down.
#[expect(clippy::struct_excessive_bools, reason = "each is an answer to a question of its own")]
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct DeployFlags {
    pub(super) force: bool,
    pub(super) cutover: bool,
    /// Goes live even if the environment is rolled back, and lets deploys go live again.
    #[serde(default)]
    pub(super) promote: bool,
    /// It starts with its first request.
    #[serde(default)]
    pub(super) lazy: bool,
    /// Where there are too many ephemeral ones it ends another one.
    #[serde(default = "yes")]
    pub(super) evict: bool,
}

/// What of a [`SwapRequest`] is decided when it runs.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct SwapFlags {
    pub(super) expected_generation: Option<u64>,
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

fn root() -> String {
    "/".to_owned()
}
