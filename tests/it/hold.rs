//! Strategy `hold` with the real binary: under load, and killed at each of its points, with one writer throughout.

use serde_json::json;

use crate::support::{HOST, Lockgate, eventually, for_load};

/// With an app that takes a directory for itself while it runs, and refuses to run where somebody else has it.
fn with_one_writer() -> Lockgate {
    let lockgate = Lockgate::prepare(for_load);
    let lock = lockgate.folder.path().join("lock");
    let broken = lockgate.folder.path().join("two-at-once");
    let script = format!(
        "exec 9>{lock}; flock -n 9 || {{ echo $VERSION >> {broken}; exit 9; }}; exec {} sample-app",
        crate::support::BINARY,
        lock = lock.display(),
        broken = broken.display(),
    );
    lockgate.change_config(|config| {
        let web = &mut config["apps"]["web"];
        web["command"] = json!(["/bin/sh", "-c", script]);
        web["deploy"]["strategy"] = json!("hold");
        web["deploy"]["hold_queue"] = json!(100_000);
        web["volumes"] = json!([{ "name": "data", "path": "/data" }]);
    });
    lockgate
}

fn one_writer(lockgate: &Lockgate, told: &str) {
    let broken = std::fs::read_to_string(lockgate.folder.path().join("two-at-once")).unwrap_or_default();
    assert_eq!(broken, "", "{told}: two at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn deploys_under_load_spill_nothing_and_never_run_two() {
    let mut lockgate = with_one_writer();
    lockgate.spawn("").await;
    lockgate.deploy("one").await.unwrap();
    let verdict = lockgate
        .under_load(async {
            for version in ["two", "three"] {
                let operation = lockgate.deploy(version).await.unwrap();
                let held = operation.receipt.unwrap().held.unwrap();
                assert!(held.ms > 0, "{held:?}");
            }
            lockgate.deploy_with(&json!({ "env": { "EXIT_AFTER_MS": "0" } }), "true").await.unwrap_err();
        })
        .await;
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!(lockgate.version(HOST).await.unwrap(), "three");
    one_writer(&lockgate, "under load");
}

/// With the pass of each that is the second deploy's.
#[cfg(feature = "fault")]
fn points() -> Vec<(&'static str, u32)> {
    use lockgate::deploy::steps;
    let of =
        |step: steps::StepName, pass: u32| [step.begun, step.acted, step.recorded].map(|point| (point, pass));
    let steps = [
        of(steps::HOLD, 1),
        of(steps::START, 2),
        of(steps::CHECK, 2),
        of(steps::GATE, 2),
        of(steps::SWAP, 2),
        of(steps::WATCH, 2),
    ];
    let others = ["hold.published", "hold.drained", "instance.stop.intended", "instance.stopped"]
        .map(|point| (point, 1));
    let second =
        ["instance.intended", "instance.started", "swap.committed", "swap.published"].map(|point| (point, 2));
    steps.into_iter().flatten().chain(others).chain(second).collect()
}

#[cfg(feature = "fault")]
async fn killed_at(mut lockgate: Lockgate, point: &str, pass: u32) -> Lockgate {
    lockgate.spawn(&format!("{point}=kill@{pass}")).await;
    lockgate.deploy("one").await.unwrap_or_else(|error| panic!("{point}: {error}"));
    let answered = lockgate.deploy("two").await;
    eventually(&format!("{point}: it dies"), async || lockgate.has_ended()).await;
    lockgate.spawn("").await;
    eventually(&format!("{point}: it has ended, and one version serves"), async || {
        let operations = lockgate.operations().await;
        operations.iter().all(|operation| operation.state.is_end())
            && lockgate.version(HOST).await.is_ok()
            && lockgate.running().await == 1
    })
    .await;
    let version = lockgate.version(HOST).await.unwrap();
    assert!(answered.is_err() || version == "two", "{point}: an answered deploy was undone");
    lockgate.deploy("three").await.unwrap_or_else(|error| panic!("{point}: {error}"));
    assert_eq!(lockgate.version(HOST).await.unwrap(), "three", "{point}");
    lockgate
}

#[cfg(feature = "fault")]
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_point_one_version_serves_and_no_two_ever_ran() {
    for (point, pass) in points() {
        one_writer(&killed_at(with_one_writer(), point, pass).await, point);
    }
}

#[cfg(feature = "fault")]
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_point_no_two_containers_of_it_ever_ran() {
    let test = "killed_at_every_point_no_two_containers_of_it_ever_ran";
    let Some(engine) = crate::engine::Engine::shared(test).await else { return };
    for (point, pass) in crate::crash::some_of(points()) {
        let lockgate = Lockgate::prepare_on(Some(&engine));
        lockgate.change_config(|config| config["apps"]["web"]["deploy"]["strategy"] = json!("hold"));
        let lockgate = killed_at(lockgate, point, pass).await;
        let id = std::fs::read_to_string(lockgate.folder.path().join("id")).unwrap();
        let seen = engine.starts_and_ends(&id);
        assert!(seen.contains(&"start".to_owned()), "{point}: the engine tells nothing");
        assert!(seen.windows(2).all(|two| two != ["start", "start"]), "{point}: two at once: {seen:?}");
    }
}

impl Lockgate {
    /// A second version that is watched, and then ends.
    async fn deploy_one_that_ends(&self) -> lockgate::api::Operation {
        self.change_config(|config| config["apps"]["web"]["deploy"]["watch"] = json!("10m"));
        assert_eq!(self.cli(&["config", "reload"]).status.code(), Some(0));
        let submitted = self.deploy_with(&json!({ "env": { "VERSION": "two" } }), "false").await.unwrap();
        eventually("it is watched", async || {
            let path = format!("/v1/operations/{}", submitted.id);
            let operation: lockgate::api::Operation = self.client.get(&path).await.unwrap();
            operation.steps.iter().any(|step| step.name == "watch")
        })
        .await;
        let of_it =
            self.instances().await.into_iter().filter(|one| Some(one.deployment) == submitted.deployment);
        for instance in of_it {
            crate::support::kill_where("environ", &format!("LOCKGATE_INSTANCE={}\0", instance.id));
        }
        submitted
    }

    async fn is_back(&self, submitted: &lockgate::api::Operation, told: &str) {
        eventually(&format!("{told}: the version before serves again"), async || {
            let path = format!("/v1/operations/{}", submitted.id);
            let operation: lockgate::api::Operation = self.client.get(&path).await.unwrap();
            operation.state == lockgate::store::OperationState::RolledBack
                && self.version(HOST).await.as_deref() == Ok("one")
                && self.running().await == 1
        })
        .await;
        one_writer(self, told);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_ends_while_it_is_watched_gives_the_traffic_back() {
    let mut lockgate = with_one_writer();
    lockgate.spawn("").await;
    lockgate.deploy("one").await.unwrap();
    let submitted = lockgate.deploy_one_that_ends().await;
    lockgate.is_back(&submitted, "taken back").await;
}

#[cfg(feature = "fault")]
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_point_of_the_way_back_the_version_before_serves_and_no_two_ever_ran() {
    let step = lockgate::deploy::steps::TAKE_BACK;
    let others = ["hand-back.published", "hand-back.stopped", "take-back.committed"];
    for point in [step.begun, step.acted, step.recorded].into_iter().chain(others) {
        let mut lockgate = with_one_writer();
        lockgate.spawn(&format!("{point}=kill")).await;
        lockgate.deploy("one").await.unwrap_or_else(|error| panic!("{point}: {error}"));
        let submitted = lockgate.deploy_one_that_ends().await;
        eventually(&format!("{point}: it dies"), async || lockgate.has_ended()).await;
        lockgate.spawn("").await;
        lockgate.is_back(&submitted, point).await;
    }
}
