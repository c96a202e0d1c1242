//! Status, health, metrics, audit, and the reload of the configuration.

use std::sync::{Arc, LazyLock};

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::oneshot;

use super::{Answer, page, piece};
use crate::admin::Admin;
use crate::admin::call::Asked;
use crate::admin::certificates;
use crate::admin::problem::Refusal;
use crate::api::{Audit, Diagnosis, List, PageQuery, Problem, Reloaded, Status};
use crate::store::InstancePhase;
use crate::telemetry::{Expiry, Present, TargetHealth};

/// Says how everything is.
#[utoipa::path(get, path = "/v1/status", tag = "system", responses((status = 200, body = Status)))]
pub(crate) async fn status(State(admin): State<Arc<Admin>>) -> Answer<Status> {
    let (runtime, runtime_available) = match admin.engine.runtime_status().await {
        Ok(text) => (text, true),
        Err(denied) => (crate::error::chain(&denied), false),
    };
    let instances = admin.engine.instances().await?;
    let unfinished = admin.store.unfinished_operations().await?;
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        lockgate: admin.store.lockgate_id().to_string(),
        runtime,
        runtime_available,
        limits: admin.engine.enforcement(),
        apps: admin.store.apps().await?.len(),
        routes: admin.routing.table().iter().map(|routes| routes.paths().len()).sum(),
        generation: admin.routing.generation(),
        requests: instances.iter().map(|instance| instance.requests).sum(),
        streams: instances.iter().map(|instance| instance.streams).sum(),
        operations: unfinished.into_iter().map(|operation| operation.id).collect(),
        listen: admin.listen.iter().map(ToString::to_string).collect(),
        certificates: certificates::list(&admin),
    }))
}

/// Looks for what is not as it should be: strays, what is missing, what is late, certificates that expire within 14 days. Changes nothing.
#[utoipa::path(get, path = "/v1/doctor", tag = "system", responses((status = 200, body = Diagnosis)))]
pub(crate) async fn doctor(State(admin): State<Arc<Admin>>) -> Answer<Diagnosis> {
    let mut findings = admin.engine.doctor().await?;
    findings.extend(certificates::amiss(&admin));
    Ok(Json(Diagnosis { findings }))
}

/// Reads the configuration file again, and applies it whole or not at all.
#[utoipa::path(post, path = "/v1/config/reload", tag = "system", responses((status = 200, body = Reloaded), (status = 422, body = Problem)))]
pub(crate) async fn reload(State(admin): State<Arc<Admin>>) -> Answer<Reloaded> {
    let gone = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "lockgate is shutting down");
    let (sender, answer) = oneshot::channel();
    admin.reload.send(sender).await.map_err(|_closed| gone())?;
    match answer.await.map_err(|_closed| gone())? {
        Ok(reloaded) => Ok(Json(reloaded)),
        Err(diagnostics) => {
            let mut refusal = Refusal::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "config_invalid",
                "the configuration is not applied",
            );
            refusal.0.evidence = diagnostics.lines().map(str::to_owned).collect();
            refusal.0.serving = Some("what ran before goes on running".to_owned());
            Err(refusal.remedy("correct the file; try it with `lockgate config check`"))
        }
    }
}

/// Lists who did what, the newest first.
#[utoipa::path(get, path = "/v1/audit", tag = "system", params(PageQuery), responses((status = 200, body = List<Audit>)))]
pub(crate) async fn audit(
    State(admin): State<Arc<Admin>>,
    Asked(query): Asked<PageQuery>,
) -> Answer<List<Audit>> {
    let entries = admin.store.audit(page(query)?).await?;
    Ok(Json(piece(query, entries)))
}

static DOCUMENT: LazyLock<utoipa::openapi::OpenApi> = LazyLock::new(crate::admin::openapi);

/// The OpenAPI document of this API.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "system", responses((status = 200, body = Object)))]
pub(crate) async fn document() -> Json<&'static utoipa::openapi::OpenApi> {
    Json(&DOCUMENT)
}

/// Whether the process answers.
#[utoipa::path(get, path = "/healthz", tag = "system", responses((status = 200, content_type = "text/plain", body = String)))]
pub(crate) async fn alive() -> &'static str {
    "ok\n"
}

/// Whether requests are routed: they are as soon as anything answers, because the routes come first.
#[utoipa::path(get, path = "/readyz", tag = "system", responses((status = 200, content_type = "text/plain", body = String), (status = 503, content_type = "text/plain", body = String)))]
pub(crate) async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    match admin.store.apps().await {
        Ok(_) => "ok\n".into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "store unavailable\n").into_response(),
    }
}

/// As OpenMetrics text.
#[utoipa::path(get, path = "/metrics", tag = "system", responses((status = 200, content_type = "application/openmetrics-text", body = String)))]
pub(crate) async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    // A store that does not answer hides no other figure.
    let instances = admin.engine.instances().await.unwrap_or_default();
    let serving = instances.into_iter().filter(|instance| instance.phase == InstancePhase::Running);
    let present = Present {
        generation: admin.routing.generation(),
        routes: admin.routing.table().iter().map(|routes| routes.paths().len()).sum(),
        cache: admin.routing.cache_use(),
        targets: serving
            .map(|instance| TargetHealth {
                app: instance.app.to_string(),
                environment: instance.environment.to_string(),
                deployment: instance.deployment.to_string(),
                instance: instance.id.to_string(),
                is_healthy: instance.healthy,
            })
            .collect(),
        certificates: certificates::list(&admin)
            .into_iter()
            .map(|certificate| Expiry {
                names: certificate.names.join(","),
                at: certificate.not_after.as_duration().as_secs_f64(),
            })
            .collect(),
    };
    let text = admin.telemetry.render_with(&admin.stats, &present);
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
        .into_response()
}
