//! Office hours: what stops and starts by the clock.

use lockgate::settings::{HoursSettings, HoursState};
use lockgate::store::OperationKind;

use super::*;

const PREVIEW: &str = "feat.web.test";
const QUARTER: Duration = Duration::from_secs(15 * 60);

fn at(cron: &str, state: HoursState) -> HoursSettings {
    HoursSettings { cron: cron.to_owned(), timezone: "UTC".to_owned(), state }
}

impl Bed {
    /// Previews do not rest, and no check comes to its end because the clock leaps.
    async fn with_hours(schedule: Vec<HoursSettings>) -> Self {
        Self::with(|settings| {
            settings.idle_after = Some(Delay::default());
            // What its hours put into standby goes all the same.
            settings.min_warm = 3;
            settings.deploy.health_timeout = Delay::seconds(100 * 24 * 3600);
            settings.schedule = schedule;
        })
        .await
    }

    async fn preview_for_long(&self) -> DeploymentId {
        let request = DeployRequest {
            label: Some("feat".parse().unwrap()),
            ttl: Some(Delay::seconds(100 * 24 * 3600)),
            ..request(&["serve", "p"])
        };
        let mut submitted = self.try_submit(request).await.unwrap();
        assert_eq!(self.ended(&mut submitted).await.state, OperationState::Succeeded);
        submitted.deployment.unwrap()
    }

    /// Sets the clock forward to the next time at which a quarter of an hour begins, and one second more.
    fn leap_to_quarter(&self) {
        let second = u64::try_from(self.clock.wall().as_second()).unwrap() % QUARTER.as_secs();
        self.clock.leap(Duration::from_secs(QUARTER.as_secs() - second + 1));
    }

    async fn states(&self, all: [DeploymentId; 2]) -> [DesiredState; 2] {
        [self.status(all[0]).await.1, self.status(all[1]).await.1]
    }

    /// What was seen first is not made up for: waits until that is written, up to the quarter that it is.
    async fn is_seen(&self) {
        let quarter = self.clock.wall().as_second() / 900;
        eventually("its times are looked at", async || {
            let seen = self.store.hours_at(&app()).await.unwrap();
            seen.is_some_and(|seen| seen.as_second() / 900 >= quarter)
        })
        .await;
    }
}

#[tokio::test]
async fn at_its_times_all_that_serves_stops_and_runs_again_and_requests_wake_it_all_the_same() {
    let bed = Bed::with_hours(vec![
        at("0,30 * * * *", HoursState::Standby),
        at("15,45 * * * *", HoursState::Running),
    ])
    .await;
    // So that the next of its times is far away while they are deployed.
    bed.leap_to_quarter();
    bed.is_seen().await;
    let (live, _) = bed.deploy(&["serve", "1"]).await;
    let preview = bed.preview_for_long().await;
    let both = [live, preview];
    let states = [[DesiredState::Standby; 2], [DesiredState::Running; 2]];
    for round in 0..4 {
        bed.leap_to_quarter();
        let quarter = bed.clock.wall().as_second() / 900;
        let expected = states[usize::from(quarter % 2 != 0)];
        eventually("they are as their time says", async || bed.states(both).await == expected).await;
        if expected == states[0] && round > 1 {
            eventually("they are stopped", async || bed.runtime.running().is_empty()).await;
            assert_eq!(bed.serve(HOST).await, live.to_string());
            assert_eq!(bed.serve(PREVIEW).await, preview.to_string());
            assert_eq!(bed.states(both).await, states[1]);
        }
    }
}

#[tokio::test]
async fn what_came_due_while_lockgate_was_away_is_made_up_for_once() {
    let bed = Bed::with_hours(vec![at("*/15 * * * *", HoursState::Standby)]).await;
    bed.leap_to_quarter();
    bed.is_seen().await;
    let (live, _) = bed.deploy(&["serve", "1"]).await;
    let away = Arc::new(LeapClock::default());
    let ahead = bed.clock.wall().as_second() - away.wall().as_second();
    away.leap(QUARTER * 10 + Duration::from_secs(u64::try_from(ahead).unwrap()));
    let bed = bed.restart_at(away.clone()).await;
    eventually("it is put into standby", async || bed.status(live).await.1 == DesiredState::Standby).await;
    eventually("that is written", async || {
        let heeded = bed.store.hours_at(&app()).await.unwrap().unwrap();
        bed.clock.wall().as_second() - heeded.as_second() < 900
    })
    .await;
    assert_eq!(bed.serve(HOST).await, live.to_string());
    let stops = |bed: &Bed| bed.runtime.told().iter().filter(|told| matches!(told, Told::Stop(_))).count();
    assert_eq!(stops(&bed), 1);
    let bed = bed.restart_at(away).await;
    assert_eq!(bed.serve(HOST).await, live.to_string());
    // A version that is deployed after it is not concerned.
    let (next, _) = bed.deploy(&["serve", "2"]).await;
    assert_eq!((bed.status(next).await.1, stops(&bed)), (DesiredState::Running, 1));
}

/// Fixed fault: it was undone like the wake of a request, and its time was noted as heeded.
#[cfg(feature = "fault")]
#[tokio::test]
async fn what_was_starting_at_its_time_when_lockgate_ended_starts_after_it() {
    use lockgate::fault::{Springs, Trap};
    let bed = Bed::with_hours(vec![at("*/15 * * * *", HoursState::Running)]).await;
    bed.leap_to_quarter();
    bed.is_seen().await;
    bed.deploy(&["serve", "1"]).await;
    let preview = bed.preview_for_long().await;
    bed.put_to_sleep(preview).await;
    bed.runtime.set_starts_sick(true);
    bed.leap_to_quarter();
    let instance = bed.runtime.of(preview)[0];
    eventually("it starts", async || bed.runtime.running().contains(&instance)).await;
    bed.is_seen().await;
    let trap = Trap::at("step.check.acted", Springs::ForGood);
    bed.runtime.set_starts_sick(false);
    bed.runtime.set_sick(instance, false);
    eventually("it crashes", async || trap.sprung().is_some()).await;
    let bed = bed.crash(trap).await;
    eventually("it runs", async || bed.status(preview).await.1 == DesiredState::Running).await;
}

#[tokio::test]
async fn what_was_due_before_there_were_times_is_not_made_up_for() {
    let bed = Bed::with_hours(Vec::new()).await;
    let (live, _) = bed.deploy(&["serve", "1"]).await;
    let mut app = bed.store.app(&app()).await.unwrap().unwrap();
    app.settings.schedule = vec![at("0 0 1 1 *", HoursState::Standby)];
    bed.engine.put_apps(&[app]).await.unwrap();
    bed.is_seen().await;
    assert_eq!(bed.status(live).await.1, DesiredState::Running);
    bed.clock.leap(Duration::from_secs(366 * 24 * 3600));
    eventually("the next one counts", async || bed.status(live).await.1 == DesiredState::Standby).await;
}

#[tokio::test]
async fn what_is_in_flight_at_its_time_ends_before_anything_is_stopped() {
    let bed = Bed::with_hours(vec![at("*/15 * * * *", HoursState::Standby)]).await;
    bed.leap_to_quarter();
    bed.is_seen().await;
    let (live, _) = bed.deploy(&["serve", "1"]).await;
    let held = bed.request(HOST);
    bed.leap_to_quarter();
    eventually("it is put into standby", async || bed.status(live).await.1 == DesiredState::Standby).await;
    eventually("its gate is closed", async || {
        bed.runtime.told().iter().all(|told| !matches!(told, Told::Stop(_)))
            && bed.backend(HOST).unwrap().hold.is_some()
    })
    .await;
    drop(held);
    eventually("it is stopped", async || bed.runtime.running().is_empty()).await;
    let page = lockgate::store::Page { offset: 0, limit: 10 };
    let all = bed.store.operations(&lockgate::store::Of::default(), page).await.unwrap();
    assert!(all.iter().all(|operation| operation.kind != OperationKind::Wake));
}

#[tokio::test]
async fn a_bad_pattern_or_time_zone_is_refused_with_its_key() {
    let bed = Bed::new().await;
    let mut app = bed.store.app(&app()).await.unwrap().unwrap();
    for (cron, timezone, key) in
        [("soon", "UTC", "schedule[0].cron"), ("0 8 * * *", "Middle/Earth", "schedule[0].timezone")]
    {
        let hours = HoursSettings { timezone: timezone.to_owned(), ..at(cron, HoursState::Running) };
        app.settings.schedule = vec![hours];
        let denied = bed.engine.put_apps(std::slice::from_ref(&app)).await.unwrap_err();
        assert!(
            matches!(&denied, Denied::Invalid { field, remedy: Some(_), .. } if field == key),
            "{denied:?}"
        );
    }
}
