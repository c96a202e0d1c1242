//! One network per environment: made when it is needed, removed with its last container.
//!
//! Nothing is locked: two that create it at once, and one that removes it while another starts, are met by
//! looking again. [`is_missing`] names the answers that ask for another look.

use std::collections::{HashMap, HashSet};

use bollard::models::{
    ContainerSummary, Network, NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest,
};
use bollard::query_parameters::{ListContainersOptionsBuilder, ListNetworksOptionsBuilder};

use super::container::{APP, ENVIRONMENT, LOCKGATE};
use super::engine::{Engine, EngineError, QUICK, SLOW};
use crate::ids::{AppName, EnvironmentName, LockgateId, WorkspaceName};
use crate::runtime::{InstanceSpec, RuntimeError};

/// The network's name. Labels have no dots, so no two environments share one.
pub(super) fn name(lockgate: LockgateId, app: &AppName, environment: &EnvironmentName) -> String {
    format!("{}{}.{app}.{environment}", prefix(lockgate), WorkspaceName::default_workspace())
}

/// Whether it is a network's name of this installation.
pub(super) fn is_named_by(network: &str, lockgate: LockgateId) -> bool {
    network.starts_with(&prefix(lockgate))
}

fn prefix(lockgate: LockgateId) -> String {
    format!("lockgate.{}.", lockgate.short())
}

/// Sees to it that exactly one network of that name is there.
pub(super) async fn ensure(
    engine: &Engine,
    lockgate: LockgateId,
    spec: &InstanceSpec,
) -> Result<(), RuntimeError> {
    let name = name(lockgate, &spec.app, &spec.environment);
    let mut named = named(engine, &name).await?;
    if named.is_empty() {
        let made = engine.call(
            SLOW,
            "network create",
            engine.client()?.create_network(request(lockgate, spec, &name)),
        );
        match made.await {
            Ok(_) => {}
            Err(taken) if taken.status() == Some(409) => {}
            Err(cause) => return Err(cannot_create(cause, spec)),
        }
        // Engines before 25 let two creators have one name each: look who else was there.
        named = self::named(engine, &name).await?;
    }
    if let Some(foreign) = named.iter().find(|network| !is_ours(network, lockgate)) {
        let detail = format!(
            "the network name {name} is taken by network {}, which is not of this Lockgate: remove that one",
            foreign.id.as_deref().unwrap_or("?")
        );
        return Err(RuntimeError::Refused { action: "start", instance: spec.id, detail });
    }
    keep_one(engine, named).await
}

/// Whether the engine says that the network went, or came twice, since it was ensured.
pub(super) fn is_missing(error: &EngineError) -> bool {
    match error {
        EngineError::Unavailable(_) => false,
        EngineError::Answer { message, .. } => {
            let says = |words: &str| message.contains(words);
            says("network") && (says("not found") || says("No such network") || says("is ambiguous"))
        }
    }
}

/// Puts a stopped container into the network that is there now: it remembers the id of the one that went.
pub(super) async fn rejoin(engine: &Engine, name: &str, container: &str) -> Result<(), EngineError> {
    let client = engine.client()?;
    let leave = NetworkDisconnectRequest { container: container.to_owned(), force: Some(true) };
    engine.call(QUICK, "network disconnect", client.disconnect_network(name, leave)).await?;
    let join = NetworkConnectRequest { container: container.to_owned(), endpoint_config: None };
    engine.call(QUICK, "network connect", client.connect_network(name, join)).await
}

/// Removes networks of ours that no container refers to, running or not.
pub(super) async fn sweep(engine: &Engine, lockgate: LockgateId) -> Result<(), EngineError> {
    let ours = HashMap::from([("label", vec![format!("{LOCKGATE}={lockgate}")])]);
    let networks = ListNetworksOptionsBuilder::default().filters(&ours).build();
    let networks = engine.call(QUICK, "network list", engine.client()?.list_networks(Some(networks))).await?;
    if networks.is_empty() {
        return Ok(());
    }
    let containers = ListContainersOptionsBuilder::default().all(true).filters(&ours).build();
    let containers = engine.call(QUICK, "list", engine.client()?.list_containers(Some(containers))).await?;
    let used: HashSet<_> = containers.iter().filter_map(of_container).collect();
    for network in networks.iter().filter(|network| of_network(network).is_some_and(|it| !used.contains(&it)))
    {
        remove(engine, network).await?;
    }
    Ok(())
}

fn request(lockgate: LockgateId, spec: &InstanceSpec, name: &str) -> NetworkCreateRequest {
    let labels = [
        (LOCKGATE, lockgate.to_string()),
        (APP, spec.app.to_string()),
        (ENVIRONMENT, spec.environment.to_string()),
    ];
    NetworkCreateRequest {
        name: name.to_owned(),
        driver: Some("bridge".to_owned()),
        labels: Some(labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
        ..NetworkCreateRequest::default()
    }
}

/// The engine's filter finds parts of names as well.
async fn named(engine: &Engine, name: &str) -> Result<Vec<Network>, EngineError> {
    let filters = HashMap::from([("name", vec![name.to_owned()])]);
    let options = ListNetworksOptionsBuilder::default().filters(&filters).build();
    let found = engine.call(QUICK, "network list", engine.client()?.list_networks(Some(options))).await?;
    Ok(found.into_iter().filter(|network| network.name.as_deref() == Some(name)).collect())
}

/// Of several that were made at once the oldest stays, unless one of the others is in use.
async fn keep_one(engine: &Engine, mut networks: Vec<Network>) -> Result<(), RuntimeError> {
    networks.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
    let mut left = networks.len();
    for network in networks.iter().rev() {
        if left == 1 {
            break;
        }
        if remove(engine, network).await? {
            left -= 1;
        }
    }
    Ok(())
}

/// Whether it is gone: the engine keeps a network that something is connected to.
async fn remove(engine: &Engine, network: &Network) -> Result<bool, EngineError> {
    let Some(id) = network.id.as_deref() else { return Ok(false) };
    match engine.call(SLOW, "network remove", engine.client()?.remove_network(id)).await {
        Ok(()) => Ok(true),
        Err(EngineError::Answer { status: 404, .. }) => Ok(true),
        Err(EngineError::Answer { message, .. }) => {
            tracing::debug!(network = id, reason = message, "network stays");
            Ok(false)
        }
        Err(unavailable @ EngineError::Unavailable(_)) => Err(unavailable),
    }
}

fn cannot_create(cause: EngineError, spec: &InstanceSpec) -> RuntimeError {
    match cause {
        EngineError::Answer { message, .. } if message.contains("address pool") => RuntimeError::Refused {
            action: "start",
            instance: spec.id,
            detail: format!(
                "{message} (the engine has no free subnet for another network: remove unused networks, or widen \
                 default-address-pools in its daemon.json)"
            ),
        },
        other => other.refused("start", spec.id),
    }
}

fn is_ours(network: &Network, lockgate: LockgateId) -> bool {
    let labels = network.labels.as_ref();
    labels.and_then(|labels| labels.get(LOCKGATE)).is_some_and(|id| *id == lockgate.to_string())
}

fn of_container(container: &ContainerSummary) -> Option<(String, String)> {
    environment_of(container.labels.as_ref()?)
}

fn of_network(network: &Network) -> Option<(String, String)> {
    environment_of(network.labels.as_ref()?)
}

fn environment_of(labels: &HashMap<String, String>) -> Option<(String, String)> {
    Some((labels.get(APP)?.clone(), labels.get(ENVIRONMENT)?.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environments_with_like_names_have_networks_of_their_own() {
        let lockgate = LockgateId::generate();
        let name = |app: &str, environment: &str| {
            name(lockgate, &app.parse().unwrap(), &environment.parse().unwrap())
        };
        assert_ne!(name("a-b", "c"), name("a", "b-c"));
    }

    #[test]
    fn an_engine_that_lost_the_network_is_told_from_one_that_lost_the_image() {
        let answer = |message: &str| EngineError::Answer { status: 404, message: message.to_owned() };
        assert!(is_missing(&answer("network lockgate.x not found")));
        assert!(is_missing(&answer("network lockgate.x is ambiguous (2 matches found on name)")));
        assert!(!is_missing(&answer("No such image: sha256:aa")));
    }
}
