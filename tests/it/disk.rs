//! P5, P6 Whichever durable write of a deploy and a swap is the one at which the process dies or the disk fails: one
//! version is live and serves, what was answered holds, and the next deploy goes through.

use lockgate::api::{Instance, List, Operation};
use lockgate::cli::ClientError;
use lockgate::store::InstancePhase;
use serde_json::json;

use crate::crash::{check, seed_of_run};
use crate::metrics::{scrape, value};
use crate::support::{HOST, Lockgate, eventually};

/// No run has so many of them.
const FAR: u32 = 3000;

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The process is killed before the n-th write of the store, or that write fails.
    KilledBeforeWrite,
    WriteFails,
    /// The n-th of these system calls of a thread does that, by strace(1).
    Call {
        calls: &'static str,
        does: &'static str,
    },
}

impl Fault {
    /// How far apart the rounds are, where not each is run: a commit is several writes of a file.
    fn stride(self) -> u32 {
        match self {
            Self::Call { calls: "pwrite64", .. } => 60,
            Self::KilledBeforeWrite | Self::WriteFails | Self::Call { .. } => 8,
        }
    }

    /// Has the next start meet it at the n-th time.
    fn arm(self, lockgate: &mut Lockgate, n: u32) -> String {
        let (calls, does) = match self {
            Self::KilledBeforeWrite => return format!("store.write=kill@{n}"),
            Self::WriteFails => return format!("store.write=error@{n}"),
            Self::Call { calls, does } => (calls, does),
        };
        let trace = lockgate.folder.path().join("trace").display().to_string();
        let (traced, inject) = (format!("trace={calls}"), format!("inject={calls}:{does}:when={n}"));
        // As a grandchild, so that the child is lockgate itself.
        let words = ["strace", "-D", "-f", "-qq", "-o", &trace, "-e", &traced, "-e", &inject];
        lockgate.under = words.map(str::to_owned).to_vec();
        String::new()
    }

    fn kills(self) -> bool {
        match self {
            Self::KilledBeforeWrite => true,
            Self::WriteFails => false,
            Self::Call { does, .. } => does.starts_with("signal"),
        }
    }

    async fn was_met(self, lockgate: &Lockgate, n: u32, died: bool) -> bool {
        let trace = || std::fs::read_to_string(lockgate.folder.path().join("trace")).unwrap_or_default();
        match self {
            Self::KilledBeforeWrite => died,
            // Those that were done are counted; the one that failed is not.
            Self::WriteFails if !died => {
                value(&scrape(lockgate).await, "lockgate_store_commit_seconds_count") >= f64::from(n - 1)
            }
            Self::WriteFails => true,
            Self::Call { .. } => trace().contains("(INJECTED)") || died,
        }
    }
}

impl Lockgate {
    /// Every operation has ended, and what was replaced is stopped; or it has died.
    async fn settles_or_ends(&mut self) -> bool {
        let mut has_ended = false;
        eventually("it settles or ends", async || {
            has_ended = self.has_ended();
            let operations = self.client.get::<List<Operation>>("/v1/operations?limit=200").await;
            let instances = self.try_all::<Instance>("/v1/instances").await;
            let all_ended = operations.is_ok_and(|all| all.items.iter().all(|one| one.state.is_end()));
            let running = |one: &&Instance| one.phase == InstancePhase::Running;
            has_ended || all_ended && instances.is_ok_and(|all| all.iter().filter(running).count() == 1)
        })
        .await;
        has_ended
    }
}

/// Deploys and swaps back while `fault` is armed; `false` if nothing met it.
///
/// Found so: a store that failed after the commit, as the watch began, had the deploy told as failed, and its version live.
async fn round(lockgate: &mut Lockgate, fault: Fault, n: u32) -> bool {
    let told = format!("{fault:?}, {n}");
    let before = lockgate.deployments().await.into_iter().find(|one| one.live).unwrap().id;
    let (old, new) = (lockgate.version(HOST).await.unwrap(), told.clone());
    let faults = fault.arm(lockgate, n);
    lockgate.kill();
    lockgate.launch(&faults);
    let mut deployed = None;
    let mut swapped = None;
    let mut died = !lockgate.comes_up().await;
    if !died {
        deployed = Some(lockgate.deploy(&new).await);
        if deployed.as_ref().is_some_and(Result::is_ok) {
            let swap = json!({ "deployment": before });
            swapped = Some(lockgate.client.post::<Operation>("/v1/apps/web/swap", &swap).await);
        }
        died = lockgate.settles_or_ends().await;
    }
    let met = fault.was_met(lockgate, n, died).await;
    if !died {
        // One that is to be killed may be so at a write that comes later.
        if !fault.kills() {
            check(lockgate, &told).await;
        }
        lockgate.kill();
    }
    lockgate.under.clear();
    lockgate.spawn("").await;
    let serves = lockgate.version(HOST).await.unwrap_or_else(|error| panic!("{told}: {error}"));
    let expected = match (&deployed, &swapped) {
        (_, Some(Ok(_))) | (None, _) => vec![&old],
        (Some(Ok(_)), Some(Err(error))) if !is_open(error) => vec![&new],
        (Some(Err(error)), _) if !is_open(error) => vec![&old],
        (Some(_), _) => vec![&old, &new],
    };
    assert!(expected.contains(&&serves), "{told}: {serves} serves after {deployed:?} and {swapped:?}");
    check(lockgate, &told).await;
    // What was accepted and had not begun is carried out now.
    let settled = lockgate.version(HOST).await.unwrap_or_else(|error| panic!("{told}: {error}"));
    assert!(expected.contains(&&settled), "{told}: {settled} serves in the end");
    let after = format!("after {told}");
    lockgate.deploy(&after).await.unwrap_or_else(|error| panic!("{told}: {error}"));
    assert_eq!(lockgate.version(HOST).await, Ok(after), "{told}");
    met
}

/// Whether a call that ended so may have been carried out.
fn is_open(error: &ClientError) -> bool {
    match error {
        ClientError::Refused(problem) => problem.code == "outcome_unknown",
        _ => true,
    }
}

/// Every write with `LOCKGATE_EVERY_POINT`; else some, from one that the seed says (`LOCKGATE_SEED` repeats a run).
async fn at_each(fault: Fault) {
    let (seed, step) = if std::env::var_os("LOCKGATE_EVERY_POINT").is_some() {
        (0, 1)
    } else {
        (seed_of_run(), fault.stride())
    };
    let first = 1 + u32::try_from(seed % u64::from(step)).unwrap();
    println!("{fault:?}: each {step} from {first}");
    let mut lockgate = Lockgate::start("").await;
    lockgate.deploy("first").await.unwrap();
    let mut met = 0;
    for n in (first..FAR).step_by(usize::try_from(step).unwrap()) {
        if !round(&mut lockgate, fault, n).await {
            break;
        }
        met += 1;
    }
    println!("{fault:?}: {met} of the rounds met it");
    assert!((2..FAR / step).contains(&met), "{met} rounds met it");
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_write_of_the_store_fails_one_version_is_live_and_no_deploy_that_failed_serves() {
    at_each(Fault::WriteFails).await;
}

fn strace(test: &str) -> bool {
    let works = std::process::Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status();
    let works = works.is_ok_and(|status| status.success());
    if !works {
        println!("SKIPPED: strace: {test}");
    }
    works
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_any_write_of_the_store_one_version_is_live() {
    at_each(Fault::KilledBeforeWrite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_sync_one_version_is_live() {
    if strace("killed_at_any_sync_one_version_is_live") {
        at_each(Fault::Call { calls: "fsync,fdatasync", does: "signal=KILL" }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_sync_the_disk_fails_one_version_is_live() {
    if strace("whichever_sync_the_disk_fails_one_version_is_live") {
        at_each(Fault::Call { calls: "fsync,fdatasync", does: "error=EIO" }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_write_the_disk_has_no_room_for_one_version_is_live() {
    if strace("whichever_write_the_disk_has_no_room_for_one_version_is_live") {
        at_each(Fault::Call { calls: "pwrite64", does: "error=ENOSPC" }).await;
    }
}
