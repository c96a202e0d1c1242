//! TLS: whose certificate a name gets, what a handshake costs others, and which requests may come over which
//! connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use lockgate::certs::{CertTable, Certificate, Certs, ClientCa, Clients, HTTP_2, HTTP_11, Served};
use lockgate::clock::{Clock as _, SystemClock};
use lockgate::proxy::{ProxySettings, TlsSettings};
use lockgate::routing::Backend;
use lockgate::routing::https::OwnHttps;
use lockgate::routing::label::{Labelled, Labels};
use lockgate::routing::path::PathPrefix;
use lockgate::routing::preview_auth::PreviewAuth;
use lockgate::routing::split::Split;
use lockgate::routing::table::PathRoute;
use lockgate::settings::{Delay, HttpsMode};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind, NamedGroup, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::ca::{Ca, Leaf};
use crate::holds::{held, rules};
use crate::preview_auth;
use crate::support::{GET, LONGER, OK, Plane, Upstream, field, pattern, status, within};
use crate::support_http2::Http2;

/// A data plane that listens with and without TLS.
pub(crate) struct Bed {
    pub(crate) plane: Plane,
    pub(crate) certs: Arc<Certs>,
    pub(crate) ca: Ca,
    pub(crate) upstream: Upstream,
}

/// A client's connection with TLS.
pub(crate) struct Secure {
    pub(crate) stream: TlsStream<TcpStream>,
}

impl Bed {
    async fn start() -> Self {
        Self::with(|_| {}, |_| {}).await
    }

    pub(crate) async fn with(
        change: impl FnOnce(&mut TlsSettings),
        change_all: impl FnOnce(&mut ProxySettings),
    ) -> Self {
        let certs = Certs::new(&[HTTP_2, HTTP_11]).unwrap();
        let mut tls = TlsSettings {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            proxy_protocol: None,
            connections: None,
            certs: Arc::clone(&certs),
            port: 443,
            redirects: false,
            hsts: None,
            http3: false,
            alt_svc: None,
        };
        change(&mut tls);
        if tls.http3 {
            tls.listen = vec![own_address()];
        }
        let plane = Plane::with(|settings| {
            settings.tls = Some(tls);
            change_all(settings);
        });
        let upstream = Upstream::answering(OK).await;
        Self { plane, certs, ca: Ca::new(), upstream }
    }

    pub(crate) fn route(&self, host: &str) {
        self.plane.route(host, &self.upstream);
    }

    pub(crate) fn offer(&self, leaves: &[&Leaf]) {
        self.certs
            .publish(CertTable::new(leaves.iter().map(|leaf| served(leaf)).collect(), Vec::new()))
            .unwrap();
    }

    pub(crate) async fn connect(&self, name: &str) -> std::io::Result<Secure> {
        self.connect_as(self.ca.client(), name).await
    }

    pub(crate) async fn connect_as(&self, config: ClientConfig, name: &str) -> std::io::Result<Secure> {
        self.connect_with(&Arc::new(config), name).await
    }

    /// What is asked of the configuration again may be resumed.
    async fn connect_with(&self, config: &Arc<ClientConfig>, name: &str) -> std::io::Result<Secure> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let stream = self.plain().await;
        let stream = within(TlsConnector::from(Arc::clone(config)).connect(name, stream)).await?;
        Ok(Secure { stream })
    }

    /// To the port of TLS, without it.
    pub(crate) async fn plain(&self) -> TcpStream {
        within(TcpStream::connect(self.plane.plane.addresses()[1])).await.unwrap()
    }

    /// The client may know of it before it is counted.
    async fn counted(&self, labels: &str, count: u64) {
        self.plane.settle(|| self.handshakes(labels) == count).await;
    }

    fn handshakes(&self, labels: &str) -> u64 {
        let line = format!("lockgate_tls_handshakes_total{{{labels}}} ");
        let metrics = self.plane.metrics();
        let count = metrics.lines().find_map(|found| found.strip_prefix(&line));
        count.unwrap_or_else(|| panic!("no {line} in {metrics}")).parse().unwrap()
    }
}

impl Secure {
    async fn send(&mut self, text: &str) {
        within(self.stream.write_all(text.as_bytes())).await.unwrap();
        within(self.stream.flush()).await.unwrap();
    }

    async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let read = within(self.stream.read_u8()).await;
            head.push(read.unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&head))));
        }
        String::from_utf8(head).unwrap()
    }

    /// The head of the answer to a request for that host; the connection is kept.
    pub(crate) async fn ask(&mut self, host: &str) -> String {
        self.send(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        self.head().await
    }

    fn session(&self) -> &rustls::ClientConnection {
        self.stream.get_ref().1
    }

    fn shown(&self) -> Vec<u8> {
        self.session().peer_certificates().unwrap()[0].to_vec()
    }
}

/// A loopback address that no other plane has. QUIC's sockets outlive those of TCP while a plane ends: on an address that they
/// share another one could be given the port, and half of its clients would come to the one that ends.
pub(crate) fn own_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0x0100);
    let [third, fourth] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    ([127, 0, third, fourth], 0).into()
}

pub(crate) fn served(leaf: &Leaf) -> Served {
    let certificate = Certificate::of_pem(&leaf.chain, &leaf.key).unwrap();
    Served { certificate: Arc::new(certificate), hosts: Vec::new() }
}

#[tokio::test]
async fn a_name_gets_its_own_certificate_or_that_of_its_wildcard_or_the_first() {
    let bed = Bed::start().await;
    let (first, exact, wild) =
        (bed.ca.leaf(&["first.test"]), bed.ca.leaf(&["a.wild.test"]), bed.ca.leaf(&["*.wild.test"]));
    bed.offer(&[&first, &exact, &wild]);
    for (name, leaf) in
        [("first.test", &first), ("a.wild.test", &exact), ("A.Wild.TEST", &exact), ("b.wild.test", &wild)]
    {
        assert_eq!(bed.connect(name).await.unwrap().shown(), leaf.certificate().to_vec(), "{name}");
    }
    // The first, which its client does not accept.
    for name in ["unknown.test", "x.b.wild.test", "wild.test", "127.0.0.1"] {
        let error = bed.connect(name).await.err().unwrap().to_string();
        assert!(error.contains("certificate not valid for name"), "{name}: {error}");
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn d1_j2_a_request_over_tls_goes_up_as_https_and_is_logged_so() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let path = log.path().to_owned();
    let bed = Bed::with(
        |_| {},
        |settings| {
            settings.access_log = lockgate::proxy::AccessLogSink::File(path.clone());
        },
    )
    .await;
    bed.route("a.test");
    bed.offer(&[&bed.ca.leaf(&["a.test"])]);
    let mut client = bed.connect("a.test").await.unwrap();
    assert_eq!(status(&client.ask("a.test").await), 200);
    assert_eq!(status(&client.ask("a.test").await), 200, "the connection is kept");
    let head = &bed.upstream.heads()[0];
    let port = bed.plane.plane.addresses()[1].port().to_string();
    for (name, value) in
        [("x-forwarded-proto", "https"), ("x-forwarded-port", &port), ("x-forwarded-for", "127.0.0.1")]
    {
        assert_eq!(field(head, name), Some(value), "{head}");
    }
    assert_eq!(client.session().protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(bed.handshakes("result=\"ok\",version=\"1.3\""), 1);
    bed.plane.shutdown().await;
    let line = std::fs::read_to_string(path).unwrap();
    assert!(line.contains("\"scheme\":\"https\",\"tls_version\":\"1.3\""), "{line}");
}

#[tokio::test]
async fn both_versions_are_spoken_and_the_key_exchange_is_hybrid_where_the_client_can() {
    let bed = Bed::start().await;
    bed.route("a.test");
    bed.offer(&[&bed.ca.leaf(&["a.test"])]);
    let mut client = bed.connect("a.test").await.unwrap();
    assert_eq!(client.session().negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    assert_eq!(status(&client.ask("a.test").await), 200);
    let mut client = bed.connect_as(bed.ca.client_of(&rustls::version::TLS12), "a.test").await.unwrap();
    assert_eq!(client.session().protocol_version(), Some(ProtocolVersion::TLSv1_2));
    assert_eq!(status(&client.ask("a.test").await), 200);
    assert_eq!(bed.handshakes("result=\"ok\",version=\"1.2\""), 1);
    let mut other = bed.ca.client();
    other.alpn_protocols = vec![b"spdy/1".to_vec()];
    assert!(bed.connect_as(other, "a.test").await.is_err(), "no protocol in common");
    let mut known = bed.ca.client();
    known.alpn_protocols = vec![b"h3".to_vec(), b"http/1.1".to_vec()];
    let client = bed.connect_as(known, "a.test").await.unwrap();
    assert_eq!(client.session().alpn_protocol(), Some(&b"http/1.1"[..]));
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn http2_is_chosen_in_the_handshake_where_both_know_it() {
    let bed = Bed::start().await;
    bed.route("a.test");
    bed.offer(&[&bed.ca.leaf(&["a.test"])]);
    let mut client = bed.ca.client();
    client.alpn_protocols = vec![HTTP_11.to_vec(), HTTP_2.to_vec()];
    let secure = bed.connect_as(client, "a.test").await.unwrap();
    assert_eq!(secure.session().alpn_protocol(), Some(HTTP_2));
    let mut client = Http2::over(secure.stream).await;
    for _ in 0..3 {
        let answers = [client.get("https://a.test/").await, client.get("https://a.test/").await];
        assert!(answers.iter().all(|answer| answer.status() == 200 && answer.error.is_none()));
    }
    let heads = bed.upstream.heads();
    assert!(heads.len() == 6 && heads.iter().all(|head| field(head, "x-forwarded-proto") == Some("https")));
    // Made for another host than its certificate is good for.
    assert_eq!(client.get("https://b.test/").await.status(), 421);
    assert_eq!(client.get("https://a.test/").await.status(), 200);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn new_certificates_end_no_connection_and_no_session() {
    let bed = Bed::start().await;
    bed.route("a.test");
    let (old, new) = (bed.ca.leaf(&["a.test"]), bed.ca.leaf(&["a.test"]));
    bed.offer(&[&old]);
    let config = Arc::new(bed.ca.client());
    let mut client = bed.connect_with(&config, "a.test").await.unwrap();
    assert_eq!(client.session().handshake_kind(), Some(HandshakeKind::Full));
    // With its answer the tickets come, too.
    assert_eq!(status(&client.ask("a.test").await), 200);
    bed.offer(&[&new]);
    assert_eq!(status(&client.ask("a.test").await), 200, "a connection goes on");
    let mut again = bed.connect_with(&config, "a.test").await.unwrap();
    assert_eq!(again.session().handshake_kind(), Some(HandshakeKind::Resumed), "a session goes on");
    assert_eq!(status(&again.ask("a.test").await), 200);
    assert!(bed.plane.metrics().contains("lockgate_tls_resumptions_total 1"));
    assert_eq!(bed.connect("a.test").await.unwrap().shown(), new.certificate().to_vec());
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn a6_a_host_is_served_over_connections_whose_certificate_covers_it() {
    let bed = Bed::start().await;
    for host in ["a.test", "b.test", "c.test", "x.wild.test", "y.wild.test"] {
        bed.route(host);
    }
    let (ab, c, wild) =
        (bed.ca.leaf(&["a.test", "b.test"]), bed.ca.leaf(&["c.test"]), bed.ca.leaf(&["*.wild.test"]));
    bed.offer(&[&ab, &c, &wild]);
    for (name, host, expected) in [
        ("a.test", "a.test", 200),
        ("a.test", "A.TEST.:443", 200),
        // As browsers do that know one connection for both.
        ("a.test", "b.test", 200),
        ("a.test", "c.test", 421),
        ("c.test", "a.test", 421),
        ("c.test", "none.test", 421),
        ("x.wild.test", "y.wild.test", 200),
        ("x.wild.test", "a.test", 421),
        ("a.test", "x.wild.test", 421),
    ] {
        let mut client = bed.connect(name).await.unwrap();
        let head = client.ask(host).await;
        assert_eq!(status(&head), expected, "{host} over {name}: {head}");
        if expected == 421 {
            assert_eq!(field(&head, "lockgate-reason"), Some("misdirected_request"));
        }
    }
    // The first certificate is offered to who asks for another name or for none, and what it covers is served.
    for (name, host, expected) in [
        ("other.test", "other.test", 404),
        ("other.test", "a.test", 421),
        ("127.0.0.1", "a.test", 200),
        ("127.0.0.1", "c.test", 421),
    ] {
        let mut client = bed.connect_as(bed.ca.client_of_any(), name).await.unwrap();
        assert_eq!(status(&client.ask(host).await), expected, "{host} over {name}");
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn a6_a_connection_that_was_made_for_one_host_is_looked_at_for_each() {
    let bed = Bed::start().await;
    bed.route("a.test");
    bed.route("c.test");
    bed.offer(&[&bed.ca.leaf(&["a.test"]), &bed.ca.leaf(&["c.test"])]);
    let mut client = bed.connect("a.test").await.unwrap();
    assert_eq!(status(&client.ask("a.test").await), 200);
    assert_eq!(status(&client.ask("c.test").await), 421);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn cookies_of_who_came_by_tls_are_secure() {
    let bed = Bed::start().await;
    let leaf = bed.ca.leaf(&["a.test", "feat.app.test"]);
    bed.offer(&[&leaf]);
    let new = Upstream::answering(OK).await;
    let split = Arc::new(Split::new("op_1", Arc::clone(&new.backend), 50));
    let shared =
        PathRoute::new(PathPrefix::root(), Arc::clone(&bed.upstream.backend)).with_split(Some(split));
    let mut client = bed.connect("a.test").await.unwrap();
    bed.plane.routing.publish(|edit| edit.set(&pattern("a.test"), vec![shared]));
    let answer = client.ask("a.test").await;
    let cookie = field(&answer, "set-cookie").unwrap();
    assert!(cookie.starts_with("__lockgate_split=") && cookie.ends_with("; Secure"), "{cookie}");

    let auth = PreviewAuth::link(&[7; 32], "web", "feat");
    preview_auth::publish(&bed.plane, &bed.upstream, &new, auth);
    let mut client = bed.connect("feat.app.test").await.unwrap();
    let token = preview_auth::key().sign(preview_auth::LATER);
    client.send(&format!("GET /?lockgate_link={token} HTTP/1.1\r\nHost: feat.app.test\r\n\r\n")).await;
    let answer = client.head().await;
    let cookie = field(&answer, "set-cookie").unwrap();
    assert!(status(&answer) == 303 && cookie.contains("; Secure"), "{answer}");
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn h3_a_listener_that_is_full_costs_another_one_nothing() {
    let waits = Duration::from_millis(80);
    let bed = Bed::with(|tls| tls.connections = Some(1), |all| all.connections = Some(1)).await;
    bed.offer(&[&bed.ca.leaf(&["a.test"])]);
    bed.route("a.test");
    let mut plain = [bed.plane.connect().await, bed.plane.connect().await];
    for client in &mut plain {
        client.send(GET).await;
    }
    let [first, second] = &mut plain;
    assert_eq!(status(&first.head().await), 200);
    assert!(tokio::time::timeout(waits, second.head()).await.is_err(), "it was served past the limit");

    let mut secure = bed.connect("a.test").await.unwrap();
    assert_eq!(status(&secure.ask("a.test").await), 200);
    let [first, mut second] = plain;
    {
        let mut next = std::pin::pin!(bed.connect("a.test"));
        assert!(tokio::time::timeout(waits, next.as_mut()).await.is_err(), "it was served past the limit");
        drop((first, secure));
        assert_eq!(status(&next.await.unwrap().ask("a.test").await), 200);
    }
    assert_eq!(status(&second.head().await), 200);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn plain_http_on_the_port_of_tls_is_told_so() {
    let bed = Bed::start().await;
    bed.offer(&[&bed.ca.leaf(&["a.test"])]);
    let mut stream = bed.plain().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    within(stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(status(&answer), 400, "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(field(head, "content-length"), Some(body.len().to_string().as_str()));
    assert!(body.contains("https://"), "{body}");
    bed.counted("result=\"not_tls\",version=\"\"", 1).await;
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn h1_a_handshake_that_stops_or_fails_costs_its_own_connection() {
    let bed = Bed::with(|_| {}, |settings| settings.limits.handshake = Duration::from_secs(6)).await;
    bed.route("a.test");
    bed.offer(&[&bed.ca.leaf(&["a.test"])]);
    let mut silent = bed.plain().await;
    // A record of a handshake that does not go on.
    let mut half = bed.plain().await;
    half.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    let mut broken = bed.plain().await;
    broken.write_all(&[0x16; 600]).await.unwrap();
    let mut client = bed.connect("a.test").await.unwrap();
    assert_eq!(status(&client.ask("a.test").await), 200, "others are served meanwhile");
    let mut rest = Vec::new();
    for stream in [&mut silent, &mut half, &mut broken] {
        // An alert, or nothing, and then the end.
        let _ended = within(stream.read_to_end(&mut rest)).await;
    }
    bed.counted("result=\"timeout\",version=\"\"", 2).await;
    bed.counted("result=\"failed\",version=\"\"", 1).await;
    assert_eq!(status(&client.ask("a.test").await), 200);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn without_a_certificate_handshakes_fail_and_plain_http_is_served() {
    let bed = Bed::start().await;
    bed.route("a.test");
    assert!(bed.connect("a.test").await.is_err());
    bed.counted("result=\"failed\",version=\"\"", 1).await;
    let answer = bed.plane.exchange("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!(status(&answer), 200);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn i2_who_comes_without_tls_is_sent_to_https_where_a_certificate_covers_the_name() {
    let trust = |settings: &mut ProxySettings| settings.via = None;
    let bed = Bed::with(|tls| tls.redirects = true, trust).await;
    for host in ["a.test", "*.wild.test", "bare.test"] {
        bed.route(host);
    }
    bed.offer(&[&bed.ca.leaf(&["a.test", "*.wild.test"])]);
    for (host, path, expected) in [
        ("a.test", "/x//y?q=1&r=%0d%0a", Some("https://a.test/x//y?q=1&r=%0d%0a")),
        ("A.test.:8080", "/", Some("https://a.test/")),
        ("b.wild.test", "/", Some("https://b.wild.test/")),
        ("a.test", "/.well-known/acme-challenge/token", None),
        // No certificate: it would be sent to where it cannot go.
        ("bare.test", "/", None),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = bed.plane.exchange(request).await;
        let expected = (if expected.is_some() { 308 } else { 200 }, expected);
        assert_eq!((status(&answer), field(&answer, "location")), expected, "{host}{path}");
    }
    // What an absolute target names counts, and what no route matches goes nowhere.
    let absolute = "GET http://a.test/z HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n";
    assert_eq!(field(&bed.plane.exchange(absolute).await, "location"), Some("https://a.test/z"));
    let unknown = "GET / HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&bed.plane.exchange(unknown).await), 404);
    let mut client = bed.connect("a.test").await.unwrap();
    assert_eq!(status(&client.ask("a.test").await), 200);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn i2_who_is_sent_to_https_wakes_nobody() {
    let bed = Bed::with(|tls| tls.redirects = true, |_| {}).await;
    bed.offer(&[&bed.ca.leaf(&["a.test"])]);
    let hold = held(&bed.plane, "a.test", rules(), Some(&Arc::default()));
    let answer = bed.plane.exchange("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!((status(&answer), field(&answer, "lockgate-reason")), (308, Some("https_redirect")));
    assert_eq!((hold.take_wanted(), hold.waiting()), (false, 0));
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn i2_what_a_trusted_proxy_got_by_https_is_not_sent_there_again() {
    let trust =
        |settings: &mut ProxySettings| settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    let bed = Bed::with(|tls| (tls.port, tls.redirects) = (8443, true), trust).await;
    bed.route("a.test");
    bed.offer(&[&bed.ca.leaf(&["a.test"])]);
    for (said, expected) in [("https", 200), ("http", 308)] {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-Proto: {said}\r\nConnection: close\r\n\r\n"
        );
        let answer = bed.plane.exchange(request).await;
        assert_eq!(status(&answer), expected, "{said}");
        if expected == 308 {
            assert_eq!(field(&answer, "location"), Some("https://a.test:8443/"));
        }
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn hsts_is_told_over_tls_alone_and_not_in_place_of_the_applications_own() {
    let bed = Bed::with(|tls| tls.hsts = Some("max-age=60".parse().unwrap()), |_| {}).await;
    bed.route("a.test");
    bed.offer(&[&bed.ca.leaf(&["a.test", "none.test"])]);
    let mut client = bed.connect("a.test").await.unwrap();
    assert_eq!(field(&client.ask("a.test").await, "strict-transport-security"), Some("max-age=60"));
    let own = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nStrict-Transport-Security: max-age=1\r\n\r\n";
    bed.upstream.answer(own);
    assert_eq!(field(&client.ask("a.test").await, "strict-transport-security"), Some("max-age=1"));
    bed.upstream.answer(OK);
    let plain = bed.plane.exchange("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!(field(&plain, "strict-transport-security"), None);
    let mut client = bed.connect("none.test").await.unwrap();
    let head = client.ask("none.test").await;
    assert_eq!((status(&head), field(&head, "strict-transport-security")), (404, None));
    bed.plane.shutdown().await;
}

/// A route below `prefix` to the upstream, that says this of https for itself.
fn saying(bed: &Bed, prefix: &str, mode: Option<HttpsMode>, hsts: Option<u64>) -> PathRoute {
    let own = OwnHttps::of(mode, hsts.map(Delay::seconds));
    let backend = Backend::clone(&bed.upstream.backend).with_https(own);
    PathRoute::new(prefix.parse().unwrap(), Arc::new(backend))
}

#[tokio::test]
async fn i2_an_app_says_for_itself_whether_it_is_reached_without_tls() {
    for redirects in [true, false] {
        let trust =
            |settings: &mut ProxySettings| settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
        let bed = Bed::with(|tls| (tls.port, tls.redirects) = (8443, redirects), trust).await;
        bed.offer(&[&bed.ca.leaf(&["a.test"])]);
        let routes = || {
            vec![
                saying(&bed, "/", None, Some(5)),
                saying(&bed, "/safe", Some(HttpsMode::Redirect), None),
                saying(&bed, "/open", Some(HttpsMode::Allow), None),
            ]
        };
        bed.plane.routing.publish(|edit| edit.set(&pattern("a.test"), routes()));
        bed.plane.routing.publish(|edit| edit.set(&pattern("bare.test"), routes()));
        for (host, path, said, is_sent) in [
            ("a.test", "/", "http", redirects),
            ("a.test", "/safe/x?y", "http", true),
            ("a.test", "/open", "http", false),
            ("a.test", "/safe", "https", false),
            ("a.test", "/.well-known/acme-challenge/Sa_f-e1", "http", false),
            // What an application could take for another path is not what ACME asks for.
            ("a.test", "/.well-known/acme-challenge/..%2f..%2fsafe", "http", redirects),
            ("a.test", "/.well-known/acme-challenge/../../safe", "http", true),
            ("a.test", "/.well-known/acme-challenge/x/safe", "http", redirects),
            ("a.test", "/.well-known/acme-challenge/x;y", "http", redirects),
            ("a.test", "/.well-known/acme-challenge/", "http", redirects),
            // No certificate: it would be sent to where it cannot go.
            ("bare.test", "/safe", "http", false),
        ] {
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Proto: {said}\r\nConnection: close\r\n\r\n"
            );
            let answer = bed.plane.exchange(request).await;
            let place = is_sent.then(|| format!("https://{host}:8443{path}"));
            let expected = (if is_sent { 308 } else { 200 }, place.as_deref());
            assert_eq!((status(&answer), field(&answer, "location")), expected, "{redirects} {host}{path}");
        }
        bed.plane.shutdown().await;
    }
}

#[tokio::test]
async fn i2_a_preview_says_for_itself_whether_it_is_reached_without_tls() {
    let bed = Bed::with(|tls| tls.redirects = true, |_| {}).await;
    bed.offer(&[&bed.ca.leaf(&["a.test", "*.a.test"])]);
    let preview = saying(&bed, "/", Some(HttpsMode::Allow), None);
    let mut labels = Labels::default();
    let expires_at = SystemClock.now() + Duration::from_secs(600);
    labels.insert("feat", Labelled { backend: preview.backend().clone(), expires_at, auth: None });
    let route = saying(&bed, "/", None, None).with_labels(Arc::new(labels));
    bed.plane.routing.publish(|edit| edit.set(&pattern("a.test"), vec![route]));
    for (host, expected) in [("feat.a.test", 200), ("a.test", 308)] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert_eq!(status(&bed.plane.exchange(request).await), expected, "{host}");
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn hsts_of_an_app_takes_the_place_of_the_listeners_on_its_own_answers_and_on_lockgates() {
    let bed = Bed::with(|tls| tls.hsts = Some("max-age=60".parse().unwrap()), |_| {}).await;
    bed.offer(&[&bed.ca.leaf(&["a.test"])]);
    let nobody = OwnHttps::of(None, Some(Delay::seconds(9)));
    let nobody =
        Backend { targets: Box::default(), ..Backend::clone(&bed.upstream.backend) }.with_https(nobody);
    let routes = vec![
        saying(&bed, "/", Some(HttpsMode::Allow), None),
        saying(&bed, "/more", None, Some(120)),
        saying(&bed, "/none", None, Some(0)),
        PathRoute::new("/nobody".parse().unwrap(), Arc::new(nobody)),
    ];
    bed.plane.routing.publish(|edit| edit.set(&pattern("a.test"), routes));
    let mut client = bed.connect("a.test").await.unwrap();
    for (path, code, expected) in [
        ("/", 200, Some("max-age=60")),
        ("/more", 200, Some("max-age=120")),
        ("/none", 200, None),
        ("/", 200, Some("max-age=60")),
        ("/nobody", 503, Some("max-age=9")),
    ] {
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n")).await;
        let head = client.head().await;
        assert_eq!((status(&head), field(&head, "strict-transport-security")), (code, expected), "{path}");
    }
    let plain = bed.plane.exchange("GET /more HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!((status(&plain), field(&plain, "strict-transport-security")), (200, None));
    let own = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nStrict-Transport-Security: max-age=1\r\n\r\n";
    bed.upstream.answer(own);
    let mut client = bed.connect("a.test").await.unwrap();
    client.send("GET /more HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(field(&client.head().await, "strict-transport-security"), Some("max-age=1"));
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn an_answer_without_a_route_tells_no_hsts_that_an_app_of_the_host_may_not_want() {
    let bed = Bed::with(
        |tls| tls.hsts = Some("max-age=60".parse().unwrap()),
        |settings| (settings.limits.target_bytes, settings.limits.field_bytes) = (1000, 1000),
    )
    .await;
    bed.offer(&[&bed.ca.leaf(&["a.test"])]);
    let routes = vec![saying(&bed, "/app", Some(HttpsMode::Allow), Some(0))];
    bed.plane.routing.publish(|edit| edit.set(&pattern("a.test"), routes));
    for (line, field_line, expected) in [
        ("GET /app", String::new(), 200),
        ("GET /elsewhere", String::new(), 404),
        ("OPTIONS *", String::new(), 204),
        (&format!("GET /app/{}", "x".repeat(1000)), String::new(), 414),
        ("GET /app", format!("X: {}\r\n", "x".repeat(1001)), 431),
        ("GET /app", "Expect: nothing\r\n".to_owned(), 417),
        ("GET /app", "Host: a.test\r\n".to_owned(), 400),
        ("TRACE /app", String::new(), 405),
    ] {
        let mut client = bed.connect("a.test").await.unwrap();
        client.send(&format!("{line} HTTP/1.1\r\nHost: a.test\r\n{field_line}\r\n")).await;
        let head = client.head().await;
        let told = field(&head, "strict-transport-security");
        assert_eq!((status(&head), told), (expected, None), "{line:.20}: {head}");
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn an_app_opens_no_host_without_tls_that_asks_its_clients_for_a_certificate() {
    for redirects in [true, false] {
        let bed = Bed::with(|tls| tls.redirects = redirects, |_| {}).await;
        let ca = ClientCa::of_pem(&bed.ca.pem).unwrap();
        let clients = vec![Clients::new(vec![pattern("admin.test")], Arc::new(ca))];
        let leaf = bed.ca.leaf(&["admin.test"]);
        bed.certs.publish(CertTable::new(vec![served(&leaf)], clients)).unwrap();
        for (mode, expected) in [(HttpsMode::Allow, 421), (HttpsMode::Redirect, 308)] {
            let route = saying(&bed, "/", Some(mode), None);
            bed.plane.routing.publish(|edit| edit.set(&pattern("admin.test"), vec![route]));
            for path in ["/", "/.well-known/acme-challenge/x"] {
                let request = format!("GET {path} HTTP/1.1\r\nHost: admin.test\r\nConnection: close\r\n\r\n");
                let expected = if path == "/" { expected } else { 421 };
                assert_eq!(status(&bed.plane.exchange(request).await), expected, "{mode:?} {path}");
            }
        }
        assert!(bed.upstream.heads().is_empty());
        bed.plane.shutdown().await;
    }
}

#[tokio::test]
async fn a_host_that_asks_its_clients_for_a_certificate_is_reached_with_one_alone() {
    let bed = Bed::start().await;
    bed.route("a.test");
    bed.route("admin.test");
    let both = bed.ca.leaf(&["a.test", "admin.test"]);
    let (staff, strangers) = (Ca::new(), Ca::new());
    let publish = |ca: Option<&Ca>| {
        let clients = ca.map(|ca| {
            let ca = Arc::new(ClientCa::of_pem(&ca.pem).unwrap());
            Clients::new(vec!["admin.test".parse().unwrap()], ca)
        });
        bed.certs.publish(CertTable::new(vec![served(&both)], clients.into_iter().collect())).unwrap();
        // As a reload does.
        bed.route("admin.test");
    };
    publish(Some(&staff));
    let with = |ca: &Ca| bed.ca.client_with(&ca.leaf(&["somebody"]));
    let refused = async |config: ClientConfig| match bed.connect_as(config, "admin.test").await {
        // With TLS 1.3 the client is done before the server has looked.
        Ok(mut client) => {
            client.send("GET / HTTP/1.1\r\nHost: admin.test\r\n\r\n").await;
            within(client.stream.read_u8()).await.is_err()
        }
        Err(_) => true,
    };
    assert!(refused(bed.ca.client()).await, "without a certificate");
    assert!(refused(with(&strangers)).await, "with another authority's");
    let config = Arc::new(with(&staff));
    let mut client = bed.connect_with(&config, "admin.test").await.unwrap();
    assert_eq!(status(&client.ask("admin.test").await), 200);
    // The certificate of the server covers both; that is not enough.
    let mut other = bed.connect("a.test").await.unwrap();
    assert_eq!(status(&other.ask("admin.test").await), 421);
    let mut other = bed.connect_as(with(&staff), "admin.test").await.unwrap();
    assert_eq!(status(&other.ask("a.test").await), 421, "nor the other way");
    for path in ["/", "/.well-known/acme-challenge/x"] {
        let plain = format!("GET {path} HTTP/1.1\r\nHost: admin.test\r\nConnection: close\r\n\r\n");
        assert_eq!(status(&bed.plane.exchange(plain).await), 421, "without TLS: {path}");
    }
    publish(Some(&staff));
    assert_eq!(status(&client.ask("admin.test").await), 200, "the same authorities, read again");
    publish(Some(&strangers));
    assert_eq!(status(&client.ask("admin.test").await), 421, "it was let in by others");
    assert!(refused(with(&staff)).await);
    // Nor is its session believed, which began under the others.
    let resumed = bed.connect_with(&config, "admin.test").await;
    let is_out = match resumed {
        Ok(mut client) => {
            client.send("GET / HTTP/1.1\r\nHost: admin.test\r\n\r\n").await;
            within(client.stream.read_u8()).await.is_err()
        }
        Err(_) => true,
    };
    assert!(is_out);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn a_connection_ends_in_order_and_says_so() {
    let bed = Bed::with(|_| {}, |settings| settings.limits.keep_alive = LONGER).await;
    bed.route("a.test");
    bed.offer(&[&bed.ca.leaf(&["a.test"])]);
    // An end without a word would be an error.
    let mut rest = Vec::new();
    let mut client = bed.connect("a.test").await.unwrap();
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
    within(client.stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(status(&String::from_utf8_lossy(&rest)), 200);
    let mut idle = bed.connect("a.test").await.unwrap();
    within(idle.stream.read_to_end(&mut rest)).await.unwrap();
    let mut malformed = bed.connect("a.test").await.unwrap();
    malformed.send("no request\r\n\r\n").await;
    rest.clear();
    within(malformed.stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(status(&String::from_utf8_lossy(&rest)), 400);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn e1_large_bodies_pass_whole_in_both_directions() {
    let bed = Bed::start().await;
    let upstream = Upstream::start().await;
    bed.plane.route("big.test", &upstream);
    bed.offer(&[&bed.ca.leaf(&["big.test"])]);
    let size = 4 * 1024 * 1024;
    let body: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let mut client = bed.connect("big.test").await.unwrap();
    let head = format!("PUT / HTTP/1.1\r\nHost: big.test\r\nContent-Length: {size}\r\n\r\n");
    let asking = async {
        client.send(&head).await;
        within(client.stream.write_all(&body)).await.unwrap();
        within(client.stream.flush()).await.unwrap();
        let head = client.head().await;
        assert_eq!(status(&head), 200);
        let mut received = vec![0; body.len()];
        within(client.stream.read_exact(&mut received)).await.unwrap();
        assert!(received == body, "another body came back");
    };
    let answering = async {
        let mut app = upstream.accept().await;
        app.head().await;
        let received = app.bytes(body.len()).await;
        assert!(received == body, "another body arrived");
        app.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")).await;
        app.send(&received).await;
    };
    tokio::join!(asking, answering);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn f1_an_upgraded_connection_carries_bytes_both_ways_and_half_a_close() {
    let bed = Bed::start().await;
    let upstream = Upstream::start().await;
    bed.plane.route("a.test", &upstream);
    bed.offer(&[&bed.ca.leaf(&["a.test"])]);
    let mut client = bed.connect("a.test").await.unwrap();
    client
        .send("GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\nearly")
        .await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\nfirst").await;
    assert_eq!(status(&client.head().await), 101);
    let mut five = [0; 5];
    within(client.stream.read_exact(&mut five)).await.unwrap();
    assert_eq!((&five, app.bytes(5).await), (b"first", b"early".to_vec()));
    let large = vec![7; 1024 * 1024];
    let (mut reader, mut writer) = tokio::io::split(client.stream);
    tokio::join!(
        async {
            within(writer.write_all(&large)).await.unwrap();
            // Half a close: no more from this side.
            within(writer.shutdown()).await.unwrap();
        },
        async {
            assert!(app.bytes(large.len()).await == large);
            app.closed().await;
            app.send(&large).await;
            app.finish().await;
        },
        async {
            let mut received = Vec::new();
            within(reader.read_to_end(&mut received)).await.unwrap();
            assert!(received == large, "{} bytes", received.len());
        }
    );
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn e4_a_client_that_leaves_takes_its_request_along() {
    let bed = Bed::with(|_| {}, |settings| settings.limits.half_closed = Duration::from_millis(50)).await;
    let upstream = Upstream::start().await;
    bed.plane.route("a.test", &upstream);
    bed.offer(&[&bed.ca.leaf(&["a.test"])]);
    for leaves_politely in [true, false] {
        let mut client = bed.connect("a.test").await.unwrap();
        client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        let mut app = upstream.accept().await;
        app.head().await;
        if leaves_politely {
            // The last that it says is that it says no more, which is more than nothing.
            within(client.stream.shutdown()).await.unwrap();
        } else {
            client.stream.get_ref().0.set_zero_linger().unwrap();
        }
        drop(client);
        app.closed().await;
    }
    bed.plane.settle(|| upstream.target.gate.in_flight().requests == 0).await;
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn e5_a_client_that_sends_no_more_gets_its_answer() {
    let bed = Bed::start().await;
    let upstream = Upstream::start().await;
    bed.plane.route("a.test", &upstream);
    bed.offer(&[&bed.ca.leaf(&["a.test"])]);
    let mut client = bed.connect("a.test").await.unwrap();
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let mut app = upstream.accept().await;
    app.head().await;
    within(client.stream.shutdown()).await.unwrap();
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let mut answer = String::new();
    within(client.stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nok"), "{answer}");
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn clients_of_other_makes_are_understood() {
    let bed = Bed::start().await;
    bed.route("a.test");
    bed.offer(&[&bed.ca.leaf(&["a.test"])]);
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, &bed.ca.pem).unwrap();
    let port = bed.plane.plane.addresses()[1].port();
    let run = async |program: &str, arguments: Vec<String>| {
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).stdin(std::process::Stdio::null());
        match within(command.output()).await {
            Ok(output) => Some(output),
            // Not on this machine: nothing to see.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => panic!("{program}: {error}"),
        }
    };
    let s_client = |version: &str| {
        let all = format!(
            "s_client -connect 127.0.0.1:{port} -servername a.test -verify_return_error -CAfile {}",
            ca.display()
        );
        all.split(' ').chain([version]).map(str::to_owned).collect::<Vec<_>>()
    };
    for (version, is_spoken) in [("-tls1_3", true), ("-tls1_2", true), ("-tls1_1", false)] {
        if let Some(output) = run("openssl", s_client(version)).await {
            assert_eq!(output.status.success(), is_spoken, "{version}: {output:?}");
        }
    }
    let resolve = format!("a.test:{port}:127.0.0.1");
    let url = format!("https://a.test:{port}/");
    let curl = ["-sS", "--cacert", &ca.display().to_string(), "--resolve", &resolve, "-o", "-", "-i", &url]
        .map(str::to_owned);
    if let Some(output) = run("curl", curl.to_vec()).await {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let is_answered = text.starts_with("HTTP/2 200") || text.starts_with("HTTP/1.1 200");
        assert!(output.status.success() && is_answered, "{output:?}");
    }
    bed.plane.shutdown().await;
}
