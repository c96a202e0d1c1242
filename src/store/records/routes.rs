//! Which host names lead where.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::HostRow;
use crate::ids::{AppName, DeploymentId, EnvironmentName};

/// One route: host pattern and path prefix → deployment, and what moves it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RouteRow {
    pub host: HostRow,
    pub sticky: Sticky,
    pub app: AppName,
    pub environment: EnvironmentName,
    /// `None` while nothing was ever live there.
    pub deployment: Option<DeploymentId>,
}

/// What a route sticks to, and so what moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Sticky {
    /// The live pointer.
    Live,
    /// The newest of the environment.
    Environment,
    /// The branch's newest.
    Branch,
    Deployment,
    Commit,
    Ephemeral,
}
