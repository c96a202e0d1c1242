//! What should run against what runs: after a restart, on the runtime's hints, and now and then.
//!
//! Lockgate is the only one that restarts its instances. It touches nothing that does not carry its label, and
//! removes nothing that a row stands for: a row is written before its instance is started.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::engine::{Engine, Stop};
use super::instances::Afterwards;
use super::revive::Remedy;
use crate::error::chain;
use crate::ids::{DeploymentId, InstanceId};
use crate::runtime::{Instance, InstanceState, RuntimeError};
use crate::store::{Deployment, DeploymentStatus, DesiredState, Failure, InstancePhase, InstanceRow};

/// Also without a hint.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Between any two looks.
const SETTLE: Duration = Duration::from_millis(250);
/// Between two looks because of refused connections: an instance that does not listen refuses all of them.
const DOUBT_EVERY: Duration = Duration::from_secs(2);
/// For an instance that nobody knows.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);
/// More unknown instances than this, and more than half of all, look like a restored backup.
const ORPHANS_MAX: usize = 3;

impl Engine {
    /// Keeps what runs equal to what should, until the engine stops.
    pub(super) async fn keep_reconciled(self: Arc<Self>) {
        let mut hints = self.runtime.watch();
        let mut hints_end = false;
        let mut doubts_from = self.clock.now();
        while !self.stopping.is_cancelled() {
            self.baselines.sample(&self.publisher, self.clock.now());
            if let Err(error) = self.reconcile().await {
                warn!(?error, "not reconciled; what is known goes on being served");
            }
            // A restart that comes due while this settles is not missed.
            let look_at = self.clock.now() + self.next_look();
            // Hints come in bursts: what comes in this time is answered by the next look.
            tokio::select! {
                () = self.stopping.cancelled() => {}
                () = self.clock.sleep(SETTLE) => {}
            }
            let doubted = async {
                self.clock.sleep_until(doubts_from).await;
                self.publisher.routing().doubted().await;
            };
            tokio::select! {
                () = self.stopping.cancelled() => {}
                hint = hints.recv(), if !hints_end => {
                    hints_end = hint.is_none();
                    while hints.try_recv().is_ok() {}
                }
                () = doubted => doubts_from = self.clock.now() + DOUBT_EVERY,
                () = self.revivals.ended() => {}
                () = self.clock.sleep_until(look_at) => {}
            }
        }
    }

    async fn reconcile(self: &Arc<Self>) -> Result<(), Stop> {
        let listed = self.runtime.list().await;
        let is_away = listed.as_ref().is_err_and(RuntimeError::is_unavailable);
        self.options.stats.runtime_answered(!is_away);
        let mut seen: HashMap<InstanceId, Instance> =
            listed?.into_iter().map(|instance| (instance.id, instance)).collect();
        let all = seen.len();
        let mut rows: HashMap<DeploymentId, Vec<InstanceRow>> = HashMap::new();
        for row in self.store.instances(None).await? {
            rows.entry(row.deployment).or_default().push(row);
        }
        // One whose operation broke off before it had an instance has no row that would lead to it.
        let on_their_way = self.store.deployments_in_service().await?;
        for deployment in on_their_way.into_iter().filter(|one| !one.status.is_end()) {
            rows.entry(deployment.id).or_default();
        }
        let known = rows.values().flatten().map(|row| row.id).collect();
        self.restarts.keep(&known);
        self.revivals.forget_spares_but(&known);
        for (id, rows) in rows {
            let known: Vec<(InstanceRow, Option<Instance>)> =
                rows.into_iter().map(|row| (row.id, row)).map(|(id, row)| (row, seen.remove(&id))).collect();
            if let Err(stop) = self.reconcile_deployment(id, known).await {
                warn!(deployment = %id, ?stop, "deployment not reconciled");
            }
        }
        self.remove_orphans(seen, all).await;
        Ok(())
    }

    async fn reconcile_deployment(
        self: &Arc<Self>,
        id: DeploymentId,
        known: Vec<(InstanceRow, Option<Instance>)>,
    ) -> Result<(), Stop> {
        let deployment = self.deployment(id).await?;
        let (spare, known): (Vec<_>, Vec<_>) = known.into_iter().partition(|(row, _)| row.spare);
        for (row, _) in spare {
            self.remove_left_over(&deployment, row.id);
        }
        if self.is_in_operation(&deployment) {
            // Its operation decides.
            return Ok(());
        }
        let deployment =
            if deployment.status.is_end() { deployment } else { self.give_up_on(deployment).await? };
        if !deployment.status.is_end() {
            return Ok(());
        }
        if self.should_run(&deployment) {
            let known = self.seen_anew(known).await?;
            if !self.is_in_operation(&deployment) {
                self.keep_running(&deployment, known);
            }
            return Ok(());
        }
        let keep = deployment.status == DeploymentStatus::Ready
            && deployment.desired_state != DesiredState::Archived;
        let is_settled = known.iter().all(|(row, _)| row.phase == InstancePhase::Stopped);
        if (keep && is_settled) || self.drains.is_draining(id) {
            return Ok(());
        }
        let afterwards = if keep { Afterwards::Keep } else { Afterwards::Remove };
        self.options.stats.corrected("stop");
        let engine = Arc::clone(self);
        self.tasks.spawn(async move {
            let is_noted = deployment.status == DeploymentStatus::Ready
                && deployment.desired_state != DesiredState::Running;
            let retired = if is_noted {
                engine.retire_noted(&deployment, afterwards).await
            } else {
                engine.retire_instances(&deployment, afterwards).await
            };
            if let Err(stop) = retired {
                warn!(deployment = %deployment.id, ?stop, "instances not stopped yet; tried again");
            }
        });
        Ok(())
    }

    /// A deployment on its way whose operation has ended without being able to say so: it will not become ready.
    async fn give_up_on(&self, deployment: Deployment) -> Result<Deployment, Stop> {
        let operation = self.store.operation(&deployment.operation).await?;
        if operation.is_some_and(|operation| operation.state.is_end()) {
            let failure = Failure::new("interrupted", "its operation ended before it was ready");
            self.store.set_status(&deployment.id, DeploymentStatus::Failed, Some(&failure)).await?;
        }
        self.deployment(deployment.id).await
    }

    /// What differs is looked at once more: it may have been changed between the look at the runtime and that at the rows.
    async fn seen_anew(
        &self,
        known: Vec<(InstanceRow, Option<Instance>)>,
    ) -> Result<Vec<(InstanceRow, Option<Instance>)>, Stop> {
        let is_expected = |(row, seen): &(InstanceRow, Option<Instance>)| {
            seen.as_ref().is_some_and(|instance| instance.is_running() && is_recorded(row, instance))
        };
        let Some((row, _)) = known.iter().find(|pair| !is_expected(pair)) else { return Ok(known) };
        let mut seen = Vec::with_capacity(known.len());
        for row in self.replicas_of(row.deployment).await? {
            let instance = self.runtime.inspect(&row.id).await?;
            seen.push((row, instance));
        }
        Ok(seen)
    }

    /// Has in rotation what runs and was seen ready in this life, and brings back the others.
    fn keep_running(self: &Arc<Self>, deployment: &Deployment, known: Vec<(InstanceRow, Option<Instance>)>) {
        let ids: Vec<InstanceId> = known.iter().map(|(row, _)| row.id).collect();
        let mut ready = Vec::with_capacity(known.len());
        for (row, seen) in known {
            match seen {
                Some(instance) if instance.is_running() && is_recorded(&row, &instance) => {
                    self.note_run(instance.id);
                    ready.extend(instance.address.map(|address| (instance.id, address)));
                }
                _ if self.revivals.has(row.id) => {}
                Some(instance) if instance.is_running() => {
                    let was_told = row.stop_signalled_at.is_some();
                    let remedy = if was_told { Remedy::FinishStop } else { Remedy::Check(instance) };
                    self.revive(deployment, row, remedy);
                }
                ended => self.start_again(deployment, row, ended),
            }
        }
        let is_out = ready.is_empty() && !ids.iter().any(|id| self.revivals.has(*id));
        let back_at = is_out.then(|| self.restarts.back_at(&ids, self.clock.now())).flatten();
        self.publisher.expect_back(deployment.id, back_at);
        self.revivals.publish(&self.publisher, deployment, ready);
    }

    fn note_run(&self, instance: InstanceId) {
        if self.publisher.targets_of(instance).iter().all(|target| target.is_healthy()) {
            self.restarts.is_well(instance, self.clock.now());
        } else {
            self.restarts.is_ill(instance);
        }
    }

    /// Starts an instance that ended, if its back-off is over.
    fn start_again(self: &Arc<Self>, deployment: &Deployment, row: InstanceRow, seen: Option<Instance>) {
        let Some(tries) = self.restarts.due(deployment.id, row.id, self.clock.now()) else { return };
        let exit = seen.and_then(|instance| match instance.state {
            InstanceState::Exited(exit) => Some(exit),
            InstanceState::Created | InstanceState::Running { .. } => None,
        });
        warn!(
            instance = %row.id, deployment = %deployment.id, tries, code = exit.as_ref().and_then(|exit| exit.code),
            out_of_memory = exit.as_ref().is_some_and(|exit| exit.out_of_memory), "instance ended; started again"
        );
        self.revive(deployment, row, Remedy::Start);
    }

    /// Stops and removes what carries our label and has no row: left by a run that crashed.
    async fn remove_orphans(&self, orphans: HashMap<InstanceId, Instance>, all: usize) {
        if orphans.len() > ORPHANS_MAX && orphans.len() * 2 > all {
            warn!(
                orphans = orphans.len(),
                all,
                "most instances are unknown to the store; was an old backup restored? nothing is removed"
            );
            return;
        }
        for (id, orphan) in orphans {
            // A row that was written since the list was made stands for it after all.
            let known = self.store.instances(Some(&orphan.deployment)).await;
            if !known.is_ok_and(|rows| rows.iter().all(|row| row.id != id)) {
                continue;
            }
            info!(instance = %id, operation = %orphan.operation, "orphan removed");
            self.options.stats.corrected("remove_orphan");
            let removed = async {
                self.runtime.stop(&id, None, ORPHAN_GRACE).await?;
                self.runtime.remove(&id).await
            };
            if let Err(error) = removed.await {
                warn!(instance = %id, error = chain(&error), "orphan not removed; tried again");
            }
        }
    }

    pub(super) fn is_in_operation(&self, deployment: &Deployment) -> bool {
        let key = (deployment.app.clone(), deployment.environment.clone());
        let lane = self.lanes.view(&key);
        self.in_hand.holds(deployment.id)
            || lane.running == Some(deployment.operation)
            || lane.waiting.contains(&deployment.operation)
    }

    /// Until the earliest restart that is due, or the next look in any case.
    fn next_look(&self) -> Duration {
        self.restarts.next_in(self.clock.now()).map_or(LOOK_EVERY, |wait| wait.min(LOOK_EVERY))
    }
}

/// Whether it is the life that was seen ready: by container or process, start, and address.
fn is_recorded(row: &InstanceRow, instance: &Instance) -> bool {
    row.phase == InstancePhase::Running
        && row.stop_signalled_at.is_none()
        && row.handle.as_ref() == Some(&instance.handle)
        && row.started_at == instance.started_at
        && row.address == instance.address.map(|address| address.to_string())
}
