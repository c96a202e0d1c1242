//! The machine's clock, which a test sets forward, and may stop: then only leaps end waits.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lockgate::clock::{Clock, SystemClock, Timestamp};
use tokio::sync::watch;

#[derive(Debug, Default)]
pub(crate) struct LeapClock {
    states: watch::Sender<State>,
    looks: AtomicUsize,
}

/// What looks by the clock again and again sleeps so long in between.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    ahead: Duration,
    /// Of the time of day alone, as when somebody sets it.
    wall_ahead: Duration,
    stopped: Option<(Instant, Timestamp)>,
}

impl LeapClock {
    pub(crate) fn leap(&self, by: Duration) {
        self.states.send_modify(|state| state.ahead += by);
    }

    pub(crate) fn set_time_of_day(&self, ahead: Duration) {
        self.states.send_modify(|state| state.wall_ahead = ahead);
    }

    /// How many looks have ended, while the clock was stopped.
    pub(crate) fn looks(&self) -> usize {
        self.looks.load(Ordering::SeqCst)
    }

    pub(crate) fn stop(&self) {
        self.states.send_modify(|state| state.stopped = Some((SystemClock.now(), SystemClock.wall())));
    }
}

impl State {
    fn now(self) -> Instant {
        self.stopped.map_or_else(|| SystemClock.now(), |(now, _)| now) + self.ahead
    }

    async fn over(self, deadline: Instant) {
        let left = deadline.saturating_duration_since(self.now());
        if self.stopped.is_some() && !left.is_zero() {
            std::future::pending::<()>().await;
        }
        SystemClock.sleep(left).await;
    }
}

impl Clock for LeapClock {
    fn now(&self) -> Instant {
        self.states.borrow().now()
    }

    fn wall(&self) -> Timestamp {
        let state = *self.states.borrow();
        state.stopped.map_or_else(|| SystemClock.wall(), |(_, wall)| wall) + state.ahead + state.wall_ahead
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut states = self.states.subscribe();
        let state = *states.borrow();
        if state.stopped.is_some() && deadline == state.now() + LOOK_EVERY {
            self.looks.fetch_add(1, Ordering::SeqCst);
        }
        Box::pin(async move {
            loop {
                let state = *states.borrow_and_update();
                tokio::select! {
                    () = state.over(deadline) => return,
                    changed = states.changed() => if changed.is_err() { return },
                }
            }
        })
    }
}
