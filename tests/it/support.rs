//! A lockgate of the test's own: a folder, a process, and a client of its admin API.

use std::ops::Range;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockgate::api::{App, Deployment, Instance, List, Operation};
use lockgate::cli::{Client, ClientError, Endpoint};
use lockgate::clock::SystemClock;
use lockgate::verify::{Handle, Verdict, Verifier, VerifyOptions};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::engine::Engine;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_lockgate");
pub(crate) const HOST: &str = "web.test";
/// No wait lasts longer. Some wait for the next minute, on a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
const FIRST_PORT: u16 = 10_000;
/// A process takes so many ports at once.
const BLOCK: u16 = 50;
const BLOCKS: u16 = 200;

/// A running `lockgate serve` with one app, `web`.
pub(crate) struct Lockgate {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) client: Client,
    /// Whose containers the instances are; `None`: they are processes.
    engine: Option<Engine>,
    /// The promise that it breaks on purpose, by its name in `fault::sabotaged`.
    pub(crate) sabotage: &'static str,
    /// A program, with its arguments, that runs it; empty: it runs by itself.
    pub(crate) under: Vec<String>,
    child: Option<Child>,
    port: u16,
}

/// What a process has open and runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holdings {
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
    /// Memory of its own, in bytes: without the pages of its program file.
    pub(crate) resident: u64,
}

impl Lockgate {
    pub(crate) async fn start(faults: &str) -> Self {
        let mut lockgate = Self::prepare(|_| {});
        lockgate.spawn(faults).await;
        lockgate
    }

    /// Its instances are containers of `engine`; processes where there is none.
    pub(crate) async fn start_on(engine: Option<&Engine>, faults: &str) -> Self {
        let mut lockgate = Self::prepare_on(engine);
        lockgate.spawn(faults).await;
        lockgate
    }

    /// The same; nothing runs yet.
    pub(crate) fn prepare_on(engine: Option<&Engine>) -> Self {
        let mut lockgate = Self::prepare(|config| {
            if let Some(engine) = engine {
                config["runtime"] = json!("docker");
                config["docker"] = json!({ "socket": engine.socket });
                config["apps"]["web"]["image"] = json!(engine.image);
                config["apps"]["web"]["port"] = json!(8080);
                config["apps"]["web"]["command"] = json!([]);
            }
        });
        lockgate.engine = engine.cloned();
        lockgate
    }

    /// Changes its configuration file, which nobody is told of.
    pub(crate) fn change_config(&self, change: impl FnOnce(&mut serde_json::Value)) {
        let text = std::fs::read_to_string(self.config()).unwrap();
        let mut config = serde_json::from_str(&text).unwrap();
        change(&mut config);
        replace(&self.config(), &config.to_string());
    }

    /// A folder with its configuration, which `change` may change; nothing runs yet.
    pub(crate) fn prepare(change: impl FnOnce(&mut serde_json::Value)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut config = config(folder.path(), port, "100ms");
        change(&mut config);
        std::fs::write(folder.path().join("lockgate.yaml"), config.to_string()).unwrap();
        let client = Client::new(Endpoint::Socket(folder.path().join("admin.sock")));
        Self { folder, client, engine: None, sabotage: "", under: Vec::new(), child: None, port }
    }

    /// Starts the process, and returns when its admin API answers.
    pub(crate) async fn spawn(&mut self, faults: &str) {
        self.launch(faults);
        self.ready().await;
    }

    pub(crate) fn launch(&mut self, faults: &str) {
        let words: Vec<_> =
            self.under.iter().map(String::as_str).chain([BINARY, "serve", "--config"]).collect();
        let child = Command::new(words[0])
            .args(&words[1..])
            .arg(self.config())
            .env("LOCKGATE_FAULTS", faults)
            .env("LOCKGATE_SABOTAGE", self.sabotage)
            .env("LOCKGATE_LOG", "info")
            .stdout(Stdio::null())
            .stderr(std::fs::File::options().create(true).append(true).open(self.log()).unwrap())
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Where `host` is served, as people are told.
    pub(crate) fn url(&self, host: &str) -> String {
        format!("http://{host}:{}", self.port)
    }

    /// Waits for the admin API.
    pub(crate) async fn ready(&self) {
        eventually("the admin API answers", async || self.client.get::<List<App>>("/v1/apps").await.is_ok())
            .await;
        let status: lockgate::api::Status = self.client.get("/v1/status").await.unwrap();
        std::fs::write(self.folder.path().join("id"), status.lockgate).unwrap();
    }

    /// Waits for the admin API; `false` if the process ends first.
    pub(crate) async fn comes_up(&mut self) -> bool {
        let mut is_up = false;
        eventually("the admin API answers, or it ends", async || {
            is_up = self.client.get::<List<App>>("/v1/apps").await.is_ok();
            is_up || self.has_ended()
        })
        .await;
        is_up
    }

    /// Writes the configuration as it was first, with another `deploy.watch`.
    pub(crate) fn write_config(&self, watch: &str) {
        let config = config(self.folder.path(), self.port, watch);
        replace(&self.config(), &config.to_string());
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("lockgate.yaml")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.path().join("lockgate.log")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("admin.sock")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.child.as_ref().unwrap().id().cast_signed();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// What the process holds now.
    pub(crate) fn held(&self) -> Holdings {
        let process = format!("/proc/{}", self.child.as_ref().unwrap().id());
        let of = |what: &str| std::fs::read_dir(format!("{process}/{what}")).unwrap().count();
        let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
        let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        let kibibytes: u64 = anonymous.trim().trim_end_matches(" kB").parse().unwrap();
        Holdings { descriptors: of("fd"), threads: of("task"), resident: kibibytes * 1024 }
    }

    /// Children that have ended and were not waited for.
    pub(crate) fn zombies(&self) -> usize {
        let parent = self.child.as_ref().unwrap().id().to_string();
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let stats = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
        stats
            .filter_map(|stat| Some(stat.rsplit_once(')')?.1.to_owned()))
            .filter(|rest| {
                let mut fields = rest.split_ascii_whitespace();
                fields.next() == Some("Z") && fields.next() == Some(&parent)
            })
            .count()
    }

    /// What it has logged so far.
    pub(crate) fn logged(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// `kill -9` for the processes that serve a version, by what their environment says.
    pub(crate) fn kill_version(&self, version: &str) {
        let folder = format!("TEST_FOLDER={}\0", self.folder.path().display());
        let version = format!("VERSION={version}\0");
        for pid in processes_where("environ", &[&folder, &version]) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap_or_default();
        }
    }

    /// A client whose request is in flight until [`finish`] or for ever.
    pub(crate) async fn unfinished(&self, host: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let head = format!(
            "POST /echo HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 6\r\n\r\nabc"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        eventually("it is in flight", async || self.instances().await.iter().any(|one| one.requests > 0))
            .await;
        stream
    }

    /// Whether the process has ended by itself; also if that was seen before.
    pub(crate) fn has_ended(&mut self) -> bool {
        let ended = self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some());
        if ended {
            self.child = None;
        }
        ended
    }

    /// Deploys a version of the sample app and waits until it holds.
    pub(crate) async fn deploy(&self, version: &str) -> Result<Operation, ClientError> {
        self.deploy_with(&json!({ "env": { "VERSION": version }, "force": true }), "true").await
    }

    /// As the API takes it; `wait` is `true` or `end`.
    pub(crate) async fn deploy_with(
        &self,
        request: &serde_json::Value,
        wait: &str,
    ) -> Result<Operation, ClientError> {
        self.client.post(&format!("/v1/apps/web/deployments?wait={wait}"), request).await
    }

    /// What a client sees: the version that answers at `host`.
    pub(crate) async fn version(&self, host: &str) -> Result<String, String> {
        let (status, version) = self.get(host).await.map_err(|error| error.to_string())?;
        version.filter(|_| status == 200).ok_or_else(|| format!("status {status}"))
    }

    /// The version that answers at [`HOST`] to a request with that field.
    pub(crate) async fn version_with(&self, field: &str) -> Result<String, String> {
        let host = format!("{HOST}\r\n{field}");
        self.version(&host).await
    }

    async fn get(&self, host: &str) -> std::io::Result<(u16, Option<String>)> {
        let answer = self.try_raw(host).await?;
        let status = answer.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or_default();
        let version = answer.lines().find_map(|line| line.strip_prefix("x-version: ").map(str::to_owned));
        Ok((status, version))
    }

    /// The whole answer to `GET /`.
    pub(crate) async fn raw(&self, host: &str) -> String {
        self.try_raw(host).await.unwrap()
    }

    /// The same for another target than `/`.
    pub(crate) async fn raw_at(&self, host: &str, target: &str) -> String {
        self.exchange(asking(host, target)).await.unwrap()
    }

    fn try_raw<'a>(&'a self, host: &str) -> impl Future<Output = std::io::Result<String>> + use<'a> {
        self.exchange(asking(host, "/"))
    }

    async fn exchange(&self, request: String) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Does `work` while the verifier puts its load on the app, whose versions it is not told of, and returns its verdict.
    pub(crate) async fn under_load(&self, work: impl Future<Output = ()>) -> Verdict {
        self.under_load_at(&[HOST, "www.web.test"], |_| work).await
    }

    /// The same at any hosts; `work` may tell the verifier of versions.
    pub(crate) async fn under_load_at<Work: Future<Output = ()>>(
        &self,
        hosts: &[&str],
        work: impl FnOnce(Handle) -> Work,
    ) -> Verdict {
        // Boxed because it is large, and who asks for it has work of its own.
        Box::pin(self.under_load_as(|_| {}, hosts, work)).await
    }

    /// The same with other options of the verifier.
    pub(crate) async fn under_load_as<Work: Future<Output = ()>>(
        &self,
        change: impl FnOnce(&mut VerifyOptions),
        hosts: &[&str],
        work: impl FnOnce(Handle) -> Work,
    ) -> Verdict {
        let mut options = VerifyOptions {
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            duration: Duration::from_secs(300).into(),
            timeout: PATIENCE.into(),
            rate: 100,
            stream_duration: Duration::from_secs(1).into(),
            ..VerifyOptions::new(format!("http://127.0.0.1:{}", self.port).parse().unwrap())
        };
        change(&mut options);
        let _turn = turn_for_load().await;
        let verifier = Verifier::new(options, Arc::new(SystemClock));
        let handle = verifier.handle();
        let working = async {
            handle.flowing().await;
            work(handle.clone()).await;
            handle.stop();
        };
        tokio::join!(verifier.run(), working).0
    }

    pub(crate) async fn deployments(&self) -> Vec<Deployment> {
        self.all("/v1/apps/web/deployments").await
    }

    /// Those that somebody asked for, the newest first.
    pub(crate) async fn operations(&self) -> Vec<Operation> {
        let mut all = self.history().await;
        all.retain(|operation| operation.rested.is_none());
        all
    }

    /// With what was noted as well.
    pub(crate) async fn history(&self) -> Vec<Operation> {
        self.all("/v1/operations").await
    }

    pub(crate) async fn instances(&self) -> Vec<Instance> {
        self.all("/v1/instances").await
    }

    /// How many processes or containers that run carry this installation's mark, whoever knows of them.
    pub(crate) async fn running(&self) -> usize {
        let status: lockgate::api::Status = self.client.get("/v1/status").await.unwrap();
        if let Some(engine) = &self.engine {
            return engine.marked("container", &["ls"], &status.lockgate).len();
        }
        processes_where("environ", &[&format!("LOCKGATE_ID={}\0", status.lockgate)]).len()
    }

    /// How many containers carry this installation's mark, stopped ones included; `None` where processes do.
    pub(crate) async fn containers(&self) -> Option<usize> {
        let status: lockgate::api::Status = self.client.get("/v1/status").await.unwrap();
        let engine = self.engine.as_ref()?;
        Some(engine.marked("container", &["ls", "--all"], &status.lockgate).len())
    }

    /// How many networks or volumes of the engine carry its mark; `None` where instances are processes.
    pub(crate) async fn marked(&self, kind: &str) -> Option<usize> {
        let status: lockgate::api::Status = self.client.get("/v1/status").await.unwrap();
        Some(self.engine.as_ref()?.marked(kind, &["ls"], &status.lockgate).len())
    }

    /// All items of a list, which may be of several pages.
    pub(crate) async fn all<T: serde::de::DeserializeOwned>(&self, path: &str) -> Vec<T> {
        self.try_all(path).await.unwrap()
    }

    /// The same of one that may have ended.
    pub(crate) async fn try_all<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<Vec<T>, ClientError> {
        let (mut all, mut next) = (Vec::new(), Some(0));
        while let Some(offset) = next {
            let page: List<T> = self.client.get(&format!("{path}?limit=200&offset={offset}")).await?;
            all.extend(page.items);
            next = page.next_offset;
        }
        Ok(all)
    }

    /// Runs the command line against this lockgate.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Begins to run it.
    pub(crate) fn begin(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.arg("--socket").arg(self.socket()).args(arguments);
        command
    }
}

impl Drop for Lockgate {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        if let Some(engine) = &self.engine {
            engine.remove_marked(&std::fs::read_to_string(self.folder.path().join("id")).unwrap_or_default());
        }
        // Its instances outlive it, as they should; here they go with the test. Their output lies in its folder.
        let folder = self.folder.path().display().to_string();
        kill_where("environ", &format!("TEST_FOLDER={folder}\0"));
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            // Written by hand: the lints keep prints out of the project.
            std::io::Write::write_all(&mut std::io::stderr(), log.as_bytes()).unwrap_or_default();
        }
    }
}

/// The rest of a request that [`Lockgate::unfinished`] began, and its whole answer.
pub(crate) async fn finish(mut stream: TcpStream) -> String {
    stream.write_all(b"def").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// A request without a body, after which the connection is closed.
fn asking(host: &str, target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

fn config(folder: &Path, port: u16, watch: &str) -> serde_json::Value {
    json!({
        "listeners": { "http": { "address": format!("127.0.0.1:{port}") } },
        // The verifier's connections all come from one address. However slow the machine is, what has begun and waits is
        // not given up.
        "limits": { "connections_per_client": 0, "body_floor": 0, "body_idle": "10m" },
        "admin": { "socket": folder.join("admin.sock") },
        "data_dir": folder.join("data"),
        "runtime": "process",
        "workers": 2,
        "access_log": "off",
        "apps": { "web": {
            "hosts": [HOST, "www.web.test"],
            "command": [BINARY, "sample-app"],
            "env": { "VERSION": "none", "TEST_FOLDER": folder },
            "health": { "path": "/health" },
            "wake_backoff": "200ms",
            // Half of the tests' patience; those that wait for its end say how long it is.
            "wake_timeout": "60s",
            "deploy": {
                "watch": watch, "standby_after": "1s", "stop_grace": "5s", "health_timeout": "60s",
                "drain_timeout": "5s", "stream_drain_timeout": "5s",
            },
        } },
    })
}

/// Most tests wait, and many run at once; but those that put load on something keep the machine busy, and more than two of
/// them would time one another out.
pub(crate) async fn turn_for_load() -> SemaphorePermit<'static> {
    static TURNS: Semaphore = Semaphore::const_new(2);
    TURNS.acquire().await.unwrap()
}

/// Swaps under load, by the program itself.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn demo(arguments: &[&str], sabotage: &str) -> Output {
    let _turn = turn_for_load().await;
    let mut command = Command::new(BINARY);
    command.args(["demo", "--once"]).args(arguments).env("LOCKGATE_SABOTAGE", sabotage);
    command.output().unwrap()
}

/// For [`Lockgate::under_load`]: submissions are recorded, and no drain is cut short on a slow machine.
pub(crate) fn for_load(config: &mut serde_json::Value) {
    let record = format!("{}.submissions", config["data_dir"].as_str().unwrap());
    config["apps"]["web"]["env"]["RECORD_FILE"] = json!(record);
    with_long_drains(config);
}

/// No drain is cut short on a slow machine.
pub(crate) fn with_long_drains(config: &mut serde_json::Value) {
    for key in ["drain_timeout", "stream_drain_timeout"] {
        config["apps"]["web"]["deploy"][key] = json!("60s");
    }
}

/// Processes whose `environ` or `cmdline` contains all of that.
fn processes_where(file: &str, texts: &[&str]) -> Vec<rustix::process::Pid> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let content = std::fs::read(entry.path().join(file)).unwrap_or_default();
        let content = String::from_utf8_lossy(&content);
        if texts.iter().all(|text| content.contains(text)) {
            found.extend(rustix::process::Pid::from_raw(pid));
        }
    }
    found
}

pub(crate) fn kill_where(file: &str, text: &str) {
    for pid in processes_where(file, &[text]) {
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap_or_default();
    }
}

/// Free now, and given to nobody else as long as this process runs, nor by those that run these tests beside it on this
/// machine: what listens there may be away for a while, or never come. Below what Linux gives to outgoing connections, of
/// which these tests make thousands, and below what the process runtime gives to instances.
pub(crate) fn free_port() -> u16 {
    /// What is left of the last block, and what keeps all blocks of this process from others.
    static OWN: Mutex<(Range<u16>, Vec<UnixListener>)> = Mutex::new((0..0, Vec::new()));
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut own = OWN.lock().unwrap();
    loop {
        if let Some(port) = own.0.find(is_free) {
            return port;
        }
        let (ports, kept) = block_of_ports();
        own.0 = ports;
        own.1.push(kept);
    }
}

/// A block that no process has, and what keeps it: a socket's name, which goes with the process however that ends, and is
/// known where the ports are.
fn block_of_ports() -> (Range<u16>, UnixListener) {
    let begin = u16::try_from(std::process::id() % u32::from(BLOCKS)).unwrap();
    let take = |nth: u16| {
        let block = (begin + nth) % BLOCKS;
        let name = SocketAddr::from_abstract_name(format!("lockgate-test-ports-{block}")).unwrap();
        let first = FIRST_PORT + block * BLOCK;
        Some((first..first + BLOCK, UnixListener::bind_addr(&name).ok()?))
    };
    (0..BLOCKS).find_map(take).expect("all ports are taken")
}

/// As editors do it: at no moment is the file half written, which is watched.
pub(crate) fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, file).unwrap();
}

/// Waits for something that happens in the background.
pub(crate) async fn eventually(what: &str, is_so: impl AsyncFnMut() -> bool) {
    assert!(eventually_is(is_so).await, "never: {what}");
}

/// Whether it was so in time, for who has more to say if not.
pub(crate) async fn eventually_is(mut is_so: impl AsyncFnMut() -> bool) -> bool {
    let looked = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looked).await.is_ok()
}
