//! Why a command is not accepted.

use crate::ids::{AppName, DeploymentId, EnvironmentName, EphemeralLabel, OperationId};
use crate::store::StoreError;

/// Why a command is not accepted. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    #[error("no app {app}")]
    AppNotFound { app: AppName },
    #[error("app {app} is disabled")]
    AppDisabled { app: AppName },
    #[error("app {app} is in maintenance")]
    AppInMaintenance { app: AppName },
    #[error("there is an app {app} already")]
    AppExists { app: AppName },
    #[error("no environment {environment} of app {app}")]
    EnvironmentNotFound { app: AppName, environment: EnvironmentName },
    #[error("production of app {app} goes with the app alone")]
    EnvironmentIsProduction { app: AppName },
    #[error("no deployment {deployment}")]
    DeploymentNotFound { deployment: DeploymentId },
    #[error("no operation {operation}")]
    OperationNotFound { operation: OperationId },
    #[error("deployment {deployment} belongs to another environment")]
    DifferentEnvironment { deployment: DeploymentId },
    #[error("deployment {deployment} is not ready: it is {status}")]
    DeploymentNotReady { deployment: DeploymentId, status: String },
    #[error("deployment {deployment} is live already")]
    DeploymentIsLive { deployment: DeploymentId },
    #[error("{0}")]
    Gate(Gate),
    #[error("there is no earlier deployment that was live and can serve")]
    NothingToGoBackTo,
    #[error("the app has {count} ephemeral deployments, and may have no more")]
    TooManyEphemerals { count: usize },
    #[error("label {label} of app {app} leads to no deployment")]
    LabelNotFound { app: AppName, label: EphemeralLabel },
    #[error("label {label} of app {app} is not opened by links")]
    LinksOff { app: AppName, label: EphemeralLabel },
    #[error("environment {environment} of app {app} is not opened by links")]
    EnvironmentLinksOff { app: AppName, environment: EnvironmentName },
    #[error("no policy wants a signed link at {place}")]
    SignedLinksOff { place: String },
    #[error("operation {operation} is not between the steps of a cutover")]
    NotInSteps { operation: OperationId },
    #[error("deployment {deployment} is not ephemeral, and does not expire")]
    NotEphemeral { deployment: DeploymentId },
    #[error("generation {found} is not the expected {expected}")]
    GenerationChanged { expected: u64, found: u64 },
    #[error("operation {holder} is in progress")]
    OperationInProgress { holder: OperationId },
    #[error("{waiting} operations wait for this environment already")]
    QueueFull { waiting: usize },
    #[error("{detail}")]
    Invalid { field: String, detail: String, remedy: Option<String> },
    #[error("the app has no host {host}")]
    HostNotFound { host: String },
    #[error("host {host} belongs to app {owner}")]
    HostTaken { host: String, owner: AppName },
    #[error("no volume {place}")]
    VolumeNotFound { place: String },
    #[error("deployment {by} runs with volume {place}, or can")]
    VolumeInUse { place: String, by: DeploymentId },
    #[error("the next version of app {app} would find volume {place}: its settings name it")]
    VolumeDeclared { place: String, app: AppName },
    #[error("the volume is not removed")]
    VolumeNotRemoved {
        #[source]
        source: crate::runtime::RuntimeError,
    },
    #[error("the runtime is not available")]
    RuntimeUnavailable {
        #[source]
        source: crate::runtime::RuntimeError,
    },
    #[error("the store is not available")]
    Store {
        #[source]
        source: StoreError,
    },
    #[error("lockgate is shutting down")]
    ShuttingDown,
}

/// What keeps a rollback or a promote from being accepted, or from running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Gate {
    #[error("source and target are the same deployment")]
    SameDeployment,
    #[error("the source is not live")]
    SourceNotLive,
    #[error("the app has no host names, so there is nothing to move")]
    NoRoutes,
    #[error("the deployment still drains")]
    DeploymentDraining,
    #[error("the deployment does not belong to production")]
    DeploymentNotProduction,
    #[error("nothing is live: swap the deployment in instead")]
    NoLiveDeployment,
    #[error("the deployment is live already")]
    DeploymentIsLive,
}

impl Denied {
    /// Stable, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::AppNotFound { .. } => "app_not_found",
            Self::AppExists { .. } => "app_exists",
            Self::AppDisabled { .. } => "app_disabled",
            Self::AppInMaintenance { .. } => "app_maintenance",
            Self::EnvironmentNotFound { .. } => "environment_not_found",
            Self::EnvironmentIsProduction { .. } => "environment_is_production",
            Self::DeploymentNotFound { .. } | Self::NothingToGoBackTo => "deployment_not_found",
            Self::OperationNotFound { .. } => "operation_not_found",
            Self::DifferentEnvironment { .. } => "different_environment",
            Self::DeploymentNotReady { .. } => "deployment_not_ready",
            Self::DeploymentIsLive { .. } | Self::Gate(Gate::DeploymentIsLive) => "deployment_is_live",
            Self::Gate(Gate::SameDeployment) => "same_deployment",
            Self::Gate(Gate::SourceNotLive) => "source_not_live",
            Self::Gate(Gate::NoRoutes) => "no_routes",
            Self::Gate(Gate::DeploymentDraining) => "deployment_draining",
            Self::Gate(Gate::DeploymentNotProduction) => "deployment_not_production",
            Self::Gate(Gate::NoLiveDeployment) => "no_live_deployment",
            Self::TooManyEphemerals { .. } => "too_many_ephemerals",
            Self::LabelNotFound { .. } => "ephemeral_unknown",
            Self::LinksOff { .. } | Self::EnvironmentLinksOff { .. } => "preview_links_off",
            Self::SignedLinksOff { .. } => "signed_links_off",
            Self::NotEphemeral { .. } => "not_ephemeral",
            Self::NotInSteps { .. } => "not_in_steps",
            Self::GenerationChanged { .. } => "generation_changed",
            Self::OperationInProgress { .. } => "operation_in_progress",
            Self::QueueFull { .. } => "queue_full",
            Self::Invalid { .. } => "invalid",
            Self::HostNotFound { .. } => "host_not_found",
            Self::HostTaken { .. } => "host_taken",
            Self::VolumeNotFound { .. } => "volume_not_found",
            Self::VolumeInUse { .. } => "volume_in_use",
            Self::VolumeDeclared { .. } => "volume_declared",
            Self::VolumeNotRemoved { .. } => "volume_not_removed",
            Self::RuntimeUnavailable { .. } => "runtime_unavailable",
            Self::Store { source: StoreError::KeyReused { .. } } => "idempotency_key_reused",
            Self::Store { .. } => "store_unavailable",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

impl From<StoreError> for Denied {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::HostTaken { host, owner } => Self::HostTaken { host, owner },
            StoreError::Outdated { expected, found } => Self::GenerationChanged { expected, found },
            source => Self::Store { source },
        }
    }
}
