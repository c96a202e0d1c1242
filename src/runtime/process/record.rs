//! What is written down of an instance, in a directory of its own. Never its environment: that holds secrets.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::identity::Identity;
use crate::clock::Timestamp;
use crate::ids::{
    AppName, DeploymentId, EnvironmentName, EphemeralLabel, InstanceId, LockgateId, OperationId,
};
use crate::runtime::{Exit, InstanceSpec};
use crate::settings::StopSignal;

/// Written before the process is started, so that none runs unknown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) lockgate: LockgateId,
    pub(super) id: InstanceId,
    pub(super) app: AppName,
    pub(super) environment: EnvironmentName,
    pub(super) deployment: DeploymentId,
    pub(super) operation: OperationId,
    pub(super) port: u16,
    pub(super) stop_signal: Option<StopSignal>,
    #[serde(default)]
    pub(super) label: Option<EphemeralLabel>,
}

/// One run of it, written after it was started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Life {
    pub(super) identity: Identity,
    pub(super) started_at: Timestamp,
    /// Once it ended.
    pub(super) exit: Option<Exit>,
}

/// The directory of one instance.
#[derive(Clone, Debug)]
pub(super) struct Place(PathBuf);

impl Record {
    pub(super) fn new(lockgate: LockgateId, spec: &InstanceSpec, port: u16) -> Self {
        Self {
            lockgate,
            id: spec.id,
            app: spec.app.clone(),
            environment: spec.environment.clone(),
            deployment: spec.deployment,
            operation: spec.operation,
            port,
            stop_signal: spec.stop_signal,
            label: spec.label.clone(),
        }
    }
}

impl Place {
    pub(super) fn of(root: &Path, instance: InstanceId) -> Self {
        Self(root.join(instance.to_string()))
    }

    pub(super) fn exists(&self) -> bool {
        self.0.exists()
    }

    pub(super) fn create(&self) -> io::Result<()> {
        private().create(&self.0)?;
        private().create(self.data())
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.0)
    }

    /// Where the app runs unless its settings name a directory.
    pub(super) fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    pub(super) fn output(&self) -> PathBuf {
        self.0.join("output.log")
    }

    pub(super) fn record(&self) -> io::Result<Option<Record>> {
        read(&self.0.join("instance.json"))
    }

    pub(super) fn write_record(&self, record: &Record) -> io::Result<()> {
        write(&self.0.join("instance.json"), record)
    }

    pub(super) fn life(&self) -> io::Result<Option<Life>> {
        read(&self.0.join("life.json"))
    }

    pub(super) fn write_life(&self, life: &Life) -> io::Result<()> {
        write(&self.0.join("life.json"), life)
    }

    pub(super) fn forget_life(&self) -> io::Result<()> {
        match fs::remove_file(self.0.join("life.json")) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
            _ => Ok(()),
        }
    }
}

/// Builds directories that others cannot look into.
pub(super) fn private() -> fs::DirBuilder {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|cause| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {cause}", path.display()))
        }),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(named(path, &cause)),
    }
}

/// Whole or not at all, whenever the power goes.
fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let unfinished = path.with_extension("unfinished");
    let written = File::create(&unfinished).and_then(|mut file| {
        file.write_all(&serde_json::to_vec_pretty(value)?)?;
        file.sync_data()?;
        fs::rename(&unfinished, path)
    });
    written.map_err(|cause| named(path, &cause))
}

fn named(path: &Path, cause: &io::Error) -> io::Error {
    io::Error::new(cause.kind(), format!("{}: {cause}", path.display()))
}
