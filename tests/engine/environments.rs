//! Environments for previews: made by a deploy, with what is live in them and host names of their own, and removed.

use lockgate::deploy::{Gate, PromoteRequest, RollbackRequest};
use lockgate::store::{EnvironmentKind, GitFacts};

use super::*;

async fn with_apex() -> Bed {
    let options = Options { apex: Some("apps.test".parse().unwrap()), ..Options::default() };
    Bed::with_options(options, |settings| settings.deploy.watch = Delay::seconds(0)).await
}

fn staging() -> EnvironmentName {
    "staging".parse().unwrap()
}

fn into_staging(command: &[&str]) -> DeployRequest {
    DeployRequest { environment: Some(staging()), ..request(command) }
}

impl Bed {
    async fn made_in(&self, request: DeployRequest) -> DeploymentId {
        let mut submitted = self.try_submit(request).await.unwrap();
        let operation = self.ended(&mut submitted).await;
        assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
        submitted.deployment.unwrap()
    }

    async fn names(&self) -> Vec<String> {
        let all = self.store.environments(&app()).await.unwrap();
        all.into_iter().map(|environment| environment.name.to_string()).collect()
    }
}

#[tokio::test]
async fn a_deploy_makes_the_environment_that_it_names_and_leaves_production_alone() {
    let bed = with_apex().await;
    let (production, _) = bed.deploy(&["serve", "1"]).await;
    let first = bed.made_in(into_staging(&["serve", "2"])).await;
    let made = bed.store.environment(&app(), &staging()).await.unwrap().unwrap();
    assert_eq!((made.kind, made.live), (EnvironmentKind::Preview, Some(first)));
    for (host, to) in [
        (HOST, production),
        ("web.apps.test", production),
        ("web-production.apps.test", production),
        ("web-staging.apps.test", first),
    ] {
        assert_eq!(bed.serves(host), Ok(to.to_string()), "{host}");
    }
    let second = bed.made_in(into_staging(&["serve", "3"])).await;
    assert_eq!(bed.serves("web-staging.apps.test"), Ok(second.to_string()));
    assert_eq!(bed.store.deployment(&second).await.unwrap().unwrap().sequence, 2);

    // It is gone back in by itself, and never promoted.
    let back = RollbackRequest {
        app: Some(app()),
        environment: Some(staging()),
        source: None,
        target: None,
        queue: true,
    };
    let mut back = bed.engine.submit(Command::Rollback(back), caller()).await.unwrap();
    assert_eq!(bed.ended(&mut back).await.state, OperationState::Succeeded);
    assert_eq!(bed.serves("web-staging.apps.test"), Ok(first.to_string()));
    let (app, deployment) = (Some(app()), Some(second));
    let promote =
        PromoteRequest { app, environment: Some(staging()), deployment, from_preview: None, queue: true };
    let denied = bed.engine.submit(Command::Promote(promote), caller()).await.unwrap_err();
    assert!(matches!(denied, Denied::Gate(Gate::DeploymentNotProduction)), "{denied:?}");
    assert_eq!(bed.serves(HOST), Ok(production.to_string()));
    let bed = bed.restart().await;
    assert_eq!(bed.serves("web-staging.apps.test"), Ok(first.to_string()));
}

#[tokio::test]
async fn only_a_deploy_makes_an_environment_and_only_of_an_app_that_there_is() {
    let bed = with_apex().await;
    let request = RollbackRequest {
        app: Some(app()),
        environment: Some(staging()),
        source: None,
        target: None,
        queue: true,
    };
    let denied = bed.engine.submit(Command::Rollback(request), caller()).await.unwrap_err();
    assert!(matches!(denied, Denied::EnvironmentNotFound { .. }), "{denied:?}");
    let nobody = DeployRequest { app: Some("nobody".parse().unwrap()), ..into_staging(&["serve"]) };
    assert!(matches!(bed.try_submit(nobody).await.unwrap_err(), Denied::AppNotFound { .. }));
    let refused = DeployRequest { command: Some(Vec::new()), ..into_staging(&["serve"]) };
    assert!(matches!(bed.try_submit(refused).await.unwrap_err(), Denied::Invalid { .. }));
    assert_eq!(bed.names().await, ["production"]);
}

#[tokio::test]
async fn the_name_of_a_branch_follows_its_newest_over_all_environments() {
    let bed = with_apex().await;
    let of_main = |request: DeployRequest| {
        let git = GitFacts { branch: Some("main".to_owned()), ..GitFacts::default() };
        DeployRequest { git, ..request }
    };
    let host = "web-git-main.apps.test";
    let first = bed.made_in(of_main(request(&["serve", "1"]))).await;
    let second = bed.made_in(of_main(into_staging(&["serve", "2"]))).await;
    assert_eq!(bed.serves(host), Ok(second.to_string()));
    bed.engine.remove_environment(&app(), &staging()).await.unwrap();
    assert_eq!(bed.serves(host), Ok(first.to_string()), "left behind by the removed environment");
}

#[tokio::test]
async fn a_removed_environment_answers_no_more_and_goes_after_its_last_request() {
    let bed = with_apex().await;
    let (production, _) = bed.deploy(&["serve", "1"]).await;
    let preview = bed.made_in(into_staging(&["serve", "2"])).await;
    let own = format!("web-{}.apps.test", preview.short());
    let held = bed.request("web-staging.apps.test");
    let denied = bed.engine.remove_environment(&app(), &EnvironmentName::production()).await.unwrap_err();
    assert_eq!(denied.code(), "environment_is_production");
    bed.engine.remove_environment(&app(), &staging()).await.unwrap();
    for host in ["web-staging.apps.test", &own] {
        assert_eq!(bed.serves(host), Err(Miss::NoRoute), "{host}");
    }
    bed.looked().await;
    assert_eq!(bed.runtime.running().len(), 2, "stopped under a request");
    drop(held);
    eventually("it is gone", async || bed.names().await == ["production"]).await;
    assert!(bed.runtime.of(preview).is_empty());
    assert!(bed.store.deployment(&preview).await.unwrap().is_none());
    assert_eq!(bed.serves(HOST), Ok(production.to_string()));
    let denied = bed.engine.remove_environment(&app(), &staging()).await.unwrap_err();
    assert!(matches!(denied, Denied::EnvironmentNotFound { .. }), "{denied:?}");

    let again = bed.made_in(into_staging(&["serve", "3"])).await;
    assert_eq!(bed.serves("web-staging.apps.test"), Ok(again.to_string()));
}

#[tokio::test]
async fn a_removal_that_a_restart_interrupts_goes_on_after_it() {
    let bed = with_apex().await;
    bed.deploy(&["serve", "1"]).await;
    let preview = bed.made_in(into_staging(&["serve", "2"])).await;
    // Nothing can be stopped as long as that.
    bed.runtime.set_away(true);
    bed.engine.remove_environment(&app(), &staging()).await.unwrap();
    let bed = bed.restart().await;
    assert_eq!(bed.serves("web-staging.apps.test"), Err(Miss::NoRoute));
    assert_eq!(bed.runtime.of(preview).len(), 1);
    bed.runtime.set_away(false);
    eventually("it is gone", async || {
        bed.clock.leap(Duration::from_secs(20));
        bed.names().await == ["production"]
    })
    .await;
    assert!(bed.runtime.of(preview).is_empty());
}

#[tokio::test]
async fn an_environment_that_is_deployed_to_again_is_not_removed_after_a_restart() {
    let bed = with_apex().await;
    bed.deploy(&["serve", "1"]).await;
    bed.made_in(into_staging(&["serve", "2"])).await;
    // What it has in flight keeps the old version, and with it the environment.
    let held = bed.request("web-staging.apps.test");
    bed.engine.remove_environment(&app(), &staging()).await.unwrap();
    let again = bed.made_in(into_staging(&["serve", "3"])).await;
    drop(held);
    let bed = bed.restart().await;
    bed.looked().await;
    assert_eq!(bed.serves("web-staging.apps.test"), Ok(again.to_string()));
    assert_eq!(bed.names().await, ["production", "staging"]);
}
