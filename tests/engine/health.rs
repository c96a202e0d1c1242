//! Instances that serve are checked on, and what is unhealthy leaves rotation and is replaced.

use std::sync::Arc;
use std::time::Duration;

use lockgate::clock::Clock;
use lockgate::ids::InstanceId;
use lockgate::routing::Target;
use lockgate::routing::standing::Share;
use lockgate::settings::{AppSettings, Delay, ReadinessMode, Replicas};

use crate::fake::FakeRuntime;
use crate::{Bed, HOST, Told, eventually};

fn replicas(count: u16) -> impl FnOnce(&mut AppSettings) {
    move |settings| settings.replicas = Replicas::new(count).unwrap()
}

impl Bed {
    fn targets(&self) -> Vec<Arc<Target>> {
        self.backend(HOST).unwrap().targets.to_vec()
    }

    fn stops(&self, id: InstanceId) -> usize {
        self.runtime.told().iter().filter(|told| **told == Told::Stop(id)).count()
    }

    /// Lets time pass until something is so.
    async fn comes_to(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        eventually(what, async || {
            self.clock.leap(Duration::from_millis(500));
            is_so()
        })
        .await;
    }
}

#[tokio::test]
async fn an_unhealthy_replica_is_replaced_after_its_drain_whatever_the_mode() {
    type Ail = fn(&FakeRuntime, InstanceId);
    let modes: [(ReadinessMode, Ail); 3] = [
        (ReadinessMode::Http, |runtime, id| runtime.set_sick(id, true)),
        (ReadinessMode::Tcp, FakeRuntime::stop_listening),
        (ReadinessMode::DockerHealth, |runtime, id| runtime.set_sick(id, true)),
    ];
    for (mode, ail) in modes {
        let bed = Bed::with(|settings| {
            replicas(2)(settings);
            settings.deploy.readiness_mode = mode;
        })
        .await;
        bed.runtime.bring_health_checks();
        bed.deploy(&["serve", "1"]).await;
        let [ill, well] = bed.targets().try_into().unwrap();
        let held = ill.gate.enter(0).unwrap();
        ail(&bed.runtime, ill.id);
        bed.comes_to("it is out of rotation", || ill.gate.is_closed()).await;
        assert_eq!(bed.targets().iter().map(|target| target.id).collect::<Vec<_>>(), [well.id], "{mode:?}");
        bed.looked().await;
        assert_eq!(bed.stops(ill.id), 0, "{mode:?}: stopped under a request");
        assert_eq!(bed.targets().len(), 1, "{mode:?}: in rotation while it drains");
        drop(held);
        bed.comes_to("it is back", || bed.targets().len() == 2).await;
        assert_eq!((bed.stops(ill.id), bed.runtime.starts(ill.id)), (1, 2), "{mode:?}");
        assert_eq!((bed.stops(well.id), bed.runtime.starts(well.id)), (0, 1), "{mode:?}");
        assert!(bed.targets().iter().all(|target| target.is_healthy() && !target.gate.is_closed()));
    }
}

#[tokio::test]
async fn the_last_replica_that_serves_stays_and_comes_back_healthy() {
    for count in [1, 2] {
        let bed = Bed::with(replicas(count)).await;
        bed.deploy(&["serve", "1"]).await;
        let targets = bed.targets();
        for target in &targets {
            bed.runtime.set_sick(target.id, true);
        }
        bed.comes_to("all are unhealthy", || targets.iter().all(|target| !target.is_healthy())).await;
        // Several more checks.
        for _ in 0..3 {
            bed.clock.leap(Duration::from_secs(10));
            bed.looked().await;
        }
        let stopped = targets.iter().map(|target| bed.stops(target.id)).sum::<usize>();
        assert_eq!((stopped, bed.targets().len()), (0, targets.len()), "of {count}");
        for target in &targets {
            bed.runtime.set_sick(target.id, false);
        }
        bed.comes_to("all are healthy", || targets.iter().all(|target| target.is_healthy())).await;
    }
}

#[tokio::test]
async fn a_replica_that_checks_bring_back_begins_with_nothing_of_its_share() {
    let bed = Bed::with(replicas(2)).await;
    bed.deploy(&["serve", "1"]).await;
    let targets = bed.targets();
    let slow = Duration::from_secs(30);
    let share = |at: usize| targets[at].share_by_checks(Clock::now(&*bed.clock), slow);
    assert_eq!([share(0), share(1)], [Share::All; 2], "they were never out of rotation");
    // Both, so that neither is replaced.
    targets.iter().for_each(|target| bed.runtime.set_sick(target.id, true));
    bed.comes_to("both are unhealthy", || targets.iter().all(|target| !target.is_healthy())).await;
    bed.runtime.set_sick(targets[0].id, false);
    bed.comes_to("one is healthy", || targets[0].is_healthy()).await;
    let Share::Part(part) = share(0) else { panic!("{:?}", share(0)) };
    assert!(part < Share::WHOLE / 2, "{part}");
    assert_eq!(share(1), Share::None);
    // The checks go on, and its share grows all the same.
    bed.comes_to("its share is whole", || share(0) == Share::All).await;
}

#[tokio::test]
async fn a_replica_that_stays_unhealthy_is_not_replaced_over_and_over() {
    let bed = Bed::with(replicas(2)).await;
    bed.deploy(&["serve", "1"]).await;
    let [ill, _] = bed.targets().try_into().unwrap();
    bed.runtime.set_starts_sick(true);
    bed.runtime.set_sick(ill.id, true);
    let began = Clock::now(&*bed.clock);
    bed.comes_to("it was tried five times", || bed.runtime.starts(ill.id) == 6).await;
    let took = Clock::now(&*bed.clock) - began;
    assert!(took >= Duration::from_secs(10 + 20 + 40 + 80), "five tries within {took:?}");
    assert_eq!(bed.targets().len(), 1, "it never was ready");
}

#[tokio::test]
async fn a_version_that_is_taken_out_of_service_does_not_wait_for_a_replica_to_come_back() {
    let bed = Bed::with(|settings| {
        replicas(2)(settings);
        settings.deploy.standby_after = Delay::seconds(60);
        settings.deploy.health_timeout = Delay::seconds(3600);
    })
    .await;
    bed.deploy(&["serve", "1"]).await;
    let [ill, well] = bed.targets().try_into().unwrap();
    bed.runtime.set_starts_sick(true);
    bed.runtime.set_sick(ill.id, true);
    bed.comes_to("it is started again", || bed.runtime.starts(ill.id) == 2).await;
    bed.runtime.set_starts_sick(false);
    bed.deploy(&["serve", "2"]).await;
    bed.comes_to("both are stopped", || bed.stops(ill.id) >= 2 && bed.stops(well.id) >= 1).await;
}
