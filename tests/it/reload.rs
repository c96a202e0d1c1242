//! The configuration is read again on SIGHUP and when one of its files changes, and the audit trail says by whom.

use std::time::Duration;

use lockgate::api::{Audit, List};
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecursiveMode, Watcher};
use rustix::process::Signal;
use serde_json::json;

use crate::support::{HOST, Lockgate, eventually, free_port, replace};

impl Lockgate {
    /// Reloads that nobody asked the admin API for, the oldest first.
    async fn own_reloads(&self) -> Vec<(String, u16)> {
        let audit: List<Audit> = self.client.get("/v1/audit?limit=200").await.unwrap();
        let own = audit.items.into_iter().rev().filter(|entry| entry.action == "reload");
        own.map(|entry| (entry.actor, entry.status)).collect()
    }

    async fn reloaded(&self, actor: &str, status: u16) {
        eventually(&format!("a reload by the {actor} with {status}"), async || {
            self.own_reloads().await.last().is_some_and(|last| *last == (actor.to_owned(), status))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_and_a_change_of_the_file_reload_and_are_written_down() {
    let lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    let good = std::fs::read_to_string(lockgate.config()).unwrap();
    lockgate.signal(Signal::HUP);
    lockgate.reloaded("signal", 200).await;

    replace(&lockgate.config(), &good.replace("\"workers\":2", "\"wrkers\":2"));
    lockgate.reloaded("watch", 422).await;
    lockgate.signal(Signal::HUP);
    lockgate.reloaded("signal", 422).await;
    assert_eq!(lockgate.version(HOST).await.unwrap(), "one", "what ran before goes on running");

    replace(&lockgate.config(), &good.replace("www.web.test", "new.web.test"));
    eventually("the new host is served", async || lockgate.version("new.web.test").await.is_ok()).await;
    lockgate.reloaded("watch", 200).await;
}

/// Fixed fault: what was changed after a reload had read the file, and before it looked at it again, was never applied.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_during_a_reload_is_applied() {
    let lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    let good = std::fs::read_to_string(lockgate.config()).unwrap();
    for later in 0..10 {
        lockgate.signal(Signal::HUP);
        tokio::time::sleep(Duration::from_millis(2 * later)).await;
        let host = format!("later-{later}.web.test");
        replace(&lockgate.config(), &good.replace("www.web.test", &host));
        eventually(&format!("{host} is served"), async || lockgate.version(&host).await.is_ok()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_the_configuration_names_is_watched_as_well() {
    let elsewhere = tempfile::tempdir().unwrap();
    let named = elsewhere.path().join("host");
    std::fs::write(&named, "one.test\n").unwrap();
    let mut lockgate = Lockgate::prepare(|config| {
        config["apps"]["web"]["hosts"] = json!([HOST, format!("${{file:{}}}", named.display())]);
    });
    lockgate.spawn("").await;
    lockgate.deploy("one").await.unwrap();
    assert_eq!(lockgate.version("one.test").await.unwrap(), "one");
    replace(&named, "two.test\n");
    eventually("its new content is served", async || lockgate.version("two.test").await.is_ok()).await;
    assert_eq!(lockgate.version("one.test").await, Err("status 404".to_owned()));
    lockgate.reloaded("watch", 200).await;

    std::fs::remove_file(&named).unwrap();
    lockgate.reloaded("watch", 422).await;
    assert_eq!(lockgate.version("two.test").await.unwrap(), "one");
    // Mounted secrets are links that are turned to another folder.
    std::fs::write(elsewhere.path().join("other"), "three.test").unwrap();
    std::os::unix::fs::symlink("other", &named).unwrap();
    eventually("what replaced it is served", async || lockgate.version("three.test").await.is_ok()).await;
}

/// Fixed fault: what was written into the folder that took the place of another one was not seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_replaced_is_watched_as_before() {
    let parent = tempfile::tempdir().unwrap();
    let (folder, old) = (parent.path().join("folder"), parent.path().join("old"));
    let make = |host: &str| {
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("host"), host).unwrap();
    };
    make("one.test\n");
    let mut lockgate = Lockgate::prepare(|config| {
        config["apps"]["web"]["hosts"] = json!([HOST, format!("${{file:{}/host}}", folder.display())]);
    });
    lockgate.spawn("").await;
    lockgate.deploy("one").await.unwrap();
    std::fs::rename(&folder, old).unwrap();
    lockgate.reloaded("watch", 422).await;
    make("two.test\n");
    eventually("the new folder's is served", async || lockgate.version("two.test").await.is_ok()).await;
    replace(&folder.join("host"), "three.test\n");
    eventually("and what is written there", async || lockgate.version("three.test").await.is_ok()).await;
}

/// Its own log is among what is written there.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_beside_the_file_has_nobody_read_it() {
    let lockgate = Lockgate::start("").await;
    let (sender, opened) = std::sync::mpsc::channel();
    let told = move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| event.kind == EventKind::Access(AccessKind::Open(AccessMode::Any))) {
            let _nobody_asks_any_more = sender.send(());
        }
    };
    let mut watcher = notify::recommended_watcher(told).unwrap();
    watcher.watch(&lockgate.config(), RecursiveMode::NonRecursive).unwrap();
    drop(std::fs::read(lockgate.config()).unwrap());
    eventually("it is seen to be read", async || opened.try_recv().is_ok()).await;
    let beside = lockgate.config().with_file_name(".lockgate.yaml.swp");
    // What was written a moment ago is not believed to be as it was.
    eventually("nobody reads it", async || {
        opened.try_iter().for_each(drop);
        std::fs::write(&beside, "another text").unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        opened.try_recv().is_err()
    })
    .await;
}

/// What is counted of it goes on, and nothing is counted twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_a_reload_does_not_change_stays_the_same() {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let mut lockgate = Lockgate::prepare(|config| {
        config["services"] = json!({ "legacy": { "upstreams": [nobody], "hosts": ["old.test"] } });
    });
    lockgate.spawn("").await;
    let counted = async || {
        let metrics = crate::metrics::scrape(&lockgate).await;
        let of_legacy = |line: &&str| line.starts_with("lockgate_http_requests_total{app=\"legacy\"");
        metrics.lines().filter(of_legacy).map(str::to_owned).collect::<Vec<_>>()
    };
    for requests in 1..=2 {
        assert_eq!(lockgate.version("old.test").await, Err("status 502".to_owned()));
        let so_many = format!(" {requests}");
        eventually("it is counted", async || counted().await.iter().any(|line| line.ends_with(&so_many)))
            .await;
        let [line] = &counted().await[..] else { panic!("{:?}", counted().await) };
        assert!(line.ends_with(&so_many), "{line}");
        lockgate.change_config(|config| config["apps"]["web"]["env"]["MORE"] = json!("x"));
        assert_eq!(lockgate.cli(&["config", "reload"]).status.code(), Some(0));
    }
}
