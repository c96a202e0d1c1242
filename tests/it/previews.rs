//! Many previews at once: all of them serve, and nothing of them is left when their time is over.

use lockgate::api::{Deployment, Operation, Route};
use lockgate::clock::{Clock, SystemClock};
use serde_json::{Value, json};

use crate::engine::Engine;
use crate::support::{HOST, Lockgate, eventually, finish, for_load};

/// What there is of an installation, by its own lists, by the machine's and by the engine's.
#[derive(Debug, PartialEq, Eq)]
struct Inventory {
    instances: usize,
    routes: usize,
    running: usize,
    /// Of the process runtime.
    volume_folders: usize,
    containers: Option<usize>,
    networks: Option<usize>,
    volumes: Option<usize>,
}

impl Inventory {
    /// Of the engine's, or of the process runtime's: a folder in one for the app, and one for the preview.
    fn has_volumes(&self) -> usize {
        self.volumes.unwrap_or(self.volume_folders / 2)
    }
}

impl Lockgate {
    async fn inventory(&self) -> Inventory {
        Inventory {
            instances: self.all::<Value>("/v1/instances").await.len(),
            routes: self.all::<Route>("/v1/routes").await.len(),
            running: self.running().await,
            volume_folders: folders(&self.folder.path().join("data/volumes")),
            containers: self.containers().await,
            networks: self.marked("network").await,
            volumes: self.marked("volume").await,
        }
    }
}

/// How many folders there are in a folder, and in those.
fn folders(folder: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let below = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    below.map(|path| 1 + folders(&path)).sum()
}

/// A change of the configuration: a volume for each, and room for so many.
fn with_room_for(many: usize) -> impl FnOnce(&mut Value) {
    move |config| {
        config["ephemeral"] = json!({ "max_per_app": many });
        // A thousand at a time are not looked at every ten seconds.
        config["apps"]["web"]["health"]["interval"] = json!("10m");
        let volume = json!({ "name": "data", "path": "/data", "shared": true });
        config["apps"]["web"]["volumes"] = json!([volume]);
    }
}

/// Makes so many previews, looks at each, and lets their time pass.
async fn come_and_go(lockgate: &Lockgate, many: usize) {
    lockgate.deploy("live").await.unwrap();
    let before = lockgate.inventory().await;
    let started = SystemClock.now();
    let passed = |what: &str| println!("{:>6.1} s: {what}", (SystemClock.now() - started).as_secs_f64());
    for n in 0..many {
        let (label, version) = (format!("p{n}"), format!("v{n}"));
        let preview = json!({ "env": { "VERSION": version }, "label": label, "ttl": "3h" });
        let made = lockgate.deploy_with(&preview, "end").await.unwrap();
        assert!(made.state.is_success(), "{made:?}");
    }
    passed("all are there");
    let with_them = lockgate.inventory().await;
    let as_many = (with_them.running, with_them.instances, with_them.has_volumes());
    assert_eq!(as_many, (before.running + many, before.instances + many, before.has_volumes() + many));
    for n in 0..many {
        assert_eq!(lockgate.version(&format!("p{n}.{HOST}")).await, Ok(format!("v{n}")));
    }
    for preview in lockgate.all::<Deployment>("/v1/apps/web/deployments").await {
        if preview.label.is_some() {
            let path = format!("/v1/deployments/{}/extend", preview.id);
            let _: Deployment = lockgate.client.post(&path, &json!({ "ttl": "100ms" })).await.unwrap();
        }
    }
    passed("all are to expire");
    let mut left = with_them.running;
    while left > before.running {
        eventually("another one is stopped", async || lockgate.running().await < left).await;
        left = lockgate.running().await;
    }
    passed("all are stopped");
    eventually("nothing is left of them", async || lockgate.inventory().await == before).await;
    passed("nothing is left of them");
    let mut expired = 0;
    for n in 0..many {
        let answer = lockgate.raw(&format!("p{n}.{HOST}")).await;
        expired += usize::from(answer.contains("ephemeral_expired"));
        assert!(
            answer.contains("ephemeral_expired") || answer.contains("ephemeral_unknown"),
            "p{n}: {answer}"
        );
    }
    // Those that ended last are told from such as never were.
    assert_eq!(expired, many.min(100));
    assert!(lockgate.all::<Operation>("/v1/operations").await.iter().all(|one| one.state.is_success()));
    let doctor = lockgate.cli(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(0), "{doctor:?}");
    assert_eq!(lockgate.version(HOST).await.as_deref(), Ok("live"));
}

/// `LOCKGATE_PREVIEWS` sets how many there are.
fn how_many(by_default: usize) -> usize {
    std::env::var("LOCKGATE_PREVIEWS").ok().and_then(|text| text.parse().ok()).unwrap_or(by_default)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_preview_processes_that_expired_nothing_is_left() {
    let many = how_many(20);
    let mut lockgate = Lockgate::prepare(with_room_for(many));
    lockgate.spawn("").await;
    come_and_go(&lockgate, many).await;
    println!("{many} previews came and went");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_preview_containers_that_expired_no_container_network_or_volume_is_left() {
    let test = "of_preview_containers_that_expired_no_container_network_or_volume_is_left";
    let Some(engine) = Engine::shared(test).await else { return };
    let many = how_many(5).min(50);
    let mut lockgate = Lockgate::prepare_on(Some(&engine));
    lockgate.change_config(with_room_for(many));
    lockgate.spawn("").await;
    come_and_go(&lockgate, many).await;
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
    let versions: Value = serde_json::from_slice(&versions.stdout).unwrap();
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

impl Lockgate {
    async fn previewed(&self, label: &str, version: &str, ttl: &str) {
        let preview = json!({ "env": { "VERSION": version }, "label": label, "ttl": ttl, "force": true });
        self.deploy_with(&preview, "true").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_that_is_replaced_under_load_and_streams_spills_nothing() {
    let mut lockgate = Lockgate::prepare(for_load);
    lockgate.spawn("").await;
    lockgate.deploy("live").await.unwrap();
    lockgate.previewed("feat", "one", "1h").await;
    let verdict = lockgate
        .under_load_at(&["feat.web.test", HOST], |_| async {
            for version in ["two", "three", "four"] {
                lockgate.previewed("feat", version, "1h").await;
            }
        })
        .await;
    assert!(verdict.is_clean(), "{verdict}");
    eventually("only the newest is left", async || lockgate.running().await == 2).await;
    assert_eq!(lockgate.version("feat.web.test").await.as_deref(), Ok("four"));
    assert_eq!(lockgate.version(HOST).await.as_deref(), Ok("live"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_that_is_evicted_under_load_answers_until_then_and_ends_what_it_has_begun() {
    let mut lockgate = Lockgate::prepare(|config| {
        for_load(config);
        config["ephemeral"] = json!({ "max_per_app": 2 });
    });
    lockgate.spawn("").await;
    lockgate.deploy("live").await.unwrap();
    lockgate.previewed("soon", "soon", "1h").await;
    lockgate.previewed("late", "late", "2h").await;
    let is_over = std::cell::Cell::new(false);
    let asker = async || {
        let (mut served, mut refused) = (0, 0);
        // Each is refused at least once, however slow its last answer was.
        while !is_over.get() || refused == 0 {
            let answer = lockgate.raw("soon.web.test").await;
            if answer.starts_with("HTTP/1.1 200 ") {
                assert_eq!(refused, 0, "served after it was gone");
                served += 1;
            } else {
                assert!(answer.contains("lockgate-reason: ephemeral_unknown"), "{answer}");
                refused += 1;
            }
        }
        assert!(served > 0 && refused > 0, "{served} served, {refused} refused");
    };
    let evicting = async {
        let begun = lockgate.unfinished("soon.web.test").await;
        lockgate.previewed("more", "more", "2h").await;
        eventually("it is gone for who comes", async || {
            lockgate.raw("soon.web.test").await.contains("ephemeral_unknown")
        })
        .await;
        assert_eq!(lockgate.running().await, 4, "stopped under a request");
        let answer = finish(begun).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("soon"), "{answer}");
        eventually("it is stopped", async || lockgate.running().await == 3).await;
    };
    let verdict = lockgate
        .under_load_at(&["late.web.test", HOST], |_| async {
            let working = async {
                evicting.await;
                is_over.set(true);
            };
            tokio::join!(working, asker(), asker(), asker());
        })
        .await;
    assert!(verdict.is_clean(), "{verdict}");
    let mut noted = None;
    eventually("it is noted", async || {
        let mut rests = lockgate.history().await.into_iter().filter_map(|one| one.rested);
        noted = rests.find(|rest| rest.reason.starts_with("evicted for"));
        noted.is_some()
    })
    .await;
    assert!(noted.unwrap().cut.is_empty());
}
