//! Swaps of versions that are there already: what they wait for, what they refuse, and what they take back.

use lockgate::routing::backend::Order;

use super::*;

/// Two versions, the second one live and both running.
async fn two_versions(change: impl FnOnce(&mut AppSettings)) -> (Bed, DeploymentId, DeploymentId) {
    let bed = Bed::with(change).await;
    let (one, _) = bed.deploy_held(&["serve", "1"]).await;
    let (two, _) = bed.deploy_held(&["serve", "2"]).await;
    (bed, one, two)
}

#[tokio::test]
async fn a_swap_to_a_version_whose_instance_died_starts_it_before_the_traffic_moves() {
    let (bed, one, _) = two_versions(|_| {}).await;
    let dead = bed.runtime.of(one)[0];
    // Twice, so that the restart rule waits.
    for _ in 0..2 {
        bed.runtime.end(dead);
        eventually("the restart rule has seen it", async || {
            bed.runtime.told().iter().filter(|told| **told == Told::Start(dead)).count() >= 2
        })
        .await;
    }
    let mut swap = bed.swap(one).await.unwrap();
    let operation = bed.ended(&mut swap).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert_eq!(bed.serves(HOST), Ok(one.to_string()));
    let address = bed.backend(HOST).unwrap().targets[0].address;
    assert!(tokio::net::TcpStream::connect(address).await.is_ok(), "nobody listens where the traffic goes");
}

#[tokio::test]
async fn a_swap_for_a_generation_that_passed_while_it_waited_is_refused() {
    let (bed, one, _) = two_versions(|_| {}).await;
    let generation = async || {
        let environment = bed.store.environment(&app(), &EnvironmentName::production()).await;
        environment.unwrap().unwrap().generation
    };
    let seen = generation().await;
    let mut deploy = bed.submit(&["deaf", ""]).await;
    let request = |deployment| SwapRequest {
        app: Some(app()),
        environment: None,
        deployment,
        expected_generation: Some(seen),
        queue: true,
        steps: Vec::new(),
        step_for: None,
    };
    let mut swap = bed.engine.submit(Command::Swap(request(one)), caller()).await.unwrap();
    // Something that clients can see changes while the swap waits in line.
    let mut changed = bed.store.app(&app()).await.unwrap().unwrap();
    changed.hosts.push(HostRow { host: "www.web.test".into(), path: "/".into(), strip: false });
    bed.engine.put_apps(&[changed]).await.unwrap();
    assert_ne!(generation().await, seen);
    bed.engine.cancel(deploy.operation).await.unwrap();
    bed.ended(&mut deploy).await;
    let operation = bed.ended(&mut swap).await;
    assert_eq!(operation.failure.map(|failure| failure.code).as_deref(), Some("generation_changed"));
    assert_ne!(bed.serves(HOST), Ok(one.to_string()));
}

#[tokio::test]
async fn an_instance_that_ends_in_the_watch_of_a_swap_gives_the_traffic_back() {
    let (bed, one, two) = two_versions(|settings| settings.deploy.watch = WATCH).await;
    let mut swap = bed.swap(one).await.unwrap();
    eventually("it is live", async || bed.serves(HOST) == Ok(one.to_string())).await;
    bed.runtime.end(bed.runtime.of(one)[0]);
    let operation = bed.ended(&mut swap).await;
    assert_eq!(operation.state, OperationState::RolledBack, "{operation:?}");
    assert_eq!(bed.serves(HOST), Ok(two.to_string()));
}

#[tokio::test]
async fn where_no_earlier_version_runs_nothing_is_said_to_serve_again() {
    let (bed, one, two) = two_versions(|settings| settings.deploy.watch = WATCH).await;
    let mut swap = bed.swap(one).await.unwrap();
    eventually("it is live", async || bed.serves(HOST) == Ok(one.to_string())).await;
    bed.runtime.end(bed.runtime.of(two)[0]);
    bed.runtime.end(bed.runtime.of(one)[0]);
    let operation = bed.ended(&mut swap).await;
    // Restarted at once by its rule, the old one may serve again; then it was right to go back to it.
    match operation.state {
        OperationState::Failed => {
            assert!(operation.failure.unwrap().remedy.unwrap().contains("no earlier version"))
        }
        OperationState::RolledBack => {
            let address = bed.backend(HOST).unwrap().targets[0].address;
            assert!(tokio::net::TcpStream::connect(address).await.is_ok(), "nobody serves");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_wake_that_is_cancelled_or_fails_goes_back_to_sleep() {
    let bed = Bed::with(|settings| {
        settings.deploy.standby_after = Delay::seconds(0);
    })
    .await;
    let (one, _) = bed.deploy(&["nap", ""]).await;
    let (two, _) = bed.deploy(&["serve", "2"]).await;
    let asleep = (DeploymentStatus::Ready, DesiredState::Standby);
    let is_asleep = async || bed.status(one).await == asleep && bed.runtime.running().len() == 1;
    eventually("the old one sleeps", is_asleep).await;

    let mut cancelled = bed.swap(one).await.unwrap();
    eventually("it was started", async || bed.runtime.running().len() == 2).await;
    bed.engine.cancel(cancelled.operation).await.unwrap();
    assert_eq!(bed.ended(&mut cancelled).await.state, OperationState::Cancelled);
    eventually("it sleeps again after the cancel", is_asleep).await;

    let mut failed = bed.swap(one).await.unwrap();
    let operation = bed.ended_in_time(&mut failed).await;
    assert_eq!(operation.failure.map(|failure| failure.code).as_deref(), Some("not_ready"));
    eventually("it sleeps again after the failure", is_asleep).await;
    assert_eq!(bed.serves(HOST), Ok(two.to_string()));
    let steps = bed.store.steps(&cancelled.operation).await.unwrap();
    assert!(steps.iter().all(|step| step.ended_at.is_some()), "a step is open for ever: {steps:?}");
}

#[tokio::test]
async fn a_version_that_requests_cannot_reach_fails_before_its_cutover() {
    let bed = Bed::with(|settings| {
        settings.health.path = None;
        settings.deploy.readiness_delay = Delay::seconds(0);
    })
    .await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let (_, operation) = bed.deploy(&["portless", ""]).await;
    let failure = operation.failure.unwrap();
    assert_eq!((operation.state, failure.code.as_str()), (OperationState::Failed, "no_port"));
    assert!(failure.remedy.unwrap().contains("set port"));
    assert_eq!(bed.serves(HOST), Ok(one.to_string()));
    eventually("nothing of it is left", async || bed.runtime.known() == 1).await;
}

#[tokio::test]
async fn a_swap_while_the_engine_is_away_does_not_wait_for_it() {
    let (bed, one, _) = two_versions(|_| {}).await;
    bed.runtime.set_away(true);
    let mut swap = bed.swap(one).await.unwrap();
    within(swap.reached(Progress::CutOver)).await;
    assert_eq!(bed.serves(HOST), Ok(one.to_string()));
    bed.runtime.set_away(false);
}

#[tokio::test]
async fn what_does_not_end_even_when_it_is_cut_is_warned_of() {
    for heeds_the_cut in [true, false] {
        let bed = Bed::with(|settings| {
            settings.deploy.drain_timeout = Delay::seconds(20);
            settings.deploy.stream_drain_timeout = Delay::seconds(20);
        })
        .await;
        bed.deploy(&["serve", "1"]).await;
        let (held, target) = (bed.request(HOST), bed.backend(HOST).unwrap().targets[0].clone());
        let mut second = bed.submit(&["serve", "2"]).await;
        let worker = async {
            let mut held = Some(held);
            eventually("it is told to cut", async || target.order() >= Order::CutRequests).await;
            held = held.filter(|_| !heeds_the_cut);
            std::future::pending::<()>().await;
            drop(held);
        };
        let operation = tokio::select! {
            operation = bed.ended_in_time(&mut second) => operation,
            () = worker => unreachable!(),
        };
        let receipt: lockgate::deploy::Receipt = serde_json::from_str(&operation.receipt.unwrap()).unwrap();
        if heeds_the_cut {
            assert_eq!((operation.state, receipt.notes.len()), (OperationState::Succeeded, 0), "{receipt:?}");
        } else {
            assert_eq!(operation.state, OperationState::SucceededWithWarnings);
            assert!(receipt.notes[0].starts_with("1 requests and 0 streams did not end"), "{receipt:?}");
        }
        assert_eq!(bed.serves(HOST), Ok(second.deployment.unwrap().to_string()));
    }
}
