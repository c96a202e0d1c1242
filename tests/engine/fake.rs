//! A runtime without an engine: each instance is a task that answers HTTP on a port of its own. The command says how
//! it behaves, and the runtime writes down what it was told to do.
//!
//! `serve`, `exit`, `done` (ends with 0), `deaf` (never listens), `sick` (answers 500), `nap`
//! (serves, and is deaf when it is started again), `portless` (has no address), `answers STATUS…` (one after the other,
//! then the last one for ever), `errs N VERSION` (500 to every n-th request but those of its health check), `stall` (keeps what is not its health
//! check until it is told to answer), `container HEALTH` (deaf, with a health check of its own that says so), `refused` (does
//! not start), `each BEHAVIOUR…` (one for each replica).

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockgate::clock::Timestamp;
use lockgate::ids::{DeploymentId, InstanceId};
use lockgate::runtime::{
    Answer, Changed, Exit, Follow, Health, Instance, InstanceSpec, InstanceState, Pinned, Ports, Runtime,
    RuntimeError, Source, StoredVolume, VolumeScope,
};
use lockgate::settings::{RuntimeKind, StopSignal};
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

/// What a fake runtime was told, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Start(InstanceId),
    Stop(InstanceId),
    Remove(InstanceId),
    RemoveVolumes(VolumeScope),
    RemoveVolume(String),
}

#[derive(Debug, Default)]
pub(crate) struct FakeRuntime {
    instances: Mutex<HashMap<InstanceId, Life>>,
    told: Mutex<Vec<Told>>,
    envs: Mutex<HashMap<DeploymentId, BTreeMap<String, String>>>,
    away: AtomicBool,
    looks: AtomicUsize,
    refusals: Arc<AtomicUsize>,
    /// How many requests were kept, and those that may be answered.
    stalled: Arc<AtomicUsize>,
    unstalled: Arc<Notify>,
    starts_sick: AtomicBool,
    has_health_check: AtomicBool,
    are_programs_changed: AtomicBool,
    watchers: Mutex<Vec<mpsc::Sender<Changed>>>,
    specs: Mutex<Vec<InstanceSpec>>,
    pub(crate) volumes: Mutex<Vec<StoredVolume>>,
    most: AtomicUsize,
    /// What is started from now on speaks TLS so.
    tls: Mutex<Option<Arc<ServerConfig>>>,
    /// What keeps stops from being answered.
    held_stops: Mutex<Option<Arc<Notify>>>,
}

#[derive(Debug)]
struct Life {
    instance: Instance,
    sick: Arc<AtomicBool>,
    task: Option<AbortHandle>,
    answered: Arc<AtomicUsize>,
}

impl FakeRuntime {
    /// Answers nothing any more, or again.
    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    pub(crate) fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    /// What was started, in order.
    pub(crate) fn specs(&self) -> Vec<InstanceSpec> {
        self.specs.lock().unwrap().clone()
    }

    /// How many ever ran at once.
    pub(crate) fn most_at_once(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    pub(crate) fn running(&self) -> Vec<InstanceId> {
        let instances = self.instances.lock().unwrap();
        instances.values().filter(|life| life.instance.is_running()).map(|life| life.instance.id).collect()
    }

    /// How often all instances were asked for.
    pub(crate) fn looks(&self) -> usize {
        self.looks.load(Ordering::SeqCst)
    }

    /// How often a sick instance answered.
    pub(crate) fn refusals(&self) -> usize {
        self.refusals.load(Ordering::SeqCst)
    }

    /// How many requests were kept so far.
    pub(crate) fn stalled(&self) -> usize {
        self.stalled.load(Ordering::SeqCst)
    }

    /// Answers one that is kept.
    pub(crate) fn unstall(&self) {
        self.unstalled.notify_one();
    }

    /// Stops are not answered until somebody is notified.
    pub(crate) fn hold_stops(&self) -> Arc<Notify> {
        let held = Arc::new(Notify::new());
        *self.held_stops.lock().unwrap() = Some(held.clone());
        held
    }

    /// How many HTTP requests an instance has answered.
    pub(crate) fn answered(&self, id: InstanceId) -> usize {
        self.instances.lock().unwrap()[&id].answered.load(Ordering::SeqCst)
    }

    pub(crate) fn starts(&self, id: InstanceId) -> usize {
        self.told().iter().filter(|told| **told == Told::Start(id)).count()
    }

    /// Whether what is started from now on is sick at first.
    pub(crate) fn set_starts_sick(&self, starts_sick: bool) {
        self.starts_sick.store(starts_sick, Ordering::SeqCst);
    }

    /// What is started from now on speaks TLS.
    pub(crate) fn speak_tls(&self, config: Arc<ServerConfig>) {
        *self.tls.lock().unwrap() = Some(config);
    }

    /// Images bring their own health check from now on.
    pub(crate) fn bring_health_checks(&self) {
        self.has_health_check.store(true, Ordering::SeqCst);
    }

    /// The env vars that the last started instance of a deployment got.
    pub(crate) fn env_of(&self, deployment: DeploymentId) -> BTreeMap<String, String> {
        self.envs.lock().unwrap()[&deployment].clone()
    }

    /// The same commands mean other programs from now on.
    pub(crate) fn change_programs(&self) {
        self.are_programs_changed.store(true, Ordering::SeqCst);
    }

    /// The instance answers 500 from now on, and its own health check fails; or it is well again.
    pub(crate) fn set_sick(&self, id: InstanceId, sick: bool) {
        let mut instances = self.instances.lock().unwrap();
        let life = instances.get_mut(&id).unwrap();
        life.sick.store(sick, Ordering::SeqCst);
        if let InstanceState::Running { health } = &mut life.instance.state
            && *health != Health::None
        {
            *health = if sick { Health::Unhealthy } else { Health::Healthy };
        }
    }

    /// The instance runs on, and accepts no connections any more.
    pub(crate) fn stop_listening(&self, id: InstanceId) {
        self.instances.lock().unwrap().get_mut(&id).unwrap().task.take().inspect(AbortHandle::abort);
    }

    /// The instance ends by itself; nobody is told.
    pub(crate) fn end_unnoticed(&self, id: InstanceId) {
        if let Some(life) = self.instances.lock().unwrap().get_mut(&id) {
            life.instance.state = InstanceState::Exited(Exit { code: Some(1), ..Exit::default() });
            life.task.take().inspect(AbortHandle::abort);
        }
    }

    /// The instance ends by itself, and watchers hear of it.
    pub(crate) fn end(&self, id: InstanceId) {
        self.end_unnoticed(id);
        self.hint(id);
    }

    /// Tells watchers to look at the instance.
    pub(crate) fn hint(&self, id: InstanceId) {
        for watcher in self.watchers.lock().unwrap().iter() {
            drop(watcher.try_send(Changed::One(id)));
        }
    }

    pub(crate) fn of(&self, deployment: DeploymentId) -> Vec<InstanceId> {
        let instances = self.instances.lock().unwrap();
        instances
            .values()
            .filter(|life| life.instance.deployment == deployment)
            .map(|life| life.instance.id)
            .collect()
    }

    pub(crate) fn known(&self) -> usize {
        self.instances.lock().unwrap().len()
    }

    fn answer<T: Send + 'static>(&self, answer: impl FnOnce() -> Result<T, RuntimeError>) -> Answer<'_, T> {
        let answer = if self.away.load(Ordering::SeqCst) {
            Err(RuntimeError::Unavailable { runtime: "fake", detail: "it is away".to_owned() })
        } else {
            answer()
        };
        Box::pin(std::future::ready(answer))
    }

    async fn begin(&self, spec: &InstanceSpec) -> Result<Instance, RuntimeError> {
        passed("fake.start")?;
        if self.away.load(Ordering::SeqCst) {
            return Err(RuntimeError::Unavailable { runtime: "fake", detail: "it is away".to_owned() });
        }
        self.told.lock().unwrap().push(Told::Start(spec.id));
        self.envs.lock().unwrap().insert(spec.deployment, spec.env.clone());
        self.specs.lock().unwrap().push(spec.clone());
        for volume in &spec.volumes {
            let label = spec.label.as_ref().map_or("-", |label| label.as_str());
            let stored = StoredVolume {
                place: format!("{}.{}.{label}.{}", spec.app, spec.environment, volume.name),
                app: spec.app.clone(),
                environment: spec.environment.clone(),
                label: spec.label.clone(),
                name: volume.name.clone(),
            };
            let mut volumes = self.volumes.lock().unwrap();
            if !volumes.contains(&stored) {
                volumes.push(stored);
            }
        }
        let listener = TcpListener::bind((own_address(), 0)).await.unwrap();
        let mut address = listener.local_addr().unwrap();
        let tls = self.tls.lock().unwrap().clone();
        if let Some(tls) = tls {
            address = unwrapping(tls.into(), address).await;
        }
        let is_again = self.instances.lock().unwrap().contains_key(&spec.id);
        let behaviour = match spec.command[0].as_str() {
            "nap" if is_again => "deaf",
            "each" => &spec.command[self.of(spec.deployment).len() + 1],
            behaviour => behaviour,
        };
        let is_sick = behaviour == "sick" || self.starts_sick.load(Ordering::SeqCst);
        let sick = Arc::new(AtomicBool::new(is_sick));
        let state = match behaviour {
            "refused" => {
                let detail = "no room left".to_owned();
                return Err(RuntimeError::Refused { action: "start", instance: spec.id, detail });
            }
            "container" => InstanceState::Running { health: health(&spec.command[1]) },
            "exit" => InstanceState::Exited(Exit { code: Some(3), ..Exit::default() }),
            "done" => InstanceState::Exited(Exit { code: Some(0), ..Exit::default() }),
            _ if !self.has_health_check.load(Ordering::SeqCst) => {
                InstanceState::Running { health: Health::None }
            }
            _ if sick.load(Ordering::SeqCst) => InstanceState::Running { health: Health::Unhealthy },
            _ => InstanceState::Running { health: Health::Healthy },
        };
        let instance = Instance {
            id: spec.id,
            app: spec.app.clone(),
            environment: spec.environment.clone(),
            deployment: spec.deployment,
            operation: spec.operation,
            handle: address.port().to_string(),
            state,
            address: (behaviour != "portless").then_some(address),
            started_at: Some(Timestamp::now()),
        };
        let statuses =
            if behaviour == "answers" { spec.command[1..].to_vec() } else { vec!["200".to_owned()] };
        let answered: Arc<AtomicUsize> = Arc::default();
        let answers = Answers {
            statuses,
            stalls: (behaviour == "stall").then(|| (self.stalled.clone(), self.unstalled.clone())),
            errs_every: (behaviour == "errs").then(|| spec.command[1].parse().unwrap()),
            asked: 0,
            version: spec.command.last().unwrap().clone(),
            sick: sick.clone(),
            refusals: self.refusals.clone(),
            answered: answered.clone(),
        };
        let task = match behaviour {
            "exit" | "done" | "deaf" | "container" => {
                drop(listener);
                None
            }
            _ => Some(answers.give_for_ever(listener)),
        };
        self.instances
            .lock()
            .unwrap()
            .insert(spec.id, Life { instance: instance.clone(), sick, task, answered });
        self.most.fetch_max(self.running().len(), Ordering::SeqCst);
        Ok(instance)
    }
}

/// A loopback address that no other instance has, of no test: on one that they share, the port of an instance that is deaf
/// or has ended would go to another's, which answers.
fn own_address() -> Ipv4Addr {
    const FIRST: u32 = u32::from_be_bytes([127, 1, 0, 0]);
    const COUNT: u32 = 0xfe_0000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Tests in processes of their own have neighbouring ids.
    let begin = std::process::id().wrapping_mul(0x9E37_79B1) % COUNT;
    Ipv4Addr::from(FIRST + (begin + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT)
}

/// Takes TLS off what goes to `inner`; returns where.
async fn unwrapping(acceptor: TlsAcceptor, inner: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((own_address(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::runtime::Handle::current().spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            if let Ok(mut inner) = TcpStream::connect(inner).await {
                drop(tokio::io::copy_bidirectional(&mut stream, &mut inner).await);
            }
        }
    });
    address
}

impl Runtime for FakeRuntime {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Process
    }

    fn ping(&self) -> Answer<'_, String> {
        self.answer(|| Ok("fake".to_owned()))
    }

    fn prepare<'a>(&'a self, source: &'a Source, _progress: mpsc::Sender<String>) -> Answer<'a, Pinned> {
        let mut digest = source.command.join(" ");
        if self.are_programs_changed.load(Ordering::SeqCst) {
            digest.push_str(" (changed)");
        }
        let has_health_check =
            self.has_health_check.load(Ordering::SeqCst) || source.command[0] == "container";
        self.answer(|| Ok(Pinned { digest, has_health_check, exposed_port: None }))
    }

    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> Answer<'a, Instance> {
        Box::pin(self.begin(spec))
    }

    /// One that runs is left alone.
    fn restart<'a>(&'a self, spec: &'a InstanceSpec) -> Answer<'a, Instance> {
        let known = self.instances.lock().unwrap().get(&spec.id).map(|life| life.instance.clone());
        match known.filter(Instance::is_running) {
            Some(instance) => self.answer(|| Ok(instance)),
            None => Box::pin(self.begin(spec)),
        }
    }

    fn inspect<'a>(&'a self, id: &'a InstanceId) -> Answer<'a, Option<Instance>> {
        let found = self.instances.lock().unwrap().get(id).map(|life| life.instance.clone());
        self.answer(|| Ok(found))
    }

    fn list(&self) -> Answer<'_, Vec<Instance>> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        let all = self.instances.lock().unwrap().values().map(|life| life.instance.clone()).collect();
        self.answer(|| Ok(all))
    }

    fn stop<'a>(&'a self, id: &'a InstanceId, _: Option<StopSignal>, _: Duration) -> Answer<'a, Exit> {
        let held = self.held_stops.lock().unwrap().clone();
        let stopped = self.answer(|| {
            passed("fake.stop")?;
            self.told.lock().unwrap().push(Told::Stop(*id));
            let exit = Exit { code: Some(0), ..Exit::default() };
            if let Some(life) = self.instances.lock().unwrap().get_mut(id) {
                life.instance.state = InstanceState::Exited(exit.clone());
                life.task.take().inspect(AbortHandle::abort);
            }
            Ok(exit)
        });
        Box::pin(async move {
            if let Some(held) = held {
                held.notified().await;
            }
            stopped.await
        })
    }

    fn remove<'a>(&'a self, id: &'a InstanceId) -> Answer<'a, ()> {
        self.answer(|| {
            passed("fake.remove")?;
            self.told.lock().unwrap().push(Told::Remove(*id));
            self.instances.lock().unwrap().remove(id);
            Ok(())
        })
    }

    fn remove_volumes<'a>(&'a self, scope: &'a VolumeScope) -> Answer<'a, ()> {
        self.answer(|| {
            self.told.lock().unwrap().push(Told::RemoveVolumes(scope.clone()));
            let is_in = |volume: &StoredVolume| {
                volume.app == scope.app
                    && scope.of.as_ref().is_none_or(|(environment, label)| {
                        (&volume.environment, &volume.label) == (environment, label)
                    })
            };
            self.volumes.lock().unwrap().retain(|volume| !is_in(volume));
            Ok(())
        })
    }

    fn remove_volume<'a>(&'a self, place: &'a str) -> Answer<'a, ()> {
        self.answer(|| {
            self.told.lock().unwrap().push(Told::RemoveVolume(place.to_owned()));
            self.volumes.lock().unwrap().retain(|volume| volume.place != place);
            Ok(())
        })
    }

    fn volumes(&self) -> Answer<'_, Vec<StoredVolume>> {
        self.answer(|| Ok(self.volumes.lock().unwrap().clone()))
    }

    fn logs<'a>(&'a self, _: &'a InstanceId, _: usize) -> Answer<'a, Vec<String>> {
        self.answer(|| Ok(vec!["the last line it wrote".to_owned()]))
    }

    fn follow<'a>(&'a self, _: &'a InstanceId, _: usize) -> Answer<'a, Follow> {
        self.answer(|| {
            let ended: Follow = Box::pin(futures_util::stream::empty());
            Ok(ended)
        })
    }

    /// Those that are deaf listen elsewhere.
    fn ports<'a>(&'a self, _: &'a InstanceId) -> Answer<'a, Ports> {
        self.answer(|| Ok(Ports::Listening(vec![([127, 0, 0, 1], 9).into()])))
    }

    fn watch(&self) -> mpsc::Receiver<Changed> {
        let (sender, receiver) = mpsc::channel(8);
        self.watchers.lock().unwrap().push(sender);
        receiver
    }
}

/// A fail point of its own, as the engine has them.
fn passed(point: &'static str) -> Result<(), RuntimeError> {
    let failed = |fault: lockgate::fault::Injected| RuntimeError::Unavailable {
        runtime: "fake",
        detail: fault.to_string(),
    };
    lockgate::fault::at(point).map_err(failed)
}

fn health(word: &str) -> Health {
    match word {
        "healthy" => Health::Healthy,
        "unhealthy" => Health::Unhealthy,
        _ => Health::Starting,
    }
}

fn is_health_check(head: &[u8]) -> bool {
    head.starts_with(b"GET /up ")
}

/// What an instance answers: 500 while it is sick, else one status after the other, and the last one from then on.
struct Answers {
    statuses: Vec<String>,
    stalls: Option<(Arc<AtomicUsize>, Arc<Notify>)>,
    /// Every so many requests, but those of the health check, 500.
    errs_every: Option<u64>,
    asked: u64,
    /// The last word of its command, which it tells.
    version: String,
    sick: Arc<AtomicBool>,
    refusals: Arc<AtomicUsize>,
    answered: Arc<AtomicUsize>,
}

impl Answers {
    fn give_for_ever(mut self, listener: TcpListener) -> AbortHandle {
        let task = tokio::runtime::Handle::current().spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 4096];
                if stream.read(&mut head).await.is_ok_and(|read| read > 0) {
                    let status = if self.errs(&head) { "500" } else { self.next() };
                    let version = &self.version;
                    let answer = format!(
                        "HTTP/1.1 {status} -\r\nx-version: {version}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                    );
                    match self.stalls.clone().filter(|_| !is_health_check(&head)) {
                        None => drop(stream.write_all(answer.as_bytes()).await),
                        Some((stalled, unstalled)) => {
                            tokio::runtime::Handle::current().spawn(async move {
                                stalled.fetch_add(1, Ordering::SeqCst);
                                unstalled.notified().await;
                                drop(stream.write_all(answer.as_bytes()).await);
                            });
                        }
                    }
                }
            }
        });
        task.abort_handle()
    }

    fn errs(&mut self, head: &[u8]) -> bool {
        let Some(every) = self.errs_every.filter(|_| !is_health_check(head)) else { return false };
        self.asked += 1;
        self.asked.is_multiple_of(every)
    }

    fn next(&self) -> &str {
        let at = self.answered.fetch_add(1, Ordering::SeqCst).min(self.statuses.len() - 1);
        let is_sick = self.sick.load(Ordering::SeqCst);
        self.refusals.fetch_add(usize::from(is_sick), Ordering::SeqCst);
        if is_sick { "500" } else { &self.statuses[at] }
    }
}
