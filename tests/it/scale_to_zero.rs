//! Production that scales to zero, with the real binary: it stops when nobody asks, and the load that comes next loses nothing.

use std::time::Duration;

use lockgate::store::{DesiredState, OperationKind};
use serde_json::json;

use crate::support::{HOST, Lockgate, eventually, for_load};

impl Lockgate {
    pub(crate) async fn live_sleeps(&self) {
        eventually("what is live sleeps", async || {
            let all = self.deployments().await;
            let live = all.iter().find(|one| one.live).unwrap();
            live.desired_state == DesiredState::Standby && self.running().await == 0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_that_wakes_production_loses_nothing_however_often_it_slept() {
    let mut lockgate = Lockgate::prepare(|config| {
        for_load(config);
        config["apps"]["web"]["scale_to_zero"] = json!(true);
        config["apps"]["web"]["idle_after"] = json!("1s");
    });
    lockgate.spawn("").await;
    lockgate.deploy("one").await.unwrap();
    for round in 1..=3 {
        lockgate.live_sleeps().await;
        if round == 3 {
            // What sleeps serves after a crash as before it.
            lockgate.kill();
            lockgate.spawn("").await;
            assert_eq!(lockgate.running().await, 0);
        }
        let verdict = lockgate.under_load(tokio::time::sleep(Duration::from_secs(3))).await;
        assert!(verdict.is_clean(), "{round}: {verdict}");
        assert_eq!(verdict.versions.keys().collect::<Vec<_>>(), ["one"], "{round}: {verdict}");
    }
    let mut all = Vec::new();
    eventually("every wake has ended", async || {
        all = lockgate.operations().await;
        all.iter().all(|operation| operation.state.is_end())
    })
    .await;
    let wakes = all.iter().filter(|operation| operation.kind == OperationKind::Wake);
    assert!(wakes.clone().count() >= 3 && wakes.clone().all(|wake| wake.state.is_success()), "{all:?}");
    assert_eq!(lockgate.version("www.web.test").await.as_deref(), Ok("one"));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_minimum_of_one_what_is_live_does_not_stop_until_that_is_taken_back() {
    let mut lockgate = Lockgate::prepare(|config| {
        let web = &mut config["apps"]["web"];
        (web["scale_to_zero"], web["idle_after"], web["min_warm"]) = (json!(true), json!("1s"), json!(1));
    });
    lockgate.spawn("").await;
    lockgate.deploy("one").await.unwrap();
    lockgate.deploy("two").await.unwrap();
    let preview = json!({ "env": { "VERSION": "preview" }, "label": "x", "ttl": "1h" });
    lockgate.deploy_with(&preview, "true").await.unwrap();
    // Both had nobody ask for them for as long; the version before it has its own time.
    lockgate.preview_sleeps().await;
    assert_eq!(lockgate.version(HOST).await.as_deref(), Ok("two"));
    lockgate.change_config(|config| config["apps"]["web"]["min_warm"] = json!(0));
    assert_eq!(lockgate.cli(&["config", "reload"]).status.code(), Some(0));
    lockgate.live_sleeps().await;
    assert_eq!(lockgate.version(HOST).await.as_deref(), Ok("two"));
}
