//! Desired states for later: the last writer wins, the live one is out of reach, and the way back is kept.

use lockgate::deploy::{ScheduleRequest, ScheduledState};
use lockgate::ids::OperationId;
use lockgate::store::{GitFacts, NewDeployment, NewOperation, OperationKind};

use super::*;

impl Bed {
    pub(super) async fn schedule(
        &self,
        deployment: DeploymentId,
        state: ScheduledState,
        delay: Delay,
    ) -> Result<lockgate::store::Timer, Denied> {
        self.engine.schedule(deployment, &ScheduleRequest { state, delay, overwrite: true }).await
    }

    /// Rows of previews that failed, as a busy app has them.
    async fn have_failed(&self, many: usize) {
        for n in 0..many {
            let (operation, deployment) = (OperationId::generate(), DeploymentId::generate());
            let begun = NewOperation {
                id: operation,
                kind: OperationKind::Deploy,
                app: app(),
                environment: EnvironmentName::production(),
                deployment: Some(deployment),
                request: "{}".to_owned(),
                actor: "test".to_owned(),
                idempotency: None,
                at: self.clock.wall(),
            };
            let made = NewDeployment {
                id: deployment,
                settings: AppSettings::default(),
                git: GitFacts::default(),
                pinned: None,
                label: Some(format!("p{n}").parse().unwrap()),
                expires_at: Some(self.clock.wall()),
            };
            self.store.begin_operation(&begun, Some(&made)).await.unwrap();
            self.store.set_status(&deployment, DeploymentStatus::Failed, None).await.unwrap();
        }
    }

    async fn timer(&self, deployment: DeploymentId) -> Option<lockgate::store::Timer> {
        self.store.timers().await.unwrap().into_iter().find(|timer| timer.deployment == deployment)
    }
}

const ASLEEP: (DeploymentStatus, DesiredState) = (DeploymentStatus::Ready, DesiredState::Standby);
const GONE: (DeploymentStatus, DesiredState) = (DeploymentStatus::Ready, DesiredState::Archived);
const NOW: Delay = Delay::seconds(0);
const LATER: Delay = Delay::seconds(3600);

#[tokio::test]
async fn what_sleeps_is_woken_at_its_time_and_goes_to_rest_again() {
    let bed = Bed::with(|settings| settings.deploy.standby_after = LATER).await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let (two, _) = bed.deploy(&["serve", "2"]).await;
    bed.schedule(one, ScheduledState::Standby, NOW).await.unwrap();
    eventually("it sleeps", async || bed.status(one).await == ASLEEP).await;
    let armed = bed.schedule(one, ScheduledState::Running, Delay(Duration::from_millis(200))).await.unwrap();
    assert_eq!(armed.state, DesiredState::Running);
    let awake = (DeploymentStatus::Ready, DesiredState::Running);
    eventually("it runs", async || bed.status(one).await == awake).await;
    eventually("it is to rest", async || {
        bed.timer(one)
            .await
            .is_some_and(|timer| timer.state == DesiredState::Standby && timer.due > armed.due)
    })
    .await;
    assert_eq!(bed.serves(HOST), Ok(two.to_string()));
    // What runs is left as it is.
    bed.schedule(one, ScheduledState::Running, NOW).await.unwrap();
    eventually("the timer is gone", async || {
        bed.timer(one).await.is_none_or(|timer| timer.state == DesiredState::Standby)
    })
    .await;
    assert_eq!(bed.status(one).await, awake);
    assert!(matches!(
        bed.schedule(two, ScheduledState::Running, NOW).await,
        Err(Denied::DeploymentIsLive { .. })
    ));
    bed.schedule(one, ScheduledState::Archived, NOW).await.unwrap();
    eventually("it is archived", async || bed.status(one).await == GONE).await;
    assert!(matches!(
        bed.schedule(one, ScheduledState::Running, NOW).await,
        Err(Denied::DeploymentNotReady { .. })
    ));
}

/// Fixed fault: it was undone like the wake of a request, and slept on with no timer.
#[cfg(feature = "fault")]
#[tokio::test]
async fn what_was_being_woken_at_its_time_when_lockgate_ended_is_woken_after_it() {
    use lockgate::fault::{Springs, Trap};
    let bed = Bed::with(|settings| settings.deploy.standby_after = LATER).await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    bed.deploy(&["serve", "2"]).await;
    bed.schedule(one, ScheduledState::Standby, NOW).await.unwrap();
    eventually("it sleeps", async || bed.status(one).await == ASLEEP).await;
    bed.runtime.set_starts_sick(true);
    bed.schedule(one, ScheduledState::Running, NOW).await.unwrap();
    let instance = bed.runtime.of(one)[0];
    eventually("it starts", async || bed.runtime.running().contains(&instance)).await;
    eventually("its timer is gone", async || {
        bed.timer(one).await.is_none_or(|timer| timer.state != DesiredState::Running)
    })
    .await;
    let trap = Trap::at("step.check.acted", Springs::ForGood);
    bed.runtime.set_starts_sick(false);
    bed.runtime.set_sick(instance, false);
    eventually("it crashes", async || trap.sprung().is_some()).await;
    let bed = bed.crash(trap).await;
    let awake = (DeploymentStatus::Ready, DesiredState::Running);
    eventually("it runs", async || bed.status(one).await == awake).await;
    let rests = bed.timer(one).await.unwrap();
    assert_eq!(rests.state, DesiredState::Standby);
    eventually("its wake has ended", async || bed.store.unfinished_operations().await.unwrap().is_empty())
        .await;
}

#[tokio::test]
async fn versions_sleep_and_are_archived_but_for_the_one_that_a_rollback_would_go_to() {
    let bed = Bed::with(|settings| {
        settings.deploy.standby_after = NOW;
        settings.deploy.archive_after = Delay(Duration::from_millis(300));
    })
    .await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let (two, _) = bed.deploy(&["serve", "2"]).await;
    eventually("the first one sleeps", async || bed.status(one).await == ASLEEP).await;
    // It is the way back: when its time is over it is spared.
    eventually("it is looked at again in a day", async || {
        bed.timer(one).await.is_some_and(|timer| timer.due > bed.clock.wall() + Duration::from_secs(80_000))
    })
    .await;
    assert_eq!((bed.status(one).await, bed.runtime.of(one).len()), (ASLEEP, 1));
    let (three, _) = bed.deploy(&["serve", "3"]).await;
    let (four, _) = bed.deploy(&["serve", "4"]).await;
    eventually("the second one is archived", async || bed.status(two).await == GONE).await;
    eventually("its instance is removed", async || bed.runtime.of(two).is_empty()).await;
    eventually("the third one is kept", async || bed.status(three).await == ASLEEP).await;
    assert_eq!(bed.serves(HOST), Ok(four.to_string()));
}

#[tokio::test]
async fn the_last_writer_wins_unless_it_yields_and_clearing_leaves_things_as_they_are() {
    let bed = Bed::new().await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let (_, _) = bed.deploy(&["serve", "2"]).await;
    let armed = bed.timer(one).await.unwrap();
    let yielding = ScheduleRequest { state: ScheduledState::Archived, delay: NOW, overwrite: false };
    assert_eq!(bed.engine.schedule(one, &yielding).await.unwrap(), armed, "it did not yield");
    let later = bed.schedule(one, ScheduledState::Archived, LATER).await.unwrap();
    assert_eq!(bed.timer(one).await, Some(later));
    bed.engine.clear_schedule(one).await.unwrap();
    bed.engine.clear_schedule(one).await.unwrap();
    assert_eq!(bed.timer(one).await, None);
    // A second demotion works as the first.
    for _ in 0..2 {
        bed.schedule(one, ScheduledState::Standby, NOW).await.unwrap();
        eventually("it sleeps", async || bed.status(one).await == ASLEEP).await;
        let mut swap = bed.swap(one).await.unwrap();
        bed.ended(&mut swap).await;
        let (_, _) = bed.deploy(&["serve", "3"]).await;
    }
    bed.schedule(one, ScheduledState::Archived, NOW).await.unwrap();
    eventually("asked for, the way back goes too", async || bed.status(one).await == GONE).await;
    assert!(matches!(bed.swap(one).await, Err(Denied::DeploymentNotReady { .. })));
    assert!(matches!(
        bed.schedule(one, ScheduledState::Standby, NOW).await,
        Err(Denied::DeploymentNotReady { .. })
    ));
}

#[tokio::test]
async fn the_live_one_is_out_of_reach_also_if_it_became_so_meanwhile() {
    let bed = Bed::new().await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    assert!(matches!(
        bed.schedule(one, ScheduledState::Standby, NOW).await,
        Err(Denied::DeploymentIsLive { .. })
    ));
    let (two, _) = bed.deploy(&["serve", "2"]).await;
    bed.schedule(one, ScheduledState::Archived, LATER).await.unwrap();
    let mut swap = bed.swap(one).await.unwrap();
    bed.ended(&mut swap).await;
    assert_eq!(bed.timer(one).await, None, "a swap clears the timer of what it makes live");
    // Its time comes all the same; the other one's has come, too.
    bed.clock.leap(LATER.0);
    eventually("the other one sleeps", async || bed.status(two).await == ASLEEP).await;
    assert_eq!(bed.status(one).await, (DeploymentStatus::Ready, DesiredState::Running));
    assert_eq!(bed.serves(HOST), Ok(one.to_string()));
}

#[tokio::test]
async fn what_came_due_while_lockgate_was_away_fires_once_after_the_start() {
    let bed = Bed::new().await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let (_, _) = bed.deploy(&["serve", "2"]).await;
    bed.schedule(one, ScheduledState::Standby, Delay(Duration::from_millis(1500))).await.unwrap();
    let instance = bed.runtime.of(one)[0];
    let bed = bed.restart().await;
    eventually("it sleeps", async || bed.status(one).await == ASLEEP && bed.runtime.running().len() == 1)
        .await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(bed.runtime.told().iter().filter(|told| **told == Told::Stop(instance)).count(), 1);
}

/// Fixed fault: it was looked for among the 200 newest rows of the environment, previews and failures among them.
#[tokio::test]
async fn the_way_back_is_found_and_kept_behind_however_many_previews_and_failures() {
    let bed = Bed::with(|settings| {
        settings.deploy.standby_after = NOW;
        settings.deploy.archive_after = Delay::seconds(3600);
    })
    .await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let (two, _) = bed.deploy(&["serve", "2"]).await;
    bed.have_failed(201).await;
    eventually("the first one sleeps", async || bed.status(one).await == ASLEEP).await;
    bed.clock.leap(Duration::from_secs(3600));
    eventually("it is looked at again in a day", async || {
        bed.clock.leap(Duration::from_secs(1));
        bed.timer(one).await.is_none_or(|timer| timer.due > bed.clock.wall() + Duration::from_secs(80_000))
    })
    .await;
    assert_eq!(bed.status(one).await, ASLEEP, "the way back was archived");
    assert_eq!(bed.serves(HOST), Ok(two.to_string()));
    let mut back = bed.rollback(None, None).await.unwrap();
    assert_eq!(bed.ended(&mut back).await.state, OperationState::Succeeded);
    assert_eq!(bed.serves(HOST), Ok(one.to_string()));
}
