//! An image of the running program, made from nothing: the binary and the libraries that it loads.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bollard::Docker;
use bollard::query_parameters::BuildImageOptionsBuilder;
use futures_util::StreamExt;
use tokio::process::Command;

/// The image's name.
const NAME: &str = concat!("lockgate-demo:", env!("CARGO_PKG_VERSION"));
const DOCKERFILE: &str =
    "FROM scratch\nCOPY root/ /\nENV PORT=8080\nEXPOSE 8080\nENTRYPOINT [\"/lockgate\", \"sample-app\"]\n";
const BUILD_WITHIN: Duration = Duration::from_secs(120);

/// Builds an image of `program`, a lockgate, in the engine behind `socket` (the usual one if `None`), and returns its
/// name.
///
/// # Errors
/// If the program's libraries are not found, or the engine does not build it.
pub async fn build(program: PathBuf, socket: Option<&Path>) -> anyhow::Result<String> {
    let libraries = libraries(&program).await?;
    let context = tokio::task::spawn_blocking(move || context(&program, &libraries)).await??;
    let engine = match socket {
        None => Docker::connect_with_unix_defaults(),
        Some(socket) => Docker::connect_with_unix(
            &socket.to_string_lossy(),
            BUILD_WITHIN.as_secs(),
            bollard::API_DEFAULT_VERSION,
        ),
    };
    let engine = engine.context("no docker engine answers")?;
    let engine = engine.negotiate_version().await.context("no docker engine answers")?;
    let options = BuildImageOptionsBuilder::default().t(NAME).rm(true).build();
    let body = bollard::body_full(context.into());
    let building = async {
        let mut lines = engine.build_image(options, None, Some(body));
        while let Some(line) = lines.next().await {
            let line = line.context("the engine did not build the image")?;
            if let Some(error) = line.error_detail {
                bail!("the engine did not build the image: {}", error.message.unwrap_or_default());
            }
        }
        Ok(())
    };
    tokio::time::timeout(BUILD_WITHIN, building)
        .await
        .context("the engine did not build the image in time")??;
    Ok(NAME.to_owned())
}

/// What the program loads, as `ldd` says; nothing for a static one.
async fn libraries(program: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().await.context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let paths = text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(paths.filter(|path| path.exists()).collect())
}

fn context(program: &Path, libraries: &BTreeSet<PathBuf>) -> anyhow::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    // Engines do not know the header of sparse files.
    archive.sparse(false);
    let mut header = tar::Header::new_gnu();
    header.set_size(DOCKERFILE.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, "Dockerfile", DOCKERFILE.as_bytes())?;
    archive.append_path_with_name(program, "root/lockgate")?;
    for library in libraries {
        let name = Path::new("root").join(library.strip_prefix("/").unwrap_or(library));
        archive.append_path_with_name(library, name)?;
    }
    Ok(archive.into_inner()?)
}
