//! Office hours: at its times all that serves of an app goes to standby, or runs again.
//!
//! # What holds
//! 1. Of the times that went by while nobody looked only the last one counts, and it is done once: when it was is written
//!    behind what was done, and a crash in between has it done again.
//! 2. What is put into standby drains first, as by hand, and the next request wakes it.
//! 3. What was due before an app had any times is not made up for.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::engine::{Engine, Stop};
use super::executor::Job;
use super::instances::Afterwards;
use super::{Caller, Denied, Orchestrator};
use crate::clock::Timestamp;
use crate::error::chain;
use crate::fault;
use crate::ids::{AppName, DeploymentId};
use crate::settings::{AppSettings, HoursState};
use crate::store::{Deployment, DeploymentStatus, DesiredState};

/// Who asks for what is done at these times.
pub(super) const SCHEDULE: &str = "schedule";

/// When to look at the apps' times again.
#[derive(Debug, Default)]
pub(super) struct Hours(Mutex<Now>);

#[derive(Debug, Default)]
struct Now {
    /// `None`: at once.
    next: Option<Next>,
    /// Apps about which something is done.
    busy: HashSet<AppName>,
}

#[derive(Clone, Copy, Debug)]
struct Next {
    at: Option<Timestamp>,
}

/// A time that has come.
#[derive(Clone, Copy, Debug)]
struct Due {
    at: Timestamp,
    state: HoursState,
}

impl Engine {
    /// Does what is due, if the time of the next one has come or an app has changed.
    pub(super) async fn look_at_hours(self: &Arc<Self>) -> Result<(), Stop> {
        let now = self.clock.wall();
        if !self.hours.is_due(now) {
            return Ok(());
        }
        // Before the look: a change that comes during it has them looked at again.
        self.hours.set_next(Next { at: None });
        let looked = self.do_what_is_due(now).await;
        match &looked {
            Ok(next) => self.hours.bring_forward(*next),
            Err(_) => self.hours.changed(),
        }
        looked.map(|_| ())
    }

    async fn do_what_is_due(self: &Arc<Self>, now: Timestamp) -> Result<Option<Timestamp>, Stop> {
        let mut next = None;
        for app in self.store.apps().await? {
            let times = &app.settings.schedule;
            let Some(upcoming) = times.iter().filter_map(|time| time.due_next(now)).min() else { continue };
            next = Some(next.map_or(upcoming, |next: Timestamp| next.min(upcoming)));
            let Some(seen) = self.store.hours_at(&app.name).await? else {
                self.store.set_hours_at(&app.name, now).await?;
                continue;
            };
            let due = due_last(&app.settings, now).filter(|due| due.at > seen);
            if let Some(due) = due.filter(|_| self.hours.begin(&app.name)) {
                self.tasks.spawn(Arc::clone(self).keep_hours(app.name, due));
            }
        }
        Ok(next)
    }

    async fn keep_hours(self: Arc<Self>, app: AppName, due: Due) {
        let kept = tokio::select! {
            () = self.stopping.cancelled() => return,
            kept = self.try_to_keep(&app, due) => kept,
        };
        match kept {
            Ok(()) => info!(%app, at = %due.at, state = ?due.state, "office hours"),
            Err(stop) => warn!(%app, ?stop, "office hours not kept yet; tried again"),
        }
        self.hours.end(&app);
    }

    async fn try_to_keep(self: &Arc<Self>, app: &AppName, due: Due) -> Result<(), Stop> {
        for deployment in self.store.deployments_in_service().await? {
            if deployment.app != *app || !self.serves_something(&deployment).await? {
                continue;
            }
            match due.state {
                HoursState::Standby => self.stand_by(&deployment).await,
                HoursState::Running => self.run_again(&deployment).await?,
            }
        }
        fault::at("hours.done")?;
        Ok(self.store.set_hours_at(app, due.at).await?)
    }

    /// Has its lane put it into standby, and waits until that is decided.
    async fn stand_by(self: &Arc<Self>, deployment: &Deployment) {
        let key = (deployment.app.clone(), deployment.environment.clone());
        let decided = CancellationToken::new();
        self.enqueue(&key, Job::StandBy { deployment: deployment.id, decided: decided.clone() });
        decided.cancelled().await;
    }

    async fn run_again(self: &Arc<Self>, deployment: &Deployment) -> Result<(), Stop> {
        if deployment.desired_state != DesiredState::Standby {
            return Ok(());
        }
        let orchestrator = Orchestrator { engine: Arc::clone(self) };
        let caller = Caller { actor: SCHEDULE.to_owned(), idempotency: None };
        match orchestrator.submit_wake(deployment.id, caller).await {
            Ok(_) => {}
            Err(Denied::Store { source }) => return Err(Stop::Store(source)),
            Err(denied) => warn!(deployment = %deployment.id, error = chain(&denied), "not woken"),
        }
        Ok(())
    }

    /// Puts a deployment into standby, whatever it has in flight: that drains. In its lane.
    pub(super) async fn put_into_standby(self: &Arc<Self>, id: DeploymentId) {
        match self.commit_standby(id).await {
            Ok(Some(deployment)) => {
                let engine = Arc::clone(self);
                self.tasks.spawn(async move {
                    if let Err(stop) = engine.retire_noted(&deployment, Afterwards::Keep).await {
                        warn!(deployment = %id, ?stop, "not stopped yet; reconcile tries again");
                    }
                });
            }
            Ok(None) => {}
            Err(stop) => warn!(deployment = %id, ?stop, "not put into standby"),
        }
    }

    async fn commit_standby(&self, id: DeploymentId) -> Result<Option<Deployment>, Stop> {
        let _in_hand = self.in_hand.claimed(id, &self.clock).await;
        let deployment = self.deployment(id).await?;
        if !self.should_run(&deployment) || !self.serves_something(&deployment).await? {
            return Ok(None);
        }
        self.causes.put(id, self.because(SCHEDULE, "its office hours are over"));
        if self.store.fall_asleep(&id).await? {
            return Ok(Some(deployment));
        }
        self.causes.take(id);
        Ok(None)
    }

    /// Whether somebody may ask for it: a preview, or what is live.
    pub(super) async fn serves_something(&self, deployment: &Deployment) -> Result<bool, Stop> {
        if deployment.status != DeploymentStatus::Ready {
            return Ok(false);
        }
        Ok(deployment.label.is_some() || self.environment_of(deployment).await?.live == Some(deployment.id))
    }
}

impl Hours {
    /// An app may have other times by now.
    pub(super) fn changed(&self) {
        self.lock().next = None;
    }

    fn is_due(&self, now: Timestamp) -> bool {
        self.lock().next.is_none_or(|next| next.at.is_some_and(|at| at <= now))
    }

    fn set_next(&self, next: Next) {
        self.lock().next = Some(next);
    }

    /// Unless somebody said meanwhile that it is to be looked at at once.
    fn bring_forward(&self, at: Option<Timestamp>) {
        let mut now = self.lock();
        if now.next.is_some() {
            now.next = Some(Next { at });
        }
    }

    /// Whether nobody is at it.
    fn begin(&self, app: &AppName) -> bool {
        self.lock().busy.insert(app.clone())
    }

    /// What came due meanwhile, or could not be done, is looked at again.
    fn end(&self, app: &AppName) {
        let mut now = self.lock();
        now.busy.remove(app);
        now.next = None;
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last of its times that have come; of two at once the one that is written last.
fn due_last(settings: &AppSettings, now: Timestamp) -> Option<Due> {
    let times = settings.schedule.iter();
    let due = times.filter_map(|time| Some(Due { at: time.due_last(now)?, state: time.state }));
    due.max_by_key(|due| due.at)
}
