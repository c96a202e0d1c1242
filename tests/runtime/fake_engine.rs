//! What a real engine does rarely: it hangs, is away, loses its events.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::RawQuery;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{any, get, post};
use lockgate::clock::SystemClock;
use lockgate::ids::{InstanceId, LockgateId};
use lockgate::runtime::docker::Docker;
use lockgate::runtime::{Changed, Runtime, RuntimeError, Source};
use lockgate::settings::PullPolicy;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Paused time leaps to the next deadline as soon as nothing else can happen.
#[tokio::test(start_paused = true)]
async fn an_engine_that_accepts_and_never_answers_is_unavailable_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    let _hung = UnixListener::bind(&socket).unwrap();
    let docker = docker(&socket);
    let began = tokio::time::Instant::now();
    let instance = InstanceId::generate();
    let answers = [
        docker.ping().await.map(drop),
        docker.list().await.map(drop),
        docker.inspect(&instance).await.map(drop),
        docker.stop(&instance, None, Duration::from_secs(600)).await.map(drop),
        docker.remove(&instance).await.map(drop),
        docker.logs(&instance, 5).await.map(drop),
    ];
    for answer in answers {
        assert!(matches!(&answer, Err(error) if error.is_unavailable()), "{answer:?}");
    }
    assert!(began.elapsed() <= 6 * Duration::from_secs(6), "{:?} for six calls", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn many_calls_to_a_hung_engine_all_end_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    let _hung = UnixListener::bind(&socket).unwrap();
    let docker = docker(&socket);
    let began = tokio::time::Instant::now();
    let pings = futures_util::future::join_all((0..100).map(|_| docker.ping())).await;
    assert!(pings.iter().all(Result::is_err));
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_engine_that_is_away_is_unavailable_until_it_comes() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    let docker = docker(&socket);
    let error = docker.ping().await.unwrap_err();
    assert!(error.is_unavailable() && error.to_string().contains("docker.sock"), "{error}");
    let _engine = serve(&socket, version());
    assert_eq!(docker.ping().await.unwrap(), "Docker Engine 99.0, API 1.41");
}

#[tokio::test]
async fn a_refusal_keeps_the_engines_words() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    let full = any(|| async { (StatusCode::INTERNAL_SERVER_ERROR, r#"{"message":"disk is full"}"#) });
    let _engine = serve(&socket, Router::new().fallback(full));
    let error = docker(&socket).list().await.unwrap_err();
    assert!(
        matches!(&error, RuntimeError::Unavailable { detail, .. } if detail.contains("disk is full")),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn after_lost_events_a_watcher_is_told_to_look_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    let (lockgate, instance) = (LockgateId::generate(), InstanceId::generate());
    let event = event("die", lockgate, instance);
    let asked = Arc::new(AtomicUsize::new(0));
    let events = get(move || async move {
        // The first stream tells of one event and breaks off; the second stays open and silent.
        match asked.fetch_add(1, Ordering::SeqCst) {
            0 => Body::from(format!("{event}\n")),
            _ => Body::from_stream(futures_util::stream::pending::<Result<String, std::io::Error>>()),
        }
    });
    let _engine = serve(&socket, version().route("/v1.41/events", events));
    let docker = Docker::new(socket, lockgate, Arc::new(SystemClock));
    let mut hints = docker.watch();
    assert_eq!(hints.recv().await, Some(Changed::One(instance)));
    assert_eq!(hints.recv().await, Some(Changed::All));
}

#[tokio::test]
async fn only_events_that_change_how_an_instance_is_served_are_hints() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    let (lockgate, other, instance) =
        (LockgateId::generate(), LockgateId::generate(), InstanceId::generate());
    let network = |name: &str| {
        format!(
            r#"{{"Type":"network","Action":"connect","Actor":{{"ID":"n","Attributes":{{"name":"{name}"}}}}}}"#
        )
    };
    let lines = [
        event("exec_create: curl -f localhost", lockgate, instance),
        event("exec_start: curl -f localhost", lockgate, instance),
        event("exec_die", lockgate, instance),
        event("health_status: running", lockgate, instance),
        event("die", other, instance),
        network("bridge"),
        network(&format!("lockgate.{}.default.web.production", lockgate.short())),
        event("health_status: unhealthy", lockgate, instance),
    ];
    let (told, mut asked) = mpsc::channel(8);
    let events = get(move |RawQuery(query): RawQuery| async move {
        told.send(query.unwrap()).await.unwrap();
        let lines = lines.join("\n") + "\n";
        let silent = futures_util::stream::pending::<Result<String, std::io::Error>>();
        let first = futures_util::stream::iter([Ok(lines)]);
        Body::from_stream(futures_util::StreamExt::chain(first, silent))
    });
    let _engine = serve(&socket, version().route("/v1.41/events", events));
    let docker = Docker::new(socket, lockgate, Arc::new(SystemClock));
    let mut hints = docker.watch();
    assert_eq!(hints.recv().await, Some(Changed::All), "of its network");
    assert_eq!(hints.recv().await, Some(Changed::One(instance)));
    assert!(hints.try_recv().is_err());
    let query = asked.recv().await.unwrap();
    assert!(query.contains("health_status") && !query.contains("exec"), "{query}");
}

#[tokio::test]
async fn a_call_waits_for_the_version_to_be_agreed_on() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    let _engine = serve(&socket, version().route("/v1.41/containers/json", get(|| async { "[]" })));
    assert_eq!(docker(&socket).list().await.unwrap(), []);
}

#[tokio::test]
async fn a_pull_brings_the_credentials_that_docker_login_wrote_down_for_that_registry_alone() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("engine.sock");
    let file = folder.path().join("config.json");
    // printf 'ada:s3cret' | base64
    std::fs::write(&file, r#"{"auths":{"registry.test:5000":{"auth":"YWRhOnMzY3JldA=="}}}"#).unwrap();
    let (told, mut asked) = mpsc::channel(8);
    let create = move |headers: HeaderMap, RawQuery(query): RawQuery| async move {
        let auth = headers.get("x-registry-auth").map(|value| value.to_str().unwrap().to_owned());
        told.send((query.unwrap(), auth)).await.unwrap();
        (StatusCode::INTERNAL_SERVER_ERROR, r#"{"message":"seen enough"}"#)
    };
    let absent = || async { (StatusCode::NOT_FOUND, r#"{"message":"no such image"}"#) };
    let _engine = serve(&socket, version().route("/v1.41/images/create", post(create)).fallback(absent));
    let docker = docker(&socket).with_registries(file.clone());
    let pull = async |image: &str| {
        let source = Source {
            image: Some(image.to_owned()),
            command: Vec::new(),
            directory: None,
            pull: PullPolicy::Missing,
        };
        docker.prepare(&source, mpsc::channel(8).0).await.unwrap_err().to_string()
    };
    assert!(pull("registry.test:5000/web:1").await.contains("seen enough"));
    let (query, auth) = asked.recv().await.unwrap();
    assert!(query.contains("registry.test"), "{query}");
    let decode = Command::new("base64").arg("--decode").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut decode = decode.unwrap();
    decode.stdin.take().unwrap().write_all(auth.unwrap().as_bytes()).unwrap();
    let auth: serde_json::Value = serde_json::from_slice(&decode.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!((&auth["username"], &auth["password"]), (&"ada".into(), &"s3cret".into()));

    assert!(pull("other.test/web:1").await.contains("seen enough"));
    let (_, auth) = asked.recv().await.unwrap();
    assert!(!auth.is_some_and(|auth| auth.contains("YWRh")), "credentials went to another registry");

    std::fs::write(&file, "{").unwrap();
    let refused = pull("registry.test:5000/web:1").await;
    assert!(
        refused.contains("the credentials for registry.test:5000") && refused.contains("config.json"),
        "{refused}"
    );
}

fn event(action: &str, lockgate: LockgateId, instance: InstanceId) -> String {
    let labels = format!(r#"{{"lockgate.id":"{lockgate}","lockgate.instance":"{instance}"}}"#);
    format!(r#"{{"Type":"container","Action":"{action}","Actor":{{"ID":"c","Attributes":{labels}}}}}"#)
}

fn docker(socket: &Path) -> Docker {
    Docker::new(socket.to_owned(), LockgateId::generate(), Arc::new(SystemClock))
}

fn version() -> Router {
    Router::new().route("/version", get(|| async { r#"{"Version":"99.0","ApiVersion":"1.41"}"# }))
}

/// Answers until what it returns is dropped.
fn serve(socket: &Path, answers: Router) -> JoinSet<()> {
    let listener = UnixListener::bind(socket).unwrap();
    let mut engine = JoinSet::new();
    engine.spawn(async move { axum::serve(listener, answers).await.unwrap() });
    engine
}
