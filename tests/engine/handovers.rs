//! Strategy `hold`: requests wait while one version stops and the next one starts, and no two instances ever run at once.

use lockgate::deploy::{Receipt, RollbackRequest, ScaleRequest};
use lockgate::routing::{Hold, HoldEnd};
use lockgate::settings::{Replicas, Strategy};

use super::*;

async fn alone(change: impl FnOnce(&mut AppSettings)) -> Bed {
    Bed::with(|settings| {
        settings.deploy.strategy = Strategy::Hold;
        change(settings);
    })
    .await
}

impl Bed {
    fn hold_now(&self) -> Option<Arc<Hold>> {
        self.backend(HOST).unwrap().hold.clone()
    }

    /// The hold that an operation has begun.
    async fn holding(&self) -> Arc<Hold> {
        eventually("requests are held", async || self.hold_now().is_some()).await;
        self.hold_now().unwrap()
    }
}

fn receipt(operation: &Operation) -> Receipt {
    serde_json::from_str(operation.receipt.as_ref().unwrap()).unwrap()
}

#[tokio::test]
async fn the_new_version_starts_when_the_old_one_has_drained_and_stopped_and_requests_wait() {
    let bed = alone(|_| {}).await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let old = bed.backend(HOST).unwrap().targets[0].clone();
    let request = bed.request(HOST);
    let mut second = bed.submit(&["serve", "2"]).await;
    let hold = bed.holding().await;
    eventually("the old gate is closed", async || old.gate.is_closed()).await;
    assert!(
        hold.end().is_none() && !bed.runtime.told().contains(&Told::Stop(old.id)),
        "stopped under a request"
    );
    assert_eq!(bed.runtime.specs().len(), 1, "started beside it");
    drop(request);
    let operation = bed.ended(&mut second).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert_eq!(
        (hold.end(), bed.serves(HOST)),
        (Some(HoldEnd::Released), Ok(second.deployment.unwrap().to_string()))
    );
    assert!(bed.hold_now().is_none() && receipt(&operation).held.is_some());
    drop(bed.request(HOST));
    // With the swap itself: the timer may have to wait for the next operation, and what is to run meanwhile is started.
    assert_eq!(bed.status(one).await.1, DesiredState::Standby);
    eventually("its timer is done", async || {
        let timers = bed.store.timers().await.unwrap();
        !timers.iter().any(|timer| timer.deployment == one && timer.state == DesiredState::Standby)
    })
    .await;

    let request = RollbackRequest { app: Some(app()), ..RollbackRequest::default() };
    let mut back = bed.engine.submit(Command::Rollback(request), caller()).await.unwrap();
    let operation = bed.ended(&mut back).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert_eq!(bed.serves(HOST), Ok(one.to_string()));
    assert_eq!(bed.runtime.most_at_once(), 1);
}

#[tokio::test]
async fn the_old_version_serves_again_if_the_new_one_fails_or_is_cancelled() {
    for (command, cancel) in [("exit", false), ("sick", false), ("deaf", true)] {
        let bed = alone(|_| {}).await;
        let (one, _) = bed.deploy(&["serve", "1"]).await;
        let mut second = bed.submit(&[command, "2"]).await;
        let hold = bed.holding().await;
        if cancel {
            eventually("it was started", async || bed.runtime.specs().len() == 2).await;
            bed.engine.cancel(second.operation).await.unwrap();
        }
        let operation = bed.ended_in_time(&mut second).await;
        let state = if cancel { OperationState::Cancelled } else { OperationState::Failed };
        assert_eq!((operation.state, hold.end()), (state, Some(HoldEnd::Released)), "{command}");
        assert_eq!((bed.serves(HOST), bed.runtime.known()), (Ok(one.to_string()), 1), "{command}");
        drop(bed.request(HOST));
        assert_eq!(bed.runtime.most_at_once(), 1, "{command}");
    }
}

#[tokio::test]
async fn past_its_deadline_the_old_version_is_started_again() {
    let bed = alone(|settings| settings.deploy.health_timeout = Delay::seconds(600)).await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let mut second = bed.submit(&["deaf", "2"]).await;
    let hold = bed.holding().await;
    eventually("it was started", async || bed.runtime.specs().len() == 2).await;
    bed.clock.leap(Duration::from_secs(61));
    let operation = bed.ended(&mut second).await;
    assert_eq!(operation.failure.map(|failure| failure.code).as_deref(), Some("hold_timed_out"));
    assert_eq!((hold.end(), bed.serves(HOST)), (Some(HoldEnd::Released), Ok(one.to_string())));
    assert_eq!(bed.runtime.most_at_once(), 1);
}

#[tokio::test]
async fn a_release_command_and_a_restart_rule_wait_for_the_instance_that_runs() {
    let bed = alone(|settings| settings.release_command = vec!["done".into(), "migrate".into()]).await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let old = bed.backend(HOST).unwrap().targets[0].id;
    let (two, operation) = bed.deploy(&["serve", "2"]).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    let told = bed.runtime.told();
    let stopped = told.iter().position(|told| *told == Told::Stop(old)).unwrap();
    let release = bed.runtime.specs()[2].id;
    assert!(stopped < told.iter().position(|told| *told == Told::Start(release)).unwrap());
    // Somebody who thinks that the old version should run is kept from starting it.
    bed.store.clear_timer(&one).await.unwrap();
    bed.store.set_desired_state(&one, DesiredState::Running).await.unwrap();
    bed.runtime.hint(old);
    let looks = bed.runtime.looks();
    eventually("it was looked at", async || bed.runtime.looks() > looks + 2).await;
    assert_eq!((bed.runtime.most_at_once(), bed.serves(HOST)), (1, Ok(two.to_string())));
}

#[tokio::test]
async fn what_would_run_two_instances_is_refused() {
    let bed = alone(|_| {}).await;
    bed.deploy(&["serve", "1"]).await;
    let beside = DeployRequest { cutover: false, ..request(&["serve", "2"]) };
    assert_eq!(bed.try_submit(beside).await.unwrap_err().code(), "invalid");
    let replicas = Replicas::new(2).unwrap();
    let scale = ScaleRequest { app: Some(app()), environment: None, replicas };
    let denied = bed.engine.submit(Command::Scale(scale), caller()).await.unwrap_err();
    assert_eq!(denied.code(), "invalid");
    let mut two = bed.store.app(&app()).await.unwrap().unwrap();
    two.settings.replicas = replicas;
    assert_eq!(bed.engine.put_apps(&[two]).await.unwrap_err().code(), "invalid");
    let label = DeployRequest { label: Some("feat".parse().unwrap()), ..request(&["serve", "3"]) };
    let mut preview = bed.try_submit(label).await.unwrap();
    assert_eq!(
        bed.ended(&mut preview).await.state,
        OperationState::Succeeded,
        "a preview has volumes of its own"
    );
}

/// One version that serves, and a second one that is watched.
async fn watched(command: &[&str]) -> (Bed, DeploymentId, Submitted) {
    let bed = alone(|_| {}).await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let mut web = bed.store.app(&app()).await.unwrap().unwrap();
    web.settings.deploy.watch = Delay::seconds(600);
    bed.engine.put_apps(&[web]).await.unwrap();
    let second = bed.submit(command).await;
    let id = second.deployment.unwrap().to_string();
    eventually("it is live, and open", async || {
        bed.serves(HOST) == Ok(id.clone()) && bed.hold_now().is_none()
    })
    .await;
    (bed, one, second)
}

#[tokio::test]
async fn a_version_that_does_not_hold_is_stopped_and_the_one_before_started_again() {
    let (bed, one, mut second) = watched(&["serve", "2"]).await;
    let new = bed.backend(HOST).unwrap().targets[0].clone();
    let request = bed.request(HOST);
    bed.runtime.set_sick(new.id, true);
    let hold = bed.holding().await;
    eventually("its gate is closed", async || new.gate.is_closed()).await;
    assert!(
        hold.end().is_none() && !bed.runtime.told().contains(&Told::Stop(new.id)),
        "stopped under a request"
    );
    drop(request);
    let operation = bed.ended(&mut second).await;
    assert_eq!(operation.state, OperationState::RolledBack, "{operation:?}");
    assert_eq!((hold.end(), bed.serves(HOST)), (Some(HoldEnd::Released), Ok(one.to_string())));
    assert!(bed.hold_now().is_none());
    drop(bed.request(HOST));
    assert_eq!(bed.status(second.deployment.unwrap()).await.0, DeploymentStatus::Failed);
    assert_eq!(bed.status(one).await, (DeploymentStatus::Ready, DesiredState::Running));
    assert!(
        bed.store.timers().await.unwrap().iter().all(|timer| timer.deployment != one),
        "it would be stopped"
    );
    assert!(receipt(&operation).notes.iter().any(|note| note.contains("started again")));
    eventually("the new one is gone", async || bed.runtime.known() == 1).await;
    assert_eq!(bed.runtime.most_at_once(), 1);
}

#[tokio::test]
async fn one_that_ends_after_a_rollback_gives_the_traffic_back_too() {
    let bed = alone(|settings| settings.deploy.watch = Delay::seconds(600)).await;
    let mut deploys = Vec::new();
    for version in ["1", "2"] {
        let mut submitted = bed.submit(&["serve", version]).await;
        let id = submitted.deployment.unwrap();
        eventually("it is watched", async || bed.serves(HOST) == Ok(id.to_string())).await;
        bed.clock.leap(Duration::from_secs(601));
        assert_eq!(bed.ended(&mut submitted).await.state, OperationState::Succeeded);
        deploys.push(id);
    }
    let request = RollbackRequest { app: Some(app()), ..RollbackRequest::default() };
    let mut back = bed.engine.submit(Command::Rollback(request), caller()).await.unwrap();
    eventually("it is live, and open", async || {
        bed.serves(HOST) == Ok(deploys[0].to_string()) && bed.hold_now().is_none()
    })
    .await;
    bed.runtime.end(bed.runtime.of(deploys[0])[0]);
    let operation = bed.ended(&mut back).await;
    assert_eq!(operation.state, OperationState::RolledBack, "{operation:?}");
    assert_eq!(bed.serves(HOST), Ok(deploys[1].to_string()));
    drop(bed.request(HOST));
    assert_eq!(bed.runtime.most_at_once(), 1);
}

#[tokio::test]
async fn where_neither_version_starts_nothing_waits_and_the_operation_has_failed() {
    let (bed, one, mut second) = watched(&["serve", "2"]).await;
    let two = second.deployment.unwrap();
    bed.runtime.set_starts_sick(true);
    bed.runtime.set_sick(bed.runtime.of(two)[0], true);
    let hold = bed.holding().await;
    let operation = bed.ended(&mut second).await;
    let failure = operation.failure.as_ref().unwrap();
    assert_eq!((operation.state, failure.code.as_str()), (OperationState::Failed, "unhealthy"));
    assert!(failure.evidence.iter().any(|line| line.contains(&one.to_string())), "{failure:?}");
    assert_eq!(hold.end(), Some(HoldEnd::Released));
    let backend = bed.backend(HOST).unwrap();
    assert!(backend.hold.is_none() && backend.targets.is_empty(), "503 no_backend");
    // The restart rule tries the one that is live.
    bed.runtime.set_starts_sick(false);
    eventually("it serves again", async || {
        for id in bed.runtime.of(two) {
            bed.runtime.set_sick(id, false);
        }
        bed.serves(HOST) == Ok(two.to_string()) && !bed.backend(HOST).unwrap().targets.is_empty()
    })
    .await;
    assert_eq!(bed.runtime.most_at_once(), 1);
}
