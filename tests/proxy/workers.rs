//! Workers beside one another: what they share, and what one of them survives.

use lockgate::gate::{Awaited, InFlight};
use lockgate::routing::backend::Order;

use crate::support::{
    CREATED, GET, OK, Plane, Upstream, WORKERS, Wire, backend, field, pattern, status, within,
};

/// So many that every worker has some; the kernel spreads them by their ports.
const CLIENTS: usize = 96;

fn start() -> Plane {
    Plane::of_workers(WORKERS, |_| {}).unwrap()
}

async fn connect(plane: &Plane) -> Vec<Wire> {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(plane.connect().await);
    }
    clients
}

#[tokio::test]
async fn p2_all_workers_serve_and_answer_from_a_new_table_at_once() {
    let (plane, versions) = (start(), [Upstream::answering(OK).await, Upstream::answering(CREATED).await]);
    let mut clients = connect(&plane).await;
    for swap in 0..20 {
        plane.route("a.test", &versions[swap % 2]);
        for client in &mut clients {
            client.send(GET).await;
        }
        for client in &mut clients {
            assert_eq!(status(&client.head().await), [200, 201][swap % 2], "swap {swap}");
        }
    }
    let taken = plane.taken();
    assert!(taken.iter().all(|taken| *taken > 0), "connections by worker: {taken:?}");
    let asked = versions.iter().map(|version| version.heads().len()).sum::<usize>();
    assert_eq!(asked, 20 * CLIENTS);
    plane.shutdown().await;
}

#[tokio::test]
async fn p3_a_drain_waits_for_the_requests_of_all_workers_and_orders_reach_all_of_them() {
    let (plane, upstream) = (start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut clients = connect(&plane).await;
    let mut apps = Vec::new();
    for client in &mut clients {
        client.send(GET).await;
        let mut app = upstream.accept().await;
        app.head().await;
        apps.push(app);
    }
    let target = &upstream.target;
    assert_eq!(target.gate.in_flight(), InFlight { requests: CLIENTS as u64, streams: 0 });
    target.gate.close();
    let mut drained = std::pin::pin!(target.gate.drained(Awaited::Everything));
    for (at, app) in apps.iter_mut().enumerate() {
        let waits = futures_util::poll!(drained.as_mut()).is_pending();
        assert!(waits, "drained with {} in flight", CLIENTS - at);
        app.send(OK).await;
        assert_eq!(status(&clients[at].head().await), 200);
    }
    within(drained).await;
    // Each worker has idle connections now, and closes them when it is told to.
    assert_eq!(target.connections.in_flight().requests, CLIENTS as u64);
    target.set_order(Order::CloseIdle);
    plane.routing.signal_workers();
    for app in &mut apps {
        app.closed().await;
    }
    within(target.connections.drained(Awaited::Everything)).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn h3_an_addresses_connections_are_counted_over_all_workers() {
    let plane =
        Plane::of_workers(WORKERS, |settings| settings.limits.connections_per_client = CLIENTS).unwrap();
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    let mut clients = connect(&plane).await;
    for client in &mut clients {
        client.send(GET).await;
        assert_eq!(status(&client.head().await), 200);
    }
    for _ in 0..WORKERS {
        let answer = plane.connect().await.rest().await;
        assert_eq!(field(&answer, "lockgate-reason"), Some("too_many_connections"), "{answer}");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn g6_what_one_worker_finds_out_about_a_target_all_know() {
    let (plane, well) = (start(), Upstream::answering(OK).await);
    let sick = Upstream::answering("HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n").await;
    plane.clock.advance(std::time::Duration::ZERO);
    let backend = backend(&[&sick.target, &well.target]);
    plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &backend));
    for client in &mut connect(&plane).await {
        client.send(GET).await;
        client.head().await;
    }
    assert_eq!(sick.heads().len(), 5);
    plane.shutdown().await;
}

#[tokio::test]
async fn a_panic_ends_one_connection_and_leaves_nothing_behind() {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    let mut other = plane.connect().await;
    other.send(GET).await;
    assert_eq!(status(&other.head().await), 200);
    // The first time is asked for when a request begins, the second when its target has answered.
    for nth in [1, 2] {
        let mut unlucky = plane.connect().await;
        unlucky.send(GET).await;
        assert_eq!(status(&unlucky.head().await), 200);
        plane.clock.panic_at(nth);
        unlucky.send(GET).await;
        unlucky.closed().await;
        assert_eq!(upstream.target.gate.in_flight(), InFlight::default());
        other.send(GET).await;
        assert_eq!(status(&other.head().await), 200);
        assert_eq!(status(&plane.exchange(GET.replace("Host", "Connection: close\r\nHost")).await), 200);
    }
    plane.settle(|| plane.metrics().contains("lockgate_listener_connections_open 1\n")).await;
    drop(other);
    plane.shutdown().await;
}

/// A worker that never comes to its next await cannot be ended; it must not keep the process.
#[tokio::test]
async fn a_worker_that_does_not_end_is_left_behind() {
    let plane = start();
    let mut client = plane.connect().await;
    client.send(GET).await;
    assert_eq!(status(&client.head().await), 404);
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (clock, holding) = (plane.clock.clone(), plane.clock.clone());
    let holder = std::thread::spawn(move || {
        let _stalled = holding.stalled.lock().unwrap();
        assert!(released.recv().is_err(), "it is dropped, not sent");
    });
    plane.settle(|| clock.stalled.try_lock().is_err()).await;
    // Its worker asks for the time and waits.
    client.send(GET).await;
    assert!(tokio::time::timeout(std::time::Duration::from_millis(200), client.head()).await.is_err());
    within(plane.plane.shutdown(std::time::Duration::from_millis(100))).await;
    drop(release);
    holder.join().unwrap();
}
