//! The looks at versions that run: the watch after a cutover, and whether a version could serve.

use std::time::{Duration, Instant};

use tracing::warn;

use super::asked::Asked;
use super::concealed::conceal;
use super::cutover::Cutover;
use super::engine::{Engine, Stop};
use super::evidence::{Case, Evidence, Figures};
use super::readiness::{Check, exited};
use crate::error::chain;
use crate::ids::DeploymentId;
use crate::runtime::{Health, InstanceState};
use crate::settings::RollbackOn;
use crate::store::{Deployment, DesiredState, Failure, Operation, OperationKind};

/// Between two looks at a new version that was just made live.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a look at the new version found wrong.
enum Seen {
    Gone(Failure),
    Unhealthy(Failure),
    Nothing(String),
}

impl Engine {
    /// Looks at the new version, and at what clients get from it, until `watch` after the cutover.
    pub(super) async fn watch(
        &self,
        operation: &Operation,
        deployment: &Deployment,
        cutover: &Cutover,
        asked: &Asked,
    ) -> Result<((), String), Stop> {
        let since = Duration::try_from(self.clock.wall().duration_since(cutover.at)).unwrap_or_default();
        let deadline = self.clock.now() + deployment.settings.deploy.watch.0.saturating_sub(since);
        // In a rollback a person has decided against the version before.
        let is_judged = operation.kind != OperationKind::Rollback;
        let baseline = cutover.baseline.as_ref().filter(|_| is_judged);
        let rule = &deployment.settings.deploy.rollback_on;
        let worse = || asked.refuse_worse(baseline, (cutover.from, deployment.id), rule);
        self.watch_until(deployment, deadline, !cutover.hosts.is_empty(), worse).await?;
        Ok(((), String::new()))
    }

    /// Looks at a version until `deadline`, or until `worse` says that what clients get speaks against it.
    pub(super) async fn watch_until(
        &self,
        deployment: &Deployment,
        deadline: Instant,
        has_hosts: bool,
        worse: impl Fn() -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let check =
            Check::of(&deployment.settings, &self.pinned_of(deployment)?, true).map_err(Stop::Failed)?;
        let mut unhealthy = 0;
        while self.clock.now() < deadline {
            match self.look(deployment, &check).await {
                Ok(()) if has_hosts && self.publisher.live_targets(deployment.id).is_empty() => {
                    let failure = Failure::new("instance_gone", "no instance of the new version runs");
                    return Err(Stop::Failed(failure));
                }
                Ok(()) => unhealthy = 0,
                Err(Seen::Gone(failure)) => {
                    return Err(Stop::Failed(conceal(failure, &deployment.settings.env)));
                }
                Err(Seen::Unhealthy(failure)) => {
                    unhealthy += 1;
                    if unhealthy >= deployment.settings.health.failures.max(1) {
                        return Err(Stop::Failed(conceal(failure, &deployment.settings.env)));
                    }
                }
                // The engine is away, the instances are not: what is known goes on being served.
                Err(Seen::Nothing(error)) => warn!(deployment = %deployment.id, error, "instances not seen"),
            }
            worse()?;
            self.clock.sleep_until(deadline.min(self.clock.now() + LOOK_EVERY)).await;
        }
        worse()
    }

    async fn look(&self, deployment: &Deployment, check: &Check) -> Result<(), Seen> {
        for target in self.publisher.live_targets(deployment.id) {
            let seen =
                self.runtime.inspect(&target.id).await.map_err(|error| Seen::Nothing(chain(&error)))?;
            let state = seen.map(|instance| instance.state);
            match state {
                Some(InstanceState::Exited(exit)) => {
                    return Err(Seen::Gone(exited(self.runtime.as_ref(), target.id, &exit).await));
                }
                None => {
                    return Err(Seen::Gone(Failure::new("instance_gone", "the new instance was removed")));
                }
                Some(InstanceState::Running { health: Health::Unhealthy }) => {
                    return Err(Seen::Unhealthy(Failure::new(
                        "unhealthy",
                        "its own health check says unhealthy",
                    )));
                }
                Some(InstanceState::Created | InstanceState::Running { .. }) => {}
            }
            if let Check::Probe(probe) = check
                && let Err(error) = probe
                    .ask(
                        target.address,
                        target.tls.as_ref(),
                        deployment.settings.health.timeout.0,
                        &self.clock,
                    )
                    .await
            {
                let failure = Failure::new("unhealthy", error.to_string()).remedy(error.remedy());
                return Err(Seen::Unhealthy(failure));
            }
        }
        Ok(())
    }

    /// Whether any instance of a version that was live runs; while nobody knows, it is believed to.
    pub(super) async fn runs(&self, deployment: &Deployment) -> bool {
        for target in self.publisher.live_targets(deployment.id) {
            match self.runtime.inspect(&target.id).await {
                Ok(Some(instance)) if instance.is_running() => return true,
                Ok(_) => {}
                Err(_) => return true,
            }
        }
        false
    }

    /// Whether all instances of a deployment serve and are ready as they stand.
    pub(super) async fn is_warm(&self, deployment: &Deployment) -> Result<bool, Stop> {
        let targets = self.publisher.live_targets(deployment.id).len();
        if deployment.desired_state != DesiredState::Running
            || targets < usize::from(deployment.settings.replicas.count())
        {
            return Ok(false);
        }
        let check =
            Check::of(&deployment.settings, &self.pinned_of(deployment)?, true).map_err(Stop::Failed)?;
        match self.look(deployment, &check).await {
            Ok(()) => Ok(true),
            // The engine is away: its instances were believed until now, and a swap back must not wait for it.
            Err(Seen::Nothing(error)) => {
                warn!(deployment = %deployment.id, error, "instances not seen");
                Ok(true)
            }
            Err(Seen::Gone(_) | Seen::Unhealthy(_)) => Ok(false),
        }
    }
}

impl Asked {
    /// Ends a watch where what clients got speaks against the new version of both.
    pub(super) fn refuse_worse(
        &self,
        baseline: Option<&Figures>,
        (old, new): (Option<DeploymentId>, DeploymentId),
        rule: &RollbackOn,
    ) -> Result<(), Stop> {
        let Some(before) = baseline else { return Ok(()) };
        let meanwhile = old.map(|old| self.tally(old)).unwrap_or_default();
        let case = Case { before, meanwhile: &meanwhile, new: &self.tally(new) };
        Evidence::against(case, rule).map_or(Ok(()), |failure| Err(Stop::Failed(failure)))
    }
}
