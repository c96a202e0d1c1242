//! What the control plane counts: seldom, so in the registry's own types, which any thread may write.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::gate::InFlight;

type Words = [(&'static str, &'static str); 1];
type Counters<Labels> = Family<Labels, Counter>;

/// Seconds; commits and publishes are at the low end, operations at the high one.
const SHORT: [f64; 10] = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];
const LONG: [f64; 9] = [0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0];
const REQUESTS: [f64; 8] = [0.0, 1.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0];

/// Counters of deploys, of the runtime, of the store and of the configuration. One per process.
#[derive(Debug)]
pub struct ControlStats {
    swaps: Counters<Words>,
    publish: Histogram,
    drain: Histogram,
    in_flight_at_cutover: Family<Words, Histogram>,
    operations: Counters<[(&'static str, &'static str); 2]>,
    operation_duration: Family<Words, Histogram>,
    corrections: Counters<Words>,
    runtime_up: Gauge,
    store_commit: Histogram,
    reload_success: Gauge,
    reload_at: Gauge<f64, AtomicU64>,
    acme_orders: Counters<Words>,
    spans: SpanCounts,
}

/// What became of the spans of traces. Each has its handle, because some are counted by those who serve: without a lock.
#[derive(Debug)]
struct SpanCounts {
    all: Counters<Words>,
    exported: Counter,
    dropped: Counter,
    refused: Counter,
    unsent: Counter,
}

/// What is read at the moment of a scrape.
#[derive(Debug, Default)]
pub struct Present {
    /// Of the route table.
    pub generation: u64,
    pub routes: usize,
    /// How often the route cache was asked.
    pub cache: CacheUse,
    pub targets: Vec<TargetHealth>,
    pub certificates: Vec<Expiry>,
}

/// Names that no exact route has, by whether the route cache knew them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUse {
    pub hits: u64,
    pub misses: u64,
}

/// Until when a certificate is good.
#[derive(Debug)]
pub struct Expiry {
    pub names: String,
    /// In seconds since 1970.
    pub at: f64,
}

/// One instance that serves, or that would if it were healthy.
#[derive(Debug)]
pub struct TargetHealth {
    pub app: String,
    pub environment: String,
    pub deployment: String,
    pub instance: String,
    pub is_healthy: bool,
}

impl Default for ControlStats {
    fn default() -> Self {
        Self {
            swaps: Family::default(),
            publish: Histogram::new(SHORT),
            drain: Histogram::new(LONG),
            in_flight_at_cutover: Family::new_with_constructor(|| Histogram::new(REQUESTS)),
            operations: Family::default(),
            operation_duration: Family::new_with_constructor(|| Histogram::new(LONG)),
            corrections: Family::default(),
            runtime_up: Gauge::default(),
            store_commit: Histogram::new(SHORT),
            reload_success: Gauge::default(),
            reload_at: Gauge::default(),
            acme_orders: Family::default(),
            spans: SpanCounts::default(),
        }
    }
}

impl Default for SpanCounts {
    fn default() -> Self {
        let all = Counters::<Words>::default();
        let of = |result| all.get_or_create(&[("result", result)]).clone();
        let (exported, dropped) = (of("exported"), of("dropped"));
        let (refused, unsent) = (of("refused"), of("unsent"));
        Self { all, exported, dropped, refused, unsent }
    }
}

impl ControlStats {
    /// Traffic moved: how long its publish took, and what the old version had in flight then.
    pub fn swapped(&self, published_in: Duration, in_flight: InFlight) {
        self.swaps.get_or_create(&[("result", "ok")]).inc();
        self.publish.observe(published_in.as_secs_f64());
        for (kind, count) in [("request", in_flight.requests), ("stream", in_flight.streams)] {
            let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
            self.in_flight_at_cutover.get_or_create(&[("kind", kind)]).observe(count);
        }
    }

    /// A restart found a swap that was committed and not finished, and finishes it; how long its publish took is lost.
    pub fn swapped_before_a_restart(&self) {
        self.swaps.get_or_create(&[("result", "ok")]).inc();
    }

    /// Traffic was taken back from a version that did not hold.
    pub fn taken_back(&self) {
        self.swaps.get_or_create(&[("result", "taken_back")]).inc();
    }

    /// The old version of a swap has nothing in flight any more, so long after the cutover.
    pub fn drained(&self, after: Duration) {
        self.drain.observe(after.as_secs_f64());
    }

    /// An operation ended. `kind` and `result` are words of closed lists.
    pub fn operation_ended(&self, kind: &'static str, result: &'static str, took: Duration) {
        self.operations.get_or_create(&[("kind", kind), ("result", result)]).inc();
        self.operation_duration.get_or_create(&[("kind", kind)]).observe(took.as_secs_f64());
    }

    /// What runs was not what should run, and `op`, a word of a closed list, was done about it.
    pub fn corrected(&self, op: &'static str) {
        self.corrections.get_or_create(&[("op", op)]).inc();
    }

    /// Whether the runtime answered when it was last asked for what runs.
    pub fn runtime_answered(&self, is_up: bool) {
        self.runtime_up.set(i64::from(is_up));
    }

    /// The store wrote something, or tried to.
    pub fn store_committed(&self, took: Duration) {
        self.store_commit.observe(took.as_secs_f64());
    }

    /// The configuration was applied at `at`, in seconds since 1970.
    pub fn reloaded(&self, at: f64) {
        self.reload_success.set(1);
        self.reload_at.set(at);
    }

    /// The configuration was read and not applied.
    pub fn reload_refused(&self) {
        self.reload_success.set(0);
    }

    /// An order for a certificate ended; `result` is a word of a closed list.
    pub fn ordered(&self, result: &'static str) {
        self.acme_orders.get_or_create(&[("result", result)]).inc();
    }

    /// So many spans of traces were taken by their collector.
    pub fn spans_exported(&self, count: usize) {
        self.spans.exported.inc_by(count as u64);
    }

    /// There was no room for them.
    pub fn spans_dropped(&self, count: usize) {
        self.spans.dropped.inc_by(count as u64);
    }

    /// The collector will never take them.
    pub fn spans_refused(&self, count: usize) {
        self.spans.refused.inc_by(count as u64);
    }

    /// There was no time left to send them, or nowhere to send them to any more.
    pub fn spans_unsent(&self, count: usize) {
        self.spans.unsent.inc_by(count as u64);
    }

    pub(super) fn register(&self, present: &Present, registry: &mut Registry) {
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What runs", version);
        registry.register("swaps", "Cutovers, and those that were taken back", self.swaps.clone());
        let help = "From the commit of a swap to the published route table";
        registry.register_with_unit("swap_publish", help, Unit::Seconds, self.publish.clone());
        let help = "From the closing of the old version's gates to its last request";
        registry.register_with_unit("swap_drain", help, Unit::Seconds, self.drain.clone());
        let help = "In flight at the old version when its gates closed";
        registry.register("swap_in_flight_at_cutover", help, self.in_flight_at_cutover.clone());
        registry.register("operations", "Operations that ended", self.operations.clone());
        let help = "From an operation's acceptance to its end, the drain included";
        registry.register_with_unit(
            "operation_duration",
            help,
            Unit::Seconds,
            self.operation_duration.clone(),
        );
        let help = "What was done where something else ran than should";
        registry.register("reconcile_corrections", help, self.corrections.clone());
        let help = "Whether the runtime answered when it was last asked";
        registry.register("runtime_up", help, self.runtime_up.clone());
        registry.register_with_unit("store_commit", "Of one write", Unit::Seconds, self.store_commit.clone());
        let help = "Whether the last reload was applied";
        registry.register("config_last_reload_success", help, self.reload_success.clone());
        let help = "When the configuration was last applied";
        registry.register_with_unit(
            "config_last_reload_timestamp",
            help,
            Unit::Seconds,
            self.reload_at.clone(),
        );
        registry.register("acme_orders", "Orders for certificates that ended", self.acme_orders.clone());
        registry.register("trace_spans", "Spans of traces by what became of them", self.spans.all.clone());
        present.register(registry);
    }
}

impl Present {
    fn register(&self, registry: &mut Registry) {
        let gauge = |count: i64| {
            let gauge: Gauge = Gauge::default();
            gauge.set(count);
            gauge
        };
        let generation = i64::try_from(self.generation).unwrap_or(i64::MAX);
        registry.register("route_table_generation", "Rises with every publish", gauge(generation));
        let routes = i64::try_from(self.routes).unwrap_or(i64::MAX);
        registry.register("routes", "Published routes", gauge(routes));
        for (name, help, count) in [
            ("route_cache_hits", "Names of no exact route that the route cache knew", self.cache.hits),
            ("route_cache_misses", "Names of no exact route that it did not know", self.cache.misses),
        ] {
            let counter: Counter = Counter::default();
            counter.inc_by(count);
            registry.register(name, help, counter);
        }
        let health: Family<Vec<(&'static str, String)>, Gauge> = Family::default();
        for target in &self.targets {
            let labels = vec![
                ("app", target.app.clone()),
                ("environment", target.environment.clone()),
                ("deployment", target.deployment.clone()),
                ("instance", target.instance.clone()),
            ];
            health.get_or_create(&labels).set(i64::from(target.is_healthy));
        }
        if !self.certificates.is_empty() {
            let expiry: Family<Vec<(&'static str, String)>, Gauge<f64, AtomicU64>> = Family::default();
            for certificate in &self.certificates {
                expiry.get_or_create(&vec![("names", certificate.names.clone())]).set(certificate.at);
            }
            let help = "When a certificate expires";
            registry.register_with_unit("certificate_expiry_timestamp", help, Unit::Seconds, expiry);
        }
        registry.register("target_health", "Whether an instance that serves passes its checks", health);
    }
}
