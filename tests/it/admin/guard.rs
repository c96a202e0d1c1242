//! Who is let in (PROXY.md I1, DEPLOYS.md 13): the socket's owner, and over TCP whoever has a token with the scope;
//! never a page in somebody's browser.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use lockgate::api::{Audit, List, Token};
use lockgate::clock::{Clock, SystemClock};
use lockgate::ids::TokenId;
use lockgate::store::{self, Store};
use serde_json::json;

use super::wire::{self, Ask};
use super::{Admin, problem};

const NOBODYS_OPERATION: &str = "/v1/operations/op_00000000000000000000000000000000";

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_only_a_token_is_let_in() {
    let admin = Admin::start().await;
    let secret = admin.secret("read");
    for authorization in [
        None,
        Some("Bearer wrong".to_owned()),
        Some("Bearer ".to_owned()),
        Some(secret.clone()),
        Some(format!("Basic {secret}")),
        Some(format!("Bearer {}", &secret[..secret.len() - 1])),
        Some(format!("Bearer {secret}0")),
    ] {
        let mut ask = Ask::get("/v1/apps");
        if let Some(value) = &authorization {
            ask = ask.header("authorization", value);
        }
        let answer = admin.tcp(&ask).await;
        let told = problem(&answer, 401, "unauthorized");
        assert!(told.remedy.is_some_and(|remedy| remedy.contains("lockgate token create")));
        // RFC 9110 15.5.2.
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{authorization:?}");
    }
    for scheme in ["Bearer", "bearer"] {
        let ask = Ask::get("/v1/apps").header("authorization", &format!("{scheme} {secret}"));
        assert_eq!(admin.tcp(&ask).await.status, 200, "{scheme}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_may_do_what_its_scope_says_and_no_more() {
    let admin = Admin::start().await;
    let cancel = || Ask::post(format!("{NOBODYS_OPERATION}/cancel"), &json!({}));
    let put = || Ask::new("PUT", "/v1/apps/other").json(&json!({ "hosts": [{ "host": "other.test" }] }));
    let asks = [
        ("read", Ask::get("/v1/apps")),
        ("read", Ask::get("/v1/openapi.json")),
        ("deploy", cancel()),
        ("deploy", Ask::post("/v1/apps/nobody/deployments", &json!({}))),
        ("admin", put()),
        ("read", Ask::get("/v1/apps/web/hosts")),
        ("admin", Ask::post("/v1/apps/web/hosts", &json!({ "host": "taken.test" }))),
        (
            "admin",
            Ask::post("/v1/apps/web/hosts/rename", &json!({ "from": "taken.test", "to": "other.test" })),
        ),
        ("admin", Ask::new("DELETE", "/v1/apps/web/hosts?host=taken.test")),
        ("admin", Ask::post("/v1/apps/nobody/rename", &json!({ "name": "somebody" }))),
        ("read", Ask::get("/v1/volumes")),
        ("admin", Ask::new("DELETE", "/v1/volumes?place=nowhere")),
        ("admin", Ask::get("/v1/tokens")),
        ("admin", Ask::get("/v1/audit")),
        ("admin", Ask::new("POST", "/v1/config/reload")),
        ("admin", Ask::post("/v1/tokens", &json!({ "name": "more", "scopes": ["admin"] }))),
        ("admin", Ask::new("DELETE", "/v1/tokens/tok_00000000000000000000000000000000")),
    ];
    let scopes = ["read", "deploy", "admin"];
    for (rank, scope) in scopes.iter().enumerate() {
        let secret = admin.secret(scope);
        for (needed, ask) in &asks {
            let answer = admin.tcp(&ask.clone().token(&secret)).await;
            if scopes[..=rank].contains(needed) {
                assert!(![401, 403].contains(&answer.status), "{scope}: {ask:?}: {answer:?}");
            } else {
                let told = problem(&answer, 403, "scope_missing");
                assert!(told.title.contains(needed), "{scope}: {ask:?}: {told:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_token_is_refused_from_then_on() {
    let admin = Admin::start().await;
    let token = admin.token("read");
    let ask = Ask::get("/v1/apps").token(&token.secret.unwrap());
    assert_eq!(admin.tcp(&ask).await.status, 200);
    let deleted = admin.lockgate.cli(&["token", "delete", &token.id.to_string()]);
    assert_eq!(deleted.status.code(), Some(0));
    problem(&admin.tcp(&ask).await, 401, "unauthorized");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_refused() {
    let mut admin = Admin::prepare();
    let clock = SystemClock;
    let minute = std::time::Duration::from_secs(60);
    {
        let data = admin.lockgate.folder.path().join("data");
        let opened = store::sqlite::SqliteStore::open(&data, Arc::new(clock)).unwrap();
        for (secret, expires_at) in [("over", clock.wall() - minute), ("valid", clock.wall() + 60 * minute)] {
            let token = store::Token {
                id: TokenId::generate(),
                name: secret.to_owned(),
                hash: lockgate::admin::token_hash(secret),
                scopes: vec!["read".to_owned()],
                created_at: clock.wall() - 2 * minute,
                expires_at: Some(expires_at),
            };
            opened.put_token(&token).await.unwrap();
        }
    }
    admin.lockgate.spawn("").await;
    assert_eq!(admin.tcp(&Ask::get("/v1/apps").token("valid")).await.status, 200);
    problem(&admin.tcp(&Ask::get("/v1/apps").token("over")).await, 401, "unauthorized");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_shown_once() {
    let admin = Admin::start().await;
    let secret = admin.secret("read");
    let listed = admin.socket(&Ask::get("/v1/tokens")).await;
    assert_eq!(listed.json::<List<Token>>().items.len(), 1);
    assert!(!listed.body.contains(&secret), "{listed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_needs_no_token_and_is_its_owners_alone() {
    let admin = Admin::start().await;
    assert_eq!(admin.socket(&Ask::get("/v1/apps")).await.status, 200);
    let reload = admin.socket(&Ask::new("POST", "/v1/config/reload")).await;
    assert_eq!(reload.status, 200, "{reload:?}");
    let mode = std::fs::metadata(admin.lockgate.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let audit: List<Audit> = admin.socket(&Ask::get("/v1/audit")).await.json();
    let own = format!("uid {}", rustix::process::geteuid().as_raw());
    assert_eq!(audit.items[0].actor, own, "{audit:?}");
    assert_eq!(audit.items[0].action, "POST /v1/config/reload");
}

/// Fixed fault: ten wrong tokens of any program locked out everybody on the machine for a minute.
#[tokio::test(flavor = "multi_thread")]
async fn many_wrong_tokens_lock_nobody_out_and_do_not_fill_the_audit_trail() {
    let admin = Admin::start().await;
    let secret = admin.secret("read");
    let before = admin.socket(&Ask::get("/v1/audit")).await.json::<List<Audit>>().items.len();
    let wrong = Ask::new("POST", format!("{NOBODYS_OPERATION}/cancel")).token("wrong");
    for _ in 0..10 {
        problem(&admin.tcp(&wrong).await, 401, "unauthorized");
    }
    for _ in 0..5 {
        let answer = admin.tcp(&wrong).await;
        problem(&answer, 429, "too_many_failures");
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
    }
    assert_eq!(admin.tcp(&Ask::get("/v1/apps").token(&secret)).await.status, 200);
    let audit: List<Audit> = admin.socket(&Ask::get("/v1/audit")).await.json();
    assert_eq!(audit.items.len(), before + 10);
    assert!(audit.items[..10].iter().all(|entry| entry.status == 401), "{audit:?}");
}

/// Fixed fault: what is not there was told to anybody, because the guard did not stand before it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_needs_a_token_too() {
    let admin = Admin::start().await;
    let secret = admin.secret("read");
    let asks = [
        (Ask::get("/v1/nothing"), 404, "path_not_found"),
        (Ask::get("/"), 404, "path_not_found"),
        (Ask::new("POST", "/v1/nothing"), 404, "path_not_found"),
        (Ask::new("HEAD", "/v1/operations/x/y/z"), 404, ""),
        (Ask::new("PATCH", "/v1/explain"), 405, "method_not_allowed"),
    ];
    for (ask, status, code) in &asks {
        let refused = admin.tcp(ask).await;
        assert_eq!(refused.status, 401, "{ask:?}: {refused:?}");
        let foreign = admin.tcp(&ask.clone().header("origin", "https://evil.example").token(&secret)).await;
        assert_eq!(foreign.status, 403, "{ask:?}: {foreign:?}");
        let scope = if *status == 405 { admin.secret("deploy") } else { secret.clone() };
        let answer = admin.tcp(&ask.clone().token(&scope)).await;
        assert_eq!(answer.status, *status, "{ask:?}");
        if !code.is_empty() {
            problem(&answer, *status, code);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_need_no_token_and_show_nothing_secret() {
    let admin = Admin::start().await;
    let secret = admin.secret("read");
    for path in ["/healthz", "/readyz", "/metrics"] {
        let answer = admin.tcp(&Ask::get(path)).await;
        assert_eq!(answer.status, 200, "{path}");
        let folder = admin.lockgate.folder.path().display().to_string();
        assert!(!answer.body.contains(&folder) && !answer.body.contains(&secret), "{path}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn i1_a_foreign_host_is_refused() {
    let admin = Admin::start().await;
    let secret = admin.secret("read");
    let line = |host: &str| {
        format!("GET /v1/apps HTTP/1.1\r\n{host}authorization: Bearer {secret}\r\nconnection: close\r\n\r\n")
    };
    for host in ["localhost", "LOCALHOST:9900", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:9900"] {
        let answer = wire::tcp(admin.port, line(&format!("host: {host}\r\n")).as_bytes()).await;
        assert_eq!(answer.status, 200, "{host}: {answer:?}");
    }
    for hosts in [
        "host: evil.example\r\n",
        "host: localhost.evil.example:9900\r\n",
        "host: 127.0.0.1.evil.example\r\n",
        "host: 192.168.0.1\r\n",
        "host: 0.0.0.0\r\n",
        "host: \r\n",
        "",
        "host: localhost\r\nhost: evil.example\r\n",
    ] {
        let answer = wire::tcp(admin.port, line(hosts).as_bytes()).await;
        problem(&answer, 421, "foreign_host");
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        for (name, value) in [("host", "evil.example"), ("origin", "https://evil.example")] {
            let answer = admin.tcp(&Ask::get(path).header(name, value)).await;
            problem(
                &answer,
                if name == "host" { 421 } else { 403 },
                if name == "host" { "foreign_host" } else { "cross_site" },
            );
        }
    }
    // The authority of an absolute target is what counts (RFC 9112 3.2.2).
    let absolute = line("host: localhost\r\n").replace("GET /v1", "GET http://evil.example/v1");
    problem(&wire::tcp(admin.port, absolute.as_bytes()).await, 421, "foreign_host");
}

#[tokio::test(flavor = "multi_thread")]
async fn i1_requests_of_web_pages_are_refused() {
    let admin = Admin::start().await;
    let secret = admin.secret("admin");
    for (name, value) in [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("origin", "http://localhost:3000"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ] {
        for ask in [Ask::get("/v1/apps"), Ask::new("POST", "/v1/config/reload")] {
            let answer = admin.tcp(&ask.token(&secret).header(name, value)).await;
            problem(&answer, 403, "cross_site");
            assert_eq!(answer.header("access-control-allow-origin"), None, "{answer:?}");
        }
    }
    let preflight = Ask::new("OPTIONS", "/v1/apps/web/swap").header("origin", "https://evil.example");
    let answer = admin.tcp(&preflight.header("access-control-request-method", "POST")).await;
    assert!(answer.status >= 400 && answer.header("access-control-allow-origin").is_none(), "{answer:?}");
    let direct = Ask::get("/v1/apps").token(&secret).header("sec-fetch-site", "none");
    assert_eq!(admin.tcp(&direct).await.status, 200);
}

/// Fixed fault: `application/jsonp` passed for JSON, and where no body is looked at anything passed.
#[tokio::test(flavor = "multi_thread")]
async fn i1_a_mutation_that_is_not_json_is_refused() {
    let admin = Admin::start().await;
    let secret = admin.secret("admin");
    let asks = [
        ("POST", "/v1/apps/web/deployments"),
        ("POST", "/v1/apps/web/swap"),
        ("PUT", "/v1/apps/other"),
        ("POST", "/v1/tokens"),
        ("POST", "/v1/config/reload"),
        ("DELETE", "/v1/tokens/tok_00000000000000000000000000000000"),
    ];
    for (method, path) in asks {
        let ask = || Ask::new(method, path).token(&secret).body("{}");
        for kind in [
            "text/plain",
            "text/plain; charset=application/json",
            "application/jsonp",
            "application/json-patch+json",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "",
        ] {
            problem(&admin.tcp(&ask().header("content-type", kind)).await, 415, "not_json");
        }
        problem(&admin.tcp(&ask()).await, 415, "not_json");
        problem(&admin.socket(&ask().header("content-type", "text/plain")).await, 415, "not_json");
        for kind in ["application/json", "Application/JSON; charset=utf-8"] {
            let answer = admin.tcp(&ask().header("content-type", kind)).await;
            assert_ne!(answer.status, 415, "{method} {path}: {kind}");
        }
    }
}
