//! What is not as it should be: the store against the runtime and the route table, looked at and not changed.
//!
//! Reconcile mends most of it by itself within seconds; what is still told after a while wants a person.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::engine::Stop;
use super::{Denied, Orchestrator};
use crate::clock::Timestamp;
use crate::error::chain;
use crate::ids::{DeploymentId, InstanceId};
use crate::runtime::Instance;
use crate::settings::unheard_https;
use crate::store::{Deployment, InstanceRow};

/// How late something may be before it is told.
const LATE: Duration = Duration::from_secs(60);

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    pub kind: FindingKind,
    /// The instance, deployment, operation or environment that it is about.
    pub subject: String,
    pub cause: String,
    pub remedy: String,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// The runtime does not answer, so that nothing is known of the instances.
    RuntimeAway,
    /// It carries this installation's mark, and the store knows nothing of it.
    StrayInstance,
    /// Its deployment is to run, and it does not.
    MissingInstance,
    /// It runs, and its deployment is not to.
    LeftOverInstance,
    UnhealthyInstance,
    /// Of a preview that is gone.
    StrayVolume,
    /// What is live has nothing that requests can go to.
    NothingServes,
    /// What is live says of https what nobody is told, as there is no listener for it.
    HttpsUnheard,
    /// It has not ended, and nobody works on it.
    AbandonedOperation,
    OverdueTimer,
    OverdueExpiry,
    /// Within 14 days.
    CertificateExpiring,
    CertificateExpired,
    /// It was asked for, and the authority gave none.
    CertificateNotIssued,
    /// The authority, or what is kept of it, cannot be used.
    AcmeAway,
    /// It proved a name for ACME, and is not taken back.
    DnsRecordLeft,
}

impl Orchestrator {
    /// Looks for what is not as it should be. It may be on its way to be mended, or to be finished.
    ///
    /// # Errors
    /// If the store is away.
    pub async fn doctor(&self) -> Result<Vec<Finding>, Denied> {
        let mut findings = self.instances_amiss().await?;
        findings.extend(self.volumes_amiss().await?);
        findings.extend(self.environments_amiss().await?);
        findings.extend(self.operations_amiss().await?);
        findings.extend(self.times_amiss().await?);
        Ok(findings)
    }

    /// The runtime is asked first: what is made meanwhile has a row before it is there.
    async fn instances_amiss(&self) -> Result<Vec<Finding>, Denied> {
        let engine = &self.engine;
        let listed = match engine.runtime.list().await {
            Ok(listed) => listed,
            Err(error) => {
                let remedy = "see that the engine runs; what is live goes on being served meanwhile";
                return Ok(vec![finding(FindingKind::RuntimeAway, &"runtime", chain(&error), remedy)]);
            }
        };
        let mut seen: HashMap<InstanceId, Instance> =
            listed.into_iter().map(|instance| (instance.id, instance)).collect();
        let rows = engine.store.instances(None).await?;
        let mut deployments: HashMap<DeploymentId, Deployment> = HashMap::new();
        for id in rows.iter().map(|row| row.deployment).collect::<HashSet<_>>() {
            deployments.extend(engine.store.deployment(&id).await?.map(|found| (id, found)));
        }
        let mut findings = Vec::new();
        for row in &rows {
            let instance = seen.remove(&row.id);
            let Some(deployment) = deployments.get(&row.deployment) else { continue };
            if engine.is_in_operation(deployment) || engine.drains.is_draining(deployment.id) {
                continue;
            }
            findings.extend(self.instance_amiss(row, instance.as_ref(), deployment));
        }
        let strays = seen.into_values().map(|stray| {
            let cause = format!("made by operation {} for {}/{}", stray.operation, stray.app, stray.environment);
            let remedy = "it is removed within a minute, unless most instances are unknown: was an old backup restored?";
            finding(FindingKind::StrayInstance, &stray.id, cause, remedy)
        });
        findings.extend(strays);
        Ok(findings)
    }

    fn instance_amiss(
        &self,
        row: &InstanceRow,
        seen: Option<&Instance>,
        deployment: &Deployment,
    ) -> Option<Finding> {
        let of = format!("of deployment {} ({})", deployment.id, deployment.app);
        let should_run = self.engine.should_run(deployment);
        match seen.filter(|instance| instance.is_running()) {
            None if should_run => {
                let cause = match seen {
                    Some(instance) => format!("{of}: {:?}", instance.state),
                    None => format!("{of}: there is no such container or process"),
                };
                let remedy =
                    "it is started again, after a back-off if it ends again and again: see `lockgate logs`";
                Some(finding(FindingKind::MissingInstance, &row.id, cause, remedy))
            }
            Some(_) if !should_run => {
                let remedy =
                    "it is stopped within a minute; if not, see the log for what the runtime answered";
                Some(finding(FindingKind::LeftOverInstance, &row.id, of, remedy))
            }
            Some(_) if self.engine.publisher.targets_of(row.id).iter().any(|target| !target.is_healthy()) => {
                let remedy = "it is replaced unless it is the last one: see `lockgate logs`";
                Some(finding(FindingKind::UnhealthyInstance, &row.id, of, remedy))
            }
            Some(_) | None => None,
        }
    }

    async fn volumes_amiss(&self) -> Result<Vec<Finding>, Denied> {
        let strays = match self.engine.stray_volumes().await {
            Ok(strays) => strays,
            Err(Stop::Store(source)) => return Err(source.into()),
            // Told already.
            Err(_away) => return Ok(Vec::new()),
        };
        let told = strays.into_iter().map(|stray| {
            let label = stray.label.as_ref().map(ToString::to_string).unwrap_or_default();
            let cause = format!("of preview {label:?} of {}/{}, which is gone", stray.app, stray.environment);
            let remedy = format!("if nobody wants what is in it: `lockgate volumes remove {}`", stray.place);
            finding(FindingKind::StrayVolume, &stray.place, cause, remedy)
        });
        Ok(told.collect())
    }

    async fn environments_amiss(&self) -> Result<Vec<Finding>, Denied> {
        let mut findings = Vec::new();
        for app in self.engine.store.apps().await? {
            for environment in self.engine.store.environments(&app.name).await? {
                let Some(live) = environment.live else { continue };
                let Some(deployment) = self.engine.store.deployment(&live).await? else { continue };
                if self.engine.should_run(&deployment) && self.engine.publisher.live_targets(live).is_empty()
                {
                    let cause = format!("deployment {live} is live, and none of its instances serves");
                    let remedy = "deploy a version that holds, or roll back with `lockgate rollback`";
                    let subject = format!("{}/{}", app.name, environment.name);
                    findings.push(finding(FindingKind::NothingServes, &subject, cause, remedy));
                }
                if !self.engine.options.https {
                    findings.extend(https_unheard(&deployment));
                }
            }
        }
        Ok(findings)
    }

    async fn operations_amiss(&self) -> Result<Vec<Finding>, Denied> {
        let mut findings = Vec::new();
        for operation in self.engine.store.unfinished_operations().await? {
            let lane = self.engine.lanes.view(&(operation.app.clone(), operation.environment.clone()));
            let is_in_hand = lane.running == Some(operation.id) || lane.waiting.contains(&operation.id);
            // One whose cutover has held is followed until its drain is over.
            if !is_in_hand && self.engine.following(operation.id).is_none() {
                let cause =
                    format!("{:?} of {} since {}", operation.kind, operation.app, operation.created_at);
                let remedy = "restart lockgate: it finishes or undoes what its journal says";
                findings.push(finding(FindingKind::AbandonedOperation, &operation.id, cause, remedy));
            }
        }
        Ok(findings)
    }

    async fn times_amiss(&self) -> Result<Vec<Finding>, Denied> {
        let before = self.engine.clock.wall() - LATE;
        let is_late = |at: Timestamp| at < before;
        let remedy = "see the log for what stands in the way; it is tried again every second";
        let mut findings = Vec::new();
        for timer in self.engine.store.timers().await? {
            if is_late(timer.due) && !self.engine.drains.is_draining(timer.deployment) {
                let cause = format!("{:?} was due at {}", timer.state, timer.due);
                findings.push(finding(FindingKind::OverdueTimer, &timer.deployment, cause, remedy));
            }
        }
        for deployment in self.engine.store.expired(before).await? {
            let at = deployment.expires_at.map_or_else(String::new, |at| at.to_string());
            let cause = format!("expired at {at}");
            findings.push(finding(FindingKind::OverdueExpiry, &deployment.id, cause, remedy));
        }
        Ok(findings)
    }
}

/// Of a version that was deployed while there was a listener, or whose listener waits for a restart.
fn https_unheard(deployment: &Deployment) -> impl Iterator<Item = Finding> {
    let settings = &deployment.settings;
    unheard_https(settings.https, settings.hsts).into_iter().map(|(field, detail, remedy)| {
        let subject = format!("{}/{}", deployment.app, deployment.environment);
        let cause = format!("{field} of deployment {} {detail}: it is served without TLS", deployment.id);
        let remedy = format!("{remedy}; an app's word holds from its next deploy on");
        finding(FindingKind::HttpsUnheard, &subject, cause, remedy)
    })
}

fn finding(
    kind: FindingKind,
    subject: &impl ToString,
    cause: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding { kind, subject: subject.to_string(), cause: cause.into(), remedy: remedy.into() }
}
