//! Removing an app: its host names at once, its instances after their drain, its records last.

use std::sync::Arc;

use tracing::{info, warn};

use super::engine::{Engine, STORE_AGAIN, Stop};
use super::instances::Afterwards;
use super::{Denied, Orchestrator, Volumes};
use crate::ids::AppName;
use crate::store::{Deployment, Of, Page, StoreError};

/// Deployments that are read at once.
const PAGE: u32 = 200;

impl Orchestrator {
    /// Takes the app out of service: from now on nothing leads to it. Its instances drain, stop and are removed behind
    /// this call, and then its records; a restart in between goes on with it.
    ///
    /// # Errors
    /// If there is no such app, something of it is in progress, or the store is away.
    pub async fn remove_app(&self, name: &AppName, volumes: Volumes) -> Result<(), Denied> {
        let engine = &self.engine;
        let _submitting = engine.submitting.lock().await;
        if engine.store.app(name).await?.is_none() {
            return Err(Denied::AppNotFound { app: name.clone() });
        }
        self.refuse_in_progress(name).await?;
        let turn = engine.publisher.turn().await;
        engine.store.retire_app(name, volumes == Volumes::Remove).await?;
        engine.publisher.replace(&turn, engine.store.routes().await?);
        drop(turn);
        info!(app = %name, "app taken out of service");
        engine.tasks.spawn(Arc::clone(engine).finish_removal(name.clone()));
        Ok(())
    }

    /// That nothing of the app runs or waits.
    pub(super) async fn refuse_in_progress(&self, app: &AppName) -> Result<(), Denied> {
        for environment in self.engine.store.environments(app).await? {
            let lane = self.engine.lanes.view(&(app.clone(), environment.name));
            if let Some(holder) = lane.running.or_else(|| lane.waiting.first().copied()) {
                return Err(Denied::OperationInProgress { holder });
            }
        }
        Ok(())
    }
}

impl Engine {
    /// Goes on with what a restart interrupted.
    pub(super) async fn finish_removals(self: &Arc<Self>) -> Result<(), StoreError> {
        for (app, _) in self.store.removals().await? {
            self.tasks.spawn(Arc::clone(self).finish_removal(app));
        }
        Ok(())
    }

    async fn finish_removal(self: Arc<Self>, app: AppName) {
        while !self.stopping.is_cancelled() {
            match self.try_to_finish_removal(&app).await {
                Ok(true) => return info!(%app, "app removed"),
                Ok(false) => {}
                Err(stop) => warn!(%app, ?stop, "app not removed yet; tried again"),
            }
            self.clock.sleep(STORE_AGAIN).await;
        }
    }

    /// Whether nothing is left of it, or it was taken into service again.
    async fn try_to_finish_removal(&self, app: &AppName) -> Result<bool, Stop> {
        let removals = self.store.removals().await?;
        let Some((_, with_volumes)) = removals.into_iter().find(|(one, _)| one == app) else {
            return Ok(true);
        };
        let of = Of { app: Some(app.clone()), environment: None };
        self.stop_all(&self.all_deployments(&of).await?).await?;
        if with_volumes {
            // One that somebody else stops has them until it is gone.
            if self.store.instances(None).await?.iter().any(|row| row.app == *app) {
                return Ok(false);
            }
            self.remove_app_volumes(app).await?;
        }
        Ok(self.store.forget_app(app).await?)
    }

    /// Takes the labels and the instances of retired deployments away; what cannot be done now is tried again.
    pub(super) async fn stop_all(&self, all: &[Deployment]) -> Result<(), Stop> {
        let mut stopped = Vec::new();
        for deployment in all {
            if let Some(label) = &deployment.label {
                self.publisher.clear_label(&deployment.app, label.as_str(), deployment.id);
            }
            if !self.store.instances(Some(&deployment.id)).await?.is_empty() {
                stopped.push(deployment);
            }
        }
        // All at once: each drains by its own deadlines.
        let retiring = stopped.iter().map(|one| self.retire_instances(one, Afterwards::Remove));
        for (deployment, retired) in stopped.iter().zip(futures_util::future::join_all(retiring).await) {
            if let Err(stop) = retired {
                warn!(deployment = %deployment.id, ?stop, "instances not removed yet; tried again");
            }
        }
        Ok(())
    }

    pub(super) async fn all_deployments(&self, of: &Of) -> Result<Vec<Deployment>, Stop> {
        let mut all = Vec::new();
        loop {
            let offset = u32::try_from(all.len()).unwrap_or(u32::MAX);
            let found = self.store.deployments(of, Page { offset, limit: PAGE }).await?;
            if found.is_empty() {
                return Ok(all);
            }
            all.extend(found);
        }
    }
}
