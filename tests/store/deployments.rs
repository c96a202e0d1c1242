use lockgate::clock::Timestamp;
use lockgate::ids::{DeploymentId, EnvironmentName, InstanceId};
use lockgate::store::{
    DeploymentStatus, DesiredState, Failure, GitFacts, InstancePhase, InstanceRow, NewDeployment,
    NewOperation, Of, OperationKind, Page, Store, StoreError, SwapPlan, WakePlan,
};

use crate::support::{Scratch, app, deployment, operation, plan, web};

const ALL: Page = Page { offset: 0, limit: 1000 };

#[tokio::test]
async fn a_deployment_is_read_as_it_was_written() {
    let scratch = Scratch::with_web().await;
    let new = NewDeployment {
        git: GitFacts { commit: Some("c0ffee".to_owned()), ..GitFacts::default() },
        pinned: None,
        label: Some("feat-x".parse().unwrap()),
        expires_at: Some(Timestamp::now()),
        ..deployment()
    };
    let operation = operation("web");
    scratch.store.begin_operation(&operation, Some(&new)).await.unwrap();
    let failure = Failure::new("unhealthy", "it never became ready").seen(["exit code 1".to_owned()]);
    scratch.store.set_pinned(&new.id, "{\"digest\":\"sha256:1\"}", "hash").await.unwrap();
    scratch.store.set_desired_state(&new.id, DesiredState::Standby).await.unwrap();
    assert!(scratch.store.set_status(&new.id, DeploymentStatus::Failed, Some(&failure)).await.unwrap());

    let scratch = scratch.reopen();
    let read = scratch.store.deployment(&new.id).await.unwrap().unwrap();
    assert_eq!(read.settings, new.settings);
    assert_eq!((read.git, read.label, read.expires_at), (new.git, new.label, new.expires_at));
    assert_eq!((read.app, read.environment), (web(), EnvironmentName::production()));
    assert_eq!((read.operation, read.created_at, read.live_at), (operation.id, operation.at, None));
    assert_eq!(read.pinned.as_deref(), Some("{\"digest\":\"sha256:1\"}"));
    assert_eq!(read.state_hash.as_deref(), Some("hash"));
    assert_eq!((read.status, read.failure), (DeploymentStatus::Failed, Some(failure)));
    assert_eq!(read.desired_state, DesiredState::Standby);
}

#[tokio::test]
async fn sequence_numbers_have_no_gap_and_no_double_however_parallel() {
    let scratch = Scratch::with_web().await;
    scratch.store.put_apps(&[app("api", &[])]).await.unwrap();
    let mut made = tokio::task::JoinSet::new();
    for number in 0..20 {
        let store = scratch.store.clone();
        let operation = operation(if number % 2 == 0 { "web" } else { "api" });
        made.spawn(async move { store.begin_operation(&operation, Some(&deployment())).await.unwrap() });
    }
    made.join_all().await;
    for name in ["web", "api"] {
        let of = Of { app: Some(name.parse().unwrap()), environment: None };
        let listed = scratch.store.deployments(&of, ALL).await.unwrap();
        let sequences: Vec<_> = listed.iter().map(|deployment| deployment.sequence).collect();
        assert_eq!(sequences, (1..=10).rev().collect::<Vec<_>>(), "{name}");
        let page = scratch.store.deployments(&of, Page { offset: 3, limit: 2 }).await.unwrap();
        assert_eq!(page, listed[3..5], "{name}");
    }
    assert_eq!(scratch.store.deployments(&Of::default(), ALL).await.unwrap().len(), 20);
}

#[tokio::test]
async fn a_status_moves_as_its_rule_says_and_not_otherwise() {
    let scratch = Scratch::with_web().await;
    for from in DeploymentStatus::ALL {
        for to in DeploymentStatus::ALL {
            let (_, id) = scratch.deployment().await;
            if from != DeploymentStatus::Pending {
                assert!(scratch.store.set_status(&id, from, None).await.unwrap());
            }
            let moved = scratch.store.set_status(&id, to, None).await.unwrap();
            assert_eq!(moved, from.may_become(to), "{from:?} to {to:?}");
            let is = scratch.store.deployment(&id).await.unwrap().unwrap().status;
            assert_eq!(is, if moved { to } else { from });
        }
    }
}

#[test]
fn of_twenty_threads_that_end_a_deployment_exactly_one_decides() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let scratch = runtime.block_on(Scratch::with_web());
    let ends = [DeploymentStatus::Failed, DeploymentStatus::Cancelled, DeploymentStatus::Superseded];
    for _ in 0..10 {
        let (_, id) = runtime.block_on(scratch.deployment());
        let barrier = std::sync::Barrier::new(20);
        let won: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..20)
                .map(|number| {
                    let (runtime, scratch, barrier) = (&runtime, &scratch, &barrier);
                    scope.spawn(move || {
                        let to = ends[number % ends.len()];
                        barrier.wait();
                        runtime.block_on(scratch.store.set_status(&id, to, None)).unwrap().then_some(to)
                    })
                })
                .collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        });
        let is = runtime.block_on(scratch.store.deployment(&id)).unwrap().unwrap().status;
        assert_eq!(won, [is]);
    }
}

#[tokio::test]
async fn in_service_are_those_that_run_or_sleep_and_those_that_have_not_ended() {
    let scratch = Scratch::with_web().await;
    let store = &scratch.store;
    let mut expected = Vec::new();
    for status in DeploymentStatus::ALL {
        for state in [DesiredState::Running, DesiredState::Standby] {
            let (_, id) = scratch.deployment().await;
            if status != DeploymentStatus::Pending {
                store.set_status(&id, status, None).await.unwrap();
            }
            store.set_desired_state(&id, state).await.unwrap();
            if !status.is_end() || status == DeploymentStatus::Ready {
                expected.push(id);
            }
        }
    }
    let listed = store.deployments_in_service().await.unwrap();
    assert_eq!(listed.into_iter().map(|deployment| deployment.id).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn an_archived_one_stays_so_and_nothing_is_due_for_it() {
    let scratch = Scratch::with_web().await;
    let store = &scratch.store;
    let (_, id) = scratch.deployment().await;
    store.arm_timer(&crate::support::standby(id, "before")).await.unwrap();
    store.set_desired_state(&id, DesiredState::Archived).await.unwrap();
    assert_eq!(store.timers().await.unwrap(), []);
    store.set_desired_state(&id, DesiredState::Archived).await.unwrap();
    let timer = crate::support::standby(id, "after");
    for error in [
        store.set_desired_state(&id, DesiredState::Running).await.unwrap_err(),
        store.set_desired_state(&id, DesiredState::Standby).await.unwrap_err(),
        store.arm_timer(&timer).await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Archived { deployment } if deployment == id));
    }
    assert_eq!(store.deployment(&id).await.unwrap().unwrap().desired_state, DesiredState::Archived);
}

#[tokio::test]
async fn only_a_ready_version_falls_asleep_and_only_a_sleeping_one_is_woken() {
    let scratch = Scratch::with_web().await;
    let store = &scratch.store;
    let (_, id) = scratch.deployment().await;
    let plan =
        WakePlan { deployment: id, instances: Vec::new(), rest: Some(crate::support::standby(id, "rest")) };
    assert!(!store.fall_asleep(&id).await.unwrap(), "it is not ready");
    store.set_status(&id, DeploymentStatus::Ready, None).await.unwrap();
    assert!(!store.commit_wake(&plan).await.unwrap(), "it runs");
    assert_eq!(store.timers().await.unwrap(), []);
    assert!(store.fall_asleep(&id).await.unwrap() && !store.fall_asleep(&id).await.unwrap());
    store.note_failure(&id, &Failure::new("not_ready", "it was not")).await.unwrap();
    assert!(store.commit_wake(&plan).await.unwrap());
    let woken = store.deployment(&id).await.unwrap().unwrap();
    assert_eq!((woken.desired_state, woken.failure), (DesiredState::Running, None));
    assert_eq!(store.timers().await.unwrap(), [plan.rest.unwrap()]);
    store.set_desired_state(&id, DesiredState::Archived).await.unwrap();
    let again = WakePlan { deployment: id, instances: Vec::new(), rest: None };
    assert!(!store.commit_wake(&again).await.unwrap() && !store.fall_asleep(&id).await.unwrap());
}

#[tokio::test]
async fn a_deployment_that_is_not_there_is_named() {
    let scratch = Scratch::with_web().await;
    let id = DeploymentId::generate();
    assert_eq!(scratch.store.deployment(&id).await.unwrap(), None);
    let said = format!("no deployment {id}");
    let store = &scratch.store;
    let errors = [
        store.set_status(&id, DeploymentStatus::Failed, None).await.unwrap_err(),
        store.set_pinned(&id, "", "").await.unwrap_err(),
        store.set_desired_state(&id, DesiredState::Standby).await.unwrap_err(),
        store.arm_timer(&crate::support::standby(id, "n")).await.unwrap_err(),
        store.commit_swap(&plan(operation("web").id, id)).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.to_string(), said);
    }
    let nowhere = operation("nowhere");
    let error = store.begin_operation(&nowhere, Some(&deployment())).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { what: "app", .. }), "{error}");
}

#[tokio::test]
async fn an_instance_is_replaced_by_its_id_and_gone_once_deleted() {
    let scratch = Scratch::with_web().await;
    let (operation, deployment) = scratch.deployment().await;
    let (_, other) = scratch.deployment().await;
    let starting = InstanceRow {
        id: InstanceId::generate(),
        app: web(),
        environment: EnvironmentName::production(),
        deployment,
        operation,
        phase: InstancePhase::Starting,
        handle: None,
        address: None,
        started_at: None,
        stop_signalled_at: None,
        spare: false,
    };
    scratch.store.put_instance(&starting).await.unwrap();
    let draining = InstanceRow {
        phase: InstancePhase::Draining,
        handle: Some("4711".to_owned()),
        address: Some("127.0.0.1:3000".to_owned()),
        started_at: Some(Timestamp::now()),
        stop_signalled_at: Some(Timestamp::now()),
        ..starting
    };
    scratch.store.put_instance(&draining).await.unwrap();
    let scratch = scratch.reopen();
    let store = &scratch.store;
    assert_eq!(store.instances(None).await.unwrap(), std::slice::from_ref(&draining));
    assert_eq!(store.instances(Some(&deployment)).await.unwrap(), std::slice::from_ref(&draining));
    assert_eq!(store.instances(Some(&other)).await.unwrap(), []);
    store.delete_instance(&draining.id).await.unwrap();
    store.delete_instance(&draining.id).await.unwrap();
    assert_eq!(store.instances(None).await.unwrap(), []);
}

#[tokio::test]
async fn the_ways_back_are_what_was_live_before_and_can_serve_the_newest_first() {
    let scratch = Scratch::with_web().await;
    let store = &scratch.store;
    let back_from = async |from: DeploymentId, limit: u32| {
        store.ways_back(&web(), &EnvironmentName::production(), &from, limit).await.unwrap()
    };
    let a = scratch.live().await;
    assert_eq!(back_from(a, 10).await, []);
    let (_, never) = scratch.deployment().await;
    let [b, c, d] = [scratch.live().await, scratch.live().await, scratch.live().await];
    assert!(store.set_status(&never, DeploymentStatus::Ready, None).await.unwrap());
    assert_eq!(back_from(d, 10).await, [c, b, a]);
    assert_eq!(back_from(d, 2).await, [c, b]);
    assert_eq!(back_from(c, 10).await, [b, a], "nothing that was live later");
    // In standby it can be woken; archived, or found not to hold, it cannot be gone back to.
    store.set_desired_state(&a, DesiredState::Standby).await.unwrap();
    store.set_desired_state(&c, DesiredState::Archived).await.unwrap();
    assert_eq!(back_from(d, 10).await, [b, a]);
    let e = scratch.live().await;
    let failure = Failure::new("unhealthy", "it did not hold");
    assert!(store.set_status(&d, DeploymentStatus::Failed, Some(&failure)).await.unwrap());
    assert_eq!(back_from(e, 10).await, [b, a]);
    // What another app, or another environment, had live is none of them.
    store.put_apps(&[app("api", &[])]).await.unwrap();
    assert_eq!(
        store.ways_back(&"api".parse().unwrap(), &EnvironmentName::production(), &e, 10).await.unwrap(),
        []
    );
    assert_eq!(store.ways_back(&web(), &"staging".parse().unwrap(), &e, 10).await.unwrap(), []);
    // Gone back, the next way is further back, and not to what was left.
    let (operation, f) = scratch.deployment().await;
    store
        .commit_swap(&SwapPlan { expected_generation: scratch.generation().await, ..plan(operation, f) })
        .await
        .unwrap();
    let back = NewOperation { kind: OperationKind::Rollback, ..crate::support::operation("web") };
    store.begin_operation(&back, None).await.unwrap();
    let moved =
        SwapPlan { rolled_back: true, expected_generation: scratch.generation().await, ..plan(back.id, b) };
    store.commit_swap(&moved).await.unwrap();
    assert_eq!(back_from(b, 10).await, [a]);
    let forward = NewOperation { kind: OperationKind::Promote, ..crate::support::operation("web") };
    store.begin_operation(&forward, None).await.unwrap();
    let moved = SwapPlan { expected_generation: scratch.generation().await, ..plan(forward.id, e) };
    store.commit_swap(&moved).await.unwrap();
    assert_eq!(back_from(e, 10).await, [b, f, a], "by when they were live, not by when they were made");
}

/// Fixed fault: the times at which they went live told the order.
#[tokio::test]
async fn the_ways_back_are_in_order_though_the_clock_is_set_back() {
    let scratch = Scratch::with_web().await;
    let mut live = Vec::new();
    for second in [300, 300, 200, 100] {
        let (operation, to) = scratch.deployment().await;
        let at = Timestamp::from_second(second).unwrap();
        let plan = SwapPlan { expected_generation: scratch.generation().await, at, ..plan(operation, to) };
        scratch.store.commit_swap(&plan).await.unwrap();
        live.push(to);
    }
    let newest = live.pop().unwrap();
    live.reverse();
    let back = scratch.store.ways_back(&web(), &EnvironmentName::production(), &newest, 10).await.unwrap();
    assert_eq!(back, live);
}
