//! Another number of instances of the live version: who gets requests when, and who is stopped when.

use lockgate::deploy::{RollbackRequest, ScaleReceipt, ScaleRequest};
use lockgate::ids::{EnvironmentName, InstanceId};
use lockgate::settings::{QueueSettings, Replicas};

use super::*;

impl Bed {
    async fn scale(&self, replicas: u16) -> Submitted {
        let replicas = Replicas::new(replicas).unwrap();
        let request = ScaleRequest { app: Some(app()), environment: None, replicas };
        self.engine.submit(Command::Scale(request), caller()).await.unwrap()
    }

    /// Scales and waits for the end of the operation.
    async fn scaled(&self, replicas: u16) -> Operation {
        let mut submitted = self.scale(replicas).await;
        self.ended(&mut submitted).await
    }

    fn rotation(&self) -> Vec<InstanceId> {
        let mut ids: Vec<_> = self.backend(HOST).unwrap().targets.iter().map(|target| target.id).collect();
        ids.sort_unstable();
        ids
    }

    async fn scaled_to(&self) -> Option<u16> {
        let environment = self.store.environment(&app(), &EnvironmentName::production()).await.unwrap();
        environment.unwrap().replicas.map(Replicas::count)
    }
}

fn receipt(operation: &Operation) -> ScaleReceipt {
    serde_json::from_str(operation.receipt.as_ref().unwrap()).unwrap()
}

#[tokio::test]
async fn more_instances_join_together_once_all_are_ready_and_those_that_serve_stay() {
    let bed = Bed::new().await;
    let (version, _) = bed.deploy(&["serve", "1"]).await;
    let first = bed.backend(HOST).unwrap().targets[0].clone();
    let mut scaling = bed.scale(3).await;
    let mut seen = std::collections::BTreeSet::new();
    while scaling.reached(Progress::Running).await < Progress::CutOver {
        seen.insert(bed.rotation().len());
        tokio::task::yield_now().await;
    }
    let operation = bed.ended(&mut scaling).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    seen.insert(bed.rotation().len());
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [1, 3], "they join at once");
    let targets = bed.backend(HOST).unwrap().targets.to_vec();
    assert!(targets.iter().any(|target| Arc::ptr_eq(target, &first)), "the first one was replaced");
    let told = receipt(&operation);
    assert_eq!((told.deployment, told.before, told.replicas), (Some(version), 1, 3));
    assert_eq!(bed.serves(HOST), Ok(version.to_string()));
}

#[tokio::test]
async fn an_instance_that_is_let_go_is_stopped_after_its_last_request_and_removed() {
    let bed = Bed::with(|settings| settings.replicas = Replicas::new(2).unwrap()).await;
    bed.deploy(&["serve", "1"]).await;
    let both = bed.backend(HOST).unwrap().targets.to_vec();
    let held = [both[0].gate.enter(0).unwrap(), both[1].gate.enter(0).unwrap()];
    let mut scaling = bed.scale(1).await;
    within(scaling.reached(Progress::CutOver)).await;
    assert_eq!(bed.rotation().len(), 1);
    let gone = both.iter().find(|target| !bed.rotation().contains(&target.id)).unwrap();
    assert!(gone.gate.is_closed(), "it may still be entered");
    assert!(
        both.iter().filter(|target| target.gate.is_closed()).count() == 1,
        "another one was closed as well"
    );
    assert!(!bed.runtime.told().contains(&Told::Stop(gone.id)), "stopped under a request");
    drop(held);
    let operation = bed.ended(&mut scaling).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    let told = receipt(&operation);
    assert_eq!((told.before, told.replicas, told.in_flight.requests, told.drained.requests), (2, 1, 1, 1));
    let stops: Vec<_> =
        bed.runtime.told().into_iter().filter(|told| !matches!(told, Told::Start(_))).collect();
    assert_eq!(stops, [Told::Stop(gone.id), Told::Remove(gone.id)]);
    assert_eq!(bed.store.instances(None).await.unwrap().len(), 1);
}

/// Fixed fault: a look at what runs, between the decision and the publish, published without the instance that goes, and
/// then nobody closed its gate or waited for what it served. An instance that is being replaced makes the scaling wait there.
#[tokio::test]
async fn what_looks_while_an_instance_is_let_go_does_not_have_it_stopped_under_its_requests() {
    let bed = Bed::with(|settings| {
        settings.replicas = Replicas::new(3).unwrap();
        settings.deploy.drain_timeout = Delay::seconds(24 * 3600);
    })
    .await;
    bed.deploy(&["serve", "1"]).await;
    let [ill, goes, stays] = bed.backend(HOST).unwrap().targets.to_vec().try_into().unwrap();
    let replaced = ill.gate.enter(0).unwrap();
    bed.runtime.set_sick(ill.id, true);
    eventually("it is out of rotation", async || {
        bed.clock.leap(Duration::from_millis(500));
        ill.gate.is_closed()
    })
    .await;
    let held = goes.gate.enter(0).unwrap();
    let busy = [stays.gate.enter(0).unwrap(), stays.gate.enter(0).unwrap()];
    let mut scaling = bed.scale(1).await;
    eventually("a look publishes without it", async || {
        bed.runtime.hint(stays.id);
        bed.rotation() == [stays.id]
    })
    .await;
    assert!(!goes.gate.is_closed(), "the scaling did not wait");
    drop(replaced);
    within(scaling.reached(Progress::CutOver)).await;
    assert!(goes.gate.is_closed(), "it may still be entered");
    bed.looked().await;
    assert!(!bed.runtime.told().contains(&Told::Stop(goes.id)), "stopped under a request");
    drop(held);
    let operation = bed.ended(&mut scaling).await;
    let told = receipt(&operation);
    assert_eq!((told.before, told.in_flight.requests, told.drained.requests), (3, 1, 1), "{operation:?}");
    assert!(bed.runtime.told().contains(&Told::Stop(goes.id)));
    assert_eq!((bed.rotation(), bed.runtime.known()), (vec![stays.id], 1));
    drop(busy);
}

#[tokio::test]
async fn the_one_that_serves_worst_goes_first() {
    let bed = Bed::with(|settings| settings.replicas = Replicas::new(3).unwrap()).await;
    bed.deploy(&["serve", "1"]).await;
    let all = bed.backend(HOST).unwrap().targets.to_vec();
    all[1].set_healthy(false);
    let busy = all[2].gate.enter(0).unwrap();
    bed.scaled(2).await;
    assert!(!bed.rotation().contains(&all[1].id), "the unhealthy one stays");
    bed.scaled(1).await;
    assert_eq!(bed.rotation(), [all[2].id], "the one with a request went");
    drop(busy);
}

#[tokio::test]
async fn further_instances_that_do_not_become_ready_go_and_as_many_serve_as_before() {
    let bed = Bed::new().await;
    bed.deploy(&["each", "serve", "serve", "sick"]).await;
    let before = bed.rotation();
    let mut scaling = bed.scale(3).await;
    let operation = bed.ended_in_time(&mut scaling).await;
    assert_eq!(operation.failure.as_ref().map(|failure| failure.code.as_str()), Some("not_ready"));
    assert_eq!((bed.rotation(), bed.runtime.known()), (before, 1));
    assert_eq!(bed.store.instances(None).await.unwrap().len(), 1);
    assert_eq!(bed.scaled_to().await, None, "the number was kept though it failed");
}

#[tokio::test]
async fn a_scaling_that_is_cancelled_takes_back_what_it_started() {
    let bed = Bed::with(|settings| settings.deploy.health_timeout = Delay::seconds(60)).await;
    bed.deploy(&["each", "serve", "deaf"]).await;
    let mut scaling = bed.scale(2).await;
    eventually("another one was started", async || bed.runtime.running().len() == 2).await;
    bed.engine.cancel(scaling.operation).await.unwrap();
    assert_eq!(bed.ended(&mut scaling).await.state, OperationState::Cancelled);
    assert_eq!((bed.rotation().len(), bed.runtime.known()), (1, 1));
}

#[tokio::test]
async fn the_number_holds_for_later_deploys_and_rollbacks_until_the_setting_is_changed() {
    let bed = Bed::with(|settings| settings.deploy.standby_after = Delay::seconds(0)).await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let (two, _) = bed.deploy(&["serve", "2"]).await;
    eventually("the first sleeps", async || bed.status(one).await.1 == DesiredState::Standby).await;
    bed.scaled(3).await;
    let (_, again) = bed.deploy(&["serve", "2"]).await;
    assert_eq!(
        again.failure.map(|failure| failure.code).as_deref(),
        Some("noop"),
        "it is equal but for the number"
    );
    let request = RollbackRequest { app: Some(app()), ..RollbackRequest::default() };
    let mut back = bed.engine.submit(Command::Rollback(request), caller()).await.unwrap();
    let operation = bed.ended(&mut back).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert_eq!((bed.serves(HOST), bed.rotation().len()), (Ok(one.to_string()), 3));

    bed.scaled(2).await;
    let mut swap = bed.swap(two).await.unwrap();
    assert_eq!(bed.ended(&mut swap).await.state, OperationState::Succeeded);
    assert_eq!((bed.serves(HOST), bed.rotation().len()), (Ok(two.to_string()), 2));

    let mut changed = bed.store.app(&app()).await.unwrap().unwrap();
    bed.engine.put_apps(std::slice::from_ref(&changed)).await.unwrap();
    assert_eq!(bed.scaled_to().await, Some(2), "nothing was said of the number");
    changed.settings.replicas = Replicas::new(4).unwrap();
    bed.engine.put_apps(&[changed]).await.unwrap();
    assert_eq!((bed.scaled_to().await, bed.rotation().len()), (None, 2));
}

#[tokio::test]
async fn scaled_before_the_first_deploy_the_deploy_has_as_many() {
    let bed = Bed::new().await;
    let operation = bed.scaled(2).await;
    assert_eq!((operation.state, receipt(&operation).deployment), (OperationState::Succeeded, None));
    bed.deploy(&["serve", "1"]).await;
    assert_eq!(bed.rotation().len(), 2);
}

#[tokio::test]
async fn a_deploy_that_waited_behind_a_scaling_has_its_number() {
    let bed = Bed::with(|settings| settings.deploy.watch = Delay::seconds(1)).await;
    let mut first = bed.submit(&["serve", "1"]).await;
    eventually("it runs", async || !bed.runtime.running().is_empty()).await;
    let mut scaling = bed.scale(2).await;
    let mut second = bed.submit(&["serve", "2"]).await;
    for waited in [&mut first, &mut scaling, &mut second] {
        assert_eq!(bed.ended(waited).await.state, OperationState::Succeeded);
    }
    assert_eq!((bed.serves(HOST), bed.rotation().len()), (Ok(second.deployment.unwrap().to_string()), 2));
}

#[tokio::test]
async fn an_instance_that_was_let_go_is_not_brought_back() {
    let bed = Bed::with(|settings| settings.replicas = Replicas::new(2).unwrap()).await;
    bed.deploy(&["serve", "1"]).await;
    let both = bed.backend(HOST).unwrap().targets.to_vec();
    let held = [both[0].gate.enter(0).unwrap(), both[1].gate.enter(0).unwrap()];
    let mut scaling = bed.scale(1).await;
    within(scaling.reached(Progress::CutOver)).await;
    let gone = both.iter().find(|target| !bed.rotation().contains(&target.id)).unwrap().id;
    // It dies while it drains: the restart rule has no business with it.
    bed.runtime.end(gone);
    let looks = bed.runtime.looks();
    eventually("it was looked at", async || bed.runtime.looks() > looks + 1).await;
    assert_eq!(bed.runtime.starts(gone), 1);
    assert_eq!(bed.rotation().len(), 1);
    drop(held);
    bed.ended(&mut scaling).await;
    eventually("it is gone", async || bed.runtime.known() == 1).await;
    assert_eq!(bed.runtime.starts(gone), 1);
}

#[tokio::test]
async fn after_a_restart_there_are_as_many_as_it_was_scaled_to() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "1"]).await;
    bed.scaled(3).await;
    let three = bed.rotation();
    let bed = bed.restart().await;
    assert_eq!(bed.rotation(), three);
    bed.scaled(1).await;
    let one = bed.rotation();
    let bed = bed.restart().await;
    assert_eq!((bed.rotation(), bed.scaled_to().await), (one, Some(1)));
}

#[tokio::test]
async fn an_instance_that_joins_starts_slowly_and_those_of_a_swap_do_not() {
    let bed = Bed::with(|settings| settings.slow_start = Some(LONG)).await;
    let joined = || {
        let targets = bed.backend(HOST).unwrap().targets.to_vec();
        assert!(targets.iter().all(|target| target.slow_start == Some(LONG.0)));
        targets.iter().filter(|target| target.joined.is_some()).count()
    };
    bed.deploy(&["serve", "1"]).await;
    assert_eq!(joined(), 0, "it is the first");
    bed.scaled(3).await;
    assert_eq!(joined(), 2);
    bed.deploy(&["serve", "2"]).await;
    assert_eq!((bed.rotation().len(), joined()), (3, 0), "all are new");
    // What a restart of Lockgate finds has been there before.
    let bed = bed.restart().await;
    assert!(bed.backend(HOST).unwrap().targets.iter().all(|target| target.joined.is_none()));
}

#[tokio::test]
async fn a_limit_is_one_for_all_that_leads_to_an_instance_and_stays_as_others_join() {
    let options = Options { apex: Some("apps.test".parse().unwrap()), ..Options::default() };
    let bed = Bed::with_options(options, |settings| {
        settings.max_concurrent_requests = Some(2);
        settings.queue = Some(QueueSettings { size: 5, timeout: LONG });
    })
    .await;
    let (version, _) = bed.deploy(&["serve", "1"]).await;
    let live = bed.backend(HOST).unwrap();
    let hosts = bed.engine.hosts(version);
    let backends = hosts.iter().filter_map(|host| bed.backend(host).ok());
    let own = backends.into_iter().find(|backend| !Arc::ptr_eq(backend, &live)).unwrap();
    assert!(!Arc::ptr_eq(&live.targets[0], &own.targets[0]), "each has a gate of its own");
    let places = [&live, &own].map(|backend| Arc::clone(backend.targets[0].places.as_ref().unwrap()));
    assert!(Arc::ptr_eq(&places[0], &places[1]) && places[0].limit() == 2);
    assert!(Arc::ptr_eq(live.queue.as_ref().unwrap(), own.queue.as_ref().unwrap()));
    bed.scaled(3).await;
    let more = bed.backend(HOST).unwrap();
    assert!(Arc::ptr_eq(live.queue.as_ref().unwrap(), more.queue.as_ref().unwrap()));
    let mut limits: Vec<_> = more.targets.iter().filter_map(|target| target.places.clone()).collect();
    assert_eq!(limits.len(), 3);
    limits.retain(|limit| Arc::ptr_eq(limit, &places[0]));
    assert_eq!(limits.len(), 1, "the first one's is kept, and the others have their own");
}
