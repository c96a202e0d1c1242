//! Apps, their environments, and who reaches them.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::ids::{AppName, DeploymentId, EnvironmentName, OperationId, WorkspaceName};
use crate::settings::{AppSettings, Replicas};

/// What is deployed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    pub workspace: WorkspaceName,
    pub name: AppName,
    pub hosts: Vec<HostRow>,
    /// With its env vars, which the store encrypts.
    pub settings: AppSettings,
    pub origin: Origin,
}

/// Who says what an app is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The configuration file; a reload that no longer names it hands it to the API.
    Config,
    Api,
}

/// Whether clients reach an app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "mode")]
pub enum Access {
    #[default]
    Open,
    /// New requests wait, up to that time and that many; they are refused past either.
    Paused {
        #[schema(value_type = String, format = DateTime)]
        until: Timestamp,
        queue: u32,
    },
    /// Requests are refused but from the networks in `allow`; the instances go on running.
    Maintenance {
        message: Option<String>,
        #[schema(value_type = Vec<String>)]
        allow: Vec<IpNet>,
    },
    /// Requests are refused, and the instances do not run.
    Disabled,
}

/// A host name of an app: a pattern in text form, checked by whoever made it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct HostRow {
    /// `www.example.com`, `*.example.com` or `*`.
    pub host: String,
    /// `/` or a path prefix.
    pub path: String,
    /// Whether the prefix is taken off before the path goes upstream.
    pub strip: bool,
}

/// A place for deployments: production, or a preview of something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    pub app: AppName,
    pub name: EnvironmentName,
    pub kind: EnvironmentKind,
    pub live: Option<DeploymentId>,
    /// Somebody rolled back; deploys do not go live until a promote.
    pub rolled_back: bool,
    /// Counts the changes that clients can see.
    pub generation: u64,
    /// To how many instances it was scaled; the app's own setting if nobody did.
    pub replicas: Option<Replicas>,
    /// Another version that a share of the visitors gets, while a cutover goes in steps.
    pub split: Option<Split>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EnvironmentKind {
    Production,
    Preview,
}

/// A share of the visitors gets another version than the live one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// Whose step it is.
    pub operation: OperationId,
    pub to: DeploymentId,
    /// In a hundred.
    pub share: u8,
    /// When the share was committed.
    pub since: Timestamp,
    /// JSON of `deploy::Figures`: what the new version is held against.
    pub baseline: Option<String>,
}

/// The env vars of an app by name, as the store encrypts them.
pub type Env = BTreeMap<String, crate::settings::Secret>;
