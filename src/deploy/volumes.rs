//! Volumes: they outlive the instances, and go with the last thing that refers to them.
//!
//! Those of an environment are data that nobody can make again: they are removed when somebody asks for it by name, with
//! the app, or one by one once nothing has them and nothing names them. Those of a preview go with the last deployment of
//! its label.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use tracing::info;
use utoipa::ToSchema;

use super::engine::{Engine, Stop};
use super::{Denied, Orchestrator};
use crate::ids::{AppName, DeploymentId, EnvironmentName, EphemeralLabel, InstanceId};
use crate::runtime::{RuntimeError, StoredVolume, VolumeScope};
use crate::store::{App, Deployment, DeploymentStatus, DesiredState};

/// A volume that there is, and who has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeView {
    /// By what the runtime finds it: a volume's name, or a directory.
    pub place: String,
    /// Of an app that is gone: by what the runtime knew it, which is its first name.
    pub app: AppName,
    pub environment: EnvironmentName,
    /// Of a preview's.
    pub label: Option<EphemeralLabel>,
    /// By what the app's settings name it, or named it.
    pub name: String,
    /// The next version that is deployed there finds it: the app's settings name it.
    pub declared: bool,
    /// The app, the environment or the preview that it was of is gone.
    pub stray: bool,
    /// The versions that run with it, or can.
    pub used_by: Vec<DeploymentId>,
    pub instances: Vec<InstanceId>,
}

/// What refers to volumes, by the names that the runtime knows apps by.
struct Owners {
    apps: HashMap<AppName, App>,
    environments: HashSet<(AppName, EnvironmentName)>,
    /// In the order in which they were made.
    deployments: BTreeMap<DeploymentId, (AppName, Deployment)>,
    instances: HashMap<DeploymentId, Vec<InstanceId>>,
}

impl Orchestrator {
    /// All volumes of this installation, by their places.
    ///
    /// # Errors
    /// If the runtime or the store is away.
    pub async fn volumes(&self) -> Result<Vec<VolumeView>, Denied> {
        // Asked first: what is made meanwhile has a row before it is there.
        let stored = self.engine.runtime.volumes().await;
        let stored = stored.map_err(|source| Denied::RuntimeUnavailable { source })?;
        let owners = self.engine.owners_of_volumes().await?;
        let mut views: Vec<_> = stored.into_iter().map(|volume| owners.view(volume)).collect();
        views.sort_by(|one, other| one.place.cmp(&other.place));
        Ok(views)
    }

    /// Removes a volume with what is in it.
    ///
    /// # Errors
    /// If there is none at that place, something has it, or the next version would find it; or the runtime or the store is
    /// away.
    pub async fn remove_volume(&self, place: &str) -> Result<(), Denied> {
        // No version that might have it is accepted meanwhile.
        let _submitting = self.engine.submitting.lock().await;
        let found = self.volumes().await?.into_iter().find(|volume| volume.place == place);
        let place = place.to_owned();
        let Some(volume) = found else { return Err(Denied::VolumeNotFound { place }) };
        if let Some(by) = volume.used_by.first().copied() {
            return Err(Denied::VolumeInUse { place, by });
        }
        if volume.declared {
            return Err(Denied::VolumeDeclared { place, app: volume.app });
        }
        self.engine.runtime.remove_volume(&place).await.map_err(|source| match source {
            RuntimeError::Volume { .. } => Denied::VolumeNotRemoved { source },
            source => Denied::RuntimeUnavailable { source },
        })?;
        info!(volume = place, app = %volume.app, environment = %volume.environment, "volume removed");
        Ok(())
    }
}

impl Engine {
    /// Removes the volumes of a preview that is gone, unless another deployment of its label has them.
    pub(super) async fn remove_preview_volumes(&self, gone: &Deployment) -> Result<(), Stop> {
        let Some(label) = &gone.label else { return Ok(()) };
        let is_another = |other: &Deployment| {
            other.id != gone.id
                && (&other.app, &other.environment, &other.label)
                    == (&gone.app, &gone.environment, &gone.label)
        };
        if self.previews_with_volumes().await?.iter().any(is_another) {
            return Ok(());
        }
        let of = Some((gone.environment.clone(), Some(label.clone())));
        Ok(self
            .runtime
            .remove_volumes(&VolumeScope { app: self.store.first_name(&gone.app).await?, of })
            .await?)
    }

    /// The volumes of previews that are gone. Those of an app that was removed without them wait for one of its name.
    pub(super) async fn stray_volumes(&self) -> Result<Vec<StoredVolume>, Stop> {
        // Asked first: what is made meanwhile has a row before it is there.
        let volumes = self.runtime.volumes().await?;
        if volumes.iter().all(|volume| volume.label.is_none()) {
            return Ok(Vec::new());
        }
        let mut owners = HashSet::new();
        for preview in self.previews_with_volumes().await? {
            owners.insert((self.store.first_name(&preview.app).await?, preview.environment, preview.label));
        }
        let is_stray = |volume: &StoredVolume| {
            let owner = (volume.app.clone(), volume.environment.clone(), volume.label.clone());
            volume.label.is_some() && !owners.contains(&owner)
        };
        Ok(volumes.into_iter().filter(is_stray).collect())
    }

    async fn owners_of_volumes(&self) -> Result<Owners, Denied> {
        let (mut apps, mut environments) = (HashMap::new(), HashSet::new());
        for app in self.store.apps().await? {
            let known_as = self.store.first_name(&app.name).await?;
            for environment in self.store.environments(&app.name).await? {
                environments.insert((known_as.clone(), environment.name));
            }
            apps.insert(known_as, app);
        }
        let mut instances: HashMap<_, Vec<_>> = HashMap::new();
        for row in self.store.instances(None).await? {
            instances.entry(row.deployment).or_default().push(row.id);
        }
        let mut all = self.store.deployments_in_service().await?;
        all.extend(self.store.ephemerals(None).await?);
        for id in instances.keys() {
            all.extend(self.store.deployment(id).await?);
        }
        let mut deployments = BTreeMap::new();
        for deployment in all {
            let known_as = self.store.first_name(&deployment.app).await?;
            deployments.insert(deployment.id, (known_as, deployment));
        }
        Ok(Owners { apps, environments, deployments, instances })
    }

    /// The previews that run, or can.
    async fn previews_with_volumes(&self) -> Result<Vec<Deployment>, Stop> {
        let mut found = self.store.deployments_in_service().await?;
        found.extend(self.store.ephemerals(None).await?);
        let is_there = |one: &Deployment| {
            !one.status.is_end()
                || (one.status == DeploymentStatus::Ready && one.desired_state != DesiredState::Archived)
        };
        Ok(found.into_iter().filter(|one| one.label.is_some() && is_there(one)).collect())
    }

    /// Removes all volumes of an app that has no instances any more.
    pub(super) async fn remove_app_volumes(&self, app: &AppName) -> Result<(), Stop> {
        Ok(self
            .runtime
            .remove_volumes(&VolumeScope { app: self.store.first_name(app).await?, of: None })
            .await?)
    }
}

impl Owners {
    fn view(&self, volume: StoredVolume) -> VolumeView {
        let StoredVolume { place, app: known_as, environment, label, name } = volume;
        let has_it = |(app, of): &&(AppName, Deployment)| {
            *app == known_as
                && of.environment == environment
                && of.label == label
                && of.settings.volumes.iter().any(|named| named.name == name)
        };
        let used_by: Vec<_> = self.deployments.values().filter(has_it).map(|(_, of)| of.id).collect();
        let instances = used_by.iter().filter_map(|id| self.instances.get(id)).flatten().copied().collect();
        let app = self.apps.get(&known_as);
        // What a preview has goes with it: there is nobody to find it again.
        let declared = match (&label, app) {
            (None, Some(app)) => {
                app.settings.volumes.iter().any(|named| named.name == name)
                    && self.environments.contains(&(known_as.clone(), environment.clone()))
            }
            (Some(_), Some(_)) => !used_by.is_empty(),
            (_, None) => false,
        };
        let is_there = match &label {
            None => self.environments.contains(&(known_as.clone(), environment.clone())),
            Some(_) => self
                .deployments
                .values()
                .any(|(app, of)| *app == known_as && of.environment == environment && of.label == label),
        };
        VolumeView {
            stray: app.is_none() || !is_there,
            app: app.map_or(known_as, |app| app.name.clone()),
            place,
            environment,
            label,
            name,
            declared,
            used_by,
            instances,
        }
    }
}
