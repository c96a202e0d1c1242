//! How the requests of an HTTP/3 connection, and the connection, go on and end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h3::error::Code;
use http::Request;
use lockgate::gate::InFlight;
use lockgate::proxy::AccessLogSink;
use lockgate::routing::backend::Order;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::holds::{held, rules};
use crate::support::{
    CREATED, LONGER, OK, SOCKET_BUFFERS, Upstream, all_of, assert_cut_requests, logged, within,
};
use crate::support_h2c::{App, trailers};
use crate::support_http3::{
    EXCESSIVE_LOAD, Http3, REQUEST_INCOMPLETE, Raw, Whole, bed, bed_to_upstream, bed_with, closed, code,
    config, endpoint, get, head, post,
};
use crate::tls::Bed;

/// One whose access log is `access.log` in a folder of its own.
async fn bed_with_log() -> (Bed, Upstream, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let bed = bed_with(|settings| settings.access_log = AccessLogSink::File(path)).await;
    let upstream = Upstream::start().await;
    bed.plane.route("a.test", &upstream);
    (bed, upstream, directory)
}

#[tokio::test]
async fn e4_a_request_that_its_client_takes_back_drops_that_of_the_app_alone() {
    let (bed, upstream, directory) = bed_with_log().await;
    let path = directory.path().join("access.log");
    let mut client = Http3::connect(&bed).await;
    let other = client.ask(get("https://a.test/other")).await;
    let mut other_app = upstream.accept().await;
    other_app.head().await;
    // While it waits for its answer, while it sends, and while it reads.
    let mut waiting = client.ask(get("https://a.test/waiting")).await;
    let mut app = upstream.accept().await;
    app.head().await;
    assert_eq!(upstream.target.gate.in_flight().requests, 2);
    waiting.stop_sending(Code::H3_REQUEST_CANCELLED);
    app.closed().await;
    let mut sending = client.begin(post("https://a.test/sending")).await;
    sending.send_data(Bytes::from_static(b"abc")).await.unwrap();
    let mut app = upstream.accept().await;
    app.until("abc").await;
    sending.stop_stream(Code::H3_REQUEST_CANCELLED);
    let rest = app.rest().await;
    assert!(!rest.ends_with("0\r\n\r\n"), "{rest:?}");
    let mut reading = client.ask(get("https://a.test/reading")).await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
    within(reading.recv_response()).await.unwrap();
    within(reading.recv_data()).await.unwrap();
    drop(reading);
    app.closed().await;
    bed.plane.settle(|| upstream.target.gate.in_flight().requests == 1).await;
    other_app.send(OK).await;
    assert_eq!(Whole::of(other).await.unwrap().status(), 200);
    let metrics = bed.plane.metrics();
    assert!(metrics.contains("lockgate_client_aborts_total 3\n"), "{metrics}");
    bed.plane.shutdown().await;
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
    let (bed, upstream) = bed_to_upstream().await;
    let mut client = Http3::connect(&bed).await;
    let _asked = [client.ask(get("https://a.test/")).await, client.begin(post("https://a.test/")).await];
    let mut apps = [upstream.accept().await, upstream.accept().await];
    for app in &mut apps {
        app.head().await;
    }
    client.connection.close(0_u32.into(), b"");
    for app in &mut apps {
        app.rest().await;
    }
    bed.plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn e4_a_response_that_is_cut_short_upstream_is_reset_and_never_ended() {
    let (bed, upstream) = bed_to_upstream().await;
    let mut client = Http3::connect(&bed).await;
    for head in ["Content-Length: 9", "Transfer-Encoding: chunked"] {
        let asked = client.ask(get("https://a.test/")).await;
        let mut app = upstream.accept().await;
        app.head().await;
        app.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n3\r\nabc")).await;
        app.finish().await;
        let error = match Whole::of(asked).await {
            // A reset overtakes what was sent before it.
            Ok(whole) => whole.error.expect("an end in order"),
            Err(error) => error,
        };
        assert_eq!(code(&error), Code::H3_INTERNAL_ERROR.value(), "{head}");
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn e1_a_closed_window_slows_the_upstream_and_no_other_stream() {
    let (bed, upstream) = bed_to_upstream().await;
    let quick = Upstream::answering("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nquick").await;
    bed.plane.route("b.test", &quick);
    let mut client = Http3::connect(&bed).await;
    let mut asked = client.ask(get("https://a.test/")).await;
    let mut app = upstream.accept().await;
    app.head().await;
    let total = 128 * 1024 * 1024;
    app.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n")).await;
    within(asked.recv_response()).await.unwrap();
    let part = vec![b'x'; 1024 * 1024];
    let mut sent = 0;
    while let Ok(taken) = tokio::time::timeout(Duration::from_millis(300), app.write_some(&part)).await {
        sent += taken;
    }
    assert!(sent < SOCKET_BUFFERS, "{sent} bytes went into the proxy although nobody read");
    assert_eq!(client.get("https://b.test/").await.text(), "quick");
    asked.stop_sending(Code::H3_REQUEST_CANCELLED);
    bed.plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn e1_a_slow_upstream_slows_the_sender_and_no_other_stream() {
    let (bed, upstream) = bed_to_upstream().await;
    bed.route("b.test");
    let mut client = Http3::connect(&bed).await;
    let mut asked = client.begin(post("https://a.test/")).await;
    let mut app = upstream.accept().await;
    app.head().await;
    let part = Bytes::from(vec![b'x'; 64 * 1024]);
    let mut sent = 0;
    // The first are taken, whatever the application does.
    for _ in 0..2 {
        within(asked.send_data(part.clone())).await.unwrap();
        sent += part.len();
    }
    while let Ok(taken) =
        tokio::time::timeout(Duration::from_millis(300), asked.send_data(part.clone())).await
    {
        taken.unwrap();
        sent += part.len();
    }
    assert!(sent < SOCKET_BUFFERS, "{sent}");
    assert_eq!(client.answer(post("https://b.test/")).await.status(), 200);
    drop(app);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn e3_an_early_answer_is_passed_on_and_the_body_goes_on() {
    let (bed, upstream) = bed_to_upstream().await;
    let mut client = Http3::connect(&bed).await;
    let (mut sending, mut receiving) = client.begin(post("https://a.test/")).await.split();
    sending.send_data(Bytes::from_static(b"abc")).await.unwrap();
    let mut app = upstream.accept().await;
    app.until("abc\r\n").await;
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(within(receiving.recv_response()).await.unwrap().status(), 200);
    assert_eq!(within(receiving.recv_data()).await.unwrap().unwrap().chunk(), b"ok");
    assert!(within(receiving.recv_data()).await.unwrap().is_none());
    assert_eq!(upstream.target.gate.in_flight().requests, 1, "its request is not over");
    sending.send_data(Bytes::from_static(b"def")).await.unwrap();
    sending.finish().await.unwrap();
    assert_eq!(app.until("0\r\n\r\n").await, "3\r\ndef\r\n0\r\n\r\n");
    bed.plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn p1_p2_swaps_under_requests_lose_nothing_and_answer_from_the_new_version_at_once() {
    let bed = bed().await;
    let versions = [Upstream::answering(OK).await, Upstream::answering(CREATED).await];
    bed.plane.route("a.test", &versions[0]);
    let done = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    // Until the last request on them is answered.
    let mut clients = Vec::new();
    for _ in 0..4 {
        let client = Http3::connect(&bed).await;
        for _ in 0..4 {
            let (done, mut send) = (done.clone(), client.send.clone());
            load.spawn(async move {
                let mut count = 0_u64;
                while !done.load(Ordering::Relaxed) {
                    let mut asked = within(send.send_request(post("https://a.test/"))).await.unwrap();
                    within(asked.finish()).await.unwrap();
                    let answer = Whole::of(asked).await.unwrap();
                    assert!([200, 201].contains(&answer.status()));
                    count += 1;
                }
                count
            });
        }
        clients.push(client);
    }
    let mut probe = Http3::connect(&bed).await;
    let [one, two] = &versions;
    bed.plane.swaps([one, two], async || probe.get("https://a.test/").await.status()).await;
    done.store(true, Ordering::Relaxed);
    let served = all_of(load).await;
    assert!(served > 100, "only {served} requests");
    drop((probe, clients));
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn at_the_end_of_the_data_plane_clients_are_told_and_requests_in_flight_answered() {
    let (bed, upstream) = bed_to_upstream().await;
    let (mut idle, mut client) = (Http3::connect(&bed).await, Http3::connect(&bed).await);
    let asked = client.ask(get("https://a.test/")).await;
    let mut app = upstream.accept().await;
    app.head().await;
    let (ca, address) = (bed.ca, bed.plane.plane.addresses()[1]);
    let mut ending = JoinSet::new();
    ending.spawn(bed.plane.shutdown());
    assert!(idle.ended().await.is_h3_no_error());
    // Nobody is let in any more.
    let late = within(endpoint().connect_with(config(&ca), address, "a.test").unwrap()).await;
    assert!(late.is_err(), "a connection at the end");
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let answer = Whole::of(asked).await.unwrap();
    assert_eq!((answer.status(), answer.text(), answer.field("connection")), (200, "ok", None));
    assert!(client.ended().await.is_h3_no_error());
    within(ending.join_next()).await.unwrap().unwrap();
}

#[tokio::test]
async fn h1_a_connection_without_requests_is_told_to_end() {
    let bed = bed_with(|settings| settings.limits.keep_alive = LONGER).await;
    let mut client = Http3::connect(&bed).await;
    assert_eq!(client.get("https://a.test/").await.status(), 200);
    assert!(client.ended().await.is_h3_no_error());
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn each_request_has_time_outs_of_its_own() {
    let bed = bed_with(|settings| {
        settings.limits.head = LONGER;
        settings.limits.response_head = LONGER;
        settings.limits.body_idle = LONGER;
        settings.limits.response_idle = LONGER;
    })
    .await;
    let upstream = Upstream::start().await;
    bed.plane.route("a.test", &upstream);
    let mut client = Http3::connect(&bed).await;
    let unanswered = client.ask(get("https://a.test/")).await;
    let mut app = upstream.accept().await;
    app.head().await;
    let answer = Whole::of(unanswered).await.unwrap();
    assert_eq!((answer.status(), answer.field("lockgate-reason")), (504, Some("upstream_timeout")));
    app.closed().await;
    let unsent = client.begin(post("https://a.test/")).await;
    let mut app = upstream.accept().await;
    app.head().await;
    let answer = Whole::of(unsent).await.unwrap();
    assert_eq!((answer.status(), answer.field("lockgate-reason")), (408, Some("request_timeout")));
    app.rest().await;
    let stuck = client.ask(get("https://a.test/")).await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
    assert!(Whole::of(stuck).await.map_or(true, |whole| whole.error.is_some()));
    app.closed().await;
    // A head that does not come, and one of which nobody knows whether that is all.
    let connection = &client.connection;
    let mut heads = [Raw::begin(connection, &[1]).await, Raw::begin(connection, &head(&[])).await];
    for asked in &mut heads {
        assert_eq!(asked.status().await, Err(REQUEST_INCOMPLETE));
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn p1_requests_past_their_drain_deadline_are_cut_each_by_itself_and_reported() {
    let (bed, upstream) = bed_to_upstream().await;
    let mut client = Http3::connect(&bed).await;
    let waiting = client.ask(post("https://a.test/w")).await;
    let mut waiting_app = upstream.accept().await;
    waiting_app.head().await;
    let mut reading = client.ask(get("https://a.test/r")).await;
    let mut reading_app = upstream.accept().await;
    reading_app.head().await;
    reading_app.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
    within(reading.recv_response()).await.unwrap();
    assert_eq!(within(reading.recv_data()).await.unwrap().unwrap().chunk(), b"abc");
    let mut events = client.ask(get("https://a.test/e")).await;
    let mut events_app = upstream.accept().await;
    events_app.head().await;
    events_app.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await;
    within(events.recv_response()).await.unwrap();
    upstream.target.gate.close();
    upstream.target.set_order(Order::CutRequests);
    bed.plane.routing.signal_workers();
    let told = Whole::of(waiting).await.unwrap();
    assert_eq!((told.status(), told.field("lockgate-reason")), (502, Some("drain_cut")));
    let cut = within(reading.recv_data()).await.err().expect("an end in order");
    assert_eq!(code(&cut), Code::H3_INTERNAL_ERROR.value());
    waiting_app.closed().await;
    reading_app.closed().await;
    bed.plane.settle(|| upstream.target.gate.in_flight() == InFlight { requests: 0, streams: 1 }).await;
    assert_cut_requests(&upstream);
    events_app.send("data: 1\n\n").await;
    assert_eq!(within(events.recv_data()).await.unwrap().unwrap().chunk(), b"data: 1\n\n");
    upstream.target.set_order(Order::CutStreams);
    bed.plane.routing.signal_workers();
    assert!(within(events.recv_data()).await.is_err());
    events_app.closed().await;
    bed.plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    // The connection is none of theirs.
    assert_eq!(client.get("https://b.test/").await.status(), 404);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn at_its_deadline_the_data_plane_ends_connections_with_what_is_left_on_them() {
    let (bed, upstream, directory) = bed_with_log().await;
    let path = directory.path().join("access.log");
    let mut client = Http3::connect(&bed).await;
    let _asked = client.ask(get("https://a.test/")).await;
    let mut app = upstream.accept().await;
    app.head().await;
    within(bed.plane.plane.shutdown(Duration::from_millis(50))).await;
    assert_eq!(closed(&client.connection).await, Code::H3_NO_ERROR.value());
    app.closed().await;
    let log = std::fs::read_to_string(path).unwrap();
    let line: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_ne!(line["end"], "ok", "{line}");
}

#[tokio::test]
async fn held_requests_wait_are_released_and_leave_with_their_client() {
    let bed = bed().await;
    let hold = held(&bed.plane, "a.test", rules(), None);
    let mut client = Http3::connect(&bed).await;
    let stays = client.ask(get("https://a.test/")).await;
    let mut leaves = client.begin(post("https://a.test/")).await;
    let gone = client.ask(get("https://a.test/gone")).await;
    bed.plane.settle(|| hold.waiting() == 3).await;
    leaves.stop_stream(Code::H3_REQUEST_CANCELLED);
    drop((leaves, gone));
    bed.plane.settle(|| hold.waiting() == 1).await;
    bed.route("a.test");
    hold.release();
    assert_eq!(Whole::of(stays).await.unwrap().status(), 200);
    assert_eq!(bed.upstream.heads().len(), 1);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn a_held_body_is_not_read_and_arrives_whole_once_it_is_released() {
    let bed = bed().await;
    let hold = held(&bed.plane, "a.test", rules(), None);
    let mut client = Http3::connect(&bed).await;
    let body = Bytes::from(vec![b'x'; 1024 * 1024]);
    let (mut sending, receiving) = client.begin(post("https://a.test/")).await.split();
    let sent = body.clone();
    let mut sender = JoinSet::new();
    sender.spawn(async move {
        sending.send_data(sent).await.unwrap();
        sending.finish().await.unwrap();
    });
    bed.plane.settle(|| hold.waiting() == 1).await;
    // What its window takes, and no more.
    let waits = tokio::time::timeout(Duration::from_millis(200), sender.join_next()).await;
    assert!(waits.is_err(), "all of it was taken while it was held");
    let upstream = Upstream::start().await;
    bed.plane.route("a.test", &upstream);
    hold.release();
    let mut app = upstream.accept().await;
    app.head().await;
    let mut came = 0;
    while let length @ 1.. = usize::from_str_radix(app.until("\r\n").await.trim(), 16).unwrap() {
        came += app.bytes(length).await.len();
        app.until("\r\n").await;
    }
    assert_eq!(came, body.len());
    app.until("\r\n").await;
    app.send(OK).await;
    let mut receiving = receiving;
    assert_eq!(within(receiving.recv_response()).await.unwrap().status(), 200);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn k4_a_reader_that_takes_nothing_loses_its_response_and_not_its_connection() {
    let bed = bed_with(|settings| settings.limits.response_idle = LONGER).await;
    let upstream = Upstream::start().await;
    bed.plane.route("a.test", &upstream);
    bed.route("b.test");
    let mut client = Http3::connect(&bed).await;
    let mut asked = client.ask(get("https://a.test/")).await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 64 * 1024 * 1024)).await;
    within(asked.recv_response()).await.unwrap();
    let part = vec![b'x'; 1024 * 1024];
    let pour = async {
        loop {
            if tokio::io::AsyncWriteExt::write_all(&mut app.stream, &part).await.is_err() {
                break;
            }
        }
    };
    // The application is let go of.
    within(pour).await;
    let mut read = within(asked.recv_data()).await.map(|data| data.is_some());
    while let Ok(true) = read {
        read = within(asked.recv_data()).await.map(|data| data.is_some());
    }
    assert_eq!(code(&read.unwrap_err()), Code::H3_REQUEST_CANCELLED.value());
    assert_eq!(upstream.backend.stats.tally().failed(), 0, "the application did nothing wrong");
    assert_eq!(client.get("https://b.test/").await.status(), 200);
    bed.plane.shutdown().await;
}

/// Passes datagrams on between one client and the server at `to`, those to the client with a pause after each.
async fn narrow(to: SocketAddr, pause: Duration) -> (SocketAddr, JoinSet<()>) {
    let near = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    let far = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    far.connect(to).await.unwrap();
    let address = near.local_addr().unwrap();
    let mut passing = JoinSet::new();
    passing.spawn(async move {
        let (mut up, mut down, mut client) = (vec![0; 65_536], vec![0; 65_536], None);
        loop {
            tokio::select! {
                came = near.recv_from(&mut up) => {
                    let (length, from) = came.unwrap();
                    client = Some(from);
                    let _lost = far.send(&up[..length]).await;
                }
                Ok(length) = far.recv(&mut down) => {
                    if let Some(client) = client {
                        let _lost = near.send_to(&down[..length], client).await;
                        tokio::time::sleep(pause).await;
                    }
                }
            }
        }
    });
    (address, passing)
}

#[tokio::test]
async fn k4_a_narrow_way_to_the_client_is_no_reader_that_takes_nothing() {
    // Half as long as all of it takes, and longer than the way between, which is the test's, may stand still.
    let bed = bed_with(|settings| settings.limits.response_idle = LONGER).await;
    let body = 200_000;
    let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {body}\r\n\r\n{}", "x".repeat(body));
    bed.upstream.answer(Box::leak(response.into_boxed_str()));
    // About six seconds for all of it, which goes into QUIC's buffers at once.
    let (address, _passing) = narrow(bed.secure(), Duration::from_millis(36)).await;
    let mut client = Http3::at(address, config(&bed.ca)).await;
    let answer = client.get("https://a.test/").await;
    assert!(answer.error.is_none(), "{:?} after {} bytes", answer.error, answer.body.len());
    assert_eq!(answer.body.len(), body);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn h1_a_connection_is_idle_without_requests_whatever_else_its_client_sends() {
    let bed = bed_with(|settings| settings.limits.keep_alive = LONGER).await;
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_millis(5)));
    let mut kept_alive = config(&bed.ca);
    kept_alive.transport_config(Arc::new(transport));
    let mut client = Http3::with(&bed, kept_alive).await;
    assert!(client.ended().await.is_h3_no_error());
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn c7_interim_responses_are_dropped_and_the_answer_is_the_last() {
    let (bed, upstream) = bed_to_upstream().await;
    let mut client = Http3::connect(&bed).await;
    let asked = client.ask(get("https://a.test/")).await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n").await;
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let answer = Whole::of(asked).await.unwrap();
    assert_eq!((answer.status(), answer.text(), answer.field("link")), (200, "ok", None));
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn c6_a_call_of_grpc_ends_in_its_trailers_and_own_answers_are_trailers_alone() {
    let bed = bed().await;
    let mut app = App::behind(&bed.plane, "a.test").await;
    let mut client = Http3::connect(&bed).await;
    let call = |host: &str| {
        Request::post(format!("https://{host}/some.Service/Method"))
            .header("content-type", "application/grpc+proto")
            .header("te", "trailers")
            .body(())
            .unwrap()
    };
    let mut asked = client.begin(call("a.test")).await;
    asked.send_data(Bytes::from_static(b"\0\0\0\0\x04ping")).await.unwrap();
    asked.finish().await.unwrap();
    let mut called = app.call().await;
    assert_eq!((called.path(), called.field("te")), ("/some.Service/Method", Some("trailers")));
    assert_eq!(crate::support_http2::all(called.request.body_mut()).await, b"\0\0\0\0\x04ping");
    let ended = trailers(&[("grpc-status", "0"), ("grpc-message", "")]);
    let mut stream = called.begin(http::Response::builder().header("content-type", "application/grpc+proto"));
    stream.send_data(Bytes::from_static(b"\0\0\0\0\x04pong"), false).unwrap();
    stream.send_trailers(ended.clone()).unwrap();
    let answer = Whole::of(asked).await.unwrap();
    assert_eq!(
        (answer.status(), &answer.body[..], answer.trailers.as_ref()),
        (200, &b"\0\0\0\0\x04pong"[..], Some(&ended))
    );
    let refused = client.answer(call("b.test")).await;
    assert_eq!((refused.status(), refused.field("grpc-status")), (200, Some("12")));
    assert!(refused.body.is_empty() && refused.trailers.is_none());
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn k3_requests_that_are_taken_back_before_they_are_read_are_counted_too() {
    let bed = bed_with(|settings| settings.limits.http2_resets_per_minute = 50).await;
    let client = Http3::connect(&bed).await;
    let connection = client.connection.clone();
    let burst = async {
        for _ in 0..1000 {
            let Ok((mut sending, mut receiving)) = connection.open_bi().await else { return };
            // The head is nearly there.
            if sending.write_all(&head(&[])[..9]).await.is_err() {
                return;
            }
            let _ended = (sending.reset(0x10c_u32.into()), receiving.stop(0x10c_u32.into()));
        }
    };
    within(burst).await;
    assert_eq!(closed(&client.connection).await, EXCESSIVE_LOAD);
    assert!(bed.upstream.heads().is_empty());
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn what_comes_from_another_address_is_not_taken() {
    let bed = bed().await;
    let mut client = Http3::connect(&bed).await;
    assert_eq!(client.get("https://a.test/").await.status(), 200);
    client.endpoint.rebind(std::net::UdpSocket::bind("127.0.0.3:0").unwrap()).unwrap();
    let mut asked = Raw::ask(&client.connection, &head(&[])).await;
    let answered = tokio::time::timeout(Duration::from_millis(300), asked.status()).await;
    assert!(!matches!(answered, Ok(Ok(_))), "{answered:?}");
    assert_eq!(bed.upstream.heads().len(), 1);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn e6_a_body_over_the_limit_is_413_before_the_app_is_asked_or_cut_as_it_passes() {
    let bed = bed_with(|settings| settings.limits.body_bytes = 5).await;
    let upstream = Upstream::start().await;
    bed.plane.route("a.test", &upstream);
    let mut client = Http3::connect(&bed).await;
    let known = Request::post("https://a.test/").header("content-length", 6).body(()).unwrap();
    let asked = client.begin(known).await;
    let answer = Whole::of(asked).await.unwrap();
    assert_eq!((answer.status(), answer.field("lockgate-reason")), (413, Some("body_too_large")));
    let mut asked = client.begin(post("https://a.test/")).await;
    asked.send_data(Bytes::from_static(b"abc")).await.unwrap();
    let mut app = upstream.accept().await;
    app.until("abc\r\n").await;
    asked.send_data(Bytes::from_static(b"def")).await.unwrap();
    asked.finish().await.unwrap();
    let answer = Whole::of(asked).await.unwrap();
    assert_eq!((answer.status(), answer.field("lockgate-reason")), (413, Some("body_too_large")));
    assert!(!app.rest().await.contains("0\r\n\r\n"), "the request looks whole to its application");
    bed.plane.shutdown().await;
}

/// The bytes that the server at `bed` sends to an address from which came what a client begins with, and nothing more.
async fn told_unasked(bed: &Bed) -> (usize, usize) {
    let (client, nobody) = (endpoint(), UdpSocket::bind("127.0.0.3:0").await.unwrap());
    let connecting = client.connect_with(config(&bed.ca), nobody.local_addr().unwrap(), "a.test").unwrap();
    let mut packet = vec![0; 65_536];
    // Of an address at which nobody else is told anything: what comes late for others would be counted.
    let sender = UdpSocket::bind("127.0.0.4:0").await.unwrap();
    let mut sent = 0;
    // Its hello takes two of the least size that there is.
    while sent < 2400 {
        let (length, _) = within(nobody.recv_from(&mut packet)).await.unwrap();
        sent += sender.send_to(&packet[..length], bed.secure()).await.unwrap();
    }
    drop(connecting);
    let mut told = 0;
    // More than was sent it tells for sure, whenever it gets to it.
    while told <= sent {
        told += within(sender.recv_from(&mut packet)).await.unwrap().0;
    }
    // What it sends again and again is of no more use.
    while let Ok(came) = tokio::time::timeout(Duration::from_secs(2), sender.recv_from(&mut packet)).await {
        told += came.unwrap().0;
    }
    (sent, told)
}

#[tokio::test]
async fn h2_who_has_not_shown_its_address_gets_no_more_than_three_times_what_it_sent() {
    // A chain that is much longer.
    let bed = bed().await;
    let names: Vec<String> = (0..400).map(|n| format!("a-rather-long-name-{n}.test")).collect();
    let names: Vec<&str> = names.iter().map(|name| &**name).chain(["a.test"]).collect();
    bed.offer(&[&bed.ca.leaf(&names)]);
    let (sent, told) = told_unasked(&bed).await;
    // quinn does not count an acknowledgement that goes by itself.
    let acknowledgements = 100;
    assert!(told > sent && told <= 3 * sent + acknowledgements, "{told} for {sent}");
    bed.plane.shutdown().await;
}
