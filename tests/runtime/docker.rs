//! What only containers have: networks, confinement, strangers beside them.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::ContainerCreateBody;
use bollard::query_parameters as options;
use futures_util::future::join_all;
use lockgate::runtime::{Exit, Health, HealthCheck, Instance, InstanceState, Ports, RuntimeError};
use lockgate::settings::StopSignal;
use tokio::sync::mpsc;

use super::support::{LIMIT, World, build, engine, eventually, get};

#[tokio::test]
async fn a_container_gains_no_privileges_and_has_only_the_allowed_ones() {
    let Some(world) = World::docker("privileges").await else { return };
    let (_, instance) = world.started("serve").await;
    let status = get(&instance, "/file/proc/self/status").await;
    let value =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(value("NoNewPrivs:"), "1");
    // CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, KILL 5, SETGID 6, SETUID 7, NET_BIND_SERVICE 10.
    assert_eq!(u64::from_str_radix(&value("CapBnd:"), 16).unwrap(), 0b100_1110_1011);
}

#[tokio::test]
async fn starts_at_once_share_one_network_which_goes_with_the_last() {
    let Some(world) = World::docker("networks").await else { return };
    let specs = join_all((0..4).map(|_| world.spec("serve"))).await;
    let started = join_all(specs.iter().map(|spec| world.runtime().start(spec))).await;
    let started: Vec<Instance> = started.into_iter().map(Result::unwrap).collect();
    assert_eq!(networks(&world).await.len(), 1);
    let mut addresses: Vec<_> = started.iter().map(|instance| instance.address.unwrap()).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 4, "each has an address of its own");
    for (nth, spec) in specs.iter().enumerate() {
        assert_eq!(networks(&world).await.len(), 1, "removed with {nth} of 4 removed");
        world.runtime().stop(&spec.id, None, LIMIT).await.unwrap();
        world.runtime().remove(&spec.id).await.unwrap();
    }
    assert_eq!(networks(&world).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_stopped_one_restarts_after_its_network_was_pruned() {
    let Some(world) = World::docker("pruned network").await else { return };
    let (spec, _) = world.started("serve").await;
    world.runtime().stop(&spec.id, None, LIMIT).await.unwrap();
    for network in networks(&world).await {
        engine().remove_network(&network).await.unwrap();
    }
    let again = world.runtime().restart(&spec).await.unwrap();
    assert_eq!(get(&again, "/").await, "hello");
}

#[tokio::test]
async fn a_strangers_container_under_our_name_is_named_and_left_alone() {
    let Some(world) = World::docker("name conflict").await else { return };
    let spec = world.spec("serve").await;
    let name = format!("lockgate-{}", spec.id);
    let stranger = stranger(&world, &name, &[]).await;
    let error = world.runtime().start(&spec).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::Refused { detail, .. } if detail.contains(&name)), "{error}");
    assert_eq!(world.runtime().inspect(&spec.id).await.unwrap(), None);
    assert_eq!(world.runtime().stop(&spec.id, None, LIMIT).await.unwrap(), Exit::default());
    world.runtime().remove(&spec.id).await.unwrap();
    assert!(engine().inspect_container(&stranger, None).await.unwrap().state.unwrap().running.unwrap());
}

#[tokio::test]
async fn labels_alone_do_not_make_a_container_ours() {
    let Some(world) = World::docker("forged labels").await else { return };
    let spec = world.spec("serve").await;
    let forged = [
        ("lockgate.id", world.lockgate.to_string()),
        ("lockgate.instance", spec.id.to_string()),
        ("lockgate.app", "web".to_owned()),
        ("lockgate.environment", "production".to_owned()),
        ("lockgate.deployment", spec.deployment.to_string()),
        ("lockgate.operation", spec.operation.to_string()),
        ("lockgate.port", "1".to_owned()),
    ];
    stranger(&world, &format!("stranger-{}", spec.id), &forged).await;
    assert_eq!(world.runtime().list().await.unwrap(), []);
}

#[tokio::test]
async fn the_images_own_stop_signal_and_health_check_count() {
    let Some(world) = World::docker("image configuration").await else { return };
    let lines =
        ["STOPSIGNAL SIGQUIT", r#"HEALTHCHECK --interval=1s CMD ["/app", "check"]"#, "EXPOSE 3000 4000"];
    let image = build(world.image(), &lines).await;
    let mut source = world.source();
    source.image = Some(image.clone());
    let pinned = world.runtime().prepare(&source, mpsc::channel(8).0).await.unwrap();
    assert!(pinned.has_health_check);
    assert_eq!(pinned.exposed_port, None, "two exposed ports are no choice");
    let mut spec = world.spec("serve").await;
    spec.digest = pinned.digest;
    let instance = world.runtime().start(&spec).await.unwrap();
    assert_eq!(instance.state, InstanceState::Running { health: Health::Starting });
    get(&instance, "/").await;
    world.runtime().stop(&spec.id, None, LIMIT).await.unwrap();
    assert_eq!(world.runtime().logs(&spec.id, 1).await.unwrap(), ["got QUIT"]);
    world.runtime().restart(&spec).await.unwrap();
    eventually("it listens again", async || {
        let words = world.runtime().logs(&spec.id, 1).await.unwrap();
        (words == ["listening"]).then_some(())
    })
    .await;
    world.runtime().stop(&spec.id, Some(StopSignal::Term), LIMIT).await.unwrap();
    assert_eq!(world.runtime().logs(&spec.id, 1).await.unwrap(), ["got TERM"]);
    world.runtime().remove(&spec.id).await.unwrap();
    engine().remove_image(&image, None::<options::RemoveImageOptions>, None).await.unwrap();
}

#[tokio::test]
async fn an_instance_that_takes_more_memory_than_allowed_ends() {
    let Some(world) = World::docker("memory").await else { return };
    let mut spec = world.spec("eat-memory").await;
    spec.resources.memory_mib = 16;
    world.runtime().start(&spec).await.unwrap();
    // Not whether the engine calls it so: its word of that may come after its word of the end, and is then lost.
    let ended = world.ended(&spec.id).await;
    assert!(matches!(ended, InstanceState::Exited(Exit { code: Some(137), .. })), "{ended:?}");
}

#[tokio::test]
async fn where_it_listens_is_seen_in_its_network_or_told_by_its_image() {
    let Some(world) = World::docker("ports").await else { return };
    let image = build(world.image(), &["EXPOSE 4000/tcp 53/udp"]).await;
    let mut source = world.source();
    source.image = Some(image.clone());
    let mut spec = world.spec("serve").await;
    spec.digest = world.runtime().prepare(&source, mpsc::channel(8).0).await.unwrap().digest;
    let instance = world.runtime().start(&spec).await.unwrap();
    get(&instance, "/").await;
    let pid = engine().inspect_container(&instance.handle, None).await.unwrap().state.unwrap().pid.unwrap();
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let seen = world.runtime().ports(&spec.id).await.unwrap();
    if cgroup.contains(&instance.handle) {
        assert_eq!(seen, Ports::Listening(vec!["0.0.0.0:3000".parse().unwrap()]));
    }
    world.runtime().stop(&spec.id, None, LIMIT).await.unwrap();
    assert_eq!(world.runtime().ports(&spec.id).await.unwrap(), Ports::Exposed(vec![3000, 4000]));
    world.runtime().remove(&spec.id).await.unwrap();
    engine().remove_image(&image, None::<options::RemoveImageOptions>, None).await.unwrap();
}

#[tokio::test]
async fn the_apps_own_health_command_is_run_in_the_container() {
    let Some(world) = World::docker("health command").await else { return };
    let mut spec = world.spec("serve").await;
    spec.health_check = Some(HealthCheck {
        // A second one finds the port taken, and fails.
        command: vec!["/app".to_owned()],
        interval: Duration::from_millis(50),
        timeout: LIMIT,
        failures: 1,
        grace: Duration::from_millis(1),
    });
    world.runtime().start(&spec).await.unwrap();
    eventually("the engine has run it", async || {
        let instance = world.runtime().inspect(&spec.id).await.unwrap().unwrap();
        (instance.state == InstanceState::Running { health: Health::Unhealthy }).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_instance_may_open_as_many_files_as_its_settings_say() {
    let Some(world) = World::docker("open files").await else { return };
    let mut spec = world.spec("serve").await;
    spec.resources.open_files = Some(99);
    let instance = world.runtime().start(&spec).await.unwrap();
    let limits = get(&instance, "/file/proc/self/limits").await;
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().take(2).collect::<Vec<_>>(), ["99", "99"]);
}

/// A running container of the tests' image that no Lockgate made.
async fn stranger(world: &World, name: &str, labels: &[(&str, String)]) -> String {
    let mut labels: HashMap<String, String> =
        labels.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    labels.insert("lockgate.test".to_owned(), world.lockgate.to_string());
    let body = ContainerCreateBody {
        image: Some(world.image().to_owned()),
        env: Some(vec!["PORT=3000".to_owned()]),
        labels: Some(labels),
        ..ContainerCreateBody::default()
    };
    let named = options::CreateContainerOptionsBuilder::default().name(name).build();
    let id = engine().create_container(Some(named), body).await.unwrap().id;
    engine().start_container(&id, None).await.unwrap();
    id
}

async fn networks(world: &World) -> Vec<String> {
    let filters = HashMap::from([("label", vec![format!("lockgate.id={}", world.lockgate)])]);
    let ours = options::ListNetworksOptionsBuilder::default().filters(&filters).build();
    engine().list_networks(Some(ours)).await.unwrap().into_iter().filter_map(|network| network.id).collect()
}
