//! Versions of several instances: ready together, moved together, gone together.

use std::collections::HashSet;

use lockgate::ids::InstanceId;
use lockgate::routing::Target;
use lockgate::settings::Replicas;

use super::*;

async fn three(change: impl FnOnce(&mut AppSettings)) -> Bed {
    Bed::with(|settings| {
        settings.replicas = Replicas::new(3).unwrap();
        change(settings);
    })
    .await
}

/// A request at each replica of what serves [`HOST`].
fn request_each(bed: &Bed) -> Vec<Guard> {
    bed.backend(HOST).unwrap().targets.iter().map(|target| target.gate.enter(0).unwrap()).collect()
}

#[tokio::test]
async fn one_replica_that_is_not_ready_fails_the_deploy_and_all_of_them_go() {
    for (ill, code) in [("sick", "not_ready"), ("exit", "instance_exited"), ("deaf", "not_ready")] {
        for place in 1..=3 {
            let bed = three(|_| {}).await;
            let mut command = ["each", "serve", "serve", "serve"];
            command[place] = ill;
            let mut submitted = bed.submit(&command).await;
            let deployment = submitted.deployment.unwrap();
            let operation = bed.ended_in_time(&mut submitted).await;
            assert_eq!(operation.failure.unwrap().code, code, "{command:?}");
            let starts = bed.runtime.told().iter().filter(|told| matches!(told, Told::Start(_))).count();
            assert_eq!((starts, bed.runtime.known()), (3, 0), "{command:?}");
            assert_eq!(bed.status(deployment).await.0, DeploymentStatus::Failed);
            assert!(bed.backend(HOST).unwrap().targets.is_empty(), "{command:?}");
        }
    }
}

#[tokio::test]
async fn a_start_that_fails_after_others_takes_those_away() {
    let bed = three(|_| {}).await;
    let (first, _) = bed.deploy(&["serve", "1"]).await;
    let before: HashSet<_> = bed.runtime.running().into_iter().collect();
    let (second, operation) = bed.deploy(&["each", "serve", "serve", "refused"]).await;
    assert_eq!(operation.failure.unwrap().code, "start_failed");
    assert_eq!(bed.runtime.running().into_iter().collect::<HashSet<_>>(), before);
    assert_eq!(bed.runtime.known(), 3);
    assert_eq!(bed.store.instances(Some(&second)).await.unwrap(), []);
    assert_eq!(bed.serves(HOST), Ok(first.to_string()));
}

#[tokio::test]
async fn all_replicas_move_at_one_swap() {
    let bed = three(|_| {}).await;
    let (first, _) = bed.deploy(&["serve", "1"]).await;
    let old = bed.backend(HOST).unwrap().targets.to_vec();
    assert_eq!(old.len(), 3);
    let generation = bed.routing.generation();
    let mut second = bed.submit(&["serve", "2"]).await;
    // What a client can be led to in between is the whole old version or the whole new one.
    let mut seen = HashSet::new();
    while second.reached(Progress::Running).await < Progress::CutOver {
        let targets = bed.backend(HOST).unwrap().targets.iter().map(|target| target.id).collect();
        seen.insert(sorted(targets));
        tokio::task::yield_now().await;
    }
    let both = [bed.runtime.of(first), bed.runtime.of(second.deployment.unwrap())].map(sorted);
    assert_eq!(seen, HashSet::from(both));
    assert_eq!(bed.routing.generation(), generation + 1, "one swap is one publish");
    assert!(old.iter().all(|target| target.gate.is_closed()));
    assert!(bed.backend(HOST).unwrap().targets.iter().all(|target| !target.gate.is_closed()));
}

fn sorted(mut ids: Vec<InstanceId>) -> Vec<InstanceId> {
    ids.sort_unstable();
    ids
}

/// Whichever of them is the last to be done.
#[tokio::test]
async fn a_drain_ends_with_the_last_request_of_the_last_replica() {
    for last in 0..3 {
        let bed = three(|settings| settings.deploy.standby_after = Delay::seconds(0)).await;
        bed.deploy(&["serve", "1"]).await;
        let old = bed.backend(HOST).unwrap().targets.to_vec();
        let mut requests = request_each(&bed);
        let mut second = bed.submit(&["serve", "2"]).await;
        within(second.reached(Progress::CutOver)).await;
        let held = requests.swap_remove(last);
        drop(requests);
        bed.looked().await;
        let operation = bed.store.operation(&second.operation).await.unwrap().unwrap();
        assert!(!operation.state.is_end(), "it ended with a request in flight at replica {last}");
        assert!(!bed.runtime.told().iter().any(|told| matches!(told, Told::Stop(_))), "stopped under it");
        drop(held);
        let receipt = bed.ended(&mut second).await.receipt.unwrap();
        let receipt: lockgate::deploy::Receipt = serde_json::from_str(&receipt).unwrap();
        assert_eq!((receipt.in_flight_at_cutover.requests, receipt.drained.requests), (3, 3));
        let stops = |target: &Arc<Target>| {
            bed.runtime.told().iter().filter(|told| **told == Told::Stop(target.id)).count()
        };
        eventually("each is stopped once", async || old.iter().all(|target| stops(target) == 1)).await;
    }
}

#[tokio::test]
async fn one_replica_that_ends_in_the_watch_takes_all_of_the_traffic_back() {
    let bed = three(|settings| settings.deploy.watch = WATCH).await;
    let (first, _) = bed.deploy_held(&["serve", "1"]).await;
    let mut second = bed.submit(&["serve", "2"]).await;
    let deployment = second.deployment.unwrap();
    eventually("it is live", async || bed.serves(HOST) == Ok(deployment.to_string())).await;
    bed.runtime.end_unnoticed(bed.runtime.of(deployment)[2]);
    assert_eq!(bed.ended(&mut second).await.state, OperationState::RolledBack);
    assert_eq!(bed.serves(HOST), Ok(first.to_string()));
    assert_eq!(bed.backend(HOST).unwrap().targets.len(), 3);
    assert_eq!(request_each(&bed).len(), 3, "a gate is shut");
    eventually("the new ones are gone", async || bed.runtime.known() == 3).await;
}
