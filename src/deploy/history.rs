//! How long the store remembers: operations, deployments that serve nothing any more, and the audit trail.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::engine::Engine;
use crate::error::chain;

/// Deployments of an environment that stay however old they are.
const NEWEST_KEPT: u32 = 20;
/// Between two looks for what is old.
const LOOK_EVERY: Duration = Duration::from_secs(60 * 60);
/// Between two deletions, so that what others write is not kept waiting.
const PAUSE: Duration = Duration::from_millis(200);

impl Engine {
    /// Forgets what is older than `history.keep`, until the engine stops.
    pub(super) async fn keep_history(self: Arc<Self>) {
        let keep = self.options.history_keep.0;
        while !keep.is_zero() && !self.stopping.is_cancelled() {
            let wait = match self.store.prune(self.clock.wall() - keep, NEWEST_KEPT).await {
                Ok(pruned) if pruned.is_none() => LOOK_EVERY,
                Ok(pruned) => {
                    info!(
                        deployments = pruned.deployments,
                        operations = pruned.operations,
                        audit = pruned.audit,
                        "old records deleted"
                    );
                    PAUSE
                }
                Err(error) => {
                    warn!(error = chain(&error), "old records not deleted; tried again");
                    LOOK_EVERY
                }
            };
            tokio::select! {
                () = self.stopping.cancelled() => {}
                () = self.clock.sleep(wait) => {}
            }
        }
    }
}
