//! Requests over HTTP/3: the same rules as for HTTP/2, and what a client sees of them.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use h3::error::Code;
use http::{HeaderMap, Method, Request};
use lockgate::certs::{CertTable, Certs, ClientCa, Clients, HTTP_11};
use lockgate::gate::InFlight;
use lockgate::proxy::{AccessLogSink, AltSvc, TlsSettings};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::ca::Ca;
use crate::support::{OK, Plane, Upstream, WORKERS, all_of, field, status, within};
use crate::support_http2::Http2;
use crate::support_http3::{
    DATA, EXCESSIVE_LOAD, FRAME_ERROR, HEADERS, Http3, MESSAGE_ERROR, Raw, UNDECODABLE, Whole, bed,
    bed_to_upstream, bed_with, closed, config, connect, endpoint, fields as block, frame, get, head, number,
    of_tls, post,
};
use crate::tls::{Bed, own_address, served};

/// More than all windows and buffers on the way together.
const LARGE: usize = 8 * 1024 * 1024;

fn large() -> Bytes {
    (0..LARGE).map(|at| u8::try_from(at * 31 / 7 % 251).unwrap()).collect::<Vec<u8>>().into()
}

#[tokio::test]
async fn h3_a_request_is_routed_and_answered() {
    let (bed, upstream) = bed_to_upstream().await;
    let mut client = Http3::connect(&bed).await;
    let asked = client.ask(get("https://a.test/path?query")).await;
    let mut app = upstream.accept().await;
    let head = app.head().await;
    assert!(head.starts_with("GET /path?query HTTP/1.1\r\n"), "{head}");
    for line in ["host: a.test", "x-forwarded-for: 127.0.0.2", "x-forwarded-proto: https"] {
        assert!(head.to_ascii_lowercase().contains(&format!("{line}\r\n")), "{line} in {head}");
    }
    assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "{head}");
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok").await;
    let answer = Whole::of(asked).await.unwrap();
    assert_eq!((answer.status(), answer.text()), (200, "ok"));
    assert!(answer.field("connection").is_none() && answer.field("date").is_some(), "{answer:?}");
    assert_eq!(client.get("https://b.test/").await.field("lockgate-reason"), Some("no_route"));
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn b9_cookies_that_come_in_crumbs_are_one_field() {
    let bed = bed().await;
    let connection = connect(&bed, "a.test").await;
    let crumbs = head(&[("cookie", "a=1"), ("cookie", "b=2"), ("x", "y"), ("cookie", "c=3")]);
    assert_eq!(Raw::ask(&connection, &crumbs).await.status().await, Ok(200));
    let heads = bed.upstream.heads();
    assert_eq!(field(&heads[0], "cookie"), Some("a=1; b=2; c=3"), "{heads:?}");
    assert_eq!(heads[0].to_ascii_lowercase().matches("cookie:").count(), 1, "{heads:?}");
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn h3_large_bodies_pass_both_ways_and_arrive_as_they_were_sent() {
    let (bed, upstream) = bed_to_upstream().await;
    let mut client = Http3::connect(&bed).await;
    let sent = large();
    for with_length in [true, false] {
        let mut request = post("https://a.test/");
        if with_length {
            request.headers_mut().insert("content-length", LARGE.into());
        }
        let asked = client.begin(request).await;
        let (mut sending, receiving) = asked.split();
        let body = sent.clone();
        let upload = async move {
            within(sending.send_data(body)).await.unwrap();
            within(sending.finish()).await.unwrap();
        };
        let app = async {
            let mut app = upstream.accept().await;
            let head = app.head().await.to_ascii_lowercase();
            let mut body = Vec::new();
            if with_length {
                assert!(head.contains(&format!("content-length: {LARGE}\r\n")), "{head}");
                body = app.bytes(LARGE).await;
            } else {
                while let length @ 1.. = usize::from_str_radix(app.until("\r\n").await.trim(), 16).unwrap() {
                    body.extend(app.bytes(length).await);
                    app.until("\r\n").await;
                }
                app.until("\r\n").await;
            }
            assert!(body == sent, "what came is not what was sent");
            let head = if with_length { "Content-Length: 8388608" } else { "Connection: close" };
            app.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n")).await;
            app.send(&body).await;
        };
        let download = async {
            let mut receiving = receiving;
            assert_eq!(within(receiving.recv_response()).await.unwrap().status(), 200);
            let mut body = Vec::new();
            while let Some(data) = within(receiving.recv_data()).await.unwrap() {
                body.extend_from_slice(data.chunk());
            }
            assert!(body == sent, "what came back is not what was sent");
        };
        tokio::join!(upload, app, download);
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn h3_the_log_and_the_metrics_say_that_it_was_http3() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let bed = bed_with(|settings| settings.access_log = AccessLogSink::File(path.clone())).await;
    bed.upstream.answer(OK);
    let mut client = Http3::connect(&bed).await;
    assert_eq!(client.get("https://a.test/there").await.status(), 200);
    let metrics = bed.plane.metrics();
    let requests = metrics.lines().find(|line| line.starts_with("lockgate_http_requests_total")).unwrap();
    assert!(requests.contains("protocol=\"3\"") && requests.ends_with(" 1"), "{requests}");
    assert!(metrics.contains("lockgate_listener_connections_total 1"), "{metrics}");
    bed.plane.shutdown().await;
    let log = std::fs::read_to_string(path).unwrap();
    let line: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    for (key, value) in [
        ("protocol", "3.0"),
        ("tls_version", "1.3"),
        ("client_ip", "127.0.0.2"),
        ("path", "/there"),
        ("end", "ok"),
    ] {
        assert_eq!(line[key], value, "{key} in {line}");
    }
}

#[tokio::test]
async fn a3_authority_and_host_are_one_and_the_same_and_the_connection_was_made_for_it() {
    let bed = bed().await;
    bed.route("b.test");
    bed.route("c.test");
    let connection = connect(&bed, "a.test").await;
    for (fields, expected) in [
        (&[(":authority", "a.test")][..], Some(200)),
        (&[("host", "a.test")], Some(200)),
        (&[(":authority", "a.test"), ("host", "a.test")], Some(200)),
        (&[(":authority", "b.test")], Some(200)),
        // The certificate is not for it.
        (&[(":authority", "c.test")], Some(421)),
        (&[(":authority", "a.test"), ("host", "a.test"), ("host", "b.test")], Some(400)),
        (&[(":authority", "a.test"), ("host", "b.test")], None),
        (&[(":authority", "me@a.test")], Some(400)),
        (&[], None),
    ] {
        let own = [(":method", "GET"), (":scheme", "https"), (":path", "/")];
        let head = frame(HEADERS, &block(&[&own[..], fields].concat()));
        let answered = Raw::ask(&connection, &head).await.status().await;
        assert_eq!(answered.ok(), expected, "{fields:?}");
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn b9_malformed_requests_reset_their_stream_and_reach_nobody() {
    let bed = bed().await;
    let connection = connect(&bed, "a.test").await;
    for more in [
        &[("connection", "close")][..],
        &[("transfer-encoding", "chunked")],
        &[("upgrade", "websocket")],
        &[("te", "gzip")],
        &[("X-Capital", "1")],
        &[("x", "a\r\nb: c")],
        &[("x", "a\0b")],
        &[(":unknown", "1")],
        // Of what is no tunnel.
        &[(":protocol", "websocket")],
        &[("content-length", "1"), ("content-length", "2")],
        &[("content-length", "+1")],
    ] {
        let answered = Raw::ask(&connection, &head(more)).await.status().await;
        assert_eq!(answered, Err(MESSAGE_ERROR), "{more:?}");
    }
    for own in [
        &[(":scheme", "https"), (":authority", "a.test"), (":path", "/")][..],
        &[(":method", "GET"), (":authority", "a.test"), (":path", "/")],
        &[(":method", "GET"), (":scheme", "https"), (":authority", "a.test")],
        // Twice.
        &[
            (":method", "GET"),
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", "a.test"),
            (":path", "/"),
        ],
        &[
            (":method", "GET"),
            (":scheme", "https"),
            (":scheme", "https"),
            (":authority", "a.test"),
            (":path", "/"),
        ],
        &[
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", "b.test"),
            (":authority", "a.test"),
            (":path", "/"),
        ],
        &[
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", "a.test"),
            (":path", "/public"),
            (":path", "/admin"),
        ],
        // Behind fields, and of a response.
        &[
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", "a.test"),
            ("accept", "*/*"),
            (":path", "/"),
        ],
        &[
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", "a.test"),
            (":path", "/"),
            (":status", "200"),
        ],
        // A tunnel that leads to a path.
        &[(":method", "CONNECT"), (":scheme", "https"), (":authority", "a.test"), (":path", "/")],
    ] {
        let head = frame(HEADERS, &block(own));
        assert_eq!(Raw::ask(&connection, &head).await.status().await, Err(MESSAGE_ERROR), "{own:?}");
    }
    // In trailers.
    let trailers = [head(&[]), frame(HEADERS, &block(&[(":path", "/")]))].concat();
    assert_eq!(Raw::ask(&connection, &trailers).await.status().await, Err(MESSAGE_ERROR));
    // The connection goes on.
    assert_eq!(Raw::ask(&connection, &head(&[("te", "trailers")])).await.status().await, Ok(200));
    assert_eq!(bed.upstream.heads().len(), 1, "{:?}", bed.upstream.heads());
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn b9_data_that_disagrees_with_its_length_is_a_stream_error_and_no_request_upstream_is_whole() {
    let (bed, upstream) = bed_to_upstream().await;
    let connection = connect(&bed, "a.test").await;
    for data in ["ab", "abcd", ""] {
        let own = [(":method", "POST"), (":scheme", "https"), (":authority", "a.test"), (":path", "/")];
        let fields = [&own[..], &[("content-length", "3")]].concat();
        let mut request = frame(HEADERS, &block(&fields));
        if !data.is_empty() {
            request.extend(frame(DATA, data.as_bytes()));
        }
        let mut asked = Raw::ask(&connection, &request).await;
        assert_eq!(asked.status().await, Err(MESSAGE_ERROR), "{data}");
        if let Ok(mut app) = tokio::time::timeout(Duration::from_millis(50), upstream.accept()).await {
            assert!(!app.rest().await.ends_with("abc"), "{data}");
        }
    }
    bed.plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn b8_what_is_too_large_or_ends_in_the_middle_of_a_frame_ends_the_connection() {
    let bed = bed().await;
    let large = "x".repeat(40_000);
    let mut client = Http3::connect(&bed).await;
    let asked =
        client.answer(Request::get("https://a.test/").header("x", &large[..20_000]).body(()).unwrap());
    assert_eq!(asked.await.status(), 431);
    // More than the peer said that it takes.
    let connection = connect(&bed, "a.test").await;
    assert!(Raw::ask(&connection, &head(&[("x", &large), ("y", &large)])).await.status().await.is_err());
    // More fields than anybody needs.
    let names: Vec<String> = (0..101).map(|n| format!("x{n}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "")).collect();
    let mut request = Request::get("https://a.test/");
    for (name, value) in &many {
        request = request.header(*name, *value);
    }
    assert_eq!(client.answer(request.body(()).unwrap()).await.status(), 431);
    // Unknown frames that h3 would hold back, frames without an end, and frames that bring nothing.
    let endless = [number(0x21), number(1 << 29)].concat();
    for (what, sent, code) in [
        ("endless", endless, EXCESSIVE_LOAD),
        ("cut", [head(&[]), vec![0, 9, 1]].concat(), FRAME_ERROR),
        ("empty", [head(&[]), frame(0x21, &[]).repeat(1000)].concat(), EXCESSIVE_LOAD),
        // Of a table that the server did not offer.
        ("undecodable", frame(HEADERS, &[2, 0, 0x80]), UNDECODABLE),
    ] {
        let connection = connect(&bed, "a.test").await;
        let _asked = Raw::ask(&connection, &sent).await;
        assert_eq!(closed(&connection).await, code, "{what}");
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn a7_methods_that_are_not_served_are_answered_405() {
    let bed = bed().await;
    let connection = connect(&bed, "a.test").await;
    for fields in [
        &[(":method", "CONNECT"), (":authority", "a.test:443")][..],
        &[(":method", "TRACE"), (":scheme", "https"), (":authority", "a.test"), (":path", "/")],
    ] {
        let head = frame(HEADERS, &block(fields));
        assert_eq!(Raw::ask(&connection, &head).await.status().await, Ok(405), "{fields:?}");
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn responses_without_a_body_have_none() {
    let bed = bed().await;
    let mut client = Http3::connect(&bed).await;
    for (response, method, expected) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", Method::GET, (204, None)),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", Method::GET, (304, Some("7"))),
        ("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", Method::HEAD, (200, Some("7"))),
    ] {
        bed.upstream.answer(response);
        let request = Request::builder().method(method).uri("https://a.test/").body(()).unwrap();
        let answer = client.answer(request).await;
        let told = (answer.status(), answer.field("content-length"));
        assert_eq!((told, answer.body.len()), (expected, 0));
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn c6_trailers_pass_both_ways() {
    let (bed, upstream) = bed_to_upstream().await;
    let mut client = Http3::connect(&bed).await;
    let request = Request::post("https://a.test/").header("trailer", "x-sum").header("te", "trailers");
    let mut asked = client.begin(request.body(()).unwrap()).await;
    asked.send_data(Bytes::from_static(b"abc")).await.unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "1".parse().unwrap());
    asked.send_trailers(trailers).await.unwrap();
    asked.finish().await.unwrap();
    let mut app = upstream.accept().await;
    app.head().await;
    assert_eq!(app.until("\r\n\r\n").await, "3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n");
    app.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Status\r\n\r\n2\r\nok\r\n0\r\nX-Status: 7\r\n\r\n")
        .await;
    let answer = Whole::of(asked).await.unwrap();
    assert_eq!(
        (answer.text(), &answer.trailers.as_ref().unwrap()["x-status"]),
        ("ok", &"7".parse().unwrap())
    );
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn c5_who_waits_for_100_gets_it_once_the_app_reads() {
    let (bed, upstream) = bed_to_upstream().await;
    let mut client = Http3::connect(&bed).await;
    let request =
        Request::post("https://a.test/").header("expect", "100-continue").header("content-length", 3);
    let mut asked = client.begin(request.body(()).unwrap()).await;
    let mut app = upstream.accept().await;
    assert_eq!(field(&app.head().await, "expect"), None);
    assert_eq!(within(asked.recv_response()).await.unwrap().status(), 100);
    asked.send_data(Bytes::from_static(b"abc")).await.unwrap();
    asked.finish().await.unwrap();
    assert_eq!(app.bytes(3).await, b"abc");
    app.send(OK).await;
    assert_eq!(Whole::of(asked).await.unwrap().status(), 200);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn h4_more_requests_than_may_be_at_once_are_served_one_after_the_other() {
    let bed = bed_with(|settings| settings.limits.http2_streams = 8).await;
    let client = Http3::connect(&bed).await;
    let mut load = JoinSet::new();
    for _ in 0..200 {
        let mut send = client.send.clone();
        load.spawn(async move {
            let mut asked = within(send.send_request(get("https://a.test/"))).await.unwrap();
            within(asked.finish()).await.unwrap();
            u64::from(Whole::of(asked).await.unwrap().status() == 200)
        });
    }
    assert_eq!(all_of(load).await, 200);
    drop(client);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn k3_a_client_that_takes_its_requests_back_again_and_again_is_sent_away() {
    let bed = bed_with(|settings| settings.limits.http2_resets_per_minute = 5).await;
    let upstream = Upstream::start().await;
    bed.plane.route("a.test", &upstream);
    let mut client = Http3::connect(&bed).await;
    for _ in 0..5 {
        let mut asked = client.ask(get("https://a.test/")).await;
        let mut app = upstream.accept().await;
        app.head().await;
        asked.stop_sending(Code::H3_REQUEST_CANCELLED);
        app.closed().await;
    }
    assert_eq!(closed(&client.connection).await, EXCESSIVE_LOAD);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn h3_connections_are_counted_for_their_address_and_all_together() {
    let bed = bed_with(|settings| settings.limits.connections_per_client = 2).await;
    let mut clients = [Http3::connect(&bed).await, Http3::connect(&bed).await];
    for client in &mut clients {
        assert_eq!(client.get("https://a.test/").await.status(), 200);
    }
    let third = connect(&bed, "a.test").await;
    assert_eq!(closed(&third).await, EXCESSIVE_LOAD);
    assert!(bed.plane.metrics().contains("lockgate_listener_connections_refused_total 1\n"));
    let [left, mut right] = clients;
    drop(left);
    bed.plane.settle(|| bed.plane.plane.telemetry().of(0).connections_ended.get() == 1).await;
    assert_eq!(Http3::connect(&bed).await.get("https://a.test/").await.status(), 200);
    assert_eq!(right.get("https://a.test/").await.status(), 200);
    bed.plane.shutdown().await;
    // Of all addresses together the next one waits.
    let bed = bed_with(|settings| settings.limits.connections = Some(1)).await;
    let first = Http3::connect(&bed).await;
    let waiting = endpoint();
    let mut waiting = std::pin::pin!(waiting.connect_with(config(&bed.ca), bed.secure(), "a.test").unwrap());
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut waiting).await.is_err());
    first.connection.close(0_u32.into(), b"");
    within(waiting).await.unwrap();
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn a_new_certificate_is_offered_to_new_connections_and_ends_none() {
    let bed = bed().await;
    let mut client = Http3::connect(&bed).await;
    assert_eq!(client.get("https://a.test/").await.status(), 200);
    let new = bed.ca.leaf(&["a.test", "b.test"]);
    bed.offer(&[&new]);
    let shown = connect(&bed, "a.test").await.peer_identity().unwrap();
    let shown = shown.downcast::<Vec<CertificateDer<'static>>>().unwrap();
    assert_eq!(shown[0].to_vec(), new.certificate().to_vec());
    assert_eq!(client.get("https://a.test/").await.status(), 200, "a connection goes on");
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn nothing_is_taken_before_the_handshake_is_over() {
    let bed = bed().await;
    let mut tls = bed.ca.client();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    tls.enable_early_data = true;
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let endpoint = endpoint();
    let connecting = endpoint.connect_with(config.clone(), bed.secure(), "a.test").unwrap();
    let connection = within(connecting).await.unwrap();
    // With the answer the tickets have come.
    assert_eq!(Raw::ask(&connection, &head(&[])).await.status().await, Ok(200));
    let again = endpoint.connect_with(config, bed.secure(), "a.test").unwrap();
    assert!(again.into_0rtt().is_err(), "a ticket lets data go before the handshake");
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn a_host_that_asks_its_clients_for_a_certificate_is_reached_with_one_alone() {
    let bed = bed().await;
    let both = bed.ca.leaf(&["a.test", "b.test"]);
    let (staff, strangers) = (Ca::new(), Ca::new());
    let publish = |ca: &Ca| {
        let clients =
            Clients::new(vec!["b.test".parse().unwrap()], Arc::new(ClientCa::of_pem(&ca.pem).unwrap()));
        bed.certs.publish(CertTable::new(vec![served(&both)], vec![clients])).unwrap();
        // As a reload does.
        bed.route("b.test");
    };
    publish(&staff);
    let with = |ca: &Ca| of_tls(bed.ca.client_with(&ca.leaf(&["somebody"])));
    let endpoint = endpoint();
    let connect = async |config: &quinn::ClientConfig, name: &str| {
        within(endpoint.connect_with(config.clone(), bed.secure(), name).unwrap()).await
    };
    let head_for = |host| {
        let own = [(":method", "GET"), (":scheme", "https"), (":authority", host), (":path", "/")];
        frame(HEADERS, &block(&own))
    };
    let ask = async |connection: &quinn::Connection, host| {
        Raw::ask(connection, &head_for(host)).await.status().await
    };
    // With TLS 1.3 the client is done before the server has looked.
    let refused = async |config: &quinn::ClientConfig| match connect(config, "b.test").await {
        Ok(connection) => {
            matches!(within(connection.closed()).await, quinn::ConnectionError::ConnectionClosed(_))
        }
        Err(_) => true,
    };
    let nobody = config(&bed.ca);
    assert!(refused(&nobody).await, "without a certificate");
    assert!(refused(&with(&strangers)).await, "with another authority's");
    let of_staff = with(&staff);
    let client = connect(&of_staff, "b.test").await.unwrap();
    assert_eq!(ask(&client, "b.test").await, Ok(200));
    assert_eq!(ask(&client, "a.test").await, Ok(421), "nor the other way");
    // The certificate of the server covers both; that is not enough, and neither is the session of an open name.
    let open = connect(&nobody, "a.test").await.unwrap();
    assert_eq!((ask(&open, "a.test").await, ask(&open, "b.test").await), (Ok(200), Ok(421)));
    assert!(refused(&nobody).await, "after a session for another name");
    publish(&staff);
    assert_eq!(ask(&client, "b.test").await, Ok(200), "the same authorities, read again");
    publish(&strangers);
    assert_eq!(ask(&client, "b.test").await, Ok(421), "it was let in by others");
    // Nor is its session believed, which began under the others.
    assert!(refused(&of_staff).await);
    assert_eq!(ask(&connect(&with(&strangers), "b.test").await.unwrap(), "b.test").await, Ok(200));
    assert!(bed.plane.metrics().contains("lockgate_tls_handshakes_total{result=\"failed\""));
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn a_hello_of_many_packets_that_come_one_by_one_says_its_name_all_the_same() {
    let bed = bed().await;
    let staff = Ca::new();
    let clients =
        Clients::new(vec!["b.test".parse().unwrap()], Arc::new(ClientCa::of_pem(&staff.pem).unwrap()));
    bed.certs.publish(CertTable::new(vec![served(&bed.ca.leaf(&["b.test"]))], vec![clients])).unwrap();
    bed.route("b.test");
    let mut tls = bed.ca.client_with(&staff.leaf(&["somebody"]));
    // More than go into one.
    tls.alpn_protocols =
        (0..100).map(|n| format!("a-protocol-that-is-not-spoken-{n}").into_bytes()).collect();
    tls.alpn_protocols.push(b"h3".to_vec());
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let connection = within(endpoint().connect_with(config, bed.secure(), "b.test").unwrap()).await.unwrap();
    let own = [(":method", "GET"), (":scheme", "https"), (":authority", "b.test"), (":path", "/")];
    let asked = Raw::ask(&connection, &frame(HEADERS, &block(&own))).await.status().await;
    assert_eq!(asked, Ok(200));
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn who_comes_by_tls_is_told_of_http3_where_it_is_the_same_unless_the_app_says_something() {
    let a_day = AltSvc { port: None, max_age: Duration::from_secs(86_400) };
    let tells = |tls: &mut TlsSettings| (tls.http3, tls.alt_svc) = (true, Some(a_day));
    let bed = Bed::with(tells, |_| {}).await;
    bed.offer(&[&bed.ca.leaf(&["a.test"])]);
    bed.route("a.test");
    let told = format!("h3=\":{}\"; ma=86400", bed.secure().port());
    let answer = bed.connect("a.test").await.unwrap().ask("a.test").await;
    assert_eq!(field(&answer, "alt-svc"), Some(&*told), "{answer}");
    let mut tls = bed.ca.client();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let mut client = Http2::over(bed.connect_as(tls, "a.test").await.unwrap().stream).await;
    assert_eq!(client.get("https://a.test/").await.field("alt-svc"), Some(&*told));
    assert_eq!(Http3::connect(&bed).await.get("https://a.test/").await.field("alt-svc"), None);
    let plain = bed.plane.exchange("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!(field(&plain, "alt-svc"), None, "{plain}");
    bed.upstream.answer("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nAlt-Svc: clear\r\n\r\n");
    let answer = bed.connect("a.test").await.unwrap().ask("a.test").await;
    assert_eq!(field(&answer, "alt-svc"), Some("clear"), "{answer}");
    // Also whose clients show a certificate.
    bed.upstream.answer(OK);
    let staff = Ca::new();
    let clients =
        Clients::new(vec!["a.test".parse().unwrap()], Arc::new(ClientCa::of_pem(&staff.pem).unwrap()));
    let leaf = bed.ca.leaf(&["a.test"]);
    bed.certs.publish(CertTable::new(vec![served(&leaf)], vec![clients])).unwrap();
    bed.route("a.test");
    let config = bed.ca.client_with(&staff.leaf(&["somebody"]));
    let answer = bed.connect_as(config, "a.test").await.unwrap().ask("a.test").await;
    assert_eq!((status(&answer), field(&answer, "alt-svc")), (200, Some(&*told)), "{answer}");
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn what_is_told_of_http3_is_what_is_written_and_nothing_where_nothing_is() {
    for (alt_svc, expected) in [
        (None, None),
        (Some((Some(443), 3600)), Some("h3=\":443\"; ma=3600")),
        // Clients forget what they know.
        (Some((None, 0)), Some("clear")),
    ] {
        let alt_svc = alt_svc.map(|(port, seconds)| AltSvc { port, max_age: Duration::from_secs(seconds) });
        // Also where it is served no longer.
        for http3 in [true, false] {
            let bed = Bed::with(|tls| (tls.http3, tls.alt_svc) = (http3, alt_svc), |_| {}).await;
            bed.offer(&[&bed.ca.leaf(&["a.test"])]);
            bed.route("a.test");
            let answer = bed.connect("a.test").await.unwrap().ask("a.test").await;
            assert_eq!((status(&answer), field(&answer, "alt-svc")), (200, expected), "{answer}");
            bed.plane.shutdown().await;
        }
    }
}

#[tokio::test]
async fn h3_connections_of_all_workers_are_served_each_by_its_own() {
    let certs = Certs::new(&[HTTP_11]).unwrap();
    let ca = Ca::new();
    let tls = TlsSettings {
        listen: vec![own_address()],
        proxy_protocol: None,
        connections: None,
        certs: Arc::clone(&certs),
        port: 443,
        redirects: false,
        hsts: None,
        http3: true,
        alt_svc: None,
    };
    let plane = Plane::of_workers(WORKERS, |settings| settings.tls = Some(tls)).unwrap();
    certs.publish(CertTable::new(vec![served(&ca.leaf(&["a.test"]))], Vec::new())).unwrap();
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    let bed = Bed { plane, certs, ca, upstream };
    let mut clients = Vec::new();
    // Which one a client comes to is chance: that 32 come to one is one in 2^62.
    for _ in 0..32 {
        clients.push(Http3::connect(&bed).await);
    }
    for _ in 0..3 {
        for client in &mut clients {
            assert_eq!(client.get("https://a.test/").await.status(), 200);
        }
    }
    let taken = bed.plane.taken();
    assert!(taken.iter().filter(|taken| **taken > 0).count() > 1, "{taken:?}");
    assert_eq!(taken.iter().sum::<u64>(), 32);
    drop(clients);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn h2_when_many_handshakes_are_under_way_clients_prove_their_address_first() {
    /// The kind of a packet with a long header (RFC 9000 section 17.2).
    const RETRY: u8 = 3;
    let bed = bed().await;
    let (mut begun, mut asked) = (JoinSet::new(), false);
    for count in 0..200 {
        // What a client begins with, on its way from an address that is not its own.
        let (client, nobody) = (endpoint(), UdpSocket::bind("127.0.0.3:0").await.unwrap());
        let connecting =
            client.connect_with(config(&bed.ca), nobody.local_addr().unwrap(), "a.test").unwrap();
        begun.spawn(async move { connecting.await.is_ok() });
        let mut packet = vec![0; 2048];
        let (length, _) = within(nobody.recv_from(&mut packet)).await.unwrap();
        let sender = UdpSocket::bind("127.0.0.3:0").await.unwrap();
        sender.send_to(&packet[..length], bed.secure()).await.unwrap();
        if (1..64).contains(&count) {
            continue;
        }
        let answer = tokio::time::timeout(Duration::from_millis(300), sender.recv_from(&mut packet)).await;
        asked = answer.is_ok() && (packet[0] >> 4) & 3 == RETRY;
        assert!(!asked || count > 0, "the first is asked for proof");
        if asked {
            break;
        }
    }
    assert!(asked, "nobody is asked to prove anything");
    // Who can is served.
    assert_eq!(Http3::connect(&bed).await.get("https://a.test/").await.status(), 200);
    bed.plane.shutdown().await;
}
