//! Paused, in maintenance, disabled: what requests meet, what instances do, and that a restart changes nothing of it.

use lockgate::deploy::{MaintenanceRequest, PauseRequest};
use lockgate::routing::{Hold, HoldEnd};
use lockgate::store::Access;

use super::*;

impl Bed {
    async fn pause(&self, seconds: u64) {
        let request = PauseRequest { limit: Delay::seconds(seconds), ..PauseRequest::default() };
        self.engine.pause(&app(), &request).await.unwrap();
    }

    async fn maintain(&self, on: bool) {
        let request = MaintenanceRequest {
            on,
            message: Some("back at noon".to_owned()),
            allow: vec!["192.0.2.0/24".parse().unwrap()],
        };
        self.engine.maintain(&app(), &request).await.unwrap();
    }

    async fn enable(&self) -> Operation {
        let mut submitted = self.engine.submit(Command::Enable(app()), caller()).await.unwrap();
        self.ended(&mut submitted).await
    }

    /// Disables it and waits until its instances are stopped.
    async fn disabled(&self) {
        self.engine.disable(&app()).await.unwrap();
        eventually("its instances are stopped", async || self.runtime.running().is_empty()).await;
    }

    fn hold(&self) -> Option<Arc<Hold>> {
        self.backend(HOST).unwrap().hold.clone()
    }

    /// With which code requests are refused.
    fn refused(&self) -> Option<&'static str> {
        match self.hold()?.end() {
            Some(HoldEnd::Refused(refusal)) => Some(refusal.code),
            Some(HoldEnd::Released) | None => None,
        }
    }
}

#[tokio::test]
async fn a_pause_has_requests_wait_and_lets_none_enter_until_it_is_ended() {
    let bed = Bed::new().await;
    let (version, _) = bed.deploy(&["serve", "1"]).await;
    let target = bed.backend(HOST).unwrap().targets[0].clone();
    let held = bed.request(HOST);
    bed.pause(60).await;
    let hold = bed.hold().unwrap();
    assert!(
        hold.end().is_none() && target.gate.enter(0).is_err(),
        "a request that was routed before gets in"
    );
    let app = app();
    let mut quiet = Box::pin(bed.engine.quiet(&app));
    tokio::select! {
        biased;
        quiet = &mut quiet => panic!("quiet under a request: {quiet:?}"),
        () = tokio::task::yield_now() => {}
    }
    drop(held);
    assert!(within(quiet).await.unwrap());
    bed.engine.resume(&app).await.unwrap();
    assert_eq!((hold.end(), bed.serves(HOST)), (Some(HoldEnd::Released), Ok(version.to_string())));
    assert!(bed.hold().is_none());
    drop(bed.request(HOST));
    bed.engine.resume(&app).await.unwrap();
}

#[tokio::test]
async fn what_waits_past_the_limit_is_refused_and_the_pause_goes_on() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "1"]).await;
    let held = bed.request(HOST);
    bed.pause(60).await;
    let hold = bed.hold().unwrap();
    bed.clock.leap(Duration::from_secs(50));
    assert!(hold.end().is_none());
    bed.clock.leap(Duration::from_secs(11));
    eventually("who waits is refused", async || bed.refused() == Some("app_paused")).await;
    assert!(!bed.engine.quiet(&app()).await.unwrap(), "something is in flight");
    assert!(matches!(bed.engine.access(&app()).await.unwrap(), Access::Paused { .. }));
    drop(held);
    bed.engine.resume(&app()).await.unwrap();
    assert!(bed.hold().is_none());
}

#[tokio::test]
async fn a_pause_outlives_a_restart_with_its_deadline_and_a_deploy() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "1"]).await;
    bed.pause(3000).await;
    let until = bed.engine.access(&app()).await.unwrap();
    let bed = bed.restart().await;
    assert_eq!(bed.engine.access(&app()).await.unwrap(), until);
    assert!(bed.hold().unwrap().end().is_none());
    let (second, operation) = bed.deploy(&["serve", "2"]).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    let hold = bed.hold().unwrap();
    assert!(hold.end().is_none(), "a deploy ended the pause");
    bed.clock.leap(Duration::from_secs(3001));
    eventually("its deadline is the first one", async || bed.refused() == Some("app_paused")).await;
    bed.engine.resume(&app()).await.unwrap();
    assert_eq!(bed.serves(HOST), Ok(second.to_string()));
    drop(bed.request(HOST));
}

#[tokio::test]
async fn a_resume_opens_no_gate_of_a_version_that_was_replaced() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "1"]).await;
    let old = bed.backend(HOST).unwrap().targets[0].clone();
    bed.pause(60).await;
    bed.deploy(&["serve", "2"]).await;
    bed.engine.resume(&app()).await.unwrap();
    assert!(old.gate.is_closed(), "requests may enter what was replaced");
}

#[tokio::test]
async fn maintenance_refuses_all_but_those_it_names_and_everything_runs_on() {
    let bed = Bed::new().await;
    let (version, _) = bed.deploy(&["serve", "1"]).await;
    bed.pause(60).await;
    let waiting = bed.hold().unwrap();
    bed.maintain(true).await;
    assert!(waiting.end().is_some(), "what waited for the pause waits on");
    let bed = bed.restart().await;
    let hold = bed.hold().unwrap();
    assert_eq!(bed.refused(), Some("app_maintenance"));
    assert!(matches!(hold.end(), Some(HoldEnd::Refused(refusal)) if refusal.detail == "back at noon"));
    let lets_by = |address: &str| hold.lets_by(|| address.parse().unwrap());
    assert!(lets_by("192.0.2.7") && !lets_by("198.51.100.7"));
    assert_eq!(bed.runtime.running().len(), 1);
    drop(bed.request(HOST));
    let paused = bed.engine.pause(&app(), &PauseRequest::default()).await;
    assert!(matches!(paused, Err(Denied::AppInMaintenance { .. })), "{paused:?}");
    bed.maintain(false).await;
    assert!(bed.hold().is_none());
    assert_eq!(bed.serves(HOST), Ok(version.to_string()));
}

#[tokio::test]
async fn a_disabled_app_drains_stops_and_refuses_until_it_is_enabled() {
    let bed = Bed::new().await;
    let (version, _) = bed.deploy(&["serve", "1"]).await;
    let held = bed.request(HOST);
    let target = bed.backend(HOST).unwrap().targets[0].clone();
    bed.engine.disable(&app()).await.unwrap();
    assert_eq!(bed.refused(), Some("app_disabled"));
    assert!(target.gate.is_closed() && !bed.runtime.told().contains(&Told::Stop(target.id)));
    drop(held);
    eventually("it is stopped", async || bed.runtime.running().is_empty()).await;
    assert_eq!(bed.runtime.known(), 1, "it is kept");
    for denied in [
        bed.try_submit(request(&["serve", "2"])).await.unwrap_err(),
        bed.swap(version).await.unwrap_err(),
        bed.engine.pause(&app(), &PauseRequest::default()).await.unwrap_err(),
    ] {
        assert_eq!(denied.code(), "app_disabled");
    }

    let bed = bed.restart().await;
    let looks = bed.runtime.looks();
    eventually("it was looked at", async || bed.runtime.looks() > looks + 1).await;
    assert_eq!((bed.refused(), bed.runtime.running().len()), (Some("app_disabled"), 0));

    let refusing = bed.hold().unwrap();
    let operation = bed.enable().await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert!(refusing.end().is_some() && bed.hold().is_none());
    assert_eq!((bed.serves(HOST), bed.runtime.running().len()), (Ok(version.to_string()), 1));
    drop(bed.request(HOST));
}

#[tokio::test]
async fn an_app_that_does_not_become_ready_stays_disabled_and_stopped() {
    let bed = Bed::new().await;
    bed.deploy(&["nap", ""]).await;
    bed.disabled().await;
    let mut submitted = bed.engine.submit(Command::Enable(app()), caller()).await.unwrap();
    let operation = bed.ended_in_time(&mut submitted).await;
    assert_eq!(operation.failure.map(|failure| failure.code).as_deref(), Some("not_ready"));
    assert_eq!(bed.refused(), Some("app_disabled"));
    eventually("it is stopped again", async || bed.runtime.running().is_empty()).await;
}

#[tokio::test]
async fn an_app_that_is_worked_on_by_an_operation_is_not_disabled_under_it() {
    let bed = Bed::with(|settings| settings.deploy.health_timeout = Delay::seconds(60)).await;
    let mut deploy = bed.submit(&["deaf", ""]).await;
    let denied = bed.engine.disable(&app()).await.unwrap_err();
    assert_eq!(denied.code(), "operation_in_progress");
    bed.engine.cancel(deploy.operation).await.unwrap();
    bed.ended(&mut deploy).await;
    eventually("it has left its lane", async || bed.engine.disable(&app()).await.is_ok()).await;
    let operation = bed.enable().await;
    assert_eq!(operation.state, OperationState::Succeeded, "nothing was live: {operation:?}");
}
