//! What a scrape tells of deploys, of the runtime, of the store and of the configuration.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lockgate::gate::InFlight;
use lockgate::telemetry::{ControlStats, Expiry, Present, TargetHealth, Telemetry};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::support::{Lockgate, eventually};

pub(crate) async fn scrape(lockgate: &Lockgate) -> String {
    let mut stream = UnixStream::connect(lockgate.socket()).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// The same as [`value`], or 0 where nothing was counted yet.
fn so_far(text: &str, series: &str) -> f64 {
    if text.lines().any(|line| line.starts_with(series)) { value(text, series) } else { 0.0 }
}

/// The value of the first series that begins so.
pub(crate) fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(series));
    let line = line.unwrap_or_else(|| panic!("no {series} in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_tells_of_deploys_instances_and_the_configuration() {
    let lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    lockgate.deploy("two").await.unwrap();
    lockgate.version("web.test").await.unwrap();
    let mut text = String::new();
    eventually("both operations have ended, and the request is counted", async || {
        text = scrape(&lockgate).await;
        so_far(&text, r#"lockgate_operations_total{kind="deploy",result="succeeded"}"#) == 2.0
            && so_far(&text, r#"lockgate_http_response_body_size_bytes_count{app="web""#) == 1.0
    })
    .await;
    for (series, expected) in [
        (r#"lockgate_swaps_total{result="ok"}"#, 2.0),
        ("lockgate_swap_publish_seconds_count", 2.0),
        ("lockgate_swap_drain_seconds_count", 1.0),
        (r#"lockgate_swap_in_flight_at_cutover_count{kind="stream"}"#, 2.0),
        (r#"lockgate_operation_duration_seconds_count{kind="deploy"}"#, 2.0),
        // One answer: of 0 bytes asked and a few got.
        ("lockgate_upstream_response_head_seconds_count{app=\"web\"", 1.0),
        ("lockgate_http_request_body_size_bytes_bucket{le=\"0.0\",app=\"web\"", 1.0),
        ("lockgate_http_response_body_size_bytes_bucket{le=\"0.0\",app=\"web\"", 0.0),
        ("lockgate_http_response_body_size_bytes_bucket{le=\"1024.0\",app=\"web\"", 1.0),
        ("lockgate_http_response_body_size_bytes_count{app=\"web\"", 1.0),
        ("lockgate_runtime_up", 1.0),
        ("lockgate_config_last_reload_success", 1.0),
        ("lockgate_target_health{", 1.0),
        ("lockgate_upstream_requests_total{app=\"web\"", 1.0),
        ("lockgate_build_info{version=", 1.0),
    ] {
        assert_eq!(value(&text, series), expected, "{series}\n{text}");
    }
    for series in [
        "lockgate_store_commit_seconds_count",
        "lockgate_route_table_generation",
        "lockgate_routes",
        "lockgate_config_last_reload_timestamp_seconds",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
    ] {
        assert!(value(&text, series) >= 1.0, "{series}\n{text}");
    }
    assert!(value(&text, "process_cpu_seconds_total") > 0.0, "{text}");
    assert_eq!(text.matches("# EOF").count(), 1);

    std::fs::write(lockgate.config(), "apps: 1").unwrap();
    lockgate.signal(Signal::HUP);
    eventually("the reload is refused", async || {
        value(&scrape(&lockgate).await, "lockgate_config_last_reload_success") == 0.0
    })
    .await;

    for instance in lockgate.instances().await {
        crate::support::kill_where("environ", &format!("LOCKGATE_INSTANCE={}\0", instance.id));
    }
    eventually("it is started again", async || {
        scrape(&lockgate).await.contains(r#"lockgate_reconcile_corrections_total{op="start"}"#)
    })
    .await;
}

/// What is held up, and by what: a wait of Lockgate's own is not the target's time, a slow target's is.
#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_a_target_leaves_out_what_its_requests_waited_before() {
    let lockgate = Lockgate::start("").await;
    // Much longer than an answer takes on however busy a machine.
    lockgate.with_slow_sleeping_preview(8).await;
    lockgate.version("x.web.test").await.unwrap();
    let mut text = String::new();
    eventually("the wake has ended, and the request is counted", async || {
        text = scrape(&lockgate).await;
        so_far(&text, r#"lockgate_operations_total{kind="wake",result="succeeded"}"#) > 0.0
            && so_far(&text, r#"lockgate_http_response_first_byte_seconds_count{app="web""#) > 0.0
    })
    .await;
    // Most of it was the start of the instance.
    let sum = |metric: &str| value(&text, &format!("lockgate_{metric}_seconds_sum{{app=\"web\""));
    let of_wakes = value(&text, r#"lockgate_operation_duration_seconds_sum{kind="wake"}"#);
    assert!(of_wakes > 0.0, "{text}");
    let (waited, answered) = (sum("http_response_first_byte"), sum("upstream_response_head"));
    assert!(waited > of_wakes / 2.0 && answered < waited / 2.0, "{waited} {answered} {of_wakes}\n{text}");
    assert_eq!(value(&text, r#"lockgate_operations_total{kind="wake",result="succeeded"}"#), 1.0);
    assert_eq!(value(&text, r#"lockgate_holds_total{app="web""#), 1.0, "{text}");
}

/// Names that no exact route has: the first look-up fills the route cache, and who asks for the same on another connection
/// finds it by then, or in its worker's memo.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_looked_up_again_and_again_is_known() {
    let lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    for _ in 0..20 {
        lockgate.raw("nobody.web.test").await;
    }
    let refused = r#"lockgate_errors_total{reason="ephemeral_unknown"}"#;
    let mut text = String::new();
    eventually("all are counted", async || {
        text = scrape(&lockgate).await;
        so_far(&text, refused) >= 20.0
    })
    .await;
    let of = |what: &str| value(&text, &format!("lockgate_route_{what}_total "));
    let (hits, misses) = (of("cache_hits"), of("cache_misses"));
    // Who has no route is remembered by nobody.
    assert!(hits + misses <= of("memo_misses") && misses >= 1.0, "{text}");
    assert_eq!(value(&text, refused), 20.0);
}

#[test]
fn the_page_on_metrics_names_each_that_is_shown_and_no_other() {
    let page = include_str!("../../docs/metrics.md");
    let named: BTreeSet<&str> = page
        .split(|character: char| !character.is_ascii_alphanumeric() && character != '_')
        .filter(|word| word.starts_with("lockgate_") || word.starts_with("process_"))
        .collect();
    // What never happened has no series.
    let stats = ControlStats::default();
    stats.swapped(Duration::ZERO, InFlight::default());
    stats.operation_ended("deploy", "succeeded", Duration::ZERO);
    stats.corrected("start");
    stats.ordered("issued");
    let target = TargetHealth {
        app: "web".to_owned(),
        environment: "production".to_owned(),
        deployment: "d".to_owned(),
        instance: "i".to_owned(),
        is_healthy: true,
    };
    let expiry = Expiry { names: "a.test".to_owned(), at: 0.0 };
    let present = Present { certificates: vec![expiry], targets: vec![target], ..Present::default() };
    let text = Arc::new(Telemetry::new(1)).render_with(&stats, &present);
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let shown: BTreeSet<String> = types
        .map(|line| match line.split_once(' ').unwrap() {
            (name, "counter") => format!("{name}_total"),
            (name, "info") => format!("{name}_info"),
            (name, _) => name.to_owned(),
        })
        .collect();
    assert_eq!(named, shown.iter().map(String::as_str).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cutover_that_a_restart_finishes_is_counted_once() {
    for (point, counted) in [("swap.committed", 1.0), ("step.drain.begun", 0.0)] {
        let pass = if point == "swap.committed" { 2 } else { 1 };
        let mut lockgate = Lockgate::start(&format!("{point}=kill@{pass}")).await;
        lockgate.deploy("one").await.unwrap();
        drop(lockgate.deploy("two").await);
        eventually(&format!("{point}: it dies"), async || lockgate.has_ended()).await;
        lockgate.spawn("").await;
        eventually(&format!("{point}: it is finished"), async || {
            lockgate.operations().await.iter().all(|operation| operation.state.is_end())
        })
        .await;
        let text = scrape(&lockgate).await;
        assert_eq!(so_far(&text, r#"lockgate_swaps_total{result="ok"}"#), counted, "{point}\n{text}");
    }
}
