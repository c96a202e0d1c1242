//! What a reload pays to read and check a configuration.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use lockgate::config;

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("config");
    group.sample_size(10).measurement_time(Duration::from_secs(8));
    for (name, text) in [
        ("every key", include_str!("../config/lockgate.yaml").to_owned()),
        ("100 apps", apps(100)),
        ("1,000 host names", hosts(1_000)),
        ("100,000 host names", hosts(100_000)),
    ] {
        let parsed = || config::parse(black_box(&text), "bench.yaml", &|_| None).expect("it is valid");
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |b| b.iter(parsed));
    }
    group.finish();
}

fn apps(count: usize) -> String {
    let mut text = String::from("apps:\n");
    for number in 0..count {
        writeln!(
            text,
            "  app-{number}:\n    hosts: [app-{number}.example.com, '*.app-{number}.example.com']\n    \
             image: ghcr.io/acme/app-{number}:1.4.0\n    port: 3000\n    env: {{ LEVEL: info, NUMBER: '{number}' }}\n    \
             health: {{ path: /up, interval: 10s }}\n    deploy: {{ watch: 10s }}",
        )
        .expect("a String takes what is written");
    }
    text
}

/// One service under many names: short ones, for the limit of 1 MiB.
fn hosts(count: usize) -> String {
    let names: Vec<String> = (0..count).map(|number| format!("h{number:05}.t")).collect();
    format!("services:\n  many: {{ upstreams: ['http://127.0.0.1:8080'], hosts: [{}] }}\n", names.join(","))
}

criterion_group!(benches, parse);
criterion_main!(benches);
