//! What runs, and where it is reached, for whoever asks.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::engine::Stop;
use super::{Denied, Orchestrator};
use crate::ids::{AppName, DeploymentId, EnvironmentName, InstanceId};
use crate::settings::Enforcement;

/// An instance with what is in flight at it, as the data plane counts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceView {
    pub id: InstanceId,
    pub app: AppName,
    pub environment: EnvironmentName,
    pub deployment: DeploymentId,
    pub phase: crate::store::InstancePhase,
    pub healthy: bool,
    pub address: Option<String>,
    pub requests: u64,
    pub streams: u64,
}

/// The last lines that an instance wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceLogs {
    pub instance: InstanceId,
    pub lines: Vec<String>,
}

impl Orchestrator {
    /// What the engine and the gates say of every instance.
    ///
    /// # Errors
    /// If the store is away.
    pub async fn instances(&self) -> Result<Vec<InstanceView>, Denied> {
        let rows = self.engine.store.instances(None).await?;
        Ok(rows
            .into_iter()
            .map(|row| {
                let targets = self.engine.publisher.targets_of(row.id);
                let in_flight = super::publisher::in_flight(&targets);
                InstanceView {
                    id: row.id,
                    app: row.app,
                    environment: row.environment,
                    deployment: row.deployment,
                    phase: row.phase,
                    healthy: !targets.is_empty() && targets.iter().all(|target| target.is_healthy()),
                    address: row.address,
                    requests: in_flight.requests,
                    streams: in_flight.streams,
                }
            })
            .collect())
    }

    /// The last `lines` lines of each of the deployment's instances.
    ///
    /// # Errors
    /// If there is no such deployment, or the runtime or the store is away.
    pub async fn logs(&self, deployment: DeploymentId, lines: usize) -> Result<Vec<InstanceLogs>, Denied> {
        if self.engine.store.deployment(&deployment).await?.is_none() {
            return Err(Denied::DeploymentNotFound { deployment });
        }
        let mut logs = Vec::new();
        for row in self.engine.store.instances(Some(&deployment)).await? {
            let lines = self.engine.runtime.logs(&row.id, lines).await;
            logs.push(InstanceLogs {
                instance: row.id,
                lines: lines.map_err(|source| Denied::RuntimeUnavailable { source })?,
            });
        }
        Ok(logs)
    }

    /// The host names that lead to a deployment now.
    #[must_use]
    pub fn hosts(&self, deployment: DeploymentId) -> Vec<String> {
        self.engine.publisher.hosts(deployment)
    }

    /// Where a deployment will be reached, if it has a name of its own: known before it starts.
    ///
    /// # Errors
    /// If the store is away or there is no such deployment.
    pub async fn url(&self, deployment: DeploymentId) -> Result<Option<String>, Denied> {
        let found = self.engine.store.deployment(&deployment).await?;
        let found = found.ok_or(Denied::DeploymentNotFound { deployment })?;
        let live =
            self.engine.store.environment(&found.app, &found.environment).await?.and_then(|it| it.live);
        // At the app's own host names another version is reached as long as this one is not live.
        let url = if live == Some(deployment) {
            self.engine.url(&found).await
        } else {
            self.engine.own_url(&found).await
        };
        match url {
            Ok(url) => Ok(url),
            Err(Stop::Store(source)) => Err(Denied::Store { source }),
            Err(_) => Ok(None),
        }
    }

    /// Whether the runtime answers, and what it calls itself.
    ///
    /// # Errors
    /// That it does not.
    pub async fn runtime_status(&self) -> Result<String, Denied> {
        self.engine.runtime.ping().await.map_err(|source| Denied::RuntimeUnavailable { source })
    }

    /// How far the runtime holds instances to their limits.
    #[must_use]
    pub fn enforcement(&self) -> Enforcement {
        self.engine.runtime.enforcement()
    }
}
