//! Health checks for as long as a deployment serves, in the mode of its readiness check: an unhealthy instance leaves
//! rotation and is replaced.
//!
//! The last one stays: the data plane sends to unhealthy targets when there is no healthy one, and it is not replaced
//! before another one serves well.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tracing::{info, warn};

use super::engine::{Engine, Stop};
use super::instances::pinned;
use super::readiness::{Check, http_probe};
use crate::ids::InstanceId;
use crate::routing::Target;
use crate::runtime::{Health, InstanceState};
use crate::store::{Deployment, DeploymentStatus};

/// How exact `health.interval` is.
const TICK: Duration = Duration::from_secs(1);

/// What is known of the checks of one target.
#[derive(Debug)]
struct Record {
    target: Arc<Target>,
    next: Instant,
    failures: u32,
}

/// A check that is due.
#[derive(Debug)]
struct Due {
    deployment: Arc<Deployment>,
    target: Arc<Target>,
    check: Check,
}

/// What a check saw.
#[derive(Debug)]
enum Seen {
    Well,
    /// And after how many of these in a row it is unhealthy.
    Ill(String, u32),
    /// The engine does not answer, or the instance is not running: that is for reconcile.
    Nothing,
}

impl Engine {
    /// Checks every instance that serves, each at its own interval, until the engine stops.
    pub(super) async fn keep_healthy(self: Arc<Self>) {
        let mut records = HashMap::new();
        while !self.stopping.is_cancelled() {
            if let Err(error) = self.check_health(&mut records).await {
                warn!(?error, "health not checked");
            }
            tokio::select! {
                () = self.stopping.cancelled() => {}
                () = self.clock.sleep(TICK) => {}
            }
        }
    }

    async fn check_health(self: &Arc<Self>, records: &mut HashMap<InstanceId, Record>) -> Result<(), Stop> {
        let due = self.due_checks(records).await?;
        let seen = join_all(due.iter().map(|due| self.see(due))).await;
        for (due, seen) in due.iter().zip(seen) {
            if let Some(record) = records.get_mut(&due.target.id) {
                self.judge(due, record, seen);
            }
        }
        // When all are judged: what ails all replicas at once is not cured by taking one away.
        for unhealthy in due.iter().filter(|due| !due.target.is_healthy()) {
            self.replace_unhealthy(unhealthy).await?;
        }
        Ok(())
    }

    /// Those of now; `records` is about the targets that serve now, afterwards.
    async fn due_checks(&self, records: &mut HashMap<InstanceId, Record>) -> Result<Vec<Due>, Stop> {
        let now = self.clock.now();
        let mut due = Vec::new();
        let mut known = std::mem::take(records);
        for deployment in self.store.deployments_in_service().await? {
            let deployment = Arc::new(deployment);
            let Some(check) = lasting_check(&deployment) else { continue };
            let interval = deployment.settings.health.interval.0;
            for target in self.publisher.live_targets(deployment.id) {
                // Another target is another life of the instance.
                let mut record = known
                    .remove(&target.id)
                    .filter(|record| Arc::ptr_eq(&record.target, &target))
                    .unwrap_or_else(|| Record {
                        target: Arc::clone(&target),
                        next: now + interval,
                        failures: 0,
                    });
                if record.next <= now {
                    record.next = now + interval;
                    let (deployment, check) = (Arc::clone(&deployment), check.clone());
                    due.push(Due { deployment, target: Arc::clone(&target), check });
                }
                records.insert(target.id, record);
            }
        }
        Ok(due)
    }

    async fn see(&self, due: &Due) -> Seen {
        let health = &due.deployment.settings.health;
        match &due.check {
            Check::Probe(probe) => match probe
                .ask(due.target.address, due.target.tls.as_ref(), health.timeout.0, &self.clock)
                .await
            {
                Ok(()) => Seen::Well,
                Err(error) => Seen::Ill(error.to_string(), health.failures.max(1)),
            },
            Check::ByContainer => match self.runtime.inspect(&due.target.id).await {
                Ok(Some(instance)) => match instance.state {
                    InstanceState::Running { health: Health::Healthy | Health::None } => Seen::Well,
                    // The container's own check has failed several times by then.
                    InstanceState::Running { health: Health::Unhealthy } => {
                        Seen::Ill("its own health check says unhealthy".to_owned(), 1)
                    }
                    InstanceState::Running { health: Health::Starting }
                    | InstanceState::Created
                    | InstanceState::Exited(_) => Seen::Nothing,
                },
                Ok(None) | Err(_) => Seen::Nothing,
            },
            Check::Running(_) => Seen::Nothing,
        }
    }

    /// Takes the target out of rotation or into it.
    fn judge(&self, due: &Due, record: &mut Record, seen: Seen) {
        let target = &due.target;
        match seen {
            Seen::Nothing => {}
            Seen::Well => {
                record.failures = 0;
                if !target.is_healthy() {
                    info!(instance = %target.id, "healthy again");
                }
                let now = self.clock.now();
                self.publisher.targets_of(target.id).iter().for_each(|target| target.come_back(now));
            }
            Seen::Ill(error, needed) => {
                record.failures += 1;
                if record.failures >= needed && target.is_healthy() {
                    warn!(instance = %target.id, failures = record.failures, error, "unhealthy: out of rotation");
                    self.publisher.targets_of(target.id).iter().for_each(|target| target.set_healthy(false));
                }
            }
        }
    }

    /// Replaces it, unless it is the last one, an operation is at its deployment, or it was replaced not long ago.
    async fn replace_unhealthy(self: &Arc<Self>, due: &Due) -> Result<(), Stop> {
        let (deployment, id) = (&due.deployment, due.target.id);
        if self.is_in_operation(deployment) || self.drains.is_draining(deployment.id) {
            return Ok(());
        }
        let rows = self.store.instances(Some(&deployment.id)).await?;
        let Some(row) = rows.into_iter().find(|row| row.id == id) else { return Ok(()) };
        if self.restarts.waits(id, self.clock.now()) {
            return Ok(());
        }
        if self.replace(deployment, row) {
            self.restarts.due(deployment.id, id, self.clock.now());
            info!(instance = %id, deployment = %deployment.id, "unhealthy instance is replaced");
        }
        Ok(())
    }
}

/// How a deployment that is ready is checked from then on, if it can be.
fn lasting_check(deployment: &Deployment) -> Option<Check> {
    if deployment.status != DeploymentStatus::Ready {
        return None;
    }
    let settings = &deployment.settings;
    match Check::of(settings, &pinned(deployment).ok()?, true).ok()? {
        // That it has run for a while says nothing of now; the path that the app names does.
        Check::Running(_) => http_probe(settings).map(Check::Probe),
        check @ (Check::Probe(_) | Check::ByContainer) => Some(check),
    }
}
