//! The command line as scripts use it: exit codes, JSON, completions.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

use crate::support::{BINARY, HOST, Lockgate, eventually, finish, free_port};

fn run(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The one JSON document that was printed.
fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_codes_are_those_of_the_help() {
    let help = text(&run(&["--help"]).stdout);
    let codes = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused and nothing changed, 4 no lockgate answers, \
                 5 the new version did not hold";
    let told: Vec<_> = help.split_whitespace().collect();
    assert!(told.join(" ").contains(codes), "{help}");

    let lockgate = Lockgate::start("").await;
    let bad = lockgate.folder.path().join("bad.yaml");
    std::fs::write(&bad, "apps: 1\n").unwrap();
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let nobody = "dep_00000000000000000000000000000000";
    // 1 of a deploy and 5 are in `operator`.
    for (arguments, code) in [
        (&["status"][..], 0),
        (&["config", "check", bad.to_str().unwrap()], 1),
        (&["frobnicate"], 2),
        (&["deploy"], 2),
        (&["deploy", "UPPER"], 2),
        (&["deploy", "web", "--env", "NO_VALUE"], 2),
        (&["deploy", "web", "--ttl", "soon"], 2),
        (&["show", "nobody"], 3),
        (&["swap", "web", nobody], 3),
        (&["logs", nobody], 3),
        (&["--url", &nowhere, "status"], 4),
    ] {
        let output = lockgate.cli(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
        assert_eq!(output.stderr.is_empty(), code == 0, "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_says_which_limits_are_not_kept_on_this_machine() {
    let lockgate = Lockgate::start("").await;
    let status = json(&lockgate.cli(&["--json", "status"]));
    let limits = status["status"]["limits"].as_object().unwrap();
    let kept = limits.values().all(|kept| kept == "exactly");
    let told = text(&lockgate.cli(&["status"]).stdout);
    assert_eq!((limits.len(), told.contains("limits not kept exactly")), (3, !kept), "{told}");
    let warned = lockgate.logged().lines().filter(|line| line.contains("imits of")).count();
    assert_eq!(warned, 1, "it is said once, either way");
}

/// Fixed fault: it ended with 1, as if something had been tried.
#[test]
fn a_url_of_another_form_is_wrong_usage() {
    for url in [
        "",
        "https://127.0.0.1:9900",
        "127.0.0.1:9900",
        "http://",
        "http://127.0.0.1",
        "http://:9900",
        "http://127.0.0.1:port",
        "http://127.0.0.1:99999",
        "http://user@127.0.0.1:9900",
        "http://127.0.0.1:9900/v1",
    ] {
        let output = run(&["--url", url, "status"]);
        assert_eq!(output.status.code(), Some(2), "{url:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains("--url"), "{url:?}: {}", text(&output.stderr));
        let output = run(&["--json", "--url", url, "status"]);
        assert_eq!(
            (output.status.code(), &json(&output)["code"]),
            (Some(2), &Value::from("usage")),
            "{url:?}"
        );
    }
}

/// Fixed fault: it printed text, and its places were for people alone.
#[test]
fn config_check_prints_json() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lockgate.yaml");
    let check = || run(&["--json", "config", "check", path.to_str().unwrap()]);
    std::fs::write(&path, "apps:\n  web:\n    hosts: [web.test]\n    command: [./web]\n").unwrap();
    let valid = check();
    assert_eq!(valid.status.code(), Some(0), "{valid:?}");
    assert_eq!(json(&valid)["valid"], true);
    assert_eq!(json(&valid)["diagnostics"], Value::Array(Vec::new()));

    std::fs::write(&path, "apps:\n  web:\n    prot: 80\n").unwrap();
    let invalid = check();
    assert_eq!(invalid.status.code(), Some(1));
    let report = json(&invalid);
    assert_eq!(report["valid"], false);
    let found = report["diagnostics"].as_array().unwrap();
    let of_the_key = found.iter().find(|one| one["path"] == "apps.web.prot").unwrap();
    assert_eq!((&of_the_key["line"], &of_the_key["column"]), (&Value::from(3), &Value::from(5)));
    assert!(of_the_key["remedy"].as_str().unwrap().contains("port"), "{report}");

    std::fs::remove_file(&path).unwrap();
    let missing = check();
    assert_eq!((missing.status.code(), &json(&missing)["valid"]), (Some(1), &Value::from(false)));
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        let script = text(&output.stdout);
        for word in ["deploy", "swap", "explain", "completions", "ephemeral", "expected-generation"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert_eq!(run(&["completions", "cmd.exe"]).status.code(), Some(2));
}

/// Fixed fault: `lockgate … | head` ended in a panic.
#[test]
fn a_reader_that_stops_reading_is_no_fault() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(BINARY);
    command.args(["completions", "bash"]).stdout(writer).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

/// `lockgate logs --follow` with its output as it comes.
fn follow(lockgate: &Lockgate, arguments: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let mut command = Command::new(BINARY);
    command.arg("--socket").arg(lockgate.socket()).args(["logs", "--follow"]).args(arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

fn line(output: &mut impl BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_followed_until_the_instances_end() {
    let lockgate = Lockgate::start("").await;
    let one = lockgate.deploy("one").await.unwrap().deployment.unwrap().to_string();
    let (mut plain, mut lines) = follow(&lockgate, &[&one]);
    let (mut as_json, mut objects) = follow(&lockgate, &["--json", &one]);
    assert!(line(&mut lines).contains("listening on"));
    let object: lockgate::api::LogLine = serde_json::from_str(&line(&mut objects)).unwrap();
    assert!(object.line.contains("listening on") && lockgate.instances().await[0].id == object.instance);
    assert!(plain.try_wait().unwrap().is_none(), "it waits for more");
    // What it writes from now on: its signal, when the next version has replaced it.
    lockgate.deploy("two").await.unwrap();
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert!(rest.to_lowercase().contains("sigterm"), "{rest:?}");
    assert_eq!(plain.wait().unwrap().code(), Some(0));
    let mut rest_of_json = String::new();
    objects.read_to_string(&mut rest_of_json).unwrap();
    assert_eq!(rest_of_json.lines().count(), rest.lines().count(), "{rest_of_json}");
    assert_eq!(as_json.wait().unwrap().code(), Some(0));
    assert_eq!(lockgate.version(HOST).await.unwrap(), "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lockgate_that_goes_away_ends_the_following_with_4() {
    let mut lockgate = Lockgate::start("").await;
    let one = lockgate.deploy("one").await.unwrap().deployment.unwrap().to_string();
    let (mut child, mut lines) = follow(&lockgate, &[&one]);
    assert!(line(&mut lines).contains("listening on"));
    lockgate.kill();
    let mut code = None;
    eventually("it ends", async || {
        code = child.try_wait().unwrap().map(|status| status.code());
        code.is_some()
    })
    .await;
    assert_eq!(code, Some(Some(4)));
}

#[tokio::test(flavor = "multi_thread")]
async fn app_set_changes_what_is_named_and_drops_no_env_var_unasked() {
    let lockgate = Lockgate::start("").await;
    let set = |arguments: &[&str]| lockgate.cli(&[&["app", "set", "api"], arguments].concat());
    let settings = r#"{"port":3000,"deploy":{"watch":"7s"}}"#;
    let made = set(&["--host", "api.test/v1", "--settings", settings, "--env", "KEY=1", "--", "run", "me"]);
    assert_eq!(made.status.code(), Some(0), "{}", String::from_utf8_lossy(&made.stderr));
    let app = async || lockgate.client.get::<lockgate::api::App>("/v1/apps/api").await.unwrap();
    let before = app().await;
    assert_eq!((before.settings.port, before.settings.command.len()), (Some(3000), 2), "{before:?}");

    let refused = set(&["--health", "/up"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("KEY would be dropped"));
    assert_eq!(set(&["--health", "/up", "--env", "KEY=2"]).status.code(), Some(0));
    let after = app().await;
    assert_eq!(after.settings.health.path.as_deref(), Some("/up"));
    assert_eq!((&after.hosts, &after.env), (&before.hosts, &before.env));
    assert_eq!(after.settings.deploy.watch, before.settings.deploy.watch);
    assert_eq!(set(&["--replace-env"]).status.code(), Some(0));
    assert!(app().await.env.is_empty());
}

/// Whoever follows a deploy is told how it ended, also when lockgate was restarted in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_that_a_restart_interrupts_does_not_end_with_0() {
    let mut lockgate = Lockgate::start("").await;
    lockgate.deploy("one").await.unwrap();
    let mut child = Command::new(BINARY)
        .arg("--socket")
        .arg(lockgate.socket())
        .args(["deploy", "web", "--env", "VERSION=two", "--env", "HEALTH_AFTER_MS=60000"])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (mut progress, mut told) = (BufReader::new(child.stderr.take().unwrap()), String::new());
    // By then it was accepted, and is followed.
    while !told.contains("check") {
        assert!(progress.read_line(&mut told).unwrap() > 0, "{told}");
    }
    eventually("it is checked", async || lockgate.running().await == 2).await;
    lockgate.kill();
    lockgate.spawn("").await;
    let status = child.wait().unwrap();
    progress.read_to_string(&mut told).unwrap();
    assert_eq!(status.code(), Some(1), "{told}");
    assert!(told.contains("restarted before the cutover"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_removed_drains_and_leaves_nothing() {
    let lockgate = Lockgate::start("").await;
    let refused = lockgate.cli(&["app", "remove", "web"]);
    assert_eq!(refused.status.code(), Some(3));
    assert!(text(&refused.stderr).contains("belongs to the configuration file"));

    let folder = lockgate.folder.path().display().to_string();
    let settings = r#"{"health":{"path":"/health"},"deploy":{"watch":"0s","stop_grace":"5s"}}"#;
    let set = ["app", "set", "shop", "--host", "shop.test", "--settings", settings, "--env"];
    let folder = format!("TEST_FOLDER={folder}");
    let made = lockgate.cli(&[&set[..], &[&folder, "--", BINARY, "sample-app"]].concat());
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    for arguments in [&["deploy", "shop"][..], &["deploy", "shop", "--ephemeral", "x", "--env", "VERSION=x"]]
    {
        assert_eq!(lockgate.cli(arguments).status.code(), Some(0));
    }
    assert_eq!(lockgate.version("x.shop.test").await.unwrap(), "x");
    // A request in flight is served to its end.
    let held = lockgate.unfinished("shop.test").await;
    let removing = lockgate.begin(&["app", "remove", "shop"]);
    eventually("nothing leads to it", async || {
        lockgate.version("shop.test").await == Err("status 404".to_owned())
    })
    .await;
    let answer = finish(held).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let removed = removing.wait_with_output().unwrap();
    assert_eq!(removed.status.code(), Some(0), "{}", text(&removed.stderr));
    assert_eq!((lockgate.instances().await.len(), lockgate.running().await), (0, 0));
    assert_eq!(lockgate.cli(&["app", "remove", "shop"]).status.code(), Some(3));
    // Its name and host are free again.
    assert_eq!(
        lockgate.cli(&["app", "set", "shop", "--host", "shop.test", "--", "true"]).status.code(),
        Some(0)
    );
}

/// The process runtime's own processes are looked at, not what the store says of them.
#[tokio::test(flavor = "multi_thread")]
async fn doctor_and_operations_tell_what_is_amiss_and_who_did_what() {
    let lockgate = Lockgate::start("").await;
    lockgate.deploy_with(&serde_json::json!({ "env": { "VERSION": "one" } }), "end").await.unwrap();
    let well = lockgate.cli(&["doctor"]);
    assert_eq!((well.status.code(), text(&well.stdout)), (Some(0), "nothing is amiss\n".to_owned()));
    let operations = text(&lockgate.cli(&["operations", "web"]).stdout);
    let line = operations.lines().nth(1).unwrap_or_else(|| panic!("{operations}"));
    assert!(
        line.contains("deploy") && line.contains("web/production") && line.contains("succeeded"),
        "{line}"
    );
    assert_eq!(json(&lockgate.cli(&["--json", "operations", "other"]))["items"], Value::Array(Vec::new()));

    // It ends at once each time, and is soon left alone for ten seconds and more.
    let folder = lockgate.folder.path().display().to_string();
    eventually("doctor tells of the instance that is missing", async || {
        crate::support::kill_where("environ", &format!("TEST_FOLDER={folder}\0"));
        let amiss = lockgate.cli(&["--json", "doctor"]);
        let found = json(&amiss)["findings"][0]["kind"] == "missing-instance";
        assert_eq!(amiss.status.code() == Some(0), json(&amiss)["findings"] == Value::Array(Vec::new()));
        found
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_did_what_what_runs_and_what_happens_are_told_on_the_command_line() {
    let lockgate = Lockgate::start("").await;
    let deployed = lockgate.deploy("one").await.unwrap();
    lockgate.cli(&["pause", "nobody"]);
    let instances = json(&lockgate.cli(&["--json", "instances"]));
    assert_eq!(instances["items"].as_array().unwrap().len(), 1);
    let table = text(&lockgate.cli(&["instances"]).stdout);
    assert!(table.contains("INSTANCE") && table.contains("running") && table.contains("healthy"), "{table}");

    let audit = json(&lockgate.cli(&["--json", "audit"]));
    let told: Vec<_> =
        audit["items"].as_array().unwrap().iter().map(|one| (&one["target"], &one["status"])).collect();
    let pause = (&Value::from("/v1/apps/nobody/pause"), &Value::from(404));
    let deploy = (&Value::from("/v1/apps/web/deployments"), &Value::from(200));
    assert_eq!(told, [pause, deploy]);
    let last = json(&lockgate.cli(&["--json", "audit", "-n", "1"]));
    assert_eq!((last["items"].as_array().unwrap().len(), &last["next_offset"]), (1, &Value::from(1)));
    let table = text(&lockgate.cli(&["audit"]).stdout);
    assert!(
        table.contains("POST /v1/apps/web/deployments") && table.contains(&deployed.id.to_string()),
        "{table}"
    );

    // Followed while it goes on, and told from the beginning once it is over.
    let arguments = ["--json", "events", &deployed.deployment.unwrap().to_string()];
    let lines: Vec<Value> = text(&lockgate.cli(&arguments).stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!((&lines[0]["kind"], &lines.last().unwrap()["kind"]), (&"step-began".into(), &"ended".into()));
    let shown = lockgate.cli(&["events", &deployed.id.to_string()]);
    let shown = text(&shown.stdout);
    assert_eq!(shown.lines().count(), lines.len(), "{shown}");
    assert!(shown.contains(" cutover ") && shown.lines().last().unwrap().ends_with(" ended"), "{shown}");
    let mut child = lockgate.begin(&["events", &deployed.id.to_string()]);
    assert!(child.wait().unwrap().success());
    assert_eq!(lockgate.cli(&["events", "web"]).status.code(), Some(2));
    let nobody = "op_00000000000000000000000000000000";
    assert_eq!(lockgate.cli(&["events", nobody]).status.code(), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_events_of_an_operation_that_runs_are_followed_across_a_restart() {
    let mut lockgate = Lockgate::start("").await;
    let slow = serde_json::json!({ "env": { "VERSION": "one", "HEALTH_AFTER_MS": "60000" } });
    let begun = lockgate.deploy_with(&slow, "false").await.unwrap();
    let mut child = lockgate.begin(&["events", &begun.id.to_string()]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains(" step-began "));
    lockgate.kill();
    lockgate.spawn("").await;
    let told: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(told.last().unwrap().contains(" ended"), "{told:?}");
    assert_eq!(told.iter().filter(|line| line.contains(" ended")).count(), 1, "{told:?}");
    assert!(child.wait().unwrap().success());
}
