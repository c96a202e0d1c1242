//! What an operator sees: exit codes, messages that say what to do, and a reload that is whole or nothing (P7).

use std::process::{Command, Output};

use crate::support::{BINARY, HOST, Lockgate, eventually};

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn without_a_lockgate_every_command_says_so_and_ends_with_4() {
    let output =
        Command::new(BINARY).args(["--socket", "/nonexistent/admin.sock", "status"]).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    let told = stderr(&output);
    assert!(
        told.contains("no lockgate answers at /nonexistent/admin.sock") && told.contains("try: start it"),
        "{told}"
    );
}

#[test]
fn a_bad_configuration_does_not_start_and_names_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lockgate.yaml");
    std::fs::write(&path, "apps:\n  web:\n    prot: 80\n").unwrap();
    for command in [&["config", "check"][..], &["serve", "--config"][..]] {
        let output = Command::new(BINARY).args(command).arg(&path).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        let told = stderr(&output);
        assert!(told.contains("lockgate.yaml:3:5: apps.web.prot: unknown key `prot`"), "{told}");
        assert!(told.contains("did you mean `port`?"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_by_hand_from_the_first_to_a_bad_one() {
    let lockgate = Lockgate::start("").await;
    let first = lockgate.cli(&["deploy", "web", "--env", "VERSION=one"]);
    assert_eq!(first.status.code(), Some(0), "{}", stderr(&first));
    assert!(stderr(&first).contains("swap") && stdout(&first).contains("succeeded"), "{}", stdout(&first));
    assert_eq!(lockgate.version(HOST).await.unwrap(), "one");

    let exits = lockgate.cli(&["deploy", "web", "--env", "EXIT_AFTER_MS=0", "--env", "EXIT_CODE=7"]);
    assert_eq!(exits.status.code(), Some(1));
    let told = stderr(&exits);
    assert!(told.contains("exited with code 7") && told.contains("goes on serving"), "{told}");

    let same = lockgate.cli(&["deploy", "web", "--env", "VERSION=one"]);
    assert!(stdout(&same).contains("nothing to do"), "{}", stdout(&same));
    let unknown = lockgate.cli(&["deploy", "nobody"]);
    assert_eq!(unknown.status.code(), Some(3));
    assert!(stderr(&unknown).contains("no app nobody"), "{}", stderr(&unknown));

    lockgate.change_config(|config| config["apps"]["web"]["deploy"]["health_timeout"] = "10s".into());
    assert_eq!(lockgate.cli(&["config", "reload"]).status.code(), Some(0));
    let dies = lockgate.cli(&["--json", "deploy", "web", "--env", "HEALTH=never"]);
    assert_eq!(dies.status.code(), Some(1));
    let problem: lockgate::api::Problem = serde_json::from_slice(&dies.stdout).unwrap();
    assert_eq!(problem.code, "not_ready");
    assert!(problem.evidence.iter().any(|line| line.contains("answered 503")), "{problem:?}");
    assert_eq!(lockgate.version(HOST).await.unwrap(), "one");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_moves_the_traffic_is_shown_step_by_step_as_a_deploy_is() {
    let lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    lockgate.deploy("two").await.unwrap();
    let deployments = lockgate.deployments().await;
    let (two, one) = (deployments[0].id.to_string(), deployments[1].id.to_string());
    for (arguments, version) in [
        (&["swap", "web", &one][..], "one"),
        (&["swap", "web", &two, "--drain", "--no-queue"], "two"),
        (&["rollback", "web", "--to", &one], "one"),
        (&["promote", "web", &two], "two"),
    ] {
        let moved = lockgate.cli(arguments);
        assert_eq!(moved.status.code(), Some(0), "{arguments:?}: {}", stderr(&moved));
        let (told, receipt) = (stderr(&moved), stdout(&moved));
        for step in ["swap", "watch done"] {
            assert!(told.contains(step), "{arguments:?}: {told}");
        }
        assert!(receipt.contains("published in"), "{arguments:?}: {receipt}");
        // Fixed fault: now and then it was told as running, though nothing was left to do.
        assert!(receipt.contains("succeeded"), "{arguments:?}: {receipt}");
        assert_eq!(told.contains("drain done"), arguments.contains(&"--drain"), "{arguments:?}: {told}");
        assert_eq!(lockgate.version(HOST).await.unwrap(), version);
    }
    let json = lockgate.cli(&["--json", "rollback", "web"]);
    let operation: lockgate::api::Operation = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(operation.deployment.unwrap().to_string(), one);
    let refused = lockgate.cli(&["swap", "web", &one]);
    assert_eq!(refused.status.code(), Some(3), "{}", stderr(&refused));
    assert!(stdout(&lockgate.cli(&["list"])).contains("rolled back"));
    // Only the live one is reached at the app's host names.
    let versions = stdout(&lockgate.cli(&["versions", "web"]));
    for (version, url) in [(&one, &*lockgate.url(HOST)), (&two, "-")] {
        let line = versions.lines().find(|line| line.contains(version.as_str())).unwrap();
        assert_eq!(line.split_whitespace().last(), Some(url), "{versions}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_dies_after_the_cutover_ends_with_5_and_the_old_one_serves() {
    let lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    lockgate.write_config("10m");
    assert_eq!(lockgate.cli(&["config", "reload"]).status.code(), Some(0));
    let deploying = lockgate.begin(&["deploy", "web", "--env", "VERSION=two"]);
    eventually("it is live", async || lockgate.version(HOST).await.as_deref() == Ok("two")).await;
    lockgate.kill_version("two");
    let output = deploying.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert!(stderr(&output).contains("goes on serving"), "{}", stderr(&output));
    assert_eq!(lockgate.version(HOST).await.unwrap(), "one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_applies_whole_or_not_at_all() {
    let lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    let good = std::fs::read_to_string(lockgate.config()).unwrap();
    std::fs::write(
        lockgate.config(),
        good.replace("www.web.test", "new.web.test").replace("\"workers\":2", "\"wrkers\":2"),
    )
    .unwrap();
    let refused = lockgate.cli(&["config", "reload"]);
    assert_eq!(refused.status.code(), Some(3));
    assert!(stderr(&refused).contains("unknown key `wrkers`"), "{}", stderr(&refused));
    assert_eq!(lockgate.version("www.web.test").await.unwrap(), "one", "half of it was applied");

    std::fs::write(lockgate.config(), good.replace("www.web.test", "new.web.test")).unwrap();
    // By the watch of the file or by the command, whichever is first.
    lockgate.cli(&["config", "reload"]);
    eventually("the new host is served", async || lockgate.version("new.web.test").await.is_ok()).await;
    assert_eq!(lockgate.version("www.web.test").await, Err("status 404".to_owned()));
    assert_eq!(lockgate.version(HOST).await.unwrap(), "one");
}

async fn preview_of(lockgate: &Lockgate) -> String {
    let deployments = lockgate.deployments().await;
    deployments.iter().find(|deployment| deployment.label.is_some()).unwrap().id.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_and_a_preview_by_its_label() {
    let lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    let preview =
        lockgate.cli(&["deploy", "web", "--ephemeral", "Feat/X", "--ttl", "1h", "--env", "VERSION=preview"]);
    assert_eq!(preview.status.code(), Some(0), "{}", stderr(&preview));
    assert!(stderr(&preview).contains("\"Feat/X\" becomes \"feat-x\""), "{}", stderr(&preview));
    assert_eq!(lockgate.version("feat-x.web.test").await.unwrap(), "preview");
    assert_eq!(lockgate.version(HOST).await.unwrap(), "one");
    assert!(lockgate.raw("feat-x.web.test").await.contains("x-robots-tag: noindex"));
    assert!(!lockgate.raw(HOST).await.contains("x-robots-tag"));
    let extended = lockgate.cli(&["--json", "extend", &preview_of(&lockgate).await, "--ttl", "48h"]);
    let extended: lockgate::api::Deployment = serde_json::from_slice(&extended.stdout).unwrap();
    let left = extended.expires_at.unwrap().duration_since(extended.created_at);
    assert!(left.as_hours() >= 47, "{left}");
    assert_eq!(lockgate.version("feat-x.web.test").await.unwrap(), "preview");
    let told = stdout(&lockgate.cli(&["explain", "feat-x.web.test"]));
    assert!(told.contains("label feat-x stripped") && told.contains("gate open"), "{told}");
    let told = stdout(&lockgate.cli(&["explain", "nope.web.test"]));
    assert!(told.contains("answered with ephemeral_unknown"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_has_one_process() {
    let lockgate = Lockgate::start("").await;
    let second = Command::new(BINARY).args(["serve", "--config"]).arg(lockgate.config()).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains("data"), "{}", stderr(&second));
    assert!(lockgate.version(HOST).await.is_err(), "nothing is deployed");
    assert_eq!(lockgate.cli(&["status"]).status.code(), Some(0), "the first one goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_another_app_stands_against_changes_no_app() {
    let lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    let other =
        serde_json::json!({ "hosts": [{ "host": "taken.test" }], "settings": { "command": ["true"] } });
    lockgate.client.put::<lockgate::api::App>("/v1/apps/other", &other).await.unwrap();
    let good = std::fs::read_to_string(lockgate.config()).unwrap();
    let mut document: serde_json::Value = serde_json::from_str(&good).unwrap();
    document["apps"]["web"]["hosts"] = serde_json::json!(["new.test"]);
    document["apps"]["zebra"] = serde_json::json!({ "hosts": ["taken.test"], "command": ["true"] });
    std::fs::write(lockgate.config(), document.to_string()).unwrap();
    let refused = lockgate.cli(&["config", "reload"]);
    assert_eq!(refused.status.code(), Some(3));
    assert!(stderr(&refused).contains("host taken.test belongs to app other"), "{}", stderr(&refused));
    assert_eq!(lockgate.version(HOST).await.unwrap(), "one", "half of it was applied");
    assert_eq!(lockgate.version("new.test").await, Err("status 404".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_leaves_the_file_serves_on_and_belongs_to_the_api() {
    let lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    let good = std::fs::read_to_string(lockgate.config()).unwrap();
    let mut document: serde_json::Value = serde_json::from_str(&good).unwrap();
    let app = document["apps"]["web"].take();
    document["apps"] = serde_json::json!({});
    std::fs::write(lockgate.config(), document.to_string()).unwrap();
    lockgate.cli(&["config", "reload"]);
    let put =
        serde_json::json!({ "hosts": [{ "host": "new.test" }], "settings": { "command": app["command"] } });
    eventually("the API may change it", async || {
        lockgate.client.put::<lockgate::api::App>("/v1/apps/web", &put).await.is_ok()
    })
    .await;
    assert_eq!(lockgate.version("new.test").await.unwrap(), "one");
}

/// Whoever accepts a call carries it out, writes it down and publishes it, whether or not its client waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_does_not_stop_what_it_asked_for() {
    use std::io::Write as _;
    let lockgate = Lockgate::start("").await;
    let body = r#"{"env":{"VERSION":"one"}}"#;
    let mut stream = std::os::unix::net::UnixStream::connect(lockgate.socket()).unwrap();
    write!(
        stream,
        "POST /v1/apps/web/deployments?wait=end HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    eventually("it was accepted", async || !lockgate.operations().await.is_empty()).await;
    drop(stream);
    eventually("it is served", async || lockgate.version(HOST).await.is_ok()).await;
    eventually("it is in the audit trail", async || {
        let audit = lockgate.client.get::<lockgate::api::List<lockgate::api::Audit>>("/v1/audit").await;
        audit.unwrap().items.iter().any(|entry| entry.status == 200 && entry.operation.is_some())
    })
    .await;
}

/// Fixed fault: a second signal was ignored, and the operator had to wait for the slowest client or `kill -9`.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_it_at_once_and_instances_go_on() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    let running = lockgate.running().await;
    // Something in flight that does not end by itself while the test runs.
    let mut client = tokio::net::TcpStream::connect(("127.0.0.1", lockgate.port())).await.unwrap();
    let request = format!("GET /sse?n=1000000&ms=20 HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    assert!(client.read(&mut [0; 64]).await.unwrap() > 0);
    lockgate.signal(rustix::process::Signal::TERM);
    eventually("it shuts down", async || lockgate.logged().contains("shutting down")).await;
    assert!(client.read(&mut [0; 64]).await.unwrap() > 0, "the first signal lets it go on");
    assert!(!lockgate.has_ended());
    lockgate.signal(rustix::process::Signal::TERM);
    eventually("it ends", async || lockgate.has_ended()).await;
    assert!(lockgate.logged().contains("a second time"), "{}", lockgate.logged());
    lockgate.spawn("").await;
    assert_eq!(lockgate.running().await, running);
    assert_eq!(lockgate.version(HOST).await.unwrap(), "one");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_may_be_renamed_in_the_file_with_its_hosts() {
    let mut lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    let good = std::fs::read_to_string(lockgate.config()).unwrap();
    let mut document: serde_json::Value = serde_json::from_str(&good).unwrap();
    let app = document["apps"]["web"].take();
    document["apps"] = serde_json::json!({ "shop": app });
    std::fs::write(lockgate.config(), document.to_string()).unwrap();
    let reloaded = lockgate.cli(&["config", "reload"]);
    assert_eq!(reloaded.status.code(), Some(0), "{}", stderr(&reloaded));
    let deployed = lockgate.cli(&["deploy", "shop", "--env", "VERSION=two"]);
    assert_eq!(deployed.status.code(), Some(0), "{}", stderr(&deployed));
    assert_eq!(lockgate.version(HOST).await.unwrap(), "two");
    lockgate.kill();
    lockgate.spawn("").await;
    assert_eq!(lockgate.version(HOST).await.unwrap(), "two");
}
