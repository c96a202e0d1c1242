//! What counting a request costs the worker that served it, with and without what judges its version.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use http::{Method, StatusCode, Version};

use lockgate::telemetry::BackendStats;

fn count(c: &mut Criterion) {
    let stats = BackendStats::for_service("some", 2);
    let cells = stats.of(0);
    let took = Duration::from_micros(1_234);
    let mut group = c.benchmark_group("count a request");
    group.bench_function("status and durations", |b| {
        b.iter(|| {
            cells.respond(black_box(&Method::GET), black_box(StatusCode::OK), Version::HTTP_11);
            cells.took(Some(black_box(took)), black_box(took));
        });
    });
    group.bench_function("and for its version", |b| {
        b.iter(|| {
            cells.respond(black_box(&Method::GET), black_box(StatusCode::OK), Version::HTTP_11);
            cells.took(Some(black_box(took)), black_box(took));
            cells.answered(black_box(took));
        });
    });
    group.finish();
    c.bench_function("sum up a version's counts", |b| b.iter(|| black_box(stats.tally())));
}

criterion_group! {
    name = benches;
    config = Criterion::default();
    targets = count
}
criterion_main!(benches);
