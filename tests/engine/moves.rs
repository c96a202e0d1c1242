//! Rollback and promote: where they go, what keeps them from going, and what a deploy does in between.

use lockgate::deploy::{Action, Gate, PromoteRequest, RollbackRequest, available_actions};
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
        available_actions(&found, &self.production().await)
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
    let nobody = DeploymentId::generate();
    // Each is wrong in all later ways too, as far as that can be.
    let cases = [
        (nobody, nobody, "deployment_not_found"),
        (failed, failed, "same_deployment"),
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
    let bed = Bed::with(|settings| settings.deploy.drain_timeout = Delay::seconds(20)).await;
    let mut beside =
        bed.try_submit(DeployRequest { cutover: false, ..request(&["serve", "0"]) }).await.unwrap();
    bed.ended(&mut beside).await;
    let zero = beside.deployment.unwrap();
    assert!(matches!(bed.promote(zero).await, Err(Denied::Gate(Gate::NoLiveDeployment))));
    assert_eq!(bed.actions(zero).await, [Action::Swap]);

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
    assert_eq!(bed.actions(labelled).await, []);
    let live = two.deployment.unwrap();
    assert!(matches!(bed.promote(live).await, Err(Denied::Gate(Gate::DeploymentIsLive))));
    assert_eq!(bed.actions(live).await, []);
    assert_eq!(bed.actions(one).await, [Action::Swap, Action::Rollback, Action::Promote]);
}

#[tokio::test]
async fn a_rollback_to_a_version_that_does_not_hold_leaves_everything_as_it_was() {
    let bed = Bed::with(|settings| settings.deploy.watch = WATCH).await;
    let [_, two, three] = three_versions(&bed).await;
    let mut back = bed.rollback(None, None).await.unwrap();
    eventually("it is live", async || bed.serves(HOST) == Ok(two.to_string())).await;
    bed.runtime.end(bed.runtime.of(two)[0]);
    assert_eq!(bed.ended(&mut back).await.state, OperationState::RolledBack);
    let production = bed.production().await;
    assert_eq!((production.live, production.rolled_back), (Some(three), false));
    assert_eq!(bed.serves(HOST), Ok(three.to_string()));
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
