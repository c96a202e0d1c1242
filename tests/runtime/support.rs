//! A world of its own for each test: a runtime, an app to run, and nothing left behind.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs};

use bollard::query_parameters as options;
use futures_util::StreamExt;
use lockgate::clock::SystemClock;
use lockgate::ids::{DeploymentId, InstanceId, LockgateId, OperationId};
use lockgate::runtime::docker::Docker;
use lockgate::runtime::process::Process;
use lockgate::runtime::{Instance, InstanceSpec, InstanceState, Runtime, Source, select};
use lockgate::settings::{PullPolicy, ResourceSettings, RuntimeKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Far above what anything here takes: reached only by what hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
const PORT: u16 = 3000;

pub(crate) struct World {
    pub(crate) kind: RuntimeKind,
    pub(crate) lockgate: LockgateId,
    pub(crate) data_dir: PathBuf,
    /// Of the world that sweeps at its end.
    owned: Option<tempfile::TempDir>,
    runtime: Option<Arc<dyn Runtime>>,
    image: Option<String>,
}

impl World {
    /// `None` where no engine answers and none is required.
    pub(crate) async fn docker(test: &str) -> Option<Self> {
        if let Err(error) = engine().ping().await {
            assert_ne!(env::var("LOCKGATE_TEST_DOCKER").as_deref(), Ok("require"), "no engine: {error}");
            println!("SKIPPED: docker: {test}");
            return None;
        }
        let mut world = Self::new(RuntimeKind::Docker).await;
        world.image = Some(import(world.lockgate).await);
        Some(world)
    }

    pub(crate) async fn process(_test: &str) -> Option<Self> {
        Some(Self::new(RuntimeKind::Process).await)
    }

    async fn new(kind: RuntimeKind) -> Self {
        let owned = tempfile::tempdir().unwrap();
        let data_dir = owned.path().to_owned();
        let mut world = Self {
            kind,
            lockgate: LockgateId::generate(),
            data_dir,
            owned: Some(owned),
            runtime: None,
            image: None,
        };
        world.begin_again().await;
        world
    }

    /// The same Lockgate in a process of its own, for a test to kill; it passes the fail points that `faults` names.
    pub(crate) fn second_lockgate(&self, faults: &str) -> Child {
        Command::new(env::current_exe().unwrap())
            .args(["support::be_the_second_lockgate", "--exact", "--ignored"])
            .env("TEST_KIND", serde_json::to_string(&self.kind).unwrap())
            .env("TEST_LOCKGATE", self.lockgate.to_string())
            .env("TEST_DATA_DIR", &self.data_dir)
            .env("TEST_IMAGE", self.image.as_deref().unwrap_or_default())
            .env("LOCKGATE_FAULTS", faults)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// As after a restart of Lockgate: what the old runtime knew is gone.
    pub(crate) async fn begin_again(&mut self) {
        drop(self.runtime.take());
        self.runtime = Some(
            select(self.kind, None, self.lockgate, &self.data_dir, Arc::new(SystemClock)).await.unwrap(),
        );
    }

    pub(crate) fn runtime(&self) -> &dyn Runtime {
        self.runtime.as_deref().unwrap()
    }

    pub(crate) fn source(&self) -> Source {
        Source {
            image: self.image.clone(),
            command: self.command(),
            directory: None,
            pull: PullPolicy::Never,
        }
    }

    pub(crate) fn image(&self) -> &str {
        self.image.as_deref().unwrap()
    }

    fn command(&self) -> Vec<String> {
        let program = match self.kind {
            RuntimeKind::Docker => "/app".to_owned(),
            RuntimeKind::Auto | RuntimeKind::Process => app().display().to_string(),
        };
        vec![program, "--port=$PORT".to_owned()]
    }

    /// A prepared instance whose app behaves as `behaviour` says.
    pub(crate) async fn spec(&self, behaviour: &str) -> InstanceSpec {
        let pinned = self.runtime().prepare(&self.source(), mpsc::channel(8).0).await.unwrap();
        InstanceSpec {
            volumes: Vec::new(),
            label: None,
            id: InstanceId::generate(),
            app: "web".parse().unwrap(),
            environment: "production".parse().unwrap(),
            deployment: DeploymentId::generate(),
            operation: OperationId::generate(),
            digest: pinned.digest,
            command: self.command(),
            directory: None,
            port: Some(PORT),
            env: BTreeMap::from([("APP".to_owned(), behaviour.to_owned()), ("COLOUR".into(), "blue".into())]),
            resources: ResourceSettings { memory_mib: 64, ..ResourceSettings::default() },
            health_check: None,
            stop_signal: None,
            stop_grace: LIMIT,
        }
    }

    /// Started, and answering if it is one that listens.
    pub(crate) async fn started(&self, behaviour: &str) -> (InstanceSpec, Instance) {
        let spec = self.spec(behaviour).await;
        let instance = self.runtime().start(&spec).await.unwrap();
        if behaviour != "exit-3" {
            assert_eq!(get(&instance, "/").await, "hello");
        }
        (spec, instance)
    }

    /// Its state, as soon as it is another than running.
    pub(crate) async fn ended(&self, instance: &InstanceId) -> InstanceState {
        eventually("the instance ends", async || {
            let instance = self.runtime().inspect(instance).await.unwrap().unwrap();
            (!instance.is_running()).then_some(instance.state)
        })
        .await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let (kind, lockgate, image) = (self.kind, self.lockgate, self.image.take());
        let data_dir = self.data_dir.clone();
        if self.owned.is_none() {
            return;
        }
        // A thread: the test's own runtime may be the one that is unwinding.
        let swept = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                if kind == RuntimeKind::Docker {
                    return sweep_engine(lockgate, image).await;
                }
                let process = Process::open(&data_dir, lockgate, Arc::new(SystemClock)).await.unwrap();
                for instance in process.list().await.unwrap() {
                    process.stop(&instance.id, None, Duration::ZERO).await.unwrap();
                }
            });
        });
        swept.join().unwrap();
    }
}

/// Not a test by itself: starts one instance and waits for its death.
#[tokio::test]
#[ignore = "run by other tests"]
async fn be_the_second_lockgate() {
    let var = |name: &str| env::var(name).unwrap();
    let mut world = World {
        kind: serde_json::from_str(&var("TEST_KIND")).unwrap(),
        lockgate: var("TEST_LOCKGATE").parse().unwrap(),
        data_dir: var("TEST_DATA_DIR").into(),
        owned: None,
        runtime: None,
        image: Some(var("TEST_IMAGE")),
    };
    world.begin_again().await;
    let spec = world.spec("serve").await;
    world.runtime().start(&spec).await.unwrap();
    tokio::time::sleep(LIMIT).await;
}

pub(crate) fn engine() -> bollard::Docker {
    let socket = Docker::default_socket().unwrap();
    bollard::Docker::connect_with_unix(&socket.to_string_lossy(), 120, bollard::API_DEFAULT_VERSION)
        .unwrap_or_else(|_| {
            bollard::Docker::connect_with_http("127.0.0.1:1", 1, bollard::API_DEFAULT_VERSION).unwrap()
        })
}

/// An image of the app alone.
async fn import(lockgate: LockgateId) -> String {
    let mut layer = tar::Builder::new(Vec::new());
    layer.append_path_with_name(app(), "app").unwrap();
    let name = image_name();
    let changes =
        [r#"CMD ["/app"]"#.to_owned(), "EXPOSE 3000".to_owned(), format!("LABEL lockgate.test={lockgate}")];
    let from =
        options::CreateImageOptionsBuilder::default().from_src("-").repo(&name).changes(changes.to_vec());
    let layer = bollard::body_full(layer.into_inner().unwrap().into());
    engine()
        .create_image(Some(from.build()), Some(layer), None)
        .map(Result::unwrap)
        .for_each(async |_| {})
        .await;
    name
}

/// An image on top of `base`; `lines` are of its Dockerfile.
pub(crate) async fn build(base: &str, lines: &[&str]) -> String {
    let file = format!("FROM {base}\n{}", lines.join("\n"));
    let mut context = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(file.len().try_into().unwrap());
    context.append_data(&mut header, "Dockerfile", file.as_bytes()).unwrap();
    let name = image_name();
    let named = options::BuildImageOptionsBuilder::default().t(&name).rm(true).forcerm(true).build();
    let context = bollard::body_full(context.into_inner().unwrap().into());
    engine().build_image(named, None, Some(context)).map(Result::unwrap).for_each(async |_| {}).await;
    name
}

fn image_name() -> String {
    format!("lockgate-test-{}:v1", InstanceId::generate().to_string().replace('_', "-"))
}

async fn sweep_engine(lockgate: LockgateId, image: Option<String>) {
    let engine = engine();
    for label in ["lockgate.id", "lockgate.test"] {
        let filters = HashMap::from([("label", vec![format!("{label}={lockgate}")])]);
        let all = options::ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        for container in engine.list_containers(Some(all)).await.unwrap() {
            let force = options::RemoveContainerOptionsBuilder::default().force(true).v(true).build();
            drop(engine.remove_container(&container.id.unwrap(), Some(force)).await);
        }
        let all = options::ListNetworksOptionsBuilder::default().filters(&filters).build();
        for network in engine.list_networks(Some(all)).await.unwrap() {
            drop(engine.remove_network(&network.id.unwrap()).await);
        }
        let all = options::ListVolumesOptionsBuilder::default().filters(&filters).build();
        for volume in engine.list_volumes(Some(all)).await.unwrap().volumes.into_iter().flatten() {
            drop(engine.remove_volume(&volume.name, None::<options::RemoveVolumeOptions>).await);
        }
    }
    if let Some(image) = image {
        drop(engine.remove_image(&image, None::<options::RemoveImageOptions>, None).await);
    }
}

/// The app, compiled once for all tests and kept while its source stays the same.
pub(crate) fn app() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runtime/app.rs");
    let hash = blake3::hash(&fs::read(&source).unwrap()).to_hex();
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let app = directory.join(format!("app-{}", &hash[..16]));
    // Each test may be a process of its own.
    let lock = fs::File::create(directory.join("app.lock")).unwrap();
    lock.lock().unwrap();
    if !app.exists() {
        let unfinished = app.with_extension("unfinished");
        let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
        let done = Command::new(rustc)
            .args([
                "--edition=2024",
                "-Cpanic=abort",
                "-Copt-level=s",
                "-Cstrip=symbols",
                "-Ctarget-feature=+crt-static",
            ])
            .arg("-o")
            .args([&unfinished, &source])
            .status()
            .unwrap();
        assert!(done.success(), "rustc: {done}");
        fs::rename(unfinished, &app).unwrap();
    }
    app
}

/// What the instance answers to a GET of `path`, once it listens.
pub(crate) async fn get(instance: &Instance, path: &str) -> String {
    let address = instance.address.expect("it has an address");
    eventually(&format!("{address} answers"), async || exchange(address, path).await.ok()).await
}

async fn exchange(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(address).await?;
    connection.write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok(body.to_owned())
}

/// Asks until there is an answer.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    #[expect(clippy::disallowed_methods, reason = "a deadline of the test itself, not of what it tests")]
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        #[expect(clippy::disallowed_methods, reason = "a deadline of the test itself, not of what it tests")]
        let now = Instant::now();
        assert!(now < deadline, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
