//! WebSockets over HTTP/3 (RFC 9220).

use std::time::Duration;

use lockgate::gate::InFlight;
use lockgate::proxy::ProxySettings;
use lockgate::routing::backend::Order;

use crate::support::{OK, Upstream, within};
use crate::support_http3::{DATA, HEADERS, Raw, bed_with, connect, fields, frame};
use crate::tls::Bed;
use crate::websocket_http2::{CLOSE_1012, agree, assert_upgrade};

async fn to_upstream(change: impl FnOnce(&mut ProxySettings)) -> (Bed, Upstream) {
    let (bed, upstream) = (bed_with(change).await, Upstream::start().await);
    bed.plane.route("a.test", &upstream);
    (bed, upstream)
}

/// Asks for a tunnel.
async fn ask(connection: &quinn::Connection, protocol: &str) -> Raw {
    let head = [
        (":method", "CONNECT"),
        (":protocol", protocol),
        (":scheme", "https"),
        (":authority", "a.test"),
        (":path", "/chat?x=1"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-protocol", "chat"),
    ];
    Raw::begin(connection, &frame(HEADERS, &fields(&head))).await
}

#[tokio::test]
async fn f4_the_setting_is_there_from_the_first_frame_on() {
    const CONTROL: u8 = 0;
    const SETTINGS: u8 = 4;
    let (bed, _upstream) = to_upstream(|_| {}).await;
    let connection = connect(&bed, "a.test").await;
    let settings = loop {
        let mut stream = within(connection.accept_uni()).await.unwrap();
        let mut began = [0; 3];
        within(stream.read_exact(&mut began)).await.unwrap();
        if began[0] == CONTROL {
            assert_eq!(began[1], SETTINGS);
            let mut settings = vec![0; usize::from(began[2])];
            within(stream.read_exact(&mut settings)).await.unwrap();
            break settings;
        }
    };
    // SETTINGS_ENABLE_CONNECT_PROTOCOL is 8.
    assert!(settings.windows(2).any(|pair| pair == [8, 1]), "{settings:x?}");
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn f4_a_websocket_over_http3_is_an_upgrade_to_the_app_and_carries_bytes_and_half_a_close() {
    let (bed, upstream) = to_upstream(|_| {}).await;
    let connection = connect(&bed, "a.test").await;
    let mut client = ask(&connection, "websocket").await;
    let mut app = upstream.accept().await;
    let head = agree(&mut app).await;
    assert_upgrade(&head);
    assert_eq!(client.head().await, 200);
    assert_eq!(upstream.target.gate.in_flight(), InFlight { requests: 0, streams: 1 });
    client.send(&frame(DATA, b"\x82\x03abc")).await;
    assert_eq!(app.bytes(5).await, b"\x82\x03abc");
    app.send(b"\x82\x03xyz").await;
    assert_eq!(client.data(5).await, b"\x82\x03xyz");
    // More than all windows, both ways.
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let frames = [&[0x82, 127][..], &3_000_000_u64.to_be_bytes(), &large].concat();
    let (_, came) = tokio::join!(client.send_as(DATA, &frames), app.bytes(frames.len()));
    assert!(came == frames, "what came is not what was sent");
    let ((), came) = tokio::join!(app.send(&frames), client.data(frames.len()));
    assert!(came == frames, "what came back is not what was sent");
    // Other requests are none of its business.
    let own = [(":method", "GET"), (":scheme", "https"), (":authority", "b.test"), (":path", "/")];
    assert!(Raw::ask(&connection, &frame(HEADERS, &fields(&own))).await.is_answered().await);
    client.finish();
    app.closed().await;
    app.send(b"\x82\x01!").await;
    assert_eq!(client.data(3).await, b"\x82\x01!");
    assert_eq!(upstream.target.gate.in_flight().streams, 1, "until both directions have ended");
    app.finish().await;
    assert_eq!(client.end().await, Ok(()));
    bed.plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn f4_what_the_app_does_not_agree_to_is_never_a_success() {
    let (bed, _upstream) = to_upstream(|_| {}).await;
    let upstream = Upstream::answering(OK).await;
    bed.plane.route("a.test", &upstream);
    let connection = connect(&bed, "a.test").await;
    assert_eq!(ask(&connection, "websocket").await.head().await, 502);
    upstream.answer("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
    assert_eq!(ask(&connection, "websocket").await.head().await, 403);
    assert_eq!(upstream.heads().len(), 2);
    for protocol in ["connect-udp", "webtransport", "unknown"] {
        assert_eq!(ask(&connection, protocol).await.head().await, 405, "{protocol}");
    }
    assert_eq!(upstream.heads().len(), 2);
    bed.plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn f5_at_the_end_of_its_drain_a_websocket_over_http3_is_closed_by_1012() {
    let (bed, upstream) =
        to_upstream(|settings| settings.limits.close_spread = Duration::from_millis(30)).await;
    let connection = connect(&bed, "a.test").await;
    let mut client = ask(&connection, "websocket").await;
    let mut app = upstream.accept().await;
    agree(&mut app).await;
    assert_eq!(client.head().await, 200);
    app.send(b"\x82\x03ab").await;
    assert_eq!(client.data(4).await, b"\x82\x03ab");
    upstream.target.gate.close();
    upstream.target.set_order(Order::CloseStreams);
    bed.plane.routing.signal_workers();
    // Not in the middle of a frame.
    assert!(tokio::time::timeout(Duration::from_millis(150), client.data(1)).await.is_err());
    app.send(b"c").await;
    assert_eq!(client.data(1).await, b"c");
    assert_eq!(client.data(CLOSE_1012.len()).await, CLOSE_1012);
    upstream.target.set_order(Order::CutStreams);
    bed.plane.routing.signal_workers();
    assert!(client.end().await.is_err(), "an end in order");
    bed.plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn e4_either_side_that_breaks_off_takes_the_other_along() {
    /// H3_CONNECT_ERROR
    const BROKEN: u64 = 0x10f;
    let (bed, upstream) = to_upstream(|_| {}).await;
    let connection = connect(&bed, "a.test").await;
    let mut client = ask(&connection, "websocket").await;
    let mut app = upstream.accept().await;
    agree(&mut app).await;
    assert_eq!(client.head().await, 200);
    client.reset();
    app.rest().await;
    bed.plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    let mut client = ask(&connection, "websocket").await;
    let mut app = upstream.accept().await;
    agree(&mut app).await;
    assert_eq!(client.head().await, 200);
    app.reset();
    assert_eq!(client.end().await, Err(BROKEN));
    bed.plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    bed.plane.shutdown().await;
}
