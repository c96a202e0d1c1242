//! The real binary and the sample app: a version that fails gives the traffic back, also across a crash.

use lockgate::api::Operation;
use lockgate::store::{DeploymentStatus, OperationState};
use serde_json::json;

use crate::support::{HOST, Lockgate, eventually};

async fn operation(lockgate: &Lockgate, of: &Operation) -> Operation {
    lockgate.client.get(&format!("/v1/operations/{}", of.id)).await.unwrap()
}

async fn fails_and_is_taken_back(is_killed: bool) {
    let mut lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    for _ in 0..100 {
        lockgate.version(HOST).await.unwrap();
    }
    lockgate.write_config("10m");
    assert_eq!(lockgate.cli(&["config", "reload"]).status.code(), Some(0));
    let failing = json!({ "env": { "VERSION": "two", "FAIL_EVERY": "2" } });
    let submitted = lockgate.deploy_with(&failing, "false").await.unwrap();
    eventually("the new version is watched", async || {
        operation(&lockgate, &submitted).await.steps.iter().any(|step| step.name == "watch")
    })
    .await;
    if is_killed {
        lockgate.kill();
        lockgate.spawn("").await;
    }
    eventually("the operation has ended", async || {
        for _ in 0..20 {
            drop(lockgate.version(HOST).await);
        }
        operation(&lockgate, &submitted).await.state.is_end()
    })
    .await;
    let ended = operation(&lockgate, &submitted).await;
    assert_eq!(ended.state, OperationState::RolledBack, "{ended:?}");
    assert_eq!(ended.failure.unwrap().code, "error_rate");
    let evidence = ended.receipt.unwrap().evidence.unwrap();
    assert!(evidence.old.requests >= 100 && evidence.old.failed == 0, "{evidence:?}");
    assert!(evidence.new.requests >= 100 && evidence.new.failed * 3 > evidence.new.requests, "{evidence:?}");
    assert_eq!(lockgate.version(HOST).await.as_deref(), Ok("one"));
    assert_eq!(lockgate.deployments().await[0].status, DeploymentStatus::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_fails_gives_the_traffic_back_with_the_figures() {
    fails_and_is_taken_back(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_fails_is_judged_by_what_was_written_down_before_a_crash() {
    fails_and_is_taken_back(true).await;
}
