//! Volumes as directories under the data directory. Nothing keeps a process from writing to one that is read-only.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::record::private;
use crate::ids::{AppName, EnvironmentName, EphemeralLabel};
use crate::runtime::{InstanceSpec, StoredVolume, VolumeScope};

/// The directories of all volumes: `<app>/<environment>/<name>`, and `<app>/<environment>.<label>/<name>` of previews.
/// None of these names has a dot or a slash.
#[derive(Debug)]
pub(super) struct Volumes(PathBuf);

impl Volumes {
    pub(super) fn at(root: PathBuf) -> Self {
        Self(root)
    }

    /// The variables that tell an instance where its volumes are, which are made if they are not there.
    pub(super) fn ensure(&self, spec: &InstanceSpec) -> io::Result<Vec<(String, PathBuf)>> {
        let owner = self.owner(&spec.app, &spec.environment, spec.label.as_ref());
        let ensured = spec.volumes.iter().map(|volume| {
            let path = owner.join(&volume.name);
            private().create(&path)?;
            Ok((volume.variable(), path))
        });
        ensured.collect()
    }

    /// Removes those of `scope`, with what is in them.
    pub(super) fn remove(&self, scope: &VolumeScope) -> io::Result<()> {
        let gone = match &scope.of {
            None => self.0.join(scope.app.as_str()),
            Some((environment, label)) => self.owner(&scope.app, environment, label.as_ref()),
        };
        match fs::remove_dir_all(&gone) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
            _ => Ok(()),
        }
    }

    /// Removes one that was listed, with what is in it.
    pub(super) fn remove_one(&self, volume: &StoredVolume) -> io::Result<()> {
        let owner = self.owner(&volume.app, &volume.environment, volume.label.as_ref());
        match fs::remove_dir_all(owner.join(&volume.name)) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
            _ => Ok(()),
        }
    }

    /// All that there are. What is not named as we name them is none of ours.
    pub(super) fn list(&self) -> io::Result<Vec<StoredVolume>> {
        let mut found = Vec::new();
        for (app, apps) in folders(&self.0)? {
            for (owner, owners) in folders(&apps)? {
                let (environment, label) = match owner.split_once('.') {
                    Some((environment, label)) => (environment.parse(), label.parse().map(Some)),
                    None => (owner.parse(), Ok(None)),
                };
                let (Ok(app), Ok(environment), Ok(label)) = (app.parse::<AppName>(), environment, label)
                else {
                    continue;
                };
                found.extend(folders(&owners)?.into_iter().map(|(name, path)| StoredVolume {
                    place: path.display().to_string(),
                    app: app.clone(),
                    environment: EnvironmentName::clone(&environment),
                    label: Option::<EphemeralLabel>::clone(&label),
                    name,
                }));
            }
        }
        Ok(found)
    }

    pub(super) fn root(&self) -> &Path {
        &self.0
    }

    fn owner(&self, app: &AppName, environment: &EnvironmentName, label: Option<&EphemeralLabel>) -> PathBuf {
        let owner = label.map_or_else(|| environment.to_string(), |label| format!("{environment}.{label}"));
        self.0.join(app.as_str()).join(owner)
    }
}

/// The folders in `parent`, by their names; none where it is not there.
fn folders(parent: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(parent) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}
