//! All processes of an instance: found by the mark in their environment, which children inherit, and by the
//! process group of the first one.

use std::fs;

use super::identity::{Handle, Identity, stat};
use crate::ids::{InstanceId, LockgateId};

/// Set in the environment of each first process.
pub(super) const INSTANCE_MARK: &str = "LOCKGATE_INSTANCE";
pub(super) const LOCKGATE_MARK: &str = "LOCKGATE_ID";

/// What makes a process one of an instance.
#[derive(Debug)]
pub(super) struct Mark<'a> {
    pub(super) lockgate: LockgateId,
    pub(super) instance: InstanceId,
    /// While it is there, its group is known to be the instance's.
    pub(super) first: Option<&'a Handle>,
}

impl Mark<'_> {
    /// Those that are there now. One that left the group *and* dropped its environment is not found.
    pub(super) fn members(&self) -> Vec<Handle> {
        let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
        processes
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| self.is_on(*pid))
            .filter_map(|pid| Identity::of(pid)?.open())
            // Again under the hold: the pid may have changed hands since the first look.
            .filter(|handle| self.is_on(handle.identity.pid) && !handle.has_ended())
            .collect()
    }

    /// The member that was started first and leads a process group.
    pub(super) fn leader(&self) -> Option<Identity> {
        let leads = |identity: &Identity| stat(identity.pid).is_some_and(|stat| stat.group == identity.pid);
        let members = self.members().into_iter().map(|handle| handle.identity);
        members.filter(leads).min_by_key(|identity| identity.started)
    }

    fn is_on(&self, pid: i32) -> bool {
        self.is_in_environment(pid) || self.is_in_group(pid)
    }

    fn is_in_environment(&self, pid: i32) -> bool {
        // Of another user's processes it cannot be read: those are not ours.
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
        let (instance, lockgate) =
            (format!("{INSTANCE_MARK}={}", self.instance), format!("{LOCKGATE_MARK}={}", self.lockgate));
        let has = |mark: &str| environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes());
        has(&instance) && has(&lockgate)
    }

    fn is_in_group(&self, pid: i32) -> bool {
        self.first.is_some_and(|first| {
            stat(pid).is_some_and(|stat| stat.group == first.identity.pid) && first.is_there()
        })
    }
}

/// The inodes of a process's sockets.
pub(super) fn sockets(pid: i32) -> Vec<u64> {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let inode = |file: fs::DirEntry| {
        let link = fs::read_link(file.path()).ok()?;
        link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    files.filter_map(|file| inode(file.ok()?)).collect()
}
