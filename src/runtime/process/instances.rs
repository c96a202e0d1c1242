//! All instances of this installation: what is written down of them, joined with what runs.
//!
//! # Invariants
//! 1. An instance's record is written before its process starts, and goes after its last process was killed.
//! 2. A life without an exit is of a process that runs, or whose end nobody has looked at yet.
//! 3. Between a start and its life on disk the process is found by its mark: see [`Mark::leader`].
//! 4. The first process is reaped only after the others of its group were killed: until then the group's
//!    number cannot be another's.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::Signal;
use tokio::sync::broadcast;

use super::cgroup::Cgroups;
use super::command::Program;
use super::identity::{Handle, Identity};
use super::members::Mark;
use super::port::Hold;
use super::record::{Life, Place, Record, private};
use super::volumes::Volumes;
use super::{members, output, port, spawn};
use crate::clock::Clock;
use crate::fault;
use crate::ids::{InstanceId, LockgateId};
use crate::runtime::{
    Exit, Health, Instance, InstanceSpec, InstanceState, RuntimeError, StoredVolume, VolumeScope, sockets,
};
use crate::settings::{Enforced, Enforcement};

const HINTS: usize = 256;
/// A member may fork while it is looked for; what is born in each look is caught by the next.
const LOOKS_FOR_MEMBERS: usize = 8;

#[derive(Debug)]
pub(super) struct Instances {
    root: PathBuf,
    volumes: Volumes,
    lockgate: LockgateId,
    clock: Arc<dyn Clock>,
    /// Held by whoever reads and then changes what is on disk. In it what keeps the ports of those that do not listen yet
    /// from other Lockgates.
    changing: Mutex<HashMap<InstanceId, Hold>>,
    cgroups: Cgroups,
    ended: broadcast::Sender<InstanceId>,
}

/// An instance as it was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) record: Record,
    life: Option<Life>,
    pub(super) now: Now,
}

/// What it does at the moment.
#[derive(Debug)]
pub(super) enum Now {
    NeverRan,
    Runs(Handle),
    Ended(Exit),
}

/// Whether an instance that ended is to run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    No,
    Yes,
}

impl Instances {
    pub(super) fn open(data_dir: &Path, lockgate: LockgateId, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let (root, volumes) = (data_dir.join("instances"), Volumes::at(data_dir.join("volumes")));
        private().create(&root)?;
        let (ended, _) = broadcast::channel(HINTS);
        let cgroups = Cgroups::find(lockgate);
        Ok(Self { root, volumes, lockgate, clock, changing: Mutex::default(), cgroups, ended })
    }

    /// How far they are held to their limits.
    pub(super) fn enforcement(&self) -> Enforcement {
        self.cgroups.enforcement()
    }

    /// Names of instances as they end.
    pub(super) fn ends(&self) -> broadcast::Receiver<InstanceId> {
        self.ended.subscribe()
    }

    pub(super) fn find(&self, instance: InstanceId) -> io::Result<Option<Found>> {
        let _changing = self.change();
        self.look(instance)
    }

    pub(super) fn list(&self) -> io::Result<Vec<Found>> {
        let _changing = self.change();
        let mut found = Vec::new();
        for instance in self.ids()? {
            match self.look(instance) {
                Ok(seen) => found.extend(seen),
                // One that cannot be read must not hide the others.
                Err(cause) => tracing::warn!(%instance, %cause, "instance cannot be read"),
            }
        }
        Ok(found)
    }

    /// The instance of `spec`, running, or as it is if it has run and is not to run again.
    pub(super) fn start(&self, spec: &InstanceSpec, again: Again) -> Result<Found, RuntimeError> {
        let action = if again == Again::Yes { "restart" } else { "start" };
        let cannot =
            |cause: io::Error| RuntimeError::Refused { action, instance: spec.id, detail: cause.to_string() };
        spec.check()?;
        let program = Program::find(&spec.command, spec.directory.as_deref())?;
        let mut changing = self.change();
        let known = self.look(spec.id).map_err(cannot)?;
        let port = match (known, again) {
            (None, Again::Yes) => return Err(RuntimeError::NotFound { instance: spec.id }),
            (Some(found), _) if matches!(found.now, Now::Runs(_)) => return Ok(found),
            (Some(found), Again::No) if matches!(found.now, Now::Ended(_)) => return Ok(found),
            (Some(found), _) => Some(found.record.port).filter(|port| port::is_free(*port)),
            (None, Again::No) => None,
        };
        if !program.is_pinned_by(&spec.digest) {
            if again == Again::No {
                return Err(RuntimeError::Command {
                    command: spec.command.join(" "),
                    detail: "the program is another than when the deploy was prepared: deploy again"
                        .to_owned(),
                });
            }
            // Better than not running at all.
            tracing::warn!(instance = %spec.id, program = %program.path.display(), "program changed since the deploy");
        }
        let place = Place::of(&self.root, spec.id);
        changing.retain(|instance, hold| *instance != spec.id && port::is_free(hold.port));
        let hold = port.and_then(port::hold);
        let hold = hold.map_or_else(|| port::choose(&self.kept_ports()), Ok).map_err(cannot)?;
        let record = Record::new(self.lockgate, spec, hold.port);
        let written =
            place.create().and_then(|()| place.forget_life()).and_then(|()| place.write_record(&record));
        written.map_err(cannot)?;
        changing.insert(spec.id, hold);
        fault::at("runtime.process.recorded").map_err(io::Error::other).map_err(cannot)?;
        let volumes = self.volumes.ensure(spec).map_err(cannot)?;
        let has_group = self.cgroups.create(spec.id, &spec.resources);
        let has_memory_limit = has_group && self.enforcement().memory == Enforced::Exactly;
        let spawned = spawn::spawn(spec, &program, (&record, &place), &volumes, has_memory_limit);
        if spawned.is_err() {
            self.cgroups.sweep();
            if again == Again::No {
                place.remove().map_err(cannot)?;
                changing.remove(&spec.id);
            }
        }
        let pid = spawned.map_err(|cause| RuntimeError::Command {
            command: program.path.display().to_string(),
            detail: cause.to_string(),
        })?;
        fault::at("runtime.process.spawned").map_err(io::Error::other).map_err(cannot)?;
        // Its parent has not waited for it: it is there, if only as a zombie.
        let identity = Identity::of(pid).ok_or_else(|| cannot(io::ErrorKind::NotFound.into()))?;
        self.adopt(spec.id, &place, identity).map_err(cannot)?;
        self.look(spec.id).map_err(cannot)?.ok_or(RuntimeError::NotFound { instance: spec.id })
    }

    /// Kills all that is left of it.
    pub(super) fn kill(&self, instance: InstanceId, first: &Handle) {
        first.signal(Signal::KILL);
        self.kill_members(instance, Some(first));
    }

    /// Removes all of it; refused while it runs.
    pub(super) fn remove(&self, instance: InstanceId) -> Result<(), RuntimeError> {
        let cannot = |detail: String| RuntimeError::Refused { action: "remove", instance, detail };
        let mut changing = self.change();
        let place = Place::of(&self.root, instance);
        if let Ok(Some(Found { now: Now::Runs(_), .. })) = self.look(instance) {
            return Err(cannot("it runs: stop it first".to_owned()));
        }
        if place.exists() {
            self.kill_members(instance, None);
            self.cgroups.sweep();
            place.remove().map_err(|cause| cannot(cause.to_string()))?;
        }
        changing.remove(&instance);
        Ok(())
    }

    /// Removes volumes; refused while an instance is there that they may be of.
    pub(super) fn remove_volumes(&self, scope: &VolumeScope) -> Result<(), RuntimeError> {
        let place = self.volumes.root().join(scope.app.as_str()).display().to_string();
        let _changing = self.change();
        self.refuse_if_had(scope, &place)?;
        self.volumes.remove(scope).map_err(|cause| not_removed(&place, cause.to_string()))
    }

    /// Removes the volume of that place; refused while an instance is there that it may be of.
    pub(super) fn remove_volume(&self, place: &str) -> Result<(), RuntimeError> {
        let _changing = self.change();
        let all = self.volumes.list().map_err(|cause| not_removed(place, cause.to_string()))?;
        let Some(found) = all.into_iter().find(|volume| volume.place == place) else { return Ok(()) };
        let scope = VolumeScope {
            app: found.app.clone(),
            of: Some((found.environment.clone(), found.label.clone())),
        };
        self.refuse_if_had(&scope, place)?;
        self.volumes.remove_one(&found).map_err(|cause| not_removed(place, cause.to_string()))
    }

    fn refuse_if_had(&self, scope: &VolumeScope, place: &str) -> Result<(), RuntimeError> {
        let cannot = |detail: String| not_removed(place, detail);
        for id in self.ids().map_err(|cause| cannot(cause.to_string()))? {
            let record = Place::of(&self.root, id).record().map_err(|cause| cannot(cause.to_string()))?;
            let is_of = |record: &Record| {
                record.app == scope.app
                    && scope.of.as_ref().is_none_or(|(environment, label)| {
                        (&record.environment, &record.label) == (environment, label)
                    })
            };
            if record.is_some_and(|record| is_of(&record)) {
                return Err(cannot(format!("instance {id} has it")));
            }
        }
        Ok(())
    }

    pub(super) fn volumes(&self) -> Result<Vec<StoredVolume>, RuntimeError> {
        self.volumes.list().map_err(|cause| RuntimeError::Volume {
            action: "list",
            volume: self.volumes.root().display().to_string(),
            detail: cause.to_string(),
        })
    }

    /// What its processes listen on.
    pub(super) fn listening(&self, instance: InstanceId) -> Vec<SocketAddr> {
        let members = self.mark(instance, None).members();
        let sockets: HashSet<u64> =
            members.iter().flat_map(|member| members::sockets(member.identity.pid)).collect();
        let all = sockets::listening(Path::new("/proc/self/net"));
        all.into_iter().filter(|one| sockets.contains(&one.inode)).map(|one| one.address).collect()
    }

    /// The last lines that it wrote, or `None` if it is not there.
    pub(super) fn output(&self, instance: InstanceId, lines: usize) -> io::Result<Option<Vec<String>>> {
        let place = Place::of(&self.root, instance);
        if !place.exists() {
            return Ok(None);
        }
        output::last(&place.output(), lines).map(Some)
    }

    /// A reader of what it writes, or `None` if it is not there.
    pub(super) fn follow(&self, instance: InstanceId, lines: usize) -> io::Result<Option<output::Follower>> {
        let place = Place::of(&self.root, instance);
        if !place.exists() {
            return Ok(None);
        }
        output::Follower::open(place.output(), lines).map(Some)
    }

    /// Removes what is left of the groups of those that ended: a process may go on for a moment after it was killed.
    pub(super) fn sweep_groups(&self) {
        let _changing = self.change();
        self.cgroups.sweep();
    }

    /// Cuts outputs that grew past their size.
    pub(super) fn cut_outputs(&self) -> io::Result<()> {
        for instance in self.ids()? {
            match output::cut(&Place::of(&self.root, instance).output(), output::SIZE) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%instance, %cause, "output not cut");
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn look(&self, instance: InstanceId) -> io::Result<Option<Found>> {
        let place = Place::of(&self.root, instance);
        let Some(record) = place.record()?.filter(|record| record.lockgate == self.lockgate) else {
            return Ok(None);
        };
        let mut life = place.life()?;
        if life.is_none()
            && let Some(identity) = self.mark(instance, None).leader()
        {
            tracing::info!(%instance, pid = identity.pid, "adopted a process that was started and not yet noted");
            life = Some(self.adopt(instance, &place, identity)?);
        }
        let now = match &mut life {
            None => Now::NeverRan,
            Some(life) => self.now(&place, &record, life)?,
        };
        Ok(Some(Found { record, life, now }))
    }

    /// Notes the end of one that ended unnoticed.
    fn now(&self, place: &Place, record: &Record, life: &mut Life) -> io::Result<Now> {
        if let Some(exit) = &life.exit {
            return Ok(Now::Ended(exit.clone()));
        }
        let handle = match life.identity.open() {
            Some(handle) if !handle.has_ended() => return Ok(Now::Runs(handle)),
            ended => ended,
        };
        self.kill_members(record.id, handle.as_ref());
        let code = handle.and_then(|handle| handle.reap());
        // One of its children may have been ended so, and it left in order.
        let out_of_memory = code != Some(0) && self.cgroups.wanted_memory(record.id);
        let exit = Exit { code, out_of_memory, killed: false };
        self.cgroups.sweep();
        life.exit = Some(exit.clone());
        place.write_life(life)?;
        // Nobody may listen.
        drop(self.ended.send(record.id));
        Ok(Now::Ended(exit))
    }

    fn adopt(&self, instance: InstanceId, place: &Place, identity: Identity) -> io::Result<Life> {
        if self.cgroups.exist() {
            self.cgroups.enter(instance, identity.pid);
            // What it forked before it was moved.
            let others = self.mark(instance, identity.open().as_ref()).members();
            others.iter().for_each(|other| self.cgroups.enter(instance, other.identity.pid));
        }
        let life = Life { identity, started_at: self.clock.wall(), exit: None };
        place.write_life(&life)?;
        Ok(life)
    }

    fn kill_members(&self, instance: InstanceId, first: Option<&Handle>) {
        let mark = self.mark(instance, first);
        for _ in 0..LOOKS_FOR_MEMBERS {
            let members = mark.members();
            if members.is_empty() {
                return;
            }
            members.iter().for_each(|member| member.signal(Signal::KILL));
        }
    }

    fn mark<'a>(&self, instance: InstanceId, first: Option<&'a Handle>) -> Mark<'a> {
        Mark { lockgate: self.lockgate, instance, first }
    }

    fn kept_ports(&self) -> HashSet<u16> {
        let records = self.ids().unwrap_or_default();
        let records = records.into_iter().filter_map(|id| Place::of(&self.root, id).record().ok()?);
        records.map(|record| record.port).collect()
    }

    fn ids(&self) -> io::Result<Vec<InstanceId>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            ids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<InstanceId>().ok()));
        }
        ids.sort();
        Ok(ids)
    }

    fn change(&self) -> MutexGuard<'_, HashMap<InstanceId, Hold>> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Found {
    pub(super) fn instance(&self) -> Instance {
        let (state, runs) = match &self.now {
            Now::NeverRan => (InstanceState::Created, false),
            Now::Runs(_) => (InstanceState::Running { health: Health::None }, true),
            Now::Ended(exit) => (InstanceState::Exited(exit.clone()), false),
        };
        let record = &self.record;
        Instance {
            id: record.id,
            app: record.app.clone(),
            environment: record.environment.clone(),
            deployment: record.deployment,
            operation: record.operation,
            handle: self.life.as_ref().map_or_else(String::new, |life| life.identity.pid.to_string()),
            state,
            address: runs.then(|| SocketAddr::from((Ipv4Addr::LOCALHOST, record.port))),
            started_at: self.life.as_ref().map(|life| life.started_at),
        }
    }
}

fn not_removed(place: &str, detail: String) -> RuntimeError {
    RuntimeError::Volume { action: "remove", volume: place.to_owned(), detail }
}
