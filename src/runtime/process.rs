//! Plain processes of this machine, where no engine runs. Linux.
//!
//! # What holds
//! - An instance goes on while Lockgate is away, even killed, and is adopted again by pid, start time and boot.
//! - No signal ever goes to a process that is not the instance's: see `identity`.
//! - What its first process leaves behind when it ends is killed, as with a container.
//! - Lockgate may be killed between any two lines: see `instances`.
//!
//! # What an engine does better
//! Apps see each other and the machine; where there is no cgroup v2 for us (`cgroup`), CPU and the number of processes
//! are not bounded, and memory only roughly; a changed program is found out but not kept. Under systemd the unit needs
//! `KillMode=process`, or a restart of Lockgate ends its instances as well.

mod cgroup;
mod command;
mod follow;
mod identity;
mod instances;
mod members;
mod output;
mod port;
mod record;
mod spawn;
mod volumes;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};

use self::command::Program;
use self::identity::Handle;
use self::instances::{Again, Instances, Now};
use super::{
    Answer, Changed, Exit, Follow, Instance, InstanceSpec, Pinned, Ports, Runtime, RuntimeError, Source,
    StoredVolume, VolumeScope,
};
use crate::clock::Clock;
use crate::ids::{InstanceId, LockgateId};
use crate::settings::{Enforcement, RuntimeKind, StopSignal};

/// Of whatever looks at the disk and the process table.
const LIMIT: Duration = Duration::from_secs(10);
/// From SIGKILL to the end of the process.
const KILL_LIMIT: Duration = Duration::from_secs(15);
const TIDIED_EVERY: Duration = Duration::from_secs(5);
const HINTS: usize = 256;

/// The `process` runtime.
#[derive(Debug)]
pub struct Process {
    instances: Arc<Instances>,
    clock: Arc<dyn Clock>,
    tasks: Mutex<JoinSet<()>>,
}

impl Process {
    /// Of the instances under `data_dir`, those that run adopted. Its tasks end with it; the instances go on.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`] where `data_dir` cannot be read or written.
    pub async fn open(
        data_dir: &Path,
        lockgate: LockgateId,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, RuntimeError> {
        let instances = Instances::open(data_dir, lockgate, Arc::clone(&clock));
        let process = Self {
            instances: Arc::new(instances.map_err(|cause| unavailable(&cause))?),
            clock: Arc::clone(&clock),
            tasks: Mutex::default(),
        };
        for found in
            process.blocking(|instances| instances.list().map_err(|cause| unavailable(&cause))).await?
        {
            if let Now::Runs(handle) = found.now {
                process.attend(found.record.id, handle);
            }
        }
        process.own(keep_tidy(Arc::clone(&process.instances), clock));
        Ok(process)
    }

    /// Does `work` on a thread that may block, for a limited time.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Instances) -> Result<T, RuntimeError> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        let instances = Arc::clone(&self.instances);
        tokio::select! {
            done = spawn_blocking(move || work(&instances)) => {
                done.unwrap_or_else(|cause| Err(unavailable(&io::Error::other(cause))))
            }
            () = self.clock.sleep(LIMIT) => {
                Err(unavailable(&io::Error::new(io::ErrorKind::TimedOut, "the disk or the process table does not answer")))
            }
        }
    }

    async fn begin(&self, spec: &InstanceSpec, again: Again) -> Result<Instance, RuntimeError> {
        let spec = spec.clone();
        let found = self.blocking(move |instances| instances.start(&spec, again)).await?;
        let instance = found.instance();
        if let Now::Runs(handle) = found.now {
            self.attend(instance.id, handle);
        }
        Ok(instance)
    }

    async fn find(&self, instance: InstanceId) -> Result<Option<instances::Found>, RuntimeError> {
        self.blocking(move |instances| instances.find(instance).map_err(|cause| unavailable(&cause))).await
    }

    async fn stop_in_order(
        &self,
        instance: InstanceId,
        signal: Option<StopSignal>,
        grace: Duration,
    ) -> Result<Exit, RuntimeError> {
        let Some(found) = self.find(instance).await? else { return Ok(Exit::default()) };
        let handle = match found.now {
            Now::NeverRan => return Ok(Exit::default()),
            Now::Ended(exit) => return Ok(exit),
            Now::Runs(handle) => Arc::new(handle),
        };
        let heeded = !grace.is_zero() && {
            handle.signal(signal_of(signal.or(found.record.stop_signal).unwrap_or(StopSignal::Term)));
            self.ended_within(&handle, grace).await
        };
        if !heeded {
            let first = Arc::clone(&handle);
            self.blocking(move |instances| {
                instances.kill(instance, &first);
                Ok(())
            })
            .await?;
            if !self.ended_within(&handle, KILL_LIMIT).await {
                let detail = format!("it still runs {} s after SIGKILL", KILL_LIMIT.as_secs());
                return Err(RuntimeError::Refused { action: "stop", instance, detail });
            }
        }
        // Whoever looks first after the end also ends what it left behind.
        let exit = match self.find(instance).await?.map(|found| found.now) {
            Some(Now::Ended(exit)) => exit,
            Some(Now::NeverRan | Now::Runs(_)) | None => Exit::default(),
        };
        Ok(Exit { killed: !heeded, ..exit })
    }

    async fn ended_within(&self, handle: &Handle, limit: Duration) -> bool {
        tokio::select! {
            () = handle.ended(&*self.clock) => true,
            () = self.clock.sleep(limit) => handle.has_ended(),
        }
    }

    /// Waits for its end in a task of its own: takes its exit code and tells the watchers.
    fn attend(&self, instance: InstanceId, handle: Handle) {
        let (instances, clock) = (Arc::clone(&self.instances), Arc::clone(&self.clock));
        self.own(async move {
            handle.ended(&*clock).await;
            let noted = spawn_blocking(move || instances.find(instance)).await;
            if let Ok(Err(cause)) = noted {
                tracing::warn!(%instance, %cause, "its end cannot be noted");
            }
        });
    }

    fn own(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

impl Runtime for Process {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Process
    }

    fn ping(&self) -> Answer<'_, String> {
        Box::pin(async { Ok("processes of this machine".to_owned()) })
    }

    fn enforcement(&self) -> Enforcement {
        self.instances.enforcement()
    }

    fn prepare<'a>(&'a self, source: &'a Source, _progress: mpsc::Sender<String>) -> Answer<'a, Pinned> {
        let (command, directory) = (source.command.clone(), source.directory.clone());
        Box::pin(async move {
            let program = self.blocking(move |_| Program::find(&command, directory.as_deref())).await?;
            Ok(Pinned { digest: program.digest, has_health_check: false, exposed_port: None })
        })
    }

    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> Answer<'a, Instance> {
        Box::pin(self.begin(spec, Again::No))
    }

    fn restart<'a>(&'a self, spec: &'a InstanceSpec) -> Answer<'a, Instance> {
        Box::pin(self.begin(spec, Again::Yes))
    }

    fn inspect<'a>(&'a self, instance: &'a InstanceId) -> Answer<'a, Option<Instance>> {
        Box::pin(async move { Ok(self.find(*instance).await?.map(|found| found.instance())) })
    }

    fn list(&self) -> Answer<'_, Vec<Instance>> {
        Box::pin(async {
            let found =
                self.blocking(|instances| instances.list().map_err(|cause| unavailable(&cause))).await?;
            Ok(found.iter().map(instances::Found::instance).collect())
        })
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
        let instance = *instance;
        Box::pin(self.blocking(move |instances| instances.remove(instance)))
    }

    fn remove_volumes<'a>(&'a self, scope: &'a VolumeScope) -> Answer<'a, ()> {
        let scope = scope.clone();
        Box::pin(self.blocking(move |instances| instances.remove_volumes(&scope)))
    }

    fn remove_volume<'a>(&'a self, place: &'a str) -> Answer<'a, ()> {
        let place = place.to_owned();
        Box::pin(self.blocking(move |instances| instances.remove_volume(&place)))
    }

    fn volumes(&self) -> Answer<'_, Vec<StoredVolume>> {
        Box::pin(self.blocking(|instances| instances.volumes()))
    }

    fn logs<'a>(&'a self, instance: &'a InstanceId, lines: usize) -> Answer<'a, Vec<String>> {
        let instance = *instance;
        Box::pin(async move {
            let read = move |instances: &Instances| {
                instances.output(instance, lines).map_err(|cause| unread(instance, &cause))
            };
            self.blocking(read).await?.ok_or(RuntimeError::NotFound { instance })
        })
    }

    fn follow<'a>(&'a self, instance: &'a InstanceId, lines: usize) -> Answer<'a, Follow> {
        let instance = *instance;
        Box::pin(async move {
            let open = move |instances: &Instances| {
                instances.follow(instance, lines).map_err(|cause| unread(instance, &cause))
            };
            let follower = self.blocking(open).await?.ok_or(RuntimeError::NotFound { instance })?;
            Ok(follow::lines(Arc::clone(&self.instances), Arc::clone(&self.clock), instance, follower))
        })
    }

    fn ports<'a>(&'a self, instance: &'a InstanceId) -> Answer<'a, Ports> {
        let instance = *instance;
        Box::pin(self.blocking(move |instances| Ok(Ports::Listening(instances.listening(instance)))))
    }

    fn watch(&self) -> mpsc::Receiver<Changed> {
        let (hints, receiver) = mpsc::channel(HINTS);
        self.own(pass_on(self.instances.ends(), hints));
        receiver
    }
}

/// Until nobody listens.
async fn pass_on(mut ends: broadcast::Receiver<InstanceId>, hints: mpsc::Sender<Changed>) {
    loop {
        let hint = tokio::select! {
            () = hints.closed() => return,
            end = ends.recv() => match end {
                Ok(instance) => Changed::One(instance),
                Err(RecvError::Lagged(_)) => Changed::All,
                Err(RecvError::Closed) => return,
            },
        };
        if hints.send(hint).await.is_err() {
            return;
        }
    }
}

async fn keep_tidy(instances: Arc<Instances>, clock: Arc<dyn Clock>) {
    loop {
        clock.sleep(TIDIED_EVERY).await;
        let instances = Arc::clone(&instances);
        let tidied = spawn_blocking(move || {
            instances.sweep_groups();
            instances.cut_outputs()
        });
        if let Ok(Err(cause)) = tidied.await {
            tracing::warn!(%cause, "outputs not cut");
        }
    }
}

fn unread(instance: InstanceId, cause: &io::Error) -> RuntimeError {
    RuntimeError::Refused { action: "read logs of", instance, detail: cause.to_string() }
}

fn unavailable(cause: &io::Error) -> RuntimeError {
    RuntimeError::Unavailable { runtime: "process", detail: cause.to_string() }
}

fn signal_of(signal: StopSignal) -> Signal {
    match signal {
        StopSignal::Term => Signal::TERM,
        StopSignal::Int => Signal::INT,
        StopSignal::Quit => Signal::QUIT,
        StopSignal::Hup => Signal::HUP,
        StopSignal::Usr1 => Signal::USR1,
        StopSignal::Usr2 => Signal::USR2,
        StopSignal::Winch => Signal::WINCH,
    }
}
