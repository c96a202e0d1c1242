//! Containers of a Docker engine, 20.10 or newer, over its Unix socket.
//!
//! # What holds
//! - A container is ours by its labels *and* its name; whatever is not ours is never touched.
//! - Each step names the container by the engine's id, which is given once, never by a name.
//! - Lockgate may be killed between any two calls: create is repeatable by its name, stop and remove by what is there.

mod container;
mod engine;
mod events;
mod image;
mod logs;
mod network;
mod registry;
mod stop;
mod volume;

use std::collections::{BTreeSet, HashMap};
use std::env;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};

use self::container::{Container, LOCKGATE};
use self::engine::{Engine, EngineError, QUICK, SLOW, unavailable};
use super::{
    Answer, Changed, Exit, Follow, Instance, InstanceSpec, InstanceState, Pinned, Ports, Runtime,
    RuntimeError, Source, StoredVolume, VolumeScope,
};
use crate::clock::Clock;
use crate::fault;
use crate::ids::{InstanceId, LockgateId};
use crate::settings::{RuntimeKind, StopSignal};

const SOCKET: &str = "/var/run/docker.sock";
/// How often a start looks again for a network that went meanwhile.
const NETWORK_TRIES: usize = 5;
const INSPECTIONS: usize = 8;
const HINTS: usize = 256;

/// The `docker` runtime.
#[derive(Debug)]
pub struct Docker {
    engine: Arc<Engine>,
    lockgate: LockgateId,
    watchers: Mutex<JoinSet<()>>,
    /// With the credentials for registries; read at each pull.
    registries: Option<PathBuf>,
}

/// What became of one try to start.
enum Tried {
    Started(Box<Instance>),
    NetworkWentMissing(EngineError),
}

impl Docker {
    /// Of the engine behind `socket`, which need not be there yet.
    #[must_use]
    pub fn new(socket: PathBuf, lockgate: LockgateId, clock: Arc<dyn Clock>) -> Self {
        let engine = Arc::new(Engine::new(socket, clock));
        Self { engine, lockgate, watchers: Mutex::default(), registries: registry::default_file() }
    }

    /// Credentials for registries come from `file`, written as Docker's own `config.json`.
    #[must_use]
    pub fn with_registries(self, file: PathBuf) -> Self {
        Self { registries: Some(file), ..self }
    }

    /// The socket that `DOCKER_HOST` names, or the usual one.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`] where `DOCKER_HOST` names no Unix socket.
    pub fn default_socket() -> Result<PathBuf, RuntimeError> {
        match env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty()) {
            None => Ok(PathBuf::from(SOCKET)),
            Some(host) => host.strip_prefix("unix://").map(PathBuf::from).ok_or_else(|| {
                unavailable(format!(
                    "DOCKER_HOST is {host:?}: only unix:// is supported, since instances are reached directly"
                ))
            }),
        }
    }

    async fn start_by_spec(&self, spec: &InstanceSpec) -> Result<Instance, RuntimeError> {
        spec.check()?;
        volume::ensure(&self.engine, self.lockgate, spec).await?;
        let mut last = None;
        for _ in 0..NETWORK_TRIES {
            network::ensure(&self.engine, self.lockgate, spec).await?;
            match self.try_start(spec).await? {
                Tried::Started(instance) => return Ok(*instance),
                Tried::NetworkWentMissing(cause) => last = Some(cause),
            }
        }
        let cause = last.unwrap_or_else(|| EngineError::Unavailable("no network".to_owned()));
        Err(cause.refused("start", spec.id))
    }

    async fn try_start(&self, spec: &InstanceSpec) -> Result<Tried, RuntimeError> {
        let options = CreateContainerOptionsBuilder::default().name(&container::name(&spec.id)).build();
        let body = container::create_body(self.lockgate, spec);
        let client = self.engine.client()?;
        let id = match self.engine.call(SLOW, "create", client.create_container(Some(options), body)).await {
            Ok(created) => created.id,
            Err(cause) if network::is_missing(&cause) => return Ok(Tried::NetworkWentMissing(cause)),
            Err(EngineError::Answer { status: 404, message }) => {
                return Err(RuntimeError::Image { image: spec.digest.clone(), detail: message });
            }
            Err(cause) if cause.status() == Some(409) => {
                let there = self.find(&spec.id).await?.ok_or_else(|| cause.refused("start", spec.id))?;
                if there.instance.state != InstanceState::Created {
                    return Ok(Tried::Started(Box::new(there.instance)));
                }
                there.id
            }
            Err(cause) => return Err(cause.refused("start", spec.id)),
        };
        fault::at("runtime.docker.created").map_err(|fault| EngineError::Unavailable(fault.to_string()))?;
        match self.engine.call(SLOW, "start", client.start_container(&id, None)).await {
            Ok(()) => {}
            Err(cause @ EngineError::Unavailable(_)) => return Err(cause.into()),
            // Refused: the container never ran, and would only be in the way of another try.
            Err(cause) => {
                self.discard(&id).await?;
                if network::is_missing(&cause) {
                    return Ok(Tried::NetworkWentMissing(cause));
                }
                return Err(cause.refused("start", spec.id));
            }
        }
        self.known(&spec.id).await.map(|container| Tried::Started(Box::new(container.instance)))
    }

    async fn restart_by_spec(&self, spec: &InstanceSpec) -> Result<Instance, RuntimeError> {
        let container = self.known(&spec.id).await?;
        if container.instance.is_running() {
            return Ok(container.instance);
        }
        let client = self.engine.client()?;
        let start = || self.engine.call(SLOW, "start", client.start_container(&container.id, None));
        let mut started = start().await;
        // `docker network prune` takes networks whose containers are all stopped.
        if started.as_ref().is_err_and(network::is_missing) {
            network::ensure(&self.engine, self.lockgate, spec).await?;
            let network = network::name(self.lockgate, &spec.app, &spec.environment);
            started = match network::rejoin(&self.engine, &network, &container.id).await {
                Ok(()) => start().await,
                Err(cause) => Err(cause),
            };
        }
        started.map_err(|cause| cause.refused("restart", spec.id))?;
        Ok(self.known(&spec.id).await?.instance)
    }

    async fn remove_stopped(&self, instance: InstanceId) -> Result<(), RuntimeError> {
        if let Some(container) = self.find(&instance).await? {
            // With the volumes that its image declares: nothing else knows of them.
            let options = RemoveContainerOptionsBuilder::default().v(true).build();
            let client = self.engine.client()?;
            match self
                .engine
                .call(SLOW, "remove", client.remove_container(&container.id, Some(options)))
                .await
            {
                Ok(()) | Err(EngineError::Answer { status: 404, .. }) => {}
                Err(cause) => return Err(cause.refused("remove", instance)),
            }
        }
        // Also where the container is gone: an earlier run may have been killed before this.
        network::sweep(&self.engine, self.lockgate).await?;
        Ok(())
    }

    /// Removes a container that was created and never started.
    async fn discard(&self, container: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::default().v(true).build();
        let client = self.engine.client()?;
        match self.engine.call(SLOW, "remove", client.remove_container(container, Some(options))).await {
            Err(cause @ EngineError::Unavailable(_)) => Err(cause),
            Err(cause) => {
                tracing::warn!(container, error = %cause, "cannot remove a container that did not start");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn list_ours(&self) -> Result<Vec<Instance>, RuntimeError> {
        let filters = HashMap::from([("label", vec![format!("{LOCKGATE}={}", self.lockgate)])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let listed =
            self.engine.call(QUICK, "list", self.engine.client()?.list_containers(Some(options))).await?;
        let inspections = listed.into_iter().filter_map(|container| container.id).map(|id| async move {
            let inspected = self.inspect_raw(&id).await?;
            Ok(inspected.and_then(|it| Container::of(&it, self.lockgate)).map(|container| container.instance))
        });
        let seen: Result<Vec<_>, EngineError> =
            stream::iter(inspections).buffered(INSPECTIONS).try_collect().await;
        Ok(seen?.into_iter().flatten().collect())
    }

    async fn known(&self, instance: &InstanceId) -> Result<Container, RuntimeError> {
        self.find(instance).await?.ok_or(RuntimeError::NotFound { instance: *instance })
    }

    async fn find(&self, instance: &InstanceId) -> Result<Option<Container>, EngineError> {
        let inspected = self.inspect_raw(&container::name(instance)).await?;
        Ok(inspected.and_then(|it| Container::of(&it, self.lockgate)))
    }

    /// From the network of its first process, where this Lockgate sees that as the engine does; else from its image.
    async fn ports_of(&self, instance: &InstanceId) -> Result<Ports, RuntimeError> {
        let Some(inspected) = self.inspect_raw(&container::name(instance)).await? else {
            return Ok(Ports::Unknown);
        };
        let exposed = || {
            let ports = inspected.config.iter().flat_map(|config| config.exposed_ports.iter().flatten());
            let ports = ports.filter_map(|port| port.strip_suffix("/tcp")?.parse().ok());
            // The engine's answer is a map: without an order, and told in one.
            Ports::Exposed(ports.collect::<BTreeSet<_>>().into_iter().collect())
        };
        let pid = inspected.state.as_ref().and_then(|state| state.pid).filter(|pid| *pid > 0);
        let (Some(pid), Some(id)) = (pid, inspected.id.clone()) else { return Ok(exposed()) };
        let seen = spawn_blocking(move || container::listening(pid, &id)).await.ok().flatten();
        Ok(seen.map_or_else(exposed, Ports::Listening))
    }

    async fn inspect_raw(&self, container: &str) -> Result<Option<ContainerInspectResponse>, EngineError> {
        let client = self.engine.client()?;
        match self.engine.call(QUICK, "inspect", client.inspect_container(container, None)).await {
            Ok(inspected) => Ok(Some(inspected)),
            Err(EngineError::Answer { status: 404, .. }) => Ok(None),
            Err(cause) => Err(cause),
        }
    }
}

impl Runtime for Docker {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Docker
    }

    fn ping(&self) -> Answer<'_, String> {
        Box::pin(async { Ok(self.engine.ping().await?) })
    }

    fn prepare<'a>(&'a self, source: &'a Source, progress: mpsc::Sender<String>) -> Answer<'a, Pinned> {
        Box::pin(async move {
            let image = source.image.as_deref().ok_or_else(|| RuntimeError::Image {
                image: String::new(),
                detail: "the docker runtime needs an image: set `image`".to_owned(),
            })?;
            image::prepare(&self.engine, image, source.pull, self.registries.as_deref(), &progress).await
        })
    }

    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> Answer<'a, Instance> {
        Box::pin(self.start_by_spec(spec))
    }

    fn restart<'a>(&'a self, spec: &'a InstanceSpec) -> Answer<'a, Instance> {
        Box::pin(self.restart_by_spec(spec))
    }

    fn inspect<'a>(&'a self, instance: &'a InstanceId) -> Answer<'a, Option<Instance>> {
        Box::pin(async { Ok(self.find(instance).await?.map(|container| container.instance)) })
    }

    fn list(&self) -> Answer<'_, Vec<Instance>> {
        Box::pin(self.list_ours())
    }

    fn stop<'a>(
        &'a self,
        instance: &'a InstanceId,
        signal: Option<StopSignal>,
        grace: Duration,
    ) -> Answer<'a, Exit> {
        Box::pin(self.stop_in_order(*instance, signal, grace))
    }

    fn remove<'a>(&'a self, instance: &'a InstanceId) -> Answer<'a, ()> {
        Box::pin(self.remove_stopped(*instance))
    }

    fn remove_volumes<'a>(&'a self, scope: &'a VolumeScope) -> Answer<'a, ()> {
        Box::pin(volume::remove(&self.engine, self.lockgate, scope))
    }

    fn remove_volume<'a>(&'a self, place: &'a str) -> Answer<'a, ()> {
        Box::pin(volume::remove_one(&self.engine, self.lockgate, place))
    }

    fn volumes(&self) -> Answer<'_, Vec<StoredVolume>> {
        Box::pin(volume::list(&self.engine, self.lockgate))
    }

    fn logs<'a>(&'a self, instance: &'a InstanceId, lines: usize) -> Answer<'a, Vec<String>> {
        Box::pin(async move {
            let container = self.known(instance).await?;
            logs::last(&self.engine, &container.id, lines)
                .await
                .map_err(|cause| cause.refused("read logs of", *instance))
        })
    }

    fn follow<'a>(&'a self, instance: &'a InstanceId, lines: usize) -> Answer<'a, Follow> {
        Box::pin(async move {
            let container = self.known(instance).await?;
            logs::follow(&self.engine, &container.id, *instance, lines)
                .map_err(|cause| cause.refused("read logs of", *instance))
        })
    }

    fn ports<'a>(&'a self, instance: &'a InstanceId) -> Answer<'a, Ports> {
        Box::pin(self.ports_of(instance))
    }

    fn watch(&self) -> mpsc::Receiver<Changed> {
        let (hints, receiver) = mpsc::channel(HINTS);
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        while watchers.try_join_next().is_some() {}
        watchers.spawn(events::watch(Arc::clone(&self.engine), self.lockgate, hints));
        receiver
    }
}
