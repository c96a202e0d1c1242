//! Errors as a program reads them: RFC 9457, a stable code, the same over TCP and over the socket.

use serde_json::json;

use super::contract::Document;
use super::wire::{Answer, Ask};
use super::{Admin, problem};

const DEPLOYMENTS: &str = "/v1/apps/web/deployments";

fn raw(method: &'static str, path: &str, body: &str) -> Ask {
    Ask::new(method, path).header("content-type", "application/json").body(body)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_is_a_problem_with_a_stable_code() {
    let admin = Admin::start().await;
    let secret = admin.secret("admin");
    let nobody = "00000000000000000000000000000000";
    let cases = [
        (Ask::get("/v1/nothing"), 404, "path_not_found"),
        (Ask::get("/v1/apps/"), 404, "path_not_found"),
        (Ask::get("/v1/apps/nobody"), 404, "app_not_found"),
        (Ask::get("/v1/apps/nobody/deployments"), 404, "app_not_found"),
        (Ask::get("/v1/apps/nobody/environments"), 404, "app_not_found"),
        (Ask::post("/v1/apps/nobody/deployments", &json!({})), 404, "app_not_found"),
        (
            Ask::post("/v1/apps/nobody/swap", &json!({ "deployment": format!("dep_{nobody}") })),
            404,
            "app_not_found",
        ),
        (Ask::get(format!("/v1/deployments/dep_{nobody}")), 404, "deployment_not_found"),
        (Ask::get(format!("/v1/deployments/dep_{nobody}/logs")), 404, "deployment_not_found"),
        (Ask::get(format!("/v1/deployments/dep_{nobody}/events")), 404, "deployment_not_found"),
        (
            Ask::post("/v1/apps/web/swap", &json!({ "deployment": format!("dep_{nobody}") })),
            404,
            "deployment_not_found",
        ),
        (Ask::get(format!("/v1/operations/op_{nobody}")), 404, "operation_not_found"),
        (Ask::get(format!("/v1/operations/op_{nobody}/events")), 404, "operation_not_found"),
        (Ask::new("POST", format!("/v1/operations/op_{nobody}/cancel")), 404, "operation_not_found"),
        (Ask::new("POST", format!("/v1/operations/op_{nobody}/finish")), 404, "operation_not_found"),
        (
            Ask::post("/v1/apps/nobody/environments/staging/link", &json!({ "for": "1h" })),
            404,
            "app_not_found",
        ),
        (Ask::new("DELETE", format!("/v1/tokens/tok_{nobody}")), 404, "token_not_found"),
        // What is no name is nobody's.
        (Ask::get("/v1/apps/UPPER"), 404, "name_invalid"),
        (Ask::get("/v1/apps/%ff"), 404, "name_invalid"),
        (Ask::get("/v1/apps/..%2f..%2fetc%2fpasswd"), 404, "name_invalid"),
        (Ask::get(format!("/v1/apps/{}", "a".repeat(5000))), 404, "name_invalid"),
        (Ask::get("/v1/deployments/garbage"), 404, "name_invalid"),
        (Ask::get("/v1/deployments/op_00000000000000000000000000000000"), 404, "name_invalid"),
        (Ask::get("/v1/operations/-1"), 404, "name_invalid"),
        // Bodies.
        (raw("POST", DEPLOYMENTS, "{"), 422, "invalid"),
        (raw("POST", DEPLOYMENTS, "not json"), 422, "invalid"),
        (raw("POST", DEPLOYMENTS, "{} {}"), 422, "invalid"),
        (raw("POST", DEPLOYMENTS, "[]"), 422, "invalid"),
        (raw("POST", DEPLOYMENTS, "null"), 422, "invalid"),
        (raw("POST", DEPLOYMENTS, r#"{"imge":"x"}"#), 422, "invalid"),
        (raw("POST", DEPLOYMENTS, r#"{"app":"other"}"#), 422, "invalid"),
        (raw("POST", DEPLOYMENTS, r#"{"force":"yes"}"#), 422, "invalid"),
        (raw("POST", DEPLOYMENTS, r#"{"force":true,"force":false}"#), 422, "invalid"),
        (raw("POST", DEPLOYMENTS, r#"{"label":"UPPER"}"#), 422, "invalid"),
        (raw("POST", "/v1/apps/web/swap", "{}"), 422, "invalid"),
        (raw("PUT", "/v1/apps/other", r#"{"hosts":[{"host":"a b"}]}"#), 422, "invalid"),
        (raw("PUT", "/v1/apps/other", r#"{"hosts":[{"host":"web.test"}]}"#), 409, "host_taken"),
        (raw("PUT", "/v1/apps/web", "{}"), 409, "app_in_config"),
        (raw("POST", "/v1/tokens", r#"{"name":"x","scopes":["root"]}"#), 422, "invalid"),
        (raw("POST", "/v1/tokens", r#"{"name":"x","scopes":[]}"#), 422, "invalid"),
        (
            raw("PUT", &format!("/v1/deployments/dep_{nobody}/schedule"), r#"{"state":"asleep"}"#),
            422,
            "invalid",
        ),
        // Queries.
        (Ask::get("/v1/apps?limit=0"), 400, "query_invalid"),
        (Ask::get("/v1/apps?limit=201"), 400, "query_invalid"),
        (Ask::get("/v1/apps?limit=ten"), 400, "query_invalid"),
        (Ask::get("/v1/apps?offset=-1"), 400, "query_invalid"),
        (Ask::get("/v1/apps?unknown=1"), 400, "query_invalid"),
        (Ask::get("/v1/explain"), 400, "query_invalid"),
        (Ask::get("/v1/explain?host=a%20b"), 400, "host_invalid"),
        (Ask::post(format!("{DEPLOYMENTS}?wait=perhaps"), &json!({})), 400, "query_invalid"),
        (Ask::post(DEPLOYMENTS, &json!({})).header("idempotency-key", "a b"), 400, "idempotency_key_invalid"),
        (Ask::post(DEPLOYMENTS, &json!({})).header("idempotency-key", ""), 400, "idempotency_key_invalid"),
        (
            Ask::post(DEPLOYMENTS, &json!({})).header("idempotency-key", &"k".repeat(129)),
            400,
            "idempotency_key_invalid",
        ),
    ];
    let mut wrong = Vec::new();
    for (ask, status, code) in &cases {
        for answer in [admin.socket(ask).await, admin.tcp(&ask.clone().token(&secret)).await] {
            if answer.status == *status && answer.json::<serde_json::Value>()["code"] == *code {
                problem(&answer, *status, code);
            } else {
                wrong.push(format!("{status} {code}: {ask:?}\n  {answer:?}"));
            }
        }
    }
    let document = Document::of(&admin).await;
    for (ask, status, _) in cases.iter().filter(|(_, _, code)| *code != "path_not_found") {
        if !document.declares(ask.method, &ask.path, *status) {
            wrong.push(format!("{status} is not in the document: {} {}", ask.method, ask.path));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(admin.lockgate.operations().await.is_empty(), "something was done all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_field_is_named_with_its_place() {
    let admin = Admin::start().await;
    let ask = raw("POST", DEPLOYMENTS, r#"{"git":{"comit":"x"}}"#);
    let told = problem(&admin.socket(&ask).await, 422, "invalid");
    assert!(told.title.contains("comit"), "{told:?}");
    assert!(told.evidence.iter().any(|line| line.contains("git.comit")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_method_says_which_there_are() {
    let admin = Admin::start().await;
    let secret = admin.secret("admin");
    let allowed = |answer: &Answer| {
        let mut methods: Vec<_> =
            answer.header("allow").unwrap_or_default().split(',').map(|one| one.trim().to_owned()).collect();
        methods.sort();
        methods.join(" ")
    };
    for (method, path, methods) in [
        ("DELETE", "/v1/apps", "GET HEAD"),
        ("POST", "/v1/apps/web", "DELETE GET HEAD PUT"),
        ("GET", "/v1/apps/web/swap", "POST"),
        ("GET", "/v1/config/reload", "POST"),
        ("PUT", "/v1/tokens", "GET HEAD POST"),
        ("GET", "/v1/tokens/tok_x", "DELETE"),
        ("OPTIONS", "/v1/status", "GET HEAD"),
        ("POST", "/healthz", "GET HEAD"),
        ("DELETE", "/metrics", "GET HEAD"),
    ] {
        for answer in [
            admin.socket(&Ask::new(method, path)).await,
            admin.tcp(&Ask::new(method, path).token(&secret)).await,
        ] {
            assert_eq!(answer.status, 405, "{method} {path}: {answer:?}");
            assert_eq!(allowed(&answer), methods, "{method} {path}");
            problem(&answer, 405, "method_not_allowed");
        }
    }
}
