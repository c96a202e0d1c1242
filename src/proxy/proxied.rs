//! Client connections that come through a proxy that says whose they are: it begins each with a PROXY header. All else is
//! closed, so that nobody can say of himself who he is.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::error::chain;
use crate::proxy_header::{self, BYTES_MAX, Ends, Extent, HeaderError};
use crate::telemetry::ProxyHeaderCells;

use super::server;
use super::worker::{Accepted, Counted, Worker};

/// Why a connection is closed before it is served.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the peer is none of those who may say whose connection it is")]
    Untrusted,
    #[error("the PROXY header is refused")]
    Header(#[source] HeaderError),
    #[error("the PROXY header did not come in time")]
    Late,
    #[error("the connection ended before its PROXY header")]
    Closed(#[source] io::Error),
}

/// Serves a connection that has to come from one of the networks in `from`, and to begin with a PROXY header.
pub(crate) async fn serve(worker: Rc<Worker>, mut accepted: Accepted, counted: Counted) {
    let from = worker.settings.headers_from(accepted.scheme).unwrap_or_default();
    // Boxed because it is over soon.
    match Box::pin(read(&mut accepted, from, worker.settings.limits.proxy_header)).await {
        Ok(ends) => {
            worker.cells().proxy_headers.ok.add(1);
            accepted.ends = ends.map(Rc::new);
            if let Some(admitted) = worker.admit(accepted, counted) {
                server::serve(worker, admitted).await;
            }
        }
        Err(refusal) => {
            count(&worker.cells().proxy_headers, &refusal);
            tracing::debug!(peer = %accepted.peer, error = chain(&refusal), "connection closed");
        }
    }
}

/// Whose connection it is, if it is not the peer's own.
async fn read(accepted: &mut Accepted, from: &[IpNet], within: Duration) -> Result<Option<Ends>, Refusal> {
    let peer = accepted.peer.ip().to_canonical();
    if !from.iter().any(|network| network.contains(&peer)) {
        return Err(Refusal::Untrusted);
    }
    tokio::time::timeout(within, header(&mut accepted.stream)).await.unwrap_or(Err(Refusal::Late))
}

/// Reads the header and not a byte more: what has come is looked at, and taken as far as it belongs to it.
async fn header(stream: &mut TcpStream) -> Result<Option<Ends>, Refusal> {
    let mut header = vec![0; BYTES_MAX];
    let mut taken = 0;
    loop {
        let seen = stream.peek(&mut header[taken..]).await.map_err(Refusal::Closed)?;
        if seen == 0 {
            return Err(Refusal::Closed(io::ErrorKind::UnexpectedEof.into()));
        }
        let extent = proxy_header::extent(&header[..taken + seen]).map_err(Refusal::Header)?;
        let until = match extent {
            Extent::Whole(length) => length,
            Extent::Partial => taken + seen,
        };
        stream.read_exact(&mut header[taken..until]).await.map_err(Refusal::Closed)?;
        taken = until;
        if extent != Extent::Partial {
            return proxy_header::parse(&header[..taken]).map_err(Refusal::Header);
        }
    }
}

fn count(cells: &ProxyHeaderCells, refusal: &Refusal) {
    let count = match refusal {
        Refusal::Untrusted => &cells.untrusted,
        Refusal::Header(HeaderError::Missing) => &cells.missing,
        Refusal::Header(HeaderError::TooLong | HeaderError::Malformed(_)) => &cells.malformed,
        Refusal::Late => &cells.timed_out,
        Refusal::Closed(_) => &cells.closed,
    };
    count.add(1);
}
