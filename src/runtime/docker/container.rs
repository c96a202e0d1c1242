//! What a container of ours is made of, and what an inspection says of one.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, HealthConfig,
    HealthStatusEnum, HostConfig, HostConfigLogConfig, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};

use super::{network, volume};
use crate::clock::Timestamp;
use crate::ids::{InstanceId, LockgateId};
use crate::runtime::{Exit, Health, HealthCheck, Instance, InstanceSpec, InstanceState, sockets};

pub(super) const LOCKGATE: &str = "lockgate.id";
pub(super) const APP: &str = "lockgate.app";
pub(super) const ENVIRONMENT: &str = "lockgate.environment";
pub(super) const INSTANCE: &str = "lockgate.instance";
const DEPLOYMENT: &str = "lockgate.deployment";
const OPERATION: &str = "lockgate.operation";
const PORT: &str = "lockgate.port";

/// Where the engine answers to names, in each container.
const ENGINE_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));

/// Fewer than the engine's own set: without NET_RAW, MKNOD, SETPCAP, SETFCAP, SYS_CHROOT, AUDIT_WRITE, FSETID.
const CAPABILITIES: [&str; 7] =
    ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETUID", "SETGID", "NET_BIND_SERVICE", "KILL"];

/// A container that was inspected and is ours.
#[derive(Debug)]
pub(super) struct Container {
    /// The engine's id: names can be given to another, ids cannot.
    pub(super) id: String,
    pub(super) instance: Instance,
    pub(super) stop_signal: Option<String>,
}

/// The container's name: derived from the instance, so that a repeated create meets the first one.
pub(super) fn name(instance: &InstanceId) -> String {
    format!("lockgate-{instance}")
}

/// What is asked of the engine. An allow-list: what is not named here stays at the engine's default.
pub(super) fn create_body(lockgate: LockgateId, spec: &InstanceSpec) -> ContainerCreateBody {
    let mut env: Vec<String> = spec
        .env
        .iter()
        .filter(|(name, _)| spec.port.is_none() || name.as_str() != "PORT")
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    env.extend(spec.port.map(|port| format!("PORT={port}")));
    env.extend(spec.volumes.iter().map(|volume| format!("{}={}", volume.variable(), volume.path)));
    let command = spec.command_line(spec.port);
    ContainerCreateBody {
        image: Some(spec.digest.clone()),
        cmd: (!command.is_empty()).then_some(command),
        env: Some(env),
        labels: Some(labels(lockgate, spec)),
        stop_signal: spec.stop_signal.map(|signal| signal.name().to_owned()),
        healthcheck: spec.health_check.as_ref().map(health_config),
        host_config: Some(host_config(lockgate, spec)),
        ..ContainerCreateBody::default()
    }
}

fn health_config(check: &HealthCheck) -> HealthConfig {
    let nanos = |time: Duration| Some(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX));
    let words = std::iter::once("CMD".to_owned()).chain(check.command.iter().cloned());
    HealthConfig {
        test: Some(words.collect()),
        interval: nanos(check.interval),
        timeout: nanos(check.timeout),
        retries: Some(check.failures.into()),
        start_period: nanos(check.grace),
        start_interval: None,
    }
}

/// Every label that we read is always set, so that none of them can be the image's.
fn labels(lockgate: LockgateId, spec: &InstanceSpec) -> HashMap<String, String> {
    [
        (LOCKGATE, lockgate.to_string()),
        (APP, spec.app.to_string()),
        (ENVIRONMENT, spec.environment.to_string()),
        (DEPLOYMENT, spec.deployment.to_string()),
        (INSTANCE, spec.id.to_string()),
        (OPERATION, spec.operation.to_string()),
        (PORT, spec.port.map(|port| port.to_string()).unwrap_or_default()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

fn host_config(lockgate: LockgateId, spec: &InstanceSpec) -> HostConfig {
    let memory = i64::try_from(spec.resources.memory_mib.saturating_mul(1024 * 1024)).unwrap_or(i64::MAX);
    let limit = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    HostConfig {
        network_mode: Some(network::name(lockgate, &spec.app, &spec.environment)),
        security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(CAPABILITIES.map(str::to_owned).to_vec()),
        memory: Some(memory),
        // Memory and swap together: equal to memory means no swap.
        memory_swap: Some(memory),
        nano_cpus: (spec.resources.cpu_millis > 0)
            .then(|| limit(spec.resources.cpu_millis.saturating_mul(1_000_000))),
        pids_limit: Some(limit(spec.resources.pids)),
        // None unless it is asked for: an engine that may not raise its own refuses the whole container.
        ulimits: spec.resources.open_files.map(|files| {
            let files = Some(limit(files));
            vec![ResourcesUlimits { name: Some("nofile".to_owned()), soft: files, hard: files }]
        }),
        // Lockgate is the only one that restarts its instances.
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), "10m".to_owned()),
                ("max-file".to_owned(), "3".to_owned()),
            ])),
        }),
        mounts: (!spec.volumes.is_empty()).then(|| volume::mounts(lockgate, spec)),
        init: Some(true),
        ..HostConfig::default()
    }
}

impl Container {
    /// The container as ours, or `None`: without our labels, or under a name that does not follow from them,
    /// which is how one started by hand from an image with forged labels is told.
    pub(super) fn of(inspected: &ContainerInspectResponse, lockgate: LockgateId) -> Option<Self> {
        let config = inspected.config.as_ref()?;
        let labels = config.labels.as_ref()?;
        let label = |name: &str| labels.get(name).map(String::as_str);
        if label(LOCKGATE)? != lockgate.to_string() {
            return None;
        }
        let instance: InstanceId = label(INSTANCE)?.parse().ok()?;
        if inspected.name.as_deref()?.trim_start_matches('/') != name(&instance) {
            return None;
        }
        let app = label(APP)?.parse().ok()?;
        let environment = label(ENVIRONMENT)?.parse().ok()?;
        let id = inspected.id.clone()?;
        let state = inspected.state.as_ref()?;
        let address = address(inspected, &network::name(lockgate, &app, &environment), label(PORT)?);
        Some(Self {
            instance: Instance {
                id: instance,
                deployment: label(DEPLOYMENT)?.parse().ok()?,
                operation: label(OPERATION)?.parse().ok()?,
                app,
                environment,
                handle: id.clone(),
                state: state_of(state),
                address: address.filter(|_| state.running == Some(true)),
                started_at: state.started_at.as_deref().and_then(started_at),
            },
            id,
            stop_signal: config.stop_signal.clone().filter(|signal| !signal.is_empty()),
        })
    }
}

/// What is listened on in the container `id`, whose first process is `pid` for the engine. `None` where that is another
/// process for us, as in a container of our own, or may not be looked at.
pub(super) fn listening(pid: i64, id: &str) -> Option<Vec<SocketAddr>> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    if !fs::read_to_string(process.join("cgroup")).ok()?.contains(id) {
        return None;
    }
    let net = process.join("net");
    fs::read(net.join("tcp")).ok()?;
    let found = sockets::listening(&net).into_iter().map(|one| one.address);
    Some(found.filter(|address| address.ip() != ENGINE_DNS).collect())
}

fn address(inspected: &ContainerInspectResponse, network: &str, port: &str) -> Option<SocketAddr> {
    let networks = inspected.network_settings.as_ref()?.networks.as_ref()?;
    let ip: IpAddr = networks.get(network)?.ip_address.as_deref()?.parse().ok()?;
    Some(SocketAddr::new(ip, port.parse().ok()?))
}

fn state_of(state: &ContainerState) -> InstanceState {
    if state.running == Some(true) {
        let health = state.health.as_ref().and_then(|health| health.status);
        return InstanceState::Running { health: health.map_or(Health::None, health_of) };
    }
    if state.status == Some(ContainerStateStatusEnum::CREATED) {
        return InstanceState::Created;
    }
    let out_of_memory = state.oom_killed == Some(true);
    InstanceState::Exited(Exit { code: state.exit_code, out_of_memory, killed: false })
}

fn health_of(status: HealthStatusEnum) -> Health {
    match status {
        HealthStatusEnum::EMPTY | HealthStatusEnum::NONE => Health::None,
        HealthStatusEnum::STARTING => Health::Starting,
        HealthStatusEnum::HEALTHY => Health::Healthy,
        HealthStatusEnum::UNHEALTHY => Health::Unhealthy,
    }
}

/// The engine writes the year 1 for never.
fn started_at(text: &str) -> Option<Timestamp> {
    text.parse::<Timestamp>().ok().filter(|at| *at > Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bollard::models::MountType;

    use super::*;
    use crate::ids::{DeploymentId, OperationId};
    use crate::runtime::Volume;
    use crate::settings::ResourceSettings;

    fn spec() -> InstanceSpec {
        InstanceSpec {
            id: InstanceId::generate(),
            app: "web".parse().unwrap(),
            environment: "production".parse().unwrap(),
            deployment: DeploymentId::generate(),
            operation: OperationId::generate(),
            digest: "sha256:aa".to_owned(),
            command: vec!["./web".to_owned(), "--port=$PORT".to_owned()],
            directory: None,
            port: Some(3000),
            env: BTreeMap::from([("PORT".into(), "1".into()), ("A".into(), "b".into())]),
            volumes: vec![Volume { name: "data-1".into(), path: "/data".into(), read_only: true }],
            label: None,
            resources: ResourceSettings { memory_mib: 64, cpu_millis: 500, pids: 10, open_files: Some(99) },
            health_check: None,
            stop_signal: None,
            stop_grace: Duration::from_secs(1),
        }
    }

    fn inspected(lockgate: LockgateId, spec: &InstanceSpec) -> ContainerInspectResponse {
        let network = network::name(lockgate, &spec.app, &spec.environment);
        serde_json::from_value(serde_json::json!({
            "Id": "c0ffee",
            "Name": format!("/{}", name(&spec.id)),
            "Config": { "Labels": labels(lockgate, spec), "StopSignal": "SIGQUIT" },
            "State": { "Status": "running", "Running": true, "StartedAt": "2026-01-02T03:04:05.6Z" },
            "NetworkSettings": { "Networks": { network: { "IPAddress": "172.18.0.2" } } },
        }))
        .unwrap()
    }

    #[test]
    fn a_container_is_confined_and_gets_no_more_than_its_spec() {
        let body = create_body(LockgateId::generate(), &spec());
        let host = body.host_config.unwrap();
        assert_eq!(body.cmd.unwrap(), ["./web", "--port=3000"]);
        assert_eq!(
            body.env.unwrap(),
            ["A=b", "PORT=3000", "LOCKGATE_VOLUME_DATA_1=/data"],
            "PORT is the runtime's"
        );
        assert_eq!((host.memory, host.memory_swap), (Some(64 << 20), Some(64 << 20)));
        assert_eq!((host.nano_cpus, host.pids_limit), (Some(500_000_000), Some(10)));
        let files = &host.ulimits.unwrap()[0];
        assert_eq!((files.name.as_deref(), files.soft, files.hard), (Some("nofile"), Some(99), Some(99)));
        assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
        assert_eq!(host.cap_add.unwrap(), CAPABILITIES);
        assert_eq!(host.security_opt.unwrap(), ["no-new-privileges:true"]);
        assert_eq!(host.restart_policy.unwrap().name, Some(RestartPolicyNameEnum::NO));
        let mounts = host.mounts.unwrap();
        assert_eq!((mounts[0].typ, mounts[0].read_only), (Some(MountType::VOLUME), Some(true)));
        assert_eq!(mounts[0].target.as_deref(), Some("/data"));
        assert!(host.binds.is_none() && host.port_bindings.is_none() && host.privileged.is_none());
    }

    #[test]
    fn a_health_command_takes_the_place_of_the_images_and_none_leaves_it() {
        let mut spec = spec();
        assert_eq!(create_body(LockgateId::generate(), &spec).healthcheck, None);
        spec.health_check = Some(HealthCheck {
            command: vec!["/check".to_owned(), "a b".to_owned()],
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            failures: 3,
            grace: Duration::from_secs(90),
        });
        let check = create_body(LockgateId::generate(), &spec).healthcheck.unwrap();
        assert_eq!(check.test.unwrap(), ["CMD", "/check", "a b"], "words, and no shell");
        assert_eq!((check.interval, check.timeout), (Some(10_000_000_000), Some(5_000_000_000)));
        assert_eq!((check.retries, check.start_period), (Some(3), Some(90_000_000_000)));
    }

    #[test]
    fn an_inspection_is_read_as_the_instance_that_the_labels_name() {
        let (lockgate, spec) = (LockgateId::generate(), spec());
        let container = Container::of(&inspected(lockgate, &spec), lockgate).unwrap();
        assert_eq!(container.instance.id, spec.id);
        assert_eq!(container.instance.address, Some("172.18.0.2:3000".parse().unwrap()));
        assert_eq!(container.instance.state, InstanceState::Running { health: Health::None });
        assert_eq!(container.instance.started_at, Some("2026-01-02T03:04:05.6Z".parse().unwrap()));
        assert_eq!(container.stop_signal.as_deref(), Some("SIGQUIT"));
    }

    #[test]
    fn one_that_does_not_run_has_no_address() {
        let (lockgate, spec) = (LockgateId::generate(), spec());
        let mut dead = inspected(lockgate, &spec);
        dead.state = serde_json::from_value(serde_json::json!({
            "Status": "exited", "Running": false, "ExitCode": 137, "OOMKilled": true, "StartedAt": "0001-01-01T00:00:00Z",
        }))
        .unwrap();
        let instance = Container::of(&dead, lockgate).unwrap().instance;
        let exit = Exit { code: Some(137), out_of_memory: true, killed: false };
        assert_eq!((instance.address, instance.started_at), (None, None));
        assert_eq!(instance.state, InstanceState::Exited(exit));
    }

    #[test]
    fn a_container_of_another_lockgate_or_with_forged_labels_is_not_ours() {
        let (lockgate, spec) = (LockgateId::generate(), spec());
        assert!(Container::of(&inspected(lockgate, &spec), LockgateId::generate()).is_none());
        let mut by_hand = inspected(lockgate, &spec);
        by_hand.name = Some("/jolly_hopper".to_owned());
        assert!(Container::of(&by_hand, lockgate).is_none());
    }
}
