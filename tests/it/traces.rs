//! Traces of the whole binary: a reload has them exported, and what is left at the end still is.

use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::{HOST, Lockgate, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn j3_traces_are_exported_after_a_reload_and_what_is_left_of_them_at_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let bodies = Arc::<Mutex<Vec<Value>>>::default();
    let mut collector = JoinSet::new();
    collector.spawn(collect(listener, Arc::clone(&bodies)));
    let mut lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    // None of them goes before the end.
    lockgate.change_config(|config| config["traces"] = json!({ "endpoint": endpoint, "interval": "1h" }));
    let reloaded = lockgate.cli(&["config", "reload", "--json"]);
    let reloaded: Value = serde_json::from_slice(&reloaded.stdout).unwrap();
    assert_eq!(reloaded["needs_restart"], json!([]), "{reloaded}");
    assert_eq!(lockgate.version(HOST).await.unwrap(), "one");
    assert!(bodies.lock().unwrap().is_empty());
    lockgate.signal(Signal::TERM);
    eventually("it ends", async || lockgate.has_ended()).await;
    let text = serde_json::to_string(&*bodies.lock().unwrap()).unwrap();
    for told in ["\"web\"", "\"production\"", HOST, "\"lockgate.deployment\"", "\"lockgate.instance\""] {
        assert!(text.contains(told), "{told} in {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn j3_a_collector_that_does_not_answer_does_not_hold_up_the_end() {
    // Whoever connects is connected by the kernel, and that is all.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let mut lockgate = Lockgate::prepare(|config| {
        config["traces"] = json!({ "endpoint": endpoint, "interval": "1h", "timeout": "1h" });
    });
    lockgate.spawn("").await;
    lockgate.deploy("one").await.unwrap();
    assert_eq!(lockgate.version(HOST).await.unwrap(), "one");
    lockgate.signal(Signal::TERM);
    eventually("it ends", async || lockgate.has_ended()).await;
    let logged = lockgate.logged();
    assert!(logged.contains("the collector of traces takes too long"), "{logged}");
}

/// Takes all that comes.
async fn collect(listener: TcpListener, bodies: Arc<Mutex<Vec<Value>>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        bodies.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await.unwrap();
    }
}
