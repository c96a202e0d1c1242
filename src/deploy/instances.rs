//! Instances of a deployment: started with their intent written first, stopped only behind closed gates.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::{info, warn};

use super::drain::{Deadlines, Drained, drain};
use super::engine::{Claim, Engine, Stop};
use super::publisher::Owner;
use crate::error::chain;
use crate::fault;
use crate::gate::Awaited;
use crate::ids::{DeploymentId, EnvironmentName, InstanceId};
use crate::routing::Target;
use crate::routing::backend::Order;
use crate::routing::https::OwnHttps;
use crate::runtime::{HealthCheck, Instance, InstanceSpec, Pinned, RuntimeError, Volume};
use crate::settings::{AppSettings, VolumeSettings};
use crate::store::{Deployment, DeploymentStatus, DesiredState, Failure, InstancePhase, InstanceRow};

/// How long workers have to close idle connections to an instance before it gets its signal.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// What becomes of an instance that is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Afterwards {
    /// It can be started again.
    Keep,
    Remove,
}

impl Engine {
    /// Starts `count` instances of a deployment and waits until the runtime has them. Their rows say `until_ready`
    /// meanwhile.
    pub(super) async fn start_instances(
        &self,
        deployment: &Deployment,
        count: usize,
        until_ready: InstancePhase,
    ) -> Result<Vec<Instance>, Stop> {
        let mut started = Vec::with_capacity(count);
        for _ in 0..count {
            let row = InstanceRow::new(deployment, deployment.operation);
            started.push(self.start_instance(deployment, row, until_ready).await?);
        }
        Ok(started)
    }

    /// Starts a new instance, its row first.
    pub(super) async fn start_instance(
        &self,
        deployment: &Deployment,
        mut row: InstanceRow,
        until_ready: InstancePhase,
    ) -> Result<Instance, Stop> {
        self.store.put_instance(&row).await?;
        fault::at("instance.intended")?;
        let spec = self.spec(deployment, row.id).await?;
        let alone = self.alone(deployment, row.id).await?;
        let instance = self.runtime.start(&spec).await?;
        drop(alone);
        fault::at("instance.started")?;
        self.record_life(&mut row, &instance, until_ready).await?;
        Ok(instance)
    }

    /// Starts again what was stopped and kept, and what is missing of the replicas. Until they are seen ready their rows
    /// say `starting`: after a crash nobody takes them for something that serves.
    pub(super) async fn wake_instances(&self, deployment: &Deployment) -> Result<Vec<Instance>, Stop> {
        let rows = self.replicas_of(deployment.id).await?;
        let missing = usize::from(deployment.settings.replicas.count()).saturating_sub(rows.len());
        self.restarts.forget(deployment.id);
        self.revivals.stop(deployment.id).await;
        let mut woken = Vec::new();
        for mut row in rows {
            let instance = self.restart_instance(deployment, &mut row).await?;
            woken.push(instance);
        }
        woken.extend(self.start_instances(deployment, missing, InstancePhase::Starting).await?);
        Ok(woken)
    }

    /// Starts one instance again, whatever became of it.
    async fn restart_instance(
        &self,
        deployment: &Deployment,
        row: &mut InstanceRow,
    ) -> Result<Instance, Stop> {
        row.phase = InstancePhase::Starting;
        row.stop_signalled_at = None;
        self.store.put_instance(row).await?;
        let spec = self.spec(deployment, row.id).await?;
        let _alone = self.alone(deployment, row.id).await?;
        let instance = match self.runtime.restart(&spec).await {
            Err(RuntimeError::NotFound { .. }) => self.runtime.start(&spec).await?,
            other => other?,
        };
        self.record_life(row, &instance, InstancePhase::Starting).await?;
        Ok(instance)
    }

    /// Makes the instances known to the data plane; no route leads there because of it. Requests that were held for them
    /// are released.
    pub(super) fn set_targets(&self, deployment: &Deployment, instances: &[Instance]) {
        let addresses: Vec<(InstanceId, SocketAddr)> =
            instances.iter().filter_map(|instance| Some((instance.id, instance.address?))).collect();
        self.publisher.serve(&owner(deployment), &addresses);
    }

    /// Drains all that a deployment still serves, then stops its instances and keeps or removes them. What comes for one
    /// that is kept waits from before its gates are closed; the routes of one that is removed lead to nothing afterwards.
    pub(super) async fn retire_instances(
        &self,
        deployment: &Deployment,
        afterwards: Afterwards,
    ) -> Result<(), Stop> {
        let Some(claim) = self.retiring.claim(deployment.id) else {
            // Somebody else is at it.
            return Ok(());
        };
        self.retire_claimed(deployment, afterwards, claim).await.map(drop)
    }

    /// The same for whoever has claimed them. How the drain went; `None` where it is to run after all.
    pub(super) async fn retire_claimed(
        &self,
        deployment: &Deployment,
        afterwards: Afterwards,
        _claim: Claim<DeploymentId>,
    ) -> Result<Option<Drained>, Stop> {
        self.revivals.stop(deployment.id).await;
        let now = self.deployment(deployment.id).await?;
        if self.should_run(&now) {
            // It was taken back into service since this was decided.
            return Ok(None);
        }
        let is_asleep = now.status == DeploymentStatus::Ready && now.desired_state == DesiredState::Standby;
        if is_asleep && self.publisher.held_by(deployment.id).is_none() {
            self.hold_asleep(&now);
        }
        self.publisher.release_pages(deployment.id);
        let targets = self.publisher.all_targets(deployment.id);
        for target in &targets {
            target.gate.close();
        }
        let deadlines = Deadlines::new(&deployment.settings.deploy, self.clock.now());
        let draining = drain(&targets, deadlines, self.publisher.routing(), &self.clock);
        let drained = if is_asleep {
            let wanted = self.retirements.begin(now.id);
            let drained = tokio::select! {
                biased;
                () = wanted.cancelled() => None,
                drained = draining => Some(drained),
            };
            self.retirements.end(now.id);
            let Some(drained) = drained else {
                info!(deployment = %now.id, "not stopped: it is asked for again");
                return Ok(None);
            };
            self.publisher.set_instances(&owner(&now), &[]);
            drained
        } else {
            let drained = draining.await;
            self.publisher.forget(deployment.id);
            drained
        };
        drained.tell_of_cuts(deployment.id, "it stops");
        let mut stopped = Ok(());
        // Spare ones drain by themselves.
        for row in self.replicas_of(deployment.id).await? {
            if row.phase == InstancePhase::Stopped && afterwards == Afterwards::Keep {
                continue;
            }
            if let Err(error) = self.stop_instance(deployment, row, &targets, afterwards).await {
                // The others are stopped all the same; reconcile comes back for this one.
                stopped = Err(error);
            }
        }
        stopped?;
        if afterwards == Afterwards::Remove {
            self.remove_preview_volumes(deployment).await?;
        }
        Ok(Some(drained))
    }

    /// Stops one instance, whose gates are closed. The signal is sent once, also across a restart.
    pub(super) async fn stop_instance(
        &self,
        deployment: &Deployment,
        mut row: InstanceRow,
        targets: &[Arc<Target>],
        afterwards: Afterwards,
    ) -> Result<(), Stop> {
        let id = row.id;
        close_connections(self, targets.iter().filter(|target| target.id == id)).await;
        let settings = &deployment.settings.deploy;
        let signalled_before = row.stop_signalled_at.is_some();
        if !signalled_before {
            row.phase = InstancePhase::Draining;
            row.stop_signalled_at = Some(self.clock.wall());
            self.store.put_instance(&row).await?;
        }
        fault::at("instance.stop.intended")?;
        let grace = if signalled_before {
            self.await_stop(&row, settings.stop_grace.0).await?;
            Duration::ZERO
        } else {
            settings.stop_grace.0
        };
        let exit = self.runtime.stop(&id, settings.stop_signal, grace).await;
        fault::at("instance.stopped")?;
        match exit {
            Ok(exit) if exit.killed => {
                warn!(instance = %id, grace = %settings.stop_grace, "instance did not heed its stop signal and was killed");
            }
            Ok(exit) => info!(instance = %id, code = exit.code, "instance stopped"),
            Err(RuntimeError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        match afterwards {
            Afterwards::Keep => {
                row.phase = InstancePhase::Stopped;
                self.store.put_instance(&row).await?;
            }
            Afterwards::Remove => {
                self.runtime.remove(&id).await?;
                fault::at("instance.removed")?;
                self.store.delete_instance(&id).await?;
            }
        }
        Ok(())
    }

    /// Waits for an instance that had its signal before a restart, for what is left of its grace.
    async fn await_stop(&self, row: &InstanceRow, grace: Duration) -> Result<(), Stop> {
        let Some(at) = row.stop_signalled_at else { return Ok(()) };
        let since = Duration::try_from(self.clock.wall().duration_since(at)).unwrap_or_default();
        let deadline = self.clock.now() + grace.saturating_sub(since);
        while self.runtime.inspect(&row.id).await?.is_some_and(|instance| instance.is_running())
            && self.clock.now() < deadline
        {
            self.clock.sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    pub(super) async fn record_life(
        &self,
        row: &mut InstanceRow,
        instance: &Instance,
        phase: InstancePhase,
    ) -> Result<(), Stop> {
        set_life(row, instance, phase);
        self.store.put_instance(row).await?;
        Ok(())
    }

    pub(super) async fn spec(&self, deployment: &Deployment, id: InstanceId) -> Result<InstanceSpec, Stop> {
        let pinned = pinned(deployment)?;
        let settings = &deployment.settings;
        let mut env: BTreeMap<String, String> =
            settings.env.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
        if let Some(url) = self.url(deployment).await? {
            env.entry("LOCKGATE_URL".to_owned()).or_insert(url);
        }
        env.entry("LOCKGATE_DEPLOYMENT".to_owned()).or_insert_with(|| deployment.id.to_string());
        Ok(InstanceSpec {
            id,
            app: self.store.first_name(&deployment.app).await?,
            environment: deployment.environment.clone(),
            deployment: deployment.id,
            operation: deployment.operation,
            digest: pinned.digest,
            command: settings.command.clone(),
            directory: settings.directory.clone(),
            port: settings.port.or(pinned.exposed_port),
            env,
            volumes: settings.volumes.iter().map(volume).collect(),
            label: deployment.label.clone(),
            resources: settings.resources.clone(),
            health_check: health_check(settings),
            stop_signal: settings.deploy.stop_signal,
            stop_grace: settings.deploy.stop_grace.0,
        })
    }
}

/// Has the workers close what they keep open to targets that nothing is sent to any more.
async fn close_connections<'a>(engine: &Engine, targets: impl Iterator<Item = &'a Arc<Target>>) {
    for target in targets {
        target.connections.close();
        if target.order() == Order::Serve {
            target.set_order(Order::CloseIdle);
        }
        engine.publisher.routing().signal_workers();
        if timeout(CLOSE_WITHIN, target.connections.drained(Awaited::Everything)).await.is_err() {
            // Harmless: nothing is sent on them any more, and the instance closes them as it stops.
            warn!(instance = %target.id, "connections still open before the stop");
        }
    }
}

fn volume(settings: &VolumeSettings) -> Volume {
    Volume { name: settings.name.clone(), path: settings.path.clone(), read_only: settings.read_only }
}

/// What the runtime says of an instance, in its row.
pub(super) fn set_life(row: &mut InstanceRow, instance: &Instance, phase: InstancePhase) {
    row.phase = phase;
    row.handle = Some(instance.handle.clone());
    row.address = instance.address.map(|address| address.to_string());
    row.started_at = instance.started_at;
}

/// What the deployment is pinned to.
pub(super) fn pinned(deployment: &Deployment) -> Result<Pinned, Stop> {
    let text = deployment.pinned.as_deref().ok_or_else(|| {
        Stop::Failed(
            Failure::new("not_pinned", "the deployment never got as far as its image").remedy("deploy again"),
        )
    })?;
    serde_json::from_str(text).map_err(|error| {
        Stop::Failed(Failure::new("damaged", format!("what the image is pinned to: {}", chain(&error))))
    })
}

pub(super) fn owner(deployment: &Deployment) -> Owner {
    let is_in_preview = deployment.label.is_none() && deployment.environment != EnvironmentName::production();
    let label = deployment.label.as_ref().map_or("", |label| label.as_str());
    Owner {
        app: deployment.app.clone(),
        environment: deployment.environment.clone(),
        deployment: deployment.id,
        sequence: deployment.sequence,
        has_pages: deployment.live_at.is_some()
            && deployment.label.is_none()
            && deployment.status == DeploymentStatus::Ready,
        preview_auth: deployment.settings.preview_auth.clone().filter(|_| is_in_preview),
        pages_for: deployment.settings.skew_protection.map(|skew| skew.max_age),
        protocol: deployment.settings.protocol,
        tls: deployment.settings.tls.clone(),
        proxy_protocol: deployment.settings.proxy_protocol,
        balance: deployment.settings.balance.clone(),
        slow_start: deployment.settings.slow_start,
        limit: deployment
            .settings
            .max_concurrent_requests
            .map(|limit| (limit, deployment.settings.queue.unwrap_or_default())),
        https: OwnHttps::of(deployment.settings.https, deployment.settings.hsts),
        policies: deployment.settings.policies.as_slice().into(),
        counted_in: [deployment.app.as_str(), deployment.environment.as_str(), label].join(" ").into(),
    }
}

/// What the engine is to run in the container, if the app says so.
fn health_check(settings: &AppSettings) -> Option<HealthCheck> {
    let health = &settings.health;
    (!health.command.is_empty()).then(|| HealthCheck {
        command: health.command.clone(),
        interval: health.interval.0,
        timeout: health.timeout.0,
        failures: health.failures,
        // What fails before it could be ready says nothing.
        grace: settings.deploy.health_timeout.0,
    })
}
