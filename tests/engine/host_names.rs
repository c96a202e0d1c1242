//! Generated host names: which never move, which follow what, and what becomes of a name that is not free.

use lockgate::store::GitFacts;

use super::*;

const COMMIT: &str = "1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d";

async fn with_apex() -> Bed {
    let options = Options { apex: Some("apps.test".parse().unwrap()), ..Options::default() };
    Bed::with_options(options, |settings| settings.deploy.watch = Delay::seconds(0)).await
}

fn of(branch: &str, commit: Option<&str>, command: &[&str]) -> DeployRequest {
    let git = GitFacts {
        branch: Some(branch.to_owned()),
        commit: commit.map(str::to_owned),
        ..GitFacts::default()
    };
    DeployRequest { git, ..request(command) }
}

impl Bed {
    async fn made(&self, request: DeployRequest) -> DeploymentId {
        let mut submitted = self.try_submit(request).await.unwrap();
        let operation = self.ended(&mut submitted).await;
        assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
        submitted.deployment.unwrap()
    }

    /// The deployment's host names that begin so.
    fn hosts_like(&self, deployment: DeploymentId, start: &str) -> Vec<String> {
        self.engine.hosts(deployment).into_iter().filter(|host| host.starts_with(start)).collect()
    }

    async fn put(&self, name: &str, hosts: &[&str]) -> Result<(), Denied> {
        let mut app = self.store.app(&app()).await.unwrap().unwrap();
        app.name = name.parse().unwrap();
        let row = |host: &&str| HostRow { host: (*host).to_owned(), path: "/".into(), strip: false };
        app.hosts = hosts.iter().map(row).collect();
        self.engine.put_apps(&[app]).await
    }
}

#[tokio::test]
async fn the_name_of_a_commit_stays_with_its_first_deployment() {
    let bed = with_apex().await;
    let first = bed.made(of("main", Some(COMMIT), &["serve", "1"])).await;
    let again = bed.made(of("main", Some(COMMIT), &["serve", "2"])).await;
    assert_eq!(bed.serves("web-git-1a2b3c4.apps.test"), Ok(first.to_string()), "the commit's name moved");
    let other = bed.hosts_like(again, "web-git-1a2b3c4-");
    assert_eq!(other.len(), 1, "{:?}", bed.engine.hosts(again));
    assert_eq!(bed.serves(&other[0]), Ok(again.to_string()));
    // Nor by a swap back and forth.
    for to in [first, again] {
        let mut swapped = bed.swap(to).await.unwrap();
        assert_eq!(bed.ended(&mut swapped).await.state, OperationState::Succeeded);
        assert_eq!(bed.serves("web.apps.test"), Ok(to.to_string()));
        assert_eq!(bed.serves("web-git-1a2b3c4.apps.test"), Ok(first.to_string()));
        assert_eq!(bed.serves(&other[0]), Ok(again.to_string()));
        assert_eq!(bed.hosts_like(again, "web-git-1a2b3c4-"), other, "it got another one");
    }
    let bed = bed.restart().await;
    assert_eq!(bed.serves("web-git-1a2b3c4.apps.test"), Ok(first.to_string()));
}

#[tokio::test]
async fn the_name_of_a_branch_follows_its_newest_whatever_is_live() {
    let bed = with_apex().await;
    let host = "web-git-main.apps.test";
    let first = bed.made(of("main", None, &["serve", "1"])).await;
    assert_eq!(bed.serves(host), Ok(first.to_string()));
    let second = bed.made(DeployRequest { cutover: false, ..of("main", None, &["serve", "2"]) }).await;
    assert_eq!(bed.serves(HOST), Ok(first.to_string()));
    assert_eq!(bed.serves(host), Ok(second.to_string()), "ready and newer, though not live");
    let other = bed.made(of("other", None, &["serve", "3"])).await;
    assert_eq!(bed.serves(HOST), Ok(other.to_string()));
    let mut back = bed.swap(first).await.unwrap();
    assert_eq!(bed.ended(&mut back).await.state, OperationState::Succeeded);
    assert_eq!(bed.serves(HOST), Ok(first.to_string()));
    assert_eq!(bed.serves(host), Ok(second.to_string()), "a swap moved the branch");
}

#[tokio::test]
async fn branches_that_look_alike_have_names_of_their_own() {
    let bed = with_apex().await;
    let one = bed.made(of("feat/x", None, &["serve", "1"])).await;
    let two = bed.made(of("feat-x", None, &["serve", "2"])).await;
    assert_eq!(bed.serves("web-git-feat-x.apps.test"), Ok(one.to_string()));
    let exact = bed.hosts_like(two, "web-git-feat-x-");
    assert_eq!(exact.len(), 1);
    let newer = bed.made(of("feat-x", None, &["serve", "3"])).await;
    assert_eq!(bed.serves(&exact[0]), Ok(newer.to_string()), "its branch's newest");
    assert_eq!(bed.serves("web-git-feat-x.apps.test"), Ok(one.to_string()));
}

#[tokio::test]
async fn a_name_that_another_app_has_is_not_taken_over() {
    let bed = with_apex().await;
    // As text, the name of branch `main` of `web` is the live one of an app `web-git-main`.
    bed.put("web-git-main", &[]).await.unwrap();
    let named = DeployRequest { app: Some("web-git-main".parse().unwrap()), ..request(&["serve", "other"]) };
    let theirs = bed.made(named).await;
    assert_eq!(bed.serves("web-git-main.apps.test"), Ok(theirs.to_string()));
    let ours = bed.made(of("main", None, &["serve", "1"])).await;
    assert_eq!(bed.serves("web-git-main.apps.test"), Ok(theirs.to_string()), "taken over");
    let exact = bed.hosts_like(ours, "web-git-main-");
    assert_eq!(exact.len(), 1, "{:?}", bed.engine.hosts(ours));
    assert_eq!(bed.serves(&exact[0]), Ok(ours.to_string()));

    // A chosen host name that is given out already is refused, and says whose it is.
    let denied = bed.put("third", &["web.apps.test"]).await.unwrap_err();
    assert!(matches!(&denied, Denied::HostTaken { owner, .. } if *owner == app()), "{denied:?}");
    assert_eq!(denied.code(), "host_taken");
    assert_eq!(bed.serves("web.apps.test"), Ok(ours.to_string()));
}

#[tokio::test]
async fn a_chosen_host_that_looks_generated_keeps_leading_to_what_is_live() {
    let bed = with_apex().await;
    bed.put("web", &[HOST, "web-git-main.apps.test"]).await.unwrap();
    let first = bed.made(of("main", None, &["serve", "1"])).await;
    let second = bed.made(DeployRequest { cutover: false, ..of("main", None, &["serve", "2"]) }).await;
    assert_eq!(bed.serves("web-git-main.apps.test"), Ok(first.to_string()));
    assert_eq!(bed.hosts_like(second, "web-git-main-").len(), 1);
}

#[tokio::test]
async fn an_archived_deployment_gives_its_names_back_and_its_branch_to_the_next_newest() {
    let bed = with_apex().await;
    let first = bed.made(of("main", Some(COMMIT), &["serve", "1"])).await;
    let second = bed.made(DeployRequest { cutover: false, ..of("main", None, &["serve", "2"]) }).await;
    let own = bed.hosts_like(second, &format!("web-{}", second.short()))[0].clone();
    let request = lockgate::deploy::ScheduleRequest {
        state: lockgate::deploy::ScheduledState::Archived,
        delay: Delay::seconds(0),
        overwrite: true,
    };
    let held = bed.request("web-git-main.apps.test");
    assert_eq!(bed.serves("web-git-main.apps.test"), Ok(second.to_string()));
    bed.engine.schedule(second, &request).await.unwrap();
    eventually("the branch leads to the next newest", async || {
        bed.serves("web-git-main.apps.test") == Ok(first.to_string())
    })
    .await;
    assert_eq!(bed.engine.hosts(second), Vec::<String>::new());
    assert!(!bed.runtime.of(second).is_empty(), "removed under a request");
    assert_eq!(bed.serves(&own), Err(Miss::NoRoute));
    drop(held);
    eventually("its instance goes", async || bed.runtime.of(second).is_empty()).await;
    let bed = bed.restart().await;
    assert_eq!(bed.serves("web-git-main.apps.test"), Ok(first.to_string()));
    assert_eq!(bed.serves("web-git-1a2b3c4.apps.test"), Ok(first.to_string()));
}

#[tokio::test]
async fn a_version_that_did_not_hold_leaves_no_name_behind() {
    let options = Options { apex: Some("apps.test".parse().unwrap()), ..Options::default() };
    let bed = Bed::with_options(options, |settings| settings.deploy.watch = Delay::seconds(60)).await;
    let mut first = bed.try_submit(of("main", None, &["serve", "1"])).await.unwrap();
    eventually("it has held", async || {
        bed.clock.leap(Duration::from_secs(60));
        first.reached(Progress::Running).await == Progress::Ended
    })
    .await;
    let (first, rows) = (first.deployment.unwrap(), bed.store.routes().await.unwrap().len());
    let mut second = bed.try_submit(of("main", Some(COMMIT), &["serve", "2"])).await.unwrap();
    let new = second.deployment.unwrap();
    eventually("it serves", async || bed.serves("web-git-main.apps.test") == Ok(new.to_string())).await;
    bed.runtime.end(bed.runtime.of(new)[0]);
    assert_eq!(bed.ended(&mut second).await.state, OperationState::RolledBack);
    for host in [HOST, "web.apps.test", "web-git-main.apps.test"] {
        assert_eq!(bed.serves(host), Ok(first.to_string()), "{host}");
    }
    assert_eq!(bed.serves("web-git-1a2b3c4.apps.test"), Err(Miss::NoRoute));
    assert_eq!(bed.store.routes().await.unwrap().len(), rows);
}
