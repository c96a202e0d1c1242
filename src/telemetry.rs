//! What the data plane counts: per-worker cells without contention, summed when somebody asks.
//!
//! A cell has one writer, its worker, which adds by a plain load and store; a scrape reads all of them on another
//! thread. Labels come from the configuration and from closed lists, never from a request.

mod cells;
mod control;
mod latencies;
mod process;
mod render;
mod tally;

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use http::{Method, StatusCode, Version};

pub use cells::{Counter, CounterTable, Histogram};
pub use control::{CacheUse, ControlStats, Expiry, Present, TargetHealth};
pub use latencies::Latencies;
pub use tally::{FailedBy, Tally};

use crate::gate::Gate;

/// The counters of one backend.
#[derive(Debug)]
pub struct BackendStats {
    name: Box<str>,
    /// App, environment and deployment for the labels; `None` for a static service.
    pub labels: Option<DeploymentLabels>,
    workers: Box<[CachePadded<BackendCells>]>,
}

/// What a deployment's series are labelled with: always from configuration, never from a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeploymentLabels {
    pub app: String,
    pub environment: String,
    pub deployment: String,
}

/// What one worker counts of one backend.
#[derive(Debug, Default)]
pub struct BackendCells {
    responses: CounterTable<48>,
    duration: Histogram,
    first_byte: Histogram,
    failed_by_app: Counter,
    late_by_app: Counter,
    failed_by_us: Counter,
    answered_in: latencies::LatencyCells,
    pub request_body: Histogram,
    pub response_body: Histogram,
    /// From a request on its connection to the head of the response.
    pub upstream_head: Histogram,
    pub streams: Counter,
    /// Requests that went no further than the door of their preview, or the policies of their route.
    pub stopped_by_policies: Counter,
    /// Targets that were passed over because they failed.
    pub ejections: Counter,
    pub connects: ConnectCells,
    pub holds: HoldCells,
    /// Of those that wait for a place at a target.
    pub queue: HoldCells,
}

/// How requests to a held backend fared.
#[derive(Debug, Default)]
pub struct HoldCells {
    /// Began to wait, and ended it, whatever for.
    pub began: Counter,
    pub ended: Counter,
    pub released: Counter,
    pub timed_out: Counter,
    /// Told to come back, without a wait or at the end of one.
    pub refused: Counter,
}

/// One request among those that are counted as waiting.
#[derive(Debug)]
#[must_use = "dropping it is the end of the wait"]
pub struct Waits<'a>(&'a HoldCells);

impl HoldCells {
    /// Counts one that begins to wait, until it ends.
    pub fn wait(&self) -> Waits<'_> {
        self.began.add(1);
        Waits(self)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.ended.add(1);
    }
}

/// How connecting to targets went, and whether kept connections could be used.
#[derive(Debug, Default)]
pub struct ConnectCells {
    pub ok: Counter,
    /// How long those took.
    pub took: Histogram,
    pub failed: Counter,
    pub timed_out: Counter,
    pub reused: Counter,
    pub stale: Counter,
}

/// What one worker counts of itself.
#[derive(Debug, Default)]
pub struct WorkerCells {
    pub connections: Counter,
    pub connections_ended: Counter,
    /// Closed because their address had too many.
    pub connections_refused: Counter,
    /// Times that one had no request for a while, and gave up what it needs for one.
    pub connection_rests: Counter,
    pub http2_connections: Counter,
    /// Ended because their client reset streams or sent what carries nothing, again and again.
    pub http2_connections_calmed: Counter,
    pub gate_refusals: Counter,
    /// Requests sent once more, by why.
    retries: CounterTable<8>,
    pub memo_hits: Counter,
    pub memo_misses: Counter,
    pub cuts: CutCells,
    /// Requests whose client left before their end.
    pub client_aborts: Counter,
    pub access_log_dropped: Counter,
    pub handshakes: HandshakeCells,
    pub proxy_headers: ProxyHeaderCells,
    /// Own answers by code.
    errors: CounterTable<48>,
}

/// What was ended at its drain deadline.
#[derive(Debug, Default)]
pub struct CutCells {
    pub requests: Counter,
    pub streams: Counter,
}

/// How TLS handshakes went.
#[derive(Debug, Default)]
pub struct HandshakeCells {
    pub tls12: Counter,
    pub tls13: Counter,
    /// How long those took.
    pub took: Histogram,
    /// Of those, how many went on with a session that was there before.
    pub resumed: Counter,
    pub failed: Counter,
    pub timed_out: Counter,
    /// The client spoke something else, as plain HTTP.
    pub not_tls: Counter,
    /// Whoever validates a challenge of ACME was shown the answer.
    pub challenges: Counter,
}

/// How connections began that have to begin with a PROXY header.
#[derive(Debug, Default)]
pub struct ProxyHeaderCells {
    pub ok: Counter,
    /// Not from a network that may send one.
    pub untrusted: Counter,
    /// With something else.
    pub missing: Counter,
    /// Too long ones included.
    pub malformed: Counter,
    pub timed_out: Counter,
    /// The peer closed before, as who only looks whether somebody listens.
    pub closed: Counter,
}

/// All that is counted by one data plane.
#[derive(Debug)]
pub struct Telemetry {
    workers: Box<[CachePadded<WorkerCells>]>,
    /// Requests that no route took.
    pub unmatched: Arc<BackendStats>,
    targets: Mutex<Vec<TargetEntry>>,
    /// Backends that are shown without a target: they are held.
    held: Mutex<Vec<Weak<BackendStats>>>,
}

/// One target of one backend. Both go when nobody uses them any more, and their series with them.
#[derive(Clone, Debug)]
struct TargetEntry {
    instance: String,
    stats: Weak<BackendStats>,
    requests: Weak<Gate>,
    connections: Weak<Gate>,
}

impl BackendStats {
    /// For a deployment served by `workers` threads.
    #[must_use]
    pub fn for_deployment(labels: DeploymentLabels, workers: usize) -> Self {
        Self { name: labels.app.as_str().into(), labels: Some(labels), workers: cells(workers) }
    }

    /// For a static service.
    #[must_use]
    pub fn for_service(name: &str, workers: usize) -> Self {
        Self { name: name.into(), labels: None, workers: cells(workers) }
    }

    /// App or service.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cells that `worker` writes.
    #[must_use]
    pub fn of(&self, worker: usize) -> &BackendCells {
        &self.workers[worker % self.workers.len()]
    }
}

impl BackendCells {
    /// Counts a response; one that was a stream only by its status.
    pub fn respond(&self, method: &Method, status: StatusCode, version: Version) {
        self.responses.add(cells::response_key(method, status, version));
    }

    /// Counts how long a request took, to the head of its response and to the end.
    pub fn took(&self, first_byte: Option<Duration>, whole: Duration) {
        self.duration.observe(whole);
        if let Some(first_byte) = first_byte {
            self.first_byte.observe(first_byte);
        }
    }
}

impl WorkerCells {
    /// Counts an answer of Lockgate's own.
    pub fn own_answer(&self, code: &'static str) {
        self.errors.add_named(code);
    }

    /// Counts a request that is sent once more; `code` says why the last try failed.
    pub fn retried(&self, code: &'static str) {
        self.retries.add_named(code);
    }
}

impl Telemetry {
    /// For a data plane of `workers` threads.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self {
            workers: cells(workers),
            unmatched: Arc::new(BackendStats::for_service("_unmatched", workers)),
            targets: Mutex::default(),
            held: Mutex::default(),
        }
    }

    /// The cells that `worker` writes.
    #[must_use]
    pub fn of(&self, worker: usize) -> &WorkerCells {
        &self.workers[worker % self.workers.len()]
    }

    /// Shows a target from now on, for as long as somebody uses it.
    pub fn show_target(
        &self,
        instance: &dyn std::fmt::Display,
        stats: &Arc<BackendStats>,
        requests: &Arc<Gate>,
        connections: &Arc<Gate>,
    ) {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        targets.retain(TargetEntry::is_used);
        if !targets.iter().any(|entry| entry.is_of(stats, requests)) {
            targets.push(TargetEntry {
                instance: instance.to_string(),
                stats: Arc::downgrade(stats),
                requests: Arc::downgrade(requests),
                connections: Arc::downgrade(connections),
            });
        }
    }

    /// Shows a backend that is held from now on, for as long as somebody uses it.
    pub fn show_held(&self, stats: &Arc<BackendStats>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|known| known.strong_count() > 0);
        if !held.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(stats))) {
            held.push(Arc::downgrade(stats));
        }
    }

    /// What the data plane counts, as OpenMetrics text.
    #[must_use]
    pub fn render(self: &Arc<Self>) -> String {
        render::render(self, |_| {})
    }

    /// The same with what the control plane counts.
    #[must_use]
    pub fn render_with(self: &Arc<Self>, control: &ControlStats, present: &Present) -> String {
        render::render(self, |registry| control.register(present, registry))
    }

    fn held(&self) -> Vec<Arc<BackendStats>> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter().filter_map(Weak::upgrade).collect()
    }

    fn targets(&self) -> Vec<TargetEntry> {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        targets.retain(TargetEntry::is_used);
        targets.clone()
    }
}

impl TargetEntry {
    fn is_used(&self) -> bool {
        self.requests.strong_count() > 0 && self.stats.strong_count() > 0
    }

    fn is_of(&self, stats: &Arc<BackendStats>, requests: &Arc<Gate>) -> bool {
        std::ptr::eq(self.requests.as_ptr(), Arc::as_ptr(requests))
            && std::ptr::eq(self.stats.as_ptr(), Arc::as_ptr(stats))
    }
}

fn cells<T: Default>(workers: usize) -> Box<[CachePadded<T>]> {
    (0..workers.max(1)).map(|_| CachePadded::default()).collect()
}
