//! What is forgotten, and what never is.

use std::time::Duration;

use lockgate::clock::Timestamp;
use lockgate::store::{
    AuditEntry, DeploymentStatus, DesiredState, Of, OperationEnd, OperationState, Page, Pruned, Store,
};

use crate::support::{Scratch, plan};

const PAGE: Page = Page { offset: 0, limit: 100 };

impl Scratch {
    async fn end(&self, operation: lockgate::ids::OperationId) {
        let end = OperationEnd {
            state: OperationState::Succeeded,
            failure: None,
            receipt: None,
            at: Timestamp::now(),
        };
        assert!(self.store.end_operation(&operation, &end).await.unwrap());
    }

    async fn operations(&self) -> usize {
        self.store.operations(&Of::default(), PAGE).await.unwrap().len()
    }
}

#[tokio::test]
async fn what_serves_or_could_serve_again_is_never_forgotten() {
    let scratch = Scratch::with_web().await;
    let store = &scratch.store;
    let mut made = Vec::new();
    for _ in 0..4 {
        let (operation, deployment) = scratch.deployment().await;
        store.set_status(&deployment, DeploymentStatus::Ready, None).await.unwrap();
        scratch.end(operation).await;
        made.push((operation, deployment));
    }
    let [live, asleep, failed, archived] = <[_; 4]>::try_from(made).unwrap();
    store.commit_swap(&plan(live.0, live.1)).await.unwrap();
    store.set_desired_state(&asleep.1, DesiredState::Standby).await.unwrap();
    store.set_status(&failed.1, DeploymentStatus::Failed, None).await.unwrap();
    store.set_desired_state(&archived.1, DesiredState::Archived).await.unwrap();
    let (unfinished, pending) = scratch.deployment().await;
    let later = Timestamp::now() + Duration::from_secs(60);

    assert_eq!(store.prune(Timestamp::now() - Duration::from_secs(60), 0).await.unwrap(), Pruned::default());
    assert_eq!(store.prune(later, 3).await.unwrap(), Pruned::default(), "the newest stay");
    let pruned = store.prune(later, 0).await.unwrap();
    assert_eq!(pruned, Pruned { deployments: 2, operations: 2, audit: 0 });
    for kept in [live.1, asleep.1, pending] {
        assert!(store.deployment(&kept).await.unwrap().is_some());
    }
    for gone in [failed.1, archived.1] {
        assert_eq!(store.deployment(&gone).await.unwrap(), None);
    }
    assert!(store.operation(&unfinished).await.unwrap().is_some());
    assert_eq!(scratch.operations().await, 3);
    assert!(store.prune(later, 0).await.unwrap().is_none());
}

#[tokio::test]
async fn a_deployment_stays_while_an_operation_that_stays_tells_of_it() {
    let scratch = Scratch::with_web().await;
    let store = &scratch.store;
    let (made, deployment) = scratch.deployment().await;
    store.set_status(&deployment, DeploymentStatus::Failed, None).await.unwrap();
    scratch.end(made).await;
    let about =
        lockgate::store::NewOperation { deployment: Some(deployment), ..crate::support::operation("web") };
    store.begin_operation(&about, None).await.unwrap();
    let later = Timestamp::now() + Duration::from_secs(60);
    assert_eq!(store.prune(later, 0).await.unwrap(), Pruned::default());
    scratch.end(about.id).await;
    let later = Timestamp::now() + Duration::from_secs(60);
    assert_eq!(store.prune(later, 0).await.unwrap(), Pruned { deployments: 1, operations: 2, audit: 0 });
}

#[tokio::test]
async fn the_audit_trail_ends_where_its_time_is_over_and_much_takes_several_turns() {
    let scratch = Scratch::with_web().await;
    let store = &scratch.store;
    let old = Timestamp::now() - Duration::from_secs(7200);
    let entry = |at| AuditEntry {
        id: 0,
        at,
        actor: "tester".to_owned(),
        action: "deploy".to_owned(),
        target: "web".to_owned(),
        status: 202,
        operation: None,
    };
    for _ in 0..250 {
        store.append_audit(&entry(old)).await.unwrap();
    }
    store.append_audit(&entry(Timestamp::now())).await.unwrap();
    let before = Timestamp::now() - Duration::from_secs(3600);
    let turns = [store.prune(before, 0).await.unwrap(), store.prune(before, 0).await.unwrap()];
    assert_eq!(turns.map(|pruned| pruned.audit), [200, 50]);
    assert!(store.prune(before, 0).await.unwrap().is_none());
    assert_eq!(store.audit(PAGE).await.unwrap().len(), 1);
}
