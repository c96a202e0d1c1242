//! Runs operations: one lane for each (app, environment), one job at a time in each, in the order of acceptance.
//!
//! A lane exists while it has work. An operation leaves its lane when its cutover holds; what drains behind it does not
//! keep the next one waiting.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::engine::{Engine, STORE_AGAIN, Stop};
use super::handover::{HandingOver, too_late};
use super::instances::Afterwards;
use super::moves::Move;
use super::steps;
use crate::error::chain;
use crate::ids::{AppName, DeploymentId, EnvironmentName, EphemeralLabel, OperationId};
use crate::store::{
    Deployment, DeploymentStatus, DesiredState, Failure, Operation, OperationKind, OperationState, Timer,
};

/// How many operations may wait in one lane.
pub(super) const WAITING_MAX: usize = 32;

/// All lanes with work.
#[derive(Debug, Default)]
pub(super) struct Lanes(Mutex<HashMap<LaneKey, Lane>>);

pub(super) type LaneKey = (AppName, EnvironmentName);

#[derive(Debug, Default)]
struct Lane {
    running: Option<Running>,
    waiting: VecDeque<Job>,
}

#[derive(Debug)]
struct Running {
    operation: OperationId,
    token: CancellationToken,
    /// Its caller was answered: what is left of it in the lane is over in a moment, and is nobody's concern.
    is_answered: bool,
}

/// What a deploy is one in a row of: a newer one of the same line makes those that wait pointless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Branch(Option<String>),
    Label(EphemeralLabel),
}

/// Something that a lane does.
#[derive(Clone, Debug)]
pub(super) enum Job {
    /// An accepted operation, or one that a restart finishes.
    Run { operation: OperationId, line: Option<Line> },
    /// A timer that is due.
    Fire(Timer),
    /// Nobody asked for it in its time.
    Rest(DeploymentId),
    /// Its office hours are over.
    StandBy { deployment: DeploymentId, decided: CancellationToken },
}

/// What a lane has for somebody who wants to submit.
#[derive(Clone, Debug, Default)]
pub(super) struct LaneView {
    pub(super) running: Option<OperationId>,
    pub(super) waiting: Vec<OperationId>,
}

impl Engine {
    /// Puts an operation at the end of its lane. Deploys of the same branch that still wait are superseded by it.
    pub(super) fn enqueue(self: &Arc<Self>, key: &LaneKey, job: Job) {
        let mut lanes = self.lanes.lock();
        let is_new = !lanes.contains_key(key);
        let lane = lanes.entry(key.clone()).or_default();
        let superseded = lane.supersede(&job);
        lane.waiting.push_back(job);
        drop(lanes);
        if is_new {
            self.tasks.spawn(Arc::clone(self).run_lane(key.clone()));
        }
        for operation in superseded {
            self.tasks.spawn(Arc::clone(self).end_superseded(operation));
        }
    }

    pub(super) fn lanes_submit_timer(self: &Arc<Self>, deployment: &Deployment, timer: Timer) {
        let key = (deployment.app.clone(), deployment.environment.clone());
        let is_known = self.lanes.lock().get(&key).is_some_and(|lane| {
            lane.waiting.iter().any(|job| matches!(job, Job::Fire(known) if known.nonce == timer.nonce))
        });
        if !is_known {
            self.enqueue(&key, Job::Fire(timer));
        }
    }

    /// Asks a running operation to stop, or takes a waiting one out of its lane. Whether it was found.
    pub(super) fn cancel(self: &Arc<Self>, key: &LaneKey, operation: OperationId) -> bool {
        if self.wakes.cancel_operation(operation) {
            return true;
        }
        let mut lanes = self.lanes.lock();
        let Some(lane) = lanes.get_mut(key) else { return false };
        if let Some(running) = lane.running.as_ref().filter(|running| running.operation == operation) {
            running.token.cancel();
            return true;
        }
        let is_it = |job: &Job| matches!(job, Job::Run { operation: waiting, .. } if *waiting == operation);
        let Some(at) = lane.waiting.iter().position(is_it) else { return false };
        lane.waiting.remove(at);
        drop(lanes);
        self.tasks.spawn(Arc::clone(self).end_unstarted(operation, Stop::Cancelled));
        true
    }

    async fn run_lane(self: Arc<Self>, key: LaneKey) {
        while let Some((job, token)) = self.next_job(&key) {
            match job {
                // Boxed: it is large, and runs once for each operation.
                Job::Run { operation, .. } => Box::pin(self.run(operation, &token)).await,
                Job::Fire(timer) => self.fire(timer).await,
                Job::Rest(deployment) => self.rest(deployment).await,
                Job::StandBy { deployment, decided } => {
                    self.put_into_standby(deployment).await;
                    decided.cancel();
                }
            }
        }
    }

    fn next_job(&self, key: &LaneKey) -> Option<(Job, CancellationToken)> {
        let mut lanes = self.lanes.lock();
        let lane = lanes.get_mut(key)?;
        lane.running = None;
        // Once the process ends nothing new begins; what waits is in the journal.
        let job = if self.stopping.is_cancelled() { None } else { lane.waiting.pop_front() };
        let Some(job) = job else {
            lanes.remove(key);
            return None;
        };
        let token = CancellationToken::new();
        if let Job::Run { operation, .. } = &job {
            lane.running = Some(Running { operation: *operation, token: token.clone(), is_answered: false });
        }
        Some((job, token))
    }

    pub(super) async fn run(self: &Arc<Self>, id: OperationId, cancel: &CancellationToken) {
        let Some(operation) = self.accepted(id).await else { return };
        if operation.cancel_requested && operation.cutover.is_none() {
            cancel.cancel();
        }
        let outcome = match (&operation.cutover, operation.state) {
            (Some(resized), _) if operation.kind == OperationKind::Scale => {
                self.resume_scale(&operation, resized).await
            }
            (Some(_), _) if operation.kind == OperationKind::Enable => {
                self.end(operation.id, OperationState::Succeeded, None, None).await;
                Ok(())
            }
            // Boxed because it is rare, and large.
            (Some(cutover), _) => Box::pin(self.resume_cutover(&operation, cutover)).await,
            (None, OperationState::Running) => self.go_on_or_undo(&operation, cancel).await,
            (None, _) => self.begin(&operation, cancel).await,
        };
        if let Err(stop) = outcome {
            self.end_stopped(&operation, stop).await;
        }
    }

    /// An operation that a restart found before its cutover: it goes on if a share of the visitors had its version.
    async fn go_on_or_undo(
        self: &Arc<Self>,
        operation: &Operation,
        cancel: &CancellationToken,
    ) -> Result<(), Stop> {
        if self.has_split(operation).await? {
            // Boxed because it is rare, and large.
            return Box::pin(self.resume_split(operation, cancel)).await;
        }
        self.undo_interrupted(operation, cancel).await
    }

    /// Reads an operation until the store answers: without it nothing can be run, and nobody may be told anything.
    async fn accepted(&self, id: OperationId) -> Option<Operation> {
        loop {
            match self.store.operation(&id).await {
                Ok(Some(operation)) => return Some(operation),
                Ok(None) => {
                    error!(operation = %id, "operation is not in the store");
                    return None;
                }
                Err(error) => warn!(operation = %id, error = chain(&error), "operation not read yet"),
            }
            tokio::select! {
                () = self.stopping.cancelled() => return None,
                () = self.clock.sleep(STORE_AGAIN) => {}
            }
        }
    }

    async fn begin(self: &Arc<Self>, operation: &Operation, cancel: &CancellationToken) -> Result<(), Stop> {
        self.store.start_operation(&operation.id, self.clock.wall()).await?;
        info!(operation = %operation.id, kind = ?operation.kind, app = %operation.app, "operation began");
        match operation.kind {
            OperationKind::Deploy => Box::pin(self.run_deploy(operation, cancel)).await,
            OperationKind::Scale => self.run_scale(operation, cancel).await,
            OperationKind::Enable => self.run_enable(operation, cancel).await,
            OperationKind::Wake => self.run_wake(operation, cancel).await,
            // Noted with their end.
            OperationKind::Standby | OperationKind::Archive => Ok(()),
            OperationKind::Swap | OperationKind::Rollback | OperationKind::Promote => {
                match self.decide_move(operation).await? {
                    Move::Traffic => Box::pin(self.run_swap(operation, cancel)).await,
                    Move::Confirm => self.confirm(operation).await,
                }
            }
        }
    }

    /// Makes a ready deployment live; what does not run, as in standby, is started and checked first.
    pub(super) async fn run_swap(
        self: &Arc<Self>,
        operation: &Operation,
        cancel: &CancellationToken,
    ) -> Result<(), Stop> {
        let id = self.deployment_of(operation).await?.id;
        let _in_hand = self.in_hand.claimed(id, &self.clock).await;
        // As it is now that nobody else wakes it.
        let before = self.fitted(self.deployment(id).await?).await?;
        let mut handing = None;
        let made_ready = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Stop::Cancelled),
            made_ready = self.make_warm_alone(operation, &before, &mut handing) => made_ready,
        };
        let outcome = match made_ready {
            Ok(()) => self.go_live(operation, before.id, cancel).await,
            Err(stop) => Err((stop, false)),
        };
        let Err((stop, committed)) = outcome else { return Ok(()) };
        if committed {
            self.release_held(&before);
        } else {
            self.put_back_to_sleep(&before).await;
            self.give_back_if(handing).await;
        }
        Err(stop)
    }

    /// The same as [`Engine::make_warm`], with what may not run beside it stopped first.
    async fn make_warm_alone(
        self: &Arc<Self>,
        operation: &Operation,
        deployment: &Deployment,
        handing: &mut Option<HandingOver>,
    ) -> Result<(), Stop> {
        let Some(from) = self.predecessor(deployment).await? else {
            return self.make_warm(operation, deployment).await;
        };
        Box::pin(self.hand_over(operation, (from, deployment), handing)).await?;
        let deadline = handing.as_ref().map_or_else(|| self.clock.now(), |handing| handing.deadline);
        tokio::select! {
            biased;
            warm = self.make_warm(operation, deployment) => warm,
            () = self.clock.sleep_until(deadline) => Err(too_late(deployment)),
        }
    }

    /// Sees to it that every instance of a deployment runs and is ready. Nothing is done where that is so.
    pub(super) async fn make_warm(&self, operation: &Operation, deployment: &Deployment) -> Result<(), Stop> {
        if self.is_warm(deployment).await? {
            return Ok(());
        }
        // Whoever cancels it drops it.
        self.warm_up(operation, deployment, None, &CancellationToken::new()).await
    }

    /// After an operation that did not come to its end: what was in standby is in standby again.
    pub(super) async fn put_back_to_sleep(&self, deployment: &Deployment) {
        if deployment.desired_state != DesiredState::Standby {
            return;
        }
        let slept = async {
            self.store.fall_asleep(&deployment.id).await?;
            let afterwards = match self.deployment(deployment.id).await?.desired_state {
                // Whoever did that found its instances claimed.
                DesiredState::Archived => Afterwards::Remove,
                DesiredState::Running | DesiredState::Standby => Afterwards::Keep,
            };
            self.retire_instances(deployment, afterwards).await
        };
        if let Err(stop) = slept.await {
            warn!(deployment = %deployment.id, ?stop, "not stopped yet; reconcile tries again");
        }
    }

    /// After a restart: what the operation woke and did not make live is in standby again.
    pub(super) async fn let_sleep_again(
        &self,
        operation: &Operation,
        deployment: Deployment,
    ) -> Result<(), Stop> {
        let steps = self.store.steps(&operation.id).await?;
        let was_woken = steps.iter().any(|step| step.name == steps::WAKE.name);
        let environment = self.environment_of(&deployment).await?;
        if was_woken && environment.live != Some(deployment.id) {
            let asleep = Deployment { desired_state: DesiredState::Standby, ..deployment };
            self.put_back_to_sleep(&asleep).await;
        }
        Ok(())
    }

    /// An operation that a crash interrupted before its cutover: nothing of it was seen, so it is taken back. A
    /// deployment that was to be reached by its own names, and was ready, is led there.
    async fn undo_interrupted(
        self: &Arc<Self>,
        operation: &Operation,
        cancel: &CancellationToken,
    ) -> Result<(), Stop> {
        let failure = Failure::new("interrupted", "lockgate was restarted before the cutover")
            .remedy("deploy again; what was live before is live");
        let remedy = match operation.kind {
            // What it had started is spare, and goes.
            OperationKind::Scale => Some("scale again; as many instances serve as before"),
            // What it had started is a disabled app's, and is stopped.
            OperationKind::Enable => Some("enable it again"),
            OperationKind::Deploy
            | OperationKind::Swap
            | OperationKind::Rollback
            | OperationKind::Promote
            | OperationKind::Wake
            | OperationKind::Standby
            | OperationKind::Archive => None,
        };
        if let Some(remedy) = remedy {
            return Err(Stop::Failed(failure.remedy(remedy)));
        }
        let deployment = self.deployment_of(operation).await?;
        match operation.kind {
            OperationKind::Scale
            | OperationKind::Enable
            | OperationKind::Standby
            | OperationKind::Archive => {}
            OperationKind::Deploy if deployment.status == DeploymentStatus::Ready => {
                let why = "lockgate was restarted meanwhile";
                return match deployment.label {
                    Some(_) => self.serve_label(operation, deployment.id).await,
                    None => self.rest_ready(operation, deployment.id, why).await,
                };
            }
            OperationKind::Deploy => {
                self.undo_deploy(operation, &deployment, &Stop::Failed(failure.clone())).await;
                self.give_back_interrupted(&deployment).await;
            }
            OperationKind::Wake => return self.undo_wake(operation, &deployment, cancel).await,
            OperationKind::Swap | OperationKind::Rollback | OperationKind::Promote => {
                self.let_sleep_again(operation, deployment.clone()).await?;
                self.give_back_interrupted(&deployment).await;
            }
        }
        Err(Stop::Failed(failure))
    }

    /// Writes the end of an operation that did not succeed, if that is not written yet.
    async fn end_stopped(self: &Arc<Self>, operation: &Operation, stop: Stop) {
        let (state, failure) = match stop {
            Stop::Failed(failure) => (OperationState::Failed, Some(failure)),
            Stop::DidNotHold(failure) => (OperationState::RolledBack, Some(failure)),
            Stop::Cancelled => (OperationState::Cancelled, None),
            Stop::Superseded(failure) => (OperationState::Superseded, Some(failure)),
            Stop::Noop(live) => (
                OperationState::Succeeded,
                Some(Failure::new("noop", format!("an equal deployment is live: {live}"))),
            ),
            Stop::Store(source) => {
                error!(operation = %operation.id, error = chain(&source), "operation stopped for want of the store");
                (OperationState::Failed, Some(Failure::new("store", chain(&source))))
            }
        };
        if let Some(failure) = failure.as_ref().filter(|_| !state.is_success()) {
            warn!(operation = %operation.id, code = failure.code, cause = failure.cause, "operation ended");
        }
        self.end(operation.id, state, failure, None).await;
    }

    async fn end_superseded(self: Arc<Self>, operation: OperationId) {
        let failure = Failure::new("superseded", "a newer deploy of the same branch was submitted");
        self.end_unstarted(operation, Stop::Superseded(failure)).await;
    }

    /// Ends an operation that never began.
    async fn end_unstarted(self: Arc<Self>, id: OperationId, stop: Stop) {
        match self.store.operation(&id).await {
            Ok(Some(operation)) => {
                if let Ok(deployment) = self.deployment_of(&operation).await
                    && operation.kind == OperationKind::Deploy
                {
                    self.undo_deploy(&operation, &deployment, &stop).await;
                }
                self.end_stopped(&operation, stop).await;
            }
            Ok(None) => {}
            Err(error) => warn!(operation = %id, error = chain(&error), "end not written; a restart runs it"),
        }
    }
}

impl Lanes {
    /// Whether a deployment is about to be looked at.
    pub(super) fn waits_to_rest(&self, key: &LaneKey, deployment: DeploymentId) -> bool {
        let is_it = |job: &Job| matches!(job, Job::Rest(waiting) if *waiting == deployment);
        self.lock().get(key).is_some_and(|lane| lane.waiting.iter().any(is_it))
    }

    pub(super) fn view(&self, key: &LaneKey) -> LaneView {
        let lanes = self.lock();
        let Some(lane) = lanes.get(key) else { return LaneView::default() };
        let waiting = lane.waiting.iter().filter_map(|job| match job {
            Job::Run { operation, .. } => Some(*operation),
            Job::Fire(_) | Job::Rest(_) | Job::StandBy { .. } => None,
        });
        let running = lane.running.as_ref().filter(|running| !running.is_answered);
        LaneView { running: running.map(|running| running.operation), waiting: waiting.collect() }
    }

    /// Whoever is answered and asks for the next thing must not find the lane taken by what was answered.
    pub(super) fn answered(&self, operation: OperationId) {
        let mut lanes = self.lock();
        let mut running = lanes.values_mut().filter_map(|lane| lane.running.as_mut());
        if let Some(running) = running.find(|running| running.operation == operation) {
            running.is_answered = true;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LaneKey, Lane>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    /// Takes out the waiting deploys that `job` makes pointless.
    fn supersede(&mut self, job: &Job) -> Vec<OperationId> {
        let Job::Run { line: Some(line), .. } = job else { return Vec::new() };
        let is_older = |waiting: &Job| matches!(waiting, Job::Run { line: Some(other), .. } if other == line);
        let (older, kept): (VecDeque<_>, VecDeque<_>) = self.waiting.drain(..).partition(is_older);
        self.waiting = kept;
        older
            .into_iter()
            .filter_map(|job| match job {
                Job::Run { operation, .. } => Some(operation),
                Job::Fire(_) | Job::Rest(_) | Job::StandBy { .. } => None,
            })
            .collect()
    }
}

/// What was asked of an operation, from its journal.
pub(super) fn request_of<T: serde::de::DeserializeOwned>(operation: &Operation) -> Result<T, Stop> {
    serde_json::from_str(&operation.request).map_err(|error| {
        Stop::Failed(Failure::new("damaged", format!("the journal of the request: {error}")))
    })
}
