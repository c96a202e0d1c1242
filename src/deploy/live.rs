//! Going live: the cutover, and what follows it.
//!
//! ```text
//! in the lane:   swap ─▶ `watching` ─▶ (held: caller is answered)   (did not hold: `take_back`, end)
//! behind it:                     └▶ `behind`: drain of the old version ─▶ end with the receipt
//! ```

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::asked::Asked;
use super::cutover::{Closed, Committed, Cutover};
use super::drain::emptied;
use super::engine::{Engine, Stop};
use super::evidence::{Evidence, Figures};
use super::publisher::Turn;
use super::receipt::{Counts, Receipt, RequestsDuring};
use super::schedule::by_itself;
use super::{DeployFlags, Progress, SwapFlags, steps};
use crate::error::chain;
use crate::fault;
use crate::ids::DeploymentId;
use crate::store::{
    Deployment, DesiredState, Environment, Failure, Operation, OperationKind, OperationState, RouteRow,
    SwapPlan, Timer,
};

/// What a deploy that is ready does next.
#[derive(Debug)]
pub(super) enum Goal {
    Live,
    Labelled,
    Ready { why: String },
}

/// A cutover that is done, and what is known of it.
#[derive(Debug)]
pub(super) struct Swapped {
    pub(super) closed: Closed,
    pub(super) cutover: Cutover,
    pub(super) asked: Asked,
    pub(super) receipt: Receipt,
    /// When the old version was first seen to have nothing in flight any more.
    pub(super) emptied: Option<Instant>,
}

impl Swapped {
    /// The receipt as of now.
    pub(super) fn receipt(&mut self) -> &mut Receipt {
        self.receipt.requests_during = self.asked.so_far();
        &mut self.receipt
    }

    /// Writes into the receipt what clients got from both versions until now.
    fn note_evidence(&mut self) {
        let new = Figures::of(&self.asked.tally(self.cutover.to));
        self.receipt.evidence = self.cutover.baseline.clone().map(|old| Evidence { old, new });
    }
}

impl Engine {
    /// Makes a ready deployment live, watches it, and leaves the drain of the old one behind. On an error: whether the
    /// swap was committed (then it was taken back).
    pub(super) async fn go_live(
        self: &Arc<Self>,
        operation: &Operation,
        to: DeploymentId,
        cancel: &CancellationToken,
    ) -> Result<(), (Stop, bool)> {
        let uncommitted = |stop| (stop, false);
        let deployment = self.deployment(to).await.map_err(uncommitted)?;
        self.restarts.forget(to);
        // A version that still drains and is to serve again must not be cut by its old deadline.
        self.drains.stop(to).await;
        // Boxed because it is rare, and large.
        Box::pin(self.go_in_steps(operation, &deployment, cancel)).await.map_err(uncommitted)?;
        let turn = self.publisher.turn().await;
        // Before it could be live, and be found to have been quiet for long.
        self.idles.begin_anew(to, self.clock.now());
        let live = self.environment_of(&deployment).await.map_err(uncommitted)?.live;
        let asked = Asked::of(&self.publisher, live.into_iter().filter(|live| *live != to).chain([to]));
        let swapped = self.step(operation.id, steps::SWAP, self.swap(&turn, operation, &deployment)).await;
        let swapped = match swapped {
            Ok(swapped) => Ok(swapped),
            Err(stop) => self.complete_swap(&turn, operation, &deployment, stop).await,
        };
        drop(turn);
        let (closed, cutover) = swapped?;
        self.options.stats.swapped(closed.published_in, closed.in_flight);
        let held = self.release_held(&deployment);
        if let Some(from) = cutover.from {
            self.send_on(from).await;
        }
        let receipt = Receipt { held, ..self.receipt(operation, &deployment, &closed, &cutover) };
        let swapped = Swapped { closed, cutover, asked, receipt, emptied: None };
        // Boxed because what follows is large.
        Box::pin(self.finish(operation, &deployment, swapped)).await.map_err(|stop| (stop, true))
    }

    /// What follows a committed cutover, also after a restart: watch, then drain behind the caller's back.
    pub(super) async fn finish(
        self: &Arc<Self>,
        operation: &Operation,
        deployment: &Deployment,
        mut swapped: Swapped,
    ) -> Result<(), Stop> {
        self.keep_receipt(operation, swapped.receipt()).await;
        let held = {
            let emptied = pin!(emptied(&swapped.closed.old));
            let watch = self.watch(operation, deployment, &swapped.cutover, &swapped.asked);
            let watch = pin!(self.step_behind(operation.id, steps::WATCH, watch));
            match select(emptied, watch).await {
                Either::Left(((), watch)) => {
                    swapped.emptied = Some(self.clock.now());
                    watch.await
                }
                Either::Right((held, _in_flight)) => held,
            }
        };
        swapped.note_evidence();
        match held {
            Ok(()) => {}
            Err(Stop::Failed(failure)) => {
                return self.take_back(operation, deployment, swapped, failure).await;
            }
            Err(stop) => return Err(stop),
        }
        self.keep_receipt(operation, swapped.receipt()).await;
        self.advance(operation.id, Progress::CutOver);
        self.drain_behind(operation, deployment, swapped).await;
        Ok(())
    }

    /// As far as it is known, for whoever looks, and for a restart.
    async fn keep_receipt(&self, operation: &Operation, receipt: &Receipt) {
        if let Err(error) = self.store.put_receipt(&operation.id, &json(receipt)).await {
            warn!(operation = %operation.id, error = chain(&error), "receipt not written yet");
        }
    }

    async fn swap(
        &self,
        turn: &Turn<'_>,
        operation: &Operation,
        deployment: &Deployment,
    ) -> Result<((Closed, Cutover), String), Stop> {
        let environment = self.environment_of(deployment).await?;
        // Its own steps have raised the generation.
        if environment.split.is_none() {
            self.refuse_outdated(operation, &environment)?;
        }
        let routes = self.live_rows(turn, deployment).await?;
        if !routes.is_empty() && self.publisher.live_targets(deployment.id).is_empty() {
            let failure =
                Failure::new("no_port", "none of its instances has a port that requests could go to");
            return Err(Stop::Failed(failure.remedy("set port to the one that the app listens on")));
        }
        let is_promote = match operation.kind {
            OperationKind::Deploy => super::executor::request_of::<DeployFlags>(operation)?.promote,
            OperationKind::Promote => true,
            OperationKind::Rollback
            | OperationKind::Swap
            | OperationKind::Scale
            | OperationKind::Enable
            | OperationKind::Wake
            | OperationKind::Standby
            | OperationKind::Archive => false,
        };
        let is_rollback = operation.kind == OperationKind::Rollback;
        let rolled_back = is_rollback || environment.rolled_back && !is_promote;
        let (plan, cutover) = self.plan(operation, deployment, &environment, routes, rolled_back);
        let plan = SwapPlan { left_over: is_promote.then(|| by_itself(operation.id)), ..plan };
        let committed = Committed::commit(plan, self.store.as_ref(), &self.clock).await?;
        fault::at("swap.committed")?;
        if fault::sabotaged("answer_before_publish") {
            self.advance(operation.id, Progress::CutOver);
            self.clock.sleep(Duration::from_millis(300)).await;
        }
        let published = committed.publish(&self.publisher, turn, &self.clock);
        fault::at("swap.published")?;
        let closed = published.close_gates(&self.publisher, &self.clock);
        fault::at("swap.closed")?;
        info!(
            app = %deployment.app, environment = %deployment.environment, to = %deployment.id,
            generation = closed.generation, in_flight = closed.in_flight.requests, streams = closed.in_flight.streams,
            publish_us = micros(closed.published_in), "swapped"
        );
        let detail = format!("generation {}", closed.generation);
        Ok(((closed, cutover), detail))
    }

    /// A swap that stopped half-way: the store says whether it was committed, and then it is finished.
    async fn complete_swap(
        &self,
        turn: &Turn<'_>,
        operation: &Operation,
        deployment: &Deployment,
        stop: Stop,
    ) -> Result<(Closed, Cutover), (Stop, bool)> {
        let now = match self.store.operation(&operation.id).await {
            Ok(now) => now,
            // Nobody knows: what serves goes on serving, and a restart reads the journal.
            Err(error) => return Err((Stop::Store(error), true)),
        };
        let Some(text) = now.and_then(|operation| operation.cutover) else { return Err((stop, false)) };
        let committed = async {
            let cutover = parse_cutover(&text)?;
            let environment = self.environment_of(deployment).await?;
            let routes = self.live_rows(turn, deployment).await?;
            let committed = Committed::again(&cutover, environment.generation, routes, &self.clock);
            let published = committed.publish(&self.publisher, turn, &self.clock);
            Ok((published.close_gates(&self.publisher, &self.clock), cutover))
        };
        committed.await.map_err(|stop| (stop, true))
    }

    pub(super) fn plan(
        &self,
        operation: &Operation,
        to: &Deployment,
        environment: &Environment,
        routes: Vec<RouteRow>,
        rolled_back: bool,
    ) -> (SwapPlan, Cutover) {
        let at = self.clock.wall();
        let hosts = routes.iter().map(|row| row.host.host.clone()).collect();
        let from = environment.live.filter(|live| *live != to.id);
        let was_rolled_back = environment.rolled_back;
        let baseline = from.and_then(|from| self.baselines.of(&self.publisher, from));
        let cutover = Cutover { from, to: to.id, at, hosts, was_rolled_back, baseline };
        // What was rolled back goes on running until a promote decides, unless it had to be stopped.
        let is_stopped = self.publisher.has_handover(to);
        let rests = is_stopped || operation.kind != OperationKind::Rollback;
        let retire = from.filter(|_| rests).map(|deployment| {
            let timer = self.by_itself(deployment, DesiredState::Standby, to.settings.deploy.standby_after);
            // What is stopped already is not spared.
            let stopped = Timer { nonce: operation.id.to_string(), due: at, ..timer.clone() };
            if is_stopped { stopped } else { timer }
        });
        let plan = SwapPlan {
            operation: operation.id,
            app: to.app.clone(),
            environment: to.environment.clone(),
            to: to.id,
            expected_generation: environment.generation,
            rolled_back,
            routes,
            retire,
            stopped: from.filter(|_| is_stopped),
            left_over: None,
            cutover: json(&cutover),
            at,
        };
        (plan, cutover)
    }

    /// A swap that was asked for at another generation of the environment is not what its caller meant.
    pub(super) fn refuse_outdated(
        &self,
        operation: &Operation,
        environment: &Environment,
    ) -> Result<(), Stop> {
        if operation.kind != OperationKind::Swap {
            return Ok(());
        }
        let flags: SwapFlags = super::executor::request_of(operation)?;
        let found = environment.generation;
        match flags.expected_generation.filter(|expected| *expected != found) {
            None => Ok(()),
            Some(expected) => Err(Stop::Failed(
                Failure::new(
                    "generation_changed",
                    format!("generation {found} is not the expected {expected}"),
                )
                .remedy("look at what changed meanwhile, then ask again with the new generation"),
            )),
        }
    }

    fn receipt(&self, operation: &Operation, to: &Deployment, closed: &Closed, cutover: &Cutover) -> Receipt {
        Receipt {
            operation: operation.id,
            app: to.app.clone(),
            environment: to.environment.clone(),
            from: closed.from,
            to: to.id,
            generation: closed.generation,
            table_generation: closed.table_generation,
            cutover_at: cutover.at,
            publish_us: micros(closed.published_in),
            in_flight_at_cutover: Counts::of(closed.in_flight),
            drained: Counts::default(),
            cut: Vec::new(),
            drain_ms: None,
            requests_during: RequestsDuring::default(),
            evidence: None,
            total_ms: millis(self.clock.wall(), operation.created_at),
            hosts: cutover.hosts.clone(),
            held: None,
            notes: Vec::new(),
        }
    }

    /// Finishes a cutover that a crash interrupted. The routes lead to the new version already: the store said so when
    /// Lockgate started. What the old version had in flight went with the process that carried it.
    pub(super) async fn resume_cutover(
        self: &Arc<Self>,
        operation: &Operation,
        text: &str,
    ) -> Result<(), Stop> {
        let cutover = parse_cutover(text)?;
        let deployment = self.deployment_of(operation).await?;
        let environment = self.environment_of(&deployment).await?;
        let old = cutover.from.map(|from| self.publisher.live_targets(from)).unwrap_or_default();
        let now = self.clock.now();
        let since = Duration::try_from(self.clock.wall().duration_since(cutover.at)).unwrap_or_default();
        let closed = Closed {
            from: cutover.from,
            generation: environment.generation,
            table_generation: self.publisher.routing().generation(),
            published_in: Duration::ZERO,
            at: now.checked_sub(since).unwrap_or(now),
            in_flight: super::publisher::in_flight(&old),
            old,
        };
        let known: Option<Receipt> =
            operation.receipt.as_deref().and_then(|text| serde_json::from_str(text).ok());
        if known.is_none() {
            // Written as soon as the gates are closed: the process that committed it did not come to count it.
            self.options.stats.swapped_before_a_restart();
        }
        let mut receipt = known.unwrap_or_else(|| self.receipt(operation, &deployment, &closed, &cutover));
        receipt.notes.push(
            "resumed after a restart of lockgate: what was in flight through it ended with it".to_owned(),
        );
        if cutover.to != deployment.id {
            // The last cutover of the operation was the one back.
            let failure =
                Failure::new("rolled_back", "the version did not hold, and lockgate restarted meanwhile");
            self.options.stats.taken_back();
            self.give_up(operation, &deployment, &failure).await?;
            self.end(operation.id, OperationState::RolledBack, Some(failure), Some(json(&receipt))).await;
            return Ok(());
        }
        if environment.live != Some(deployment.id) {
            // It held, and something newer is live since: only its drain was left, of what is gone.
            receipt.total_ms = millis(self.clock.wall(), operation.created_at);
            self.end(operation.id, OperationState::Succeeded, None, Some(json(&receipt))).await;
            return Ok(());
        }
        let asked = Asked::of(&self.publisher, cutover.from.into_iter().chain([cutover.to]));
        let asked = asked.beside(receipt.requests_during);
        let swapped = Swapped { closed, cutover, asked, receipt, emptied: None };
        let taken = self.store.steps(&operation.id).await?;
        if taken.iter().any(|step| step.name == steps::TAKE_BACK.name) {
            let failure =
                Failure::new("rolled_back", "the version did not hold, and lockgate restarted meanwhile");
            return Box::pin(self.take_back(operation, &deployment, swapped, failure)).await;
        }
        // Boxed because it is large.
        Box::pin(self.finish(operation, &deployment, swapped)).await
    }
}

fn parse_cutover(text: &str) -> Result<Cutover, Stop> {
    serde_json::from_str(text).map_err(|error| {
        Stop::Failed(Failure::new("damaged", format!("the journal of the cutover: {error}")))
    })
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

pub(super) fn millis(later: crate::clock::Timestamp, earlier: crate::clock::Timestamp) -> u64 {
    u64::try_from(later.duration_since(earlier).as_millis()).unwrap_or_default()
}

/// Our own types; none has a map with keys that are not text.
pub(super) fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}
