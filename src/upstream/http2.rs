//! Requests to targets that speak HTTP/2: each worker has few connections to a target, with many streams on each.
//!
//! # Invariants
//! 1. What a stream carries is the answer to its request and to no other: a stream is begun for one request, and its two
//!    directions are held by that request's task alone, from its head to the end of both.
//! 2. A connection in doubt gets no new stream: one that was told to go away, whose ping is not answered, whose streams are
//!    as many as the target takes, or whose target is being replaced. What it has goes on.
//! 3. A request goes out once more only if the target cannot have acted on it: it said so (REFUSED_STREAM, or a GOAWAY that
//!    leaves the stream out), or no byte went out since the request was begun; or the request was idempotent, without a
//!    body, and on a connection that had answered others and was lost.
//! 4. Nothing is read of one side beyond what the other has opened a window for, but for one part of a body; and no stream
//!    waits for the reader of another.
//!
//! The connection has a task of its own, because all its streams share it; a stream is driven by the task of its client, so
//! that dropping it is resetting it.

mod duplex;
mod head;
mod io;
mod link;
mod stream;

use std::rc::Rc;

use h2::Reason;
use h2::client::SendRequest;
use http::header::UPGRADE;
use http::uri::Scheme;
use http::{Request, Response};

use crate::telemetry::ConnectCells;

use super::target::LocalTarget;
use super::{Answer, RequestBody, ResponseBody, UpstreamError, WireError, is_idempotent};

pub(crate) use duplex::Duplex;
pub(crate) use link::{Link, Place, STREAMS_MAX};
pub(crate) use stream::Stream;

use stream::Upload;

/// How often a request goes to the same target once more.
const RESENT_MAX: u32 = 2;

/// How often a request looks for another connection, because the one that it waited for had no room or ended.
const PLACES_MAX: u32 = 16;

/// As `upstream::send`, to a target that speaks HTTP/2.
pub(super) async fn send(
    target: &Rc<LocalTarget>,
    request: &mut Option<Request<RequestBody>>,
    cells: &ConnectCells,
) -> Result<Answer, UpstreamError> {
    let (mut resent, mut places) = (0, 0);
    loop {
        let mut place = target.place()?;
        let Some(sender) = place.sender(cells).await? else {
            places += 1;
            if places == PLACES_MAX {
                return Err(UpstreamError::Connect(std::io::ErrorKind::ConnectionAborted.into()));
            }
            continue;
        };
        let error = match exchange(target, place, sender, request).await {
            Ok(response) => return Ok(Answer { response: response.map(ResponseBody::Http2), resent }),
            Err(error) => error,
        };
        if request.is_none() || resent == RESENT_MAX {
            return Err(error);
        }
        cells.stale.add(1);
        resent += 1;
    }
}

/// Sends the request on a stream of its own and waits for the head of the response. If the request may go out once more,
/// it is back afterwards.
async fn exchange(
    target: &Rc<LocalTarget>,
    place: Place,
    mut sender: SendRequest<bytes::Bytes>,
    request: &mut Option<Request<RequestBody>>,
) -> Result<Response<Box<Stream>>, UpstreamError> {
    let Some(sent) = request.take() else { return Err(UpstreamError::Retired) };
    let link = Rc::clone(place.link());
    let (parts, body) = sent.into_parts();
    let is_upgrade = parts.headers.contains_key(UPGRADE);
    if is_upgrade && !(head::is_websocket(&parts) && sender.is_extended_connect_protocol_enabled()) {
        return Err(UpstreamError::NoUpgrades);
    }
    let written = link.written();
    let is_empty = matches!(body, RequestBody::Empty);
    let scheme = if target.target.tls.is_some() { &Scheme::HTTPS } else { &Scheme::HTTP };
    let head = if is_upgrade { head::connecting(&parts, scheme) } else { head::of(&parts, scheme) };
    let (mut response, upload) = match sender.send_request(head, is_empty && !is_upgrade) {
        Ok(begun) => begun,
        Err(error) => {
            // It was told to go away, or has no more numbers for streams.
            link.retire();
            *request = Some(Request::from_parts(parts, body));
            return Err(UpstreamError::Closed(error.into()));
        }
    };
    drop(sender);
    let mut upload = Upload::new(upload, body);
    let error = match stream::head(&mut response, &mut upload).await {
        Ok(response) => {
            link.has_answered.set(true);
            let response = if is_upgrade { head::switched(response, &parts) } else { response };
            return Ok(Stream::new(response, &parts.method, upload, Rc::clone(target), place));
        }
        Err(error) => error,
    };
    let UpstreamError::Closed(WireError::Http2(lost)) = &error else { return Err(error) };
    if !lost.is_reset() {
        link.retire();
    }
    let is_untouched = is_refused(lost) || lost.is_io() && link.written() == written;
    let may_repeat =
        is_empty && !is_upgrade && is_idempotent(&parts.method) && lost.is_io() && link.has_answered.get();
    if is_untouched || may_repeat {
        *request = upload.into_body().map(|body| Request::from_parts(parts, body));
    }
    Err(error)
}

/// Whether the target said that it did not begin with it (RFC 9113 section 8.7).
fn is_refused(error: &h2::Error) -> bool {
    let is_left_out = error.is_go_away();
    error.is_remote() && (is_left_out || error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM))
}
