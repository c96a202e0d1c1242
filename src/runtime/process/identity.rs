//! Which process it is: a pid is given again, a pid with its start time and boot is not.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::clock::Clock;

/// Where pidfds are missing (kernels before 5.3, some sandboxes) an end is looked for this often.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// One process, told from every other that had its pid or will have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) pid: i32,
    /// Clock ticks from boot to its start.
    pub(super) started: u64,
    pub(super) boot: String,
}

/// A hold on one process: its pid cannot be given to another unnoticed.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) identity: Identity,
    pid: Pid,
    fd: Option<OwnedFd>,
}

/// Of `/proc/<pid>/stat`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stat {
    zombie: bool,
    pub(super) group: i32,
    pub(super) started: u64,
}

impl Identity {
    /// Of the process that has `pid` now.
    pub(super) fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, started: stat(pid)?.started, boot: boot() })
    }

    /// A hold on exactly this process, also while it is a zombie; `None` once it is gone.
    pub(super) fn open(&self) -> Option<Handle> {
        let pid = Pid::from_raw(self.pid)?;
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => Some(fd),
            Err(rustix::io::Errno::SRCH) => return None,
            Err(_no_pidfds) => None,
        };
        // After the open: whoever has the pid now is whom the descriptor names.
        let same = self.boot == boot() && stat(self.pid)?.started == self.started;
        same.then(|| Handle { identity: self.clone(), pid, fd })
    }
}

impl Handle {
    /// Sends `signal` to this process and to no other; nothing if it has ended.
    pub(super) fn signal(&self, signal: Signal) {
        let sent = match &self.fd {
            Some(fd) => pidfd_send_signal(fd, signal),
            None if self.has_ended() => Ok(()),
            None => kill_process(self.pid, signal),
        };
        if let Err(cause) = sent
            && cause != rustix::io::Errno::SRCH
        {
            tracing::warn!(pid = self.identity.pid, ?signal, %cause, "signal refused");
        }
    }

    /// Whether it runs no more. The state of a process is that of its first thread, which may have ended while others run,
    /// or are being ended: where there is a pidfd that is asked, as all wait for it.
    pub(super) fn has_ended(&self) -> bool {
        if self.fd.as_ref().and_then(|fd| is_readable(fd.as_fd())) == Some(false) {
            return false;
        }
        stat(self.identity.pid).is_none_or(|stat| stat.zombie || stat.started != self.identity.started)
    }

    /// Whether it is there, as a zombie at least: as long as it is, its process group's number is its own.
    pub(super) fn is_there(&self) -> bool {
        stat(self.identity.pid).is_some_and(|stat| stat.started == self.identity.started)
    }

    /// Resolves once it runs no more.
    pub(super) async fn ended(&self, clock: &dyn Clock) {
        if let Some(ready) = self.fd.as_ref().and_then(|fd| readable(fd.as_fd()))
            && ready.readable().await.is_ok()
        {
            return;
        }
        while !self.has_ended() {
            clock.sleep(LOOK_EVERY).await;
        }
    }

    /// Takes a zombie's exit code, or 128 + signal; `None` where it was another's child or its code was taken.
    pub(super) fn reap(&self) -> Option<i64> {
        let id = self.fd.as_ref().map_or(WaitId::Pid(self.pid), |fd| WaitId::PidFd(fd.as_fd()));
        let status = waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok()??;
        status.exit_status().or_else(|| Some(128 + status.terminating_signal()?)).map(i64::from)
    }
}

/// A pidfd is readable once its process runs no more.
#[expect(
    deprecated,
    reason = "its sound form is an unsafe fn; what that asks, a descriptor that stays open, a borrow gives"
)]
fn readable(fd: BorrowedFd<'_>) -> Option<AsyncFd<BorrowedFd<'_>>> {
    AsyncFd::with_interest(fd, Interest::READABLE).ok()
}

/// The same at this moment; `None` if it cannot be said.
fn is_readable(fd: BorrowedFd<'_>) -> Option<bool> {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut polled, Some(&at_once)).ok().map(|ready| ready > 0)
}

/// What the kernel says of the process that has `pid` now.
pub(super) fn stat(pid: i32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Changes at each boot, with which start times begin anew.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn parse(text: &str) -> Option<Stat> {
    // The second field is the program's name, which may hold blanks and parentheses.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    Some(Stat {
        zombie: matches!(*fields.first()?, "Z" | "X"),
        group: fields.get(2)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_name_cannot_shift_the_fields() {
        let text = "42 (a) Z 1 2 (b)) S 7 42 3 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 1\n";
        assert_eq!(parse(text), Some(Stat { zombie: false, group: 42, started: 987_654 }));
        assert_eq!(parse("42 (cut"), None);
    }

    #[test]
    fn another_life_of_the_same_pid_is_not_opened() {
        let own = Identity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.open().is_some_and(|handle| !handle.has_ended()));
        assert!(Identity { started: own.started - 1, ..own.clone() }.open().is_none());
        assert!(Identity { boot: "another".to_owned(), ..own }.open().is_none());
    }
}
