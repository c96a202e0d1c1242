//! What goes to rest or away outside a cutover, in the history: when, why, by whose word, and what was cut.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::warn;

use super::drain::Drained;
use super::engine::{Claim, Engine, Stop};
use super::instances::Afterwards;
use super::live::json;
use super::receipt::{Counts, CutLine, RestReceipt};
use crate::clock::Timestamp;
use crate::error::chain;
use crate::ids::{DeploymentId, OperationId};
use crate::store::{
    Deployment, DesiredState, InstancePhase, NewOperation, OperationEnd, OperationKind, OperationState,
};

/// By whose word it goes, and why.
#[derive(Clone, Debug)]
pub(super) struct Cause {
    actor: String,
    reason: String,
    since: Timestamp,
}

/// What was decided and is not yet done. It is said before the store has it: whoever sees the decision there and carries
/// it out, as reconcile may, knows whose it is.
#[derive(Debug, Default)]
pub(super) struct Causes(Mutex<HashMap<DeploymentId, Cause>>);

impl Causes {
    pub(super) fn put(&self, deployment: DeploymentId, cause: Cause) {
        self.lock().insert(deployment, cause);
    }

    pub(super) fn take(&self, deployment: DeploymentId) -> Option<Cause> {
        self.lock().remove(&deployment)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeploymentId, Cause>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Somebody decides now that a deployment goes.
    pub(super) fn because(&self, actor: impl Into<String>, reason: impl Into<String>) -> Cause {
        Cause { actor: actor.into(), reason: reason.into(), since: self.clock.wall() }
    }

    /// Drains and stops what a deployment runs, and notes it in the history with its cause. A crash before that leaves a
    /// version that is as it was to be, and the reason in the log alone.
    pub(super) async fn retire_noted(
        &self,
        deployment: &Deployment,
        afterwards: Afterwards,
    ) -> Result<(), Stop> {
        let Some(claim) = self.retiring.claim(deployment.id) else {
            // Somebody else is at it.
            return Ok(());
        };
        self.retire_claimed_noted(deployment, afterwards, claim).await
    }

    /// The same for whoever has claimed it.
    pub(super) async fn retire_claimed_noted(
        &self,
        deployment: &Deployment,
        afterwards: Afterwards,
        claim: Claim<DeploymentId>,
    ) -> Result<(), Stop> {
        // Who looked before somebody else was done with it finds nothing to do, and has nothing to note.
        let rows = self.replicas_of(deployment.id).await?;
        let is_left = afterwards == Afterwards::Remove && !rows.is_empty()
            || rows.iter().any(|row| row.phase != InstancePhase::Stopped);
        let drained = self.retire_claimed(deployment, afterwards, claim).await?;
        let unfinished = || self.because("reconcile", "what was decided before was not finished");
        let cause = self.causes.take(deployment.id).or_else(|| is_left.then(unfinished));
        if let (Some(drained), Some(cause)) = (drained, cause) {
            self.note_retired(deployment, afterwards, (&cause, &drained)).await;
        }
        Ok(())
    }

    async fn note_retired(
        &self,
        deployment: &Deployment,
        afterwards: Afterwards,
        (cause, drained): (&Cause, &Drained),
    ) {
        let (kind, desired_state) = match afterwards {
            Afterwards::Keep => (OperationKind::Standby, DesiredState::Standby),
            Afterwards::Remove => (OperationKind::Archive, DesiredState::Archived),
        };
        let operation = NewOperation {
            id: OperationId::generate(),
            kind,
            app: deployment.app.clone(),
            environment: deployment.environment.clone(),
            deployment: Some(deployment.id),
            request: "{}".to_owned(),
            actor: cause.actor.clone(),
            idempotency: None,
            at: cause.since,
        };
        let receipt = RestReceipt {
            desired_state,
            reason: cause.reason.clone(),
            drained: Counts::drained(Counts::of(drained.before), drained),
            cut: CutLine::all(drained),
        };
        let end = OperationEnd {
            state: OperationState::Succeeded,
            failure: None,
            receipt: Some(json(&receipt)),
            at: self.clock.wall(),
        };
        // It is done all the same; an app that was removed meanwhile has no history either.
        if let Err(error) = self.store.note_operation(&operation, &end).await {
            warn!(deployment = %deployment.id, error = chain(&error), reason = cause.reason, "not noted in the history");
        }
    }
}
