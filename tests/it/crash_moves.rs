//! P5 Crash-safe: killed at the fail points of a rollback, of a promote and of an app's removal, what serves is what was
//! committed, the flag says the same as the pointer, and nothing is left over.

use lockgate::api::{App, Operation};
use lockgate::cli::ClientError;
use lockgate::deploy::steps;
use lockgate::store::OperationKind;
use serde_json::{Value, json};

use crate::support::{HOST, Lockgate, eventually};

fn points() -> Vec<&'static str> {
    let of_steps = [steps::SWAP, steps::WATCH].into_iter().flat_map(|step| [step.begun, step.recorded]);
    let of_the_commit =
        ["store.commit_swap.before", "store.commit_swap.after", "swap.committed", "swap.published"];
    of_steps.chain(of_the_commit).collect()
}

impl Lockgate {
    async fn ask(&self, what: &str, body: &Value) -> Result<Operation, ClientError> {
        self.client.post(&format!("/v1/apps/web/{what}"), body).await
    }

    async fn is_rolled_back(&self) -> bool {
        let app: App = self.client.get("/v1/apps/web").await.unwrap();
        app.environments[0].rolled_back
    }

    /// After the kill: it serves what was committed before anything else is done; then all has ended.
    async fn comes_back(&mut self, point: &str) -> String {
        eventually(&format!("{point}: it dies"), async || self.has_ended()).await;
        self.spawn("").await;
        let version = self.version(HOST).await.unwrap_or_else(|error| panic!("{point}: {error}"));
        eventually(&format!("{point}: every operation has ended"), async || {
            self.operations().await.iter().all(|operation| operation.state.is_end())
        })
        .await;
        assert_eq!(self.version(HOST).await.as_ref(), Ok(&version), "{point}: it changed its mind");
        assert_eq!(self.version("www.web.test").await.as_ref(), Ok(&version), "{point}: host names disagree");
        version
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_a_rollback_the_flag_and_the_live_version_agree() {
    for point in points() {
        // Two deploys come before it.
        let mut lockgate = Lockgate::start(&format!("{point}=kill@3")).await;
        lockgate.deploy("one").await.unwrap();
        lockgate.deploy("two").await.unwrap();
        let answered = lockgate.ask("rollback", &json!({})).await;
        let version = lockgate.comes_back(point).await;
        assert!(answered.is_err() || version == "one", "{point}: an answered rollback was undone");
        assert_eq!(lockgate.is_rolled_back().await, version == "one", "{point}");
        if version == "one" {
            let live = lockgate.deployments().await.into_iter().find(|deployment| deployment.live).unwrap();
            lockgate.ask("promote", &json!({ "deployment": live.id })).await.unwrap();
        }
        lockgate.deploy("three").await.unwrap();
        assert_eq!(lockgate.version(HOST).await.unwrap(), "three", "{point}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_a_promote_the_flag_and_the_live_version_agree() {
    for point in points() {
        let mut lockgate = Lockgate::start(&format!("{point}=kill@4")).await;
        lockgate.deploy("one").await.unwrap();
        lockgate.deploy("two").await.unwrap();
        let two = lockgate.deployments().await[0].id;
        lockgate.ask("rollback", &json!({})).await.unwrap();
        // Its drain may still be on: until then it is not promoted.
        eventually("the rollback has ended", async || {
            lockgate.operations().await.iter().all(|operation| operation.state.is_end())
        })
        .await;
        let answered = lockgate.ask("promote", &json!({ "deployment": two })).await;
        let version = lockgate.comes_back(point).await;
        assert!(answered.is_err() || version == "two", "{point}: an answered promote was undone");
        assert_eq!(lockgate.is_rolled_back().await, version == "one", "{point}");
    }
}

/// Fixed fault: the flag was cleared, and what ran on because of the rollback ran for ever.
#[tokio::test(flavor = "multi_thread")]
async fn killed_before_any_write_of_a_confirmed_rollback_flag_outcome_and_rest_agree() {
    let mut lockgate =
        Lockgate::prepare(|config| config["apps"]["web"]["deploy"]["standby_after"] = json!("1h"));
    lockgate.spawn("").await;
    lockgate.deploy("one").await.unwrap();
    let all_ended = async |lockgate: &Lockgate| {
        eventually("every operation has ended", async || {
            lockgate.operations().await.iter().all(|operation| operation.state.is_end())
        })
        .await;
    };
    for n in 1.. {
        assert!(n < 100, "it writes for ever");
        lockgate.deploy("two").await.unwrap();
        let left = lockgate.deployments().await[0].id;
        lockgate.ask("rollback", &json!({})).await.unwrap();
        all_ended(&lockgate).await;
        let live = lockgate.deployments().await.into_iter().find(|deployment| deployment.live).unwrap();
        lockgate.kill();
        lockgate.launch(&format!("store.write=kill@{n}"));
        let mut died = !lockgate.comes_up().await;
        if !died {
            let answered = lockgate.ask("promote", &json!({ "deployment": live.id })).await;
            if answered.is_err() {
                eventually(&format!("{n}: it dies"), async || lockgate.has_ended()).await;
            } else {
                match lockgate.client.get::<App>("/v1/apps/web").await {
                    Ok(app) => assert!(!app.environments[0].rolled_back, "{n}: answered and not done"),
                    // The write was one that comes after the answer.
                    Err(_) => eventually(&format!("{n}: it dies"), async || lockgate.has_ended()).await,
                }
            }
            died = answered.is_err() || lockgate.has_ended();
        }
        if !died {
            lockgate.kill();
        }
        lockgate.spawn("").await;
        all_ended(&lockgate).await;
        let is_confirmed = !lockgate.is_rolled_back().await;
        let deployments = lockgate.deployments().await;
        let left = deployments.iter().find(|deployment| deployment.id == left).unwrap();
        assert_eq!(left.scheduled.is_some(), is_confirmed, "{n}: {left:?}");
        let operations = lockgate.operations().await;
        let promote = operations
            .iter()
            .find(|one| one.kind == OperationKind::Promote && one.created_at > left.created_at);
        let succeeded = promote.is_some_and(|one| one.state.is_success());
        assert_eq!(succeeded, is_confirmed, "{n}: {promote:?}");
        assert_eq!(lockgate.version(HOST).await.as_deref(), Ok("one"), "{n}");
        if !died {
            return;
        }
        if !is_confirmed {
            lockgate.ask("promote", &json!({ "deployment": live.id })).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_an_app_is_removed_nothing_leads_to_it_and_the_removal_can_be_asked_for_again() {
    for point in ["instance.stop.intended", "instance.stopped", "instance.removed"] {
        let mut lockgate = Lockgate::start(&format!("{point}=kill@1")).await;
        let config: Value =
            serde_json::from_str(&std::fs::read_to_string(lockgate.config()).unwrap()).unwrap();
        let web = &config["apps"]["web"];
        let settings = json!({ "command": web["command"], "health": web["health"], "deploy": web["deploy"] });
        let mut put = json!({ "hosts": [{ "host": "other.test" }], "settings": settings });
        put["env"] = web["env"].clone();
        let _made: App = lockgate.client.put("/v1/apps/other", &put).await.unwrap();
        let deployed: Result<Operation, _> =
            lockgate.client.post("/v1/apps/other/deployments?wait=true", &json!({})).await;
        deployed.unwrap();
        assert!(lockgate.version("other.test").await.is_ok());
        let removed = lockgate.cli(&["app", "remove", "other", "--detach"]);
        // It may die before it has answered: then whoever asked is told that it is away.
        assert!([Some(0), Some(4)].contains(&removed.status.code()), "{point}: {removed:?}");
        eventually(&format!("{point}: it dies"), async || lockgate.has_ended()).await;
        lockgate.spawn("").await;
        assert_eq!(lockgate.version("other.test").await, Err("status 404".to_owned()), "{point}");
        let again = lockgate.cli(&["app", "remove", "other"]);
        assert!([Some(0), Some(3)].contains(&again.status.code()), "{point}: {again:?}");
        let gone = lockgate.client.get::<App>("/v1/apps/other").await;
        assert!(matches!(gone, Err(ClientError::Refused(problem)) if problem.status == 404), "{point}");
        eventually(&format!("{point}: no process is left"), async || lockgate.running().await == 0).await;
    }
}
