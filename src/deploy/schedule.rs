//! Desired states for later: running, standby and archive, each armed under a nonce, so that a late firing does nothing.
//!
//! ```text
//! replaced ──standby_after──▶ standby ──archive_after──▶ archived (instances removed; it can be deployed again)
//!     ▲            │              ▲             │
//!     └ stays warm ┘              └ the way back ┘
//! ```

use std::sync::Arc;

use tracing::{info, warn};

use super::engine::{Engine, Stop};
use super::instances::Afterwards;
use super::warm::WARM_FOR;
use super::{Caller, Denied, Orchestrator, ScheduleRequest};
use crate::error::chain;
use crate::ids::{DeploymentId, OperationId};
use crate::settings::Delay;
use crate::store::{Deployment, DeploymentStatus, DesiredState, Fired, Timer};

/// What the nonces of timers begin with that nobody asked for: they spare what is to stay warm, or to be kept.
const BY_ITSELF: &str = "retention-";
/// Who asks for what is done at its time.
pub(super) const TIMER: &str = "timer";
/// Until the version that a rollback would go to is looked at again, which is not archived.
const SPARED_FOR: Delay = Delay::seconds(24 * 60 * 60);

impl Orchestrator {
    /// Arms a change of desired state. One that is pending is replaced, unless `overwrite` is false: then it is
    /// what is returned.
    ///
    /// # Errors
    /// If there is no such deployment that is ready, it is live, or the store is away.
    pub async fn schedule(
        &self,
        deployment: DeploymentId,
        request: &ScheduleRequest,
    ) -> Result<Timer, Denied> {
        let _turn = self.engine.submitting.lock().await;
        let found = self.find_ready(deployment).await?;
        let environment = self.engine.store.environment(&found.app, &found.environment).await?;
        if environment.is_some_and(|environment| environment.live == Some(deployment)) {
            return Err(Denied::DeploymentIsLive { deployment });
        }
        let pending =
            self.engine.store.timers().await?.into_iter().find(|timer| timer.deployment == deployment);
        if let (false, Some(pending)) = (request.overwrite, pending) {
            return Ok(pending);
        }
        let timer = Timer {
            deployment,
            nonce: OperationId::generate().to_string(),
            state: request.state.into(),
            due: self.engine.clock.wall() + request.delay.0,
        };
        self.engine.store.arm_timer(&timer).await?;
        Ok(timer)
    }

    /// Disarms what is pending for a deployment; success without effect where nothing is.
    ///
    /// # Errors
    /// If there is no such deployment, or the store is away.
    pub async fn clear_schedule(&self, deployment: DeploymentId) -> Result<(), Denied> {
        let _turn = self.engine.submitting.lock().await;
        if self.engine.store.deployment(&deployment).await?.is_none() {
            return Err(Denied::DeploymentNotFound { deployment });
        }
        Ok(self.engine.store.clear_timer(&deployment).await?)
    }

    async fn find_ready(&self, deployment: DeploymentId) -> Result<Deployment, Denied> {
        let found = self.engine.store.deployment(&deployment).await?;
        let found = found.ok_or(Denied::DeploymentNotFound { deployment })?;
        if found.status != DeploymentStatus::Ready || found.desired_state == DesiredState::Archived {
            let status = super::submit::status_text(&found);
            return Err(Denied::DeploymentNotReady { deployment, status });
        }
        Ok(found)
    }
}

impl Engine {
    /// Does what a timer that is due asks for, if it is still the armed one and its deployment is not live.
    pub(super) async fn fire(&self, timer: Timer) {
        if let Err(stop) = self.try_to_fire(&timer).await {
            warn!(deployment = %timer.deployment, ?stop, "not stopped yet; reconcile tries again");
        }
    }

    async fn try_to_fire(&self, timer: &Timer) -> Result<(), Stop> {
        let deployment = self.deployment(timer.deployment).await?;
        if let Some(spared_for) = self.spared(timer, &deployment).await? {
            let later = self.by_itself(deployment.id, timer.state, spared_for);
            return Ok(self.store.arm_timer(&later).await?);
        }
        // It would make it run again.
        self.call_off_wake(deployment.id).await;
        let archive_after = deployment.settings.deploy.archive_after;
        let next = (timer.state == DesiredState::Standby && !archive_after.0.is_zero())
            .then(|| self.by_itself(deployment.id, DesiredState::Archived, archive_after));
        let cause = self.because(TIMER, format!("its timer was due at {}", timer.due));
        self.causes.put(deployment.id, cause);
        match self.store.fire_timer(timer, next.as_ref()).await? {
            Fired::Done => {}
            Fired::NotArmed => {
                self.causes.take(deployment.id);
                return Ok(());
            }
            Fired::IsLive => {
                self.causes.take(deployment.id);
                warn!(deployment = %deployment.id, "timer of a live deployment removed");
                return Ok(());
            }
        }
        let afterwards = match timer.state {
            DesiredState::Archived => {
                let turn = self.publisher.turn().await;
                self.publisher.replace(&turn, self.store.routes().await?);
                if let Some(label) = &deployment.label {
                    self.publisher.clear_label(&deployment.app, label.as_str(), deployment.id);
                }
                Afterwards::Remove
            }
            DesiredState::Running | DesiredState::Standby => Afterwards::Keep,
        };
        self.retire_noted(&deployment, afterwards).await?;
        info!(deployment = %deployment.id, state = ?timer.state, "desired state reached");
        Ok(())
    }

    /// Has a deployment woken whose time to run has come; one that runs goes on. It is asked for before the timer goes: a
    /// crash between the two has it asked for again.
    pub(super) async fn run_at_its_time(self: &Arc<Self>, deployment: &Deployment, timer: &Timer) {
        let id = deployment.id;
        if deployment.desired_state == DesiredState::Standby {
            let orchestrator = Orchestrator { engine: Arc::clone(self) };
            let caller = Caller { actor: TIMER.to_owned(), idempotency: None };
            match orchestrator.submit_wake(id, caller).await {
                Ok(_) => {}
                Err(Denied::Store { source }) => {
                    return warn!(deployment = %id, error = chain(&source), "not woken yet; tried again");
                }
                Err(denied) => warn!(deployment = %id, error = chain(&denied), "not woken at its time"),
            }
        }
        if let Err(error) = self.store.fire_timer(timer, None).await {
            warn!(deployment = %id, error = chain(&error), "its timer is still there; tried again");
        }
    }

    /// For how long a timer does nothing yet.
    async fn spared(&self, timer: &Timer, deployment: &Deployment) -> Result<Option<Delay>, Stop> {
        if !timer.nonce.starts_with(BY_ITSELF) {
            return Ok(None);
        }
        Ok(match timer.state {
            DesiredState::Running => None,
            DesiredState::Standby => self.stays_warm(deployment).await?.then_some(WARM_FOR),
            DesiredState::Archived => self.is_way_back(deployment).await?.then_some(SPARED_FOR),
        })
    }

    /// A timer that nobody asked for.
    pub(super) fn by_itself(&self, deployment: DeploymentId, state: DesiredState, after: Delay) -> Timer {
        let nonce = format!("{BY_ITSELF}{}", OperationId::generate());
        Timer { deployment, nonce, state, due: self.clock.wall() + after.0 }
    }

    /// Whether a rollback would go to the deployment.
    async fn is_way_back(&self, deployment: &Deployment) -> Result<bool, Stop> {
        let environment = self.environment_of(deployment).await?;
        let Some(live) = environment.live else { return Ok(false) };
        let target = self.store.ways_back(&environment.app, &environment.name, &live, 1).await?;
        Ok(target == [deployment.id])
    }
}

/// The nonce of timers that an operation arms and that nobody asked for.
pub(super) fn by_itself(operation: OperationId) -> String {
    format!("{BY_ITSELF}{operation}")
}
