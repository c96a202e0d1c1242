//! Waking: a version in standby is started by the first request that waits for it, or because somebody asks.
//!
//! ```text
//! standby, held ─▶ a request waits, the bell rings ─▶ wake: start ─▶ check ─▶ commit ─▶ publish ─▶ release
//!        ▲                                                       └▶ it fails: refused, stopped, held shut for `wake_backoff`
//!        └──────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! # What holds
//! 1. One start however many requests: one operation for each deployment at a time ([`Wakes`]), beside the lanes, so that
//!    a preview need not wait for a deploy of its app. Who starts or stops instances of a deployment claims it first.
//! 2. The store says `standby` until the instances were seen ready; then desired state and rows change in one transaction
//!    ([`crate::store::Store::commit_wake`]). A crash before that is undone, and begun anew
//!    where its time had come, as nobody would ask for it again; one after it needs nothing.
//! 3. A version that is only waiting for its last requests before it is stopped is not: it serves again as it is.
//! 4. Requests that wait are released after the publish, never before, and none is forgotten: whatever ends a wake, the
//!    hold is released, refused, or rings again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::cutover::reopen;
use super::engine::{CLAIM_AGAIN, Claim, Engine, STORE_AGAIN, Stop};
use super::hours::SCHEDULE;
use super::instances::{owner, set_life};
use super::schedule::TIMER;
use super::steps;
use super::submit::status_text;
use super::{Caller, Denied, Orchestrator, Submitted};
use crate::error::chain;
use crate::fault;
use crate::ids::{DeploymentId, OperationId};
use crate::routing::{Hold, HoldRules, Refusal, WaitingPage};
use crate::runtime::Instance;
use crate::settings::AppSettings;
use crate::store::{
    Deployment, DeploymentStatus, DesiredState, Failure, InstancePhase, Operation, OperationKind,
    OperationState, Timer, WakePlan,
};

/// How long a browser waits before it is shown that something starts: most starts are over by then, and nobody sees it.
const PAGE_AFTER: Duration = Duration::from_secs(5);

const WAKING: Refusal =
    Refusal { code: "waking", detail: "The application is starting.", retry_after: 2, refresh: Some(2) };
const TIMED_OUT: Refusal = Refusal {
    code: "wake_timeout",
    detail: "The application did not start in time.",
    retry_after: 5,
    refresh: None,
};
const QUEUE_FULL: Refusal = Refusal {
    code: "queue_full",
    detail: "The application is starting, and too many wait for it.",
    retry_after: 5,
    refresh: None,
};
const IN_STANDBY: Refusal = Refusal {
    code: "deployment_in_standby",
    detail: "The application is stopped.",
    retry_after: 60,
    refresh: None,
};

const CANCELLED: Refusal =
    Refusal { code: "wake_cancelled", detail: "The application is stopped.", retry_after: 5, refresh: None };

/// The wakes that go on.
#[derive(Debug, Default)]
pub(super) struct Wakes(Mutex<HashMap<DeploymentId, Wake>>);

#[derive(Clone, Debug)]
struct Wake {
    operation: OperationId,
    cancel: CancellationToken,
}

impl Orchestrator {
    pub(super) async fn submit_wake(
        &self,
        deployment: DeploymentId,
        caller: Caller,
    ) -> Result<Submitted, Denied> {
        // What is looked at here still holds when the operation is there.
        let turn = self.engine.submitting.lock().await;
        self.submit_wake_in(&turn, deployment, caller).await
    }

    async fn submit_wake_in(
        &self,
        _turn: &tokio::sync::MutexGuard<'_, ()>,
        deployment: DeploymentId,
        caller: Caller,
    ) -> Result<Submitted, Denied> {
        let found = self.engine.store.deployment(&deployment).await?;
        let found = found.ok_or(Denied::DeploymentNotFound { deployment })?;
        if found.status != DeploymentStatus::Ready || found.desired_state == DesiredState::Archived {
            return Err(Denied::DeploymentNotReady { deployment, status: status_text(&found) });
        }
        if self.engine.publisher.is_disabled(&found.app) {
            return Err(Denied::AppDisabled { app: found.app });
        }
        if let Some(going_on) = self.engine.wakes.of(deployment) {
            return self.repeated(going_on).await;
        }
        let key = (found.app.clone(), found.environment.clone());
        let operation = self.operation(OperationKind::Wake, &key, Some(deployment), "{}".to_owned(), caller);
        self.accept(&key, operation, None, None).await
    }
}

impl Engine {
    /// Wakes what requests wait for, until the engine stops.
    pub(super) async fn keep_waking(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = self.publisher.bell().notified() => {}
            }
            for deployment in self.publisher.wanted() {
                self.tasks.spawn(Arc::clone(&self).wake_for_requests(deployment));
            }
        }
    }

    /// Begins to wake a deployment, unless somebody is at it, for as long as a request waits for it.
    async fn wake_for_requests(self: Arc<Self>, deployment: DeploymentId) {
        let orchestrator = Orchestrator { engine: Arc::clone(&self) };
        while !self.stopping.is_cancelled() {
            let turn = self.submitting.lock().await;
            // Looked at in turn: the bell may have rung more than once, and who came first may be done by now.
            if !self.is_waited_for(deployment) {
                return;
            }
            let caller = Caller { actor: "request".to_owned(), idempotency: None };
            let submitted = orchestrator.submit_wake_in(&turn, deployment, caller).await;
            drop(turn);
            match submitted {
                Ok(_) => return,
                Err(Denied::Store { source }) => {
                    warn!(%deployment, error = chain(&source), "not woken yet; tried again");
                    self.clock.sleep(STORE_AGAIN).await;
                }
                Err(denied) => return warn!(%deployment, error = chain(&denied), "not woken"),
            }
        }
    }

    fn is_waited_for(&self, deployment: DeploymentId) -> bool {
        self.publisher.held_by(deployment).is_some_and(|hold| hold.waiting() > 0)
    }

    /// Runs a wake beside the lanes, where it waits for nothing but those who have the same deployment in hand.
    pub(super) fn run_aside(self: &Arc<Self>, deployment: DeploymentId, operation: OperationId) {
        if self.stopping.is_cancelled() {
            // It is in the journal.
            return;
        }
        let cancel = CancellationToken::new();
        self.wakes.lock().insert(deployment, Wake { operation, cancel: cancel.clone() });
        let engine = Arc::clone(self);
        self.tasks.spawn(async move {
            Box::pin(engine.run(operation, &cancel)).await;
            engine.wakes.lock().remove(&deployment);
            // Of one that a restart interrupted, and that was only undone now.
            engine.wake_for_requests(deployment).await;
        });
    }

    /// Ends the wake of a deployment that is to be stopped, if there is one, and waits until it does nothing any more.
    pub(super) async fn call_off_wake(&self, deployment: DeploymentId) {
        if self.wakes.cancel(|of, _| of == deployment) {
            drop(self.in_hand.claimed(deployment, &self.clock).await);
        }
    }

    pub(super) async fn run_wake(
        self: &Arc<Self>,
        operation: &Operation,
        cancel: &CancellationToken,
    ) -> Result<(), Stop> {
        let id = self.deployment_of(operation).await?.id;
        let _in_hand = tokio::select! {
            biased;
            // Who has it in hand may be about to serve it: who waits for it waits on.
            () = cancel.cancelled() => return Err(Stop::Cancelled),
            claim = self.in_hand.claimed(id, &self.clock) => claim,
        };
        let deployment = self.fitted(self.deployment(id).await?).await?;
        match deployment.desired_state {
            // A swap was faster.
            DesiredState::Running => {}
            DesiredState::Standby => {
                let rest = self.rest_of(&deployment).await?;
                let woken = self.warm_up(operation, &deployment, rest, cancel).await;
                if let Err(stop) = woken {
                    match stop {
                        Stop::Cancelled => {
                            self.turn_away(&deployment);
                            self.put_back_to_sleep(&deployment).await;
                        }
                        _ => self.shut(&deployment, &stop).await,
                    }
                    return Err(stop);
                }
                info!(deployment = %id, by = operation.actor, "woken");
            }
            DesiredState::Archived => {
                let failure = Failure::new("deployment_not_ready", "it was archived meanwhile");
                return Err(Stop::Superseded(failure));
            }
        }
        self.end(operation.id, OperationState::Succeeded, None, None).await;
        Ok(())
    }

    /// Starts and checks every instance of a deployment, and serves it by them. The caller has it in hand.
    pub(super) async fn warm_up(
        &self,
        operation: &Operation,
        deployment: &Deployment,
        rest: Option<Timer>,
        cancel: &CancellationToken,
    ) -> Result<(), Stop> {
        let _claim = self.claimed_to_wake(deployment.id).await;
        let woken = self
            .step(operation.id, steps::WAKE, async {
                Ok((self.wake_instances(deployment).await?, String::new()))
            })
            .await?;
        let pinned = self.pinned_of(deployment)?;
        self.step(operation.id, steps::CHECK, async {
            // Not before: what was told to start is known by then, and can be stopped.
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(Stop::Cancelled),
                ready = self.wait_all_ready(deployment, &pinned, &woken) => ready?,
            }
            Ok(((), String::new()))
        })
        .await?;
        let instances = self.now(woken).await;
        self.commit_warm(deployment, &instances, rest).await?;
        fault::at("wake.committed")?;
        // Those that were about to be stopped are the same as before. While the app is shut their gates are as well.
        if !self.publisher.is_shut(&deployment.app) {
            self.publisher.all_targets(deployment.id).iter().for_each(|target| reopen(target));
        }
        self.set_targets(deployment, &instances);
        Ok(())
    }

    /// Whoever stops its instances has to be done with it before they are started, and waits until they serve. Who only
    /// waits for the last requests before he stops them leaves them running.
    async fn claimed_to_wake(&self, deployment: DeploymentId) -> Claim<DeploymentId> {
        loop {
            self.retirements.call_off(deployment);
            if let Some(claim) = self.retiring.claim(deployment) {
                return claim;
            }
            self.clock.sleep(CLAIM_AGAIN).await;
        }
    }

    pub(super) async fn commit_warm(
        &self,
        deployment: &Deployment,
        instances: &[Instance],
        rest: Option<Timer>,
    ) -> Result<(), Stop> {
        let mut rows = self.store.instances(Some(&deployment.id)).await?;
        for row in &mut rows {
            if let Some(instance) = instances.iter().find(|instance| instance.id == row.id) {
                set_life(row, instance, InstancePhase::Running);
            }
        }
        if deployment.desired_state == DesiredState::Running {
            for row in &rows {
                self.store.put_instance(row).await?;
            }
            return Ok(());
        }
        let plan = WakePlan { deployment: deployment.id, instances: rows, rest };
        if self.store.commit_wake(&plan).await? {
            return Ok(());
        }
        Err(Stop::Superseded(Failure::new("deployment_not_ready", "it was archived meanwhile")))
    }

    /// When a version goes to rest again that is neither a preview nor live: nobody else would see to it.
    async fn rest_of(&self, deployment: &Deployment) -> Result<Option<Timer>, Stop> {
        if deployment.label.is_some() || self.environment_of(deployment).await?.live == Some(deployment.id) {
            return Ok(None);
        }
        let after = deployment.settings.deploy.standby_after;
        Ok(Some(self.by_itself(deployment.id, DesiredState::Standby, after)))
    }

    /// After a wake that failed: who waits is told, and so is who comes before the time for another try.
    async fn shut(self: &Arc<Self>, deployment: &Deployment, stop: &Stop) {
        let backoff = deployment.settings.wake_backoff.0;
        let refusal = failed(backoff);
        let shut = Arc::new(Hold::new(closed(refusal), None).until(self.clock.now() + backoff));
        if let Some(held) = self.publisher.hold(&owner(deployment), &shut) {
            held.refuse(refusal);
        }
        if let Stop::Failed(failure) = stop
            && let Err(error) = self.store.note_failure(&deployment.id, failure).await
        {
            warn!(deployment = %deployment.id, error = chain(&error), "failure not written");
        }
        self.put_back_to_sleep(deployment).await;
        let (engine, deployment) = (Arc::clone(self), deployment.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = engine.stopping.cancelled() => return,
                () = engine.clock.sleep(backoff) => {}
            }
            if engine.publisher.held_by(deployment.id).is_some_and(|now| Arc::ptr_eq(&now, &shut)) {
                engine.hold_asleep(&deployment);
            }
        });
    }

    /// A wake that a crash interrupted: committed, or nothing that anybody saw. One whose time had come, its own or that of
    /// office hours, begins anew, as nobody would ask for it again.
    pub(super) async fn undo_wake(
        self: &Arc<Self>,
        operation: &Operation,
        deployment: &Deployment,
        cancel: &CancellationToken,
    ) -> Result<(), Stop> {
        if deployment.desired_state == DesiredState::Running {
            self.end(operation.id, OperationState::Succeeded, None, None).await;
            return Ok(());
        }
        let in_hand = self.in_hand.claimed(deployment.id, &self.clock).await;
        self.put_back_to_sleep(deployment).await;
        if [TIMER, SCHEDULE].contains(&operation.actor.as_str()) {
            drop(in_hand);
            return self.run_wake(operation, cancel).await;
        }
        let failure = Failure::new("interrupted", "lockgate was restarted before it was ready");
        Err(Stop::Failed(failure.remedy("the next request starts it again")))
    }

    /// After a wake that somebody cancelled: who waits is told, and whoever comes next begins another one.
    fn turn_away(&self, deployment: &Deployment) {
        let hold = Arc::new(hold_for(&deployment.settings, self.publisher.bell()));
        if let Some(held) = self.publisher.hold(&owner(deployment), &hold) {
            held.refuse(CANCELLED);
        }
    }

    /// Has who waits for a version that was replaced meanwhile look for its successor. Who means the version itself waits
    /// on for it.
    pub(super) async fn send_on(&self, from: DeploymentId) {
        if !self.is_waited_for(from) {
            return;
        }
        match self.deployment(from).await {
            Ok(deployment) => self.hold_asleep(&deployment),
            Err(stop) => warn!(deployment = %from, ?stop, "who waits for it waits on"),
        }
    }

    /// Has the requests of a deployment in standby wait, and wake it if they may.
    pub(super) fn hold_asleep(&self, deployment: &Deployment) {
        let hold = Arc::new(hold_for(&deployment.settings, self.publisher.bell()));
        if let Some(held) = self.publisher.hold(&owner(deployment), &hold) {
            // Who waited resolves the route again, and waits here.
            held.release();
        }
    }
}

impl Wakes {
    /// Asks a wake to stop, by its operation. Whether it was found.
    pub(super) fn cancel_operation(&self, operation: OperationId) -> bool {
        self.cancel(|_, wake| wake.operation == operation)
    }

    fn of(&self, deployment: DeploymentId) -> Option<OperationId> {
        self.lock().get(&deployment).map(|wake| wake.operation)
    }

    fn cancel(&self, is_it: impl Fn(DeploymentId, &Wake) -> bool) -> bool {
        let wakes = self.lock();
        let found = wakes.iter().find(|(deployment, wake)| is_it(**deployment, wake));
        found.inspect(|(_, wake)| wake.cancel.cancel()).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeploymentId, Wake>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What holds the requests of a version in standby; `bell` is rung for the first.
pub(super) fn hold_for(settings: &AppSettings, bell: &Arc<Notify>) -> Hold {
    if !settings.wake {
        return Hold::new(closed(IN_STANDBY), None);
    }
    let rules = HoldRules {
        limit: settings.wake_timeout.0,
        cap: usize::try_from(settings.wake_queue).unwrap_or(usize::MAX),
        timed_out: TIMED_OUT,
        full: QUEUE_FULL,
        page: Some(WaitingPage { after: PAGE_AFTER, shown: WAKING }),
    };
    Hold::new(rules, Some(Arc::clone(bell)))
}

/// Nobody waits; all are told `refusal`.
fn closed(refusal: Refusal) -> HoldRules {
    HoldRules { limit: Duration::ZERO, cap: 0, timed_out: refusal, full: refusal, page: None }
}

fn failed(backoff: Duration) -> Refusal {
    Refusal {
        code: "wake_failed",
        detail: "The application could not be started.",
        retry_after: u16::try_from(backoff.as_secs()).unwrap_or(u16::MAX).max(1),
        refresh: None,
    }
}
