//! A mutation as it comes in: its body, and the client's own name for it.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use tracing::error;

use super::Admin;
use super::auth::Actor;
use super::problem::Refusal;
use crate::deploy::Caller;
use crate::error::chain;
use crate::store::IdempotencyKey;

/// A JSON body with who sent it; the guard has read it. An empty body is `{}`.
#[derive(Debug)]
pub(crate) struct Call<T> {
    pub(crate) body: T,
    pub(crate) caller: Caller,
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Call<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let actor = request.extensions().get::<Actor>().map(|actor| actor.name.clone()).unwrap_or_default();
        let idempotency = request.extensions().get::<IdempotencyKey>().cloned();
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            Refusal::new(rejection.status(), "body_unreadable", rejection.body_text())
        })?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        let body = parse(text)?;
        Ok(Self { body, caller: Caller { actor, idempotency } })
    }
}

/// Carries a mutation out to its end, audit entry included, also when its client goes away: what was accepted is run,
/// and what was stored is published.
pub(crate) async fn carry_out(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    admin.mutations.spawn(next.run(request)).await.unwrap_or_else(|error| {
        error!(error = chain(&error), "a handler of the admin API broke");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the call broke; see lockgate's log")
            .into_response()
    })
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, Refusal> {
    let invalid = |title: String| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", title);
    // A list would be taken for an object's values in their order, an empty one for `{}`.
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(invalid("the body is not a JSON object".to_owned()));
    }
    let mut from = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut from).map_err(|error| {
        let path = error.path().to_string();
        let mut refusal = invalid(chain(error.inner()));
        refusal.0.evidence = vec![format!("field: {path}")];
        refusal
    })?;
    from.end().map_err(|error| invalid(chain(&error)))?;
    Ok(value)
}

/// The names in a path. What is not a name is refused as one that nobody has.
#[derive(Debug)]
pub(crate) struct In<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for In<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let found = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        found
            .map(|path| Self(path.0))
            .map_err(|rejection| Refusal::new(StatusCode::NOT_FOUND, "name_invalid", rejection.body_text()))
    }
}

/// The query of a request.
#[derive(Debug)]
pub(crate) struct Asked<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let found = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        found.map(|query| Self(query.0)).map_err(|rejection| {
            Refusal::new(StatusCode::BAD_REQUEST, "query_invalid", rejection.body_text())
        })
    }
}
