//! One suite, run against each runtime.

use std::time::Duration;

use lockgate::ids::InstanceId;
use lockgate::runtime::{
    Changed, Exit, Instance, InstanceSpec, InstanceState, RuntimeError, StoredVolume, Volume, VolumeScope,
};
use tokio::sync::mpsc;

use super::support::{LIMIT, World, get};

macro_rules! contract {
    ($($claim:ident)*) => {
        contract! { docker: $($claim)* }
        contract! { process: $($claim)* }
    };
    ($runtime:ident: $($claim:ident)*) => {
        mod $runtime {
            use super::super::support::World;
            $(#[tokio::test]
            async fn $claim() {
                if let Some(world) = World::$runtime(stringify!($claim)).await {
                    super::$claim(world).await;
                }
            })*
        }
    };
}

contract! {
    a_started_instance_runs_and_is_reached
    starting_again_is_the_same_instance
    a_stopped_instance_got_its_signal_and_left_in_order
    one_that_ignores_the_signal_is_killed_after_its_grace
    an_exit_is_seen_with_its_code_and_last_words
    a_new_runtime_finds_what_runs
    removing_is_repeatable_and_refused_while_it_runs
    a_restarted_instance_keeps_its_id
    what_cannot_be_run_says_so
    what_is_not_there_is_no_surprise
    a_watcher_learns_of_an_exit
    a_follower_hears_every_line_until_the_end
    a_volume_outlives_its_instances_until_it_is_removed
    volumes_of_previews_environments_and_apps_are_apart
}

fn with_volume(mut spec: InstanceSpec) -> InstanceSpec {
    spec.volumes =
        vec![Volume { name: "my-data".to_owned(), path: "/srv/data".to_owned(), read_only: false }];
    spec
}

async fn run(world: &World, spec: &InstanceSpec) -> (Instance, String) {
    let instance = world.runtime().start(spec).await.unwrap();
    let place = get(&instance, "/env/LOCKGATE_VOLUME_MY_DATA").await;
    (instance, place)
}

async fn end(world: &World, spec: &InstanceSpec) {
    world.runtime().stop(&spec.id, None, LIMIT).await.unwrap();
    world.runtime().remove(&spec.id).await.unwrap();
}

fn scope(spec: &InstanceSpec) -> VolumeScope {
    VolumeScope { app: spec.app.clone(), of: Some((spec.environment.clone(), spec.label.clone())) }
}

async fn a_volume_outlives_its_instances_until_it_is_removed(world: World) {
    let first = with_volume(world.spec("serve").await);
    let (instance, place) = run(&world, &first).await;
    assert_eq!(get(&instance, &format!("/keep{place}/note")).await, "written");
    let found = async || {
        let all = world.runtime().volumes().await.unwrap();
        all.into_iter().map(|volume| (volume.app, volume.environment, volume.label)).collect::<Vec<_>>()
    };
    let own = (first.app.clone(), first.environment.clone(), first.label.clone());
    assert!(found().await.contains(&own), "{:?}", found().await);
    let in_use = world.runtime().remove_volumes(&scope(&first)).await.unwrap_err();
    assert!(matches!(in_use, RuntimeError::Volume { .. }), "{in_use:?}");
    end(&world, &first).await;

    let second = InstanceSpec { id: InstanceId::generate(), ..first.clone() };
    let (instance, place) = run(&world, &second).await;
    assert_eq!(get(&instance, &format!("/file{place}/note")).await, "kept");
    end(&world, &second).await;

    world.runtime().remove_volumes(&scope(&first)).await.unwrap();
    world.runtime().remove_volumes(&scope(&first)).await.unwrap();
    assert!(!found().await.contains(&own), "{:?}", found().await);
    let third = InstanceSpec { id: InstanceId::generate(), ..first };
    let (instance, place) = run(&world, &third).await;
    assert!(get(&instance, &format!("/file{place}/note")).await.contains("No such file"));
    end(&world, &third).await;
    world.runtime().remove_volumes(&VolumeScope { app: third.app, of: None }).await.unwrap();
}

async fn volumes_of_previews_environments_and_apps_are_apart(world: World) {
    let own = with_volume(world.spec("serve").await);
    let others = [
        InstanceSpec { id: InstanceId::generate(), label: Some("feat".parse().unwrap()), ..own.clone() },
        InstanceSpec { id: InstanceId::generate(), environment: "staging".parse().unwrap(), ..own.clone() },
        InstanceSpec { id: InstanceId::generate(), app: "web-feat".parse().unwrap(), ..own.clone() },
    ];
    let (instance, place) = run(&world, &own).await;
    assert_eq!(get(&instance, &format!("/keep{place}/note")).await, "written");
    let stored = async |spec: &InstanceSpec| {
        let of = (&spec.app, &spec.environment, &spec.label);
        let all = world.runtime().volumes().await.unwrap();
        all.into_iter().find(|volume| (&volume.app, &volume.environment, &volume.label) == of)
    };
    let own_place = stored(&own).await.unwrap().place;
    let refused = world.runtime().remove_volume(&own_place).await.unwrap_err();
    assert!(matches!(refused, RuntimeError::Volume { .. }), "an instance has it: {refused:?}");
    for other in &others {
        let (instance, place) = run(&world, other).await;
        let is_of = |volume: &StoredVolume| {
            (&volume.app, &volume.environment, &volume.label)
                == (&other.app, &other.environment, &other.label)
        };
        assert!(world.runtime().volumes().await.unwrap().iter().any(is_of));
        assert!(get(&instance, &format!("/file{place}/note")).await.contains("No such file"));
        end(&world, other).await;
        if other.label.is_some() {
            world.runtime().remove_volumes(&scope(other)).await.unwrap();
            continue;
        }
        // By its place, and no other.
        let found = stored(other).await.unwrap();
        assert_eq!(found.name, "my-data");
        world.runtime().remove_volume(&found.place).await.unwrap();
        world.runtime().remove_volume(&found.place).await.unwrap();
        assert_eq!(stored(other).await, None);
    }
    for nowhere in ["nowhere", "/", "..", ""] {
        world.runtime().remove_volume(nowhere).await.unwrap();
    }
    assert_eq!(get(&instance, &format!("/file{place}/note")).await, "kept");
    end(&world, &own).await;
    world.runtime().remove_volumes(&VolumeScope { app: own.app, of: None }).await.unwrap();
}

async fn a_started_instance_runs_and_is_reached(world: World) {
    let (spec, instance) = world.started("serve").await;
    assert!(instance.is_running());
    assert_eq!(instance.id, spec.id);
    assert_eq!((instance.deployment, instance.operation), (spec.deployment, spec.operation));
    assert_eq!(get(&instance, "/env/COLOUR").await, "blue");
    let port = instance.address.unwrap().port().to_string();
    assert_eq!(get(&instance, "/env/PORT").await, port);
    assert_eq!(get(&instance, "/args").await, format!("--port={port}"));
    assert_eq!(world.runtime().inspect(&spec.id).await.unwrap(), Some(instance));
}

async fn starting_again_is_the_same_instance(world: World) {
    let (spec, first) = world.started("serve").await;
    assert_eq!(world.runtime().start(&spec).await.unwrap(), first);
    assert_eq!(world.runtime().list().await.unwrap(), [first]);
}

async fn a_stopped_instance_got_its_signal_and_left_in_order(world: World) {
    let (spec, _) = world.started("serve").await;
    let exit = world.runtime().stop(&spec.id, None, LIMIT).await.unwrap();
    assert_eq!(exit, Exit { code: Some(0), out_of_memory: false, killed: false });
    let stopped = world.runtime().inspect(&spec.id).await.unwrap().unwrap();
    assert_eq!((stopped.state, stopped.address), (InstanceState::Exited(exit.clone()), None));
    assert_eq!(world.runtime().logs(&spec.id, 1).await.unwrap(), ["got TERM"]);
    assert_eq!(world.runtime().stop(&spec.id, None, LIMIT).await.unwrap(), exit, "stopping is repeatable");
}

async fn one_that_ignores_the_signal_is_killed_after_its_grace(world: World) {
    let (spec, _) = world.started("ignore-term").await;
    let exit = world.runtime().stop(&spec.id, None, Duration::from_millis(300)).await.unwrap();
    assert_eq!(exit, Exit { code: Some(137), out_of_memory: false, killed: true });
    assert!(!world.runtime().inspect(&spec.id).await.unwrap().unwrap().is_running());
}

async fn an_exit_is_seen_with_its_code_and_last_words(world: World) {
    let (spec, _) = world.started("exit-3").await;
    let exit = Exit { code: Some(3), out_of_memory: false, killed: false };
    assert_eq!(world.ended(&spec.id).await, InstanceState::Exited(exit));
    let mut words = world.runtime().logs(&spec.id, 10).await.unwrap();
    words.sort();
    assert_eq!(words, ["for a reason", "leaving"]);
}

async fn a_new_runtime_finds_what_runs(mut world: World) {
    let (spec, instance) = world.started("serve").await;
    world.begin_again().await;
    assert_eq!(world.runtime().list().await.unwrap(), [instance]);
    let exit = world.runtime().stop(&spec.id, None, LIMIT).await.unwrap();
    assert!(!exit.killed);
    assert!(!world.runtime().inspect(&spec.id).await.unwrap().unwrap().is_running());
}

async fn removing_is_repeatable_and_refused_while_it_runs(world: World) {
    let (spec, _) = world.started("serve").await;
    let refused = world.runtime().remove(&spec.id).await.unwrap_err();
    assert!(matches!(refused, RuntimeError::Refused { action: "remove", .. }), "{refused}");
    world.runtime().stop(&spec.id, None, LIMIT).await.unwrap();
    world.runtime().remove(&spec.id).await.unwrap();
    world.runtime().remove(&spec.id).await.unwrap();
    assert_eq!(world.runtime().inspect(&spec.id).await.unwrap(), None);
    assert_eq!(world.runtime().list().await.unwrap(), []);
}

async fn a_restarted_instance_keeps_its_id(world: World) {
    let (spec, first) = world.started("serve").await;
    world.runtime().stop(&spec.id, None, LIMIT).await.unwrap();
    let second = world.runtime().restart(&spec).await.unwrap();
    assert!(second.is_running());
    assert_eq!(second.id, first.id);
    assert!(second.started_at > first.started_at);
    assert_eq!(get(&second, "/env/COLOUR").await, "blue");
    let third = world.runtime().restart(&spec).await.unwrap();
    assert_eq!(third, second, "restarting one that runs leaves it alone");
}

async fn what_cannot_be_run_says_so(world: World) {
    let mut source = world.source();
    source.image = source.image.map(|_| "lockgate-test-no-such-image".to_owned());
    source.command[0] = "/no/such/command".to_owned();
    let error = world.runtime().prepare(&source, mpsc::channel(8).0).await.unwrap_err();
    match &error {
        RuntimeError::Image { image, .. } => assert_eq!(image, "lockgate-test-no-such-image"),
        RuntimeError::Command { command, .. } => assert_eq!(command, "/no/such/command"),
        other => panic!("{other}"),
    }
    let mut spec = world.spec("serve").await;
    spec.digest = format!("sha256:{}", "0".repeat(64));
    spec.command[0] = "/no/such/command".to_owned();
    let error = world.runtime().start(&spec).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Image { .. } | RuntimeError::Command { .. }), "{error}");
    assert_eq!(world.runtime().list().await.unwrap(), [], "a failed start leaves nothing behind");
}

async fn what_is_not_there_is_no_surprise(world: World) {
    let mut spec = world.spec("serve").await;
    spec.id = InstanceId::generate();
    assert_eq!(world.runtime().inspect(&spec.id).await.unwrap(), None);
    assert_eq!(world.runtime().stop(&spec.id, None, LIMIT).await.unwrap(), Exit::default());
    let error = world.runtime().restart(&spec).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NotFound { instance } if instance == spec.id), "{error}");
    let error = world.runtime().logs(&spec.id, 1).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NotFound { .. }), "{error}");
}

async fn a_watcher_learns_of_an_exit(world: World) {
    let mut hints = world.runtime().watch();
    let (spec, _) = world.started("exit-3").await;
    let told = async {
        loop {
            let hint = hints.recv().await.expect("the watch goes on");
            assert!(hint == Changed::One(spec.id) || hint == Changed::All, "a hint of another: {hint:?}");
            if !world.runtime().inspect(&spec.id).await.unwrap().unwrap().is_running() {
                return;
            }
        }
    };
    tokio::time::timeout(LIMIT, told).await.expect("told of the exit");
}

async fn a_follower_hears_every_line_until_the_end(world: World) {
    use futures_util::StreamExt;
    let (spec, _) = world.started("serve").await;
    let mut output = world.runtime().follow(&spec.id, 10).await.unwrap();
    let mut heard = vec![output.next().await.unwrap().unwrap()];
    // It runs: there is no end yet, and what it writes at its end comes before it.
    world.runtime().stop(&spec.id, None, LIMIT).await.unwrap();
    while let Some(line) = output.next().await {
        heard.push(line.unwrap());
    }
    assert_eq!(heard, ["listening", "got TERM"]);
    let mut late = world.runtime().follow(&spec.id, 1).await.unwrap();
    assert_eq!(late.next().await.unwrap().unwrap(), "got TERM");
    assert!(late.next().await.is_none());
    let nobody = world.runtime().follow(&InstanceId::generate(), 1).await.err();
    assert!(matches!(nobody, Some(RuntimeError::NotFound { .. })), "{nobody:?}");
}
