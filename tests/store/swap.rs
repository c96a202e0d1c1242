use lockgate::clock::Timestamp;
use lockgate::ids::{DeploymentId, EnvironmentName, OperationId};
use lockgate::store::{
    DeploymentStatus, DesiredState, EventKind, Fired, NewOperation, OperationEnd, OperationKind,
    OperationState, Sticky, Store, StoreError, SwapCommitted, SwapPlan, Timer,
};

use crate::support::{Scratch, app, host, operation, plan, route, standby, web};

#[tokio::test]
async fn a_swap_changes_all_that_belongs_to_it() {
    let scratch = Scratch::with_web().await;
    let store = &scratch.store;
    let old = scratch.live().await;
    let (operation, new) = scratch.deployment().await;
    store.begin_step(&operation, "swap", Timestamp::now()).await.unwrap();
    store.arm_timer(&standby(new, "left over")).await.unwrap();
    store.arm_timer(&standby(old, "replaced")).await.unwrap();
    let retire = standby(old, "retire");
    let plan = SwapPlan {
        expected_generation: 1,
        rolled_back: true,
        routes: vec![route("web-git-1234567.apps.example.com", Sticky::Commit, None)],
        retire: Some(retire.clone()),
        cutover: "{\"to\":1}".to_owned(),
        ..plan(operation, new)
    };
    let committed = store.commit_swap(&plan).await.unwrap();
    assert_eq!(committed, SwapCommitted { generation: 2, from: Some(old) });

    let environment = store.environment(&web(), &EnvironmentName::production()).await.unwrap().unwrap();
    assert_eq!((environment.live, environment.rolled_back, environment.generation), (Some(new), true, 2));
    let deployment = store.deployment(&new).await.unwrap().unwrap();
    assert_eq!((deployment.status, deployment.live_at), (DeploymentStatus::Ready, Some(plan.at)));
    assert_eq!(
        store.routes().await.unwrap(),
        [
            route("web-git-1234567.apps.example.com", Sticky::Commit, Some(new)),
            route("www.example.com", Sticky::Live, Some(new)),
        ]
    );
    assert_eq!(store.timers().await.unwrap(), [retire]);
    let journaled = store.operation(&operation).await.unwrap().unwrap();
    assert_eq!(journaled.cutover.as_deref(), Some("{\"to\":1}"));
    let [step] = <[_; 1]>::try_from(store.steps(&operation).await.unwrap()).unwrap();
    assert_eq!((step.name.as_str(), step.ended_at), ("swap", Some(plan.at)));
    let events = store.events(Some(&operation), 0, 10).await.unwrap();
    assert_eq!(
        events.iter().map(|event| event.kind).collect::<Vec<_>>(),
        [EventKind::StepBegan, EventKind::Cutover, EventKind::StepEnded]
    );
}

#[tokio::test]
async fn what_was_stopped_for_a_swap_is_in_standby_from_its_commit_on() {
    let scratch = Scratch::with_web().await;
    let old = scratch.live().await;
    let mut before = old;
    for (generation, stopped) in [(1, false), (2, true)] {
        let (operation, new) = scratch.deployment().await;
        let plan = SwapPlan {
            expected_generation: generation,
            retire: Some(standby(before, "retire")),
            stopped: stopped.then_some(before),
            ..plan(operation, new)
        };
        scratch.store.commit_swap(&plan).await.unwrap();
        let state = scratch.store.deployment(&before).await.unwrap().unwrap().desired_state;
        assert_eq!(state, if stopped { DesiredState::Standby } else { DesiredState::Running });
        before = new;
    }
}

/// What of `web` goes to rest in `after`, and by whose word.
async fn resting(scratch: &Scratch, after: Timestamp) -> Vec<(DeploymentId, String)> {
    let standby_after = app("web", &[]).settings.deploy.standby_after.0;
    let timers = scratch.store.timers().await.unwrap();
    let of = |timer: Timer| {
        assert_eq!((timer.state, timer.due), (DesiredState::Standby, after + standby_after));
        (timer.deployment, timer.nonce)
    };
    let mut resting: Vec<_> = timers.into_iter().map(of).collect();
    resting.sort();
    resting
}

#[tokio::test]
async fn with_a_promote_goes_to_rest_what_ran_on_and_not_if_it_is_taken_back() {
    let scratch = Scratch::with_web().await;
    let store = &scratch.store;
    let (one, two, three) = (scratch.live().await, scratch.live().await, scratch.live().await);
    let (_, beside) = scratch.deployment().await;
    store.set_status(&beside, DeploymentStatus::Ready, None).await.unwrap();
    let (_, asleep) = scratch.deployment().await;
    store.set_status(&asleep, DeploymentStatus::Ready, None).await.unwrap();
    store.set_desired_state(&asleep, DesiredState::Standby).await.unwrap();
    let (_, unready) = scratch.deployment().await;
    let (operation, four) = scratch.deployment().await;
    let promote = SwapPlan {
        expected_generation: 3,
        left_over: Some(format!("itself-{operation}")),
        ..plan(operation, four)
    };
    store.commit_swap(&promote).await.unwrap();
    let nonce = format!("itself-{operation}");
    let mut left_over: Vec<_> = [one, two, three, beside].map(|one| (one, nonce.clone())).into();
    left_over.sort();
    assert_eq!(resting(&scratch, promote.at).await, left_over, "{unready} is nobody's concern");
    let back = SwapPlan { expected_generation: 4, rolled_back: true, ..plan(operation, three) };
    store.commit_swap(&back).await.unwrap();
    assert_eq!(store.timers().await.unwrap(), []);
}

#[tokio::test]
async fn a_confirmed_rollback_is_the_flag_the_rest_of_what_ran_on_and_the_end_in_one() {
    let scratch = Scratch::with_web().await;
    let store = &scratch.store;
    let (one, two) = (scratch.live().await, scratch.live().await);
    let (back, _) = scratch.deployment().await;
    let back = SwapPlan { expected_generation: 2, rolled_back: true, ..plan(back, one) };
    store.commit_swap(&back).await.unwrap();
    let confirm = NewOperation { kind: OperationKind::Promote, deployment: Some(one), ..operation("web") };
    store.begin_operation(&confirm, None).await.unwrap();
    let at = Timestamp::now();
    let end = OperationEnd { state: OperationState::Succeeded, failure: None, receipt: None, at };
    store.confirm_rollback(&confirm.id, &end, "rest").await.unwrap();
    let environment = store.environment(&web(), &EnvironmentName::production()).await.unwrap().unwrap();
    assert_eq!((environment.live, environment.rolled_back, environment.generation), (Some(one), false, 3));
    let ended = store.operation(&confirm.id).await.unwrap().unwrap();
    assert_eq!((ended.state, ended.ended_at), (OperationState::Succeeded, Some(at)));
    assert_eq!(resting(&scratch, at).await, [(two, "rest".to_owned())]);
}

#[tokio::test]
async fn what_is_ready_beside_the_live_one_has_its_routes_and_its_rest_or_nothing() {
    let scratch = Scratch::with_web().await;
    let store = &scratch.store;
    store.put_apps(&[app("api", &["api.example.com"])]).await.unwrap();
    let live = scratch.live().await;
    let (_, beside) = scratch.deployment().await;
    let (rest, taken) = (standby(beside, "rest"), route("api.example.com", Sticky::Branch, Some(beside)));
    assert!(store.commit_beside(&[taken], &rest).await.is_err());
    let status = async || store.deployment(&beside).await.unwrap().unwrap().status;
    assert_eq!((status().await, store.timers().await.unwrap()), (DeploymentStatus::Pending, Vec::new()));
    let own = route("own.example.com", Sticky::Deployment, Some(beside));
    assert!(store.commit_beside(std::slice::from_ref(&own), &rest).await.unwrap());
    assert_eq!(status().await, DeploymentStatus::Ready);
    assert_eq!(store.timers().await.unwrap(), std::slice::from_ref(&rest));
    assert!(store.routes().await.unwrap().contains(&own));
    // Done again after a crash it leaves alone what was asked for since.
    store.clear_timer(&beside).await.unwrap();
    assert!(!store.commit_beside(&[own], &rest).await.unwrap());
    assert_eq!(store.timers().await.unwrap(), []);
    assert!(!store.commit_beside(&[], &standby(live, "live")).await.unwrap(), "it is ready already");
}

#[tokio::test]
async fn a_refused_swap_changes_nothing() {
    let scratch = Scratch::with_web().await;
    let store = &scratch.store;
    store.put_apps(&[app("api", &["api.example.com"])]).await.unwrap();
    let old = scratch.live().await;
    let (operation, new) = scratch.deployment().await;
    let (_, failed) = scratch.deployment().await;
    store.set_status(&failed, DeploymentStatus::Failed, None).await.unwrap();
    let good = SwapPlan {
        expected_generation: 1,
        routes: vec![route("new.example.com", Sticky::Branch, Some(new))],
        retire: Some(standby(old, "retire")),
        ..plan(operation, new)
    };
    let mut taken = good.clone();
    taken.routes.push(route("api.example.com", Sticky::Live, Some(new)));

    let outdated = SwapPlan { expected_generation: 0, ..good.clone() };
    let no_operation = SwapPlan { operation: OperationId::generate(), ..good.clone() };
    let not_ready = SwapPlan { to: failed, ..good.clone() };
    for (plan, said) in [
        (outdated, "the environment changed meanwhile: expected generation 0, found 1".to_owned()),
        (taken, "host api.example.com belongs to app api".to_owned()),
        (no_operation.clone(), format!("no operation {}", no_operation.operation)),
        (not_ready, format!("no ready deployment {failed}")),
    ] {
        assert_eq!(store.commit_swap(&plan).await.unwrap_err().to_string(), said);
        let environment = store.environment(&web(), &EnvironmentName::production()).await.unwrap().unwrap();
        assert_eq!((environment.live, environment.generation), (Some(old), 1), "{said}");
        let deployment = store.deployment(&new).await.unwrap().unwrap();
        assert_eq!((deployment.status, deployment.live_at), (DeploymentStatus::Pending, None), "{said}");
        let hosts: Vec<_> = store.routes().await.unwrap().into_iter().map(|row| row.host).collect();
        assert_eq!(hosts, [host("api.example.com"), host("www.example.com")], "{said}");
        assert_eq!(store.timers().await.unwrap(), [], "{said}");
        assert_eq!(store.operation(&operation).await.unwrap().unwrap().cutover, None, "{said}");
        assert_eq!(store.steps(&operation).await.unwrap(), [], "{said}");
    }
    store.commit_swap(&good).await.unwrap();
}

#[tokio::test]
async fn of_twenty_swaps_planned_on_one_generation_exactly_one_is_committed() {
    let scratch = Scratch::with_web().await;
    let mut swaps = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (operation, to) = scratch.deployment().await;
        let store = scratch.store.clone();
        swaps.spawn(async move { (to, store.commit_swap(&plan(operation, to)).await) });
    }
    let mut won = Vec::new();
    for (to, outcome) in swaps.join_all().await {
        match outcome {
            Ok(_) => won.push(to),
            Err(StoreError::Outdated { expected: 0, found: 1 }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let [live] = <[_; 1]>::try_from(won).unwrap();
    assert_eq!(scratch.store.routes().await.unwrap(), [route("www.example.com", Sticky::Live, Some(live))]);
}

#[tokio::test]
async fn a_timer_fires_once_and_only_the_one_that_is_armed() {
    let scratch = Scratch::with_web().await;
    let store = &scratch.store;
    let (_, deployment) = scratch.deployment().await;
    let (first, second) = (standby(deployment, "first"), standby(deployment, "second"));
    let second = Timer { state: DesiredState::Archived, ..second };
    store.arm_timer(&first).await.unwrap();
    store.arm_timer(&second).await.unwrap();
    assert_eq!(store.fire_timer(&first, None).await.unwrap(), Fired::NotArmed);
    assert_eq!(store.timers().await.unwrap(), std::slice::from_ref(&second));
    let state = async || store.deployment(&deployment).await.unwrap().unwrap().desired_state;
    assert_eq!(state().await, DesiredState::Running);
    assert_eq!(store.fire_timer(&second, None).await.unwrap(), Fired::Done);
    assert_eq!(state().await, DesiredState::Archived);
    assert_eq!(store.fire_timer(&second, None).await.unwrap(), Fired::NotArmed);

    let (_, another) = scratch.deployment().await;
    let cleared = standby(another, "cleared");
    store.arm_timer(&cleared).await.unwrap();
    store.clear_timer(&another).await.unwrap();
    assert_eq!(store.fire_timer(&cleared, None).await.unwrap(), Fired::NotArmed);
}

#[tokio::test]
async fn a_timer_of_the_live_deployment_is_removed_and_does_nothing() {
    let scratch = Scratch::with_web().await;
    let live = scratch.live().await;
    let timer = standby(live, "late");
    scratch.store.arm_timer(&timer).await.unwrap();
    assert_eq!(scratch.store.fire_timer(&timer, None).await.unwrap(), Fired::IsLive);
    assert_eq!(scratch.store.timers().await.unwrap(), []);
    let deployment = scratch.store.deployment(&live).await.unwrap().unwrap();
    assert_eq!(deployment.desired_state, DesiredState::Running);
}
