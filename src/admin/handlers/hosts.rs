//! The host names of an app, one at a time: the rest of the app stays as it is.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::apps::refuse_of_config;
use super::{Answer, paged};
use crate::admin::Admin;
use crate::admin::call::{Asked, Call, In};
use crate::admin::problem::Refusal;
use crate::api::{HostInput, List, PageQuery, Problem, RenameHost};
use crate::deploy::HostChange;
use crate::ids::AppName;
use crate::store::HostRow;

/// Lists an app's own host names; those that are generated are among the routes.
#[utoipa::path(get, path = "/v1/apps/{app}/hosts", tag = "hosts", params(("app" = String, Path), PageQuery), responses((status = 200, body = List<HostRow>), (status = 404, body = Problem)))]
pub(crate) async fn list(
    State(admin): State<Arc<Admin>>,
    In(name): In<AppName>,
    Asked(query): Asked<PageQuery>,
) -> Answer<List<HostRow>> {
    paged(query, hosts_of(&admin, &name).await?).map(Json)
}

/// Adds a host name, or changes whether the prefix of one is stripped.
#[utoipa::path(post, path = "/v1/apps/{app}/hosts", tag = "hosts", params(("app" = String, Path)), request_body = HostInput, responses((status = 200, body = List<HostRow>), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn add(
    State(admin): State<Arc<Admin>>,
    In(name): In<AppName>,
    call: Call<HostInput>,
) -> Answer<List<HostRow>> {
    changed(admin, name, HostChange::Add(row(call.body))).await
}

/// Takes a host name away: who asks for it from now on gets a 404, what is in flight ends as it would have.
#[utoipa::path(delete, path = "/v1/apps/{app}/hosts", tag = "hosts", params(("app" = String, Path), HostInput), responses((status = 200, body = List<HostRow>), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn remove(
    State(admin): State<Arc<Admin>>,
    In(name): In<AppName>,
    Asked(query): Asked<HostInput>,
) -> Answer<List<HostRow>> {
    changed(admin, name, HostChange::Remove(row(query))).await
}

/// Gives a host name's place to another one, at one instant.
#[utoipa::path(post, path = "/v1/apps/{app}/hosts/rename", tag = "hosts", params(("app" = String, Path)), request_body = RenameHost, responses((status = 200, body = List<HostRow>), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn rename(
    State(admin): State<Arc<Admin>>,
    In(name): In<AppName>,
    call: Call<RenameHost>,
) -> Answer<List<HostRow>> {
    let RenameHost { from, to } = call.body;
    changed(admin, name, HostChange::Rename { from: row(from), to: row(to) }).await
}

async fn changed(admin: Arc<Admin>, name: AppName, change: HostChange) -> Answer<List<HostRow>> {
    refuse_of_config(&admin, &name).await?;
    admin.engine.change_hosts(&name, &change).await?;
    // All of them: a change is answered with what it came to.
    Ok(Json(List { items: hosts_of(&admin, &name).await?, next_offset: None }))
}

async fn hosts_of(admin: &Admin, name: &AppName) -> Result<Vec<HostRow>, Refusal> {
    let found = admin.store.app(name).await?.ok_or_else(|| Refusal::not_found("app", name.as_str()))?;
    Ok(found.hosts)
}

fn row(input: HostInput) -> HostRow {
    HostRow { host: input.host, path: input.path, strip: input.strip }
}
