//! How fast a rollback moves the traffic, under load and printed: to a version that runs, to one in standby; and how soon a
//! killed lockgate serves again. What is checked is that nothing is spilled and that nobody who asks after the answer gets
//! the wrong version; how long it takes is the machine's affair.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use lockgate::api::Operation;
use lockgate::clock::{Clock, SystemClock};
use lockgate::store::DesiredState;
use serde_json::{Value, json};

use crate::support::{HOST, Lockgate, eventually};

const ASKERS: usize = 8;
/// `LOCKGATE_ROLLBACKS` sets another number.
const ROUNDS: usize = 10;

/// One request, and what it was answered.
struct Asked {
    sent: Instant,
    version: String,
}

/// What one call took: to its answer, and to the last request that was sent to the wrong version.
#[derive(Clone, Copy, Debug)]
struct Took {
    answer: Duration,
    last_wrong: Duration,
}

impl Lockgate {
    async fn moved(&self, what: &str, body: &Value) {
        let moved: Operation = self.client.post(&format!("/v1/apps/web/{what}"), body).await.unwrap();
        eventually("its drain is over", async || {
            let shown: Operation = self.client.get(&format!("/v1/operations/{}", moved.id)).await.unwrap();
            shown.state.is_end()
        })
        .await;
    }

    /// Calls `what` while others ask without a pause; afterwards `to` is served.
    async fn called_under_load(&self, what: &str, body: &Value, to: &str) -> Took {
        let (asked, is_over) = (RefCell::new(Vec::new()), Cell::new(false));
        let asker = async || {
            while !is_over.get() {
                let sent = SystemClock.now();
                let version =
                    self.version(HOST).await.unwrap_or_else(|error| panic!("{what}: spilled: {error}"));
                asked.borrow_mut().push(Asked { sent, version });
            }
        };
        let so_many_more = async || {
            let before = asked.borrow().len();
            while asked.borrow().len() < before + 10 * ASKERS {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let calling = async {
            so_many_more().await;
            let began = SystemClock.now();
            self.client.post::<Operation>(&format!("/v1/apps/web/{what}"), body).await.unwrap();
            let answered = SystemClock.now();
            so_many_more().await;
            is_over.set(true);
            (began, answered)
        };
        let askers = futures_util::future::join_all((0..ASKERS).map(|_| asker()));
        let ((began, answered), _) = tokio::join!(calling, askers);
        let asked = asked.into_inner();
        let wrong = || asked.iter().filter(|one| one.version != to).map(|one| one.sent);
        assert_eq!(
            wrong().filter(|sent| *sent > answered).count(),
            0,
            "{what}: an old version after the answer"
        );
        let last_wrong = wrong().max().map_or(Duration::ZERO, |sent| sent.saturating_duration_since(began));
        Took { answer: answered - began, last_wrong }
    }
}

fn print(what: &str, mut all: Vec<Took>) {
    all.sort_by_key(|took| took.last_wrong);
    let (median, longest) = (all[all.len() / 2].last_wrong, all[all.len() - 1].last_wrong);
    all.sort_by_key(|took| took.answer);
    let answer = all[all.len() / 2].answer;
    println!(
        "{what}, {} times, from the call to the last request on the wrong version: median {median:.1?}, longest {longest:.1?}; to the answer, with a watch of 100 ms: median {answer:.1?}",
        all.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_under_load_spills_nothing_and_says_how_long_it_took() {
    let rounds =
        std::env::var("LOCKGATE_ROLLBACKS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let mut lockgate =
        Lockgate::prepare(|config| config["apps"]["web"]["deploy"]["standby_after"] = json!("1h"));
    lockgate.spawn("").await;
    let one = lockgate.deploy_with(&json!({ "env": { "VERSION": "one" } }), "end").await.unwrap();
    let two = lockgate.deploy_with(&json!({ "env": { "VERSION": "two" } }), "end").await.unwrap();
    let (one, two) = (one.deployment.unwrap(), two.deployment.unwrap());
    for is_asleep in [false, true] {
        let mut all = Vec::new();
        for _ in 0..rounds {
            if is_asleep {
                assert_eq!(lockgate.cli(&["standby", "web", &one.to_string()]).status.code(), Some(0));
                eventually("it sleeps", async || {
                    let deployments = lockgate.deployments().await;
                    let found = deployments.iter().find(|deployment| deployment.id == one).unwrap();
                    found.desired_state == DesiredState::Standby && lockgate.running().await == 1
                })
                .await;
            }
            all.push(lockgate.called_under_load("rollback", &json!({ "target": one }), "one").await);
            eventually("its drain is over", async || {
                lockgate.operations().await.iter().all(|operation| operation.state.is_end())
            })
            .await;
            lockgate.moved("promote", &json!({ "deployment": two })).await;
        }
        print(
            if is_asleep { "rollback to a version in standby" } else { "rollback to a version that runs" },
            all,
        );
    }
    let mut away = Vec::new();
    for _ in 0..rounds {
        lockgate.kill();
        let began = SystemClock.now();
        lockgate.launch("");
        eventually("it serves", async || lockgate.version(HOST).await.as_deref() == Ok("two")).await;
        away.push(SystemClock.now() - began);
        lockgate.ready().await;
    }
    away.sort_unstable();
    let (median, longest) = (away[away.len() / 2], away[away.len() - 1]);
    println!(
        "kill -9, {rounds} times, from the start to the first request served: median {median:.1?}, longest {longest:.1?}"
    );
}
