//! Stopping a version that is kept, and starting it again.

use super::client::Client;
use super::commands::{Done, show};
use super::output::{self, Failure, word};
use super::{Global, exit};
use crate::api::{Deployment, List, Operation, ScheduleRequest, ScheduledState, WakeRequest};
use crate::ids::{AppName, DeploymentId, EphemeralLabel};
use crate::settings::Delay;

/// An app and one of its versions, as a person names it.
type Named<'a> = (&'a AppName, &'a str);

pub(super) async fn wake(global: &Global, client: &Client, named: Named<'_>, detach: bool) -> Done {
    let deployment = version_of(client, named).await?.id;
    let wait = if detach { "" } else { "?wait=true" };
    let path = format!("/v1/deployments/{deployment}/wake{wait}");
    let operation: Operation = client.post(&path, &WakeRequest {}).await?;
    show(global, &operation, || output::operation(&operation));
    Ok(())
}

pub(super) async fn put_to_sleep(global: &Global, client: &Client, named: Named<'_>, delay: Delay) -> Done {
    let deployment = version_of(client, named).await?.id;
    let request = ScheduleRequest { state: ScheduledState::Standby, delay, overwrite: true };
    let found: Deployment = client.put(&format!("/v1/deployments/{deployment}/schedule"), &request).await?;
    show(global, &found, || {
        output::line(match &found.scheduled {
            Some(scheduled) => format!("{}: {} at {}", found.id, word(&scheduled.state), scheduled.due),
            None => format!("{}: {}", found.id, word(&found.desired_state)),
        });
    });
    Ok(())
}

/// A deployment by its id alone, or by its app and label.
pub(super) async fn deployment_of(
    client: &Client,
    of: &str,
    label: Option<&str>,
) -> Result<DeploymentId, Failure> {
    let wrong =
        |error: String| Failure::new(exit::USAGE, error).remedy("write a deployment, or an app and a label");
    match label {
        None => of.parse().map_err(|error| wrong(format!("{error}"))),
        Some(label) => {
            let app = of.parse().map_err(|error| wrong(format!("{error}")))?;
            Ok(version_of(client, (&app, label)).await?.id)
        }
    }
}

/// A deployment by its id, or the one that a label leads to.
async fn version_of(client: &Client, (app, name): Named<'_>) -> Result<Deployment, Failure> {
    let all: List<Deployment> = client.list(&format!("/v1/apps/{app}/deployments")).await?;
    let label = EphemeralLabel::made_of(name);
    let is_meant = |one: &Deployment| {
        let has_label = one.label.is_some() && one.label == label;
        one.id.to_string() == name || has_label && word(&one.desired_state) != "archived"
    };
    all.items.into_iter().find(is_meant).ok_or_else(|| {
        let mut failure = Failure::new(exit::REFUSED, format!("app {app} has no version {name}"))
            .remedy(format!("see its versions with `lockgate list {app}`"));
        failure.problem.code = "deployment_not_found".to_owned();
        failure
    })
}
