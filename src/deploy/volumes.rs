//! Volumes: they outlive the instances, and go with the last thing that refers to them.
//!
//! Those of an environment are data that nobody can make again: they are removed when somebody asks for it by name, with
//! the app. Those of a preview go with the last deployment of its label.

use std::collections::HashSet;

use super::engine::{Engine, Stop};
use crate::ids::AppName;
use crate::runtime::{StoredVolume, VolumeScope};
use crate::store::{Deployment, DeploymentStatus, DesiredState};

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
