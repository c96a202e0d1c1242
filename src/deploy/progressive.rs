//! A cutover in steps: a growing share of the visitors gets the new version, each step watched, before all do.
//!
//! ```text
//! split 5 % ─▶ watch ─▶ split 25 % ─▶ watch ─▶ the cutover as it always is (commit, publish, close gates, watch, drain)
//!                │                       │
//!                └───────────────────────┴─ did not hold, or cancelled ─▶ no split: all get the old version ─▶ undo
//! ```
//!
//! # Invariants
//! 1. A share is committed before it is published, and published for all host names at one instant.
//! 2. While there is a split the old version's gates are open; they close in the cutover alone.
//! 3. After a crash what was committed is what is served. The operation goes on from that share, for what is left of
//!    its time; a crash before the first share is one before the cutover, and the operation is undone.
//! 4. When an operation ends, its split has ended before.
//! 5. That the last step was asked for is journaled, as a step of its own, before anybody is told so: a restart takes it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::asked::Asked;
use super::cutover::reopen;
use super::engine::{Engine, Stop};
use super::evidence::Figures;
use super::executor::request_of;
use super::live::json;
use super::{Denied, Orchestrator, steps};
use crate::error::chain;
use crate::fault;
use crate::ids::{DeploymentId, OperationId};
use crate::settings::{Delay, Percent};
use crate::store::{Deployment, EventKind, Operation, OperationKind, Split};

/// How long a step lasts where nothing is said.
const STEP_FOR: Delay = Delay::seconds(60);

/// The steps of a cutover, as they are journaled with the request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Steps {
    /// Rising, the last one 100%; none is one step for all.
    steps: Vec<Percent>,
    step_for: Option<Delay>,
}

/// Operations between two steps, each with whether somebody asked it to take the last one now.
#[derive(Debug, Default)]
pub(super) struct Hurries(Mutex<HashMap<OperationId, CancellationToken>>);

struct Hurry<'a> {
    all: &'a Hurries,
    operation: OperationId,
    asked: CancellationToken,
}

impl Steps {
    pub(super) fn of(steps: &[Percent], step_for: Option<Delay>) -> Result<Self, Denied> {
        let is_rising = steps.is_sorted_by(|one, next| one < next);
        let ends_with_all = steps.last().is_none_or(|last| last.count() == 100);
        let begins_with_some = steps.first().is_none_or(|first| first.count() > 0);
        if is_rising && ends_with_all && begins_with_some {
            return Ok(Self { steps: steps.to_vec(), step_for });
        }
        Err(Denied::Invalid {
            field: "steps".to_owned(),
            detail: "the steps do not rise from above 0% to 100%".to_owned(),
            remedy: Some("write for example 5%,25%,100%".to_owned()),
        })
    }

    /// Those at which two versions serve.
    fn shares(&self) -> impl Iterator<Item = u8> {
        self.steps.iter().filter_map(|share| u8::try_from(share.count()).ok()).filter(|share| *share < 100)
    }

    fn lasting(&self) -> Duration {
        self.step_for.unwrap_or(STEP_FOR).0
    }
}

impl Orchestrator {
    /// Has an operation that goes in steps take the last one now.
    ///
    /// # Errors
    /// If there is no such operation, it is not between two steps, or the store is away.
    pub async fn finish(&self, operation: OperationId) -> Result<(), Denied> {
        let engine = &self.engine;
        if engine.store.operation(&operation).await?.is_none() {
            return Err(Denied::OperationNotFound { operation });
        }
        if !engine.hurries.is_begun(operation) {
            return Err(Denied::NotInSteps { operation });
        }
        engine.store.begin_step(&operation, steps::FINISH.name, engine.clock.wall()).await?;
        // It may have come to its last step, or back from all of them, in between.
        if engine.hurries.ask(operation) { Ok(()) } else { Err(Denied::NotInSteps { operation }) }
    }
}

impl Hurries {
    /// The operation can be asked to hurry until this is dropped.
    fn begin(&self, operation: OperationId) -> Hurry<'_> {
        let asked = CancellationToken::new();
        self.lock().insert(operation, asked.clone());
        Hurry { all: self, operation, asked }
    }

    /// Whether the operation is between two steps.
    fn is_begun(&self, operation: OperationId) -> bool {
        self.lock().contains_key(&operation)
    }

    /// Whether there is such an operation.
    fn ask(&self, operation: OperationId) -> bool {
        self.lock().get(&operation).map(CancellationToken::cancel).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OperationId, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.all.lock().remove(&self.operation);
    }
}

impl Engine {
    /// Takes the steps before the last. Nothing is left of them if one does not hold, or the operation is cancelled.
    pub(super) async fn go_in_steps(
        &self,
        operation: &Operation,
        deployment: &Deployment,
        cancel: &CancellationToken,
    ) -> Result<(), Stop> {
        let plan: Steps = request_of(operation)?;
        let environment = self.environment_of(deployment).await?;
        let begun = environment.split.filter(|split| split.operation == operation.id);
        let from = environment.live.filter(|live| *live != deployment.id);
        let serves = |live: &DeploymentId| {
            self.publisher.live_targets(*live).iter().any(|target| !target.gate.is_closed())
        };
        // One that no other may run beside has stopped already.
        let from = from.filter(serves);
        let Some(from) = from.filter(|_| plan.shares().next().is_some()) else {
            return if cancel.is_cancelled() { Err(Stop::Cancelled) } else { Ok(()) };
        };
        if begun.is_none() {
            self.refuse_outdated(operation, &self.environment_of(deployment).await?)?;
        }
        let baseline = match &begun {
            Some(split) => split.baseline.as_deref().and_then(|text| serde_json::from_str(text).ok()),
            None => self.baselines.of(&self.publisher, from),
        };
        let walked = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Stop::Cancelled),
            walked = self.step(operation.id, steps::SPLIT, self.walk(operation, (from, deployment), &plan, begun, baseline)) => walked,
        };
        if let Err(stop) = walked {
            self.unsplit(operation, deployment).await;
            return Err(match stop {
                Stop::Failed(failure) => Stop::DidNotHold(failure),
                stop => stop,
            });
        }
        Ok(())
    }

    /// Whether the split that is committed is the operation's: then a restart goes on with it.
    pub(super) async fn has_split(&self, operation: &Operation) -> Result<bool, Stop> {
        let environment = self.store.environment(&operation.app, &operation.environment).await?;
        let split = environment.and_then(|environment| environment.split);
        Ok(split.is_some_and(|split| split.operation == operation.id))
    }

    async fn walk(
        &self,
        operation: &Operation,
        (from, deployment): (DeploymentId, &Deployment),
        plan: &Steps,
        begun: Option<Split>,
        baseline: Option<Figures>,
    ) -> Result<((), String), Stop> {
        let asked = Asked::of(&self.publisher, [from, deployment.id]);
        let rule = &deployment.settings.deploy.rollback_on;
        let at_least = begun.as_ref().map_or(0, |split| split.share);
        let hurry = self.hurries.begin(operation.id);
        if self.was_asked_to_finish(operation).await? {
            hurry.asked.cancel();
        }
        for share in plan.shares().filter(|share| *share >= at_least) {
            let since = match &begun {
                Some(split) if split.share == share => split.since,
                Some(_) | None => self.split(operation, deployment, share, baseline.as_ref()).await?,
            };
            let passed = Duration::try_from(self.clock.wall().duration_since(since)).unwrap_or_default();
            let until = self.clock.now() + plan.lasting().saturating_sub(passed);
            let worse = || asked.refuse_worse(baseline.as_ref(), (Some(from), deployment.id), rule);
            tokio::select! {
                biased;
                () = hurry.asked.cancelled() => {
                    let finishing = async {
                        worse()?;
                        Ok(((), "the last step was asked for".to_owned()))
                    };
                    self.step(operation.id, steps::FINISH, finishing).await?;
                    break;
                }
                held = self.watch_until(deployment, until, true, &worse) => held?,
            }
        }
        Ok(((), format!("held: {}", Figures::of(&asked.tally(deployment.id)))))
    }

    /// Before a restart.
    async fn was_asked_to_finish(&self, operation: &Operation) -> Result<bool, Stop> {
        let steps = self.store.steps(&operation.id).await?;
        Ok(steps.iter().any(|step| step.name == steps::FINISH.name))
    }

    /// Commits a share, and publishes it.
    async fn split(
        &self,
        operation: &Operation,
        deployment: &Deployment,
        share: u8,
        baseline: Option<&Figures>,
    ) -> Result<crate::clock::Timestamp, Stop> {
        let turn = self.publisher.turn().await;
        let split = Split {
            operation: operation.id,
            to: deployment.id,
            share,
            since: self.clock.wall(),
            baseline: baseline.map(json),
        };
        self.store.set_split(&deployment.app, &deployment.environment, Some(&split)).await?;
        fault::at("split.committed")?;
        for target in self.publisher.live_targets(deployment.id) {
            reopen(&target);
        }
        self.publisher.split(&turn, &deployment.app, &deployment.environment, Some(&split));
        fault::at("split.published")?;
        drop(turn);
        info!(app = %deployment.app, environment = %deployment.environment, to = %deployment.id, share, "split");
        let text = format!("{share} % of the visitors get {}", deployment.id);
        self.tell(operation.id, EventKind::Progress, text).await;
        Ok(split.since)
    }

    /// Everybody gets the old version again.
    async fn unsplit(&self, operation: &Operation, deployment: &Deployment) {
        let turn = self.publisher.turn().await;
        if let Err(error) = self.store.set_split(&deployment.app, &deployment.environment, None).await {
            // The store gets it with the next swap; a restart publishes no split of an operation that has ended.
            warn!(operation = %operation.id, error = chain(&error), "end of the split not written");
        }
        self.publisher.split(&turn, &deployment.app, &deployment.environment, None);
        drop(turn);
        let text = "all visitors get the version before".to_owned();
        self.tell(operation.id, EventKind::Progress, text).await;
    }

    /// Goes on with an operation that a restart found between two versions.
    pub(super) async fn resume_split(
        self: &Arc<Self>,
        operation: &Operation,
        cancel: &CancellationToken,
    ) -> Result<(), Stop> {
        let deployment = self.deployment_of(operation).await?;
        if operation.kind == OperationKind::Deploy {
            return self.take_traffic(operation, &deployment, None, cancel).await;
        }
        let ended = self.run_swap(operation, cancel).await;
        if ended.is_err() {
            self.let_sleep_again(operation, deployment).await?;
        }
        ended
    }
}
