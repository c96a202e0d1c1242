//! The versions of an app that there are, and what each is for now.

use serde::Serialize;

use super::Global;
use super::client::Client;
use super::commands::{Done, show};
use super::output::{self, word};
use crate::api::{Deployment, DeploymentStatus, DesiredState, List};
use crate::ids::AppName;

/// What a version is for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Role {
    /// Live in its environment.
    Active,
    /// Reached by its label until it expires.
    Ephemeral,
    /// Stopped and kept.
    Standby,
    /// It runs, and another one is live.
    Replaced,
    /// It runs, and never was live.
    Ready,
}

#[derive(Serialize)]
struct Version {
    role: Role,
    #[serde(flatten)]
    deployment: Deployment,
}

pub(super) async fn list(global: &Global, client: &Client, app: &AppName, only_ephemeral: bool) -> Done {
    let all: List<Deployment> = client.list(&format!("/v1/apps/{app}/deployments")).await?;
    let versions = all.items.into_iter().filter_map(|deployment| {
        let role = role(&deployment)?;
        (!only_ephemeral || deployment.label.is_some()).then_some(Version { role, deployment })
    });
    let found = List { items: versions.collect::<Vec<_>>(), next_offset: None };
    show(global, &found, || {
        let row = |one: &Version| {
            let it = &one.deployment;
            let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
            vec![
                it.id.to_string(),
                word(&one.role),
                it.environment.to_string(),
                text(it.label.as_ref().map(ToString::to_string)),
                it.created_at.to_string(),
                text(it.expires_at.map(|at| at.to_string())),
                text(it.url.clone()),
            ]
        };
        let rows: Vec<_> = found.items.iter().map(row).collect();
        output::table(&["VERSION", "ROLE", "ENVIRONMENT", "LABEL", "CREATED", "EXPIRES", "URL"], &rows);
    });
    Ok(())
}

/// `None` for what is no version any more, or not yet.
fn role(deployment: &Deployment) -> Option<Role> {
    if deployment.status != DeploymentStatus::Ready {
        return None;
    }
    match deployment.desired_state {
        DesiredState::Archived => None,
        DesiredState::Running | DesiredState::Standby if deployment.label.is_some() => Some(Role::Ephemeral),
        DesiredState::Standby => Some(Role::Standby),
        DesiredState::Running if deployment.live => Some(Role::Active),
        DesiredState::Running if deployment.live_at.is_some() => Some(Role::Replaced),
        DesiredState::Running => Some(Role::Ready),
    }
}
