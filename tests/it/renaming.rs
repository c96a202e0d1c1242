//! An app renamed under load, with the real binary: whoever asks by its own host names notices nothing.

use lockgate::api::{App, Operation};
use serde_json::json;

use crate::engine::Engine;
use crate::support::{BINARY, Lockgate, eventually};

const HOSTS: [&str; 2] = ["shop.test", "www.shop.test"];

/// An app of the API's: one of the configuration file has its name from there.
async fn open_shop(lockgate: &Lockgate, engine: Option<&Engine>) {
    let program = match engine {
        Some(engine) => json!({ "image": engine.image, "port": 8080 }),
        None => json!({ "command": [BINARY, "sample-app"] }),
    };
    let mut settings = json!({
        "health": { "path": "/health" },
        "deploy": { "watch": "50ms", "drain_timeout": "60s", "stream_drain_timeout": "60s" },
    });
    settings.as_object_mut().unwrap().extend(program.as_object().unwrap().clone());
    let hosts = HOSTS.map(|host| json!({ "host": host }));
    let env = json!({ "VERSION": "one", "TEST_FOLDER": lockgate.folder.path() });
    let app = json!({ "hosts": hosts, "settings": settings, "env": env });
    lockgate.client.put::<App>("/v1/apps/shop", &app).await.unwrap();
    deploy(lockgate, "shop", "one").await;
}

async fn deploy(lockgate: &Lockgate, app: &str, version: &str) {
    // To its end: an app is not renamed before.
    let path = format!("/v1/apps/{app}/deployments?wait=end");
    let request = json!({ "env": { "VERSION": version } });
    let deployed: Operation = lockgate.client.post(&path, &request).await.unwrap();
    assert!(deployed.failure.is_none(), "{deployed:?}");
}

async fn is_renamed_under_load(lockgate: &Lockgate) {
    let running = lockgate.running().await;
    let names = ["shop", "store", "shop", "bazaar"];
    let verdict = lockgate
        .under_load_at(&HOSTS, async |handle| {
            for pair in names.windows(2) {
                let before = handle.counts().ok;
                let renamed = lockgate.cli(&["app", "rename", pair[0], pair[1]]);
                assert_eq!(renamed.status.code(), Some(0), "{renamed:?}");
                // By its generated names it is asked by the new one alone.
                let [from, to] = [pair[0], pair[1]].map(|name| format!("{name}.apps.test"));
                assert!(lockgate.raw(&from).await.contains("no_route"));
                assert_eq!(lockgate.version(&to).await.as_deref(), Ok("one"));
                eventually("more are answered", async || handle.counts().ok > before + 50).await;
            }
        })
        .await;
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!(verdict.versions.keys().collect::<Vec<_>>(), ["one"], "{verdict}");
    assert_eq!(lockgate.running().await, running, "an instance was touched");
    // What it was called is nobody's any more, and it goes on as any other.
    assert_eq!(lockgate.cli(&["app", "rename", "shop", "store"]).status.code(), Some(3));
    deploy(lockgate, "bazaar", "two").await;
    assert_eq!(lockgate.version(HOSTS[1]).await.as_deref(), Ok("two"));
}

#[tokio::test(flavor = "multi_thread")]
async fn renamed_under_load_it_goes_on_by_its_host_names_and_nothing_is_spilled() {
    let mut lockgate = Lockgate::prepare(|config| config["apex"] = json!("apps.test"));
    lockgate.spawn("").await;
    open_shop(&lockgate, None).await;
    is_renamed_under_load(&lockgate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_apps_containers_go_on_by_its_host_names_and_nothing_is_spilled() {
    let test = "a_renamed_apps_containers_go_on_by_its_host_names_and_nothing_is_spilled";
    let Some(engine) = Engine::shared(test).await else { return };
    let mut lockgate = Lockgate::prepare_on(Some(&engine));
    lockgate.change_config(|config| config["apex"] = json!("apps.test"));
    lockgate.spawn("").await;
    open_shop(&lockgate, Some(&engine)).await;
    is_renamed_under_load(&lockgate).await;
}
