//! The waker that a connection is driven with: it wakes the task that drives it now, and can be told to be quiet.
//!
//! Taking a part of a body wakes the driver that fills it. Here that driver is polled by the same task, right when
//! the next part is wanted; waking it would only have the task polled once more for nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// Passes wake-ups on to a task.
#[derive(Default)]
pub(super) struct Relay {
    is_quiet: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Relay {
    /// Wake-ups go to `task` from now on.
    pub(super) fn lead_to(&self, task: &Waker) {
        let mut current = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if !current.as_ref().is_some_and(|current| current.will_wake(task)) {
            *current = Some(task.clone());
        }
    }

    /// Does `what` without waking anybody.
    pub(super) fn quietly<T>(&self, what: impl FnOnce() -> T) -> T {
        // One thread: nothing is ordered by this but its own steps.
        self.is_quiet.store(true, Ordering::Relaxed);
        let done = what();
        self.is_quiet.store(false, Ordering::Relaxed);
        done
    }
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_quiet.load(Ordering::Relaxed) {
            return;
        }
        if let Some(task) = &*self.task.lock().unwrap_or_else(PoisonError::into_inner) {
            task.wake_by_ref();
        }
    }
}
