//! Rollback and promote: where they go, what keeps them from going, and what a deploy does in between.

use lockgate::deploy::{Action, Gate, PromoteRequest, RollbackRequest, ScheduledState};
use lockgate::store::Environment;

use super::*;

impl Bed {
    pub(super) async fn rollback(
        &self,
        source: Option<DeploymentId>,
        target: Option<DeploymentId>,
    ) -> Result<Submitted, Denied> {
        let request = RollbackRequest { app: Some(app()), source, target, ..RollbackRequest::default() };
        self.engine.submit(Command::Rollback(request), caller()).await
    }

    pub(super) async fn promote(&self, deployment: DeploymentId) -> Result<Submitted, Denied> {
        let (app, deployment) = (Some(app()), Some(deployment));
        let request = PromoteRequest { app, environment: None, deployment, from_preview: None, queue: true };
        self.engine.submit(Command::Promote(request), caller()).await
    }

    pub(super) async fn production(&self) -> Environment {
        self.store.environment(&app(), &EnvironmentName::production()).await.unwrap().unwrap()
    }

    async fn actions(&self, deployment: DeploymentId) -> Vec<Action> {
        let found = self.store.deployment(&deployment).await.unwrap().unwrap();
        self.engine.available_actions(&found).await.unwrap()
    }

    async fn has_timer(&self, deployment: DeploymentId) -> bool {
        self.store.timers().await.unwrap().iter().any(|timer| timer.deployment == deployment)
    }
}

async fn three_versions(bed: &Bed) -> [DeploymentId; 3] {
    let mut made = Vec::new();
    for version in ["1", "2", "3"] {
        made.push(bed.deploy_held(&["serve", version]).await.0);
    }
    made.try_into().unwrap()
}

#[tokio::test]
async fn a_rollback_goes_to_the_newest_earlier_one_and_keeps_deploys_from_going_live() {
    let bed = Bed::new().await;
    let [_, two, three] = three_versions(&bed).await;
    assert!(bed.has_timer(two).await);
    let mut back = bed.rollback(None, None).await.unwrap();
    assert_eq!(bed.ended(&mut back).await.state, OperationState::Succeeded);
    assert_eq!(bed.serves(HOST), Ok(two.to_string()));
    let production = bed.production().await;
    assert_eq!((production.live, production.rolled_back), (Some(two), true));
    assert!(!bed.has_timer(two).await, "the live one would be put to sleep");
    assert!(!bed.has_timer(three).await, "the source goes on running until a promote");
    assert_eq!(bed.runtime.of(three).len(), 1);

    let (four, deployed) = bed.deploy(&["serve", "4"]).await;
    assert_eq!(deployed.state, OperationState::Succeeded);
    assert_eq!(bed.status(four).await, (DeploymentStatus::Ready, DesiredState::Running));
    assert_eq!(bed.serves(HOST), Ok(two.to_string()), "a deploy went live while rolled back");

    let mut promoted = bed.promote(four).await.unwrap();
    assert_eq!(bed.ended(&mut promoted).await.state, OperationState::Succeeded);
    assert_eq!(bed.serves(HOST), Ok(four.to_string()));
    let production = bed.production().await;
    assert_eq!((production.live, production.rolled_back), (Some(four), false));
    assert!(bed.has_timer(two).await && bed.has_timer(three).await, "a version would run for ever");
    let (five, _) = bed.deploy(&["serve", "5"]).await;
    assert_eq!(bed.serves(HOST), Ok(five.to_string()), "deploys go live again");
}

/// Fixed fault: the second one went forward again, to the version that the first one had left.
#[tokio::test]
async fn a_second_rollback_goes_further_back_and_never_to_what_was_left() {
    let bed = Bed::new().await;
    let [one, two, _] = three_versions(&bed).await;
    for target in [two, one] {
        let mut back = bed.rollback(None, None).await.unwrap();
        assert_eq!(bed.ended(&mut back).await.state, OperationState::Succeeded);
        assert_eq!(bed.serves(HOST), Ok(target.to_string()));
    }
    assert_eq!(bed.rollback(None, None).await.unwrap_err().code(), Denied::NothingToGoBackTo.code());
    assert_eq!(bed.serves(HOST), Ok(one.to_string()));
}

#[tokio::test]
async fn promoting_the_live_one_confirms_a_rollback_and_moves_nothing() {
    let bed = Bed::new().await;
    let [_, two, three] = three_versions(&bed).await;
    let mut back = bed.rollback(Some(three), Some(two)).await.unwrap();
    bed.ended(&mut back).await;
    assert_eq!(bed.actions(two).await, [Action::ConfirmRollback]);
    let generation = bed.routing.generation();
    let mut confirmed = bed.promote(two).await.unwrap();
    assert_eq!(bed.ended(&mut confirmed).await.state, OperationState::Succeeded);
    assert_eq!(bed.routing.generation(), generation, "a host moved");
    let production = bed.production().await;
    assert_eq!((production.live, production.rolled_back), (Some(two), false));
    assert!(bed.has_timer(three).await, "what was rolled back would run for ever");
    assert_eq!(bed.actions(two).await, []);
}

#[tokio::test]
async fn the_gates_of_a_rollback_are_told_in_their_order() {
    let bed = Bed::new().await;
    assert!(matches!(bed.rollback(None, None).await, Err(Denied::NothingToGoBackTo)));
    let [one, two, three] = three_versions(&bed).await;
    let (failed, _) = bed.deploy(&["exit", ""]).await;
    let preview = DeployRequest { label: Some("x".parse().unwrap()), ..request(&["exit", "x"]) };
    let mut preview = bed.try_submit(preview).await.unwrap();
    bed.ended(&mut preview).await;
    let elsewhere = preview.deployment.unwrap();
    let nobody = DeploymentId::generate();
    // Each is wrong in all later ways too, as far as that can be.
    let cases = [
        (nobody, nobody, "deployment_not_found"),
        (nobody, elsewhere, "deployment_not_found"),
        (elsewhere, nobody, "deployment_not_found"),
        (elsewhere, elsewhere, "same_deployment"),
        (failed, failed, "same_deployment"),
        (two, elsewhere, "different_environment"),
        (elsewhere, failed, "different_environment"),
        (two, failed, "source_not_live"),
        (three, failed, "deployment_not_ready"),
    ];
    for (source, target, code) in cases {
        let denied = bed.rollback(Some(source), Some(target)).await.unwrap_err();
        assert_eq!(denied.code(), code, "{denied}");
    }
    let mut bare = bed.store.app(&app()).await.unwrap().unwrap();
    bare.hosts.clear();
    bed.engine.put_apps(&[bare]).await.unwrap();
    assert_eq!(bed.rollback(Some(three), Some(one)).await.unwrap_err().code(), "no_routes");
    assert_eq!(bed.production().await.live, Some(three), "something moved");
}

#[tokio::test]
async fn the_gates_of_a_promote_are_told_in_their_order() {
    let bed = Bed::with(|settings| settings.deploy.drain_timeout = LONG).await;
    let mut beside =
        bed.try_submit(DeployRequest { cutover: false, ..request(&["serve", "0"]) }).await.unwrap();
    bed.ended(&mut beside).await;
    let zero = beside.deployment.unwrap();
    assert!(matches!(bed.promote(zero).await, Err(Denied::Gate(Gate::NoLiveDeployment))));
    assert_eq!(bed.actions(zero).await, [Action::Swap, Action::Standby, Action::Archive]);

    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let (failed, _) = bed.deploy(&["exit", ""]).await;
    assert_eq!(bed.promote(failed).await.unwrap_err().code(), "deployment_not_ready");
    assert_eq!(bed.actions(failed).await, []);
    let held = bed.request(HOST);
    let mut two = bed.submit(&["serve", "2"]).await;
    within(two.reached(Progress::CutOver)).await;
    assert!(matches!(bed.promote(one).await, Err(Denied::Gate(Gate::DeploymentDraining))));
    drop(held);
    bed.ended(&mut two).await;
    let preview = DeployRequest { label: Some("x".parse().unwrap()), ..request(&["serve", "3"]) };
    let mut preview = bed.try_submit(preview).await.unwrap();
    bed.ended(&mut preview).await;
    let labelled = preview.deployment.unwrap();
    assert!(matches!(bed.promote(labelled).await, Err(Denied::Gate(Gate::DeploymentNotProduction))));
    assert_eq!(bed.rollback(None, Some(labelled)).await.unwrap_err().code(), "different_environment");
    let live = two.deployment.unwrap();
    assert!(matches!(bed.promote(live).await, Err(Denied::Gate(Gate::DeploymentIsLive))));
    assert_eq!(bed.actions(live).await, []);
}

/// Fixed fault: the target was removed as a new version is that does not hold, and could never be gone back to again.
#[tokio::test]
async fn a_rollback_to_a_version_that_does_not_hold_leaves_everything_as_it_was() {
    let bed = Bed::with(|settings| settings.deploy.watch = WATCH).await;
    let [_, two, three] = three_versions(&bed).await;
    let mut back = bed.rollback(None, None).await.unwrap();
    eventually("it is live", async || bed.serves(HOST) == Ok(two.to_string())).await;
    let instance = bed.runtime.of(two)[0];
    bed.runtime.end(instance);
    assert_eq!(bed.ended(&mut back).await.state, OperationState::RolledBack);
    let production = bed.production().await;
    assert_eq!((production.live, production.rolled_back), (Some(three), false));
    assert_eq!(bed.serves(HOST), Ok(three.to_string()));
    let target = bed.store.deployment(&two).await.unwrap().unwrap();
    assert_eq!((target.status, target.desired_state), (DeploymentStatus::Ready, DesiredState::Running));
    assert_eq!(target.failure.map(|failure| failure.code).as_deref(), Some("instance_exited"));
    assert_eq!(bed.runtime.of(two), [instance]);
    assert!(bed.has_timer(two).await && !bed.has_timer(three).await, "it would run for ever");
    let mut again = bed.rollback(None, None).await.unwrap();
    assert_eq!(bed.held(&mut again).await.state, OperationState::Succeeded);
    assert_eq!(bed.serves(HOST), Ok(two.to_string()));
    let failure = bed.store.deployment(&two).await.unwrap().unwrap().failure;
    assert_eq!(failure, None, "what it did before it went live is told of it");
}

#[tokio::test]
async fn a_target_that_was_woken_and_does_not_hold_is_in_standby_again() {
    let bed = Bed::with(|settings| settings.deploy.watch = WATCH).await;
    let [_, two, three] = three_versions(&bed).await;
    bed.schedule(two, ScheduledState::Standby, Delay::seconds(0)).await.unwrap();
    eventually("it sleeps", async || {
        bed.status(two).await.1 == DesiredState::Standby && bed.runtime.running().len() < 3
    })
    .await;
    let mut promoted = bed.promote(two).await.unwrap();
    eventually("it is live", async || bed.serves(HOST) == Ok(two.to_string())).await;
    bed.runtime.end(bed.runtime.of(two)[0]);
    assert_eq!(bed.ended(&mut promoted).await.state, OperationState::RolledBack);
    assert_eq!(bed.serves(HOST), Ok(three.to_string()));
    eventually("it sleeps again", async || {
        bed.status(two).await == (DeploymentStatus::Ready, DesiredState::Standby)
    })
    .await;
    assert_eq!(bed.runtime.of(two).len(), 1, "its instance is kept");
}

/// Fixed fault: what CI deploys while an environment is rolled back ran for ever, one version beside the other.
#[tokio::test]
async fn what_is_ready_and_not_live_goes_to_rest_in_its_time_and_a_request_wakes_it() {
    let options = Options { apex: Some("apps.test".parse().unwrap()), ..Options::default() };
    let bed = Bed::with_options(options, |_| {}).await;
    three_versions(&bed).await;
    let mut beside =
        bed.try_submit(DeployRequest { cutover: false, ..request(&["serve", "beside"]) }).await.unwrap();
    bed.ended(&mut beside).await;
    let mut back = bed.rollback(None, None).await.unwrap();
    bed.ended(&mut back).await;
    let (meanwhile, _) = bed.deploy(&["serve", "meanwhile"]).await;
    let all = [beside.deployment.unwrap(), meanwhile];
    for one in all {
        assert!(bed.has_timer(one).await, "it would run for ever");
    }
    bed.clock.leap(AppSettings::default().deploy.standby_after.0);
    for one in all {
        eventually("it sleeps", async || {
            bed.clock.leap(Duration::from_secs(1));
            bed.status(one).await == (DeploymentStatus::Ready, DesiredState::Standby)
        })
        .await;
        let own = bed.engine.hosts(one);
        eventually("its own name waits for it", async || bed.backend(&own[0]).unwrap().hold.is_some()).await;
    }
    let mut promoted = bed.promote(meanwhile).await.unwrap();
    assert_eq!(bed.ended(&mut promoted).await.state, OperationState::Succeeded);
    assert_eq!(bed.serves(HOST), Ok(meanwhile.to_string()));
}

#[tokio::test]
async fn a_rollback_whose_source_is_not_live_any_more_when_it_runs_moves_nothing() {
    let bed = Bed::new().await;
    let [_, _, three] = three_versions(&bed).await;
    // Not live before it is well.
    bed.runtime.set_starts_sick(true);
    let mut deploy = bed.submit(&["serve", "4"]).await;
    let four = deploy.deployment.unwrap();
    eventually("it is started", async || !bed.runtime.of(four).is_empty()).await;
    let mut back = bed.rollback(Some(three), None).await.unwrap();
    bed.runtime.set_sick(bed.runtime.of(four)[0], false);
    bed.ended(&mut deploy).await;
    let operation = bed.ended(&mut back).await;
    assert_eq!(operation.failure.map(|failure| failure.code).as_deref(), Some("source_not_live"));
    assert_eq!(bed.serves(HOST), Ok(deploy.deployment.unwrap().to_string()));
}

/// Where a deployment and its app may stand.
#[derive(Clone, Copy, Debug)]
enum Stand {
    Live,
    LiveAfterRollback,
    Earlier,
    Draining,
    Asleep,
    Failed,
    Preview,
    OfDisabledApp,
    WithoutHosts,
}

/// A deployment that stands so, and what keeps it from being over.
async fn standing(stand: Stand) -> (Bed, DeploymentId, Option<Guard>) {
    let bed = Bed::with(|settings| settings.deploy.drain_timeout = Delay::seconds(600)).await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let held = matches!(stand, Stand::Draining).then(|| bed.request(HOST));
    let mut second = bed.submit(&["serve", "2"]).await;
    within(second.reached(Progress::CutOver)).await;
    let two = second.deployment.unwrap();
    if held.is_none() {
        bed.ended(&mut second).await;
    }
    let meant = match stand {
        Stand::Live => two,
        Stand::Earlier | Stand::Draining => one,
        Stand::LiveAfterRollback => {
            let mut back = bed.rollback(None, None).await.unwrap();
            bed.ended(&mut back).await;
            one
        }
        Stand::Asleep => {
            bed.schedule(one, ScheduledState::Standby, Delay::seconds(0)).await.unwrap();
            eventually("it sleeps", async || bed.status(one).await.1 == DesiredState::Standby).await;
            one
        }
        Stand::Failed => bed.deploy(&["exit", ""]).await.0,
        Stand::Preview => {
            let request = DeployRequest { label: Some("x".parse().unwrap()), ..request(&["serve", "3"]) };
            let mut preview = bed.try_submit(request).await.unwrap();
            bed.ended(&mut preview).await;
            preview.deployment.unwrap()
        }
        Stand::OfDisabledApp => {
            bed.engine.disable(&app()).await.unwrap();
            one
        }
        Stand::WithoutHosts => {
            let mut bare = bed.store.app(&app()).await.unwrap().unwrap();
            bare.hosts.clear();
            bed.engine.put_apps(&[bare]).await.unwrap();
            one
        }
    };
    (bed, meant, held)
}

/// Asks for it. Whether that is accepted.
async fn is_accepted(bed: &Bed, action: Action, deployment: DeploymentId) -> bool {
    match action {
        Action::Cancel => unreachable!("nothing is on its way"),
        Action::Swap => bed.swap(deployment).await.is_ok(),
        Action::Rollback => bed.rollback(None, Some(deployment)).await.is_ok(),
        Action::Promote | Action::ConfirmRollback => bed.promote(deployment).await.is_ok(),
        Action::PromoteFromPreview => {
            let label = bed.store.deployment(&deployment).await.unwrap().unwrap().label;
            let Some(from_preview) = label else { return false };
            let request = PromoteRequest {
                app: Some(app()),
                environment: None,
                deployment: None,
                from_preview: Some(from_preview),
                queue: true,
            };
            bed.engine.submit(Command::Promote(request), caller()).await.is_ok()
        }
        Action::Wake => bed.engine.submit(Command::Wake(deployment), caller()).await.is_ok(),
        Action::Standby => bed.schedule(deployment, ScheduledState::Standby, LONG).await.is_ok(),
        Action::Archive => bed.schedule(deployment, ScheduledState::Archived, LONG).await.is_ok(),
        Action::Extend => bed.engine.extend(deployment, LONG).await.is_ok(),
    }
}

#[tokio::test]
async fn what_is_said_to_be_available_is_accepted_and_what_is_not_said_is_refused() {
    use Action::{
        Archive, ConfirmRollback, Extend, Promote, PromoteFromPreview, Rollback, Standby, Swap, Wake,
    };
    for (stand, available) in [
        (Stand::Live, &[][..]),
        (Stand::LiveAfterRollback, &[ConfirmRollback]),
        (Stand::Earlier, &[Swap, Rollback, Promote, Standby, Archive]),
        (Stand::Draining, &[Swap, Rollback, Standby, Archive]),
        (Stand::Asleep, &[Swap, Rollback, Promote, Wake, Archive]),
        (Stand::Failed, &[]),
        (Stand::Preview, &[Extend, PromoteFromPreview, Standby, Archive]),
        (Stand::OfDisabledApp, &[Archive]),
        (Stand::WithoutHosts, &[Swap, Promote, Standby, Archive]),
    ] {
        let (bed, deployment, held) = standing(stand).await;
        assert_eq!(bed.actions(deployment).await, available, "{stand:?}");
        let confirms = available.contains(&ConfirmRollback);
        for refused in [Swap, Rollback, Promote, PromoteFromPreview, Archive, Extend] {
            // Both are a promote.
            let is_said = available.contains(&refused) || refused == Promote && confirms;
            assert!(is_said || !is_accepted(&bed, refused, deployment).await, "{stand:?}: {refused:?}");
        }
        drop((bed, held));
        for action in available {
            let (bed, deployment, _held) = standing(stand).await;
            assert!(is_accepted(&bed, *action, deployment).await, "{stand:?}: {action:?}");
        }
    }
}

/// `LOCKGATE_RACE_ROUNDS` sets the number of rounds. However they race, what is served is what the last cutover made live, and the flag is its kind's.
#[tokio::test(flavor = "multi_thread")]
async fn rollback_promote_and_deploy_at_once_have_a_serial_outcome() {
    let bed = Bed::with(|settings| settings.deploy.watch = Delay::seconds(0)).await;
    let [_, mut two, _] = three_versions(&bed).await;
    let rounds = std::env::var("LOCKGATE_RACE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    for round in 0..rounds {
        let command = ["serve".to_owned(), format!("round {round}")];
        let command: Vec<_> = command.iter().map(String::as_str).collect();
        let submissions =
            tokio::join!(bed.rollback(None, None), bed.promote(two), bed.try_submit(request(&command)));
        let mut last = None;
        for submitted in [submissions.0, submissions.1, submissions.2].into_iter().flatten() {
            let mut submitted = submitted;
            let operation = bed.ended(&mut submitted).await;
            let receipt =
                operation.receipt.as_deref().filter(|_| operation.state == OperationState::Succeeded);
            let receipt =
                receipt.map(|text| serde_json::from_str::<lockgate::deploy::Receipt>(text).unwrap());
            if let Some(receipt) = receipt {
                last = last.max(Some((receipt.generation, receipt.to.to_string(), receipt.to)));
            }
        }
        let production = bed.production().await;
        let live = production.live.unwrap();
        assert_eq!(bed.serves(HOST), Ok(live.to_string()), "round {round}");
        if let Some((generation, _, to)) = last {
            assert_eq!((production.generation, live), (generation, to), "round {round}");
        }
        assert!(
            !bed.backend(HOST).unwrap().targets[0].gate.is_closed(),
            "round {round}: the live gate is shut"
        );
        two = live;
    }
}
