//! Apps, their environments, and the synchronous swap.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;

use super::operations::{Wait, answer_when};
use super::{Answer, page, paged, piece};
use crate::admin::Admin;
use crate::admin::call::{Asked, Call, In};
use crate::admin::problem::Refusal;
use crate::api::{
    App, Counts, Environment, List, MaintenanceRequest, Operation, PageQuery, PauseRequest, Problem,
    PromoteRequest, PutApp, RenameRequest, RollbackRequest, ScaleRequest, SwapRequest,
};
use crate::deploy::{Command, Volumes};
use crate::ids::{AppName, EnvironmentName, WorkspaceName};
use crate::settings::AppSettings;
use crate::store::{self, HostRow, Origin};

/// When a cutover answers, and whether it waits in line.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct SwapQuery {
    /// `false`: answer 202 at once, with an operation to be followed.
    wait: Option<bool>,
    /// `wait`: answer after the drain instead of after the cutover.
    #[param(inline)]
    drain: Option<DrainAnswer>,
    /// `false`: as in the body.
    #[serde(default = "yes")]
    queue: bool,
}

/// When a change of the number of instances answers.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ScaleQuery {
    /// `false`: answer 202 at once, with an operation to be followed.
    wait: Option<bool>,
    /// `wait`: answer after the drain of what is let go.
    #[param(inline)]
    drain: Option<DrainAnswer>,
}

/// When a pause answers.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PauseQuery {
    /// `true`: once nothing is in flight, or with 424 once requests have waited as long as they may.
    #[serde(default)]
    wait: bool,
}

/// What of an app is removed.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct RemoveQuery {
    /// `true`: its volumes too, with all that is in them. Otherwise an app of the same name finds them again.
    #[serde(default)]
    volumes: bool,
}

/// A body in which nothing is asked for.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

#[derive(Clone, Copy, Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
enum DrainAnswer {
    Wait,
}

impl SwapQuery {
    fn wait(self) -> Wait {
        ScaleQuery { wait: self.wait, drain: self.drain }.wait()
    }
}

impl ScaleQuery {
    fn wait(self) -> Wait {
        match self {
            Self { wait: Some(false), .. } => Wait::No,
            Self { drain: Some(DrainAnswer::Wait), .. } => Wait::End,
            Self { drain: None, .. } => Wait::Cutover,
        }
    }
}

fn yes() -> bool {
    true
}

/// Lists the apps.
#[utoipa::path(get, path = "/v1/apps", tag = "apps", params(PageQuery), responses((status = 200, body = List<App>)))]
pub(crate) async fn list(
    State(admin): State<Arc<Admin>>,
    Asked(query): Asked<PageQuery>,
) -> Answer<List<App>> {
    let page = page(query)?;
    let mut apps = Vec::new();
    for app in admin.store.apps().await?.into_iter().skip(page.offset as usize).take(page.limit as usize) {
        apps.push(view(&admin, app).await?);
    }
    Ok(Json(piece(query, apps)))
}

/// Shows an app.
#[utoipa::path(get, path = "/v1/apps/{app}", tag = "apps", params(("app" = String, Path)), responses((status = 200, body = App), (status = 404, body = Problem)))]
pub(crate) async fn show(State(admin): State<Arc<Admin>>, In(name): In<AppName>) -> Answer<App> {
    let found = admin.store.app(&name).await?.ok_or_else(|| Refusal::not_found("app", name.as_str()))?;
    Ok(Json(view(&admin, found).await?))
}

/// Creates an app or replaces its settings and host names. What is live stays live.
///
/// With an `Idempotency-Key` a repeated call changes nothing, whatever changed since, and shows the app as it is now.
#[utoipa::path(put, path = "/v1/apps/{app}", tag = "apps", params(("app" = String, Path)), request_body = PutApp, responses((status = 200, body = App), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn put(
    State(admin): State<Arc<Admin>>,
    In(name): In<AppName>,
    call: Call<PutApp>,
) -> Answer<App> {
    let mut settings = call.body.settings;
    settings.env.extend(call.body.env);
    if let Some(known) = admin.store.app(&name).await? {
        keep_passwords(&mut settings, known.settings);
    }
    let hosts = call.body.hosts.into_iter().map(|input| HostRow {
        host: input.host,
        path: input.path,
        strip: input.strip,
    });
    let app = store::App {
        workspace: WorkspaceName::default_workspace(),
        name: name.clone(),
        hosts: hosts.collect(),
        settings,
        origin: Origin::Api,
    };
    refuse_of_config(&admin, &name).await?;
    admin.engine.put_app(&app, call.caller.idempotency.as_ref()).await?;
    show(State(admin), In(name)).await
}

/// Gives an app another name. Its ids stay, its instances go on, and its generated host names change with it; what is in
/// flight is not touched.
#[utoipa::path(post, path = "/v1/apps/{app}/rename", tag = "apps", params(("app" = String, Path)), request_body = RenameRequest, responses((status = 200, body = App), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn rename(
    State(admin): State<Arc<Admin>>,
    In(name): In<AppName>,
    call: Call<RenameRequest>,
) -> Answer<App> {
    let to = call.body.name;
    refuse_of_config(&admin, &name).await.map_err(|refusal| {
        let remedy = format!(
            "take it out of the file and reload, `lockgate app rename {name} {to}`, then put it into the file as {to} and \
             reload; it serves throughout"
        );
        refusal.remedy(remedy)
    })?;
    admin.engine.rename_app(&name, &to).await?;
    show(State(admin), In(to)).await
}

/// Takes an app out of service and removes it: its host names at once, its instances after their drain, its history last.
#[utoipa::path(delete, path = "/v1/apps/{app}", tag = "apps", params(("app" = String, Path), RemoveQuery), responses((status = 202, description = "nothing leads to it any more; it is gone once `GET` answers 404"), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn remove(
    State(admin): State<Arc<Admin>>,
    In(name): In<AppName>,
    Asked(query): Asked<RemoveQuery>,
) -> Result<StatusCode, Refusal> {
    refuse_of_config(&admin, &name).await?;
    let volumes = if query.volumes { Volumes::Remove } else { Volumes::Keep };
    admin.engine.remove_app(&name, volumes).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Whoever sends back what was read leaves the passwords as they are.
fn keep_passwords(settings: &mut AppSettings, known: AppSettings) {
    for (new, old) in settings.policies.iter_mut().zip(&known.policies) {
        for (user, password) in new.secrets_mut().filter(|(_, password)| password.expose().is_empty()) {
            if let Some((_, known)) = old.secrets().find(|(other, _)| *other == user) {
                *password = known.clone();
            }
        }
    }
    if let (Some(new), Some(old)) = (&mut settings.preview_auth, known.preview_auth)
        && new.password.expose().is_empty()
        && new.user == old.user
    {
        new.password = old.password;
    }
}

pub(super) async fn refuse_of_config(admin: &Admin, name: &AppName) -> Result<(), Refusal> {
    let found = admin.store.app(name).await?;
    if found.is_none_or(|found| found.origin != Origin::Config) {
        return Ok(());
    }
    let title = format!("app {name} belongs to the configuration file");
    Err(Refusal::new(StatusCode::CONFLICT, "app_in_config", title)
        .remedy("change it there and reload: `lockgate config reload`"))
}

/// Lists an app's environments.
#[utoipa::path(get, path = "/v1/apps/{app}/environments", tag = "apps", params(("app" = String, Path), PageQuery), responses((status = 200, body = List<Environment>), (status = 404, body = Problem)))]
pub(crate) async fn environments(
    State(admin): State<Arc<Admin>>,
    In(name): In<AppName>,
    Asked(query): Asked<PageQuery>,
) -> Answer<List<Environment>> {
    let found = admin.store.app(&name).await?.ok_or_else(|| Refusal::not_found("app", name.as_str()))?;
    let all = admin.store.environments(&found.name).await?;
    paged(query, all.into_iter().map(Environment::from)).map(Json)
}

/// Takes an environment for previews out of service and removes it: its host names at once, its instances after their
/// drain, its history last.
#[utoipa::path(delete, path = "/v1/apps/{app}/environments/{environment}", tag = "apps", params(("app" = String, Path), ("environment" = String, Path)), responses((status = 202, description = "nothing leads to it any more; it is gone once the list of environments has it no more"), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn remove_environment(
    State(admin): State<Arc<Admin>>,
    In((app, environment)): In<(AppName, EnvironmentName)>,
) -> Result<StatusCode, Refusal> {
    admin.engine.remove_environment(&app, &environment).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Makes a ready deployment live, and answers with the receipt once the cutover is done and has held.
///
/// After the answer every request is served by the new version.
#[utoipa::path(post, path = "/v1/apps/{app}/swap", tag = "apps", params(("app" = String, Path), SwapQuery), request_body = SwapRequest, responses((status = 200, body = Operation), (status = 202, body = Operation, description = "not waited for"), (status = 409, body = Problem), (status = 412, body = Problem), (status = 424, body = Problem)))]
pub(crate) async fn swap(
    State(admin): State<Arc<Admin>>,
    In(app): In<AppName>,
    Asked(query): Asked<SwapQuery>,
    call: Call<SwapRequest>,
) -> Result<Response, Refusal> {
    let queue = call.body.queue && query.queue;
    let request = SwapRequest { app: Some(app), queue, ..call.body };
    let submitted = admin.engine.submit(Command::Swap(request), call.caller).await?;
    answer_when(&admin, submitted, query.wait()).await
}

/// Makes an earlier version live, and answers once the cutover is done and has held. Deploys do not go live until a promote.
#[utoipa::path(post, path = "/v1/apps/{app}/rollback", tag = "apps", params(("app" = String, Path), SwapQuery), request_body = RollbackRequest, responses((status = 200, body = Operation), (status = 202, body = Operation, description = "not waited for"), (status = 400, body = Problem), (status = 409, body = Problem), (status = 412, body = Problem), (status = 424, body = Problem)))]
pub(crate) async fn rollback(
    State(admin): State<Arc<Admin>>,
    In(app): In<AppName>,
    Asked(query): Asked<SwapQuery>,
    call: Call<RollbackRequest>,
) -> Result<Response, Refusal> {
    let queue = call.body.queue && query.queue;
    let request = RollbackRequest { app: Some(app), queue, ..call.body };
    let submitted = admin.engine.submit(Command::Rollback(request), call.caller).await?;
    answer_when(&admin, submitted, query.wait()).await
}

/// Makes a version live, and lets deploys go live again. Of the live one, after a rollback: confirms that it stays.
#[utoipa::path(post, path = "/v1/apps/{app}/promote", tag = "apps", params(("app" = String, Path), SwapQuery), request_body = PromoteRequest, responses((status = 200, body = Operation), (status = 202, body = Operation, description = "not waited for"), (status = 412, body = Problem), (status = 424, body = Problem)))]
pub(crate) async fn promote(
    State(admin): State<Arc<Admin>>,
    In(app): In<AppName>,
    Asked(query): Asked<SwapQuery>,
    call: Call<PromoteRequest>,
) -> Result<Response, Refusal> {
    let queue = call.body.queue && query.queue;
    let request = PromoteRequest { app: Some(app), queue, ..call.body };
    let submitted = admin.engine.submit(Command::Promote(request), call.caller).await?;
    answer_when(&admin, submitted, query.wait()).await
}

/// Gives the live version another number of instances, and answers when the requests go to that many. What is let go
/// drains behind the answer.
#[utoipa::path(post, path = "/v1/apps/{app}/scale", tag = "apps", params(("app" = String, Path), ScaleQuery), request_body = ScaleRequest, responses((status = 200, body = Operation), (status = 404, body = Problem), (status = 422, body = Problem), (status = 424, body = Problem, description = "the further instances did not become ready: as many serve as before")))]
pub(crate) async fn scale(
    State(admin): State<Arc<Admin>>,
    In(app): In<AppName>,
    Asked(query): Asked<ScaleQuery>,
    call: Call<ScaleRequest>,
) -> Result<Response, Refusal> {
    let request = ScaleRequest { app: Some(app), ..call.body };
    let submitted = admin.engine.submit(Command::Scale(request), call.caller).await?;
    answer_when(&admin, submitted, query.wait()).await
}

/// Has new requests to the app's host names wait until `resume`. Past the limit, and past so many, they are refused with 503.
#[utoipa::path(post, path = "/v1/apps/{app}/pause", tag = "apps", params(("app" = String, Path), PauseQuery), request_body = PauseRequest, responses((status = 200, body = App), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem), (status = 424, body = Problem, description = "waited for, and something is in flight still: the app is paused")))]
pub(crate) async fn pause(
    State(admin): State<Arc<Admin>>,
    In(name): In<AppName>,
    Asked(query): Asked<PauseQuery>,
    call: Call<PauseRequest>,
) -> Answer<App> {
    admin.engine.pause(&name, &call.body).await?;
    if query.wait && !admin.engine.quiet(&name).await? {
        let left = admin.engine.in_flight(&name);
        let title = format!(
            "the app is paused; {} requests and {} streams are in flight",
            left.requests, left.streams
        );
        return Err(Refusal::new(StatusCode::FAILED_DEPENDENCY, "still_in_flight", title).remedy(
            "end the pause with `lockgate resume`, or see what does not end with `lockgate status`",
        ));
    }
    show(State(admin), In(name)).await
}

/// Ends a pause: what waits is served. Success without effect where there is none.
#[utoipa::path(post, path = "/v1/apps/{app}/resume", tag = "apps", params(("app" = String, Path)), responses((status = 200, body = App), (status = 404, body = Problem)))]
pub(crate) async fn resume(State(admin): State<Arc<Admin>>, In(name): In<AppName>) -> Answer<App> {
    admin.engine.resume(&name).await?;
    show(State(admin), In(name)).await
}

/// Answers requests to the app's host names with 503 at once, or no longer; its instances go on running.
#[utoipa::path(post, path = "/v1/apps/{app}/maintenance", tag = "apps", params(("app" = String, Path)), request_body = MaintenanceRequest, responses((status = 200, body = App), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn maintenance(
    State(admin): State<Arc<Admin>>,
    In(name): In<AppName>,
    call: Call<MaintenanceRequest>,
) -> Answer<App> {
    admin.engine.maintain(&name, &call.body).await?;
    show(State(admin), In(name)).await
}

/// Answers requests to the app with 503 from now on, and stops its instances after their drain. It refuses deploys until it
/// is enabled.
#[utoipa::path(post, path = "/v1/apps/{app}/disable", tag = "apps", params(("app" = String, Path)), responses((status = 200, body = App), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn disable(State(admin): State<Arc<Admin>>, In(name): In<AppName>) -> Answer<App> {
    admin.engine.disable(&name).await?;
    show(State(admin), In(name)).await
}

/// Starts a disabled app, and answers when it is ready and reached again.
#[utoipa::path(post, path = "/v1/apps/{app}/enable", tag = "apps", params(("app" = String, Path)), responses((status = 200, body = Operation), (status = 404, body = Problem), (status = 424, body = Problem, description = "it did not become ready, and stays disabled")))]
pub(crate) async fn enable(
    State(admin): State<Arc<Admin>>,
    In(name): In<AppName>,
    call: Call<Nothing>,
) -> Result<Response, Refusal> {
    let Call { body: Nothing {}, caller } = call;
    let submitted = admin.engine.submit(Command::Enable(name), caller).await?;
    // Nothing drains: its end follows at once.
    answer_when(&admin, submitted, Wait::End).await
}

async fn view(admin: &Admin, found: store::App) -> Result<App, Refusal> {
    let environments = admin.store.environments(&found.name).await?;
    let access = admin.engine.access(&found.name).await?;
    let in_flight = admin.engine.in_flight(&found.name);
    Ok(App {
        access,
        in_flight: Counts { requests: in_flight.requests, streams: in_flight.streams },
        name: found.name,
        hosts: found.hosts,
        env: found.settings.env.keys().cloned().collect(),
        settings: found.settings,
        origin: found.origin,
        environments: environments.into_iter().map(Environment::from).collect(),
    })
}
