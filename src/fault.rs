//! Named fail points of the crash matrix. Without the `fault` feature they are nothing.
//!
//! `LOCKGATE_FAULTS="deploy.started=kill, store.commit=error, drain.wait=hang@2"`: at that point the process
//! kills itself, the step fails, or it waits for ever; `@n` means the n-th time only. A test that has the engine in its own
//! process sets a `Trap` instead.

/// What a fail point asks for when it is not a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fail point {point}")]
pub struct Injected {
    pub point: &'static str,
}

/// Passes the fail point `point`.
///
/// # Errors
/// [`Injected`] where `LOCKGATE_FAULTS` asks for an error here.
#[cfg(not(feature = "fault"))]
#[inline]
pub fn at(_point: &'static str) -> Result<(), Injected> {
    Ok(())
}

/// Whether this build is to break the promise `name` on purpose (`LOCKGATE_SABOTAGE`), so that the verifier
/// can be seen to catch it.
#[cfg(not(feature = "fault"))]
#[inline]
#[must_use]
pub const fn sabotaged(_name: &str) -> bool {
    false
}

/// The tokio runtime whose traps a thread heeds that belongs to none, as the store's.
#[cfg(not(feature = "fault"))]
#[derive(Clone, Copy, Debug)]
pub struct Scope;

#[cfg(not(feature = "fault"))]
impl Scope {
    #[must_use]
    pub const fn current() -> Self {
        Self
    }

    pub const fn enter(self) {}
}

#[cfg(feature = "fault")]
pub use armed::{at, sabotaged};
#[cfg(feature = "fault")]
pub use trap::{Scope, Springs, Trap};

#[cfg(feature = "fault")]
mod trap;

#[cfg(feature = "fault")]
mod armed {
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex, PoisonError};

    use super::Injected;

    #[derive(Clone, Copy, Debug)]
    enum Action {
        Kill,
        Error,
        Hang,
    }

    /// Point → action and on which pass (0: on each).
    static ARMED: LazyLock<HashMap<String, (Action, u32)>> =
        LazyLock::new(|| parse(&std::env::var("LOCKGATE_FAULTS").unwrap_or_default()));
    static PASSES: LazyLock<Mutex<HashMap<&'static str, u32>>> = LazyLock::new(Mutex::default);

    /// Passes the fail point `point`.
    ///
    /// # Errors
    /// [`Injected`] where `LOCKGATE_FAULTS` asks for an error here.
    pub fn at(point: &'static str) -> Result<(), Injected> {
        super::trap::at(point)?;
        let Some(&(action, pass)) = ARMED.get(point) else { return Ok(()) };
        let mut passes = PASSES.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = passes.entry(point).or_insert(0);
        *seen += 1;
        let due = pass == 0 || *seen == pass;
        drop(passes);
        match action {
            _ if !due => Ok(()),
            Action::Error => Err(Injected { point }),
            Action::Kill => {
                // SIGKILL, not exit: no destructor, no flush, as when the machine takes the process away.
                let killed =
                    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                unreachable!("SIGKILL to oneself returned {killed:?}");
            }
            Action::Hang => loop {
                std::thread::park();
            },
        }
    }

    static SABOTAGE: LazyLock<String> =
        LazyLock::new(|| std::env::var("LOCKGATE_SABOTAGE").unwrap_or_default());

    /// Whether this build is to break the promise `name` on purpose (`LOCKGATE_SABOTAGE`).
    #[must_use]
    pub fn sabotaged(name: &str) -> bool {
        *SABOTAGE == name
    }

    fn parse(text: &str) -> HashMap<String, (Action, u32)> {
        text.split(',').filter_map(|entry| entry.trim().split_once('=')).filter_map(one).collect()
    }

    fn one((point, what): (&str, &str)) -> Option<(String, (Action, u32))> {
        let (action, pass) = what.split_once('@').unwrap_or((what, "0"));
        let action = match action {
            "kill" => Action::Kill,
            "error" => Action::Error,
            "hang" => Action::Hang,
            _ => return None,
        };
        Some((point.trim().to_owned(), (action, pass.parse().ok()?)))
    }
}
