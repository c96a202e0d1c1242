//! What one worker has open to the targets, and how a request goes there: pools of HTTP/1.1 connections ([`http1`]), and
//! for those that speak HTTP/2 connections with many streams ([`http2`]).
//!
//! # Invariants
//! 1. An HTTP/1.1 connection serves one request at a time, and goes back to its pool only when nothing is in doubt: the
//!    response ended by its framing, the request was sent whole, no byte is left over, neither side asked to
//!    close, no error, no upgrade ([`Connection::release`]). Everything else is closed.
//! 2. A request is sent again only if the first target cannot have acted on it: none of it was written, or it
//!    was idempotent, without a body, and on a kept connection that closed before it answered. Over HTTP/2 the target may
//!    also say that it did not begin with it.
//! 3. A connection that began with a PROXY header serves the request that it was opened for and no other
//!    ([`send_for`]): what is told of one client is never told of another.
//! 4. Every open connection holds a guard of its target's `connections` gate.
//!
//! # No task for a connection
//! An HTTP/1.1 connection is driven by the task of the client that it serves, inside the futures and bodies here, and by
//! nobody while it is idle; a closed one is noticed before it is used. A task of its own would add two wake-ups
//! and two queues to every request; without one, dropping the response is aborting the request, and a cut is a
//! flag for the one task that there is ([`activity`]).

pub(crate) mod activity;
mod added;
pub(crate) mod balance;
pub(crate) mod body;
pub(crate) mod http1;
pub(crate) mod http2;
mod socket;
pub(crate) mod target;

use std::rc::Rc;
use std::time::Duration;

use http::{Method, Request, Response};

use crate::telemetry::ConnectCells;

pub(crate) use activity::{Abort, Activity, OwnLimits, Phase, Read, Tick, TickLimits};
pub(crate) use added::{Added, Lines};
pub(crate) use body::{BodyFault, RequestBody, Source, StreamBody};
pub(crate) use http1::Connection;
pub(crate) use http2::{Duplex, Stream};
pub(crate) use target::{LocalBackend, LocalTarget, RequestGuard, Upstreams};

/// How long connecting may take, and how long a connection is kept without use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectLimits {
    pub(crate) connect: Duration,
    pub(crate) keep_idle: Tick,
    /// After so long without a byte an HTTP/2 connection that has streams is pinged.
    pub(crate) ping: Duration,
    pub(crate) ticks_per_second: Tick,
}

/// Why a target did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    #[error("connecting took too long")]
    ConnectTimeout,
    /// It is who it has to be, or it is not spoken to.
    #[error("the TLS handshake failed")]
    Tls(#[source] std::io::Error),
    #[error("its connections are closed: it is about to stop")]
    Retired,
    #[error("the connection ended before the response")]
    Closed(#[source] WireError),
    #[error("the response is malformed")]
    Malformed(#[source] WireError),
    #[error("it takes no upgraded connections")]
    NoUpgrades,
    #[error("it does not speak HTTP/2")]
    NotHttp2,
    #[error("the request's body failed")]
    Body(#[source] BodyFault),
}

/// What was wrong with what came, or with the connection that it should come over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    #[error("the connection was closed")]
    Ended,
    #[error("its head cannot be read")]
    Head(#[from] httparse::Error),
    #[error("its head is too large")]
    TooLarge,
    #[error("{0} cannot be understood")]
    Form(&'static str),
    #[error(transparent)]
    Http2(#[from] h2::Error),
    #[error("there were too many interim responses or empty lines")]
    Interim,
}

/// A response head, and what its body comes over.
pub(crate) struct Answer {
    pub(crate) response: Response<ResponseBody>,
    /// How often the request was lost on a kept connection before, and sent again.
    pub(crate) resent: u32,
}

/// Where the body of a response comes from.
pub(crate) enum ResponseBody {
    Http1(Box<Connection>),
    Http2(Box<Stream>),
}

impl Answer {
    /// How long connecting took, if it was done for this request.
    pub(crate) fn connected_in(&self) -> Option<Duration> {
        match self.response.body() {
            ResponseBody::Http1(connection) => connection.connected_in(),
            ResponseBody::Http2(stream) => stream.connected_in(),
        }
    }
}

/// Sends the request to `target`, with what is `added`, and waits for the head of the response. Dropping it aborts the request.
///
/// # Errors
/// Why there is no response. What was sent on a kept connection and may be sent again, has been; a request of which
/// nothing was written is left in `request`.
pub(crate) async fn send(
    target: &Rc<LocalTarget>,
    request: &mut Option<Request<RequestBody>>,
    added: &mut Added,
    cells: &ConnectCells,
) -> Result<Answer, UpstreamError> {
    if target.target.protocol.is_http2() {
        if let Some(request) = request {
            added.settle(request.headers_mut());
        }
        // Boxed because it is large, and others do not need the room.
        return Box::pin(http2::send(target, request, cells)).await;
    }
    let mut resent = 0;
    loop {
        let mut connection = match target.idle_connection() {
            Some(connection) => {
                cells.reused.add(1);
                connection
            }
            // Boxed because it is rare, and large.
            None => Box::pin(Connection::open(target, cells, None)).await?,
        };
        let may_repeat = connection.is_reused() && request.as_ref().is_some_and(may_repeat);
        let error = match connection.exchange(request, added, may_repeat).await {
            Ok(response) => {
                let response = response.map(|()| ResponseBody::Http1(connection));
                return Ok(Answer { response, resent });
            }
            Err(error) => error,
        };
        if request.is_none() || !connection.is_reused() {
            return Err(error);
        }
        cells.stale.add(1);
        resent += 1;
        drop(connection);
        target.forget_idle();
    }
}

/// As [`send`], on a connection of its own that begins with `header` and is closed after the response: the header says for
/// whom all of it is.
///
/// # Errors
/// As there.
pub(crate) async fn send_for(
    header: &[u8],
    target: &Rc<LocalTarget>,
    request: &mut Option<Request<RequestBody>>,
    added: &Added,
    cells: &ConnectCells,
) -> Result<Answer, UpstreamError> {
    let mut connection = Connection::open(target, cells, Some(header)).await?;
    connection.never_keep();
    let response = connection.exchange(request, added, false).await?;
    let response = response.map(|()| ResponseBody::Http1(connection));
    Ok(Answer { response, resent: 0 })
}

/// Whether sending it twice does what sending it once does.
fn may_repeat(request: &Request<RequestBody>) -> bool {
    let is_harmless = is_idempotent(request.method()) && matches!(request.body(), RequestBody::Empty);
    (is_harmless || crate::fault::sabotaged("retry_post"))
        && !request.headers().contains_key(http::header::UPGRADE)
}

/// RFC 9110 section 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
}
