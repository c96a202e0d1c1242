//! What is accepted, and what is denied with nothing changed.

use std::sync::Arc;

use super::engine::Engine;
use super::executor::{Job, LaneKey, LaneView, Line, WAITING_MAX};
use super::progressive::Steps;
use super::validity::{labelled, merge};
use super::{
    Caller, Command, Denied, DeployFlags, DeployRequest, InSteps, Orchestrator, Submitted, SwapFlags,
    SwapRequest,
};
use crate::ids::{AppName, DeploymentId, EnvironmentName, OperationId};
use crate::settings::{AppSettings, Strategy};
use crate::store::{
    Accepted, App, Deployment, DeploymentStatus, DesiredState, GitFacts, NewDeployment, NewOperation,
    Operation, OperationKind, StoreError,
};

impl Orchestrator {
    /// Journals `command` and has it run. The answer comes before it has run: see [`Submitted::reached`].
    ///
    /// # Errors
    /// Why it is not accepted; nothing changed.
    pub async fn submit(&self, command: Command, caller: Caller) -> Result<Submitted, Denied> {
        if self.engine.stopping.is_cancelled() {
            return Err(Denied::ShuttingDown);
        }
        if let Some(key) = &caller.idempotency
            && let Some(first) = self.engine.store.repeated(key).await?
        {
            return self.repeated(first).await;
        }
        match command {
            Command::Deploy(request) => self.submit_deploy(request, caller).await,
            Command::Swap(request) => self.submit_swap(request, caller).await,
            Command::Rollback(request) => self.submit_rollback(request, caller).await,
            Command::Promote(request) => self.submit_promote(request, caller).await,
            Command::Scale(request) => self.submit_scale(request, caller).await,
            Command::Enable(app) => self.submit_enable(&app, caller).await,
            Command::Wake(deployment) => self.submit_wake(deployment, caller).await,
        }
    }

    async fn submit_deploy(&self, request: DeployRequest, caller: Caller) -> Result<Submitted, Denied> {
        let request = labelled(request)?;
        let (app, key) = self.lane_of(request.app.as_ref(), request.environment.as_ref()).await?;
        let version = match request.version {
            Some(id) => Some(self.engine.version(&app.name, id).await?),
            None => None,
        };
        let mut settings =
            merge(version.as_ref().map_or(&app.settings, |version| &version.settings), &request);
        let is_preview = request.label.is_some() || key.1 != EnvironmentName::production();
        if is_preview && settings.preview_auth.is_none() {
            settings.preview_auth.clone_from(&self.engine.options.preview_auth);
        }
        self.check_deploy(&request, &settings)?;
        let git = match &version {
            Some(version) if request.git == GitFacts::default() => version.git.clone(),
            _ => request.git.clone(),
        };
        let steps = Steps::of(&request.steps, request.step_for)?;
        self.engine.runtime.ping().await.map_err(|source| Denied::RuntimeUnavailable { source })?;
        let _turn = self.engine.submitting.lock().await;
        let is_alone = settings.deploy.strategy == Strategy::Hold;
        if request.label.is_none()
            && !is_alone
            && let Some(known) = self.engine.store.environment(&key.0, &key.1).await?
            && let Some(replicas) = known.replicas
        {
            settings.replicas = replicas;
        }
        let lane = self.engine.place_in(&key, request.queue)?;
        if caller.idempotency.is_none() && !request.force {
            let busy = lane.running.into_iter().chain(lane.waiting.last().copied());
            if let Some(same) = self.equal_deploy(busy, &request, (&settings, &git)).await? {
                return Ok(same);
            }
        }
        if let (Some(label), false) = (&request.label, request.evict) {
            self.engine.refuse_to_evict(&app.name, label).await?;
        }
        let now = self.engine.clock.wall();
        let ttl = request.ttl.unwrap_or(self.engine.options.ephemeral_ttl);
        let deployment = NewDeployment {
            id: DeploymentId::generate(),
            settings,
            git: git.clone(),
            pinned: version.and_then(|version| version.pinned),
            label: request.label.clone(),
            expires_at: request.label.as_ref().map(|_| now + ttl.0),
        };
        let DeployRequest { force, cutover, lazy, evict, .. } = request;
        let flags = DeployFlags { force, cutover, promote: false, lazy, evict };
        let flags = InSteps { flags, steps };
        let operation =
            self.operation(OperationKind::Deploy, &key, Some(deployment.id), json(&flags), caller);
        let line = match &request.label {
            Some(label) => Line::Label(label.clone()),
            None => Line::Branch(git.branch),
        };
        self.accept(&key, operation, Some(deployment), Some(line)).await
    }

    async fn submit_swap(&self, request: SwapRequest, caller: Caller) -> Result<Submitted, Denied> {
        let (_, key) = self.find_lane(request.app.as_ref(), request.environment.as_ref()).await?;
        let steps = Steps::of(&request.steps, request.step_for)?;
        let _turn = self.engine.submitting.lock().await;
        let id = request.deployment;
        let found = self.engine.store.deployment(&id).await?.filter(|found| found.app == key.0);
        let deployment = found.ok_or(Denied::DeploymentNotFound { deployment: id })?;
        if deployment.environment != key.1 {
            return Err(Denied::DifferentEnvironment { deployment: id });
        }
        if deployment.status != DeploymentStatus::Ready
            || deployment.desired_state == DesiredState::Archived
            || deployment.label.is_some()
        {
            return Err(Denied::DeploymentNotReady { deployment: id, status: status_text(&deployment) });
        }
        let environment = self.engine.store.environment(&key.0, &key.1).await?;
        let environment = environment
            .ok_or_else(|| Denied::EnvironmentNotFound { app: key.0.clone(), environment: key.1.clone() })?;
        if let Some(expected) =
            request.expected_generation.filter(|expected| *expected != environment.generation)
        {
            return Err(Denied::GenerationChanged { expected, found: environment.generation });
        }
        let lane = self.engine.place_in(&key, request.queue)?;
        if environment.live == Some(id) && lane.running.is_none() && caller.idempotency.is_none() {
            return Err(Denied::DeploymentIsLive { deployment: id });
        }
        let flags = SwapFlags { expected_generation: request.expected_generation };
        let flags = InSteps { flags, steps };
        let operation = self.operation(OperationKind::Swap, &key, Some(id), json(&flags), caller);
        self.accept(&key, operation, None, None).await
    }

    pub(super) async fn accept(
        &self,
        key: &LaneKey,
        operation: NewOperation,
        deployment: Option<NewDeployment>,
        line: Option<Line>,
    ) -> Result<Submitted, Denied> {
        let engine = &self.engine;
        let id = operation.id;
        let progress = engine.follow(id);
        let accepted = engine.store.begin_operation(&operation, deployment.as_ref()).await;
        match accepted {
            Ok(Accepted::New) => {
                match operation.deployment.filter(|_| operation.kind == OperationKind::Wake) {
                    Some(deployment) => engine.run_aside(deployment, id),
                    None => engine.enqueue(key, Job::Run { operation: id, line }),
                }
                Ok(Submitted {
                    operation: id,
                    deployment: operation.deployment,
                    repeated: false,
                    progress: Some(progress),
                })
            }
            Ok(Accepted::Repeated(first)) => {
                engine.unfollow(id);
                self.repeated(first).await
            }
            Err(error) => {
                engine.unfollow(id);
                Err(error.into())
            }
        }
    }

    /// The answer to a call that was made before.
    pub(super) async fn repeated(&self, operation: OperationId) -> Result<Submitted, Denied> {
        let found =
            self.engine.store.operation(&operation).await?.ok_or(Denied::OperationNotFound { operation })?;
        let progress = self.engine.following(operation);
        Ok(Submitted { operation, deployment: found.deployment, repeated: true, progress })
    }

    /// An equal deploy that runs or waits already.
    async fn equal_deploy(
        &self,
        busy: impl Iterator<Item = OperationId>,
        request: &DeployRequest,
        (settings, git): (&AppSettings, &GitFacts),
    ) -> Result<Option<Submitted>, Denied> {
        for id in busy {
            let Some(operation) = self.engine.store.operation(&id).await? else { continue };
            let Some(deployment) = operation.deployment.filter(|_| operation.kind == OperationKind::Deploy)
            else {
                continue;
            };
            let Some(other) = self.engine.store.deployment(&deployment).await? else { continue };
            // Whoever wants another cutover, or a time to live of its own, wants another operation.
            let flags = super::executor::request_of::<DeployFlags>(&operation);
            let steps = super::executor::request_of::<Steps>(&operation).ok();
            let is_equal = flags
                .is_ok_and(|flags| flags.cutover == request.cutover && flags.lazy == request.lazy)
                && steps == Steps::of(&request.steps, request.step_for).ok()
                && request.ttl.is_none()
                && other.settings == *settings
                && other.git == *git
                && request.version.is_none()
                && other.label == request.label
                && operation.cutover.is_none()
                && !operation.cancel_requested;
            if is_equal {
                return self.repeated(id).await.map(Some);
            }
        }
        Ok(None)
    }

    /// Asks an operation to stop at its next step and to undo what it did. Success without effect if it has ended or
    /// its cutover is done.
    ///
    /// # Errors
    /// If there is none, or the store is away.
    pub async fn cancel(&self, operation: OperationId) -> Result<Operation, Denied> {
        let found =
            self.engine.store.operation(&operation).await?.ok_or(Denied::OperationNotFound { operation })?;
        if self.engine.store.request_cancel(&operation).await? {
            self.engine.cancel(&(found.app.clone(), found.environment.clone()), operation);
        }
        self.engine.store.operation(&operation).await?.ok_or(Denied::OperationNotFound { operation })
    }

    /// The app, and the lane of one of its environments.
    pub(super) async fn find_lane(
        &self,
        app: Option<&AppName>,
        environment: Option<&EnvironmentName>,
    ) -> Result<(App, LaneKey), Denied> {
        let (app, key) = self.lane_of(app, environment).await?;
        self.engine.environment_at(&key).await?;
        Ok((app, key))
    }

    /// The same for a deploy, which makes an environment that is not there.
    async fn lane_of(
        &self,
        app: Option<&AppName>,
        environment: Option<&EnvironmentName>,
    ) -> Result<(App, LaneKey), Denied> {
        let Some(name) = app else {
            return Err(Denied::Invalid {
                field: "app".to_owned(),
                detail: "no app is named".to_owned(),
                remedy: None,
            });
        };
        let app =
            self.engine.store.app(name).await?.ok_or_else(|| Denied::AppNotFound { app: name.clone() })?;
        let environment = environment.cloned().unwrap_or_else(EnvironmentName::production);
        if self.engine.publisher.is_disabled(name) {
            return Err(Denied::AppDisabled { app: name.clone() });
        }
        Ok((app, (name.clone(), environment)))
    }

    pub(super) fn operation(
        &self,
        kind: OperationKind,
        key: &LaneKey,
        deployment: Option<DeploymentId>,
        request: String,
        caller: Caller,
    ) -> NewOperation {
        NewOperation {
            id: OperationId::generate(),
            kind,
            app: key.0.clone(),
            environment: key.1.clone(),
            deployment,
            request,
            actor: caller.actor,
            idempotency: caller.idempotency,
            at: self.engine.clock.wall(),
        }
    }
}

impl Engine {
    /// The lane, if it has a place for one more operation, or is free where the caller does not want to wait.
    pub(super) fn place_in(&self, key: &LaneKey, queue: bool) -> Result<LaneView, Denied> {
        let lane = self.lanes.view(key);
        if let (false, Some(holder)) = (queue, lane.running.or_else(|| lane.waiting.first().copied())) {
            return Err(Denied::OperationInProgress { holder });
        }
        if lane.waiting.len() >= WAITING_MAX {
            return Err(Denied::QueueFull { waiting: lane.waiting.len() });
        }
        Ok(lane)
    }

    /// Queues what a restart has to finish, and starts the engine's own loops.
    pub(super) async fn resume(self: &Arc<Self>) -> Result<(), StoreError> {
        for operation in self.store.unfinished_operations().await? {
            let progress = self.follow(operation.id);
            drop(progress);
            if let Some(deployment) = operation.deployment.filter(|_| operation.kind == OperationKind::Wake) {
                self.run_aside(deployment, operation.id);
                continue;
            }
            let key = (operation.app.clone(), operation.environment.clone());
            // Without a line: what was accepted before the restart is not superseded by what was accepted with it.
            self.enqueue(&key, Job::Run { operation: operation.id, line: None });
        }
        self.finish_removals().await?;
        self.finish_environments().await?;
        self.keep_pauses();
        self.tasks.spawn(Arc::clone(self).keep_time());
        self.tasks.spawn(Arc::clone(self).keep_history());
        self.tasks.spawn(Arc::clone(self).keep_reconciled());
        self.tasks.spawn(Arc::clone(self).keep_healthy());
        self.tasks.spawn(Arc::clone(self).keep_waking());
        Ok(())
    }
}

pub(super) fn status_text(deployment: &Deployment) -> String {
    if deployment.label.is_some() {
        return "ephemeral".to_owned();
    }
    match deployment.desired_state {
        DesiredState::Archived => "archived".to_owned(),
        DesiredState::Running | DesiredState::Standby => format!("{:?}", deployment.status).to_lowercase(),
    }
}

pub(super) fn json(flags: &impl serde::Serialize) -> String {
    serde_json::json!(flags).to_string()
}
