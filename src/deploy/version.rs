//! The workflow of a deploy: image, release command, start, check, gate, and then the cutover.

use std::sync::Arc;

use futures_util::future::try_join_all;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::DeployFlags;
use super::engine::{Engine, Stop};
use super::handover::{HandingOver, too_late};
use super::instances::{Afterwards, pinned};
use super::live::Goal;
use super::readiness::{Check, wait_ready};
use super::steps;
use crate::error::chain;
use crate::ids::DeploymentId;
use crate::runtime::{Instance, Pinned};
use crate::store::{
    Deployment, DeploymentStatus, DesiredState, EventKind, Failure, InstancePhase, Operation, OperationState,
    StoreError,
};

/// Progress lines of a pull that wait to be written.
const LINES_MAX: usize = 64;

impl Engine {
    /// Runs a deploy up to its cutover and the watch after it. The drain goes on behind it.
    pub(super) async fn run_deploy(
        self: &Arc<Self>,
        operation: &Operation,
        cancel: &CancellationToken,
    ) -> Result<(), Stop> {
        let flags: DeployFlags = super::executor::request_of(operation)?;
        let deployment = self.deployment_of(operation).await?;
        let mut handing = None;
        let ready = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Stop::Cancelled),
            ready = self.make_ready(operation, &deployment, (flags, &mut handing)) => ready,
        };
        let goal = match ready {
            Ok(goal) => goal,
            Err(stop) => {
                self.undo_deploy(operation, &deployment, &stop).await;
                self.give_back_if(handing).await;
                return Err(stop);
            }
        };
        match goal {
            Goal::Live => self.take_traffic(operation, &deployment, handing, cancel).await,
            Goal::Labelled => self.or_undo(operation, self.serve_label(operation, deployment.id)).await,
            Goal::Ready { why } => {
                self.or_undo(operation, self.rest_ready(operation, deployment.id, &why)).await
            }
        }
    }

    /// Makes a deployment live that is ready, or takes its deploy back.
    pub(super) async fn take_traffic(
        self: &Arc<Self>,
        operation: &Operation,
        deployment: &Deployment,
        handing: Option<HandingOver>,
        cancel: &CancellationToken,
    ) -> Result<(), Stop> {
        let Err((stop, committed)) = self.go_live(operation, deployment.id, cancel).await else {
            return Ok(());
        };
        if committed {
            self.release_held(deployment);
        } else {
            self.undo_deploy(operation, deployment, &stop).await;
            self.give_back_if(handing).await;
        }
        Err(stop)
    }

    /// Takes a deploy back whose last step failed before the deployment was ready.
    async fn or_undo(
        &self,
        operation: &Operation,
        last: impl Future<Output = Result<(), Stop>>,
    ) -> Result<(), Stop> {
        let Err(stop) = last.await else { return Ok(()) };
        let deployment = self.deployment_of(operation).await?;
        if deployment.status != DeploymentStatus::Ready {
            self.undo_deploy(operation, &deployment, &stop).await;
        }
        Err(stop)
    }

    /// Everything before the cutover: nothing of it can be seen by a client.
    async fn make_ready(
        self: &Arc<Self>,
        operation: &Operation,
        deployment: &Deployment,
        (flags, handing): (DeployFlags, &mut Option<HandingOver>),
    ) -> Result<Goal, Stop> {
        let id = operation.id;
        // It may have been scaled while this waited in line.
        let deployment = &self.fitted(deployment.clone()).await?;
        let pinned = self.step(id, steps::IMAGE, self.pin(operation, deployment, flags)).await?;
        let deployment = &self.deployment_of(operation).await?;
        if let Some(from) = self.predecessor(deployment).await? {
            self.refuse_beside(deployment).await?;
            Box::pin(self.hand_over(operation, (from, deployment), handing)).await?;
        }
        if flags.lazy {
            self.release_first(operation, deployment).await?;
            self.store.set_desired_state(&deployment.id, DesiredState::Standby).await?;
            return self.step(id, steps::GATE, self.decide(deployment, flags)).await;
        }
        let starting = self.start_checked(operation, deployment, &pinned);
        match handing.as_ref().map(|handing| handing.deadline) {
            None => starting.await?,
            Some(deadline) => tokio::select! {
                biased;
                started = starting => started?,
                () = self.clock.sleep_until(deadline) => return Err(too_late(deployment)),
            },
        }
        self.step(id, steps::GATE, self.decide(deployment, flags)).await
    }

    async fn start_checked(
        &self,
        operation: &Operation,
        deployment: &Deployment,
        pinned: &Pinned,
    ) -> Result<(), Stop> {
        let id = operation.id;
        self.release_first(operation, deployment).await?;
        let instances = self.step(id, steps::START, self.start(deployment)).await?;
        self.step(id, steps::CHECK, self.check(deployment, pinned, &instances)).await?;
        self.set_targets(deployment, &self.now(instances).await);
        Ok(())
    }

    async fn release_first(&self, operation: &Operation, deployment: &Deployment) -> Result<(), Stop> {
        if deployment.settings.release_command.is_empty() {
            return Ok(());
        }
        self.step(operation.id, steps::RELEASE, self.release(operation, deployment)).await
    }

    async fn pin(
        &self,
        operation: &Operation,
        deployment: &Deployment,
        flags: DeployFlags,
    ) -> Result<(Pinned, String), Stop> {
        self.move_status(deployment, DeploymentStatus::Building).await?;
        let (lines, mut said) = mpsc::channel(LINES_MAX);
        let telling = async {
            while let Some(line) = said.recv().await {
                self.tell(operation.id, EventKind::Progress, line).await;
            }
        };
        let (pinned, ()) = tokio::join!(self.prepare(deployment, lines), telling);
        let pinned = pinned?;
        let hash = state_hash(deployment, &pinned);
        let text = serde_json::to_string(&pinned).map_err(|error| broken("pin", &error))?;
        self.store.set_pinned(&deployment.id, &text, &hash).await?;
        if !flags.force
            && deployment.label.is_none()
            && let Some(live) =
                self.live_of(deployment).await?.filter(|live| live.state_hash.as_ref() == Some(&hash))
        {
            // Whoever deploys it again wants it tried again, however often it failed before.
            self.restarts.forget(live.id);
            return Err(Stop::Noop(live.id));
        }
        let digest = pinned.digest.clone();
        Ok((pinned, digest))
    }

    async fn start(&self, deployment: &Deployment) -> Result<(Vec<Instance>, String), Stop> {
        self.move_status(deployment, DeploymentStatus::Starting).await?;
        let count = deployment.settings.replicas.count().into();
        let instances = self.start_instances(deployment, count, InstancePhase::Running).await?;
        let handles: Vec<_> = instances.iter().map(|instance| instance.handle.clone()).collect();
        Ok((instances, handles.join(" ")))
    }

    async fn check(
        &self,
        deployment: &Deployment,
        pinned: &Pinned,
        instances: &[Instance],
    ) -> Result<((), String), Stop> {
        self.move_status(deployment, DeploymentStatus::Checking).await?;
        self.wait_all_ready(deployment, pinned, instances).await?;
        Ok(((), String::new()))
    }

    /// Waits until every instance is ready; the first that is not fails it.
    pub(super) async fn wait_all_ready(
        &self,
        deployment: &Deployment,
        pinned: &Pinned,
        instances: &[Instance],
    ) -> Result<(), Stop> {
        let settings = &deployment.settings;
        let has_port = instances.iter().any(|instance| instance.address.is_some());
        let check = Check::of(settings, pinned, has_port).map_err(Stop::Failed)?;
        let waits = instances
            .iter()
            .map(|instance| wait_ready(self.runtime.as_ref(), &self.clock, instance, &check, settings));
        try_join_all(waits).await.map_err(Stop::Failed)?;
        Ok(())
    }

    /// What the runtime says of them by now: an address may have come with the start.
    pub(super) async fn now(&self, instances: Vec<Instance>) -> Vec<Instance> {
        let mut now = Vec::with_capacity(instances.len());
        for instance in instances {
            match self.runtime.inspect(&instance.id).await {
                Ok(Some(seen)) => now.push(seen),
                Ok(None) | Err(_) => now.push(instance),
            }
        }
        now
    }

    /// Whether the deployment may go live, now that it is ready.
    async fn decide(&self, deployment: &Deployment, flags: DeployFlags) -> Result<(Goal, String), Stop> {
        self.move_status(deployment, DeploymentStatus::Finalizing).await?;
        if deployment.label.is_some() {
            return Ok((Goal::Labelled, "ephemeral: never live".to_owned()));
        }
        let environment = self.environment_of(deployment).await?;
        let goal = if !flags.cutover {
            Goal::Ready { why: "no cutover was asked for".to_owned() }
        } else if environment.rolled_back && !flags.promote {
            Goal::Ready {
                why: "the environment is rolled back: promote the deployment to make it live".to_owned(),
            }
        } else {
            Goal::Live
        };
        if let (Goal::Live, Some(live)) = (&goal, self.live_of(deployment).await?)
            && live.sequence > deployment.sequence
        {
            let cause = format!("{} is newer and live already", live.id);
            return Err(Stop::Superseded(Failure::new("superseded", cause)));
        }
        let why = if let Goal::Ready { why } = &goal { why.clone() } else { String::new() };
        Ok((goal, why))
    }

    /// Ends a deploy that does not take the traffic: it is reached by its own names, and goes to rest in its time.
    pub(super) async fn rest_ready(
        self: &Arc<Self>,
        operation: &Operation,
        deployment: DeploymentId,
        why: &str,
    ) -> Result<(), Stop> {
        let deployment = self.deployment(deployment).await?;
        let turn = self.publisher.turn().await;
        let routes = self.own_rows(&turn, &deployment).await?;
        let after = deployment.settings.deploy.standby_after;
        let rest = self.by_itself(deployment.id, DesiredState::Standby, after);
        if !self.store.commit_beside(&routes, &rest).await? {
            self.refuse_unless(deployment.id, DeploymentStatus::Ready).await?;
        }
        self.publisher.lead(&turn, &routes);
        drop(turn);
        self.tell(operation.id, EventKind::Progress, format!("ready, not live: {why}")).await;
        self.end(operation.id, OperationState::Succeeded, None, None).await;
        Ok(())
    }

    /// Takes back what a deploy did before its cutover. What cannot be done now is done by reconcile: a deployment that
    /// has ended without being ready has no claim on an instance.
    pub(super) async fn undo_deploy(&self, operation: &Operation, deployment: &Deployment, stop: &Stop) {
        let (status, failure) = match stop {
            Stop::Failed(failure) | Stop::DidNotHold(failure) => {
                (DeploymentStatus::Failed, Some(failure.clone()))
            }
            Stop::Cancelled => (DeploymentStatus::Cancelled, None),
            Stop::Superseded(failure) => (DeploymentStatus::Superseded, Some(failure.clone())),
            Stop::Noop(live) => (
                DeploymentStatus::Superseded,
                Some(Failure::new("noop", format!("{live} is equal and live"))),
            ),
            // That the swap was not committed is known here; whether this can be written is seen below.
            Stop::Store(error) => (DeploymentStatus::Failed, Some(Failure::new("store", chain(error)))),
        };
        match self.store.set_status(&deployment.id, status, failure.as_ref()).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                warn!(operation = %operation.id, error = chain(&error), "status not written");
                return;
            }
        }
        if let Err(stop) = self.retire_instances(deployment, Afterwards::Remove).await {
            warn!(operation = %operation.id, ?stop, "instances not removed yet");
        }
        if let Err(stop) = self.archive(deployment.id).await {
            warn!(operation = %operation.id, ?stop, "desired state not written");
        }
    }

    async fn move_status(&self, deployment: &Deployment, to: DeploymentStatus) -> Result<(), Stop> {
        if self.store.set_status(&deployment.id, to, None).await? {
            return Ok(());
        }
        self.refuse_unless(deployment.id, to).await
    }

    /// Where somebody else decided about its status.
    pub(super) async fn refuse_unless(&self, id: DeploymentId, to: DeploymentStatus) -> Result<(), Stop> {
        match self.deployment(id).await?.status {
            DeploymentStatus::Cancelled => Err(Stop::Cancelled),
            now if now == to => Ok(()),
            now => Err(Stop::Superseded(Failure::new(
                "superseded",
                format!("somebody made it {now:?} meanwhile"),
            ))),
        }
    }

    pub(super) async fn deployment_of(&self, operation: &Operation) -> Result<Deployment, Stop> {
        let id = operation.deployment.ok_or_else(|| missing("deployment", &operation.id.to_string()))?;
        self.deployment(id).await
    }

    pub(super) async fn deployment(&self, id: DeploymentId) -> Result<Deployment, Stop> {
        self.store.deployment(&id).await?.ok_or_else(|| missing("deployment", &id.to_string()))
    }

    pub(super) async fn environment_of(
        &self,
        deployment: &Deployment,
    ) -> Result<crate::store::Environment, Stop> {
        let found = self.store.environment(&deployment.app, &deployment.environment).await?;
        found.ok_or_else(|| missing("environment", deployment.environment.as_str()))
    }

    /// What is live in the deployment's environment.
    pub(super) async fn live_of(&self, deployment: &Deployment) -> Result<Option<Deployment>, Stop> {
        match self.environment_of(deployment).await?.live {
            Some(live) => Ok(self.store.deployment(&live).await?),
            None => Ok(None),
        }
    }

    /// Pinned image of a deployment that has come so far.
    pub(super) fn pinned_of(&self, deployment: &Deployment) -> Result<Pinned, Stop> {
        pinned(deployment)
    }
}

/// Over all that decides how a deployment behaves: digest, settings, and what is secret of them.
pub(super) fn state_hash(deployment: &Deployment, pinned: &Pinned) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut field = |bytes: &[u8]| {
        // With its length, so that no two lists of fields are one string.
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(pinned.digest.as_bytes());
    field(&serde_json::to_vec(&deployment.settings).unwrap_or_default());
    for (name, value) in deployment.settings.secrets() {
        field(name.as_bytes());
        field(value.expose().as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

fn missing(what: &'static str, name: &str) -> Stop {
    Stop::Store(StoreError::NotFound { what, name: name.to_owned() })
}

fn broken(what: &str, error: &dyn std::error::Error) -> Stop {
    Stop::Failed(Failure::new("internal", format!("{what} cannot be written: {}", chain(error))))
}
