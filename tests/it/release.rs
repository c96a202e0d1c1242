//! The release command with the real binary: what it says and does, and what a crash leaves of it.

use serde_json::json;

use crate::engine::Engine;
use crate::support::{HOST, Lockgate, eventually};

/// Everything that a kill may fall between.
const POINTS: &[&str] = &[
    "step.release.begun",
    "release.intended",
    "release.started",
    "release.ended",
    "release.forgotten",
    "step.release.acted",
    "step.release.recorded",
];

/// With a release command that writes a line into a file of the test's, then does `then`.
fn releasing(then: &str) -> Lockgate {
    let lockgate = Lockgate::prepare(|_| {});
    let done = lockgate.folder.path().join("released");
    let script = format!("echo released $VERSION | tee -a {}; {then}", done.display());
    lockgate.change_config(|config| {
        config["apps"]["web"]["release_command"] = json!(["/bin/sh", "-c", script]);
    });
    lockgate
}

fn released(lockgate: &Lockgate) -> Vec<String> {
    let text = std::fs::read_to_string(lockgate.folder.path().join("released")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn its_last_lines_and_its_end_are_told_whether_it_works_or_not() {
    let mut lockgate = releasing("test $VERSION != bad");
    lockgate.spawn("").await;
    let good = lockgate.cli(&["deploy", "web", "--env", "VERSION=good"]);
    let told = String::from_utf8_lossy(&good.stderr);
    assert!(good.status.success() && told.contains("log: released good"), "{told}");
    let operation = lockgate.operations().await[0].id.to_string();
    let shown = lockgate.cli(&["show", &operation]);
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains("exit code 0") && shown.contains("release: log: released good"), "{shown}");

    let bad = lockgate.cli(&["deploy", "web", "--env", "VERSION=bad"]);
    let told = String::from_utf8_lossy(&bad.stderr);
    assert_eq!(bad.status.code(), Some(1), "{told}");
    assert!(told.contains("the release command exited with code 1"), "{told}");
    assert!(told.contains("log: released bad") && told.contains("goes on serving"), "{told}");
    assert_eq!(lockgate.version(HOST).await.unwrap(), "good");
    assert_eq!(released(&lockgate), ["released good", "released bad"]);
    assert_eq!(lockgate.instances().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_point_around_it_nothing_of_it_is_left_and_it_is_not_run_again() {
    for point in POINTS {
        let mut lockgate = releasing("exec sleep 0.2");
        lockgate.spawn(&format!("{point}=kill@2")).await;
        lockgate.deploy("one").await.unwrap();
        lockgate.deploy("two").await.unwrap_err();
        eventually(&format!("{point}: it dies"), async || lockgate.has_ended()).await;
        lockgate.spawn("").await;
        assert_eq!(lockgate.version(HOST).await.unwrap(), "one", "{point}");
        eventually(&format!("{point}: the deploy is undone and nothing of it runs"), async || {
            let operations = lockgate.operations().await;
            operations.iter().all(|operation| operation.state.is_end())
                && lockgate.instances().await.len() == 1
                && lockgate.running().await == 1
        })
        .await;
        let times = released(&lockgate).iter().filter(|line| *line == "released two").count();
        assert!(times <= 1, "{point}: run {times} times");
        lockgate.deploy("three").await.unwrap_or_else(|error| panic!("{point}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_docker_it_is_a_container_that_goes_with_its_end() {
    let Some(engine) = Engine::shared("on_docker_it_is_a_container_that_goes_with_its_end").await else {
        return;
    };
    for (end, succeeds) in [("0", true), ("3", false)] {
        let mut lockgate = Lockgate::prepare_on(Some(&engine));
        lockgate.change_config(|config| {
            // Behind the image's entry point, as `command` is.
            let words = ["--exit-after-ms", "0", "--exit-code", end];
            config["apps"]["web"]["release_command"] = json!(words);
        });
        lockgate.spawn("").await;
        let answered = lockgate.deploy("one").await;
        assert_eq!(answered.is_ok(), succeeds, "{answered:?}");
        let step = lockgate.operations().await[0].id;
        let operation: lockgate::api::Operation =
            lockgate.client.get(&format!("/v1/operations/{step}")).await.unwrap();
        let told = format!("{:?} {:?}", operation.steps, operation.failure);
        assert!(told.contains(&format!("ended with code {end} after 0 ms")), "{told}");
        let left = usize::from(succeeds);
        eventually("only what serves is left", async || lockgate.containers().await == Some(left)).await;
    }
}
