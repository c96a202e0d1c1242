//! The body of a mutation: JSON, of a bounded size, and there in time.

use std::time::Duration;

use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};

use super::problem::Refusal;

const BYTES_MAX: usize = 1024 * 1024;
/// From the request's head to its last byte.
const WITHIN: Duration = Duration::from_secs(10);

/// The request with its whole body at hand.
///
/// A page in a browser can send a form or plain text anywhere without asking first; JSON it cannot. So what is declared
/// as something else is refused even where no body is looked at.
pub(super) async fn read(request: Request) -> Result<Request, Refusal> {
    let (parts, body) = request.into_parts();
    match parts.headers.get(header::CONTENT_TYPE) {
        None if body.is_end_stream() => return Ok(Request::from_parts(parts, body)),
        Some(kind) if is_json(kind) => {}
        _ => {
            return Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "not_json",
                "the body is not application/json",
            ));
        }
    }
    if body.size_hint().lower() > BYTES_MAX as u64 {
        return Err(too_large());
    }
    let read = tokio::time::timeout(WITHIN, to_bytes(body, BYTES_MAX)).await;
    let read = read.map_err(|_elapsed| {
        let title = format!("the body was not there within {} s", WITHIN.as_secs());
        Refusal::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", title)
    })?;
    let bytes = read.map_err(|error| {
        let source = std::error::Error::source(&error);
        if source.is_some_and(|source| source.is::<http_body_util::LengthLimitError>()) {
            return too_large();
        }
        Refusal::new(StatusCode::BAD_REQUEST, "body_unreadable", crate::error::chain(&error))
    })?;
    Ok(Request::from_parts(parts, Body::from(bytes)))
}

fn is_json(kind: &HeaderValue) -> bool {
    let essence = kind.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

fn too_large() -> Refusal {
    let title = format!("the body is larger than {BYTES_MAX} bytes");
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", title)
}
