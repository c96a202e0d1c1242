//! The way back from a version that did not hold to the one before it, which still runs or was stopped for it.

use std::sync::Arc;

use tracing::{error, warn};

use super::cutover::{Committed, Cutover};
use super::engine::{Engine, Stop};
use super::handover::is_alone;
use super::instances::Afterwards;
use super::live::{Swapped, json};
use super::receipt::HeldReceipt;
use super::steps;
use crate::clock::Timestamp;
use crate::error::chain;
use crate::fault;
use crate::ids::DeploymentId;
use crate::store::{
    Deployment, DeploymentStatus, DesiredState, Failure, Operation, OperationKind, OperationState, Timer,
};

impl Engine {
    /// The new version did not hold: the old one serves again, and the new one drains and goes.
    pub(super) async fn take_back(
        self: &Arc<Self>,
        operation: &Operation,
        deployment: &Deployment,
        mut swapped: Swapped,
        failure: Failure,
    ) -> Result<(), Stop> {
        let cutover = swapped.cutover.clone();
        let receipt = swapped.receipt();
        let from = match cutover.from {
            Some(from) => {
                Some(self.deployment(from).await?).filter(|old| old.status == DeploymentStatus::Ready)
            }
            None => None,
        };
        let is_stopped = |old: &Deployment| {
            (is_alone(old) || is_alone(deployment)) && old.desired_state != DesiredState::Archived
        };
        let is_there = match &from {
            // One in standby was so before it was replaced, and is woken by whoever asks for it.
            Some(old) => {
                is_stopped(old)
                    || self.runs(old).await
                    || old.desired_state == DesiredState::Standby && old.settings.wake
            }
            None => false,
        };
        let Some(old) = from.filter(|_| is_there) else {
            // Nobody to go back to; the restart rule goes on trying.
            let failure =
                failure.remedy("no earlier version runs that could serve again: deploy one that holds");
            self.end(operation.id, OperationState::Failed, Some(failure.clone()), Some(json(receipt))).await;
            return Err(Stop::Failed(failure));
        };
        let back = async {
            let held = if is_stopped(&old) {
                Some(Box::pin(self.hand_back(operation, (deployment, &old), &cutover)).await?)
            } else {
                self.swap_back(operation, &old, &cutover).await?;
                None
            };
            Ok((held, format!("{} serves again", old.id)))
        };
        let held = match self.step_behind(operation.id, steps::TAKE_BACK, back).await {
            Ok(held) => held,
            Err(stop) => {
                error!(operation = %operation.id, ?stop, "traffic not taken back");
                let failure = failure.seen([format!("{} does not serve again: {}", old.id, why(&stop))]);
                let ended = Some(failure.clone());
                self.end(operation.id, OperationState::Failed, ended, Some(json(receipt))).await;
                return Err(Stop::Failed(failure));
            }
        };
        self.options.stats.taken_back();
        receipt.notes.push(format!("taken back to {}: {}", old.id, failure.cause));
        if let Some(HeldReceipt { requests, ms }) = held {
            receipt
                .notes
                .push(format!("it had to be started again: {requests} requests were held, for {ms} ms"));
        }
        self.give_up(operation, deployment, &failure).await?;
        self.end(operation.id, OperationState::RolledBack, Some(failure.clone()), Some(json(receipt))).await;
        Err(Stop::Failed(failure))
    }

    pub(super) async fn swap_back(
        &self,
        operation: &Operation,
        old: &Deployment,
        cutover: &Cutover,
    ) -> Result<(), Stop> {
        self.drains.stop(old.id).await;
        let turn = self.publisher.turn().await;
        let environment = self.environment_of(old).await?;
        let routes = self.live_rows(&turn, old).await?;
        let (mut plan, _) = self.plan(operation, old, &environment, routes, cutover.was_rolled_back);
        plan.retire = self.rest_of_target(operation, cutover.to, plan.at).await?;
        // A new version is removed.
        plan.stopped = plan.stopped.filter(|_| operation.kind != OperationKind::Deploy);
        let committed = Committed::commit(plan, self.store.as_ref(), &self.clock).await?;
        fault::at("take-back.committed")?;
        self.publisher.release_pages(cutover.to);
        committed.publish(&self.publisher, &turn, &self.clock).close_gates(&self.publisher, &self.clock);
        Ok(())
    }

    /// When what did not hold goes to rest. A new version is removed by its deploy; one that served before stays as it was
    /// before it was tried again: in standby at once, or running for its time.
    async fn rest_of_target(
        &self,
        operation: &Operation,
        target: DeploymentId,
        now: Timestamp,
    ) -> Result<Option<Timer>, Stop> {
        if operation.kind == OperationKind::Deploy {
            return Ok(None);
        }
        let deployment = self.deployment(target).await?;
        let taken = self.store.steps(&operation.id).await?;
        let was_woken = taken.iter().any(|step| step.name == steps::WAKE.name);
        let rests_now = was_woken || self.publisher.has_handover(&deployment);
        let later = self.by_itself(target, DesiredState::Standby, deployment.settings.deploy.standby_after);
        // What did not hold is not kept warm either.
        let at_once = Timer { nonce: operation.id.to_string(), due: now, ..later.clone() };
        Ok(Some(if rests_now { at_once } else { later }))
    }

    /// What becomes of a deployment that did not hold: nobody needs a new version that does not; one that served before
    /// may be the way back, and what it has done wrong is noted.
    pub(super) async fn give_up(
        self: &Arc<Self>,
        operation: &Operation,
        deployment: &Deployment,
        failure: &Failure,
    ) -> Result<(), Stop> {
        match operation.kind {
            OperationKind::Deploy => self.discard(deployment, failure).await,
            OperationKind::Swap
            | OperationKind::Rollback
            | OperationKind::Promote
            | OperationKind::Scale
            | OperationKind::Enable
            | OperationKind::Wake
            | OperationKind::Standby
            | OperationKind::Archive => Ok(self.store.note_failure(&deployment.id, failure).await?),
        }
    }

    /// What it still serves drains in a task of its own.
    async fn discard(self: &Arc<Self>, deployment: &Deployment, failure: &Failure) -> Result<(), Stop> {
        self.store.set_status(&deployment.id, DeploymentStatus::Failed, Some(failure)).await?;
        self.archive(deployment.id).await?;
        let (engine, deployment) = (Arc::clone(self), deployment.clone());
        self.tasks.spawn(async move {
            if let Err(stop) = engine.retire_instances(&deployment, Afterwards::Remove).await {
                warn!(deployment = %deployment.id, ?stop, "instances not removed yet; reconcile tries again");
            }
        });
        Ok(())
    }
}

fn why(stop: &Stop) -> String {
    match stop {
        Stop::Failed(failure) | Stop::DidNotHold(failure) | Stop::Superseded(failure) => {
            failure.cause.clone()
        }
        Stop::Store(error) => chain(error),
        Stop::Cancelled | Stop::Noop(_) => "something else came in between".to_owned(),
    }
}
