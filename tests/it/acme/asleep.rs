//! Challenges for names whose app does not serve: it sleeps, or is under maintenance.

use lockgate::store::OperationKind;
use serde_json::json;

use super::pebble::is_there;
use super::{Bed, LONG, WWW};
use crate::support::{HOST, eventually};

const CHALLENGES: [&str; 2] = ["http-01", "tls-alpn-01"];

impl Bed {
    /// An app that runs, and an authority that nobody asks yet.
    async fn that_asks_later(challenge: &str, can_sleep: bool) -> Self {
        let mut bed = Self::prepare(LONG, &[challenge], |config| {
            config["apps"]["web"]["scale_to_zero"] = json!(can_sleep);
            config["apps"]["web"]["idle_after"] = json!("1s");
            config["tls"]["acme"]["directory"] = json!(null);
        });
        bed.spawn().await;
        bed
    }

    async fn is_issued_from_now_on(&self) {
        let directory = self.pebble.directory();
        self.lockgate.change_config(|config| config["tls"]["acme"]["directory"] = json!(directory));
        eventually("both names have certificates", async || {
            [HOST, WWW].iter().all(|host| self.certificate(host).is_some())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn challenges_for_an_app_in_standby_are_answered_and_wake_nothing() {
    if !is_there("challenges_for_an_app_in_standby_are_answered_and_wake_nothing") {
        return;
    }
    for challenge in CHALLENGES {
        let bed = Bed::that_asks_later(challenge, true).await;
        bed.lockgate.live_sleeps().await;
        bed.is_issued_from_now_on().await;
        assert_eq!(bed.lockgate.running().await, 0, "{challenge}");
        let all = bed.lockgate.operations().await;
        assert!(all.iter().all(|operation| operation.kind != OperationKind::Wake), "{challenge}: {all:?}");
        // The first who wants the app itself wakes it.
        bed.serves(HOST).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn challenges_for_an_app_under_maintenance_are_answered() {
    if !is_there("challenges_for_an_app_under_maintenance_are_answered") {
        return;
    }
    for challenge in CHALLENGES {
        let bed = Bed::that_asks_later(challenge, false).await;
        assert!(bed.lockgate.cli(&["maintenance", "web", "on"]).status.success());
        bed.is_issued_from_now_on().await;
        let root = bed.pebble.root();
        eventually("by https it is told of the maintenance", async || {
            bed.ask(HOST, &root).is_some_and(|answer| answer.contains("lockgate-reason: app_maintenance"))
        })
        .await;
        assert!(bed.lockgate.cli(&["maintenance", "web", "off"]).status.success());
        bed.serves(HOST).await;
    }
}
