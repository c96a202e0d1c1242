//! Pause, maintenance and disable with the real binary: under load, by the command line, and over a restart.

use lockgate::api::{Access, App, Operation};
use serde_json::json;

use crate::support::{HOST, Lockgate, eventually, for_load};

fn out(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn pauses_under_load_spill_nothing_even_with_a_deploy_in_one() {
    let mut lockgate = Lockgate::prepare(for_load);
    lockgate.spawn("").await;
    lockgate.deploy("one").await.unwrap();
    let verdict = lockgate
        .under_load(async {
            for round in 0..3 {
                let paused: App = lockgate
                    .client
                    .post("/v1/apps/web/pause?wait=true", &json!({ "for": "10m", "queue": 100000 }))
                    .await
                    .unwrap();
                assert_eq!(paused.in_flight, lockgate::api::Counts::default(), "round {round}");
                if round == 1 {
                    lockgate.deploy("two").await.unwrap();
                }
                let resumed: App = lockgate.client.post("/v1/apps/web/resume", &json!({})).await.unwrap();
                assert_eq!(resumed.access, Access::Open);
            }
        })
        .await;
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!(lockgate.version(HOST).await.unwrap(), "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_pauses_and_a_killed_lockgate_is_still_paused() {
    let mut lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    let paused = lockgate.cli(&["pause", "web", "--for", "1h", "--queue", "0", "--wait"]);
    assert!(paused.status.success() && out(&paused).contains("app web is paused"), "{}", out(&paused));
    let answer = lockgate.raw(HOST).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 5"), "{answer}");
    lockgate.kill();
    lockgate.spawn("").await;
    assert!(lockgate.raw(HOST).await.contains("app_paused"));
    let listed = out(&lockgate.cli(&["list"]));
    assert!(listed.contains("paused"), "{listed}");
    let resumed = lockgate.cli(&["resume", "web"]);
    assert!(resumed.status.success() && out(&resumed).contains("app web is open"), "{}", out(&resumed));
    assert_eq!(lockgate.version(HOST).await.unwrap(), "one");
    assert_eq!(lockgate.cli(&["pause", "web", "--for", "2h"]).status.code(), Some(3), "too long");
    assert_eq!(lockgate.cli(&["pause", "nobody"]).status.code(), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_tells_its_message_and_lets_its_networks_by() {
    let lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    let on = lockgate.cli(&[
        "maintenance",
        "web",
        "on",
        "--message",
        "We \"move\" house.",
        "--allow",
        "192.0.2.1",
    ]);
    assert!(on.status.success(), "{}", out(&on));
    let answer = lockgate.raw(HOST).await;
    for part in
        ["HTTP/1.1 503", "lockgate-reason: app_maintenance", "retry-after: 60", r#""We \"move\" house.""#]
    {
        assert!(answer.contains(part), "{part}: {answer}");
    }
    let explained = out(&lockgate.cli(&["explain", HOST]));
    assert!(explained.contains("answered with app_maintenance"), "{explained}");
    let on = lockgate.cli(&["maintenance", "web", "on", "--allow", "127.0.0.0/8"]);
    assert!(on.status.success(), "{}", out(&on));
    assert_eq!(lockgate.version(HOST).await.unwrap(), "one");
    assert!(lockgate.cli(&["maintenance", "web", "off"]).status.success());
    assert_eq!(lockgate.version(HOST).await.unwrap(), "one");
    assert_eq!(lockgate.cli(&["maintenance", "web", "on", "--allow", "here"]).status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_app_is_stopped_and_comes_back_when_it_is_enabled() {
    let mut lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    let off = lockgate.cli(&["disable", "web"]);
    assert!(off.status.success() && out(&off).contains("app web is disabled"), "{}", out(&off));
    let answer = lockgate.raw(HOST).await;
    assert!(answer.contains("app_disabled") && answer.contains("switched off"), "{answer}");
    eventually("its process is gone", async || lockgate.running().await == 0).await;
    let refused = lockgate.cli(&["deploy", "web"]);
    assert_eq!(refused.status.code(), Some(3));
    assert!(out(&refused).contains("app web is disabled") && out(&refused).contains("lockgate enable"));
    lockgate.kill();
    lockgate.spawn("").await;
    assert!(lockgate.raw("www.web.test").await.contains("app_disabled"));
    let on = lockgate.cli(&["enable", "web"]);
    assert!(on.status.success() && out(&on).contains("succeeded"), "{}", out(&on));
    assert_eq!(lockgate.version(HOST).await.unwrap(), "one");
}

#[cfg(feature = "fault")]
#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_is_enabled_an_app_is_disabled_or_serves() {
    use lockgate::deploy::steps;
    let of =
        |step: steps::StepName, pass: u32| [step.begun, step.acted, step.recorded].map(|point| (point, pass));
    let points = [of(steps::WAKE, 1), of(steps::CHECK, 2), of(steps::ENABLE, 1)].concat();
    // The first pass is the disable's.
    for (point, pass) in points.into_iter().chain([("access.stored", 2)]) {
        let mut lockgate = Lockgate::prepare(|_| {});
        lockgate.spawn(&format!("{point}=kill@{pass}")).await;
        lockgate.deploy("one").await.unwrap();
        let off = lockgate.cli(&["disable", "web"]);
        assert!(off.status.success(), "{point}: {}\n{}", out(&off), lockgate.logged());
        eventually(&format!("{point}: it is stopped"), async || lockgate.running().await == 0).await;
        let answered = lockgate.client.post::<Operation>("/v1/apps/web/enable", &json!({})).await;
        eventually(&format!("{point}: it dies"), async || lockgate.has_ended()).await;
        lockgate.spawn("").await;
        let app: App = lockgate.client.get("/v1/apps/web").await.unwrap();
        assert!(answered.is_err() || app.access == Access::Open, "{point}: an answered enable was undone");
        let running = usize::from(app.access == Access::Open);
        eventually(&format!("{point}: {running} run"), async || {
            lockgate.operations().await.iter().all(|operation| operation.state.is_end())
                && lockgate.running().await == running
        })
        .await;
        if running == 1 {
            eventually(&format!("{point}: it serves"), async || {
                lockgate.version(HOST).await.as_deref() == Ok("one")
            })
            .await;
        } else {
            assert!(lockgate.raw(HOST).await.contains("app_disabled"), "{point}");
        }
        assert!(lockgate.cli(&["enable", "web"]).status.success(), "{point}");
        assert_eq!(lockgate.version(HOST).await.unwrap(), "one", "{point}");
    }
}
