//! Targets that fail are passed over for a while, and come back by and by.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use lockgate::clock::Clock;
use lockgate::routing::balance::{Balance, HashBy};
use lockgate::routing::standing::Ejection;
use lockgate::routing::{Backend, Target};
use lockgate::telemetry::{BackendStats, DeploymentLabels};

use crate::support::{
    GET, LONGER, OK, Plane, Upstream, WORKERS, Wire, backend, field, pattern, status, unreachable,
};

const BROKEN: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

/// A stopped clock, and a connection to a route that leads to `targets`.
async fn start(targets: &[&Arc<Target>]) -> (Plane, Wire) {
    let plane = Plane::start();
    plane.clock.advance(Duration::ZERO);
    let backend = backend(targets);
    plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &backend));
    let client = plane.connect().await;
    (plane, client)
}

async fn ask(client: &mut Wire, times: usize) {
    for _ in 0..times {
        client.send(GET).await;
        let head = client.head().await;
        assert_eq!(field(&head, "lockgate-reason"), None, "{head}");
    }
}

/// Asks until `upstream` has answered `count` times in all.
async fn ask_until(client: &mut Wire, upstream: &Upstream, count: usize) {
    for _ in 0..1000 {
        if upstream.heads().len() == count {
            return;
        }
        ask(client, 1).await;
    }
    panic!("{} of {count} requests after 1000", upstream.heads().len());
}

#[tokio::test]
async fn g6_a_target_that_answers_5xx_in_a_row_is_passed_over_and_each_time_for_twice_as_long() {
    let (sick, well) = (Upstream::answering(BROKEN).await, Upstream::answering(OK).await);
    let (plane, mut client) = start(&[&sick.target, &well.target]).await;
    let mut failures = 0;
    for seconds in [10, 20, 40] {
        failures += 5;
        ask_until(&mut client, &sick, failures).await;
        for part in [Duration::ZERO, Duration::from_millis(seconds * 1000 - 1)] {
            plane.clock.advance(part);
            ask(&mut client, 30).await;
            assert_eq!(sick.heads().len(), failures, "after {part:?} of {seconds} s");
        }
        // It is back, and through its slow start.
        plane.clock.advance(Duration::from_millis(10_001));
    }
    let metrics = plane.metrics();
    assert!(
        metrics.contains("upstream_ejections_total{app=\"test\",environment=\"\",deployment=\"\"} 3"),
        "{metrics}"
    );
    plane.shutdown().await;
}

#[tokio::test]
async fn g6_answers_in_between_leave_a_target_where_it_is() {
    let (moody, well) = (Upstream::answering(BROKEN).await, Upstream::answering(OK).await);
    let (plane, mut client) = start(&[&moody.target, &well.target]).await;
    for round in 0..5 {
        moody.answer(BROKEN);
        ask_until(&mut client, &moody, round * 5 + 4).await;
        moody.answer(OK);
        ask_until(&mut client, &moody, round * 5 + 5).await;
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn g6_a_target_that_cannot_be_reached_is_passed_over() {
    let (dead, well) = (unreachable(), Upstream::answering(OK).await);
    let (plane, mut client) = start(&[&dead, &well.target]).await;
    ask(&mut client, 100).await;
    assert!(
        plane.metrics().contains("lockgate_retries_total{reason=\"connect_failed\"} 5\n"),
        "{}",
        plane.metrics()
    );
    plane.shutdown().await;
}

#[tokio::test]
async fn g6_the_last_target_is_never_passed_over() {
    let (one, other) = (Upstream::answering(BROKEN).await, Upstream::answering(BROKEN).await);
    let (plane, mut client) = start(&[&one.target, &other.target]).await;
    ask(&mut client, 40).await;
    let mut served = [one.heads().len(), other.heads().len()];
    served.sort_unstable();
    assert!(served[0] == 5 && served[1] == 35, "{served:?}");
    plane.shutdown().await;
}

#[tokio::test]
async fn g6_the_last_healthy_target_is_never_passed_over() {
    let (sick, failing) = (Upstream::answering(OK).await, Upstream::answering(BROKEN).await);
    sick.target.set_healthy(false);
    let (plane, mut client) = start(&[&sick.target, &failing.target]).await;
    ask(&mut client, 20).await;
    assert_eq!((sick.heads().len(), failing.heads().len()), (0, 20));
    plane.shutdown().await;
}

#[tokio::test]
async fn g6_a_target_that_comes_back_gets_its_share_by_and_by() {
    let (back, well) = (Upstream::answering(BROKEN).await, Upstream::answering(OK).await);
    let (plane, mut client) = start(&[&back.target, &well.target]).await;
    ask_until(&mut client, &back, 5).await;
    back.answer(OK);
    plane.clock.advance(Duration::from_secs(10));
    ask(&mut client, 100).await;
    assert_eq!(back.heads().len(), 5, "its share begins with nothing");
    // Half as much as the other one: 200 of 600 on average. The bounds are ten standard deviations away.
    plane.clock.advance(Duration::from_secs(5));
    ask(&mut client, 600).await;
    let part = back.heads().len() - 5;
    assert!((85..315).contains(&part), "{part} of 600");
    plane.shutdown().await;
}

#[tokio::test]
async fn g6_a_target_whose_checks_bring_it_back_gets_its_share_by_and_by() {
    let back = Upstream::answering(OK).await.with_target(|target| target.starting_slowly(Some(SLOW_START)));
    let (well, plane) = (Upstream::answering(OK).await, Plane::start());
    plane.clock.advance(Duration::ZERO);
    let both = Backend::clone(&backend(&[&back.target, &well.target])).balanced(Balance::RoundRobin);
    plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &Arc::new(both)));
    let mut client = plane.connect().await;
    back.target.set_healthy(false);
    ask(&mut client, 10).await;
    assert_eq!(back.heads().len(), 0);
    back.target.come_back(plane.clock.now());
    for (seconds, part) in [(0, 0), (10, 25), (20, 50)] {
        plane.clock.advance(Duration::from_secs(seconds));
        let before = back.heads().len();
        ask(&mut client, 100).await;
        let served = back.heads().len() - before;
        // A turn may have begun before.
        assert!(served.abs_diff(part) <= 2, "{served} of 100, where {part} were due");
    }
    assert!(back.target.has_recovered());
    plane.shutdown().await;
}

#[tokio::test]
async fn g6_a_target_that_does_not_answer_in_time_is_passed_over() {
    let silent = Upstream::start().await;
    let plane = Plane::with(|settings| {
        // The other one answers sooner, on however busy a machine.
        settings.limits.response_head = LONGER;
        settings.ejection.failures = 1;
    });
    // For as long as all requests take.
    plane.clock.advance(Duration::ZERO);
    let well = Upstream::answering(OK).await;
    let backend = backend(&[&silent.target, &well.target]);
    plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &backend));
    let mut statuses = Vec::new();
    for _ in 0..40 {
        let answer = plane.exchange(GET.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
        statuses.push(status(&answer));
    }
    assert_eq!(statuses.iter().filter(|status| **status == 504).count(), 1, "{statuses:?}");
    plane.shutdown().await;
}

#[tokio::test]
async fn a_refused_connection_asks_the_control_plane_to_look_and_an_answer_does_not() {
    let (gone, well) = (unreachable(), Upstream::answering(BROKEN).await);
    let labels = DeploymentLabels {
        app: "web".to_owned(),
        environment: "production".to_owned(),
        deployment: "dep".to_owned(),
    };
    let of_deployment = || BackendStats::for_deployment(labels.clone(), WORKERS);
    // A static service is nobody's instance.
    let of_service = || BackendStats::for_service("web", WORKERS);
    for (target, stats, is_doubted) in
        [(&well.target, of_deployment(), false), (&gone, of_deployment(), true), (&gone, of_service(), false)]
    {
        let plane = Plane::start();
        let backend = Arc::new(Backend::new([Arc::clone(target)].into(), Arc::new(stats)));
        plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &backend));
        let mut client = plane.connect().await;
        client.send(GET).await;
        let expected = if Arc::ptr_eq(target, &gone) { 502 } else { 503 };
        assert_eq!(status(&client.head().await), expected);
        // Ready at once, or not at all.
        assert_eq!(plane.routing.doubted().now_or_never().is_some(), is_doubted);
        plane.shutdown().await;
    }
}

/// A target that joined at this moment, in a backend with others, and its upstream.
async fn newcomer(plane: &Plane, slow_start: Duration) -> Upstream {
    let joined = plane.clock.now();
    let upstream = Upstream::answering(OK).await;
    upstream.with_target(|target| target.starting_slowly(Some(slow_start)).joining(joined))
}

const SLOW_START: Duration = Duration::from_secs(30);

#[tokio::test]
async fn g6_a_target_that_joins_gets_its_share_by_and_by_in_each_way() {
    for balance in [Balance::TwoChoices, Balance::RoundRobin, Balance::Hash(HashBy::Path)] {
        let plane = Plane::start();
        plane.clock.advance(Duration::ZERO);
        let (new, old) = (newcomer(&plane, SLOW_START).await, Upstream::answering(OK).await);
        let both = Backend::clone(&backend(&[&new.target, &old.target])).balanced(balance.clone());
        plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &Arc::new(both)));
        let mut client = plane.connect().await;
        let mut served = Vec::new();
        let mut moved_back = 0;
        let mut whose = [None; 600];
        for part in [0, 10, 20] {
            plane.clock.advance(Duration::from_secs(part));
            let before = new.heads().len();
            for (key, was_new) in whose.iter_mut().enumerate() {
                let seen = new.heads().len();
                client.send(format!("GET /{key} HTTP/1.1\r\nHost: a.test\r\n\r\n")).await;
                assert_eq!(status(&client.head().await), 200);
                let is_new = new.heads().len() > seen;
                moved_back += u32::from(*was_new == Some(true) && !is_new);
                *was_new = Some(is_new);
            }
            served.push(new.heads().len() - before);
        }
        // A third as much as the other, a quarter of all; then a half. Seven standard deviations and more.
        assert!(served[0] == 0 && (74..226).contains(&served[1]), "{balance:?}: {served:?}");
        assert!((210..390).contains(&served[2]), "{balance:?}: {served:?}");
        if let Balance::Hash(_) = balance {
            assert_eq!(moved_back, 0, "what the new one has it keeps");
        }
        plane.shutdown().await;
    }
}

#[tokio::test]
async fn g6_where_all_have_just_joined_none_is_spared() {
    let plane = Plane::start();
    plane.clock.advance(Duration::ZERO);
    let (one, other) = (newcomer(&plane, SLOW_START).await, newcomer(&plane, SLOW_START).await);
    let sick = Upstream::answering(OK).await;
    sick.target.set_healthy(false);
    let all =
        Backend::clone(&backend(&[&one.target, &other.target, &sick.target])).balanced(Balance::RoundRobin);
    plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &Arc::new(all)));
    let mut client = plane.connect().await;
    for part in [0, 10] {
        plane.clock.advance(Duration::from_secs(part));
        ask(&mut client, 10).await;
    }
    assert_eq!((one.heads().len(), other.heads().len(), sick.heads().len()), (10, 10, 0));
    plane.shutdown().await;
}

#[tokio::test]
async fn g6_a_target_comes_back_as_slowly_as_its_app_says() {
    let back = Upstream::answering(OK).await.with_target(|target| target.starting_slowly(Some(SLOW_START)));
    let (well, plane) = (Upstream::answering(OK).await, Plane::start());
    plane.clock.advance(Duration::ZERO);
    let both = Backend::clone(&backend(&[&back.target, &well.target])).balanced(Balance::RoundRobin);
    plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &Arc::new(both)));
    let mut client = plane.connect().await;
    // Passed over for ten seconds from the plane's start on, which was a little before.
    for _ in 0..5 {
        back.target.standing.failed(0, &Ejection::default(), || false);
    }
    ask(&mut client, 10).await;
    assert_eq!(back.heads().len(), 0);
    for (seconds, part) in [(20, 25), (20, 50)] {
        plane.clock.advance(Duration::from_secs(seconds));
        let before = back.heads().len();
        ask(&mut client, 100).await;
        let served = back.heads().len() - before;
        // A turn may have begun before, and the test's own time counts for a little.
        assert!(served.abs_diff(part) <= 2, "{served} of 100, where {part} were due");
    }
    plane.shutdown().await;
}
