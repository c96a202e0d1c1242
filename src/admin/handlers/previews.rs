//! Links to what is not for everybody: previews, and what a policy keeps.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::Answer;
use crate::admin::Admin;
use crate::admin::call::{Call, In};
use crate::api::{LinkRequest, PreviewLink, Problem, SignRequest};
use crate::ids::{AppName, EnvironmentName, EphemeralLabel};

/// Signs a link to what a label leads to. Whoever has the link may see it, until its time is over.
#[utoipa::path(post, path = "/v1/apps/{app}/previews/{label}/link", tag = "deployments", params(("app" = String, Path), ("label" = String, Path)), request_body = LinkRequest, responses((status = 200, body = PreviewLink), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn link(
    State(admin): State<Arc<Admin>>,
    In((app, label)): In<(AppName, EphemeralLabel)>,
    call: Call<LinkRequest>,
) -> Answer<PreviewLink> {
    let (url, good_until) = admin.engine.preview_link(&app, &label, call.body).await?;
    Ok(Json(PreviewLink { url, good_until }))
}

/// Signs a link to an environment for previews. Whoever has the link may see it, until its time is over.
#[utoipa::path(post, path = "/v1/apps/{app}/environments/{environment}/link", tag = "apps", params(("app" = String, Path), ("environment" = String, Path)), request_body = LinkRequest, responses((status = 200, body = PreviewLink), (status = 404, body = Problem), (status = 409, body = Problem), (status = 412, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn environment_link(
    State(admin): State<Arc<Admin>>,
    In((app, environment)): In<(AppName, EnvironmentName)>,
    call: Call<LinkRequest>,
) -> Answer<PreviewLink> {
    let (url, good_until) = admin.engine.environment_link(&app, &environment, call.body).await?;
    Ok(Json(PreviewLink { url, good_until }))
}

/// Signs a link to a host and path at which a policy wants one. Whoever has the link may see it and what is below it, until
/// its time is over.
#[utoipa::path(post, path = "/v1/links", tag = "routes", request_body = SignRequest, responses((status = 200, body = PreviewLink), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn signed_link(
    State(admin): State<Arc<Admin>>,
    call: Call<SignRequest>,
) -> Answer<PreviewLink> {
    let (url, good_until) = admin.engine.signed_link(&call.body)?;
    Ok(Json(PreviewLink { url, good_until }))
}
