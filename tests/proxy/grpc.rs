//! gRPC, whose calls are requests of HTTP/2 that end in trailers.

use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::ResponseFuture;
use http::{Request, Response};
use lockgate::gate::InFlight;
use lockgate::proxy::AccessLogSink;
use lockgate::routing::backend::Order;
use serde_json::Value;

use crate::support::{LONGER, Plane, Upstream, backend, pattern, unreachable, within};
use crate::support_h2c::{App, Call, trailers};
use crate::support_http2::{Http2, Whole, all, data};

/// A message as it is framed.
fn message(text: &str) -> Bytes {
    let mut framed = vec![0];
    framed.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
    framed.extend(text.as_bytes());
    Bytes::from(framed)
}

async fn call(client: &mut Http2, timeout: Option<&str>) -> (ResponseFuture, SendStream<Bytes>) {
    let request = Request::post("http://a.test/some.Service/Method")
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers");
    let request = timeout.iter().fold(request, |request, timeout| request.header("grpc-timeout", *timeout));
    client.begin(request.body(()).unwrap(), true).await
}

fn answered() -> http::response::Builder {
    Response::builder().header("content-type", "application/grpc+proto")
}

fn ended() -> http::HeaderMap {
    trailers(&[("grpc-status", "0"), ("grpc-message", "")])
}

/// The status of an answer that is trailers alone.
fn told(answer: &Whole) -> (u16, Option<&str>, Option<&str>) {
    assert!(answer.body.is_empty() && answer.trailers.is_none(), "{:?}", answer.head);
    assert_eq!(answer.field("content-type"), Some("application/grpc"));
    (answer.status(), answer.field("grpc-status"), answer.field("lockgate-reason"))
}

#[tokio::test]
async fn c6_a_unary_call_reaches_the_app_and_ends_in_its_trailers() {
    let plane = Plane::start();
    let mut app = App::behind(&plane, "a.test").await;
    let mut client = Http2::connect(&plane).await;
    let (response, mut sender) = call(&mut client, Some("5S")).await;
    sender.send_data(message("ping"), true).unwrap();
    let mut call = app.call().await;
    assert_eq!(
        (call.path(), call.field("te"), call.field("grpc-timeout")),
        ("/some.Service/Method", Some("trailers"), Some("5S"))
    );
    assert_eq!(all(call.request.body_mut()).await, message("ping"));
    let mut stream = call.begin(answered());
    stream.send_data(message("pong"), false).unwrap();
    stream.send_trailers(ended()).unwrap();
    let answer = Whole::of(response).await;
    assert_eq!(
        (answer.status(), &answer.body[..], answer.trailers.as_ref()),
        (200, &message("pong")[..], Some(&ended()))
    );
    // Trailers alone.
    let (response, mut sender) = self::call(&mut client, None).await;
    sender.send_data(message("ping"), true).unwrap();
    let mut call = app.call().await;
    let only = answered().header("grpc-status", "5").header("grpc-message", "none").body(()).unwrap();
    call.respond.send_response(only, true).unwrap();
    let answer = Whole::of(response).await;
    assert_eq!((answer.field("grpc-status"), answer.field("grpc-message")), (Some("5"), Some("none")));
    assert!(answer.trailers.is_none() && answer.field("lockgate-reason").is_none());
    plane.settle(|| app.upstream.target.gate.in_flight() == InFlight::default()).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn e1_e2_messages_stream_both_ways_each_as_it_comes() {
    let plane = Plane::start();
    let mut app = App::behind(&plane, "a.test").await;
    let mut client = Http2::connect(&plane).await;
    let (response, mut sender) = call(&mut client, None).await;
    let Call { mut request, mut respond, .. } = app.call().await;
    let mut stream = respond.send_response(answered().body(()).unwrap(), false).unwrap();
    let mut body = within(response).await.unwrap().into_body();
    assert_eq!(app.upstream.target.gate.in_flight(), InFlight { requests: 0, streams: 1 });
    for n in 0..5 {
        let text = n.to_string();
        sender.send_data(message(&text), false).unwrap();
        assert_eq!(data(request.body_mut()).await.unwrap().unwrap(), message(&text));
        stream.send_data(message(&text), false).unwrap();
        assert_eq!(data(&mut body).await.unwrap().unwrap(), message(&text));
    }
    // The client ends first, as it does when it streams to the app.
    sender.send_data(Bytes::new(), true).unwrap();
    assert_eq!(all(request.body_mut()).await, b"");
    stream.send_trailers(ended()).unwrap();
    assert!(data(&mut body).await.is_none());
    assert_eq!(within(body.trailers()).await.unwrap().unwrap(), ended());
    plane.settle(|| app.upstream.target.gate.in_flight() == InFlight::default()).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn h1_calls_rest_as_long_as_both_sides_like() {
    let plane = Plane::with(|settings| {
        settings.limits.body_idle = LONGER;
        settings.limits.body_floor_after = LONGER;
        settings.limits.response_idle = LONGER;
        // Within it what is no call is answered, too.
        settings.limits.response_head = LONGER;
    });
    let mut app = App::behind(&plane, "a.test").await;
    let mut client = Http2::connect(&plane).await;
    // Before the answer, while the client has not ended; and after it.
    let (response, mut sender) = call(&mut client, None).await;
    let mut call = app.call().await;
    let (other, _) = client.begin(Request::post("http://a.test/").body(()).unwrap(), true).await;
    assert_eq!(Whole::of(other).await.status(), 408, "what is no call is given up by then");
    sender.send_data(message("late"), false).unwrap();
    assert_eq!(data(call.request.body_mut()).await.unwrap().unwrap(), message("late"));
    drop(app.call().await);
    let mut stream = call.begin(answered());
    let mut body = within(response).await.unwrap().into_body();
    let (other, _) = client.begin(Request::get("http://a.test/").body(()).unwrap(), false).await;
    let mut unfinished = app.call().await.begin(Response::builder());
    unfinished.send_data(Bytes::from_static(b"abc"), false).unwrap();
    let mut other = within(other).await.unwrap().into_body();
    assert!(data(&mut other).await.unwrap().is_ok());
    assert!(data(&mut other).await.unwrap().is_err(), "what is no call is given up by then");
    stream.send_data(message("later"), false).unwrap();
    stream.send_trailers(ended()).unwrap();
    assert_eq!(all(&mut body).await, message("later"));
    plane.shutdown().await;
}

#[tokio::test]
async fn h1_a_call_that_was_sent_whole_waits_as_long_as_its_client_does() {
    let plane = Plane::with(|settings| settings.limits.response_head = Duration::from_millis(50));
    let mut app = App::behind(&plane, "a.test").await;
    let mut client = Http2::connect(&plane).await;
    let (patient, mut sender) = call(&mut client, Some("1M")).await;
    sender.send_data(message("ping"), true).unwrap();
    let patient_call = app.call().await;
    let (response, mut sender) = call(&mut client, None).await;
    sender.send_data(message("ping"), true).unwrap();
    let _never = app.call().await;
    assert_eq!(told(&Whole::of(response).await), (200, Some("4"), Some("upstream_timeout")));
    patient_call.whole("", Some(ended()));
    assert_eq!(Whole::of(patient).await.trailers.unwrap(), ended());
    plane.shutdown().await;
}

#[tokio::test]
async fn g4_own_answers_to_calls_are_trailers_alone_with_a_code_and_counted_as_what_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let plane = Plane::with(|settings| settings.access_log = AccessLogSink::File(path.clone()));
    let mut client = Http2::connect(&plane).await;
    let ask = async |client: &mut Http2| {
        let (response, mut sender) = call(client, None).await;
        // The answer may have come before.
        drop(sender.send_data(message("ping"), true));
        Whole::of(response).await
    };
    assert_eq!(told(&ask(&mut client).await), (200, Some("12"), Some("no_route")));
    let nobody = backend(&[]);
    plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &nobody));
    let answer = ask(&mut client).await;
    assert_eq!(told(&answer), (200, Some("14"), Some("no_backend")));
    assert_eq!(
        (answer.field("grpc-retry-pushback-ms"), answer.field("content-length")),
        (Some("5000"), None)
    );
    assert_eq!(answer.field("grpc-message"), Some("Nothing serves this route at the moment."));
    let gone = backend(&[&unreachable()]);
    plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &gone));
    assert_eq!(told(&ask(&mut client).await), (200, Some("14"), Some("connect_failed")));
    // Who does not speak gRPC is told as ever.
    let answer = client.get("http://b.test/").await;
    assert_eq!((answer.status(), answer.field("grpc-status")), (404, None));
    plane.shutdown().await;
    let log = std::fs::read_to_string(path).unwrap();
    let statuses: Vec<u64> = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["status"].as_u64().unwrap())
        .collect();
    assert_eq!(statuses, [404, 503, 502, 404]);
}

#[tokio::test]
async fn p1_a_call_that_streams_is_drained_like_a_stream_and_a_unary_one_like_a_request() {
    let plane = Plane::start();
    let mut app = App::behind(&plane, "a.test").await;
    let mut client = Http2::connect(&plane).await;
    let (streaming, _sender) = call(&mut client, None).await;
    let mut stream = app.call().await.begin(answered());
    let mut body = within(streaming).await.unwrap().into_body();
    let (waiting, mut sender) = call(&mut client, None).await;
    sender.send_data(message("ping"), true).unwrap();
    let _never = app.call().await;
    let target = &app.upstream.target;
    target.gate.close();
    target.set_order(Order::CutRequests);
    plane.routing.signal_workers();
    assert_eq!(told(&Whole::of(waiting).await), (200, Some("14"), Some("drain_cut")));
    stream.send_data(message("still"), false).unwrap();
    assert_eq!(data(&mut body).await.unwrap().unwrap(), message("still"));
    target.set_order(Order::CutStreams);
    plane.routing.signal_workers();
    assert!(data(&mut body).await.unwrap().is_err());
    plane.settle(|| target.gate.in_flight() == InFlight::default()).await;
    plane.shutdown().await;
}

#[tokio::test]
async fn a_call_to_an_app_of_http11_keeps_its_trailers() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = Http2::connect(&plane).await;
    let (response, mut sender) = call(&mut client, None).await;
    sender.send_data(message("ping"), true).unwrap();
    let mut app = upstream.accept().await;
    app.head().await;
    app.send(
        "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\nTrailer: grpc-status\r\n\r\n\
         0\r\ngrpc-status: 0\r\n\r\n",
    )
    .await;
    assert_eq!(Whole::of(response).await.trailers.unwrap(), trailers(&[("grpc-status", "0")]));
    plane.shutdown().await;
}
