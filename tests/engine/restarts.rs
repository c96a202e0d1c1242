//! Instances that end are started again, later each time, and when that begins anew.

use std::time::Duration;

use lockgate::clock::Clock;
use lockgate::ids::InstanceId;
use lockgate::settings::Delay;

use crate::plane::Plane;
use crate::{Bed, HOST, Told, eventually};

const LONGEST: Duration = Duration::from_secs(15 * 60);

impl Bed {
    /// Waits until the engine has looked at what runs, wholly after this was called.
    pub(crate) async fn looked(&self) {
        for _ in 0..2 {
            let before = self.runtime.looks();
            self.runtime.hint(InstanceId::generate());
            eventually("it looks", async || {
                // It settles between two looks, also where the clock is stopped.
                self.clock.leap(Duration::from_millis(10));
                self.runtime.looks() > before
            })
            .await;
        }
    }

    pub(crate) fn serving(&self) -> InstanceId {
        self.backend(HOST).unwrap().targets[0].id
    }

    async fn started(&self, id: InstanceId, times: usize) {
        eventually("it is started and serves", async || {
            // As time passes where the clock is stopped.
            self.clock.leap(Duration::from_millis(10));
            self.runtime.starts(id) == times
                && self.backend(HOST).is_ok_and(|backend| !backend.targets.is_empty())
        })
        .await;
    }

    /// The instance ends, and is not started again until `wait` is over.
    async fn ends_and_waits(&self, id: InstanceId, wait: u64) {
        let (before, ended) = (self.runtime.starts(id), self.clock.now());
        self.runtime.end(id);
        self.looked().await;
        self.clock.leap(Duration::from_secs(wait - 5));
        self.looked().await;
        // Looks take time as well, on a busy machine more than is left.
        let is_over = self.clock.now() - ended >= Duration::from_secs(wait);
        assert!(is_over || self.runtime.starts(id) == before, "started again before {wait} s were over");
        self.clock.leap(Duration::from_secs(5));
        self.started(id, before + 1).await;
    }

    /// A sick instance is asked whether it is ready, and the engine has looked since.
    async fn is_asked(&self) {
        let before = self.runtime.refusals();
        eventually("it is asked", async || self.runtime.refusals() > before + 1).await;
        self.looked().await;
    }

    async fn ends_and_starts_at_once(&self, id: InstanceId) {
        let before = self.runtime.starts(id);
        self.runtime.end(id);
        self.started(id, before + 1).await;
    }
}

#[tokio::test]
async fn an_instance_that_keeps_ending_is_started_ever_later() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "1"]).await;
    let id = bed.serving();
    bed.clock.stop();
    bed.ends_and_starts_at_once(id).await;
    for wait in [10, 20, 40] {
        bed.ends_and_waits(id, wait).await;
    }
}

#[tokio::test]
async fn g4_clients_are_told_when_what_keeps_ending_is_started_again() {
    let bed = Bed::new().await;
    let plane = Plane::before(&bed);
    bed.deploy(&["serve", "1"]).await;
    let id = bed.serving();
    bed.clock.stop();
    bed.ends_and_starts_at_once(id).await;
    bed.ends_and_waits(id, 10).await;
    bed.runtime.end(id);
    bed.looked().await;
    let seconds = async || {
        let answer = plane.get("").await;
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.contains("lockgate-reason: cooldown\r\n"),
            "{answer}"
        );
        let (_, rest) = answer.split_once("retry-after: ").unwrap();
        rest.split_once("\r\n").unwrap().0.parse::<u64>().unwrap()
    };
    let told = seconds().await;
    assert!((10..=20).contains(&told), "{told}");
    bed.clock.leap(Duration::from_secs(5));
    assert_eq!(seconds().await, told - 5);
    plane.shutdown().await;
}

#[tokio::test]
async fn a_long_run_begins_the_restarts_anew() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "1"]).await;
    let id = bed.serving();
    bed.clock.stop();
    bed.ends_and_starts_at_once(id).await;
    bed.ends_and_waits(id, 10).await;
    bed.ends_and_waits(id, 20).await;
    bed.looked().await;
    bed.clock.leap(LONGEST);
    bed.looked().await;
    bed.ends_and_starts_at_once(id).await;
    bed.ends_and_waits(id, 10).await;
}

#[tokio::test]
async fn time_that_an_instance_waits_is_not_time_that_it_runs() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "1"]).await;
    let id = bed.serving();
    bed.clock.stop();
    bed.ends_and_starts_at_once(id).await;
    for wait in [10, 20, 40, 80, 160, 320, 640] {
        bed.ends_and_waits(id, wait).await;
    }
    bed.ends_and_waits(id, 900).await;
    bed.ends_and_waits(id, 900).await;
}

#[tokio::test]
async fn a_deploy_begins_the_restarts_anew() {
    let bed = Bed::with(|settings| settings.deploy.standby_after = Delay::seconds(3600)).await;
    let (first, _) = bed.deploy(&["serve", "1"]).await;
    let id = bed.serving();
    // Until the next start is due later than any of these tests lasts.
    let wears_out = async || {
        bed.ends_and_starts_at_once(id).await;
        bed.ends_and_waits(id, 10).await;
        bed.ends_and_waits(id, 20).await;
    };
    wears_out().await;
    // An equal deploy does nothing else.
    bed.deploy(&["serve", "1"]).await;
    wears_out().await;

    bed.deploy(&["serve", "2"]).await;
    let mut back = bed.swap(first).await.unwrap();
    bed.ended(&mut back).await;
    wears_out().await;

    bed.deploy(&["serve", "3"]).await;
    bed.clock.leap(Duration::from_secs(3600));
    eventually("it is in standby", async || bed.runtime.told().contains(&Told::Stop(id))).await;
    let mut back = bed.swap(first).await.unwrap();
    bed.ended(&mut back).await;
    bed.ends_and_starts_at_once(id).await;
}

#[tokio::test]
async fn an_instance_that_was_started_again_serves_only_when_it_is_ready() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "1"]).await;
    let id = bed.serving();
    bed.runtime.set_starts_sick(true);
    bed.runtime.end(id);
    bed.is_asked().await;
    assert!(bed.backend(HOST).unwrap().targets.is_empty(), "it serves before it is ready");

    // Neither does a restart of lockgate let it in.
    let bed = bed.restart().await;
    assert!(bed.backend(HOST).unwrap().targets.is_empty(), "believed without having been seen ready");
    bed.is_asked().await;
    assert!(bed.backend(HOST).unwrap().targets.is_empty(), "adopted without having been seen ready");
    bed.runtime.set_sick(id, false);
    bed.started(id, 2).await;
}

#[tokio::test]
async fn an_instance_that_does_not_become_ready_is_started_again_now_and_then() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "1"]).await;
    let id = bed.serving();
    bed.runtime.set_starts_sick(true);
    bed.runtime.end(id);
    for starts in [2, 3, 4] {
        eventually("it is started", async || {
            bed.clock.leap(Duration::from_secs(1));
            bed.runtime.starts(id) == starts
        })
        .await;
    }
    bed.runtime.set_sick(id, false);
    eventually("it serves", async || !bed.backend(HOST).unwrap().targets.is_empty()).await;
}

#[tokio::test]
async fn a_refused_connection_is_looked_into_at_once() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "1"]).await;
    let id = bed.serving();
    bed.looked().await;
    // From now on only what is asked for makes the engine look.
    bed.clock.stop();
    bed.clock.leap(Duration::from_secs(3));
    bed.runtime.end_unnoticed(id);
    bed.routing.doubt();
    // The look before may have ended only now, and the engine rests after each.
    eventually("it is started", async || {
        bed.clock.leap(Duration::from_millis(5));
        bed.runtime.starts(id) == 2
    })
    .await;
}

#[tokio::test]
async fn a_burst_of_hints_is_answered_by_one_look() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "1"]).await;
    bed.clock.stop();
    bed.looked().await;
    let before = bed.runtime.looks();
    for _ in 0..5 {
        bed.runtime.hint(InstanceId::generate());
        bed.routing.doubt();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(bed.runtime.looks(), before);
    eventually("it looks", async || {
        bed.clock.leap(Duration::from_millis(5));
        bed.runtime.looks() > before
    })
    .await;
    assert_eq!(bed.runtime.looks(), before + 1);
}
