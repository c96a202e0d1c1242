//! What a scrape tells of deploys, of the runtime, of the store and of the configuration.

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
    eventually("both operations have ended", async || {
        let text = scrape(&lockgate).await;
        let ended = r#"lockgate_operations_total{kind="deploy",result="succeeded"}"#;
        text.contains(ended) && value(&text, ended) == 2.0
    })
    .await;
    let text = scrape(&lockgate).await;
    for (series, expected) in [
        (r#"lockgate_swaps_total{result="ok"}"#, 2.0),
        ("lockgate_swap_publish_seconds_count", 2.0),
        ("lockgate_swap_drain_seconds_count", 1.0),
        (r#"lockgate_swap_in_flight_at_cutover_count{kind="stream"}"#, 2.0),
        ("lockgate_operation_duration_seconds_count", 2.0),
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
        let swaps = r#"lockgate_swaps_total{result="ok"}"#;
        let found = if text.contains(swaps) { value(&text, swaps) } else { 0.0 };
        assert_eq!(found, counted, "{point}\n{text}");
    }
}
