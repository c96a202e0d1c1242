//! Waiting for what an old version still serves, up to its deadlines.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tracing::warn;

use super::publisher::in_flight;
use crate::clock::Clock;
use crate::gate::{Awaited, InFlight};
use crate::ids::DeploymentId;
use crate::routing::backend::{Cut, Order};
use crate::routing::{Routing, Target};
use crate::settings::{DeploySettings, DrainMode};

/// How long workers have to end what they were told to cut.
const CUT_WITHIN: Duration = Duration::from_secs(2);
/// WebSockets are asked to close over this time before their deadline, each at its own moment.
const CLOSE_OVER: Duration = Duration::from_secs(5);

/// Until when requests and streams may go on. Instants, not durations: what was resumed after a crash keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadlines {
    mode: DrainMode,
    /// It is not over before that, whatever is in flight.
    earliest: Instant,
    pub(super) requests: Instant,
    pub(super) streams: Instant,
}

/// How a drain ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Drained {
    /// When the gates had closed.
    pub(super) before: InFlight,
    /// What outlived its deadline.
    pub(super) cut: Vec<Cut>,
    /// What did not end even when it was cut; its connection dies with the instance.
    pub(super) left: InFlight,
}

impl Deadlines {
    /// Counted from the cutover. Streams never have less time than requests.
    pub(super) fn new(settings: &DeploySettings, cutover: Instant) -> Self {
        let (requests, streams) = match settings.drain_mode {
            DrainMode::Auto | DrainMode::Inflight => {
                (settings.drain_timeout.0, settings.stream_drain_timeout.0.max(settings.drain_timeout.0))
            }
            DrainMode::Delay => (settings.drain_delay.0, settings.drain_delay.0),
        };
        let earliest = match settings.drain_mode {
            DrainMode::Auto | DrainMode::Inflight => cutover,
            DrainMode::Delay => cutover + requests,
        };
        let (requests, streams) = (cutover + requests, cutover + streams);
        Self { mode: settings.drain_mode, earliest, requests, streams }
    }

    /// When a drain was over that is seen to be over `now`, and had nothing in flight any more from `emptied` on.
    pub(super) fn over_at(&self, emptied: Option<Instant>, now: Instant) -> Instant {
        emptied.unwrap_or(now).max(self.earliest).min(now)
    }
}

impl Drained {
    /// Tells whoever reads the log of what was cut. Each of it was counted as it was cut.
    pub(super) fn tell_of_cuts(&self, of: DeploymentId, why: &str) {
        let Some(oldest) = self.cut.iter().max_by_key(|cut| cut.age) else { return };
        warn!(
            deployment = %of, why, cut = self.cut.len(), left = self.left.requests + self.left.streams,
            oldest_ms = oldest.age.as_millis(), method = oldest.method, host = oldest.host, "drain deadline passed"
        );
    }
}

/// Waits until nothing is in flight at `targets`, whose gates are closed; cuts what outlives its deadline.
///
/// # Cancel safety
/// Dropping the future stops the waiting. Orders given to workers stay: reopening a target takes them back.
pub(super) async fn drain(
    targets: &[Arc<Target>],
    deadlines: Deadlines,
    routing: &Routing,
    clock: &Arc<dyn Clock>,
) -> Drained {
    let before = in_flight(targets);
    if crate::fault::sabotaged("stop_without_drain") {
        return Drained::default();
    }
    if let DrainMode::Delay = deadlines.mode {
        clock.sleep_until(deadlines.requests).await;
    }
    if !over_by(targets, Awaited::Requests, deadlines.requests, clock).await {
        order(targets, Order::CutRequests, routing);
        over_by(targets, Awaited::Requests, clock.now() + CUT_WITHIN, clock).await;
    }
    let asked_by =
        deadlines.streams.checked_sub(CLOSE_OVER).unwrap_or(deadlines.streams).max(deadlines.requests);
    if !over_by(targets, Awaited::Everything, asked_by, clock).await {
        order(targets, Order::CloseStreams, routing);
    }
    if !over_by(targets, Awaited::Everything, deadlines.streams, clock).await {
        order(targets, Order::CutStreams, routing);
        over_by(targets, Awaited::Everything, clock.now() + CUT_WITHIN, clock).await;
    }
    order(targets, Order::CloseIdle, routing);
    Drained {
        before,
        cut: targets.iter().flat_map(|target| target.take_cuts()).collect(),
        left: in_flight(targets),
    }
}

/// Waits until nothing is in flight at `targets`, whose gates are closed.
pub(super) async fn emptied(targets: &[Arc<Target>]) {
    join_all(targets.iter().map(|target| target.gate.drained(Awaited::Everything))).await;
}

/// Whether it ended before `deadline`.
async fn over_by(
    targets: &[Arc<Target>],
    awaited: Awaited,
    deadline: Instant,
    clock: &Arc<dyn Clock>,
) -> bool {
    let all = join_all(targets.iter().map(|target| target.gate.drained(awaited)));
    tokio::select! {
        biased;
        _ = all => true,
        () = clock.sleep_until(deadline) => false,
    }
}

/// Gives an order to those that do not have a stricter one.
fn order(targets: &[Arc<Target>], order: Order, routing: &Routing) {
    for target in targets.iter().filter(|target| target.order() < order) {
        target.set_order(order);
    }
    routing.signal_workers();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::ids::InstanceId;
    use crate::settings::Delay;

    fn parts() -> (Routing, Arc<Target>, Arc<dyn Clock>) {
        let target = Arc::new(Target::new(InstanceId::generate(), ([127, 0, 0, 1], 1).into(), 1));
        (Routing::new(1), target, Arc::new(SystemClock))
    }

    fn settings() -> DeploySettings {
        DeploySettings {
            drain_timeout: Delay::seconds(30),
            stream_drain_timeout: Delay::seconds(300),
            ..DeploySettings::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_with_the_last_request_not_with_its_deadline() {
        let (routing, target, clock) = parts();
        let guard = target.gate.enter(0).unwrap();
        target.gate.close();
        let began = clock.now();
        let (drained, ()) = tokio::join!(
            drain(std::slice::from_ref(&target), Deadlines::new(&settings(), began), &routing, &clock),
            async {
                clock.sleep(Duration::from_secs(3)).await;
                drop(guard);
            }
        );
        let before = InFlight { requests: 1, streams: 0 };
        assert_eq!(drained, Drained { before, ..Drained::default() });
        assert_eq!(clock.now().duration_since(began), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_cut_at_its_deadline_and_a_stream_at_its_own() {
        let (routing, target, clock) = parts();
        let request = target.gate.enter(0).unwrap();
        let stream = target.gate.enter(0).unwrap().into_stream();
        target.gate.close();
        let began = clock.now();
        let mut signals = routing.signals();
        let worker = async {
            let mut orders = Vec::new();
            let mut held = (Some(request), Some(stream));
            while held.1.is_some() {
                signals.changed().await.unwrap();
                let order = target.order();
                orders.push((order, clock.now().duration_since(began).as_secs()));
                match order {
                    Order::CutRequests => held.0 = None,
                    Order::CutStreams => held.1 = None,
                    Order::Serve | Order::CloseIdle | Order::CloseStreams => {}
                }
            }
            orders
        };
        let deadlines = Deadlines::new(&settings(), began);
        let both =
            async { tokio::join!(drain(std::slice::from_ref(&target), deadlines, &routing, &clock), worker) };
        // An order that is not given would be waited for without an end.
        let (drained, orders) = tokio::time::timeout(Duration::from_secs(3600), both).await.unwrap();
        assert_eq!(drained.left, InFlight::default());
        assert_eq!(orders, [(Order::CutRequests, 30), (Order::CloseStreams, 295), (Order::CutStreams, 300)]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_explicit_delay_of_zero_does_not_wait() {
        let (routing, target, clock) = parts();
        target.gate.close();
        let settings =
            DeploySettings { drain_mode: DrainMode::Delay, drain_delay: Delay::seconds(0), ..settings() };
        let began = clock.now();
        drain(&[target], Deadlines::new(&settings, began), &routing, &clock).await;
        assert_eq!(clock.now(), began);
    }
}
