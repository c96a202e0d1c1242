//! What every workflow works with: the parts it acts on, the journal, and how a run stops.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use super::evidence::Baselines;
use super::executor::Lanes;
use super::hours::Hours;
use super::idle::Idles;
use super::progressive::Hurries;
use super::publisher::Publisher;
use super::restarts::Restarts;
use super::retired::Causes;
use super::revive::Revivals;
use super::steps::StepName;
use super::wake::Wakes;
use super::{Options, Progress};
use crate::clock::Clock;
use crate::error::chain;
use crate::fault::{self, Injected};
use crate::ids::{DeploymentId, InstanceId, OperationId};
use crate::runtime::{Runtime, RuntimeError};
use crate::store::{
    EventKind, Failure, NewEvent, Operation, OperationEnd, OperationKind, OperationState, StepEnd,
    StepOutcome, Store, StoreError,
};

/// Between two tries of what the store must have.
pub(super) const STORE_AGAIN: Duration = Duration::from_secs(1);
/// Between two looks at a claim that somebody else has.
pub(super) const CLAIM_AGAIN: Duration = Duration::from_millis(50);

/// The engine's parts. One per process.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) store: Arc<dyn Store>,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) publisher: Publisher,
    pub(super) options: Options,
    pub(super) lanes: Lanes,
    pub(super) drains: Drains,
    pub(super) retiring: Claims<DeploymentId>,
    pub(super) retirements: Retirements,
    pub(super) causes: Causes,
    /// Deployments about whose instances an operation decides, and not the restart rule.
    pub(super) in_hand: Claims<DeploymentId>,
    /// Spare instances, while they are started or let go.
    pub(super) letting_go: Claims<InstanceId>,
    /// Held by whoever starts an instance beside which no other may run: see `handover`.
    pub(super) starting_alone: tokio::sync::Mutex<()>,
    /// One submission at a time: what is looked at before it is accepted still holds when it is queued.
    pub(super) submitting: tokio::sync::Mutex<()>,
    pub(super) baselines: Baselines,
    pub(super) hurries: Hurries,
    pub(super) restarts: Restarts,
    pub(super) revivals: Revivals,
    pub(super) wakes: Wakes,
    pub(super) idles: Idles,
    pub(super) hours: Hours,
    /// Owns every task of the engine.
    pub(super) tasks: TaskTracker,
    /// Ends the engine's own loops; operations are left to the journal.
    pub(super) stopping: CancellationToken,
    progress: Mutex<HashMap<OperationId, watch::Sender<Progress>>>,
}

/// Why a run did not come to its end.
#[derive(Debug)]
pub(super) enum Stop {
    Failed(Failure),
    /// A share of the visitors got the new version, and it did not hold.
    DidNotHold(Failure),
    Cancelled,
    Superseded(Failure),
    /// An equal deployment is live: there is nothing to do.
    Noop(DeploymentId),
    /// The store does not answer: nothing is known, the journal decides after a restart.
    Store(StoreError),
}

/// The drains that go on, so that taking a version back into service ends its drain first.
#[derive(Debug, Default)]
pub(super) struct Drains(Mutex<HashMap<DeploymentId, (CancellationToken, TaskTracker)>>);

/// Versions that wait for their last requests before they are put into standby.
#[derive(Debug, Default)]
pub(super) struct Retirements(Mutex<HashMap<DeploymentId, CancellationToken>>);

/// What one task at a time has in its hands.
#[derive(Debug)]
pub(super) struct Claims<Id>(Arc<Mutex<HashSet<Id>>>);

/// One of them; dropping it gives it up.
#[derive(Debug)]
pub(super) struct Claim<Id: Eq + Hash> {
    claims: Arc<Mutex<HashSet<Id>>>,
    id: Id,
}

impl Engine {
    pub(super) fn new(
        store: Arc<dyn Store>,
        runtime: Arc<dyn Runtime>,
        publisher: Publisher,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Self {
        Self {
            store,
            runtime,
            clock,
            publisher,
            options,
            lanes: Lanes::default(),
            drains: Drains::default(),
            retiring: Claims::default(),
            retirements: Retirements::default(),
            causes: Causes::default(),
            in_hand: Claims::default(),
            letting_go: Claims::default(),
            starting_alone: tokio::sync::Mutex::default(),
            submitting: tokio::sync::Mutex::default(),
            baselines: Baselines::default(),
            hurries: Hurries::default(),
            restarts: Restarts::default(),
            revivals: Revivals::default(),
            wakes: Wakes::default(),
            idles: Idles::default(),
            hours: Hours::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            progress: Mutex::default(),
        }
    }

    /// Runs one step: journals its intent, acts, journals its result.
    pub(super) async fn step<T>(
        &self,
        operation: OperationId,
        step: StepName,
        act: impl Future<Output = Result<(T, String), Stop>>,
    ) -> Result<T, Stop> {
        self.store.begin_step(&operation, step.name, self.clock.wall()).await?;
        fault::at(step.begun)?;
        let acted = act.await;
        fault::at(step.acted)?;
        self.store.end_step(&operation, step.name, &self.end_of(&acted)).await?;
        fault::at(step.recorded)?;
        acted.map(|(value, _)| value)
    }

    /// The same behind a commit, which stands whatever the store does next: what cannot be journaled is logged, and the
    /// act is done all the same. A restart goes by the commit.
    pub(super) async fn step_behind<T>(
        &self,
        operation: OperationId,
        step: StepName,
        act: impl Future<Output = Result<(T, String), Stop>>,
    ) -> Result<T, Stop> {
        let told = |error: StoreError| {
            warn!(%operation, step = step.name, error = chain(&error), "step not journaled");
        };
        self.store.begin_step(&operation, step.name, self.clock.wall()).await.unwrap_or_else(told);
        fault::at(step.begun)?;
        let acted = act.await;
        fault::at(step.acted)?;
        let ended = self.store.end_step(&operation, step.name, &self.end_of(&acted)).await;
        ended.map(drop).unwrap_or_else(told);
        fault::at(step.recorded)?;
        acted.map(|(value, _)| value)
    }

    fn end_of<T>(&self, acted: &Result<(T, String), Stop>) -> StepEnd {
        let (outcome, detail) = match acted {
            Ok((_, detail)) => (StepOutcome::Done, Some(detail.clone()).filter(|detail| !detail.is_empty())),
            Err(Stop::Noop(_) | Stop::Superseded(_) | Stop::Cancelled) => (StepOutcome::Skipped, None),
            Err(Stop::Failed(failure) | Stop::DidNotHold(failure)) => {
                (StepOutcome::Failed, Some(failure.cause.clone()))
            }
            Err(Stop::Store(error)) => (StepOutcome::Failed, Some(chain(error))),
        };
        StepEnd { outcome, detail, at: self.clock.wall() }
    }

    /// Tells whoever follows the operation. What cannot be written is logged: it is worth less than the operation.
    pub(super) async fn tell(&self, operation: OperationId, kind: EventKind, text: impl Into<String>) {
        let event = NewEvent { operation, kind, text: text.into(), at: self.clock.wall() };
        if let Err(error) = self.store.append_event(&event).await {
            warn!(%operation, error = chain(&error), "event not written");
        }
    }

    /// Writes the end of an operation, once, and wakes whoever waits for it.
    pub(super) async fn end(
        self: &Arc<Self>,
        operation: OperationId,
        state: OperationState,
        failure: Option<Failure>,
        receipt: Option<String>,
    ) {
        let end = OperationEnd { state, failure, receipt, at: self.clock.wall() };
        // What cannot be read now is not counted: the journal is what matters.
        if let Ok(Some(operation)) = self.store.operation(&operation).await {
            self.count(&operation, &end);
        }
        if let Err(error) = self.store.end_operation(&operation, &end).await {
            error!(%operation, error = chain(&error), "end of the operation not written yet");
            self.tasks.spawn(Arc::clone(self).end_later(operation, end));
        }
        self.has_ended(operation);
    }

    /// Wakes whoever waits for the end of an operation, which is written.
    pub(super) fn has_ended(&self, operation: OperationId) {
        self.advance(operation, Progress::Ended);
        self.lock_progress().remove(&operation);
    }

    /// Counts an end that is about to be written, or was just now, of an operation as it was before.
    pub(super) fn count(&self, operation: &Operation, end: &OperationEnd) {
        if !operation.state.is_end() {
            let took = Duration::try_from(end.at.duration_since(operation.created_at)).unwrap_or_default();
            self.options.stats.operation_ended(kind_word(operation.kind), state_word(end.state), took);
        }
    }

    /// Writes an end until it is written. A restart finishes what is still unfinished in the journal then.
    async fn end_later(self: Arc<Self>, operation: OperationId, end: OperationEnd) {
        while !self.stopping.is_cancelled() {
            self.clock.sleep(STORE_AGAIN).await;
            match self.store.end_operation(&operation, &end).await {
                Ok(_) => return info!(%operation, "end of the operation written"),
                Err(error) => {
                    debug!(%operation, error = chain(&error), "end of the operation not written yet")
                }
            }
        }
    }

    /// Follows an operation that runs or waits.
    pub(super) fn follow(&self, operation: OperationId) -> watch::Receiver<Progress> {
        self.lock_progress()
            .entry(operation)
            .or_insert_with(|| watch::Sender::new(Progress::Running))
            .subscribe()
    }

    /// Follows an operation if it has not ended.
    pub(super) fn following(&self, operation: OperationId) -> Option<watch::Receiver<Progress>> {
        self.lock_progress().get(&operation).map(watch::Sender::subscribe)
    }

    /// Forgets an operation that was not accepted after all.
    pub(super) fn unfollow(&self, operation: OperationId) {
        self.lock_progress().remove(&operation);
    }

    pub(super) fn advance(&self, operation: OperationId, progress: Progress) {
        self.lanes.answered(operation);
        if let Some(sender) = self.lock_progress().get(&operation) {
            sender.send_replace(progress);
        }
    }

    fn lock_progress(&self) -> std::sync::MutexGuard<'_, HashMap<OperationId, watch::Sender<Progress>>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drains {
    /// Registers the drain of a deployment. It ends early when the token is cancelled, and is over when the task that
    /// it runs in has left the tracker.
    pub(super) fn begin(&self, deployment: DeploymentId) -> (CancellationToken, TaskTracker) {
        let entry = (CancellationToken::new(), TaskTracker::new());
        self.lock().insert(deployment, entry.clone());
        entry
    }

    /// Ends the drain of a deployment that comes back into service, and waits until it does nothing any more.
    pub(super) async fn stop(&self, deployment: DeploymentId) {
        let Some((token, task)) = self.lock().remove(&deployment) else { return };
        token.cancel();
        task.close();
        task.wait().await;
    }

    /// Whether the deployment still drains.
    pub(super) fn is_draining(&self, deployment: DeploymentId) -> bool {
        self.lock().contains_key(&deployment)
    }

    pub(super) fn end(&self, deployment: DeploymentId) {
        self.lock().remove(&deployment);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<DeploymentId, (CancellationToken, TaskTracker)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Retirements {
    /// The token is cancelled when the version is wanted again.
    pub(super) fn begin(&self, deployment: DeploymentId) -> CancellationToken {
        let token = CancellationToken::new();
        self.lock().insert(deployment, token.clone());
        token
    }

    pub(super) fn call_off(&self, deployment: DeploymentId) {
        if let Some(token) = self.lock().get(&deployment) {
            token.cancel();
        }
    }

    /// From here on it is stopped.
    pub(super) fn end(&self, deployment: DeploymentId) {
        self.lock().remove(&deployment);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<DeploymentId, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Id: Copy + Eq + Hash> Claims<Id> {
    /// `None` if somebody has it.
    pub(super) fn claim(&self, id: Id) -> Option<Claim<Id>> {
        let is_new = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        is_new.then(|| Claim { claims: Arc::clone(&self.0), id })
    }

    /// Waits until nobody has it.
    pub(super) async fn claimed(&self, id: Id, clock: &Arc<dyn Clock>) -> Claim<Id> {
        loop {
            if let Some(claim) = self.claim(id) {
                return claim;
            }
            clock.sleep(CLAIM_AGAIN).await;
        }
    }

    pub(super) fn holds(&self, id: Id) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }
}

impl<Id> Default for Claims<Id> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<Id: Eq + Hash> Drop for Claim<Id> {
    fn drop(&mut self) {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

fn kind_word(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Deploy => "deploy",
        OperationKind::Swap => "swap",
        OperationKind::Rollback => "rollback",
        OperationKind::Promote => "promote",
        OperationKind::Scale => "scale",
        OperationKind::Enable => "enable",
        OperationKind::Wake => "wake",
        OperationKind::Standby => "standby",
        OperationKind::Archive => "archive",
    }
}

fn state_word(state: OperationState) -> &'static str {
    match state {
        OperationState::Queued => "queued",
        OperationState::Running => "running",
        OperationState::Succeeded => "succeeded",
        OperationState::SucceededWithWarnings => "succeeded_with_warnings",
        OperationState::RolledBack => "rolled_back",
        OperationState::Failed => "failed",
        OperationState::Superseded => "superseded",
        OperationState::Cancelled => "cancelled",
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Injected> for Stop {
    fn from(injected: Injected) -> Self {
        Self::Failed(Failure::new("injected", injected.to_string()))
    }
}

impl From<RuntimeError> for Stop {
    fn from(error: RuntimeError) -> Self {
        let (code, remedy) = match &error {
            RuntimeError::Unavailable { .. } => (
                "runtime_unavailable",
                "see that the engine runs, then deploy again; what is live goes on serving",
            ),
            RuntimeError::Image { .. } => {
                ("image_unavailable", "check the image's name and that this machine may pull it")
            }
            RuntimeError::Command { .. } => {
                ("command_not_runnable", "check that the command exists and may be executed")
            }
            RuntimeError::Refused { .. } | RuntimeError::Volume { .. } | RuntimeError::NotFound { .. } => {
                ("start_failed", "read the engine's answer above")
            }
        };
        Self::Failed(Failure::new(code, chain(&error)).remedy(remedy))
    }
}
