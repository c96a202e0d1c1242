//! Lists longer than a page: every item once, whoever asks.

use std::collections::BTreeSet;

use lockgate::api::{LIMIT_MAX, List, Route};
use serde_json::{Value, json};

use super::Admin;
use super::wire::Ask;
use crate::support::free_port;

const MANY: usize = LIMIT_MAX as usize + 5;

/// All items, page by page, as a program walks them.
async fn walk(admin: &Admin, path: &str, limit: u32) -> Vec<Value> {
    let mut items = Vec::new();
    let mut offset = Some(0);
    while let Some(from) = offset {
        let piece: List<Value> =
            admin.socket(&Ask::get(format!("{path}?limit={limit}&offset={from}"))).await.json();
        assert!(piece.items.len() <= limit as usize, "{path}");
        assert!(!piece.items.is_empty(), "{path}: there was no more at {from}");
        items.extend(piece.items);
        offset = piece.next_offset;
    }
    items
}

fn names(items: &[Value], key: &str) -> BTreeSet<String> {
    items.iter().map(|item| item[key].as_str().unwrap().to_owned()).collect()
}

fn of_cli(admin: &Admin, arguments: &[&str]) -> Vec<Value> {
    let output = admin.lockgate.cli(&[&["--json"], arguments].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let list: List<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list.next_offset, None, "it says that there is more");
    list.items
}

/// Fixed fault: the command line showed the first 200, or 50, and said nothing of the others.
#[tokio::test(flavor = "multi_thread")]
async fn apps_and_routes_beyond_a_page_are_all_listed() {
    let admin = Admin::start().await;
    let wanted: BTreeSet<_> = (0..MANY).map(|number| format!("app-{number:03}")).collect();
    for name in &wanted {
        let put =
            json!({ "hosts": [{ "host": format!("{name}.test") }], "settings": { "command": ["true"] } });
        let answer = admin.socket(&Ask::new("PUT", format!("/v1/apps/{name}")).json(&put)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let wanted: BTreeSet<_> = wanted.into_iter().chain(["web".to_owned()]).collect();
    // The last limit is their number: the end of a page is the end of the list.
    for limit in [7, 100, LIMIT_MAX, 103] {
        let items = walk(&admin, "/v1/apps", limit).await;
        assert_eq!(items.len(), wanted.len(), "limit {limit}");
        assert_eq!(names(&items, "name"), wanted, "limit {limit}");
    }
    let items = of_cli(&admin, &["list"]);
    assert_eq!((items.len(), names(&items, "name")), (wanted.len(), wanted.clone()));
    let hosts = names(&of_cli(&admin, &["routes"]), "host");
    assert_eq!(hosts, names(&walk(&admin, "/v1/routes", 50).await, "host"));
    assert!(wanted.iter().all(|name| hosts.contains(&format!("{name}.test"))), "{hosts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_and_deployments_beyond_a_page_are_all_listed() {
    let admin = Admin::start().await;
    // Each under a key of its own: two equal calls without one would be the same operation. Most are superseded.
    for number in 0..MANY {
        let deploy = Ask::post("/v1/apps/web/deployments", &json!({ "env": { "VERSION": "one" } }));
        let answer = admin.socket(&deploy.header("idempotency-key", &format!("k{number}"))).await;
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    for (path, arguments) in
        [("/v1/operations", &["operations"][..]), ("/v1/apps/web/deployments", &["list", "web"][..])]
    {
        let walked = walk(&admin, path, 60).await;
        assert_eq!(names(&walked, "id").len(), MANY, "{path}");
        let shown = of_cli(&admin, arguments);
        assert_eq!((shown.len(), names(&shown, "id")), (MANY, names(&walked, "id")), "{path}");
    }
}

/// Fixed fault: what the configuration's static services serve was in no list.
#[tokio::test(flavor = "multi_thread")]
async fn routes_of_static_services_are_listed() {
    let mut admin = Admin::prepare();
    let upstream = format!("http://127.0.0.1:{}", free_port());
    let mut config: Value =
        serde_json::from_str(&std::fs::read_to_string(admin.lockgate.config()).unwrap()).unwrap();
    config["services"] =
        json!({ "legacy": { "hosts": ["old.test", "*.old.test"], "upstreams": [upstream] } });
    std::fs::write(admin.lockgate.config(), config.to_string()).unwrap();
    admin.lockgate.spawn("").await;
    let routes: List<Route> = admin.socket(&Ask::get("/v1/routes")).await.json();
    let of_service: Vec<_> = routes.items.iter().filter(|route| route.service.is_some()).collect();
    let hosts: Vec<_> = of_service.iter().map(|route| route.host.as_str()).collect();
    assert_eq!(hosts, ["*.old.test", "old.test"]);
    assert!(of_service.iter().all(|route| route.service.as_deref() == Some("legacy") && route.app.is_none()));
    let apps = routes.items.iter().filter(|route| route.app.is_some());
    assert_eq!(apps.count() + 2, routes.items.len(), "{routes:?}");
    let told = admin.lockgate.cli(&["routes"]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.lines().any(|line| line.contains("old.test") && line.contains("legacy")), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_environments_hosts_and_tokens_come_in_pieces() {
    let admin = Admin::start().await;
    let replicas = json!({ "env": { "VERSION": "one" }, "force": true });
    admin.lockgate.deploy_with(&replicas, "true").await.unwrap();
    assert_eq!(admin.socket(&Ask::post("/v1/apps/web/scale", &json!({ "replicas": 3 }))).await.status, 200);
    for name in ["a", "b"] {
        let elsewhere = json!({ "environment": name, "force": true });
        admin.lockgate.deploy_with(&elsewhere, "true").await.unwrap();
        let token = json!({ "name": name, "scopes": ["read"] });
        assert_eq!(admin.socket(&Ask::post("/v1/tokens", &token)).await.status, 200);
    }
    let hosts = json!({
        "hosts": [{ "host": "a.test" }, { "host": "b.test" }, { "host": "c.test" }],
        "settings": { "command": ["true"] },
    });
    assert_eq!(admin.socket(&Ask::new("PUT", "/v1/apps/shop").json(&hosts)).await.status, 200);
    for (path, key, arguments, wanted) in [
        ("/v1/instances", "id", &["instances"][..], 5),
        ("/v1/apps/web/environments", "name", &["environment", "list", "web"][..], 3),
        ("/v1/apps/shop/hosts", "host", &["hosts", "list", "shop"][..], 3),
        ("/v1/tokens", "id", &["token", "list"][..], 2),
    ] {
        for limit in [1, 2, LIMIT_MAX] {
            let items = walk(&admin, path, limit).await;
            assert_eq!((items.len(), names(&items, key).len()), (wanted, wanted), "{path} by {limit}");
        }
        assert_eq!(of_cli(&admin, arguments).len(), wanted, "{arguments:?}");
    }
}
