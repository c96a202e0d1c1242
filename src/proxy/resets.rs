//! How often a client takes back, on one connection, what it asked for: each time costs an application more than the client.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::upstream::Tick;

use super::worker::Worker;

/// Requests of one connection that were reset before their response began.
pub(crate) struct Resets {
    worker: Rc<Worker>,
    since: Cell<Tick>,
    /// Since then, and ever.
    recent: Cell<u32>,
    ever: Cell<u32>,
}

impl Resets {
    pub(crate) fn new(worker: &Rc<Worker>) -> Self {
        let since = Cell::new(worker.now.get());
        Self { worker: Rc::clone(worker), since, recent: Cell::new(0), ever: Cell::new(0) }
    }

    /// One more.
    pub(crate) fn add(&self) {
        let now = self.worker.now.get();
        if now - self.since.get() >= self.worker.settings.limits.ticks(Duration::from_secs(60)) {
            self.since.set(now);
            self.recent.set(0);
        }
        self.recent.set(self.recent.get() + 1);
        self.ever.set(self.ever.get() + 1);
    }

    pub(crate) fn are_too_many(&self) -> bool {
        let limits = &self.worker.settings.limits;
        self.recent.get() >= limits.http2_resets_per_minute || self.ever.get() >= limits.http2_resets
    }
}
