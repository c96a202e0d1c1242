//! A version that answers worse than the one before it gives the traffic back, and only such a one.

use lockgate::deploy::{Receipt, RollbackRequest};
use lockgate::settings::Percent;

use super::plane::Plane;
use super::*;

/// The default: before so many requests nothing is judged.
const ENOUGH: u32 = 100;

fn receipt(operation: &Operation) -> Receipt {
    serde_json::from_str(operation.receipt.as_ref().unwrap()).unwrap()
}

async fn watched() -> (Bed, Plane) {
    let bed = Bed::with(|settings| settings.deploy.watch = Delay::seconds(600)).await;
    let plane = Plane::before(&bed);
    (bed, plane)
}

impl Bed {
    /// Begins a deploy, and returns when it is live and watched.
    async fn live_and_watched(&self, command: &[&str]) -> Submitted {
        let submitted = self.submit(command).await;
        let new = submitted.deployment.unwrap().to_string();
        eventually("it is live", async || self.serves(HOST) == Ok(new.clone())).await;
        submitted
    }
}

#[tokio::test]
async fn a_version_that_fails_more_often_than_the_one_before_gives_the_traffic_back() {
    let (bed, plane) = watched().await;
    let (first, _) = bed.deploy_held(&["serve", "1"]).await;
    plane.get_often(ENOUGH).await;
    let mut second = bed.live_and_watched(&["errs", "2", "2"]).await;
    plane.get_often(ENOUGH).await;
    let operation = bed.ended(&mut second).await;
    let evidence = receipt(&operation).evidence.unwrap();
    assert_eq!((evidence.old.requests, evidence.old.failed), (u64::from(ENOUGH), 0));
    assert_eq!((evidence.new.requests, evidence.new.failed), (100, 50));
    assert!(evidence.old.p99_us.is_some() && evidence.new.p99_us.is_some());
    let failure = operation.failure.unwrap();
    assert_eq!((operation.state, failure.code.as_str()), (OperationState::RolledBack, "error_rate"));
    assert!(failure.evidence[0].contains("100 requests, 50 failed"), "{failure:?}");
    assert_eq!(bed.serves(HOST), Ok(first.to_string()));
    assert_eq!(bed.status(second.deployment.unwrap()).await.0, DeploymentStatus::Failed);
    assert!(plane.get("").await.contains("x-version: 1"));
    plane.shutdown().await;
}

#[tokio::test]
async fn an_app_that_always_failed_is_deployed_all_the_same() {
    let (bed, plane) = watched().await;
    bed.deploy_held(&["errs", "1", "1"]).await;
    plane.get_often(ENOUGH).await;
    let mut second = bed.live_and_watched(&["errs", "1", "2"]).await;
    plane.get_often(ENOUGH).await;
    let operation = bed.held(&mut second).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert_eq!(receipt(&operation).evidence.unwrap().new.failed, u64::from(ENOUGH));
    plane.shutdown().await;
}

#[tokio::test]
async fn a_few_requests_on_either_side_judge_nothing_where_not_nearly_all_fail() {
    for (old, new) in [(ENOUGH, ENOUGH - 1), (ENOUGH - 1, ENOUGH)] {
        let (bed, plane) = watched().await;
        bed.deploy_held(&["serve", "1"]).await;
        plane.get_often(old).await;
        let mut second = bed.live_and_watched(&["errs", "2", "2"]).await;
        plane.get_often(new).await;
        let operation = bed.held(&mut second).await;
        assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
        plane.shutdown().await;
    }
}

#[tokio::test]
async fn a_version_that_fails_all_of_its_few_requests_gives_the_traffic_back() {
    let (bed, plane) = watched().await;
    let (first, _) = bed.deploy_held(&["serve", "1"]).await;
    plane.get_often(20).await;
    let mut second = bed.live_and_watched(&["errs", "1", "2"]).await;
    plane.get_often(10).await;
    let operation = bed.ended(&mut second).await;
    let failure = operation.failure.as_ref().unwrap();
    assert_eq!((operation.state, failure.code.as_str()), (OperationState::RolledBack, "error_rate"));
    assert_eq!(bed.serves(HOST), Ok(first.to_string()));
    plane.shutdown().await;
}

#[tokio::test]
async fn where_it_is_switched_off_nothing_is_judged() {
    let bed = Bed::with(|settings| {
        settings.deploy.watch = Delay::seconds(600);
        settings.deploy.rollback_on.error_rate = None;
    })
    .await;
    let plane = Plane::before(&bed);
    bed.deploy_held(&["serve", "1"]).await;
    plane.get_often(ENOUGH).await;
    let mut second = bed.live_and_watched(&["errs", "1", "2"]).await;
    plane.get_often(ENOUGH).await;
    assert_eq!(bed.held(&mut second).await.state, OperationState::Succeeded);
    plane.shutdown().await;
}

#[tokio::test]
async fn a_rollback_stays_where_a_person_wanted_it_whatever_clients_get() {
    let (bed, plane) = watched().await;
    let (first, _) = bed.deploy_held(&["errs", "1", "1"]).await;
    bed.deploy_held(&["serve", "2"]).await;
    plane.get_often(ENOUGH).await;
    let request = RollbackRequest { app: Some(app()), ..RollbackRequest::default() };
    let mut back = bed.engine.submit(Command::Rollback(request), caller()).await.unwrap();
    eventually("it is live", async || bed.serves(HOST) == Ok(first.to_string())).await;
    plane.get_often(ENOUGH).await;
    assert_eq!(bed.held(&mut back).await.state, OperationState::Succeeded);
    plane.shutdown().await;
}

#[tokio::test]
async fn a_version_that_answers_far_slower_gives_the_traffic_back_where_that_is_asked_for() {
    let bed = Bed::with(|settings| {
        settings.deploy.watch = Delay::seconds(600);
        settings.deploy.rollback_on.latency_p99 = Some(Percent::of(300));
        settings.deploy.rollback_on.min_requests = 20;
    })
    .await;
    let plane = Plane::before(&bed);
    bed.clock.stop();
    let (first, _) = bed.deploy_held(&["serve", "1"]).await;
    plane.get_often(20).await;
    let mut second = bed.live_and_watched(&["stall", "2"]).await;
    // By the clock that stands: each is answered a second after it was asked.
    for asked in 1..=20 {
        let request = plane.ask("").await;
        eventually("it has come", async || bed.runtime.stalled() == asked).await;
        bed.clock.leap(Duration::from_secs(1));
        bed.runtime.unstall();
        Plane::rest(request).await;
    }
    eventually("it is judged", async || {
        // Between two looks.
        bed.clock.leap(Duration::from_millis(100));
        second.reached(Progress::Running).await == Progress::Ended
    })
    .await;
    let operation = bed.ended(&mut second).await;
    assert_eq!(operation.failure.unwrap().code, "latency");
    assert_eq!(bed.serves(HOST), Ok(first.to_string()));
    plane.shutdown().await;
}
