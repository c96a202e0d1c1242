//! Answers that are kept for repeats: which, for whom, how long, and never in plain.

use lockgate::store::{Accepted, IdempotencyKey, KeptAnswer, NewOperation, Store, StoreError};

use crate::support::{Scratch, app, deployment, operation};

fn key(name: &str, fingerprint: &str) -> IdempotencyKey {
    IdempotencyKey { key: name.to_owned(), fingerprint: fingerprint.to_owned() }
}

fn answer(body: &str) -> KeptAnswer {
    KeptAnswer {
        status: 200,
        content_type: Some("application/json".to_owned()),
        body: body.as_bytes().to_vec(),
    }
}

#[tokio::test]
async fn the_first_answer_of_a_call_is_kept_and_another_call_is_refused() {
    let scratch = Scratch::with_web().await;
    assert_eq!(scratch.store.kept_answer(&key("k", "a")).await.unwrap(), None);
    scratch.store.keep_answer(&key("k", "a"), &answer("1")).await.unwrap();
    scratch.store.keep_answer(&key("k", "a"), &answer("2")).await.unwrap();
    let scratch = scratch.reopen();
    assert_eq!(scratch.store.kept_answer(&key("k", "a")).await.unwrap(), Some(answer("1")));
    assert_eq!(scratch.store.kept_answer(&key("other", "a")).await.unwrap(), None);
    let refused = scratch.store.kept_answer(&key("k", "b")).await.unwrap_err();
    assert!(matches!(&refused, StoreError::KeyReused { key } if key == "k"), "{refused}");
    // Nor may it begin an operation or put an app.
    let other = NewOperation { idempotency: Some(key("k", "b")), ..operation("web") };
    let refused = scratch.store.begin_operation(&other, Some(&deployment())).await.unwrap_err();
    assert!(matches!(&refused, StoreError::KeyReused { .. }), "{refused}");
    let refused = scratch.store.put_app_once(&app("web", &[]), &key("k", "b")).await.unwrap_err();
    assert!(matches!(&refused, StoreError::KeyReused { .. }), "{refused}");
}

#[tokio::test]
async fn what_a_call_made_answers_for_it() {
    let scratch = Scratch::with_web().await;
    let begun = NewOperation { idempotency: Some(key("o", "a")), ..operation("web") };
    assert_eq!(scratch.store.begin_operation(&begun, Some(&deployment())).await.unwrap(), Accepted::New);
    assert!(scratch.store.put_app_once(&app("shop", &[]), &key("p", "a")).await.unwrap());
    for name in ["o", "p"] {
        scratch.store.keep_answer(&key(name, "a"), &answer("then")).await.unwrap();
        assert_eq!(scratch.store.kept_answer(&key(name, "a")).await.unwrap(), None, "{name}");
        assert!(scratch.store.kept_answer(&key(name, "b")).await.is_err(), "{name}");
    }
}

#[tokio::test]
async fn a_kept_answer_stands_nowhere_in_plain() {
    let scratch = Scratch::with_web().await;
    let canary = "canary-77d1c0de";
    scratch.store.keep_answer(&key("k", "a"), &answer(canary)).await.unwrap();
    assert!(!format!("{:?}", answer(canary)).contains("canary"));
    for file in std::fs::read_dir(scratch.dir.path()).unwrap().flatten() {
        let content = std::fs::read(file.path()).unwrap_or_default();
        let found = content.windows(canary.len()).any(|part| part == canary.as_bytes());
        assert!(!found, "{}", file.path().display());
    }
}

#[tokio::test]
async fn the_oldest_answers_are_forgotten() {
    let scratch = Scratch::with_web().await;
    scratch.store.keep_answer(&key("old", "a"), &answer("1")).await.unwrap();
    scratch.store.keep_answer(&key("young", "a"), &answer("1")).await.unwrap();
    let raw = rusqlite::Connection::open(scratch.dir.path().join("lockgate.db")).unwrap();
    raw.execute("UPDATE answers SET ordinal = ordinal + 9998 WHERE idempotency_key = 'young'", ()).unwrap();
    drop(raw);
    scratch.store.keep_answer(&key("new", "a"), &answer("1")).await.unwrap();
    let kept = async |name: &str| scratch.store.kept_answer(&key(name, "a")).await.unwrap().is_some();
    assert_eq!((kept("old").await, kept("young").await, kept("new").await), (false, true, true));
}
