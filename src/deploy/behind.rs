//! What goes on behind an operation that has left its lane: the drain of the old version, and the receipt's last lines.

use std::sync::Arc;
use std::time::Instant;

use tracing::warn;

use super::drain::{Deadlines, Drained, drain};
use super::engine::Engine;
use super::live::{Swapped, json, millis};
use super::receipt::{Counts, CutLine};
use super::steps;
use crate::gate::InFlight;
use crate::store::{Deployment, Operation, OperationState};

impl Engine {
    /// Waits for the old version in a task of its own, so that the next operation need not; then ends the operation.
    pub(super) async fn drain_behind(
        self: &Arc<Self>,
        operation: &Operation,
        deployment: &Deployment,
        mut swapped: Swapped,
    ) {
        let at = swapped.closed.at;
        let Some(from) = swapped.closed.from else {
            self.conclude(operation, swapped, &Drained::default(), (at, OperationState::Succeeded)).await;
            return;
        };
        let (token, tracker) = self.drains.begin(from);
        let (engine, operation, targets) = (Arc::clone(self), operation.clone(), swapped.closed.old.clone());
        // Each version drains by its own settings.
        let settings = match self.deployment(from).await {
            Ok(old) => old.settings.deploy,
            Err(stop) => {
                warn!(deployment = %from, ?stop, "its settings are not read: it drains by those of its successor");
                deployment.settings.deploy.clone()
            }
        };
        let deadlines = Deadlines::new(&settings, at);
        self.tasks.spawn(tracker.track_future(async move {
            let emptied = swapped.emptied;
            let draining = engine.step(operation.id, steps::DRAIN, async {
                let drained = drain(&targets, deadlines, engine.publisher.routing(), &engine.clock).await;
                Ok(((drained, deadlines.over_at(emptied, engine.clock.now())), String::new()))
            });
            let drained = tokio::select! {
                biased;
                () = token.cancelled() => {
                    let note = format!("the drain of {from} ended early: it serves again");
                    swapped.receipt.notes.push(note);
                    let left = super::publisher::in_flight(&targets);
                    let drained = Drained { left, ..Drained::default() };
                    Ok((drained, (engine.clock.now(), OperationState::Succeeded)))
                }
                drained = draining => drained.map(|(drained, over_at)| {
                    let state = match left_behind(&drained) {
                        Some(note) => {
                            swapped.receipt.notes.push(note);
                            OperationState::SucceededWithWarnings
                        }
                        None => OperationState::Succeeded,
                    };
                    (drained, (over_at, state))
                }),
            };
            engine.drains.end(from);
            match drained {
                Ok((drained, end)) => engine.conclude(&operation, swapped, &drained, end).await,
                Err(stop) => {
                    // The cutover stands. What the old version still serves is drained again before it is stopped.
                    warn!(operation = %operation.id, ?stop, "drain not recorded");
                    let receipt = swapped.receipt();
                    receipt.notes.push(
                        "the drain was not recorded; the old version drains before it is stopped".to_owned(),
                    );
                    let state = OperationState::SucceededWithWarnings;
                    engine.end(operation.id, state, None, Some(json(receipt))).await;
                }
            }
        }));
    }

    async fn conclude(
        self: &Arc<Self>,
        operation: &Operation,
        mut swapped: Swapped,
        drained: &Drained,
        (over_at, state): (Instant, OperationState),
    ) {
        // Not the receipt's: what was in flight before a restart is gone.
        let before = Counts::of(swapped.closed.in_flight);
        let drained_in = over_at.saturating_duration_since(swapped.closed.at);
        let receipt = swapped.receipt();
        receipt.cut = CutLine::all(drained);
        receipt.drained = Counts::drained(before, drained);
        receipt.drain_ms = Some(u64::try_from(drained_in.as_millis()).unwrap_or(u64::MAX));
        if receipt.from.is_some() {
            self.options.stats.drained(drained_in);
        }
        receipt.total_ms = millis(self.clock.wall(), operation.created_at);
        if !receipt.cut.is_empty() {
            let oldest = receipt.cut.iter().max_by_key(|cut| cut.age_ms);
            warn!(
                operation = %operation.id, cut = receipt.cut.len(), left = drained.left.requests + drained.left.streams,
                oldest_ms = oldest.map(|cut| cut.age_ms), method = oldest.map(|cut| cut.method.as_str()),
                host = oldest.map(|cut| cut.host.as_str()), "drain deadline passed"
            );
        }
        self.end(operation.id, state, None, Some(json(receipt))).await;
    }
}

/// What is told of a drain that did not empty the old version, not even by cutting.
fn left_behind(drained: &Drained) -> Option<String> {
    let InFlight { requests, streams } = drained.left;
    if requests + streams == 0 {
        return None;
    }
    Some(format!(
        "{requests} requests and {streams} streams did not end when they were cut; their connections end when the old \
         version is stopped"
    ))
}
