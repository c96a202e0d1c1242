//! `Idempotency-Key`: the same call twice is carried out once, and another one under the same key is refused.
//!
//! Of every mutation, because the layer is around all of them. What a call makes may have the key itself, written in one
//! transaction with it (an operation, an app, a token): a repeat is then answered by how that is now, and a crash at any
//! instant makes no second one. Of the others the answer is kept once they are carried out. After a crash between the two a
//! repeat is carried out again, which comes to the same or is refused. What was refused changed nothing: its key is free.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::OwnedMutexGuard;
use tracing::warn;

use super::Admin;
use super::problem::Refusal;
use crate::error::chain;
use crate::store::{IdempotencyKey, KeptAnswer, StoreError};

/// As it is written in the OpenAPI document.
pub(super) const KEY: &str = "Idempotency-Key";
const KEY_LENGTH_MAX: usize = 128;
/// Beside an answer that was kept: the call was not carried out again.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

type Lock = tokio::sync::Mutex<()>;

/// Calls that are being carried out, by their keys.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<String, Turn>>);

#[derive(Debug)]
struct Turn {
    fingerprint: String,
    lock: Weak<Lock>,
}

/// Around every mutation that was let in; its body is there.
pub(super) async fn once(
    State((admin, turns)): State<(Arc<Admin>, Arc<Turns>)>,
    request: Request,
    next: Next,
) -> Response {
    let key = match given(request.headers()) {
        Ok(Some(key)) if !request.method().is_safe() => key,
        Err(refusal) if !request.method().is_safe() => return refusal.into_response(),
        _ => return next.run(request).await,
    };
    answered(&admin, &turns, &key, request, next).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answered(
    admin: &Admin,
    turns: &Turns,
    key: &str,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let (mut parts, body) = request.into_parts();
    // Its size has a limit: the guard has read it.
    let body = to_bytes(body, usize::MAX)
        .await
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, "body_unreadable", chain(&error)))?;
    let key = IdempotencyKey { key: key.to_owned(), fingerprint: fingerprint(&parts, &body) };
    let _until_it_is_answered = turns.take(&key).await?;
    if let Some(kept) = admin.store.kept_answer(&key).await? {
        return repeated(kept);
    }
    parts.extensions.insert(key.clone());
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    keep(admin, &key, response).await
}

/// Of method, path with query, and body; an empty body is `{}`.
fn fingerprint(parts: &request::Parts, body: &[u8]) -> String {
    let body = if body.is_empty() { b"{}" } else { body };
    let line = format!("{} {}", parts.method, parts.uri);
    let mut hasher = blake3::Hasher::new();
    hasher.update(line.as_bytes()).update(b"\0").update(body);
    hasher.finalize().to_hex().to_string()
}

fn given(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get(KEY) else { return Ok(None) };
    let key = value.to_str().unwrap_or_default();
    let is_sane =
        (1..=KEY_LENGTH_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_sane {
        let title = format!("{KEY} is not 1 to {KEY_LENGTH_MAX} visible ASCII characters");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "idempotency_key_invalid", title));
    }
    Ok(Some(key.to_owned()))
}

fn repeated(kept: KeptAnswer) -> Result<Response, Refusal> {
    let unreadable = |detail: String| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail);
    let mut response = Response::new(Body::from(kept.body));
    *response.status_mut() =
        StatusCode::from_u16(kept.status).map_err(|error| unreadable(error.to_string()))?;
    if let Some(kind) = kept.content_type {
        let kind = HeaderValue::try_from(kind).map_err(|error| unreadable(error.to_string()))?;
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    Ok(response)
}

/// Writes the answer down before it goes out.
async fn keep(admin: &Admin, key: &IdempotencyKey, response: Response) -> Result<Response, Refusal> {
    // 424: it was carried out, and what was waited for did not come.
    if !response.status().is_success() && response.status() != StatusCode::FAILED_DEPENDENCY {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX)
        .await
        .map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", chain(&error)))?;
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let answer = KeptAnswer {
        status: parts.status.as_u16(),
        content_type: kind.map(str::to_owned),
        body: body.to_vec(),
    };
    if let Err(error) = admin.store.keep_answer(key, &answer).await {
        warn!(error = chain(&error), key = key.key, "answer not kept: a repeat would be carried out again");
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

impl Turns {
    /// Waits for an equal call that is being carried out.
    ///
    /// # Errors
    /// If another call under the same key is.
    async fn take(&self, key: &IdempotencyKey) -> Result<OwnedMutexGuard<()>, StoreError> {
        Ok(self.lock_of(key)?.lock_owned().await)
    }

    fn lock_of(&self, key: &IdempotencyKey) -> Result<Arc<Lock>, StoreError> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.lock.strong_count() > 0);
        let lock = Arc::new(Lock::default());
        let begun = Turn { fingerprint: key.fingerprint.clone(), lock: Arc::downgrade(&lock) };
        match turns.entry(key.key.clone()) {
            Entry::Vacant(vacant) => {
                vacant.insert(begun);
                Ok(lock)
            }
            Entry::Occupied(taken) if taken.get().fingerprint != key.fingerprint => {
                Err(StoreError::KeyReused { key: key.key.clone() })
            }
            Entry::Occupied(mut taken) => match taken.get().lock.upgrade() {
                Some(lock) => Ok(lock),
                // It ended since they were looked through.
                None => {
                    taken.insert(begun);
                    Ok(lock)
                }
            },
        }
    }
}
