//! WebSockets over HTTP/2 (RFC 8441), towards clients and towards applications.

use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::ResponseFuture;
use h2::ext::Protocol;
use http::{Method, Request, Response};
use lockgate::gate::InFlight;
use lockgate::routing::backend::Order;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::support::{OK, Plane, Upstream, Wire, field, status, within};
use crate::support_h2c::App;
use crate::support_http2::{Http2, SETTINGS, Whole, data};

pub(crate) const CLOSE_1012: &[u8] = &[0x88, 0x02, 0x03, 0xf4];

/// Asks for a WebSocket.
async fn connect(client: &mut Http2, protocol: &'static str) -> (ResponseFuture, SendStream<Bytes>) {
    // The setting has come by the time that an answer has.
    client.get("http://nobody.test/").await;
    assert!(client.send.is_extended_connect_protocol_enabled());
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri("http://a.test/chat?x=1")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat")
        .body(())
        .unwrap();
    request.extensions_mut().insert(Protocol::from_static(protocol));
    client.begin(request, true).await
}

/// The application's side of a handshake.
pub(crate) async fn agree(app: &mut Wire) -> String {
    let head = app.head().await;
    let accept = derive_accept_key(field(&head, "sec-websocket-key").unwrap().as_bytes());
    app.send(format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    ))
    .await;
    head
}

/// The application sees what a client of HTTP/1.1 would ask.
pub(crate) fn assert_upgrade(head: &str) {
    assert!(head.starts_with("GET /chat?x=1 HTTP/1.1\r\n"), "{head}");
    for (name, value) in [
        ("host", "a.test"),
        ("upgrade", "websocket"),
        ("connection", "upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-protocol", "chat"),
    ] {
        assert_eq!(field(head, name), Some(value), "{head}");
    }
}

#[tokio::test]
async fn f4_a_websocket_over_http2_is_an_upgrade_to_the_app_and_carries_bytes_and_half_a_close() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    let (response, mut up) = connect(&mut client, "websocket").await;
    let mut app = upstream.accept().await;
    let head = agree(&mut app).await;
    assert_upgrade(&head);
    let response = within(response).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
    for name in ["upgrade", "connection", "sec-websocket-accept"] {
        assert!(!response.headers().contains_key(name), "{name}");
    }
    assert_eq!(upstream.target.gate.in_flight(), InFlight { requests: 0, streams: 1 });
    let mut down = response.into_body();
    up.send_data(Bytes::from_static(b"\x82\x03abc"), false).unwrap();
    assert_eq!(app.bytes(5).await, b"\x82\x03abc");
    app.send(b"\x82\x03xyz").await;
    assert_eq!(data(&mut down).await.unwrap().unwrap(), &b"\x82\x03xyz"[..]);
    // Other streams are none of its business.
    assert_eq!(client.get("http://nobody.test/").await.status(), 404);
    up.send_data(Bytes::new(), true).unwrap();
    app.closed().await;
    app.send(b"\x82\x01!").await;
    assert_eq!(data(&mut down).await.unwrap().unwrap(), &b"\x82\x01!"[..]);
    assert_eq!(upstream.target.gate.in_flight().streams, 1, "until both directions have ended");
    app.finish().await;
    assert!(data(&mut down).await.is_none_or(|end| end.unwrap().is_empty()));
    plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn f4_what_the_app_does_not_agree_to_is_never_a_success() {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    let (response, _up) = connect(&mut client, "websocket").await;
    let answer = Whole::of(response).await;
    assert_eq!((answer.status(), answer.field("lockgate-reason")), (502, Some("upgrade_refused")));
    upstream.answer("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
    let (response, _up) = connect(&mut client, "websocket").await;
    let answer = Whole::of(response).await;
    assert_eq!((answer.status(), answer.text()), (403, "no"));
    let (response, _up) = connect(&mut client, "connect-udp").await;
    assert_eq!(Whole::of(response).await.status(), 405);
    plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn f5_at_the_end_of_its_drain_a_websocket_over_http2_is_closed_by_1012() {
    let plane = Plane::with(|settings| settings.limits.close_spread = Duration::from_millis(30));
    let upstream = Upstream::start().await;
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    let (response, mut up) = connect(&mut client, "websocket").await;
    let mut app = upstream.accept().await;
    agree(&mut app).await;
    let mut down = within(response).await.unwrap().into_body();
    app.send(b"\x82\x03ab").await;
    assert_eq!(data(&mut down).await.unwrap().unwrap(), &b"\x82\x03ab"[..]);
    upstream.target.gate.close();
    upstream.target.set_order(Order::CloseStreams);
    plane.routing.signal_workers();
    // In the middle of a frame there is no place for it.
    app.send(b"c").await;
    let mut rest = Vec::new();
    while rest.len() < 5 {
        rest.extend_from_slice(&data(&mut down).await.unwrap().unwrap());
    }
    assert_eq!(rest, [b"c", CLOSE_1012].concat());
    up.send_data(Bytes::from_static(&[0x88, 0]), false).unwrap();
    assert_eq!(app.bytes(2).await, [0x88, 0]);
    upstream.target.set_order(Order::CutStreams);
    plane.routing.signal_workers();
    app.closed().await;
    plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn e4_a_client_that_resets_its_websocket_takes_the_apps_side_along() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    let (response, up) = connect(&mut client, "websocket").await;
    let mut app = upstream.accept().await;
    agree(&mut app).await;
    drop((within(response).await.unwrap(), up));
    app.rest().await;
    plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn f4_an_app_of_http2_that_takes_websockets_gets_those_of_both_kinds_of_clients() {
    let plane = Plane::start();
    let mut app = App::with(|builder| {
        builder.enable_connect_protocol();
    })
    .await;
    plane.route("a.test", &app.upstream);
    let mut old = plane.connect().await;
    old.send(
        "GET /chat HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    .await;
    let mut call = app.call().await;
    assert_eq!((call.request.method(), call.path()), (&Method::CONNECT, "/chat"));
    assert_eq!(call.request.extensions().get::<Protocol>().unwrap().as_str(), "websocket");
    assert!(call.field("sec-websocket-key").is_none() && call.field("upgrade").is_none());
    let mut down = call.begin(Response::builder());
    let head = old.head().await;
    assert_eq!((status(&head), field(&head, "upgrade")), (101, Some("websocket")));
    assert_eq!(field(&head, "sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    old.send(b"\x82\x01a").await;
    assert_eq!(data(call.request.body_mut()).await.unwrap().unwrap(), &b"\x82\x01a"[..]);
    down.send_data(Bytes::from_static(b"\x82\x01b"), false).unwrap();
    assert_eq!(old.bytes(3).await, b"\x82\x01b");
    old.finish().await;
    assert!(data(call.request.body_mut()).await.is_none_or(|end| end.unwrap().is_empty()));
    down.send_data(Bytes::new(), true).unwrap();
    old.closed().await;
    // And over HTTP/2.
    let mut client = Http2::connect(&plane).await;
    let (response, mut up) = connect(&mut client, "websocket").await;
    let mut call = app.call().await;
    let mut down = call.begin(Response::builder());
    let mut body = within(response).await.unwrap().into_body();
    up.send_data(Bytes::from_static(b"\x82\x01c"), false).unwrap();
    assert_eq!(data(call.request.body_mut()).await.unwrap().unwrap(), &b"\x82\x01c"[..]);
    down.send_data(Bytes::from_static(b"\x82\x01d"), true).unwrap();
    assert_eq!(data(&mut body).await.unwrap().unwrap(), &b"\x82\x01d"[..]);
    up.send_data(Bytes::new(), true).unwrap();
    plane.settle(|| app.upstream.target.gate.in_flight() == InFlight::default()).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn f4_the_setting_is_there_from_the_first_frame_on() {
    let plane = Plane::start();
    let mut wire = Wire::begin_http2(&plane).await;
    let settings = wire.frame(SETTINGS).await.payload;
    assert!(settings.chunks(6).any(|one| one == [0, 8, 0, 0, 0, 1]), "{settings:?}");
    plane.shutdown().await;
}
