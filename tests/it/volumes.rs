//! Volumes with the real binary: found again by the next version and by an app of the same name, removed when asked for.

use std::path::PathBuf;

use lockgate::api::{App, Audit, List, Operation, Volume};
use serde_json::json;

use crate::support::{BINARY, Lockgate};

const APP: &str = "/v1/apps/notes";

/// An app that writes its version into its volume as it starts.
async fn create(lockgate: &Lockgate) {
    let script = format!("echo $VERSION >> $LOCKGATE_VOLUME_MY_DATA/log; exec {BINARY} sample-app");
    let settings = json!({
        "command": ["/bin/sh", "-c", script],
        "volumes": [{ "name": "my-data", "path": "/data", "shared": true }],
        "deploy": { "watch": "100ms" },
    });
    let env = json!({ "TEST_FOLDER": lockgate.folder.path() });
    lockgate.client.put::<App>(APP, &json!({ "settings": settings, "env": env })).await.unwrap();
}

async fn deploy(lockgate: &Lockgate, version: &str) {
    let request = json!({ "env": { "VERSION": version } });
    let deployed: Operation =
        lockgate.client.post(&format!("{APP}/deployments?wait=end"), &request).await.unwrap();
    assert!(deployed.state.is_success(), "{deployed:?}");
}

fn log(lockgate: &Lockgate) -> PathBuf {
    lockgate.folder.path().join("data/volumes/notes/production/my-data/log")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_finds_its_volume_again_until_it_is_removed_with_it() {
    let lockgate = Lockgate::start("").await;
    create(&lockgate).await;
    deploy(&lockgate, "one").await;
    deploy(&lockgate, "two").await;
    assert_eq!(std::fs::read_to_string(log(&lockgate)).unwrap(), "one\ntwo\n");

    assert!(lockgate.cli(&["app", "remove", "notes"]).status.success());
    create(&lockgate).await;
    deploy(&lockgate, "three").await;
    assert_eq!(std::fs::read_to_string(log(&lockgate)).unwrap(), "one\ntwo\nthree\n");

    assert!(lockgate.cli(&["app", "remove", "notes", "--volumes"]).status.success());
    assert!(!log(&lockgate).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_lists_volumes_and_removes_what_nobody_has_any_more() {
    let lockgate = Lockgate::start("").await;
    create(&lockgate).await;
    deploy(&lockgate, "one").await;
    let listed = async || lockgate.client.get::<List<Volume>>("/v1/volumes?app=notes").await.unwrap().items;
    let found = listed().await;
    let [volume] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((volume.name.as_str(), volume.declared, volume.stray), ("my-data", true, false));
    assert_eq!((volume.used_by.len(), volume.instances.len()), (1, 1));
    let told = String::from_utf8(lockgate.cli(&["volumes", "notes"]).stdout).unwrap();
    assert!(told.contains(&volume.place) && told.contains(&volume.used_by[0].to_string()), "{told}");
    let remove = || lockgate.cli(&["volumes", "remove", &volume.place]);
    let refused = remove();
    assert_eq!(refused.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("runs with volume"), "{refused:?}");
    assert!(log(&lockgate).exists());

    // Kept with its app gone, it is stray.
    assert!(lockgate.cli(&["app", "remove", "notes"]).status.success());
    assert!(listed().await[0].stray);
    let told = String::from_utf8(lockgate.cli(&["volumes"]).stdout).unwrap();
    assert!(told.contains("stray"), "{told}");
    assert_eq!(remove().status.code(), Some(0));
    assert!(!log(&lockgate).exists() && listed().await.is_empty());
    assert_eq!(remove().status.code(), Some(3));
    let audit: List<Audit> = lockgate.client.get("/v1/audit").await.unwrap();
    let removals = audit.items.iter().filter(|entry| entry.action == "DELETE /v1/volumes");
    assert_eq!(removals.map(|entry| entry.status).collect::<Vec<_>>(), [404, 204, 409]);
}
