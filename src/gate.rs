//! Admission to one target, and the count of what it still serves.
//!
//! # Invariants
//! 1. Once [`Gate::close`] has returned, no [`Gate::enter`] that starts later is admitted, until [`Gate::reopen`].
//! 2. A [`Guard`] that exists is counted; the counts reach zero only when none exists.
//! 3. A refused `enter` leaves the counts as they were, and wakes a drain that it delayed.
//! 4. Turning a request into a stream is one atomic step: at no moment is it counted in neither.
//!
//! # Why one word
//! Were the closed bit and the count apart, a drain could read zero between a request's look at the
//! bit and its increment. `flag_beside_count_spills` in `tests/gate_model.rs` keeps that schedule, and must fail.
//!
//! # Shards
//! One word per worker thread, each on its own cache line: entering costs one uncontended atomic add.
//! A guard leaves through the shard that it entered by. What a guard holds the gate by is the caller's choice:
//! workers use an `Rc` of their own, because the count of a shared `Arc` would be the contended write that shards
//! avoid.
//!
//! # Not here
//! Which target to take (`upstream::balance`), how long to wait (`deploy::drain`), what a stream is (`proxy`).

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering};

const CLOSED: u64 = 1 << 63;
const STREAM: u64 = 1 << 32;
const REQUEST: u64 = 1;

/// Admits requests to one target and counts those that have not ended.
pub struct Gate {
    shards: Box<[CachePadded<AtomicU64>]>,
    drains: Mutex<Vec<Waker>>,
}

/// One admitted request or stream. Dropping it is the end: last byte, close, or abort.
#[must_use = "dropping the guard ends the request that it counts"]
pub struct Guard<G: Deref<Target = Gate> = Arc<Gate>> {
    gate: G,
    shard: usize,
    kind: Kind,
}

/// How many requests and streams passed a gate and have not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    pub requests: u64,
    pub streams: u64,
}

impl InFlight {
    /// Whether there is nothing.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.requests == 0 && self.streams == 0
    }
}

/// The gate was closed: resolve the route again, the new table is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("gate is closed")]
pub struct Refused;

/// What a drain waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// No request in flight; streams may go on.
    Requests,
    /// Nothing in flight.
    Everything,
}

/// Resolves once nothing that is awaited is in flight. Dropping it ends the wait and changes nothing.
#[must_use = "a drain waits only while it is polled"]
#[derive(Debug)]
pub struct Drained<'a> {
    gate: &'a Gate,
    awaited: Awaited,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Request,
    Stream,
}

impl Gate {
    /// An open gate with one shard for each of `workers` threads (at least one).
    pub fn new(workers: usize) -> Self {
        let shards = (0..workers.max(1)).map(|_| CachePadded::new(AtomicU64::new(0))).collect();
        Self { shards, drains: Mutex::new(Vec::new()) }
    }

    /// Admits one request through `shard`, which is the calling worker's number.
    ///
    /// # Errors
    /// [`Refused`] if the gate is closed.
    pub fn enter(self: &Arc<Self>, shard: usize) -> Result<Guard, Refused> {
        Self::enter_by(self, shard)
    }

    /// Like [`Gate::enter`], with a guard that holds the gate by a clone of `gate`.
    ///
    /// # Errors
    /// [`Refused`] if the gate is closed.
    pub fn enter_by<G: Deref<Target = Self> + Clone>(gate: &G, shard: usize) -> Result<Guard<G>, Refused> {
        let shard = shard % gate.shards.len();
        // AcqRel pairs with the AcqRel of `close`: both are read-modify-writes of one word, so either the
        // close sees this count, or this add sees the closed bit.
        let before = gate.shards[shard].fetch_add(REQUEST, Ordering::AcqRel);
        if before & CLOSED == 0 {
            return Ok(Guard { gate: gate.clone(), shard, kind: Kind::Request });
        }
        gate.leave(shard, REQUEST);
        Err(Refused)
    }

    /// Refuses every later `enter`, on every shard.
    pub fn close(&self) {
        for shard in &self.shards {
            shard.fetch_or(CLOSED, Ordering::AcqRel);
        }
    }

    /// Admits again; what is still in flight stays counted.
    pub fn reopen(&self) {
        for shard in &self.shards {
            shard.fetch_and(!CLOSED, Ordering::AcqRel);
        }
    }

    /// Whether every shard refuses.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shards.iter().all(|shard| shard.load(Ordering::Acquire) & CLOSED != 0)
    }

    /// The counts of all shards together. While the gate is open they may change as they are read.
    #[must_use]
    pub fn in_flight(&self) -> InFlight {
        self.shards.iter().fold(InFlight::default(), |sum, shard| {
            let word = shard.load(Ordering::Acquire) & !CLOSED;
            InFlight { requests: sum.requests + word % STREAM, streams: sum.streams + word / STREAM }
        })
    }

    /// What `shard` alone has in flight: an uncontended read, for balancing within a worker.
    #[must_use]
    pub fn load_of(&self, shard: usize) -> u64 {
        let word = self.shards[shard % self.shards.len()].load(Ordering::Relaxed) & !CLOSED;
        word % STREAM + word / STREAM
    }

    /// Waits until nothing that is `awaited` is in flight. On an open gate that proves nothing about later.
    pub fn drained(&self, awaited: Awaited) -> Drained<'_> {
        Drained { gate: self, awaited }
    }

    fn leave(&self, shard: usize, count: u64) {
        // Release pairs with the Acquire of `in_flight`: what the request did happens before the drain's end.
        let before = self.shards[shard].fetch_sub(count, Ordering::AcqRel);
        if before & CLOSED != 0 {
            self.wake_drains();
        }
    }

    /// A list of wakers is whole whoever panicked while holding it.
    fn lock(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.drains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_drains(&self) {
        let drains = std::mem::take(&mut *self.lock());
        drains.into_iter().for_each(Waker::wake);
    }
}

impl<G: Deref<Target = Gate>> Guard<G> {
    /// Counts this one as a stream from now on: an upgraded connection or an event stream.
    pub fn into_stream(mut self) -> Self {
        if let Kind::Request = self.kind {
            self.kind = Kind::Stream;
            let before = self.gate.shards[self.shard].fetch_add(STREAM - REQUEST, Ordering::AcqRel);
            if before & CLOSED != 0 {
                self.gate.wake_drains();
            }
        }
        self
    }
}

impl<G: Deref<Target = Gate>> Drop for Guard<G> {
    fn drop(&mut self) {
        let count = match self.kind {
            Kind::Request => REQUEST,
            Kind::Stream => STREAM,
        };
        self.gate.leave(self.shard, count);
    }
}

impl Awaited {
    fn is_over(self, left: InFlight) -> bool {
        match self {
            Self::Requests => left.requests == 0,
            Self::Everything => left.requests == 0 && left.streams == 0,
        }
    }
}

impl Future for Drained<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Register before reading: a guard that leaves after the read finds the waker.
        self.gate.lock().push(cx.waker().clone());
        if self.awaited.is_over(self.gate.in_flight()) {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("closed", &self.is_closed())
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

impl<G: Deref<Target = Gate>> fmt::Debug for Guard<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("shard", &self.shard).field("kind", &self.kind).finish_non_exhaustive()
    }
}
