//! What stays running although nobody asks for it: an app's minimum warm count, `min_warm`.
//!
//! Counted in versions of an environment: first what is live, then those that a rollback would go to, the newest first.
//! It keeps them from what happens by itself, which is idling and `standby_after`, and from nothing that somebody asked
//! for. It is the app's as it is now, not the deployment's: so it holds, or not, for versions that were there before.

use super::engine::{Engine, Stop};
use super::handover::is_alone;
use crate::settings::Delay;
use crate::store::Deployment;

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
        let limit = u32::try_from(count - 1).unwrap_or(u32::MAX);
        let earlier = self.store.ways_back(&environment.app, &environment.name, &live, limit).await?;
        Ok(earlier.contains(&deployment.id))
    }
}
