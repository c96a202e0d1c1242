//! The listeners of the admin API: so many connections, and none that may take as long as it likes to ask.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, Response};
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, error};

use super::{Front, Peer};
use crate::error::chain;

/// Of each listener; further ones wait in its backlog.
const CONNECTIONS_MAX: usize = 128;
/// From a connection's start, or the end of its last answer, to the end of the next request's head.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Of a request: its path goes into the audit trail.
const HEAD_BYTES_MAX: usize = 32 * 1024;

/// Answers until `stop`, and lets the answers that are under way end.
pub(super) async fn serve<L: Listener>(
    mut listener: L,
    front: Front,
    peer_of: fn(&L::Io, &L::Addr) -> Peer,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let accepting = async {
        // The semaphore is never closed.
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            // It retries by itself what a listener can get over.
            let (io, address) = listener.accept().await;
            let peer = peer_of(&io, &address);
            let driven = drive(io, peer, front.clone(), stop.clone());
            connections.spawn(async move {
                driven.await;
                drop(place);
            });
            while let Some(ended) = connections.try_join_next() {
                tell(ended);
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = stop.cancelled() => {}
    }
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        tell(ended);
    }
}

async fn drive<S>(io: S, peer: Peer, front: Front, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer.clone()));
        answer(front.clone(), request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_header_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(error = chain(&error), %peer, "an admin connection broke");
    }
}

async fn answer(front: Front, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    front.router().oneshot(request.map(Body::new)).await
}

fn tell(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        error!(error = chain(&error), "an admin connection's task broke");
    }
}
