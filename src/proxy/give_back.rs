//! Memory that connections have freed goes back to the system once a worker is quiet. Its allocator does that on the occasion of
//! later calls, and a worker whose connections have all gone to rest makes none.

use std::cell::Cell;
use std::time::Duration;

use crate::upstream::Tick;

/// Connections that rested or ended, from which on a look at all that is allocated is worth it.
const MANY: u64 = 100;

/// Since the last of them.
pub(super) const QUIET: Duration = Duration::from_secs(2);

/// What one worker has given back.
#[derive(Debug, Default)]
pub(super) struct GiveBack {
    /// Connections that had rested or ended at the last tick, and when it was given back last.
    seen: Cell<u64>,
    given: Cell<u64>,
    quiet: Cell<Tick>,
}

impl GiveBack {
    /// Once in a tick: so many connections have rested or ended by now.
    pub(super) fn tick(&self, ended: u64, quiet: Tick) {
        if self.is_due(ended, quiet) {
            give_back();
        }
    }

    fn is_due(&self, ended: u64, quiet: Tick) -> bool {
        if self.seen.replace(ended) != ended {
            self.quiet.set(0);
            return false;
        }
        self.quiet.set(self.quiet.get().saturating_add(1));
        let is_due = self.quiet.get() == quiet && ended - self.given.get() >= MANY;
        if is_due {
            self.given.set(ended);
        }
        is_due
    }
}

#[expect(unsafe_code, reason = "the allocator's crate has no safe form of this call")]
fn give_back() {
    // SAFETY: it takes no pointer, and frees nothing that is in use.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_given_back_once_when_many_have_ended_and_no_more_do() {
        let memory = GiveBack::default();
        let due = |ended: u64| (0..4).map(|_| memory.is_due(ended, 2)).collect::<Vec<_>>();
        assert_eq!(due(MANY - 1), [false; 4], "few");
        assert_eq!(due(MANY), [false, false, true, false], "once");
        assert_eq!(due(MANY + 1), [false; 4], "few since then");
        assert_eq!((0..4).map(|more| memory.is_due(MANY * (3 + more), 2)).collect::<Vec<_>>(), [false; 4]);
        assert_eq!(due(MANY * 7), [false, false, true, false]);
    }
}
