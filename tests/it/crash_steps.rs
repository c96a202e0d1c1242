//! Cutovers in steps with the real binary: killed in one, asked to finish, and judged by the verifier meanwhile.

use lockgate::api::{Explanation, List, Operation, Route, RouteSplit};
use lockgate::deploy::steps;
use lockgate::store::OperationState;
use serde_json::json;

use crate::crash::check;
use crate::support::{HOST, Lockgate, eventually, for_load};

#[tokio::test(flavor = "multi_thread")]
async fn killed_or_failing_in_a_step_of_a_cutover_it_goes_on_or_undoes() {
    let of_step = [steps::SPLIT.begun, steps::SPLIT.acted, steps::SPLIT.recorded];
    for point in of_step.into_iter().chain(["split.committed", "split.published"]) {
        for action in ["kill", "error"] {
            let mut lockgate = Lockgate::start(&format!("{point}={action}@1")).await;
            lockgate.deploy("one").await.unwrap();
            let answered = lockgate.deploy_with(&in_steps("1s"), "end").await;
            if action == "kill" {
                eventually(&format!("{point}: it dies"), async || lockgate.has_ended()).await;
                lockgate.spawn("").await;
            }
            check(&lockgate, point).await;
            let ended = &lockgate.operations().await[0];
            // Once a share was committed a restart goes on with it; an error in a step takes the step back.
            let goes_on = action == "kill" && point != steps::SPLIT.begun;
            let expected = if goes_on { "two" } else { "one" };
            assert_eq!(lockgate.version(HOST).await.as_deref(), Ok(expected), "{point}={action}: {ended:?}");
            assert_eq!(ended.state.is_success(), goes_on, "{point}={action}: {ended:?}");
            assert!(answered.is_err());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_a_step_it_serves_both_versions_again_and_can_still_be_cancelled() {
    let mut lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    let operation = lockgate.deploy_with(&in_steps("1h"), "false").await.unwrap().id;
    let at = async |lockgate: &Lockgate, place: u8| {
        lockgate.version_with(&format!("Cookie: __lockgate_split={operation}.{place}")).await
    };
    eventually("a share gets it", async || at(&lockgate, 0).await.as_deref() == Ok("two")).await;
    lockgate.kill();
    lockgate.spawn("").await;
    assert_eq!(at(&lockgate, 0).await.as_deref(), Ok("two"));
    assert_eq!(at(&lockgate, 99).await.as_deref(), Ok("one"));
    lockgate
        .client
        .post::<Operation>(&format!("/v1/operations/{operation}/cancel"), &json!({}))
        .await
        .unwrap();
    check(&lockgate, "cancelled").await;
    assert_eq!(lockgate.operations().await[0].state, OperationState::Cancelled);
    assert_eq!(at(&lockgate, 0).await.as_deref(), Ok("one"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cutover_in_steps_is_shown_where_its_routes_are_and_can_be_finished() {
    let lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    let begun = lockgate.deploy_with(&in_steps("1h"), "false").await.unwrap();
    let shown = async || -> (Option<RouteSplit>, usize, Vec<RouteSplit>) {
        let explained: Explanation =
            lockgate.client.get(&format!("/v1/explain?host={HOST}&path=/")).await.unwrap();
        let routes: List<Route> = lockgate.client.get("/v1/routes").await.unwrap();
        let splits = routes.items.into_iter().filter_map(|route| route.split).collect();
        (explained.split, explained.split_targets.len(), splits)
    };
    eventually("a share gets it", async || shown().await.0.is_some()).await;
    let split = RouteSplit { deployment: begun.deployment.unwrap().to_string(), share: 50 };
    let (explained, targets, of_routes) = shown().await;
    assert_eq!((explained, targets), (Some(split.clone()), 1));
    assert!(!of_routes.is_empty() && of_routes.iter().all(|one| *one == split), "{of_routes:?}");
    for arguments in [&["routes"][..], &["explain", HOST]] {
        let told = String::from_utf8(lockgate.cli(arguments).stdout).unwrap();
        assert!(told.contains("50 %") && told.contains(&split.deployment), "{told}");
    }
    assert_eq!(lockgate.cli(&["finish", &begun.id.to_string()]).status.code(), Some(0));
    eventually("everybody gets it", async || lockgate.version(HOST).await.as_deref() == Ok("two")).await;
    eventually("nothing is split", async || shown().await == (None, 0, Vec::new())).await;
}

fn in_steps(step_for: &str) -> serde_json::Value {
    json!({ "env": { "VERSION": "two" }, "steps": ["50%", "100%"], "step_for": step_for })
}

/// What was answered to whoever asked is done, also if it is killed before anything of it is.
#[tokio::test(flavor = "multi_thread")]
async fn killed_behind_the_word_to_finish_it_finishes() {
    for point in [steps::FINISH.begun, steps::FINISH.acted, steps::FINISH.recorded] {
        let mut lockgate = Lockgate::start(&format!("{point}=kill@1")).await;
        lockgate.deploy("one").await.unwrap();
        let begun = lockgate.deploy_with(&in_steps("1h"), "false").await.unwrap();
        let path = format!("/v1/operations/{}/finish", begun.id);
        let finish = async || {
            // Whoever is answered no more was killed with it.
            lockgate.client.post::<Operation>(&path, &json!({})).await.is_ok()
        };
        eventually(&format!("{point}: a share gets it"), async || {
            let routes: List<Route> = lockgate.client.get("/v1/routes").await.unwrap();
            routes.items.iter().any(|route| route.split.is_some())
        })
        .await;
        finish().await;
        eventually(&format!("{point}: it dies"), async || lockgate.has_ended()).await;
        lockgate.spawn("").await;
        check(&lockgate, point).await;
        assert_eq!(lockgate.version(HOST).await.as_deref(), Ok("two"), "{point}");
        assert_eq!(lockgate.operations().await[0].state, OperationState::Succeeded, "{point}");
    }
}

/// The verifier takes both versions for right from the first step to the last, and only where it is told that there are steps.
#[tokio::test(flavor = "multi_thread")]
async fn the_verifier_knows_that_two_versions_are_right_between_the_steps() {
    for is_told in [true, false] {
        let mut lockgate = Lockgate::prepare(for_load);
        lockgate.spawn("").await;
        lockgate.deploy("one").await.unwrap();
        let work = async |handle: lockgate::verify::Handle| {
            handle.swap_answered(handle.swap_called("one"));
            let called = if is_told { handle.split_called("two") } else { handle.swap_called("two") };
            let begun = lockgate.deploy_with(&in_steps("1h"), "false").await.unwrap();
            let has_split = async || {
                let routes: List<Route> = lockgate.client.get("/v1/routes").await.unwrap();
                routes.items.iter().any(|route| route.split.is_some())
            };
            eventually("a share gets it", has_split).await;
            handle.swap_answered(called);
            let so_many_more = async |more: u64| {
                let before = handle.counts().ok;
                eventually("more are answered", async || handle.counts().ok > before + more).await;
            };
            so_many_more(100).await;
            let last = handle.swap_called("two");
            assert_eq!(lockgate.cli(&["finish", &begun.id.to_string()]).status.code(), Some(0));
            eventually("all get it", async || {
                let path = format!("/v1/operations/{}", begun.id);
                let now: Operation = lockgate.client.get(&path).await.unwrap();
                now.steps.iter().any(|step| step.name == "watch" && step.ended_at.is_some())
            })
            .await;
            handle.swap_answered(last);
            so_many_more(100).await;
        };
        let verdict = lockgate.under_load_at(&[HOST, "www.web.test"], work).await;
        assert!(verdict.versions["one"] > 0 && verdict.versions["two"] > 0, "{verdict}");
        assert!(verdict.answers_checked.is_some_and(|answers| answers > 200), "{verdict}");
        assert_eq!(verdict.is_clean(), is_told, "{verdict}");
        let wrong = verdict.counts.wrong_version + verdict.counts.mixed;
        assert_eq!(verdict.spilled(), wrong, "{verdict}");
    }
}
