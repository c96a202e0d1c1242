//! Cutovers in steps: who gets which version in each, what ends them, and what is left afterwards.

use lockgate::settings::Percent;

use super::plane::Plane;
use super::*;

const STEP: Duration = Duration::from_secs(600);

/// One version that is live, and another one whose cutover has come to its first step.
struct Stepping {
    bed: Bed,
    plane: Plane,
    one: DeploymentId,
    two: Submitted,
}

impl Stepping {
    async fn to(command: &[&str], steps: &[u16]) -> Self {
        let bed = Bed::new().await;
        let plane = Plane::before(&bed);
        let (one, _) = bed.deploy(&["serve", "1"]).await;
        // What a version that is judged is held against.
        plane.get_often(100).await;
        let two = bed.try_submit(in_steps(command, steps)).await.unwrap();
        let stepping = Self { bed, plane, one, two };
        stepping.comes_to(steps[0]).await;
        stepping
    }

    async fn comes_to(&self, share: u16) {
        eventually("it has the share", async || {
            let split = self.bed.production().await.split;
            split.is_some_and(|split| u16::from(split.share) == share) && self.version_at(0).await == "2"
        })
        .await;
        // The split is published, and watched from now on.
        eventually("it is told", async || {
            let events = self.bed.store.events(Some(&self.two.operation), 0, 100).await.unwrap();
            events.iter().any(|event| event.text.starts_with(&format!("{share} %")))
        })
        .await;
    }

    /// Which version a visitor gets who has that place.
    async fn version_at(&self, place: u8) -> String {
        let cookie = format!("Cookie: __lockgate_split={}.{place}\r\n", self.two.operation);
        version(&self.plane.get(&cookie).await)
    }

    async fn versions_at(&self, places: [u8; 3]) -> [String; 3] {
        [self.version_at(places[0]).await, self.version_at(places[1]).await, self.version_at(places[2]).await]
    }

    /// It did not hold: everybody gets the old version, cookie or not.
    async fn is_undone(&self, operation: &Operation, state: OperationState, status: DeploymentStatus) {
        assert_eq!(operation.state, state, "{operation:?}");
        assert_eq!(self.versions_at([0, 50, 99]).await, ["1", "1", "1"]);
        assert!(!self.plane.get("").await.contains("set-cookie"));
        assert_eq!(self.bed.production().await.live, Some(self.one));
        assert_eq!(self.bed.production().await.split, None);
        assert_eq!(self.bed.status(self.two.deployment.unwrap()).await.0, status);
        eventually("nothing of it is left", async || self.bed.runtime.known() == 1).await;
    }
}

fn in_steps(command: &[&str], steps: &[u16]) -> DeployRequest {
    let steps = steps.iter().map(|share| Percent::of(*share)).collect();
    DeployRequest { steps, step_for: Some(Delay(STEP)), ..request(command) }
}

fn version(answer: &str) -> String {
    let line = answer.lines().find_map(|line| line.strip_prefix("x-version: "));
    line.unwrap_or_else(|| panic!("{answer:?}")).to_owned()
}

#[tokio::test]
async fn a_growing_share_gets_the_new_version_and_at_the_end_everybody_cookie_or_not() {
    let mut stepping = Stepping::to(&["serve", "2"], &[5, 50, 100]).await;
    assert_eq!(stepping.versions_at([4, 49, 99]).await, ["2", "1", "1"]);
    let old = stepping.bed.backend(HOST).unwrap().targets[0].clone();
    let generation = stepping.bed.production().await.generation;
    stepping.bed.clock.leap(STEP);
    stepping.comes_to(50).await;
    assert_eq!(stepping.versions_at([4, 49, 99]).await, ["2", "2", "1"]);
    assert_eq!(stepping.bed.production().await.generation, generation + 1);
    assert!(!old.gate.is_closed());
    stepping.bed.clock.leap(STEP);
    within(stepping.two.reached(Progress::CutOver)).await;
    assert!(old.gate.is_closed(), "somebody may still enter the old version");
    assert_eq!(stepping.versions_at([4, 49, 99]).await, ["2", "2", "2"]);
    assert!(!stepping.plane.get("").await.contains("set-cookie"));
    assert_eq!(stepping.bed.production().await.split, None);
    let operation = stepping.bed.ended(&mut stepping.two).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    let steps = stepping.bed.store.steps(&operation.id).await.unwrap();
    assert!(steps.iter().any(|step| step.name == "split" && step.detail.is_some()), "{steps:?}");
    stepping.plane.shutdown().await;
}

#[tokio::test]
async fn a_version_that_fails_in_a_step_leaves_everybody_with_the_one_before() {
    let mut stepping = Stepping::to(&["errs", "2", "2"], &[50, 100]).await;
    for _ in 0..100 {
        stepping.version_at(0).await;
    }
    let operation = stepping.bed.ended(&mut stepping.two).await;
    assert_eq!(operation.failure.as_ref().unwrap().code, "error_rate");
    stepping.is_undone(&operation, OperationState::RolledBack, DeploymentStatus::Failed).await;
    stepping.plane.shutdown().await;
}

#[tokio::test]
async fn a_version_is_not_given_up_in_a_step_for_what_the_one_before_fails_as_well() {
    let mut stepping = Stepping::to(&["errs", "1", "2"], &[50, 100]).await;
    let old = stepping.bed.backend(HOST).unwrap().targets[0].id;
    // Something that both need is away.
    stepping.bed.runtime.set_sick(old, true);
    // Twice as many as excuse it: the last may be counted later than those of the new version.
    for _ in 0..10 {
        stepping.version_at(99).await;
    }
    for _ in 0..20 {
        stepping.version_at(0).await;
    }
    stepping.bed.clock.leap(STEP);
    let operation = stepping.bed.ended(&mut stepping.two).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert_eq!(stepping.versions_at([0, 50, 99]).await, ["2", "2", "2"]);
    stepping.plane.shutdown().await;
}

#[tokio::test]
async fn an_instance_that_ends_in_a_step_leaves_everybody_with_the_version_before() {
    let mut stepping = Stepping::to(&["serve", "2"], &[50, 100]).await;
    stepping.bed.runtime.end(stepping.bed.runtime.of(stepping.two.deployment.unwrap())[0]);
    let operation = stepping.bed.ended(&mut stepping.two).await;
    assert_eq!(operation.failure.as_ref().unwrap().code, "instance_exited");
    stepping.is_undone(&operation, OperationState::RolledBack, DeploymentStatus::Failed).await;
    stepping.plane.shutdown().await;
}

#[tokio::test]
async fn a_cancel_in_a_step_leaves_everybody_with_the_version_before() {
    let mut stepping = Stepping::to(&["serve", "2"], &[50, 100]).await;
    stepping.bed.engine.cancel(stepping.two.operation).await.unwrap();
    let operation = stepping.bed.ended(&mut stepping.two).await;
    stepping.is_undone(&operation, OperationState::Cancelled, DeploymentStatus::Cancelled).await;
    stepping.plane.shutdown().await;
}

#[tokio::test]
async fn a_swap_in_steps_goes_to_a_version_whose_gates_were_closed_and_a_cancelled_one_keeps_it() {
    let bed = Bed::new().await;
    let plane = Plane::before(&bed);
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let (two, _) = bed.deploy(&["serve", "2"]).await;
    let generation = bed.production().await.generation;
    let request = SwapRequest {
        app: Some(app()),
        environment: None,
        deployment: one,
        expected_generation: Some(generation),
        queue: true,
        steps: vec![Percent::of(50), Percent::of(100)],
        step_for: Some(Delay(STEP)),
    };
    let place = async |operation, place: u8| {
        let cookie = format!("Cookie: __lockgate_split={operation}.{place}\r\n");
        version(&plane.get(&cookie).await)
    };
    let mut swap = bed.engine.submit(Command::Swap(request.clone()), caller()).await.unwrap();
    eventually("a share gets it", async || place(swap.operation, 0).await == "1").await;
    assert_eq!(place(swap.operation, 99).await, "2");
    bed.engine.cancel(swap.operation).await.unwrap();
    assert_eq!(bed.ended(&mut swap).await.state, OperationState::Cancelled);
    assert_eq!(place(swap.operation, 0).await, "2");
    assert_eq!(bed.status(one).await, (DeploymentStatus::Ready, DesiredState::Running));
    assert_eq!(bed.production().await.live, Some(two));

    let generation = bed.production().await.generation;
    let request = SwapRequest { expected_generation: Some(generation), ..request };
    let mut swap = bed.engine.submit(Command::Swap(request), caller()).await.unwrap();
    eventually("a share gets it", async || place(swap.operation, 0).await == "1").await;
    bed.clock.leap(STEP);
    assert_eq!(bed.ended(&mut swap).await.state, OperationState::Succeeded);
    assert_eq!(place(swap.operation, 99).await, "1");
    plane.shutdown().await;
}

#[tokio::test]
async fn the_first_version_of_all_needs_no_steps() {
    let bed = Bed::new().await;
    let mut first = bed.try_submit(in_steps(&["serve", "1"], &[5, 100])).await.unwrap();
    assert_eq!(bed.ended(&mut first).await.state, OperationState::Succeeded);
}

#[tokio::test]
async fn steps_that_do_not_rise_to_all_are_refused() {
    let bed = Bed::new().await;
    for steps in [&[5, 25][..], &[50, 25, 100], &[5, 5, 100], &[0, 100], &[50, 150]] {
        let denied = bed.try_submit(in_steps(&["serve", "1"], steps)).await.unwrap_err();
        assert!(
            matches!(&denied, Denied::Invalid { field, .. } if field == "steps"),
            "{steps:?}: {denied:?}"
        );
    }
    let labelled =
        DeployRequest { label: Some("x".parse().unwrap()), ..in_steps(&["serve", "1"], &[5, 100]) };
    assert!(bed.try_submit(labelled).await.is_err());
}

#[tokio::test]
async fn one_that_is_to_finish_takes_its_last_step_at_once_and_others_say_that_they_have_none() {
    let mut stepping = Stepping::to(&["serve", "2"], &[5, 50, 100]).await;
    stepping.bed.engine.finish(stepping.two.operation).await.unwrap();
    within(stepping.two.reached(Progress::CutOver)).await;
    assert_eq!(stepping.versions_at([0, 50, 99]).await, ["2", "2", "2"]);
    assert_eq!(stepping.bed.production().await.split, None);
    let operation = stepping.bed.ended(&mut stepping.two).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    let steps = stepping.bed.store.steps(&operation.id).await.unwrap();
    assert!(steps.iter().any(|step| step.name == "finish" && step.ended_at.is_some()), "{steps:?}");
    let denied = stepping.bed.engine.finish(stepping.two.operation).await.unwrap_err();
    assert!(matches!(denied, Denied::NotInSteps { .. }), "{denied:?}");
    let nobody = lockgate::ids::OperationId::generate();
    let denied = stepping.bed.engine.finish(nobody).await.unwrap_err();
    assert!(matches!(denied, Denied::OperationNotFound { .. }), "{denied:?}");
    stepping.plane.shutdown().await;
}
