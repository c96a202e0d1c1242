//! Office hours with the real binary, and killed between what is done at a time and the note that it is.

use std::time::Duration;

use lockgate::clock::Timestamp;
use lockgate::store::DesiredState;
use serde_json::json;

use crate::crash::check;
use crate::support::{HOST, Lockgate, eventually};

const PREVIEW: &str = "x.web.test";

/// Lets the minute end.
async fn next_minute() {
    let second = u64::try_from(Timestamp::now().as_second().rem_euclid(60)).unwrap();
    tokio::time::sleep(Duration::from_secs(60 - second)).await;
}

impl Lockgate {
    /// Its versions that are live or have a label, and do not sleep.
    async fn awake(&self) -> usize {
        let all = self.deployments().await;
        let serving = all.iter().filter(|one| one.live || one.label.is_some());
        serving.filter(|one| one.desired_state == DesiredState::Running).count()
    }
}

/// A version that is live, and a preview.
async fn both(faults: &str) -> Lockgate {
    let lockgate = Lockgate::start(faults).await;
    lockgate.deploy("live").await.unwrap();
    let preview = json!({ "env": { "VERSION": "preview" }, "label": "x", "ttl": "1h" });
    lockgate.deploy_with(&preview, "true").await.unwrap();
    lockgate
}

/// From now on `state` is due with each minute; the one that is over now is not made up for, nor one that ends while the
/// configuration is read.
async fn each_minute(lockgate: &Lockgate, state: &str) {
    if Timestamp::now().as_second().rem_euclid(60) >= 40 {
        next_minute().await;
    }
    lockgate.change_config(|config| {
        config["apps"]["web"]["schedule"] = json!([{ "cron": "* * * * *", "state": state }]);
    });
    assert_eq!(lockgate.cli(&["config", "reload"]).status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_time_all_that_serves_sleeps_and_a_request_wakes_it() {
    let lockgate = both("").await;
    each_minute(&lockgate, "standby").await;
    next_minute().await;
    eventually("all of it sleeps", async || lockgate.awake().await == 0 && lockgate.running().await == 0)
        .await;
    assert_eq!(lockgate.version(HOST).await.as_deref(), Ok("live"));
    assert_eq!(lockgate.version(PREVIEW).await.as_deref(), Ok("preview"));
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_time_what_sleeps_runs_again() {
    let lockgate = both("").await;
    assert_eq!(lockgate.cli(&["standby", "web", "x"]).status.code(), Some(0));
    lockgate.preview_sleeps().await;
    each_minute(&lockgate, "running").await;
    next_minute().await;
    eventually("it runs again", async || lockgate.awake().await == 2 && lockgate.running().await == 2).await;
    eventually("it is told why", async || lockgate.logged().contains("office hours")).await;
    assert_eq!(lockgate.version(PREVIEW).await.as_deref(), Ok("preview"));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_or_failing_before_it_is_noted_what_was_due_is_done() {
    for action in ["kill", "error"] {
        let mut lockgate = both(&format!("hours.done={action}@1")).await;
        each_minute(&lockgate, "standby").await;
        next_minute().await;
        if action == "kill" {
            eventually("it dies", async || lockgate.has_ended()).await;
            lockgate.spawn("").await;
        }
        eventually(&format!("{action}: all of it sleeps"), async || {
            lockgate.awake().await == 0 && lockgate.running().await == 0
        })
        .await;
        assert_eq!(lockgate.version(HOST).await.as_deref(), Ok("live"), "{action}");
        check(&lockgate, action).await;
    }
}
