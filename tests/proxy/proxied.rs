//! Connections that begin with a PROXY header: whose they are from then on, and which are closed.

use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use lockgate::proxy::{AccessLogSink, ProxySettings};
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsConnector;

use crate::support::{LONGER, OK, Plane, Upstream, Wire, field, status, within};
use crate::support_http2::Http2;
use crate::tls::{Bed, Secure};

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
const GET_ONCE: &str = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
const LINE: &str = "PROXY TCP4 192.0.2.1 198.51.100.7 12345 443\r\n";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const IPV4: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 7, 0x30, 0x39, 0x01, 0xBB];

/// Connections come through what is on this machine.
fn from_here(settings: &mut ProxySettings) {
    settings.proxy_protocol = Some(vec!["127.0.0.0/8".parse().unwrap()]);
}

/// A header of version 2 with that command and family, and the rest of it.
fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, rest].concat()
}

fn headers(plane: &Plane, result: &str) -> u64 {
    let line = format!("lockgate_proxy_protocol_headers_total{{result=\"{result}\"}} ");
    let metrics = plane.metrics();
    let count = metrics.lines().find_map(|found| found.strip_prefix(&line));
    count.unwrap_or_else(|| panic!("no {line} in {metrics}")).parse().unwrap()
}

#[tokio::test]
async fn d2_the_address_of_a_proxy_header_is_the_clients_for_all_requests_of_its_connection() {
    let (plane, upstream) = (Plane::with(from_here), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    let v6 = [&[0x20, 1, 0xD, 0xB8][..], &[0; 11], &[1], &[0; 15], &[1], &[0, 1, 0, 2]].concat();
    for (header, address) in [
        (LINE.as_bytes().to_vec(), "192.0.2.1"),
        (b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n".to_vec(), "2001:db8::1"),
        (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n".to_vec(), "192.0.2.1"),
        (binary(0x21, 0x11, IPV4), "192.0.2.1"),
        (binary(0x21, 0x11, &[IPV4, &[4, 0, 2, 1, 1]].concat()), "192.0.2.1"),
        (binary(0x21, 0x21, &v6), "2001:db8::1"),
        // Nobody's, or not known whose: the peer's own.
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (binary(0x20, 0, b""), "127.0.0.1"),
        (binary(0x20, 0x11, IPV4), "127.0.0.1"),
        (binary(0x21, 0, b""), "127.0.0.1"),
    ] {
        let mut client = plane.connect().await;
        client.send([&header[..], GET.as_bytes()].concat()).await;
        assert_eq!(client.bytes(15).await, b"HTTP/1.1 200 OK", "{header:?}");
        client.head().await;
        client.send("GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n").await;
        assert_eq!(status(&client.head().await), 200);
        let heads = upstream.heads();
        for head in &heads[heads.len() - 2..] {
            assert_eq!(field(head, "x-forwarded-for"), Some(address), "{header:?}");
            assert_eq!(field(head, "x-real-ip"), Some(address), "{header:?}");
        }
    }
    assert_eq!(headers(&plane, "ok"), 10);
    plane.shutdown().await;
}

#[tokio::test]
async fn d2_a_header_may_come_in_pieces_and_costs_no_byte_behind_it() {
    let (plane, upstream) = (Plane::with(from_here), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    let padded = [IPV4, &[4, 1, 0], &[7; 256]].concat();
    for header in [LINE.as_bytes().to_vec(), binary(0x21, 0x11, &padded)] {
        for cut in [1, 5, 11, 13, 15, 28, header.len() - 1, header.len()] {
            let mut client = plane.connect().await;
            client.stream.set_nodelay(true).unwrap();
            client.send(&header[..cut]).await;
            // Its first bytes are there before the others: another connection was served meanwhile.
            plane.exchange([LINE, GET_ONCE].concat()).await;
            client.send([&header[cut..], GET_ONCE.as_bytes()].concat()).await;
            assert_eq!(status(&client.rest().await), 200, "{cut} of {header:?}");
            assert_eq!(field(upstream.heads().last().unwrap(), "x-real-ip"), Some("192.0.2.1"));
        }
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn d2_what_does_not_begin_with_a_header_is_closed_without_an_answer_and_counted() {
    let (plane, upstream) = (Plane::with(from_here), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    let too_long = [SIGNATURE, &[0x21, 0x11, 0xFF, 0xFF], IPV4].concat();
    let no_end = format!("PROXY TCP4 {}", "1".repeat(200));
    let mut expected = [("missing", 0), ("malformed", 0)];
    for (bytes, result) in [
        (GET.as_bytes(), 0),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 0),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0),
        (b"PROXY TCP4 192.0.2.1 198.51.100.7 12345\r\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n", 1),
        (b"PROXY TCP4 evil 198.51.100.7 12345 443\r\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n", 1),
        (no_end.as_bytes(), 1),
        (&binary(0x21, 0x11, &IPV4[..8]), 1),
        (&binary(0x21, 0x11, &[IPV4, &[4, 9, 9]].concat()), 1),
        (&binary(0x21, 0x11, &[IPV4, &[3, 0, 4, 1, 2, 3, 4]].concat()), 1),
        (&binary(0x31, 0x11, IPV4), 1),
        (&too_long, 1),
    ] {
        let mut client = plane.connect().await;
        client.send(bytes).await;
        client.closed().await;
        expected[result].1 += 1;
        for (result, count) in expected {
            assert_eq!(headers(&plane, result), count, "{result} after {bytes:?}");
        }
    }
    drop(plane.connect().await);
    plane.settle(|| headers(&plane, "closed") == 1).await;
    let mut half = plane.connect().await;
    half.send(&LINE[..20]).await;
    half.finish().await;
    half.closed().await;
    assert_eq!((headers(&plane, "closed"), headers(&plane, "ok")), (2, 0));
    assert!(upstream.heads().is_empty());
    plane.shutdown().await;
}

#[tokio::test]
async fn d2_a_header_from_a_peer_that_may_not_send_one_is_not_believed() {
    let plane = Plane::with(|settings| {
        settings.proxy_protocol = Some(vec!["10.0.0.0/8".parse().unwrap()]);
        settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    });
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    for bytes in ["", GET, &[LINE, GET].concat()] {
        let mut client = plane.connect().await;
        // What was closed already may not be taken.
        let _some = client.write_some(bytes.as_bytes()).await;
        client.closed().await;
    }
    assert_eq!((headers(&plane, "untrusted"), headers(&plane, "ok")), (3, 0));
    assert!(upstream.heads().is_empty());
    plane.shutdown().await;
}

#[tokio::test]
async fn d2_h1_a_header_that_is_late_ends_its_connection_and_holds_up_no_other() {
    let plane = Plane::with(|settings| {
        from_here(settings);
        settings.limits.proxy_header = LONGER;
    });
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    let (mut silent, mut slow) = (plane.connect().await, plane.connect().await);
    slow.send(&LINE[..30]).await;
    assert_eq!(status(&plane.exchange([LINE, GET_ONCE].concat()).await), 200);
    silent.closed().await;
    slow.closed().await;
    assert_eq!((headers(&plane, "timeout"), headers(&plane, "ok")), (2, 1));
    plane.shutdown().await;
}

#[tokio::test]
async fn d2_d1_whom_to_believe_goes_by_the_headers_address() {
    let plane = Plane::with(|settings| {
        from_here(settings);
        settings.trusted_proxies = vec!["192.0.2.0/24".parse().unwrap()];
    });
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    let said = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n";
    plane.exchange([LINE, said].concat()).await;
    plane.exchange(["PROXY TCP4 198.51.100.1 198.51.100.7 1 443\r\n", said].concat()).await;
    let heads = upstream.heads();
    let told = |at: usize| (field(&heads[at], "x-forwarded-for"), field(&heads[at], "x-real-ip"));
    assert_eq!(told(0), (Some("203.0.113.9, 192.0.2.1"), Some("203.0.113.9")));
    assert_eq!(told(1), (Some("198.51.100.1"), Some("198.51.100.1")));
    plane.shutdown().await;
}

#[tokio::test]
async fn d2_h3_connections_are_counted_for_the_headers_address() {
    let plane = Plane::with(|settings| {
        from_here(settings);
        settings.limits.connections_per_client = 1;
    });
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    let mut first = plane.connect().await;
    first.send([LINE, GET].concat()).await;
    assert_eq!(status(&first.head().await), 200);
    let mut second = plane.connect().await;
    second.send(LINE).await;
    let answer = second.rest().await;
    let told = (status(&answer), field(&answer, "lockgate-reason"));
    assert_eq!(told, (503, Some("too_many_connections")), "{answer}");
    let other = "PROXY TCP4 192.0.2.2 198.51.100.7 12345 443\r\n";
    assert_eq!(status(&plane.exchange([other, GET_ONCE].concat()).await), 200);
    drop(first);
    plane.settle(|| plane.metrics().contains("lockgate_listener_connections_open 0\n")).await;
    assert_eq!(status(&plane.exchange([LINE, GET_ONCE].concat()).await), 200);
    plane.shutdown().await;
}

#[tokio::test]
async fn d2_j2_the_log_names_the_headers_address() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let plane = Plane::with(|settings| {
        from_here(settings);
        settings.access_log = AccessLogSink::File(path.clone());
    });
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    plane.exchange([LINE, GET_ONCE].concat()).await;
    plane.shutdown().await;
    let line: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!((&line["client_ip"], &line["peer_ip"]), (&"192.0.2.1".into(), &"192.0.2.1".into()));
}

#[tokio::test]
async fn d2_streams_of_http2_are_those_of_the_headers_client() {
    let (plane, upstream) = (Plane::with(from_here), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    let mut wire = plane.connect().await;
    wire.send(LINE).await;
    let mut client = Http2::over(wire.stream).await;
    for _ in 0..2 {
        assert_eq!(client.get("http://a.test/").await.status(), 200);
    }
    assert!(upstream.heads().iter().all(|head| field(head, "x-real-ip") == Some("192.0.2.1")));
    assert_eq!(upstream.heads().len(), 2);
    plane.shutdown().await;
}

#[tokio::test]
async fn d2_by_tls_the_header_comes_before_the_handshake() {
    let bed = Bed::with(|tls| tls.proxy_protocol = Some(vec!["127.0.0.0/8".parse().unwrap()]), |_| {}).await;
    bed.route("a.test");
    bed.offer(&[&bed.ca.leaf(&["a.test"])]);
    assert!(bed.connect("a.test").await.is_err(), "a handshake without a header");
    assert_eq!(headers(&bed.plane, "missing"), 1);
    let mut stream = bed.plain().await;
    within(tokio::io::AsyncWriteExt::write_all(&mut stream, LINE.as_bytes())).await.unwrap();
    let connector = TlsConnector::from(Arc::new(bed.ca.client()));
    let name = ServerName::try_from("a.test").unwrap();
    let mut client = Secure { stream: within(connector.connect(name, stream)).await.unwrap() };
    assert_eq!(status(&client.ask("a.test").await), 200);
    assert_eq!(field(&bed.upstream.heads()[0], "x-real-ip"), Some("192.0.2.1"));
    // The plain listener is asked for none.
    assert_eq!(status(&bed.plane.exchange(GET_ONCE).await), 200);
    bed.plane.shutdown().await;
}

/// Where it listens.
const HAPROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 8);

/// A HAProxy that passes on connections with the option `how` of its server.
struct Haproxy {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Haproxy {
    async fn start(plane: &Plane, how: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Of an address at which nobody else asks for ports meanwhile.
        let port = TcpListener::bind((HAPROXY, 0)).await.unwrap().local_addr().unwrap().port();
        let text = format!(
            "defaults\n  mode tcp\n  timeout connect 30s\n  timeout client 30s\n  timeout server 30s\n\
             listen test\n  bind {HAPROXY}:{port}\n  server lockgate {} {how}\n",
            plane.address
        );
        let path = folder.path().join("haproxy.cfg");
        std::fs::write(&path, text).unwrap();
        let quiet = Stdio::null;
        let mut command = Command::new("haproxy");
        let child = command.arg("-db").arg("-f").arg(&path).stdout(quiet()).stderr(quiet()).spawn().unwrap();
        Self { child, port, _folder: folder }
    }

    /// All that comes for a request by a client at 127.0.0.9.
    async fn exchange(&self, request: &str) -> String {
        let stream = within(async {
            loop {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind((Ipv4Addr::new(127, 0, 0, 9), 0).into()).unwrap();
                match socket.connect((HAPROXY, self.port).into()).await {
                    Ok(stream) => return stream,
                    // It does not listen yet.
                    Err(_refused) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        });
        let mut client: Wire = Wire::new(stream.await);
        client.send(request).await;
        client.rest().await
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        // It is gone already, or this ends it.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

#[tokio::test]
async fn d2_haproxy_says_whose_connections_it_passes_on() {
    if Command::new("haproxy").arg("-v").output().is_err() {
        println!("SKIPPED: haproxy: d2_haproxy_says_whose_connections_it_passes_on");
        return;
    }
    for how in [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2 proxy-v2-options crc32c,unique-id",
        "send-proxy check inter 100ms",
        "send-proxy-v2 check inter 100ms",
    ] {
        let (plane, upstream) = (Plane::with(from_here), Upstream::answering(OK).await);
        plane.route("a.test", &upstream);
        let haproxy = Haproxy::start(&plane, how).await;
        assert_eq!(status(&haproxy.exchange(GET_ONCE).await), 200, "{how}");
        assert_eq!(field(&upstream.heads()[0], "x-real-ip"), Some("127.0.0.9"), "{how}");
        if how.contains("check") {
            // Its own connections are valid, too.
            plane.settle(|| headers(&plane, "ok") > 3).await;
        }
        assert_eq!((headers(&plane, "missing"), headers(&plane, "malformed")), (0, 0), "{how}");
        drop(haproxy);
        plane.shutdown().await;
    }
}

#[tokio::test]
async fn a_listener_that_asks_for_no_header_takes_none() {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    let answer = plane.exchange([LINE, GET].concat()).await;
    assert_eq!(status(&answer), 400, "{answer}");
    assert!(upstream.heads().is_empty());
    plane.shutdown().await;
}
