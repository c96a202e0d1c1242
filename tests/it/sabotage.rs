//! The verifier is worth something only if it catches what it is there for: each build that breaks one promise on
//! purpose must be found out.

use lockgate::verify::VerifyOptions;

use crate::support::{HOST, Lockgate, demo, eventually};

fn found_out(sabotage: &str, arguments: &[&str]) {
    let mut told = String::new();
    // A race is not lost every time; six runs without a find are a verdict.
    for _ in 0..6 {
        let output = demo(&[&["--rate", "300"], arguments].concat(), sabotage);
        if !output.status.success() {
            return;
        }
        told = String::from_utf8_lossy(&output.stdout).into_owned();
    }
    panic!("{sabotage} was not found out:\n{told}");
}

#[test]
fn an_answer_before_the_publish_is_found_out() {
    found_out("answer_before_publish", &["--swaps", "10"]);
}

#[test]
fn a_cache_without_generations_is_found_out() {
    found_out("cache_without_generation", &["--swaps", "10"]);
}

#[test]
fn a_publish_host_by_host_is_found_out() {
    found_out("publish_per_host", &["--swaps", "20"]);
}

#[test]
fn a_stop_without_drain_is_found_out() {
    found_out("stop_without_drain", &["--swaps", "4", "--stop-old"]);
}

#[test]
fn requests_beside_the_gate_are_found_out() {
    found_out("no_gate", &["--swaps", "4", "--stop-old"]);
}

#[test]
fn a_guard_that_ends_with_the_head_is_found_out() {
    // Of downloads alone: the guards of uploads and WebSockets are whole, and would hold the stop up for the others.
    found_out("guard_at_headers", &["--swaps", "4", "--stop-old", "--mix", "get=4,slow-download=1"]);
}

#[test]
fn closing_idle_connections_at_a_swap_is_found_out() {
    found_out("close_idle_at_swap", &["--swaps", "10"]);
}

/// What arrived twice at an app that records every third submission and then resets its connection.
async fn duplicated(sabotage: &'static str) -> u64 {
    let mut lockgate = Lockgate::prepare(|config| {
        let record = format!("{}.submissions", config["data_dir"].as_str().unwrap());
        config["apps"]["web"]["env"]["RECORD_FILE"] = record.into();
        config["apps"]["web"]["env"]["DROP_SUBMISSIONS"] = "3".into();
    });
    lockgate.sabotage = sabotage;
    lockgate.spawn("").await;
    lockgate.deploy("one").await.unwrap();
    let submitting = |options: &mut VerifyOptions| options.mix = "get=1,post=4".parse().unwrap();
    let verdict = lockgate
        .under_load_as(submitting, &[HOST], async |handle| {
            eventually("enough are answered", async || handle.counts().ok + handle.counts().failed > 300)
                .await;
        })
        .await;
    assert!(verdict.counts.failed > 0, "no submission was dropped: {verdict}");
    verdict.counts.duplicated
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_that_is_sent_again_is_found_out() {
    assert_eq!(duplicated("").await, 0);
    assert!(duplicated("retry_post").await > 0);
}
