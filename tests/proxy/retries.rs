//! Connections to targets: which are used again, and what is sent twice.

use crate::support::{GET, OK, Plane, Upstream, backend, field, pattern, status, unreachable, within};

fn post(path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc")
}

#[tokio::test]
async fn g1_the_connection_used_last_is_used_first() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let (mut first, mut second) = (plane.connect().await, plane.connect().await);
    first.send(GET).await;
    let mut one = upstream.accept().await;
    one.head().await;
    second.send(GET).await;
    let mut two = upstream.accept().await;
    two.head().await;
    one.send(OK).await;
    first.head().await;
    two.send(OK).await;
    second.head().await;
    for _ in 0..3 {
        first.send(GET).await;
        two.head().await;
        two.send(OK).await;
        first.head().await;
    }
    plane.shutdown().await;
}

/// `{name}: request, response → whether the upstream's connection may serve another request`.
const DOUBTS: &[(&str, &str, &str, bool)] = &[
    ("an end in order", GET, OK, true),
    ("chunks", GET, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", true),
    ("no content", GET, "HTTP/1.1 204 No Content\r\n\r\n", true),
    (
        "the answer to a head",
        "HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
        true,
    ),
    ("the upstream closes", GET, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", false),
    ("1.0", GET, "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", false),
    ("1.0 that keeps", GET, "HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n", true),
    ("bytes too many", GET, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nx", false),
    (
        "another response",
        GET,
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        false,
    ),
    ("a body to no content", GET, "HTTP/1.1 204 No Content\r\n\r\nbody", false),
    // It may follow when somebody else waits for an answer.
    ("a body that no content may have", GET, "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\n", false),
    (
        "chunks that no content may have",
        GET,
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        false,
    ),
    (
        "a body to a head",
        "HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody",
        false,
    ),
    (
        "length and chunks",
        GET,
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        false,
    ),
    ("an unasked upgrade", GET, "HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", false),
    (
        "a request not sent whole",
        "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9\r\n\r\nabc",
        OK,
        false,
    ),
];

#[tokio::test]
async fn k7_a_connection_in_doubt_is_never_used_again() {
    for (name, request, response, is_kept) in DOUBTS {
        let (plane, upstream) = (Plane::start(), Upstream::start().await);
        plane.route("a.test", &upstream);
        let mut client = plane.connect().await;
        client.send(request).await;
        let mut app = upstream.accept().await;
        app.head().await;
        app.send(response).await;
        client.head().await;
        drop(client);
        if *is_kept {
            plane.settle(|| upstream.target.gate.in_flight().requests == 0).await;
        } else {
            app.rest().await;
        }
        let mut next = plane.connect().await;
        next.send(GET).await;
        if *is_kept {
            app.head().await;
            app.send(OK).await;
        } else {
            let mut fresh = upstream.accept().await;
            fresh.head().await;
            fresh.send("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
        }
        assert_eq!(status(&next.head().await), if *is_kept { 200 } else { 201 }, "{name}");
        drop(next);
        plane.shutdown().await;
    }
}

#[tokio::test]
async fn l_a_connection_is_not_kept_longer_than_the_upstream_keeps_it() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send(GET).await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeep-Alive: timeout=1\r\n\r\n").await;
    client.head().await;
    // A second less is nothing.
    app.closed().await;
    plane.shutdown().await;
}

#[tokio::test]
async fn g2_a_get_is_sent_again_when_a_kept_connection_turns_out_to_be_closed() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let (mut client, mut app) = plane.kept(&upstream).await;
    client.send("GET /again HTTP/1.1\r\nHost: a.test\r\nX: y\r\n\r\n").await;
    let lost = app.head().await;
    drop(app);
    let mut fresh = upstream.accept().await;
    assert_eq!(fresh.head().await, lost);
    fresh.send(OK).await;
    assert_eq!(status(&client.head().await), 200);
    plane.shutdown().await;
}

#[tokio::test]
async fn g2_a_post_is_never_sent_twice() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send(post("/first")).await;
    let mut app = upstream.accept().await;
    app.until("\r\n\r\nabc").await;
    app.send(OK).await;
    client.head().await;
    client.send(post("/second")).await;
    app.until("\r\n\r\nabc").await;
    drop(app);
    let head = client.head().await;
    assert_eq!((status(&head), field(&head, "lockgate-reason")), (502, Some("upstream_reset")));
    // The next request would come after a repetition.
    client.bytes(field(&head, "content-length").unwrap().parse().unwrap()).await;
    client.send(GET).await;
    let mut next = upstream.accept().await;
    assert!(next.head().await.starts_with("GET / "));
    next.send(OK).await;
    assert_eq!(status(&client.head().await), 200);
    plane.shutdown().await;
}

#[tokio::test]
async fn g2_a_get_on_a_fresh_connection_is_not_sent_again() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send(GET).await;
    let mut app = upstream.accept().await;
    app.head().await;
    drop(app);
    assert_eq!(status(&client.head().await), 502);
    plane.shutdown().await;
}

#[tokio::test]
async fn g2_what_was_not_written_goes_to_another_target_also_a_post() {
    // It is not passed over because it fails: each request has to find that out by itself.
    let plane = Plane::with(|settings| settings.ejection.failures = 0);
    let (upstream, dead) = (Upstream::answering(OK).await, unreachable());
    let backend = backend(&[&dead, &upstream.target]);
    plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &backend));
    let mut client = plane.connect().await;
    // No more than may be sent once more if all of them come to the dead one first: 20, and one for five.
    const REQUESTS: usize = 24;
    for n in 0..REQUESTS {
        client.send(format!("POST /{n} HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n")).await;
        assert_eq!(status(&client.head().await), 200, "request {n}");
    }
    assert_eq!(upstream.heads().len(), REQUESTS);
    assert_eq!(dead.gate.in_flight().requests, 0);
    plane.shutdown().await;
}

#[tokio::test]
async fn g4_what_cannot_be_served_is_told_by_status_and_code() {
    let plane = Plane::start();
    let (empty, dead) = (backend(&[]), backend(&[&unreachable()]));
    let closed = Upstream::start().await;
    closed.target.gate.close();
    plane.routing.publish(|edit| {
        edit.route(&pattern("empty.test"), "/", &empty);
        edit.route(&pattern("dead.test"), "/", &dead);
        edit.route(&pattern("closed.test"), "/", &closed.backend);
    });
    for (host, expected, code, retry) in [
        ("empty.test", 503, "no_backend", Some("5")),
        ("dead.test", 502, "connect_failed", None),
        ("closed.test", 503, "draining", Some("1")),
    ] {
        let answer =
            plane.exchange(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert_eq!((status(&answer), field(&answer, "lockgate-reason")), (expected, Some(code)), "{answer}");
        assert_eq!(field(&answer, "retry-after"), retry);
        assert!(!answer.contains("127.0.0.1"), "{answer}");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn g4_targets_that_are_all_unhealthy_are_still_tried() {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    upstream.target.set_healthy(false);
    plane.route("a.test", &upstream);
    assert_eq!(
        status(&plane.exchange("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await),
        200
    );
    plane.shutdown().await;
}

#[tokio::test]
async fn balance_an_unhealthy_target_is_passed_over_and_the_less_busy_one_chosen() {
    let (plane, busy, free, sick) =
        (Plane::start(), Upstream::start().await, Upstream::answering(OK).await, Upstream::start().await);
    sick.target.set_healthy(false);
    let backend = backend(&[&busy.target, &free.target, &sick.target]);
    plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &backend));
    // Held requests: from then on the other one has less in flight.
    let held: Vec<_> = (0..2).map(|_| busy.target.gate.enter(0).unwrap()).collect();
    let mut client = plane.connect().await;
    for _ in 0..20 {
        client.send(GET).await;
        assert_eq!(status(&client.head().await), 200);
    }
    assert_eq!(free.heads().len(), 20);
    drop(held);
    within(plane.shutdown()).await;
}

#[tokio::test]
async fn g1_a_kept_connection_that_the_upstream_closed_is_not_used_for_a_post() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let (mut client, app) = plane.kept(&upstream).await;
    drop(app);
    plane.settle(|| upstream.target.connections.in_flight().requests == 0).await;
    client.send(post("/once")).await;
    let mut fresh = upstream.accept().await;
    fresh.until("\r\n\r\nabc").await;
    fresh.send(OK).await;
    assert_eq!(status(&client.head().await), 200);
    plane.shutdown().await;
}

#[tokio::test]
async fn g3_a_request_is_tried_three_times_and_retries_are_a_fifth_of_the_requests() {
    let plane = Plane::start();
    let dead = [unreachable(), unreachable(), unreachable()];
    let backend = backend(&[&dead[0], &dead[1], &dead[2]]);
    plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &backend));
    let retries = || {
        let metrics = plane.metrics();
        let lines = metrics.lines().filter(|line| line.starts_with("lockgate_retries_total"));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum::<u64>()
    };
    let mut client = plane.connect().await;
    let mut ask = async || {
        client.send(GET).await;
        let head = client.head().await;
        assert_eq!((status(&head), field(&head, "lockgate-reason")), (502, Some("connect_failed")));
        client.bytes(field(&head, "content-length").unwrap().parse().unwrap()).await;
    };
    ask().await;
    assert_eq!(retries(), 2, "of one request");
    const REQUESTS: u64 = 300;
    for _ in 1..REQUESTS {
        ask().await;
    }
    // What was saved up before, and one for five.
    assert!(retries() <= 20 + REQUESTS / 5, "{} retries", retries());
    plane.shutdown().await;
}
