//! Which runtime it is, and that `auto` means the same one at the next start.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use super::docker::Docker;
use super::process::Process;
use super::{Runtime, RuntimeError};
use crate::clock::Clock;
use crate::ids::LockgateId;
use crate::settings::RuntimeKind;

/// Under `data_dir`: what `auto` chose. With it, an engine that is away at a start does not turn its
/// containers' owner into one that knows only processes.
const CHOICE: &str = "runtime";

/// The runtime that `kind` asks for; `socket` is the Docker engine's, or [`Docker::default_socket`]. Neither an absent engine nor a hung one is an error here: it may come. It is asked only where `auto` has nothing to go by,
/// for at most 5 s.
///
/// # Errors
/// [`RuntimeError::Unavailable`] where `DOCKER_HOST` or `data_dir` cannot be used.
pub async fn select(
    kind: RuntimeKind,
    socket: Option<PathBuf>,
    lockgate: LockgateId,
    data_dir: &Path,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn Runtime>, RuntimeError> {
    let docker = || {
        let socket = socket.clone().map_or_else(Docker::default_socket, Ok)?;
        Ok::<_, RuntimeError>(Docker::new(socket, lockgate, Arc::clone(&clock)))
    };
    let kind = match kind {
        RuntimeKind::Auto => match chosen(data_dir)? {
            Some(kind) => kind,
            None => {
                let answers = match docker() {
                    Ok(docker) => docker.ping().await.is_ok(),
                    Err(_) => false,
                };
                let kind = if answers { RuntimeKind::Docker } else { RuntimeKind::Process };
                choose(data_dir, kind)?;
                kind
            }
        },
        named @ (RuntimeKind::Docker | RuntimeKind::Process) => named,
    };
    match kind {
        RuntimeKind::Docker => Ok(Arc::new(docker()?)),
        RuntimeKind::Auto | RuntimeKind::Process => {
            Ok(Arc::new(Process::open(data_dir, lockgate, clock).await?))
        }
    }
}

fn chosen(data_dir: &Path) -> Result<Option<RuntimeKind>, RuntimeError> {
    let path = data_dir.join(CHOICE);
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim() {
            "docker" => Ok(Some(RuntimeKind::Docker)),
            "process" => Ok(Some(RuntimeKind::Process)),
            other => Err(unusable(&path, &format!("it says {other:?}, not docker or process"))),
        },
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(unusable(&path, &cause)),
    }
}

fn choose(data_dir: &Path, kind: RuntimeKind) -> Result<(), RuntimeError> {
    let word = if kind == RuntimeKind::Docker { "docker" } else { "process" };
    let path = data_dir.join(CHOICE);
    fs::create_dir_all(data_dir)
        .and_then(|()| fs::write(&path, word))
        .map_err(|cause| unusable(&path, &cause))?;
    tracing::info!(runtime = word, "runtime chosen; name one in the configuration to change it");
    Ok(())
}

fn unusable(path: &Path, cause: &dyn std::fmt::Display) -> RuntimeError {
    RuntimeError::Unavailable { runtime: "auto", detail: format!("{}: {cause}", path.display()) }
}
