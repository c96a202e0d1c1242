//! What is told of requests in spans, and how they get to a collector over real sockets.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, Response};
use lockgate::clock::{Clock, SystemClock};
use lockgate::proxy::ProxySettings;
use lockgate::routing::tls::{Believed, ClientTls};
use lockgate::telemetry::{BackendStats, ControlStats, DeploymentLabels, Present};
use lockgate::traces::{self, Traces, TracesSettings};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::ca::Ca;
use crate::support::{
    GET, OK, Plane, Upstream, WORKERS, Wire, backend, field, pattern, status, unreachable, within,
};
use crate::support_h2c::App;
use crate::support_http2::Http2;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A collector answers so where a test says nothing else.
const TAKEN: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";

/// Where a test plays a collector, which closes each connection after its answer.
struct Collector {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Export>>>,
    /// What it answers to the next exports, the next first; an empty one is none at all.
    answers: Arc<Mutex<VecDeque<String>>>,
    _tasks: JoinSet<()>,
}

/// What a collector got.
#[derive(Clone, Debug)]
struct Export {
    at: Instant,
    head: String,
    body: Value,
}

/// A data plane that records, and what exports it.
struct Tracing {
    plane: Plane,
    collector: Collector,
    traces: Traces,
    stats: Arc<ControlStats>,
    stop: CancellationToken,
    exporter: JoinSet<()>,
}

impl Collector {
    async fn start() -> Self {
        Self::over(None).await
    }

    async fn over(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, answers) =
            (Arc::<Mutex<Vec<Export>>>::default(), Arc::<Mutex<VecDeque<String>>>::default());
        let (seeing, answering) = (Arc::clone(&seen), Arc::clone(&answers));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut unanswered = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (mut reader, mut writer): (
                    Box<dyn tokio::io::AsyncRead + Send + Unpin>,
                    Box<dyn tokio::io::AsyncWrite + Send + Unpin>,
                ) = match &tls {
                    Some(tls) => {
                        let Ok(stream) = tls.accept(stream).await else { continue };
                        let (reader, writer) = tokio::io::split(stream);
                        (Box::new(reader), Box::new(writer))
                    }
                    None => {
                        let (reader, writer) = stream.into_split();
                        (Box::new(reader), Box::new(writer))
                    }
                };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = reader.read_u8().await else { break };
                    head.push(byte);
                }
                let head = String::from_utf8(head).unwrap();
                let Some(length) = field(&head, "content-length") else { continue };
                let mut body = vec![0; length.parse().unwrap()];
                reader.read_exact(&mut body).await.unwrap();
                let body = serde_json::from_slice(&body).unwrap();
                seeing.lock().unwrap().push(Export { at: SystemClock.now(), head, body });
                let answer = answering.lock().unwrap().pop_front();
                let answer = answer.unwrap_or_else(|| TAKEN.to_owned());
                if answer.is_empty() {
                    unanswered.push((reader, writer));
                } else if writer.write_all(answer.as_bytes()).await.is_ok() {
                    // Whoever asked may not wait any more.
                    let _or_gone = writer.shutdown().await;
                }
            }
        });
        Self { address, seen, answers, _tasks: tasks }
    }

    fn answer(&self, answers: impl IntoIterator<Item = impl Into<String>>) {
        self.answers.lock().unwrap().extend(answers.into_iter().map(Into::into));
    }

    fn exports(&self) -> Vec<Export> {
        self.seen.lock().unwrap().clone()
    }

    /// All spans that it got, as often as it got them.
    fn spans(&self) -> Vec<Value> {
        self.exports().iter().flat_map(Export::spans).collect()
    }
}

impl Export {
    fn spans(&self) -> Vec<Value> {
        let scope = &self.body["resourceSpans"][0]["scopeSpans"][0];
        scope["spans"].as_array().unwrap_or_else(|| panic!("{self:?}")).clone()
    }
}

impl Tracing {
    async fn start() -> Self {
        Self::with(|_| {}, |_| {}).await
    }

    async fn with(change: impl FnOnce(&mut TracesSettings), plane: impl FnOnce(&mut ProxySettings)) -> Self {
        let collector = Collector::start().await;
        Self::to(collector, change, plane)
    }

    fn to(
        collector: Collector,
        change: impl FnOnce(&mut TracesSettings),
        plane: impl FnOnce(&mut ProxySettings),
    ) -> Self {
        let mut settings = settings(collector.address);
        change(&mut settings);
        let stats = Arc::new(ControlStats::default());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let (traces, exporter) = traces::open(Some(settings), &clock, &stats);
        let plane = Plane::with(|settings| {
            settings.traces = Some(traces.clone());
            plane(settings);
        });
        let (stop, mut exporting) = (CancellationToken::new(), JoinSet::new());
        exporting.spawn(exporter.keep(stop.clone()));
        Self { plane, collector, traces, stats, stop, exporter: exporting }
    }

    /// Waits for so many spans.
    async fn collected(&self, count: usize) -> Vec<Value> {
        self.plane.settle(|| self.collector.spans().len() >= count).await;
        self.collector.spans()
    }

    /// How many spans ended so.
    fn counted(&self, result: &str) -> u64 {
        let text = self.plane.plane.telemetry().render_with(&self.stats, &Present::default());
        let series = format!("lockgate_trace_spans_total{{result=\"{result}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&series));
        line.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
    }

    /// All that the collector got, once everything has ended.
    async fn end(mut self) -> Vec<Value> {
        self.plane.shutdown().await;
        self.stop.cancel();
        within(self.exporter.join_next()).await.unwrap().unwrap();
        self.collector.spans()
    }
}

fn settings(collector: SocketAddr) -> TracesSettings {
    TracesSettings {
        endpoint: format!("http://{collector}/v1/traces").parse().unwrap(),
        tls: None,
        headers: [("x-key".parse().unwrap(), HeaderValue::from_static("s3cret"))].into_iter().collect(),
        service: "edge".to_owned(),
        sample_ratio: 1.0,
        timeout: Duration::from_secs(20),
        interval: Duration::from_millis(10),
        queue: 1000,
    }
}

/// What is said of a span under `key`, as text.
fn said<'a>(span: &'a Value, key: &str) -> Option<&'a str> {
    let attributes = span["attributes"].as_array().unwrap();
    let mut found = attributes.iter().filter(|attribute| attribute["key"] == key);
    let value = &found.next()?["value"];
    assert!(found.next().is_none(), "{key} stands twice: {span}");
    value.get("stringValue").or_else(|| value.get("intValue"))?.as_str()
}

fn all_said(span: &Value, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        assert_eq!(said(span, key), Some(*value), "{key}: {span:#}");
    }
}

fn id<'a>(span: &'a Value, key: &str) -> &'a str {
    span[key].as_str().unwrap_or_else(|| panic!("no {key}: {span:#}"))
}

fn nanos(span: &Value, key: &str) -> u128 {
    id(span, key).parse().unwrap()
}

const SERVER: u64 = 2;
const CLIENT: u64 = 3;
const OF_ERROR: u64 = 2;

/// The spans of requests, and of attempts, in the order in which they ended.
fn by_kind(spans: &[Value]) -> (Vec<&Value>, Vec<&Value>) {
    let of = |kind: u64| spans.iter().filter(|span| span["kind"] == kind).collect::<Vec<_>>();
    assert_eq!(of(SERVER).len() + of(CLIENT).len(), spans.len());
    (of(SERVER), of(CLIENT))
}

fn traced(traceparent: &str) -> String {
    GET.replace("\r\n\r\n", &format!("\r\ntraceparent: {traceparent}\r\ntracestate: a=1\r\n\r\n"))
}

#[tokio::test]
async fn j3_a_request_is_a_span_and_its_attempt_is_one_below_it() {
    let tracing = Tracing::start().await;
    let upstream = Upstream::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let labels = ["web", "production", "dep_1"].map(str::to_owned);
    let [app, environment, deployment] = labels;
    let labels = DeploymentLabels { app, environment, deployment };
    let stats = Arc::new(BackendStats::for_deployment(labels, WORKERS));
    let backend = Arc::new(lockgate::routing::Backend::new([upstream.target.clone()].into(), stats));
    tracing.plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &backend));
    let before = SystemClock.wall().as_nanosecond().unsigned_abs();
    let answer = tracing
        .plane
        .exchange(
            "POST /x%20y?token=canary HTTP/1.1\r\nHost: a.test:8080\r\nUser-Agent: \"me\"\r\nContent-Length: 3\r\n\
             Cookie: canary\r\nAuthorization: canary\r\nConnection: close\r\n\r\nabc",
        )
        .await;
    let spans = tracing.collected(2).await;
    let after = SystemClock.wall().as_nanosecond().unsigned_abs();
    let export = tracing.collector.exports().remove(0);
    assert!(export.head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{}", export.head);
    for (name, value) in [("content-type", "application/json"), ("x-key", "s3cret")] {
        assert_eq!(field(&export.head, name), Some(value), "{}", export.head);
    }
    assert_eq!(field(&export.head, "host"), Some(tracing.collector.address.to_string().as_str()));
    let text = export.body.to_string();
    assert!(!text.contains("canary"), "{text}");
    let resource = &export.body["resourceSpans"][0]["resource"];
    all_said(resource, &[("service.name", "edge"), ("service.version", env!("CARGO_PKG_VERSION"))]);
    let (servers, clients) = by_kind(&spans);
    let ([server], [client]) = (&servers[..], &clients[..]) else { panic!("{spans:#?}") };
    all_said(
        server,
        &[
            ("http.request.method", "POST"),
            ("url.scheme", "http"),
            ("url.path", "/x%20y"),
            ("server.address", "a.test"),
            ("server.port", "8080"),
            ("client.address", "127.0.0.1"),
            ("network.protocol.version", "1.1"),
            ("http.response.status_code", "200"),
            ("http.request.body.size", "3"),
            ("http.response.body.size", "2"),
            ("user_agent.original", "\"me\""),
            ("lockgate.app", "web"),
            ("lockgate.environment", "production"),
            ("lockgate.deployment", "dep_1"),
            ("lockgate.request_id", field(&answer, "x-request-id").unwrap()),
        ],
    );
    let target = &upstream.target;
    all_said(
        client,
        &[
            ("http.request.method", "POST"),
            ("url.full", &format!("http://{}/x%20y", target.address)),
            ("server.address", "127.0.0.1"),
            ("server.port", &target.address.port().to_string()),
            ("network.protocol.version", "1.1"),
            ("http.response.status_code", "200"),
            ("lockgate.instance", &target.id.to_string()),
        ],
    );
    for span in [server, client] {
        assert_eq!((&span["name"], &span["status"]["code"]), (&"POST".into(), &0.into()));
        assert_eq!((said(span, "error.type"), said(span, "lockgate.reason")), (None, None));
        assert_eq!(said(span, "http.request.resend_count"), None);
    }
    assert_eq!(server.get("parentSpanId"), None);
    assert_eq!(id(client, "parentSpanId"), id(server, "spanId"));
    assert_eq!(id(client, "traceId"), id(server, "traceId"));
    let upstream_got = format!("00-{}-{}-01", id(server, "traceId"), id(client, "spanId"));
    assert_eq!(field(&upstream.heads()[0], "traceparent"), Some(upstream_got.as_str()));
    let (start, end) = ("startTimeUnixNano", "endTimeUnixNano");
    let times = [nanos(server, start), nanos(client, start), nanos(client, end), nanos(server, end)];
    assert!(before <= times[0] && times.is_sorted() && times[3] <= after, "{before} {times:?} {after}");
    tracing.plane.settle(|| tracing.counted("exported") == 2).await;
    tracing.end().await;
}

#[tokio::test]
async fn j3_g2_each_try_is_a_span_of_its_own() {
    let tracing = Tracing::start().await;
    let (dead, well) = (unreachable(), Upstream::answering(OK).await);
    let both = backend(&[&dead, &well.target]);
    tracing.plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &both));
    let mut client = tracing.plane.connect().await;
    while !tracing.plane.metrics().contains("lockgate_retries_total{reason=\"connect_failed\"} 1\n") {
        client.send(GET).await;
        assert_eq!(status(&client.head().await), 200);
    }
    drop(client);
    let spans = tracing.end().await;
    let (servers, clients) = by_kind(&spans);
    let retried = servers.last().unwrap();
    let tries: Vec<_> =
        clients.into_iter().filter(|span| span["parentSpanId"] == retried["spanId"]).collect();
    let [first, second] = tries[..] else { panic!("{spans:#?}") };
    all_said(first, &[("error.type", "connect_failed"), ("lockgate.instance", &dead.id.to_string())]);
    all_said(
        second,
        &[("http.request.resend_count", "1"), ("lockgate.instance", &well.target.id.to_string())],
    );
    assert_eq!((&first["status"]["code"], &second["status"]["code"]), (&OF_ERROR.into(), &0.into()));
    assert_eq!((said(first, "http.response.status_code"), &retried["status"]["code"]), (None, &0.into()));
    assert!(nanos(first, "endTimeUnixNano") <= nanos(second, "startTimeUnixNano"));
    let last = well.heads().pop().unwrap();
    assert_eq!(&field(&last, "traceparent").unwrap()[36..52], id(second, "spanId"));
}

#[tokio::test]
async fn j3_a_kept_connection_that_had_ended_is_told_with_the_attempt() {
    let tracing = Tracing::start().await;
    let upstream = Upstream::start().await;
    tracing.plane.route("a.test", &upstream);
    tracing.plane.lose_kept(&upstream).await;
    let spans = tracing.end().await;
    let (_, clients) = by_kind(&spans);
    let stale: Vec<_> = clients.iter().map(|span| said(span, "lockgate.stale_connections")).collect();
    assert_eq!(stale, [None, Some("1")]);
}

#[tokio::test]
async fn j3_http2_is_told_on_both_sides() {
    let tracing = Tracing::start().await;
    let mut app = App::behind(&tracing.plane, "a.test").await;
    let mut client = Http2::connect(&tracing.plane).await;
    let request = Request::get("http://a.test/x?y").header("user-agent", "me").body(()).unwrap();
    let (answering, _) = client.begin(request, false).await;
    let mut call = app.call().await;
    let seen = call.request.headers()["traceparent"].to_str().unwrap().to_owned();
    call.respond.send_response(Response::builder().status(503).body(()).unwrap(), true).unwrap();
    assert_eq!(within(answering).await.unwrap().status(), 503);
    drop(client);
    let spans = tracing.end().await;
    let (servers, clients) = by_kind(&spans);
    let ([server], [client]) = (&servers[..], &clients[..]) else { panic!("{spans:#?}") };
    for span in [server, client] {
        all_said(span, &[("network.protocol.version", "2"), ("http.response.status_code", "503")]);
        all_said(span, &[("error.type", "503")]);
        assert_eq!(span["status"]["code"], OF_ERROR);
    }
    all_said(server, &[("url.path", "/x"), ("server.address", "a.test"), ("server.port", "80")]);
    assert_eq!(&seen[36..52], id(client, "spanId"));
}

#[tokio::test]
async fn j3_f3_the_span_of_a_websocket_ends_with_its_tunnel() {
    let tracing = Tracing::start().await;
    let upstream = Upstream::start().await;
    tracing.plane.route("a.test", &upstream);
    let mut client = tracing.plane.connect().await;
    client.send("GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n").await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n").await;
    client.head().await;
    client.send("ping").await;
    app.bytes(4).await;
    // Another request has ended and been exported by now, and that one has not.
    tracing.plane.exchange("GET / HTTP/1.1\r\nHost: none.test\r\nConnection: close\r\n\r\n").await;
    let spans = tracing.collected(1).await;
    assert!(spans.len() == 1 && said(&spans[0], "server.address") == Some("none.test"), "{spans:#?}");
    client.finish().await;
    app.closed().await;
    app.finish().await;
    client.closed().await;
    let spans = tracing.end().await;
    let (servers, clients) = by_kind(&spans[1..]);
    assert_eq!((servers.len(), clients.len()), (1, 1), "{spans:#?}");
    for span in &spans[1..] {
        all_said(span, &[("http.response.status_code", "101")]);
        assert_eq!((&span["status"]["code"], said(span, "error.type")), (&0.into(), None));
    }
}

/// Whoever chooses the id would choose whether it is recorded, and could fill the queue.
#[tokio::test]
async fn j3_a_stranger_does_not_choose_what_is_recorded_by_an_id() {
    const ASKED: usize = 40;
    for lower in ["0000000000000001", "ffffffffffffffff"] {
        let tracing = Tracing::with(|settings| settings.sample_ratio = 0.5, |_| {}).await;
        let upstream = Upstream::answering(OK).await;
        tracing.plane.route("a.test", &upstream);
        let mut client = tracing.plane.connect().await;
        for _ in 0..ASKED {
            client.send(traced(&format!("00-0000000000000000{lower}-{PARENT}-01"))).await;
            client.head().await;
        }
        drop(client);
        let recorded = tracing.end().await.len() / 2;
        assert!((1..ASKED).contains(&recorded), "{lower}: {recorded} of {ASKED}");
    }
}

/// `{sample ratio, a trusted caller?, what the caller says; whether it is recorded}`
const SAMPLED: &[(f64, bool, Option<&str>, bool)] = &[
    (1.0, false, None, true),
    (0.0, false, None, false),
    // A stranger decides nothing, but the trace is his.
    (1.0, false, Some("00"), true),
    (0.0, false, Some("01"), false),
    (1.0, true, Some("00"), false),
    (0.0, true, Some("01"), true),
    (0.0, true, None, false),
];

#[tokio::test]
async fn j3_d3_whom_to_believe_decides_and_the_trace_does_otherwise() {
    for (ratio, is_trusted, flags, is_recorded) in SAMPLED {
        let case = format!("{ratio} {is_trusted} {flags:?}");
        let trust = |settings: &mut ProxySettings| {
            if *is_trusted {
                settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
            }
        };
        let tracing = Tracing::with(|settings| settings.sample_ratio = *ratio, trust).await;
        let upstream = Upstream::answering(OK).await;
        tracing.plane.route("a.test", &upstream);
        let sent = flags.map(|flags| traced(&format!("00-{TRACE}-{PARENT}-{flags}")));
        let mut client = tracing.plane.connect().await;
        client.send(sent.unwrap_or_else(|| GET.to_owned())).await;
        client.head().await;
        drop(client);
        let head = upstream.heads().remove(0);
        let passed = field(&head, "traceparent").unwrap().to_owned();
        assert!(passed.ends_with(if *is_recorded { "-01" } else { "-00" }), "{case}: {passed}");
        let spans = tracing.end().await;
        assert_eq!(spans.len(), if *is_recorded { 2 } else { 0 }, "{case}: {spans:#?}");
        if flags.is_none() {
            continue;
        }
        assert_eq!((&passed[3..35], field(&head, "tracestate")), (TRACE, Some("a=1")), "{case}");
        assert_ne!(&passed[36..52], PARENT, "{case}");
        for span in &spans {
            assert_eq!((id(span, "traceId"), id(span, "traceState")), (TRACE, "a=1"), "{case}");
        }
        if let (Some(server), _) = (by_kind(&spans).0.first(), ()) {
            assert_eq!((id(server, "parentSpanId"), &server["flags"]), (PARENT, &0x301.into()), "{case}");
        }
    }
}

#[tokio::test]
async fn j3_e4_how_a_request_failed_is_told() {
    let tracing = Tracing::start().await;
    let upstream = Upstream::start().await;
    let dead = backend(&[&unreachable()]);
    tracing.plane.route("a.test", &upstream);
    tracing.plane.routing.publish(|edit| edit.route(&pattern("dead.test"), "/", &dead));
    for host in ["none.test", "dead.test"] {
        let request = format!("BREW / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        tracing.plane.exchange(request).await;
    }
    let bad = tracing.plane.exchange("GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n").await;
    assert_eq!(status(&bad), 400);
    // It leaves before there is an answer, and the next one is cut in the middle of it.
    let mut client = tracing.plane.connect().await;
    client.send(GET).await;
    let mut app = upstream.accept().await;
    app.head().await;
    client.reset();
    tracing.plane.settle(|| upstream.target.gate.in_flight().requests == 0).await;
    let mut client = tracing.plane.connect().await;
    client.send(GET).await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
    drop(app);
    client.rest().await;
    let spans = tracing.end().await;
    let (servers, clients) = by_kind(&spans);
    let told = |span: &Value| {
        let of = |key| said(span, key).map(str::to_owned);
        (
            of("http.response.status_code").unwrap_or_default(),
            of("lockgate.reason").unwrap_or_default(),
            of("error.type").unwrap_or_default(),
            span["status"]["code"] == OF_ERROR,
        )
    };
    let told_of: Vec<_> = servers.iter().map(|span| told(span)).collect();
    let expected = |status: &str, reason: &str, error: &str| {
        (status.to_owned(), reason.to_owned(), error.to_owned(), !error.is_empty())
    };
    assert_eq!(
        told_of,
        [
            expected("404", "no_route", ""),
            expected("502", "connect_failed", "connect_failed"),
            expected("400", "bad_request", ""),
            expected("", "client_abort", ""),
            expected("200", "upstream_truncated", "upstream_truncated"),
        ]
    );
    let told_of: Vec<_> = clients.iter().map(|span| said(span, "error.type").unwrap()).collect();
    assert_eq!(told_of, ["connect_failed", "client_abort", "upstream_truncated"]);
    assert_eq!(servers[0]["name"], "HTTP");
    all_said(servers[0], &[("http.request.method", "_OTHER"), ("http.request.method_original", "BREW")]);
}

/// `ask` for so many requests, one after the other, on one connection.
async fn ask(plane: &Plane, requests: usize) {
    let mut client = plane.connect().await;
    for _ in 0..requests {
        client.send(GET).await;
        assert_eq!(status(&client.head().await), 200);
    }
}

/// And so it is with one that takes the connection and never answers.
#[tokio::test]
async fn j3_a_collector_that_is_away_holds_nothing_up_and_what_has_no_room_is_counted() {
    for is_hung in [false, true] {
        let nobody = unreachable().address;
        let elsewhere = |settings: &mut TracesSettings| {
            settings.queue = 100;
            if !is_hung {
                settings.endpoint = format!("http://{nobody}/v1/traces").parse().unwrap();
            }
        };
        let tracing = Tracing::with(elsewhere, |_| {}).await;
        tracing.collector.answer([""; 100]);
        let upstream = Upstream::answering(OK).await;
        tracing.plane.route("a.test", &upstream);
        while tracing.counted("dropped") < 40 {
            within(ask(&tracing.plane, 10)).await;
        }
        assert_eq!(tracing.counted("exported"), 0);
        let (plane, stop, mut exporter, stats) =
            (tracing.plane, tracing.stop, tracing.exporter, tracing.stats);
        let telemetry = plane.plane.telemetry().clone();
        plane.shutdown().await;
        stop.cancel();
        if is_hung {
            // Whoever ends it gives it only so long.
            assert!(tokio::time::timeout(Duration::from_millis(100), exporter.join_next()).await.is_err());
        } else {
            within(exporter.join_next()).await.unwrap().unwrap();
            let text = telemetry.render_with(&stats, &Present::default());
            let unsent = text.lines().find(|line| line.contains("{result=\"unsent\"} ")).unwrap();
            assert!(!unsent.ends_with(" 0"), "{unsent}");
        }
    }
}

#[tokio::test]
async fn j3_what_a_collector_cannot_take_now_is_sent_again_when_it_wants_it() {
    for code in [429, 502, 503, 504] {
        let tracing = Tracing::start().await;
        let busy = format!("HTTP/1.1 {code} X\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n");
        tracing.collector.answer([busy]);
        let upstream = Upstream::answering(OK).await;
        tracing.plane.route("a.test", &upstream);
        ask(&tracing.plane, 1).await;
        tracing.plane.settle(|| tracing.counted("exported") == 2).await;
        let exports = tracing.collector.exports();
        let [first, second] = &exports[..] else { panic!("{exports:#?}") };
        assert_eq!(first.spans(), second.spans(), "{code}");
        let waited = second.at - first.at;
        assert!(waited >= Duration::from_millis(950), "{code}: {waited:?}");
        tracing.end().await;
    }
}

#[tokio::test]
async fn j3_a_collector_that_does_not_answer_in_time_is_asked_again() {
    let short = |settings: &mut TracesSettings| settings.timeout = Duration::from_millis(50);
    let tracing = Tracing::with(short, |_| {}).await;
    tracing.collector.answer([""]);
    let upstream = Upstream::answering(OK).await;
    tracing.plane.route("a.test", &upstream);
    ask(&tracing.plane, 1).await;
    tracing.plane.settle(|| tracing.counted("exported") == 2).await;
    // On a busy machine the second answer may be late as well.
    let exports = tracing.collector.exports();
    assert!(exports.len() > 1, "{exports:#?}");
    assert!(exports.iter().all(|export| export.spans() == exports[0].spans()), "{exports:#?}");
    tracing.end().await;
}

/// Fixed fault: the collector had it, and got it a second time.
#[tokio::test]
async fn j3_what_is_under_way_at_the_end_is_waited_for_and_not_sent_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tracing = Tracing::with(|traces| *traces = settings(address), |_| {}).await;
    let upstream = Upstream::answering(OK).await;
    tracing.plane.route("a.test", &upstream);
    ask(&tracing.plane, 1).await;
    let mut asked = Wire::new(within(listener.accept()).await.unwrap().0);
    asked.head().await;
    tracing.stop.cancel();
    assert!(tokio::time::timeout(Duration::from_millis(100), listener.accept()).await.is_err());
    asked.send(TAKEN).await;
    drop(asked);
    within(tracing.exporter.join_next()).await.unwrap().unwrap();
    assert_eq!((tracing.counted("exported"), tracing.counted("unsent")), (2, 0));
    tracing.plane.shutdown().await;
}

#[tokio::test]
async fn j3_what_a_collector_refuses_is_lost_and_counted_and_not_sent_again() {
    let tracing = Tracing::start().await;
    let partial = r#"{"partialSuccess":{"rejectedSpans":"1","errorMessage":"too old"}}"#;
    tracing.collector.answer([
        "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_owned(),
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{partial}", partial.len()),
    ]);
    let upstream = Upstream::answering(OK).await;
    tracing.plane.route("a.test", &upstream);
    for (exported, refused) in [(0, 2), (1, 3), (3, 3)] {
        ask(&tracing.plane, 1).await;
        tracing
            .plane
            .settle(|| tracing.counted("exported") + tracing.counted("refused") == exported + refused)
            .await;
        assert_eq!((tracing.counted("exported"), tracing.counted("refused")), (exported, refused));
    }
    assert_eq!(tracing.collector.exports().len(), 3);
    tracing.end().await;
}

#[tokio::test]
async fn j3_a_collector_by_https_has_to_be_who_it_should_be() {
    for is_believed in [true, false] {
        let (ca, other) = (Ca::new(), Ca::new());
        let leaf = ca.leaf(&["localhost"]);
        let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
        let config = builder.with_single_cert(vec![leaf.certificate()], key).unwrap();
        let collector = Collector::over(Some(TlsAcceptor::from(Arc::new(config)))).await;
        let port = collector.address.port();
        let pem = if is_believed { &ca.pem } else { &other.pem };
        let believed = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let secure = |settings: &mut TracesSettings| {
            settings.endpoint = format!("https://localhost:{port}/v1/traces").parse().unwrap();
            settings.tls = Some(ClientTls::new(Believed::Authorities(vec![believed])).unwrap());
        };
        let tracing = Tracing::to(collector, secure, |_| {});
        let upstream = Upstream::answering(OK).await;
        tracing.plane.route("a.test", &upstream);
        ask(&tracing.plane, 1).await;
        assert_eq!(tracing.end().await.len(), if is_believed { 2 } else { 0 });
    }
}

#[tokio::test]
async fn j3_other_settings_hold_at_once() {
    let tracing = Tracing::start().await;
    let upstream = Upstream::answering(OK).await;
    tracing.plane.route("a.test", &upstream);
    // It wants to be left alone for long: another one is not what it spoke for.
    tracing.collector.answer(["HTTP/1.1 503 X\r\nRetry-After: 500\r\nContent-Length: 0\r\n\r\n"]);
    ask(&tracing.plane, 1).await;
    tracing.plane.settle(|| !tracing.collector.exports().is_empty()).await;
    let other = Collector::start().await;
    tracing.traces.configure(Some(settings(other.address)));
    tracing.plane.settle(|| other.spans().len() == 2).await;

    tracing.traces.configure(None);
    ask(&tracing.plane, 1).await;
    let passed = field(&upstream.heads()[1], "traceparent").unwrap().to_owned();
    assert!(passed.ends_with("-01"), "as where nothing is ever exported: {passed}");
    tracing.traces.configure(Some(settings(other.address)));
    ask(&tracing.plane, 1).await;
    tracing.plane.settle(|| other.spans().len() == 4).await;
    assert_eq!(other.spans()[2]["traceId"], field(&upstream.heads()[2], "traceparent").unwrap()[3..35]);
    // The exporter counts when it has read the answer, a moment after the collector has the spans.
    tracing.plane.settle(|| tracing.counted("exported") == 4).await;
    assert_eq!(tracing.counted("unsent"), 0);
    tracing.end().await;
}
