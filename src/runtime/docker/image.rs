//! Image references, local look-up and pull.

use std::path::Path;
use std::time::Duration;

use bollard::auth::DockerCredentials;
use bollard::models::{CreateImageInfo, ImageInspect};
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::engine::{Engine, EngineError, QUICK, turn};
use super::registry;
use crate::runtime::{Pinned, RuntimeError};
use crate::settings::PullPolicy;

const PULL: Duration = Duration::from_secs(30 * 60);
/// A registry that sends nothing for so long has hung.
const PULL_SILENCE: Duration = Duration::from_secs(60);

/// `repository[:tag][@digest]`, or the id of a local image.
#[derive(Debug, PartialEq, Eq)]
struct Reference<'a> {
    text: &'a str,
    /// What to ask a registry for: repository, and tag or digest. `None` for an id.
    remote: Option<(&'a str, &'a str)>,
}

/// Makes `image` available and pins it to its id.
pub(super) async fn prepare(
    engine: &Engine,
    image: &str,
    pull: PullPolicy,
    registries: Option<&Path>,
    progress: &mpsc::Sender<String>,
) -> Result<Pinned, RuntimeError> {
    let reference = Reference::parse(image).ok_or_else(|| {
        not_available(image, "it is not an image reference: write repository[:tag][@sha256:…]".to_owned())
    })?;
    let local = match pull {
        PullPolicy::Always => None,
        PullPolicy::Missing | PullPolicy::Never => inspect(engine, image).await?,
    };
    let found = match (local, reference.remote) {
        (Some(found), _) => found,
        (None, Some((repository, version))) if pull != PullPolicy::Never => {
            let credentials = registry::credentials(registries, repository, engine.clock().as_ref()).await;
            let credentials = credentials.map_err(|cause| not_available(image, cause))?;
            self::pull(engine, repository, version, credentials, progress).await.map_err(
                |cause| match cause {
                    EngineError::Answer { message, .. } => not_available(image, message),
                    unavailable @ EngineError::Unavailable(_) => unavailable.into(),
                },
            )?;
            let pulled = inspect(engine, image).await?;
            pulled.ok_or_else(|| {
                not_available(image, "the engine does not have it after the pull".to_owned())
            })?
        }
        (None, Some(_)) => {
            return Err(not_available(image, "the engine does not have it, and pull is `never`".to_owned()));
        }
        (None, None) => {
            return Err(not_available(
                image,
                "the engine does not have it, and an id cannot be pulled".to_owned(),
            ));
        }
    };
    pinned(&found).ok_or_else(|| not_available(image, "the engine names no id for it".to_owned()))
}

async fn inspect(engine: &Engine, image: &str) -> Result<Option<ImageInspect>, EngineError> {
    match engine.call(QUICK, "image inspect", engine.client()?.inspect_image(image)).await {
        Ok(found) => Ok(Some(found)),
        Err(EngineError::Answer { status: 404, .. }) => Ok(None),
        Err(cause) => Err(cause),
    }
}

async fn pull(
    engine: &Engine,
    repository: &str,
    version: &str,
    credentials: Option<DockerCredentials>,
    progress: &mpsc::Sender<String>,
) -> Result<(), EngineError> {
    let client = engine.client()?;
    let pulled = async {
        let _turn = turn(&engine.pulls).await?;
        let options = CreateImageOptionsBuilder::default().from_image(repository).tag(version).build();
        let mut steps = Box::pin(client.create_image(Some(options), None, credentials));
        loop {
            let step = engine.within(PULL_SILENCE, "pull", async { Ok(steps.next().await) }).await?;
            match step {
                None => return Ok(()),
                // A failed pull begins like a good one: the error comes as one of the steps.
                Some(Err(cause)) => return Err(EngineError::from_bollard("pull", cause)),
                Some(Ok(step)) => {
                    if let Some(line) = line_of(step) {
                        // For eyes only: whoever reads too slowly misses a line.
                        drop(progress.try_send(line));
                    }
                }
            }
        }
    };
    engine.within(PULL, "pull", pulled).await
}

/// Steps that end something; the bytes of each layer are left out.
fn line_of(step: CreateImageInfo) -> Option<String> {
    if step.progress_detail.is_some_and(|detail| detail.current.is_some()) {
        return None;
    }
    match (step.id, step.status?) {
        (Some(id), status) => Some(format!("{id}: {status}")),
        (None, status) => Some(status),
    }
}

fn pinned(image: &ImageInspect) -> Option<Pinned> {
    let config = image.config.as_ref();
    let test = config.and_then(|config| config.healthcheck.as_ref()).and_then(|check| check.test.as_ref());
    let ports = config.and_then(|config| config.exposed_ports.as_deref()).unwrap_or_default();
    let exposed_port = match ports {
        [only] => only.strip_suffix("/tcp").unwrap_or(only).parse().ok(),
        _ => None,
    };
    let has_health_check = test.and_then(|test| test.first()).is_some_and(|kind| kind != "NONE");
    Some(Pinned { digest: image.id.clone()?, has_health_check, exposed_port })
}

fn not_available(image: &str, detail: String) -> RuntimeError {
    RuntimeError::Image { image: image.to_owned(), detail }
}

impl<'a> Reference<'a> {
    /// Refuses what would change the meaning of the engine's path that it becomes a part of.
    fn parse(text: &'a str) -> Option<Self> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
        let component = |part: &str| part.starts_with(|c: char| c.is_ascii_alphanumeric());
        if text.len() > 512 || !text.chars().all(allowed) || !text.split('/').all(component) {
            return None;
        }
        if text.starts_with("sha256:") {
            return Some(Self { text, remote: None });
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => (named, Some(digest)),
            None => (text, None),
        };
        // A colon before the last slash belongs to the registry's port.
        let (repository, tag) = match named.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
            _ => (named, None),
        };
        let version = digest.or(tag).unwrap_or("latest");
        (!repository.is_empty() && !version.is_empty())
            .then_some(Self { text, remote: Some((repository, version)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_apart_as_the_engine_does() {
        let cases = [
            ("web", Some(("web", "latest"))),
            ("web:1.4", Some(("web", "1.4"))),
            ("ghcr.io/acme/web:1.4", Some(("ghcr.io/acme/web", "1.4"))),
            ("localhost:5000/web", Some(("localhost:5000/web", "latest"))),
            ("localhost:5000/web:2@sha256:aa", Some(("localhost:5000/web", "sha256:aa"))),
            ("sha256:aa", None),
        ];
        for (text, remote) in cases {
            assert_eq!(Reference::parse(text), Some(Reference { text, remote }), "{text}");
        }
    }

    #[test]
    fn what_would_leave_the_images_path_is_no_reference() {
        for text in
            ["", "../containers/x", "web?force=1", "web#x", "a b", "/web", "web/", "web:", ":1", "web%2f"]
        {
            assert_eq!(Reference::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_image_says_whether_it_has_a_health_check_and_one_port() {
        let image = |config: serde_json::Value| -> Pinned {
            pinned(
                &serde_json::from_value(serde_json::json!({ "Id": "sha256:aa", "Config": config })).unwrap(),
            )
            .unwrap()
        };
        let both = image(serde_json::json!({
            "Healthcheck": { "Test": ["CMD", "/check"] }, "ExposedPorts": { "8080/tcp": {} },
        }));
        assert_eq!(
            both,
            Pinned { digest: "sha256:aa".into(), has_health_check: true, exposed_port: Some(8080) }
        );
        let neither = image(serde_json::json!({
            "Healthcheck": { "Test": ["NONE"] }, "ExposedPorts": { "80/tcp": {}, "443/tcp": {} },
        }));
        assert_eq!((neither.has_health_check, neither.exposed_port), (false, None));
    }
}
