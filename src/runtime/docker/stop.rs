//! Signal, wait, kill.

use std::time::Duration;

use bollard::query_parameters::KillContainerOptionsBuilder;
use futures_util::StreamExt;

use super::Docker;
use super::container::Container;
use super::engine::{EngineError, QUICK};
use crate::ids::InstanceId;
use crate::runtime::{Exit, InstanceState, RuntimeError};
use crate::settings::StopSignal;

/// A wait for an end looks this often, should the engine's own wait break off.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// From SIGKILL to the end of the container.
const KILL_LIMIT: Duration = Duration::from_secs(15);

impl Docker {
    pub(super) async fn stop_in_order(
        &self,
        instance: InstanceId,
        signal: Option<StopSignal>,
        grace: Duration,
    ) -> Result<Exit, RuntimeError> {
        let Some(container) = self.find(&instance).await? else { return Ok(Exit::default()) };
        match container.instance.state {
            InstanceState::Created => return Ok(Exit::default()),
            InstanceState::Exited(exit) => return Ok(exit),
            InstanceState::Running { .. } => {}
        }
        // Not the engine's stop: it says neither whether it had to kill, nor takes a signal before version 1.42.
        let signal = match (signal, container.stop_signal.as_deref()) {
            (Some(asked), _) => asked.name(),
            (None, Some(of_image)) => of_image,
            (None, None) => StopSignal::Term.name(),
        };
        if !grace.is_zero() {
            self.signal(instance, &container.id, signal).await?;
            if let Some(exit) = self.ended(&container.id, grace).await? {
                return Ok(exit);
            }
        }
        self.signal(instance, &container.id, "SIGKILL").await?;
        match self.ended(&container.id, KILL_LIMIT).await? {
            Some(exit) => Ok(Exit { killed: true, ..exit }),
            None => Err(RuntimeError::Refused {
                action: "stop",
                instance,
                detail: format!("it still runs {} s after SIGKILL", KILL_LIMIT.as_secs()),
            }),
        }
    }

    async fn signal(&self, instance: InstanceId, container: &str, signal: &str) -> Result<(), RuntimeError> {
        let options = KillContainerOptionsBuilder::default().signal(signal).build();
        let client = self.engine.client()?;
        match self.engine.call(QUICK, "kill", client.kill_container(container, Some(options))).await {
            Ok(()) => Ok(()),
            // It ended by itself, or is gone.
            Err(EngineError::Answer { status: 404 | 409, .. }) => Ok(()),
            Err(cause) => Err(cause.refused("stop", instance)),
        }
    }

    /// How the container ended, or `None` if it still runs after `limit`.
    async fn ended(&self, container: &str, limit: Duration) -> Result<Option<Exit>, RuntimeError> {
        let clock = self.engine.clock();
        let deadline = clock.now() + limit;
        let mut told = Box::pin(self.engine.client()?.wait_container(container, None));
        let mut listening = true;
        loop {
            let Some(inspected) = self.inspect_raw(container).await? else {
                return Ok(Some(Exit::default()));
            };
            match Container::of(&inspected, self.lockgate).map(|container| container.instance.state) {
                Some(InstanceState::Running { .. }) => {}
                Some(InstanceState::Exited(exit)) => return Ok(Some(exit)),
                Some(InstanceState::Created) | None => return Ok(Some(Exit::default())),
            }
            let left = deadline.saturating_duration_since(clock.now());
            if left.is_zero() {
                return Ok(None);
            }
            tokio::select! {
                _end_or_error = told.next(), if listening => listening = false,
                () = clock.sleep(left.min(LOOK_EVERY)) => {}
            }
        }
    }
}
