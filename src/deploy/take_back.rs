//! The way back from a version that did not hold to the one before it, which still runs.

use std::sync::Arc;

use tracing::{error, warn};

use super::cutover::{Committed, Cutover};
use super::engine::{Engine, Stop};
use super::instances::Afterwards;
use super::live::{Swapped, json};
use super::steps;
use crate::fault;
use crate::store::{Deployment, DeploymentStatus, DesiredState, Failure, Operation, OperationState};

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
        let is_there = match &from {
            // One in standby was so before it was replaced, and is woken by whoever asks for it.
            Some(old) => {
                self.runs(old).await || old.desired_state == DesiredState::Standby && old.settings.wake
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
        let back = self.swap_back(operation, &old, &cutover);
        let back = self.step_behind(operation.id, steps::TAKE_BACK, back).await;
        if let Err(stop) = back {
            error!(operation = %operation.id, ?stop, "traffic not taken back");
            self.end(operation.id, OperationState::Failed, Some(failure.clone()), Some(json(receipt))).await;
            return Err(Stop::Failed(failure));
        }
        self.options.stats.taken_back();
        receipt.notes.push(format!("taken back to {}: {}", old.id, failure.cause));
        self.discard(deployment, &failure).await?;
        self.end(operation.id, OperationState::RolledBack, Some(failure.clone()), Some(json(receipt))).await;
        Err(Stop::Failed(failure))
    }

    async fn swap_back(
        &self,
        operation: &Operation,
        old: &Deployment,
        cutover: &Cutover,
    ) -> Result<((), String), Stop> {
        self.drains.stop(old.id).await;
        let turn = self.publisher.turn().await;
        let environment = self.environment_of(old).await?;
        let routes = self.live_rows(&turn, old).await?;
        let (mut plan, _) = self.plan(operation, old, &environment, routes, cutover.was_rolled_back);
        // The version that did not hold is removed by this operation, not by a timer.
        plan.retire = None;
        let committed = Committed::commit(plan, self.store.as_ref(), &self.clock).await?;
        fault::at("take-back.committed")?;
        committed.publish(&self.publisher, &turn, &self.clock).close_gates(&self.publisher, &self.clock);
        Ok(((), format!("{} serves again", old.id)))
    }

    /// Gives up a deployment that did not hold. What it still serves drains in a task of its own.
    pub(super) async fn discard(
        self: &Arc<Self>,
        deployment: &Deployment,
        failure: &Failure,
    ) -> Result<(), Stop> {
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
