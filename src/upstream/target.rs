//! A target as one worker has it: its idle connections, last used first.
//!
//! A worker may know very many targets; what it does once in a tick is bounded by those that it has connections to.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::ops::Deref;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::clock::Clock;
use crate::gate::{Gate, Guard, Refused};
use crate::routing::backend::Order;
use crate::routing::queue::{self, Places};
use crate::routing::{Backend, Target};
use crate::telemetry::Telemetry;

use super::balance::Way;
use super::http1::{Connection, Lent};
use super::http2::{Link, Place, STREAMS_MAX};
use super::{ConnectLimits, Tick, UpstreamError};

/// Connections kept without use, per worker and target.
const IDLE_MAX: usize = 512;

/// A backend that no request used for so many seconds is forgotten, and made again when one does.
const FORGET_SECONDS: Tick = 60;

/// Backends looked at in one tick.
const LOOKED_AT: usize = 64;

/// The targets and backends that one worker uses. They are found by address, which stays theirs because whoever is
/// found holds the `Arc`.
pub(crate) struct Upstreams {
    worker: usize,
    now: Rc<Cell<Tick>>,
    clock: Arc<dyn Clock>,
    limits: ConnectLimits,
    telemetry: Arc<Telemetry>,
    targets: RefCell<HashMap<*const Target, Weak<LocalTarget>, foldhash::fast::RandomState>>,
    backends: RefCell<HashMap<*const Backend, Rc<LocalBackend>, foldhash::fast::RandomState>>,
    /// All of `backends`, the one looked at longest ago first.
    rotation: RefCell<VecDeque<Rc<LocalBackend>>>,
    active: Active,
    drivers: Drivers,
    lent: Rc<Lent>,
}

/// The tasks of a worker's HTTP/2 connections to targets. What is left of them ends with the worker's runtime.
type Drivers = Rc<RefCell<JoinSet<()>>>;

/// The targets of a worker that have connections.
type Active = Rc<RefCell<Vec<Rc<LocalTarget>>>>;

/// A backend as one worker has it.
pub(crate) struct LocalBackend {
    pub(crate) backend: Arc<Backend>,
    pub(crate) targets: Box<[Rc<LocalTarget>]>,
    pub(super) way: Way,
    /// Its targets do not all weigh the same.
    pub(super) is_weighted: bool,
    last_used: Cell<Tick>,
}

/// A target as one worker has it.
pub(crate) struct LocalTarget {
    pub(crate) target: Arc<Target>,
    worker: usize,
    now: Rc<Cell<Tick>>,
    clock: Arc<dyn Clock>,
    limits: ConnectLimits,
    #[expect(clippy::vec_box, reason = "connections are large, and move in and out all the time")]
    idle: RefCell<Vec<Box<Connection>>>,
    /// Of a target that speaks HTTP/2: all connections, the longest open first.
    links: RefCell<Vec<Rc<Link>>>,
    /// How many streams the last of them took at once, when it was opened.
    streams: Cell<usize>,
    drivers: Drivers,
    lent: Rc<Lent>,
    /// Open connections, idle or not.
    open: Cell<usize>,
    active: Active,
    is_active: Cell<bool>,
    /// Its share does not grow any more since it joined.
    pub(super) has_arrived: Cell<bool>,
}

/// The way to a target's gate for requests, without touching a count that workers share.
#[derive(Clone)]
pub(crate) struct RequestGate(Rc<LocalTarget>);

/// A request's guard.
pub(crate) type RequestGuard = Guard<RequestGate>;

/// An open connection, counted by the target's `connections` gate and by the worker.
pub(crate) struct ConnectionGuard {
    _admitted: Guard,
    target: Rc<LocalTarget>,
}

impl Upstreams {
    pub(crate) fn new(
        worker: usize,
        now: Rc<Cell<Tick>>,
        clock: Arc<dyn Clock>,
        limits: ConnectLimits,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        Self {
            worker,
            now,
            clock,
            limits,
            telemetry,
            targets: RefCell::default(),
            backends: RefCell::default(),
            rotation: RefCell::default(),
            active: Rc::default(),
            drivers: Rc::default(),
            lent: Rc::default(),
        }
    }

    /// The local side of `backend`.
    pub(crate) fn backend(&self, backend: &Arc<Backend>) -> Rc<LocalBackend> {
        let mut backends = self.backends.borrow_mut();
        let local = backends.entry(Arc::as_ptr(backend)).or_insert_with(|| self.new_backend(backend));
        local.last_used.set(self.now.get());
        Rc::clone(local)
    }

    /// The targets that have connections.
    pub(crate) fn active(&self) -> Vec<Rc<LocalTarget>> {
        self.active.borrow().clone()
    }

    /// Closes what has been idle too long or was ordered to be closed, and forgets what nobody uses.
    pub(crate) fn sweep(&self) {
        self.reap();
        for target in self.active() {
            target.close_idle(target.target.order() >= Order::CloseIdle);
        }
        self.active.borrow_mut().retain(|target| {
            target.is_active.set(target.open.get() > 0);
            target.is_active.get()
        });
        let mut rotation = self.rotation.borrow_mut();
        for _ in 0..LOOKED_AT.min(rotation.len()) {
            let Some(local) = rotation.pop_front() else { break };
            let unused = self.now.get() - local.last_used.get();
            if unused < FORGET_SECONDS * self.limits.ticks_per_second {
                rotation.push_back(local);
            } else {
                self.forget(local);
            }
        }
    }

    fn new_backend(&self, backend: &Arc<Backend>) -> Rc<LocalBackend> {
        let targets = backend.targets.iter().map(|target| self.target(target)).collect();
        for target in &backend.targets {
            self.telemetry.show_target(&target.id, &backend.stats, &target.gate, &target.connections);
        }
        if backend.hold.is_some() {
            self.telemetry.show_held(&backend.stats);
        }
        let last_used = Cell::new(self.now.get());
        let mut weights = backend.targets.iter().map(|target| target.weight);
        let first = weights.next();
        let is_weighted = weights.any(|weight| Some(weight) != first);
        let local = Rc::new(LocalBackend {
            backend: Arc::clone(backend),
            targets,
            way: Way::of(backend),
            is_weighted,
            last_used,
        });
        self.rotation.borrow_mut().push_back(Rc::clone(&local));
        local
    }

    fn forget(&self, local: Rc<LocalBackend>) {
        self.backends.borrow_mut().remove(&Arc::as_ptr(&local.backend));
        let keys: Vec<*const Target> = local.backend.targets.iter().map(Arc::as_ptr).collect();
        drop(local);
        let mut targets = self.targets.borrow_mut();
        for key in keys {
            if targets.get(&key).is_some_and(|target| target.strong_count() == 0) {
                targets.remove(&key);
            }
        }
    }

    /// Forgets the connections that are over.
    fn reap(&self) {
        while let Some(ended) = self.drivers.borrow_mut().try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                tracing::error!(%error, "the task of a connection to an application panicked");
            }
        }
    }

    /// Closes every idle connection: the worker ends.
    pub(crate) fn close(&self) {
        for target in self.active() {
            target.close_idle(true);
        }
    }

    fn target(&self, target: &Arc<Target>) -> Rc<LocalTarget> {
        let mut targets = self.targets.borrow_mut();
        if let Some(local) = targets.get(&Arc::as_ptr(target)).and_then(Weak::upgrade) {
            return local;
        }
        let local = Rc::new(LocalTarget {
            target: Arc::clone(target),
            worker: self.worker,
            now: Rc::clone(&self.now),
            clock: Arc::clone(&self.clock),
            limits: self.limits,
            idle: RefCell::default(),
            links: RefCell::default(),
            streams: Cell::new(STREAMS_MAX),
            drivers: Rc::clone(&self.drivers),
            lent: Rc::clone(&self.lent),
            open: Cell::new(0),
            active: Rc::clone(&self.active),
            is_active: Cell::new(false),
            has_arrived: Cell::new(target.joined.is_none() || target.slow_start.is_none()),
        });
        targets.insert(Arc::as_ptr(target), Rc::downgrade(&local));
        local
    }
}

impl LocalTarget {
    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    pub(super) fn limits(&self) -> ConnectLimits {
        self.limits
    }

    pub(super) fn lent(&self) -> &Lent {
        &self.lent
    }

    /// What it serves at once, if that is limited.
    pub(crate) fn places(&self) -> Option<&Places> {
        self.target.places.as_deref()
    }

    /// A place of its that is free.
    pub(crate) fn take_place(&self) -> Option<queue::Place> {
        self.places()?.take()
    }

    /// What this worker has in flight to it.
    pub(super) fn load(&self) -> u64 {
        self.target.gate.load_of(self.worker)
    }

    /// Admits one request.
    ///
    /// # Errors
    /// [`Refused`] if the target's gate is closed.
    pub(crate) fn enter(self: &Rc<Self>) -> Result<RequestGuard, Refused> {
        Gate::enter_by(&RequestGate(Rc::clone(self)), self.worker)
    }

    /// The idle connection that was used last, if it is still good.
    pub(super) fn idle_connection(&self) -> Option<Box<Connection>> {
        loop {
            // The borrow ends before the connection is polled or dropped: both come back to this target.
            let mut connection = self.idle.borrow_mut().pop()?;
            if connection.idle_until > self.now.get() && connection.is_quiet() {
                return Some(connection);
            }
        }
    }

    /// A place for one more stream, on a connection that there is or on a new one.
    pub(super) fn place(self: &Rc<Self>) -> Result<Place, UpstreamError> {
        if let Some(place) = self.links.borrow().iter().find_map(Link::place) {
            return Ok(place);
        }
        let link = Link::begin(self)?;
        self.links.borrow_mut().push(Rc::clone(&link));
        link.place().ok_or(UpstreamError::Retired)
    }

    pub(super) fn expected_streams(&self) -> usize {
        self.streams.get()
    }

    pub(super) fn expect_streams(&self, streams: usize) {
        self.streams.set(streams.max(1));
    }

    /// Has a task of the worker's drive a connection.
    pub(super) fn drive(&self, driver: impl Future<Output = ()> + 'static) {
        self.drivers.borrow_mut().spawn_local(driver);
    }

    /// The connection is over.
    pub(super) fn forget_link(&self, link: &Rc<Link>) {
        self.links.borrow_mut().retain(|other| !Rc::ptr_eq(other, link));
    }

    pub(super) fn now(&self) -> Rc<Cell<Tick>> {
        Rc::clone(&self.now)
    }

    /// Closes all idle connections: one of them turned out to be closed, so the others are in doubt.
    pub(super) fn forget_idle(&self) {
        let idle = std::mem::take(&mut *self.idle.borrow_mut());
        drop(idle);
    }

    pub(super) fn count_connection(self: &Rc<Self>) -> Result<ConnectionGuard, UpstreamError> {
        let admitted =
            self.target.connections.enter(self.worker).map_err(|Refused| UpstreamError::Retired)?;
        self.open.set(self.open.get() + 1);
        if !self.is_active.replace(true) {
            self.active.borrow_mut().push(Rc::clone(self));
        }
        Ok(ConnectionGuard { _admitted: admitted, target: Rc::clone(self) })
    }

    /// Keeps a free connection, for as long as the upstream said it would, or as long as is usual.
    pub(super) fn keep(&self, mut connection: Box<Connection>, keep_for: Option<Tick>) {
        let is_kept = self.target.order() == Order::Serve && self.idle.borrow().len() < IDLE_MAX;
        if is_kept {
            connection.idle_until = self.now.get() + keep_for.unwrap_or(self.limits.keep_idle);
            self.idle.borrow_mut().push(connection);
        }
    }

    /// Closes the idle connections whose time is over, or all of them.
    fn close_idle(&self, all: bool) {
        for link in &*self.links.borrow() {
            if all {
                link.retire();
            } else {
                link.retire_if_idle(self.limits.keep_idle);
            }
        }
        if self.idle.borrow().is_empty() {
            return;
        }
        let now = self.now.get();
        let mut idle = std::mem::take(&mut *self.idle.borrow_mut());
        idle.retain_mut(|connection| !all && connection.idle_until > now && connection.is_quiet());
        // Dropping one comes back to this target, so the list is put back afterwards; nothing was added meanwhile.
        *self.idle.borrow_mut() = idle;
    }
}

impl Deref for RequestGate {
    type Target = Gate;

    fn deref(&self) -> &Gate {
        &self.0.target.gate
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.target.open.set(self.target.open.get() - 1);
    }
}
