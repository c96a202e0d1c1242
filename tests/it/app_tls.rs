//! Apps that speak TLS themselves: real instances of them, checked by it, swapped under load by it, and never spoken to without.

use std::path::Path;

use lockgate::api::Problem;
use lockgate::verify::{Kind, VerifyOptions};
use serde_json::json;

use crate::ca::Ca;
use crate::engine::Engine;
use crate::support::{HOST, Lockgate, eventually, for_load};

/// What instances have to show a certificate for.
const NAME: &str = "app.internal";

/// An authority of `lockgate`'s, and a certificate of it for the app, `app.pem` in its folder.
fn certified(lockgate: &Lockgate) -> Ca {
    let (ca, folder) = (Ca::new(), lockgate.folder.path());
    std::fs::write(folder.join("ca.pem"), &ca.pem).unwrap();
    ca.leaf(&[NAME]).write(folder, "app");
    ca
}

/// The app speaks `protocol` with the certificate that lies in `files`, and has to.
fn by_tls(lockgate: &Lockgate, protocol: &str, files: &Path) {
    let ca = lockgate.folder.path().join("ca.pem");
    lockgate.change_config(|config| {
        for_load(config);
        let web = &mut config["apps"]["web"];
        web["protocol"] = json!(protocol);
        web["tls"] = json!({ "server_name": NAME, "ca": ca });
        web["env"]["TLS_CERT"] = json!(files.join("app.pem"));
        web["env"]["TLS_KEY"] = json!(files.join("app.key"));
    });
}

/// Deploys versions while the app is under load.
async fn swaps_spill_nothing(lockgate: &Lockgate, protocol: &str) {
    lockgate.deploy("one").await.unwrap();
    let swapping = async {
        for version in ["two", "three", "four"] {
            lockgate.deploy(version).await.unwrap();
        }
    };
    // The sample app takes no WebSockets over HTTP/2.
    let mix = |options: &mut VerifyOptions| {
        if protocol == "h2" {
            options.mix = options.mix.clone().without(Kind::Websocket);
        }
    };
    let verdict = lockgate.under_load_as(mix, &[HOST, "www.web.test"], |_| swapping).await;
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!(lockgate.version(HOST).await.unwrap(), "four");
}

#[tokio::test(flavor = "multi_thread")]
async fn swaps_of_an_app_that_speaks_tls_spill_nothing() {
    for protocol in ["https", "h2"] {
        let mut lockgate = Lockgate::prepare(|_| {});
        certified(&lockgate);
        by_tls(&lockgate, protocol, lockgate.folder.path());
        lockgate.spawn("").await;
        swaps_spill_nothing(&lockgate, protocol).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn swaps_of_containers_that_speak_tls_spill_nothing() {
    let Some(engine) = Engine::shared("swaps_of_containers_that_speak_tls_spill_nothing").await else {
        return;
    };
    let files = tempfile::tempdir().unwrap();
    let ca = Ca::new();
    let (cert, key) = ca.leaf(&[NAME]).write(files.path(), "app");
    let image = engine.with_files(&[cert, key]);
    let mut lockgate = Lockgate::prepare_on(Some(&image.0));
    std::fs::write(lockgate.folder.path().join("ca.pem"), &ca.pem).unwrap();
    by_tls(&lockgate, "https", Path::new("/"));
    // A file of this machine's.
    lockgate.change_config(|config| {
        config["apps"]["web"]["env"].as_object_mut().unwrap().remove("RECORD_FILE");
    });
    lockgate.spawn("").await;
    swaps_spill_nothing(&lockgate, "https").await;
}

/// Deploys what has to be denied, and returns why.
fn denied(lockgate: &Lockgate, env: &[String]) -> Problem {
    let env = env.iter().flat_map(|one| ["--env", one]);
    let arguments: Vec<&str> = ["--json", "deploy", "web"].into_iter().chain(env).collect();
    let output = lockgate.cli(&arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_does_not_show_what_it_has_to_is_not_deployed_and_hears_nothing() {
    let mut lockgate = Lockgate::prepare(|_| {});
    let ca = certified(&lockgate);
    let folder = lockgate.folder.path().to_owned();
    by_tls(&lockgate, "https", &folder);
    lockgate.spawn("").await;
    lockgate.deploy("one").await.unwrap();
    // From now on it is waited for. In that time what is denied has to have been looked at.
    lockgate.change_config(|config| config["apps"]["web"]["deploy"]["health_timeout"] = json!("8s"));
    assert!(lockgate.cli(&["config", "reload"]).status.success());

    Ca::new().leaf(&[NAME]).write(&folder, "stranger");
    ca.leaf(&["other.internal"]).write(&folder, "other");
    ca.leaf_for(&[NAME], -1).write(&folder, "expired");
    // The stranger's authority has the same name, and another key.
    for (name, seen) in [("stranger", "BadSignature"), ("other", "not valid for name"), ("expired", "xpired")]
    {
        let file = |ending: &str| folder.join(format!("{name}.{ending}")).display().to_string();
        let env = [
            "VERSION=two".to_owned(),
            format!("TLS_CERT={}", file("pem")),
            format!("TLS_KEY={}", file("key")),
        ];
        let problem = denied(&lockgate, &env);
        let told = format!("{problem:?}");
        assert_eq!(problem.code, "not_ready", "{told}");
        assert!(told.contains("TLS handshake") && told.contains(seen) && told.contains("tls.ca"), "{told}");
        // What the app itself says, of each look at it.
        assert!(told.contains("no TLS with a client: received fatal alert"), "{told}");
        assert_eq!(lockgate.version(HOST).await.unwrap(), "one");
    }

    // Nor is one spoken to without TLS that speaks none.
    lockgate.change_config(|config| {
        let env = config["apps"]["web"]["env"].as_object_mut().unwrap();
        env.retain(|name, _| !name.starts_with("TLS_"));
    });
    assert!(lockgate.cli(&["config", "reload"]).status.success());
    let problem = denied(&lockgate, &["VERSION=three".to_owned()]);
    assert!(problem.code == "not_ready" && format!("{problem:?}").contains("TLS handshake"), "{problem:?}");
    assert_eq!(lockgate.version(HOST).await.unwrap(), "one");
    eventually("what was not deployed is gone", async || lockgate.running().await == 1).await;
}
