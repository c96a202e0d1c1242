//! One instance of a version that serves, brought back: ended if it is unhealthy, started again if it ended, and let
//! into rotation when it is ready.
//!
//! # What holds
//! 1. No target leads to an instance that is being brought back: it is taken out before anything is done to it, and
//!    whoever publishes targets meanwhile leaves it out ([`Revivals::publish`]).
//! 2. An unhealthy instance is taken out only while another one serves well, and gets its stop signal after its drain.
//! 3. The row says `starting` from before the start until it is ready: after a crash it is checked before it serves.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::drain::{Deadlines, drain};
use super::engine::{Engine, Stop};
use super::instances::{Afterwards, owner, pinned};
use super::publisher::Publisher;
use super::readiness::{Check, wait_ready};
use crate::ids::{DeploymentId, InstanceId};
use crate::routing::Target;
use crate::runtime::{Instance, RuntimeError};
use crate::store::{Deployment, InstancePhase, InstanceRow};

/// The instances that are not to be published: those that are being brought back, and spare ones.
#[derive(Debug, Default)]
pub(super) struct Revivals {
    now: Mutex<Now>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Now {
    revivals: HashMap<InstanceId, Revival>,
    /// See `scale`.
    spares: HashSet<InstanceId>,
}

#[derive(Clone, Debug)]
struct Revival {
    deployment: DeploymentId,
    token: CancellationToken,
    task: TaskTracker,
}

/// What is done to an instance before it is checked.
#[derive(Debug)]
pub(super) enum Remedy {
    /// It runs, and nobody has seen it ready.
    Check(Instance),
    Start,
    /// It had its stop signal before a restart of Lockgate.
    FinishStop,
    /// It is unhealthy: these targets drain first.
    Replace(Vec<Arc<Target>>),
}

impl Engine {
    /// Brings an instance back in a task of its own, unless somebody is at it.
    pub(super) fn revive(self: &Arc<Self>, deployment: &Deployment, row: InstanceRow, remedy: Remedy) {
        let mut now = self.revivals.lock();
        if now.is_out(row.id) || self.is_claimed(deployment) {
            return;
        }
        let revival = Revival::begin(deployment.id, &self.stopping);
        now.revivals.insert(row.id, revival.clone());
        drop(now);
        self.bring_back_behind(deployment.clone(), row, remedy, revival);
    }

    /// Takes an unhealthy instance out of service and brings it back, if another one serves well meanwhile. Whether
    /// it does.
    pub(super) fn replace(self: &Arc<Self>, deployment: &Deployment, row: InstanceRow) -> bool {
        let mut now = self.revivals.lock();
        let mut others = self.publisher.live_targets(deployment.id);
        others.retain(|target| target.id != row.id);
        let is_last = !others.iter().any(|other| other.is_healthy());
        if is_last || now.is_out(row.id) || self.is_claimed(deployment) {
            return false;
        }
        let targets = self.publisher.targets_of(row.id);
        self.publisher.set_instances(&owner(deployment), &addresses(&others));
        let revival = Revival::begin(deployment.id, &self.stopping);
        now.revivals.insert(row.id, revival.clone());
        drop(now);
        self.bring_back_behind(deployment.clone(), row, Remedy::Replace(targets), revival);
        true
    }

    /// Whether somebody else starts or stops its instances. Who does claims it first and then ends what is under way
    /// here; asked under the lock, so that nothing begins in between.
    fn is_claimed(&self, deployment: &Deployment) -> bool {
        self.in_hand.holds(deployment.id)
            || self.retiring.holds(deployment.id)
            || self.publisher.is_disabled(&deployment.app)
    }

    fn bring_back_behind(
        self: &Arc<Self>,
        deployment: Deployment,
        row: InstanceRow,
        remedy: Remedy,
        revival: Revival,
    ) {
        self.options.stats.corrected(match remedy {
            Remedy::Check(_) => "check",
            Remedy::Start => "start",
            Remedy::FinishStop => "finish_stop",
            Remedy::Replace(_) => "replace",
        });
        let engine = Arc::clone(self);
        self.tasks.spawn(revival.task.clone().track_future(async move {
            let id = row.id;
            let brought_back = tokio::select! {
                () = engine.stopping.cancelled() => Ok(()),
                brought_back = engine.bring_back(&deployment, row, remedy, &revival.token) => brought_back,
            };
            if let Err(stop) = brought_back {
                warn!(instance = %id, deployment = %deployment.id, ?stop, "instance not back yet; tried again");
            }
            engine.revivals.end(id);
        }));
    }

    async fn bring_back(
        &self,
        deployment: &Deployment,
        mut row: InstanceRow,
        remedy: Remedy,
        token: &CancellationToken,
    ) -> Result<(), Stop> {
        // Whoever stops it from here on ends this first; what was stopped since it was looked at says so here.
        let deployment = &self.deployment(deployment.id).await?;
        if !self.should_run(deployment) {
            return Ok(());
        }
        let mut instance = match remedy {
            Remedy::Check(instance) => instance,
            Remedy::Start => self.start_unproven(deployment, &mut row).await?,
            Remedy::FinishStop => {
                self.stop_instance(deployment, row.clone(), &[], Afterwards::Keep).await?;
                self.start_unproven(deployment, &mut row).await?
            }
            Remedy::Replace(targets) => {
                self.end_unhealthy(deployment, &row, &targets).await?;
                if token.is_cancelled() {
                    return Ok(());
                }
                self.start_unproven(deployment, &mut row).await?
            }
        };
        let check = Check::of(&deployment.settings, &pinned(deployment)?, instance.address.is_some())
            .map_err(Stop::Failed)?;
        loop {
            let waiting =
                wait_ready(self.runtime.as_ref(), &self.clock, &instance, &check, &deployment.settings);
            let waited = tokio::select! {
                () = token.cancelled() => return Ok(()),
                waited = waiting => waited,
            };
            let Err(failure) = waited else { break };
            let seen = self.runtime.inspect(&row.id).await?;
            if !seen.is_some_and(|instance| instance.is_running()) {
                return Err(Stop::Failed(failure));
            }
            // It may come round; until it does it is started again now and then.
            if self.restarts.due(deployment.id, row.id, self.clock.now()).is_none() {
                return Err(Stop::Failed(failure));
            }
            warn!(instance = %row.id, cause = failure.cause, "not ready after its start; started again");
            self.stop_instance(deployment, row.clone(), &[], Afterwards::Keep).await?;
            instance = self.start_unproven(deployment, &mut row).await?;
        }
        let ready = self.runtime.inspect(&row.id).await?.filter(Instance::is_running);
        if let Some(ready) = ready {
            self.record_life(&mut row, &ready, InstancePhase::Running).await?;
            info!(instance = %row.id, deployment = %deployment.id, "instance is ready again");
        }
        Ok(())
    }

    async fn end_unhealthy(
        &self,
        deployment: &Deployment,
        row: &InstanceRow,
        targets: &[Arc<Target>],
    ) -> Result<(), Stop> {
        for target in targets {
            target.gate.close();
        }
        // Whatever becomes of this, it is checked before it serves again.
        let mut row = row.clone();
        row.phase = InstancePhase::Starting;
        self.store.put_instance(&row).await?;
        let deadlines = Deadlines::new(&deployment.settings.deploy, self.clock.now());
        let drained = drain(targets, deadlines, self.publisher.routing(), &self.clock).await;
        drained.tell_of_cuts(deployment.id, "unhealthy replica");
        self.stop_instance(deployment, row, targets, Afterwards::Keep).await
    }

    /// Starts an instance that has ended, whatever became of it.
    async fn start_unproven(&self, deployment: &Deployment, row: &mut InstanceRow) -> Result<Instance, Stop> {
        row.phase = InstancePhase::Starting;
        row.address = None;
        row.stop_signalled_at = None;
        self.store.put_instance(row).await?;
        let spec = self.spec(deployment, row.id).await?;
        let _alone = self.alone(deployment, row.id).await?;
        match self.runtime.restart(&spec).await {
            Err(RuntimeError::NotFound { .. }) => Ok(self.runtime.start(&spec).await?),
            other => Ok(other?),
        }
    }
}

impl Revival {
    fn begin(deployment: DeploymentId, stopping: &CancellationToken) -> Self {
        Self { deployment, token: stopping.child_token(), task: TaskTracker::new() }
    }
}

impl Revivals {
    /// Whether an instance is being brought back, or spare.
    pub(super) fn has(&self, instance: InstanceId) -> bool {
        self.lock().is_out(instance)
    }

    /// Whether one of the deployment's is being brought back.
    pub(super) fn has_any(&self, deployment: DeploymentId) -> bool {
        self.lock().revivals.values().any(|revival| revival.deployment == deployment)
    }

    /// Nobody brings these back or publishes them from now on.
    pub(super) fn set_spare(&self, instances: &[InstanceId]) {
        self.lock().spares.extend(instances);
    }

    /// Takes that back.
    pub(super) fn set_needed(&self, instances: &[InstanceId]) {
        let mut now = self.lock();
        for id in instances {
            now.spares.remove(id);
        }
    }

    /// Forgets the spare ones whose rows are gone, before a look that knows of rows only these.
    pub(super) fn forget_spares_but(&self, known: &HashSet<InstanceId>) {
        self.lock().spares.retain(|id| known.contains(id));
    }

    /// Has requests go to `joining`, spare no longer, and not to `leaving`. What somebody publishes who looked before is
    /// looked at again.
    pub(super) fn resize(
        &self,
        publisher: &Publisher,
        deployment: &Deployment,
        joining: &[Instance],
        leaving: &[InstanceId],
    ) {
        let mut now = self.lock();
        let mut instances = addresses(&publisher.live_targets(deployment.id));
        instances.retain(|(id, _)| !leaving.contains(id));
        for instance in joining {
            now.spares.remove(&instance.id);
            instances.extend(instance.address.map(|address| (instance.id, address)));
        }
        publisher.set_instances(&owner(deployment), &instances);
        drop(now);
        self.ended.notify_one();
    }

    /// Makes `instances` the targets of the deployment, without those that are being brought back by now, and spare
    /// ones.
    pub(super) fn publish(
        &self,
        publisher: &Publisher,
        deployment: &Deployment,
        mut instances: Vec<(InstanceId, SocketAddr)>,
    ) {
        // Held until the targets are published: nobody is taken out in between.
        let now = self.lock();
        instances.retain(|(id, _)| !now.is_out(*id));
        let mut known = addresses(&publisher.live_targets(deployment.id));
        instances.sort_unstable();
        known.sort_unstable();
        if known != instances {
            info!(deployment = %deployment.id, before = known.len(), after = instances.len(), "instances changed");
            publisher.set_instances(&owner(deployment), &instances);
        }
    }

    /// Ends what is under way for a deployment, whose instances somebody is about to start or stop. What drains is
    /// waited for.
    pub(super) async fn stop(&self, deployment: DeploymentId) {
        let is_its = |revival: &&Revival| revival.deployment == deployment;
        let all: Vec<Revival> = self.lock().revivals.values().filter(is_its).cloned().collect();
        for revival in all {
            revival.token.cancel();
            revival.task.close();
            revival.task.wait().await;
        }
    }

    /// Resolves when one has ended since the last time.
    pub(super) async fn ended(&self) {
        self.ended.notified().await;
    }

    fn end(&self, instance: InstanceId) {
        self.lock().revivals.remove(&instance);
        self.ended.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Now {
    fn is_out(&self, instance: InstanceId) -> bool {
        self.revivals.contains_key(&instance) || self.spares.contains(&instance)
    }
}

fn addresses(targets: &[Arc<Target>]) -> Vec<(InstanceId, SocketAddr)> {
    targets.iter().map(|target| (target.id, target.address)).collect()
}
