//! The load verifier as a command: it learns of swaps from the admin API, and judges by them.

use std::process::Output;

use lockgate::api::{List, Operation, Route};
use serde_json::{Value, json};

use crate::support::{HOST, Lockgate, eventually, for_load, turn_for_load};

/// A lockgate whose replaced versions run on.
async fn lockgate() -> Lockgate {
    let mut lockgate = Lockgate::prepare(|config| {
        for_load(config);
        config["apps"]["web"]["deploy"]["standby_after"] = json!("30m");
    });
    lockgate.spawn("").await;
    lockgate
}

/// What the command says of the time in which `work` is done.
async fn verified(
    lockgate: &Lockgate,
    arguments: &[&str],
    work: impl Future<Output = ()>,
) -> (Output, Value) {
    let _turn = turn_for_load().await;
    let load =
        ["--app", "web", "--rate", "60", "--duration", "10m", "--stream-duration", "1s", "--timeout", "60s"];
    let child = lockgate.begin(&[&["verify", "--json"], arguments, &load[..]].concat());
    flows(lockgate).await;
    work.await;
    flows(lockgate).await;
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8(output.stdout.clone()).unwrap();
    let verdict = serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"));
    (output, verdict)
}

/// Waits for more of the load, which takes longer than the command has its looks apart.
async fn flows(lockgate: &Lockgate) {
    let record = lockgate.folder.path().join("data.submissions");
    let arrived = || std::fs::read_to_string(&record).unwrap_or_default().lines().count();
    let before = arrived();
    eventually("the load flows", async || arrived() > before + 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_sees_swaps_steps_and_ways_back_and_finds_nothing_wrong() {
    let lockgate = lockgate().await;
    lockgate.deploy("one").await.unwrap();
    let work = async {
        lockgate.deploy("two").await.unwrap();
        flows(&lockgate).await;
        let back = lockgate.cli(&["rollback", "web"]);
        assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
        flows(&lockgate).await;
        let three = json!({ "env": { "VERSION": "three" }, "steps": ["50%", "100%"], "step_for": "1h" });
        // A promote of the live one ends the rollback, so that deploys go live again, and is no swap.
        let live = lockgate.deployments().await.into_iter().find(|one| one.live).unwrap().id;
        assert!(lockgate.cli(&["promote", "web", &live.to_string()]).status.success());
        let begun = lockgate.deploy_with(&three, "false").await.unwrap();
        let split = async || {
            let routes: List<Route> = lockgate.client.get("/v1/routes").await.unwrap();
            routes.items.iter().any(|route| route.split.is_some())
        };
        eventually("a share gets it", split).await;
        flows(&lockgate).await;
        assert!(lockgate.cli(&["finish", &begun.id.to_string()]).status.success());
        eventually("all get it", async || {
            let now: Operation = lockgate.client.get(&format!("/v1/operations/{}", begun.id)).await.unwrap();
            now.steps.iter().any(|step| step.name == "watch" && step.ended_at.is_some())
        })
        .await;
    };
    let url = lockgate.url("127.0.0.1");
    let (output, verdict) = verified(&lockgate, &[&url], work).await;
    assert_eq!(output.status.code(), Some(0), "{verdict:#}");
    // There, back, the first step and the last.
    assert_eq!(verdict["swaps"], 4, "{verdict:#}");
    assert!(verdict["answers_checked"].as_u64() > Some(30), "{verdict:#}");
    for version in ["one", "two", "three"] {
        assert!(verdict["versions"][version].as_u64() > Some(0), "{verdict:#}");
    }
    assert!(verdict["evidence"].as_array().unwrap().is_empty());
}

/// What goes past Lockgate to an instance of the old version does not follow the swap.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_finds_what_the_old_version_answers_after_the_swap() {
    let lockgate = lockgate().await;
    lockgate.deploy("one").await.unwrap();
    let address = lockgate.instances().await[0].address.clone().unwrap();
    let work = async {
        lockgate.deploy("two").await.unwrap();
        // What a generator that was held up sends at once may go before the look that sees the swap.
        flows(&lockgate).await;
        flows(&lockgate).await;
    };
    let arguments = [&format!("http://{address}"), "--host", HOST, "--mix", "get=2,post=1"];
    let (output, verdict) = verified(&lockgate, &arguments, work).await;
    assert_eq!(output.status.code(), Some(1), "{verdict:#}");
    assert_eq!(verdict["swaps"], 1, "{verdict:#}");
    assert!(verdict["wrong_version"].as_u64() > Some(10), "{verdict:#}");
    assert_eq!(verdict["failed"], 0, "{verdict:#}");
    let evidence = verdict["evidence"][0]["what"].as_str().unwrap();
    assert!(evidence.contains("after the swap to dep_"), "{evidence}");
}

#[tokio::test(flavor = "multi_thread")]
async fn host_names_that_are_not_the_apps_or_do_not_move_together_are_refused() {
    let lockgate = lockgate().await;
    lockgate.deploy("one").await.unwrap();
    let preview = json!({ "env": { "VERSION": "two" }, "label": "feat", "ttl": "1h" });
    lockgate.deploy_with(&preview, "true").await.unwrap();
    let (url, feat) = (lockgate.url("127.0.0.1"), format!("feat.{HOST}"));
    for (arguments, code, told) in [
        (&["--app", "web", "--host", "other.test"][..], 2, "other.test does not lead to app web"),
        (&["--app", "web", "--host", HOST, "--host", &feat], 2, "do not lead to the same version of app web"),
        (&["--app", "shop"], 3, "shop"),
    ] {
        let output = lockgate.cli(&[&["verify", &url], arguments].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(told), "{error}");
    }
}
