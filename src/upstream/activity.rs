//! What one client connection is doing, in cells that its own task writes and its worker's sweep reads.
//!
//! A timer for each request would cost more than the request; so time is a tick that the worker counts, a byte
//! moved is one store, and one sweep per tick finds what is overdue. Everything here stays on one thread.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;

use super::body::BodyFault;
use super::target::LocalTarget;

/// Coarse time of one worker: ticks since its start.
pub(crate) type Tick = u32;

/// What a client connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No byte of a request has come.
    Idle,
    /// A request head has begun.
    Head,
    /// A request is being served, and its response has not begun.
    Request,
    /// A request waits for a held backend; its body is not read meanwhile.
    Held,
    /// The response's body flows.
    Response,
    /// The response is an event stream.
    EventStream,
    /// The connection was upgraded.
    Tunnel,
    /// The connection has streams, each with an activity of its own.
    Multiplexed,
}

/// What bytes that came from a client belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    HeadBegins,
    HeadGoesOn,
    /// A body, a tunnel.
    Other,
}

/// Why a connection or its request is ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Abort {
    /// Nothing came on a kept connection, or the worker is shutting down.
    Idle,
    /// The head did not come in time.
    HeadTimeout,
    /// The client's body stopped coming, or came too slowly.
    BodyTimeout,
    /// The upstream did not answer in time.
    ResponseTimeout,
    /// The response's body stopped moving.
    ResponseIdle,
    /// The client reads the response too slowly.
    ReaderTooSlow,
    /// The client closed its side and the answer was too long in coming.
    ClientGone,
    /// It outlived its drain deadline.
    Cut,
    /// The worker ends.
    Shutdown,
}

/// The cells. One request at a time: an HTTP/1.1 connection serves its requests in order.
pub(crate) struct Activity {
    now: Rc<Cell<Tick>>,
    phase: Cell<Phase>,
    /// When the phase began.
    since: Cell<Tick>,
    /// When a byte last moved, in either direction.
    progress: Cell<Tick>,
    /// The client closed its side, and when.
    half_closed: Cell<Option<Tick>>,
    /// The request has a body that has not come whole.
    is_receiving: Cell<bool>,
    /// That body is being passed on: what the client sends is not the head of another request.
    is_passing: Cell<bool>,
    /// The request's body is waited for.
    awaits_client: Cell<bool>,
    /// Ticks spent waiting for it, and what came of it.
    awaited: Cell<Tick>,
    received: Cell<u64>,
    body_fault: Cell<Option<BodyFault>>,
    /// The request is a call of gRPC: its client sends when it likes, and waits for so long at least.
    call: Cell<Option<Tick>>,
    own: Cell<OwnLimits>,
    /// The client's socket is full: it has to read first.
    awaits_reader: Cell<bool>,
    /// Bytes that the socket took.
    written: Cell<u64>,
    reader: Cell<Reader>,
    abort: Cell<Option<Abort>>,
    /// When a WebSocket is to be closed from our side.
    close_at: Cell<Option<Tick>>,
    waker: RefCell<Option<Waker>>,
    target: RefCell<Option<Rc<LocalTarget>>>,
}

/// How a client reads while its socket is full, in the present phase.
#[derive(Clone, Copy, Debug, Default)]
struct Reader {
    /// Ticks for which it was waited for.
    awaited: Tick,
    /// Bytes that it had taken of all that was written, when that began and at the last look.
    from: u64,
    taken: u64,
    /// Bytes of its request that had come when that began: who sends need not read.
    sent_from: u64,
}

/// Bytes that a reader may be behind its least rate: what a connection buffers on its way moves in pieces.
const READER_SLACK: u64 = 64 * 1024;

impl Activity {
    pub(crate) fn new(now: Rc<Cell<Tick>>) -> Self {
        let tick = now.get();
        Self {
            now,
            phase: Cell::new(Phase::Idle),
            since: Cell::new(tick),
            progress: Cell::new(tick),
            half_closed: Cell::new(None),
            is_receiving: Cell::new(false),
            is_passing: Cell::new(false),
            awaits_client: Cell::new(false),
            awaited: Cell::new(0),
            received: Cell::new(0),
            body_fault: Cell::new(None),
            call: Cell::new(None),
            own: Cell::default(),
            awaits_reader: Cell::new(false),
            written: Cell::new(0),
            reader: Cell::default(),
            abort: Cell::new(None),
            close_at: Cell::new(None),
            waker: RefCell::new(None),
            target: RefCell::new(None),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        let now = self.now.get();
        self.since.set(now);
        self.progress.set(now);
        self.reader.take();
    }

    /// A request begins; nothing of its body, if it has one, has come.
    pub(crate) fn begin_request(&self, has_body: bool) {
        self.enter(Phase::Request);
        self.is_receiving.set(has_body);
        self.awaits_client.set(false);
        self.awaited.set(0);
        self.received.set(0);
        self.body_fault.set(None);
        self.call.set(None);
        self.own.set(OwnLimits::default());
    }

    /// The limits that its route has of its own.
    pub(crate) fn own_limits(&self) -> OwnLimits {
        self.own.get()
    }

    /// Its route has these.
    pub(crate) fn limit(&self, own: OwnLimits) {
        self.own.set(own);
    }

    /// The request is a call of gRPC, for whose end its client waits `patience` ticks.
    pub(crate) fn begin_call(&self, patience: Tick) {
        self.call.set(Some(patience));
    }

    /// The request and its response are over. A client that closed its side is looked at again, because what it
    /// waits for is the end of the connection.
    pub(crate) fn end_request(&self) {
        if self.phase.get() == Phase::Tunnel {
            return;
        }
        self.enter(Phase::Idle);
        self.target.replace(None);
        if self.half_closed.get().is_some() {
            self.wake();
        }
    }

    pub(crate) fn progressed(&self) {
        self.progress.set(self.now.get());
    }

    /// The client's socket took some of what is for it.
    pub(crate) fn wrote(&self, bytes: usize) {
        self.awaits_reader.set(false);
        self.written.set(self.written.get() + bytes as u64);
        self.progressed();
    }

    /// The client's socket is full.
    pub(crate) fn await_reader(&self) {
        self.awaits_reader.set(true);
    }

    /// Whether the end of a response is held up by its reader.
    pub(crate) fn awaits_reader(&self) -> bool {
        self.awaits_reader.get() && matches!(self.phase.get(), Phase::Idle | Phase::Response)
    }

    /// One more tick waiting for the reader, whose socket still holds `unsent` bytes.
    pub(crate) fn look_at_reader(&self, unsent: u64) {
        let taken = self.written.get().saturating_sub(unsent);
        let mut reader = self.reader.get();
        if reader.awaited == 0 {
            (reader.from, reader.sent_from) = (taken, self.received.get());
        } else if taken > reader.taken {
            self.progressed();
        }
        reader.taken = taken;
        reader.awaited += 1;
        self.reader.set(reader);
    }

    /// Whether it has moved too little, in either direction: it may send its request before it reads.
    fn reads_too_slowly(&self, limits: &TickLimits) -> bool {
        let Reader { awaited, from, taken, sent_from } = self.reader.get();
        let floor = u64::from(awaited) * limits.floor_per_tick;
        let moved = taken.saturating_sub(from) + self.received.get().saturating_sub(sent_from);
        awaited >= limits.floor_after && moved + READER_SLACK < floor
    }

    /// One more tick waiting for the request's body; whether it has come too slowly so far.
    fn sends_too_slowly(&self, limits: &TickLimits) -> bool {
        self.awaited.set(self.awaited.get() + 1);
        self.is_below_floor(self.awaited.get(), limits)
    }

    fn is_below_floor(&self, awaited: Tick, limits: &TickLimits) -> bool {
        awaited >= limits.floor_after && self.received.get() < u64::from(awaited) * limits.floor_per_tick
    }

    /// Whether the request has come too slowly, for which its client was waited for through `awaited` ticks.
    pub(crate) fn came_too_slowly(&self, awaited: Tick, limits: &TickLimits) -> bool {
        self.call.get().is_none() && self.is_below_floor(awaited, limits)
    }

    /// Whether the request's body is waited for.
    pub(crate) fn awaits_client(&self) -> bool {
        self.awaits_client.get()
    }

    pub(crate) fn await_client(&self, awaits: bool) {
        self.awaits_client.set(awaits);
    }

    pub(crate) fn received(&self, bytes: u64) {
        self.received.set(self.received.get() + bytes);
    }

    /// The request's body has ended.
    pub(crate) fn received_all(&self) {
        self.is_receiving.set(false);
    }

    pub(crate) fn pass_body(&self, passes: bool) {
        self.is_passing.set(passes);
    }

    /// Bytes came from the client.
    pub(crate) fn read(&self) -> Read {
        match self.phase.get() {
            Phase::Idle if !self.is_passing.get() => {
                self.enter(Phase::Head);
                Read::HeadBegins
            }
            Phase::Head => {
                self.progressed();
                Read::HeadGoesOn
            }
            Phase::Idle
            | Phase::Request
            | Phase::Held
            | Phase::Response
            | Phase::EventStream
            | Phase::Tunnel
            | Phase::Multiplexed => {
                self.progressed();
                Read::Other
            }
        }
    }

    pub(crate) fn is_receiving(&self) -> bool {
        self.is_receiving.get()
    }

    pub(crate) fn body_failed(&self, fault: BodyFault) {
        self.body_fault.set(Some(fault));
    }

    /// What was wrong with the request's body.
    pub(crate) fn body_fault(&self) -> Option<BodyFault> {
        self.body_fault.get()
    }

    /// Bytes of the request's body that have come.
    pub(crate) fn request_bytes(&self) -> u64 {
        self.received.get()
    }

    pub(crate) fn half_closed(&self) {
        if self.half_closed.get().is_none() {
            self.half_closed.set(Some(self.now.get()));
        }
    }

    pub(crate) fn is_half_closed(&self) -> bool {
        self.half_closed.get().is_some()
    }

    pub(crate) fn serve_by(&self, target: &Rc<LocalTarget>) {
        self.target.replace(Some(Rc::clone(target)));
    }

    pub(crate) fn is_served_by(&self, target: &Rc<LocalTarget>) -> bool {
        self.target.borrow().as_ref().is_some_and(|serving| Rc::ptr_eq(serving, target))
    }

    pub(crate) fn abort(&self) -> Option<Abort> {
        self.abort.get()
    }

    /// The abort, which the caller carries out.
    pub(crate) fn take_abort(&self) -> Option<Abort> {
        self.abort.take()
    }

    /// Asks the connection's task to end what it does.
    pub(crate) fn ask(&self, abort: Abort) {
        if self.abort.get().is_none() {
            self.abort.set(Some(abort));
        }
        self.wake();
    }

    /// The waker of the connection's task, which stays the same as long as it lives.
    pub(crate) fn keep_waker(&self, waker: &Waker) {
        let mut kept = self.waker.borrow_mut();
        if !kept.as_ref().is_some_and(|kept| kept.will_wake(waker)) {
            *kept = Some(waker.clone());
        }
    }

    pub(crate) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Has its WebSocket closed from our side, `delay` ticks from now.
    pub(crate) fn close_stream_in(&self, delay: Tick) {
        if self.close_at.get().is_none() {
            self.close_at.set(Some(self.now.get() + delay));
        }
    }

    /// Whether the WebSocket is to be closed by now.
    pub(crate) fn closes_stream(&self) -> bool {
        self.close_at.get().is_some_and(|at| at <= self.now.get())
    }

    /// Whether a request has long been missing.
    pub(crate) fn may_rest(&self, limits: &TickLimits) -> bool {
        self.phase.get() == Phase::Idle
            && self.now.get() - self.progress.get() >= limits.rest
            && !self.awaits_reader.get()
            && !self.is_receiving.get()
    }

    /// What is overdue, by `limits`.
    pub(crate) fn overdue(&self, limits: &TickLimits) -> Option<Abort> {
        let now = self.now.get();
        let idle = now - self.progress.get();
        let gone = self.half_closed.get().is_some_and(|at| now - at >= limits.half_closed);
        match self.phase.get() {
            Phase::Idle | Phase::Response if self.awaits_reader.get() && self.reads_too_slowly(limits) => {
                Some(Abort::ReaderTooSlow)
            }
            Phase::Idle => (idle >= limits.keep_alive).then_some(Abort::Idle),
            Phase::Head => (now - self.since.get() >= limits.head).then_some(Abort::HeadTimeout),
            Phase::Request if self.awaits_client.get() && self.call.get().is_none() => {
                let slow = self.sends_too_slowly(limits);
                let limit = self.own.get().body_idle.unwrap_or(limits.body_idle);
                (slow || idle >= limit).then_some(Abort::BodyTimeout)
            }
            Phase::Request | Phase::Held if gone => Some(Abort::ClientGone),
            // The app may have nothing to say before it has heard all.
            Phase::Request if self.call.get().is_some() && self.is_receiving.get() => None,
            Phase::Request => {
                let limit = self.own.get().response_head.unwrap_or(limits.response_head);
                let patience = self.call.get().unwrap_or_default().max(limit);
                (idle >= patience).then_some(Abort::ResponseTimeout)
            }
            Phase::Response | Phase::EventStream if gone && idle >= limits.half_closed => {
                Some(Abort::ClientGone)
            }
            Phase::Response if idle >= self.own.get().response_idle.unwrap_or(limits.response_idle) => {
                // Whose fault it is that nothing moves.
                Some(if self.awaits_reader.get() { Abort::ReaderTooSlow } else { Abort::ResponseIdle })
            }
            // A hold has a limit of its own.
            Phase::Held | Phase::Response | Phase::EventStream | Phase::Tunnel | Phase::Multiplexed => None,
        }
    }
}

/// What a route says for its requests in place of [`TickLimits`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OwnLimits {
    pub(crate) body_idle: Option<Tick>,
    pub(crate) response_head: Option<Tick>,
    pub(crate) response_idle: Option<Tick>,
}

/// The limits of `proxy::Limits` in ticks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TickLimits {
    pub(crate) keep_alive: Tick,
    pub(crate) rest: Tick,
    pub(crate) head: Tick,
    pub(crate) body_idle: Tick,
    pub(crate) response_head: Tick,
    pub(crate) response_idle: Tick,
    pub(crate) half_closed: Tick,
    /// Of a body: the rate it must have after `floor_after` ticks of waiting for the client.
    pub(crate) floor_after: Tick,
    pub(crate) floor_per_tick: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: TickLimits = TickLimits {
        keep_alive: 100,
        rest: 100,
        head: 100,
        body_idle: 1000,
        response_head: 1000,
        response_idle: 1000,
        half_closed: 100,
        floor_after: 5,
        floor_per_tick: READER_SLACK / 10,
    };

    /// A client whose response has begun and that reads nothing of it, and its clock.
    fn unread(has_body: bool) -> (Rc<Cell<Tick>>, Activity) {
        let now = Rc::default();
        let activity = Activity::new(Rc::clone(&now));
        activity.begin_request(has_body);
        activity.enter(Phase::Response);
        activity.await_reader();
        (now, activity)
    }

    /// In how many ticks it is ended, each of which brings `bytes` of its request.
    fn ended_in(now: &Cell<Tick>, activity: &Activity, bytes: u64) -> Option<(u32, Abort)> {
        (1..=50).find_map(|tick| {
            now.set(now.get() + 1);
            if bytes > 0 {
                activity.received(bytes);
                activity.progressed();
            }
            activity.look_at_reader(0);
            activity.overdue(&LIMITS).map(|abort| (tick, abort))
        })
    }

    #[test]
    fn a_client_that_reads_too_slowly_is_ended_unless_it_sends_meanwhile() {
        let (now, activity) = unread(false);
        assert_eq!(ended_in(&now, &activity, 0), Some((11, Abort::ReaderTooSlow)));

        let (now, activity) = unread(true);
        assert_eq!(ended_in(&now, &activity, LIMITS.floor_per_tick), None);
        activity.received_all();
        assert_eq!(ended_in(&now, &activity, 0), Some((10, Abort::ReaderTooSlow)), "it had its time to read");

        let (now, activity) = unread(true);
        let ended = ended_in(&now, &activity, LIMITS.floor_per_tick / 2);
        assert!(
            ended.is_some_and(|(tick, _)| tick > 11),
            "sending a little is a little of an excuse: {ended:?}"
        );

        // An open body is none, whoever does not take it; nor is what came before.
        let (now, activity) = unread(true);
        activity.received(1 << 30);
        assert_eq!(ended_in(&now, &activity, 0), Some((11, Abort::ReaderTooSlow)));
    }
}
