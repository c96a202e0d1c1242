//! How long an ephemeral deployment stays: extended, expired, and not evicted where that was asked for.

use super::*;

fn labelled(label: &str, ttl: Delay) -> DeployRequest {
    DeployRequest { label: Some(label.parse().unwrap()), ttl: Some(ttl), ..request(&["serve", label]) }
}

impl Bed {
    async fn ephemeral(&self, label: &str, ttl: Delay) -> DeploymentId {
        let mut submitted = self.try_submit(labelled(label, ttl)).await.unwrap();
        assert_eq!(self.ended(&mut submitted).await.state, OperationState::Succeeded);
        submitted.deployment.unwrap()
    }
}

#[tokio::test]
async fn an_extended_preview_outlives_its_first_expiry_and_an_expired_one_is_not_extended() {
    let bed = Bed::new().await;
    let (live, _) = bed.deploy(&["serve", "1"]).await;
    let kept = bed.ephemeral("kept", Delay::seconds(3600)).await;
    let gone = bed.ephemeral("gone", Delay::seconds(3600)).await;
    bed.engine.extend(kept, Delay::seconds(3 * 3600)).await.unwrap();
    bed.clock.leap(Duration::from_secs(3600));
    eventually("the other one is ended", async || bed.status(gone).await.1 == DesiredState::Archived).await;
    assert_eq!(bed.serves("gone.web.test"), Err(Miss::EphemeralExpired));
    assert_eq!(bed.serves("kept.web.test"), Ok(kept.to_string()));
    assert!(matches!(
        bed.engine.extend(gone, Delay::seconds(60)).await,
        Err(Denied::DeploymentNotReady { .. })
    ));
    assert!(matches!(bed.engine.extend(live, Delay::seconds(60)).await, Err(Denied::NotEphemeral { .. })));
    assert!(matches!(bed.engine.extend(kept, Delay::seconds(0)).await, Err(Denied::Invalid { .. })));
    // The sweep and a restart know of it as well.
    eventually("the expired one is removed", async || bed.runtime.of(gone).is_empty()).await;
    let clock = bed.clock.clone();
    let bed = bed.restart_at(clock).await;
    assert_eq!(bed.serves("kept.web.test"), Ok(kept.to_string()));
}

#[tokio::test]
async fn where_there_are_too_many_one_that_must_not_evict_is_refused() {
    let bed = Bed::new().await;
    for n in 0..10 {
        bed.ephemeral(&format!("p{n}"), Delay::seconds(3600)).await;
    }
    let refused =
        bed.try_submit(DeployRequest { evict: false, ..labelled("more", Delay::seconds(60)) }).await;
    assert!(matches!(refused, Err(Denied::TooManyEphemerals { count: 10 })), "{refused:?}");
    // A label that is there already takes no place.
    let same = bed.try_submit(DeployRequest { evict: false, ..labelled("p3", Delay::seconds(7200)) }).await;
    let mut same = same.unwrap();
    assert_eq!(bed.ended(&mut same).await.state, OperationState::Succeeded);
}

/// Fixed fault: of several on their way none saw the others, and each of them ended another one.
#[tokio::test(flavor = "multi_thread")]
async fn of_twenty_at_once_that_must_not_evict_ten_are_refused_and_nobody_is_evicted() {
    let bed = Bed::new().await;
    let asked = (0..20).map(|n| {
        let request = DeployRequest { evict: false, ..labelled(&format!("p{n}"), Delay::seconds(3600)) };
        bed.try_submit(request)
    });
    let mut made = Vec::new();
    for submitted in futures_util::future::join_all(asked).await {
        match submitted {
            Ok(mut submitted) => {
                assert_eq!(bed.ended(&mut submitted).await.state, OperationState::Succeeded);
                made.push(submitted.deployment.unwrap());
            }
            Err(denied) => assert!(matches!(denied, Denied::TooManyEphemerals { count: 10 }), "{denied}"),
        }
    }
    assert_eq!(made.len(), 10);
    for preview in made {
        assert_eq!(bed.status(preview).await, (DeploymentStatus::Ready, DesiredState::Running));
    }
}

#[tokio::test]
async fn one_that_must_not_evict_fails_if_others_took_the_last_place_meanwhile() {
    let bed = Bed::new().await;
    let mut others = Vec::new();
    for n in 0..9 {
        others.push(bed.ephemeral(&format!("p{n}"), Delay::seconds(3600)).await);
    }
    // In an environment of its own, or the other one would wait for it.
    bed.runtime.set_starts_sick(true);
    let request = DeployRequest {
        evict: false,
        environment: Some("staging".parse().unwrap()),
        ..labelled("slow", Delay::seconds(3600))
    };
    let mut slow = bed.try_submit(request).await.unwrap();
    let of_slow = async || bed.runtime.of(slow.deployment.unwrap());
    eventually("it is started", async || !of_slow().await.is_empty()).await;
    let instance = of_slow().await[0];
    bed.runtime.set_starts_sick(false);
    others.push(bed.ephemeral("fast", Delay::seconds(3600)).await);
    bed.runtime.set_sick(instance, false);
    let operation = bed.ended(&mut slow).await;
    assert_eq!(operation.state, OperationState::Failed);
    assert_eq!(operation.failure.unwrap().code, "too_many_ephemerals");
    for other in others {
        assert_eq!(bed.status(other).await, (DeploymentStatus::Ready, DesiredState::Running), "evicted");
    }
    eventually("nothing is left of it", async || bed.runtime.known() == 10).await;
}

/// Fixed fault: its time went by while it was made, and it replaced one that served and was expired at once.
#[tokio::test]
async fn the_time_of_a_preview_begins_when_it_is_ready() {
    let bed = Bed::with(|settings| {
        settings.deploy.readiness_mode = lockgate::settings::ReadinessMode::Delay;
        settings.deploy.readiness_delay = Delay::seconds(600);
    })
    .await;
    bed.clock.stop();
    let mut submitted = bed.try_submit(labelled("feat", Delay::seconds(60))).await.unwrap();
    let preview = submitted.deployment.unwrap();
    eventually("it is started", async || !bed.runtime.of(preview).is_empty()).await;
    eventually("it is ready", async || {
        bed.clock.leap(Duration::from_secs(600));
        bed.store.operation(&submitted.operation).await.unwrap().unwrap().state.is_end()
    })
    .await;
    assert_eq!(bed.ended(&mut submitted).await.state, OperationState::Succeeded);
    let found = bed.store.deployment(&preview).await.unwrap().unwrap();
    let since_ready = found.expires_at.unwrap().duration_since(found.created_at);
    assert!(since_ready.as_secs() >= 660, "{since_ready}");
}

#[tokio::test]
async fn after_a_restart_an_expired_label_is_still_told_from_one_that_never_was() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "1"]).await;
    bed.clock.stop();
    let before = bed.ephemeral("before", Delay::seconds(60)).await;
    let meanwhile = bed.ephemeral("meanwhile", Delay::seconds(3600)).await;
    let replaced = bed.ephemeral("again", Delay::seconds(60)).await;
    let again = bed.ephemeral("again", Delay::seconds(48 * 3600)).await;
    bed.clock.leap(Duration::from_secs(60));
    for gone in [before, replaced] {
        eventually("it is ended", async || bed.status(gone).await.1 == DesiredState::Archived).await;
    }
    let clock: Arc<LeapClock> = Arc::default();
    clock.leap(Duration::from_secs(2 * 3600));
    let bed = bed.restart_at(clock).await;
    for label in ["before", "meanwhile"] {
        assert_eq!(bed.serves(&format!("{label}.web.test")), Err(Miss::EphemeralExpired), "{label}");
    }
    assert_eq!(bed.serves("never.web.test"), Err(Miss::EphemeralUnknown));
    assert_eq!(bed.serves("again.web.test"), Ok(again.to_string()), "hidden by an older one of the label");
    eventually("what expired meanwhile is removed", async || bed.runtime.of(meanwhile).is_empty()).await;

    // Not for ever.
    let clock: Arc<LeapClock> = Arc::default();
    clock.leap(Duration::from_secs(8 * 24 * 3600));
    let bed = bed.restart_at(clock).await;
    assert_eq!(bed.serves("before.web.test"), Err(Miss::EphemeralUnknown));
}

#[tokio::test]
async fn the_sweep_ends_what_expired_by_a_leap_of_the_time_of_day() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "1"]).await;
    let preview = bed.ephemeral("feat", Delay::seconds(3600)).await;
    bed.clock.set_time_of_day(Duration::from_secs(2 * 3600));
    assert_eq!(bed.serves("feat.web.test"), Ok(preview.to_string()), "its own timer knows nothing of it");
    // As long as the sweep is apart.
    bed.clock.leap(Duration::from_secs(5 * 60));
    eventually("it is expired", async || bed.serves("feat.web.test") == Err(Miss::EphemeralExpired)).await;
    eventually("it is removed", async || bed.runtime.of(preview).is_empty()).await;
}

#[tokio::test]
async fn a_removal_that_fails_is_tried_again_and_the_row_stays_until_it_is_done() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "1"]).await;
    let preview = bed.ephemeral("feat", Delay::seconds(60)).await;
    bed.runtime.set_away(true);
    bed.clock.leap(Duration::from_secs(60));
    eventually("it is ended", async || bed.status(preview).await.1 == DesiredState::Archived).await;
    assert_eq!(bed.serves("feat.web.test"), Err(Miss::EphemeralExpired));
    for _ in 0..3 {
        bed.clock.leap(Duration::from_secs(20));
        assert_eq!(bed.store.instances(Some(&preview)).await.unwrap().len(), 1, "its row is gone");
    }
    bed.runtime.set_away(false);
    eventually("it is removed", async || {
        bed.clock.leap(Duration::from_secs(20));
        bed.runtime.of(preview).is_empty() && bed.store.instances(Some(&preview)).await.unwrap().is_empty()
    })
    .await;
    assert_eq!(bed.runtime.known(), 1);
}

#[tokio::test]
async fn a_preview_knows_its_url_before_it_starts_and_is_reached_there_before_anything_is_live() {
    let options = Options { apex: Some("apps.test".parse().unwrap()), ..Options::default() };
    let bed = Bed::with_options(options, |_| {}).await;
    let mut bare = bed.store.app(&app()).await.unwrap().unwrap();
    for (hosts, url, host) in [
        (&[][..], "http://feat.web.apps.test", "feat.web.apps.test"),
        (&["*.wild.test"], "http://feat.web.apps.test", "feat.wild.test"),
        (&["*.wild.test", "web.test"], "http://feat.web.test", "feat.web.test"),
    ] {
        let row = |host: &&str| HostRow { host: (*host).to_owned(), path: "/".into(), strip: false };
        bare.hosts = hosts.iter().map(row).collect();
        bed.engine.put_apps(std::slice::from_ref(&bare)).await.unwrap();
        let preview = bed.ephemeral("feat", Delay::seconds(3600)).await;
        assert_eq!(bed.runtime.env_of(preview).get("LOCKGATE_URL").map(String::as_str), Some(url));
        assert_eq!(bed.engine.url(preview).await.unwrap().as_deref(), Some(url));
        assert_eq!(bed.serves(url.strip_prefix("http://").unwrap()), Ok(preview.to_string()));
        assert_eq!(bed.serves(host), Ok(preview.to_string()));
    }
    let (live, _) = bed.deploy(&["serve", "1"]).await;
    let url = format!("http://web-{}.apps.test", live.short());
    assert_eq!(bed.runtime.env_of(live).get("LOCKGATE_URL"), Some(&url));
    assert_eq!(bed.serves(url.strip_prefix("http://").unwrap()), Ok(live.to_string()));
}
