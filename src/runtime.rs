//! What starts and stops instances, and decides nothing.
//!
//! Two implementations with the same semantics: [`docker`] over the engine's socket, [`process`] where no
//! engine runs. Containers and processes go on while Lockgate restarts, and are found again by what
//! they are labelled with: see [`Runtime::list`].

pub mod docker;
mod lines;
pub mod process;
mod select;
mod sockets;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use futures_util::Stream;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use self::select::select;
use crate::clock::Timestamp;
use crate::ids::{AppName, DeploymentId, EnvironmentName, EphemeralLabel, InstanceId, OperationId};
use crate::settings::{Enforced, Enforcement, PullPolicy, ResourceSettings, RuntimeKind, StopSignal};

/// What a [`Runtime`] gives back.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, RuntimeError>> + Send + 'a>>;

/// Lines of output as they are written; ends with the instance. Dropping it ends the reading.
pub type Follow = Pin<Box<dyn Stream<Item = Result<String, RuntimeError>> + Send>>;

/// Starts and stops instances. Every call has a deadline of its own and is safe to repeat.
pub trait Runtime: Send + Sync + fmt::Debug + 'static {
    /// Which one it is: `Docker` or `Process`.
    fn kind(&self) -> RuntimeKind;

    /// Whether it answers, and what it says of itself (`Docker Engine 20.10.24, API 1.41`).
    fn ping(&self) -> Answer<'_, String>;

    /// How far it holds instances to their limits; an engine does it exactly.
    fn enforcement(&self) -> Enforcement {
        Enforcement { cpu: Enforced::Exactly, memory: Enforced::Exactly, pids: Enforced::Exactly }
    }

    /// Makes the image available and pins it. `progress` gets lines worth showing.
    /// Under `process` the image is the command: checks that it can be run.
    fn prepare<'a>(&'a self, source: &'a Source, progress: mpsc::Sender<String>) -> Answer<'a, Pinned>;

    /// Creates and starts one instance, labelled before it starts. Called again for an instance that is there
    /// already, it returns that one.
    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> Answer<'a, Instance>;

    /// Starts again one that ended and was kept; the address may be another. `spec` is what it was started with:
    /// a runtime keeps no secrets. One that runs already is returned as it is.
    fn restart<'a>(&'a self, spec: &'a InstanceSpec) -> Answer<'a, Instance>;

    /// What is known of one instance; `None` if there is no such container or process.
    fn inspect<'a>(&'a self, instance: &'a InstanceId) -> Answer<'a, Option<Instance>>;

    /// All that carry this installation's label, in whatever state.
    fn list(&self) -> Answer<'_, Vec<Instance>>;

    /// Signals, waits for `grace`, kills; without a grace it kills at once. Success if it does not run afterwards; stopping a stopped one is a success.
    fn stop<'a>(
        &'a self,
        instance: &'a InstanceId,
        signal: Option<StopSignal>,
        grace: Duration,
    ) -> Answer<'a, Exit>;

    /// Removes a stopped one and what only it used (its environment's network with the last reference).
    /// Removing what is not there is a success.
    fn remove<'a>(&'a self, instance: &'a InstanceId) -> Answer<'a, ()>;

    /// Removes the volumes of `scope` with what is in them. Those that an instance still has stay, and are an error.
    /// Removing what is not there is a success.
    fn remove_volumes<'a>(&'a self, scope: &'a VolumeScope) -> Answer<'a, ()>;

    /// Removes the volume of that [`StoredVolume::place`] with what is in it, if it carries this installation's mark. One that
    /// an instance still has stays, and is an error. Removing what is not there is a success.
    fn remove_volume<'a>(&'a self, place: &'a str) -> Answer<'a, ()>;

    /// All volumes that carry this installation's mark, whether an instance has them or not.
    fn volumes(&self) -> Answer<'_, Vec<StoredVolume>>;

    /// The last `lines` lines of its output, oldest first, also after it ended.
    fn logs<'a>(&'a self, instance: &'a InstanceId, lines: usize) -> Answer<'a, Vec<String>>;

    /// The last `lines` lines of its output, and those that it writes from then on. One that is restarted has ended.
    fn follow<'a>(&'a self, instance: &'a InstanceId, lines: usize) -> Answer<'a, Follow>;

    /// Where it listens, for whoever finds nobody where it should; a runtime that cannot tell says so.
    fn ports<'a>(&'a self, _instance: &'a InstanceId) -> Answer<'a, Ports> {
        Box::pin(async { Ok(Ports::Unknown) })
    }

    /// Names of instances whose state may have changed, as soon as it is known. A hint only: inspect before acting.
    /// The channel's other end is kept open across reconnects; [`Changed::All`] after one.
    fn watch(&self) -> mpsc::Receiver<Changed>;
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Image reference (`docker`).
    pub image: Option<String>,
    /// Command and arguments (`process`; replaces the image's under `docker` when not empty).
    pub command: Vec<String>,
    /// Where a relative command is looked for (`process`); Lockgate's own directory otherwise.
    pub directory: Option<String>,
    pub pull: PullPolicy,
}

/// A source that means the same at every start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// The image's id (`sha256:…`) under `docker`; a digest of the program's bytes, of its arguments, and of the
    /// files among them under `process`.
    pub digest: String,
    /// Whether the image brings its own health check.
    pub has_health_check: bool,
    /// The only port that the image exposes, if there is exactly one.
    pub exposed_port: Option<u16>,
}

/// All that one instance is made of. Built from an allow-list; nothing of an engine's options passes through.
#[derive(Clone, Debug)]
pub struct InstanceSpec {
    pub id: InstanceId,
    pub app: AppName,
    pub environment: EnvironmentName,
    pub deployment: DeploymentId,
    /// The operation that makes it, so that a late container of a crashed run is known.
    pub operation: OperationId,
    /// Of [`Pinned`].
    pub digest: String,
    /// `$PORT` in an argument becomes the port.
    pub command: Vec<String>,
    /// Working directory (`process`).
    pub directory: Option<String>,
    /// Inside the container. Under `process` `None` or a value alike: a free port is chosen.
    pub port: Option<u16>,
    /// Decrypted; `PORT` is added by the runtime.
    pub env: BTreeMap<String, String>,
    pub volumes: Vec<Volume>,
    /// Of an ephemeral deployment, whose volumes are its own.
    pub label: Option<EphemeralLabel>,
    pub resources: ResourceSettings,
    /// In place of the image's own (`docker`).
    pub health_check: Option<HealthCheck>,
    pub stop_signal: Option<StopSignal>,
    pub stop_grace: Duration,
}

/// A place for files that outlives the instance. Named and placed by checked settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    /// Inside the container.
    pub path: String,
    pub read_only: bool,
}

/// A volume that there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredVolume {
    /// By what it is found there: a volume's name, or a directory.
    pub place: String,
    /// The first name of its app.
    pub app: AppName,
    pub environment: EnvironmentName,
    /// Of a preview's.
    pub label: Option<EphemeralLabel>,
    /// By what the app's settings name it.
    pub name: String,
}

/// Whose volumes: of an environment, or of the previews of a label there, or all of an app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeScope {
    pub app: AppName,
    /// All of the app's if `None`.
    pub of: Option<(EnvironmentName, Option<EphemeralLabel>)>,
}

/// A command that the engine runs inside the container to see whether it is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    pub command: Vec<String>,
    pub interval: Duration,
    pub timeout: Duration,
    /// In a row, until it is unhealthy.
    pub failures: u32,
    /// From the start; failures in it do not count.
    pub grace: Duration,
}

/// What the runtime knows of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub id: InstanceId,
    pub app: AppName,
    pub environment: EnvironmentName,
    pub deployment: DeploymentId,
    pub operation: OperationId,
    /// The container's id, or the process's pid.
    pub handle: String,
    pub state: InstanceState,
    /// Where the proxy reaches it, while it runs and has a port.
    pub address: Option<SocketAddr>,
    /// With `handle` and `address` this names one life of the instance.
    pub started_at: Option<Timestamp>,
}

/// Where an instance is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstanceState {
    /// There, never started.
    Created,
    Running {
        health: Health,
    },
    Exited(Exit),
}

/// What the container's own health check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It has none.
    None,
    Starting,
    Healthy,
    Unhealthy,
}

/// How an instance ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, or 128 + signal; `None` where nobody saw it.
    pub code: Option<i64>,
    /// Ended by the kernel for want of memory, as far as the runtime saw it: code 137 without `killed` hints at it.
    pub out_of_memory: bool,
    /// It did not heed the stop signal within its grace.
    pub killed: bool,
}

/// Where an instance may be reached, as far as it can be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Sockets that it listens on now.
    Listening(Vec<SocketAddr>),
    /// Its sockets cannot be seen; these its image exposes.
    Exposed(Vec<u16>),
    Unknown,
}

/// A hint of [`Runtime::watch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    One(InstanceId),
    /// Look at all of them: events may have been lost.
    All,
}

/// Why the runtime did not do it.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("cannot {action} volume {volume:?}: {detail}")]
    Volume { action: &'static str, volume: String, detail: String },
    /// It does not answer, or not in time: nothing is known about the outcome.
    #[error("the {runtime} runtime is not available: {detail}")]
    Unavailable { runtime: &'static str, detail: String },
    #[error("image {image:?} is not available: {detail}")]
    Image { image: String, detail: String },
    #[error("command {command:?} cannot be run: {detail}")]
    Command { command: String, detail: String },
    #[error("cannot {action} instance {instance}: {detail}")]
    Refused { action: &'static str, instance: InstanceId, detail: String },
    #[error("no instance {instance}")]
    NotFound { instance: InstanceId },
}

impl Volume {
    /// The variable that tells the instance where it is.
    fn variable(&self) -> String {
        format!("LOCKGATE_VOLUME_{}", self.name.to_ascii_uppercase().replace('-', "_"))
    }
}

impl InstanceSpec {
    /// Command and arguments with the port put in.
    fn command_line(&self, port: Option<u16>) -> Vec<String> {
        let Some(port) = port else { return self.command.clone() };
        self.command.iter().map(|argument| argument.replace("$PORT", &port.to_string())).collect()
    }

    /// Refuses what no process can be given.
    fn check(&self) -> Result<(), RuntimeError> {
        let detail =
            if let Some(name) = self.env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
                format!("{name:?} cannot be the name of an environment variable")
            } else if let Some((name, _)) = self.env.iter().find(|(_, value)| value.contains('\0')) {
                format!("the value of {name} contains a NUL")
            } else if self.command.iter().any(|argument| argument.contains('\0')) {
                "an argument of the command contains a NUL".to_owned()
            } else {
                return Ok(());
            };
        Err(RuntimeError::Refused { action: "start", instance: self.id, detail })
    }
}

impl Instance {
    /// Whether it runs, healthy or not.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        matches!(self.state, InstanceState::Running { .. })
    }
}

impl RuntimeError {
    /// Whether another try may find it well again.
    #[must_use]
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
