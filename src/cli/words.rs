//! What single words of the command line mean.

use crate::api::Scope;
use crate::ids::{AppName, DeploymentId, EphemeralLabel, OperationId};
use crate::settings::Delay;

/// What has events.
#[derive(Clone, Copy, Debug)]
pub enum Followed {
    Operation(OperationId),
    Deployment(DeploymentId),
}

pub(super) fn followed(text: &str) -> Result<Followed, String> {
    let operation = text.parse().map(Followed::Operation);
    operation
        .or_else(|_other| text.parse().map(Followed::Deployment))
        .map_err(|_neither| "write the id of an operation (op_…) or of a deployment (dep_…)".to_owned())
}

/// The id of a deployment. Whoever names an app instead is told where its ids are.
pub(super) fn deployment(text: &str) -> Result<DeploymentId, String> {
    text.parse::<DeploymentId>().map_err(|_other| match text.parse::<AppName>() {
        Ok(app) => format!(
            "write the id of a deployment (dep_…): `lockgate versions {app}` lists those of app {app}"
        ),
        Err(_neither) => {
            "write the id of a deployment (dep_…), as `lockgate versions APP` lists it".to_owned()
        }
    })
}

pub(super) fn scheduled_state(text: &str) -> Result<crate::api::ScheduledState, String> {
    serde_json::from_value(text.into()).map_err(|_unknown| "write running, standby or archived".to_owned())
}

pub(super) fn delay(text: &str) -> Result<Delay, String> {
    serde_json::from_value(serde_json::json!(text)).map_err(|error| error.to_string())
}

/// A label, or what one is made of.
pub(super) fn label_of(text: &str) -> Result<EphemeralLabel, String> {
    EphemeralLabel::made_of(text).ok_or_else(|| format!("no label can be made of {text:?}"))
}

pub(super) fn scope(text: &str) -> Result<Scope, String> {
    serde_json::from_value(serde_json::json!(text))
        .map_err(|_unknown| "one of read, deploy, admin".to_owned())
}
