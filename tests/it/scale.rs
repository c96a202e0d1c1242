//! Scaling with the real binary: under the verifier's load, and killed at each of its points.

use lockgate::api::Operation;
use serde_json::json;

use crate::support::{HOST, Lockgate, eventually, for_load};

#[cfg(feature = "fault")]
async fn scale(lockgate: &Lockgate, replicas: u16) -> Result<Operation, lockgate::cli::ClientError> {
    lockgate.client.post("/v1/apps/web/scale", &json!({ "replicas": replicas })).await
}

/// Clients are led to as many, and no process is left over or lost.
async fn settles_at(lockgate: &Lockgate, replicas: usize, point: &str) {
    eventually(&format!("{point}: {replicas} instances"), async || {
        let ended = lockgate.operations().await.iter().all(|operation| operation.state.is_end());
        let explained: serde_json::Value =
            lockgate.client.get(&format!("/v1/explain?host={HOST}&path=/")).await.unwrap();
        ended
            && explained["targets"].as_array().unwrap().len() == replicas
            && lockgate.instances().await.len() == replicas
            && lockgate.running().await == replicas
    })
    .await;
    assert_eq!(lockgate.version(HOST).await.unwrap(), "one", "{point}");
}

#[tokio::test(flavor = "multi_thread")]
async fn up_and_down_under_load_spills_nothing() {
    let mut lockgate = Lockgate::prepare(for_load);
    lockgate.spawn("").await;
    lockgate.deploy("one").await.unwrap();
    let verdict = lockgate
        .under_load(async {
            for replicas in [3, 1, 4, 2, 1] {
                let path = "/v1/apps/web/scale?drain=wait";
                let scaled: Operation =
                    lockgate.client.post(path, &json!({ "replicas": replicas })).await.unwrap();
                assert!(scaled.state.is_success(), "{scaled:?}");
            }
        })
        .await;
    assert!(verdict.is_clean(), "{verdict}");
    settles_at(&lockgate, 1, "under load").await;
    let shown = lockgate.cli(&["scale", "web", "2"]);
    let told = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success() && told.contains("1 -> 2 instances"), "{shown:?}");
    assert_eq!(lockgate.cli(&["scale", "web", "101"]).status.code(), Some(2));
    let refused = lockgate.client.post::<Operation>("/v1/apps/web/scale", &json!({ "replicas": 0 })).await;
    assert!(refused.unwrap_err().to_string().contains("1 to 100"));
}

#[cfg(feature = "fault")]
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_point_it_has_as_many_as_before_or_as_were_asked_for() {
    use lockgate::deploy::steps;
    let of = |step: steps::StepName, pass: u32| {
        [step.begun, step.acted, step.recorded].map(|point| (point.to_owned(), pass))
    };
    let own = ["store.resize.before", "scale.committed"].map(|point| (point.to_owned(), 1));
    // The deploy passes the steps that both have.
    let up = [of(steps::START, 2), of(steps::CHECK, 2), of(steps::SCALE, 1)].concat();
    let up = up.into_iter().chain(own.clone()).map(|point| (point, (1, 3)));
    let stops = ["instance.stop.intended", "instance.stopped", "instance.removed"];
    let stops = stops.map(|point| (point.to_owned(), 1));
    let down = [of(steps::SCALE, 1), of(steps::DRAIN, 1)].concat();
    let down = down.into_iter().chain(own).chain(stops).map(|point| (point, (3, 1)));
    for ((point, pass), (from, to)) in up.chain(down) {
        let told = format!("{point}, {from} to {to}");
        let mut lockgate = Lockgate::prepare(|config| config["apps"]["web"]["replicas"] = json!(from));
        lockgate.spawn(&format!("{point}=kill@{pass}")).await;
        lockgate.deploy("one").await.unwrap();
        let answered = scale(&lockgate, to).await;
        eventually(&format!("{told}: it dies"), async || lockgate.has_ended()).await;
        lockgate.spawn("").await;
        assert_eq!(lockgate.version(HOST).await.unwrap(), "one", "{told}");
        eventually(&format!("{told}: it has ended"), async || {
            lockgate.operations().await.iter().all(|operation| operation.state.is_end())
        })
        .await;
        let scaled = &lockgate.operations().await[0];
        assert!(scaled.state.is_success() || answered.is_err(), "{told}: an answered scaling was undone");
        settles_at(&lockgate, if scaled.state.is_success() { to } else { from }.into(), &told).await;
    }
}
