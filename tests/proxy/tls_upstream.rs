//! Upstreams that are spoken to by TLS: who they have to be, and that nothing else is ever sent to them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockgate::ids::InstanceId;
use lockgate::proxy::{AccessLogSink, ProxySettings};
use lockgate::routing::Target;
use lockgate::routing::tls::{Believed, ClientTls, TargetTls};
use lockgate::settings::ProxyProtocol;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{HandshakeKind, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::ca::{Ca, Leaf};
use crate::support::{
    LONGER, OK, Plane, Upstream, WORKERS, backend, field, pattern, status, unreachable, within,
};
use crate::support_http2::Http2;

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
const GET_ONCE: &str = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";

/// A request as the application saw it: how many connections there were before, how the handshake of its own went, what name
/// was asked for, and its head.
#[derive(Clone, Debug)]
struct Seen {
    connection: usize,
    handshake: HandshakeKind,
    name: Option<String>,
    protocol: Option<Vec<u8>>,
    head: String,
}

type All = Arc<Mutex<Vec<Seen>>>;

/// What believes this authority alone, and that a target is `name`.
pub(crate) fn held_to(ca: &Ca, name: &str) -> TargetTls {
    let authority = CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap();
    let tls = ClientTls::new(Believed::Authorities(vec![authority])).unwrap();
    tls.to(ServerName::try_from(name.to_owned()).unwrap())
}

fn signed_by_itself(name: &str) -> Leaf {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    Leaf { chain: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

pub(crate) fn acceptor(leaf: &Leaf) -> TlsAcceptor {
    acceptor_of(leaf, &[b"h2", b"http/1.1"])
}

/// That agrees on one of these.
pub(crate) fn acceptor_of(leaf: &Leaf, protocols: &[&[u8]]) -> TlsAcceptor {
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
    let mut config = builder.with_single_cert(vec![leaf.certificate()], key).unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// A head, up to and with its empty line; `None` if the connection ends before.
async fn head(stream: &mut TlsStream<TcpStream>) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// An application with the certificate `leaf`, spoken to as `tls` says, that answers each request with `answer`, and
/// after one that closes ends its connection.
async fn app(leaf: &Leaf, tls: &TargetTls, answer: impl Into<Vec<u8>>) -> (Upstream, All) {
    let upstream = Upstream::spoken_to(|target| target.over(Some(tls.clone()))).await;
    let (acceptor, listener, all) = (acceptor(leaf), upstream.listener(), All::default());
    let (records, answer) = (all.clone(), Arc::new(answer.into()));
    upstream.spawn(async move {
        let mut connections = JoinSet::new();
        let mut connection = 0;
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, seen, answer) = (acceptor.clone(), records.clone(), answer.clone());
            let of = connection;
            connection += 1;
            connections.spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                while let Some(head) = head(&mut stream).await {
                    let session = stream.get_ref().1;
                    let request = Seen {
                        connection: of,
                        handshake: session.handshake_kind().unwrap(),
                        name: session.server_name().map(str::to_owned),
                        protocol: session.alpn_protocol().map(<[u8]>::to_vec),
                        head,
                    };
                    seen.lock().unwrap().push(request);
                    stream.write_all(&answer).await.unwrap();
                    stream.flush().await.unwrap();
                    if answer.windows(5).any(|part| part == b"close") {
                        return drop(stream.shutdown().await);
                    }
                }
            });
        }
    });
    (upstream, all)
}

fn seen(all: &All) -> Vec<Seen> {
    all.lock().unwrap().clone()
}

#[tokio::test]
async fn a_request_goes_by_tls_to_who_is_asked_for_and_the_connection_is_kept() {
    let (ca, plane) = (Ca::new(), Plane::start());
    let (upstream, all) = app(&ca.leaf(&["app.test"]), &held_to(&ca, "app.test"), OK).await;
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    for _ in 0..3 {
        client.send(GET).await;
        assert_eq!(status(&client.head().await), 200);
    }
    let mut over_http2 = Http2::connect(&plane).await;
    assert_eq!(over_http2.get("http://a.test/").await.status(), 200);
    let seen = seen(&all);
    assert_eq!(seen.len(), 4);
    for request in &seen {
        assert_eq!(request.connection, 0, "another connection: {seen:?}");
        assert_eq!(request.name.as_deref(), Some("app.test"));
        assert_eq!(request.protocol.as_deref(), Some(&b"http/1.1"[..]));
        assert!(request.head.starts_with("GET / HTTP/1.1\r\nhost: a.test\r\n"), "{request:?}");
        assert_eq!(field(&request.head, "x-real-ip"), Some("127.0.0.1"));
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn bodies_of_many_records_come_whole_both_ways() {
    let (ca, plane) = (Ca::new(), Plane::start());
    let upstream = Upstream::spoken_to(|target| target.over(Some(held_to(&ca, "app.test")))).await;
    plane.route("a.test", &upstream);
    let body: Vec<u8> = (0..251).cycle().take(3_000_000).collect();
    let mut client = plane.connect().await;
    let (acceptor, listener) = (acceptor(&ca.leaf(&["app.test"])), upstream.listener());
    let expected = body.clone();
    let serving = async move {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        head(&mut stream).await.unwrap();
        let mut got = vec![0; expected.len()];
        stream.read_exact(&mut got).await.unwrap();
        assert!(got == expected, "the request's body is another one");
        let length = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", got.len());
        stream.write_all(length.as_bytes()).await.unwrap();
        stream.write_all(&got).await.unwrap();
        stream.flush().await.unwrap();
        stream
    };
    let asking = async {
        client
            .send(format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n", body.len()))
            .await;
        client.send(&body).await;
        assert_eq!(status(&client.head().await), 200);
        client.bytes(body.len()).await
    };
    let (_stream, got) = within(async { tokio::join!(serving, asking) }).await;
    assert!(got == body, "the response's body is another one");
    plane.shutdown().await;
}

#[tokio::test]
async fn who_is_not_who_it_has_to_be_is_asked_nothing_and_the_log_says_why() {
    let (ca, other) = (Ca::new(), Ca::new());
    let folder = tempfile::tempdir().unwrap();
    for (nth, (leaf, name, cause)) in [
        (signed_by_itself("app.test"), "app.test", "UnknownIssuer"),
        // One that calls itself as the true one does.
        (other.leaf(&["app.test"]), "app.test", "BadSignature"),
        (ca.leaf(&["other.test"]), "app.test", "not valid for name"),
        (ca.leaf(&["app.test"]), "127.0.0.1", "not valid for name"),
        (ca.leaf_for(&["app.test"], -2), "app.test", "expired"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = folder.path().join(nth.to_string());
        let log = AccessLogSink::File(path.clone());
        let plane = Plane::with(|settings: &mut ProxySettings| settings.access_log = log);
        let (upstream, all) = app(&leaf, &held_to(&ca, name), OK).await;
        plane.route("a.test", &upstream);
        let answer = plane.exchange(GET_ONCE).await;
        let told = (status(&answer), field(&answer, "lockgate-reason"));
        assert_eq!(told, (502, Some("upstream_tls_failed")), "{cause}: {answer}");
        assert!(!answer.contains("certificate") && !answer.contains("app.test"), "{answer}");
        assert!(seen(&all).is_empty(), "{cause}: {:?}", seen(&all));
        let metrics = plane.metrics();
        assert!(metrics.contains("lockgate_errors_total{reason=\"upstream_tls_failed\"} 1\n"), "{metrics}");
        plane.shutdown().await;
        let line = std::fs::read_to_string(&path).unwrap();
        assert!(line.contains("the TLS handshake failed: ") && line.contains(cause), "{cause}: {line}");
    }
}

#[tokio::test]
async fn an_address_is_a_name_and_any_certificate_will_do_where_that_is_said() {
    let (ca, plane) = (Ca::new(), Plane::start());
    let (by_address, _) = app(&ca.leaf(&["127.0.0.1"]), &held_to(&ca, "127.0.0.1"), OK).await;
    plane.route("address.test", &by_address);
    let anybody = ClientTls::new(Believed::Anybody).unwrap().to(ServerName::try_from("x.test").unwrap());
    let (by_nothing, all) = app(&Ca::new().leaf_for(&["other.test"], -2), &anybody, OK).await;
    plane.route("any.test", &by_nothing);
    for host in ["address.test", "any.test"] {
        let answer = plane.exchange(GET_ONCE.replace("a.test", host)).await;
        assert_eq!(status(&answer), 200, "{host}: {answer}");
    }
    assert_eq!(seen(&all)[0].name.as_deref(), Some("x.test"));
    plane.shutdown().await;
}

#[tokio::test]
async fn who_speaks_no_tls_gets_no_request() {
    let (ca, plane) = (Ca::new(), Plane::start());
    let upstream = Upstream::spoken_to(|target| target.over(Some(held_to(&ca, "app.test")))).await;
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send(GET).await;
    let mut app = upstream.accept().await;
    assert_eq!(app.bytes(3).await[..2], [0x16, 3], "no handshake");
    app.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
    let answer = client.head().await;
    assert_eq!((status(&answer), field(&answer, "lockgate-reason")), (502, Some("upstream_tls_failed")));
    let rest = app.rest().await;
    // More than three letters, which the keys of a handshake have by chance.
    assert!(!rest.contains("GET / ") && !rest.contains("HTTP/1.1"), "{rest:?}");
    plane.shutdown().await;
}

#[tokio::test]
async fn a_handshake_is_within_the_limit_of_connecting() {
    let ca = Ca::new();
    let plane = Plane::with(|settings| settings.limits.connect = LONGER);
    let upstream = Upstream::spoken_to(|target| target.over(Some(held_to(&ca, "app.test")))).await;
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send(GET).await;
    let mut app = upstream.accept().await;
    let answer = client.head().await;
    assert_eq!((status(&answer), field(&answer, "lockgate-reason")), (504, Some("connect_timeout")));
    assert_eq!(app.bytes(1).await, [0x16]);
    app.rest().await;
    plane.shutdown().await;
}

#[tokio::test]
async fn another_connection_goes_on_with_the_session_of_one_before() {
    let (ca, plane) = (Ca::new(), Plane::start());
    let closing = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let (upstream, all) = app(&ca.leaf(&["app.test"]), &held_to(&ca, "app.test"), closing).await;
    plane.route("a.test", &upstream);
    for _ in 0..2 {
        assert_eq!(status(&plane.exchange(GET_ONCE).await), 200);
    }
    let seen = seen(&all);
    assert_eq!((seen[0].connection, seen[0].handshake), (0, HandshakeKind::Full));
    assert_eq!((seen[1].connection, seen[1].handshake), (1, HandshakeKind::Resumed));
    plane.shutdown().await;
}

#[tokio::test]
async fn a_kept_connection_that_the_application_closed_is_not_used_again() {
    let (ca, plane) = (Ca::new(), Plane::start());
    let upstream = Upstream::spoken_to(|target| target.over(Some(held_to(&ca, "app.test")))).await;
    plane.route("a.test", &upstream);
    let (acceptor, listener) = (acceptor(&ca.leaf(&["app.test"])), upstream.listener());
    let mut client = plane.connect().await;
    for _ in 0..2 {
        // A request that may not be sent twice.
        client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n").await;
        let accepted = within(listener.accept()).await.unwrap().0;
        let mut stream = within(acceptor.accept(accepted)).await.unwrap();
        within(head(&mut stream)).await.unwrap();
        within(stream.write_all(OK.as_bytes())).await.unwrap();
        within(stream.shutdown()).await.unwrap();
        assert_eq!(status(&client.head().await), 200);
        // It is closed from the other side as well once its end has come.
        assert!(within(stream.read_u8()).await.is_err());
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn a_connection_that_is_not_needed_any_more_ends_in_order() {
    let ca = Ca::new();
    let plane = Plane::with(|settings| settings.limits.pool_idle = Duration::from_millis(50));
    let upstream = Upstream::spoken_to(|target| target.over(Some(held_to(&ca, "app.test")))).await;
    plane.route("a.test", &upstream);
    let (acceptor, listener) = (acceptor(&ca.leaf(&["app.test"])), upstream.listener());
    let mut client = plane.connect().await;
    client.send(GET).await;
    let accepted = within(listener.accept()).await.unwrap().0;
    let mut stream = within(acceptor.accept(accepted)).await.unwrap();
    within(head(&mut stream)).await.unwrap();
    within(stream.write_all(OK.as_bytes())).await.unwrap();
    assert_eq!(status(&client.head().await), 200);
    // Without a close_notify it would be an error.
    assert_eq!(within(stream.read(&mut [0; 1])).await.unwrap(), 0);
    plane.shutdown().await;
}

#[tokio::test]
async fn a_response_whose_end_is_not_told_by_tls_is_cut() {
    let (ca, plane) = (Ca::new(), Plane::start());
    let upstream = Upstream::spoken_to(|target| target.over(Some(held_to(&ca, "app.test")))).await;
    plane.route("a.test", &upstream);
    let (acceptor, listener) = (acceptor(&ca.leaf(&["app.test"])), upstream.listener());
    for is_told in [true, false] {
        let mut client = plane.connect().await;
        client.send(GET).await;
        let accepted = within(listener.accept()).await.unwrap().0;
        let mut stream = within(acceptor.accept(accepted)).await.unwrap();
        within(head(&mut stream)).await.unwrap();
        within(stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npart")).await.unwrap();
        within(stream.flush()).await.unwrap();
        client.head().await;
        assert_eq!(client.until("part\r\n").await, "4\r\npart\r\n");
        if is_told {
            within(stream.shutdown()).await.unwrap();
            assert_eq!(client.until("0\r\n\r\n").await, "0\r\n\r\n");
        } else {
            drop(stream.into_inner().0);
            client.closed().await;
        }
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn an_upgraded_connection_goes_on_by_tls() {
    let (ca, plane) = (Ca::new(), Plane::start());
    let upstream = Upstream::spoken_to(|target| target.over(Some(held_to(&ca, "app.test")))).await;
    plane.route("a.test", &upstream);
    let (acceptor, listener) = (acceptor(&ca.leaf(&["app.test"])), upstream.listener());
    let mut client = plane.connect().await;
    client.send([UPGRADE, "early"].concat()).await;
    let accepted = within(listener.accept()).await.unwrap().0;
    let mut stream = within(acceptor.accept(accepted)).await.unwrap();
    within(head(&mut stream)).await.unwrap();
    within(stream.write_all([SWITCHED, "first"].concat().as_bytes())).await.unwrap();
    assert_eq!(status(&client.head().await), 101);
    assert_eq!(client.bytes(5).await, b"first");
    let mut got = [0; 5];
    within(stream.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"early");
    client.finish().await;
    // The end of one direction, by TLS; the other goes on.
    assert_eq!(within(stream.read(&mut got)).await.unwrap(), 0);
    within(stream.write_all(b"last")).await.unwrap();
    within(stream.shutdown()).await.unwrap();
    assert_eq!(client.rest().await, "last");
    plane.shutdown().await;
}

#[tokio::test]
async fn a_proxy_header_comes_before_the_handshake() {
    let (ca, plane) = (Ca::new(), Plane::start());
    let how = |target: Target| target.over(Some(held_to(&ca, "app.test"))).told_by(Some(ProxyProtocol::V1));
    let upstream = Upstream::spoken_to(how).await;
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    let port = client.stream.local_addr().unwrap().port();
    client.send(GET).await;
    let mut accepted = within(upstream.listener().accept()).await.unwrap().0;
    let line = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {port} {}\r\n", plane.address.port());
    let mut got = vec![0; line.len()];
    within(accepted.read_exact(&mut got)).await.unwrap();
    assert_eq!(String::from_utf8(got).unwrap(), line);
    let mut stream = within(acceptor(&ca.leaf(&["app.test"])).accept(accepted)).await.unwrap();
    within(head(&mut stream)).await.unwrap();
    within(stream.write_all(OK.as_bytes())).await.unwrap();
    assert_eq!(status(&client.head().await), 200);
    plane.shutdown().await;
}

#[tokio::test]
async fn a_request_that_one_target_may_not_have_goes_to_another() {
    let (ca, plane) = (Ca::new(), Plane::start());
    let tls = held_to(&ca, "app.test");
    let (false_one, refused) = app(&Ca::new().leaf(&["app.test"]), &tls, OK).await;
    let (true_one, all) = app(&ca.leaf(&["app.test"]), &tls, OK).await;
    let gone = Target::new(InstanceId::generate(), unreachable().address, WORKERS).over(Some(tls));
    let targets = backend(&[&false_one.target, &true_one.target, &Arc::new(gone)]);
    plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &targets));
    let retried =
        |plane: &Plane| plane.metrics().contains("lockgate_retries_total{reason=\"upstream_tls_failed\"}");
    let mut answered = 0;
    while !retried(&plane) {
        let answer = plane.exchange(GET_ONCE).await;
        answered += usize::from(status(&answer) == 200);
    }
    assert_eq!((seen(&all).len(), seen(&refused).len()), (answered, 0));
    plane.shutdown().await;
}
