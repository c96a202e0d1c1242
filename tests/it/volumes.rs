//! Volumes with the real binary: found again by the next version and by an app of the same name, removed when asked for.

use std::path::PathBuf;

use lockgate::api::{App, Operation};
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
