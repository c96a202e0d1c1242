//! Versions in standby: what waits for them, what starts them, and how a start that fails is told.

use lockgate::deploy::{ScheduleRequest, ScheduledState};
use lockgate::ids::OperationId;
use lockgate::routing::hold::Entered;
use lockgate::routing::{Hold, HoldEnd};
use lockgate::store::OperationKind;
use tokio::task::JoinSet;

use super::*;

const PREVIEW: &str = "feat.web.test";
const ASLEEP: (DeploymentStatus, DesiredState) = (DeploymentStatus::Ready, DesiredState::Standby);
const AWAKE: (DeploymentStatus, DesiredState) = (DeploymentStatus::Ready, DesiredState::Running);

impl Bed {
    /// A preview at [`PREVIEW`].
    async fn sleeper(&self, command: &[&str]) -> DeploymentId {
        let label = DeployRequest { label: Some("feat".parse().unwrap()), ..request(command) };
        let mut submitted = self.try_submit(label).await.unwrap();
        assert_eq!(self.ended(&mut submitted).await.state, OperationState::Succeeded);
        submitted.deployment.unwrap()
    }

    /// Puts a version into standby and waits until its instances are stopped.
    pub(super) async fn put_to_sleep(&self, deployment: DeploymentId) {
        let request =
            ScheduleRequest { state: ScheduledState::Standby, delay: Delay::default(), overwrite: true };
        self.engine.schedule(deployment, &request).await.unwrap();
        self.asleep(deployment).await;
    }

    async fn asleep(&self, deployment: DeploymentId) {
        eventually("it sleeps", async || {
            let rows = self.store.instances(Some(&deployment)).await.unwrap();
            let is_stopped = rows.iter().all(|row| row.phase == lockgate::store::InstancePhase::Stopped);
            self.status(deployment).await == ASLEEP && is_stopped
        })
        .await;
    }

    fn held_at(&self, host: &str) -> Option<Arc<Hold>> {
        self.backend(host).unwrap().hold.clone()
    }

    /// A request that waits, as the data plane has it wait; `None` if it finds no place.
    async fn waits(&self, host: &str) -> Option<HoldEnd> {
        let hold = self.held_at(host).unwrap();
        match hold.enter() {
            Entered::Waits(place) => Some(within(place.ended()).await),
            Entered::Ended(end) => Some(end),
            Entered::Full => None,
        }
    }

    async fn wakes(&self) -> Vec<Operation> {
        let page = lockgate::store::Page { offset: 0, limit: 100 };
        let all = self.store.operations(&lockgate::store::Of::default(), page).await.unwrap();
        all.into_iter().filter(|operation| operation.kind == OperationKind::Wake).collect()
    }

    async fn wake(&self, deployment: DeploymentId) -> Operation {
        let mut submitted = self.engine.submit(Command::Wake(deployment), caller()).await.unwrap();
        self.ended(&mut submitted).await
    }
}

fn code(end: Option<HoldEnd>) -> &'static str {
    match end {
        Some(HoldEnd::Refused(refusal)) => refusal.code,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_sleeping_version_is_started_once_however_many_wait_for_it() {
    let bed = Arc::new(Bed::new().await);
    let preview = bed.sleeper(&["serve", "1"]).await;
    let instance = bed.runtime.of(preview)[0];
    bed.put_to_sleep(preview).await;
    assert!(bed.backend(PREVIEW).unwrap().targets.is_empty());
    let mut waiting = JoinSet::new();
    for _ in 0..200 {
        let bed = Arc::clone(&bed);
        waiting.spawn(async move { bed.waits(PREVIEW).await });
    }
    while let Some(end) = waiting.join_next().await {
        assert_eq!(end.unwrap(), Some(HoldEnd::Released));
    }
    drop(bed.request(PREVIEW));
    assert_eq!((bed.held_at(PREVIEW).is_none(), bed.status(preview).await), (true, AWAKE));
    assert_eq!(bed.runtime.starts(instance), 2);
    eventually("the wake has ended", async || bed.wakes().await[0].state == OperationState::Succeeded).await;
    let wakes = bed.wakes().await;
    assert_eq!((wakes.len(), wakes[0].actor.as_str()), (1, "request"));
    let steps = bed.store.steps(&wakes[0].id).await.unwrap();
    assert_eq!(steps.iter().map(|step| step.name.as_str()).collect::<Vec<_>>(), ["wake", "check"]);
}

#[tokio::test]
async fn a_preview_wakes_while_a_deploy_of_its_app_is_at_work() {
    let bed = Bed::with(|settings| settings.deploy.health_timeout = Delay::seconds(60)).await;
    let preview = bed.sleeper(&["serve", "1"]).await;
    bed.put_to_sleep(preview).await;
    let slow = bed.submit(&["deaf", ""]).await;
    assert_eq!(bed.waits(PREVIEW).await, Some(HoldEnd::Released));
    let operation = bed.store.operation(&slow.operation).await.unwrap().unwrap();
    assert_eq!(operation.state, OperationState::Running);
    bed.engine.cancel(slow.operation).await.unwrap();
}

#[tokio::test]
async fn a_start_that_fails_is_told_to_all_and_not_tried_again_until_its_time() {
    let bed = Bed::with(|settings| settings.wake_backoff = Delay::seconds(3600)).await;
    let preview = bed.sleeper(&["nap", ""]).await;
    let instance = bed.runtime.of(preview)[0];
    bed.put_to_sleep(preview).await;
    let (one, two) = bed.in_time(async { tokio::join!(bed.waits(PREVIEW), bed.waits(PREVIEW)) }).await;
    assert_eq!((code(one), code(two)), ("wake_failed", "wake_failed"));
    bed.asleep(preview).await;
    // Nobody waits, and nobody rings.
    assert_eq!(bed.waits(PREVIEW).await, None);
    let told = bed.held_at(PREVIEW).unwrap().rules().full;
    assert_eq!((told.code, told.retry_after), ("wake_failed", 3600));
    // Whoever comes later has less to wait.
    let in_ten_minutes = bed.clock.now() + Duration::from_secs(600);
    let left = bed.held_at(PREVIEW).unwrap().full(in_ten_minutes).retry_after;
    assert!((2900..=3000).contains(&left), "{left}");
    let failure = bed.store.deployment(&preview).await.unwrap().unwrap().failure.unwrap();
    assert_eq!(failure.code, "not_ready", "{failure:?}");
    eventually("the wake has ended", async || bed.wakes().await[0].state == OperationState::Failed).await;
    assert_eq!((bed.wakes().await.len(), bed.runtime.starts(instance)), (1, 2));
    // Whoever asks for it gets a try of his own, and a restart begins anew.
    assert_eq!(bed.in_time(bed.wake(preview)).await.state, OperationState::Failed);
    assert_eq!(bed.runtime.starts(instance), 3);
    let bed = bed.restart().await;
    assert_eq!(bed.held_at(PREVIEW).unwrap().rules().cap, 1000);
}

#[tokio::test]
async fn after_its_time_a_failed_start_is_tried_again_and_its_reason_goes_when_it_works() {
    let bed = Bed::with(|settings| settings.wake_backoff = Delay(Duration::from_millis(100))).await;
    let preview = bed.sleeper(&["serve", "1"]).await;
    let instance = bed.runtime.of(preview)[0];
    bed.put_to_sleep(preview).await;
    bed.runtime.set_away(true);
    assert_eq!(code(bed.waits(PREVIEW).await), "wake_failed");
    bed.runtime.set_away(false);
    eventually("requests may wait again", async || bed.held_at(PREVIEW).unwrap().rules().cap > 0).await;
    assert!(bed.store.deployment(&preview).await.unwrap().unwrap().failure.is_some());
    assert_eq!(bed.waits(PREVIEW).await, Some(HoldEnd::Released));
    assert_eq!(bed.store.deployment(&preview).await.unwrap().unwrap().failure, None);
    assert_eq!((bed.status(preview).await, bed.runtime.starts(instance)), (AWAKE, 2));
}

#[tokio::test]
async fn what_must_not_wake_says_so_and_whoever_asks_can_wake_it_all_the_same() {
    let bed = Bed::with(|settings| settings.wake = false).await;
    let preview = bed.sleeper(&["serve", "1"]).await;
    bed.put_to_sleep(preview).await;
    assert_eq!(bed.waits(PREVIEW).await, None);
    assert_eq!(bed.held_at(PREVIEW).unwrap().rules().full.code, "deployment_in_standby");
    assert_eq!(bed.wake(preview).await.state, OperationState::Succeeded);
    drop(bed.request(PREVIEW));
    assert_eq!(bed.wake(preview).await.state, OperationState::Succeeded, "one that runs is left alone");
    assert_eq!(bed.runtime.starts(bed.runtime.of(preview)[0]), 2);
}

#[tokio::test]
async fn a_version_that_ends_while_it_is_woken_stays_ended() {
    let bed = Bed::with(|settings| settings.deploy.health_timeout = Delay::seconds(60)).await;
    let preview = bed.sleeper(&["serve", "1"]).await;
    bed.put_to_sleep(preview).await;
    bed.runtime.set_starts_sick(true);
    let hold = bed.held_at(PREVIEW).unwrap();
    let Entered::Waits(place) = hold.enter() else { panic!("no place") };
    eventually("it starts", async || bed.runtime.running().len() == 1).await;
    bed.store.set_desired_state(&preview, DesiredState::Archived).await.unwrap();
    bed.runtime.set_sick(bed.runtime.of(preview)[0], false);
    assert!(matches!(within(place.ended()).await, HoldEnd::Refused(_)));
    eventually("its instance is removed", async || bed.runtime.known() == 0).await;
    assert_eq!(bed.status(preview).await.1, DesiredState::Archived);
    let denied = bed.engine.submit(Command::Wake(preview), caller()).await.unwrap_err();
    assert!(matches!(denied, Denied::DeploymentNotReady { .. }), "{denied:?}");
}

#[tokio::test]
async fn a_restart_keeps_what_sleeps_asleep_and_the_first_request_wakes_it() {
    let bed = Bed::new().await;
    let preview = bed.sleeper(&["serve", "1"]).await;
    bed.put_to_sleep(preview).await;
    let bed = bed.restart().await;
    assert!(bed.held_at(PREVIEW).is_some() && bed.runtime.running().is_empty());
    assert_eq!(bed.waits(PREVIEW).await, Some(HoldEnd::Released));
    assert_eq!(bed.status(preview).await, AWAKE);
}

#[tokio::test]
async fn of_two_who_ask_at_once_both_follow_one_wake() {
    let bed = Bed::new().await;
    let preview = bed.sleeper(&["serve", "1"]).await;
    bed.put_to_sleep(preview).await;
    let ask = async || bed.engine.submit(Command::Wake(preview), caller()).await.unwrap().operation;
    let (one, two): (OperationId, OperationId) = tokio::join!(ask(), ask());
    assert_eq!(one, two);
    assert!(matches!(
        bed.engine.submit(Command::Wake(DeploymentId::generate()), caller()).await,
        Err(Denied::DeploymentNotFound { .. })
    ));
}

#[tokio::test]
async fn a_swap_to_a_sleeping_version_serves_who_waited_for_it() {
    let options = Options { apex: Some("apex.test".parse().unwrap()), ..Options::default() };
    let bed = Bed::with_options(options, |_| {}).await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let (_, _) = bed.deploy(&["serve", "2"]).await;
    bed.put_to_sleep(one).await;
    let own = bed.engine.hosts(one).into_iter().next().unwrap();
    let (swapped, waited) = tokio::join!(
        async {
            let mut submitted = bed.swap(one).await.unwrap();
            bed.ended(&mut submitted).await.state
        },
        bed.waits(&own)
    );
    assert_eq!((swapped, waited), (OperationState::Succeeded, Some(HoldEnd::Released)));
    assert_eq!(bed.serves(HOST), Ok(one.to_string()));
    assert_eq!(bed.runtime.starts(bed.runtime.of(one)[0]), 2);
}

#[tokio::test]
async fn a_replaced_version_that_a_request_woke_goes_to_rest_again() {
    let options = Options { apex: Some("apex.test".parse().unwrap()), ..Options::default() };
    let bed =
        Bed::with_options(options, |settings| settings.deploy.standby_after = Delay::seconds(3600)).await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let (_, _) = bed.deploy(&["serve", "2"]).await;
    bed.put_to_sleep(one).await;
    let own = bed.engine.hosts(one).into_iter().next().unwrap();
    assert_eq!(bed.waits(&own).await, Some(HoldEnd::Released));
    let timers = bed.store.timers().await.unwrap();
    let timer = timers.iter().find(|timer| timer.deployment == one).unwrap();
    assert_eq!(timer.state, DesiredState::Standby);
    assert!(timer.due > bed.clock.wall() + Duration::from_secs(3000));
}

#[tokio::test]
async fn a_wake_that_is_cancelled_turns_away_who_waits_and_the_next_request_begins_another() {
    let bed = Bed::with(|settings| settings.deploy.health_timeout = Delay::seconds(60)).await;
    let preview = bed.sleeper(&["serve", "1"]).await;
    bed.put_to_sleep(preview).await;
    bed.runtime.set_starts_sick(true);
    let cancelling = async {
        eventually("it is being woken", async || bed.runtime.running().len() == 1).await;
        let wake = bed.wakes().await.remove(0).id;
        bed.engine.cancel(wake).await.unwrap();
        wake
    };
    let (told, wake) = tokio::join!(bed.waits(PREVIEW), cancelling);
    assert_eq!(code(told), "wake_cancelled");
    bed.asleep(preview).await;
    let ended = async || bed.store.operation(&wake).await.unwrap().unwrap().state.is_end();
    eventually("the wake has ended", ended).await;
    let operation = bed.store.operation(&wake).await.unwrap().unwrap();
    assert_eq!(operation.state, OperationState::Cancelled, "{operation:?}");
    assert!(bed.runtime.running().is_empty());
    bed.runtime.set_starts_sick(false);
    assert_eq!(bed.waits(PREVIEW).await, Some(HoldEnd::Released));
    assert_eq!(bed.status(preview).await, AWAKE);
}

#[tokio::test]
async fn what_is_put_into_standby_while_it_is_woken_is_in_standby() {
    let bed = Bed::with(|settings| settings.deploy.health_timeout = Delay::seconds(60)).await;
    let preview = bed.sleeper(&["serve", "1"]).await;
    bed.put_to_sleep(preview).await;
    bed.runtime.set_starts_sick(true);
    let stopping = async {
        eventually("it is being woken", async || bed.runtime.running().len() == 1).await;
        bed.put_to_sleep(preview).await;
    };
    let (told, ()) = tokio::join!(bed.waits(PREVIEW), stopping);
    assert_eq!(code(told), "wake_cancelled");
    eventually("it is stopped", async || bed.runtime.running().is_empty()).await;
    eventually("the wake has ended", async || bed.wakes().await[0].state == OperationState::Cancelled).await;
    assert_eq!((bed.status(preview).await, bed.wakes().await.len()), (ASLEEP, 1));
}

#[tokio::test]
async fn a_request_does_not_wait_for_the_last_stream_of_what_is_about_to_be_stopped() {
    let bed = Bed::new().await;
    let preview = bed.sleeper(&["serve", "1"]).await;
    let instance = bed.runtime.of(preview)[0];
    let target = bed.backend(PREVIEW).unwrap().targets[0].clone();
    let stream = bed.request(PREVIEW).into_stream();
    let request =
        ScheduleRequest { state: ScheduledState::Standby, delay: Delay::default(), overwrite: true };
    bed.engine.schedule(preview, &request).await.unwrap();
    eventually("its gate is closed", async || target.gate.is_closed()).await;
    assert_eq!(bed.waits(PREVIEW).await, Some(HoldEnd::Released));
    drop(bed.request(PREVIEW));
    assert_eq!((bed.status(preview).await, bed.runtime.starts(instance)), (AWAKE, 1));
    assert!(!bed.runtime.told().contains(&Told::Stop(instance)), "stopped under a stream");
    drop(stream);
    // The next time nobody asks for it.
    bed.put_to_sleep(preview).await;
    assert_eq!(bed.runtime.told().iter().filter(|told| **told == Told::Stop(instance)).count(), 1);
}

#[tokio::test]
async fn requests_wait_for_a_start_as_long_and_as_many_as_the_app_says() {
    let bed = Bed::with(|settings| {
        settings.wake_timeout = Delay::seconds(7);
        settings.wake_queue = 3;
    })
    .await;
    bed.deploy(&["serve", "live"]).await;
    let preview = bed.sleeper(&["serve", "feat"]).await;
    bed.put_to_sleep(preview).await;
    let hold = bed.held_at(PREVIEW).unwrap();
    let rules = hold.rules();
    assert_eq!((rules.limit, rules.cap), (Duration::from_secs(7), 3));
    assert_eq!(rules.timed_out.code, "wake_timeout");
    assert!(rules.timed_out.retry_after > 0, "who waited too long is told when to come back");
}
