//! What was asked of an app while a swap went on: from before its commit to the end of its drain.

use std::sync::Arc;

use super::publisher::Publisher;
use super::receipt::RequestsDuring;
use crate::ids::DeploymentId;
use crate::telemetry::{BackendStats, Tally};

/// The counters of both versions, and where they stood when it began.
#[derive(Debug)]
pub(super) struct Asked {
    of: Vec<(DeploymentId, Arc<BackendStats>, Tally)>,
    /// What was counted before a restart.
    before: RequestsDuring,
}

impl Asked {
    /// Counts from now on what is asked of `versions` by the host names that a swap moves.
    pub(super) fn of(publisher: &Publisher, versions: impl IntoIterator<Item = DeploymentId>) -> Self {
        let counted = |version| {
            let stats = publisher.live_stats(version)?;
            let tally = stats.tally();
            Some((version, stats, tally))
        };
        let of = versions.into_iter().filter_map(counted).collect();
        Self { of, before: RequestsDuring::default() }
    }

    /// Beside what was counted before a restart.
    pub(super) fn beside(self, before: RequestsDuring) -> Self {
        Self { before, ..self }
    }

    /// What clients got from one of the versions since then, or since the restart.
    pub(super) fn tally(&self, version: DeploymentId) -> Tally {
        let found = self.of.iter().find(|(id, ..)| *id == version);
        found.map(|(_, stats, before)| stats.tally().since(before)).unwrap_or_default()
    }

    /// So far.
    pub(super) fn so_far(&self) -> RequestsDuring {
        self.of.iter().fold(self.before, |sum, (_, stats, before)| {
            let since = stats.tally().since(before);
            RequestsDuring { total: sum.total + since.requests, failed: sum.failed + since.failed() }
        })
    }
}
