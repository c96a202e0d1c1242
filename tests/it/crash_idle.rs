//! P5 for what goes to standby by itself, and for what starts with its first request; and both without a crash.

use lockgate::deploy::steps;
use lockgate::store::{DeploymentStatus, DesiredState, OperationKind};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::crash::check;
use crate::support::{Lockgate, eventually};

const PREVIEW: &str = "x.web.test";

/// A live version and a preview, which rests after a second.
async fn idling(faults: &str) -> Lockgate {
    let mut lockgate = Lockgate::prepare(|config| config["apps"]["web"]["idle_after"] = json!("1s"));
    lockgate.spawn(faults).await;
    lockgate.deploy("live").await.unwrap();
    let preview = json!({ "env": { "VERSION": "preview" }, "label": "x", "ttl": "1h" });
    let deployed = lockgate.deploy_with(&preview, "true").await;
    // Where the machine is busy its second is over, and lockgate killed, before that is answered.
    assert!(deployed.is_ok() || faults.contains("=kill@"), "{deployed:?}");
    lockgate
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_or_failing_as_an_idle_preview_is_stopped_it_rests_and_the_next_request_is_served() {
    for point in ["idle.closed", "idle.committed", "instance.stop.intended", "instance.stopped"] {
        for action in ["kill", "error"] {
            let mut lockgate = idling(&format!("{point}={action}@1")).await;
            if action == "kill" {
                eventually(&format!("{point}: it dies"), async || lockgate.has_ended()).await;
                lockgate.spawn("").await;
            }
            lockgate.preview_sleeps().await;
            assert_eq!(lockgate.version(PREVIEW).await.as_deref(), Ok("preview"), "{point}={action}");
            check(&lockgate, point).await;
            lockgate.preview_sleeps().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_request_keeps_its_preview_running_and_once_it_rests_the_next_one_starts_it() {
    let lockgate = idling("").await;
    let mut slow = TcpStream::connect(("127.0.0.1", lockgate.port())).await.unwrap();
    let request = format!("GET /slow?ms=5000 HTTP/1.1\r\nHost: {PREVIEW}\r\nConnection: close\r\n\r\n");
    slow.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // It began before the second was over, or woke it.
    let wakes = async || {
        let all = lockgate.operations().await.into_iter();
        all.filter(|operation| operation.kind == OperationKind::Wake).count()
    };
    let before = wakes().await;
    assert!(before <= 1);
    lockgate.preview_sleeps().await;
    assert_eq!(lockgate.version(PREVIEW).await.as_deref(), Ok("preview"));
    assert_eq!((wakes().await, lockgate.version("web.test").await.as_deref()), (before + 1, Ok("live")));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_as_a_lazy_preview_is_made_its_label_leads_to_one_that_starts_or_to_nothing() {
    let points = [
        (steps::IMAGE.recorded, 2),
        (steps::GATE.begun, 2),
        (steps::GATE.recorded, 2),
        ("label.ready", 1),
        ("label.led", 1),
    ];
    for (point, pass) in points {
        let mut lockgate = Lockgate::start(&format!("{point}=kill@{pass}")).await;
        lockgate.deploy("live").await.unwrap();
        let lazy = json!({ "env": { "VERSION": "lazy" }, "label": "x", "ttl": "1h", "lazy": true });
        lockgate.deploy_with(&lazy, "true").await.unwrap_err();
        eventually(&format!("{point}: it dies"), async || lockgate.has_ended()).await;
        lockgate.spawn("").await;
        check(&lockgate, point).await;
        let made = lockgate.preview().await;
        if made.status == DeploymentStatus::Ready {
            assert_eq!((made.desired_state, lockgate.running().await), (DesiredState::Standby, 1), "{point}");
        } else {
            assert!(lockgate.raw(PREVIEW).await.contains("ephemeral_unknown"), "{point}");
            lockgate.deploy_with(&lazy, "true").await.unwrap();
        }
        assert_eq!(lockgate.version(PREVIEW).await.as_deref(), Ok("lazy"), "{point}");
        check(&lockgate, point).await;
    }
}
