//! What routes lead to: the targets that serve one deployment.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::gate::Gate;
use crate::ids::InstanceId;
use crate::settings::{Protocol, ProxyProtocol};
use crate::telemetry::BackendStats;

use super::balance::Balance;
use super::health::Health;
use super::hold::Hold;
use super::https::OwnHttps;
use super::policy::Policies;
use super::queue::{Places, Queue};
use super::standing::{Share, Standing};
use super::tls::TargetTls;

/// The targets of one deployment. Immutable: another set of targets is another backend over the same targets.
#[derive(Clone, Debug)]
pub struct Backend {
    pub targets: Box<[Arc<Target>]>,
    /// Which of them gets a request.
    pub balance: Balance,
    /// Who waits for a place at one of them; `None` where they serve as many as come. With it each has its `places`.
    pub queue: Option<Arc<Queue>>,
    /// Counters and the labels they are shown under.
    pub stats: Arc<BackendStats>,
    /// Its requests wait until this ends, whatever targets there are.
    pub hold: Option<Arc<Hold>>,
    /// The same for all backends that follow one another.
    pub comeback: Arc<Comeback>,
    /// What is asked of its requests and changed on them, if anything is.
    pub policies: Option<Arc<Policies>>,
    /// What it says of https for itself.
    pub https: Option<Arc<OwnHttps>>,
}

/// When a backend without targets is to have one again. Nobody asks while there are some.
#[derive(Debug, Default)]
pub struct Comeback(Mutex<Option<Instant>>);

impl Comeback {
    /// It is known now, or not any more.
    pub fn expect(&self, at: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    /// Seconds from `now` on, at least one; `None` if nobody knows.
    pub fn seconds_from(&self, now: Instant) -> Option<u16> {
        let at = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        let left = at.checked_duration_since(now)?.as_millis().div_ceil(1000);
        Some(u16::try_from(left).unwrap_or(u16::MAX).max(1))
    }
}

/// One instance as the data plane sees it.
#[derive(Debug)]
pub struct Target {
    pub id: InstanceId,
    pub address: SocketAddr,
    pub protocol: Protocol,
    /// It is spoken to by TLS.
    pub tls: Option<TargetTls>,
    /// It is told by a PROXY header whose request comes, on a connection for that request alone.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How much it gets of what there is, in comparison with the others.
    pub weight: u16,
    /// For how long its share grows once it comes back or joined; the data plane's own if not given.
    pub slow_start: Option<Duration>,
    /// When it joined others that served.
    pub joined: Option<Instant>,
    /// How many requests it serves at once, if that is limited; the same for all targets that are one instance.
    pub places: Option<Arc<Places>>,
    /// Admits requests and counts them.
    pub gate: Arc<Gate>,
    /// Admits upstream connections and counts them: closed before the instance gets its stop signal.
    pub connections: Arc<Gate>,
    /// How it answered of late.
    pub standing: Standing,
    health: Health,
    order: AtomicU8,
    cuts: Mutex<Vec<Cut>>,
}

/// What the workers are to do with what they still have open to a target. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Order {
    /// Serve.
    Serve = 0,
    /// Close idle connections, and busy ones as they come free.
    CloseIdle = 1,
    /// The drain deadline of requests has passed: abort them.
    CutRequests = 2,
    /// The drain deadline of streams comes near: send WebSockets a close frame (1012), each at its own moment.
    CloseStreams = 3,
    /// It has passed: abort them.
    CutStreams = 4,
}

/// Something that outlived its drain deadline and was ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    pub stream: bool,
    pub method: String,
    pub host: String,
    pub age: Duration,
}

impl Backend {
    /// A backend that serves.
    #[must_use]
    pub fn new(targets: Box<[Arc<Target>]>, stats: Arc<BackendStats>) -> Self {
        let (balance, comeback) = (Balance::default(), Arc::default());
        Self { targets, balance, queue: None, stats, hold: None, comeback, policies: None, https: None }
    }

    /// Whether the fields of a request decide what becomes of it.
    #[must_use]
    pub fn reads_fields(&self) -> bool {
        self.policies.is_some() || !matches!(self.balance, Balance::TwoChoices | Balance::RoundRobin)
    }

    /// The same, whose requests are spread so.
    #[must_use]
    pub fn balanced(self, balance: Balance) -> Self {
        Self { balance, ..self }
    }

    /// The same, whose targets have places that are waited for in `queue`.
    #[must_use]
    pub fn queueing(self, queue: Option<Arc<Queue>>) -> Self {
        Self { queue, ..self }
    }

    /// The same, held.
    #[must_use]
    pub fn held(self, hold: Arc<Hold>) -> Self {
        Self { hold: Some(hold), ..self }
    }

    /// The same, with those policies.
    #[must_use]
    pub fn with_policies(self, policies: Option<Arc<Policies>>) -> Self {
        Self { policies, ..self }
    }

    /// The same, that says this of https.
    #[must_use]
    pub fn with_https(self, https: Option<Arc<OwnHttps>>) -> Self {
        Self { https, ..self }
    }
}

impl Target {
    /// A healthy target with open gates, one shard for each of `workers`, that speaks HTTP/1.1.
    #[must_use]
    pub fn new(id: InstanceId, address: SocketAddr, workers: usize) -> Self {
        Self {
            id,
            address,
            protocol: Protocol::default(),
            tls: None,
            proxy_protocol: None,
            weight: 1,
            slow_start: None,
            joined: None,
            places: None,
            gate: Arc::new(Gate::new(workers)),
            connections: Arc::new(Gate::new(workers)),
            standing: Standing::default(),
            health: Health::default(),
            order: AtomicU8::new(0),
            cuts: Mutex::new(Vec::new()),
        }
    }

    /// The same, that speaks `protocol`.
    #[must_use]
    pub fn speaking(self, protocol: Protocol) -> Self {
        Self { protocol, ..self }
    }

    /// The same, that is spoken to by TLS.
    #[must_use]
    pub fn over(self, tls: Option<TargetTls>) -> Self {
        Self { tls, ..self }
    }

    /// The same, of that weight.
    #[must_use]
    pub fn weighing(self, weight: u16) -> Self {
        Self { weight, ..self }
    }

    /// The same, whose share grows for so long once it comes back or joined.
    #[must_use]
    pub fn starting_slowly(self, slow_start: Option<Duration>) -> Self {
        Self { slow_start, ..self }
    }

    /// The same, that serves only so many at once.
    #[must_use]
    pub fn limited_to(self, places: Option<Arc<Places>>) -> Self {
        Self { places, ..self }
    }

    /// The same, that joins others which serve.
    #[must_use]
    pub fn joining(self, at: Instant) -> Self {
        Self { joined: Some(at), ..self }
    }

    /// Whether it is where the other one is, is spoken to as that one is, weighs the same and
    /// serves as many at once.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        self.address == other.address
            && self.protocol == other.protocol
            && self.tls == other.tls
            && self.proxy_protocol == other.proxy_protocol
            && self.weight == other.weight
            && self.places.as_ref().map(|places| places.limit())
                == other.places.as_ref().map(|places| places.limit())
    }

    /// The same, that is told whose requests come.
    #[must_use]
    pub fn told_by(self, proxy_protocol: Option<ProxyProtocol>) -> Self {
        Self { proxy_protocol, ..self }
    }

    /// Whether it may be chosen while a healthy one is there.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        !self.health.is_ill()
    }

    /// Whether its checks have nothing against the whole of its share.
    #[must_use]
    pub fn has_recovered(&self) -> bool {
        self.health.is_whole()
    }

    /// What its checks leave it of its share at `now`, if that grows for so long once it is back.
    #[must_use]
    pub fn share_by_checks(&self, now: Instant, slow_start: Duration) -> Share {
        self.health.share(now, slow_start)
    }

    /// Takes it into rotation, with the whole of its share, or out of it.
    pub fn set_healthy(&self, healthy: bool) {
        self.health.set(healthy);
    }

    /// Takes it into rotation, if it is out of it: its share grows from `at` on.
    pub fn come_back(&self, at: Instant) {
        self.health.come_back(at);
    }

    /// What the workers are to do now.
    #[must_use]
    pub fn order(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            0 => Order::Serve,
            1 => Order::CloseIdle,
            2 => Order::CutRequests,
            3 => Order::CloseStreams,
            _ => Order::CutStreams,
        }
    }

    /// Gives the workers an order; they look at it when [`super::Routing::signal_workers`] is called.
    pub fn set_order(&self, order: Order) {
        self.order.store(order as u8, Ordering::Release);
    }

    /// Written by the worker that ended it.
    pub fn record_cut(&self, cut: Cut) {
        self.cuts.lock().unwrap_or_else(PoisonError::into_inner).push(cut);
    }

    /// All that was cut since the last call.
    pub fn take_cuts(&self) -> Vec<Cut> {
        std::mem::take(&mut *self.cuts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
