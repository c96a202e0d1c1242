//! P8 The data plane outlives everything else: the engine hung, killed and stopped under load.

use std::io::Write;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lockgate::cli::ClientError;
use lockgate::clock::SystemClock;
use lockgate::verify::{Handle, Target, Verdict, Verifier, VerifyOptions};
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::SemaphorePermit;
use tokio::task::JoinSet;

use crate::engine::OwnEngine;
use crate::support::{HOST, Lockgate, PATIENCE, eventually, turn_for_load, with_long_drains};

/// Load on the app until [`Load::stop`].
struct Load {
    _turn: SemaphorePermit<'static>,
    handle: Handle,
    run: JoinSet<Verdict>,
}

impl Load {
    async fn on(lockgate: &Lockgate) -> Self {
        let target: Target = format!("http://127.0.0.1:{}", lockgate.port()).parse().unwrap();
        let options = VerifyOptions {
            hosts: vec![HOST.parse().unwrap()],
            duration: Duration::from_secs(600).into(),
            rate: 50,
            timeout: PATIENCE.into(),
            // What replaces one another here does not share a record.
            mix: "get=8,sse=1,websocket=1".parse().unwrap(),
            ..VerifyOptions::new(target)
        };
        let _turn = turn_for_load().await;
        let verifier = Verifier::new(options, Arc::new(SystemClock));
        let handle = verifier.handle();
        handle.swap_answered(handle.swap_called("one"));
        let mut run = JoinSet::new();
        run.spawn(verifier.run());
        handle.flowing().await;
        Self { _turn, handle, run }
    }

    async fn stop(mut self) -> Verdict {
        self.handle.stop();
        self.run.join_next().await.unwrap().unwrap()
    }
}

/// A deploy is refused or fails, says that it is the engine, and the app is served on.
fn refused_for_the_engine(lockgate: &Lockgate, when: &str) {
    let refused = lockgate.cli(&["deploy", "web", "--env", "VERSION=two"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{when}: {told}");
    assert!(told.contains("runtime") || told.contains("engine"), "{when}: {told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_hangs_dies_and_comes_back_costs_no_request() {
    let Some(mut own) = OwnEngine::start("an_engine_that_hangs_dies_and_comes_back_costs_no_request").await
    else {
        return;
    };
    let mut lockgate = Lockgate::prepare_on(Some(&own.engine));
    lockgate.change_config(with_long_drains);
    lockgate.spawn("").await;
    lockgate.deploy("one").await.unwrap();
    let load = Load::on(&lockgate).await;

    own.signal(Signal::STOP);
    refused_for_the_engine(&lockgate, "hung");
    own.signal(Signal::CONT);

    own.signal(Signal::KILL);
    own.wait();
    refused_for_the_engine(&lockgate, "killed");
    own.start_again().await;

    own.signal(Signal::TERM);
    own.wait();
    refused_for_the_engine(&lockgate, "stopped");
    own.start_again().await;

    assert_eq!(lockgate.version(HOST).await.unwrap(), "one");
    // All is well after it returns: a deploy goes through, under the same load.
    let token = load.handle.swap_called("three");
    let mut deployed = lockgate.deploy("three").await;
    // A call of the engine's that broke with it may still be under way.
    eventually("a deploy goes through", async || {
        if deployed.is_err() {
            deployed = lockgate.deploy("three").await;
        }
        deployed.is_ok()
    })
    .await;
    load.handle.swap_answered(token);
    let verdict = load.stop().await;
    assert!(verdict.is_clean(), "{verdict}");
    eventually("the replaced version is stopped", async || lockgate.running().await == 1).await;
    // Containers go before their engine.
    drop(lockgate);
}

/// A file system of a few megabytes, to be filled. Gone with the value.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// `None` where this user may not mount.
    fn mount(at: &std::path::Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs"]).arg(at).status();
        mounted.unwrap().success().then(|| Self(at.to_owned()))
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("ballast")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    /// Of what was filled this many bytes are free again.
    fn leave(&self, bytes: u64) {
        let file = std::fs::File::options().write(true).open(self.0.join("ballast")).unwrap();
        file.set_len(file.metadata().unwrap().len().saturating_sub(bytes)).unwrap();
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.0).status().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_no_request_and_refuses_deploys_until_there_is_room() {
    let mut lockgate = Lockgate::prepare(with_long_drains);
    let Some(disk) = SmallDisk::mount(&lockgate.folder.path().join("data")) else {
        println!("SKIPPED: mount: a_full_disk_costs_no_request_and_refuses_deploys_until_there_is_room");
        return;
    };
    lockgate.spawn("").await;
    lockgate.deploy("one").await.unwrap();
    let load = Load::on(&lockgate).await;
    disk.fill();
    let refused = lockgate.cli(&["deploy", "web", "--env", "VERSION=two"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("full"), "{told}");
    assert_eq!(lockgate.version(HOST).await.unwrap(), "one");

    // The journal was not written, so a restart finds what was committed.
    disk.free();
    let token = load.handle.swap_called("three");
    lockgate.deploy("three").await.unwrap();
    load.handle.swap_answered(token);
    let verdict = load.stop().await;
    assert!(verdict.is_clean(), "{verdict}");
    lockgate.kill();
    lockgate.spawn("").await;
    assert_eq!(lockgate.version(HOST).await.unwrap(), "three");
}

/// An end that could not be written down is no end that was seen: the caller is told so, and the journal hears of it
/// once there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_that_ends_while_the_disk_is_full_has_an_unknown_outcome_until_there_is_room() {
    let mut lockgate = Lockgate::prepare(|_| {});
    let Some(disk) = SmallDisk::mount(&lockgate.folder.path().join("data")) else {
        println!(
            "SKIPPED: mount: a_deploy_that_ends_while_the_disk_is_full_has_an_unknown_outcome_until_there_is_room"
        );
        return;
    };
    lockgate.spawn("").await;
    lockgate.deploy("one").await.unwrap();
    lockgate.change_config(|config| config["apps"]["web"]["deploy"]["health_timeout"] = json!("10s"));
    assert_eq!(lockgate.cli(&["config", "reload"]).status.code(), Some(0));
    let never_ready = json!({ "env": { "VERSION": "two", "HEALTH": "never" } });
    let (answered, ()) = tokio::join!(lockgate.deploy_with(&never_ready, "true"), async {
        eventually("it is checked", async || lockgate.running().await == 2).await;
        disk.fill();
    });
    let told = match answered {
        Err(ClientError::Refused(problem)) => problem,
        other => panic!("{other:?}"),
    };
    assert_eq!((told.status, told.code.as_str()), (503, "outcome_unknown"), "{told:?}");
    assert_eq!(lockgate.version(HOST).await.unwrap(), "one");
    assert!(!lockgate.operations().await[0].state.is_end());
    disk.free();
    eventually("its end is written", async || {
        let newest = &lockgate.operations().await[0];
        newest.state.is_end() && !newest.state.is_success()
    })
    .await;
    eventually("nothing of it is left", async || lockgate.running().await == 1).await;
    lockgate.deploy("three").await.unwrap();
    assert_eq!(lockgate.version(HOST).await.unwrap(), "three");
}

/// Each round leaves the store room for some more writes than the one before: whichever is the first that fails, what
/// serves is what was committed.
#[tokio::test(flavor = "multi_thread")]
async fn whichever_write_of_a_deploy_finds_the_disk_full_one_version_is_live() {
    let mut lockgate = Lockgate::prepare(|_| {});
    let Some(disk) = SmallDisk::mount(&lockgate.folder.path().join("data")) else {
        println!("SKIPPED: mount: whichever_write_of_a_deploy_finds_the_disk_full_one_version_is_live");
        return;
    };
    lockgate.spawn("").await;
    lockgate.deploy("0").await.unwrap();
    for pages in [1, 3, 6, 10, 15, 25, 40] {
        disk.fill();
        disk.leave(pages * 4096);
        let answered = lockgate.deploy(&pages.to_string()).await;
        let serves = lockgate.version(HOST).await.unwrap();
        assert!(answered.is_err() || serves == pages.to_string(), "{pages} pages: {serves} serves");
        disk.free();
        eventually(&format!("{pages} pages: every operation has ended"), async || {
            lockgate.operations().await.iter().all(|operation| operation.state.is_end())
        })
        .await;
        let live = lockgate.deployments().await.iter().filter(|deployment| deployment.live).count();
        assert_eq!(live, 1, "{pages} pages");
        let version = format!("after {pages}");
        lockgate.deploy(&version).await.unwrap_or_else(|error| panic!("{pages} pages: {error}"));
        assert_eq!(lockgate.version(HOST).await.unwrap(), version);
    }
}
