//! Versions in standby, over real processes and sockets: one start however many requests, and what a crash leaves.

use lockgate::api::{Deployment, List, Operation};
use lockgate::store::{DesiredState, OperationKind};
use serde_json::json;
use tokio::task::JoinSet;

use crate::support::{Lockgate, eventually};

/// Where the preview is reached.
const PREVIEW: &str = "x.web.test";

impl Lockgate {
    /// A live version and a preview that sleeps.
    pub(crate) async fn with_sleeping_preview(&self) -> Deployment {
        self.with_slow_sleeping_preview(0).await
    }

    /// The same; whenever it is started, the preview is not ready before so many seconds.
    pub(crate) async fn with_slow_sleeping_preview(&self, seconds: u32) -> Deployment {
        self.deploy("live").await.unwrap();
        let env = json!({ "VERSION": "preview", "HEALTH_AFTER_MS": (seconds * 1000).to_string() });
        let preview = json!({ "env": env, "label": "x", "ttl": "1h" });
        self.deploy_with(&preview, "true").await.unwrap();
        assert_eq!(self.cli(&["standby", "web", "x"]).status.code(), Some(0));
        self.preview_sleeps().await;
        self.preview().await
    }

    pub(crate) async fn preview_sleeps(&self) {
        eventually("the preview sleeps", async || {
            self.preview().await.desired_state == DesiredState::Standby && self.running().await == 1
        })
        .await;
    }

    pub(crate) async fn preview(&self) -> Deployment {
        let all: List<Deployment> = self.client.get("/v1/apps/web/deployments?limit=200").await.unwrap();
        all.items.into_iter().find(|one| one.label.is_some()).unwrap()
    }

    async fn wakes(&self) -> Vec<Operation> {
        let all = self.operations().await.into_iter();
        all.filter(|operation| operation.kind == OperationKind::Wake).collect()
    }

    /// What so many requests at once are answered.
    async fn at_once(self: &std::sync::Arc<Self>, count: usize) -> Vec<String> {
        let mut requests = JoinSet::new();
        for _ in 0..count {
            let lockgate = std::sync::Arc::clone(self);
            requests.spawn(async move { lockgate.raw(PREVIEW).await });
        }
        requests.join_all().await
    }
}

/// Two sockets for each of many requests are more than some machines give at first.
fn open_many_files() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, most).unwrap();
}

fn with_status(answers: &[String], status: &str) -> usize {
    answers.iter().filter(|answer| answer.starts_with(&format!("HTTP/1.1 {status} "))).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_requests_at_once_start_a_sleeping_preview_once_and_all_are_answered() {
    open_many_files();
    let lockgate = std::sync::Arc::new(Lockgate::start("").await);
    lockgate.with_sleeping_preview().await;
    let answers = lockgate.at_once(500).await;
    assert_eq!(with_status(&answers, "200"), 500, "{:?}", answers.iter().find(|one| !one.contains(" 200 ")));
    assert!(answers.iter().all(|answer| answer.contains("x-version: preview")));
    let wakes = lockgate.wakes().await;
    assert_eq!((wakes.len(), lockgate.running().await), (1, 2), "{wakes:?}");
    // It is logged behind the requests' backs.
    let told = || lockgate.logged().lines().filter(|line| line.contains("woken")).count();
    eventually("it is logged", async || told() > 0).await;
    let woken = told();
    assert_eq!((woken, lockgate.preview().await.desired_state), (1, DesiredState::Running));
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_queue_requests_are_told_to_come_back_and_the_others_are_served() {
    let mut lockgate = Lockgate::prepare(|config| {
        config["apps"]["web"]["wake_queue"] = json!(10);
    });
    lockgate.spawn("").await;
    let lockgate = std::sync::Arc::new(lockgate);
    // Much longer than it takes to send them on however busy a machine.
    lockgate.with_slow_sleeping_preview(10).await;
    let answers = lockgate.at_once(50).await;
    let (served, refused) = (with_status(&answers, "200"), with_status(&answers, "503"));
    // Who came after the start was served, too.
    assert!(served >= 10 && served + refused == 50, "{served} {refused}");
    let told = answers.iter().find(|answer| answer.starts_with("HTTP/1.1 503"));
    let told = told.expect("nobody was refused");
    assert!(told.contains("lockgate-reason: queue_full") && told.contains("retry-after: 5"), "{told}");
    assert_eq!(lockgate.wakes().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_puts_versions_into_standby_and_wakes_them() {
    let lockgate = Lockgate::start("").await;
    lockgate.with_sleeping_preview().await;
    // The second time there is nothing to do.
    for _ in 0..2 {
        let woken = lockgate.cli(&["wake", "web", "x"]);
        assert_eq!(woken.status.code(), Some(0), "{woken:?}");
        assert_eq!(lockgate.version(PREVIEW).await.as_deref(), Ok("preview"));
    }
    let live = lockgate.deployments().await.into_iter().find(|one| one.live).unwrap().id.to_string();
    for refused in [["wake", "web", "nothing"], ["standby", "web", &live]] {
        let told = lockgate.cli(&refused);
        assert_eq!(told.status.code(), Some(3), "{refused:?}: {told:?}");
    }
}
