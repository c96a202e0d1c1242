//! Strategy `hold`: for apps of which no two instances may run at once, as with one writer of a volume.
//!
//! ```text
//! hold requests ─▶ close the old gates, drain ─▶ stop ─▶ (release command) start, check ─▶ swap ─▶ release requests
//!        └──────────── failed, cancelled, or past the deadline: remove the new, start the old ─▶ release requests
//!
//! the new one does not hold: hold requests ─▶ the same with the two exchanged, and the swap is the one back
//! ```
//!
//! # What holds
//! 1. An instance of such an app is started only while no instance of another of its versions in the environment runs:
//!    the runtime is asked, under one lock that is held until the start is done ([`Engine::alone`]). Whoever starts
//!    something, whatever a crash left and whoever is wrong about it, comes by there.
//! 2. The old version's instances get their signal behind closed gates, as ever; the time for their drain is part of the
//!    time for which requests are held.
//! 3. Requests are released when a version serves, the new one or the old one again, and what serves was published first;
//!    or when neither can, and then nothing is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::MutexGuard;
use tracing::{info, warn};

use super::cutover::{Cutover, reopen};
use super::drain::{Deadlines, drain};
use super::engine::{Claim, Engine, Stop};
use super::instances::{Afterwards, pinned};
use super::receipt::HeldReceipt;
use super::steps;
use crate::fault;
use crate::ids::{DeploymentId, InstanceId};
use crate::routing::{Hold, HoldRules, Refusal};
use crate::settings::{DeploySettings, DrainMode, Strategy};
use crate::store::{Deployment, DeploymentStatus, DesiredState, Failure, Operation};

const TOO_LONG: Refusal = Refusal {
    code: "hold_timeout",
    detail: "This application is being replaced. Try again shortly.",
    retry_after: 5,
    refresh: None,
};
const FULL: Refusal = Refusal {
    code: "hold_queue_full",
    detail: "This application is being replaced, and as many requests wait as may.",
    retry_after: 5,
    refresh: None,
};

/// Requests of an environment that are held while one version takes over from another.
#[derive(Debug)]
pub(super) struct Handover {
    pub(super) hold: Arc<Hold>,
    pub(super) began: Instant,
}

/// What an operation that hands over keeps until it has left its lane.
#[derive(Debug)]
pub(super) struct HandingOver {
    pub(super) from: Deployment,
    /// From then on the old version is started again.
    pub(super) deadline: Instant,
    _claim: Claim<DeploymentId>,
}

impl Engine {
    /// What is live and has to be stopped before `to` is started; `None` where both may run.
    pub(super) async fn predecessor(&self, to: &Deployment) -> Result<Option<Deployment>, Stop> {
        if to.label.is_some() {
            return Ok(None);
        }
        let live = self.live_of(to).await?.filter(|live| live.id != to.id);
        Ok(live.filter(|live| is_alone(live) || is_alone(to)))
    }

    /// Holds the requests of the environment, drains what serves there and stops it. `handing` is there from the first
    /// moment at which there is something to give back, whatever becomes of this.
    pub(super) async fn hand_over(
        self: &Arc<Self>,
        operation: &Operation,
        (from, to): (Deployment, &Deployment),
        handing: &mut Option<HandingOver>,
    ) -> Result<(), Stop> {
        let claim = self.in_hand.claimed(from.id, &self.clock).await;
        let began = self.clock.now();
        let limit = to.settings.deploy.hold_timeout.0;
        // Who waits when the deadline has passed waits for the old version's start.
        let rules = rules(&to.settings.deploy, limit + from.settings.deploy.health_timeout.0);
        let deadline = began + limit;
        *handing = Some(HandingOver { from: from.clone(), deadline, _claim: claim });
        let stopping = self.step(operation.id, steps::HOLD, async {
            let hold = Arc::new(Hold::new(rules, None));
            self.publisher.begin_handover(&from, Handover { hold, began });
            fault::at("hold.published")?;
            self.stop_all_but(to, &from, limit).await?;
            Ok(((), String::new()))
        });
        tokio::select! {
            biased;
            stopped = stopping => stopped,
            () = self.clock.sleep_until(deadline) => Err(too_late(to)),
        }
    }

    /// What went live did not hold, and what was live before was stopped for it: the way there, once more and back. What the
    /// requests find that waited is published before they go on: the version before, or nothing.
    pub(super) async fn hand_back(
        self: &Arc<Self>,
        operation: &Operation,
        (from, to): (&Deployment, &Deployment),
        cutover: &Cutover,
    ) -> Result<HeldReceipt, Stop> {
        // Which of them the operation has in hand already depends on its kind.
        let _in_hand = [self.in_hand.claim(from.id), self.in_hand.claim(to.id)];
        let limit = from.settings.deploy.hold_timeout.0;
        let rules = rules(&from.settings.deploy, limit + to.settings.deploy.health_timeout.0);
        let handover = Handover { hold: Arc::new(Hold::new(rules, None)), began: self.clock.now() };
        self.publisher.begin_handover(from, handover);
        let handed = async {
            fault::at("hand-back.published")?;
            self.stop_all_but(to, from, limit).await?;
            fault::at("hand-back.stopped")?;
            self.start_stopped(to).await?;
            self.swap_back(operation, to, cutover).await
        };
        let handed = handed.await;
        if handed.is_err() {
            self.leave_to(from, to).await;
        }
        let held = self.release_held(from);
        handed.map(|_| held.unwrap_or(HeldReceipt { requests: 0, ms: 0 }))
    }

    /// Neither serves. The restart rule tries the one that is live, and the other one is not in its way.
    async fn leave_to(&self, live: &Deployment, other: &Deployment) {
        let stopped = async {
            if self.environment_of(live).await?.live == Some(other.id) {
                // It got as far as the swap: what was committed stands.
                return Ok(());
            }
            let targets = self.publisher.live_targets(other.id);
            targets.iter().for_each(|target| target.gate.close());
            for row in self.replicas_of(other.id).await? {
                self.stop_instance(other, row, &targets, Afterwards::Keep).await?;
            }
            self.publisher.forget(other.id);
            Ok::<(), Stop>(())
        };
        if let Err(stop) = stopped.await {
            warn!(deployment = %other.id, ?stop, "not stopped yet; its rest is due");
        }
    }

    /// Stops `from`, and whatever else of the environment's versions still runs.
    async fn stop_all_but(
        self: &Arc<Self>,
        to: &Deployment,
        from: &Deployment,
        limit: Duration,
    ) -> Result<(), Stop> {
        self.revivals.stop(from.id).await;
        let targets = self.publisher.all_targets(from.id);
        for target in &targets {
            target.gate.close();
        }
        let deadlines = Deadlines::new(&within(&from.settings.deploy, limit / 2), self.clock.now());
        let drained = drain(&targets, deadlines, self.publisher.routing(), &self.clock).await;
        drained.tell_of_cuts(from.id, "it stops for another version");
        fault::at("hold.drained")?;
        for row in self.store.instances(Some(&from.id)).await? {
            self.stop_instance(from, row, &targets, Afterwards::Keep).await?;
        }
        self.publisher.forget(from.id);
        for other in self.store.deployments_in_service().await? {
            let is_beside = other.id != from.id && other.id != to.id && is_of_same(&other, to);
            if is_beside && other.status == DeploymentStatus::Ready {
                self.store.set_desired_state(&other.id, DesiredState::Standby).await?;
                self.retire_instances(&other, Afterwards::Keep).await?;
            }
        }
        Ok(())
    }

    /// Ends the holding of requests, which find what is published by now. What it came to, if there was one.
    pub(super) fn release_held(&self, of: &Deployment) -> Option<HeldReceipt> {
        let Handover { hold, began } = self.publisher.end_handover(of)?;
        let requests = hold.waiting() as u64;
        hold.release();
        let ms = u64::try_from(self.clock.now().duration_since(began).as_millis()).unwrap_or(u64::MAX);
        info!(app = %of.app, environment = %of.environment, requests, ms, "held requests released");
        Some(HeldReceipt { requests, ms })
    }

    /// See [`Engine::give_back`]; nothing where nothing was taken.
    pub(super) async fn give_back_if(&self, handing: Option<HandingOver>) {
        if let Some(handing) = handing {
            self.give_back(&handing.from).await;
        }
    }

    /// The new version did not come to serve: the old one does again. What was started of the new one is gone by now.
    pub(super) async fn give_back(&self, from: &Deployment) {
        match self.start_stopped(from).await {
            Ok(()) => info!(deployment = %from.id, "serves again"),
            Err(stop) => {
                warn!(deployment = %from.id, ?stop, "does not serve again yet; the restart rule goes on")
            }
        }
        self.release_held(from);
    }

    /// Starts what was stopped for another version, and makes it known to the data plane once it is ready.
    async fn start_stopped(&self, deployment: &Deployment) -> Result<(), Stop> {
        // One that had its signal is not running for long.
        for row in self.replicas_of(deployment.id).await? {
            if row.stop_signalled_at.is_some() {
                self.stop_instance(deployment, row, &[], Afterwards::Keep).await?;
            }
        }
        let woken = self.wake_instances(deployment).await?;
        self.wait_all_ready(deployment, &pinned(deployment)?, &woken).await?;
        let instances = self.now(woken).await;
        self.commit_warm(deployment, &instances, None).await?;
        self.set_targets(deployment, &instances);
        self.publisher.all_targets(deployment.id).iter().for_each(|target| reopen(target));
        Ok(())
    }

    /// That no instance of another version runs beside what is about to be started; to be kept until it is.
    pub(super) async fn alone(
        &self,
        deployment: &Deployment,
        starting: InstanceId,
    ) -> Result<Option<MutexGuard<'_, ()>>, Stop> {
        if !is_alone(deployment) {
            return Ok(None);
        }
        let turn = self.starting_alone.lock().await;
        let rows = self.store.instances(None).await?;
        for row in rows {
            let is_of_same = (&row.app, &row.environment) == (&deployment.app, &deployment.environment);
            if !is_of_same || row.id == starting {
                continue;
            }
            if self.deployment(row.deployment).await?.label.is_some() {
                continue;
            }
            if self.runtime.inspect(&row.id).await?.is_some_and(|instance| instance.is_running()) {
                let cause = format!("instance {} of {} runs, and no two may", row.id, row.deployment);
                return Err(Stop::Failed(
                    Failure::new("another_runs", cause).remedy("wait until it has ended"),
                ));
            }
        }
        Ok(Some(turn))
    }

    /// Before anything is stopped for it: whether the deployment would go live at all.
    pub(super) async fn refuse_beside(&self, deployment: &Deployment) -> Result<(), Stop> {
        if self.environment_of(deployment).await?.rolled_back {
            let cause =
                "the environment is rolled back, and strategy hold has no version beside the live one";
            return Err(Stop::Failed(
                Failure::new("rolled_back", cause).remedy("promote what is live, then deploy again"),
            ));
        }
        match self.live_of(deployment).await? {
            Some(live) if live.sequence > deployment.sequence => {
                let cause = format!("{} is newer and live already", live.id);
                Err(Stop::Superseded(Failure::new("superseded", cause)))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// After a restart: what a handover had stopped serves again.
    pub(super) async fn give_back_interrupted(&self, to: &Deployment) {
        match self.predecessor(to).await {
            Ok(Some(from)) if self.should_run(&from) => {
                let _claim = self.in_hand.claimed(from.id, &self.clock).await;
                if self.is_warm(&from).await.is_ok_and(|is_warm| is_warm) {
                    return;
                }
                self.give_back(&from).await;
            }
            Ok(_) => {}
            Err(stop) => {
                warn!(deployment = %to.id, ?stop, "what was live before is not known; the restart rule goes on")
            }
        }
    }
}

fn rules(settings: &DeploySettings, limit: Duration) -> HoldRules {
    let cap = settings.hold_queue as usize;
    HoldRules { limit, cap, timed_out: TOO_LONG, full: FULL, page: None }
}

pub(super) fn too_late(to: &Deployment) -> Stop {
    let limit = to.settings.deploy.hold_timeout;
    let cause = format!("the new version did not serve within {limit} from when requests were held");
    Stop::Failed(
        Failure::new("hold_timed_out", cause).remedy("raise deploy.hold_timeout, or have it start faster"),
    )
}

/// Whether no other version may run beside it. Previews have volumes of their own.
pub(super) fn is_alone(deployment: &Deployment) -> bool {
    deployment.settings.deploy.strategy == Strategy::Hold && deployment.label.is_none()
}

fn is_of_same(one: &Deployment, other: &Deployment) -> bool {
    (&one.app, &one.environment, &one.label) == (&other.app, &other.environment, &other.label)
}

/// The same with a drain that ends in time.
fn within(settings: &DeploySettings, limit: Duration) -> DeploySettings {
    let shorter = |delay: crate::settings::Delay| crate::settings::Delay(delay.0.min(limit));
    DeploySettings {
        drain_mode: DrainMode::Inflight,
        drain_timeout: shorter(settings.drain_timeout),
        stream_drain_timeout: shorter(settings.stream_drain_timeout),
        ..settings.clone()
    }
}
