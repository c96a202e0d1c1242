//! Requests that are over at once: each checks all that its answer tells about it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderName, Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use serde::Deserialize;

use super::client::{Body, Client, success};
use super::plan::{Random, Slot};
use super::tally::Fault;

pub(super) const VERSION: &str = "x-version";
/// The id that Lockgate gave it.
pub(super) const DEPLOYMENT: &str = "x-deployment";
pub(super) const INSTANCE: &str = "x-instance";
const DIGEST: &str = "x-digest";
const VERIFY_ID: HeaderName = HeaderName::from_static("x-verify-id");

/// How a body is sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Framing {
    Length,
    Chunked,
    /// In chunks or with a length, in pieces that are spread over this time.
    Spread(Duration),
}

/// What the app tells about a body that it received.
#[derive(Debug, Deserialize)]
struct Echo {
    length: u64,
    digest: String,
}

/// Which submissions the app received, and how often.
#[derive(Debug, Deserialize)]
pub(super) struct Record {
    /// Whether those that other instances received are in it.
    #[serde(default)]
    pub(super) shared: bool,
    pub(super) ids: BTreeMap<String, u64>,
}

/// The app's page, which tells its version where it is the sample app's.
pub(super) async fn get(client: &Client, slot: &Slot) -> Result<(), Fault> {
    let answer = client.send(slot, request(Method::GET, "/"), Duration::ZERO).await?;
    success(&answer.response)?;
    let version =
        header(&answer.response, VERSION).filter(|_| answer.response.headers().contains_key(INSTANCE));
    let content = client.read(answer).await?;
    match version {
        Some(version) if content.text.trim_end() != version => {
            Err(Fault::Truncated(format!("the body is {:?}, the version {version}", content.text)))
        }
        Some(_) | None => Ok(()),
    }
}

pub(super) async fn head(client: &Client, slot: &Slot) -> Result<(), Fault> {
    let answer = client.send(slot, request(Method::HEAD, "/"), Duration::ZERO).await?;
    success(&answer.response)?;
    match client.read(answer).await?.length {
        0 => Ok(()),
        length => Err(Fault::Failed(format!("the answer to a HEAD request has {length} bytes of body"))),
    }
}

/// A submission, which must arrive whole, and once.
pub(super) async fn post(client: &Client, slot: &Slot, run: &str, framing: Framing) -> Result<(), Fault> {
    let (size, extra) = match framing {
        Framing::Length | Framing::Chunked => (slot.size, Duration::ZERO),
        // At least a few bytes for each piece.
        Framing::Spread(time) => (slot.size.max(1024), time),
    };
    let body = Random(slot.number).bytes(size);
    let digest = blake3::hash(&body).to_hex().to_string();
    let mut request = request(Method::POST, "/submit");
    if let Ok(id) = submission_id(run, slot.number).parse() {
        request.headers_mut().insert(VERIFY_ID, id);
    }
    if matches!(framing, Framing::Spread(_)) && slot.number.is_multiple_of(2) {
        request.headers_mut().insert(http::header::CONTENT_LENGTH, size.into());
    }
    *request.body_mut() = framed(body, framing);
    client.tally().submitting(slot.number);
    let answer = client.send(slot, request, extra).await?;
    success(&answer.response)?;
    client.tally().submitted(slot.number);
    let content = client.read(answer).await?;
    let echo: Echo = json(&content.text)?;
    same((echo.length, &echo.digest), (u64::from(size), &digest), "the app received")
}

/// Content of a known length and digest, of which `time` says over how long the app spreads it.
pub(super) async fn download(
    client: &Client,
    slot: &Slot,
    length: u64,
    chunked: bool,
    time: Duration,
) -> Result<(), Fault> {
    let path = format!("/bytes?n={length}&chunked={}&ms={}", u8::from(chunked), time.as_millis());
    let answer = client.send(slot, request(Method::GET, &path), Duration::ZERO).await?;
    success(&answer.response)?;
    let digest = header(&answer.response, DIGEST);
    let content = client.read(answer).await?;
    let digest = digest.as_ref().unwrap_or(&content.digest);
    same((content.length, &content.digest), (length, digest), "the client received")
}

/// What the app has recorded of the run.
pub(super) async fn record(client: &Client, slot: &Slot, run: &str) -> Result<Record, Fault> {
    let path = format!("/record?run={}", submission_id(run, None));
    let mut answer = client.send(slot, request(Method::GET, &path), Duration::ZERO).await?;
    success(&answer.response)?;
    let mut content = Vec::new();
    while let Some(data) = client.frame(answer.response.body_mut()).await? {
        content.extend_from_slice(&data);
    }
    json(&String::from_utf8_lossy(&content))
}

/// The name of a submission, or without a number what all of the run's begin with.
pub(super) fn submission_id(run: &str, number: impl Into<Option<u64>>) -> String {
    number.into().map_or_else(|| format!("{run}-"), |number| format!("{run}-{number}"))
}

/// A request without a body; its host is set when it is sent.
pub(super) fn request(method: Method, path: &str) -> Request<Body> {
    let mut request = Request::new(Empty::new().boxed_unsync());
    *request.method_mut() = method;
    if let Ok(uri) = path.parse() {
        *request.uri_mut() = uri;
    }
    request
}

pub(super) fn header<B>(response: &Response<B>, name: &str) -> Option<String> {
    Some(response.headers().get(name)?.to_str().ok()?.to_owned())
}

fn framed(body: Vec<u8>, framing: Framing) -> Body {
    const PIECES: u32 = 16;
    let body = Bytes::from(body);
    let pause = match framing {
        Framing::Length => return Full::new(body).boxed_unsync(),
        Framing::Chunked => Duration::ZERO,
        Framing::Spread(time) => time / PIECES,
    };
    let size = body.len().div_ceil(PIECES as usize).max(1);
    let pieces = stream::unfold((body, false), move |(mut rest, begun)| async move {
        if rest.is_empty() {
            return None;
        }
        if begun && !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let piece = rest.split_to(size.min(rest.len()));
        Some((Ok::<_, Infallible>(Frame::data(piece)), (rest, true)))
    });
    StreamBody::new(pieces).boxed_unsync()
}

fn json<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Fault> {
    serde_json::from_str(text).map_err(|error| Fault::Failed(format!("not the sample app's answer: {error}")))
}

fn same(is: (u64, &str), should: (u64, &str), who: &str) -> Result<(), Fault> {
    if is == should {
        return Ok(());
    }
    let what = if is.0 == should.0 {
        "of the right length but of other content".to_owned()
    } else {
        format!("of {}", should.0)
    };
    Err(Fault::Truncated(format!("{who} {} bytes {what}", is.0)))
}
