//! The minimum warm count: what stays running although its time is over, and what goes all the same.

use lockgate::deploy::{RollbackRequest, ScheduledState};

use super::*;

const ASLEEP: (DeploymentStatus, DesiredState) = (DeploymentStatus::Ready, DesiredState::Standby);
const AWAKE: (DeploymentStatus, DesiredState) = (DeploymentStatus::Ready, DesiredState::Running);
const HALF_HOUR: Duration = Duration::from_secs(30 * 60);

impl Bed {
    async fn keeping_warm(count: u16, change: impl FnOnce(&mut AppSettings)) -> Self {
        Self::with(|settings| {
            settings.min_warm = count;
            settings.idle_after = Some(Delay(HALF_HOUR));
            settings.deploy.standby_after = Delay(HALF_HOUR);
            settings.deploy.health_timeout = Delay::seconds(100 * 24 * 3600);
            change(settings);
        })
        .await
    }

    async fn set_warm(&self, count: u16) {
        let mut app = self.store.app(&app()).await.unwrap().unwrap();
        app.settings.min_warm = count;
        self.engine.put_apps(&[app]).await.unwrap();
    }

    /// Lets the time of a replaced version pass; it was looked at then, and spared.
    async fn is_spared(&self, deployment: DeploymentId) {
        let due = async || {
            let timers = self.store.timers().await.unwrap();
            timers.into_iter().find(|timer| timer.deployment == deployment).unwrap().due
        };
        let before = due().await;
        self.clock.leap(HALF_HOUR);
        eventually("it was looked at", async || due().await > before).await;
        assert_eq!(self.status(deployment).await, AWAKE);
    }

    /// Lets time pass until a version sleeps.
    async fn falls_asleep(&self, deployment: DeploymentId) {
        eventually("it sleeps", async || {
            let status = self.status(deployment).await;
            if status == AWAKE {
                // Not so fast that hours go by while it is written down.
                self.clock.leap(Duration::from_secs(20));
            }
            status == ASLEEP
        })
        .await;
    }
}

#[tokio::test]
async fn the_version_that_a_rollback_goes_to_stays_running_and_needs_no_start() {
    let bed = Bed::keeping_warm(2, |settings| settings.deploy.archive_after = Delay::seconds(60)).await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let (two, _) = bed.deploy(&["serve", "2"]).await;
    bed.is_spared(one).await;
    // What is armed again holds over a restart as what was armed first.
    let clock = bed.clock.clone();
    let bed = bed.restart_at(clock).await;
    bed.is_spared(one).await;
    let (three, _) = bed.deploy(&["serve", "3"]).await;
    // It is one too many by now, and when its time is over it is archived as any other.
    bed.falls_asleep(one).await;
    eventually("it is archived", async || {
        bed.clock.leap(Duration::from_secs(60));
        bed.status(one).await.1 == DesiredState::Archived
    })
    .await;
    bed.is_spared(two).await;
    let instance = bed.runtime.of(two)[0];
    let request = RollbackRequest { app: Some(app()), ..RollbackRequest::default() };
    let mut back = bed.engine.submit(Command::Rollback(request), caller()).await.unwrap();
    assert_eq!(bed.ended(&mut back).await.state, OperationState::Succeeded);
    assert_eq!((bed.serves(HOST), bed.runtime.starts(instance)), (Ok(two.to_string()), 1));
    assert_eq!(bed.status(three).await, AWAKE);
}

#[tokio::test]
async fn what_is_live_stays_running_where_it_would_scale_to_zero_until_the_count_is_changed() {
    let bed = Bed::keeping_warm(1, |settings| settings.scale_to_zero = true).await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let (two, _) = bed.deploy(&["serve", "2"]).await;
    // Others rest at their time: the count is of versions, and the live one comes first.
    let preview = bed.idler("feat").await;
    bed.falls_asleep(one).await;
    bed.falls_asleep(preview).await;
    for _ in 0..3 {
        bed.clock.leap(HALF_HOUR);
        bed.looked().await;
    }
    assert_eq!(bed.status(two).await, AWAKE);
    bed.set_warm(0).await;
    bed.falls_asleep(two).await;
    assert_eq!(bed.serve(HOST).await, two.to_string());
    bed.set_warm(1).await;
    for _ in 0..3 {
        bed.clock.leap(HALF_HOUR);
        bed.looked().await;
    }
    assert_eq!(bed.status(two).await, AWAKE);
}

#[tokio::test]
async fn what_somebody_puts_into_standby_goes_however_many_are_to_stay_warm() {
    let bed = Bed::keeping_warm(5, |_| {}).await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    bed.deploy(&["serve", "2"]).await;
    bed.is_spared(one).await;
    bed.schedule(one, ScheduledState::Standby, Delay::seconds(0)).await.unwrap();
    eventually("it sleeps", async || bed.status(one).await == ASLEEP).await;
    eventually("it is stopped", async || bed.runtime.running().len() == 1).await;
}

/// Fixed fault: a version for which nobody had asked since it was replaced rested as soon as it was live again.
#[tokio::test]
async fn what_goes_live_again_has_a_whole_new_time_before_it_rests() {
    let bed = Bed::keeping_warm(0, |settings| {
        settings.scale_to_zero = true;
        settings.deploy.standby_after = Delay(HALF_HOUR * 48);
    })
    .await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let (two, _) = bed.deploy(&["serve", "2"]).await;
    bed.falls_asleep(two).await;
    assert_eq!(bed.status(one).await, AWAKE, "it was replaced not long ago");
    let mut swap = bed.swap(one).await.unwrap();
    bed.ended(&mut swap).await;
    let live_for = HALF_HOUR - Duration::from_secs(60);
    for _ in 0..10 {
        bed.clock.leap(live_for / 10);
        bed.looked().await;
        assert_eq!(bed.status(one).await, AWAKE);
    }
    bed.falls_asleep(one).await;
}
