//! Requests to a held backend: they wait, and how each wait ends.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use lockgate::proxy::{AccessLogSink, Limits};
use lockgate::routing::{Backend, Hold, HoldRules, Refusal, WaitingPage};
use lockgate::telemetry::BackendStats;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::support::{GET, OK, Plane, Upstream, WORKERS, Wire, field, pattern, status, within};

const POST: &str = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc";
const PAGE: &str = "GET / HTTP/1.1\r\nHost: a.test\r\nAccept: text/html\r\n";

const TIMED_OUT: Refusal =
    Refusal { code: "wake_timeout", detail: "Too long.", retry_after: 7, refresh: None };
const FULL: Refusal = Refusal { code: "queue_full", detail: "Too many.", retry_after: 3, refresh: None };
const FAILED: Refusal = Refusal { code: "wake_failed", detail: "It failed.", retry_after: 9, refresh: None };
const WAKING: Refusal = Refusal { code: "waking", detail: "It starts.", retry_after: 1, refresh: Some(2) };

/// Longer than any test.
const LONG: Duration = Duration::from_secs(3600);

pub(crate) fn rules() -> HoldRules {
    HoldRules { limit: LONG, cap: 100, timed_out: TIMED_OUT, full: FULL, page: None }
}

pub(crate) fn held(plane: &Plane, host: &str, rules: HoldRules, bell: Option<&Arc<Notify>>) -> Arc<Hold> {
    let hold = Arc::new(Hold::new(rules, bell.cloned()));
    let stats = Arc::new(BackendStats::for_service("sleeper", WORKERS));
    let backend = Arc::new(Backend::new(Box::default(), stats).held(Arc::clone(&hold)));
    plane.routing.publish(|edit| edit.route(&pattern(host), "/", &backend));
    hold
}

/// A client whose request waits.
async fn waiting(plane: &Plane, hold: &Hold, request: &str) -> Wire {
    let before = hold.waiting();
    let mut client = plane.connect().await;
    client.send(request).await;
    plane.settle(|| hold.waiting() > before).await;
    client
}

/// What a refusal says.
pub(crate) fn told(head: &str) -> (u16, Option<&str>, Option<&str>) {
    (status(head), field(head, "lockgate-reason"), field(head, "retry-after"))
}

#[tokio::test]
async fn held_requests_are_released_on_every_worker_and_served_by_the_new_table() {
    // By chance a worker has none of them once in a hundred billion runs.
    const CLIENTS: usize = 96;
    let plane = Plane::of_workers(WORKERS, |_| {}).unwrap();
    let hold = held(&plane, "a.test", rules(), None);
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let mut client = plane.connect().await;
        clients.spawn(async move {
            client.send(POST).await;
            let first = status(&client.head().await);
            // The connection goes on.
            client.send(GET).await;
            (first, status(&client.head().await))
        });
    }
    plane.settle(|| hold.waiting() == CLIENTS).await;
    assert!(plane.taken().iter().all(|taken| *taken > 0), "{:?}", plane.taken());
    let labels = "app=\"sleeper\",environment=\"\",deployment=\"\"";
    let gauge = format!("lockgate_held_requests{{{labels}}} {CLIENTS}\n");
    assert!(plane.metrics().contains(&gauge), "{}", plane.metrics());
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    hold.release();
    while let Some(answered) = clients.join_next().await {
        assert_eq!(answered.unwrap(), (200, 200));
    }
    assert_eq!((hold.waiting(), upstream.heads().len()), (0, 2 * CLIENTS));
    let metrics = plane.metrics();
    for line in [
        format!("lockgate_holds_total{{{labels},result=\"released\"}} {CLIENTS}\n"),
        format!("lockgate_held_requests{{{labels}}} 0\n"),
    ] {
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
    plane.shutdown().await;
}

/// What a request waited for is not the application's time.
#[tokio::test]
async fn j1_a_wait_is_no_part_of_what_the_upstream_took() {
    const WAIT: Duration = Duration::from_millis(300);
    let plane = Plane::start();
    let hold = held(&plane, "a.test", rules(), None);
    let mut client = waiting(&plane, &hold, GET).await;
    tokio::time::sleep(WAIT).await;
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    hold.release();
    assert_eq!(status(&client.head().await), 200);
    drop(client);
    let waited = plane.waited();
    assert!(waited >= WAIT, "{waited:?}");
    plane.shutdown().await;
}

#[tokio::test]
async fn beyond_the_cap_a_request_is_refused_at_once_and_who_leaves_makes_room() {
    let plane = Plane::with(|settings| settings.limits.half_closed = Duration::from_millis(30));
    let hold = held(&plane, "a.test", HoldRules { cap: 2, ..rules() }, None);
    let keeper = waiting(&plane, &hold, GET).await;
    let upload = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9\r\n\r\nabc";
    // Each takes the last place and leaves in a way of its own.
    for (request, is_reset) in [(GET, true), (GET, false), (upload, true), (upload, false)] {
        let mut client = waiting(&plane, &hold, request).await;
        let mut one_more = plane.connect().await;
        one_more.send(GET).await;
        assert_eq!(told(&one_more.head().await), (503, Some("queue_full"), Some("3")));
        if is_reset {
            client.reset();
        } else {
            client.finish().await;
        }
        plane.settle(|| hold.waiting() == 1).await;
    }
    let full = "lockgate_holds_total{app=\"sleeper\",environment=\"\",deployment=\"\",result=\"refused\"} 4";
    assert!(plane.metrics().contains(full), "{}", plane.metrics());
    drop(keeper);
    plane.shutdown().await;
}

#[tokio::test]
async fn a_wait_ends_at_its_limit_and_no_other_limit_counts_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let plane = Plane::with(|settings| {
        settings.access_log = AccessLogSink::File(path.clone());
        let short = Duration::from_millis(20);
        let limits = std::mem::take(&mut settings.limits);
        settings.limits =
            Limits { response_head: short, body_idle: short, body_floor_after: short, ..limits };
    });
    let short = HoldRules { limit: Duration::from_millis(300), ..rules() };
    let (hold, other) = (held(&plane, "a.test", short, None), held(&plane, "b.test", rules(), None));
    let upload = "POST / HTTP/1.1\r\nHost: b.test\r\nContent-Length: 9\r\n\r\nabc";
    let mut patient = waiting(&plane, &other, upload).await;
    let mut client = plane.connect().await;
    client.send(GET).await;
    assert_eq!(told(&client.head().await), (503, Some("wake_timeout"), Some("7")));
    assert_eq!((hold.waiting(), other.waiting()), (0, 1));
    other.refuse(FAILED);
    let head = patient.head().await;
    assert_eq!(told(&head), (503, Some("wake_failed"), Some("9")));
    // The rest of its body would be taken for the next request.
    assert_eq!(field(&head, "connection"), Some("close"));
    drop((client, patient));
    plane.shutdown().await;
    let lines = std::fs::read_to_string(path).unwrap();
    let line: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert!(line["held_ms"].as_f64().unwrap() >= 300.0 && line["app"] == "sleeper", "{line}");
}

#[tokio::test]
async fn a_held_body_is_not_read_and_comes_whole_after_the_release() {
    const LENGTH: usize = 32 * 1024 * 1024;
    let plane = Plane::start();
    let hold = held(&plane, "a.test", rules(), None);
    let request = format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {LENGTH}\r\n\r\n");
    let mut client = waiting(&plane, &hold, &request).await;
    let block = vec![b'x'; 256 * 1024];
    let mut sent = 0;
    let quiet = Duration::from_millis(300);
    while let Ok(written) = tokio::time::timeout(quiet, client.write_some(&block)).await {
        sent += written;
        assert!(sent < LENGTH, "all of it was read");
    }
    let upstream = Upstream::start().await;
    plane.route("a.test", &upstream);
    hold.release();
    let receive = async {
        let mut app = upstream.accept().await;
        app.head().await;
        for _ in 0..LENGTH / block.len() {
            app.bytes(block.len()).await;
        }
        app.send(OK).await;
    };
    let send = async {
        while sent < LENGTH {
            sent += client.write_some(&block[..block.len().min(LENGTH - sent)]).await;
        }
        client.head().await
    };
    let ((), head) = within(async { tokio::join!(receive, send) }).await;
    assert_eq!(status(&head), 200);
    plane.shutdown().await;
}

#[tokio::test]
async fn only_what_may_wait_rings_the_bell_and_once() {
    let plane = Plane::with(|settings| settings.limits.body_bytes = 10);
    let bell = Arc::new(Notify::new());
    let hold = held(&plane, "a.test", rules(), Some(&bell));
    let rung = || {
        let notified = pin!(bell.notified());
        notified.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    };
    for (refused, expected) in [
        ("GET / HTTP/1.1\r\nHost: a.test\r\nHost: a.test\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 11\r\n\r\n", 413),
        ("TRACE / HTTP/1.1\r\nHost: a.test\r\n\r\n", 405),
        ("GET / HTTP/1.1\r\nHost: unknown.test\r\nConnection: close\r\n\r\n", 404),
        ("OPTIONS * HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n", 204),
    ] {
        assert_eq!(status(&plane.exchange(refused).await), expected, "{refused}");
    }
    // Who looks whether a name is served here for a certificate.
    let challenge = "GET /.well-known/acme-challenge/x HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    assert_eq!(told(&plane.exchange(challenge).await), (503, Some("queue_full"), Some("3")));
    assert!(!rung() && !hold.take_wanted());
    let clients = [waiting(&plane, &hold, GET).await, waiting(&plane, &hold, GET).await];
    assert!(rung() && !rung() && hold.take_wanted());
    drop(clients);
    plane.shutdown().await;
}

#[tokio::test]
async fn a_browser_that_goes_to_a_page_is_shown_one_and_everything_else_waits() {
    let plane = Plane::start();
    let page = Some(WaitingPage { after: Duration::ZERO, shown: WAKING });
    let hold = held(&plane, "a.test", HoldRules { page, ..rules() }, None);
    for request in ["", "Sec-Fetch-Mode: navigate\r\n"] {
        let mut browser = plane.connect().await;
        browser.send(format!("{PAGE}{request}\r\n")).await;
        let head = browser.head().await;
        assert_eq!(told(&head), (503, Some("waking"), Some("1")));
        let fields = ["refresh", "cache-control", "content-type"].map(|name| field(&head, name));
        assert_eq!(fields, [Some("2"), Some("no-store"), Some("text/html; charset=utf-8")]);
    }
    let others = [
        waiting(&plane, &hold, &format!("{PAGE}Sec-Fetch-Mode: cors\r\n\r\n")).await,
        waiting(&plane, &hold, &format!("{}\r\n", PAGE.replace("GET", "HEAD"))).await,
        waiting(&plane, &hold, GET).await,
    ];
    assert_eq!(hold.waiting(), others.len());
    plane.shutdown().await;
}

#[tokio::test]
async fn a_hold_that_ended_and_is_still_in_the_table_sends_nobody_in_circles() {
    let plane = Plane::start();
    let hold = held(&plane, "a.test", rules(), None);
    hold.release();
    let mut client = plane.connect().await;
    client.send(GET).await;
    assert_eq!(told(&client.head().await), (503, Some("draining"), Some("1")));
    plane.shutdown().await;
}

#[tokio::test]
async fn at_the_end_held_requests_get_their_answer_at_once() {
    let plane = Plane::start();
    let hold = held(&plane, "a.test", rules(), None);
    let mut client = waiting(&plane, &hold, GET).await;
    let mut ending = JoinSet::new();
    ending.spawn(plane.shutdown());
    let answer = client.rest().await;
    assert_eq!(told(&answer), (503, Some("shutdown"), Some("1")));
    assert_eq!(field(&answer, "connection"), Some("close"));
    within(ending.join_next()).await.unwrap().unwrap();
}
