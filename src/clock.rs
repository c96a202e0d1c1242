//! Time, behind one small trait so that tests drive it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

pub use jiff::Timestamp;

/// Where every module asks for the time.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// Monotonic, for waits and durations.
    fn now(&self) -> Instant;
    /// Wall time, for what is written down and survives a restart.
    fn wall(&self) -> Timestamp;
    /// Resolves at `deadline`, or at once if it has passed.
    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// Resolves after `delay`.
    fn sleep(&self, delay: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.sleep_until(self.now() + delay)
    }
}

/// The machine's own clock. Under tokio's paused test time, its monotonic half is tokio's.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep_until(deadline.into()))
    }
}
