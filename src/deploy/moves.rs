//! Rollback and promote: the gates of each, in their order, looked at when it is asked for and again when it runs.
//!
//! Both move the live routes as a swap does. After a rollback the environment is `rolled_back`: deploys become ready
//! and do not go live, until a promote says which version is to be live from now on.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::engine::{Engine, Stop};
use super::executor::{LaneKey, request_of};
use super::schedule::by_itself;
use super::{Caller, Denied, Gate, Orchestrator, PromoteRequest, RollbackRequest, Submitted};
use crate::ids::DeploymentId;
use crate::store::{
    Deployment, DeploymentStatus, DesiredState, Environment, EnvironmentKind, Failure, Operation,
    OperationEnd, OperationKind, OperationState,
};

/// What a client may ask of a deployment now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// End the operation that makes it.
    Cancel,
    /// Make it live.
    Swap,
    /// Go back to it.
    Rollback,
    /// Make it live, and let deploys go live again.
    Promote,
    /// Promote the live one: the rollback stays, and deploys go live again.
    ConfirmRollback,
    /// Deploy its very image to production.
    PromoteFromPreview,
    /// Start it, as a request does.
    Wake,
    /// Stop it and keep it.
    Standby,
    /// Remove it.
    Archive,
    /// Move its expiry.
    Extend,
}

/// What of a [`RollbackRequest`] is looked at again when it runs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct RollbackFlags {
    source: DeploymentId,
}

/// What an operation that moves the live routes does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    Traffic,
    /// The target is live already: only the flag is cleared.
    Confirm,
}

impl Orchestrator {
    /// What may be asked of a deployment now.
    ///
    /// # Errors
    /// If the store is away.
    pub async fn available_actions(&self, deployment: &Deployment) -> Result<Vec<Action>, Denied> {
        if !deployment.status.is_end() {
            return Ok(vec![Action::Cancel]);
        }
        let key = (deployment.app.clone(), deployment.environment.clone());
        let environment = self.engine.store.environment(&key.0, &key.1).await?;
        let Some(environment) = environment.filter(|_| can_serve(deployment)) else { return Ok(Vec::new()) };
        let mut actions = Vec::new();
        if !self.engine.publisher.is_disabled(&key.0) {
            match &deployment.label {
                Some(_) => self.add_of_preview(deployment, &mut actions),
                None => self.add_moves(deployment, &environment, &mut actions).await?,
            }
            if deployment.desired_state == DesiredState::Standby {
                actions.push(Action::Wake);
            }
        }
        if environment.live != Some(deployment.id) {
            if deployment.desired_state == DesiredState::Running {
                actions.push(Action::Standby);
            }
            actions.push(Action::Archive);
        }
        Ok(actions)
    }

    fn add_of_preview(&self, deployment: &Deployment, actions: &mut Vec<Action>) {
        if deployment.expires_at.is_some_and(|at| at > self.engine.clock.wall()) {
            actions.extend([Action::Extend, Action::PromoteFromPreview]);
        }
    }

    async fn add_moves(
        &self,
        deployment: &Deployment,
        environment: &Environment,
        actions: &mut Vec<Action>,
    ) -> Result<(), Denied> {
        let key = (environment.app.clone(), environment.name.clone());
        let may_promote = environment.kind == EnvironmentKind::Production
            && environment.live.is_some()
            && !self.engine.drains.is_draining(deployment.id);
        if environment.live == Some(deployment.id) {
            if environment.rolled_back && may_promote {
                actions.push(Action::ConfirmRollback);
            }
            return Ok(());
        }
        actions.push(Action::Swap);
        if environment.live.is_some() && !self.engine.has_no_routes(&key).await? {
            actions.push(Action::Rollback);
        }
        if may_promote {
            actions.push(Action::Promote);
        }
        Ok(())
    }

    pub(super) async fn submit_rollback(
        &self,
        request: RollbackRequest,
        caller: Caller,
    ) -> Result<Submitted, Denied> {
        let (_, key) = self.find_lane(request.app.as_ref(), request.environment.as_ref()).await?;
        let _turn = self.engine.submitting.lock().await;
        self.engine.place_in(&key, request.queue)?;
        let environment = self.engine.environment_at(&key).await?;
        let source = request.source.or(environment.live).ok_or(Denied::NothingToGoBackTo)?;
        let target = match request.target {
            Some(target) => target,
            None => {
                self.engine.known(&key, source).await?;
                let found = self.engine.store.ways_back(&key.0, &key.1, &source, 1).await?;
                found.first().copied().ok_or(Denied::NothingToGoBackTo)?
            }
        };
        self.engine.rollback_gates(&key, source, target).await?;
        let flags = serde_json::json!(RollbackFlags { source }).to_string();
        self.submit_move(OperationKind::Rollback, &key, target, flags, caller).await
    }

    pub(super) async fn submit_promote(
        &self,
        request: PromoteRequest,
        caller: Caller,
    ) -> Result<Submitted, Denied> {
        let target = match (request.deployment, &request.from_preview) {
            (Some(target), None) => target,
            (None, Some(label)) => return self.promote_preview(&request, label, caller).await,
            (Some(_), Some(_)) | (None, None) => {
                return Err(Denied::Invalid {
                    field: "deployment".to_owned(),
                    detail: "either a deployment or a preview is promoted".to_owned(),
                    remedy: Some("name one of deployment and from_preview".to_owned()),
                });
            }
        };
        let (_, key) = self.find_lane(request.app.as_ref(), request.environment.as_ref()).await?;
        let _turn = self.engine.submitting.lock().await;
        self.engine.place_in(&key, request.queue)?;
        self.engine.promote_gates(&key, target).await?;
        self.submit_move(OperationKind::Promote, &key, target, "{}".to_owned(), caller).await
    }

    async fn submit_move(
        &self,
        kind: OperationKind,
        key: &LaneKey,
        to: DeploymentId,
        flags: String,
        caller: Caller,
    ) -> Result<Submitted, Denied> {
        let operation = self.operation(kind, key, Some(to), flags, caller);
        self.accept(key, operation, None, None).await
    }
}

impl Engine {
    /// What an operation that moves the live routes is to do now; a swap always moves them.
    pub(super) async fn decide_move(&self, operation: &Operation) -> Result<Move, Stop> {
        let deployment = self.deployment_of(operation).await?;
        let key = (operation.app.clone(), operation.environment.clone());
        let decided = match operation.kind {
            OperationKind::Deploy
            | OperationKind::Swap
            | OperationKind::Scale
            | OperationKind::Enable
            | OperationKind::Wake
            | OperationKind::Standby
            | OperationKind::Archive => Ok(Move::Traffic),
            OperationKind::Rollback => {
                let flags: RollbackFlags = request_of(operation)?;
                self.rollback_gates(&key, flags.source, deployment.id).await.map(|()| Move::Traffic)
            }
            OperationKind::Promote => self.promote_gates(&key, deployment.id).await,
        };
        decided.map_err(|denied| match denied {
            Denied::Store { source } => Stop::Store(source),
            denied => {
                Stop::Failed(Failure::new(denied.code(), denied.to_string()).remedy(
                    "something else moved the traffic meanwhile: look at what is live, then ask again",
                ))
            }
        })
    }

    /// In the order of the design: the first that fails is told.
    async fn rollback_gates(
        &self,
        key: &LaneKey,
        source: DeploymentId,
        target: DeploymentId,
    ) -> Result<(), Denied> {
        let (from, to) = (self.known(key, source).await?, self.known(key, target).await?);
        if source == target {
            return Err(Denied::Gate(Gate::SameDeployment));
        }
        // An ephemeral deployment stands beside its environment: it is never live there.
        let is_elsewhere = |one: &Deployment| one.environment != key.1 || one.label.is_some();
        if is_elsewhere(&from) || is_elsewhere(&to) {
            let deployment = if is_elsewhere(&to) { target } else { source };
            return Err(Denied::DifferentEnvironment { deployment });
        }
        if self.environment_at(key).await?.live != Some(source) {
            return Err(Denied::Gate(Gate::SourceNotLive));
        }
        refuse_unready(&to)?;
        if self.has_no_routes(key).await? {
            return Err(Denied::Gate(Gate::NoRoutes));
        }
        Ok(())
    }

    /// In the order of the design: the first that fails is told.
    async fn promote_gates(&self, key: &LaneKey, target: DeploymentId) -> Result<Move, Denied> {
        let deployment = self.known(key, target).await?;
        refuse_unready(&deployment)?;
        if self.drains.is_draining(target) {
            return Err(Denied::Gate(Gate::DeploymentDraining));
        }
        let environment = self.environment_at(key).await?;
        if deployment.environment != key.1
            || deployment.label.is_some()
            || environment.kind != EnvironmentKind::Production
        {
            return Err(Denied::Gate(Gate::DeploymentNotProduction));
        }
        match environment.live {
            None => Err(Denied::Gate(Gate::NoLiveDeployment)),
            Some(live) if live != target => Ok(Move::Traffic),
            Some(_) if environment.rolled_back => Ok(Move::Confirm),
            Some(_) => Err(Denied::Gate(Gate::DeploymentIsLive)),
        }
    }

    /// A deployment of the app, in whatever environment.
    async fn known(&self, key: &LaneKey, id: DeploymentId) -> Result<Deployment, Denied> {
        let found = self.store.deployment(&id).await?.filter(|found| found.app == key.0);
        found.ok_or(Denied::DeploymentNotFound { deployment: id })
    }

    pub(super) async fn environment_at(&self, key: &LaneKey) -> Result<Environment, Denied> {
        let found = self.store.environment(&key.0, &key.1).await?;
        found.ok_or_else(|| Denied::EnvironmentNotFound { app: key.0.clone(), environment: key.1.clone() })
    }

    /// Whether nothing would lead to whatever is live.
    async fn has_no_routes(&self, key: &LaneKey) -> Result<bool, Denied> {
        let app = self.store.app(&key.0).await?;
        Ok(self.options.apex.is_none() && app.is_none_or(|app| app.hosts.is_empty()))
    }

    /// Lets deploys go live again, and ends the operation; what is live stays live.
    pub(super) async fn confirm(&self, operation: &Operation) -> Result<(), Stop> {
        let state = OperationState::Succeeded;
        let end = OperationEnd { state, failure: None, receipt: None, at: self.clock.wall() };
        self.store.confirm_rollback(&operation.id, &end, &by_itself(operation.id)).await?;
        self.count(operation, &end);
        self.has_ended(operation.id);
        Ok(())
    }
}

pub(super) fn can_serve(deployment: &Deployment) -> bool {
    deployment.status == DeploymentStatus::Ready && deployment.desired_state != DesiredState::Archived
}

fn refuse_unready(deployment: &Deployment) -> Result<(), Denied> {
    if can_serve(deployment) {
        return Ok(());
    }
    let status = super::submit::status_text(deployment);
    Err(Denied::DeploymentNotReady { deployment: deployment.id, status })
}
