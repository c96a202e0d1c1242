//! Ephemeral deployments: reached by a label, never live, gone when their time is over.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::engine::{Engine, STORE_AGAIN, Stop};
use super::executor::request_of;
use super::instances::Afterwards;
use super::retired::Cause;
use super::submit::status_text;
use super::{Denied, DeployFlags, Gate, LinkRequest, Orchestrator};
use crate::clock::{Clock, Timestamp};
use crate::error::chain;
use crate::fault;
use crate::ids::{AppName, DeploymentId, EnvironmentName, EphemeralLabel};
use crate::routing::preview_auth::{LinkKey, PreviewAuth};
use crate::settings::{Delay, PreviewAuthMode, PreviewAuthSettings};
use crate::store::{
    Deployment, DeploymentStatus, DesiredState, EventKind, Failure, Operation, OperationState, Store,
};

impl Orchestrator {
    /// Moves the expiry of an ephemeral deployment that has not expired; returns when it expires now.
    ///
    /// # Errors
    /// If there is no such deployment, it is not ephemeral or has ended, the ttl is zero, or the store is away.
    pub async fn extend(&self, deployment: DeploymentId, ttl: Delay) -> Result<Timestamp, Denied> {
        if ttl.0.is_zero() {
            return Err(Denied::Invalid {
                field: "ttl".to_owned(),
                detail: "the ttl is not positive".to_owned(),
                remedy: Some("write for example 2h".to_owned()),
            });
        }
        let engine = &self.engine;
        let _turn = engine.submitting.lock().await;
        let found = engine.store.deployment(&deployment).await?;
        let found = found.ok_or(Denied::DeploymentNotFound { deployment })?;
        let (Some(label), Some(expires_at)) = (&found.label, found.expires_at) else {
            return Err(Denied::NotEphemeral { deployment });
        };
        let now = engine.clock.wall();
        if found.status != DeploymentStatus::Ready
            || found.desired_state == DesiredState::Archived
            || expires_at <= now
        {
            let status = if expires_at <= now { "expired".to_owned() } else { status_text(&found) };
            return Err(Denied::DeploymentNotReady { deployment, status });
        }
        let until = now + ttl.0;
        engine.store.set_expiry(&deployment, until).await?;
        let expires_at = instant(&engine.clock, until);
        engine.publisher.extend_label(&found.app, label.as_str(), deployment, expires_at);
        Ok(until)
    }
}

impl Orchestrator {
    /// A link that opens what the label leads to, by whatever deployment, until then.
    ///
    /// # Errors
    /// If the label leads nowhere or is not opened by links, the time is zero, or the store is away.
    pub async fn preview_link(
        &self,
        app: &AppName,
        label: &EphemeralLabel,
        request: LinkRequest,
    ) -> Result<(String, Timestamp), Denied> {
        refuse_no_time(request)?;
        let deployment = self.engine.labelled(app, label).await?;
        let auth = auth_of(self.engine.store.as_ref(), &deployment);
        let Some(PreviewAuth::Link(key)) = auth.as_deref() else {
            return Err(Denied::LinksOff { app: app.clone(), label: label.clone() });
        };
        let url = self.url(deployment.id).await?;
        Ok(self.signed(key, url, request))
    }

    /// A link that opens an environment for previews, whatever is live there, until then.
    ///
    /// # Errors
    /// If there is no such environment, nothing is live there, it is not opened by links, the time is zero, or the store
    /// is away.
    pub async fn environment_link(
        &self,
        app: &AppName,
        environment: &EnvironmentName,
        request: LinkRequest,
    ) -> Result<(String, Timestamp), Denied> {
        refuse_no_time(request)?;
        let engine = &self.engine;
        if engine.store.app(app).await?.is_none() {
            return Err(Denied::AppNotFound { app: app.clone() });
        }
        let live = engine.environment_at(&(app.clone(), environment.clone())).await?.live;
        let live = live.ok_or(Denied::Gate(Gate::NoLiveDeployment))?;
        let live = engine.store.deployment(&live).await?;
        let live = live.ok_or(Denied::Gate(Gate::NoLiveDeployment))?;
        let settings = super::instances::owner(&live).preview_auth;
        let place = place_of(environment);
        let auth = settings.and_then(|settings| auth(&settings, &engine.store.link_key(), app, &place));
        let Some(PreviewAuth::Link(key)) = auth.as_deref() else {
            let (app, environment) = (app.clone(), environment.clone());
            return Err(Denied::EnvironmentLinksOff { app, environment });
        };
        let url = match engine.environment_url(&live).await {
            Ok(url) => url,
            Err(Stop::Store(source)) => return Err(Denied::Store { source }),
            Err(_) => None,
        };
        Ok(self.signed(key, url, request))
    }

    fn signed(&self, key: &LinkKey, url: Option<String>, request: LinkRequest) -> (String, Timestamp) {
        let until = self.engine.clock.wall() + request.good_for.0;
        let url = url.unwrap_or_else(|| self.engine.options.urls.of("localhost"));
        let slash = if url.matches('/').count() > 2 { "" } else { "/" };
        (format!("{url}{slash}?lockgate_link={}", key.sign(until.as_second())), until)
    }
}

pub(super) fn refuse_no_time(request: LinkRequest) -> Result<(), Denied> {
    if request.good_for.0.is_zero() {
        return Err(Denied::Invalid {
            field: "for".to_owned(),
            detail: "the time is not positive".to_owned(),
            remedy: Some("write for example 24h".to_owned()),
        });
    }
    Ok(())
}

impl Engine {
    /// That another ephemeral deployment would not have to end another one, nor one that is on its way.
    pub(super) async fn refuse_to_evict(&self, app: &AppName, label: &EphemeralLabel) -> Result<(), Denied> {
        let all = self.store.deployments_in_service().await?;
        let others = all.into_iter().filter(|other| other.app == *app).filter_map(|other| other.label);
        let count = others.filter(|other| other != label).collect::<HashSet<_>>().len();
        if count >= self.options.ephemeral_max_per_app {
            return Err(Denied::TooManyEphemerals { count });
        }
        Ok(())
    }

    /// Leads the label to a deployment that is ready, for the whole of its time from then on. One that had the label before
    /// drains and goes; the one that expires soonest is evicted if there are too many, and that was not forbidden.
    pub(super) async fn serve_label(
        self: &Arc<Self>,
        operation: &Operation,
        id: DeploymentId,
    ) -> Result<(), Stop> {
        let mut stands = false;
        loop {
            match self.try_to_serve_label(operation, id, &mut stands).await {
                // Else what was replaced would run on, and a restart lead the label to it once this one is gone.
                Err(stop @ (Stop::Failed(_) | Stop::Store(_))) if stands && !self.stopping.is_cancelled() => {
                    warn!(
                        operation = %operation.id, deployment = %id, ?stop,
                        "ready, and what follows is not done; tried again"
                    );
                    self.clock.sleep(STORE_AGAIN).await;
                }
                ended => return ended,
            }
        }
    }

    /// `stands` is set once it is ready for good.
    async fn try_to_serve_label(
        self: &Arc<Self>,
        operation: &Operation,
        id: DeploymentId,
        stands: &mut bool,
    ) -> Result<(), Stop> {
        let deployment = self.deployment(id).await?;
        let (Some(label), Some(expires_at)) = (&deployment.label, deployment.expires_at) else {
            return Err(Stop::Failed(Failure::new("internal", "an ephemeral deployment without a label")));
        };
        // Nobody else adds a label meanwhile, in whatever environment: else there could be too many.
        let turn = self.publisher.turn().await;
        let others = self.store.ephemerals(Some(&deployment.app)).await?;
        let (replaced, mut kept): (Vec<_>, Vec<_>) = others
            .into_iter()
            .filter(|other| other.id != id)
            .partition(|other| other.label == deployment.label);
        let excess = (kept.len() + 1).saturating_sub(self.options.ephemeral_max_per_app);
        let is_served = deployment.status == DeploymentStatus::Ready;
        if is_served && deployment.desired_state == DesiredState::Archived {
            return Err(Stop::Superseded(Failure::new("superseded", "it was archived meanwhile")));
        }
        if !is_served {
            // In another environment a newer one may have come to its end first.
            if let Some(newer) = replaced.iter().find(|other| other.ordinal > deployment.ordinal) {
                let cause = format!("{} has the label, and is newer", newer.id);
                return Err(Stop::Superseded(Failure::new("superseded", cause)));
            }
            refuse_excess(operation, excess, kept.len())?;
        }
        self.open_live_name(&turn, &deployment).await?;
        // How long it was in the making does not count.
        let ttl = expires_at.duration_since(deployment.created_at);
        let expires_at = if is_served { expires_at } else { self.clock.wall() + ttl };
        // From here on a restart serves it: among those with the label the newest that is ready has it.
        if !is_served && !self.store.serve_until(&id, expires_at).await? {
            self.refuse_unless(id, DeploymentStatus::Ready).await?;
        }
        *stands = true;
        fault::at("label.ready")?;
        if deployment.desired_state == DesiredState::Standby {
            self.hold_unstarted(id).await?;
        }
        let (until, auth) = (instant(&self.clock, expires_at), auth_of(self.store.as_ref(), &deployment));
        self.publisher.set_label(&deployment.app, label.as_str(), id, until, auth);
        drop(turn);
        fault::at("label.led")?;
        if let Some(url) = self.url(&deployment).await? {
            self.tell(operation.id, EventKind::Cutover, format!("{url} until {expires_at}")).await;
        }
        kept.sort_by_key(|other| other.expires_at);
        for evicted in kept.drain(..excess) {
            let text = format!(
                "evicted {} ({})",
                evicted.label.as_ref().map_or("", |label| label.as_str()),
                evicted.id
            );
            self.tell(operation.id, EventKind::Warning, text).await;
            let cause = self.because(operation.id.to_string(), format!("evicted for {id}"));
            self.end_ephemeral(evicted, cause).await?;
        }
        for old in replaced {
            let cause = self.because(operation.id.to_string(), format!("replaced by {id}"));
            self.end_ephemeral(old, cause).await?;
        }
        fault::at("label.replaced")?;
        self.end(operation.id, OperationState::Succeeded, None, None).await;
        Ok(())
    }

    /// Has the requests of one that has not started yet wake it. After a restart one may have done so by now.
    async fn hold_unstarted(&self, id: DeploymentId) -> Result<(), Stop> {
        if self.publisher.held_by(id).is_some() {
            return Ok(());
        }
        let _claim = self.retiring.claimed(id, &self.clock).await;
        let deployment = self.deployment(id).await?;
        if deployment.desired_state == DesiredState::Standby && self.publisher.held_by(id).is_none() {
            self.hold_asleep(&deployment);
        }
        Ok(())
    }

    /// Ends those whose labels have expired, as the data plane has it.
    async fn end_expired(self: &Arc<Self>) {
        for id in self.publisher.expired_labels(self.clock.now()) {
            let ended = async { self.end_ephemeral(self.deployment(id).await?, self.expired()).await };
            if let Err(stop) = ended.await {
                warn!(deployment = %id, ?stop, "expired deployment not ended; tried again");
            }
        }
    }

    /// Ends what has expired by now, as the store has it: it knows of leaps of the machine's time.
    async fn sweep_ephemerals(self: &Arc<Self>) -> Result<(), Stop> {
        for deployment in self.store.expired(self.clock.wall()).await? {
            self.end_ephemeral(deployment, self.expired()).await?;
        }
        Ok(())
    }

    fn expired(&self) -> Cause {
        self.because("expiry", "its time was over")
    }

    /// Takes an ephemeral deployment out of service: its label at once, its instances after their drain.
    async fn end_ephemeral(self: &Arc<Self>, deployment: Deployment, cause: Cause) -> Result<(), Stop> {
        self.causes.put(deployment.id, cause);
        self.store.set_desired_state(&deployment.id, DesiredState::Archived).await?;
        fault::at("label.archived")?;
        if let Some(label) = &deployment.label {
            let (app, label) = (&deployment.app, label.as_str());
            if deployment.expires_at.is_some_and(|at| at <= self.clock.wall()) {
                self.publisher.end_label(app, label, deployment.id, self.clock.now());
            } else {
                self.publisher.clear_label(app, label, deployment.id);
            }
        }
        let engine = Arc::clone(self);
        self.tasks.spawn(async move {
            match engine.retire_noted(&deployment, Afterwards::Remove).await {
                Ok(()) => info!(deployment = %deployment.id, "ephemeral deployment removed"),
                Err(stop) => {
                    warn!(deployment = %deployment.id, ?stop, "not removed yet; reconcile tries again")
                }
            }
        });
        Ok(())
    }

    /// Fires the timers that are due, and ends what has expired or is outdated, until the engine stops.
    pub(super) async fn keep_time(self: Arc<Self>) {
        let mut sweep_at = self.clock.now();
        while !self.stopping.is_cancelled() {
            if let Err(error) = self.fire_due_timers().await {
                warn!(?error, "timers not fired; tried again");
            }
            self.publisher.routing().sweep_cache();
            self.end_expired().await;
            if let Err(stop) = self.look_at_hours().await {
                warn!(?stop, "office hours not looked at; tried again");
            }
            if let Err(stop) = self.look_for_idle().await {
                warn!(?stop, "not known who is idle; tried again");
            }
            if self.clock.now() >= sweep_at {
                match self.sweep_ephemerals().await {
                    Ok(()) => sweep_at = self.clock.now() + self.options.ephemeral_sweep_every.0,
                    Err(error) => warn!(?error, "expired deployments not swept; tried again"),
                }
            }
            tokio::select! {
                () = self.stopping.cancelled() => {}
                () = self.clock.sleep(TICK) => {}
            }
        }
    }

    async fn fire_due_timers(self: &Arc<Self>) -> Result<(), Stop> {
        let now = self.clock.wall();
        for timer in self.store.timers().await? {
            if timer.due > now {
                break;
            }
            // What still drains is not stopped; its timer stays due.
            if self.drains.is_draining(timer.deployment) {
                continue;
            }
            let Some(deployment) = self.store.deployment(&timer.deployment).await? else {
                self.store.clear_timer(&timer.deployment).await.map_err(|error| {
                    warn!(deployment = %timer.deployment, error = chain(&error), "stray timer not cleared");
                    Stop::Store(error)
                })?;
                continue;
            };
            if timer.state == DesiredState::Running {
                self.run_at_its_time(&deployment, &timer).await;
            } else {
                self.lanes_submit_timer(&deployment, timer);
            }
        }
        Ok(())
    }
}

/// That nobody has to go for one that must not evict.
fn refuse_excess(operation: &Operation, excess: usize, count: usize) -> Result<(), Stop> {
    let flags: DeployFlags = request_of(operation)?;
    if flags.evict || excess == 0 {
        return Ok(());
    }
    let denied = Denied::TooManyEphemerals { count };
    let failure = Failure::new(denied.code(), denied.to_string());
    Err(Stop::Failed(failure.remedy("end one of them, or let the one go that expires soonest")))
}

/// What a request must have to reach an ephemeral deployment.
pub(super) fn auth_of(store: &dyn Store, deployment: &Deployment) -> Option<Arc<PreviewAuth>> {
    let (label, settings) = (deployment.label.as_ref()?, deployment.settings.preview_auth.as_ref()?);
    auth(settings, &store.link_key(), &deployment.app, label.as_str())
}

/// What a request must have to reach a place of the app: its links are good for that one alone.
pub(super) fn auth(
    settings: &PreviewAuthSettings,
    link_key: &[u8; 32],
    app: &AppName,
    place: &str,
) -> Option<Arc<PreviewAuth>> {
    match settings.mode {
        PreviewAuthMode::Off => None,
        PreviewAuthMode::Basic => Some(PreviewAuth::basic(&settings.user, settings.password.expose())),
        PreviewAuthMode::Link => Some(PreviewAuth::link(link_key, app.as_str(), place)),
    }
    .map(Arc::new)
}

/// An environment as such a place: no label is written so.
pub(super) fn place_of(environment: &EnvironmentName) -> String {
    format!("/{environment}")
}

/// When `at` is on the monotonic clock.
pub(super) fn instant(clock: &Arc<dyn Clock>, at: Timestamp) -> Instant {
    let left = Duration::try_from(at.duration_since(clock.wall())).unwrap_or_default();
    clock.now() + left
}

/// How late a timer may fire.
const TICK: Duration = Duration::from_secs(1);
