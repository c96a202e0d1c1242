//! Errors as `application/problem+json` (RFC 9457): the one place that knows which status a denial has.

use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use crate::api::Problem;
use crate::deploy::{Denied, Gate};
use crate::error::chain;
use crate::store::StoreError;

/// A problem on its way out.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) Box<Problem>);

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: &str, title: impl Into<String>) -> Self {
        Self(Box::new(Problem {
            status: status.as_u16(),
            code: code.to_owned(),
            title: title.into(),
            ..Problem::default()
        }))
    }

    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy = Some(remedy.into());
        self
    }

    pub(crate) fn not_found(what: &str, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, &format!("{what}_not_found"), format!("no {what} {name}"))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(&*self.0)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match status {
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
            }
            StatusCode::TOO_MANY_REQUESTS => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("60"));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        let (status, remedy) = judge(&denied);
        let mut refusal = Self::new(status, denied.code(), chain(&denied));
        refusal.0.remedy = remedy.map(str::to_owned);
        if let Denied::Invalid { field, remedy, .. } = &denied {
            refusal.0.evidence = vec![format!("field: {field}")];
            refusal.0.remedy.clone_from(remedy);
        }
        if let Denied::OperationInProgress { holder } = &denied {
            refusal.0.operation = Some(*holder);
        }
        refusal
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        if let StoreError::KeyReused { .. } = &error {
            return Self::new(StatusCode::CONFLICT, "idempotency_key_reused", error.to_string())
                .remedy("use another Idempotency-Key for another request");
        }
        Denied::from(error).into()
    }
}

/// The status, and what to do.
fn judge(denied: &Denied) -> (StatusCode, Option<&'static str>) {
    match denied {
        Denied::AppNotFound { .. } => (StatusCode::NOT_FOUND, Some("see the apps with `lockgate list`")),
        Denied::AppExists { .. } => (StatusCode::CONFLICT, Some("choose another name, or remove that app")),
        Denied::AppDisabled { .. } => (StatusCode::CONFLICT, Some("enable it first: `lockgate enable APP`")),
        Denied::AppInMaintenance { .. } => {
            (StatusCode::CONFLICT, Some("end that first: `lockgate maintenance APP off`"))
        }
        Denied::EnvironmentNotFound { .. } | Denied::OperationNotFound { .. } => {
            (StatusCode::NOT_FOUND, None)
        }
        Denied::DeploymentNotFound { .. } | Denied::NothingToGoBackTo => {
            (StatusCode::NOT_FOUND, Some("see the deployments with `lockgate list APP`"))
        }
        Denied::LabelNotFound { .. } => {
            (StatusCode::NOT_FOUND, Some("see the labels with `lockgate list APP`"))
        }
        Denied::DifferentEnvironment { .. } | Denied::Gate(Gate::SameDeployment) => {
            (StatusCode::BAD_REQUEST, None)
        }
        Denied::Gate(Gate::SourceNotLive) => {
            (StatusCode::CONFLICT, Some("look at what is live now, then ask again"))
        }
        Denied::DeploymentNotReady { .. }
        | Denied::Gate(
            Gate::NoRoutes
            | Gate::DeploymentDraining
            | Gate::DeploymentNotProduction
            | Gate::NoLiveDeployment
            | Gate::DeploymentIsLive,
        ) => (StatusCode::PRECONDITION_FAILED, None),
        Denied::DeploymentIsLive { .. } => (StatusCode::CONFLICT, None),
        Denied::TooManyEphemerals { .. } => {
            (StatusCode::CONFLICT, Some("archive one, wait until one expires, or leave out evict: false"))
        }
        Denied::EnvironmentIsProduction { .. } => {
            (StatusCode::CONFLICT, Some("remove the app: `lockgate app remove APP`"))
        }
        Denied::LinksOff { .. } => (
            StatusCode::CONFLICT,
            Some("set preview_auth to { mode: link } for the app, and deploy the label again"),
        ),
        Denied::EnvironmentLinksOff { .. } => (
            StatusCode::CONFLICT,
            Some("set preview_auth to { mode: link } for the app, and deploy to the environment again"),
        ),
        Denied::SignedLinksOff { .. } => (
            StatusCode::CONFLICT,
            Some(
                "see what is asked there with `lockgate explain HOST/PATH`; a policy counts from the app's next deploy on",
            ),
        ),
        Denied::NotEphemeral { .. } => (StatusCode::CONFLICT, None),
        Denied::NotInSteps { .. } => {
            (StatusCode::CONFLICT, Some("see what it does with `lockgate show OPERATION`"))
        }
        Denied::GenerationChanged { .. } => {
            (StatusCode::CONFLICT, Some("look at what is live now, then ask again"))
        }
        Denied::OperationInProgress { .. } => {
            (StatusCode::CONFLICT, Some("wait for it, or leave out queue: false"))
        }
        Denied::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, None),
        Denied::Invalid { .. } => (StatusCode::UNPROCESSABLE_ENTITY, None),
        Denied::HostNotFound { .. } => {
            (StatusCode::NOT_FOUND, Some("see the app's hosts with `lockgate hosts list APP`"))
        }
        Denied::HostTaken { .. } => {
            (StatusCode::CONFLICT, Some("take the host from the other app first, or choose another"))
        }
        Denied::VolumeNotFound { .. } => {
            (StatusCode::NOT_FOUND, Some("see the volumes with `lockgate volumes`"))
        }
        Denied::VolumeInUse { .. } => (
            StatusCode::CONFLICT,
            Some(
                "archive what has it first: `lockgate schedule DEPLOYMENT archived`; see `lockgate volumes`",
            ),
        ),
        Denied::VolumeDeclared { .. } => (
            StatusCode::CONFLICT,
            Some(
                "take it out of the app's settings first, or remove the app: `lockgate app remove APP --volumes`",
            ),
        ),
        Denied::VolumeNotRemoved { .. } => (StatusCode::CONFLICT, None),
        Denied::RuntimeUnavailable { .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, Some("see that the engine runs; what is live goes on serving"))
        }
        Denied::Store { source: StoreError::KeyReused { .. } } => {
            (StatusCode::CONFLICT, Some("use another Idempotency-Key for another request"))
        }
        Denied::Store { .. } => (
            StatusCode::SERVICE_UNAVAILABLE,
            Some("check the disk of the data directory; what is live goes on serving"),
        ),
        Denied::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, None),
    }
}

pub(crate) async fn no_such_path(uri: Uri) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "path_not_found", format!("no {}", uri.path()))
        .remedy("see /v1/openapi.json for what there is")
}

pub(crate) async fn no_such_method(uri: Uri) -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("{} has no such method", uri.path()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::DeploymentId;

    #[test]
    fn what_keeps_a_rollback_or_a_promote_back_has_its_status() {
        let deployment = DeploymentId::generate();
        for (denied, status, code) in [
            (Denied::DeploymentNotFound { deployment }, 404, "deployment_not_found"),
            (Denied::Gate(Gate::SameDeployment), 400, "same_deployment"),
            (Denied::DifferentEnvironment { deployment }, 400, "different_environment"),
            (Denied::Gate(Gate::SourceNotLive), 409, "source_not_live"),
            (
                Denied::DeploymentNotReady { deployment, status: "failed".to_owned() },
                412,
                "deployment_not_ready",
            ),
            (Denied::Gate(Gate::NoRoutes), 412, "no_routes"),
            (Denied::Gate(Gate::DeploymentDraining), 412, "deployment_draining"),
            (Denied::Gate(Gate::DeploymentNotProduction), 412, "deployment_not_production"),
            (Denied::Gate(Gate::NoLiveDeployment), 412, "no_live_deployment"),
            (Denied::Gate(Gate::DeploymentIsLive), 412, "deployment_is_live"),
            (Denied::DeploymentIsLive { deployment }, 409, "deployment_is_live"),
            (Denied::TooManyEphemerals { count: 10 }, 409, "too_many_ephemerals"),
        ] {
            let Refusal(problem) = denied.into();
            assert_eq!((problem.status, problem.code.as_str()), (status, code));
        }
    }
}
