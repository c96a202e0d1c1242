//! Who Lockgate is to a registry: what `docker login` wrote down for the user that it runs as.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::auth::DockerCredentials;
use docker_credential::{CredentialRetrievalError, DockerCredential};

use crate::clock::Clock;

/// Docker Hub's name in the file.
const HUB: &str = "https://index.docker.io/v1/";
/// Of a credential helper.
const WITHIN: Duration = Duration::from_secs(10);

/// Docker's own `config.json`: in `DOCKER_CONFIG`, or in the home.
pub(super) fn default_file() -> Option<PathBuf> {
    let folder = std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let folder = folder.or_else(|| std::env::home_dir().map(|home| home.join(".docker")))?;
    Some(folder.join("config.json"))
}

/// What the file, or the helper that it names, has for the registry of `repository`. `None`: nothing, and the pull is
/// anonymous.
///
/// # Errors
/// What stands in the way of credentials that there are.
pub(super) async fn credentials(
    file: Option<&Path>,
    repository: &str,
    clock: &dyn Clock,
) -> Result<Option<DockerCredentials>, String> {
    let Some(file) = file.map(Path::to_owned) else { return Ok(None) };
    let server = server_of(repository).to_owned();
    let of_server = server.clone();
    // Helpers are programs that are waited for.
    let read = tokio::task::spawn_blocking(move || read(&file, &of_server));
    tokio::select! {
        found = read => found
            .unwrap_or_else(|error| Err(error.to_string()))
            .map_err(|cause| format!("the credentials for {server}: {cause}")),
        () = clock.sleep(WITHIN) => {
            Err(format!("the credentials for {server}: the helper did not answer within {} s", WITHIN.as_secs()))
        }
    }
}

fn read(file: &Path, server: &str) -> Result<Option<DockerCredentials>, String> {
    let opened = match File::open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", file.display())),
    };
    let of_server =
        DockerCredentials { serveraddress: Some(server.to_owned()), ..DockerCredentials::default() };
    match docker_credential::get_credential_from_reader(BufReader::new(opened), server) {
        Ok(DockerCredential::UsernamePassword(username, password)) => {
            Ok(Some(DockerCredentials { username: Some(username), password: Some(password), ..of_server }))
        }
        Ok(DockerCredential::IdentityToken(token)) => {
            Ok(Some(DockerCredentials { identitytoken: Some(token), ..of_server }))
        }
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
        // Its output may hold the secret.
        Err(CredentialRetrievalError::HelperFailure { helper, .. }) => {
            Err(format!("the helper docker-credential-{helper} failed"))
        }
        Err(error) => Err(format!("{}: {error}", file.display())),
    }
}

/// The first part of a name is a registry if it can be no part of a name on Docker Hub.
fn server_of(repository: &str) -> &str {
    match repository.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        Some(_) | None => HUB,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_of_a_repository_is_told_as_the_engine_does() {
        for (repository, server) in [
            ("web", HUB),
            ("acme/web", HUB),
            ("ghcr.io/acme/web", "ghcr.io"),
            ("localhost/web", "localhost"),
            ("localhost:5000/web", "localhost:5000"),
            ("registry:5000/a/b", "registry:5000"),
        ] {
            assert_eq!(server_of(repository), server, "{repository}");
        }
    }
}
