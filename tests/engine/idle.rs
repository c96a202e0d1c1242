//! What nobody asks for goes to standby by itself, and never under a request.

use http::{Method, StatusCode, Version};
use lockgate::routing::hold::Entered;
use lockgate::settings::AppSettings;
use lockgate::store::InstancePhase;
use tokio::task::JoinSet;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const PREVIEW: &str = "feat.web.test";
const OTHER: &str = "other.web.test";
const STAGING: &str = "web-staging.apex.test";

impl Bed {
    /// Previews that rest after an hour; the clock may leap by weeks before they expire.
    async fn idling(change: impl FnOnce(&mut AppSettings)) -> Self {
        let options = Options { apex: Some("apex.test".parse().unwrap()), ..Options::default() };
        Self::with_options(options, |settings| {
            settings.idle_after = Some(Delay(HOUR));
            settings.deploy.health_timeout = Delay::seconds(100 * 24 * 3600);
            // What is in flight is not cut because time leaps.
            settings.deploy.drain_timeout = Delay::seconds(100 * 24 * 3600);
            settings.deploy.stream_drain_timeout = Delay::seconds(100 * 24 * 3600);
            change(settings);
        })
        .await
    }

    pub(super) async fn idler(&self, label: &str) -> DeploymentId {
        self.preview_by(DeployRequest { label: Some(label.parse().unwrap()), ..request(&["serve", label]) })
            .await
    }

    async fn preview_by(&self, request: DeployRequest) -> DeploymentId {
        let ttl = request.label.is_some().then_some(Delay::seconds(1000 * 24 * 3600));
        let mut submitted = self.try_submit(DeployRequest { ttl, ..request }).await.unwrap();
        assert_eq!(self.ended(&mut submitted).await.state, OperationState::Succeeded);
        submitted.deployment.unwrap()
    }

    /// Lets time pass, half an hour at a time, until the deployment is in standby and stopped.
    pub(super) async fn rests(&self, deployment: DeploymentId) {
        self.rests_while(deployment, || {}).await;
    }

    /// The same; `each` happens in each half hour.
    async fn rests_while(&self, deployment: DeploymentId, each: impl Fn()) {
        eventually("it rests", async || {
            each();
            if self.is_at_rest(deployment).await {
                return true;
            }
            if self.is_awake(deployment).await {
                self.clock.leap(HOUR / 2);
            }
            false
        })
        .await;
    }

    pub(super) async fn is_at_rest(&self, deployment: DeploymentId) -> bool {
        let rows = self.store.instances(Some(&deployment)).await.unwrap();
        let is_stopped = rows.iter().all(|row| row.phase == InstancePhase::Stopped);
        self.status(deployment).await.1 == DesiredState::Standby && is_stopped
    }

    async fn is_awake(&self, deployment: DeploymentId) -> bool {
        self.status(deployment).await == (DeploymentStatus::Ready, DesiredState::Running)
    }

    /// A request from its beginning to its end, as the data plane has it: it waits where it is held.
    pub(super) async fn serve(&self, host: &str) -> String {
        loop {
            let backend = self.backend(host).unwrap();
            if let Some(hold) = &backend.hold {
                match hold.enter() {
                    Entered::Waits(place) => drop(within(place.ended()).await),
                    Entered::Ended(_) => tokio::task::yield_now().await,
                    Entered::Full => panic!("no place"),
                }
                continue;
            }
            let Some(target) = backend.targets.first() else {
                tokio::task::yield_now().await;
                continue;
            };
            let Ok(guard) = target.gate.enter(0) else { continue };
            for _ in 0..5 {
                assert!(self.runtime.running().contains(&target.id), "its instance was stopped under it");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            backend.stats.of(0).respond(&Method::GET, StatusCode::OK, Version::HTTP_11);
            drop(guard);
            return backend.stats.labels.as_ref().unwrap().deployment.clone();
        }
    }

    fn stops_of(&self, deployment: DeploymentId) -> usize {
        let all = self.runtime.of(deployment);
        self.runtime.told().iter().filter(|told| matches!(told, Told::Stop(id) if all.contains(id))).count()
    }
}

#[tokio::test]
async fn a_preview_that_nobody_asks_for_rests_and_the_next_request_wakes_it() {
    let bed = Bed::idling(|_| {}).await;
    let (live, _) = bed.deploy(&["serve", "1"]).await;
    let preview = bed.idler("feat").await;
    for rest in 1..=2 {
        bed.rests(preview).await;
        assert_eq!(bed.stops_of(preview), rest);
        assert_eq!(bed.serve(PREVIEW).await, preview.to_string());
        assert!(bed.is_awake(preview).await);
    }
    assert!(bed.is_awake(live).await, "production rested");
    assert_eq!(bed.stops_of(live), 0);
}

#[tokio::test]
async fn a_request_begins_a_new_time_and_what_is_in_flight_keeps_it_awake() {
    let bed = Bed::idling(|_| {}).await;
    let asked = bed.idler("feat").await;
    let open = bed.idler("open").await;
    let witness = bed.idler("other").await;
    let stream = bed.request("open.web.test").into_stream();
    let stats = bed.backend(PREVIEW).unwrap().stats.clone();
    bed.rests_while(witness, || stats.of(0).respond(&Method::GET, StatusCode::OK, Version::HTTP_11)).await;
    assert!(bed.is_awake(asked).await && bed.is_awake(open).await);
    drop(stream);
    bed.rests(open).await;
    bed.rests(asked).await;
}

#[tokio::test]
async fn whoever_says_never_is_left_alone() {
    let bed = Bed::idling(|settings| settings.idle_after = Some(Delay::default())).await;
    let never = bed.idler("feat").await;
    let mut app = bed.store.app(&app()).await.unwrap().unwrap();
    (app.settings.wake, app.settings.idle_after) = (false, Some(Delay(HOUR)));
    bed.engine.put_apps(std::slice::from_ref(&app)).await.unwrap();
    let unwakeable = bed.idler("deaf").await;
    app.settings.wake = true;
    bed.engine.put_apps(&[app]).await.unwrap();
    let witness = bed.idler("other").await;
    bed.rests(witness).await;
    bed.serve(OTHER).await;
    bed.rests(witness).await;
    assert!(bed.is_awake(never).await && bed.is_awake(unwakeable).await);
}

#[tokio::test]
async fn what_the_configuration_says_holds_for_apps_that_say_nothing() {
    let options = Options { idle_after: Delay::seconds(2 * 3600), ..Options::default() };
    let bed = Bed::with_options(options, |_| {}).await;
    let preview = bed.idler("feat").await;
    bed.rests(preview).await;
}

fn into_staging(version: &str) -> DeployRequest {
    DeployRequest { environment: Some("staging".parse().unwrap()), ..request(&["serve", version]) }
}

#[tokio::test]
async fn what_is_live_in_an_environment_for_previews_rests_and_is_replaced_as_it_rests() {
    let bed = Bed::idling(|_| {}).await;
    let (production, _) = bed.deploy(&["serve", "1"]).await;
    let one = bed.preview_by(into_staging("a")).await;
    bed.rests(one).await;
    assert_eq!(bed.serve(STAGING).await, one.to_string());
    bed.rests(one).await;
    let two = bed.preview_by(into_staging("b")).await;
    assert_eq!(bed.serve(STAGING).await, two.to_string());
    bed.rests(two).await;
    // The way back starts it first.
    let back = lockgate::deploy::RollbackRequest {
        app: Some(app()),
        environment: Some("staging".parse().unwrap()),
        ..lockgate::deploy::RollbackRequest::default()
    };
    let mut back = bed.engine.submit(Command::Rollback(back), caller()).await.unwrap();
    assert_eq!(bed.ended(&mut back).await.state, OperationState::Succeeded);
    assert_eq!(bed.serve(STAGING).await, one.to_string());
    assert!(bed.is_awake(production).await);
}

#[tokio::test]
async fn who_waits_for_a_version_that_is_replaced_meanwhile_is_served_by_its_successor() {
    let bed = Arc::new(Bed::idling(|_| {}).await);
    let one = bed.preview_by(into_staging("a")).await;
    bed.rests(one).await;
    bed.runtime.set_starts_sick(true);
    let waiter = {
        let bed = Arc::clone(&bed);
        tokio::runtime::Handle::current().spawn(async move { bed.serve(STAGING).await })
    };
    eventually("it is being woken", async || bed.runtime.running().len() == 1).await;
    bed.runtime.set_starts_sick(false);
    let two = bed.preview_by(into_staging("b")).await;
    assert_eq!(within(waiter).await.unwrap(), two.to_string());
}

#[tokio::test]
async fn after_a_restart_a_whole_new_time_is_due() {
    let bed = Bed::idling(|settings| settings.idle_after = Some(Delay(HOUR * 1000))).await;
    let preview = bed.idler("feat").await;
    bed.clock.leap(HOUR * 999);
    let clock = bed.clock.clone();
    let bed = bed.restart_at(clock).await;
    let mut app = bed.store.app(&app()).await.unwrap().unwrap();
    app.settings.idle_after = Some(Delay(HOUR));
    bed.engine.put_apps(&[app]).await.unwrap();
    let witness = bed.idler("other").await;
    bed.rests(witness).await;
    bed.serve(OTHER).await;
    bed.rests(witness).await;
    assert!(bed.is_awake(preview).await);
}

/// Many clients that come and go, while every look finds it idle: a race at each of its steps.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_or_has_its_instance_stopped_under_it_whenever_it_comes() {
    let bed = Arc::new(Bed::idling(|settings| settings.idle_after = Some(Delay::seconds(1))).await);
    let preview = bed.idler("feat").await;
    let stop = tokio_util::sync::CancellationToken::new();
    let mut clients = JoinSet::new();
    for client in 1..=3_u64 {
        let (bed, stop) = (Arc::clone(&bed), stop.clone());
        clients.spawn(async move {
            let mut served = 0;
            while !stop.is_cancelled() {
                assert_eq!(bed.serve(PREVIEW).await, preview.to_string());
                served += 1;
                let pause = 40 + (served * 37 + client * 53) % 200;
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            served
        });
    }
    eventually("it rested often", async || {
        bed.clock.leap(Duration::from_secs(2));
        bed.stops_of(preview) >= 8
    })
    .await;
    stop.cancel();
    let served: u64 = clients.join_all().await.into_iter().sum();
    assert!(served >= 8, "{served} served");
}

/// Whatever comes first: in the end the newest is live and serves.
#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_that_races_the_decision_has_its_version_served() {
    let bed = Bed::idling(|settings| settings.deploy.watch = Delay::seconds(0)).await;
    let mut last = None;
    for round in 0..10 {
        let version = round.to_string();
        let mut submitted = bed.try_submit(into_staging(&version)).await.unwrap();
        for _ in 0..round % 5 {
            bed.clock.leap(HOUR);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let operation = bed.ended(&mut submitted).await;
        assert!(operation.state.is_success(), "round {round}: {operation:?}");
        let deployed = submitted.deployment.unwrap();
        assert_eq!(bed.serve(STAGING).await, deployed.to_string(), "round {round}");
        last = Some(deployed);
    }
    assert!(bed.is_awake(last.unwrap()).await);
}

#[tokio::test]
async fn an_app_in_maintenance_does_not_come_back_asleep() {
    let bed = Bed::idling(|_| {}).await;
    let other: AppName = "other".parse().unwrap();
    let mut app = bed.store.app(&app()).await.unwrap().unwrap();
    (app.name, app.hosts[0].host) = (other.clone(), "other.test".to_owned());
    bed.engine.put_apps(&[app]).await.unwrap();
    let shut = bed.idler("feat").await;
    let witness = bed
        .preview_by(DeployRequest {
            app: Some(other),
            label: Some("x".parse().unwrap()),
            ..request(&["serve", "x"])
        })
        .await;
    let maintenance =
        lockgate::deploy::MaintenanceRequest { on: true, ..lockgate::deploy::MaintenanceRequest::default() };
    bed.engine.maintain(&super::app(), &maintenance).await.unwrap();
    bed.rests(witness).await;
    assert!(bed.is_awake(shut).await);
    let open = lockgate::deploy::MaintenanceRequest::default();
    bed.engine.maintain(&super::app(), &open).await.unwrap();
    bed.rests(shut).await;
}

fn to_zero(settings: &mut AppSettings) {
    settings.scale_to_zero = true;
}

#[tokio::test]
async fn production_that_scales_to_zero_rests_stays_live_and_is_woken_by_the_first_request() {
    let bed = Bed::idling(to_zero).await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    bed.rests(one).await;
    let environment = async || {
        let found = bed.store.environment(&app(), &EnvironmentName::production()).await.unwrap();
        found.unwrap().live
    };
    assert_eq!(environment().await, Some(one));
    let bed = bed.restart().await;
    assert!(bed.runtime.running().is_empty() && bed.is_at_rest(one).await);
    assert_eq!(bed.serve(HOST).await, one.to_string());
    assert!(bed.is_awake(one).await);
    let timers = bed.store.timers().await.unwrap();
    assert!(timers.is_empty(), "what is live was armed to be stopped: {timers:?}");
}

#[tokio::test]
async fn what_rests_is_replaced_and_serves_again_if_its_successor_does_not_hold() {
    let bed = Bed::idling(|settings| {
        to_zero(settings);
        settings.deploy.watch = WATCH;
    })
    .await;
    let (one, _) = bed.deploy_held(&["serve", "1"]).await;
    bed.rests(one).await;
    let mut submitted = bed.submit(&["serve", "2"]).await;
    let two = submitted.deployment.unwrap();
    eventually("it is live", async || bed.serves(HOST) == Ok(two.to_string())).await;
    bed.runtime.end(bed.runtime.of(two)[0]);
    let operation = bed.ended(&mut submitted).await;
    assert_eq!(operation.state, OperationState::RolledBack, "{operation:?}");
    assert_eq!(bed.serve(HOST).await, one.to_string());
    bed.rests(one).await;
    let (two, operation) = bed.deploy_held(&["serve", "2"]).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert_eq!(bed.serve(HOST).await, two.to_string());
    // What was replaced as it rested is no longer live: it has a time to be archived by.
    assert!(bed.store.timers().await.unwrap().iter().any(|timer| timer.deployment == one));
}

#[tokio::test]
async fn what_rests_is_scaled_by_its_next_start() {
    let bed = Bed::idling(to_zero).await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    bed.rests(one).await;
    let scale = lockgate::deploy::ScaleRequest {
        app: Some(app()),
        environment: None,
        replicas: lockgate::settings::Replicas::new(3).unwrap(),
    };
    let mut scaled = bed.engine.submit(Command::Scale(scale), caller()).await.unwrap();
    assert_eq!(bed.ended(&mut scaled).await.state, OperationState::Succeeded);
    assert!(bed.runtime.running().is_empty() && bed.is_at_rest(one).await);
    assert_eq!(bed.serve(HOST).await, one.to_string());
    assert_eq!((bed.runtime.running().len(), bed.backend(HOST).unwrap().targets.len()), (3, 3));
    bed.rests(one).await;
    assert!(bed.runtime.running().is_empty());
}

#[tokio::test]
async fn what_rests_can_be_disabled_and_enabled() {
    let bed = Bed::idling(to_zero).await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    bed.rests(one).await;
    bed.engine.disable(&app()).await.unwrap();
    let mut enabled = bed.engine.submit(Command::Enable(app()), caller()).await.unwrap();
    assert_eq!(bed.ended(&mut enabled).await.state, OperationState::Succeeded);
    assert_eq!(bed.serve(HOST).await, one.to_string());
}

#[tokio::test]
async fn an_app_that_no_request_may_wake_cannot_scale_to_zero() {
    let bed = Bed::new().await;
    let mut app = bed.store.app(&app()).await.unwrap().unwrap();
    (app.settings.scale_to_zero, app.settings.wake) = (true, false);
    let denied = bed.engine.put_apps(&[app]).await.unwrap_err();
    assert!(
        matches!(&denied, Denied::Invalid { field, remedy: Some(_), .. } if field == "scale_to_zero"),
        "{denied:?}"
    );
}

#[tokio::test]
async fn a_lazy_preview_has_its_place_at_once_and_starts_with_its_first_request() {
    let bed = Bed::idling(|_| {}).await;
    let (live, _) = bed.deploy(&["serve", "1"]).await;
    let lazy = |label: &str| DeployRequest {
        label: Some(label.parse().unwrap()),
        lazy: true,
        ..request(&["serve", label])
    };
    let preview = bed.preview_by(lazy("feat")).await;
    assert_eq!((bed.runtime.of(preview).len(), bed.runtime.running().len()), (0, 1));
    assert_eq!(bed.status(preview).await, (DeploymentStatus::Ready, DesiredState::Standby));
    assert!(bed.store.deployment(&preview).await.unwrap().unwrap().pinned.is_some());
    let url = bed.engine.url(preview).await.unwrap().unwrap();
    assert!(url.contains("feat."), "{url}");
    let bed = bed.restart().await;
    assert_eq!(bed.serve(PREVIEW).await, preview.to_string());
    assert!(bed.is_awake(preview).await);
    bed.rests(preview).await;
    assert_eq!(bed.serve(PREVIEW).await, preview.to_string());
    // One that takes its label over does so before it has started.
    let next = bed.preview_by(lazy("feat")).await;
    eventually("the first one is gone", async || bed.runtime.of(preview).is_empty()).await;
    assert_eq!(bed.serve(PREVIEW).await, next.to_string());
    assert!(bed.is_awake(live).await);
}

#[tokio::test]
async fn a_lazy_preview_that_never_started_expires_and_is_counted_and_evicted_like_any_other() {
    let options = Options { ephemeral_max_per_app: 2, ..Options::default() };
    let bed = Bed::with_options(options, |_| {}).await;
    let lazy = async |label: &str, ttl: u64| {
        let request = DeployRequest {
            label: Some(label.parse().unwrap()),
            lazy: true,
            ttl: Some(Delay::seconds(ttl)),
            ..request(&["serve", label])
        };
        let mut submitted = bed.try_submit(request).await.unwrap();
        assert_eq!(bed.ended(&mut submitted).await.state, OperationState::Succeeded);
        submitted.deployment.unwrap()
    };
    let soonest = lazy("one", 1000).await;
    let two = lazy("two", 2000).await;
    let three = lazy("three", 3000).await;
    assert_eq!(bed.status(soonest).await.1, DesiredState::Archived);
    assert_eq!(bed.serves("one.web.test"), Err(Miss::EphemeralUnknown));
    bed.clock.leap(Duration::from_secs(2500));
    assert_eq!(bed.serves("two.web.test"), Err(Miss::EphemeralExpired));
    eventually("it is archived", async || bed.status(two).await.1 == DesiredState::Archived).await;
    assert_eq!(bed.serve("three.web.test").await, three.to_string());
    assert_eq!(bed.runtime.known(), 1);
}

#[tokio::test]
async fn only_a_preview_that_a_request_may_wake_is_lazy() {
    let bed = Bed::new().await;
    let mut app = bed.store.app(&app()).await.unwrap().unwrap();
    let lazy = DeployRequest { lazy: true, ..request(&["serve", "1"]) };
    let refused = async |request: DeployRequest| {
        let denied = bed.try_submit(request).await.unwrap_err();
        assert!(matches!(&denied, Denied::Invalid { field, .. } if field == "lazy"), "{denied:?}");
    };
    refused(lazy.clone()).await;
    app.settings.wake = false;
    bed.engine.put_apps(&[app]).await.unwrap();
    refused(DeployRequest { label: Some("feat".parse().unwrap()), ..lazy }).await;
}
