//! What makes no progress is ended, each phase by its own limit.

use std::time::Duration;

use lockgate::proxy::{Limits, ProxySettings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{GET, LONGER, OK, Plane, Upstream, field, status};

fn limit(change: impl FnOnce(&mut Limits)) -> impl FnOnce(&mut ProxySettings) {
    |settings| change(&mut settings.limits)
}

/// Of limits that nothing of a test has to keep to.
const SHORT: Duration = Duration::from_millis(80);

#[tokio::test]
async fn h1_a_kept_connection_without_a_request_is_closed() {
    let plane = Plane::with(limit(|limits| limits.keep_alive = LONGER));
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    plane.connect().await.closed().await;
    let mut used = plane.connect().await;
    used.send(GET).await;
    assert_eq!(status(&used.head().await), 200);
    used.closed().await;
    plane.shutdown().await;
}

/// As the kernel tells of its sockets: the timer that runs on the proxy's side of a connection.
#[tokio::test]
async fn k4_a_silent_client_is_probed_by_tcp_unless_that_is_off() {
    const KEEPALIVE: &str = "02";
    for (idle, is_probed) in
        [(Duration::from_secs(60), true), (Duration::from_secs(100_000), true), (Duration::ZERO, false)]
    {
        let plane = Plane::with(limit(|limits| limits.tcp_keepalive = idle));
        let upstream = Upstream::answering(OK).await;
        plane.route("a.test", &upstream);
        let mut client = plane.connect().await;
        client.send(GET).await;
        client.head().await;
        let port = |address: std::net::SocketAddr| format!(":{:04X}", address.port());
        let (ours, its) = (port(plane.address), port(client.stream.local_addr().unwrap()));
        let timer = || {
            let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
            let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            let mut rows = sockets.lines().map(fields);
            // The kernel leaves out rows while sockets come and go.
            let row = rows.find(|row| row[1].ends_with(&ours) && row[2].ends_with(&its))?;
            Some(row[5][..2].to_owned())
        };
        // Another timer runs until what was sent is acknowledged.
        let expected = if is_probed { KEEPALIVE } else { "00" };
        plane.settle(|| timer().as_deref() == Some(expected)).await;
        plane.shutdown().await;
    }
}

#[tokio::test]
async fn h1_h2_a_head_that_trickles_in_ends_with_408() {
    let plane = Plane::with(limit(|limits| limits.head = SHORT));
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send(GET).await;
    assert_eq!(status(&client.head().await), 200);
    let mut sent = 0;
    // Each byte is progress, but the deadline counts from the first.
    let head = loop {
        client.send("G").await;
        sent += 1;
        match tokio::time::timeout(Duration::from_millis(10), client.head()).await {
            Ok(head) => break head,
            Err(_) => assert!(sent < 500, "it goes on for ever"),
        }
    };
    assert_eq!((status(&head), field(&head, "connection")), (408, Some("close")));
    assert_eq!(field(&head, "lockgate-reason"), Some("request_timeout"));
    assert!(client.rest().await.contains(field(&head, "x-request-id").unwrap()));
    drop(client);
    plane.shutdown().await;
}

#[tokio::test]
async fn h1_a_request_body_that_stops_ends_with_408_and_aborts_the_upstream() {
    let plane = Plane::with(limit(|limits| limits.body_idle = SHORT));
    let upstream = Upstream::start().await;
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9\r\n\r\nabc").await;
    let mut app = upstream.accept().await;
    app.head().await;
    let answer = client.rest().await;
    assert_eq!((status(&answer), field(&answer, "lockgate-reason")), (408, Some("request_timeout")));
    assert_eq!(app.rest().await, "abc");
    drop(client);
    assert_eq!(upstream.target.gate.in_flight().requests, 0);
    plane.shutdown().await;
}

#[tokio::test]
async fn h2_a_request_body_below_the_least_rate_ends_with_408() {
    let plane = Plane::with(limit(|limits| {
        limits.body_floor_after = SHORT;
        limits.body_floor = 10_000;
    }));
    let upstream = Upstream::start().await;
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 900\r\n\r\n").await;
    let mut app = upstream.accept().await;
    let head = loop {
        client.send("x").await;
        if let Ok(head) = tokio::time::timeout(Duration::from_millis(10), client.head()).await {
            break head;
        }
    };
    assert_eq!(status(&head), 408);
    app.rest().await;
    drop(client);
    plane.shutdown().await;
}

/// Fixed fault: behind an early response a byte now and then held a connection to the app for as long as a client liked.
#[tokio::test]
async fn h2_a_request_body_below_the_least_rate_ends_behind_an_early_response_too() {
    let plane = Plane::with(limit(|limits| {
        limits.body_floor_after = SHORT;
        limits.body_floor = 10_000;
    }));
    let upstream = Upstream::start().await;
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9000\r\n\r\n").await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send(OK).await;
    assert_eq!(status(&client.head().await), 200);
    let rest = loop {
        client.send("x").await;
        if let Ok(rest) = tokio::time::timeout(Duration::from_millis(10), app.rest()).await {
            break rest;
        }
    };
    assert!(rest.len() < 9000, "it was sent whole");
    plane.settle(|| upstream.target.gate.in_flight().requests == 0).await;
    drop(client);
    plane.shutdown().await;
}

#[tokio::test]
async fn h1_an_upstream_that_does_not_answer_ends_with_504_whatever_it_says_before() {
    let plane = Plane::with(limit(|limits| limits.response_head = SHORT));
    let upstream = Upstream::start().await;
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send(GET).await;
    let mut app = upstream.accept().await;
    app.head().await;
    let mut interim = 0;
    let head = loop {
        // It may be given up already, a moment before its client is told.
        let _or_given_up = app.stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").await;
        interim += 1;
        match tokio::time::timeout(Duration::from_millis(10), client.head()).await {
            Ok(head) => break head,
            Err(_) => assert!(interim < 500, "it goes on for ever"),
        }
    };
    assert_eq!((status(&head), field(&head, "lockgate-reason")), (504, Some("upstream_timeout")));
    plane.settle(|| upstream.target.gate.in_flight().requests == 0).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn h1_a_response_that_stops_is_cut_and_an_event_stream_is_not() {
    let plane = Plane::with(limit(|limits| limits.response_idle = SHORT));
    let upstream = Upstream::start().await;
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send(GET).await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
    client.head().await;
    assert_eq!(client.rest().await, "abc");
    app.closed().await;
    let mut client = plane.connect().await;
    client.send(GET).await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await;
    client.head().await;
    tokio::time::sleep(SHORT * 3).await;
    app.send("data: x\n\n").await;
    client.until("data: x\n\n").await;
    drop((client, app));
    plane.shutdown().await;
}

#[tokio::test]
async fn e5_a_client_that_closed_its_side_does_not_wait_for_ever() {
    let plane = Plane::with(limit(|limits| limits.half_closed = SHORT));
    let upstream = Upstream::start().await;
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send(GET).await;
    let mut app = upstream.accept().await;
    app.head().await;
    client.finish().await;
    app.closed().await;
    plane.settle(|| upstream.target.gate.in_flight().requests == 0).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn g4_a_target_that_does_not_accept_ends_with_504() {
    let plane = Plane::with(limit(|limits| limits.connect = SHORT));
    // A listener whose backlog is full accepts nothing.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut filling = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(SHORT, tokio::net::TcpStream::connect(address)).await {
        filling.push(stream);
    }
    let upstream = Upstream::at(address).await;
    plane.route("a.test", &upstream);
    let answer = plane.exchange("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!((status(&answer), field(&answer, "lockgate-reason")), (504, Some("connect_timeout")));
    plane.shutdown().await;
}

#[tokio::test]
async fn h3_past_the_limit_a_new_connection_waits_and_old_ones_go_on() {
    let plane = Plane::with(limit(|limits| limits.connections = Some(1)));
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    let mut first = plane.connect().await;
    first.send(GET).await;
    assert_eq!(status(&first.head().await), 200);
    let mut second = plane.connect().await;
    second.send(GET).await;
    assert!(tokio::time::timeout(SHORT, second.head()).await.is_err(), "it was served past the limit");
    first.send(GET).await;
    assert_eq!(status(&first.head().await), 200);
    drop(first);
    assert_eq!(status(&second.head().await), 200);
    plane.shutdown().await;
}

#[tokio::test]
async fn h3_past_an_addresses_limit_a_new_connection_is_closed_and_old_ones_go_on() {
    let plane = Plane::with(limit(|limits| limits.connections_per_client = 2));
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    let mut open = [plane.connect().await, plane.connect().await];
    for client in &mut open {
        client.send(GET).await;
        assert_eq!(status(&client.head().await), 200);
    }
    let answer = plane.connect().await.rest().await;
    let reason = field(&answer, "lockgate-reason");
    assert_eq!((status(&answer), reason), (503, Some("too_many_connections")), "{answer}");
    assert!(field(&answer, "x-request-id").is_some() && field(&answer, "date").is_some(), "{answer}");
    assert!(plane.metrics().contains("lockgate_listener_connections_refused_total 1\n"));
    let metrics = plane.metrics();
    assert!(metrics.contains("lockgate_errors_total{reason=\"too_many_connections\"} 1\n"), "{metrics}");
    let [mut left, gone] = open;
    left.send(GET).await;
    assert_eq!(status(&left.head().await), 200);
    drop(gone);
    plane.settle(|| plane.metrics().contains("lockgate_listener_connections_open 1\n")).await;
    let mut next = plane.connect().await;
    next.send(GET).await;
    assert_eq!(status(&next.head().await), 200);
    plane.shutdown().await;
}

#[tokio::test]
async fn h3_connections_of_a_trusted_proxy_are_not_counted() {
    let plane = Plane::with(|settings| {
        settings.limits.connections_per_client = 1;
        settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    });
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    let mut open = [plane.connect().await, plane.connect().await, plane.connect().await];
    for client in &mut open {
        client.send(GET).await;
        assert_eq!(status(&client.head().await), 200);
    }
    plane.shutdown().await;
}

/// A response that never ends, as fast as it is taken.
async fn pour(mut app: crate::support::Wire) {
    app.head().await;
    app.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let chunk = format!("8000\r\n{}\r\n", "x".repeat(0x8000));
    while app.stream.write_all(chunk.as_bytes()).await.is_ok() {}
}

#[tokio::test]
async fn h2_a_response_that_is_read_below_the_least_rate_is_cut() {
    let plane = Plane::with(limit(|limits| {
        limits.body_floor_after = SHORT;
        limits.body_floor = 1_000_000;
    }));
    let upstream = Upstream::start().await;
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send(GET).await;
    let app = upstream.accept().await;
    let mut pouring = tokio::task::JoinSet::new();
    pouring.spawn(pour(app));
    client.head().await;
    // It reads, but a byte at a time.
    let cut = async {
        while upstream.target.gate.in_flight().requests > 0 {
            let _byte_or_end = client.stream.read(&mut [0]).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    crate::support::within(cut).await;
    pouring.join_next().await.unwrap().unwrap();
    plane.shutdown().await;
}

#[tokio::test]
async fn h2_a_response_that_is_read_steadily_is_not_cut_though_its_socket_is_always_full() {
    let plane = Plane::with(limit(|limits| {
        limits.body_floor_after = SHORT;
        limits.body_floor = 20_000;
    }));
    let upstream = Upstream::start().await;
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send(GET).await;
    let app = upstream.accept().await;
    let mut pouring = tokio::task::JoinSet::new();
    pouring.spawn(pour(app));
    client.head().await;
    for _ in 0..100 {
        // A hundred times the least rate.
        assert_eq!(client.bytes(30_000).await.len(), 30_000);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(upstream.target.gate.in_flight().requests, 1);
    drop(client);
    pouring.join_next().await.unwrap().unwrap();
    plane.shutdown().await;
}

/// Whatever a client had sent of its next request, and whenever it goes on: nothing is lost, and nothing is served twice.
#[tokio::test]
async fn a_connection_that_rested_goes_on_where_it_was() {
    let plane = Plane::with(limit(|limits| limits.rest = Duration::from_millis(1)));
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    let rests = || plane.plane.telemetry().of(0).connection_rests.get();
    let post = "POST /first HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\nbody";
    let second = "GET /second HTTP/1.1\r\nHost: a.test\r\n\r\n";
    // Before its first request, between two, and with the beginning of one behind the last: in the middle of a line, and
    // of a line's end.
    plane.settle(|| rests() == 1).await;
    for cut in [0, 1, 9, 21, 22, second.len() - 1] {
        for part in [format!("{post}{}", &second[..cut]), second[cut..].to_owned()] {
            // It rests here; so the next time is after the answer, however soon.
            let before = rests();
            client.send(part).await;
            assert_eq!(status(&client.head().await), 200, "cut at {cut}");
            plane.settle(|| rests() > before).await;
        }
    }
    // What it takes for a head begins with the body before it.
    let asked: Vec<String> =
        upstream.heads().iter().map(|head| head[..head.find(" HTTP").unwrap()].to_owned()).collect();
    assert_eq!(asked, ["POST /first", "bodyGET /second"].repeat(6));
    plane.shutdown().await;
}

#[tokio::test]
async fn a_connection_that_rests_is_closed_in_its_time_and_at_the_end() {
    let plane = Plane::with(limit(|limits| {
        limits.rest = Duration::from_millis(1);
        limits.keep_alive = LONGER;
    }));
    let rests = || plane.plane.telemetry().of(0).connection_rests.get();
    let mut idle = plane.connect().await;
    plane.settle(|| rests() > 0).await;
    idle.closed().await;
    plane.shutdown().await;
    let plane = Plane::with(limit(|limits| limits.rest = Duration::from_millis(1)));
    let rests = || plane.plane.telemetry().of(0).connection_rests.get();
    let mut kept = plane.connect().await;
    plane.settle(|| rests() > 0).await;
    let mut left = plane.connect().await;
    plane.settle(|| rests() > 1).await;
    left.finish().await;
    left.closed().await;
    let (ended, ()) = tokio::join!(kept.end(), plane.shutdown());
    assert_eq!(ended, Ok(()));
}
