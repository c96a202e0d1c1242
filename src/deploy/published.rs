//! What is served as soon as the store is open: before the runtime is asked, and whether or not it answers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::access::hold_of;
use super::engine::Engine;
use super::instances::owner;
use super::preview::{auth_of, instant};
use super::publisher::{Publisher, ServiceRoute};
use super::wake::hold_for;
use super::{Options, Orchestrator};
use crate::clock::{Clock, Timestamp};
use crate::ids::{DeploymentId, InstanceId};
use crate::routing::Routing;
use crate::runtime::Runtime;
use crate::settings::Delay;
use crate::store::{DeploymentStatus, DesiredState, InstancePhase, InstanceRow, Store, StoreError};

/// So long after its expiry a label is told from one that never was, restarts or not.
const EXPIRED_FOR: Delay = Delay::seconds(7 * 24 * 60 * 60);

/// The routes of the store, published; nothing is changed yet, and nothing asked of a runtime.
#[derive(Debug)]
pub struct Published {
    store: Arc<dyn Store>,
    publisher: Publisher,
    clock: Arc<dyn Clock>,
}

impl Published {
    /// Publishes the routes that the store has, with the instances that it knows.
    ///
    /// # Errors
    /// If the store cannot be read: then nothing is published, and nothing may be served as if there were nothing.
    pub async fn of_store(
        store: Arc<dyn Store>,
        routing: Arc<Routing>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StoreError> {
        let publisher = Publisher::new(routing, Arc::clone(&clock), store.link_key());
        let published = Self { store, publisher, clock };
        published.adopt().await?;
        Ok(published)
    }

    /// Publishes the routes of static services beside them.
    pub fn set_services(&self, services: Vec<ServiceRoute>) {
        self.publisher.set_services(services);
    }

    /// Sees to everything else in the background: operations that a restart interrupted, instances, timers, health.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn begin(
        self,
        runtime: Arc<dyn Runtime>,
        options: Options,
    ) -> Result<Orchestrator, StoreError> {
        let engine = Arc::new(Engine::new(self.store, runtime, self.publisher, self.clock, options));
        engine.resume().await?;
        Ok(Orchestrator { engine })
    }

    /// Makes known to the data plane what the store says of instances, before the runtime is asked: they are served
    /// while the engine is away. After a reboot of the machine no address is believed.
    async fn adopt(&self) -> Result<(), StoreError> {
        let booted_at = booted_at();
        let mut rows: HashMap<DeploymentId, Vec<InstanceRow>> = HashMap::new();
        for row in self.store.instances(None).await? {
            rows.entry(row.deployment).or_default().push(row);
        }
        let now = self.clock.wall();
        for ended in self.store.ended_labels(now - EXPIRED_FOR.0, now).await? {
            let (app, label, at) = (&ended.app, ended.label.as_str(), instant(&self.clock, ended.expired_at));
            self.publisher.set_label(app, label, ended.deployment, at, None);
            self.publisher.end_label(app, label, ended.deployment, at);
        }
        for deployment in self.store.deployments_in_service().await? {
            let is_believed = |row: &&InstanceRow| {
                row.phase == InstancePhase::Running
                    && row.stop_signalled_at.is_none()
                    && !row.spare
                    && booted_at.is_none_or(|booted| row.started_at.is_some_and(|started| started >= booted))
            };
            let known = rows.remove(&deployment.id).unwrap_or_default();
            let addresses: Vec<(InstanceId, SocketAddr)> = known
                .iter()
                .filter(is_believed)
                .filter_map(|row| Some((row.id, row.address.as_ref()?.parse().ok()?)))
                .collect();
            if deployment.status == DeploymentStatus::Ready
                && deployment.desired_state == DesiredState::Standby
            {
                let hold = Arc::new(hold_for(&deployment.settings, self.publisher.bell()));
                // Nothing was published yet, so nobody waits.
                drop(self.publisher.hold(&owner(&deployment), &hold));
            } else {
                self.publisher.set_instances(&owner(&deployment), &addresses);
            }
            if let (Some(label), Some(expires_at), DeploymentStatus::Ready) =
                (&deployment.label, deployment.expires_at, deployment.status)
            {
                self.publisher.set_label(
                    &deployment.app,
                    label.as_str(),
                    deployment.id,
                    instant(&self.clock, expires_at),
                    auth_of(self.store.as_ref(), &deployment),
                );
            }
        }
        for (app, access) in self.store.accesses().await? {
            let hold = hold_of(&access, self.clock.wall()).map(Arc::new);
            // There is nothing yet that it stands in the place of.
            drop(self.publisher.set_access(&app, access, hold));
        }
        let turn = self.publisher.turn().await;
        for app in self.store.apps().await? {
            for environment in self.store.environments(&app.name).await? {
                let Some(split) = environment.split else { continue };
                let operation = self.store.operation(&split.operation).await?;
                if operation.is_some_and(|operation| !operation.state.is_end()) {
                    self.publisher.split(&turn, &app.name, &environment.name, Some(&split));
                }
            }
        }
        self.publisher.load(&turn, self.store.routes().await?);
        Ok(())
    }
}

/// When the machine was started (`btime` of /proc/stat, in seconds): nothing that began before still runs.
fn booted_at() -> Option<Timestamp> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let seconds = text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Timestamp::from_second(seconds).ok()
}
