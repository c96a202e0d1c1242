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
use tokio::time::Sleep;

use crate::upstream::{Abort, Phase, Source, StreamBody};

use super::client::Client;
use super::resets::Resets;
use super::streams::Streams;
use flood::Allowance;
use io::ConnectionIo;

/// What tells the beginning of an HTTP/2 connection from a request of HTTP/1.1.
pub(crate) const PREFACE_BEGIN: &[u8] = b"PRI * HTTP/2";

/// What a client may send on one stream before the upstream took it, and on all of them.
pub(crate) const STREAM_WINDOW: u32 = 128 * 1024;
pub(crate) const CONNECTION_WINDOW: u32 = 8 * STREAM_WINDOW;

/// Bytes of one response that wait in the connection for the socket.
const SEND_BUFFER: usize = 64 * 1024;

/// A list of header fields that is larger is answered by h2, and one that is much larger ends the connection.
pub(crate) const HEADER_LIST: u32 = 64 * 1024;

/// Streams that h2 itself reset for errors of the client, before it ends the connection.
const ERRORS_MAX: usize = 500;

/// How long a connection without streams may take for its last bytes.
const LINGER: Duration = Duration::from_secs(5);

/// What a connection's streams tell it.
struct Shared {
    client: Rc<Client>,
    allowance: Rc<Allowance>,
    resets: Resets,
}

/// The connection.
struct Connection {
    shared: Rc<Shared>,
    h2: h2::server::Connection<ConnectionIo, Bytes>,
    streams: Streams,
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
        resets: Resets::new(&client.worker),
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
    let mut connection = Connection {
        shared,
        h2,
        streams: Streams::default(),
        is_closing: false,
        is_calmed: false,
        linger: None,
    };
    std::future::poll_fn(|cx| connection.poll(cx)).await;
    connection.streams.end().await;
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
            self.streams.reap(cx);
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
        self.streams.enter_phase(&client.activity);
        if !self.is_closing || !self.streams.is_empty() {
            self.linger = None;
            return Poll::Pending;
        }
        self.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER))).as_mut().poll(cx)
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
        self.streams.begin(stream::serve(client, Rc::clone(&self.shared), request, tunnel, respond));
    }
}

impl Shared {
    /// The client reset a stream before its response began.
    fn was_reset(&self) {
        self.resets.add();
        if self.is_abused() {
            self.client.activity.wake();
        }
    }

    fn is_abused(&self) -> bool {
        self.resets.are_too_many() || self.allowance.is_spent()
    }
}
