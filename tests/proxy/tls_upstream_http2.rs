//! Upstreams that are spoken to by HTTP/2 over TLS: agreed upon in the handshake, and nothing else is ever sent to them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use lockgate::clock::{Clock, SystemClock};
use lockgate::probe::{Probe, ProbeError};
use lockgate::proxy::{AccessLogSink, ProxySettings};
use lockgate::routing::Target;
use lockgate::routing::tls::TargetTls;
use lockgate::settings::{Protocol, StatusRange};

use crate::ca::Ca;
use crate::support::{Plane, Upstream, field, status, within};
use crate::support_h2c::{App, trailers};
use crate::support_http2::{Http2, all, data};
use crate::tls_upstream::{acceptor, acceptor_of, held_to};

const GET_ONCE: &str = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";

fn by_h2(tls: TargetTls) -> impl FnOnce(Target) -> Target {
    |target| target.speaking(Protocol::H2).over(Some(tls.over_http2()))
}

async fn app(ca: &Ca) -> App {
    App::by_tls(acceptor(&ca.leaf(&["app.test"])), by_h2(held_to(ca, "app.test"))).await
}

#[tokio::test]
async fn many_requests_share_one_connection_and_say_https() {
    let (ca, plane) = (Ca::new(), Plane::start());
    let mut app = app(&ca).await;
    plane.route("a.test", &app.upstream);
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = plane.connect().await;
        client.send(GET_ONCE).await;
        clients.push(client);
    }
    let mut calls = Vec::new();
    for _ in 0..3 {
        calls.push(app.call().await);
    }
    for call in calls {
        assert_eq!(call.connection, 0, "another connection");
        let uri = call.request.uri();
        assert_eq!((uri.scheme_str(), uri.authority().unwrap().as_str()), (Some("https"), "a.test"));
        assert_eq!(call.field("x-real-ip"), Some("127.0.0.1"));
        call.answer(204);
    }
    for mut client in clients {
        assert_eq!(status(&client.rest().await), 204);
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn who_does_not_agree_or_is_not_who_it_has_to_be_is_asked_nothing() {
    let (ca, other) = (Ca::new(), Ca::new());
    let folder = tempfile::tempdir().unwrap();
    let protocols: [&[u8]; 1] = [b"http/1.1"];
    for (nth, (acceptor, name, code, cause)) in [
        (acceptor(&other.leaf(&["app.test"])), "app.test", "upstream_tls_failed", "BadSignature"),
        (acceptor(&ca.leaf(&["other.test"])), "app.test", "upstream_tls_failed", "not valid for name"),
        (
            acceptor_of(&ca.leaf(&["app.test"]), &protocols),
            "app.test",
            "upstream_tls_failed",
            "NoApplicationProtocol",
        ),
        // It has never heard of agreeing.
        (
            acceptor_of(&ca.leaf(&["app.test"]), &[]),
            "app.test",
            "upstream_malformed",
            "does not speak HTTP/2",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let path = folder.path().join(nth.to_string());
        let log = AccessLogSink::File(path.clone());
        let plane = Plane::with(|settings: &mut ProxySettings| settings.access_log = log);
        let app = App::by_tls(acceptor, by_h2(held_to(&ca, name))).await;
        plane.route("a.test", &app.upstream);
        let answer = plane.exchange(GET_ONCE).await;
        assert_eq!((status(&answer), field(&answer, "lockgate-reason")), (502, Some(code)), "{cause}");
        assert!(app.is_idle(), "{cause}: it was asked");
        plane.shutdown().await;
        let logged = std::fs::read_to_string(path).unwrap();
        assert!(logged.contains(cause), "{cause}: {logged}");
    }
}

#[tokio::test]
async fn a_target_of_tls_of_which_nobody_is_believed_gets_no_byte() {
    for protocol in [Protocol::Https, Protocol::H2] {
        let plane = Plane::start();
        let upstream = Upstream::spoken_to(|target| target.speaking(protocol)).await;
        plane.route("a.test", &upstream);
        let mut client = plane.connect().await;
        client.send(GET_ONCE).await;
        upstream.accept().await.closed().await;
        let answer = client.rest().await;
        let told = (status(&answer), field(&answer, "lockgate-reason"));
        assert_eq!(told, (502, Some("upstream_tls_failed")), "{protocol:?}: {answer}");
        plane.shutdown().await;
    }
}

#[tokio::test]
async fn c6_a_call_of_grpc_goes_by_tls_and_ends_in_its_trailers() {
    let (ca, plane) = (Ca::new(), Plane::start());
    let mut app = app(&ca).await;
    plane.route("a.test", &app.upstream);
    let mut client = Http2::connect(&plane).await;
    let request = Request::post("http://a.test/some.Service/Method")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let (response, mut sender) = client.begin(request.body(()).unwrap(), true).await;
    sender.send_data(Bytes::from_static(b"\0\0\0\0\x04ping"), true).unwrap();
    let mut call = app.call().await;
    assert_eq!((call.path(), call.field("te")), ("/some.Service/Method", Some("trailers")));
    assert_eq!(all(call.request.body_mut()).await, b"\0\0\0\0\x04ping");
    let mut answer = call.begin(Response::builder().header("content-type", "application/grpc"));
    answer.send_data(Bytes::from_static(b"\0\0\0\0\x04pong"), false).unwrap();
    let mut response = within(response).await.unwrap();
    // What has come goes out at once.
    assert_eq!(&data(response.body_mut()).await.unwrap().unwrap()[..], b"\0\0\0\0\x04pong");
    answer.send_trailers(trailers(&[("grpc-status", "0")])).unwrap();
    assert!(data(response.body_mut()).await.is_none());
    let ended = within(response.body_mut().trailers()).await.unwrap().unwrap();
    assert_eq!(ended["grpc-status"], "0");
    plane.shutdown().await;
}

#[tokio::test]
async fn bodies_of_many_records_come_whole_both_ways() {
    let (ca, plane) = (Ca::new(), Plane::start());
    let mut app = app(&ca).await;
    plane.route("a.test", &app.upstream);
    let body: Vec<u8> = (0..251).cycle().take(3_000_000).collect();
    let mut client = plane.connect().await;
    let head = format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n", body.len());
    let echo = async {
        let mut call = app.call().await;
        let received = all(call.request.body_mut()).await;
        let mut answer = call.begin(Response::builder().header("content-length", received.len()));
        for part in received.chunks(50_000) {
            answer.reserve_capacity(part.len());
            let mut sent = 0;
            while sent < part.len() {
                let room =
                    within(std::future::poll_fn(|cx| answer.poll_capacity(cx))).await.unwrap().unwrap();
                let end = part.len().min(sent + room);
                answer.send_data(Bytes::copy_from_slice(&part[sent..end]), false).unwrap();
                sent = end;
            }
        }
        answer.send_data(Bytes::new(), true).unwrap();
    };
    let asking = async {
        client.send(head).await;
        client.send(&body).await;
        assert_eq!(status(&client.head().await), 200);
        assert!(client.bytes(body.len()).await == body);
    };
    tokio::join!(echo, asking);
    plane.shutdown().await;
}

#[tokio::test]
async fn over_swaps_the_new_one_serves_and_the_old_ones_connection_is_over() {
    let (ca, plane) = (Ca::new(), Plane::start());
    let mut apps = [app(&ca).await, app(&ca).await];
    plane.route("a.test", &apps[0].upstream);
    let mut client = plane.connect().await;
    for turn in 0..6 {
        let [one, two] = &mut apps;
        let (old, new) = if turn % 2 == 0 { (one, two) } else { (two, one) };
        // In flight over the swap, at the old one.
        let mut early = plane.connect().await;
        early.send(GET_ONCE).await;
        let kept = old.call().await;
        let ((from, calls_before), (to, calls)) = (old.parts(), new.parts());
        let probe = async {
            client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
            within(calls.recv()).await.unwrap().answer(201);
            assert_eq!(status(&client.head().await), 201);
            assert!(calls_before.is_empty(), "it was asked after the swap");
            kept.answer(202);
            assert_eq!(status(&early.rest().await), 202, "what was in flight");
        };
        // Which ends once the old one has no connection any more.
        plane.swap("a.test", from, to, probe).await;
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn a_check_goes_by_tls_and_asks_nobody_who_is_not_who_it_has_to_be() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let ca = Ca::new();
    let limit = Duration::from_secs(60);
    let probe = |protocol| Probe::Http {
        path: "/up".to_owned(),
        status: StatusRange::default(),
        protocol,
        proxy_protocol: None,
    };
    let mut by_http2 = app(&ca).await;
    let (address, right) = (by_http2.upstream.target.address, held_to(&ca, "app.test").over_http2());
    let check = probe(Protocol::H2);
    let (asked, ()) = tokio::join!(check.ask(address, Some(&right), limit, &clock), async {
        let call = by_http2.call().await;
        assert_eq!((call.path(), call.request.uri().scheme_str()), ("/up", Some("https")));
        call.answer(204);
    });
    assert_eq!(asked, Ok(()));
    let wrong = held_to(&ca, "other.test");
    for tls in [Some(&wrong), None] {
        for protocol in [Protocol::Https, Protocol::H2] {
            let error = probe(protocol).ask(address, tls, limit, &clock).await.unwrap_err();
            assert!(matches!(error, ProbeError::Tls { .. }), "{error}");
            assert!(error.remedy().contains("tls.server_name"), "{error}");
        }
    }
    assert!(by_http2.is_idle(), "it was asked");
    let mute = App::by_tls(acceptor_of(&ca.leaf(&["app.test"]), &[]), by_h2(held_to(&ca, "app.test"))).await;
    let error = check.ask(mute.upstream.target.address, Some(&right), limit, &clock).await.unwrap_err();
    assert!(error.to_string().contains("does not agree on HTTP/2") && mute.is_idle(), "{error}");
    let (asked, ()) = tokio::join!(check.ask(address, Some(&right), limit, &clock), async {
        by_http2.call().await.answer(500);
    });
    let told = asked.unwrap_err().to_string();
    assert!(
        told.contains("GET https://") && told.contains(StatusCode::INTERNAL_SERVER_ERROR.as_str()),
        "{told}"
    );
}
