//! Operations: waited for, listed, followed, cancelled.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use super::{Answer, page, piece};
use crate::admin::Admin;
use crate::admin::auth::Began;
use crate::admin::call::{Asked, In};
use crate::admin::problem::Refusal;
use crate::api::{List, Operation, OperationsQuery, PageQuery, Problem};
use crate::deploy::{Progress, Submitted};
use crate::ids::OperationId;
use crate::store::{self, Event, Of, OperationState};

/// Events that are read at once.
const EVENTS_AT_ONCE: u32 = 100;
/// Between two looks for new ones.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// When a mutation answers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    No,
    /// After the cutover has held.
    Cutover,
    /// After the drain.
    End,
}

/// Answers a mutation as soon as it has come as far as the caller waits for. Never 2xx for one that did not hold.
pub(super) async fn answer_when(
    admin: &Admin,
    mut submitted: Submitted,
    wait: Wait,
) -> Result<Response, Refusal> {
    let id = submitted.operation;
    let progress = match wait {
        Wait::No => Progress::Running,
        Wait::Cutover => submitted.reached(Progress::CutOver).await,
        Wait::End => submitted.reached(Progress::Ended).await,
    };
    let operation = view(admin, id, submitted.repeated).await?;
    if progress == Progress::Ended && !operation.state.is_end() {
        let title = format!("operation {id} has ended, and the store could not write down how");
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "outcome_unknown", title)
            .remedy("see that the disk of data_dir has room, then look at the operation again"));
    }
    let mut response = match wait {
        Wait::No => (StatusCode::ACCEPTED, Json(operation)).into_response(),
        Wait::Cutover | Wait::End if operation.state.is_end() && !operation.state.is_success() => {
            failed(admin, &operation).await.into_response()
        }
        Wait::Cutover | Wait::End => Json(operation).into_response(),
    };
    response.extensions_mut().insert(Began(id));
    Ok(response)
}

/// Lists operations, the newest first.
#[utoipa::path(get, path = "/v1/operations", tag = "operations", params(OperationsQuery), responses((status = 200, body = List<Operation>)))]
pub(crate) async fn list(
    State(admin): State<Arc<Admin>>,
    Asked(query): Asked<OperationsQuery>,
) -> Answer<List<Operation>> {
    let OperationsQuery { limit, offset, app, environment } = query;
    let asked = PageQuery { limit, offset };
    let found = admin.store.operations(&Of { app, environment }, page(asked)?).await?;
    let items = found.into_iter().map(|operation| Operation::of(operation, Vec::new(), false)).collect();
    Ok(Json(piece(asked, items)))
}

/// Shows an operation with its steps and its receipt.
#[utoipa::path(get, path = "/v1/operations/{operation}", tag = "operations", params(("operation" = String, Path)), responses((status = 200, body = Operation), (status = 404, body = Problem)))]
pub(crate) async fn show(State(admin): State<Arc<Admin>>, In(id): In<OperationId>) -> Answer<Operation> {
    view(&admin, id, false).await.map(Json)
}

/// Cancels an operation. Success without effect once it has ended or its cutover is done.
#[utoipa::path(post, path = "/v1/operations/{operation}/cancel", tag = "operations", params(("operation" = String, Path)), responses((status = 200, body = Operation), (status = 404, body = Problem)))]
pub(crate) async fn cancel(State(admin): State<Arc<Admin>>, In(id): In<OperationId>) -> Answer<Operation> {
    cancelled(&admin, id).await
}

/// Has a cutover that goes in steps take the last one now: all visitors get the new version.
#[utoipa::path(post, path = "/v1/operations/{operation}/finish", tag = "operations", params(("operation" = String, Path)), responses((status = 200, body = Operation), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn finish(State(admin): State<Arc<Admin>>, In(id): In<OperationId>) -> Answer<Operation> {
    admin.engine.finish(id).await?;
    view(&admin, id, false).await.map(Json)
}

/// Follows an operation as server-sent events; `Last-Event-ID` goes on where it was left.
#[utoipa::path(get, path = "/v1/operations/{operation}/events", tag = "operations", params(("operation" = String, Path)), responses((status = 200, content_type = "text/event-stream", body = String), (status = 404, body = Problem)))]
pub(crate) async fn events(
    State(admin): State<Arc<Admin>>,
    In(id): In<OperationId>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    followed(admin, id, &headers).await
}

pub(super) async fn cancelled(admin: &Admin, id: OperationId) -> Answer<Operation> {
    admin.engine.cancel(id).await?;
    view(admin, id, false).await.map(Json)
}

pub(super) async fn followed(
    admin: Arc<Admin>,
    id: OperationId,
    headers: &HeaderMap,
) -> Result<Response, Refusal> {
    find(&admin, id).await?;
    let last =
        headers.get("last-event-id").and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    let follow = Follow { admin, id, after: last.unwrap_or(0), read: Vec::new().into_iter(), is_over: false };
    let events = stream::unfold(follow, |mut follow| async move {
        let event = follow.next().await?;
        let shown = axum::response::sse::Event::default()
            .id(event.id.to_string())
            .event(word(&event))
            .data(serde_json::json!(event).to_string());
        Some((Ok::<_, Infallible>(shown), follow))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

/// A reader of an operation's events.
struct Follow {
    admin: Arc<Admin>,
    id: OperationId,
    after: i64,
    read: std::vec::IntoIter<Event>,
    is_over: bool,
}

impl Follow {
    /// The next event; `None` when the operation has ended and all were read, or the store is away.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.read.next() {
                self.after = event.id;
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            // Asked before the events are read: what is written before the end is read after it.
            let operation = self.admin.store.operation(&self.id).await.ok()??;
            let events = self.admin.store.events(Some(&self.id), self.after, EVENTS_AT_ONCE).await.ok()?;
            self.is_over = operation.state.is_end() && events.len() < EVENTS_AT_ONCE as usize;
            if events.is_empty() && !self.is_over {
                self.admin.clock.sleep(LOOK_EVERY).await;
            }
            self.read = events.into_iter();
        }
    }
}

fn word(event: &Event) -> String {
    serde_json::to_value(event.kind)
        .ok()
        .and_then(|kind| kind.as_str().map(str::to_owned))
        .unwrap_or_default()
}

async fn find(admin: &Admin, id: OperationId) -> Result<store::Operation, Refusal> {
    let found = admin.store.operation(&id).await?;
    found.ok_or_else(|| Refusal::not_found("operation", &id.to_string()))
}

async fn view(admin: &Admin, id: OperationId, repeated: bool) -> Result<Operation, Refusal> {
    let found = find(admin, id).await?;
    let steps = admin.store.steps(&id).await?;
    Ok(Operation::of(found, steps, repeated))
}

/// The problem of an operation that was waited for and did not succeed: cause, evidence, what still serves.
async fn failed(admin: &Admin, operation: &Operation) -> Refusal {
    let failure =
        operation.failure.clone().unwrap_or_else(|| store::Failure::new("cancelled", "it was cancelled"));
    let status = match operation.state {
        OperationState::Cancelled | OperationState::Superseded => StatusCode::CONFLICT,
        _ => StatusCode::FAILED_DEPENDENCY,
    };
    let title = match operation.state {
        OperationState::RolledBack => format!("the new version did not hold: {}", failure.cause),
        _ => failure.cause.clone(),
    };
    let mut refusal = Refusal::new(status, &failure.code, title);
    refusal.0.evidence = failure.evidence;
    refusal.0.remedy = failure.remedy;
    refusal.0.operation = Some(operation.id);
    let live = admin.store.environment(&operation.app, &operation.environment).await.ok().flatten();
    refusal.0.serving = Some(match live.and_then(|environment| environment.live) {
        Some(live) => format!("{live} goes on serving"),
        None => "nothing is live yet".to_owned(),
    });
    refusal
}
