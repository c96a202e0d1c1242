//! What the doctor tells of, each by itself, and that it tells of nothing where nothing is amiss.

use lockgate::deploy::FindingKind;
use lockgate::ids::OperationId;
use lockgate::runtime::StoredVolume;
use lockgate::store::{NewOperation, OperationKind, Timer};

use super::*;

impl Bed {
    async fn amiss(&self) -> Vec<(FindingKind, String)> {
        let findings = self.engine.doctor().await.unwrap();
        assert!(findings.iter().all(|finding| !finding.cause.is_empty() && !finding.remedy.is_empty()));
        findings.into_iter().map(|finding| (finding.kind, finding.subject)).collect()
    }
}

/// Nothing is mended meanwhile: time stands still.
async fn two_versions() -> (Bed, DeploymentId, DeploymentId) {
    let bed = Bed::with(|settings| settings.deploy.watch = Delay::seconds(0)).await;
    let (old, _) = bed.deploy(&["serve", "1"]).await;
    let (live, _) = bed.deploy(&["serve", "2"]).await;
    bed.clock.stop();
    eventually("all has settled", async || bed.amiss().await.is_empty()).await;
    (bed, old, live)
}

#[tokio::test]
async fn an_instance_that_is_not_as_its_deployment_wants_it_is_told() {
    let (bed, old, live) = two_versions().await;
    let (asleep, serving) = (bed.runtime.of(old)[0], bed.runtime.of(live)[0]);
    bed.runtime.end_unnoticed(serving);
    assert_eq!(bed.amiss().await, [(FindingKind::MissingInstance, serving.to_string())]);

    let (bed, _, live) = two_versions().await;
    let serving = bed.runtime.of(live)[0];
    bed.backend(HOST).unwrap().targets[0].set_healthy(false);
    assert_eq!(bed.amiss().await, [(FindingKind::UnhealthyInstance, serving.to_string())]);

    let (bed, old, _) = two_versions().await;
    let left_over = bed.runtime.of(old)[0];
    bed.store.set_desired_state(&old, DesiredState::Archived).await.unwrap();
    assert_eq!(bed.amiss().await, [(FindingKind::LeftOverInstance, left_over.to_string())]);
    assert_ne!(asleep, left_over);

    let (bed, old, _) = two_versions().await;
    let stray = bed.runtime.of(old)[0];
    bed.store.delete_instance(&stray).await.unwrap();
    assert_eq!(bed.amiss().await, [(FindingKind::StrayInstance, stray.to_string())]);
}

#[tokio::test]
async fn a_runtime_that_is_away_hides_nothing_else() {
    let (bed, old, _) = two_versions().await;
    bed.runtime.set_away(true);
    let due = bed.clock.wall() - Duration::from_secs(120);
    let timer = Timer { deployment: old, nonce: "late".to_owned(), state: DesiredState::Standby, due };
    bed.store.arm_timer(&timer).await.unwrap();
    let expected =
        [(FindingKind::RuntimeAway, "runtime".to_owned()), (FindingKind::OverdueTimer, old.to_string())];
    assert_eq!(bed.amiss().await, expected);
}

#[tokio::test]
async fn an_operation_that_nobody_works_on_is_told_and_one_that_waits_is_not() {
    let (bed, _, live) = two_versions().await;
    let held = bed.request(HOST);
    let mut draining = bed.submit(&["serve", "3"]).await;
    within(draining.reached(Progress::CutOver)).await;
    assert_eq!(bed.amiss().await, [], "an operation whose drain goes on");
    drop(held);
    bed.ended(&mut draining).await;
    let abandoned = NewOperation {
        id: OperationId::generate(),
        kind: OperationKind::Swap,
        app: app(),
        environment: EnvironmentName::production(),
        deployment: Some(live),
        request: "{}".to_owned(),
        actor: "test".to_owned(),
        idempotency: None,
        at: bed.clock.wall(),
    };
    bed.store.begin_operation(&abandoned, None).await.unwrap();
    assert_eq!(bed.amiss().await, [(FindingKind::AbandonedOperation, abandoned.id.to_string())]);
}

#[tokio::test]
async fn an_ephemeral_deployment_past_its_time_and_a_live_one_that_serves_nothing_are_told() {
    let (bed, _, _) = two_versions().await;
    let request = DeployRequest { label: Some("x".parse().unwrap()), ..request(&["serve", "x"]) };
    let mut preview = bed.try_submit(request).await.unwrap();
    bed.ended(&mut preview).await;
    let preview = preview.deployment.unwrap();
    let over = bed.clock.wall() - Duration::from_secs(120);
    bed.store.set_expiry(&preview, over).await.unwrap();
    assert_eq!(bed.amiss().await, [(FindingKind::OverdueExpiry, preview.to_string())]);

    let bed = Bed::with(|settings| settings.deploy.watch = Delay::seconds(0)).await;
    let (live, _) = bed.deploy(&["serve", "1"]).await;
    bed.clock.stop();
    bed.runtime.end(bed.runtime.of(live)[0]);
    // Its address is believed until somebody looks; a restart does, and leaves out what does not answer.
    let clock = bed.clock.clone();
    bed.runtime.set_starts_sick(true);
    let bed = bed.restart_at(clock).await;
    eventually("it is out of rotation", async || {
        bed.clock.leap(Duration::from_millis(100));
        bed.amiss().await.contains(&(FindingKind::NothingServes, "web/production".to_owned()))
    })
    .await;
}

#[tokio::test]
async fn a_volume_of_a_preview_that_is_gone_is_told_and_what_is_of_an_app_is_not() {
    let (bed, _, _) = two_versions().await;
    let of = |app: &str, label: Option<&str>| StoredVolume {
        place: format!("{app}-{label:?}"),
        app: app.parse().unwrap(),
        environment: EnvironmentName::production(),
        label: label.map(|label| label.parse().unwrap()),
        name: "data".to_owned(),
    };
    let gone = of("web", Some("gone"));
    // The last one was kept when its app was removed.
    *bed.runtime.volumes.lock().unwrap() = vec![of("web", None), gone.clone(), of("nobody", None)];
    assert_eq!(bed.amiss().await, [(FindingKind::StrayVolume, gone.place)]);
}
