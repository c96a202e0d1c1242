//! P5 Crash-safe: `kill -9` at any instant; after a restart the routes equal the last committed state, the interrupted
//! operation is finished or undone, and no process is left over or lost.

use std::time::Duration;

use lockgate::api::{Deployment, List, Logs, Operation};
use lockgate::clock::{Clock, SystemClock};
use lockgate::deploy::steps;
use lockgate::store::{DeploymentStatus, DesiredState, OperationState};
use serde_json::json;

use crate::engine::Engine;
use crate::support::{HOST, Lockgate, PATIENCE, eventually, eventually_is, for_load};

/// Fail points beside those around steps.
const POINTS: &[&str] = &[
    "instance.intended",
    "instance.started",
    "store.commit_swap.before",
    "store.commit_swap.after",
    "swap.committed",
    "swap.published",
    "swap.closed",
];
/// Between the create and the start of a container.
const DOCKER_POINTS: &[&str] = &["runtime.docker.created"];
/// Passed when the replaced version is stopped, a second after the cutover.
const STOP_POINTS: &[&str] = &["instance.stop.intended", "instance.stopped"];

fn points() -> Vec<&'static str> {
    // A release command has its own matrix in `release`, a scaling in `scale`, an enable in `access`, a handover in `hold`,
    // a cutover in steps in `crash_steps`.
    let not_in_a_deploy = [
        steps::WAKE,
        steps::TAKE_BACK,
        steps::SPLIT,
        steps::FINISH,
        steps::RELEASE,
        steps::SCALE,
        steps::ENABLE,
        steps::HOLD,
    ];
    let of_steps = steps::ALL.iter().filter(|step| !not_in_a_deploy.contains(step));
    of_steps.flat_map(|step| [step.begun, step.acted, step.recorded]).chain(POINTS.iter().copied()).collect()
}

/// What must hold once everything has settled, whatever happened before (TESTING.md's invariants, from outside).
pub(crate) async fn check(lockgate: &Lockgate, point: &str) {
    eventually(&format!("{point}: every operation has ended"), async || {
        lockgate.operations().await.iter().all(|operation| operation.state.is_end())
    })
    .await;
    let deployments = lockgate.deployments().await;
    let live: Vec<_> = deployments.iter().filter(|deployment| deployment.live).collect();
    assert_eq!(live.len(), 1, "{point}: live deployments");
    // The version that answers is the live one's, on every host name.
    let version = lockgate.version(HOST).await.unwrap_or_else(|error| panic!("{point}: {error}"));
    assert_eq!(lockgate.version("www.web.test").await, Ok(version), "{point}: host names disagree");
    eventually(&format!("{point}: as many processes as there are running instances"), async || {
        let instances = lockgate.instances().await;
        let running =
            instances.iter().filter(|instance| instance.phase == lockgate::store::InstancePhase::Running);
        running.count() == lockgate.running().await
    })
    .await;
    eventually(&format!("{point}: no container but those of known instances"), async || {
        let known = lockgate.instances().await.len();
        lockgate.containers().await.is_none_or(|containers| containers == known)
    })
    .await;
    eventually(&format!("{point}: only ready deployments have instances"), async || {
        let known: Vec<_> =
            lockgate.instances().await.into_iter().map(|instance| instance.deployment).collect();
        let deployments = lockgate.deployments().await;
        let mut with_instances = deployments.iter().filter(|deployment| known.contains(&deployment.id));
        with_instances.all(|deployment| deployment.status == DeploymentStatus::Ready)
    })
    .await;
    check_holdings(lockgate, point).await;
}

/// So much more memory is no leak: allocators keep what threads have freed.
const MEMORY_MORE: u64 = 6 * 1024 * 1024;
/// Nor is what a version takes that is there to go back to: its routes, its counters, and what a restart reads of it.
const VERSION: u64 = 256 * 1024;

/// A life of a process begins with the line that says where it listens.
const BEGINS: &str = "listening on ";

/// What a process holds that serves so many instances: more is a leak. It has as much whatever happened before.
async fn check_holdings(lockgate: &Lockgate, point: &str) {
    eventually(&format!("{point}: no child has ended that nobody waited for"), async || {
        lockgate.zombies() == 0
    })
    .await;
    eventually(
        &format!("{point}: no more descriptors than its listeners, its store and its instances need"),
        async || lockgate.held().descriptors <= 100 + 8 * lockgate.instances().await.len(),
    )
    .await;
    // Of the control plane's there is one for each core.
    let threads = 62 + std::thread::available_parallelism().unwrap().get();
    eventually(&format!("{point}: no more threads than its pools have"), async || {
        lockgate.held().threads <= threads
    })
    .await;
    for deployment in lockgate.deployments().await {
        let path = format!("/v1/deployments/{}/logs?lines=10000", deployment.id);
        // One that is being removed is listed, and the runtime knows it no more.
        let mut found = Vec::new();
        eventually(&format!("{point}: what instances wrote can be read"), async || {
            let logs = lockgate.client.get::<List<Logs>>(&path).await;
            let is_read = logs.is_ok();
            found = logs.map(|logs| logs.items).unwrap_or_default();
            is_read
        })
        .await;
        for logs in found {
            let most = signals_in_a_life(logs.lines.iter().map(String::as_str));
            assert!(most <= 1, "{point}: {} got {most} stop signals: {:?}", logs.instance, logs.lines);
        }
    }
}

/// How many stop signals the life had that had most.
fn signals_in_a_life<'a>(lines: impl Iterator<Item = &'a str>) -> usize {
    let (mut most, mut now) = (0, 0);
    for line in lines {
        if line.contains(BEGINS) {
            now = 0;
        }
        now += usize::from(line.contains("got SIGTERM"));
        most = most.max(now);
    }
    most
}

#[test]
fn a_second_stop_signal_in_one_life_is_seen() {
    let most = |lines: &[&str]| signals_in_a_life(lines.iter().copied());
    assert_eq!(most(&["listening on x", "got SIGTERM", "stopped", "listening on x", "got SIGTERM"]), 1);
    assert_eq!(most(&["listening on x", "got SIGTERM", "got SIGTERM", "listening on x"]), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn deploys_that_fail_and_deploys_that_do_not_leave_nothing_open_and_no_memory() {
    deploy_again_and_again(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deploys_of_containers_leave_nothing_open_and_no_memory() {
    let test = "deploys_of_containers_leave_nothing_open_and_no_memory";
    if let Some(engine) = Engine::shared(test).await {
        deploy_again_and_again(Some(&engine)).await;
    }
}

/// Sixteen deploys, of which some fail or are taken back by an error at a fail point, leave nothing open.
async fn deploy_again_and_again(engine: Option<&Engine>) {
    let faults =
        ["instance.started=error@6", "store.commit_swap.before=error@9", "step.check.acted=error@12"];
    let lockgate = Lockgate::start_on(engine, &faults.join(",")).await;
    let settled = async || {
        eventually("one instance runs", async || lockgate.running().await == 1).await;
        check(&lockgate, "deploys").await;
    };
    for version in 0..4 {
        lockgate.deploy(&version.to_string()).await.unwrap();
    }
    settled().await;
    let before = lockgate.held();
    let mut failed = 0;
    for version in 4..16 {
        failed += usize::from(lockgate.deploy(&version.to_string()).await.is_err());
    }
    assert!(failed >= 2, "the fail points were not met");
    settled().await;
    // Threads for calls that block come and go, fewer than a leak in each of the twelve would leave.
    let more = 8;
    let mut now = lockgate.held();
    let is_as_before = eventually_is(async || {
        now = lockgate.held();
        now.descriptors <= before.descriptors + more
            && now.threads <= before.threads + more
            && now.resident <= before.resident + MEMORY_MORE
    })
    .await;
    assert!(is_as_before, "it held {before:?}, and holds {now:?}");
}

async fn crash_at(engine: Option<&Engine>, point: &str, action: &str) {
    // The first deploy passes each point once, but for the drain of a version that is not there; the second is meant.
    let pass = if point.starts_with("step.drain") { 1 } else { 2 };
    let mut lockgate = Lockgate::start_on(engine, &format!("{point}={action}@{pass}")).await;
    lockgate.deploy("one").await.unwrap_or_else(|error| panic!("{point}: {error}"));
    let answered = lockgate.deploy("two").await;
    if action == "kill" {
        eventually(&format!("{point}: it dies"), async || lockgate.has_ended()).await;
        lockgate.spawn("").await;
        // Before anything is reconciled: what was committed serves.
        let version = lockgate.version(HOST).await.unwrap_or_else(|error| panic!("{point}: {error}"));
        let expected = lockgate.deployments().await.into_iter().find(|deployment| deployment.live).unwrap();
        let newest = lockgate.deployments().await[0].id;
        assert_eq!(version, if expected.id == newest { "two" } else { "one" }, "{point}");
        if answered.is_ok() {
            assert_eq!(version, "two", "{point}: an answered deploy was undone");
        }
    }
    check(&lockgate, point).await;
    lockgate.deploy("three").await.unwrap_or_else(|error| panic!("{point}: deploy after the crash: {error}"));
    assert_eq!(lockgate.version(HOST).await.unwrap(), "three", "{point}");
    check(&lockgate, point).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_fail_point_of_a_deploy_it_resumes_or_undoes() {
    for point in points() {
        crash_at(None, point, "kill").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_fail_point_it_loses_and_leaves_no_container() {
    let Some(engine) = Engine::shared("killed_at_every_fail_point_it_loses_and_leaves_no_container").await
    else {
        return;
    };
    for point in points().into_iter().chain(DOCKER_POINTS.iter().copied()) {
        crash_at(Some(&engine), point, "kill").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_the_old_version_is_stopped_it_stops_it_once() {
    for point in STOP_POINTS {
        // Only the second deploy replaces anything, so the first pass is the one.
        let mut lockgate = Lockgate::start(&format!("{point}=kill@1")).await;
        lockgate.deploy("one").await.unwrap();
        // Where the machine is busy it dies before it has answered.
        drop(lockgate.deploy("two").await);
        eventually(&format!("{point}: it dies"), async || lockgate.has_ended()).await;
        lockgate.spawn("").await;
        assert_eq!(lockgate.version(HOST).await.unwrap(), "two", "{point}");
        check(&lockgate, point).await;
        let one = lockgate.deployments().await[1].id;
        let stopped = async || lockgate.running().await == 1;
        eventually(&format!("{point}: the old version is stopped"), stopped).await;
        let logs: List<Logs> = lockgate.client.get(&format!("/v1/deployments/{one}/logs")).await.unwrap();
        let signals =
            logs.items.iter().flat_map(|logs| &logs.lines).filter(|line| line.contains("got SIGTERM"));
        assert!(signals.count() <= 1, "{point}: signalled twice");
    }
}

/// A swap to a version in standby: woken, checked, made live.
async fn crash_in_swap(engine: Option<&Engine>, point: &str, pass: u32, action: &str) {
    let mut lockgate = Lockgate::start_on(engine, &format!("{point}={action}@{pass}")).await;
    lockgate.deploy("one").await.unwrap();
    lockgate.deploy("two").await.unwrap();
    let one = lockgate.deployments().await[1].id;
    eventually("the first version sleeps", async || {
        let deployments = lockgate.deployments().await;
        deployments[1].desired_state == DesiredState::Standby && lockgate.running().await == 1
    })
    .await;
    let answered =
        lockgate.client.post::<Operation>("/v1/apps/web/swap", &json!({ "deployment": one })).await;
    if action == "kill" {
        eventually(&format!("{point}: it dies"), async || lockgate.has_ended()).await;
        lockgate.spawn("").await;
        let version = lockgate.version(HOST).await.unwrap_or_else(|error| panic!("{point}: {error}"));
        assert!(answered.is_err() || version == "one", "{point}: an answered swap was undone");
    }
    check(&lockgate, point).await;
    lockgate.deploy("three").await.unwrap_or_else(|error| panic!("{point}: deploy after the crash: {error}"));
    check(&lockgate, point).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_fail_point_of_a_swap_to_a_sleeping_container() {
    let test = "killed_at_every_fail_point_of_a_swap_to_a_sleeping_container";
    let Some(engine) = Engine::shared(test).await else { return };
    for (point, pass) in some_of(points_of_swap()) {
        crash_in_swap(Some(&engine), point, pass, "kill").await;
    }
}

/// All with `LOCKGATE_EVERY_POINT`; else each sixth, from one that the seed says (`LOCKGATE_SEED` repeats a run): each
/// takes seconds with containers.
pub(crate) fn some_of<T>(points: Vec<T>) -> Vec<T> {
    let (seed, step) =
        if std::env::var_os("LOCKGATE_EVERY_POINT").is_some() { (0, 1) } else { (seed_of_run(), 6) };
    println!("seed {seed}");
    points.into_iter().skip(usize::try_from(seed % 6).unwrap()).step_by(step).collect()
}

/// A request to a preview in standby: woken, or asleep as before.
async fn crash_in_wake(point: &str, pass: u32, action: &str) {
    let mut lockgate = Lockgate::start(&format!("{point}={action}@{pass}")).await;
    lockgate.with_sleeping_preview().await;
    let answered = lockgate.version("x.web.test").await;
    if action == "kill" {
        eventually(&format!("{point}: it dies"), async || lockgate.has_ended()).await;
        assert!(answered.is_err(), "{point}: answered before the start was committed");
        lockgate.spawn("").await;
    }
    eventually(&format!("{point}: a request is served"), async || {
        lockgate.version("x.web.test").await.as_deref() == Ok("preview")
    })
    .await;
    check(&lockgate, point).await;
    assert_eq!((lockgate.running().await, lockgate.instances().await.len()), (2, 2), "{point}");
    assert_eq!(lockgate.preview().await.desired_state, DesiredState::Running, "{point}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_or_failing_at_every_fail_point_of_a_wake_it_is_finished_or_undone() {
    let of = |step: steps::StepName, pass| [step.begun, step.acted, step.recorded].map(|point| (point, pass));
    let steps = [of(steps::WAKE, 1), of(steps::CHECK, 3)];
    for (point, pass) in steps.into_iter().flatten().chain([("wake.committed", 1)]) {
        crash_in_wake(point, pass, "kill").await;
        crash_in_wake(point, pass, "error").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_preview_is_put_into_standby_it_sleeps_and_a_request_wakes_it() {
    for point in STOP_POINTS {
        let mut lockgate = Lockgate::start(&format!("{point}=kill@1")).await;
        lockgate.deploy("live").await.unwrap();
        let preview = json!({ "env": { "VERSION": "preview" }, "label": "x", "ttl": "1h" });
        lockgate.deploy_with(&preview, "true").await.unwrap();
        // The answer may come before the end or not.
        drop(lockgate.cli(&["standby", "web", "x"]));
        eventually(&format!("{point}: it dies"), async || lockgate.has_ended()).await;
        lockgate.spawn("").await;
        lockgate.preview_sleeps().await;
        assert_eq!(lockgate.version("x.web.test").await.as_deref(), Ok("preview"), "{point}");
        check(&lockgate, point).await;
    }
}

/// With the pass of each that is the swap's, after two deploys.
fn points_of_swap() -> Vec<(&'static str, u32)> {
    let of = |step: steps::StepName, pass| [step.begun, step.acted, step.recorded].map(|point| (point, pass));
    let steps = [
        of(steps::WAKE, 1),
        of(steps::CHECK, 3),
        of(steps::SWAP, 3),
        of(steps::WATCH, 3),
        of(steps::DRAIN, 2),
    ];
    let others = [
        "store.commit_swap.before",
        "store.commit_swap.after",
        "swap.committed",
        "swap.published",
        "swap.closed",
    ];
    steps.into_iter().flatten().chain(others.map(|point| (point, 3))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_or_failing_at_every_fail_point_of_a_swap_to_a_sleeping_version() {
    for (point, pass) in points_of_swap() {
        crash_in_swap(None, point, pass, "kill").await;
        crash_in_swap(None, point, pass, "error").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_version_that_did_not_hold_is_taken_back() {
    let points =
        [steps::TAKE_BACK.begun, steps::TAKE_BACK.acted, steps::TAKE_BACK.recorded, "take-back.committed"];
    for point in points {
        let mut lockgate = Lockgate::start(&format!("{point}=kill@1")).await;
        lockgate.deploy_with(&json!({ "env": { "VERSION": "one" } }), "end").await.unwrap();
        lockgate.write_config("10m");
        assert_eq!(lockgate.cli(&["config", "reload"]).status.code(), Some(0));
        let (answered, ()) = tokio::join!(lockgate.deploy("two"), async {
            eventually("it is live", async || lockgate.version(HOST).await.as_deref() == Ok("two")).await;
            lockgate.kill_version("two");
        });
        answered.unwrap_err();
        eventually(&format!("{point}: it dies"), async || lockgate.has_ended()).await;
        lockgate.spawn("").await;
        eventually(&format!("{point}: the version before serves"), async || {
            lockgate.version(HOST).await.as_deref() == Ok("one")
        })
        .await;
        check(&lockgate, point).await;
        let ended = &lockgate.operations().await[0];
        assert_eq!(ended.state, OperationState::RolledBack, "{point}: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_preview_replaces_another_the_label_leads_to_one_that_runs() {
    for point in ["label.ready", "label.led", "label.replaced"] {
        let mut lockgate = Lockgate::start(&format!("{point}=kill@2")).await;
        lockgate.deploy("live").await.unwrap();
        let preview = |version: &str| json!({ "env": { "VERSION": version }, "label": "x", "ttl": "1h" });
        lockgate.deploy_with(&preview("one"), "true").await.unwrap();
        lockgate.deploy_with(&preview("two"), "true").await.unwrap_err();
        eventually(&format!("{point}: it dies"), async || lockgate.has_ended()).await;
        lockgate.spawn("").await;
        eventually(&format!("{point}: the label leads to the new one"), async || {
            lockgate.version("x.web.test").await.as_deref() == Ok("two")
        })
        .await;
        check(&lockgate, point).await;
        eventually(&format!("{point}: the replaced one is gone"), async || lockgate.running().await == 2)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_preview_expires_it_is_expired_and_removed_afterwards() {
    for point in ["label.archived", "instance.stop.intended", "instance.stopped", "instance.removed"] {
        let mut lockgate = Lockgate::start(&format!("{point}=kill@1")).await;
        lockgate.deploy("live").await.unwrap();
        let preview = json!({ "env": { "VERSION": "one" }, "label": "x", "ttl": "1h" });
        let preview = lockgate.deploy_with(&preview, "end").await.unwrap().deployment.unwrap();
        let extend = format!("/v1/deployments/{preview}/extend");
        // It may die before it has answered.
        drop(lockgate.client.post::<Deployment>(&extend, &json!({ "ttl": "100ms" })).await);
        eventually(&format!("{point}: it dies"), async || lockgate.has_ended()).await;
        lockgate.spawn("").await;
        assert!(lockgate.raw("x.web.test").await.contains("ephemeral_expired"), "{point}");
        eventually(&format!("{point}: it is removed"), async || lockgate.running().await == 1).await;
        check(&lockgate, point).await;
    }
}

/// What an older cutover left to drain is no reason to touch what was made live since.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_a_crash_interrupts_undoes_nothing_newer() {
    let mut lockgate = Lockgate::prepare(for_load);
    lockgate.spawn("").await;
    lockgate.deploy("one").await.unwrap();
    let _held = lockgate.unfinished(HOST).await;
    lockgate.deploy("two").await.unwrap();
    lockgate.deploy("three").await.unwrap();
    lockgate.kill();
    lockgate.spawn("").await;
    check(&lockgate, "drain").await;
    assert_eq!(lockgate.version(HOST).await.unwrap(), "three");
    let operations = lockgate.operations().await;
    assert!(operations.iter().all(|operation| operation.state.is_success()), "{operations:?}");
    let deployments = lockgate.deployments().await;
    assert!(
        deployments.iter().all(|deployment| deployment.status == DeploymentStatus::Ready),
        "{deployments:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_at_every_fail_point_leaves_one_version_live_and_no_stray_process() {
    for point in points() {
        // A swap that was committed goes on; everything before is undone. Which of the two is the store's to say.
        crash_at(None, point, "error").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_instants_it_always_comes_back_to_one_live_version() {
    kill_at_random(None, rounds(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_instants_it_finds_its_containers_again() {
    if let Some(engine) = Engine::shared("killed_at_random_instants_it_finds_its_containers_again").await {
        kill_at_random(Some(&engine), rounds(20) / 4).await;
    }
}

/// `LOCKGATE_KILL_ROUNDS` sets the number of rounds; of containers, whose rounds take longer, there are a quarter.
fn rounds(usual: u32) -> u32 {
    std::env::var("LOCKGATE_KILL_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// `LOCKGATE_SEED` repeats a run.
async fn kill_at_random(engine: Option<&Engine>, rounds: u32) {
    let mut seed = seed_of_run();
    println!("seed {seed}, {rounds} rounds");
    let mut lockgate = Lockgate::start_on(engine, "").await;
    lockgate.deploy("0").await.unwrap();
    let (mut away, mut held) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let instant = Duration::from_micros((seed >> 33) % 1_500_000);
        let version = round.to_string();
        tokio::select! {
            answered = lockgate.deploy(&version) => drop(answered),
            () = tokio::time::sleep(instant) => {}
        }
        lockgate.kill();
        let started = SystemClock.now();
        lockgate.launch("");
        while lockgate.version(HOST).await.is_err() {
            assert!(SystemClock.now() - started < PATIENCE, "round {round}: it does not serve again");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        away.push(SystemClock.now() - started);
        lockgate.ready().await;
        check(&lockgate, &format!("round {round}, killed after {instant:?}")).await;
        held.push(lockgate.held());
    }
    // Each life begins with what the lives before it left behind.
    println!("after the first start {:?}, after the last {:?}", held[0], held[held.len() - 1]);
    let most = held.iter().map(|held| held.resident).max().unwrap();
    let more = MEMORY_MORE + u64::from(rounds) * VERSION;
    assert!(most <= held[0].resident + more, "memory grows: {held:?}");
    away.sort_unstable();
    println!(
        "from the start to the first request served: median {:?}, longest {:?}",
        away[away.len() / 2],
        away[away.len() - 1]
    );
}

pub(crate) fn seed_of_run() -> u64 {
    std::env::var("LOCKGATE_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| lockgate::clock::Timestamp::now().as_microsecond().unsigned_abs())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_cannot_be_written_down_ends_the_operation_with_a_warning() {
    let lockgate = Lockgate::start("step.drain.acted=error@1").await;
    lockgate.deploy("one").await.unwrap();
    let done = lockgate
        .deploy_with(&json!({ "env": { "VERSION": "two" }, "force": true }), "end")
        .await
        .unwrap_or_else(|error| panic!("{error}: the cutover stands"));
    assert_eq!(done.state, OperationState::SucceededWithWarnings);
    let receipt = done.receipt.unwrap();
    assert!(receipt.notes.iter().any(|note| note.contains("the drain was not recorded")), "{receipt:?}");
    let shown = lockgate.cli(&["show", &done.id.to_string()]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("succeeded-with-warnings") && shown.contains("was not recorded"), "{shown}");
    assert_eq!(lockgate.version(HOST).await.as_deref(), Ok("two"));
}
