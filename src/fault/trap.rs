//! Faults at whichever fail point comes, for a test that has the engine in its own process: those alone that the test's own
//! tokio runtime passes, so that tests beside it see nothing of them.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use tokio::runtime::{Handle, Id};

use super::Injected;

static TRAPS: LazyLock<Mutex<HashMap<Id, State>>> = LazyLock::new(Mutex::default);
/// How many there are, so that most passes need no lock.
static COUNT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static ENTERED: Cell<Option<Id>> = const { Cell::new(None) };
}

/// What a trap does when it springs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Springs {
    /// What is at the fail point fails, once.
    Once,
    /// From there on nothing gets past a fail point any more, as when the process had ended there: no write of the store
    /// is done, and nothing is started or stopped.
    ForGood,
}

/// Springs at the n-th fail point that is passed from now on, or at one by its name; taken away when dropped.
#[derive(Debug)]
#[must_use = "it is taken away when it is dropped"]
pub struct Trap(Id);

#[derive(Debug)]
struct State {
    /// Others do not count.
    only: Option<&'static str>,
    passes_left: usize,
    springs: Springs,
    sprung: Option<&'static str>,
}

/// The tokio runtime whose traps a thread heeds that belongs to none, as the store's.
#[derive(Clone, Copy, Debug)]
pub struct Scope(Option<Id>);

impl Trap {
    /// After so many passes on the current runtime, where it takes the place of another one.
    pub fn after(passes: usize, springs: Springs) -> Self {
        Self::set(State { only: None, passes_left: passes, springs, sprung: None })
    }

    /// At the next pass of the fail point `point` on the current runtime, where it takes the place of another one.
    pub fn at(point: &'static str, springs: Springs) -> Self {
        Self::set(State { only: Some(point), passes_left: 0, springs, sprung: None })
    }

    fn set(state: State) -> Self {
        let here = Handle::current().id();
        if traps().insert(here, state).is_none() {
            COUNT.fetch_add(1, Ordering::SeqCst);
        }
        Self(here)
    }

    /// At which point it sprang.
    #[must_use]
    pub fn sprung(&self) -> Option<&'static str> {
        traps().get(&self.0).and_then(|state| state.sprung)
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        if traps().remove(&self.0).is_some() {
            COUNT.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Scope {
    #[must_use]
    pub fn current() -> Self {
        Self(Handle::try_current().ok().map(|handle| handle.id()))
    }

    /// From now on this thread belongs to it.
    pub fn enter(self) {
        ENTERED.set(self.0);
    }
}

pub(super) fn at(point: &'static str) -> Result<(), Injected> {
    if COUNT.load(Ordering::SeqCst) == 0 {
        return Ok(());
    }
    let Some(here) = ENTERED.get().or_else(|| Scope::current().0) else { return Ok(()) };
    let mut traps = traps();
    let Some(state) = traps.get_mut(&here) else { return Ok(()) };
    if state.sprung.is_none() && state.only.is_some_and(|only| only != point) || !state.is_due() {
        return Ok(());
    }
    state.sprung.get_or_insert(point);
    Err(Injected { point })
}

impl State {
    fn is_due(&mut self) -> bool {
        if self.sprung.is_some() {
            return self.springs == Springs::ForGood;
        }
        let is_due = self.passes_left == 0;
        self.passes_left = self.passes_left.saturating_sub(1);
        is_due
    }
}

fn traps() -> MutexGuard<'static, HashMap<Id, State>> {
    TRAPS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beside(act: impl FnOnce() + Send + 'static) {
        std::thread::spawn(act).join().unwrap();
    }

    #[tokio::test]
    async fn a_trap_springs_at_its_pass_and_on_its_own_runtime_alone() {
        for (springs, after) in [(Springs::Once, true), (Springs::ForGood, false)] {
            let trap = Trap::after(2, springs);
            let scope = Scope::current();
            assert!(at("first").is_ok());
            beside(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(async { assert!((0..5).all(|_| at("elsewhere").is_ok())) });
            });
            // A thread of the store's.
            beside(move || {
                scope.enter();
                assert!(at("second").is_ok());
            });
            assert_eq!((trap.sprung(), at("third")), (None, Err(Injected { point: "third" })));
            assert_eq!((trap.sprung(), at("fourth").is_ok()), (Some("third"), after));
            drop(trap);
            assert!(at("fifth").is_ok());
        }
    }
}
