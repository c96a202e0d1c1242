//! Whether clients reach an app: open, paused, in maintenance, or disabled.
//!
//! # What holds
//! 1. The store says it first; then it is published for all host names of the app at one instant, and only then acted
//!    on. A start publishes what the store says.
//! 2. Paused: once the call has answered no request enters an instance, since its gates are closed behind the publish.
//!    What waits goes to what is live when the pause ends. Past its deadline it is refused; the pause goes on until it
//!    is ended, since whoever paused an app did not say that it may be reached again.
//! 3. Disabled: its instances are stopped after their drain, and nothing but `enable` starts one of them again.
//! 4. What a closed gate of an app that is opened again belongs to is looked at anew: only what is in service is.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use utoipa::ToSchema;

use super::cutover::reopen;
use super::engine::{Engine, Stop};
use super::instances::Afterwards;
use super::preview::instant;
use super::publisher::in_flight;
use super::{Caller, Denied, Orchestrator, Progress, Submitted, steps};
use crate::fault;
use crate::gate::{Awaited, InFlight};
use crate::ids::{AppName, EnvironmentName};
use crate::routing::{Hold, HoldRules, Refusal};
use crate::settings::Delay;
use crate::store::{
    Access, Deployment, DeploymentStatus, DesiredState, Failure, Operation, OperationKind, OperationState,
};

/// No pause is longer: it is for what is watched by whoever asked for it.
const PAUSE_MAX: Delay = Delay::seconds(60 * 60);
/// Of a message, in characters.
const MESSAGE_MAX: usize = 500;

const PAUSED_TOO_LONG: Refusal = Refusal {
    code: "app_paused",
    detail: "This application is paused. Try again shortly.",
    retry_after: 5,
    refresh: None,
};
const PAUSED_FULL: Refusal = Refusal {
    code: "app_paused",
    detail: "This application is paused, and as many requests wait as may.",
    retry_after: 5,
    refresh: None,
};
const DISABLED: Refusal = Refusal {
    code: "app_disabled",
    detail: "This application is switched off.",
    retry_after: 300,
    refresh: None,
};
const MAINTENANCE: Refusal = Refusal {
    code: "app_maintenance",
    detail: "This application is being worked on. Try again later.",
    retry_after: 60,
    refresh: None,
};

/// Have the requests to an app wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PauseRequest {
    /// How long requests wait, from now on: 60s if not given, an hour at most. What waits then, and what comes later, is
    /// refused with 503 until the app is resumed.
    #[serde(rename = "for")]
    pub limit: Delay,
    /// So many requests wait at most; the others are refused with 503 at once.
    pub queue: u32,
}

impl Default for PauseRequest {
    fn default() -> Self {
        Self { limit: Delay::seconds(60), queue: 1000 }
    }
}

/// Answer for an app while its instances go on running, or no longer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceRequest {
    /// Whether requests are answered with 503 from now on.
    pub on: bool,
    /// What people are told.
    #[serde(default)]
    pub message: Option<String>,
    /// Networks whose clients reach the app all the same: `192.0.2.0/24`.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub allow: Vec<IpNet>,
}

impl Orchestrator {
    /// Has new requests to all host names of the app wait; what is in flight goes on. A pause that is paused again has
    /// the new limits.
    ///
    /// # Errors
    /// If there is no such app, it is disabled or in maintenance, the limit is none, or the store is away.
    pub async fn pause(&self, app: &AppName, request: &PauseRequest) -> Result<(), Denied> {
        if request.limit.0.is_zero() || request.limit > PAUSE_MAX {
            return Err(invalid("for", format!("{} is out of range", request.limit), "write 1s to 1h"));
        }
        let _turn = self.engine.submitting.lock().await;
        match self.access(app).await? {
            Access::Disabled => return Err(Denied::AppDisabled { app: app.clone() }),
            Access::Maintenance { .. } => return Err(Denied::AppInMaintenance { app: app.clone() }),
            Access::Open | Access::Paused { .. } => {}
        }
        let until = self.engine.clock.wall() + request.limit.0;
        self.engine.set_access(app, Access::Paused { until, queue: request.queue }).await
    }

    /// Ends a pause: what waits is served by what is live. Success without effect where there is none.
    ///
    /// # Errors
    /// If there is no such app, or the store is away.
    pub async fn resume(&self, app: &AppName) -> Result<(), Denied> {
        let _turn = self.engine.submitting.lock().await;
        match self.access(app).await? {
            Access::Paused { .. } => self.engine.set_access(app, Access::Open).await,
            Access::Open | Access::Maintenance { .. } | Access::Disabled => Ok(()),
        }
    }

    /// Answers requests to the app's host names with 503 at once, or no longer. Its instances go on running.
    ///
    /// # Errors
    /// If there is no such app, it is disabled, the message is too long, or the store is away.
    pub async fn maintain(&self, app: &AppName, request: &MaintenanceRequest) -> Result<(), Denied> {
        let message = request.message.as_deref().map(str::trim).filter(|text| !text.is_empty());
        if message.is_some_and(|text| text.chars().count() > MESSAGE_MAX || text.contains(char::is_control)) {
            let detail =
                format!("the message has more than {MESSAGE_MAX} characters, or a control character");
            return Err(invalid("message", detail, "write one short sentence"));
        }
        let _turn = self.engine.submitting.lock().await;
        let now = self.access(app).await?;
        if now == Access::Disabled {
            return Err(Denied::AppDisabled { app: app.clone() });
        }
        let wanted = if request.on {
            Access::Maintenance { message: message.map(str::to_owned), allow: request.allow.clone() }
        } else if let Access::Maintenance { .. } = now {
            Access::Open
        } else {
            return Ok(());
        };
        self.engine.set_access(app, wanted).await
    }

    /// Answers requests to the app with 503 and stops its instances after their drain. It refuses deploys until it is
    /// enabled.
    ///
    /// # Errors
    /// If there is no such app, something of it is in progress, or the store is away.
    pub async fn disable(&self, app: &AppName) -> Result<(), Denied> {
        let _turn = self.engine.submitting.lock().await;
        if self.access(app).await? == Access::Disabled {
            return Ok(());
        }
        self.refuse_in_progress(app).await?;
        self.engine.set_access(app, Access::Disabled).await?;
        let engine = Arc::clone(&self.engine);
        let app = app.clone();
        self.engine.tasks.spawn(async move {
            if let Err(stop) = engine.stop_disabled(&app).await {
                warn!(%app, ?stop, "not stopped yet; reconcile tries again");
            }
        });
        Ok(())
    }

    pub(super) async fn submit_enable(&self, app: &AppName, caller: Caller) -> Result<Submitted, Denied> {
        let _turn = self.engine.submitting.lock().await;
        self.access(app).await?;
        let key = (app.clone(), EnvironmentName::production());
        let operation = self.operation(OperationKind::Enable, &key, None, "{}".to_owned(), caller);
        self.accept(&key, operation, None, None).await
    }

    /// Whether clients reach the app.
    ///
    /// # Errors
    /// If there is no such app, or the store is away.
    pub async fn access(&self, app: &AppName) -> Result<Access, Denied> {
        let found = self.engine.store.access(app).await?;
        found.ok_or_else(|| Denied::AppNotFound { app: app.clone() })
    }

    /// What is in flight at the app's instances.
    #[must_use]
    pub fn in_flight(&self, app: &AppName) -> InFlight {
        in_flight(&self.engine.publisher.targets_of_app(app))
    }

    /// Waits until nothing is in flight at the app's instances, while it is paused and no longer than requests wait.
    /// Whether it came to that.
    ///
    /// # Errors
    /// If there is no such app, or the store is away.
    pub async fn quiet(&self, app: &AppName) -> Result<bool, Denied> {
        let Access::Paused { until, .. } = self.access(app).await? else { return Ok(false) };
        let targets = self.engine.publisher.targets_of_app(app);
        let drained = join_all(targets.iter().map(|target| target.gate.drained(Awaited::Everything)));
        let deadline = instant(&self.engine.clock, until);
        Ok(tokio::select! {
            biased;
            _ = drained => true,
            () = self.engine.clock.sleep_until(deadline) => false,
            () = self.engine.stopping.cancelled() => false,
        })
    }
}

impl Engine {
    async fn set_access(self: &Arc<Self>, app: &AppName, access: Access) -> Result<(), Denied> {
        self.store.set_access(app, &access, None).await?;
        if let Err(injected) = fault::at("access.stored") {
            warn!(%app, %injected, "not published yet");
        }
        self.apply_access(app, &access);
        info!(%app, ?access, "access changed");
        Ok(())
    }

    /// Publishes what the store says already, and closes or opens the gates that go with it.
    fn apply_access(self: &Arc<Self>, app: &AppName, access: &Access) {
        let is_shut = matches!(access, Access::Paused { .. } | Access::Disabled);
        if !is_shut {
            self.reopen_gates(app);
        }
        let hold = hold_of(access, self.clock.wall()).map(Arc::new);
        let before = self.publisher.set_access(app, access.clone(), hold.clone());
        if is_shut {
            for target in self.publisher.targets_of_app(app) {
                target.gate.close();
            }
        }
        // Who waits finds what is published now.
        before.inspect(|before| before.release());
        if let (Some(hold), Access::Paused { until, .. }) = (hold, access) {
            self.refuse_at(*until, hold);
        }
    }

    /// Refuses what waits when a pause has lasted as long as it was asked for.
    fn refuse_at(self: &Arc<Self>, until: crate::clock::Timestamp, hold: Arc<Hold>) {
        let (engine, deadline) = (Arc::clone(self), instant(&self.clock, until));
        self.tasks.spawn(async move {
            tokio::select! {
                () = engine.stopping.cancelled() => {}
                () = engine.clock.sleep_until(deadline) => hold.refuse(PAUSED_TOO_LONG),
            }
        });
    }

    /// Watches the deadlines of the pauses that a restart found.
    pub(super) fn keep_pauses(self: &Arc<Self>) {
        for (until, hold) in self.publisher.pauses() {
            self.refuse_at(until, hold);
        }
    }

    /// Opens the gates of what is in service: those behind the live routes of what they lead to alone.
    fn reopen_gates(&self, app: &AppName) {
        for (deployment, is_live) in self.publisher.units_of_app(app) {
            // Whoever stops its instances closed its gates for good.
            let Some(_claim) = self.retiring.claim(deployment) else { continue };
            let mut targets = self.publisher.own_targets(deployment);
            if is_live {
                targets.extend(self.publisher.live_targets(deployment));
            }
            targets.iter().for_each(|target| reopen(target));
        }
    }

    async fn stop_disabled(&self, app: &AppName) -> Result<(), Stop> {
        let all = self.store.deployments_in_service().await?;
        let of_app = all.iter().filter(|one| one.app == *app && one.status == DeploymentStatus::Ready);
        let stopping = of_app.map(|deployment| self.retire_instances(deployment, Afterwards::Keep));
        join_all(stopping).await.into_iter().collect()
    }

    /// Whether the deployment's instances should run.
    pub(super) fn should_run(&self, deployment: &Deployment) -> bool {
        deployment.status == DeploymentStatus::Ready
            && deployment.desired_state == DesiredState::Running
            && !self.publisher.is_disabled(&deployment.app)
    }

    /// Starts what is live, and opens the app once it is ready.
    pub(super) async fn run_enable(
        self: &Arc<Self>,
        operation: &Operation,
        cancel: &CancellationToken,
    ) -> Result<(), Stop> {
        if !self.publisher.is_disabled(&operation.app) {
            self.end(operation.id, OperationState::Succeeded, None, None).await;
            return Ok(());
        }
        let environment = self.store.environment(&operation.app, &operation.environment).await?;
        let live = match environment.and_then(|environment| environment.live) {
            Some(live) => Some(self.fitted(self.deployment(live).await?).await?),
            None => None,
        };
        let started = match &live {
            Some(live) => {
                let _in_hand = self.in_hand.claimed(live.id, &self.clock).await;
                let enabled = tokio::select! {
                    biased;
                    () = cancel.cancelled() => Err(Stop::Cancelled),
                    warm = self.make_warm(operation, live) => warm,
                };
                match enabled {
                    Ok(()) => self.open(operation).await,
                    Err(stop) => Err(stop),
                }
            }
            None => self.open(operation).await,
        };
        if let (Err(_), Some(live)) = (&started, &live)
            && self.publisher.is_disabled(&operation.app)
            && let Err(stop) = self.retire_instances(live, Afterwards::Keep).await
        {
            warn!(deployment = %live.id, ?stop, "not stopped yet; reconcile tries again");
        }
        started?;
        self.advance(operation.id, Progress::CutOver);
        self.end(operation.id, OperationState::Succeeded, None, None).await;
        Ok(())
    }

    async fn open(self: &Arc<Self>, operation: &Operation) -> Result<(), Stop> {
        let opening = async {
            let journal = Some((operation.id, self.clock.wall()));
            self.store.set_access(&operation.app, &Access::Open, journal).await?;
            fault::at("access.stored")?;
            Ok(((), String::new()))
        };
        let opened = self.step(operation.id, steps::ENABLE, opening).await;
        // The store decides, whatever it answered.
        let now = self.store.access(&operation.app).await?.unwrap_or_default();
        if now == Access::Disabled {
            return Err(opened.err().unwrap_or_else(|| {
                Stop::Failed(Failure::new("app_disabled", "somebody disabled the app meanwhile"))
            }));
        }
        self.apply_access(&operation.app, &now);
        info!(app = %operation.app, "app enabled");
        Ok(())
    }
}

/// What requests meet; `None` where they are served.
pub(super) fn hold_of(access: &Access, now: crate::clock::Timestamp) -> Option<Hold> {
    let rules =
        |limit, cap| HoldRules { limit, cap, timed_out: PAUSED_TOO_LONG, full: PAUSED_FULL, page: None };
    let refusing = |refusal| {
        let hold = Hold::new(rules(Duration::ZERO, 0), None);
        hold.refuse(refusal);
        hold
    };
    match access {
        Access::Open => None,
        Access::Paused { until, queue } => {
            let left = Duration::try_from(until.duration_since(now)).unwrap_or_default();
            let hold = Hold::new(rules(left, *queue as usize), None);
            if left.is_zero() {
                hold.refuse(PAUSED_TOO_LONG);
            }
            Some(hold)
        }
        Access::Maintenance { message, allow } => {
            let detail = message.as_deref().map_or(MAINTENANCE.detail, lasting);
            Some(refusing(Refusal { detail, ..MAINTENANCE }).letting_by(allow.clone()))
        }
        Access::Disabled => Some(refusing(DISABLED)),
    }
}

/// The text for as long as the process lasts: what the data plane tells is never freed under it. Each is kept once, and
/// there are as many as operators write.
fn lasting(text: &str) -> &'static str {
    static KEPT: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = kept.get(text) {
        return known;
    }
    let new: &'static str = Box::leak(text.to_owned().into_boxed_str());
    kept.insert(new);
    new
}

fn invalid(field: &str, detail: String, remedy: &str) -> Denied {
    Denied::Invalid { field: field.to_owned(), detail, remedy: Some(remedy.to_owned()) }
}
