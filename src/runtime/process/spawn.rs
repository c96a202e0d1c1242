//! How a process of ours begins: what it inherits and what bounds it.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use super::command::{Program, search_path};
use super::members::{INSTANCE_MARK, LOCKGATE_MARK};
use super::output;
use super::record::{Place, Record};
use crate::runtime::InstanceSpec;

/// Where the settings name no number.
const OPEN_FILES: u64 = 65_536;
/// `RLIMIT_DATA` counts what may be written to, whether it is in memory or not: stacks of threads and heaps set
/// aside. That is a multiple of what the setting means, so the bound is one that catches leaks and spares threads.
const RESERVED_PER_USED: u64 = 4;

/// Starts it and returns its pid. It outlives us; whoever knows its pid waits for it.
pub(super) fn spawn(
    spec: &InstanceSpec,
    program: &Program,
    (record, place): (&Record, &Place),
    volumes: &[(String, PathBuf)],
    has_memory_limit: bool,
) -> io::Result<i32> {
    let output = output::open(&place.output())?;
    let mut command = Command::new(&program.path);
    command
        .args(spec.command_line(Some(record.port)).iter().skip(1))
        .current_dir(program.directory.clone().unwrap_or_else(|| place.data()))
        .env_clear()
        .env("PATH", search_path())
        .env("HOST", "127.0.0.1")
        .envs(&spec.env)
        .env("PORT", record.port.to_string())
        .envs(volumes.iter().map(|(name, path)| (name, path)))
        .env(LOCKGATE_MARK, record.lockgate.to_string())
        .env(INSTANCE_MARK, record.id.to_string())
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        // A group of its own: a terminal's Ctrl-C and hang-up are for Lockgate alone.
        .process_group(0);
    let pid = i32::try_from(command.spawn()?.id()).map_err(io::Error::other)?;
    limit(pid, spec, has_memory_limit);
    Ok(pid)
}

/// Bounds files, core dumps and, where no cgroup does, memory. Not CPU, which takes cgroups, and not `RLIMIT_NPROC`,
/// which counts all processes of the user, Lockgate's own threads among them. Done from outside, just after the start: from
/// inside it would take `unsafe` or a program in between.
fn limit(pid: i32, spec: &InstanceSpec, has_memory_limit: bool) {
    let most = |resource: Resource, wanted: u64| {
        let allowed = getrlimit(resource).maximum.map_or(wanted, |hard| hard.min(wanted));
        (resource, Rlimit { current: Some(allowed), maximum: Some(allowed) })
    };
    let memory = spec.resources.memory_mib.saturating_mul(1024 * 1024).saturating_mul(RESERVED_PER_USED);
    let files = spec.resources.open_files.unwrap_or(OPEN_FILES);
    let data = (!has_memory_limit).then(|| most(Resource::Data, memory));
    for (resource, limit) in [most(Resource::Nofile, files), most(Resource::Core, 0)].into_iter().chain(data)
    {
        if let Err(cause) = prlimit(Pid::from_raw(pid), resource, limit)
            && cause != rustix::io::Errno::SRCH
        {
            tracing::warn!(pid, ?resource, %cause, "limit not set");
        }
    }
}
