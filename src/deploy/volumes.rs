//! Volumes: they outlive the instances, and go with the last thing that refers to them.
//!
//! Those of an environment are data that nobody can make again: they are removed when somebody asks for it by name, with
//! the app. Those of a preview go with the last deployment of its label.

use super::engine::{Engine, Stop};
use crate::ids::AppName;
use crate::runtime::VolumeScope;
use crate::store::{Deployment, DeploymentStatus, DesiredState};

impl Engine {
    /// Removes the volumes of a preview that is gone, unless another deployment of its label has them.
    pub(super) async fn remove_preview_volumes(&self, gone: &Deployment) -> Result<(), Stop> {
        let Some(label) = &gone.label else { return Ok(()) };
        let mut others = self.store.deployments_in_service().await?;
        others.extend(self.store.ephemerals(None).await?);
        let has_them = |other: &Deployment| {
            other.id != gone.id
                && (&other.app, &other.environment, &other.label)
                    == (&gone.app, &gone.environment, &gone.label)
                && (!other.status.is_end()
                    || (other.status == DeploymentStatus::Ready
                        && other.desired_state != DesiredState::Archived))
        };
        if others.iter().any(has_them) {
            return Ok(());
        }
        let of = Some((gone.environment.clone(), Some(label.clone())));
        Ok(self
            .runtime
            .remove_volumes(&VolumeScope { app: self.store.first_name(&gone.app).await?, of })
            .await?)
    }

    /// Removes all volumes of an app that has no instances any more.
    pub(super) async fn remove_app_volumes(&self, app: &AppName) -> Result<(), Stop> {
        Ok(self
            .runtime
            .remove_volumes(&VolumeScope { app: self.store.first_name(app).await?, of: None })
            .await?)
    }
}
