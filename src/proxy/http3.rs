//! HTTP/3, which is experimental: one QUIC connection of a client, its streams, each of which stands for a client of its own,
//! and its end (RFC 9114).
//!
//! # Invariants
//! 1. A stream is listed, counted, timed, cut and logged as one of HTTP/2 is; what it shares with its connection is the same.
//! 2. A stream ends in order only if its response did; whatever else becomes of it, its client sees a reset.
//! 3. The connection is told to end (GOAWAY) when the data plane drains and when it has been without streams for too long; it is
//!    closed once its client has all that there is.

mod body;
mod duplex;
mod endpoint;
mod fields;
mod frames;
mod head;
mod quic;
mod session;
mod stream;

use std::future::Future as _;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h3::error::Code;
use h3::server::RequestResolver;
use http::{HeaderMap, HeaderValue, Version, header};
use tokio::time::Sleep;

use crate::upstream::Abort;

use super::client::Client;
use super::http2::HEADER_LIST;
use super::resets::Resets;
use super::settings::{AltSvc, TlsSettings};
use super::streams::Streams;
pub use endpoint::SetupError;
pub(crate) use endpoint::{Listener, Setup, accept_all};
use quic::{Accepted, Quic, number};

/// How long, at most, requests are waited for that were on their way when their client was told to send no more.
const LATE: Duration = Duration::from_secs(1);

/// What a connection's streams tell it.
struct Shared {
    client: Rc<Client>,
    resets: Resets,
}

/// The connection.
struct Connection {
    shared: Rc<Shared>,
    quic: quinn::Connection,
    h3: h3::server::Connection<Quic, Bytes>,
    accepted: Rc<Accepted>,
    streams: Streams,
    stage: Stage,
    /// The first that was not accepted.
    next: Option<u64>,
}

/// How far its end has come (RFC 9114 section 5.2).
enum Stage {
    Open,
    /// Its client was told to send no more requests; those that were on their way are served until then.
    Told(Pin<Box<Sleep>>),
    /// And which was the last that is served.
    Ending,
}

/// Serves the connection of `client` until either side ends it.
async fn serve(client: &Rc<Client>, connection: quinn::Connection) {
    let accepted = Rc::<Accepted>::default();
    let quic = Quic::new(connection.clone(), Rc::clone(client), Rc::clone(&accepted));
    let mut builder = h3::server::builder();
    builder.max_field_section_size(u64::from(HEADER_LIST)).enable_extended_connect(true).send_grease(false);
    let activity = &client.activity;
    let mut building = Box::pin(builder.build(quic));
    let built = std::future::poll_fn(|cx| {
        activity.keep_waker(cx.waker());
        match activity.abort() {
            Some(_) => Poll::Ready(None),
            None => building.as_mut().poll(cx).map(Result::ok),
        }
    });
    let Some(h3) = built.await else { return };
    drop(building);
    let shared = Rc::new(Shared { client: Rc::clone(client), resets: Resets::new(&client.worker) });
    let streams = Streams::default();
    let quic = connection;
    let mut connection = Connection { shared, quic, h3, accepted, streams, stage: Stage::Open, next: None };
    std::future::poll_fn(|cx| connection.poll(cx)).await;
    connection.streams.end().await;
}

/// Tells a client that came by TLS where there is HTTP/3, or that there is none any more (RFC 7838 section 3, RFC 9114
/// section 3.1.1). Not in place of what an application says.
pub(crate) fn advertise(client: &Client, version: Version, headers: &mut HeaderMap) {
    if version < Version::HTTP_3
        && client.tls.is_some()
        && let Some(alternatives) =
            client.worker.alternatives.iter().find(|(port, _)| client.peer.came_to(*port))
    {
        headers.entry(header::ALT_SVC).or_insert_with(|| alternatives.1.clone());
    }
}

/// What is told to who comes to each of these addresses.
pub(crate) fn alternatives(tls: Option<&TlsSettings>, at: &[SocketAddr]) -> Vec<(u16, HeaderValue)> {
    let Some(AltSvc { port, max_age }) = tls.and_then(|tls| tls.alt_svc) else { return Vec::new() };
    let told = |own: u16| {
        let (port, seconds) = (port.unwrap_or(own), max_age.as_secs());
        let told = match seconds {
            0 => Ok(HeaderValue::from_static("clear")),
            _ => HeaderValue::try_from(format!("h3=\":{port}\"; ma={seconds}")),
        };
        Some((own, told.ok()?))
    };
    at.iter().map(SocketAddr::port).filter_map(told).collect()
}

impl Connection {
    /// Ready when it is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let client = Rc::clone(&self.shared.client);
        client.activity.keep_waker(cx.waker());
        loop {
            self.streams.reap(cx);
            match client.activity.abort() {
                None => {}
                Some(Abort::Idle) => self.go_away(cx),
                Some(_) => return Poll::Ready(()),
            }
            if client.worker.is_draining() {
                self.go_away(cx);
            }
            if self.shared.resets.are_too_many() {
                client.worker.cells().http2_connections_calmed.add(1);
                tracing::debug!(client = %client.peer.address, "connection ended: its client resets");
                self.quic.close(number(Code::H3_EXCESSIVE_LOAD), b"");
                return Poll::Ready(());
            }
            let accepted = pin!(self.h3.accept()).poll(cx);
            match accepted {
                Poll::Ready(Ok(Some(resolver))) => self.begin(resolver),
                // Its client says that there is nothing more to come.
                Poll::Ready(Ok(None)) if self.streams.is_empty() => return Poll::Ready(()),
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, client = %client.peer.address, "connection ended");
                    return Poll::Ready(());
                }
                Poll::Ready(Ok(None)) | Poll::Pending => break,
            }
        }
        self.streams.enter_phase(&client.activity);
        self.poll_stage(cx);
        match self.stage {
            Stage::Ending if self.streams.is_empty() => Poll::Ready(()),
            Stage::Open | Stage::Told(_) | Stage::Ending => Poll::Pending,
        }
    }

    /// No more streams than those that the client has begun by now, or begins before it learns of it.
    fn go_away(&mut self, cx: &mut Context<'_>) {
        if !matches!(self.stage, Stage::Open) {
            return;
        }
        let Some(next) = self.next else {
            // h3 can name none that is still to come before there was one; a request that is on its way may be sent again.
            self.accepted.until.set(Some(0));
            self.tell(0, cx);
            self.stage = Stage::Ending;
            return;
        };
        tracing::trace!(next, "GOAWAY");
        self.tell(usize::MAX, cx);
        let late = (2 * self.quic.rtt()).min(LATE);
        self.stage = Stage::Told(Box::pin(tokio::time::sleep(late)));
    }

    fn poll_stage(&mut self, cx: &mut Context<'_>) {
        if let Stage::Told(late) = &mut self.stage
            && late.as_mut().poll(cx).is_ready()
        {
            // What h3 takes for the last that it serves is in the frame the first that it does not.
            self.accepted.until.set(self.next);
            self.tell(1, cx);
            self.stage = Stage::Ending;
        }
    }

    /// Sends GOAWAY for all but `more` streams after the last.
    fn tell(&mut self, more: usize, cx: &mut Context<'_>) {
        // It fails with the connection, which is seen elsewhere; and waits only for a client that lets nothing be sent.
        let _told_or_gone = pin!(self.h3.shutdown(more)).poll(cx);
    }

    fn begin(&mut self, resolver: RequestResolver<Quic, Bytes>) {
        let Some(flow) = self.accepted.take() else { return };
        // Streams of requests are every fourth (RFC 9000 section 2.1).
        self.next = self.next.max(Some(flow.id + 4));
        self.streams.begin(stream::serve(flow, Rc::clone(&self.shared), resolver));
    }
}

impl Shared {
    /// The client reset a stream before its response began.
    fn was_reset(&self) {
        self.resets.add();
        if self.resets.are_too_many() {
            self.client.activity.wake();
        }
    }
}
