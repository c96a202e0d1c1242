use lockgate::clock::Timestamp;
use lockgate::store::{
    Accepted, EventKind, Failure, IdempotencyKey, NewEvent, NewOperation, Of, OperationEnd, OperationState,
    Page, StepEnd, StepOutcome, Store, StoreError,
};

use crate::support::{Scratch, deployment, operation};

fn with_key(fingerprint: &str) -> NewOperation {
    let key = IdempotencyKey { key: "ci-17".to_owned(), fingerprint: fingerprint.to_owned() };
    NewOperation { idempotency: Some(key), ..operation("web") }
}

fn ended(state: OperationState) -> OperationEnd {
    OperationEnd { state, failure: None, receipt: None, at: Timestamp::now() }
}

#[tokio::test]
async fn an_idempotency_key_begins_one_operation_and_refuses_another_request() {
    let scratch = Scratch::with_web().await;
    let first = with_key("a");
    assert_eq!(scratch.store.begin_operation(&first, Some(&deployment())).await.unwrap(), Accepted::New);
    let again = scratch.store.begin_operation(&with_key("a"), Some(&deployment())).await.unwrap();
    assert_eq!(again, Accepted::Repeated(first.id));
    let other = scratch.store.begin_operation(&with_key("b"), Some(&deployment())).await.unwrap_err();
    assert!(matches!(&other, StoreError::KeyReused { key } if key == "ci-17"), "{other}");
    let all = Page { offset: 0, limit: 10 };
    assert_eq!(scratch.store.operations(&Of::default(), all).await.unwrap().len(), 1);
    assert_eq!(scratch.store.deployments(&Of::default(), all).await.unwrap().len(), 1);
}

#[tokio::test]
async fn of_twenty_parallel_calls_with_one_key_one_is_new_and_all_name_its_operation() {
    let scratch = Scratch::with_web().await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let store = scratch.store.clone();
        calls.spawn(async move {
            let operation = with_key("a");
            match store.begin_operation(&operation, Some(&deployment())).await.unwrap() {
                Accepted::New => (true, operation.id),
                Accepted::Repeated(id) => (false, id),
            }
        });
    }
    let answers = calls.join_all().await;
    assert_eq!(answers.iter().filter(|(new, _)| *new).count(), 1);
    assert!(answers.iter().all(|(_, id)| *id == answers[0].1));
}

#[tokio::test]
async fn an_operation_runs_once_started_and_its_first_end_stays() {
    let scratch = Scratch::with_web().await;
    let store = &scratch.store;
    let (first, second) = (operation("web"), operation("web"));
    for new in [&first, &second] {
        store.begin_operation(new, None).await.unwrap();
    }
    let unfinished: Vec<_> = store.unfinished_operations().await.unwrap().iter().map(|op| op.id).collect();
    assert_eq!(unfinished, [first.id, second.id]);
    let started = Timestamp::now();
    store.start_operation(&first.id, started).await.unwrap();
    store.start_operation(&first.id, Timestamp::now()).await.unwrap();
    assert!(store.request_cancel(&first.id).await.unwrap());
    store.put_receipt(&first.id, "{}").await.unwrap();

    let failure = Failure::new("image_missing", "there is no such image").remedy("push it");
    let end = OperationEnd { failure: Some(failure.clone()), ..ended(OperationState::Failed) };
    assert!(store.end_operation(&first.id, &end).await.unwrap());
    assert!(!store.end_operation(&first.id, &ended(OperationState::Succeeded)).await.unwrap());
    assert!(!store.request_cancel(&first.id).await.unwrap());
    store.start_operation(&first.id, Timestamp::now()).await.unwrap();
    store.put_receipt(&first.id, "late").await.unwrap();
    let events = store.events(Some(&first.id), 0, 10).await.unwrap();
    let seen: Vec<_> = events.iter().map(|event| (event.kind, event.text.as_str())).collect();
    assert_eq!(seen, [(EventKind::Ended, "there is no such image")]);
    assert!(store.end_operation(&second.id, &ended(OperationState::Running)).await.is_err());

    let scratch = scratch.reopen();
    let read = scratch.store.operation(&first.id).await.unwrap().unwrap();
    assert_eq!((read.state, read.failure), (OperationState::Failed, Some(failure)));
    assert_eq!((read.started_at, read.ended_at), (Some(started), Some(end.at)));
    assert!(read.cancel_requested);
    assert_eq!(read.receipt.as_deref(), Some("{}"));
    let unfinished = scratch.store.unfinished_operations().await.unwrap();
    assert_eq!(unfinished.iter().map(|op| op.id).collect::<Vec<_>>(), [second.id]);
    let newest = scratch.store.operations(&Of::default(), Page { offset: 0, limit: 1 }).await.unwrap();
    assert_eq!(newest[0].id, second.id);
}

#[tokio::test]
async fn a_step_keeps_its_first_begin_and_its_first_end() {
    let scratch = Scratch::with_web().await;
    let store = &scratch.store;
    let (operation, _) = scratch.deployment().await;
    let (began, ended) = (Timestamp::now(), Timestamp::now());
    let end = |outcome| StepEnd { outcome, detail: Some("two replicas".to_owned()), at: ended };
    store.begin_step(&operation, "start", began).await.unwrap();
    store.begin_step(&operation, "start", Timestamp::now()).await.unwrap();
    assert!(store.end_step(&operation, "start", &end(StepOutcome::Done)).await.unwrap());
    assert!(!store.end_step(&operation, "start", &end(StepOutcome::Failed)).await.unwrap());
    assert!(store.end_step(&operation, "drain", &end(StepOutcome::Skipped)).await.unwrap());

    let [start, drain] = <[_; 2]>::try_from(store.steps(&operation).await.unwrap()).unwrap();
    assert_eq!((start.name.as_str(), start.began_at, start.ended_at), ("start", began, Some(ended)));
    assert_eq!((start.outcome, start.detail.as_deref()), (Some(StepOutcome::Done), Some("two replicas")));
    assert_eq!((drain.name.as_str(), drain.outcome), ("drain", Some(StepOutcome::Skipped)));
    let events = store.events(Some(&operation), 0, 10).await.unwrap();
    let seen: Vec<_> = events.iter().map(|event| (event.kind, event.text.as_str())).collect();
    assert_eq!(
        seen,
        [
            (EventKind::StepBegan, "start"),
            (EventKind::StepEnded, "start done"),
            (EventKind::StepEnded, "drain skipped"),
        ]
    );
}

#[tokio::test]
async fn events_are_followed_from_any_place_and_never_renumbered() {
    let scratch = Scratch::with_web().await;
    let (first, _) = scratch.deployment().await;
    let (second, _) = scratch.deployment().await;
    let event = |operation, text: &str| NewEvent {
        operation,
        kind: EventKind::Progress,
        text: text.to_owned(),
        at: Timestamp::now(),
    };
    let mut ids = Vec::new();
    for (operation, text) in [(first, "a"), (second, "b"), (first, "c"), (first, "d")] {
        ids.push(scratch.store.append_event(&event(operation, text)).await.unwrap());
    }
    let scratch = scratch.reopen();
    let texts = async |operation: Option<_>, after, limit| -> Vec<_> {
        let events = scratch.store.events(operation.as_ref(), after, limit).await.unwrap();
        events.into_iter().map(|event| event.text).collect()
    };
    assert_eq!(texts(Some(first), 0, 2).await, ["a", "c"]);
    assert_eq!(texts(Some(first), ids[2], 9).await, ["d"]);
    assert_eq!(texts(None, ids[0], 9).await, ["b", "c", "d"]);
    assert!(scratch.store.append_event(&event(first, "e")).await.unwrap() > ids[3]);
}
