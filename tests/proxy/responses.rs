//! What comes back from an upstream, well-formed or not.

use tokio::io::AsyncWriteExt;

use crate::support::{OK, Plane, Upstream, field, status};

/// `{name}: method, response → status, rest of the connection after the head`; `^` stands for a line end. The client
/// asks to close, so the rest ends.
const RESPONSES: &[(&str, &str, &str, u16, &str)] = &[
    ("a length", "GET", "HTTP/1.1 200 OK^Content-Length: 2^^ok", 200, "ok"),
    ("chunks", "GET", "HTTP/1.1 200 OK^Transfer-Encoding: chunked^^2;x^ok^0^^", 200, "2^ok^0^^"),
    ("until the end", "GET", "HTTP/1.1 200 OK^Connection: close^^ok", 200, "2^ok^0^^"),
    ("until the end of 1.0", "GET", "HTTP/1.0 200 OK^^ok", 200, "2^ok^0^^"),
    (
        "b7 length and chunks",
        "GET",
        "HTTP/1.1 200 OK^Content-Length: 5^Transfer-Encoding: chunked^^2^ok^0^^",
        200,
        "2^ok^0^^",
    ),
    ("b4 bare line feeds", "GET", "HTTP/1.1 200 OK\nX: y\nContent-Length: 2\n\nok", 200, "ok"),
    (
        "b4 bare line feeds around chunks",
        "GET",
        "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2^ok^0^^",
        200,
        "2^ok^0^^",
    ),
    (
        "b4 a bare carriage return",
        "GET",
        "HTTP/1.1 200 OK^X: a\rContent-Length: 9^Content-Length: 2^^ok",
        502,
        "*",
    ),
    ("b7 head with a length", "HEAD", "HTTP/1.1 200 OK^Content-Length: 2^^", 200, ""),
    ("b7 head with chunks", "HEAD", "HTTP/1.1 200 OK^Transfer-Encoding: chunked^^", 200, ""),
    ("b7 no content with a length", "GET", "HTTP/1.1 204 No Content^Content-Length: 2^^", 204, ""),
    ("b7 not modified with a length", "GET", "HTTP/1.1 304 Not Modified^Content-Length: 2^^", 304, ""),
    ("b7 equal lengths", "GET", "HTTP/1.1 200 OK^Content-Length: 2^Content-Length: 2^^ok", 200, "ok"),
    ("b7 equal lengths for head", "HEAD", "HTTP/1.1 200 OK^Content-Length: 2^Content-Length: 2^^", 200, ""),
    ("b7 odd length", "GET", "HTTP/1.1 200 OK^Content-Length: 002^^ok", 200, "ok"),
    (
        "c7 interim responses",
        "GET",
        "HTTP/1.1 103 Early Hints^Link: x^^HTTP/1.1 102 Processing^^HTTP/1.1 200 OK^Content-Length: 2^^ok",
        200,
        "ok",
    ),
    ("b7 unequal lengths", "GET", "HTTP/1.1 200 OK^Content-Length: 2^Content-Length: 3^^ok", 502, "*"),
    ("b7 a length that is none", "GET", "HTTP/1.1 200 OK^Content-Length: x^^ok", 502, "*"),
    ("b7 a list of equal lengths", "GET", "HTTP/1.1 200 OK^Content-Length: 2, 2^^ok", 502, "*"),
    ("b7 a sign", "GET", "HTTP/1.1 200 OK^Content-Length: +2^^ok", 502, "*"),
    (
        "b7 unequal lengths for head",
        "HEAD",
        "HTTP/1.1 200 OK^Content-Length: 2^Content-Length: 3^^",
        502,
        "*",
    ),
    ("b7 a sign for head", "HEAD", "HTTP/1.1 200 OK^Content-Length: -2^^", 502, "*"),
    ("b7 overflow for head", "HEAD", "HTTP/1.1 200 OK^Content-Length: 18446744073709551616^^", 502, "*"),
    ("b7 a list where there is no body", "GET", "HTTP/1.1 304 Not Modified^Content-Length: 2, 2^^", 502, "*"),
    ("b7 another coding", "GET", "HTTP/1.1 200 OK^Transfer-Encoding: gzip, chunked^^2^ok^0^^", 502, "*"),
    (
        "b7 two codings",
        "GET",
        "HTTP/1.1 200 OK^Transfer-Encoding: chunked^Transfer-Encoding: chunked^^2^ok^0^^",
        502,
        "*",
    ),
    ("b7 chunks in 1.0", "GET", "HTTP/1.0 200 OK^Transfer-Encoding: chunked^^2^ok^0^^", 502, "*"),
    ("b7 not http", "GET", "SSH-2.0-x^^", 502, "*"),
    ("b7 space before the colon", "GET", "HTTP/1.1 200 OK^X : y^^", 502, "*"),
    ("b7 folded", "GET", "HTTP/1.1 200 OK^X: y^ z^^", 502, "*"),
    ("k5 status 999", "GET", "HTTP/1.1 999 X^Content-Length: 0^^", 502, "*"),
    ("k5 status 099", "GET", "HTTP/1.1 099 X^Content-Length: 0^^", 502, "*"),
    (
        "k5 an upgrade nobody asked for",
        "GET",
        "HTTP/1.1 101 Switching Protocols^Upgrade: websocket^Connection: upgrade^^",
        502,
        "*",
    ),
];

#[tokio::test]
async fn b7_k5_a_response_is_framed_anew_or_502() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("*", &upstream);
    for (name, method, response, expected, rest) in RESPONSES {
        let mut client = plane.connect().await;
        client.send(format!("{method} / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")).await;
        let mut app = upstream.accept().await;
        app.head().await;
        app.send(response.replace('^', "\r\n")).await;
        // Where the end of the connection is the end of the body.
        if rest.starts_with('2') && !response.contains("chunked") {
            app.finish().await;
        }
        let head = client.head().await;
        assert_eq!(status(&head), *expected, "{name}: {head}");
        assert!(
            !head.replace("\r\n", "").contains(['\r', '\n']),
            "{name}: line ends are always ours: {head:?}"
        );
        let body = client.rest().await;
        if *rest == "*" {
            assert!(
                ["upstream_malformed", "upstream_reset"].contains(&field(&head, "lockgate-reason").unwrap()),
                "{name}: {head}"
            );
            assert!(!head.contains("127.0.0.1") && !body.contains("127.0.0.1"), "{name}: {body}");
        } else {
            assert_eq!(body, rest.replace('^', "\r\n"), "{name}");
            assert!(field(&head, "date").is_some(), "{name}: c4");
        }
        if name.contains("length and chunks") {
            app.closed().await;
        }
        drop(app);
        // Whatever was left over is nobody else's answer.
        upstream.target.connections.close();
        plane.settle(|| upstream.target.connections.in_flight().requests <= 1).await;
        upstream.target.connections.reopen();
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn c7_interim_responses_without_end_are_502() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("*", &upstream);
    // And the empty lines that may stand before each.
    for flood in ["HTTP/1.1 103 Early Hints\r\n\r\n".repeat(100_000), "\r\n".repeat(1_000_000)] {
        let mut client = plane.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        let mut app = upstream.accept().await;
        app.head().await;
        // It is cut off, or what is left of it finds room on the way.
        let _cut_or_sent = app.stream.write_all(flood.as_bytes()).await;
        let head = client.head().await;
        assert_eq!((status(&head), field(&head, "lockgate-reason")), (502, Some("upstream_malformed")));
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn b8_a_response_head_that_is_too_large_is_502() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("*", &upstream);
    for (count, size, expected) in [(90, 100, 200), (101, 1, 502), (1, 60_000, 200), (2, 40_000, 502)] {
        let fields: String = (0..count).map(|n| format!("X-{n}: {}\r\n", "x".repeat(size))).collect();
        let mut client = plane.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        let mut app = upstream.accept().await;
        app.head().await;
        app.send(format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n{fields}\r\n")).await;
        assert_eq!(status(&client.head().await), expected, "{count} fields of {size}");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn c1_what_an_upstream_says_to_this_hop_stays_here() {
    let upstream = Upstream::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=9\r\nX-Hop: 1\r\n\
         Proxy-Authenticate: x\r\nUpgrade: h2c\r\nLockgate-Reason: no_route\r\nlockgate-generation: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nServer: app\r\nX-End: 1\r\n\r\n",
    );
    let (plane, upstream) = (Plane::start(), upstream.await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let head = client.head().await;
    for gone in ["connection", "keep-alive", "x-hop", "proxy-authenticate", "upgrade"] {
        assert_eq!(field(&head, gone), None, "{head}");
    }
    for ours in ["lockgate-reason", "lockgate-generation"] {
        assert_eq!(field(&head, ours), None, "a client would take it for ours: {head}");
    }
    assert!(head.contains("set-cookie: a=1\r\nset-cookie: b=2\r\n"), "{head}");
    assert_eq!((field(&head, "server"), field(&head, "x-end")), (Some("app"), Some("1")));
    plane.shutdown().await;
}

#[tokio::test]
async fn e4_b7_a_response_that_is_cut_short_is_seen_to_be_cut_short() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("*", &upstream);
    for (version, response, seen) in [
        ("1.1", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", "ab"),
        ("1.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", "2\r\nab\r\n"),
        ("1.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "2\r\nab\r\n"),
    ] {
        let mut client = plane.connect().await;
        client.send(format!("GET / HTTP/{version}\r\nHost: a.test\r\n\r\n")).await;
        let mut app = upstream.accept().await;
        app.head().await;
        app.send(response).await;
        assert_eq!(status(&client.head().await), 200);
        assert_eq!(client.bytes(seen.len()).await, seen.as_bytes());
        app.finish().await;
        client.closed().await;
    }
    // A client of 1.0 learns the end of a body from the end of the connection: this one must be none.
    let mut client = plane.connect().await;
    client.send("GET / HTTP/1.0\r\nHost: a.test\r\n\r\n").await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n").await;
    client.until("\r\n\r\nab").await;
    app.finish().await;
    assert_eq!(client.end().await, Err(std::io::ErrorKind::ConnectionReset));
    plane.settle(|| upstream.target.gate.in_flight().requests == 0).await;
    assert!(plane.metrics().contains("lockgate_errors_total{reason=\"upstream_truncated\"} 4"));
    plane.shutdown().await;
}

#[tokio::test]
async fn c6_trailers_come_down_to_those_who_take_them() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("*", &upstream);
    for (te, end) in [("TE: trailers\r\nConnection: TE\r\n", "0\r\nx-sum: 1\r\n\r\n"), ("", "0\r\n\r\n")] {
        let mut client = plane.connect().await;
        client.send(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{te}\r\n")).await;
        let mut app = upstream.accept().await;
        app.head().await;
        app.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\nConnection: close\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n").await;
        client.head().await;
        assert_eq!(client.until("a\r\n").await, "1\r\na\r\n");
        assert_eq!(client.until("\r\n\r\n").await, end);
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn c6_fields_of_ours_do_not_come_down_in_trailers_either() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("*", &upstream);
    let mut client = plane.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\nTE: trailers\r\nConnection: TE\r\n\r\n").await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, Lockgate-Reason\r\nConnection: close\r\n\r\n1\r\na\r\n0\r\nLockgate-Reason: no_route\r\nX-Sum: 1\r\n\r\n").await;
    client.head().await;
    assert_eq!(client.until("a\r\n").await, "1\r\na\r\n");
    assert_eq!(client.until("\r\n\r\n").await, "0\r\nx-sum: 1\r\n\r\n");
    plane.shutdown().await;
}

#[tokio::test]
async fn a5_an_own_answer_to_head_has_the_same_fields_and_no_body() {
    let plane = Plane::start();
    let get = plane.exchange("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
    let head = plane.exchange("HEAD / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
    assert!(head.ends_with("\r\n\r\n"), "{head}");
    for name in ["content-length", "content-type", "cache-control", "lockgate-reason"] {
        assert_eq!(field(&get, name), field(&head, name), "{name}");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn j1_requests_are_counted_by_what_the_client_got() {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    plane
        .exchange("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc")
        .await;
    plane.exchange("GET / HTTP/1.1\r\nHost: b.test\r\nConnection: close\r\n\r\n").await;
    let metrics = plane.metrics();
    for line in [
        "lockgate_http_requests_total{app=\"test\",environment=\"\",deployment=\"\",method=\"POST\",code=\"200\",protocol=\"1.1\"} 1",
        "lockgate_http_requests_total{app=\"_unmatched\",environment=\"\",deployment=\"\",method=\"GET\",code=\"404\",protocol=\"1.1\"} 1",
        "lockgate_http_request_body_size_bytes_sum{app=\"test\",environment=\"\",deployment=\"\"} 3.0",
        "lockgate_http_request_body_size_bytes_bucket{le=\"0.0\",app=\"test\",environment=\"\",deployment=\"\"} 0",
        "lockgate_http_request_body_size_bytes_bucket{le=\"256.0\",app=\"test\",environment=\"\",deployment=\"\"} 1",
        "lockgate_http_response_body_size_bytes_sum{app=\"test\",environment=\"\",deployment=\"\"} 0.0",
        "lockgate_http_response_body_size_bytes_bucket{le=\"0.0\",app=\"test\",environment=\"\",deployment=\"\"} 1",
        "lockgate_upstream_response_head_seconds_count{app=\"test\",environment=\"\",deployment=\"\"} 1",
        "lockgate_upstream_response_head_seconds_count{app=\"_unmatched\",environment=\"\",deployment=\"\"} 0",
        "lockgate_errors_total{reason=\"no_route\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    plane.shutdown().await;
}
