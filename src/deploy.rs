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
mod apps;
mod asked;
mod behind;
mod clone;
mod concealed;
mod cutover;
mod denied;
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
mod requests;
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
mod validity;
mod version;
mod views;
mod volumes;
mod wake;
mod warm;
mod watching;

use std::sync::Arc;

use tokio::sync::watch;

pub use self::access::{MaintenanceRequest, PauseRequest};
pub use self::denied::{Denied, Gate};
pub use self::doctor::{Finding, FindingKind};
use self::engine::Engine;
pub use self::evidence::{Evidence, Figures};
pub use self::host_change::HostChange;
pub use self::moves::Action;
pub use self::published::Published;
pub use self::publisher::{ServiceRoute, parse_host};
pub use self::receipt::{Counts, Receipt, RestReceipt, ScaleReceipt};
pub use self::requests::{
    Command, DeployRequest, ExtendRequest, LinkRequest, PromoteRequest, RenameRequest, RollbackRequest,
    ScaleRequest, ScheduleRequest, ScheduledState, SignRequest, SwapRequest, Volumes, WakeRequest,
};
use self::requests::{DeployFlags, InSteps, SwapFlags};
pub use self::urls::Urls;
pub use self::views::{InstanceLogs, InstanceView};
pub use self::volumes::VolumeView;
use crate::clock::Clock;
use crate::ids::{DeploymentId, OperationId};
use crate::routing::{HostName, Routing};
use crate::runtime::Runtime;
use crate::settings::{Delay, RuntimeKind};
use crate::store::{IdempotencyKey, Store, StoreError};
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
