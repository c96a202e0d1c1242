//! TXT records by a program of the operator's: run with `present` or `cleanup`, the record's name and its value.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use super::{PREFIX, Record};
use crate::acme::settings::DnsHook;

/// Of what it writes to its standard error, so much is told.
const TOLD_BYTES_MAX: u64 = 1024;

/// What the program is to do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    Present,
    Cleanup,
}

/// It did not.
#[derive(Debug, thiserror::Error)]
pub(in crate::acme) enum HookError {
    #[error("the DNS hook names no program")]
    NoProgram,
    #[error("the DNS hook {0} cannot be run")]
    Run(String, #[source] io::Error),
    #[error("the DNS hook did not {0} within {1:?}")]
    Late(&'static str, Duration),
    #[error("the DNS hook did not {act}: {status}: {told}")]
    Failed { act: &'static str, status: ExitStatus, told: String },
}

/// A process group that goes when nobody waits for it any more.
struct Group(Child);

impl Act {
    fn as_str(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Cleanup => "cleanup",
        }
    }
}

impl DnsHook {
    /// Runs the program, to its end or to the end of its time.
    pub(super) async fn run(&self, act: Act, record: &Record) -> Result<(), HookError> {
        let (program, arguments) = self.command.split_first().ok_or(HookError::NoProgram)?;
        let told = |error| HookError::Run(program.clone(), error);
        let mut command = Command::new(program);
        command.args(arguments).args([act.as_str(), &record.name, &record.value]);
        command.env("LOCKGATE_ACME_ACT", act.as_str());
        command.env("LOCKGATE_ACME_DOMAIN", record.name.strip_prefix(PREFIX).unwrap_or(&record.name));
        command.env("LOCKGATE_ACME_RECORD", &record.name).env("LOCKGATE_ACME_VALUE", &record.value);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        let mut group = Group(command.spawn().map_err(told)?);
        let ended = async {
            let written = match group.0.stderr.take() {
                Some(mut stderr) => {
                    let mut written = Vec::new();
                    let limited = (&mut stderr).take(TOLD_BYTES_MAX);
                    tokio::pin!(limited);
                    limited.read_to_end(&mut written).await?;
                    // The rest is read, so that it is not held up by a full pipe.
                    tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await?;
                    written
                }
                None => Vec::new(),
            };
            io::Result::Ok((group.0.wait().await?, written))
        };
        let ended = tokio::time::timeout(self.timeout, ended).await;
        let (status, written) =
            ended.map_err(|_elapsed| HookError::Late(act.as_str(), self.timeout))?.map_err(told)?;
        if status.success() {
            return Ok(());
        }
        let told = String::from_utf8_lossy(&written).trim().to_owned();
        Err(HookError::Failed { act: act.as_str(), status, told })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Known until it was waited for; what it started is in its group.
        let leader = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(leader) = leader
            && let Err(error) = kill_process_group(leader, Signal::KILL)
        {
            tracing::warn!(%error, "a DNS hook that took too long is not killed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: Duration) -> DnsHook {
        let command = ["/bin/sh", "-c", script, "hook"].map(ToOwned::to_owned).to_vec();
        DnsHook { command, timeout }
    }

    fn record() -> Record {
        Record { name: "_acme-challenge.a.test".to_owned(), value: "a $(value) 'of' \"signs\"".to_owned() }
    }

    #[tokio::test]
    async fn name_and_value_come_as_arguments_and_in_the_environment() {
        let script = r#"[ "$1" = present ] && [ "$2" = _acme-challenge.a.test ] && [ "$3" = "$LOCKGATE_ACME_VALUE" ] &&
            [ "$LOCKGATE_ACME_DOMAIN" = a.test ] && [ "$3" = "a \$(value) 'of' \"signs\"" ]"#;
        hook(script, Duration::from_secs(60)).run(Act::Present, &record()).await.unwrap();
    }

    #[tokio::test]
    async fn a_hook_that_fails_says_why_and_one_that_hangs_is_ended() {
        let told =
            hook("echo no such zone >&2; exit 3", Duration::from_secs(60)).run(Act::Present, &record()).await;
        let told = told.unwrap_err().to_string();
        assert!(told.contains("no such zone") && told.contains('3'), "{told}");
        let hangs = hook("sleep 600 & wait", Duration::from_millis(50)).run(Act::Cleanup, &record()).await;
        assert!(matches!(hangs, Err(HookError::Late("cleanup", _))), "{hangs:?}");
        let nowhere =
            DnsHook { command: vec!["/nowhere/hook".to_owned()], ..hook("", Duration::from_secs(1)) };
        assert!(matches!(nowhere.run(Act::Present, &record()).await, Err(HookError::Run(..))));
    }
}
