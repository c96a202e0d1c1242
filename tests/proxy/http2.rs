//! Requests over HTTP/2: what the application gets of them, and what the client gets of its answer.

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use lockgate::gate::InFlight;
use lockgate::proxy::AccessLogSink;
use serde_json::Value;

use crate::support::{OK, Plane, Upstream, Wire, field, status};
use crate::support_http2::{
    DATA, END_STREAM, GOAWAY, HEADERS, Http2, PREFACE, PROTOCOL_ERROR, RST_STREAM, SETTINGS, Whole, data,
    fields, frame, get, post, request,
};

#[tokio::test]
async fn a_request_over_http2_reaches_the_app_as_one_of_http11() {
    let plane = Plane::with(|settings| settings.via = Some("proxy".to_owned()));
    let upstream = Upstream::start().await;
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    let request = Request::get("http://a.test/x/../y%2F?q=1").header("cookie", "a=1").header("cookie", "b=2");
    let request = request.header("te", "trailers").header("x-forwarded-for", "192.0.2.1").body(()).unwrap();
    let (response, _) = client.begin(request, false).await;
    let mut app = upstream.accept().await;
    let head = app.head().await;
    assert!(head.starts_with("GET /x/../y%2F?q=1 HTTP/1.1\r\n"), "{head}");
    for (name, value) in [
        ("host", "a.test"),
        ("cookie", "a=1; b=2"),
        ("te", "trailers"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "a.test"),
        ("via", "2.0 proxy"),
    ] {
        assert_eq!(field(&head, name), Some(value), "{name}: {head}");
    }
    assert_eq!(head.matches("ookie:").count(), 1, "{head}");
    app.send("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=9\r\nContent-Length: 5\r\n\r\nhello")
        .await;
    let answer = Whole::of(response).await;
    assert_eq!((answer.status(), answer.text()), (200, "hello"));
    assert_eq!((answer.field("content-length"), answer.field("via")), (Some("5"), Some("1.1 proxy")));
    assert_eq!(answer.field("x-request-id"), field(&head, "x-request-id"));
    assert!(answer.field("date").is_some() && answer.field("connection").is_none());
    assert!(answer.field("keep-alive").is_none());
    assert_eq!(upstream.target.gate.in_flight(), InFlight::default());
    plane.shutdown().await;
}

#[tokio::test]
async fn a3_authority_and_host_are_one_and_the_same_and_one_is_there() {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    for (fields, expected) in [
        (&[(":authority", "a.test")][..], 200),
        (&[("host", "a.test")], 200),
        (&[(":authority", "a.test"), ("host", "A.test")], 200),
        (&[(":authority", "A.test:80")], 200),
        (&[(":authority", "a.test"), ("host", "b.test")], 400),
        (&[(":authority", "a.test"), ("host", "a.test"), ("host", "b.test")], 400),
        (&[("host", "a.test"), ("host", "a.test")], 400),
        (&[], 400),
        (&[(":authority", "me@a.test")], 400),
        (&[(":authority", "a_ .test")], 400),
    ] {
        let mut all = vec![(":method", "GET"), (":scheme", "http"), (":path", "/")];
        all.extend(fields);
        assert_eq!(answered(&plane, &all).await, expected, "{fields:?}");
    }
    let ftp = [(":method", "GET"), (":scheme", "ftp"), (":path", "/"), (":authority", "a.test")];
    assert_eq!(answered(&plane, &ftp).await, 400);
    let options = [(":method", "OPTIONS"), (":scheme", "http"), (":path", "*"), (":authority", "a.test")];
    assert_eq!(answered(&plane, &options).await, 204);
    let hosts: Vec<String> =
        upstream.heads().iter().map(|head| field(head, "host").unwrap().to_owned()).collect();
    assert_eq!(hosts, ["a.test", "a.test", "a.test", "A.test:80"]);
    plane.shutdown().await;
}

/// The status of the answer to a request of these fields; 400 for a stream that was reset for what it is.
async fn answered(plane: &Plane, all: &[(&str, &str)]) -> u16 {
    let mut client = Wire::begin_http2(plane).await;
    client.send(frame(HEADERS, 4 | END_STREAM, 1, &fields(all))).await;
    loop {
        let frame = client.try_frame().await.unwrap();
        match frame.kind {
            HEADERS => {
                let mut decoder = h2_status(&frame.payload);
                return decoder.take().unwrap_or_else(|| panic!("no status: {frame:?}"));
            }
            RST_STREAM => {
                assert_eq!(frame.reason(), PROTOCOL_ERROR);
                return 400;
            }
            _ => {}
        }
    }
}

/// The status that a header block of ours begins with.
fn h2_status(block: &[u8]) -> Option<u16> {
    // Indexed: RFC 7541, appendix A.
    match block.first()? {
        0x88 => Some(200),
        0x89 => Some(204),
        0x8c => Some(400),
        0x8d => Some(404),
        // A literal whose name is `:status`, its value perhaps by Huffman.
        _ => None,
    }
}

#[tokio::test]
async fn b9_malformed_requests_reset_their_stream_and_reach_nobody() {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    let malformed: &[&[(&str, &str)]] = &[
        &[("connection", "close")],
        &[("transfer-encoding", "chunked")],
        &[("upgrade", "websocket")],
        &[("keep-alive", "1")],
        &[("proxy-connection", "close")],
        &[("te", "gzip")],
        &[("X-Capital", "1")],
        &[("x-crlf", "a\r\nb: c")],
        &[("x-nul", "a\0b")],
        &[("x\r\ny", "a")],
        &[("x y", "a")],
        &[(":path", "/twice")],
        &[(":unknown", "1")],
        &[("x-before", "1"), (":late", "1")],
        &[("content-length", "5")],
        &[("content-length", "-1")],
    ];
    for more in malformed {
        let mut client = Wire::begin_http2(&plane).await;
        client.send(request(1, END_STREAM, more)).await;
        // What is no name at all cannot be decoded, and then the connection is in doubt.
        let frame = client.frame_of(&[RST_STREAM, GOAWAY]).await;
        assert_eq!(frame.reason(), PROTOCOL_ERROR, "{more:?}: {frame:?}");
    }
    let mut client = Wire::begin_http2(&plane).await;
    client.send(request(1, END_STREAM, malformed[0])).await;
    client.frame(RST_STREAM).await;
    // The connection has not suffered.
    client.send(request(3, END_STREAM, &[])).await;
    assert_eq!(client.frame(HEADERS).await.stream, 3);
    assert_eq!(upstream.heads().len(), 1);
    plane.shutdown().await;
}

#[tokio::test]
async fn b9_a_value_with_spaces_around_it_is_refused() {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    for (value, expected) in [("a", 200), (" a", 400), ("a\t", 400)] {
        let all =
            [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a.test"), ("x", value)];
        assert_eq!(answered(&plane, &all).await, expected, "{value:?}");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn b9_data_that_disagrees_with_its_length_is_a_stream_error_and_no_request_upstream_is_whole() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    for body in ["abc", "abcdefg"] {
        let mut client = Wire::begin_http2(&plane).await;
        client.send(request(1, 0, &[("content-length", "5")])).await;
        let mut app = upstream.accept().await;
        app.head().await;
        client.send(frame(DATA, END_STREAM, 1, body.as_bytes())).await;
        let reset = client.frame(RST_STREAM).await;
        assert_eq!((reset.stream, reset.reason()), (1, PROTOCOL_ERROR), "{body}");
        let seen = app.rest().await;
        assert!(seen.len() < 5, "{seen:?}");
        plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn k1_a_body_without_a_length_is_framed_by_chunks_whatever_the_method() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    for method in [Method::GET, Method::HEAD, Method::POST, Method::DELETE] {
        let request = Request::builder().method(method.clone()).uri("http://a.test/").body(()).unwrap();
        let (response, mut body) = client.begin(request, true).await;
        body.send_data(Bytes::from_static(b"abc"), true).unwrap();
        let mut app = upstream.accept().await;
        let head = app.head().await;
        assert_eq!(field(&head, "transfer-encoding"), Some("chunked"), "{head}");
        assert_eq!(app.until("0\r\n\r\n").await, "3\r\nabc\r\n0\r\n\r\n");
        app.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        assert_eq!(Whole::of(response).await.status(), 200, "{method}");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn c6_trailers_pass_both_ways() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    let request = Request::post("http://a.test/").header("trailer", "x-sum").header("te", "trailers");
    let (response, mut body) = client.begin(request.body(()).unwrap(), true).await;
    body.send_data(Bytes::from_static(b"abc"), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "1".parse().unwrap());
    body.send_trailers(trailers).unwrap();
    let mut app = upstream.accept().await;
    let head = app.head().await;
    assert_eq!(field(&head, "te"), Some("trailers"), "{head}");
    assert_eq!(app.until("\r\n\r\n").await, "3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n");
    app.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Status\r\n\r\n2\r\nok\r\n0\r\nX-Status: 7\r\n\r\n")
        .await;
    let answer = Whole::of(response).await;
    assert_eq!(
        (answer.text(), &answer.trailers.as_ref().unwrap()["x-status"]),
        ("ok", &"7".parse().unwrap())
    );
    plane.shutdown().await;
}

#[tokio::test]
async fn c5_who_waits_for_100_gets_it_once_the_app_reads() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = Wire::begin_http2(&plane).await;
    client.send(request(1, 0, &[("expect", "100-continue"), ("content-length", "3")])).await;
    let mut app = upstream.accept().await;
    let head = app.head().await;
    assert_eq!(field(&head, "expect"), None, "{head}");
    let interim = client.frame(HEADERS).await;
    assert_eq!(interim.payload, [0x48, 0x82, 8, 1], "a literal of 100 by Huffman");
    client.send(frame(DATA, END_STREAM, 1, b"abc")).await;
    assert_eq!(app.bytes(3).await, b"abc");
    app.send(OK).await;
    assert_eq!(h2_status(&client.frame(HEADERS).await.payload), Some(200));
    // Nobody is asked for a body that is too large, or of a request that nobody serves.
    let mut client = Http2::connect(&plane).await;
    for (uri, length, expected) in [("http://b.test/", "3", 404), ("http://a.test/", "9999999999", 413)] {
        let request = Request::post(uri).header("expect", "100-continue").header("content-length", length);
        let (response, _body) = client.begin(request.body(()).unwrap(), true).await;
        assert_eq!(Whole::of(response).await.status(), expected);
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn own_answers_are_those_of_http11_without_its_fields() {
    let plane = Plane::with(|settings| settings.limits.field_bytes = 100);
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    let missing = client.get("http://b.test/").await;
    assert_eq!((missing.status(), missing.field("lockgate-reason")), (404, Some("no_route")));
    let told: Value = serde_json::from_slice(&missing.body).unwrap();
    assert_eq!(told["request_id"], missing.field("x-request-id").unwrap());
    let head = Request::head("http://b.test/").body(()).unwrap();
    let head = client.answer(head).await;
    assert_eq!((head.status(), head.body.len()), (404, 0));
    assert_eq!(head.field("content-length"), missing.field("content-length"));
    for (request, expected) in [
        (Request::builder().method(Method::CONNECT).uri("a.test:443"), 405),
        (Request::builder().method(Method::TRACE).uri("http://a.test/"), 405),
        (Request::get("http://a.test/").header("x", "y".repeat(101)), 431),
        (Request::get("http://a.test/").header("expect", "a miracle"), 417),
        (Request::get("http://a.test/").header("via", ["1.1 proxy"; 9].join(", ")), 200),
    ] {
        let answer = client.answer(request.body(()).unwrap()).await;
        assert_eq!(answer.status(), expected);
        assert!(answer.field("connection").is_none() && answer.field("x-request-id").is_some());
    }
    let fields = (0..101).fold(Request::get("http://a.test/"), |request, _| request.header("x", "1"));
    let many = client.answer(fields.body(()).unwrap()).await;
    assert_eq!((many.status(), many.field("lockgate-reason")), (431, Some("headers_too_large")));
    let fields =
        (0..4).fold(Request::get("http://a.test/"), |request, _| request.header("x", "y".repeat(90)));
    let large = Http2::connect(&narrow(&upstream)).await.answer(fields.body(()).unwrap()).await;
    assert_eq!((large.status(), large.field("lockgate-reason")), (431, Some("headers_too_large")));
    let long = format!("http://a.test/{}", "x".repeat(9000));
    assert_eq!(client.get(&long).await.status(), 414);
    plane.shutdown().await;
}

/// A data plane that takes heads of 300 bytes.
fn narrow(upstream: &Upstream) -> Plane {
    let plane = Plane::with(|settings| settings.limits.head_bytes = 300);
    plane.route("a.test", upstream);
    plane
}

#[tokio::test]
async fn responses_without_a_body_have_none() {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    for (response, method, expected) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", Method::GET, (204, None)),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", Method::GET, (304, Some("7"))),
        ("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", Method::HEAD, (200, Some("7"))),
        (
            "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
            Method::GET,
            (204, None),
        ),
    ] {
        upstream.answer(response);
        let request = Request::builder().method(method).uri("http://a.test/").body(()).unwrap();
        let answer = client.answer(request).await;
        assert_eq!(
            (answer.status(), answer.field("content-length"), answer.body.len()),
            (expected.0, expected.1, 0)
        );
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn requests_on_one_connection_run_at_once_and_share_a_kept_upstream_connection_afterwards() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    let (first, _) = client.begin(get("http://a.test/1"), false).await;
    let mut first_app = upstream.accept().await;
    assert!(first_app.head().await.starts_with("GET /1 "));
    let (second, _) = client.begin(get("http://a.test/2"), false).await;
    let mut second_app = upstream.accept().await;
    assert!(second_app.head().await.starts_with("GET /2 "));
    assert_eq!(upstream.target.gate.in_flight().requests, 2);
    // The second is not held up by the first.
    second_app.send("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(Whole::of(second).await.status(), 201);
    first_app.send(OK).await;
    assert_eq!(Whole::of(first).await.status(), 200);
    let (third, _) = client.begin(get("http://a.test/3"), false).await;
    assert!(first_app.head().await.starts_with("GET /3 "));
    first_app.send(OK).await;
    assert_eq!(Whole::of(third).await.status(), 200);
    assert_eq!(plane.taken()[0], 1, "streams are no connections");
    plane.shutdown().await;
}

#[tokio::test]
async fn e2_every_part_of_a_response_is_passed_on_as_it_comes() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    let (response, _) = client.begin(get("http://a.test/"), false).await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await;
    let mut body = response.await.unwrap().into_body();
    for n in 0..3 {
        app.send(format!("data: {n}\n\n")).await;
        assert_eq!(data(&mut body).await.unwrap().unwrap(), format!("data: {n}\n\n"));
        assert_eq!(upstream.target.gate.in_flight(), InFlight { requests: 0, streams: 1 });
    }
    app.finish().await;
    assert!(data(&mut body).await.is_none_or(|end| end.unwrap().is_empty()));
    plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn j1_j2_the_protocol_is_in_the_log_and_in_the_metrics() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let plane = Plane::with(|settings| settings.access_log = AccessLogSink::File(path.clone()));
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    client.get("http://a.test/x").await;
    client.get("http://a.test/y").await;
    let metrics = plane.metrics();
    for line in [
        r#"lockgate_http_requests_total{app="test",environment="",deployment="",method="GET",code="200",protocol="2"} 2"#,
        "lockgate_http2_connections_total 1",
        "lockgate_listener_connections_total 1",
        "lockgate_listener_connections_open 1",
    ] {
        let words = |text: &str| text.split(['{', '}', ',', ' ']).map(str::to_owned).collect::<Vec<_>>();
        let wanted: Vec<String> = words(line).into_iter().filter(|word| !word.ends_with("=\"\"")).collect();
        let has = metrics.lines().any(|line| wanted.iter().all(|word| words(line).contains(word)));
        assert!(has, "{line} is not in {metrics}");
    }
    plane.shutdown().await;
    let log = std::fs::read_to_string(path).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told =
        |line: &Value| (line["protocol"].clone(), line["host"].clone(), line["connection_requests"].clone());
    assert_eq!(
        lines.iter().map(told).collect::<Vec<_>>(),
        [("2.0".into(), "a.test".into(), 1.into()), ("2.0".into(), "a.test".into(), 2.into())]
    );
}

#[tokio::test]
async fn a_preface_in_pieces_is_one_and_what_only_begins_like_it_is_a_request() {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    for byte in PREFACE {
        client.send([*byte]).await;
        // Each is read by itself: what was sent before was taken, or this would wait.
        tokio::task::yield_now().await;
    }
    client.send([frame(SETTINGS, 0, 0, &[]), request(1, END_STREAM, &[])].concat()).await;
    assert_eq!(h2_status(&client.frame(HEADERS).await.payload), Some(200));
    let mut client = plane.connect().await;
    client.send("PRIX / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(status(&client.head().await), 200);
    client.send(PREFACE).await;
    assert_eq!(status(&client.head().await), 400, "only a connection can begin so");
    plane.shutdown().await;
}

#[tokio::test]
async fn http2_can_be_switched_off() {
    let plane = Plane::with(|settings| settings.http2 = false);
    let answer = plane.exchange(PREFACE).await;
    assert!(status(&answer) == 400, "{answer}");
    plane.shutdown().await;
}

#[tokio::test]
async fn k1_an_empty_body_of_a_post_has_a_length() {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    assert_eq!(client.answer(post("http://a.test/")).await.status(), 200);
    let head = upstream.heads().remove(0);
    assert_eq!(
        (field(&head, "content-length"), field(&head, "transfer-encoding")),
        (Some("0"), None),
        "{head}"
    );
    plane.shutdown().await;
}
