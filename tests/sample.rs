//! The sample app keeps what it promises to those who test with it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "tls/ca.rs"]
mod ca;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use lockgate::clock::SystemClock;
use lockgate::sample::{Health, Sample, SampleOptions, TlsFiles};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_util::sync::CancellationToken;

use ca::Ca;

/// A sample app inside the test's process.
struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinSet<()>,
}

async fn start(options: SampleOptions) -> Running {
    let sample = Sample::bind(options, Arc::new(SystemClock)).await.unwrap();
    let (address, stop) = (sample.address(), CancellationToken::new());
    let mut serving = JoinSet::new();
    serving.spawn(sample.serve(stop.clone()));
    Running { address, stop, serving }
}

fn version(version: &str) -> SampleOptions {
    SampleOptions { version: version.to_owned(), ..SampleOptions::default() }
}

/// One request on a connection of its own; the connection's task lives in `tasks`.
async fn send(
    tasks: &mut JoinSet<hyper::Result<()>>,
    address: SocketAddr,
    request: Request<Full<Bytes>>,
) -> hyper::Result<Response<Incoming>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tasks.spawn(connection);
    sender.send_request(request).await
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "sample.test").body(Full::default()).unwrap()
}

async fn body(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn an_echo_tells_the_digest_of_what_arrived_and_who_answered() {
    let app = start(version("v7")).await;
    let mut tasks = JoinSet::new();
    let request = Request::put("/echo?a=1").header("host", "sample.test").header("lockgate-generation", "42");
    let response = send(&mut tasks, app.address, request.body(Full::from("hello")).unwrap()).await.unwrap();
    assert_eq!(response.headers()["x-version"], "v7");
    assert_eq!(response.headers()["x-generation"], "42");
    assert_eq!(response.headers()["x-instance"].len(), 32);
    let echo: serde_json::Value = serde_json::from_str(&body(response).await).unwrap();
    assert_eq!(echo["digest"], blake3::hash(b"hello").to_hex().as_str());
    assert_eq!((&echo["length"], &echo["method"]), (&5.into(), &"PUT".into()));
    assert_eq!((&echo["path"], &echo["headers"]["host"][0]), (&"/echo?a=1".into(), &"sample.test".into()));
}

#[tokio::test]
async fn bytes_are_as_long_and_as_digested_as_announced() {
    let app = start(version("v1")).await;
    let mut tasks = JoinSet::new();
    for (path, framed) in [("/bytes?n=40000", true), ("/bytes?n=40000&chunked=1&ms=20", false)] {
        let response = send(&mut tasks, app.address, get(path)).await.unwrap();
        assert_eq!(response.headers().contains_key("content-length"), framed, "{path}");
        let digest = response.headers()["x-digest"].clone();
        let content = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(content.len(), 40000);
        assert_eq!(digest, blake3::hash(&content).to_hex().as_str());
    }
}

#[tokio::test]
async fn a_status_is_answered_as_asked_and_health_as_the_options_say() {
    let app = start(SampleOptions { health: Health::Never, ..version("v1") }).await;
    let mut tasks = JoinSet::new();
    for (path, status) in [
        ("/status/418", 418),
        ("/status/204", 204),
        ("/status/101", 400),
        ("/nowhere", 404),
        ("/health", 503),
    ] {
        let response = send(&mut tasks, app.address, get(path)).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{path}");
    }
}

#[tokio::test]
async fn a_drop_is_a_reset_and_not_an_answer() {
    let app = start(version("v1")).await;
    let mut tasks = JoinSet::new();
    let error = send(&mut tasks, app.address, get("/drop")).await.unwrap_err();
    assert!(lockgate::error::chain(&error).contains("reset"), "{error:?}");
}

#[tokio::test]
async fn instances_that_share_a_record_file_count_a_submission_together() {
    let directory = tempfile::tempdir().unwrap();
    let file = Some(directory.path().join("record"));
    let first = start(SampleOptions { record_file: file.clone(), ..version("v1") }).await;
    let second = start(SampleOptions { record_file: file, ..version("v2") }).await;
    let mut tasks = JoinSet::new();
    for (address, id) in [(first.address, "run-1"), (second.address, "run-1"), (second.address, "other-1")] {
        let request = Request::post("/submit").header("x-verify-id", id).body(Full::from("x")).unwrap();
        assert_eq!(send(&mut tasks, address, request).await.unwrap().status(), StatusCode::OK);
    }
    let report = body(send(&mut tasks, first.address, get("/record?run=run-")).await.unwrap()).await;
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["ids"], serde_json::json!({ "run-1": 2 }));
    assert_eq!(report["shared"], true);
}

#[tokio::test]
async fn stopping_lets_the_request_in_flight_finish_and_tells_a_websocket_to_go() {
    // An address of its own, so that nobody else listens where it did: another test may get its port.
    let host = Ipv4Addr::new(127, 0, 0, 77).into();
    let mut app = start(SampleOptions { host, ..version("v1") }).await;
    let mut tasks = JoinSet::new();
    let stream = TcpStream::connect(app.address).await.unwrap();
    let (mut socket, _) =
        tokio_tungstenite::client_async(format!("ws://{}/ws", app.address), stream).await.unwrap();
    for (said, heard) in [("hello", "v1"), ("again", "again")] {
        socket.send(Message::text(said)).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(heard));
    }
    // The head is here, so the request is in flight when the stop comes.
    let slow = send(&mut tasks, app.address, get("/bytes?n=100000&ms=200")).await.unwrap();
    app.stop.cancel();
    assert_eq!(slow.into_body().collect().await.unwrap().to_bytes().len(), 100_000);
    let Some(Ok(Message::Close(Some(frame)))) = socket.next().await else { panic!("no close frame") };
    assert_eq!(frame.code, CloseCode::Away);
    while socket.next().await.is_some() {}
    app.serving.join_next().await.unwrap().unwrap();
    assert!(TcpStream::connect(app.address).await.is_err(), "it still accepts");
}

/// A connection by TLS that offers one protocol.
async fn by_tls(address: SocketAddr, ca: &Ca, protocol: &str) -> TlsStream<TcpStream> {
    let mut config = ca.client();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("sample.test").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol.as_bytes()));
    stream
}

#[tokio::test]
async fn with_a_certificate_it_speaks_tls_alone_and_http2_where_that_is_agreed_on() {
    let (folder, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let (cert, key) = ca.leaf(&["sample.test"]).write(folder.path(), "sample");
    let app = start(SampleOptions { tls: Some(TlsFiles { cert, key }), ..version("v1") }).await;
    let mut tasks = JoinSet::new();
    let stream = TokioIo::new(by_tls(app.address, &ca, "http/1.1").await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tasks.spawn(connection);
    assert_eq!(sender.send_request(get("/")).await.unwrap().headers()["x-version"], "v1");

    let (sender, connection) = h2::client::handshake(by_tls(app.address, &ca, "h2").await).await.unwrap();
    let mut http2 = JoinSet::new();
    http2.spawn(connection);
    let request = Request::get("https://sample.test/").body(()).unwrap();
    let (response, _) = sender.ready().await.unwrap().send_request(request, true).unwrap();
    assert_eq!(response.await.unwrap().headers()["x-version"], "v1");

    assert!(send(&mut tasks, app.address, get("/")).await.is_err(), "it answers without TLS");
}

#[tokio::test]
async fn without_the_files_of_its_certificate_it_does_not_start() {
    let (folder, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let (cert, key) = ca.leaf(&["sample.test"]).write(folder.path(), "sample");
    let (_, others) = ca.leaf(&["sample.test"]).write(folder.path(), "other");
    let nowhere = PathBuf::from("/nowhere/sample.pem");
    for (cert, key, told) in [
        (nowhere.clone(), key.clone(), "cannot read /nowhere/sample.pem"),
        (cert.clone(), nowhere, "cannot read /nowhere/sample.pem"),
        (key, cert.clone(), "cannot read"),
        (cert, others, "cannot be used"),
    ] {
        let options = SampleOptions { tls: Some(TlsFiles { cert, key }), ..version("v1") };
        let failed = Sample::bind(options, Arc::new(SystemClock)).await.unwrap_err();
        let text = lockgate::error::chain(&failed);
        assert!(text.contains("cannot speak TLS") && text.contains(told), "{text}");
        assert_eq!(failed.exit_code(), 1);
    }
}
