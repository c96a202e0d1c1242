//! Many previews at once, as processes: all of them serve, and nothing of them is left when their time is over.

use lockgate::api::{Deployment, List, Operation, Route};
use serde_json::json;

use crate::support::{HOST, Lockgate, eventually};

/// `LOCKGATE_PREVIEWS` sets how many there are.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_preview_processes_that_expired_nothing_is_left() {
    let many: usize =
        std::env::var("LOCKGATE_PREVIEWS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let mut lockgate = Lockgate::prepare(|config| config["ephemeral"] = json!({ "max_per_app": many }));
    lockgate.spawn("").await;
    lockgate.deploy("live").await.unwrap();
    let routes =
        async || lockgate.client.get::<List<Route>>("/v1/routes?limit=200").await.unwrap().items.len();
    let before = routes().await;
    for n in 0..many {
        let (label, version) = (format!("p{n}"), format!("v{n}"));
        let preview = json!({ "env": { "VERSION": version }, "label": label, "ttl": "1h" });
        lockgate.deploy_with(&preview, "end").await.unwrap();
    }
    assert_eq!(lockgate.running().await, many + 1);
    for n in 0..many {
        assert_eq!(lockgate.version(&format!("p{n}.{HOST}")).await, Ok(format!("v{n}")));
    }
    let all: List<Deployment> = lockgate.client.get("/v1/apps/web/deployments?limit=200").await.unwrap();
    for preview in all.items.iter().filter(|one| one.label.is_some()) {
        let path = format!("/v1/deployments/{}/extend", preview.id);
        let _: Deployment = lockgate.client.post(&path, &json!({ "ttl": "100ms" })).await.unwrap();
    }
    eventually("no process is left of them", async || lockgate.running().await == 1).await;
    eventually("no row is left of them", async || lockgate.instances().await.len() == 1).await;
    for n in 0..many {
        assert!(lockgate.raw(&format!("p{n}.{HOST}")).await.contains("ephemeral_expired"), "p{n}");
    }
    assert_eq!(routes().await, before);
    let operations: List<Operation> = lockgate.client.get("/v1/operations?limit=200").await.unwrap();
    assert!(operations.items.iter().all(|one| one.state.is_success()));
    assert_eq!(lockgate.version(HOST).await.as_deref(), Ok("live"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_behind_a_signed_link_is_opened_on_the_command_line() {
    let mut lockgate = Lockgate::prepare(|config| {
        config["ephemeral"] = json!({ "preview_auth": { "mode": "link" } });
        config["url"] = json!("https://{host}");
    });
    lockgate.spawn("").await;
    lockgate.deploy("live").await.unwrap();
    let preview = json!({ "env": { "VERSION": "shut" }, "label": "feat", "ttl": "1h" });
    lockgate.deploy_with(&preview, "end").await.unwrap();
    assert!(lockgate.raw("feat.web.test").await.contains("preview_link_required"));
    let signed = lockgate.cli(&["preview", "link", "web", "feat", "--for", "1h"]);
    assert_eq!(signed.status.code(), Some(0), "{signed:?}");
    let url = String::from_utf8(signed.stdout).unwrap();
    assert!(url.starts_with("https://feat.web.test/?lockgate_link="), "{url}");
    let versions = lockgate.cli(&["versions", "web", "--ephemeral", "--json"]);
    let versions: serde_json::Value = serde_json::from_slice(&versions.stdout).unwrap();
    assert_eq!(versions["items"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&versions["items"][0]["role"], &versions["items"][0]["label"]),
        (&json!("ephemeral"), &json!("feat"))
    );
    assert_eq!(versions["items"][0]["url"], "https://feat.web.test");
    let unknown = lockgate.cli(&["preview", "link", "web", "nobody"]);
    assert_eq!(unknown.status.code(), Some(3), "{unknown:?}");
    assert!(!lockgate.logged().contains("lockgate_link="));
}
