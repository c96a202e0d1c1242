//! The release command: run once in the new version's environment before its instances start, as migrations are.
//!
//! # What holds
//! 1. It has a row of its own before it starts, as every instance, so that what a crash leaves of it is removed.
//! 2. A deploy runs it once: one that was interrupted is undone, not resumed, and nobody starts an instance of a
//!    deployment that is not ready. Its row is gone before the deployment can be.
//! 3. It is never seen ready, so no request goes there.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::concealed::{conceal_stop, concealed};
use super::engine::{Engine, Stop};
use super::readiness::{log_lines, said};
use crate::clock::Clock;
use crate::error::chain;
use crate::fault;
use crate::ids::InstanceId;
use crate::runtime::{Exit, InstanceSpec, InstanceState, Runtime, RuntimeError, Source};
use crate::settings::{Delay, RuntimeKind};
use crate::store::{Deployment, EventKind, Failure, InstanceRow, Operation};

/// Between two looks at whether it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Engine {
    /// Runs the release command to its end. What it leaves when it fails goes with the deploy.
    pub(super) async fn release(
        &self,
        operation: &Operation,
        deployment: &Deployment,
    ) -> Result<((), String), Stop> {
        let released = self.released(operation, deployment).await;
        released.map_err(|stop| conceal_stop(stop, &deployment.settings.env))
    }

    async fn released(&self, operation: &Operation, deployment: &Deployment) -> Result<((), String), Stop> {
        let row = InstanceRow::new(deployment, deployment.operation);
        let spec = self.release_spec(deployment, row.id).await?;
        self.store.put_instance(&row).await?;
        fault::at("release.intended")?;
        let alone = self.alone(deployment, row.id).await?;
        self.runtime.start(&spec).await?;
        drop(alone);
        fault::at("release.started")?;
        let limit = deployment.settings.deploy.release_timeout;
        let exit = ended(self.runtime.as_ref(), &self.clock, row.id, limit).await.map_err(Stop::Failed)?;
        fault::at("release.ended")?;
        let lines = log_lines(self.runtime.as_ref(), row.id).await;
        if exit.code != Some(0) {
            return Err(Stop::Failed(failed(&exit).seen(lines)));
        }
        let env = &deployment.settings.env;
        let lines: Vec<_> = lines.iter().map(|line| concealed(line, env)).collect();
        for line in &lines {
            self.tell(operation.id, EventKind::Progress, line.clone()).await;
        }
        info!(deployment = %deployment.id, "release command succeeded");
        self.store.delete_instance(&row.id).await?;
        fault::at("release.forgotten")?;
        if let Err(error) = self.runtime.remove(&row.id).await {
            warn!(instance = %row.id, error = chain(&error), "release command's instance not removed; it goes as an orphan");
        }
        let detail = std::iter::once("exit code 0".to_owned()).chain(lines).collect::<Vec<_>>();
        Ok(((), detail.join("\n")))
    }

    async fn release_spec(&self, deployment: &Deployment, id: InstanceId) -> Result<InstanceSpec, Stop> {
        let mut spec = self.spec(deployment, id).await?;
        spec.command.clone_from(&deployment.settings.release_command);
        if self.runtime.kind() == RuntimeKind::Process {
            // The digest there is the program's, and this is another program.
            let source = Source {
                image: None,
                command: spec.command.clone(),
                directory: spec.directory.clone(),
                pull: deployment.settings.deploy.pull,
            };
            let (lines, _nobody_listens) = mpsc::channel(1);
            spec.digest = self.runtime.prepare(&source, lines).await?.digest;
        }
        Ok(spec)
    }
}

/// How it ended, if it does so in time.
async fn ended(
    runtime: &dyn Runtime,
    clock: &Arc<dyn Clock>,
    id: InstanceId,
    limit: Delay,
) -> Result<Exit, Failure> {
    let deadline = clock.now() + limit.0;
    loop {
        let seen = match runtime.inspect(&id).await {
            Ok(Some(instance)) => match instance.state {
                InstanceState::Exited(exit) => return Ok(exit),
                InstanceState::Created | InstanceState::Running { .. } => "it runs".to_owned(),
            },
            Ok(None) | Err(RuntimeError::NotFound { .. }) => {
                return Err(Failure::new("release_failed", "the release command was removed while it ran"));
            }
            // The engine may be away for a moment; the deadline decides.
            Err(error) => error.to_string(),
        };
        if clock.now() >= deadline {
            let cause = format!("the release command did not end within {limit}");
            return Err(Failure::new("release_timed_out", cause)
                .seen([format!("last seen: {seen}")])
                .seen(log_lines(runtime, id).await)
                .remedy("raise deploy.release_timeout, or see in its last lines above what it waits for"));
        }
        clock.sleep_until(deadline.min(clock.now() + LOOK_EVERY)).await;
    }
}

fn failed(exit: &Exit) -> Failure {
    if exit.out_of_memory {
        return Failure::new("out_of_memory", "the release command was ended for want of memory")
            .remedy("raise resources.memory_mib");
    }
    Failure::new("release_failed", format!("the release command exited with {}", said(exit)))
        .remedy("read its last lines above; what it has done so far stays done")
}
