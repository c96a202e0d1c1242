//! Docker engines with the sample app's image in them: the machine's own, and one of the test's own, to be broken.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::support::{BINARY, eventually, kill_where};

/// An engine that can be asked.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(crate) socket: PathBuf,
    pub(crate) image: String,
}

/// A `dockerd` with folders, socket and bridge of its own. It keeps containers running while it is away.
pub(crate) struct OwnEngine {
    pub(crate) engine: Engine,
    folder: tempfile::TempDir,
    bridge: String,
    subnet: u8,
    child: Child,
}

/// An engine with an image of the test's own.
pub(crate) struct OwnImage(pub(crate) Engine);

/// Whether an engine answers. Without one the test is reported as skipped; under LOCKGATE_TEST_DOCKER=require it fails.
pub(crate) fn answers(test: &str) -> bool {
    let answers = Command::new("docker").arg("version").output().is_ok_and(|output| output.status.success());
    if !answers {
        let is_required = std::env::var("LOCKGATE_TEST_DOCKER").is_ok_and(|value| value == "require");
        assert!(!is_required, "no Docker engine answers");
        println!("SKIPPED: docker: {test}");
    }
    answers
}

impl Engine {
    /// The machine's own, never to be stopped. The image is built once for all tests of a run.
    pub(crate) async fn shared(test: &str) -> Option<Self> {
        static BUILT: tokio::sync::OnceCell<Engine> = tokio::sync::OnceCell::const_new();
        if !answers(test) {
            return None;
        }
        let built = BUILT.get_or_init(|| Self::with_image(PathBuf::from("/var/run/docker.sock"))).await;
        Some(built.clone())
    }

    async fn with_image(socket: PathBuf) -> Self {
        let image = lockgate::demo::image::build(PathBuf::from(BINARY), Some(&socket)).await.unwrap();
        Self { socket, image }
    }

    /// The same with files at `/` of its image, which are there as long as what is returned.
    pub(crate) fn with_files(&self, files: &[PathBuf]) -> OwnImage {
        let created = self.ask(&["container", "create", &self.image]);
        let [container] = &created[..] else { panic!("no container of {}", self.image) };
        for file in files {
            self.ask(&["container", "cp", &file.display().to_string(), &format!("{container}:/")]);
        }
        let image = format!("lockgate-test:{container}");
        self.ask(&["container", "commit", container, &image]);
        self.ask(&["container", "rm", container]);
        OwnImage(Self { socket: self.socket.clone(), image })
    }

    /// Runs `docker` against it and returns the words that it prints.
    fn ask(&self, arguments: &[&str]) -> Vec<String> {
        let host = format!("unix://{}", self.socket.display());
        let output = Command::new("docker").args(["--host", &host]).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect()
    }

    /// The ids of what an installation owns.
    pub(crate) fn marked(&self, kind: &str, command: &[&str], lockgate: &str) -> Vec<String> {
        let filter = format!("label=lockgate.id={lockgate}");
        self.ask(&[&[kind], command, &["--quiet", "--filter", &filter]].concat())
    }

    /// The starts and ends of containers of an installation, in their order, as far back as the engine remembers.
    pub(crate) fn starts_and_ends(&self, lockgate: &str) -> Vec<String> {
        let now = lockgate::clock::Timestamp::now().as_second();
        // Until the next second: this one's are told as well, when it has passed.
        let (since, until) = ((now - 600).to_string(), (now + 1).to_string());
        let filter = format!("label=lockgate.id={lockgate}");
        let of_containers = ["events", "--since", &since, "--until", &until, "--format", "{{.Action}}"];
        let filters = ["--filter", "event=start", "--filter", "event=die", "--filter", &filter];
        self.ask(&[&of_containers[..], &filters].concat())
    }

    pub(crate) fn remove_marked(&self, lockgate: &str) {
        if lockgate.is_empty() {
            return;
        }
        for container in self.marked("container", &["ls", "--all"], lockgate) {
            self.ask(&["container", "rm", "--force", "--volumes", &container]);
        }
        for network in self.marked("network", &["ls"], lockgate) {
            self.ask(&["network", "rm", &network]);
        }
    }
}

impl OwnEngine {
    /// Starts it. `None` where this machine cannot: no `dockerd`, or no right to make a bridge.
    pub(crate) async fn start(test: &str) -> Option<Self> {
        if !answers(test) {
            return None;
        }
        // The subnet is free on this machine as long as the number of another test's process does not collide.
        let subnet = u8::try_from(std::process::id() % 200 + 20).unwrap();
        let bridge = format!("lgt{}", std::process::id());
        // A bridge of its own: `--bridge=none` would delete the one of the machine's engine.
        ip(&["link", "add", &bridge, "type", "bridge"]);
        ip(&["address", "add", &format!("10.{subnet}.255.1/24"), "dev", &bridge]);
        ip(&["link", "set", &bridge, "up"]);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("daemon.json"), "{}").unwrap();
        let child = dockerd(folder.path(), &bridge, subnet);
        let socket = folder.path().join("docker.sock");
        let mut own = Self { engine: Engine { socket, image: String::new() }, folder, bridge, subnet, child };
        own.answers().await;
        own.engine = Engine::with_image(own.engine.socket.clone()).await;
        Some(own)
    }

    /// Starts it after its end, whatever the end was.
    pub(crate) async fn start_again(&mut self) {
        // Left by a crash. Where nobody reaps orphans its process is there as a zombie, and would be waited for.
        drop(std::fs::remove_file(self.folder.path().join("exec/containerd/containerd.pid")));
        self.child = dockerd(self.folder.path(), &self.bridge, self.subnet);
        self.answers().await;
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits until the process has ended.
    pub(crate) fn wait(&mut self) {
        self.child.wait().unwrap();
    }

    async fn answers(&self) {
        eventually("the test's own engine answers", async || {
            !self.engine.ask(&["version", "--format", "{{.Server.Version}}"]).is_empty()
        })
        .await;
    }
}

impl Drop for OwnImage {
    fn drop(&mut self) {
        self.0.ask(&["image", "rm", "--force", &self.0.image]);
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            std::io::Write::write_all(&mut std::io::stderr(), log.as_bytes()).unwrap_or_default();
        }
        self.signal(rustix::process::Signal::CONT);
        for container in self.engine.ask(&["container", "ls", "--all", "--quiet"]) {
            self.engine.ask(&["container", "rm", "--force", &container]);
        }
        for network in self.engine.ask(&["network", "ls", "--quiet", "--filter", "type=custom"]) {
            self.engine.ask(&["network", "rm", &network]);
        }
        self.signal(rustix::process::Signal::TERM);
        self.wait();
        // What an engine that was killed left running: its supervisors name its folder.
        let folder = self.folder.path().display().to_string();
        kill_where("cmdline", &folder);
        ip(&["link", "delete", &self.bridge]);
    }
}

fn dockerd(folder: &std::path::Path, bridge: &str, subnet: u8) -> Child {
    let at = |name: &str| folder.join(name).display().to_string();
    let driver = Command::new("docker").args(["info", "--format", "{{.Driver}}"]).output().unwrap();
    let driver = String::from_utf8_lossy(&driver.stdout).trim().to_owned();
    let log = std::fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
    Command::new("dockerd")
        .args(["--config-file", &at("daemon.json"), "--data-root", &at("root"), "--exec-root", &at("exec")])
        .args(["--host", &format!("unix://{}", at("docker.sock")), "--pidfile", &at("pid")])
        .args(["--bridge", bridge, "--default-address-pool", &format!("base=10.{subnet}.0.0/17,size=24")])
        .args(["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"])
        .args(["--userland-proxy=false", "--live-restore", "--storage-driver", &driver])
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
