//! New deployments of a version that is there already: of any, as another deployment or under a label, and of a preview, in
//! production. The version itself is only read.

use tokio::sync::mpsc;

use super::engine::{Engine, Stop};
use super::submit::{json, status_text};
use super::{Caller, Denied, DeployFlags, DeployRequest, Gate, Orchestrator, PromoteRequest, Submitted};
use crate::error::chain;
use crate::ids::{AppName, DeploymentId, EphemeralLabel};
use crate::runtime::{Pinned, Source};
use crate::settings::{PullPolicy, RuntimeKind, Strategy};
use crate::store::{
    Deployment, DeploymentStatus, DesiredState, EnvironmentKind, Failure, NewDeployment, OperationKind,
};

impl Orchestrator {
    /// What a label leads to, as a new deployment: the same image and command, with the environment's own settings and
    /// env vars. It goes live also where the environment is rolled back.
    pub(super) async fn promote_preview(
        &self,
        request: &PromoteRequest,
        label: &EphemeralLabel,
        caller: Caller,
    ) -> Result<Submitted, Denied> {
        let (app, key) = self.find_lane(request.app.as_ref(), request.environment.as_ref()).await?;
        let engine = &self.engine;
        engine.runtime.ping().await.map_err(|source| Denied::RuntimeUnavailable { source })?;
        let _turn = engine.submitting.lock().await;
        let preview = engine.labelled(&app.name, label).await?;
        let environment = engine.environment_at(&key).await?;
        if environment.kind != EnvironmentKind::Production {
            return Err(Denied::Gate(Gate::DeploymentNotProduction));
        }
        engine.place_in(&key, request.queue)?;
        let mut settings = app.settings;
        settings.image = preview.settings.image;
        settings.command = preview.settings.command;
        settings.directory = preview.settings.directory;
        if settings.deploy.strategy != Strategy::Hold {
            settings.replicas = environment.replicas.unwrap_or(settings.replicas);
        }
        self.check_deploy(&DeployRequest::default(), &settings)?;
        let deployment = NewDeployment {
            id: DeploymentId::generate(),
            settings,
            git: preview.git,
            pinned: preview.pinned,
            label: None,
            expires_at: None,
        };
        // An equal one that is live would leave the environment rolled back.
        let force = environment.rolled_back;
        let flags = DeployFlags { force, cutover: true, promote: true, lazy: false, evict: true };
        let operation =
            self.operation(OperationKind::Deploy, &key, Some(deployment.id), json(&flags), caller);
        self.accept(&key, operation, Some(deployment), None).await
    }
}

impl Engine {
    /// A deployment of the app that was ready once, archived or not.
    pub(super) async fn version(&self, app: &AppName, id: DeploymentId) -> Result<Deployment, Denied> {
        let found = self.store.deployment(&id).await?.filter(|found| found.app == *app);
        let found = found.ok_or(Denied::DeploymentNotFound { deployment: id })?;
        if found.status != DeploymentStatus::Ready || found.pinned.is_none() {
            return Err(Denied::DeploymentNotReady { deployment: id, status: status_text(&found) });
        }
        Ok(found)
    }

    /// What the label leads to now.
    pub(super) async fn labelled(&self, app: &AppName, label: &EphemeralLabel) -> Result<Deployment, Denied> {
        let now = self.clock.wall();
        let is_it = |one: &Deployment| {
            one.label.as_ref() == Some(label)
                && one.desired_state != DesiredState::Archived
                && one.expires_at.is_some_and(|at| at > now)
        };
        let mut all = self.store.ephemerals(Some(app)).await?.into_iter().filter(is_it);
        all.next_back().ok_or_else(|| Denied::LabelNotFound { app: app.clone(), label: label.clone() })
    }

    /// Makes the image of a deployment available; of one that is made of a version, that version's very image.
    pub(super) async fn prepare(
        &self,
        deployment: &Deployment,
        lines: mpsc::Sender<String>,
    ) -> Result<Pinned, Stop> {
        let settings = &deployment.settings;
        let source = Source {
            image: settings.image.clone(),
            command: settings.command.clone(),
            directory: settings.directory.clone(),
            pull: settings.deploy.pull,
        };
        let Some(version) = version_of(deployment)? else {
            return Ok(self.runtime.prepare(&source, lines).await?);
        };
        if self.runtime.kind() == RuntimeKind::Docker {
            let image = Some(version.digest.clone());
            let exact = Source { image, pull: PullPolicy::Never, ..source.clone() };
            if let Ok(found) = self.runtime.prepare(&exact, lines.clone()).await {
                return Ok(found);
            }
        }
        // The engine has it no more, or there are no images: what the name leads to may still be the same.
        let found = self.runtime.prepare(&source, lines).await?;
        if found.digest == version.digest {
            return Ok(found);
        }
        let cause = format!("its program was {}, and is {} by now", version.digest, found.digest);
        let remedy = "deploy the program as it is now, as a version of its own";
        Err(Stop::Failed(Failure::new("version_changed", cause).remedy(remedy)))
    }
}

fn version_of(deployment: &Deployment) -> Result<Option<Pinned>, Stop> {
    let Some(text) = &deployment.pinned else { return Ok(None) };
    serde_json::from_str(text).map(Some).map_err(|error| {
        Stop::Failed(Failure::new("damaged", format!("what the image is pinned to: {}", chain(&error))))
    })
}
