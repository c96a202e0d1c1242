//! What stays running although nobody asks for it: an app's minimum warm count, `min_warm`.
//!
//! Counted in versions of an environment: first what is live, then those that a rollback would go to, the newest first.
//! It keeps them from what happens by itself, which is idling and `standby_after`, and from nothing that somebody asked
//! for. It is the app's as it is now, not the deployment's: so it holds, or not, for versions that were there before.

use super::Denied;
use super::engine::{Engine, Stop};
use super::handover::is_alone;
use crate::ids::DeploymentId;
use crate::settings::Delay;
use crate::store::{Deployment, Environment, StoreError};

/// Until a version that stays warm, and whose time is over, is looked at again.
pub(super) const WARM_FOR: Delay = Delay::seconds(5 * 60);

impl Engine {
    /// Whether a version runs on though its time is over.
    pub(super) async fn stays_warm(&self, deployment: &Deployment) -> Result<bool, Stop> {
        if deployment.label.is_some() {
            return Ok(false);
        }
        let app = self.store.app(&deployment.app).await?;
        let count = app.map_or(0, |app| usize::from(app.settings.min_warm));
        let environment = self.environment_of(deployment).await?;
        let Some(live) = environment.live.filter(|_| count > 0) else { return Ok(false) };
        if live == deployment.id {
            return Ok(true);
        }
        // Beside one of which no two may run nothing does.
        if count == 1 || is_alone(deployment) {
            return Ok(false);
        }
        let earlier = self.earlier_known(&environment, live).await?;
        Ok(earlier.iter().take(count - 1).any(|one| *one == deployment.id))
    }

    /// Those that a rollback would go to, one after the other.
    async fn earlier_known(
        &self,
        environment: &Environment,
        live: DeploymentId,
    ) -> Result<Vec<DeploymentId>, Stop> {
        self.earlier(environment, live).await.map_err(|denied| match denied {
            Denied::Store { source } => Stop::Store(source),
            // Nothing is deleted that an environment says is live.
            _ => Stop::Store(StoreError::NotFound { what: "deployment", name: live.to_string() }),
        })
    }
}
