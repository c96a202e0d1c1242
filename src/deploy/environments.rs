//! Removing an environment for previews: its host names at once, its instances after their drain, its records last. Its
//! volumes stay, as those of every environment do, until they are asked for with the app.

use std::sync::Arc;

use tracing::{info, warn};

use super::engine::{Engine, STORE_AGAIN, Stop};
use super::{Denied, Orchestrator};
use crate::ids::{AppName, EnvironmentName};
use crate::store::{EnvironmentKind, Of, StoreError};

impl Orchestrator {
    /// Takes an environment for previews out of service and removes it, as an app is removed; a restart in between goes on
    /// with it.
    ///
    /// # Errors
    /// If there is no such environment, it is production, something in it is in progress, or the store is away.
    pub async fn remove_environment(&self, app: &AppName, name: &EnvironmentName) -> Result<(), Denied> {
        let engine = &self.engine;
        let _submitting = engine.submitting.lock().await;
        if engine.store.app(app).await?.is_none() {
            return Err(Denied::AppNotFound { app: app.clone() });
        }
        let key = (app.clone(), name.clone());
        if engine.environment_at(&key).await?.kind == EnvironmentKind::Production {
            return Err(Denied::EnvironmentIsProduction { app: app.clone() });
        }
        let lane = engine.lanes.view(&key);
        if let Some(holder) = lane.running.or_else(|| lane.waiting.first().copied()) {
            return Err(Denied::OperationInProgress { holder });
        }
        let turn = engine.publisher.turn().await;
        engine.store.retire_environment(app, name).await?;
        engine.publisher.replace(&turn, engine.store.routes().await?);
        drop(turn);
        info!(%app, environment = %name, "environment taken out of service");
        engine.tasks.spawn(Arc::clone(engine).finish_environment(app.clone(), name.clone()));
        Ok(())
    }
}

impl Engine {
    /// Goes on with what a restart interrupted.
    pub(super) async fn finish_environments(self: &Arc<Self>) -> Result<(), StoreError> {
        for (app, name) in self.store.environment_removals().await? {
            self.tasks.spawn(Arc::clone(self).finish_environment(app, name));
        }
        Ok(())
    }

    async fn finish_environment(self: Arc<Self>, app: AppName, name: EnvironmentName) {
        while !self.stopping.is_cancelled() {
            match self.try_to_finish_environment(&app, &name).await {
                Ok(true) => return info!(%app, environment = %name, "environment removed"),
                Ok(false) => {}
                Err(stop) => {
                    warn!(%app, environment = %name, ?stop, "environment not removed yet; tried again")
                }
            }
            self.clock.sleep(STORE_AGAIN).await;
        }
    }

    /// Whether nothing is left of it, or it was taken into service again.
    async fn try_to_finish_environment(&self, app: &AppName, name: &EnvironmentName) -> Result<bool, Stop> {
        let of = Of { app: Some(app.clone()), environment: Some(name.clone()) };
        let removals = self.store.environment_removals().await?;
        if !removals.iter().any(|one| (&one.0, &one.1) == (app, name)) {
            return Ok(true);
        }
        self.stop_all(&self.all_deployments(&of).await?).await?;
        Ok(self.store.forget_environment(app, name).await?)
    }
}
