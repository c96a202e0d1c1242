//! What the sample app answers, path by path.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, TRAILER};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde::Serialize;

use super::content::{self, Body, Broken, Received, whole};
use super::{App, Health, websocket};

const VERSION: HeaderName = HeaderName::from_static("x-version");
const DEPLOYMENT: HeaderName = HeaderName::from_static("x-deployment");
const INSTANCE: HeaderName = HeaderName::from_static("x-instance");
const GENERATION: HeaderName = HeaderName::from_static("x-generation");
const DIGEST: HeaderName = HeaderName::from_static("x-digest");
/// Names one submission, for [`super::record`].
const VERIFY_ID: HeaderName = HeaderName::from_static("x-verify-id");
/// What the proxy may tell an app about the route table that its request came by.
const LOCKGATE_GENERATION: HeaderName = HeaderName::from_static("lockgate-generation");

/// The most that `/bytes` makes.
const MAX_BYTES: u64 = 1 << 26;

/// A request that ends its connection instead of being answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    #[error("the client's body ended early")]
    Body(#[source] Broken),
    #[error("dropped, as the path asks")]
    Dropped,
}

/// What `/echo` and `/submit` tell about a request.
#[derive(Debug, Serialize)]
struct Echo {
    method: String,
    path: String,
    headers: BTreeMap<String, Vec<String>>,
    length: u64,
    /// blake3, in hexadecimal digits.
    digest: String,
}

/// Answers one request.
pub(super) async fn answer(
    app: Arc<App>,
    socket: Arc<OwnedFd>,
    request: Request<Received>,
) -> Result<Response<Body>, Unanswered> {
    let generation = request.headers().get(LOCKGATE_GENERATION).cloned();
    let mut response = by_path(&app, &socket, request).await?;
    let headers = response.headers_mut();
    if let Ok(version) = HeaderValue::from_str(&app.options.version) {
        headers.insert(VERSION, version);
    }
    let deployment = app.options.deployment.as_deref().and_then(|id| HeaderValue::from_str(id).ok());
    if let Some(deployment) = deployment {
        headers.insert(DEPLOYMENT, deployment);
    }
    if let Ok(instance) = HeaderValue::from_str(&app.instance) {
        headers.insert(INSTANCE, instance);
    }
    if let Some(generation) = generation {
        headers.insert(GENERATION, generation);
    }
    Ok(response)
}

async fn by_path(
    app: &Arc<App>,
    socket: &OwnedFd,
    request: Request<Received>,
) -> Result<Response<Body>, Unanswered> {
    let path = request.uri().path().to_owned();
    let query = Query(request.uri().query().unwrap_or_default().to_owned());
    match path.as_str() {
        "/" => Ok(root(app)),
        "/echo" => Ok(json(&echo(request).await?)),
        "/submit" => submit(app, socket, request).await,
        "/record" => Ok(record(app, query.text("run"))),
        "/slow" => {
            app.clock.sleep(query.millis("ms")).await;
            Ok(text(StatusCode::OK, &format!("{}\n", app.options.version)))
        }
        "/bytes" => Ok(bytes(app, &query)),
        "/sse" => Ok(events(app, &query)),
        "/ws" => Ok(websocket::upgrade(app, request)),
        "/trailers" => {
            let mut response = Response::new(content::with_trailer(&app.options.version));
            response.headers_mut().insert(TRAILER, HeaderValue::from_static("x-digest"));
            Ok(response)
        }
        "/early" => Ok(text(StatusCode::OK, "answered before the body was read\n")),
        "/drop" => Err(reset(socket)),
        "/health" => Ok(health(app)),
        _ => Ok(status(&path)),
    }
}

fn root(app: &App) -> Response<Body> {
    let asked = app.asked.fetch_add(1, Ordering::Relaxed) + 1;
    if app.options.fail_every.is_some_and(|every| asked.is_multiple_of(every)) {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "it was told to fail\n");
    }
    text(StatusCode::OK, &format!("{}\n", app.options.version))
}

/// The request as it arrived, its body read whole.
async fn echo(request: Request<Received>) -> Result<Echo, Unanswered> {
    let (head, mut body) = request.into_parts();
    let mut hasher = blake3::Hasher::new();
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame.map_err(Unanswered::Body)?.data_ref() {
            hasher.update(data);
        }
    }
    let mut headers = BTreeMap::<String, Vec<String>>::new();
    for (name, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        headers.entry(name.as_str().to_owned()).or_default().push(value);
    }
    Ok(Echo {
        method: head.method.to_string(),
        path: head.uri.to_string(),
        headers,
        length: hasher.count(),
        digest: hasher.finalize().to_hex().to_string(),
    })
}

/// Records the submission as soon as its head is here: a copy that is cut in its body was sent all the same.
async fn submit(
    app: &App,
    socket: &OwnedFd,
    request: Request<Received>,
) -> Result<Response<Body>, Unanswered> {
    if request.method() != Method::POST {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "submissions are POST requests\n"));
    }
    let id = request.headers().get(VERIFY_ID).and_then(|id| id.to_str().ok());
    let Some(id) = id.filter(|id| !id.is_empty() && id.len() <= 128) else {
        return Ok(text(StatusCode::BAD_REQUEST, "a submission needs an X-Verify-Id of 1 to 128 bytes\n"));
    };
    if let Err(error) = app.record.add(id) {
        return Ok(text(StatusCode::INTERNAL_SERVER_ERROR, &format!("cannot record: {error}\n")));
    }
    let count = app.submissions.fetch_add(1, Ordering::Relaxed) + 1;
    if app.options.drop_submissions.is_some_and(|every| count.is_multiple_of(every)) {
        return Err(reset(socket));
    }
    Ok(json(&echo(request).await?))
}

fn record(app: &App, run: &str) -> Response<Body> {
    match app.record.report(&app.instance, run) {
        Ok(report) => json(&report),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("cannot read the record: {error}\n")),
    }
}

/// `n` bytes with their digest, in chunks if asked or with a content length, spread over `ms`.
fn bytes(app: &App, query: &Query) -> Response<Body> {
    let length = query.number("n").min(MAX_BYTES);
    let body = content::bytes(Arc::clone(&app.clock), length, query.millis("ms"));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if let Ok(digest) = HeaderValue::from_str(&content::digest(length)) {
        headers.insert(DIGEST, digest);
    }
    if query.number("chunked") == 0 {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}

fn events(app: &App, query: &Query) -> Response<Body> {
    let version = app.options.version.clone();
    let body = content::events(Arc::clone(&app.clock), version, query.number("n"), query.millis("ms"));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Has the connection's close become a reset, and ends it.
fn reset(socket: &OwnedFd) -> Unanswered {
    if let Err(error) = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "cannot set linger; the connection is closed, not reset");
    }
    Unanswered::Dropped
}

fn health(app: &App) -> Response<Body> {
    let age = app.clock.now().saturating_duration_since(app.started);
    let early = app.options.health_after_ms.is_some_and(|ms| age < Duration::from_millis(ms));
    let late = app.options.health_fail_after_ms.is_some_and(|ms| age >= Duration::from_millis(ms));
    let ok = match app.options.health {
        Health::Ok => true,
        Health::Never => false,
        Health::Random => uuid::Uuid::now_v7().as_u128() & 1 == 0,
    };
    if ok && !early && !late {
        text(StatusCode::OK, "ok\n")
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, "not healthy\n")
    }
}

/// `/status/NNN` answers with that status; every other path is not found.
fn status(path: &str) -> Response<Body> {
    let asked = path.strip_prefix("/status/").and_then(|code| code.parse::<StatusCode>().ok());
    match asked {
        None => text(StatusCode::NOT_FOUND, "no such path in the sample app\n"),
        Some(code) if code.is_informational() => text(StatusCode::BAD_REQUEST, "not a final status\n"),
        Some(code) if code == StatusCode::NO_CONTENT || code == StatusCode::NOT_MODIFIED => {
            let mut response = Response::new(whole(""));
            *response.status_mut() = code;
            response
        }
        Some(code) => text(code, &format!("{}\n", code.as_str())),
    }
}

/// An answer in plain text.
pub(super) fn text(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(whole(text.to_owned()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

fn json(value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(content) => {
            let mut response = Response::new(whole(Bytes::from(content)));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("cannot write JSON: {error}\n")),
    }
}

/// The query of a request; what is missing or not a number counts as zero.
struct Query(String);

impl Query {
    fn text(&self, name: &str) -> &str {
        let pairs = self.0.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next().unwrap_or_default()
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or(0)
    }

    fn millis(&self, name: &str) -> Duration {
        Duration::from_millis(self.number(name))
    }
}
