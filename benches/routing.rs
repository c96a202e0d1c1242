//! What a request pays to find its route, and a swap to publish one, by the number of host names.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

use lockgate::routing::{Backend, HostName, HostPattern, Routing};
use lockgate::telemetry::BackendStats;

const HOSTS: [usize; 3] = [1, 1_000, 100_000];

/// Without a factor in common with any of [`HOSTS`]: each name is asked for, far from the last one.
const STEP: usize = 61_803;

/// The published routes of many host names, and the names.
struct Bed {
    routing: Routing,
    hosts: Vec<HostName>,
    blue: Arc<Backend>,
    green: Arc<Backend>,
}

impl Bed {
    fn of(hosts: usize) -> Self {
        let routing = Routing::new(1);
        let (blue, green) = (backend("blue"), backend("green"));
        let hosts: Vec<HostName> = (0..hosts).map(host).collect();
        routing.publish(|edit| {
            for host in &hosts {
                edit.route(&HostPattern::Exact(host.clone()), "/", &blue);
            }
        });
        Self { routing, hosts, blue, green }
    }

    /// Every host name in turn, for ever.
    fn in_turn(&self) -> impl Iterator<Item = &HostName> {
        (0..).map(|turn: usize| &self.hosts[turn.wrapping_mul(STEP) % self.hosts.len()])
    }

    /// Fills the cache as far as it goes.
    fn warm(&self) {
        self.hosts.iter().for_each(|host| drop(black_box(self.routing.resolve(host))));
    }
}

fn host(number: usize) -> HostName {
    format!("app-{number}.customers.example.com").parse().expect("it is a host name")
}

fn backend(name: &str) -> Arc<Backend> {
    Arc::new(Backend::new(Box::default(), Arc::new(BackendStats::for_service(name, 1))))
}

fn resolve(c: &mut Criterion) {
    let mut group = c.benchmark_group("resolve");
    for count in HOSTS {
        let bed = Bed::of(count);
        bed.warm();
        group.bench_function(BenchmarkId::new("through the cache", count), |b| {
            let mut hosts = bed.in_turn();
            b.iter(|| hosts.next().map(|host| black_box(bed.routing.resolve(host))));
        });
        group.bench_function(BenchmarkId::new("table alone", count), |b| {
            let table = bed.routing.table();
            let mut hosts = bed.in_turn();
            b.iter(|| hosts.next().map(|host| black_box(table.resolve(host))));
        });
        group.bench_function(BenchmarkId::new("unknown name", count), |b| {
            let unknown: HostName = "www.nobody.example.com".parse().expect("it is a host name");
            b.iter(|| black_box(bed.routing.resolve(&unknown)));
        });
    }
    group.finish();
}

fn publish(c: &mut Criterion) {
    let mut group = c.benchmark_group("publish");
    for count in HOSTS {
        let bed = Bed::of(count);
        let host = HostPattern::Exact(bed.hosts[count / 2].clone());
        group.bench_function(BenchmarkId::new("one swap", count), |b| {
            let mut next = [&bed.green, &bed.blue].into_iter().cycle();
            b.iter(|| next.next().map(|to| bed.routing.publish(|edit| edit.route(&host, "/", to))));
        });
        // The request that comes first after a swap empties the cache for all.
        group.bench_function(BenchmarkId::new("first request after a swap", count), |b| {
            b.iter_batched(
                || {
                    bed.warm();
                    bed.routing.publish(|edit| edit.route(&host, "/", &bed.green));
                },
                |()| black_box(bed.routing.resolve(&bed.hosts[0])),
                criterion::BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = resolve, publish
}
criterion_main!(benches);
