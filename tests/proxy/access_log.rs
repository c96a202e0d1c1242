//! What the access log tells of a request.

use std::time::Duration;

use lockgate::proxy::{AccessLogFormat, AccessLogSink, Limits};
use lockgate::routing::backend::Order;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{GET, OK, Plane, Upstream, backend, field, pattern, status, unreachable};

/// A data plane that logs into a directory.
struct Logging {
    plane: Plane,
    directory: TempDir,
}

impl Logging {
    fn start(format: AccessLogFormat) -> Self {
        Self::with(format, |_| {})
    }

    fn with(format: AccessLogFormat, change: impl FnOnce(&mut Limits)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let plane = Plane::with(|settings| {
            settings.access_log = AccessLogSink::File(path);
            settings.access_log_format = format;
            change(&mut settings.limits);
        });
        Self { plane, directory }
    }

    /// All that was logged.
    async fn end(self) -> String {
        self.plane.shutdown().await;
        std::fs::read_to_string(self.directory.path().join("access.log")).unwrap()
    }

    async fn lines(self) -> Vec<Value> {
        self.end().await.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// What a client sends that no log may take as it is.
const CANARY: &str = "GET /x?token=canary&a=1 HTTP/1.1\r\nHost: a.test\r\nAuthorization: canary\r\n\
    User-Agent: \u{202e}\"\\\r\nReferer: http://r.test/?key=canary\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn j2_a_request_leaves_one_line_in_the_log_and_no_secret() {
    let log = Logging::start(AccessLogFormat::Json);
    let upstream = Upstream::answering(OK).await;
    log.plane.route("a.test", &upstream);
    log.plane.exchange(CANARY).await;
    let text = log.end().await;
    assert!(text.lines().count() == 1 && !text.contains("canary") && !text.contains('\u{202e}'), "{text}");
    let line: Value = serde_json::from_str(&text).unwrap();
    for (name, value) in [
        ("method", "GET"),
        ("host", "a.test"),
        ("path", "/x"),
        ("query", "token=[redacted]&a=1"),
        ("app", "test"),
        ("end", "ok"),
        ("client_ip", "127.0.0.1"),
        ("instance", &upstream.target.id.to_string()),
    ] {
        assert_eq!(line[name], value, "{name}");
    }
    assert_eq!(line["status"], 200);
}

#[tokio::test]
async fn j2_a2_the_host_in_the_log_is_the_one_that_routed() {
    let log = Logging::start(AccessLogFormat::Json);
    let upstream = Upstream::answering(OK).await;
    log.plane.route("a.test", &upstream);
    for (authority, expected) in [("a.test", 200), ("me:canary@a.test", 400)] {
        let request =
            format!("GET http://{authority}/ HTTP/1.1\r\nHost: b.test\r\nConnection: close\r\n\r\n");
        assert_eq!(status(&log.plane.exchange(request).await), expected, "{authority}");
    }
    let lines = log.lines().await;
    assert!(lines.len() == 2 && lines.iter().all(|line| line["host"] == "a.test"), "{lines:?}");
}

#[tokio::test]
async fn j2_the_combined_format_has_its_fields_in_order_and_nothing_breaks_out_of_them() {
    let log = Logging::start(AccessLogFormat::Combined);
    let upstream = Upstream::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    log.plane.route("a.test", &upstream);
    log.plane.exchange(CANARY).await;
    log.plane.exchange("GET /\" HTTP/1.0\r\nHost: none.test\r\n\r\n").await;
    let text = log.end().await;
    let lines: Vec<&str> = text.lines().collect();
    let [first, second] = lines[..] else { panic!("{text}") };
    let (before, rest) = first.split_once(" [").unwrap();
    let (time, rest) = rest.split_once("] ").unwrap();
    assert_eq!(before, "127.0.0.1 - -");
    let day = jiff::civil::DateTime::strptime("%d/%b/%Y:%H:%M:%S +0000", time).unwrap();
    assert!(day.year() >= 2024, "{time}");
    assert_eq!(
        rest,
        r#""GET /x?token=[redacted]&a=1 HTTP/1.1" 200 2 "http://r.test/?key=[redacted]" "\\u{202e}\"\\""#
    );
    assert!(second.contains(r#"] "GET /\" HTTP/1.0" 404 "#) && second.ends_with(r#" "-" "-""#), "{second}");
}

#[tokio::test]
async fn j2_the_way_upstream_is_told() {
    let log = Logging::start(AccessLogFormat::Json);
    let upstream = Upstream::answering(OK).await;
    let generation = log.plane.route("a.test", &upstream);
    let mut client = log.plane.connect().await;
    for _ in 0..2 {
        client.send(GET).await;
        client.head().await;
    }
    drop(client);
    let lines = log.lines().await;
    let links: Vec<_> = lines.iter().map(|line| line["upstream_connection"].as_str()).collect();
    assert_eq!(links, [Some("new"), Some("reused")]);
    for line in &lines {
        assert_eq!((&line["attempts"], &line["route_generation"]), (&1.into(), &generation.into()), "{line}");
        let (header, whole) = (&line["upstream_header_ms"], &line["duration_ms"]);
        assert!(header.as_f64().unwrap() <= whole.as_f64().unwrap(), "{line}");
        assert!(line.get("error").is_none(), "{line}");
    }
    let traces = upstream
        .heads()
        .iter()
        .map(|head| field(head, "traceparent").unwrap()[3..35].to_owned())
        .collect::<Vec<_>>();
    assert_eq!([&lines[0]["trace_id"], &lines[1]["trace_id"]], [&traces[0], &traces[1]]);
    assert!(lines[0]["upstream_connect_ms"].is_f64() && lines[1].get("upstream_connect_ms").is_none());
}

#[tokio::test]
async fn j2_what_was_tried_and_why_it_failed_is_told() {
    let log = Logging::start(AccessLogFormat::Json);
    let (dead, well) = (unreachable(), Upstream::answering(OK).await);
    let (both, alone) = (backend(&[&dead, &well.target]), backend(&[&dead]));
    log.plane.routing.publish(|edit| {
        edit.route(&pattern("a.test"), "/", &both);
        edit.route(&pattern("dead.test"), "/", &alone);
    });
    let mut client = log.plane.connect().await;
    while !log.plane.metrics().contains("lockgate_retries_total{reason=\"connect_failed\"} 1\n") {
        client.send(GET).await;
        client.head().await;
    }
    client.send(GET.replace("a.test", "dead.test")).await;
    assert_eq!(field(&client.head().await, "lockgate-reason"), Some("connect_failed"));
    drop(client);
    let bad = log.plane.exchange("GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n").await;
    assert_eq!(field(&bad, "lockgate-reason"), Some("bad_request"));
    log.plane.exchange("nonsense\r\n\r\n").await;
    let mut lines = log.lines().await;
    let unread = lines.pop().unwrap();
    assert_eq!((&unread["end"], &unread["status"]), (&"bad_request".into(), &400.into()), "{unread}");
    assert!(unread["error"].is_string() && unread["request_id"].is_string(), "{unread}");
    let told = |at: usize| {
        let line = &lines[at];
        (
            line["end"].as_str().unwrap(),
            line["attempts"].as_u64().unwrap(),
            line["error"].as_str().unwrap_or(""),
        )
    };
    let [.., retried, failed, refused] = (0..lines.len()).map(told).collect::<Vec<_>>()[..] else { panic!() };
    assert!(retried.0 == "ok" && retried.1 == 2 && retried.2.contains("cannot connect"), "{retried:?}");
    assert!(failed.0 == "connect_failed" && failed.1 == 1 && failed.2.contains("refused"), "{failed:?}");
    assert_eq!(refused, ("bad_request", 0, "There is more than one Host header."));
}

#[tokio::test]
async fn j2_a_request_that_a_kept_connection_lost_counts_as_another_attempt() {
    let log = Logging::start(AccessLogFormat::Json);
    let upstream = Upstream::start().await;
    log.plane.route("a.test", &upstream);
    log.plane.lose_kept(&upstream).await;
    let lines = log.lines().await;
    assert_eq!((&lines[1]["attempts"], &lines[1]["upstream_connection"]), (&2.into(), &"new".into()));
}

/// `{why it was ended, what of the settings has it ended so}`: a response that has begun and does not go on.
#[tokio::test]
async fn e4_j2_a_response_that_is_ended_from_outside_is_not_the_clients_doing() {
    const BEGUN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc";
    for (why, order) in
        [("upstream_timeout", None), ("drain_cut", Some(Order::CutRequests)), ("client_abort", None)]
    {
        let log = Logging::with(AccessLogFormat::Json, |limits| {
            limits.response_idle = Duration::from_millis(if why == "upstream_timeout" { 50 } else { 60_000 });
        });
        let upstream = Upstream::start().await;
        log.plane.route("a.test", &upstream);
        let mut client = log.plane.connect().await;
        client.send(GET).await;
        let mut app = upstream.accept().await;
        app.head().await;
        app.send(BEGUN).await;
        client.until("abc").await;
        if why == "client_abort" {
            client.reset();
        } else {
            if let Some(order) = order {
                upstream.target.gate.close();
                upstream.target.set_order(order);
                log.plane.routing.signal_workers();
            }
            client.rest().await;
        }
        let ended = "lockgate_http_requests_total{app=\"test\"";
        log.plane.settle(|| log.plane.metrics().contains(ended)).await;
        let told = format!("lockgate_errors_total{{reason=\"{why}\"}} 1\n");
        assert_eq!(log.plane.metrics().contains(&told), why != "client_abort", "{}", log.plane.metrics());
        let lines = log.lines().await;
        assert_eq!((&lines[0]["end"], &lines[0]["status"]), (&why.into(), &200.into()));
    }
}

/// Lines are handed over many at a time, and few ones do not wait for more.
#[tokio::test]
async fn j2_a_line_is_there_soon_while_its_connection_goes_on() {
    let log = Logging::start(AccessLogFormat::Json);
    let upstream = Upstream::answering(OK).await;
    log.plane.route("a.test", &upstream);
    let mut client = log.plane.connect().await;
    client.send(GET).await;
    assert_eq!(status(&client.head().await), 200);
    let written = || std::fs::read_to_string(log.directory.path().join("access.log")).unwrap();
    let soon = async {
        while !written().ends_with("}\n") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), soon).await.expect("the line is not written");
    drop(client);
}

/// Whoever reads the log too slowly loses lines of it, and no request waits for them.
#[tokio::test]
async fn j2_a_log_that_nobody_reads_holds_nothing_up_and_what_it_loses_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    // Open on both ends, so that the log can be opened; and never read.
    let _unread = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let plane = Plane::with(|settings| settings.access_log = AccessLogSink::File(path));
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    let dropped = || plane.plane.telemetry().of(0).access_log_dropped.get();
    let mut sent = 0;
    while dropped() == 0 {
        client.send(GET.repeat(200)).await;
        for _ in 0..200 {
            assert_eq!(status(&client.head().await), 200);
        }
        sent += 200;
        assert!(sent < 100_000, "it holds all of them");
    }
    drop(client);
    drop(plane);
}
