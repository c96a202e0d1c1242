//! The admin API before there is anything that it could speak for: while the runtime is chosen and a restart is gone
//! through. Requests are served by then, from what the store says.

use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use super::auth;
use super::problem::Refusal;

/// Tells everybody the same, whatever is asked for; so it asks for no token.
pub(super) fn router() -> Router {
    Router::new()
        .fallback(told)
        .layer(axum::middleware::from_fn(auth::guard_open))
        .layer(axum::middleware::map_response(auth::protect))
}

async fn told(uri: Uri) -> Response {
    match uri.path() {
        "/healthz" => "ok\n".into_response(),
        "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response(),
        _ => Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "starting",
            "lockgate has just been started and takes no calls yet; what was live is served",
        )
        .remedy("ask again in a few seconds; where that lasts, see whether the Docker engine answers")
        .into_response(),
    }
}
