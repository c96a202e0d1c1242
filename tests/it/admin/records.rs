//! What is written down of calls (DEPLOYS.md 13): every mutation with who, what and its result; and never a secret.

use lockgate::api::{Audit, List, Operation};
use serde_json::json;

use super::Admin;
use super::wire::Ask;

#[tokio::test(flavor = "multi_thread")]
async fn every_mutation_is_in_the_audit_trail_with_its_result() {
    let admin = Admin::start().await;
    let token = admin.token("deploy");
    let secret = token.secret.unwrap();
    let put = json!({ "hosts": [{ "host": "other.test" }], "settings": { "command": ["true"] } });
    let deploy = Ask::post("/v1/apps/web/deployments", &json!({ "env": { "VERSION": "one" } }));
    let deployed = admin.tcp(&deploy.token(&secret)).await;
    let operation: Operation = deployed.json();
    let wrong = Ask::new("PUT", "/v1/apps/web").header("content-type", "text/plain").body("{}");
    let own = format!("uid {}", rustix::process::geteuid().as_raw());
    let asked = [
        (
            admin.socket(&Ask::new("PUT", "/v1/apps/other").json(&put)).await.status,
            "PUT /v1/apps/{app}",
            &own,
            200,
        ),
        (admin.socket(&wrong).await.status, "PUT /v1/apps/{app}", &own, 415),
        (
            admin.tcp(&Ask::new("PUT", "/v1/apps/other").json(&put).token(&secret)).await.status,
            "PUT /v1/apps/{app}",
            &"token deploy".to_owned(),
            403,
        ),
        (
            admin.socket(&Ask::post("/v1/apps/nobody/deployments", &json!({}))).await.status,
            "POST /v1/apps/{app}/deployments",
            &own,
            404,
        ),
        (
            admin.socket(&Ask::new("DELETE", format!("/v1/tokens/{}", token.id))).await.status,
            "DELETE /v1/tokens/{token}",
            &own,
            204,
        ),
    ];
    // Reads and what is not there leave nothing.
    for ask in [Ask::get("/v1/apps"), Ask::new("POST", "/v1/nothing")] {
        admin.socket(&ask).await;
    }
    let audit: List<Audit> = admin.socket(&Ask::get("/v1/audit")).await.json();
    let mut entries = audit.items.iter().rev();
    let made = entries.next().unwrap();
    assert_eq!((made.action.as_str(), made.status), ("POST /v1/tokens", 200));
    let begun = entries.next().unwrap();
    assert_eq!((begun.actor.as_str(), begun.status), ("token deploy", 202));
    assert_eq!(begun.operation, Some(operation.id));
    for (answered, action, actor, status) in asked {
        let entry = entries.next().unwrap();
        assert_eq!(answered, status, "{action}");
        assert_eq!((entry.action.as_str(), &entry.actor, entry.status), (action, actor, status));
    }
    assert_eq!(entries.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn env_vars_and_secrets_of_tokens_appear_nowhere() {
    let admin = Admin::start().await;
    let hidden = "hunter2-of-the-app";
    let secret = admin.secret("admin");
    let put = json!({
        "hosts": [{ "host": "other.test" }], "env": { "PASSWORD": hidden }, "settings": { "command": ["true"] },
    });
    let mut answers = vec![admin.tcp(&Ask::new("PUT", "/v1/apps/other").json(&put).token(&secret)).await];
    assert_eq!(answers[0].status, 200, "{:?}", answers[0]);
    let deploy = json!({ "env": { "PASSWORD": hidden } });
    answers.push(admin.tcp(&Ask::post("/v1/apps/web/deployments?wait=true", &deploy).token(&secret)).await);
    let operation: Operation = answers[1].json();
    // In a body that is refused, too.
    let refused = json!({ "env": { "PASSWORD": hidden, "OTHER": 7 } });
    answers.push(admin.socket(&Ask::post("/v1/apps/web/deployments", &refused)).await);
    let deployment = operation.deployment.unwrap();
    for path in [
        "/v1/apps".to_owned(),
        "/v1/apps/other".to_owned(),
        "/v1/deployments".to_owned(),
        format!("/v1/deployments/{deployment}"),
        format!("/v1/operations/{}", operation.id),
        format!("/v1/operations/{}/events", operation.id),
        "/v1/operations".to_owned(),
        "/v1/audit".to_owned(),
        "/v1/tokens".to_owned(),
        "/v1/instances".to_owned(),
        "/v1/status".to_owned(),
        "/metrics".to_owned(),
    ] {
        let answer = admin.socket(&Ask::get(&path)).await;
        assert_eq!(answer.status, 200, "{path}");
        answers.push(answer);
    }
    assert!(answers.iter().any(|answer| answer.body.contains("PASSWORD")), "names are shown");
    let log = admin.lockgate.logged();
    for text in answers.iter().map(|answer| &answer.body).chain([&log]) {
        assert!(!text.contains(hidden) && !text.contains(&secret), "{text}");
    }
}
