//! How the streams of an HTTP/2 connection, and the connection, go on and end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use lockgate::gate::{Awaited, InFlight};
use lockgate::proxy::AccessLogSink;
use lockgate::routing::backend::Order;
use tokio::task::JoinSet;

use crate::holds::{held, rules};
use crate::support::{
    CREATED, LONGER, OK, PATIENCE, Plane, SOCKET_BUFFERS, Upstream, Wire, all_of, assert_cut_requests,
    logged, within,
};
use crate::support_http2::{END_STREAM, GOAWAY, Http2, Whole, data, get, post, request};

#[tokio::test]
async fn h5_p2_a_kept_connection_follows_its_route_and_streams_in_flight_end_where_they_began() {
    let plane = Plane::start();
    let (old, new) = (Upstream::start().await, Upstream::answering(CREATED).await);
    plane.route("a.test", &old);
    let mut client = Http2::connect(&plane).await;
    let (in_flight, _) = client.begin(get("http://a.test/"), false).await;
    let mut app = old.accept().await;
    app.head().await;
    plane.route("a.test", &new);
    old.target.gate.close();
    for _ in 0..3 {
        assert_eq!(client.get("http://a.test/").await.status(), 201);
    }
    app.send("HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(Whole::of(in_flight).await.status(), 202);
    within(old.target.gate.drained(Awaited::Everything)).await;
    plane.routing.publish(|edit| edit.clear());
    assert_eq!(client.get("http://a.test/").await.status(), 404);
    plane.shutdown().await;
}

#[tokio::test]
async fn p1_p2_swaps_under_streams_lose_nothing_and_answer_from_the_new_version_at_once() {
    let plane = Arc::new(Plane::start());
    let versions = [Upstream::answering(OK).await, Upstream::answering(CREATED).await];
    plane.route("a.test", &versions[0]);
    let done = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    // Until the last request on them is answered.
    let mut connections = Vec::new();
    for _ in 0..4 {
        let client = Http2::connect(&plane).await;
        for _ in 0..4 {
            let done = done.clone();
            let mut client = Http2 { send: client.send.clone(), driver: JoinSet::new() };
            load.spawn(async move {
                let mut count = 0_u64;
                while !done.load(Ordering::Relaxed) {
                    let answer = client.answer(post("http://a.test/")).await;
                    assert!([200, 201].contains(&answer.status()));
                    count += 1;
                }
                count
            });
        }
        connections.push(client);
    }
    let mut probe = Http2::connect(&plane).await;
    let [one, two] = &versions;
    plane.swaps([one, two], async || probe.get("http://a.test/").await.status()).await;
    done.store(true, Ordering::Relaxed);
    let served = all_of(load).await;
    assert!(served > 100, "only {served} requests");
    drop((probe, connections));
    Arc::into_inner(plane).unwrap().shutdown().await;
}

#[tokio::test]
async fn p1_streams_past_their_drain_deadline_are_cut_each_by_itself_and_reported() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    let (waiting, _) = client.begin(post("http://a.test/w"), false).await;
    let mut waiting_app = upstream.accept().await;
    waiting_app.head().await;
    let (reading, _) = client.begin(get("http://a.test/r"), false).await;
    let mut reading_app = upstream.accept().await;
    reading_app.head().await;
    reading_app.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
    let mut reading = within(reading).await.unwrap().into_body();
    assert_eq!(data(&mut reading).await.unwrap().unwrap(), "abc");
    let (events, _) = client.begin(get("http://a.test/e"), false).await;
    let mut events_app = upstream.accept().await;
    events_app.head().await;
    events_app.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await;
    let mut events = within(events).await.unwrap().into_body();
    upstream.target.gate.close();
    upstream.target.set_order(Order::CutRequests);
    plane.routing.signal_workers();
    let told = Whole::of(waiting).await;
    assert_eq!((told.status(), told.field("lockgate-reason")), (502, Some("drain_cut")));
    let cut = data(&mut reading).await.unwrap().unwrap_err();
    assert_eq!(cut.reason(), Some(Reason::INTERNAL_ERROR), "never an end in order");
    waiting_app.closed().await;
    reading_app.closed().await;
    plane.settle(|| upstream.target.gate.in_flight() == InFlight { requests: 0, streams: 1 }).await;
    assert_cut_requests(&upstream);
    events_app.send("data: 1\n\n").await;
    assert_eq!(data(&mut events).await.unwrap().unwrap(), "data: 1\n\n");
    upstream.target.set_order(Order::CutStreams);
    plane.routing.signal_workers();
    assert!(data(&mut events).await.unwrap().is_err());
    events_app.closed().await;
    plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    // The connection is none of theirs.
    assert_eq!(client.get("http://b.test/").await.status(), 404);
    plane.shutdown().await;
}

#[tokio::test]
async fn e4_a_stream_that_the_client_resets_drops_its_request_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let plane = Plane::with(|settings| settings.access_log = AccessLogSink::File(path.clone()));
    let upstream = Upstream::start().await;
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    let (other, _) = client.begin(get("http://a.test/other"), false).await;
    let mut other_app = upstream.accept().await;
    other_app.head().await;
    // While it waits for its answer, while it sends, and while it reads.
    let (waiting, stream) = client.begin(get("http://a.test/waiting"), false).await;
    let mut app = upstream.accept().await;
    app.head().await;
    assert_eq!(upstream.target.gate.in_flight().requests, 2);
    drop((waiting, stream));
    app.closed().await;
    let (sending, mut body) = client.begin(post("http://a.test/sending"), true).await;
    body.send_data(Bytes::from_static(b"abc"), false).unwrap();
    let mut app = upstream.accept().await;
    app.until("abc").await;
    body.send_reset(Reason::CANCEL);
    let rest = app.rest().await;
    assert!(!rest.ends_with("0\r\n\r\n"), "{rest:?}");
    drop(sending);
    let (reading, _) = client.begin(get("http://a.test/reading"), false).await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
    let mut body = within(reading).await.unwrap().into_body();
    data(&mut body).await;
    drop(body);
    app.closed().await;
    plane.settle(|| upstream.target.gate.in_flight().requests == 1).await;
    other_app.send(OK).await;
    assert_eq!(Whole::of(other).await.status(), 200);
    let metrics = plane.metrics();
    assert!(metrics.contains("lockgate_client_aborts_total 3\n"), "{metrics}");
    drop(client);
    plane.shutdown().await;
    assert_eq!(
        logged(&path),
        [
            r#""/waiting" 499 "client_abort""#,
            r#""/sending" 499 "client_abort""#,
            r#""/reading" 200 "client_abort""#,
            r#""/other" 200 "ok""#,
        ]
    );
}

#[tokio::test]
async fn e4_a_client_that_goes_away_takes_all_its_requests_along() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = Wire::begin_http2(&plane).await;
    client.send([request(1, END_STREAM, &[]), request(3, 0, &[])].concat()).await;
    let mut apps = [upstream.accept().await, upstream.accept().await];
    for app in &mut apps {
        app.head().await;
    }
    client.reset();
    for app in &mut apps {
        app.rest().await;
    }
    plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn e4_a_response_that_is_cut_short_upstream_is_reset_and_never_ended() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    for head in ["Content-Length: 9", "Transfer-Encoding: chunked"] {
        let (response, _) = client.begin(get("http://a.test/"), false).await;
        let mut app = upstream.accept().await;
        app.head().await;
        app.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n3\r\nabc")).await;
        let mut body = within(response).await.unwrap().into_body();
        assert!(data(&mut body).await.unwrap().is_ok());
        app.finish().await;
        let mut end = data(&mut body).await.unwrap();
        while end.is_ok() {
            end = data(&mut body).await.expect("an end in order");
        }
        assert_eq!(end.unwrap_err().reason(), Some(Reason::INTERNAL_ERROR), "{head}");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn e1_a_closed_window_slows_the_upstream_and_no_other_stream() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    let quick = Upstream::answering("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nquick").await;
    plane.route("a.test", &upstream);
    plane.route("b.test", &quick);
    let mut client =
        Http2::with(&plane, h2::client::Builder::new().initial_connection_window_size(1024 * 1024)).await;
    let (response, _) = client.begin(get("http://a.test/"), false).await;
    let mut app = upstream.accept().await;
    app.head().await;
    let total = 128 * 1024 * 1024;
    app.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n")).await;
    let mut body = within(response).await.unwrap().into_body();
    let part = vec![b'x'; 1024 * 1024];
    let mut sent = 0;
    while let Ok(taken) = tokio::time::timeout(Duration::from_millis(300), app.write_some(&part)).await {
        sent += taken;
    }
    assert!(sent < SOCKET_BUFFERS, "{sent} bytes went into the proxy although nobody read");
    assert_eq!(client.get("http://b.test/").await.text(), "quick");
    let rest = vec![b'x'; total - sent];
    let read = async {
        let mut read = 0;
        while let Some(data) = data(&mut body).await {
            read += data.unwrap().len();
        }
        read
    };
    let ((), read) = tokio::join!(app.send(&rest), read);
    assert_eq!(read, total);
    plane.shutdown().await;
}

#[tokio::test]
async fn e1_a_slow_upstream_slows_the_sender_and_no_other_stream() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    let quick = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    plane.route("b.test", &quick);
    let mut client = Http2::connect(&plane).await;
    let (_response, mut body) = client.begin(post("http://a.test/"), true).await;
    let mut app = upstream.accept().await;
    app.head().await;
    let part = Bytes::from(vec![b'x'; 1024 * 1024]);
    let mut sent = 0;
    body.reserve_capacity(part.len());
    // So much is taken, whenever its turn comes; and then as long as something is taken soon.
    loop {
        let room = std::future::poll_fn(|cx| body.poll_capacity(cx));
        let quiet = if sent > 64 * 1024 { Duration::from_millis(300) } else { PATIENCE };
        let Ok(Some(Ok(room))) = tokio::time::timeout(quiet, room).await else { break };
        sent += room;
        body.send_data(part.slice(..room), false).unwrap();
        body.reserve_capacity(part.len());
    }
    assert!(sent > 64 * 1024 && sent < SOCKET_BUFFERS, "{sent}");
    assert_eq!(client.answer(post("http://b.test/")).await.status(), 200);
    drop(app);
    plane.shutdown().await;
}

#[tokio::test]
async fn e3_an_early_answer_is_passed_on_and_the_body_goes_on() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    let (response, mut body) = client.begin(post("http://a.test/"), true).await;
    body.send_data(Bytes::from_static(b"abc"), false).unwrap();
    let mut app = upstream.accept().await;
    app.until("abc\r\n").await;
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(Whole::of(response).await.text(), "ok");
    assert_eq!(upstream.target.gate.in_flight().requests, 1, "its request is not over");
    body.send_data(Bytes::from_static(b"def"), true).unwrap();
    assert_eq!(app.until("0\r\n\r\n").await, "3\r\ndef\r\n0\r\n\r\n");
    plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    // The connection is kept.
    let (response, _) = client.begin(get("http://a.test/"), false).await;
    app.head().await;
    app.send(OK).await;
    assert_eq!(Whole::of(response).await.status(), 200);
    plane.shutdown().await;
}

#[tokio::test]
async fn a_request_and_its_response_flow_at_once_even_if_the_response_is_held_up() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    let (response, mut body) = client.begin(post("http://a.test/"), true).await;
    let mut app = upstream.accept().await;
    app.head().await;
    let down = 200_000;
    app.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {down}\r\n\r\n{}", "x".repeat(down))).await;
    // More than the response's window, which is not opened: nobody reads it.
    let mut response = within(response).await.unwrap().into_body();
    for n in 0..20 {
        body.send_data(Bytes::from(format!("part {n:02}")), n == 19).unwrap();
        app.until(&format!("part {n:02}\r\n")).await;
    }
    let mut read = 0;
    while let Some(part) = data(&mut response).await {
        read += part.unwrap().len();
    }
    assert_eq!(read, down);
    plane.shutdown().await;
}

#[tokio::test]
async fn each_stream_has_time_outs_of_its_own() {
    let plane = Plane::with(|settings| {
        settings.limits.response_head = LONGER;
        settings.limits.body_idle = LONGER;
        settings.limits.response_idle = LONGER;
    });
    let upstream = Upstream::start().await;
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    let (unanswered, _) = client.begin(get("http://a.test/"), false).await;
    let mut app = upstream.accept().await;
    app.head().await;
    let answer = Whole::of(unanswered).await;
    assert_eq!((answer.status(), answer.field("lockgate-reason")), (504, Some("upstream_timeout")));
    app.closed().await;
    let (unsent, _body) = client.begin(post("http://a.test/"), true).await;
    let mut app = upstream.accept().await;
    app.head().await;
    let answer = Whole::of(unsent).await;
    assert_eq!((answer.status(), answer.field("lockgate-reason")), (408, Some("request_timeout")));
    app.rest().await;
    let (stuck, _) = client.begin(get("http://a.test/"), false).await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
    assert!(Whole::of(stuck).await.error.is_some());
    app.closed().await;
    // The connection goes on.
    let (answered, _) = client.begin(get("http://a.test/"), false).await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send(OK).await;
    assert_eq!(Whole::of(answered).await.status(), 200);
    plane.shutdown().await;
}

#[tokio::test]
async fn h1_k4_a_connection_without_streams_is_told_to_end_whatever_else_its_client_sends() {
    let plane = Plane::with(|settings| settings.limits.keep_alive = LONGER);
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    assert_eq!(client.get("http://a.test/").await.status(), 200);
    assert!(client.ended().await.is_none(), "told in order");
    // Pings are no use of it.
    let mut client = Wire::begin_http2(&plane).await;
    let pings = async {
        loop {
            let ping = crate::support_http2::frame(crate::support_http2::PING, 0, 0, &[0; 8]);
            if tokio::io::AsyncWriteExt::write_all(&mut client.stream, &ping).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(pings).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn h1_a_preface_that_does_not_come_whole_in_time_ends_the_connection() {
    let plane = Plane::with(|settings| settings.limits.head = Duration::from_millis(80));
    let mut client = plane.connect().await;
    client.send("PRI * HTTP/2.0\r\n").await;
    client.rest().await;
    plane.shutdown().await;
}

#[tokio::test]
async fn at_the_end_of_the_data_plane_connections_are_told_and_streams_in_flight_answered() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut idle = Wire::begin_http2(&plane).await;
    let mut client = Http2::connect(&plane).await;
    let (response, _) = client.begin(get("http://a.test/"), false).await;
    let mut app = upstream.accept().await;
    app.head().await;
    let mut ending = JoinSet::new();
    ending.spawn(plane.shutdown());
    assert_eq!(idle.frame(GOAWAY).await.reason(), 0);
    drop(idle);
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let answer = Whole::of(response).await;
    assert_eq!((answer.status(), answer.text(), answer.field("connection")), (200, "ok", None));
    assert!(client.ended().await.is_none());
    within(ending.join_next()).await.unwrap().unwrap();
}

#[tokio::test]
async fn held_streams_wait_are_released_and_leave_with_their_client() {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    let hold = held(&plane, "a.test", rules(), None);
    let mut client = Http2::connect(&plane).await;
    let (stays, _) = client.begin(get("http://a.test/"), false).await;
    let (leaves, mut body) = client.begin(post("http://a.test/"), true).await;
    plane.settle(|| hold.waiting() == 2).await;
    body.send_reset(Reason::CANCEL);
    drop(leaves);
    plane.settle(|| hold.waiting() == 1).await;
    plane.route("a.test", &upstream);
    hold.release();
    assert_eq!(Whole::of(stays).await.status(), 200);
    plane.shutdown().await;
}
