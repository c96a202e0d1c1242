//! The order of a cutover, as types: each value is consumed by the next act, so no act can be left out or moved.
//!
//! ```text
//! Plan ──commit──▶ Committed ──publish──▶ Published ──close_gates──▶ Closed ──▶ answer, drain
//!                      ▲
//!                      └── resume: what a crash interrupted is finished by the same sentence
//! ```
//!
//! * Before `commit` nothing has changed; after it the store decides what is true (P5).
//! * After `publish` every request that starts is served by the new version (P2).
//! * After `close_gates` no request enters the old version; only now may anybody be told (P1, P3).

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::evidence::Figures;
use super::publisher::{Publisher, Turn, in_flight};
use crate::clock::{Clock, Timestamp};
use crate::gate::InFlight;
use crate::ids::DeploymentId;
use crate::routing::Target;
use crate::routing::backend::Order;
use crate::store::{RouteRow, Store, StoreError, SwapPlan};

/// What a resume after a crash needs to know of a cutover; journaled with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Cutover {
    pub(super) from: Option<DeploymentId>,
    pub(super) to: DeploymentId,
    pub(super) at: Timestamp,
    /// Host names that moved.
    pub(super) hosts: Vec<String>,
    /// The environment's flag before it, for the way back.
    #[serde(default)]
    pub(super) was_rolled_back: bool,
    /// What clients got from the version before of late: what the new one is held against.
    #[serde(default)]
    pub(super) baseline: Option<Figures>,
}

/// A swap that the store has.
#[must_use = "a committed swap must be published"]
pub(super) struct Committed {
    from: Option<DeploymentId>,
    to: DeploymentId,
    generation: u64,
    routes: Vec<RouteRow>,
    committed_at: Instant,
}

/// A swap that every new request follows.
#[must_use = "the old gates are still open"]
pub(super) struct Published {
    from: Option<DeploymentId>,
    generation: u64,
    table_generation: u64,
    published_in: std::time::Duration,
}

/// A swap after which no request enters the old version.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) from: Option<DeploymentId>,
    pub(super) generation: u64,
    pub(super) table_generation: u64,
    pub(super) published_in: std::time::Duration,
    /// When the last gate had closed.
    pub(super) at: Instant,
    pub(super) in_flight: InFlight,
    pub(super) old: Vec<Arc<Target>>,
}

impl Committed {
    /// Commits `plan` in one transaction.
    ///
    /// # Errors
    /// What the store says; then nothing has changed, unless it says that nothing is known.
    pub(super) async fn commit(
        plan: SwapPlan,
        store: &dyn Store,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, StoreError> {
        let done = store.commit_swap(&plan).await?;
        Ok(Self {
            from: done.from.filter(|from| *from != plan.to),
            to: plan.to,
            generation: done.generation,
            routes: plan.routes,
            committed_at: clock.now(),
        })
    }

    /// A swap that was committed before and not finished, as the store tells it.
    pub(super) fn again(
        cutover: &Cutover,
        generation: u64,
        routes: Vec<RouteRow>,
        clock: &Arc<dyn Clock>,
    ) -> Self {
        Self { from: cutover.from, to: cutover.to, generation, routes, committed_at: clock.now() }
    }

    /// Publishes the new routes for all host names at one instant. The new targets' gates are open before that: a
    /// target that was draining is taken back into service. `turn` is held since before the plan was made.
    pub(super) fn publish(self, publisher: &Publisher, turn: &Turn<'_>, clock: &Arc<dyn Clock>) -> Published {
        for target in publisher.live_targets(self.to) {
            reopen(&target);
        }
        let table_generation = publisher.lead_live(turn, self.to, &self.routes);
        Published {
            from: self.from,
            generation: self.generation,
            table_generation,
            published_in: clock.now().duration_since(self.committed_at),
        }
    }
}

impl Published {
    /// Closes the old gates, every shard, and takes the count.
    pub(super) fn close_gates(self, publisher: &Publisher, clock: &Arc<dyn Clock>) -> Closed {
        let old = self.from.map(|from| publisher.live_targets(from)).unwrap_or_default();
        for target in &old {
            target.gate.close();
        }
        Closed {
            from: self.from,
            generation: self.generation,
            table_generation: self.table_generation,
            published_in: self.published_in,
            at: clock.now(),
            in_flight: in_flight(&old),
            old,
        }
    }
}

/// Takes a target into service, whatever it was told before.
pub(super) fn reopen(target: &Target) {
    target.set_order(Order::Serve);
    target.connections.reopen();
    target.gate.reopen();
}
