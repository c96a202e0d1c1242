//! Idling: a version that nobody asks for goes to standby by itself, and the next request wakes it (see `wake`).
//!
//! ```text
//! no request for its time ─▶ in its lane: hold ─▶ close gates ─▶ something in flight, or somebody waits? ─▶ open, release
//!                                                                └▶ commit standby ─▶ stop
//! ```
//!
//! # What holds
//! 1. Nothing is stopped that has something in flight: whoever entered before the gates were closed is seen behind them, and
//!    then nothing has happened. Who comes later waits at the hold and wakes it.
//! 2. Deploys, rollbacks and promotes are decided in the same lane, so what is about to serve is not put to rest, and who
//!    starts instances waits for the claim on the deployment.
//! 3. The store says `running` until the gates were seen empty. A crash before that leaves a version that serves, one
//!    after it what reconcile puts into standby.
//! 4. A restart remembers no request, so a whole new time is due; and so it is for what goes live.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::cutover::reopen;
use super::engine::{Engine, Stop};
use super::executor::Job;
use super::instances::{Afterwards, owner};
use super::publisher::Activity;
use crate::fault;
use crate::ids::DeploymentId;
use crate::routing::Target;
use crate::store::{Deployment, DesiredState, EnvironmentKind};

/// Until one is looked at again whose time was over and that did not come to rest.
const AGAIN: Duration = Duration::from_secs(10);

/// Since when nobody asked for what has targets.
#[derive(Debug, Default)]
pub(super) struct Idles(Mutex<HashMap<DeploymentId, Quiet>>);

#[derive(Clone, Copy, Debug)]
struct Quiet {
    since: Instant,
    ended: u64,
    time: Time,
    /// Not looked at before.
    again_at: Instant,
}

/// After how long a version rests; of its settings, which do not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Time {
    Unknown,
    Never,
    After(Duration),
}

impl Engine {
    /// Has those put to rest that nobody asked for in their time.
    pub(super) async fn look_for_idle(self: &Arc<Self>) -> Result<(), Stop> {
        let now = self.clock.now();
        for id in self.idles.unknown(&self.publisher.activities(), now) {
            let time = match self.store.deployment(&id).await? {
                Some(deployment) => self.idle_time(&deployment).await?,
                None => Time::Never,
            };
            self.idles.set_time(id, time);
        }
        for id in self.idles.due(now) {
            let Some(deployment) = self.store.deployment(&id).await? else { continue };
            if self.may_idle(&deployment).await? {
                self.submit_rest(&deployment);
            }
        }
        Ok(())
    }

    fn submit_rest(self: &Arc<Self>, deployment: &Deployment) {
        let key = (deployment.app.clone(), deployment.environment.clone());
        if !self.lanes.waits_to_rest(&key, deployment.id) {
            self.enqueue(&key, Job::Rest(deployment.id));
        }
    }

    async fn idle_time(&self, deployment: &Deployment) -> Result<Time, Stop> {
        let settings = &deployment.settings;
        let environment = self.store.environment(&deployment.app, &deployment.environment).await?;
        let is_concerned = deployment.label.is_some()
            || settings.scale_to_zero
            || environment.is_some_and(|environment| environment.kind == EnvironmentKind::Preview);
        let after = settings.idle_after.unwrap_or(self.options.idle_after).0;
        let rests = settings.wake && is_concerned && !after.is_zero();
        Ok(if rests { Time::After(after) } else { Time::Never })
    }

    /// What was replaced rests by its timer: nobody is to ask for it.
    async fn may_idle(&self, deployment: &Deployment) -> Result<bool, Stop> {
        Ok(self.should_run(deployment)
            && self.serves_something(deployment).await?
            && !self.stays_warm(deployment).await?)
    }

    /// Puts a deployment into standby, if nobody has asked for it by now. In its lane.
    pub(super) async fn rest(self: &Arc<Self>, id: DeploymentId) {
        match self.try_to_rest(id).await {
            Ok(true) => info!(deployment = %id, "idle: in standby until the next request"),
            Ok(false) => {}
            Err(stop) => warn!(deployment = %id, ?stop, "idle and not in standby yet; tried again"),
        }
    }

    async fn try_to_rest(self: &Arc<Self>, id: DeploymentId) -> Result<bool, Stop> {
        // A request that comes before the commit is woken for after it.
        let (Some(in_hand), Some(claim)) = (self.in_hand.claim(id), self.retiring.claim(id)) else {
            return Ok(false);
        };
        let deployment = self.deployment(id).await?;
        // What an instance that is brought back still serves is in flight at none of the deployment's targets.
        let is_quiet = !self.revivals.has_any(id) && self.is_quiet(self.publisher.activity(id));
        if !is_quiet || !self.may_idle(&deployment).await? {
            return Ok(false);
        }
        self.hold_asleep(&deployment);
        let targets = self.publisher.all_targets(id);
        for target in &targets {
            target.gate.close();
        }
        if !self.is_still_quiet(id, &targets) {
            self.stay_awake(&deployment, &targets);
            return Ok(false);
        }
        let committed = self.commit_rest(id).await;
        let now = self.deployment(id).await.ok().filter(|now| !self.should_run(now));
        let Some(now) = now else {
            // Where nobody knows, it serves, and reconcile does what the store says.
            self.stay_awake(&deployment, &targets);
            return committed.map(|_| false);
        };
        let afterwards = match now.desired_state {
            DesiredState::Archived => Afterwards::Remove,
            DesiredState::Running | DesiredState::Standby => Afterwards::Keep,
        };
        drop(in_hand);
        self.causes.put(id, self.because("idle", "nobody had asked for it in its time"));
        self.retire_claimed_noted(&now, afterwards, claim).await?;
        Ok(true)
    }

    async fn commit_rest(&self, id: DeploymentId) -> Result<bool, Stop> {
        fault::at("idle.closed")?;
        let is_asleep = self.store.fall_asleep(&id).await?;
        fault::at("idle.committed")?;
        Ok(is_asleep)
    }

    /// Behind closed gates, in front of which requests wait.
    fn is_still_quiet(&self, id: DeploymentId, targets: &[Arc<Target>]) -> bool {
        let is_empty = targets.iter().all(|target| target.gate.in_flight().is_zero());
        let is_waited_for = self.publisher.held_by(id).is_some_and(|hold| hold.waiting() > 0);
        let activity = self.publisher.activity(id).map(|now| Activity { is_busy: false, ..now });
        is_empty && !is_waited_for && self.is_quiet(activity)
    }

    /// Whether nothing has come for its time.
    fn is_quiet(&self, activity: Option<Activity>) -> bool {
        activity.is_some_and(|activity| self.idles.is_quiet(activity, self.clock.now()))
    }

    /// Serves it as before.
    fn stay_awake(&self, deployment: &Deployment, targets: &[Arc<Target>]) {
        targets.iter().for_each(|target| reopen(target));
        // Whoever shuts the app publishes that before he closes gates: one of the two sees the other.
        if self.publisher.is_shut(&deployment.app) {
            targets.iter().for_each(|target| target.gate.close());
        }
        self.publisher.unhold(&owner(deployment));
    }
}

impl Idles {
    /// Takes note of who was asked. Returns those of which nobody knows yet when they rest.
    fn unknown(&self, all: &[Activity], now: Instant) -> Vec<DeploymentId> {
        let mut quiet = self.lock();
        quiet.retain(|id, _| all.iter().any(|one| one.deployment == *id));
        for one in all {
            let first = Quiet { since: now, ended: one.ended, time: Time::Unknown, again_at: now };
            let known = quiet.entry(one.deployment).or_insert(first);
            if one.is_busy || one.ended != known.ended {
                *known = Quiet { time: known.time, ..first };
            }
        }
        quiet.iter().filter(|(_, one)| one.time == Time::Unknown).map(|(id, _)| *id).collect()
    }

    /// It has just gone live: a whole new time is due, however long nobody asked for it before.
    pub(super) fn begin_anew(&self, id: DeploymentId, now: Instant) {
        if let Some(quiet) = self.lock().get_mut(&id) {
            quiet.since = now;
        }
    }

    fn set_time(&self, id: DeploymentId, time: Time) {
        if let Some(quiet) = self.lock().get_mut(&id) {
            quiet.time = time;
        }
    }

    /// Those whose time is over. Each is told now and then.
    fn due(&self, now: Instant) -> Vec<DeploymentId> {
        let mut quiet = self.lock();
        let due = quiet.iter_mut().filter(|(_, one)| one.is_due(now)).map(|(id, one)| {
            one.again_at = now + AGAIN;
            *id
        });
        due.collect()
    }

    /// Whether its time is over, and nothing has come since the last look.
    fn is_quiet(&self, activity: Activity, now: Instant) -> bool {
        let known = self.lock().get(&activity.deployment).copied();
        known.is_some_and(|known| !activity.is_busy && known.ended == activity.ended && known.is_over(now))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeploymentId, Quiet>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Quiet {
    fn is_due(&self, now: Instant) -> bool {
        self.is_over(now) && now >= self.again_at
    }

    fn is_over(&self, now: Instant) -> bool {
        match self.time {
            Time::Unknown | Time::Never => false,
            Time::After(time) => now.saturating_duration_since(self.since) >= time,
        }
    }
}
