//! Whose fault it is that a client did not get a whole answer, as it is counted for its backend.

use std::sync::Arc;

use lockgate::routing::Backend;
use lockgate::routing::backend::Order;
use lockgate::telemetry::Tally;

use crate::support::{Plane, Upstream, backend, pattern, status, unreachable};

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";

/// What was counted once `requests` have ended. Whose fault it was is counted after them, and then their guards go.
async fn tally(plane: &Plane, backend: &Arc<Backend>, requests: u64) -> [u64; 3] {
    plane.settle(|| backend.stats.tally().requests == requests).await;
    plane.settle(|| backend.targets.iter().all(|target| target.gate.in_flight().is_zero())).await;
    let Tally { requests, failed_by_app, failed_by_us, .. } = backend.stats.tally();
    [requests, failed_by_app, failed_by_us]
}

#[tokio::test]
async fn answers_of_the_application_fail_only_from_500_on() {
    let (plane, upstream) = (Plane::start(), Upstream::answering("").await);
    plane.route("a.test", &upstream);
    for (count, (answer, failed)) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0),
        ("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", 0),
        ("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", 1),
        // Not passed on: the client gets our 502.
        ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", 2),
    ]
    .into_iter()
    .enumerate()
    {
        upstream.answer(answer);
        status(&plane.exchange(GET).await);
        let requests = count as u64 + 1;
        assert_eq!(tally(&plane, &upstream.backend, requests).await, [requests, failed, 0], "{answer:?}");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn an_application_that_cannot_be_reached_or_ends_in_the_middle_failed() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    let dead = backend(&[&unreachable()]);
    plane.routing.publish(|edit| edit.route(&pattern("dead.test"), "/", &dead));
    plane.route("a.test", &upstream);
    plane.exchange("GET / HTTP/1.1\r\nHost: dead.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!(tally(&plane, &dead, 1).await, [1, 1, 0]);

    let mut client = plane.connect().await;
    client.send(GET).await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
    client.until("\r\n\r\nabc").await;
    drop(app);
    client.closed().await;
    assert_eq!(tally(&plane, &upstream.backend, 1).await, [1, 1, 0]);
    plane.shutdown().await;
}

#[tokio::test]
async fn a_client_that_leaves_is_nobodys_fault() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut before = plane.connect().await;
    before.send(GET).await;
    let mut app = upstream.accept().await;
    app.head().await;
    before.reset();
    assert_eq!(tally(&plane, &upstream.backend, 1).await, [1, 0, 0]);

    let mut during = plane.connect().await;
    during.send(GET).await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
    during.until("\r\n\r\nabc").await;
    during.reset();
    assert_eq!(tally(&plane, &upstream.backend, 2).await, [2, 0, 0]);
    plane.shutdown().await;
}

#[tokio::test]
async fn what_nothing_serves_and_what_a_deadline_cuts_is_ours() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    let empty = backend(&[]);
    plane.routing.publish(|edit| edit.route(&pattern("empty.test"), "/", &empty));
    plane.route("a.test", &upstream);
    plane.exchange("GET / HTTP/1.1\r\nHost: empty.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!(tally(&plane, &empty, 1).await, [1, 0, 1]);

    // One before its response, one in the middle of it.
    let mut clients = Vec::new();
    for answer in ["", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"] {
        let mut client = plane.connect().await;
        client.send(GET).await;
        let mut app = upstream.accept().await;
        app.head().await;
        app.send(answer).await;
        if !answer.is_empty() {
            client.until("\r\n\r\nabc").await;
        }
        clients.push((client, app));
    }
    upstream.target.gate.close();
    upstream.target.set_order(Order::CutRequests);
    plane.routing.signal_workers();
    assert_eq!(tally(&plane, &upstream.backend, 2).await, [2, 0, 2]);
    plane.shutdown().await;
}
