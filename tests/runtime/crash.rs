//! Lockgate is killed between two steps of a start: what is found afterwards is one instance, and it can be used.

use std::os::unix::process::ExitStatusExt;

use lockgate::runtime::{Instance, InstanceSpec, InstanceState};

use super::support::{LIMIT, World, get};

#[tokio::test]
async fn a_container_that_was_created_and_not_started_is_found_and_started() {
    let Some(world) = World::docker("crash after create").await else { return };
    let (world, found) = after_crash(world, "runtime.docker.created").await;
    assert_eq!(found.state, InstanceState::Created);
    started_once(&world, &found).await;
}

#[tokio::test]
async fn a_process_that_was_recorded_and_not_started_is_found_and_started() {
    let (world, found) = after_crash(World::process("").await.unwrap(), "runtime.process.recorded").await;
    assert_eq!(found.state, InstanceState::Created);
    started_once(&world, &found).await;
}

#[tokio::test]
async fn a_process_that_was_started_and_not_noted_is_found_and_not_started_again() {
    let (world, found) = after_crash(World::process("").await.unwrap(), "runtime.process.spawned").await;
    assert!(found.is_running());
    assert_eq!(started_once(&world, &found).await, found);
}

async fn after_crash(mut world: World, point: &str) -> (World, Instance) {
    let ended = world.second_lockgate(&format!("{point}=kill")).wait().unwrap();
    assert_eq!(ended.signal(), Some(9), "killed at {point}");
    world.begin_again().await;
    let mut found = world.runtime().list().await.unwrap();
    assert_eq!(found.len(), 1);
    (world, found.remove(0))
}

async fn started_once(world: &World, found: &Instance) -> Instance {
    let spec = InstanceSpec {
        id: found.id,
        deployment: found.deployment,
        operation: found.operation,
        ..world.spec("serve").await
    };
    let started = world.runtime().start(&spec).await.unwrap();
    assert_eq!(get(&started, "/").await, "hello");
    assert_eq!(world.runtime().list().await.unwrap(), std::slice::from_ref(&started));
    assert!(!world.runtime().stop(&found.id, None, LIMIT).await.unwrap().killed);
    started
}
