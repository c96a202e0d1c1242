//! One HTTP/1.1 connection to a target, driven by whoever uses it.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::task::coop::unconstrained;

use crate::telemetry::ConnectCells;

use super::body::RequestBody;
use super::io::{Memory, UpstreamIo};
use super::relay::Relay;
use super::socket::Socket;
use super::target::{ConnectionGuard, LocalTarget};
use super::{Tick, UpstreamError};

/// A response head that is larger is malformed.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// What a connection may buffer in each direction, in bytes.
pub(crate) const BUFFER: usize = 256 * 1024;

type Driver = http1::Connection<TokioIo<UpstreamIo>, RequestBody>;

/// A connection and the state machine that reads and writes it.
pub(crate) struct Connection {
    sender: http1::SendRequest<RequestBody>,
    /// `None` once it failed or was taken apart.
    driver: Option<Driver>,
    has_ended: bool,
    /// What the driver is polled with, as an `Arc` and as a waker.
    relay: Arc<Relay>,
    waker: Waker,
    memory: Rc<Memory>,
    target: Rc<LocalTarget>,
    is_reused: bool,
    connected_in: Duration,
    /// For how long the upstream keeps it without use, if it said so.
    keep_for: Option<Tick>,
    may_keep: bool,
    /// From then on the upstream may close it at any moment.
    pub(super) idle_until: Tick,
    _counted: ConnectionGuard,
}

impl Connection {
    /// Connects to `target`; `header` is the first that it gets, if it gets one.
    pub(super) async fn open(
        target: &Rc<LocalTarget>,
        cells: &ConnectCells,
        header: Option<&[u8]>,
    ) -> Result<Box<Self>, UpstreamError> {
        let counted = target.count_connection()?;
        let began = target.clock().now();
        let connecting = Socket::open(&target.target, header);
        let connected = tokio::time::timeout(target.limits().connect, connecting).await;
        let socket = match connected {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => {
                cells.failed.add(1);
                return Err(error);
            }
            Err(_elapsed) => {
                cells.timed_out.add(1);
                return Err(UpstreamError::ConnectTimeout);
            }
        };
        let connected_in = target.clock().now().saturating_duration_since(began);
        cells.ok.add(1);
        cells.took.observe(connected_in);
        let memory = Rc::new(Memory::default());
        let relay = Arc::new(Relay::default());
        let (sender, driver) = http1::Builder::new()
            .max_header_size(HEAD_BYTES_MAX)
            .max_buf_size(BUFFER)
            .handshake(TokioIo::new(UpstreamIo::new(socket, Rc::clone(&memory))))
            .await
            .map_err(|error| UpstreamError::Closed(error.into()))?;
        Ok(Box::new(Self {
            sender,
            driver: Some(driver),
            has_ended: false,
            waker: Waker::from(Arc::clone(&relay)),
            relay,
            memory,
            target: Rc::clone(target),
            is_reused: false,
            connected_in,
            keep_for: None,
            may_keep: true,
            idle_until: 0,
            _counted: counted,
        }))
    }

    /// Whether it served a request before this one.
    pub(crate) fn is_reused(&self) -> bool {
        self.is_reused
    }

    /// How long connecting took, if it was opened for the request that it serves.
    pub(crate) fn connected_in(&self) -> Option<Duration> {
        (!self.is_reused).then_some(self.connected_in)
    }

    pub(crate) fn target(&self) -> &Rc<LocalTarget> {
        &self.target
    }

    /// Sends the request and waits for the head of its response. If none of it was written, it is back afterwards.
    pub(super) async fn exchange(
        &mut self,
        request: &mut Option<Request<RequestBody>>,
        remembers: bool,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let Some(sent) = request.take() else { return Err(UpstreamError::Retired) };
        self.memory.ask(remembers);
        // Nothing but the driver makes the answer ready, and the driver is polled right before it: so it needs
        // neither a waker nor a share of the task's budget.
        let mut answer = pin!(unconstrained(self.sender.try_send_request(sent)));
        let mut quiet = Context::from_waker(Waker::noop());
        let (driver, has_ended) = (&mut self.driver, &mut self.has_ended);
        let (relay, waker) = (&self.relay, &self.waker);
        let answered = std::future::poll_fn(|cx| {
            relay.lead_to(cx.waker());
            let ended = drive(driver, has_ended, waker);
            match answer.as_mut().poll(&mut quiet) {
                Poll::Pending if ended.is_ready() => {
                    // A request that the driver never took comes back when the driver is dropped.
                    *driver = None;
                    answer.as_mut().poll(&mut quiet)
                }
                polled => polled,
            }
        });
        let answered = answered.await.map_err(|mut failure| {
            *request = failure.take_message();
            let error = failure.into_error();
            if error.is_parse() || error.is_parse_too_large() || self.memory.is_flooded() {
                UpstreamError::Malformed(error.into())
            } else {
                UpstreamError::Closed(error.into())
            }
        });
        self.memory.head_came();
        answered
    }

    /// The request that was lost, if it was to be remembered.
    pub(super) fn remembered(&self) -> Option<Request<RequestBody>> {
        self.memory.request()
    }

    /// Takes something of the driver's that it would wake its task for, which is the one that is asking.
    pub(crate) fn quietly<T>(&self, what: impl FnOnce() -> T) -> T {
        self.relay.quietly(what)
    }

    /// Reads and writes what can be; ready when the connection is over.
    pub(crate) fn poll_drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.relay.lead_to(cx.waker());
        drive(&mut self.driver, &mut self.has_ended, &self.waker)
    }

    /// Ends the driver, so that a body that it left unfinished learns of it.
    pub(crate) fn give_up(&mut self) {
        self.driver = None;
        self.has_ended = true;
    }

    /// Whether the last request and its response are over and the next may be sent.
    pub(crate) fn is_free(&mut self) -> bool {
        if !self.has_ended && !self.sender.is_ready() {
            // The driver may not have looked at what it read last.
            let _over = self.poll_drive(&mut Context::from_waker(Waker::noop()));
        }
        !self.has_ended && self.sender.is_ready()
    }

    /// Waits until the request is sent whole; `false` if the connection ended before.
    pub(crate) async fn sent(&mut self) -> bool {
        std::future::poll_fn(|cx| {
            let over = self.poll_drive(cx);
            if self.sender.is_ready() || over.is_ready() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        !self.has_ended
    }

    /// Takes it back into its target's pool, or closes it: invariant 1 of `upstream`. hyper reports ready only
    /// after a response that ended by its framing, with the request sent whole and nothing left to read.
    pub(crate) fn release(mut self: Box<Self>) {
        if self.may_keep && self.is_free() {
            self.is_reused = true;
            let target = Rc::clone(&self.target);
            let keep_for = self.keep_for;
            target.keep(self, keep_for);
        }
    }

    /// It is closed after this request.
    pub(crate) fn never_keep(&mut self) {
        self.may_keep = false;
    }

    /// For how many ticks the upstream keeps it without use.
    pub(crate) fn keep_for(&mut self, ticks: Tick) {
        self.keep_for = Some(ticks);
    }

    /// The bare socket after an upgrade, with what was read behind the response head.
    pub(crate) async fn into_socket(mut self: Box<Self>) -> Option<(Socket, Bytes, ConnectionGuard)> {
        std::future::poll_fn(|cx| self.poll_drive(cx)).await;
        let parts = self.driver.take()?.into_parts();
        Some((parts.io.into_inner().into_socket(), parts.read_buf, self._counted))
    }
}

fn drive(driver: &mut Option<Driver>, has_ended: &mut bool, waker: &Waker) -> Poll<()> {
    let Some(running) = driver.as_mut().filter(|_| !*has_ended) else { return Poll::Ready(()) };
    let polled = Pin::new(running).poll(&mut Context::from_waker(waker)).map(|_result| {
        // An error has been told to the request or its body.
    });
    *has_ended = polled.is_ready();
    polled
}
