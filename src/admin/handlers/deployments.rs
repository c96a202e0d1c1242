//! Deployments: made, listed, followed.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream::select_all;
use serde::Deserialize;
use utoipa::IntoParams;

use super::operations::{self, Wait, answer_when};
use super::{Answer, page, piece};
use crate::admin::Admin;
use crate::admin::call::{Asked, Call, In};
use crate::admin::problem::Refusal;
use crate::api::{
    DeployRequest, Deployment, ExtendRequest, List, LogBroken, LogLine, Logs, Operation, PageQuery, Problem,
    ScheduleRequest, WakeRequest,
};
use crate::deploy::Command;
use crate::ids::{AppName, DeploymentId};
use crate::store::{self, Of};

/// When a wake answers.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct WaitQuery {
    /// `true`: after the cutover has held; `end`: after the drain; otherwise at once.
    #[serde(default)]
    #[param(inline)]
    wait: WaitFor,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
enum WaitFor {
    #[default]
    False,
    True,
    End,
}

/// When a deploy answers, and whether it waits in line.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeployQuery {
    /// `true`: after the cutover has held; `end`: after the drain; otherwise at once.
    #[serde(default)]
    #[param(inline)]
    wait: WaitFor,
    /// `false`: as in the body.
    #[serde(default = "yes")]
    queue: bool,
}

fn yes() -> bool {
    true
}

impl WaitFor {
    fn when(self) -> Wait {
        match self {
            Self::False => Wait::No,
            Self::True => Wait::Cutover,
            Self::End => Wait::End,
        }
    }
}

/// How many lines of log.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LinesQuery {
    /// Of each instance; 1 to 10000.
    #[serde(default = "default_lines")]
    lines: usize,
    /// Go on with what is written, as server-sent events: `line`, or `broken` if an instance's output cannot be read.
    /// Of the instances that there are now; ends when all have ended.
    #[serde(default)]
    follow: bool,
}

fn default_lines() -> usize {
    100
}

/// Deploys a new version.
#[utoipa::path(post, path = "/v1/apps/{app}/deployments", tag = "deployments", params(("app" = String, Path), DeployQuery), request_body = DeployRequest, responses((status = 200, body = Operation, description = "waited for, and it holds"), (status = 202, body = Operation), (status = 422, body = Problem), (status = 424, body = Problem, description = "waited for, and it failed: what was live is live"), (status = 503, body = Problem)))]
pub(crate) async fn create(
    State(admin): State<Arc<Admin>>,
    In(app): In<AppName>,
    Asked(query): Asked<DeployQuery>,
    call: Call<DeployRequest>,
) -> Result<Response, Refusal> {
    let queue = call.body.queue && query.queue;
    let request = DeployRequest { app: Some(app), queue, ..call.body };
    let submitted = admin.engine.submit(Command::Deploy(request), call.caller).await?;
    answer_when(&admin, submitted, query.wait.when()).await
}

/// Lists an app's deployments, the newest first.
#[utoipa::path(get, path = "/v1/apps/{app}/deployments", tag = "deployments", params(("app" = String, Path), PageQuery), responses((status = 200, body = List<Deployment>)))]
pub(crate) async fn of_app(
    State(admin): State<Arc<Admin>>,
    In(app): In<AppName>,
    Asked(query): Asked<PageQuery>,
) -> Answer<List<Deployment>> {
    if admin.store.app(&app).await?.is_none() {
        return Err(Refusal::not_found("app", app.as_str()));
    }
    listed(&admin, &Of { app: Some(app), environment: None }, query).await
}

/// Lists all deployments, the newest first.
#[utoipa::path(get, path = "/v1/deployments", tag = "deployments", params(PageQuery), responses((status = 200, body = List<Deployment>)))]
pub(crate) async fn list(
    State(admin): State<Arc<Admin>>,
    Asked(query): Asked<PageQuery>,
) -> Answer<List<Deployment>> {
    listed(&admin, &Of::default(), query).await
}

/// Shows a deployment.
#[utoipa::path(get, path = "/v1/deployments/{deployment}", tag = "deployments", params(("deployment" = String, Path)), responses((status = 200, body = Deployment), (status = 404, body = Problem)))]
pub(crate) async fn show(State(admin): State<Arc<Admin>>, In(id): In<DeploymentId>) -> Answer<Deployment> {
    shown(&admin, id).await
}

/// Cancels the operation that makes the deployment. Success without effect once it has ended or is live.
#[utoipa::path(post, path = "/v1/deployments/{deployment}/cancel", tag = "deployments", params(("deployment" = String, Path)), responses((status = 200, body = Operation), (status = 404, body = Problem)))]
pub(crate) async fn cancel(State(admin): State<Arc<Admin>>, In(id): In<DeploymentId>) -> Answer<Operation> {
    let found = find(&admin, id).await?;
    operations::cancelled(&admin, found.operation).await
}

/// Moves the expiry of an ephemeral deployment.
#[utoipa::path(post, path = "/v1/deployments/{deployment}/extend", tag = "deployments", params(("deployment" = String, Path)), request_body = ExtendRequest, responses((status = 200, body = Deployment), (status = 404, body = Problem), (status = 409, body = Problem), (status = 412, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn extend(
    State(admin): State<Arc<Admin>>,
    In(id): In<DeploymentId>,
    call: Call<ExtendRequest>,
) -> Answer<Deployment> {
    admin.engine.extend(id, call.body.ttl).await?;
    shown(&admin, id).await
}

/// Changes the desired state of a deployment at a later time: standby, or archived. The live one is refused.
#[utoipa::path(put, path = "/v1/deployments/{deployment}/schedule", tag = "deployments", params(("deployment" = String, Path)), request_body = ScheduleRequest, responses((status = 200, body = Deployment), (status = 404, body = Problem), (status = 409, body = Problem), (status = 412, body = Problem)))]
pub(crate) async fn schedule(
    State(admin): State<Arc<Admin>>,
    In(id): In<DeploymentId>,
    call: Call<ScheduleRequest>,
) -> Answer<Deployment> {
    admin.engine.schedule(id, &call.body).await?;
    shown(&admin, id).await
}

/// Leaves the desired state of a deployment as it is. Success without effect where nothing is pending.
#[utoipa::path(delete, path = "/v1/deployments/{deployment}/schedule", tag = "deployments", params(("deployment" = String, Path)), responses((status = 200, body = Deployment), (status = 404, body = Problem)))]
pub(crate) async fn clear_schedule(
    State(admin): State<Arc<Admin>>,
    In(id): In<DeploymentId>,
) -> Answer<Deployment> {
    admin.engine.clear_schedule(id).await?;
    shown(&admin, id).await
}

/// Starts a version that is in standby; nothing where it runs. Requests that wait for it are served by it.
#[utoipa::path(post, path = "/v1/deployments/{deployment}/wake", tag = "deployments", params(("deployment" = String, Path), WaitQuery), request_body = WakeRequest, responses((status = 200, body = Operation, description = "waited for, and it serves"), (status = 202, body = Operation), (status = 404, body = Problem), (status = 412, body = Problem), (status = 424, body = Problem, description = "waited for, and it could not be started")))]
pub(crate) async fn wake(
    State(admin): State<Arc<Admin>>,
    In(id): In<DeploymentId>,
    Asked(query): Asked<WaitQuery>,
    call: Call<WakeRequest>,
) -> Result<Response, Refusal> {
    let submitted = admin.engine.submit(Command::Wake(id), call.caller).await?;
    answer_when(&admin, submitted, query.wait.when()).await
}

/// The last lines that its instances wrote.
#[utoipa::path(get, path = "/v1/deployments/{deployment}/logs", tag = "deployments", params(("deployment" = String, Path), LinesQuery), responses((status = 200, content((List<Logs> = "application/json"), (LogLine = "text/event-stream"))), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn logs(
    State(admin): State<Arc<Admin>>,
    In(id): In<DeploymentId>,
    Asked(query): Asked<LinesQuery>,
) -> Result<Response, Refusal> {
    let lines = query.lines.clamp(1, 10_000);
    if !query.follow {
        let items = admin.engine.logs(id, lines).await?;
        return Ok(Json(List { items, next_offset: None }).into_response());
    }
    find(&admin, id).await?;
    let instances = admin.store.instances(Some(&id)).await?;
    let outputs = instances.into_iter().map(|row| {
        let instance = row.id;
        admin.output.follow(instance, lines).map(move |line| {
            let event = match line {
                Ok(line) => Event::default().event("line").json_data(LogLine { instance, line }),
                Err(detail) => Event::default().event("broken").json_data(LogBroken { instance, detail }),
            };
            event.map_err(axum::Error::new)
        })
    });
    Ok(Sse::new(select_all(outputs)).keep_alive(KeepAlive::default()).into_response())
}

/// Follows the operation that makes the deployment, as server-sent events; `Last-Event-ID` goes on where it was left.
#[utoipa::path(get, path = "/v1/deployments/{deployment}/events", tag = "deployments", params(("deployment" = String, Path)), responses((status = 200, content_type = "text/event-stream", body = String), (status = 404, body = Problem)))]
pub(crate) async fn events(
    State(admin): State<Arc<Admin>>,
    In(id): In<DeploymentId>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let found = find(&admin, id).await?;
    operations::followed(admin, found.operation, &headers).await
}

async fn shown(admin: &Admin, id: DeploymentId) -> Answer<Deployment> {
    let found = find(admin, id).await?;
    Ok(Json(view(admin, found, &admin.store.timers().await?).await?))
}

async fn find(admin: &Admin, id: DeploymentId) -> Result<store::Deployment, Refusal> {
    let found = admin.store.deployment(&id).await?;
    found.ok_or_else(|| Refusal::not_found("deployment", &id.to_string()))
}

async fn listed(admin: &Admin, of: &Of, query: PageQuery) -> Answer<List<Deployment>> {
    let timers = admin.store.timers().await?;
    let mut items = Vec::new();
    for found in admin.store.deployments(of, page(query)?).await? {
        items.push(view(admin, found, &timers).await?);
    }
    Ok(Json(piece(query, items)))
}

async fn view(
    admin: &Admin,
    found: store::Deployment,
    timers: &[store::Timer],
) -> Result<Deployment, Refusal> {
    let environment = admin.store.environment(&found.app, &found.environment).await?;
    let url = admin.engine.url(found.id).await?;
    let timer = timers.iter().find(|timer| timer.deployment == found.id);
    Ok(Deployment::of(found, environment.as_ref(), timer, url))
}
