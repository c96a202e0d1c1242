//! What one worker has open to the targets: pools of HTTP/1.1 connections, and how a request goes over one.
//!
//! # Invariants
//! 1. A connection serves one request at a time, and goes back to its pool only when nothing is in doubt: the
//!    response ended by its framing, the request was sent whole, no byte is left over, neither side asked to
//!    close, no error, no upgrade ([`connection::Connection::release`]). Everything else is closed.
//! 2. A request is sent again only if the first target cannot have acted on it: none of it was written, or it
//!    was idempotent, without a body, and on a kept connection that closed before it answered.
//! 3. Every open connection holds a guard of its target's `connections` gate.
//!
//! # No task for a connection
//! The connection is driven by the task of the client that it serves, inside the futures and bodies here, and by
//! nobody while it is idle; a closed one is noticed before it is used. A task of its own would add two wake-ups
//! and two queues to every request; without one, dropping the response is aborting the request, and a cut is a
//! flag for the one task that there is ([`activity`]).

pub(crate) mod activity;
pub(crate) mod balance;
pub(crate) mod body;
pub(crate) mod connection;
mod io;
mod relay;
pub(crate) mod target;

use std::rc::Rc;
use std::time::Duration;

use http::{Method, Request, Response};
use hyper::body::Incoming;

use crate::telemetry::ConnectCells;

pub(crate) use activity::{Abort, Activity, Phase, Read, Tick, TickLimits};
pub(crate) use body::{BodyFault, RequestBody, Source, StreamBody};
pub(crate) use connection::{BUFFER, Connection};
pub(crate) use target::{LocalBackend, LocalTarget, RequestGuard, Upstreams};

/// How long connecting may take, and how long a connection is kept without use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectLimits {
    pub(crate) connect: Duration,
    pub(crate) keep_idle: Tick,
    pub(crate) ticks_per_second: Tick,
}

/// Why a target did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    #[error("connecting took too long")]
    ConnectTimeout,
    #[error("its connections are closed: it is about to stop")]
    Retired,
    #[error("the connection ended before the response")]
    Closed(#[source] hyper::Error),
    #[error("the response is malformed")]
    Malformed(#[source] hyper::Error),
}

/// A response head, and the connection that its body comes over.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    pub(crate) connection: Box<Connection>,
    /// How often the request was lost on a kept connection before, and sent again.
    pub(crate) resent: u32,
}

/// Sends the request to `target` and waits for the head of the response. Dropping it aborts the request.
///
/// # Errors
/// Why there is no response. What was sent on a kept connection and may be sent again, has been; a request of which
/// nothing was written is left in `request`.
pub(crate) async fn send(
    target: &Rc<LocalTarget>,
    request: &mut Option<Request<RequestBody>>,
    cells: &ConnectCells,
) -> Result<Answer, UpstreamError> {
    let mut resent = 0;
    loop {
        let mut connection = match target.idle_connection() {
            Some(connection) => {
                cells.reused.add(1);
                connection
            }
            // Boxed because it is rare, and large.
            None => Box::pin(Connection::open(target, cells)).await?,
        };
        let may_repeat = connection.is_reused() && request.as_ref().is_some_and(may_repeat);
        let error = match connection.exchange(request, may_repeat).await {
            Ok(response) => return Ok(Answer { response, connection, resent }),
            Err(error) => error,
        };
        if may_repeat && request.is_none() && matches!(error, UpstreamError::Closed(_)) {
            *request = connection.remembered();
        }
        if request.is_none() || !connection.is_reused() {
            return Err(error);
        }
        cells.stale.add(1);
        resent += 1;
        drop(connection);
        target.forget_idle();
    }
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
