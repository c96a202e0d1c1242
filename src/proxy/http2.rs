//! One HTTP/2 connection of a client: its streams, each of which stands for a client of its own, and its end.
//!
//! # Invariants
//! 1. A stream is listed, counted, timed, cut and logged like an HTTP/1.1 client; what it shares with the connection is the
//!    peer, the place among its address's connections, and the route that was used last.
//! 2. Nothing of a response is given to the connection beyond what its client has opened a window for.
//! 3. The connection is told to end (GOAWAY) when the data plane drains, when it has been without streams for too long, and
//!    when its client resets or floods; never because a route changed.

mod flood;
pub(crate) mod head;
mod io;
mod stream;

use std::cell::Cell;
use std::future::Future as _;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::ext::Protocol;
use h2::server::{Builder, SendResponse};
use http::Request;
use tokio::task::JoinSet;
use tokio::time::Sleep;

use crate::upstream::{Abort, Phase, Source, StreamBody, Tick};

use super::client::Client;
use super::worker;
use flood::Allowance;
use io::ConnectionIo;

/// What tells the beginning of an HTTP/2 connection from a request of HTTP/1.1.
pub(crate) const PREFACE_BEGIN: &[u8] = b"PRI * HTTP/2";

/// What a client may send on one stream before the upstream took it, and on all of them.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 8 * STREAM_WINDOW;

/// Bytes of one response that wait in the connection for the socket.
const SEND_BUFFER: usize = 64 * 1024;

/// A list of header fields that is larger is answered by h2, and one that is much larger ends the connection.
const HEADER_LIST: u32 = 64 * 1024;

/// Streams that h2 itself reset for errors of the client, before it ends the connection.
const ERRORS_MAX: usize = 500;

/// How long a connection without streams may take for its last bytes.
const LINGER: Duration = Duration::from_secs(5);

/// What a connection's streams tell it.
struct Shared {
    client: Rc<Client>,
    allowance: Rc<Allowance>,
    /// Streams that the client reset before their response began: since when, since then, and ever.
    resets_since: Cell<Tick>,
    resets: Cell<u32>,
    resets_ever: Cell<u32>,
}

/// The connection.
struct Connection {
    shared: Rc<Shared>,
    h2: h2::server::Connection<ConnectionIo, Bytes>,
    streams: JoinSet<()>,
    /// It was told to end.
    is_closing: bool,
    is_calmed: bool,
    /// From the moment on that it was told to end and has no streams.
    linger: Option<Pin<Box<Sleep>>>,
}

/// Serves the connection of `client`, of which `read` has been read, until either side ends it.
pub(crate) async fn serve(client: &Rc<Client>, read: Bytes) {
    let activity = &client.activity;
    if activity.phase() == Phase::Idle {
        activity.enter(Phase::Head);
    }
    client.worker.cells().http2_connections.add(1);
    let shared = Rc::new(Shared {
        client: Rc::clone(client),
        allowance: Rc::new(Allowance::new(Rc::clone(&client.worker.now))),
        resets_since: Cell::new(client.worker.now.get()),
        resets: Cell::new(0),
        resets_ever: Cell::new(0),
    });
    let io = ConnectionIo::new(Rc::clone(client), read, Rc::clone(&shared.allowance));
    let mut shaking = Box::pin(settings(client).handshake(io));
    let shaken = std::future::poll_fn(|cx| {
        activity.keep_waker(cx.waker());
        match activity.abort() {
            Some(_) => Poll::Ready(None),
            None => shaking.as_mut().poll(cx).map(Result::ok),
        }
    });
    let Some(h2) = shaken.await else { return };
    drop(shaking);
    activity.enter(Phase::Idle);
    let mut connection =
        Connection { shared, h2, streams: JoinSet::new(), is_closing: false, is_calmed: false, linger: None };
    std::future::poll_fn(|cx| connection.poll(cx)).await;
    // Whoever is left sees its client gone.
    connection.streams.shutdown().await;
}

fn settings(client: &Client) -> Builder {
    let limits = &client.worker.settings.limits;
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.http2_streams)
        .max_header_list_size(HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_connect_protocol()
        .max_local_error_reset_streams(Some(ERRORS_MAX));
    builder
}

impl Connection {
    /// Ready when it is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let client = Rc::clone(&self.shared.client);
        client.activity.keep_waker(cx.waker());
        loop {
            self.reap(cx);
            match client.activity.abort() {
                None => {}
                Some(Abort::Idle) => self.go_away(),
                Some(_) => return Poll::Ready(()),
            }
            if client.worker.is_draining() {
                self.go_away();
            }
            if self.shared.is_abused() && !std::mem::replace(&mut self.is_calmed, true) {
                client.worker.cells().http2_connections_calmed.add(1);
                tracing::debug!(client = %client.peer.address, "connection ended: its client resets or floods");
                self.h2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                self.is_closing = true;
            }
            match self.h2.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.begin(request, respond),
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, client = %client.peer.address, "connection ended");
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending if self.shared.is_abused() && !self.is_calmed => {}
                Poll::Pending => break,
            }
        }
        self.enter_phase();
        if !self.is_closing || !self.streams.is_empty() {
            self.linger = None;
            return Poll::Pending;
        }
        self.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER))).as_mut().poll(cx)
    }

    /// Forgets the streams that are over.
    fn reap(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(ended)) = self.streams.poll_join_next(cx) {
            worker::report(ended);
        }
    }

    /// Idle is a connection without streams, whatever else its client sends.
    fn enter_phase(&self) {
        let activity = &self.shared.client.activity;
        let phase = if self.streams.is_empty() { Phase::Idle } else { Phase::Multiplexed };
        if activity.phase() != phase {
            activity.enter(phase);
        }
    }

    /// No more streams than those that the client has begun by now, or begins before it learns of it.
    fn go_away(&mut self) {
        if !std::mem::replace(&mut self.is_closing, true) {
            self.h2.graceful_shutdown();
        }
    }

    fn begin(&mut self, request: Request<h2::RecvStream>, respond: SendResponse<Bytes>) {
        let client = Rc::new(Client::of_stream(&self.shared.client));
        let length = request.headers().get(http::header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        // What follows an extended CONNECT is no body.
        let is_connect = request.extensions().get::<Protocol>().is_some();
        let (head, stream) = request.into_parts();
        let (body, tunnel) = match is_connect {
            true => (Source::Empty, Some(stream)),
            false => (Source::Http2(StreamBody::new(stream, length)), None),
        };
        let mut request = Request::from_parts(head, body);
        head::tell_empty(&mut request);
        // Boxed because the task's cell is moved several times, with all that is in it.
        let serving = Box::pin(stream::serve(client, Rc::clone(&self.shared), request, tunnel, respond));
        self.streams.spawn_local(serving);
    }
}

impl Shared {
    /// The client reset a stream before its response began.
    fn was_reset(&self) {
        let (now, limits) = (self.client.worker.now.get(), &self.client.worker.settings.limits);
        if now - self.resets_since.get() >= limits.ticks(Duration::from_secs(60)) {
            self.resets_since.set(now);
            self.resets.set(0);
        }
        self.resets.set(self.resets.get() + 1);
        self.resets_ever.set(self.resets_ever.get() + 1);
        if self.is_abused() {
            self.client.activity.wake();
        }
    }

    fn is_abused(&self) -> bool {
        let limits = &self.client.worker.settings.limits;
        self.resets.get() >= limits.http2_resets_per_minute
            || self.resets_ever.get() >= limits.http2_resets
            || self.allowance.is_spent()
    }
}
