//! `Idempotency-Key` (DEPLOYS.md 13): the same call twice is one operation; another call under the same key is refused.

use lockgate::api::{App, List, Operation, Token};
use serde_json::json;

use super::wire::{Answer, Ask};
use super::{Admin, problem};

const DEPLOYMENTS: &str = "/v1/apps/web/deployments";

fn deploy(key: &str, env: &serde_json::Value) -> Ask {
    Ask::post(DEPLOYMENTS, &json!({ "env": env, "force": true })).header("idempotency-key", key)
}

fn operation(answer: &Answer) -> Operation {
    assert!([200, 202].contains(&answer.status), "{answer:?}");
    answer.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_and_body_are_one_operation() {
    let mut admin = Admin::start().await;
    let ask = deploy("once", &json!({ "VERSION": "one" }));
    let first = operation(&admin.socket(&ask).await);
    assert!(!first.repeated);
    let ended = admin.socket(&Ask::get(format!("/v1/operations/{}/events", first.id))).await;
    assert!(ended.body.contains("event: ended"), "{ended:?}");
    // After its end, by whom it may be, and after a crash.
    let secret = admin.secret("deploy");
    let mut repeats = vec![admin.socket(&ask).await, admin.tcp(&ask.clone().token(&secret)).await];
    admin.lockgate.kill();
    admin.lockgate.spawn("").await;
    repeats.push(admin.socket(&ask).await);
    for repeat in &repeats {
        let repeat = operation(repeat);
        assert_eq!((repeat.id, repeat.deployment, repeat.repeated), (first.id, first.deployment, true));
    }
    assert_eq!(admin.lockgate.deployments().await.len(), 1);
    assert_eq!(admin.lockgate.operations().await.len(), 1);
    let other = operation(&admin.socket(&deploy("twice", &json!({ "VERSION": "one" }))).await);
    assert_ne!(other.id, first.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_of_a_call_that_runs_wait_for_the_same_operation() {
    let admin = Admin::start().await;
    let request = json!({ "env": { "VERSION": "one", "HEALTH_AFTER_MS": "500" }, "force": true });
    let ask = Ask::post(format!("{DEPLOYMENTS}?wait=true"), &request).header("idempotency-key", "k");
    let answers = futures_util::future::join_all((0..10).map(|_| admin.socket(&ask))).await;
    let operations: Vec<_> = answers.iter().map(operation).collect();
    assert!(operations.iter().all(|one| one.id == operations[0].id), "{operations:?}");
    assert_eq!(operations.iter().filter(|one| !one.repeated).count(), 1);
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(admin.lockgate.deployments().await.len(), 1);
    assert_eq!(admin.lockgate.version(crate::support::HOST).await.unwrap(), "one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_for_another_call_is_refused() {
    let admin = Admin::start().await;
    let first = operation(&admin.socket(&deploy("k", &json!({ "VERSION": "one" }))).await);
    let others = [
        deploy("k", &json!({ "VERSION": "two" })),
        Ask::post(DEPLOYMENTS, &json!({})).header("idempotency-key", "k"),
        Ask::post("/v1/apps/web/swap", &json!({ "deployment": first.deployment }))
            .header("idempotency-key", "k"),
    ];
    let ended = admin.socket(&Ask::get(format!("/v1/operations/{}/events", first.id))).await;
    assert!(ended.body.contains("event: ended"), "{ended:?}");
    for other in &others {
        let told = problem(&admin.socket(other).await, 409, "idempotency_key_reused");
        assert!(told.remedy.is_some(), "{told:?}");
    }
    assert_eq!(admin.lockgate.operations().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_put_of_an_app_changes_nothing_whatever_changed_since() {
    let mut admin = Admin::start().await;
    let put = |host: &str| {
        let app = json!({ "hosts": [{ "host": host }], "settings": { "command": ["true"] } });
        Ask::new("PUT", "/v1/apps/other").json(&app)
    };
    let first = put("one.test").header("idempotency-key", "put");
    assert_eq!(admin.socket(&first).await.status, 200);
    assert_eq!(admin.socket(&put("two.test")).await.status, 200);
    admin.lockgate.kill();
    admin.lockgate.spawn("").await;
    let repeat = admin.socket(&first).await;
    assert_eq!(repeat.status, 200, "{repeat:?}");
    assert_eq!(repeat.json::<App>().hosts[0].host, "two.test", "the late repeat took the change back");
    problem(
        &admin.socket(&put("three.test").header("idempotency-key", "put")).await,
        409,
        "idempotency_key_reused",
    );
    // A call that was refused made nothing: its key is free.
    let bad = Ask::new("PUT", "/v1/apps/other").json(&json!({ "settings": { "port": 0 } }));
    problem(&admin.socket(&bad.header("idempotency-key", "free")).await, 422, "invalid");
    assert_eq!(admin.socket(&put("four.test").header("idempotency-key", "free")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_call_for_a_token_makes_no_second_one_and_keeps_no_secret() {
    let admin = Admin::start().await;
    let ask = |name: &str| Ask::post("/v1/tokens", &json!({ "name": name, "scopes": ["read"] }));
    let call = ask("ci").header("idempotency-key", "token");
    let first: Token = admin.socket(&call).await.json();
    let secret = first.secret.unwrap();
    let answer = admin.socket(&call).await;
    assert!(!answer.body.contains(&secret), "{answer:?}");
    let repeat: Token = answer.json();
    assert_eq!((repeat.id, repeat.secret, repeat.repeated), (first.id, None, true));
    assert_eq!(admin.socket(&Ask::get("/v1/tokens")).await.json::<List<Token>>().items.len(), 1);
    assert_eq!(admin.tcp(&Ask::get("/v1/apps").token(&secret)).await.status, 200);
    problem(
        &admin.socket(&ask("other").header("idempotency-key", "token")).await,
        409,
        "idempotency_key_reused",
    );
    // One name for one call, of whatever kind; in either order.
    problem(&admin.socket(&deploy("token", &json!({}))).await, 409, "idempotency_key_reused");
    operation(&admin.socket(&deploy("deploy", &json!({ "VERSION": "one" }))).await);
    problem(
        &admin.socket(&ask("ci").header("idempotency-key", "deploy")).await,
        409,
        "idempotency_key_reused",
    );
    let deleted = admin.socket(&Ask::new("DELETE", format!("/v1/tokens/{}", first.id))).await;
    assert_eq!(deleted.status, 204);
    let told = problem(&admin.socket(&call).await, 404, "token_not_found");
    assert!(told.remedy.is_some(), "{told:?}");
}
