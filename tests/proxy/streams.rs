//! Bodies that flow, in both directions, and connections that become something else.

use std::time::Duration;

use lockgate::gate::InFlight;

use crate::support::{GET, OK, Plane, SOCKET_BUFFERS, Upstream, Wire, field, status};

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";

#[tokio::test]
async fn e2_every_part_of_a_response_is_passed_on_as_it_comes() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send(GET).await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(status(&client.head().await), 200);
    for n in 0..3 {
        app.send(format!("data: {n}\n\n")).await;
        assert_eq!(client.until("\n\n\r\n").await, format!("9\r\ndata: {n}\n\n\r\n"));
        assert_eq!(upstream.target.gate.in_flight(), InFlight { requests: 0, streams: 1 });
    }
    app.finish().await;
    assert_eq!(client.until("0\r\n\r\n").await, "0\r\n\r\n");
    assert_eq!(upstream.target.gate.in_flight(), InFlight::default());
    plane.shutdown().await;
}

#[tokio::test]
async fn e1_a_slow_reader_slows_the_upstream() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send(GET).await;
    let mut app = upstream.accept().await;
    app.head().await;
    let total = 128 * 1024 * 1024;
    app.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n")).await;
    client.head().await;
    let sent = fill(&mut app).await;
    assert!(sent < SOCKET_BUFFERS, "{sent} bytes went into the proxy although nobody read");
    let rest = vec![b'x'; total - sent];
    let ((), got) = tokio::join!(app.send(&rest), client.bytes(total));
    assert_eq!(got.len(), total);
    plane.shutdown().await;
}

#[tokio::test]
async fn e1_a_slow_upstream_slows_the_sender() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    let total = 128 * 1024 * 1024;
    client.send(format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {total}\r\n\r\n")).await;
    let mut app = upstream.accept().await;
    app.head().await;
    let sent = fill(&mut client).await;
    assert!(sent < SOCKET_BUFFERS, "{sent} bytes went into the proxy although nobody read");
    drop((client, app));
    plane.shutdown().await;
}

/// Writes until nothing more is taken, and says how much was.
async fn fill(wire: &mut Wire) -> usize {
    let mut sent = 0;
    let block = vec![b'x'; 256 * 1024];
    let quiet = Duration::from_millis(300);
    while let Ok(written) = tokio::time::timeout(quiet, wire.write_some(&block)).await {
        sent += written;
    }
    sent
}

#[tokio::test]
async fn e1_a_request_body_is_passed_on_as_it_comes() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n").await;
    let mut app = upstream.accept().await;
    app.head().await;
    assert_eq!(app.until("one\r\n").await, "3\r\none\r\n");
    client.send("3\r\ntwo\r\n").await;
    assert_eq!(app.until("two\r\n").await, "3\r\ntwo\r\n");
    assert_eq!(upstream.target.gate.in_flight().requests, 1);
    client.send("0\r\n\r\n").await;
    assert_eq!(app.until("0\r\n\r\n").await, "0\r\n\r\n");
    app.send(OK).await;
    assert_eq!(status(&client.head().await), 200);
    plane.shutdown().await;
}

#[tokio::test]
async fn e3_an_early_response_is_passed_on_and_the_guard_waits_for_the_rest_of_the_request() {
    let plane = Plane::with(|settings| settings.limits.head = Duration::from_millis(30));
    let upstream = Upstream::start().await;
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 6\r\n\r\nabc").await;
    let mut app = upstream.accept().await;
    app.head().await;
    assert_eq!(app.bytes(3).await, b"abc");
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(status(&client.head().await), 200);
    assert_eq!(client.bytes(2).await, b"ok");
    assert_eq!(upstream.target.gate.in_flight().requests, 1);
    client.send("def").await;
    assert_eq!(app.bytes(3).await, b"def");
    plane.settle(|| upstream.target.gate.in_flight().requests == 0).await;
    // The rest of the body was not taken for the beginning of another head.
    tokio::time::sleep(Duration::from_millis(100)).await;
    client.send(GET).await;
    app.head().await;
    app.send(OK).await;
    assert_eq!(status(&client.head().await), 200);
    plane.shutdown().await;
}

/// Fixed fault: the request stood still, until the client was ended for reading nothing.
#[tokio::test]
async fn e3_a_request_goes_on_while_its_client_reads_nothing_of_the_response() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let mut app = upstream.accept().await;
    app.head().await;
    let total = 128 * 1024 * 1024;
    app.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n")).await;
    let mut left = total - fill(&mut app).await;
    let part = "x".repeat(1000);
    for n in 0..100 {
        let chunk = format!("3e8\r\n{part}\r\n");
        client.send(&chunk).await;
        assert_eq!(app.bytes(chunk.len()).await, chunk.as_bytes(), "{n}");
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(app.until("0\r\n\r\n").await, "0\r\n\r\n");
    // All of the response is there for whoever reads now.
    client.head().await;
    let block = vec![b'x'; 256 * 1024];
    let send = async {
        while left > 0 {
            left -= app.write_some(&block[..left.min(block.len())]).await;
        }
    };
    let read = async {
        let mut unread = total;
        while unread > 0 {
            unread -= client.bytes(unread.min(64 * 1024)).await.len();
        }
    };
    tokio::join!(send, read);
    plane.settle(|| upstream.target.gate.in_flight().requests == 0).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn e3_a_client_whose_early_response_is_long_over_is_closed_when_it_goes() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 6\r\n\r\nabc").await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send(OK).await;
    assert_eq!(status(&client.head().await), 200);
    client.send("def").await;
    assert_eq!(app.bytes(6).await, b"abcdef");
    plane.settle(|| upstream.target.gate.in_flight().requests == 0).await;
    client.finish().await;
    client.closed().await;
    plane.shutdown().await;
}

#[tokio::test]
async fn e4_a_client_that_is_gone_aborts_its_request() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let cases = [
        (GET, ""),
        ("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9\r\n\r\nabc", ""),
        (GET, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"),
        (GET, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"),
    ];
    for (request, response) in cases {
        let mut client = plane.connect().await;
        client.send(request).await;
        let mut app = upstream.accept().await;
        app.head().await;
        app.send(response).await;
        if !response.is_empty() {
            client.head().await;
        }
        client.reset();
        app.rest().await;
        plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn e4_a_client_that_ends_in_the_middle_of_its_request_aborts_it() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    for body in ["Content-Length: 9\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"] {
        let mut client = plane.connect().await;
        client.send(format!("POST / HTTP/1.1\r\nHost: a.test\r\n{body}")).await;
        let mut app = upstream.accept().await;
        app.head().await;
        client.finish().await;
        let seen = app.rest().await;
        assert!(seen.contains("abc") && !seen.ends_with("0\r\n\r\n"), "{seen}");
        plane.settle(|| upstream.target.gate.in_flight().requests == 0).await;
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn e5_a_client_that_closed_its_side_gets_its_answer() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send(GET).await;
    client.finish().await;
    let mut app = upstream.accept().await;
    app.head().await;
    // Long enough for the sweep to come by.
    tokio::time::sleep(Duration::from_millis(50)).await;
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let answer = client.rest().await;
    assert!(status(&answer) == 200 && answer.ends_with("\r\n\r\nok"), "{answer}");
    plane.shutdown().await;
}

#[tokio::test]
async fn c5_a_body_is_asked_for_when_the_upstream_reads_it_and_not_after_a_refusal() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    let head = "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    client.send(format!("POST / HTTP/1.1\r\nHost: a.test\r\n{head}")).await;
    assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    let mut app = upstream.accept().await;
    assert_eq!(field(&app.head().await, "expect"), None);
    client.send("abc").await;
    assert_eq!(app.bytes(3).await, b"abc");
    app.send(OK).await;
    assert_eq!(status(&client.head().await), 200);
    let refused = plane.exchange(format!("POST / HTTP/1.1\r\nHost: b.test\r\n{head}")).await;
    assert_eq!(status(&refused), 404);
    plane.shutdown().await;
}

#[tokio::test]
async fn e6_a_body_over_the_limit_is_refused_before_or_while_it_comes() {
    let plane = Plane::with(|settings| settings.limits.body_bytes = 5);
    let upstream = Upstream::start().await;
    plane.route("a.test", &upstream);
    let known = plane.exchange("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 6\r\n\r\n").await;
    assert_eq!((status(&known), field(&known, "lockgate-reason")), (413, Some("body_too_large")));
    let chunked = plane
        .exchange("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n")
        .await;
    assert_eq!(status(&chunked), 413);
    let seen = upstream.accept().await.rest().await;
    assert!(!seen.ends_with("0\r\n\r\n"), "{seen}");
    plane.shutdown().await;
}

#[tokio::test]
async fn f1_f3_an_upgraded_connection_carries_bytes_both_ways_and_counts_until_both_ended() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send(format!("{UPGRADE}early")).await;
    let mut app = upstream.accept().await;
    let head = app.head().await;
    for (name, value) in [
        ("connection", "upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ] {
        assert_eq!(field(&head, name), Some(value), "{head}");
    }
    app.send(format!("{SWITCHED}\x01\x05hello")).await;
    let head = client.head().await;
    assert_eq!(
        (status(&head), field(&head, "connection"), field(&head, "upgrade")),
        (101, Some("upgrade"), Some("websocket"))
    );
    assert_eq!(client.bytes(7).await, b"\x01\x05hello");
    assert_eq!(app.bytes(5).await, b"early");
    client.send("ping").await;
    assert_eq!(app.bytes(4).await, b"ping");
    assert_eq!(upstream.target.gate.in_flight(), InFlight { requests: 0, streams: 1 });
    // One direction ends, the other goes on.
    client.finish().await;
    app.closed().await;
    app.send("\x01\x01x").await;
    assert_eq!(client.bytes(3).await, b"\x01\x01x");
    assert_eq!(upstream.target.gate.in_flight().streams, 1);
    app.finish().await;
    client.closed().await;
    plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    plane.settle(|| upstream.target.connections.in_flight() == InFlight::default()).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn f2_another_answer_to_an_upgrade_is_a_response() {
    let (plane, upstream) = (
        Plane::start(),
        Upstream::answering("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno").await,
    );
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send(UPGRADE).await;
    assert_eq!(status(&client.head().await), 426);
    assert_eq!(client.bytes(2).await, b"no");
    client.send(GET).await;
    assert_eq!(status(&client.head().await), 426);
    plane.shutdown().await;
}

#[tokio::test]
async fn f1_a_large_transfer_through_a_tunnel_arrives_whole() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send(UPGRADE.replace("WebSocket", "raw")).await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send(SWITCHED.replace("websocket", "raw")).await;
    client.head().await;
    let data: Vec<u8> = (0..8_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (_, up) = tokio::join!(client.send(&data), app.bytes(data.len()));
    let (_, down) = tokio::join!(app.send(&data), client.bytes(data.len()));
    assert!(up == data && down == data);
    drop(client);
    app.closed().await;
    drop(app);
    plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    plane.shutdown().await;
}
