//! How long a cutover takes until the last worker has seen it, by the number of host names.
//!
//! Publish and closed gates are seen by whoever looks next; what a worker does of its own is to close the connections
//! that it keeps to the version before. So that is its acknowledgement.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};

use lockgate::clock::{Clock, SystemClock};
use lockgate::gate::InFlight;
use lockgate::ids::InstanceId;
use lockgate::proxy::{self, Limits, ProxySettings};
use lockgate::routing::backend::Order;
use lockgate::routing::{Backend, HostName, HostPattern, Routing, Target};
use lockgate::telemetry::BackendStats;

const WORKERS: usize = 4;
/// So many that every worker has some: the kernel spreads them by their ports.
const CLIENTS: usize = 64;
const HOSTS: [usize; 2] = [1, 100_000];

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: app-0.test\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const END: &[u8] = b"\r\n\r\n";

/// A version with one instance, which answers for ever.
struct Version {
    target: Arc<Target>,
    backend: Arc<Backend>,
}

impl Version {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it listens");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || answer(stream));
            }
        });
        let target = Arc::new(Target::new(InstanceId::generate(), address, WORKERS));
        let stats = Arc::new(BackendStats::for_service("bench", WORKERS));
        let backend = Arc::new(Backend::new(Box::new([Arc::clone(&target)]), stats));
        Self { target, backend }
    }
}

fn answer(mut stream: TcpStream) {
    while read_head(&mut stream) && stream.write_all(ANSWER).is_ok() {}
}

/// Reads one head; `false` if the other side ended.
fn read_head(stream: &mut TcpStream) -> bool {
    let (mut read, mut buf) = (0, [0; 8192]);
    while !buf[..read].ends_with(END) {
        match stream.read(&mut buf[read..]) {
            Ok(0) | Err(_) => return false,
            Ok(more) => read += more,
        }
    }
    true
}

fn cutover(c: &mut Criterion) {
    let mut group = c.benchmark_group("cutover");
    for hosts in HOSTS {
        let routing = Arc::new(Routing::new(WORKERS));
        let versions = [Version::start(), Version::start()];
        routing.publish(|edit| {
            for number in 1..hosts {
                edit.route(&host(number), "/", &versions[0].backend);
            }
        });
        let address = start(&routing);
        let connect = |_| TcpStream::connect(address).expect("it listens");
        let mut clients: Vec<TcpStream> = (0..CLIENTS).map(connect).collect();
        let mut live = 0;
        lead(&routing, &versions[live]);
        let name = format!("{WORKERS} workers, {CLIENTS} connections to close");
        group.bench_function(BenchmarkId::new(name, hosts), |b| {
            b.iter_batched(
                || {
                    warm(&mut clients);
                    let before = live;
                    live = 1 - live;
                    (&versions[before], &versions[live])
                },
                |(from, to)| {
                    to.target.gate.reopen();
                    to.target.set_order(Order::Serve);
                    lead(&routing, to);
                    from.target.gate.close();
                    from.target.set_order(Order::CloseIdle);
                    routing.signal_workers();
                    while from.target.connections.in_flight() != InFlight::default() {
                        thread::yield_now();
                    }
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// Has every client ask at once, so that each has a connection of its worker's kept for it.
fn warm(clients: &mut [TcpStream]) {
    for client in &mut *clients {
        client.write_all(REQUEST).expect("it is open");
    }
    for client in clients {
        assert!(read_head(client), "it is answered");
    }
}

fn lead(routing: &Routing, to: &Version) {
    routing.publish(|edit| edit.route(&host(0), "/", &to.backend));
}

fn host(number: usize) -> HostPattern {
    let name: HostName = format!("app-{number}.test").parse().expect("it is a host name");
    HostPattern::Exact(name)
}

/// A data plane for as long as the process lives.
fn start(routing: &Arc<Routing>) -> SocketAddr {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let settings = ProxySettings {
        listen: vec!["127.0.0.1:0".parse().expect("it is an address")],
        limits: Limits { connections_per_client: 0, ..Limits::default() },
        ..ProxySettings::default()
    };
    let plane = proxy::start(settings, routing, &clock).expect("it starts");
    let address = plane.addresses()[0];
    std::mem::forget(plane);
    address
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(50);
    targets = cutover
}
criterion_main!(benches);
