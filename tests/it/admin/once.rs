//! `Idempotency-Key` on every route that changes something (DESIGN.md 8): whichever there are, by the document.

use std::collections::BTreeSet;

use lockgate::api::{Deployment, Explanation, List, Operation};
use serde_json::{Value, json};

use super::contract::Document;
use super::wire::{Answer, Ask};
use super::{Admin, problem};
use crate::support::{BINARY, HOST, eventually};

/// Those whose repeat is answered by what the first call made, as that is now.
const MAKERS: &[(&str, &str)] = &[
    ("PUT", "/v1/apps/{app}"),
    ("POST", "/v1/apps/{app}/deployments"),
    ("POST", "/v1/apps/{app}/swap"),
    ("POST", "/v1/apps/{app}/rollback"),
    ("POST", "/v1/apps/{app}/promote"),
    ("POST", "/v1/apps/{app}/scale"),
    ("POST", "/v1/apps/{app}/enable"),
    ("POST", "/v1/deployments/{deployment}/wake"),
    ("POST", "/v1/tokens"),
];

/// Makes each call twice, and remembers which routes they were of.
struct Twice {
    admin: Admin,
    templates: Vec<(&'static str, String)>,
    made: BTreeSet<(&'static str, String)>,
}

impl Twice {
    /// The first answer. The second one comes after it and is the same; a third call, of another body, is refused.
    async fn ask(&mut self, method: &'static str, path: &str, body: Value) -> Value {
        let key = format!("call-{}", self.made.len());
        let ask = |body: &Value| Ask::new(method, path).json(body).header("idempotency-key", &key);
        let first = self.admin.socket(&ask(&body)).await;
        assert!((200..300).contains(&first.status), "{method} {path}: {first:?}");
        let second = self.admin.socket(&ask(&body)).await;
        let template = self.template_of(method, path);
        if MAKERS.contains(&(method, &template)) {
            assert_eq!(made(&first), made(&second), "{method} {path}");
        } else {
            assert_eq!(second.header("idempotency-replayed"), Some("true"), "{method} {path}: {second:?}");
            assert_eq!((second.status, &second.body), (first.status, &first.body), "{method} {path}");
            assert_eq!(second.header("content-type"), first.header("content-type"), "{method} {path}");
        }
        problem(&self.admin.socket(&ask(&json!({ "other": key }))).await, 409, "idempotency_key_reused");
        assert!(self.made.insert((method, template)), "{method} {path}: twice in this test");
        if first.body.is_empty() { Value::Null } else { first.json() }
    }

    fn template_of(&self, method: &str, path: &str) -> String {
        let path = path.split('?').next().unwrap_or_default();
        let is_it = |template: &str| {
            let (wanted, given): (Vec<_>, Vec<_>) =
                (template.split('/').collect(), path.split('/').collect());
            wanted.len() == given.len()
                && wanted.iter().zip(&given).all(|(wanted, given)| wanted.starts_with('{') || wanted == given)
        };
        let mut found =
            self.templates.iter().filter(|(called, template)| *called == method && is_it(template));
        // The one that spells out most.
        let (_, template) = found.by_ref().min_by_key(|(_, template)| template.matches('{').count()).unwrap();
        template.clone()
    }
}

/// What tells that two answers are about the same thing.
fn made(answer: &Answer) -> Value {
    let body: Value = answer.json();
    body.get("id").or_else(|| body.get("name")).unwrap_or_else(|| panic!("{answer:?}")).clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_of_any_call_is_carried_out_once_and_told_the_same() {
    let mut admin = Admin::prepare();
    admin.lockgate.change_config(|config| {
        config["ephemeral"] = json!({ "preview_auth": { "mode": "link" } });
        config["apps"]["web"]["deploy"]["standby_after"] = json!("1h");
    });
    admin.lockgate.spawn("").await;
    let templates = Document::of(&admin).await.mutations();
    let mut twice = Twice { admin, templates, made: BTreeSet::new() };

    let shop =
        json!({ "hosts": [{ "host": "shop.test" }], "settings": { "command": [BINARY, "sample-app"] } });
    twice.ask("PUT", "/v1/apps/shop", shop).await;
    twice.ask("POST", "/v1/apps/shop/hosts", json!({ "host": "more.test" })).await;
    let renamed = json!({ "from": { "host": "more.test" }, "to": { "host": "new.test" } });
    twice.ask("POST", "/v1/apps/shop/hosts/rename", renamed).await;
    twice.ask("DELETE", "/v1/apps/shop/hosts?host=new.test", json!({})).await;
    twice.ask("POST", "/v1/apps/shop/rename", json!({ "name": "store" })).await;
    twice.ask("DELETE", "/v1/apps/store", json!({})).await;

    let first = json!({ "env": { "VERSION": "one" }, "force": true });
    let first = twice.ask("POST", "/v1/apps/web/deployments?wait=end", first).await;
    let (one, operation) = (first["deployment"].as_str().unwrap(), first["id"].as_str().unwrap());
    twice.admin.lockgate.deploy("two").await.unwrap();
    twice.ask("POST", "/v1/apps/web/swap", json!({ "deployment": one })).await;
    twice.ask("POST", "/v1/apps/web/rollback", json!({})).await;
    let live = live(&twice.admin).await;
    twice.ask("POST", "/v1/apps/web/promote", json!({ "deployment": live })).await;
    twice.ask("POST", "/v1/apps/web/scale", json!({ "replicas": 2 })).await;
    twice.ask("POST", "/v1/apps/web/pause", json!({})).await;
    twice.ask("POST", "/v1/apps/web/resume", json!({})).await;
    twice.ask("POST", "/v1/apps/web/maintenance", json!({ "on": true })).await;
    let off = Ask::post("/v1/apps/web/maintenance", &json!({ "on": false }));
    assert_eq!(twice.admin.socket(&off).await.status, 200);
    twice.ask("POST", &format!("/v1/operations/{operation}/cancel"), json!({})).await;
    twice.ask("POST", &format!("/v1/deployments/{one}/cancel"), json!({})).await;

    let label = json!({ "env": { "VERSION": "x" }, "label": "x", "ttl": "1h" });
    let preview = twice.admin.lockgate.deploy_with(&label, "end").await.unwrap().deployment.unwrap();
    let link = twice.ask("POST", "/v1/apps/web/previews/x/link", json!({ "for": "1h" })).await;
    assert!(!holds(&twice.admin, link["url"].as_str().unwrap()), "the link is kept in plain");
    twice.ask("POST", &format!("/v1/deployments/{preview}/extend"), json!({ "ttl": "2h" })).await;
    let later = json!({ "state": "standby", "delay": "1h" });
    twice.ask("PUT", &format!("/v1/deployments/{preview}/schedule"), later).await;
    twice.ask("DELETE", &format!("/v1/deployments/{preview}/schedule"), json!({})).await;
    twice.ask("POST", &format!("/v1/deployments/{preview}/wake?wait=end"), json!({})).await;

    let staging = json!({ "env": { "VERSION": "s" }, "environment": "staging" });
    twice.admin.lockgate.deploy_with(&staging, "end").await.unwrap();
    twice.ask("POST", "/v1/apps/web/environments/staging/link", json!({ "for": "1h" })).await;
    twice.ask("DELETE", "/v1/apps/web/environments/staging", json!({})).await;

    let steps = json!({ "env": { "VERSION": "three" }, "steps": ["50%", "100%"], "step_for": "1h" });
    let begun = twice.admin.lockgate.deploy_with(&steps, "false").await.unwrap();
    eventually("a share gets it", async || {
        let path = format!("/v1/explain?host={HOST}&path=/");
        let explained: Explanation = twice.admin.lockgate.client.get(&path).await.unwrap();
        explained.split.is_some()
    })
    .await;
    twice.ask("POST", &format!("/v1/operations/{}/finish", begun.id), json!({})).await;
    let over = twice.admin.socket(&Ask::get(format!("/v1/operations/{}/events", begun.id))).await;
    assert!(over.body.contains("event: ended"), "{over:?}");
    twice.ask("POST", "/v1/apps/web/disable", json!({})).await;
    twice.ask("POST", "/v1/apps/web/enable", json!({})).await;

    twice.admin.lockgate.change_config(|config| {
        let policies = json!([{ "signed_link": { "key": "0123456789abcdef0123456789abcdef" } }]);
        config["services"] =
            json!({ "files": { "hosts": ["files.test"], "upstreams": ["http://127.0.0.1:9"], "policies": policies } });
    });
    twice.ask("POST", "/v1/config/reload", json!({})).await;
    let link = twice.ask("POST", "/v1/links", json!({ "host": "files.test", "for": "1h" })).await;
    assert!(!holds(&twice.admin, link["url"].as_str().unwrap()), "the link is kept in plain");
    let token = twice.ask("POST", "/v1/tokens", json!({ "name": "ci", "scopes": ["read"] })).await;
    assert!(!holds(&twice.admin, token["secret"].as_str().unwrap()), "the secret is kept in plain");
    twice.ask("DELETE", &format!("/v1/tokens/{}", token["id"].as_str().unwrap()), json!({})).await;

    // What an app left that was removed long ago.
    let stray = twice.admin.lockgate.folder.path().join("data/volumes/gone/production/data");
    std::fs::create_dir_all(&stray).unwrap();
    twice.ask("DELETE", &format!("/v1/volumes?place={}", stray.display()), json!({})).await;
    assert!(!stray.exists());

    let all: BTreeSet<_> = twice.templates.iter().cloned().collect();
    assert_eq!(twice.made, all, "a route that changes something and is not tried here");
}

/// Whether a file of the data directory says that.
fn holds(admin: &Admin, text: &str) -> bool {
    let secret = text.rsplit('=').next().unwrap();
    assert!(secret.len() > 20, "{secret}");
    let files = std::fs::read_dir(admin.lockgate.folder.path().join("data")).unwrap().flatten();
    let mut contents = files.filter_map(|file| std::fs::read(file.path()).ok());
    contents.any(|content| content.windows(secret.len()).any(|part| part == secret.as_bytes()))
}

async fn live(admin: &Admin) -> String {
    let all: List<Deployment> = admin.socket(&Ask::get("/v1/apps/web/deployments")).await.json();
    all.items.into_iter().find(|one| one.live).unwrap().id.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_used_is_refused_by_every_route_that_changes_something() {
    let admin = Admin::start().await;
    let pause = Ask::post("/v1/apps/web/pause", &json!({})).header("idempotency-key", "k");
    assert_eq!(admin.socket(&pause).await.status, 200);
    let deploy = Ask::post("/v1/apps/web/deployments", &json!({})).header("idempotency-key", "d");
    assert_eq!(admin.socket(&deploy).await.status, 202);
    for (method, template) in Document::of(&admin).await.mutations() {
        for key in ["k", "d"] {
            let ask = Ask::new(method, super::contract::filled(&template)).json(&json!({ "name": "other" }));
            problem(&admin.socket(&ask.header("idempotency-key", key)).await, 409, "idempotency_key_reused");
        }
        for bad in ["", "two words", &"k".repeat(129)] {
            let ask = Ask::new(method, super::contract::filled(&template)).header("idempotency-key", bad);
            problem(&admin.socket(&ask).await, 400, "idempotency_key_invalid");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_call_leaves_its_key_free_and_a_kept_answer_outlives_a_crash() {
    let mut admin = Admin::start().await;
    let unknown = Ask::post("/v1/apps/nobody/resume", &json!({})).header("idempotency-key", "k");
    problem(&admin.socket(&unknown).await, 404, "app_not_found");
    let pause = Ask::post("/v1/apps/web/pause", &json!({ "for": "10m" })).header("idempotency-key", "k");
    let first = admin.socket(&pause).await;
    assert_eq!(first.status, 200, "{first:?}");
    let resume = Ask::post("/v1/apps/web/resume", &json!({}));
    assert_eq!(admin.socket(&resume).await.status, 200);
    admin.lockgate.kill();
    admin.lockgate.spawn("").await;
    let repeat = admin.socket(&pause).await;
    assert_eq!((repeat.status, &repeat.body), (200, &first.body));
    let app: Value = admin.socket(&Ask::get("/v1/apps/web")).await.json();
    assert_eq!(app["access"]["mode"], "open", "the late repeat paused it again");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_equal_calls_at_once_one_is_carried_out() {
    let admin = Admin::start().await;
    admin.lockgate.deploy("one").await.unwrap();
    let held = admin.lockgate.unfinished(HOST).await;
    // It waits for what is in flight, so that the others come while it does.
    let pause = Ask::post("/v1/apps/web/pause?wait=true", &json!({})).header("idempotency-key", "k");
    let other = Ask::post("/v1/apps/web/pause", &json!({})).header("idempotency-key", "k");
    let all = futures_util::future::join_all((0..5).map(|_| admin.socket(&pause)));
    let meanwhile = async {
        eventually("one is being carried out", async || {
            let app: Value = admin.socket(&Ask::get("/v1/apps/web")).await.json();
            app["access"]["mode"] == "paused"
        })
        .await;
        problem(&admin.socket(&other).await, 409, "idempotency_key_reused");
        crate::support::finish(held).await
    };
    let (answers, _) = tokio::join!(all, meanwhile);
    let replayed = answers.iter().filter(|answer| answer.header("idempotency-replayed").is_some()).count();
    assert_eq!(replayed, 4, "{answers:?}");
    assert!(
        answers.iter().all(|answer| (answer.status, &answer.body) == (200, &answers[0].body)),
        "{answers:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_will_not_wait_in_line_says_so_in_the_body_or_in_the_query() {
    let admin = Admin::start().await;
    let one = admin.lockgate.deploy("one").await.unwrap().deployment;
    admin.lockgate.deploy("two").await.unwrap();
    let slow = json!({ "env": { "VERSION": "three", "HEALTH_AFTER_MS": "60000" }, "force": true });
    let slow: Operation = admin.lockgate.deploy_with(&slow, "false").await.unwrap();
    for (path, body) in [
        ("deployments", json!({ "force": true })),
        ("swap", json!({ "deployment": one })),
        ("rollback", json!({ "target": one })),
    ] {
        let path = format!("/v1/apps/web/{path}");
        let mut in_body = body.clone();
        in_body["queue"] = json!(false);
        for ask in [Ask::post(format!("{path}?queue=false"), &body), Ask::post(path, &in_body)] {
            let told = problem(&admin.socket(&ask).await, 409, "operation_in_progress");
            assert_eq!(told.operation, Some(slow.id), "{ask:?}");
        }
    }
    let scale = Ask::post("/v1/apps/web/scale?queue=false", &json!({ "replicas": 2 }));
    problem(&admin.socket(&scale).await, 400, "query_invalid");
    let cancel = Ask::post(format!("/v1/operations/{}/cancel", slow.id), &json!({}));
    assert_eq!(admin.socket(&cancel).await.status, 200);
}
