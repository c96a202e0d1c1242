//! P5, P6 At a start the committed routes are served first, whatever the engine does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use crate::support::{HOST, Lockgate, eventually};

/// An engine that accepts and never answers.
struct Hung {
    asked: Arc<AtomicUsize>,
    /// Connections whose other side has lost patience.
    given_up: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Hung {
    fn at(socket: &std::path::Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let (asked, given_up) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (told, gone) = (asked.clone(), given_up.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (told, gone) = (told.clone(), gone.clone());
                connections.spawn(async move {
                    told.fetch_add(1, Ordering::SeqCst);
                    while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
                    gone.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        Self { asked, given_up, _task: task }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_served_while_the_engine_is_asked_and_does_not_answer() {
    for runtime in ["docker", "auto"] {
        let mut lockgate = Lockgate::start("").await;
        lockgate.deploy("one").await.unwrap();
        lockgate.kill();
        let socket = lockgate.folder.path().join("engine.sock");
        let engine = Hung::at(&socket);
        let text = std::fs::read_to_string(lockgate.config()).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["runtime"] = json!(runtime);
        config["docker"] = json!({ "socket": socket });
        config["apps"]["web"]["image"] = json!("none");
        std::fs::write(lockgate.config(), config.to_string()).unwrap();

        lockgate.launch("");
        eventually("it serves", async || lockgate.version(HOST).await.as_deref() == Ok("one")).await;
        let given_up = engine.given_up.load(Ordering::SeqCst);
        assert_eq!(given_up, 0, "{runtime}: it waited for the engine before it served");
        eventually("the engine is asked", async || engine.asked.load(Ordering::SeqCst) > 0).await;
        assert_eq!(lockgate.version(HOST).await.as_deref(), Ok("one"), "{runtime}");
    }
}

/// Where `auto` has nothing to go by it waits for the engine; the services of the configuration have no part in that.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_serves_static_services_while_the_engine_hangs() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = upstream.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        loop {
            let (mut stream, _) = upstream.accept().await.unwrap();
            let read = stream.read(&mut [0; 4096]).await;
            let answer =
                "HTTP/1.1 200 OK\r\nX-Version: static\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            drop((read, stream.write_all(answer.as_bytes()).await));
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("engine.sock");
    let engine = Hung::at(&socket);
    let mut lockgate = Lockgate::prepare(|config| {
        config["runtime"] = json!("auto");
        config["docker"] = json!({ "socket": socket });
        config["services"] =
            json!({ "legacy": { "hosts": ["old.test"], "upstreams": [format!("http://{address}")] } });
    });
    lockgate.launch("");
    eventually("the engine is asked", async || engine.asked.load(Ordering::SeqCst) > 0).await;
    eventually("it serves", async || lockgate.version("old.test").await.as_deref() == Ok("static")).await;
    // Its admin API answers, though not with what needs a runtime.
    let told = lockgate.client.get::<lockgate::api::Status>("/v1/status").await.unwrap_err().to_string();
    assert!(told.contains("just been started"), "{told}");
    assert_eq!(engine.given_up.load(Ordering::SeqCst), 0, "it waited for the engine before it served");
    // Fixed fault: what was changed before the control plane had started was never applied.
    lockgate.change_config(|config| config["services"]["legacy"]["hosts"] = json!(["new.test"]));
    // It gives the engine up in the end, and runs processes.
    lockgate.ready().await;
    eventually("the change is applied", async || {
        lockgate.version("new.test").await.as_deref() == Ok("static")
    })
    .await;
}
