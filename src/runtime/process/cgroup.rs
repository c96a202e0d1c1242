//! CPU, memory and processes of an instance bounded by cgroup v2, where this machine lets us.
//!
//! ```text
//! <base>/lockgate-<id>/<instance>
//! ```
//! The base is the group that systemd delegated to us (`Delegate=yes` and `DelegateSubgroup=`, without which our own
//! process stands in the way), or else the hierarchy's root where we may write there.
//!
//! A group only bounds: which processes are an instance's is decided by `members`, with or without one. It is made
//! before its process starts, found again by the instance's name, and goes once no process is left in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::ids::{InstanceId, LockgateId};
use crate::settings::{Enforced, Enforcement, ResourceSettings};

const MOUNTS: &str = "/proc/self/mountinfo";
const OWN_GROUP: &str = "/proc/self/cgroup";
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Of `cpu.max`, in microseconds: the kernel's own default.
const PERIOD: u64 = 100_000;
/// The kernel takes no less.
const QUOTA_MIN: u64 = 1_000;

/// The groups of one Lockgate's instances.
#[derive(Debug)]
pub(super) struct Cgroups(Option<Base>);

/// Where groups can be made, and what they can bound.
#[derive(Debug)]
struct Base {
    base: PathBuf,
    parent: PathBuf,
    controllers: Vec<&'static str>,
}

impl Cgroups {
    /// Looks for what this machine lets us do, and says so once.
    pub(super) fn find(lockgate: LockgateId) -> Self {
        let (mounts, own) = (fs::read_to_string(MOUNTS), fs::read_to_string(OWN_GROUP));
        let found = match (mounts, own) {
            (Ok(mounts), Ok(own)) => Base::find(&mounts, &own, lockgate, is_delegated),
            (Err(cause), _) | (_, Err(cause)) => Err(cause.to_string()),
        };
        match &found {
            Ok(base) if base.controllers == CONTROLLERS => {
                tracing::info!(group = %base.parent.display(), "limits of instances are kept by cgroups");
            }
            Ok(base) => tracing::warn!(
                group = %base.parent.display(), kept = ?base.controllers,
                "not all limits of instances are kept: delegate the controllers cpu, memory and pids"
            ),
            Err(cause) => tracing::warn!(
                cause,
                "limits of CPU and processes are not kept, and that of memory only roughly: run as root, or under \
                 systemd with Delegate=yes and DelegateSubgroup=lockgate, on a machine with cgroup v2"
            ),
        }
        Self(found.ok())
    }

    /// Whether there are any.
    pub(super) fn exist(&self) -> bool {
        self.0.is_some()
    }

    /// How far instances are held to their limits.
    pub(super) fn enforcement(&self) -> Enforcement {
        let controllers = self.0.as_ref().map(|base| base.controllers.as_slice()).unwrap_or_default();
        let by = |controller, otherwise| {
            if controllers.contains(&controller) { Enforced::Exactly } else { otherwise }
        };
        Enforcement {
            cpu: by("cpu", Enforced::No),
            memory: by("memory", Enforced::Roughly),
            pids: by("pids", Enforced::No),
        }
    }

    /// Makes the group of an instance, or gives one that is there already these limits. Whether there is one now.
    pub(super) fn create(&self, instance: InstanceId, resources: &ResourceSettings) -> bool {
        let Some(base) = &self.0 else { return false };
        match base.create(instance, resources) {
            Ok(()) => true,
            Err(cause) => {
                tracing::warn!(%instance, %cause, "its limits are not kept: no group for it");
                false
            }
        }
    }

    /// Moves a process into the group of its instance, if there is one.
    pub(super) fn enter(&self, instance: InstanceId, pid: i32) {
        let Some(group) = self.group(instance).filter(|group| group.is_dir()) else { return };
        match fs::write(group.join("cgroup.procs"), pid.to_string()) {
            // It ended meanwhile.
            Err(cause) if cause.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
            Err(cause) => {
                tracing::warn!(%instance, pid, %cause, "not moved into its group: no limits for it")
            }
            Ok(()) => {}
        }
    }

    /// Whether the kernel ended a process of the instance for want of memory.
    pub(super) fn wanted_memory(&self, instance: InstanceId) -> bool {
        let events =
            self.group(instance).and_then(|group| fs::read_to_string(group.join("memory.events")).ok());
        events.is_some_and(|events| counted(&events, "oom_kill") > 0)
    }

    /// Removes groups without a process. The caller sees to it that none is about to get its first one.
    pub(super) fn sweep(&self) {
        let Some(base) = &self.0 else { return };
        let Ok(groups) = fs::read_dir(&base.parent) else { return };
        for group in groups.flatten().filter(|group| group.file_type().is_ok_and(|kind| kind.is_dir())) {
            remove(&group.path());
        }
        remove(&base.parent);
    }

    fn group(&self, instance: InstanceId) -> Option<PathBuf> {
        Some(self.0.as_ref()?.parent.join(instance.to_string()))
    }
}

impl Base {
    /// The first place where groups can be made; otherwise what stands in the way of each.
    fn find(
        mounts: &str,
        own: &str,
        lockgate: LockgateId,
        is_delegated: impl Fn(&Path) -> bool,
    ) -> Result<Self, String> {
        let hierarchy = hierarchy(mounts).ok_or("cgroup v2 is not mounted")?;
        let own = own_group(own).map(|group| hierarchy.join(group));
        let delegated = own.as_deref().and_then(Path::parent).filter(|parent| is_delegated(parent));
        let mut obstacles = Vec::new();
        if own.as_deref().is_some_and(&is_delegated) {
            obstacles.push("the group that is delegated to us has our own process in it".to_owned());
        }
        for base in delegated.into_iter().chain([hierarchy.as_path()]) {
            let base = Self {
                base: base.to_owned(),
                parent: base.join(format!("lockgate-{lockgate}")),
                controllers: available(base),
            };
            match base.controllers.is_empty() {
                true => obstacles.push(format!("{} has none of its controllers", base.base.display())),
                false => match base.prepare() {
                    Ok(()) => return Ok(base),
                    Err(cause) => obstacles.push(format!("{}: {cause}", base.base.display())),
                },
            }
        }
        Err(obstacles.join("; "))
    }

    /// Lets the groups of instances bound what they are to bound.
    fn prepare(&self) -> io::Result<()> {
        if !self.parent.is_dir() {
            fs::create_dir(&self.parent)?;
        }
        let all = self.controllers.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
        for group in [&self.base, &self.parent] {
            fs::write(group.join("cgroup.subtree_control"), &all)?;
        }
        Ok(())
    }

    fn create(&self, instance: InstanceId, resources: &ResourceSettings) -> io::Result<()> {
        // Each time: it goes with the last instance, and systemd may have taken a controller back.
        self.prepare()?;
        let group = self.parent.join(instance.to_string());
        if !group.is_dir() {
            fs::create_dir(&group)?;
        }
        for controller in &self.controllers {
            for (file, limit) in limits(controller, resources) {
                match fs::write(group.join(file), limit) {
                    // A kernel without swap has no limit for it.
                    Err(cause) if file == "memory.swap.max" => tracing::debug!(%cause, "no limit of swap"),
                    written => written?,
                }
            }
        }
        Ok(())
    }
}

/// The files of a controller, with what is written to them.
fn limits(controller: &str, resources: &ResourceSettings) -> Vec<(&'static str, String)> {
    match controller {
        "cpu" => {
            let quota = match resources.cpu_millis {
                0 => "max".to_owned(),
                millis => (millis.saturating_mul(PERIOD) / 1000).max(QUOTA_MIN).to_string(),
            };
            vec![("cpu.max", format!("{quota} {PERIOD}"))]
        }
        "memory" => {
            let bytes = resources.memory_mib.saturating_mul(1024 * 1024);
            vec![("memory.max", bytes.to_string()), ("memory.swap.max", "0".to_owned())]
        }
        _ => vec![("pids.max", resources.pids.to_string())],
    }
}

/// Those of ours that `base` may hand on.
fn available(base: &Path) -> Vec<&'static str> {
    let listed = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
    CONTROLLERS.into_iter().filter(|name| listed.split_whitespace().any(|listed| listed == *name)).collect()
}

/// Where cgroup v2 is mounted whole.
fn hierarchy(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        (after.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(at))
    })
}

/// Our own group, from the hierarchy's root; `None` where it lies outside of what we see.
fn own_group(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    (!path.is_empty() && !path.split('/').any(|part| part == "..")).then_some(path)
}

/// As systemd marks what it leaves to a unit.
fn is_delegated(group: &Path) -> bool {
    ["trusted.delegate", "user.delegate"].into_iter().any(|name| {
        let mut value = [0; 1];
        rustix::fs::getxattr(group, name, &mut value).is_ok_and(|_length| value == *b"1")
    })
}

fn counted(events: &str, name: &str) -> u64 {
    let count = events.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    count.unwrap_or_default()
}

fn remove(group: &Path) {
    match fs::remove_dir(group) {
        Err(cause) if !matches!(cause.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::NotFound) => {
            tracing::debug!(group = %group.display(), %cause, "group not removed");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const MOUNTED: &str = "23 1 0:21 / /proc rw - proc proc rw\n\
                           31 1 0:27 /sub /elsewhere rw - cgroup2 cgroup2 rw\n";

    /// A folder laid out as a hierarchy, since not every machine has one that may be written to.
    struct Tree {
        folder: tempfile::TempDir,
        lockgate: LockgateId,
    }

    impl Tree {
        fn new(groups: &[(&str, &str)]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            for (group, controllers) in groups {
                let group = folder.path().join(group);
                fs::create_dir_all(&group).unwrap();
                fs::write(group.join("cgroup.controllers"), controllers).unwrap();
            }
            Self { folder, lockgate: LockgateId::generate() }
        }

        fn find(&self, own: &str, delegated: &str) -> Result<Base, String> {
            let root = self.folder.path();
            let mounts =
                format!("{MOUNTED}32 1 0:28 / {} rw shared:9 - cgroup2 cgroup2 rw\n", root.display());
            let is_delegated = |group: &Path| !delegated.is_empty() && group == root.join(delegated);
            Base::find(&mounts, &format!("4:memory:/x\n0::{own}\n"), self.lockgate, is_delegated)
        }

        fn parent(&self, base: &str) -> PathBuf {
            self.folder.path().join(base).join(format!("lockgate-{}", self.lockgate))
        }
    }

    #[test]
    fn what_is_delegated_comes_before_the_root_and_neither_is_taken_without_controllers() {
        let all = "cpuset cpu io memory pids";
        let tree =
            Tree::new(&[("", all), ("system/lockgate.service", all), ("system/lockgate.service/main", "")]);
        let own = "/system/lockgate.service/main";
        let delegated = tree.find(own, "system/lockgate.service").unwrap();
        assert_eq!(delegated.parent, tree.parent("system/lockgate.service"));
        assert_eq!(tree.find(own, "").unwrap().parent, tree.parent(""), "not delegated: the root");
        assert_eq!(tree.find("/../other", "").unwrap().parent, tree.parent(""));

        let hybrid = Tree::new(&[("", "hugetlb")]);
        let obstacle = hybrid.find("/", "").unwrap_err();
        assert!(obstacle.contains("none of its controllers"), "{obstacle}");
        assert!(!hybrid.parent("").exists(), "nothing is left where nothing can be kept");

        let in_the_way = Tree::new(&[("", ""), ("lockgate.service", all)]);
        let obstacle = in_the_way.find("/lockgate.service", "lockgate.service").unwrap_err();
        assert!(obstacle.contains("our own process"), "{obstacle}");
        assert_eq!(
            Base::find(MOUNTED, "0::/\n", LockgateId::generate(), |_| false).unwrap_err(),
            "cgroup v2 is not mounted"
        );
    }

    #[test]
    fn the_groups_of_instances_have_their_limits_and_of_what_is_not_handed_on_none() {
        let tree = Tree::new(&[("", "cpu memory pids")]);
        let cgroups = Cgroups(Some(tree.find("/", "").unwrap()));
        for group in [tree.folder.path().to_owned(), tree.parent("")] {
            assert_eq!(
                fs::read_to_string(group.join("cgroup.subtree_control")).unwrap(),
                "+cpu +memory +pids"
            );
        }
        let instance = InstanceId::generate();
        let file =
            |name: &str| fs::read_to_string(tree.parent("").join(instance.to_string()).join(name)).unwrap();
        let resources =
            ResourceSettings { memory_mib: 64, cpu_millis: 1500, pids: 7, ..ResourceSettings::default() };
        assert!(cgroups.create(instance, &resources));
        assert_eq!((file("memory.max"), file("memory.swap.max")), ((64 << 20).to_string(), "0".to_owned()));
        assert_eq!((file("cpu.max"), file("pids.max")), ("150000 100000".to_owned(), "7".to_owned()));
        assert!(cgroups.create(instance, &ResourceSettings { cpu_millis: 0, ..resources.clone() }));
        assert_eq!(file("cpu.max"), "max 100000");
        assert!(cgroups.create(instance, &ResourceSettings { cpu_millis: 1, ..resources }));
        assert_eq!(file("cpu.max"), "1000 100000");
        cgroups.enter(instance, 42);
        assert_eq!(file("cgroup.procs"), "42");
        let exactly =
            Enforcement { cpu: Enforced::Exactly, memory: Enforced::Exactly, pids: Enforced::Exactly };
        assert_eq!(cgroups.enforcement(), exactly);
        assert!(!cgroups.wanted_memory(instance));
        let events = tree.parent("").join(instance.to_string()).join("memory.events");
        fs::write(events, "low 0\noom 2\noom_kill 1\noom_group_kill 0\n").unwrap();
        assert!(cgroups.wanted_memory(instance));

        let tree = Tree::new(&[("", "memory pids")]);
        let without_cpu = Cgroups(Some(tree.find("/", "").unwrap()));
        assert_eq!(without_cpu.enforcement(), Enforcement { cpu: Enforced::No, ..exactly });
        assert!(without_cpu.create(instance, &ResourceSettings::default()));
        assert!(!tree.parent("").join(instance.to_string()).join("cpu.max").exists());
        let rough = Enforcement { cpu: Enforced::No, memory: Enforced::Roughly, pids: Enforced::No };
        assert_eq!(Cgroups(None).enforcement(), rough);
        assert!(!Cgroups(None).create(instance, &ResourceSettings::default()));
    }

    /// On the kernel's own hierarchy, with the limits left out: a machine with the controllers bound to cgroup v1 has
    /// groups all the same.
    #[test]
    fn a_group_holds_its_process_and_goes_with_it() {
        let mounts = fs::read_to_string(MOUNTS).unwrap();
        let Some(root) =
            hierarchy(&mounts).filter(|root| rustix::fs::access(root, rustix::fs::Access::WRITE_OK).is_ok())
        else {
            println!("SKIPPED: no cgroup v2 that may be written to");
            return;
        };
        let parent = root.join(format!("lockgate-{}", LockgateId::generate()));
        let instance = InstanceId::generate();
        let group = parent.join(instance.to_string());
        if fs::create_dir_all(&group).is_err() {
            println!("SKIPPED: no cgroup v2 that may be written to");
            return;
        }
        let cgroups = Cgroups(Some(Base { base: root, parent: parent.clone(), controllers: Vec::new() }));
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        cgroups.enter(instance, i32::try_from(child.id()).unwrap());
        let inside = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
        assert!(inside.contains(&instance.to_string()), "{inside}");
        cgroups.sweep();
        assert!(group.exists(), "a group with a process stays");
        child.kill().unwrap();
        child.wait().unwrap();
        cgroups.sweep();
        assert!(!parent.exists());
    }
}
