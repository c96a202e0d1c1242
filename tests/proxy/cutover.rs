//! What a cutover, a drain and the end of the data plane do to requests and connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lockgate::gate::{Awaited, InFlight};
use lockgate::routing::backend::Order;
use tokio::task::JoinSet;

use crate::support::{GET, OK, Plane, Upstream, all_of, assert_cut_requests, status, within};

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const CLOSE_1012: &[u8] = &[0x88, 0x02, 0x03, 0xf4];

#[tokio::test]
async fn h5_a_kept_connection_follows_its_route_and_is_not_closed() {
    let plane = Plane::start();
    let (old, new) = (
        Upstream::answering(OK).await,
        Upstream::answering("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await,
    );
    plane.route("a.test", &old);
    let mut client = plane.connect().await;
    client.send(GET).await;
    assert_eq!(status(&client.head().await), 200);
    for (upstream, expected) in [(&new, 201), (&old, 200), (&new, 201)] {
        plane.route("a.test", upstream);
        client.send(GET).await;
        assert_eq!(status(&client.head().await), expected);
    }
    plane.routing.publish(|edit| edit.clear());
    client.send(GET).await;
    assert_eq!(status(&client.head().await), 404);
    plane.shutdown().await;
}

#[tokio::test]
async fn p1_p2_swaps_under_load_lose_nothing_and_answer_from_the_new_version_at_once() {
    let plane = Arc::new(Plane::start());
    let versions = [
        Upstream::answering(OK).await,
        Upstream::answering("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await,
    ];
    plane.route("a.test", &versions[0]);
    let done = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    for _ in 0..16 {
        let (plane, done) = (plane.clone(), done.clone());
        load.spawn(async move {
            let mut client = plane.connect().await;
            let mut count = 0_u64;
            while !done.load(Ordering::Relaxed) {
                client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n").await;
                let head = client.head().await;
                assert!([200, 201].contains(&status(&head)), "{head}");
                count += 1;
            }
            count
        });
    }
    let mut probe = plane.connect().await;
    for swap in 0..200 {
        let (old, new) = (&versions[swap % 2], &versions[(swap + 1) % 2]);
        let probe = async {
            probe.send(GET).await;
            assert_eq!(status(&probe.head().await), [201, 200][swap % 2], "swap {swap}");
        };
        plane.swap("a.test", old, new, probe).await;
    }
    done.store(true, Ordering::Relaxed);
    let served = all_of(load).await;
    assert!(served > 200, "only {served} requests");
    drop(probe);
    Arc::into_inner(plane).unwrap().shutdown().await;
}

#[tokio::test]
async fn g7_idle_connections_to_a_replaced_target_are_closed_and_busy_ones_when_they_come_free() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let (mut idle, mut busy) = (plane.connect().await, plane.connect().await);
    idle.send(GET).await;
    let mut idle_app = upstream.accept().await;
    idle_app.head().await;
    busy.send(GET).await;
    let mut busy_app = upstream.accept().await;
    busy_app.head().await;
    idle_app.send(OK).await;
    idle.head().await;
    assert_eq!(upstream.target.connections.in_flight().requests, 2);
    upstream.target.set_order(Order::CloseIdle);
    plane.routing.signal_workers();
    idle_app.closed().await;
    busy_app.send(OK).await;
    assert_eq!(status(&busy.head().await), 200);
    busy_app.closed().await;
    upstream.target.connections.close();
    within(upstream.target.connections.drained(Awaited::Everything)).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn p1_requests_past_their_drain_deadline_are_cut_and_reported_and_streams_go_on() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let (mut waiting, mut reading, mut stream) =
        (plane.connect().await, plane.connect().await, plane.connect().await);
    waiting.send("POST /w HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n").await;
    let mut waiting_app = upstream.accept().await;
    waiting_app.head().await;
    reading.send(GET).await;
    let mut reading_app = upstream.accept().await;
    reading_app.head().await;
    reading_app.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
    reading.head().await;
    stream.send(GET).await;
    let mut stream_app = upstream.accept().await;
    stream_app.head().await;
    stream_app.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await;
    stream.head().await;
    upstream.target.gate.close();
    upstream.target.set_order(Order::CutRequests);
    plane.routing.signal_workers();
    let cut = waiting.rest().await;
    assert!(status(&cut) == 502 && cut.contains("drain_cut"), "{cut}");
    assert_eq!(reading.rest().await, "abc");
    waiting_app.closed().await;
    reading_app.closed().await;
    plane.settle(|| upstream.target.gate.in_flight() == InFlight { requests: 0, streams: 1 }).await;
    assert_cut_requests(&upstream);
    stream_app.send("data: 1\n\n").await;
    stream.until("data: 1\n\n").await;
    upstream.target.set_order(Order::CutStreams);
    plane.routing.signal_workers();
    stream.rest().await;
    stream_app.closed().await;
    plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    assert_eq!(upstream.target.take_cuts().iter().map(|cut| cut.stream).collect::<Vec<_>>(), [true]);
    let metrics = plane.metrics();
    for counted in ["{kind=\"request\"} 2\n", "{kind=\"stream\"} 1\n"] {
        assert!(metrics.contains(&format!("lockgate_drain_cut_total{counted}")), "{metrics}");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn f5_a_websocket_gets_a_close_frame_between_two_frames_and_may_answer_it() {
    // All are closed in the same tick.
    let plane = Plane::with(|settings| settings.limits.close_spread = settings.limits.tick);
    let upstream = Upstream::start().await;
    plane.route("a.test", &upstream);
    let upgraded = async || {
        let mut client = plane.connect().await;
        client.send(UPGRADE).await;
        let mut app = upstream.accept().await;
        app.head().await;
        app.send(SWITCHED).await;
        client.head().await;
        (client, app)
    };
    let ((mut client, mut app), (mut other, other_app)) = (upgraded().await, upgraded().await);
    // Half a frame: the close has to wait for the rest.
    app.send(b"\x82\x04ab").await;
    assert_eq!(client.bytes(4).await, b"\x82\x04ab");
    upstream.target.gate.close();
    upstream.target.set_order(Order::CloseStreams);
    plane.routing.signal_workers();
    // Where there is no frame it comes at once; so it is due here as well.
    assert_eq!(other.bytes(4).await, CLOSE_1012);
    other.finish().await;
    drop((other, other_app));
    app.send(b"cd\x82\x01z").await;
    assert_eq!(client.bytes(6).await, [b"cd", CLOSE_1012].concat());
    client.send(b"\x88\x82\x00\x00\x00\x00\x03\xf4").await;
    assert_eq!(app.bytes(8).await, b"\x88\x82\x00\x00\x00\x00\x03\xf4");
    app.finish().await;
    client.finish().await;
    client.closed().await;
    plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    assert_eq!(upstream.target.take_cuts(), []);
    plane.shutdown().await;
}

#[tokio::test]
async fn an_upload_that_outlives_its_response_is_cut_at_the_deadline_too() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 6\r\n\r\nabc").await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send(OK).await;
    client.head().await;
    assert_eq!(upstream.target.gate.in_flight().requests, 1);
    upstream.target.gate.close();
    upstream.target.set_order(Order::CutRequests);
    plane.routing.signal_workers();
    plane.settle(|| upstream.target.gate.in_flight().requests == 0).await;
    assert_eq!(upstream.target.take_cuts().len(), 1);
    app.rest().await;
    drop(client);
    plane.shutdown().await;
}

#[tokio::test]
async fn at_the_end_requests_in_flight_are_answered_and_idle_connections_closed() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let (mut idle, mut busy) = (plane.connect().await, plane.connect().await);
    busy.send(GET).await;
    let mut app = upstream.accept().await;
    app.head().await;
    let address = plane.address;
    let mut ending = JoinSet::new();
    ending.spawn(plane.shutdown());
    idle.closed().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "it still accepts");
    app.send(OK).await;
    let answer = busy.rest().await;
    assert!(status(&answer) == 200 && answer.contains("connection: close\r\n"), "{answer}");
    within(ending.join_next()).await.unwrap().unwrap();
    app.closed().await;
}

#[tokio::test]
async fn an_address_that_is_taken_is_named_with_a_remedy() {
    // Another data plane would let its port be shared.
    let other = Plane::start();
    let address = other.address;
    let error = Plane::try_with(|settings| settings.listen = vec![address]).err().unwrap().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("choose another address"), "{error}");
    other.shutdown().await;
}
