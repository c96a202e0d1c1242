//! What only processes have: pids that are given again, children that stay behind, files to be found by others.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use lockgate::runtime::{Exit, InstanceSpec, InstanceState, Ports, RuntimeError, Source};
use lockgate::settings::Enforced;
use serde_json::Value;

use super::support::{LIMIT, World, app, eventually, get};

async fn world() -> World {
    World::process("").await.unwrap()
}

#[tokio::test]
async fn an_instance_outlives_a_killed_lockgate_and_is_adopted() {
    let mut world = world().await;
    let mut lockgate = world.second_lockgate("");
    // Not by our own runtime: with two at work each may note the start.
    let noted = eventually("the other Lockgate notes its start", async || {
        let places = fs::read_dir(world.data_dir.join("instances")).unwrap();
        places.map(|place| place.unwrap().path()).find(|place| place.join("life.json").exists())
    })
    .await;
    let id = noted.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let started = world.runtime().inspect(&id).await.unwrap().unwrap();
    assert_eq!(get(&started, "/").await, "hello");
    lockgate.kill().unwrap();
    lockgate.wait().unwrap();
    world.begin_again().await;
    assert_eq!(world.runtime().list().await.unwrap(), std::slice::from_ref(&started));
    assert_eq!(get(&started, "/").await, "hello");
    let exit = world.runtime().stop(&started.id, None, LIMIT).await.unwrap();
    assert_eq!(exit, Exit::default(), "it left in order, and its parent, who knew how, is dead");
    assert_eq!(world.runtime().logs(&started.id, 1).await.unwrap(), ["got TERM"]);
}

#[tokio::test]
async fn a_process_that_was_started_and_not_noted_is_found_by_its_mark() {
    let mut world = world().await;
    let (spec, started) = world.started("serve").await;
    fs::remove_file(place(&world, &spec).join("life.json")).unwrap();
    world.begin_again().await;
    let found = world.runtime().inspect(&spec.id).await.unwrap().unwrap();
    assert_eq!((found.handle, found.address), (started.handle, started.address));
    assert_eq!(world.runtime().start(&spec).await.unwrap().id, spec.id, "and not started twice");
    assert!(!world.runtime().stop(&spec.id, None, LIMIT).await.unwrap().killed);
}

#[tokio::test]
async fn a_stranger_with_the_pid_of_an_instance_gets_no_signal() {
    let mut world = world().await;
    let (spec, _) = world.started("serve").await;
    world.runtime().stop(&spec.id, None, LIMIT).await.unwrap();
    let mut stranger = Command::new(app()).env_clear().env("APP", "be-child").spawn().unwrap();
    let path = place(&world, &spec).join("life.json");
    let mut life: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    life["identity"]["pid"] = stranger.id().into();
    // Start times count in hundredths of a second, in which no pid comes round but a test may start both.
    life["identity"]["started"] = (life["identity"]["started"].as_u64().unwrap() - 1).into();
    life["exit"] = Value::Null;
    fs::write(&path, life.to_string()).unwrap();
    world.begin_again().await;
    assert_eq!(world.runtime().stop(&spec.id, None, Duration::ZERO).await.unwrap(), Exit::default());
    world.runtime().remove(&spec.id).await.unwrap();
    assert_eq!(stranger.try_wait().unwrap(), None, "the stranger lives");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[tokio::test]
async fn what_the_first_process_leaves_behind_ends_with_it() {
    let world = world().await;
    let (spec, _) = world.started("bear-child").await;
    let child = child_of(&world, &spec).await;
    assert!(runs(&child));
    let exit = world.runtime().stop(&spec.id, None, LIMIT).await.unwrap();
    assert_eq!(exit.code, Some(0), "the first one heeds its signal");
    eventually("its child ends", async || (!runs(&child)).then_some(())).await;
}

/// Fixed fault: it was taken for ended, and for as long as its threads were being ended its exit was lost.
#[tokio::test]
async fn a_process_whose_first_thread_has_ended_runs_as_long_as_another_does() {
    let world = world().await;
    let (spec, instance) = world.started("leave-first-thread").await;
    eventually("its first thread ends", async || (!runs(&instance.handle)).then_some(())).await;
    let found = world.runtime().inspect(&spec.id).await.unwrap().unwrap();
    assert!(found.is_running(), "{found:?}");
    assert_eq!(get(&found, "/").await, "hello");
    Command::new("kill").args(["-KILL", &instance.handle]).status().unwrap();
    let exit = Exit { code: Some(137), ..Exit::default() };
    assert_eq!(world.ended(&spec.id).await, InstanceState::Exited(exit));
}

#[tokio::test]
async fn children_of_a_first_process_that_crashes_end_too() {
    let world = world().await;
    let (spec, instance) = world.started("bear-child").await;
    let child = child_of(&world, &spec).await;
    Command::new("kill").args(["-KILL", &instance.handle]).status().unwrap();
    let exit = Exit { code: Some(137), ..Exit::default() };
    assert_eq!(world.ended(&spec.id).await, InstanceState::Exited(exit));
    eventually("its child ends", async || (!runs(&child)).then_some(())).await;
}

#[tokio::test]
async fn an_instance_keeps_its_port_and_no_two_have_one() {
    let world = world().await;
    let (spec, first) = world.started("serve").await;
    let (_, other) = world.started("serve").await;
    assert_ne!(first.address, other.address);
    world.runtime().stop(&spec.id, None, LIMIT).await.unwrap();
    assert_eq!(world.runtime().restart(&spec).await.unwrap().address, first.address);
}

#[tokio::test]
async fn it_is_told_what_it_may_know_and_nothing_of_it_is_written_down() {
    let world = world().await;
    let (spec, instance) = world.started("serve").await;
    assert_eq!(get(&instance, "/env/HOST").await, "127.0.0.1");
    assert_eq!(
        get(&instance, "/env/CARGO_MANIFEST_DIR").await,
        "",
        "our own environment is not its business"
    );
    for file in ["instance.json", "life.json", "output.log"] {
        let text = fs::read_to_string(place(&world, &spec).join(file)).unwrap();
        assert!(!text.contains("blue"), "{file}: {text}");
    }
}

#[tokio::test]
async fn limits_bound_files_memory_and_core_dumps() {
    let world = world().await;
    let mut spec = world.spec("serve").await;
    spec.resources.open_files = Some(99);
    let instance = world.runtime().start(&spec).await.unwrap();
    let limits = get(&instance, "/file/proc/self/limits").await;
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(limit("Max core file size"), "0");
    assert_eq!(limit("Max open files"), "99");
    if world.runtime().enforcement().memory == Enforced::Exactly {
        let group = get(&instance, "/file/proc/self/cgroup").await;
        assert!(group.contains(&spec.id.to_string()), "{group}");
    } else {
        assert_eq!(limit("Max data size"), (4 * 64 * 1024 * 1024).to_string());
    }
}

#[tokio::test]
async fn where_it_listens_is_seen_also_if_its_child_does() {
    let world = world().await;
    let (spec, instance) = world.started("serve").await;
    let seen = world.runtime().ports(&spec.id).await.unwrap();
    assert_eq!(seen, Ports::Listening(vec![instance.address.unwrap()]));
    world.runtime().stop(&spec.id, None, LIMIT).await.unwrap();
    assert_eq!(world.runtime().ports(&spec.id).await.unwrap(), Ports::Listening(Vec::new()));
    let mut shell = world.spec("serve").await;
    shell.command = vec!["sh".into(), "-c".into(), format!("{}; true", shell.command[0])];
    let source = Source { command: shell.command.clone(), ..world.source() };
    shell.digest = world.runtime().prepare(&source, tokio::sync::mpsc::channel(1).0).await.unwrap().digest;
    let instance = world.runtime().start(&shell).await.unwrap();
    get(&instance, "/").await;
    let seen = world.runtime().ports(&shell.id).await.unwrap();
    assert_eq!(seen, Ports::Listening(vec![instance.address.unwrap()]));
}

#[tokio::test]
async fn a_program_that_changed_since_the_deploy_was_prepared_is_not_started() {
    let world = world().await;
    let program = world.data_dir.join("program");
    fs::copy(app(), &program).unwrap();
    let mut source = world.source();
    source.command[0] = program.display().to_string();
    let pinned = world.runtime().prepare(&source, tokio::sync::mpsc::channel(1).0).await.unwrap();
    let spec = InstanceSpec { command: source.command, digest: pinned.digest, ..world.spec("serve").await };
    let mut bytes = fs::read(&program).unwrap();
    bytes.push(0);
    fs::write(&program, &bytes).unwrap();
    let error = world.runtime().start(&spec).await.unwrap_err();
    assert!(
        matches!(&error, RuntimeError::Command { detail, .. } if detail.contains("deploy again")),
        "{error}"
    );
    bytes.pop();
    fs::write(&program, &bytes).unwrap();
    // A process that another test is starting has for a moment what was open for writing here.
    let started = eventually("nobody else has it open", async || match world.runtime().start(&spec).await {
        Err(RuntimeError::Command { detail, .. }) if detail.contains("busy") => None,
        ended => Some(ended),
    })
    .await;
    assert!(started.unwrap().is_running());
}

fn place(world: &World, spec: &InstanceSpec) -> PathBuf {
    world.data_dir.join("instances").join(spec.id.to_string())
}

async fn child_of(world: &World, spec: &InstanceSpec) -> String {
    let lines = world.runtime().logs(&spec.id, 10).await.unwrap();
    lines.iter().find_map(|line| line.strip_prefix("child ")).expect("it tells of its child").to_owned()
}

fn runs(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
