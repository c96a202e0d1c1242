//! Applications that are told by a PROXY header whose request comes: the first of each connection, and the truth.

use std::sync::{Arc, Mutex};

use lockgate::ids::InstanceId;
use lockgate::proxy::ProxySettings;
use lockgate::routing::Target;
use lockgate::settings::ProxyProtocol;
use tokio::task::JoinSet;

use crate::support::{OK, Plane, Upstream, WORKERS, Wire, backend, field, pattern, status};
use crate::support_http2::Http2;

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";

/// A request as an application saw it: the line that its connection began with, its place there, and its head.
type Seen = Arc<Mutex<Vec<(String, usize, String)>>>;

impl Upstream {
    async fn told(version: ProxyProtocol) -> Self {
        Self::spoken_to(|target| target.told_by(Some(version))).await
    }

    /// One that reads a line of version 1 from each connection, and answers all requests on it.
    async fn recording() -> (Self, Seen) {
        let upstream = Self::told(ProxyProtocol::V1).await;
        let (listener, seen) = (upstream.listener(), Seen::default());
        let records = seen.clone();
        upstream.spawn(async move {
            let mut wires = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let seen = records.clone();
                wires.spawn(async move {
                    let mut wire = Wire::new(stream);
                    let line = wire.until("\r\n").await;
                    let mut nth = 0;
                    while let Some(head) = wire.try_head().await {
                        seen.lock().unwrap().push((line.clone(), nth, head));
                        nth += 1;
                        wire.send(OK).await;
                    }
                });
            }
        });
        (upstream, seen)
    }
}

fn port(wire: &Wire) -> u16 {
    wire.stream.local_addr().unwrap().port()
}

#[tokio::test]
async fn a_connection_to_an_application_begins_with_its_clients_address_and_ends_with_the_request() {
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        let (plane, upstream) = (Plane::start(), Upstream::told(version).await);
        plane.route("a.test", &upstream);
        let mut client = plane.connect().await;
        let (from, to) = (port(&client), plane.address.port());
        for _ in 0..2 {
            client.send(GET).await;
            let mut app = upstream.accept().await;
            let expected = match version {
                ProxyProtocol::V1 => format!("PROXY TCP4 127.0.0.1 127.0.0.1 {from} {to}\r\n").into_bytes(),
                ProxyProtocol::V2 => [
                    &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01"[..],
                    &from.to_be_bytes(),
                    &to.to_be_bytes(),
                ]
                .concat(),
            };
            assert_eq!(app.bytes(expected.len()).await, expected);
            assert!(app.head().await.starts_with("GET / HTTP/1.1\r\n"));
            app.send(OK).await;
            assert_eq!(status(&client.head().await), 200);
            app.closed().await;
        }
        plane.shutdown().await;
    }
}

#[tokio::test]
async fn no_request_of_one_client_goes_out_under_the_address_of_another() {
    let (plane, (upstream, seen)) = (Plane::start(), Upstream::recording().await);
    plane.route("a.test", &upstream);
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let (mut one, two) = (plane.connect().await, plane.connect().await);
        clients.spawn(async move {
            let port = port(&one);
            for _ in 0..20 {
                one.send(format!("GET / HTTP/1.1\r\nHost: a.test\r\nX-Port: {port}\r\n\r\n")).await;
                assert_eq!(status(&one.head().await), 200);
            }
        });
        clients.spawn(async move {
            let port = port(&two).to_string();
            let mut client = Http2::over(two.stream).await;
            for _ in 0..5 {
                let mut begun = Vec::new();
                for _ in 0..4 {
                    let request = http::Request::get("http://a.test/").header("x-port", &port);
                    begun.push(client.begin(request.body(()).unwrap(), false).await.0);
                }
                for response in begun {
                    assert_eq!(crate::support_http2::Whole::of(response).await.status(), 200);
                }
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    assert_eq!(seen.len(), 8 * 20 * 2);
    let to = plane.address.port();
    for (line, nth, head) in &seen {
        let from = field(head, "x-port").unwrap();
        assert_eq!(*line, format!("PROXY TCP4 127.0.0.1 127.0.0.1 {from} {to}\r\n"));
        assert_eq!(*nth, 0, "another request on the same connection");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn what_a_proxy_before_us_said_is_passed_on() {
    let plane = Plane::with(|settings: &mut ProxySettings| {
        settings.proxy_protocol = Some(vec!["127.0.0.0/8".parse().unwrap()]);
        settings.trusted_proxies = vec!["192.0.2.0/24".parse().unwrap()];
    });
    let (upstream, seen) = Upstream::recording().await;
    plane.route("a.test", &upstream);
    let said = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n";
    for (header, expected) in [
        ("PROXY TCP4 198.51.100.1 10.0.0.1 4711 443\r\n", "PROXY TCP4 198.51.100.1 10.0.0.1 4711 443\r\n"),
        // The port of whom a trusted proxy names is not known.
        ("PROXY TCP4 192.0.2.1 10.0.0.1 4711 443\r\n", "PROXY TCP4 203.0.113.9 10.0.0.1 0 443\r\n"),
        (
            "PROXY TCP6 2001:db8::1 2001:db8::2 4711 443\r\n",
            "PROXY TCP6 2001:db8:0:0:0:0:0:1 2001:db8:0:0:0:0:0:2 4711 443\r\n",
        ),
    ] {
        plane.exchange([header, said].concat()).await;
        assert_eq!(seen.lock().unwrap().last().unwrap().0, expected);
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn a_request_that_is_sent_once_more_is_told_of_again() {
    let (plane, (upstream, seen)) = (Plane::start(), Upstream::recording().await);
    let gone = crate::support::unreachable().address;
    let gone = Target::new(InstanceId::generate(), gone, WORKERS).told_by(Some(ProxyProtocol::V1));
    let both = backend(&[&Arc::new(gone), &upstream.target]);
    plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &both));
    let mut client = plane.connect().await;
    let line = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", port(&client), plane.address.port());
    let retried =
        |plane: &Plane| plane.metrics().contains("lockgate_retries_total{reason=\"connect_failed\"}");
    while !retried(&plane) {
        client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi").await;
        assert_eq!(status(&client.head().await), 200);
        assert_eq!(seen.lock().unwrap().last().unwrap().0, line);
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn a_request_that_a_connection_loses_is_not_sent_again_because_none_is_kept() {
    let (plane, upstream) = (Plane::start(), Upstream::told(ProxyProtocol::V1).await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send(GET).await;
    let mut app = upstream.accept().await;
    app.until("\r\n").await;
    app.head().await;
    drop(app);
    assert_eq!(status(&client.head().await), 502);
    plane.shutdown().await;
}

#[tokio::test]
async fn an_upgraded_connection_begins_with_the_header_too() {
    let (plane, upstream) = (Plane::start(), Upstream::told(ProxyProtocol::V1).await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send([UPGRADE, "early"].concat()).await;
    let mut app = upstream.accept().await;
    let line = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", port(&client), plane.address.port());
    assert_eq!(app.until("\r\n").await, line);
    app.head().await;
    app.send(SWITCHED).await;
    assert_eq!(status(&client.head().await), 101);
    assert_eq!(app.bytes(5).await, b"early");
    app.send("answer").await;
    assert_eq!(client.bytes(6).await, b"answer");
    client.finish().await;
    app.closed().await;
    plane.shutdown().await;
}
