//! Ephemeral deployments: how many there are, when they end, and what takes their place.

use lockgate::deploy::{RestReceipt, ScheduledState};
use lockgate::routing::backend::Order;
use lockgate::store::{Of, OperationKind, Page};

use super::*;

const HOUR: u64 = 3600;

fn labelled(label: &str, ttl: u64, command: &[&str]) -> DeployRequest {
    DeployRequest { label: Some(label.parse().unwrap()), ttl: Some(Delay::seconds(ttl)), ..request(command) }
}

fn host(label: &str) -> String {
    format!("{label}.{HOST}")
}

async fn at_most(max: usize) -> Bed {
    Bed::with_options(Options { ephemeral_max_per_app: max, ..Options::default() }, |_| {}).await
}

impl Bed {
    async fn preview(&self, label: &str, ttl: u64, command: &[&str]) -> (DeploymentId, Operation) {
        let mut submitted = self.try_submit(labelled(label, ttl, command)).await.unwrap();
        let operation = self.ended(&mut submitted).await;
        (submitted.deployment.unwrap(), operation)
    }

    /// What the history says of its rest or its end: what kind of, by whose word, and the rest.
    async fn noted(&self, deployment: DeploymentId, kind: OperationKind) -> (String, RestReceipt) {
        let mut noted = None;
        eventually("it is in the history", async || {
            // Whatever still drains has no time left.
            self.clock.leap(Duration::from_secs(60));
            let page = Page { offset: 0, limit: 100 };
            let all = self.store.operations(&Of::default(), page).await.unwrap();
            let mut of_it =
                all.into_iter().filter(|one| one.kind == kind && one.deployment == Some(deployment));
            noted = of_it.next();
            assert_eq!(of_it.next(), None, "it is there twice");
            noted.is_some()
        })
        .await;
        let noted = noted.unwrap();
        assert_eq!(noted.state, OperationState::Succeeded);
        (noted.actor, serde_json::from_str(&noted.receipt.unwrap()).unwrap())
    }

    fn runs(&self, deployment: DeploymentId) -> bool {
        self.runtime.of(deployment).first().is_some_and(|id| self.runtime.running().contains(id))
    }
}

#[tokio::test]
async fn past_the_cap_the_one_that_expires_soonest_goes_once_the_new_one_is_ready() {
    let bed = at_most(2).await;
    let (live, _) = bed.deploy(&["serve", "live"]).await;
    let (longest, _) = bed.preview("longest", 3 * HOUR, &["serve", "1"]).await;
    let (soonest, _) = bed.preview("soonest", HOUR, &["serve", "2"]).await;

    let (_, failed) = bed.preview("bad", 2 * HOUR, &["exit", ""]).await;
    assert_eq!(failed.state, OperationState::Failed);
    assert_eq!(bed.serves(&host("soonest")), Ok(soonest.to_string()), "evicted for one that never was ready");

    let mut submitted =
        bed.try_submit(labelled("new", 2 * HOUR, &["answers", "500", "500", "200"])).await.unwrap();
    let new = submitted.deployment.unwrap();
    while submitted.reached(Progress::Running).await < Progress::Ended {
        if bed.serves(&host("new")).is_err() {
            assert_eq!(bed.serves(&host("soonest")), Ok(soonest.to_string()), "evicted before that");
        }
        tokio::task::yield_now().await;
    }
    let operation = bed.ended(&mut submitted).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert_eq!(bed.serves(&host("new")), Ok(new.to_string()));
    assert_eq!(bed.serves(&host("soonest")), Err(Miss::EphemeralUnknown));
    assert_eq!(bed.serves(&host("longest")), Ok(longest.to_string()));
    assert_eq!(bed.serves(HOST), Ok(live.to_string()));
    eventually("its instance is removed", async || bed.runtime.of(soonest).is_empty()).await;
    assert_eq!(bed.status(soonest).await.1, DesiredState::Archived);
    let events = bed.store.events(Some(&operation.id), 0, 100).await.unwrap();
    let named = format!("evicted soonest ({soonest})");
    assert!(events.iter().any(|event| event.text == named), "{events:?}");
}

#[tokio::test]
async fn twenty_at_once_end_with_the_ten_that_the_cap_allows() {
    let bed = Bed::new().await;
    let labels: Vec<String> = (0..20).map(|n| format!("p{n}")).collect();
    let asked = labels.iter().map(|label| bed.try_submit(labelled(label, HOUR, &["serve", label])));
    for submitted in &mut futures_util::future::join_all(asked).await {
        let submitted = submitted.as_mut().unwrap();
        assert_eq!(bed.ended(submitted).await.state, OperationState::Succeeded);
    }
    assert_eq!(labels.iter().filter(|label| bed.serves(&host(label)).is_ok()).count(), 10);
    eventually("the others are removed", async || bed.runtime.known() == 10).await;
}

/// The same from two environments at once: their operations do not wait for each other.
#[tokio::test]
async fn the_cap_is_the_apps_whatever_environments_the_previews_are_in() {
    let bed = at_most(3).await;
    let into = |n: usize| {
        let environment = n.is_multiple_of(2).then(|| "staging".parse().unwrap());
        DeployRequest { environment, ..labelled(&format!("p{n}"), HOUR, &["serve", "1"]) }
    };
    let asked = (0..12).map(|n| bed.try_submit(into(n)));
    for submitted in &mut futures_util::future::join_all(asked).await {
        assert_eq!(bed.ended(submitted.as_mut().unwrap()).await.state, OperationState::Succeeded);
    }
    assert_eq!((0..12).filter(|n| bed.serves(&host(&format!("p{n}"))).is_ok()).count(), 3);
    eventually("the others are removed", async || bed.runtime.known() == 3).await;
}

/// `LOCKGATE_PREVIEWS` sets how many there are.
#[tokio::test]
async fn of_many_previews_that_expired_nothing_is_left() {
    let many = std::env::var("LOCKGATE_PREVIEWS").ok().and_then(|text| text.parse().ok()).unwrap_or(64);
    let bed = at_most(many).await;
    bed.deploy(&["serve", "live"]).await;
    let (routes, patterns) = (bed.store.routes().await.unwrap(), bed.routing.table().iter().count());
    let labels: Vec<String> = (0..many).map(|n| format!("p{n}")).collect();
    let mut targets = Vec::with_capacity(many);
    // As many as may wait in line.
    for some in labels.chunks(30) {
        let asked = some.iter().map(|label| bed.try_submit(labelled(label, HOUR, &["serve", label])));
        for submitted in &mut futures_util::future::join_all(asked).await {
            let submitted = submitted.as_mut().unwrap();
            assert_eq!(bed.ended(submitted).await.state, OperationState::Succeeded);
        }
        let first = |label: &String| Arc::downgrade(&bed.backend(&host(label)).unwrap().targets[0]);
        targets.extend(some.iter().map(first));
    }
    assert_eq!(bed.runtime.known(), many + 1);
    bed.clock.leap(Duration::from_secs(HOUR));
    let expired = labels.iter().filter(|label| bed.serves(&host(label)) == Err(Miss::EphemeralExpired));
    assert_eq!(expired.count(), many, "at once");
    while bed.runtime.known() > 1 {
        let left = bed.runtime.known();
        eventually("another one is removed", async || bed.runtime.known() < left).await;
    }
    eventually("no row is left", async || bed.store.instances(None).await.unwrap().len() == 1).await;
    assert!(bed.store.ephemerals(None).await.unwrap().is_empty());
    assert_eq!(bed.store.routes().await.unwrap(), routes);
    assert_eq!(bed.routing.table().iter().count(), patterns);
    eventually("nothing remembers where they were", async || {
        // The cache drops what is older when its time comes.
        bed.clock.leap(Duration::from_secs(1));
        targets.iter().all(|target| target.strong_count() == 0)
    })
    .await;
}

#[tokio::test]
async fn at_its_time_a_label_is_expired_at_once_and_its_instance_goes_after_its_last_request() {
    let bed = Bed::new().await;
    let (live, _) = bed.deploy(&["serve", "live"]).await;
    bed.clock.stop();
    let (preview, _) = bed.preview("feat", HOUR, &["serve", "1"]).await;
    let held = bed.request(&host("feat"));
    bed.clock.leap(Duration::from_secs(HOUR - 1));
    assert_eq!(bed.serves(&host("feat")), Ok(preview.to_string()));
    bed.clock.leap(Duration::from_secs(1));
    // Nothing else has run since: no sweep is needed for that.
    assert_eq!(bed.serves(&host("feat")), Err(Miss::EphemeralExpired));
    eventually("it is swept", async || bed.status(preview).await.1 == DesiredState::Archived).await;
    bed.looked().await;
    assert!(bed.runs(preview), "stopped under a request");
    drop(held);
    eventually("its instance is removed", async || bed.runtime.of(preview).is_empty()).await;
    assert_eq!(bed.serves(&host("feat")), Err(Miss::EphemeralExpired), "it was there once");
    assert_eq!(bed.serves(HOST), Ok(live.to_string()));
}

#[tokio::test]
async fn one_that_takes_a_label_over_gets_new_requests_and_the_old_one_drains() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "live"]).await;
    let (old, _) = bed.preview("feat", HOUR, &["serve", "1"]).await;
    let (_, failed) = bed.preview("feat", HOUR, &["exit", ""]).await;
    assert_eq!(failed.state, OperationState::Failed);
    assert_eq!(bed.serves(&host("feat")), Ok(old.to_string()), "replaced by one that never was ready");

    let target = bed.backend(&host("feat")).unwrap().targets[0].clone();
    let held = bed.request(&host("feat"));
    let mut submitted = bed.try_submit(labelled("feat", HOUR, &["serve", "2"])).await.unwrap();
    let new = submitted.deployment.unwrap();
    while submitted.reached(Progress::Running).await < Progress::Ended {
        assert!(bed.serves(&host("feat")).is_ok(), "the label led nowhere");
        tokio::task::yield_now().await;
    }
    assert_eq!(bed.serves(&host("feat")), Ok(new.to_string()));
    eventually("its gate is shut", async || target.gate.is_closed()).await;
    bed.looked().await;
    assert!(bed.runs(old), "stopped under a request");
    drop(held);
    eventually("the old one is removed", async || bed.runtime.of(old).is_empty()).await;
    assert_eq!(bed.status(old).await.1, DesiredState::Archived);
    assert_eq!(bed.serves(&host("feat")), Ok(new.to_string()));
}

#[tokio::test]
async fn one_that_sleeps_expires_and_is_replaced_like_any_other() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "live"]).await;
    bed.clock.stop();
    let (expires, _) = bed.preview("expires", HOUR, &["serve", "1"]).await;
    let (replaced, _) = bed.preview("replaced", 3 * HOUR, &["serve", "2"]).await;
    for preview in [expires, replaced] {
        bed.schedule(preview, ScheduledState::Standby, Delay::seconds(1)).await.unwrap();
    }
    bed.clock.leap(Duration::from_secs(2));
    for preview in [expires, replaced] {
        eventually("it sleeps", async || {
            bed.clock.leap(Duration::from_secs(1));
            bed.status(preview).await.1 == DesiredState::Standby && !bed.runs(preview)
        })
        .await;
    }
    let (new, _) = bed.preview("replaced", 3 * HOUR, &["serve", "3"]).await;
    bed.clock.leap(Duration::from_secs(HOUR));
    for preview in [expires, replaced] {
        eventually("it is removed", async || {
            bed.clock.leap(Duration::from_secs(1));
            bed.status(preview).await.1 == DesiredState::Archived && bed.runtime.of(preview).is_empty()
        })
        .await;
    }
    assert_eq!(bed.serves(&host("replaced")), Ok(new.to_string()));
}

#[tokio::test]
async fn the_history_says_by_whose_word_a_version_rests_or_is_gone() {
    let bed = at_most(2).await;
    bed.deploy(&["serve", "live"]).await;
    let (evicted, _) = bed.preview("soon", 100 * HOUR, &["serve", "1"]).await;
    let (replaced, _) = bed.preview("feat", 200 * HOUR, &["serve", "2"]).await;
    let (kept, by) = bed.preview("feat", 300 * HOUR, &["serve", "3"]).await;
    let (more, evicted_by) = bed.preview("more", 300 * HOUR, &["serve", "4"]).await;
    bed.schedule(kept, ScheduledState::Standby, Delay::seconds(0)).await.unwrap();
    let cases = [
        (replaced, OperationKind::Archive, by.id.to_string(), format!("replaced by {kept}")),
        (evicted, OperationKind::Archive, evicted_by.id.to_string(), format!("evicted for {more}")),
        (kept, OperationKind::Standby, "timer".to_owned(), "its timer was due at".to_owned()),
    ];
    for (deployment, kind, actor, reason) in cases {
        let noted = bed.noted(deployment, kind).await;
        assert_eq!(noted.0, actor, "{noted:?}");
        assert!(noted.1.reason.starts_with(&reason), "{noted:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_expired_preview_cut_is_in_the_history() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "live"]).await;
    let plane = plane::Plane::before(&bed);
    let (preview, _) = bed.preview("feat", HOUR, &["stall", "1"]).await;
    let asked = plane.ask_at(&host("feat"), "").await;
    eventually("it is in flight", async || bed.runtime.stalled() == 1).await;
    let target = bed.backend(&host("feat")).unwrap().targets[0].clone();
    bed.clock.leap(Duration::from_secs(HOUR));
    eventually("it is to be cut", async || {
        let is_told = target.order() >= Order::CutRequests;
        if !is_told {
            bed.clock.leap(Duration::from_secs(1));
        }
        is_told
    })
    .await;
    // By a worker, which needs its turn: no time is taken from it.
    let answer = plane::Plane::rest(asked).await;
    assert!(answer.contains("drain_cut"), "{answer}");
    let (actor, receipt) = bed.noted(preview, OperationKind::Archive).await;
    assert_eq!((actor.as_str(), receipt.desired_state), ("expiry", DesiredState::Archived));
    assert_eq!((receipt.drained.requests, receipt.cut.len()), (0, 1), "{receipt:?}");
    assert_eq!((receipt.cut[0].method.as_str(), receipt.cut[0].host.as_str()), ("GET", "feat.web.test"));
    plane.shutdown().await;
}

/// Fixed fault: reconcile, which sees what the store has, was faster than who had decided, and the history named it.
#[cfg(feature = "fault")]
#[tokio::test]
async fn what_reconcile_finishes_is_in_the_history_by_the_word_of_who_decided_it() {
    use lockgate::fault::{Springs, Trap};
    let bed = Bed::new().await;
    bed.deploy(&["serve", "live"]).await;
    let (preview, _) = bed.preview("feat", HOUR, &["serve", "1"]).await;
    let trap = Trap::at("label.archived", Springs::Once);
    bed.clock.leap(Duration::from_secs(HOUR));
    eventually("it is decided", async || trap.sprung().is_some()).await;
    bed.looked().await;
    assert_eq!(bed.noted(preview, OperationKind::Archive).await.0, "expiry");
}

/// Fixed fault: the deploy failed then, and what it had replaced ran on.
#[cfg(feature = "fault")]
#[tokio::test]
async fn what_fails_once_behind_a_label_that_is_ready_is_tried_again() {
    use lockgate::fault::{Springs, Trap};
    let bed = Bed::new().await;
    bed.deploy(&["serve", "live"]).await;
    let (mut last, _) = bed.preview("feat", HOUR, &["serve", "0"]).await;
    for point in ["label.ready", "label.led", "label.archived", "label.replaced"] {
        let trap = Trap::at(point, Springs::Once);
        let (new, operation) = bed.preview("feat", HOUR, &["serve", point]).await;
        assert_eq!(trap.sprung(), Some(point));
        assert_eq!(operation.state, OperationState::Succeeded, "{point}");
        assert_eq!(bed.serves(&host("feat")), Ok(new.to_string()));
        let gone = (DeploymentStatus::Ready, DesiredState::Archived);
        eventually("what it replaced is gone", async || {
            bed.status(last).await == gone && bed.runtime.of(last).is_empty()
        })
        .await;
        last = new;
    }
}

/// Fixed fault: the lanes are those of environments, and the labels are the app's.
#[tokio::test]
async fn an_older_deploy_of_another_environment_that_ends_late_does_not_take_the_label() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "live"]).await;
    bed.runtime.set_starts_sick(true);
    let staging = DeployRequest {
        environment: Some("staging".parse().unwrap()),
        ..labelled("feat", HOUR, &["serve", "1"])
    };
    let mut older = bed.try_submit(staging).await.unwrap();
    let of_older = || bed.runtime.of(older.deployment.unwrap());
    eventually("it is started", async || !of_older().is_empty()).await;
    let instance = of_older()[0];
    bed.runtime.set_starts_sick(false);
    let (newer, _) = bed.preview("feat", HOUR, &["serve", "2"]).await;
    bed.runtime.set_sick(instance, false);
    assert_eq!(bed.ended(&mut older).await.state, OperationState::Superseded);
    assert_eq!(bed.serves(&host("feat")), Ok(newer.to_string()));
    assert_eq!(bed.status(newer).await, (DeploymentStatus::Ready, DesiredState::Running));
}

#[tokio::test]
async fn a_label_that_is_deployed_again_has_a_whole_new_time() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "live"]).await;
    bed.preview("feat", HOUR, &["serve", "1"]).await;
    bed.clock.leap(Duration::from_secs(HOUR - 60));
    let (new, _) = bed.preview("feat", HOUR, &["serve", "2"]).await;
    bed.clock.leap(Duration::from_secs(HOUR - 60));
    bed.looked().await;
    assert_eq!(bed.serves(&host("feat")), Ok(new.to_string()), "it ended with the time of the first one");
    bed.clock.leap(Duration::from_secs(61));
    assert_eq!(bed.serves(&host("feat")), Err(Miss::EphemeralExpired));
}
