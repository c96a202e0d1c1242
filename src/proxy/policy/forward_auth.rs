//! Asks a service whether a request may go on, by a GET with its head and without its body. What it does not answer in time is
//! a refusal.

use std::rc::Rc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TRAILER, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};

use crate::routing::policy::forward_auth::ForwardAuth;
use crate::upstream::{self, Added, RequestBody, ResponseBody};

use super::super::client::Client;
use super::super::error::ForwardError;
use super::super::error_page::REASON;
use super::super::headers::{KEEP_ALIVE, PROXY_CONNECTION, remove_all};
use super::super::response::remove_listed;
use super::super::validate::is_ours;

const X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// Of an answer that the client gets.
const BODY_MAX: usize = 64 * 1024;

/// What it is asked about.
pub(super) struct Asked<'a> {
    pub(super) head: &'a HeaderMap,
    pub(super) authority: &'a HeaderValue,
    pub(super) target: &'a str,
}

/// Lets the request by with what the app is to be told, or gives the service's answer in the application's place.
///
/// # Errors
/// If there is no answer that says one or the other.
pub(super) async fn ask(
    client: &Rc<Client>,
    auth: &ForwardAuth,
    asked: &Asked<'_>,
    request: &mut Request<RequestBody>,
) -> Result<Option<Response<Bytes>>, ForwardError> {
    let question = question(auth, asked, request.method());
    let answered = tokio::time::timeout(auth.timeout, exchange(client, auth, question)).await;
    let Ok(Some(answer)) = answered else { return Err(ForwardError::AuthUnavailable) };
    // Whatever the client says of itself.
    for name in &auth.headers {
        request.headers_mut().remove(name);
    }
    if answer.status().is_success() {
        for name in &auth.headers {
            for value in answer.headers().get_all(name) {
                request.headers_mut().append(name, value.clone());
            }
        }
        return Ok(None);
    }
    if answer.status().is_redirection() || answer.status().is_client_error() {
        return Ok(Some(answer));
    }
    Err(ForwardError::AuthUnavailable)
}

fn question(auth: &ForwardAuth, asked: &Asked<'_>, method: &Method) -> Request<RequestBody> {
    let mut question = Request::new(RequestBody::Empty);
    *question.uri_mut() = auth.uri.clone();
    let headers = question.headers_mut();
    headers.clone_from(asked.head);
    remove_framing(headers);
    let text = |text: &str| HeaderValue::from_str(text).ok();
    let own = [
        (HOST, text(&auth.address.to_string())),
        (X_FORWARDED_METHOD, text(method.as_str())),
        (X_FORWARDED_URI, text(asked.target)),
        (HeaderName::from_static("x-forwarded-host"), Some(asked.authority.clone())),
    ];
    for (name, value) in own {
        headers.remove(&name);
        headers.extend(value.map(|value| (name, value)));
    }
    question
}

/// The service's answer with its body; `None` if there is none that can be passed on.
async fn exchange(
    client: &Client,
    auth: &ForwardAuth,
    question: Request<RequestBody>,
) -> Option<Response<Bytes>> {
    let worker = &client.worker;
    let backend = worker.upstreams.backend(&auth.backend);
    let cells = &backend.backend.stats.of(worker.number).connects;
    let answer =
        upstream::send(backend.targets.first()?, &mut Some(question), &mut Added::default(), cells).await;
    let refused = |error: &dyn std::error::Error| {
        tracing::debug!(error = %crate::error::chain(error), "no answer of forward_auth");
    };
    let (mut head, body) = answer.inspect_err(|error| refused(error)).ok()?.response.into_parts();
    if matches!(body, ResponseBody::Http1 { .. }) && head.status == StatusCode::SWITCHING_PROTOCOLS {
        return None;
    }
    let body = Limited::new(super::super::body::Body::bare(body), BODY_MAX).collect().await;
    let body = body.inspect_err(|error| refused(&**error)).ok()?.to_bytes();
    remove_listed(&mut head.headers);
    remove_framing(&mut head.headers);
    remove_all(&mut head.headers, is_ours);
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    head.headers.insert(REASON, HeaderValue::from_static("forward_auth"));
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    Some(response)
}

/// What is of one message and one hop alone.
fn remove_framing(headers: &mut HeaderMap) {
    use http::header::{CONNECTION, EXPECT, TE, UPGRADE};
    let names = [&CONNECTION, &CONTENT_LENGTH, &EXPECT, &KEEP_ALIVE, &PROXY_CONNECTION, &TE];
    for name in names.into_iter().chain([&TRAILER, &TRANSFER_ENCODING, &UPGRADE]) {
        headers.remove(name);
    }
}
