//! What one request pays for admission: enter and leave.

use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};

use lockgate::gate::Gate;

const WORKERS: usize = 8;

fn gate(c: &mut Criterion) {
    let mut group = c.benchmark_group("gate");
    let shared = Arc::new(Gate::new(WORKERS));
    group.bench_function("enter and leave, held by Arc", |b| b.iter(|| drop(black_box(shared.enter(3)))));
    // As workers do it: without a second counter that all of them write.
    let own = Rc::new(Gate::new(WORKERS));
    group.bench_function("enter and leave, held by a worker's Rc", |b| {
        b.iter(|| drop(black_box(Gate::enter_by(&own, 3))));
    });
    let closed = Arc::new(Gate::new(WORKERS));
    closed.close();
    group.bench_function("refused", |b| b.iter(|| black_box(closed.enter(3).is_err())));
    group.finish();
}

criterion_group!(benches, gate);
criterion_main!(benches);
