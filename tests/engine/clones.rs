//! Versions that are deployed again: as a preview, and from a preview into production.

use lockgate::deploy::{Gate, PromoteRequest};
use lockgate::ids::EphemeralLabel;
use lockgate::settings::Secret;
use lockgate::store::GitFacts;

use super::*;

const HOUR: Delay = Delay::seconds(3600);

fn clone_of(version: DeploymentId, label: &str) -> DeployRequest {
    DeployRequest {
        app: Some(app()),
        version: Some(version),
        label: Some(label.parse().unwrap()),
        ttl: Some(HOUR),
        ..DeployRequest::default()
    }
}

fn env(value: &str) -> lockgate::store::Env {
    [("WHO".to_owned(), Secret::new(value))].into()
}

impl Bed {
    async fn done(&self, request: DeployRequest) -> DeploymentId {
        let mut submitted = self.try_submit(request).await.unwrap();
        let operation = self.ended(&mut submitted).await;
        assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
        submitted.deployment.unwrap()
    }

    async fn of(&self, id: DeploymentId) -> lockgate::store::Deployment {
        self.store.deployment(&id).await.unwrap().unwrap()
    }

    async fn promote_preview(&self, label: &str) -> Result<Submitted, Denied> {
        let label: EphemeralLabel = label.parse().unwrap();
        let request = PromoteRequest {
            app: Some(app()),
            environment: None,
            deployment: None,
            from_preview: Some(label),
            queue: true,
        };
        self.engine.submit(Command::Promote(request), caller()).await
    }
}

#[tokio::test]
async fn a_clone_has_all_of_its_version_and_leaves_it_and_what_is_live_alone() {
    let bed = Bed::new().await;
    let git = GitFacts { branch: Some("main".to_owned()), ..GitFacts::default() };
    let first = DeployRequest { env: env("one"), git: git.clone(), ..request(&["serve", "1"]) };
    let source = bed.done(first).await;
    let (live, _) = bed.deploy(&["serve", "2"]).await;
    // What the app says by now is of no account.
    let mut changed = bed.store.app(&app()).await.unwrap().unwrap();
    changed.settings.health.path = Some("/other".to_owned());
    bed.engine.put_apps(&[changed]).await.unwrap();
    let before = bed.of(source).await;

    let clone = bed.done(clone_of(source, "old")).await;
    assert_eq!(bed.serves("old.web.test"), Ok(clone.to_string()));
    assert_eq!(bed.serves(HOST), Ok(live.to_string()));
    let made = bed.of(clone).await;
    assert_eq!((&made.settings, &made.pinned, &made.git), (&before.settings, &before.pinned, &git));
    assert_eq!(made.settings.env["WHO"].expose(), "one");
    assert_eq!(bed.of(source).await, before);
    assert_eq!(bed.of(live).await.status, DeploymentStatus::Ready);

    // Added env vars are the clone's alone.
    let other = bed.done(DeployRequest { env: env("two"), ..clone_of(source, "other") }).await;
    assert_eq!(bed.of(other).await.settings.env["WHO"].expose(), "two");
    assert_eq!(bed.of(source).await, before);
}

#[tokio::test]
async fn an_archived_version_can_be_deployed_again() {
    let bed = Bed::new().await;
    let (first, _) = bed.deploy(&["serve", "1"]).await;
    bed.deploy(&["serve", "2"]).await;
    let now = lockgate::deploy::ScheduleRequest {
        state: lockgate::deploy::ScheduledState::Archived,
        delay: Delay::seconds(0),
        overwrite: true,
    };
    bed.engine.schedule(first, &now).await.unwrap();
    eventually("it is gone", async || bed.runtime.of(first).is_empty()).await;
    let again = DeployRequest { label: None, ttl: None, ..clone_of(first, "x") };
    let again = bed.done(again).await;
    assert_eq!(bed.serves(HOST), Ok(again.to_string()));
    assert_eq!(bed.of(again).await.settings.command, ["serve", "1"]);
    assert_eq!(bed.status(first).await.1, DesiredState::Archived);
}

#[tokio::test]
async fn what_never_was_ready_or_is_another_apps_is_not_cloned() {
    let bed = Bed::new().await;
    let (failed, _) = bed.deploy(&["exit", ""]).await;
    let denied = bed.try_submit(clone_of(failed, "x")).await.unwrap_err();
    assert!(matches!(denied, Denied::DeploymentNotReady { .. }), "{denied:?}");
    let (live, _) = bed.deploy(&["serve", "1"]).await;
    let mut other = bed.store.app(&app()).await.unwrap().unwrap();
    other.name = "other".parse().unwrap();
    other.hosts = Vec::new();
    bed.engine.put_apps(&[other]).await.unwrap();
    let named = DeployRequest { app: Some("other".parse().unwrap()), ..clone_of(live, "x") };
    let denied = bed.try_submit(named).await.unwrap_err();
    assert!(matches!(denied, Denied::DeploymentNotFound { .. }), "{denied:?}");
    let both = DeployRequest { command: Some(vec!["serve".to_owned()]), ..clone_of(live, "x") };
    let denied = bed.try_submit(both).await.unwrap_err();
    assert!(matches!(&denied, Denied::Invalid { field, .. } if field == "version"), "{denied:?}");
}

#[tokio::test]
async fn a_version_whose_program_is_another_by_now_is_not_passed_off_as_it() {
    let bed = Bed::new().await;
    let (live, _) = bed.deploy(&["serve", "1"]).await;
    bed.runtime.change_programs();
    let mut submitted = bed.try_submit(clone_of(live, "x")).await.unwrap();
    let operation = bed.ended(&mut submitted).await;
    assert_eq!(operation.failure.unwrap().code, "version_changed");
    assert_eq!(bed.serves("x.web.test"), Err(Miss::EphemeralUnknown));
    assert_eq!(bed.runtime.known(), 1);
}

#[tokio::test]
async fn a_promoted_preview_is_the_same_program_with_the_settings_of_production() {
    let bed = Bed::with(|settings| settings.env = env("production")).await;
    let (before, _) = bed.deploy(&["serve", "1"]).await;
    let preview = DeployRequest {
        label: Some("feat".parse().unwrap()),
        ttl: Some(HOUR),
        env: env("preview"),
        ..request(&["serve", "2"])
    };
    let preview = bed.done(preview).await;
    let mut promoted = bed.promote_preview("feat").await.unwrap();
    assert_eq!(bed.ended(&mut promoted).await.state, OperationState::Succeeded);
    let live = promoted.deployment.unwrap();
    assert_eq!(bed.serves(HOST), Ok(live.to_string()));
    assert_eq!(bed.serves("feat.web.test"), Ok(preview.to_string()), "the preview goes on");
    let (made, of_preview) = (bed.of(live).await, bed.of(preview).await);
    assert!(live != preview && live != before);
    assert_eq!((&made.pinned, made.label), (&of_preview.pinned, None));
    assert_eq!(made.settings.command, ["serve", "2"]);
    assert_eq!(made.settings.env["WHO"].expose(), "production");
    assert_eq!(of_preview.settings.env["WHO"].expose(), "preview");

    let denied = bed.promote_preview("nobody").await.unwrap_err();
    assert_eq!((denied.code(), matches!(denied, Denied::LabelNotFound { .. })), ("ephemeral_unknown", true));
}

#[tokio::test]
async fn a_promoted_preview_ends_a_rollback_as_every_promote_does() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "1"]).await;
    let (left, _) = bed.deploy(&["serve", "2"]).await;
    bed.done(DeployRequest { label: Some("feat".parse().unwrap()), ..request(&["serve", "3"]) }).await;
    let request = lockgate::deploy::RollbackRequest { app: Some(app()), ..Default::default() };
    let mut back = bed.engine.submit(Command::Rollback(request), caller()).await.unwrap();
    bed.ended(&mut back).await;
    let mut promoted = bed.promote_preview("feat").await.unwrap();
    assert_eq!(bed.ended(&mut promoted).await.state, OperationState::Succeeded);
    assert_eq!(bed.serves(HOST), Ok(promoted.deployment.unwrap().to_string()));
    let production = bed.store.environment(&app(), &EnvironmentName::production()).await.unwrap().unwrap();
    assert!(!production.rolled_back);
    let timers = bed.store.timers().await.unwrap();
    assert!(timers.iter().any(|timer| timer.deployment == left), "what was rolled back never sleeps");
    // An expired one is not promoted.
    bed.clock.leap(Duration::from_secs(25 * 3600));
    let denied = bed.promote_preview("feat").await.unwrap_err();
    assert!(!matches!(denied, Denied::Gate(Gate::DeploymentIsLive)), "{denied:?}");
    assert_eq!(denied.code(), "ephemeral_unknown");
}
