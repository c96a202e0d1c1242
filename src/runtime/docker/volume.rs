//! Named volumes with our labels: made when an instance needs them, removed when somebody asks for it.

use std::collections::HashMap;

use bollard::models::{Mount, MountType, Volume as Found, VolumeCreateRequest};
use bollard::query_parameters::{ListVolumesOptionsBuilder, RemoveVolumeOptions};

use super::container::{APP, ENVIRONMENT, LOCKGATE};
use super::engine::{Engine, EngineError, QUICK, SLOW};
use super::network;
use crate::ids::LockgateId;
use crate::runtime::{InstanceSpec, RuntimeError, StoredVolume, Volume, VolumeScope};

/// Of a preview's volume.
const LABEL: &str = "lockgate.label";

/// What of the instance's volumes is put where. Nothing of the host is.
pub(super) fn mounts(lockgate: LockgateId, spec: &InstanceSpec) -> Vec<Mount> {
    let mount = |volume: &Volume| Mount {
        typ: Some(MountType::VOLUME),
        source: Some(name(lockgate, spec, volume)),
        target: Some(volume.path.clone()),
        read_only: Some(volume.read_only),
        ..Mount::default()
    };
    spec.volumes.iter().map(mount).collect()
}

/// Sees to it that each volume is there and ours: a mount would make one without labels.
pub(super) async fn ensure(
    engine: &Engine,
    lockgate: LockgateId,
    spec: &InstanceSpec,
) -> Result<(), RuntimeError> {
    for volume in &spec.volumes {
        let name = name(lockgate, spec, volume);
        let request = VolumeCreateRequest {
            name: Some(name.clone()),
            labels: Some(labels(lockgate, spec)),
            ..VolumeCreateRequest::default()
        };
        // One that is there already is answered as it is.
        let made = engine.call(SLOW, "volume create", engine.client()?.create_volume(request)).await;
        let made = made.map_err(|cause| refused("create", &name, cause))?;
        if made.labels.get(LOCKGATE) != Some(&lockgate.to_string()) {
            let detail =
                "the name is taken by a volume that is not of this Lockgate: remove that one".to_owned();
            return Err(RuntimeError::Volume { action: "create", volume: name, detail });
        }
    }
    Ok(())
}

/// Removes the volumes of `scope`; those that a container has stay, and the first of them is the error.
pub(super) async fn remove(
    engine: &Engine,
    lockgate: LockgateId,
    scope: &VolumeScope,
) -> Result<(), RuntimeError> {
    let wanted = vec![format!("{LOCKGATE}={lockgate}"), format!("{APP}={}", scope.app)];
    let mut removed = Ok(());
    for volume in labelled(engine, wanted).await?.into_iter().filter(|found| is_in(found, scope)) {
        let one = remove_named(engine, &volume.name).await;
        removed = removed.and(one);
    }
    removed
}

/// Removes the volume of that name, if it is of this installation.
pub(super) async fn remove_one(
    engine: &Engine,
    lockgate: LockgateId,
    name: &str,
) -> Result<(), RuntimeError> {
    let own = labelled(engine, vec![format!("{LOCKGATE}={lockgate}")]).await?;
    match own.iter().find(|volume| volume.name == name) {
        Some(volume) => remove_named(engine, &volume.name).await,
        None => Ok(()),
    }
}

async fn remove_named(engine: &Engine, name: &str) -> Result<(), RuntimeError> {
    let removal = engine.client()?.remove_volume(name, None::<RemoveVolumeOptions>);
    match engine.call(SLOW, "volume remove", removal).await {
        Ok(()) | Err(EngineError::Answer { status: 404, .. }) => Ok(()),
        Err(cause) => Err(refused("remove", name, cause)),
    }
}

/// All volumes of this installation.
pub(super) async fn list(engine: &Engine, lockgate: LockgateId) -> Result<Vec<StoredVolume>, RuntimeError> {
    let found = labelled(engine, vec![format!("{LOCKGATE}={lockgate}")]).await?;
    Ok(found.into_iter().filter_map(stored).collect())
}

/// `None` if its labels are not as we write them.
fn stored(volume: Found) -> Option<StoredVolume> {
    let label = |name: &str| volume.labels.get(name);
    Some(StoredVolume {
        app: label(APP)?.parse().ok()?,
        environment: label(ENVIRONMENT)?.parse().ok()?,
        label: label(LABEL).map(|label| label.parse()).transpose().ok()?,
        name: volume.name.rsplit_once('.')?.1.to_owned(),
        place: volume.name,
    })
}

async fn labelled(engine: &Engine, labels: Vec<String>) -> Result<Vec<Found>, RuntimeError> {
    let filters = HashMap::from([("label", labels)]);
    let options = ListVolumesOptionsBuilder::default().filters(&filters).build();
    let listed = engine.call(QUICK, "volume list", engine.client()?.list_volumes(Some(options))).await?;
    Ok(listed.volumes.unwrap_or_default())
}

fn is_in(volume: &Found, scope: &VolumeScope) -> bool {
    let Some((environment, label)) = &scope.of else { return true };
    let has = |name: &str| volume.labels.get(name).map(String::as_str);
    has(ENVIRONMENT) == Some(environment.as_str()) && has(LABEL) == label.as_ref().map(|label| label.as_str())
}

/// The network's name and what tells one volume there from the others. Labels have no dots.
fn name(lockgate: LockgateId, spec: &InstanceSpec, volume: &Volume) -> String {
    let environment = network::name(lockgate, &spec.app, &spec.environment);
    match &spec.label {
        None => format!("{environment}.{}", volume.name),
        Some(label) => format!("{environment}.{label}.{}", volume.name),
    }
}

fn labels(lockgate: LockgateId, spec: &InstanceSpec) -> HashMap<String, String> {
    let mut labels = HashMap::from([
        (LOCKGATE.to_owned(), lockgate.to_string()),
        (APP.to_owned(), spec.app.to_string()),
        (ENVIRONMENT.to_owned(), spec.environment.to_string()),
    ]);
    labels.extend(spec.label.as_ref().map(|label| (LABEL.to_owned(), label.to_string())));
    labels
}

fn refused(action: &'static str, volume: &str, cause: EngineError) -> RuntimeError {
    match cause {
        EngineError::Answer { message, .. } => {
            RuntimeError::Volume { action, volume: volume.to_owned(), detail: message }
        }
        unavailable @ EngineError::Unavailable(_) => unavailable.into(),
    }
}
