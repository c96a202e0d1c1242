//! What is accepted, in which order, and what counts as the same.

use lockgate::deploy::{PromoteRequest, RollbackRequest};
use lockgate::store::IdempotencyKey;

use super::*;

fn with_key(key: &str) -> Caller {
    let idempotency = IdempotencyKey { key: key.to_owned(), fingerprint: "the same".to_owned() };
    Caller { idempotency: Some(idempotency), ..caller() }
}

#[tokio::test]
async fn a_key_that_was_used_is_answered_before_anything_else_is_looked_at() {
    let bed = Bed::with(|settings| settings.deploy.watch = Delay::seconds(1)).await;
    let deploy = || Command::Deploy(DeployRequest { queue: false, ..request(&["serve", "1"]) });
    let mut first = bed.engine.submit(deploy(), with_key("a")).await.unwrap();
    eventually("it runs", async || !bed.runtime.running().is_empty()).await;
    let again = bed.engine.submit(deploy(), with_key("a")).await.unwrap();
    assert_eq!((again.operation, again.repeated), (first.operation, true));
    bed.ended(&mut first).await;

    let (second, _) = bed.deploy(&["serve", "2"]).await;
    let seen =
        bed.store.environment(&app(), &EnvironmentName::production()).await.unwrap().unwrap().generation;
    let swap = || {
        Command::Swap(SwapRequest {
            app: Some(app()),
            environment: None,
            deployment: first.deployment.unwrap(),
            expected_generation: Some(seen),
            queue: true,
            steps: Vec::new(),
            step_for: None,
        })
    };
    let mut swapped = bed.engine.submit(swap(), with_key("b")).await.unwrap();
    bed.ended(&mut swapped).await;
    let again = bed.engine.submit(swap(), with_key("b")).await.unwrap();
    assert_eq!((again.operation, again.repeated), (swapped.operation, true));
    bed.runtime.set_away(true);
    assert!(
        bed.engine.submit(deploy(), with_key("a")).await.unwrap().repeated,
        "the engine need not answer for it"
    );
    assert_ne!(bed.serves(HOST), Ok(second.to_string()));
}

#[tokio::test]
async fn whoever_does_not_wait_in_line_is_refused_while_another_is_at_it() {
    let bed = Bed::new().await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let (two, _) = bed.deploy(&["serve", "2"]).await;
    let mut deaf = bed.submit(&["deaf", ""]).await;
    let holder = deaf.operation;
    let swap = SwapRequest {
        app: Some(app()),
        environment: None,
        deployment: one,
        expected_generation: None,
        queue: false,
        steps: Vec::new(),
        step_for: None,
    };
    let rollback = RollbackRequest { app: Some(app()), queue: false, ..RollbackRequest::default() };
    let (app_name, deployment) = (Some(app()), Some(one));
    let promote =
        PromoteRequest { app: app_name, environment: None, deployment, from_preview: None, queue: false };
    for command in [Command::Swap(swap), Command::Rollback(rollback), Command::Promote(promote)] {
        let denied = bed.engine.submit(command, caller()).await.unwrap_err();
        assert!(
            matches!(denied, Denied::OperationInProgress { holder: told } if told == holder),
            "{denied:?}"
        );
    }
    assert_eq!(bed.serves(HOST), Ok(two.to_string()));
    bed.engine.cancel(holder).await.unwrap();
    bed.ended(&mut deaf).await;
}

#[tokio::test]
async fn an_equal_deploy_that_wants_another_cutover_is_another_operation() {
    let bed = Bed::with(|settings| settings.deploy.watch = Delay::seconds(1)).await;
    let mut beside =
        bed.try_submit(DeployRequest { cutover: false, ..request(&["serve", "1"]) }).await.unwrap();
    let mut live = bed.submit(&["serve", "1"]).await;
    assert_ne!(beside.operation, live.operation);
    bed.ended(&mut beside).await;
    assert_eq!(bed.ended(&mut live).await.state, OperationState::Succeeded);
    assert_eq!(bed.serves(HOST), Ok(live.deployment.unwrap().to_string()));
}

/// The newest by sequence is the one that stays, in whatever order the calls come through.
#[tokio::test(flavor = "multi_thread")]
async fn of_submissions_at_the_same_moment_the_highest_sequence_goes_live() {
    for _ in 0..10 {
        let bed = Bed::new().await;
        bed.deploy(&["serve", "0"]).await;
        let submissions = (0..16).map(|n| {
            let engine = bed.engine.clone();
            async move {
                let n = n.to_string();
                engine.submit(Command::Deploy(request(&["serve", &n])), caller()).await.unwrap()
            }
        });
        let mut all: Vec<Submitted> = futures_util::future::join_all(submissions).await;
        for submitted in &mut all {
            bed.ended(submitted).await;
        }
        let mut newest = None;
        for submitted in &all {
            let deployment = bed.store.deployment(&submitted.deployment.unwrap()).await.unwrap().unwrap();
            newest = newest.max(Some((deployment.sequence, deployment.id)));
        }
        assert_eq!(bed.serves(HOST), Ok(newest.unwrap().1.to_string()));
    }
}

#[tokio::test]
async fn a_label_is_made_of_a_name_where_that_is_asked_for() {
    let bed = Bed::new().await;
    let of = |name: &str| DeployRequest { label_of: Some(name.to_owned()), ..request(&["serve", "1"]) };
    let mut submitted = bed.try_submit(of("Feat/X_1")).await.unwrap();
    assert_eq!(bed.ended(&mut submitted).await.state, OperationState::Succeeded);
    assert_eq!(bed.serves("feat-x-1.web.test"), Ok(submitted.deployment.unwrap().to_string()));
    let both = DeployRequest { label: Some("x".parse().unwrap()), ..of("y") };
    for refused in [of("功能"), of("WWW"), both] {
        let denied = bed.try_submit(refused).await.unwrap_err();
        assert!(matches!(denied, Denied::Invalid { .. }), "{denied}");
    }
}
