//! What is accepted, and what is denied with nothing changed.

use std::sync::Arc;

use tracing::warn;

use super::engine::{Engine, Stop};
use super::executor::{Job, LaneKey, LaneView, Line, WAITING_MAX};
use super::progressive::Steps;
use super::{
    Caller, Command, Denied, DeployFlags, DeployRequest, HostChange, InSteps, InstanceLogs, InstanceView,
    Orchestrator, Submitted, SwapFlags, SwapRequest, parse_host,
};
use crate::ids::{AppName, DeploymentId, EnvironmentName, EphemeralLabel, OperationId};
use crate::settings::{AppSettings, Enforcement, RuntimeKind, Strategy, unheard_https};
use crate::store::{
    Accepted, App, Deployment, DeploymentStatus, DesiredState, GitFacts, IdempotencyKey, NewDeployment,
    NewOperation, Operation, OperationKind, Origin, StoreError,
};

/// Labels that nobody may have.
const RESERVED_LABELS: &[&str] = &["www", "admin"];

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

    /// Creates apps or changes their settings and host names, all or none: host names may move between them. What is
    /// live stays live. Routes follow at once.
    ///
    /// # Errors
    /// What is wrong with an app's settings, that a host is taken, or that the store is away. Then nothing has changed.
    pub async fn put_apps(&self, apps: &[App]) -> Result<(), Denied> {
        for app in apps {
            self.check_app(app)?;
        }
        let turn = self.engine.publisher.turn().await;
        self.engine.store.put_apps(apps).await?;
        self.engine.hours.changed();
        self.engine.publisher.replace(&turn, self.engine.store.routes().await?);
        Ok(())
    }

    /// As [`Orchestrator::put_apps`] of one that no configuration file has; with a key, unless the same call was made before:
    /// what changed since stays.
    ///
    /// # Errors
    /// The same, that it says of https what nobody would be told here, and that the key was used for another call.
    pub async fn put_app(&self, app: &App, key: Option<&IdempotencyKey>) -> Result<(), Denied> {
        // A file's apps are looked at with its listeners, which may wait for a restart.
        let unheard = if self.engine.options.https {
            Vec::new()
        } else {
            unheard_https(app.settings.https, app.settings.hsts)
        };
        if let Some((field, detail, remedy)) = unheard.into_iter().next() {
            return Err(Denied::Invalid {
                field: field.to_owned(),
                detail: format!("{}: {field} {detail}", app.name),
                remedy: Some(remedy.to_owned()),
            });
        }
        let Some(key) = key else { return self.put_apps(std::slice::from_ref(app)).await };
        self.check_app(app)?;
        let turn = self.engine.publisher.turn().await;
        if self.engine.store.put_app_once(app, key).await? {
            self.engine.hours.changed();
            self.engine.publisher.replace(&turn, self.engine.store.routes().await?);
        }
        Ok(())
    }

    /// Changes the host names of one app, all at one instant; the rest of it stays. What is in flight through a host that
    /// goes ends as it would have; whoever asks for it from then on gets a 404.
    ///
    /// # Errors
    /// If there is no such app, a host is not valid, not there or taken, or the store is away.
    pub async fn change_hosts(&self, name: &AppName, change: &HostChange) -> Result<(), Denied> {
        let turn = self.engine.publisher.turn().await;
        let found = self.engine.store.app(name).await?;
        let mut app = found.ok_or_else(|| Denied::AppNotFound { app: name.clone() })?;
        change.apply(&mut app.hosts)?;
        self.check_app(&app)?;
        self.engine.store.put_apps(&[app]).await?;
        self.engine.publisher.replace(&turn, self.engine.store.routes().await?);
        Ok(())
    }

    fn check_app(&self, app: &App) -> Result<(), Denied> {
        let apex = self.engine.options.apex.as_ref();
        if let Some(fault) = app.settings.faults().into_iter().next() {
            let detail = format!("{}: {} {}", app.name, fault.field, fault.detail);
            let remedy = Some(fault.remedy.to_owned());
            return Err(Denied::Invalid { field: fault.field, detail, remedy });
        }
        for row in &app.hosts {
            let (pattern, prefix) = parse_host(row).map_err(|detail| Denied::Invalid {
                field: "hosts".to_owned(),
                detail,
                remedy: Some("write www.example.com, *.example.com or *".to_owned()),
            })?;
            // A reload checks the file's own apps and services against each other, and may move a host between them.
            if app.origin == Origin::Api && self.engine.publisher.is_service(&pattern, &prefix) {
                return Err(Denied::Invalid {
                    field: "hosts".to_owned(),
                    detail: format!("host {} belongs to a static service of the configuration", row.host),
                    remedy: Some("take it from the service, or choose another host".to_owned()),
                });
            }
            if apex.is_some_and(|apex| pattern.to_string().ends_with(&format!(".{apex}"))) {
                warn!(app = %app.name, host = row.host, "host lies under the apex of generated names");
            }
        }
        Ok(())
    }

    /// What the engine and the gates say of every instance.
    ///
    /// # Errors
    /// If the store is away.
    pub async fn instances(&self) -> Result<Vec<InstanceView>, Denied> {
        let rows = self.engine.store.instances(None).await?;
        Ok(rows
            .into_iter()
            .map(|row| {
                let targets = self.engine.publisher.targets_of(row.id);
                let in_flight = super::publisher::in_flight(&targets);
                InstanceView {
                    id: row.id,
                    app: row.app,
                    environment: row.environment,
                    deployment: row.deployment,
                    phase: row.phase,
                    healthy: !targets.is_empty() && targets.iter().all(|target| target.is_healthy()),
                    address: row.address,
                    requests: in_flight.requests,
                    streams: in_flight.streams,
                }
            })
            .collect())
    }

    /// The last `lines` lines of each of the deployment's instances.
    ///
    /// # Errors
    /// If there is no such deployment, or the runtime or the store is away.
    pub async fn logs(&self, deployment: DeploymentId, lines: usize) -> Result<Vec<InstanceLogs>, Denied> {
        if self.engine.store.deployment(&deployment).await?.is_none() {
            return Err(Denied::DeploymentNotFound { deployment });
        }
        let mut logs = Vec::new();
        for row in self.engine.store.instances(Some(&deployment)).await? {
            let lines = self.engine.runtime.logs(&row.id, lines).await;
            logs.push(InstanceLogs {
                instance: row.id,
                lines: lines.map_err(|source| Denied::RuntimeUnavailable { source })?,
            });
        }
        Ok(logs)
    }

    /// The host names that lead to a deployment now.
    #[must_use]
    pub fn hosts(&self, deployment: DeploymentId) -> Vec<String> {
        self.engine.publisher.hosts(deployment)
    }

    /// Where a deployment will be reached, if it has a name of its own: known before it starts.
    ///
    /// # Errors
    /// If the store is away or there is no such deployment.
    pub async fn url(&self, deployment: DeploymentId) -> Result<Option<String>, Denied> {
        let found = self.engine.store.deployment(&deployment).await?;
        let found = found.ok_or(Denied::DeploymentNotFound { deployment })?;
        let live =
            self.engine.store.environment(&found.app, &found.environment).await?.and_then(|it| it.live);
        // At the app's own host names another version is reached as long as this one is not live.
        let url = if live == Some(deployment) {
            self.engine.url(&found).await
        } else {
            self.engine.own_url(&found).await
        };
        match url {
            Ok(url) => Ok(url),
            Err(Stop::Store(source)) => Err(Denied::Store { source }),
            Err(_) => Ok(None),
        }
    }

    /// Whether the runtime answers, and what it calls itself.
    ///
    /// # Errors
    /// That it does not.
    pub async fn runtime_status(&self) -> Result<String, Denied> {
        self.engine.runtime.ping().await.map_err(|source| Denied::RuntimeUnavailable { source })
    }

    /// How far the runtime holds instances to their limits.
    #[must_use]
    pub fn enforcement(&self) -> Enforcement {
        self.engine.runtime.enforcement()
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

    pub(super) fn check_deploy(&self, request: &DeployRequest, settings: &AppSettings) -> Result<(), Denied> {
        if let Some(fault) = settings.faults().into_iter().next() {
            let detail = format!("{} {}", fault.field, fault.detail);
            return Err(Denied::Invalid {
                field: fault.field,
                detail,
                remedy: Some(fault.remedy.to_owned()),
            });
        }
        let invalid = |field, detail: &str, remedy: &str| {
            Err(Denied::Invalid {
                field: str::to_owned(field),
                detail: detail.to_owned(),
                remedy: Some(remedy.to_owned()),
            })
        };
        match self.engine.runtime.kind() {
            RuntimeKind::Docker if settings.image.is_none() => {
                return invalid(
                    "image",
                    "no image is named",
                    "set image in the app's settings or in the request",
                );
            }
            RuntimeKind::Process if settings.command.is_empty() => {
                return invalid(
                    "command",
                    "no command is named, and the process runtime runs commands",
                    "set command in the app's settings or in the request",
                );
            }
            RuntimeKind::Process if !settings.health.command.is_empty() => {
                return invalid(
                    "health.command",
                    "the process runtime runs no health commands",
                    "set health.path instead",
                );
            }
            RuntimeKind::Process if request.image.is_some() && request.command.is_none() => {
                return invalid(
                    "image",
                    "an image is named, and the process runtime runs commands",
                    "name a command instead, or run lockgate with runtime: docker",
                );
            }
            RuntimeKind::Docker | RuntimeKind::Process | RuntimeKind::Auto => {}
        }
        if request.version.is_some() && (request.image.is_some() || request.command.is_some()) {
            return invalid(
                "version",
                "a version is named, and an image or a command beside it",
                "leave out one of them: a version has its image and command",
            );
        }
        if settings.deploy.strategy == Strategy::Hold && !request.cutover && request.label.is_none() {
            return invalid(
                "cutover",
                "with deploy.strategy hold no version runs beside the live one",
                "deploy it with a cutover, or under a label",
            );
        }
        if let Some(label) = &request.label {
            let reserved = &self.engine.options.reserved_labels;
            let label = label.as_str();
            if RESERVED_LABELS.contains(&label)
                || reserved.iter().any(|word| word == label)
                || label.starts_with("xn--")
            {
                return invalid("label", "the label is reserved", "choose another label");
            }
        }
        if settings.deploy.strategy == Strategy::Hold && !request.steps.is_empty() {
            return invalid(
                "steps",
                "with deploy.strategy hold no version runs beside the live one",
                "leave out the steps, or set deploy.strategy to swap",
            );
        }
        if request.label.is_some() && !request.steps.is_empty() {
            return invalid(
                "steps",
                "an ephemeral deployment never goes live",
                "leave out the steps or the label",
            );
        }
        if request.lazy && request.label.is_none() {
            return invalid(
                "lazy",
                "only an ephemeral deployment starts with its first request",
                "name a label",
            );
        }
        if request.lazy && !settings.wake {
            return invalid(
                "lazy",
                "with wake: false no request starts it",
                "set wake to true, or deploy it without lazy",
            );
        }
        if request.ttl.is_some_and(|ttl| ttl.0.is_zero()) {
            return invalid("ttl", "the ttl is not positive", "write for example 2h");
        }
        if request.ttl.is_some() && request.label.is_none() {
            return invalid(
                "ttl",
                "a ttl is given, but no label",
                "name a label: only ephemeral deployments expire",
            );
        }
        Ok(())
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

impl From<StoreError> for Denied {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::HostTaken { host, owner } => Self::HostTaken { host, owner },
            StoreError::Outdated { expected, found } => Self::GenerationChanged { expected, found },
            source => Self::Store { source },
        }
    }
}

/// With the label that it asks to be made.
fn labelled(mut request: DeployRequest) -> Result<DeployRequest, Denied> {
    let Some(name) = request.label_of.take() else { return Ok(request) };
    let made = EphemeralLabel::made_of(&name).filter(|_| request.label.is_none());
    let label = made.ok_or_else(|| Denied::Invalid {
        field: "label_of".to_owned(),
        detail: if request.label.is_some() {
            "a label is given, and a name that one is to be made of".to_owned()
        } else {
            format!("no label can be made of {name:?}")
        },
        remedy: Some("give either, and a name with a letter or digit of a-z and 0-9".to_owned()),
    })?;
    Ok(DeployRequest { label: Some(label), ..request })
}

/// The app's settings with what the request replaces.
fn merge(settings: &AppSettings, request: &DeployRequest) -> AppSettings {
    let mut merged = settings.clone();
    if request.image.is_some() {
        merged.image.clone_from(&request.image);
    }
    if let Some(command) = &request.command {
        merged.command.clone_from(command);
    }
    merged.env.extend(request.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    merged
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
