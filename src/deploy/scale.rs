//! Scaling: another number of instances of the version that is live, without a deploy.
//!
//! ```text
//! more:   start ─▶ check ─▶ commit ─▶ publish with them
//! fewer:                    commit ─▶ publish without them ─▶ close their gates ─▶ answer ─▶ drain ─▶ stop, remove
//! ```
//!
//! # What holds
//! 1. An instance that is not yet one of the replicas, or no longer, is `spare` by its row. [`Store::resize`] alone
//!    changes that, together with the number.
//! 2. No route leads to a spare instance: it is named in [`Revivals::spares`] before it is one, and whoever publishes
//!    targets leaves those out. Its gates are closed before it drains.
//! 3. One task at a time has a spare instance in its hands ([`Engine::letting_go`]). What a crash leaves of them
//!    reconcile takes: nothing is in flight at them any more.
//! 4. The number is the environment's: later deploys, swaps and rollbacks there have as many instances, until the app's
//!    own setting is changed.
//!
//! [`Store::resize`]: crate::store::Store::resize
//! [`Revivals::spares`]: super::revive::Revivals

use std::sync::Arc;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::drain::{Deadlines, Drained, drain};
use super::engine::{Claim, Engine, Stop};
use super::executor::{WAITING_MAX, request_of};
use super::handover::is_alone;
use super::instances::{Afterwards, pinned};
use super::live::{json, millis};
use super::publisher::in_flight;
use super::receipt::{Counts, ScaleReceipt};
use super::version::state_hash;
use super::{Caller, Denied, Orchestrator, Progress, ScaleRequest, Submitted, steps};
use crate::error::chain;
use crate::fault;
use crate::ids::{DeploymentId, InstanceId};
use crate::routing::Target;
use crate::runtime::Instance;
use crate::settings::{Replicas, Strategy};
use crate::store::{
    Deployment, DesiredState, Environment, Failure, InstancePhase, InstanceRow, Operation, OperationKind,
    OperationState, Resize, Resized, StoreError,
};

/// What of a [`ScaleRequest`] is decided when it runs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct ScaleFlags {
    replicas: Replicas,
}

/// Spare instances that the operation has in its hands.
type Claims = Vec<Claim<InstanceId>>;

impl Orchestrator {
    pub(super) async fn submit_scale(
        &self,
        request: ScaleRequest,
        caller: Caller,
    ) -> Result<Submitted, Denied> {
        let (app, key) = self.find_lane(request.app.as_ref(), request.environment.as_ref()).await?;
        if request.replicas.count() > 1 && app.settings.deploy.strategy == Strategy::Hold {
            return Err(Denied::Invalid {
                field: "replicas".to_owned(),
                detail: "with deploy.strategy hold no two instances run at once".to_owned(),
                remedy: Some("set deploy.strategy to swap first".to_owned()),
            });
        }
        let _turn = self.engine.submitting.lock().await;
        let waiting = self.engine.lanes.view(&key).waiting.len();
        if waiting >= WAITING_MAX {
            return Err(Denied::QueueFull { waiting });
        }
        let flags = serde_json::json!(ScaleFlags { replicas: request.replicas }).to_string();
        // Which version it is about is decided when it runs.
        let operation = self.operation(OperationKind::Scale, &key, None, flags, caller);
        self.accept(&key, operation, None, None).await
    }
}

impl Engine {
    /// Runs up to the moment when as many instances as were asked for have the requests. What is let go drains behind it.
    pub(super) async fn run_scale(
        self: &Arc<Self>,
        operation: &Operation,
        cancel: &CancellationToken,
    ) -> Result<(), Stop> {
        let replicas = request_of::<ScaleFlags>(operation)?.replicas;
        let key = (operation.app.clone(), operation.environment.clone());
        let environment = self.environment_at(&key).await.map_err(|denied| match denied {
            Denied::Store { source } => Stop::Store(source),
            denied => Stop::Failed(Failure::new(denied.code(), denied.to_string())),
        })?;
        let live = match environment.live {
            Some(live) => Some(self.deployment(live).await?),
            None => None,
        };
        if replicas.count() > 1 && live.as_ref().is_some_and(is_alone) {
            let cause = "no two instances of the live version may run at once";
            return Err(Stop::Failed(
                Failure::new("strategy_hold", cause).remedy("deploy it with deploy.strategy swap first"),
            ));
        }
        let (live, _in_hand) = match live {
            Some(live) => self.awake(live).await?,
            None => (None, None),
        };
        let Some(live) = live else {
            let plan = self.plan_resize(operation, &environment, replicas);
            let receipt = self.resized(operation, plan, ScaleReceipt::of(operation, replicas)).await?;
            self.end_scale(operation, receipt, OperationState::Succeeded).await;
            return Ok(());
        };
        let rows = self.replicas_of(live.id).await?;
        let mut joining = Vec::new();
        let mut claims = Claims::new();
        let missing = usize::from(replicas.count()).saturating_sub(rows.len());
        let joined = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Stop::Cancelled),
            joined = self.start_spares(operation, &live, (missing, &mut joining, &mut claims)) => joined,
        };
        let scaled = match joined {
            Ok(instances) => self.scale_to(operation, &environment, &live, replicas, &instances).await,
            Err(stop) => Err(stop),
        };
        match scaled {
            Ok((leaving, receipt)) => {
                drop(claims);
                // For whoever is answered before the drain is over.
                if let Err(error) = self.store.put_receipt(&operation.id, &json(&receipt)).await {
                    warn!(operation = %operation.id, error = chain(&error), "receipt not written yet");
                }
                self.advance(operation.id, Progress::CutOver);
                self.let_go_behind(operation, &live, leaving, receipt);
                Ok(())
            }
            Err(stop) => {
                for id in joining {
                    self.remove_spare(&live, id, &[]).await;
                }
                Err(stop)
            }
        }
    }

    /// The live version if it runs. One in standby has as many instances as its environment when it is woken; nobody
    /// begins to until the claim is dropped.
    async fn awake(
        &self,
        live: Deployment,
    ) -> Result<(Option<Deployment>, Option<Claim<DeploymentId>>), Stop> {
        if live.desired_state == DesiredState::Running {
            return Ok((Some(live), None));
        }
        let claim = self.in_hand.claimed(live.id, &self.clock).await;
        let live = self.deployment(live.id).await?;
        if live.desired_state == DesiredState::Running {
            return Ok((Some(live), None));
        }
        Ok((None, Some(claim)))
    }

    /// Starts further instances and waits until each is ready. Whatever becomes of it, `begun` names them.
    async fn start_spares(
        &self,
        operation: &Operation,
        deployment: &Deployment,
        (count, begun, claims): (usize, &mut Vec<InstanceId>, &mut Claims),
    ) -> Result<Vec<Instance>, Stop> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let rows: Vec<_> = (0..count)
            .map(|_| InstanceRow { spare: true, ..InstanceRow::new(deployment, operation.id) })
            .collect();
        begun.extend(rows.iter().map(|row| row.id));
        claims.extend(begun.iter().filter_map(|id| self.letting_go.claim(*id)));
        self.revivals.set_spare(begun);
        let started = self.step(operation.id, steps::START, async {
            let mut started = Vec::with_capacity(count);
            for row in rows {
                started.push(self.start_instance(deployment, row, InstancePhase::Running).await?);
            }
            Ok((started, String::new()))
        });
        let started = started.await?;
        let pinned = pinned(deployment)?;
        self.step(operation.id, steps::CHECK, async {
            self.wait_all_ready(deployment, &pinned, &started).await?;
            Ok(((), String::new()))
        })
        .await?;
        Ok(self.now(started).await)
    }

    /// Commits the number, has the requests go to as many, and closes the gates of the others.
    async fn scale_to(
        self: &Arc<Self>,
        operation: &Operation,
        environment: &Environment,
        live: &Deployment,
        replicas: Replicas,
        joining: &[Instance],
    ) -> Result<(Leaving, ScaleReceipt), Stop> {
        let sized = Deployment { settings: live.settings.clone().with_replicas(replicas), ..live.clone() };
        let rows = self.replicas_of(live.id).await?;
        let leaving = self.least_useful(live.id, &rows, rows.len().saturating_sub(replicas.count().into()));
        let mut plan = self.plan_resize(operation, environment, replicas);
        plan.deployment = Some(Resized {
            id: live.id,
            replicas,
            state_hash: Some(state_hash(&sized, &pinned(live)?)),
            joining: joining.iter().map(|instance| instance.id).collect(),
            leaving: leaving.clone(),
        });
        let mut receipt = ScaleReceipt::of(operation, replicas);
        receipt.deployment = Some(live.id);
        receipt.before = u16::try_from(rows.len()).unwrap_or(u16::MAX);
        let leaving = self.claim_leaving(live.id, leaving).await;
        let mut receipt = match self.resized(operation, plan, receipt).await {
            Ok(receipt) => receipt,
            Err(stop) => {
                self.revivals.set_needed(&leaving.ids);
                return Err(stop);
            }
        };
        fault::at("scale.committed")?;
        self.publish_resized(live, joining, &leaving);
        receipt.in_flight = Counts::of(in_flight(&leaving.targets));
        info!(
            app = %live.app, environment = %live.environment, deployment = %live.id, from = receipt.before,
            to = replicas.count(), in_flight = receipt.in_flight.requests, streams = receipt.in_flight.streams, "scaled"
        );
        Ok((leaving, receipt))
    }

    /// Has requests go to `joining` as well, and not to `leaving`, whose gates are closed when this returns.
    fn publish_resized(&self, deployment: &Deployment, joining: &[Instance], leaving: &Leaving) {
        self.revivals.resize(&self.publisher, deployment, joining, &leaving.ids);
        for target in &leaving.targets {
            target.gate.close();
        }
    }

    /// From here on nobody brings one of them back, publishes it again, or takes it for left over.
    async fn claim_leaving(&self, deployment: DeploymentId, ids: Vec<InstanceId>) -> Leaving {
        let claims = ids.iter().filter_map(|id| self.letting_go.claim(*id)).collect();
        let leaving = self.leaving(ids, claims);
        if !leaving.ids.is_empty() {
            self.revivals.stop(deployment).await;
        }
        leaving
    }

    /// Once they are spare, whoever looks publishes without them: their targets, whose gates are to be closed and drained,
    /// are found before.
    fn leaving(&self, ids: Vec<InstanceId>, claims: Claims) -> Leaving {
        let targets = ids.iter().flat_map(|id| self.publisher.targets_of(*id)).collect();
        self.revivals.set_spare(&ids);
        Leaving { ids, targets, claims }
    }

    /// Writes the resize and the receipt in one transaction, and says so if it was written whatever the store answered.
    async fn resized(
        &self,
        operation: &Operation,
        mut plan: Resize,
        receipt: ScaleReceipt,
    ) -> Result<ScaleReceipt, Stop> {
        plan.journal = Some((operation.id, json(&receipt)));
        let act = async {
            let Err(error) = self.store.resize(&plan).await else { return Ok(((), String::new())) };
            let now = self.store.operation(&operation.id).await?;
            if now.is_some_and(|operation| operation.cutover.is_some()) {
                return Ok(((), String::new()));
            }
            Err(match error {
                StoreError::NotFound { .. } => Stop::Failed(Failure::new("live_changed", error.to_string())),
                error => Stop::Store(error),
            })
        };
        self.step(operation.id, steps::SCALE, act).await?;
        Ok(receipt)
    }

    fn plan_resize(&self, operation: &Operation, environment: &Environment, replicas: Replicas) -> Resize {
        Resize {
            app: operation.app.clone(),
            environment: environment.name.clone(),
            replicas: Some(replicas),
            deployment: None,
            journal: None,
            at: self.clock.wall(),
        }
    }

    /// Waits for what those that are let go still serve, stops and removes them, and ends the operation, in a task of
    /// its own: the next operation need not wait.
    fn let_go_behind(
        self: &Arc<Self>,
        operation: &Operation,
        deployment: &Deployment,
        leaving: Leaving,
        mut receipt: ScaleReceipt,
    ) {
        let (engine, operation, deployment) = (Arc::clone(self), operation.clone(), deployment.clone());
        self.tasks.spawn(async move {
            if leaving.ids.is_empty() {
                return engine.end_scale(&operation, receipt, OperationState::Succeeded).await;
            }
            let draining = engine.step(operation.id, steps::DRAIN, async {
                Ok((engine.let_go(&deployment, &leaving).await, String::new()))
            });
            let state = match draining.await {
                Ok((drained, is_done)) => {
                    receipt.drained(&drained);
                    if is_done { OperationState::Succeeded } else { OperationState::SucceededWithWarnings }
                }
                Err(stop) => {
                    warn!(operation = %operation.id, ?stop, "drain not recorded");
                    OperationState::SucceededWithWarnings
                }
            };
            engine.end_scale(&operation, receipt, state).await;
        });
    }

    /// Drains spare instances, whose gates are closed, then stops and removes them. Whether none is left.
    async fn let_go(&self, deployment: &Deployment, leaving: &Leaving) -> (Drained, bool) {
        let deadlines = Deadlines::new(&deployment.settings.deploy, self.clock.now());
        let drained = drain(&leaving.targets, deadlines, self.publisher.routing(), &self.clock).await;
        let removals = leaving.ids.iter().map(|id| self.remove_spare(deployment, *id, &leaving.targets));
        let is_done = join_all(removals).await.into_iter().all(|is_gone| is_gone);
        (drained, is_done)
    }

    /// Whether it is gone; reconcile comes back for one that is not.
    async fn remove_spare(&self, deployment: &Deployment, id: InstanceId, targets: &[Arc<Target>]) -> bool {
        let removed = async {
            let rows = self.store.instances(Some(&deployment.id)).await?;
            // One that became a replica meanwhile stays.
            let Some(row) = rows.into_iter().find(|row| row.id == id && row.spare) else { return Ok(()) };
            self.stop_instance(deployment, row, targets, Afterwards::Remove).await
        };
        match removed.await {
            Ok(()) => true,
            Err(stop) => {
                warn!(instance = %id, ?stop, "spare instance not removed yet; tried again");
                false
            }
        }
    }

    /// Removes a spare instance that nobody has in his hands: a crash left it, or it could not be stopped before.
    pub(super) fn remove_left_over(self: &Arc<Self>, deployment: &Deployment, id: InstanceId) {
        let mut leaving = self.leaving(vec![id], Claims::new());
        let (engine, deployment) = (Arc::clone(self), deployment.clone());
        self.tasks.spawn(async move {
            let Some(claim) = engine.letting_go.claim(id) else { return };
            leaving.claims.push(claim);
            engine.publish_resized(&deployment, &[], &leaving);
            engine.let_go(&deployment, &leaving).await;
        });
    }

    /// Finishes a scaling that was committed before a crash: the store's number is published since the start.
    pub(super) async fn resume_scale(
        self: &Arc<Self>,
        operation: &Operation,
        receipt: &str,
    ) -> Result<(), Stop> {
        let mut receipt: ScaleReceipt = serde_json::from_str(receipt).map_err(|error| {
            Stop::Failed(Failure::new("damaged", format!("the journal of the scaling: {error}")))
        })?;
        receipt
            .notes
            .push("resumed after a restart of lockgate: what was in flight ended with it".to_owned());
        self.end_scale(operation, receipt, OperationState::Succeeded).await;
        Ok(())
    }

    async fn end_scale(
        self: &Arc<Self>,
        operation: &Operation,
        mut receipt: ScaleReceipt,
        state: OperationState,
    ) {
        receipt.total_ms = millis(self.clock.wall(), operation.created_at);
        self.end(operation.id, state, None, Some(json(&receipt))).await;
    }

    /// The deployment with as many instances as its environment was scaled to: those that are too many are let go,
    /// those that are missing are for its next start.
    pub(super) async fn fitted(self: &Arc<Self>, deployment: Deployment) -> Result<Deployment, Stop> {
        let environment = self.environment_of(&deployment).await?;
        let is_scaled = deployment.label.is_none() && !is_alone(&deployment);
        let Some(replicas) = environment.replicas.filter(|_| is_scaled) else {
            return Ok(deployment);
        };
        let rows = self.replicas_of(deployment.id).await?;
        let too_many = rows.len().saturating_sub(replicas.count().into());
        if deployment.settings.replicas == replicas && too_many == 0 {
            return Ok(deployment);
        }
        let leaving = self.least_useful(deployment.id, &rows, too_many);
        let fitted =
            Deployment { settings: deployment.settings.clone().with_replicas(replicas), ..deployment };
        let state_hash = match &fitted.pinned {
            Some(_) => Some(state_hash(&fitted, &pinned(&fitted)?)),
            None => None,
        };
        let leaving = self.claim_leaving(fitted.id, leaving).await;
        let resized = Resized {
            id: fitted.id,
            replicas,
            state_hash: state_hash.clone(),
            joining: Vec::new(),
            leaving: leaving.ids.clone(),
        };
        let plan = Resize {
            app: fitted.app.clone(),
            environment: fitted.environment.clone(),
            replicas: None,
            deployment: Some(resized),
            journal: None,
            at: self.clock.wall(),
        };
        if let Err(error) = self.store.resize(&plan).await {
            self.revivals.set_needed(&leaving.ids);
            return Err(error.into());
        }
        if !leaving.ids.is_empty() {
            self.publish_resized(&fitted, &[], &leaving);
            let (engine, deployment) = (Arc::clone(self), fitted.clone());
            self.tasks.spawn(async move {
                engine.let_go(&deployment, &leaving).await;
            });
        }
        Ok(Deployment { state_hash: state_hash.or(fitted.state_hash), ..fitted })
    }

    /// The rows of a deployment but for spare ones.
    pub(super) async fn replicas_of(&self, deployment: DeploymentId) -> Result<Vec<InstanceRow>, Stop> {
        let rows = self.store.instances(Some(&deployment)).await?;
        Ok(rows.into_iter().filter(|row| !row.spare).collect())
    }

    /// Of these instances the ones whose end is missed least: out of rotation, unhealthy, or with little in flight.
    fn least_useful(&self, deployment: DeploymentId, rows: &[InstanceRow], count: usize) -> Vec<InstanceId> {
        let targets = self.publisher.live_targets(deployment);
        let mut ids: Vec<InstanceId> = rows.iter().map(|row| row.id).collect();
        ids.sort_by_cached_key(|id| {
            let target = targets.iter().find(|target| target.id == *id);
            target.map(|target| {
                let now = target.gate.in_flight();
                (target.is_healthy(), now.streams, now.requests)
            })
        });
        ids.truncate(count);
        ids
    }
}

/// Spare instances that still serve what they had begun.
struct Leaving {
    ids: Vec<InstanceId>,
    targets: Vec<Arc<Target>>,
    claims: Claims,
}
