//! Policies with the real binary: refused with their place, kept by versions, and their passwords told to nobody.

use base64::Engine as _;
use lockgate::api::App;
use serde_json::{Value, json};

use crate::support::{HOST, Lockgate, eventually};

fn locked(password: &str) -> Value {
    json!([{ "except": ["/up"], "basic_auth": { "users": [{ "user": "ann", "password": password }] } }])
}

/// Status of a request with that password.
async fn asked_with(lockgate: &Lockgate, password: &str) -> Result<String, String> {
    let credential = base64::prelude::BASE64_STANDARD.encode(format!("ann:{password}"));
    lockgate.version_with(&format!("Authorization: Basic {credential}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_of_an_app_counts_from_its_next_deploy_and_its_password_is_told_to_nobody() {
    let mut lockgate = Lockgate::prepare(|config| config["apps"]["web"]["policies"] = locked("canary-1"));
    lockgate.spawn("").await;
    lockgate.deploy("one").await.unwrap();
    assert_eq!(lockgate.version(HOST).await, Err("status 401".to_owned()));
    assert_eq!(asked_with(&lockgate, "canary-1").await, Ok("one".to_owned()));
    assert_eq!(asked_with(&lockgate, "canary-2").await, Err("status 401".to_owned()));
    let explained = lockgate.cli(&["explain", HOST]);
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(explained.contains("its policies, in their order: basic_auth"), "{explained}");

    lockgate.change_config(|config| config["apps"]["web"]["policies"] = locked("canary-2"));
    assert!(lockgate.cli(&["config", "reload"]).status.success());
    assert_eq!(
        asked_with(&lockgate, "canary-1").await,
        Ok("one".to_owned()),
        "a version is what it was made"
    );
    lockgate.deploy("two").await.unwrap();
    assert_eq!(asked_with(&lockgate, "canary-2").await, Ok("two".to_owned()));
    assert!(lockgate.cli(&["rollback", "web"]).status.success());
    assert_eq!(asked_with(&lockgate, "canary-1").await, Ok("one".to_owned()));

    let shown: Value = lockgate.client.get("/v1/apps/web").await.unwrap();
    let deployments: Value = lockgate.client.get("/v1/deployments").await.unwrap();
    for text in [shown.to_string(), deployments.to_string(), lockgate.logged()] {
        assert!(!text.contains("canary"), "{text}");
    }
    assert!(shown.to_string().contains("\"user\":\"ann\""), "{shown}");
    for file in std::fs::read_dir(lockgate.folder.path().join("data")).unwrap() {
        let path = file.unwrap().path();
        let bytes = std::fs::read(&path).unwrap_or_default();
        assert!(!bytes.windows(6).any(|part| part == b"canary"), "{}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_back_what_was_read_leaves_the_password_as_it_is() {
    let lockgate = Lockgate::start("").await;
    let path = "/v1/apps/notes";
    let settings = json!({ "command": ["/bin/true"], "policies": locked("canary") });
    lockgate.client.put::<App>(path, &json!({ "settings": settings })).await.unwrap();
    let mut read: Value = lockgate.client.get(path).await.unwrap();
    read["settings"]["policies"][0]["except"] = json!(["/up", "/health"]);
    lockgate.client.put::<App>(path, &json!({ "settings": read["settings"] })).await.unwrap();
    read["settings"]["policies"][0]["basic_auth"]["users"][0]["user"] = json!("bob");
    let refused =
        lockgate.client.put::<App>(path, &json!({ "settings": read["settings"] })).await.unwrap_err();
    let refused = refused.to_string();
    assert!(
        refused.contains("policies[0].basic_auth.users[0].password") && refused.contains("not given"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_of_a_service_change_with_the_file_and_bad_ones_change_nothing() {
    let mut lockgate = Lockgate::prepare(|_| {});
    lockgate.change_config(|config| {
        let policies = json!([{ "redirect": { "to": "/there" } }]);
        config["services"] = json!({ "old": { "hosts": ["old.test"], "upstreams": ["http://127.0.0.1:9"], "policies": policies } });
    });
    lockgate.spawn("").await;
    let raw = lockgate.raw("old.test").await;
    assert!(raw.starts_with("HTTP/1.1 308 ") && raw.contains("location: /there\r\n"), "{raw}");

    let good = std::fs::read_to_string(lockgate.config()).unwrap();
    std::fs::write(lockgate.config(), good.replace("\"redirect\"", "\"redirekt\"")).unwrap();
    let refused = lockgate.cli(&["config", "reload"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(
        told.contains("services.old.policies[0].redirekt") && told.contains("did you mean `redirect`?"),
        "{told}"
    );
    assert!(lockgate.raw("old.test").await.starts_with("HTTP/1.1 308 "));

    std::fs::write(lockgate.config(), good.replace("/there", "/elsewhere")).unwrap();
    assert!(lockgate.cli(&["config", "reload"]).status.success());
    eventually("the new place is told", async || {
        lockgate.raw("old.test").await.contains("location: /elsewhere\r\n")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_link_is_made_on_the_command_line_and_ends_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "canary-0123456789abcdef0123456789").unwrap();
    let mut lockgate = Lockgate::prepare(|config| {
        let policies =
            json!([{ "paths": ["/"], "signed_link": { "key": format!("${{file:{}}}", key.display()) } }]);
        config["apps"]["web"]["policies"] = policies.clone();
        config["services"] = json!({ "old": { "hosts": ["old.test"], "upstreams": ["http://127.0.0.1:9"], "policies": policies } });
    });
    lockgate.spawn("").await;
    lockgate.deploy("one").await.unwrap();
    assert!(lockgate.raw(HOST).await.contains("lockgate-reason: signed_link_required"));
    let link = |place: &str| lockgate.cli(&["link", place, "--for", "1h"]);
    let signed = |place: &str| {
        let signed = link(place);
        assert_eq!(signed.status.code(), Some(0), "{signed:?}");
        String::from_utf8(signed.stdout).unwrap().trim().to_owned()
    };
    let follow = async |host: &str, url: &str| {
        let (_, place) = url.split_once(host).unwrap();
        let place = place.trim_start_matches(|c: char| c == ':' || c.is_ascii_digit());
        lockgate.raw_at(host, place).await
    };
    let url = signed(HOST);
    let answer = follow(HOST, &url).await;
    assert!(answer.starts_with("HTTP/1.1 303 ") && answer.contains("location: /\r\n"), "{answer}");
    let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    let cookie = cookie.split(';').next().unwrap();
    assert_eq!(lockgate.version_with(&format!("Cookie: {cookie}")).await, Ok("one".to_owned()));

    // A service's key changes with the file, an app's with its next deploy.
    let old = signed("old.test/x");
    assert!(follow("old.test", &old).await.starts_with("HTTP/1.1 303 "));
    std::fs::write(&key, "canary-another-0123456789abcdef01").unwrap();
    assert!(lockgate.cli(&["config", "reload"]).status.success());
    eventually("the old key opens nothing", async || {
        follow("old.test", &old).await.contains("lockgate-reason: signed_link_required")
    })
    .await;
    assert!(follow("old.test", &signed("old.test/x")).await.starts_with("HTTP/1.1 303 "));
    assert!(follow(HOST, &url).await.starts_with("HTTP/1.1 303 "), "a version is what it was made");
    lockgate.deploy("two").await.unwrap();
    assert!(follow(HOST, &url).await.contains("lockgate-reason: signed_link_required"));

    for (place, expected) in [
        ("none.test", "no policy wants a signed link at none.test/"),
        ("a b", "host"),
        ("old.test/a/../b", "path"),
        ("old.test/caf\u{e9}", "percent-encoded"),
        ("old.test/a\nb", "percent-encoded"),
    ] {
        let refused = link(place);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && told.contains(expected), "{place}: {told}");
    }
    let shown: Value = lockgate.client.get("/v1/apps/web").await.unwrap();
    assert!(shown.to_string().contains("signed_link"), "{shown}");
    for text in [shown.to_string(), lockgate.logged()] {
        assert!(!text.contains("canary") && !text.contains(url.rsplit('.').next().unwrap()), "{text}");
    }
    for file in std::fs::read_dir(lockgate.folder.path().join("data")).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap_or_default();
        assert!(!bytes.windows(6).any(|part| part == b"canary"));
    }
}
