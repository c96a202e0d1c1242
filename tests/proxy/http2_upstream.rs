//! Applications that speak HTTP/2: what they get, what clients get of them, and when a request goes out once more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{Method, Request, Response};
use lockgate::gate::{Awaited, InFlight};
use lockgate::routing::backend::Order;
use tokio::task::JoinSet;

use crate::support::{LONGER, PATIENCE, Plane, SOCKET_BUFFERS, Upstream, all_of, field, status, within};
use crate::support_h2c::{App, trailers};
use crate::support_http2::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Http2, PING, RST_STREAM, Whole, all, data, frame, get,
    post,
};

/// `:status: 200` of the static table.
const STATUS_200: &[u8] = &[0x88];

#[tokio::test]
async fn c1_d5_a_request_over_http11_reaches_an_app_as_one_of_http2() {
    let plane = Plane::with(|settings| settings.via = Some("proxy".to_owned()));
    let mut app = App::behind(&plane, "a.test").await;
    let mut client = plane.connect().await;
    client
        .send(
            "PUT /x/../y%2F?q=1 HTTP/1.1\r\nHost: a.test:80\r\nConnection: keep-alive, x-hop, te\r\nX-Hop: 1\r\n\
             Keep-Alive: 9\r\nTE: trailers, deflate\r\nTransfer-Encoding: chunked\r\nCookie: a=1\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        )
        .await;
    let mut call = app.call().await;
    assert_eq!((call.request.method(), call.request.version()), (&Method::PUT, http::Version::HTTP_2));
    assert_eq!(call.request.uri(), "http://a.test:80/x/../y%2F?q=1");
    for (name, value) in [
        ("te", Some("trailers")),
        ("cookie", Some("a=1")),
        ("x-forwarded-for", Some("127.0.0.1")),
        ("x-forwarded-host", Some("a.test:80")),
        ("via", Some("1.1 proxy")),
        ("host", None),
        ("connection", None),
        ("transfer-encoding", None),
        ("keep-alive", None),
        ("x-hop", None),
    ] {
        assert_eq!(call.field(name), value, "{name}: {:?}", call.request);
    }
    let id = call.field("x-request-id").unwrap().to_owned();
    assert_eq!(all(call.request.body_mut()).await, b"abc");
    call.whole("hello", None);
    let head = client.head().await;
    assert_eq!(
        (status(&head), field(&head, "via"), field(&head, "x-request-id")),
        (200, Some("2.0 proxy"), Some(&*id))
    );
    assert!(field(&head, "date").is_some() && field(&head, "connection").is_none(), "{head}");
    assert_eq!(client.until("0\r\n\r\n").await, "5\r\nhello\r\n0\r\n\r\n");
    plane.settle(|| app.upstream.target.gate.in_flight() == InFlight::default()).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn g1_requests_share_a_connection_and_each_gets_its_own_answer() {
    let plane = Plane::start();
    let mut app = App::behind(&plane, "a.test").await;
    let mut client = Http2::connect(&plane).await;
    let mut answers = Vec::new();
    for n in 0..20 {
        answers.push(client.begin(get(&format!("http://a.test/{n}")), false).await.0);
    }
    let mut old = plane.connect().await;
    old.send("GET /old HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let mut calls = Vec::new();
    for _ in 0..21 {
        calls.push(app.call().await);
    }
    assert!(calls.iter().all(|call| call.connection == 0), "few connections, many streams");
    assert_eq!(app.upstream.target.gate.in_flight().requests, 21);
    assert_eq!(app.upstream.target.connections.in_flight().requests, 1);
    // In another order than they came.
    while let Some(call) = calls.pop() {
        let path = call.path().to_owned();
        call.whole(&path, None);
    }
    for (n, answer) in answers.into_iter().enumerate() {
        assert_eq!(Whole::of(answer).await.text(), format!("/{n}"));
    }
    assert!(old.until("/old").await.starts_with("HTTP/1.1 200"));
    plane.settle(|| app.upstream.target.gate.in_flight() == InFlight::default()).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn c6_trailers_pass_both_ways_and_are_never_merged_into_a_head() {
    let plane = Plane::start();
    let mut app = App::behind(&plane, "a.test").await;
    let mut client = Http2::connect(&plane).await;
    let request = Request::post("http://a.test/").header("te", "trailers").body(()).unwrap();
    let (response, mut body) = client.begin(request, true).await;
    body.send_data(Bytes::from_static(b"abc"), false).unwrap();
    body.send_trailers(trailers(&[("x-sum", "1"), ("x-forwarded-for", "192.0.2.1")])).unwrap();
    let mut call = app.call().await;
    assert_eq!(all(call.request.body_mut()).await, b"abc");
    let came = call.request.body_mut().trailers().await.unwrap().unwrap();
    assert_eq!(came, trailers(&[("x-sum", "1")]), "and none that only the proxy sets");
    assert!(call.field("x-sum").is_none());
    call.whole("ok", Some(trailers(&[("x-status", "7"), ("lockgate-reason", "x")])));
    let answer = Whole::of(response).await;
    assert_eq!((answer.text(), answer.trailers.as_ref()), ("ok", Some(&trailers(&[("x-status", "7")]))));
    assert!(answer.field("x-status").is_none());
    // HTTP/1.1 has a place for them if they are named before.
    let mut client = plane.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\nTE: trailers\r\nConnection: te\r\n\r\n").await;
    let mut call = app.call().await;
    let mut stream = call.begin(Response::builder().header("trailer", "x-status"));
    stream.send_data(Bytes::from_static(b"ok"), false).unwrap();
    stream.send_trailers(trailers(&[("x-status", "8")])).unwrap();
    assert!(client.head().await.contains("trailer: x-status"));
    assert_eq!(client.until("8\r\n\r\n").await, "2\r\nok\r\n0\r\nx-status: 8\r\n\r\n");
    plane.shutdown().await;
}

#[tokio::test]
async fn c6_fields_of_one_hop_in_trailers_cost_neither_a_request_nor_a_response_its_end() {
    let plane = Plane::start();
    let mut app = App::behind(&plane, "a.test").await;
    let mut client = plane.connect().await;
    client
        .send("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")
        .await;
    client.send("3\r\nabc\r\n0\r\nKeep-Alive: timeout=5\r\nConnection: close\r\nX-Sum: 1\r\n\r\n").await;
    let mut call = app.call().await;
    assert_eq!(all(call.request.body_mut()).await, b"abc");
    assert_eq!(call.request.body_mut().trailers().await.unwrap(), Some(trailers(&[("x-sum", "1")])));
    call.whole("ok", None);
    assert!(client.head().await.starts_with("HTTP/1.1 200 "));
    let upstream = Upstream::start().await;
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    for name in ["Connection", "Content-Length", "Keep-Alive", "Proxy-Connection", "TE", "Upgrade"] {
        let (response, _) = client.begin(get("http://a.test/"), false).await;
        let mut app = upstream.accept().await;
        app.head().await;
        app.send(
            "HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n",
        )
        .await;
        app.send(format!("{name}: 1\r\nX-Sum: 1\r\n\r\n")).await;
        let answer = Whole::of(response).await;
        assert!(answer.error.is_none(), "{name}: {:?}", answer.error);
        let sum = trailers(&[("x-sum", "1")]);
        assert_eq!((answer.text(), answer.trailers.as_ref()), ("ok", Some(&sum)), "{name}");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn g2_a_request_that_the_app_did_not_begin_with_goes_out_once_more_with_its_body() {
    let (plane, upstream) = (Plane::start(), Upstream::h2c().await);
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    let (response, mut body) = client.begin(post("http://a.test/"), true).await;
    body.send_data(Bytes::from_static(b"abc"), true).unwrap();
    let mut app = upstream.accept().await;
    app.serve_http2(&[]).await;
    let begun = app.frame(HEADERS).await;
    assert_eq!(app.frame(DATA).await.payload, b"abc");
    // REFUSED_STREAM: it is the connection's next stream.
    app.send(frame(RST_STREAM, 0, begun.stream, &7_u32.to_be_bytes())).await;
    let again = app.frame(HEADERS).await;
    assert!(again.stream > begun.stream);
    assert_eq!(app.frame(DATA).await.payload, b"abc");
    // A GOAWAY that leaves it out: another connection.
    app.send(frame(GOAWAY, 0, 0, &[begun.stream.to_be_bytes(), [0; 4]].concat())).await;
    let mut other = upstream.accept().await;
    other.serve_http2(&[]).await;
    let third = other.frame(HEADERS).await;
    assert_eq!(other.frame(DATA).await.payload, b"abc");
    other.send(frame(HEADERS, END_HEADERS | END_STREAM, third.stream, STATUS_200)).await;
    assert_eq!(Whole::of(response).await.status(), 200);
    plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn g2_a_request_that_is_refused_again_and_again_is_answered_and_not_sent_for_ever() {
    let plane = Plane::start();
    let mut app = App::behind(&plane, "a.test").await;
    let mut client = Http2::connect(&plane).await;
    let (response, _) = client.begin(post("http://a.test/"), false).await;
    for _ in 0..3 {
        app.call().await.reset(Reason::REFUSED_STREAM);
    }
    let answer = Whole::of(response).await;
    assert_eq!((answer.status(), answer.field("lockgate-reason")), (502, Some("upstream_reset")));
    assert!(app.is_idle());
    plane.shutdown().await;
}

#[tokio::test]
async fn g2_a_post_that_may_have_been_begun_is_never_sent_twice_and_a_get_on_a_kept_connection_is() {
    let (plane, upstream) = (Plane::start(), Upstream::h2c().await);
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    for (method, answered_before, expected) in
        [(Method::POST, true, 502), (Method::GET, false, 502), (Method::GET, true, 200)]
    {
        let mut app = None;
        if answered_before {
            let (response, _) = client.begin(get("http://a.test/"), false).await;
            let mut first = upstream.accept().await;
            first.serve_http2(&[]).await;
            let begun = first.frame(HEADERS).await;
            first.send(frame(HEADERS, END_HEADERS | END_STREAM, begun.stream, STATUS_200)).await;
            assert_eq!(Whole::of(response).await.status(), 200);
            app = Some(first);
        }
        let request = Request::builder().method(&method).uri("http://a.test/").body(()).unwrap();
        let (response, _) = client.begin(request, false).await;
        let mut app = match app {
            Some(app) => app,
            None => {
                let mut app = upstream.accept().await;
                app.serve_http2(&[]).await;
                app
            }
        };
        app.frame(HEADERS).await;
        // Lost, without a word about what became of it.
        drop(app);
        if expected == 200 {
            let mut app = upstream.accept().await;
            app.serve_http2(&[]).await;
            let begun = app.frame(HEADERS).await;
            app.send(frame(HEADERS, END_HEADERS | END_STREAM, begun.stream, STATUS_200)).await;
            assert_eq!(Whole::of(response).await.status(), 200, "{method}");
        } else {
            let answer = Whole::of(response).await;
            assert_eq!(
                (answer.status(), answer.field("lockgate-reason")),
                (502, Some("upstream_reset")),
                "{method}"
            );
        }
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn a_connection_that_goes_away_ends_its_streams_and_gets_no_more() {
    let (plane, upstream) = (Plane::start(), Upstream::h2c().await);
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    let (first, _) = client.begin(get("http://a.test/1"), false).await;
    let mut app = upstream.accept().await;
    app.serve_http2(&[]).await;
    let begun = app.frame(HEADERS).await;
    app.send(frame(GOAWAY, 0, 0, &[begun.stream.to_be_bytes(), [0; 4]].concat())).await;
    // What shows that it was read.
    app.send(frame(PING, 0, 0, b"12345678")).await;
    app.frame(PING).await;
    let (second, _) = client.begin(post("http://a.test/2"), false).await;
    let mut other = upstream.accept().await;
    other.serve_http2(&[]).await;
    let moved = other.frame(HEADERS).await;
    other.send(frame(HEADERS, END_HEADERS | END_STREAM, moved.stream, STATUS_200)).await;
    assert_eq!(Whole::of(second).await.status(), 200);
    app.send(frame(HEADERS, END_HEADERS, begun.stream, STATUS_200)).await;
    app.send(frame(DATA, END_STREAM, begun.stream, b"whole")).await;
    assert_eq!(Whole::of(first).await.text(), "whole");
    while app.try_frame().await.is_some() {}
    plane.shutdown().await;
}

#[tokio::test]
async fn no_connection_has_more_streams_than_the_app_takes() {
    let plane = Plane::start();
    let mut app = App::with(|builder| {
        builder.max_concurrent_streams(2);
    })
    .await;
    plane.route("a.test", &app.upstream);
    let mut client = Http2::connect(&plane).await;
    let mut answers = Vec::new();
    for n in 0..7 {
        answers.push(client.begin(post(&format!("http://a.test/{n}")), false).await.0);
    }
    let mut calls = Vec::new();
    for _ in 0..7 {
        calls.push(app.call().await);
    }
    for connection in 0..4 {
        let on_it = calls.iter().filter(|call| call.connection == connection).count();
        assert_eq!(on_it, if connection < 3 { 2 } else { 1 });
    }
    for call in calls {
        call.answer(201);
    }
    for answer in answers {
        assert_eq!(Whole::of(answer).await.status(), 201);
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn e1_a_slow_reader_stops_its_sender_and_nobody_else() {
    let plane = Plane::start();
    let mut app = App::behind(&plane, "a.test").await;
    let mut client = Http2::connect(&plane).await;
    let mut held = Vec::new();
    for _ in 0..20 {
        let (response, _) = client.begin(get("http://a.test/"), false).await;
        let mut stream = app.call().await.begin(Response::builder());
        stream.reserve_capacity(64 * 1024 * 1024);
        held.push((within(response).await.unwrap(), stream));
    }
    for (_, stream) in &mut held {
        let mut sent = 0;
        // So much has room whenever its turn comes; and then as long as a window opens at once.
        loop {
            let room = std::future::poll_fn(|cx| stream.poll_capacity(cx));
            let quiet = if sent >= 64 * 1024 { Duration::from_millis(100) } else { PATIENCE };
            let Ok(Some(Ok(room))) = tokio::time::timeout(quiet, room).await else { break };
            stream.send_data(Bytes::from(vec![0; room]), false).unwrap();
            sent += room;
            assert!(sent <= 2 * 1024 * 1024, "it is buffered somewhere");
        }
        assert!(sent >= 64 * 1024);
    }
    // More is held up than any one stream may hold, and this one is not.
    let mut other = Http2::connect(&plane).await;
    let (response, _) = other.begin(get("http://a.test/"), false).await;
    app.call().await.whole(&"x".repeat(60_000), None);
    assert_eq!(Whole::of(response).await.body.len(), 60_000);
    plane.shutdown().await;
}

#[tokio::test]
async fn e1_an_app_that_does_not_read_stops_the_client() {
    let plane = Plane::start();
    let mut app = App::behind(&plane, "a.test").await;
    let mut client = Http2::connect(&plane).await;
    let (response, mut body) = client.begin(post("http://a.test/"), true).await;
    let mut call = app.call().await;
    let mut sent = 0;
    body.reserve_capacity(64 * 1024 * 1024);
    loop {
        let room = std::future::poll_fn(|cx| body.poll_capacity(cx));
        let quiet = if sent > 64 * 1024 { Duration::from_millis(100) } else { PATIENCE };
        let Ok(Some(Ok(room))) = tokio::time::timeout(quiet, room).await else { break };
        body.send_data(Bytes::from(vec![7; room]), false).unwrap();
        sent += room;
        assert!(sent <= 1024 * 1024, "it is buffered somewhere");
    }
    assert!(sent > 64 * 1024);
    body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(all(call.request.body_mut()).await.len(), sent, "and nothing of it is lost");
    call.answer(200);
    assert_eq!(Whole::of(response).await.status(), 200);
    plane.shutdown().await;
}

#[tokio::test]
async fn e3_an_early_answer_is_passed_on_and_the_guard_lives_until_the_request_has_ended() {
    let plane = Plane::start();
    let mut app = App::behind(&plane, "a.test").await;
    let mut client = Http2::connect(&plane).await;
    let (response, mut body) = client.begin(post("http://a.test/"), true).await;
    let mut call = app.call().await;
    call.respond.send_response(Response::new(()), true).unwrap();
    assert_eq!(Whole::of(response).await.status(), 200);
    assert_eq!(app.upstream.target.gate.in_flight().requests, 1, "both directions count");
    body.send_data(Bytes::from_static(b"abc"), true).unwrap();
    assert_eq!(all(call.request.body_mut()).await, b"abc");
    plane.settle(|| app.upstream.target.gate.in_flight() == InFlight::default()).await;
    // An app that does not want the rest says so.
    let mut client = plane.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9\r\n\r\nabc").await;
    let mut call = app.call().await;
    call.respond.send_response(Response::new(()), true).unwrap();
    drop(call);
    let head = client.head().await;
    assert_eq!(status(&head), 200, "{head}");
    plane.settle(|| app.upstream.target.gate.in_flight() == InFlight::default()).await;
    plane.shutdown().await;
}

/// Over HTTP/1.1, where a client may send all before it reads.
#[tokio::test]
async fn e3_a_request_goes_on_while_its_client_reads_nothing_of_the_response() {
    let plane = Plane::start();
    let mut app = App::behind(&plane, "a.test").await;
    let mut client = plane.connect().await;
    client
        .send("POST / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    let mut call = app.call().await;
    let mut stream = call.begin(Response::builder());
    stream.reserve_capacity(SOCKET_BUFFERS);
    let mut sent = 0;
    loop {
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx));
        let quiet = if sent > 64 * 1024 { Duration::from_millis(300) } else { PATIENCE };
        let Ok(Some(Ok(room))) = tokio::time::timeout(quiet, room).await else { break };
        stream.send_data(Bytes::from(vec![7; room]), false).unwrap();
        sent += room;
        assert!(sent < SOCKET_BUFFERS, "somebody reads it");
    }
    for n in 0..100 {
        client.send("3\r\nabc\r\n").await;
        let came = data(call.request.body_mut()).await.unwrap().unwrap();
        assert_eq!(came, "abc", "{n}");
    }
    client.send("0\r\n\r\n").await;
    assert!(all(call.request.body_mut()).await.is_empty());
    stream.send_data(Bytes::new(), true).unwrap();
    assert!(client.rest().await.ends_with("0\r\n\r\n"));
    plane.settle(|| app.upstream.target.gate.in_flight() == InFlight::default()).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn e4_a_client_that_goes_resets_its_stream_alone() {
    let plane = Plane::start();
    let mut app = App::behind(&plane, "a.test").await;
    let mut client = Http2::connect(&plane).await;
    let (other, _) = client.begin(get("http://a.test/other"), false).await;
    let other_call = app.call().await;
    // While it waits, while it sends, and while it reads; and over HTTP/1.1.
    let waiting = client.begin(get("http://a.test/"), false).await;
    let mut call = app.call().await;
    drop(waiting);
    assert_eq!(call.was_reset().await, Reason::CANCEL);
    let (response, mut body) = client.begin(post("http://a.test/"), true).await;
    body.send_data(Bytes::from_static(b"abc"), false).unwrap();
    let mut call = app.call().await;
    drop((response, body));
    assert_eq!(call.was_reset().await, Reason::CANCEL);
    let (response, _) = client.begin(get("http://a.test/"), false).await;
    let mut call = app.call().await;
    let mut stream = call.begin(Response::builder());
    stream.send_data(Bytes::from_static(b"abc"), false).unwrap();
    drop(within(response).await.unwrap());
    let reset = within(std::future::poll_fn(|cx| stream.poll_reset(cx))).await.unwrap();
    assert_eq!(reset, Reason::CANCEL);
    let mut wire = plane.connect().await;
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let mut call = app.call().await;
    wire.reset();
    assert_eq!(call.was_reset().await, Reason::CANCEL);
    plane.settle(|| app.upstream.target.gate.in_flight().requests == 1).await;
    other_call.answer(204);
    assert_eq!(Whole::of(other).await.status(), 204);
    plane.shutdown().await;
}

#[tokio::test]
async fn e4_a_response_that_the_app_breaks_off_is_cut_and_never_ended() {
    let plane = Plane::start();
    let mut app = App::behind(&plane, "a.test").await;
    let mut client = Http2::connect(&plane).await;
    for reason in [Reason::INTERNAL_ERROR, Reason::CANCEL, Reason::NO_ERROR] {
        let (response, _) = client.begin(get("http://a.test/"), false).await;
        let mut stream = app.call().await.begin(Response::builder());
        stream.send_data(Bytes::from_static(b"abc"), false).unwrap();
        let mut body = within(response).await.unwrap().into_body();
        assert_eq!(data(&mut body).await.unwrap().unwrap(), "abc");
        stream.send_reset(reason);
        assert!(data(&mut body).await.unwrap().is_err(), "{reason:?}");
    }
    let mut client = plane.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let mut stream = app.call().await.begin(Response::builder());
    stream.send_data(Bytes::from_static(b"abc"), false).unwrap();
    client.until("abc\r\n").await;
    stream.send_reset(Reason::INTERNAL_ERROR);
    client.closed().await;
    // Before it begins.
    let answer = {
        let mut client = plane.connect().await;
        client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n").await;
        app.call().await.reset(Reason::INTERNAL_ERROR);
        client.head().await
    };
    assert_eq!((status(&answer), field(&answer, "lockgate-reason")), (502, Some("upstream_reset")));
    plane.settle(|| app.upstream.target.gate.in_flight() == InFlight::default()).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn b7_responses_without_a_body_have_none_and_interim_ones_are_dropped() {
    let plane = Plane::start();
    let mut app = App::behind(&plane, "a.test").await;
    let mut client = plane.connect().await;
    for (request, response, expected) in [
        ("HEAD", Response::builder().header("content-length", "7"), 200),
        ("GET", Response::builder().status(204), 204),
        ("GET", Response::builder().status(304).header("content-length", "7"), 304),
    ] {
        client.send(format!("{request} / HTTP/1.1\r\nHost: a.test\r\n\r\n")).await;
        let mut call = app.call().await;
        let hints = Response::builder().status(103).header("link", "x").body(()).unwrap();
        call.respond.send_informational(hints).unwrap();
        let mut stream = call.begin(response);
        let head = client.head().await;
        assert_eq!((status(&head), field(&head, "link")), (expected, None), "{head}");
        // It may have been told already that nobody wants more.
        drop(stream.send_data(Bytes::new(), true));
    }
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    app.call().await.whole("last", None);
    assert!(client.until("last").await.starts_with("HTTP/1.1 200"));
    plane.shutdown().await;
}

#[tokio::test]
async fn b7_an_app_that_speaks_something_else_gets_no_request() {
    let (plane, upstream) = (Plane::start(), Upstream::h2c().await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n").await;
    let mut app = upstream.accept().await;
    app.until("SM\r\n\r\n").await;
    app.send("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!((status(&head), field(&head, "lockgate-reason")), (502, Some("upstream_malformed")));
    let seen = app.rest().await;
    assert!(!seen.contains("a.test"), "{seen:?}");
    plane.shutdown().await;
}

#[tokio::test]
async fn f2_an_upgrade_is_refused_where_the_apps_protocol_has_none() {
    let plane = Plane::start();
    let app = App::behind(&plane, "a.test").await;
    let mut client = plane.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!((status(&head), field(&head, "lockgate-reason")), (501, Some("upgrade_unsupported")));
    assert!(app.is_idle());
    plane.shutdown().await;
}

#[tokio::test]
async fn g7_the_connection_to_a_replaced_target_ends_with_its_last_stream() {
    let plane = Plane::start();
    let mut app = App::behind(&plane, "a.test").await;
    let mut client = Http2::connect(&plane).await;
    let (response, _) = client.begin(get("http://a.test/"), false).await;
    let mut stream = app.call().await.begin(Response::builder());
    let mut body = within(response).await.unwrap().into_body();
    let target = &app.upstream.target;
    target.gate.close();
    target.set_order(Order::CloseIdle);
    plane.routing.signal_workers();
    target.connections.close();
    stream.send_data(Bytes::from_static(b"abc"), false).unwrap();
    assert_eq!(data(&mut body).await.unwrap().unwrap(), "abc");
    assert_eq!(target.connections.in_flight().requests, 1);
    stream.send_data(Bytes::from_static(b"end"), true).unwrap();
    assert_eq!(all(&mut body).await, b"end");
    within(target.connections.drained(Awaited::Everything)).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn g1_an_idle_connection_is_closed_before_the_app_would() {
    let plane = Plane::with(|settings| settings.limits.pool_idle = Duration::from_millis(50));
    let mut app = App::behind(&plane, "a.test").await;
    let mut client = Http2::connect(&plane).await;
    let (response, _) = client.begin(get("http://a.test/"), false).await;
    app.call().await.answer(200);
    Whole::of(response).await;
    plane.settle(|| app.upstream.target.connections.in_flight() == InFlight::default()).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn l_a_connection_that_does_not_answer_its_ping_gets_no_more_streams_and_is_closed() {
    let plane = Plane::with(|settings| settings.limits.upstream_ping = LONGER);
    let upstream = Upstream::h2c().await;
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    let (first, _) = client.begin(post("http://a.test/1"), false).await;
    let mut silent = upstream.accept().await;
    silent.serve_http2(&[]).await;
    silent.frame(HEADERS).await;
    silent.frame(PING).await;
    let (second, _) = client.begin(post("http://a.test/2"), false).await;
    let mut app = upstream.accept().await;
    app.serve_http2(&[]).await;
    let begun = app.frame(HEADERS).await;
    app.send(frame(HEADERS, END_HEADERS | END_STREAM, begun.stream, STATUS_200)).await;
    assert_eq!(Whole::of(second).await.status(), 200);
    assert_eq!(Whole::of(first).await.status(), 502);
    while silent.try_frame().await.is_some() {}
    plane.shutdown().await;
}

#[tokio::test]
async fn l_a_connection_that_answers_its_ping_goes_on() {
    let plane = Plane::with(|settings| settings.limits.upstream_ping = LONGER);
    let upstream = Upstream::h2c().await;
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    let (response, _) = client.begin(post("http://a.test/1"), false).await;
    let mut app = upstream.accept().await;
    app.serve_http2(&[]).await;
    let begun = app.frame(HEADERS).await;
    let asked = app.frame(PING).await;
    app.send(frame(PING, 1, 0, &asked.payload)).await;
    // So much later that another one would have ended it.
    let asked = app.frame(PING).await;
    app.send(frame(PING, 1, 0, &asked.payload)).await;
    app.send(frame(HEADERS, END_HEADERS | END_STREAM, begun.stream, STATUS_200)).await;
    assert_eq!(Whole::of(response).await.status(), 200);
    plane.shutdown().await;
}

#[tokio::test]
async fn p1_p2_swaps_of_apps_that_speak_http2_lose_nothing() {
    let plane = Arc::new(Plane::start());
    let versions = [App::answering(200).await, App::answering(201).await];
    plane.route("a.test", &versions[0]);
    let done = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    let mut connections = Vec::new();
    for _ in 0..4 {
        let client = Http2::connect(&plane).await;
        for _ in 0..4 {
            let done = done.clone();
            let mut client = Http2 { send: client.send.clone(), driver: JoinSet::new() };
            load.spawn(async move {
                let mut count = 0_u64;
                while !done.load(Ordering::Relaxed) {
                    let (response, mut body) = client.begin(post("http://a.test/"), true).await;
                    body.send_data(Bytes::from_static(b"abc"), true).unwrap();
                    let answer = Whole::of(response).await;
                    assert!([200, 201].contains(&answer.status()), "{:?}", answer.head);
                    count += 1;
                }
                count
            });
        }
        connections.push(client);
    }
    for _ in 0..4 {
        let (plane, done) = (plane.clone(), done.clone());
        load.spawn(async move {
            let mut client = plane.connect().await;
            let mut count = 0_u64;
            while !done.load(Ordering::Relaxed) {
                client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc").await;
                let head = client.head().await;
                assert!([200, 201].contains(&status(&head)), "{head}");
                if field(&head, "transfer-encoding").is_some() {
                    client.until("0\r\n\r\n").await;
                }
                count += 1;
            }
            count
        });
    }
    let mut probe = Http2::connect(&plane).await;
    let [one, two] = &versions;
    let ask = async || probe.get("http://a.test/").await.status();
    plane.swaps([one, two], ask).await;
    done.store(true, Ordering::Relaxed);
    let served = all_of(load).await;
    assert!(served > 100, "only {served} requests");
    drop((probe, connections));
    Arc::into_inner(plane).unwrap().shutdown().await;
}
