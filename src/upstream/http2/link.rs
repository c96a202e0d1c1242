//! One HTTP/2 connection to a target: the task that drives it, and the places on it.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong};
use tokio::sync::Notify;

use crate::error::chain;
use crate::telemetry::ConnectCells;
use crate::upstream::socket::Socket;
use crate::upstream::target::{ConnectionGuard, LocalTarget};
use crate::upstream::{Tick, UpstreamError};

use super::io::{CountedIo, Traffic};

/// Streams on one connection, if the target does not ask for fewer.
pub(crate) const STREAMS_MAX: usize = 100;

/// What a target may send on one stream before the client took it. The connection has room for as much of each, so that
/// no stream waits for the reader of another.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 100 * STREAM_WINDOW;

/// Bytes of one request that wait in the connection for the socket.
const SEND_BUFFER: usize = 64 * 1024;

/// A list of header fields that is larger is malformed.
const HEADER_LIST: u32 = 64 * 1024;

/// How long the last bytes of a connection may take.
const CLOSE: Duration = Duration::from_secs(1);

/// Servers of gRPC end a connection that pings more often than that while they have nothing to say; two times are
/// forgiven.
const PING_RARELY: Duration = Duration::from_secs(305);
const PINGS_FORGIVEN: u32 = 2;

/// A ping's answer as it is on the wire.
const PONG_BYTES: u64 = 17;

/// A connection.
pub(crate) struct Link {
    state: RefCell<State>,
    /// Places that are taken, by those included that wait until it is open.
    taken: Cell<usize>,
    /// It gets no more streams, and ends with those that it has.
    is_closing: Cell<bool>,
    /// It was asked whether it is still there, and has not answered.
    is_in_doubt: Cell<bool>,
    /// Something was answered on it.
    pub(super) has_answered: Cell<bool>,
    connected_in: Cell<Option<Duration>>,
    /// How many streams the one before it took.
    expected: usize,
    now: Rc<Cell<Tick>>,
    idle_since: Cell<Tick>,
    traffic: Rc<Traffic>,
    /// It is open, has ended, or has room.
    changed: Notify,
    /// Its driver is to look whether it is over.
    nudged: Notify,
}

enum State {
    Opening,
    Open(SendRequest<Bytes>),
    /// Why it never opened, unless it did.
    Ended(Option<Failure>),
}

/// Why a connection did not open. Many may have waited for it.
#[derive(Clone, Debug)]
enum Failure {
    Connect(std::io::ErrorKind),
    Timeout,
    Tls(std::io::ErrorKind, Rc<str>),
    NotHttp2,
}

/// A place on a connection, for one stream.
pub(crate) struct Place {
    link: Rc<Link>,
    /// How long connecting took, for whom it was done.
    pub(super) connected_in: Option<Duration>,
}

/// When a connection is asked whether it is still there.
struct Watch {
    every: Duration,
    pings: Option<PingPong>,
    /// Bytes that had been read at the last look, and of those the answers to pings.
    read: u64,
    /// Pings in a row that nothing but their answers followed, and when the last was sent.
    in_a_row: u32,
    last: Option<Instant>,
}

impl Link {
    /// Begins to connect to `target`.
    ///
    /// # Errors
    /// If the target is about to stop.
    pub(crate) fn begin(target: &Rc<LocalTarget>) -> Result<Rc<Self>, UpstreamError> {
        let counted = target.count_connection()?;
        let now = target.now();
        let link = Rc::new(Self {
            state: RefCell::new(State::Opening),
            taken: Cell::new(0),
            is_closing: Cell::new(false),
            is_in_doubt: Cell::new(false),
            has_answered: Cell::new(false),
            connected_in: Cell::new(None),
            expected: target.expected_streams(),
            idle_since: Cell::new(now.get()),
            now,
            traffic: Rc::default(),
            changed: Notify::new(),
            nudged: Notify::new(),
        });
        target.drive(run(Rc::clone(&link), Rc::clone(target), counted));
        Ok(link)
    }

    /// A place for one more stream, if it may have one.
    pub(crate) fn place(self: &Rc<Self>) -> Option<Place> {
        if self.is_closing.get() || self.is_in_doubt.get() || self.taken.get() >= self.room() {
            return None;
        }
        self.taken.set(self.taken.get() + 1);
        Some(Place { link: Rc::clone(self), connected_in: None })
    }

    fn room(&self) -> usize {
        match &*self.state.borrow() {
            State::Opening => self.expected,
            State::Open(sender) => sender.current_max_send_streams().min(STREAMS_MAX),
            State::Ended(_) => 0,
        }
    }

    /// It gets no more streams, and is closed when those that it has are over.
    pub(crate) fn retire(&self) {
        self.is_closing.set(true);
        if self.taken.get() == 0 {
            self.nudged.notify_one();
        }
    }

    /// Closes it if it had no stream for `keep` ticks.
    pub(crate) fn retire_if_idle(&self, keep: Tick) {
        if self.taken.get() == 0 && self.now.get() - self.idle_since.get() >= keep {
            self.retire();
        }
    }

    /// Bytes that the socket took.
    pub(super) fn written(&self) -> u64 {
        self.traffic.written.get()
    }

    fn enter(&self, state: State) {
        // What is dropped may come back here.
        let before = self.state.replace(state);
        drop(before);
        self.changed.notify_waiters();
    }

    fn is_over(&self) -> bool {
        self.is_closing.get() && self.taken.get() == 0
    }
}

impl Place {
    pub(super) fn link(&self) -> &Rc<Link> {
        &self.link
    }

    /// Waits until the connection is open; `None` if there turned out to be no room for this one.
    pub(super) async fn sender(
        &mut self,
        cells: &ConnectCells,
    ) -> Result<Option<SendRequest<Bytes>>, UpstreamError> {
        let link = Rc::clone(&self.link);
        let mut has_waited = false;
        loop {
            match &*link.state.borrow() {
                State::Opening => {}
                State::Open(sender) => {
                    self.tell_opened(cells);
                    // Only now it is known how many the target takes.
                    let has_room = !has_waited || link.taken.get() <= link.room();
                    return Ok(has_room.then(|| sender.clone()));
                }
                State::Ended(None) => return Ok(None),
                State::Ended(Some(failure)) => return Err(failure.tell(cells)),
            }
            has_waited = true;
            link.changed.notified().await;
        }
    }

    /// The first who comes to know of it counts it.
    fn tell_opened(&mut self, cells: &ConnectCells) {
        match self.link.connected_in.take() {
            Some(took) => {
                cells.ok.add(1);
                cells.took.observe(took);
                self.connected_in = Some(took);
            }
            None => cells.reused.add(1),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let link = &self.link;
        link.taken.set(link.taken.get() - 1);
        if link.taken.get() == 0 {
            link.idle_since.set(link.now.get());
            if link.is_closing.get() {
                link.nudged.notify_one();
            }
        }
    }
}

impl Failure {
    fn of(error: &UpstreamError) -> Self {
        match error {
            UpstreamError::Connect(error) => Self::Connect(error.kind()),
            UpstreamError::Tls(error) => Self::Tls(error.kind(), chain(error).into()),
            UpstreamError::ConnectTimeout => Self::Timeout,
            UpstreamError::NotHttp2
            | UpstreamError::Retired
            | UpstreamError::Closed(_)
            | UpstreamError::Malformed(_)
            | UpstreamError::NoUpgrades
            | UpstreamError::Body(_) => Self::NotHttp2,
        }
    }

    fn tell(&self, cells: &ConnectCells) -> UpstreamError {
        match self {
            Self::Connect(kind) => {
                cells.failed.add(1);
                UpstreamError::Connect((*kind).into())
            }
            Self::Timeout => {
                cells.timed_out.add(1);
                UpstreamError::ConnectTimeout
            }
            Self::Tls(kind, why) => {
                cells.failed.add(1);
                UpstreamError::Tls(std::io::Error::new(*kind, why.to_string()))
            }
            Self::NotHttp2 => {
                cells.failed.add(1);
                UpstreamError::NotHttp2
            }
        }
    }
}

type Driver = Connection<CountedIo, Bytes>;

/// Opens the connection and drives it to its end.
async fn run(link: Rc<Link>, target: Rc<LocalTarget>, counted: ConnectionGuard) {
    let began = target.clock().now();
    let limit = target.limits().connect;
    let opened = tokio::time::timeout(limit, open(&target, &link.traffic)).await;
    let failure = match opened {
        Ok(Ok((sender, connection))) => {
            link.connected_in.set(Some(target.clock().now().saturating_duration_since(began)));
            link.enter(State::Open(sender));
            target.expect_streams(link.room());
            drive(&link, &target, connection).await;
            None
        }
        Ok(Err(failure)) => Some(failure),
        Err(_elapsed) => Some(Failure::Timeout),
    };
    link.enter(State::Ended(failure));
    target.forget_link(&link);
    drop(counted);
}

/// Connects, and waits for the target's first words, which say how many streams it takes. No request is sent to somebody
/// who speaks something else.
async fn open(target: &LocalTarget, traffic: &Rc<Traffic>) -> Result<(SendRequest<Bytes>, Driver), Failure> {
    let socket = Socket::open(&target.target, None).await.map_err(|error| Failure::of(&error))?;
    let io = CountedIo::new(socket, Rc::clone(traffic));
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        .initial_max_send_streams(0)
        .enable_push(false);
    let (sender, mut connection) = builder.handshake(io).await.map_err(|_closed| Failure::NotHttp2)?;
    std::future::poll_fn(|cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        if sender.current_max_send_streams() > 0 {
            return Poll::Ready(Ok(()));
        }
        polled.map(|_over| Err(Failure::NotHttp2))
    })
    .await?;
    Ok((sender, connection))
}

/// Until either side ends it.
async fn drive(link: &Rc<Link>, target: &LocalTarget, mut connection: Driver) {
    let mut watch = Watch::new(target.limits().ping, connection.ping_pong());
    let mut look = std::pin::pin!(tokio::time::sleep(watch.every));
    loop {
        if link.is_over() {
            // Without a handle to begin streams with it ends by itself.
            link.enter(State::Ended(None));
            // Whether it hears the end or not, the connection is over.
            let _over = tokio::time::timeout(CLOSE, connection).await;
            return;
        }
        tokio::select! {
            biased;
            ended = std::future::poll_fn(|cx| poll(&mut connection, &mut watch, link, cx)) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection to an application ended");
                }
                return;
            }
            () = link.nudged.notified() => {}
            () = &mut look => {
                let next = look.deadline() + watch.every;
                look.as_mut().reset(next);
                if !watch.look(link, target.clock().now()) {
                    tracing::debug!(instance = %target.target.id, "connection closed: its ping is not answered");
                    return;
                }
            }
        }
    }
}

fn poll(
    connection: &mut Driver,
    watch: &mut Watch,
    link: &Link,
    cx: &mut Context<'_>,
) -> Poll<Result<(), h2::Error>> {
    let polled = Pin::new(connection).poll(cx);
    watch.heard(link, cx);
    polled
}

impl Watch {
    fn new(every: Duration, pings: Option<PingPong>) -> Self {
        Self { every, pings, read: 0, in_a_row: 0, last: None }
    }

    /// Anything that comes shows that the target is there.
    fn heard(&mut self, link: &Link, cx: &mut Context<'_>) {
        if !link.is_in_doubt.get() {
            return;
        }
        if let Some(pings) = &mut self.pings
            && let Poll::Ready(Ok(_pong)) = pings.poll_pong(cx)
        {
            link.is_in_doubt.set(false);
        }
    }

    /// Once in a while; `false` if the target is gone.
    fn look(&mut self, link: &Link, now: Instant) -> bool {
        let read = link.traffic.read.get();
        let since = read - std::mem::replace(&mut self.read, read);
        if link.is_in_doubt.get() {
            return since > 0;
        }
        if since > PONG_BYTES || self.in_a_row == 0 && since > 0 {
            self.in_a_row = 0;
            return true;
        }
        let is_too_often = self.in_a_row > PINGS_FORGIVEN
            && self.last.is_some_and(|last| now.saturating_duration_since(last) < PING_RARELY);
        if link.taken.get() == 0 || is_too_often {
            return true;
        }
        if let Some(pings) = &mut self.pings
            && pings.send_ping(Ping::opaque()).is_ok()
        {
            link.is_in_doubt.set(true);
            self.in_a_row += 1;
            self.last = Some(now);
        }
        true
    }
}
