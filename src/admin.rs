//! The admin API: HTTP to commands of the engine and reads of the store, on listeners of its own.
//!
//! The Unix socket is always there and trusts the uid behind it; TCP is loopback only and wants a token.

mod auth;
mod body;
mod call;
mod certificates;
#[expect(unused_qualifications, reason = "the code that `utoipa::path` makes for parameters")]
mod handlers;
mod idempotency;
mod listener;
mod openapi;
mod problem;
mod starting;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use axum::Router;
use futures_util::stream::BoxStream;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::acme::Acme;
use crate::api;
use crate::certs::Certs;
use crate::clock::Clock;
use crate::deploy::Orchestrator;
use crate::ids::InstanceId;
use crate::routing::Routing;
use crate::store::Store;
use crate::telemetry::{ControlStats, Telemetry};

pub use auth::{Failures, token_hash};

/// What the handlers work with.
#[derive(Debug)]
pub struct Admin {
    pub store: Arc<dyn Store>,
    pub engine: Orchestrator,
    pub routing: Arc<Routing>,
    pub clock: Arc<dyn Clock>,
    /// Asks `serve` to read the configuration again.
    pub reload: mpsc::Sender<ReloadRequest>,
    /// Where the data plane listens.
    pub listen: Vec<SocketAddr>,
    pub certs: Arc<Certs>,
    /// Asks for certificates, or does not.
    pub acme: Acme,
    pub telemetry: Arc<Telemetry>,
    pub stats: Arc<ControlStats>,
    pub output: Arc<dyn Output>,
    pub failures: Failures,
    /// Mutations that are being carried out, whether or not their clients still wait.
    pub mutations: TaskTracker,
}

/// What instances write. `serve` wires it to the runtime, of which the admin API knows nothing.
pub trait Output: Send + Sync + std::fmt::Debug {
    /// The last `lines` lines and those that follow, until the instance ends; an error is the last.
    fn follow(&self, instance: InstanceId, lines: usize) -> BoxStream<'static, Result<String, String>>;
}

/// The sender of the answer to a reload: what changed, or the diagnostics as text.
pub type ReloadRequest = oneshot::Sender<Result<api::Reloaded, String>>;

/// What the listeners answer: until it is opened, that lockgate starts.
#[derive(Clone, Debug, Default)]
pub struct Front(Arc<OnceLock<Router>>);

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub enum Peer {
    Unix { uid: Option<u32> },
    Tcp { address: SocketAddr },
}

/// Why the admin API does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {path}: {remedy}")]
    Socket {
        path: PathBuf,
        remedy: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot listen on {address}")]
    Tcp {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("the admin API does not listen on {address}: only loopback addresses are allowed")]
    Public { address: SocketAddr },
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Lockgate admin API", description = "Errors are application/problem+json with a stable code.", license(name = "MIT OR Apache-2.0")),
    tags((name = "apps"), (name = "hosts"), (name = "deployments"), (name = "operations"), (name = "routes"), (name = "volumes"), (name = "system"))
)]
struct ApiDoc;

/// All routes.
pub fn router(admin: Arc<Admin>) -> Router {
    let kept = (Arc::clone(&admin), Arc::default());
    let guarded = guarded()
        .split_for_parts()
        .0
        // Before the guard: what is not there is told to those alone who may ask.
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(axum::middleware::from_fn_with_state(kept, idempotency::once))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&admin), auth::guard))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&admin), call::carry_out));
    let open = open()
        .split_for_parts()
        .0
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(axum::middleware::from_fn(auth::guard_open));
    guarded.merge(open).layer(axum::middleware::map_response(auth::protect)).with_state(admin)
}

/// The OpenAPI document of all routes: none is added but with its description.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    let mut document = guarded().into_openapi();
    openapi::complete(&mut document);
    document.merge(open().into_openapi());
    document
}

/// The routes that need a token or the socket.
fn guarded() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::with_openapi(ApiDoc::openapi())
        .routes(routes!(handlers::apps::list))
        .routes(routes!(handlers::apps::show, handlers::apps::put, handlers::apps::remove))
        .routes(routes!(handlers::apps::rename))
        .routes(routes!(handlers::apps::environments))
        .routes(routes!(handlers::hosts::list, handlers::hosts::add, handlers::hosts::remove))
        .routes(routes!(handlers::hosts::rename))
        .routes(routes!(handlers::apps::remove_environment))
        .routes(routes!(handlers::apps::swap))
        .routes(routes!(handlers::apps::rollback))
        .routes(routes!(handlers::apps::promote))
        .routes(routes!(handlers::apps::scale))
        .routes(routes!(handlers::apps::pause))
        .routes(routes!(handlers::apps::resume))
        .routes(routes!(handlers::apps::maintenance))
        .routes(routes!(handlers::apps::disable))
        .routes(routes!(handlers::apps::enable))
        .routes(routes!(handlers::deployments::of_app, handlers::deployments::create))
        .routes(routes!(handlers::deployments::list))
        .routes(routes!(handlers::deployments::show))
        .routes(routes!(handlers::deployments::cancel))
        .routes(routes!(handlers::deployments::extend))
        .routes(routes!(handlers::deployments::schedule, handlers::deployments::clear_schedule))
        .routes(routes!(handlers::deployments::wake))
        .routes(routes!(handlers::deployments::logs))
        .routes(routes!(handlers::deployments::events))
        .routes(routes!(handlers::previews::link))
        .routes(routes!(handlers::previews::environment_link))
        .routes(routes!(handlers::previews::signed_link))
        .routes(routes!(handlers::operations::list))
        .routes(routes!(handlers::operations::show))
        .routes(routes!(handlers::operations::cancel))
        .routes(routes!(handlers::operations::finish))
        .routes(routes!(handlers::operations::events))
        .routes(routes!(handlers::routes::list))
        .routes(routes!(handlers::routes::explain))
        .routes(routes!(handlers::routes::instances))
        .routes(routes!(handlers::volumes::list, handlers::volumes::remove))
        .routes(routes!(handlers::system::audit))
        .routes(routes!(handlers::system::status))
        .routes(routes!(handlers::system::doctor))
        .routes(routes!(handlers::system::document))
        .routes(routes!(handlers::system::reload))
        .routes(routes!(handlers::tokens::list, handlers::tokens::create))
        .routes(routes!(handlers::tokens::delete))
}

/// The routes that anybody on this machine may ask.
fn open() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(handlers::system::alive))
        .routes(routes!(handlers::system::ready))
        .routes(routes!(handlers::system::metrics))
}

/// Listens on the Unix socket, which only its owner may open.
///
/// # Errors
/// What stands in the way, and the remedy.
pub fn bind_socket(path: &Path) -> Result<UnixListener, ListenError> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |remedy| move |source| ListenError::Socket { path: path.to_owned(), remedy, source };
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        std::fs::create_dir_all(folder).map_err(failed("its folder cannot be made"))?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let taken = std::io::Error::from(std::io::ErrorKind::AddrInUse);
        return Err(failed("another lockgate answers there; stop it, or choose another admin.socket")(taken));
    }
    // Left by a process that is gone: nobody answers.
    match std::fs::symlink_metadata(path) {
        Ok(found) if std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
            std::fs::remove_file(path).map_err(failed("the stale socket cannot be removed"))?;
        }
        Ok(_) => {
            let other = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(failed("something that is not a socket is there; choose another admin.socket")(
                other,
            ));
        }
        Err(_) => {}
    }
    // Nobody else may connect between the bind and the change of mode: the mask is of the whole process, so the
    // socket is made under a name that nobody knows yet, and then renamed.
    let hidden = path.with_extension(format!("{}.new", std::process::id()));
    let listener =
        UnixListener::bind(&hidden).map_err(failed("check that its folder exists and is writable"))?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))
        .map_err(failed("its mode cannot be set"))?;
    std::fs::rename(&hidden, path).map_err(failed("it cannot be put in place"))?;
    Ok(listener)
}

/// Listens on a loopback address.
///
/// # Errors
/// If it is not a loopback address, or taken.
pub async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    if !address.ip().is_loopback() {
        return Err(ListenError::Public { address });
    }
    TcpListener::bind(address).await.map_err(|source| ListenError::Tcp { address, source })
}

impl Front {
    /// From now on calls are carried out, on connections too that are there already.
    pub fn open(&self, admin: Arc<Admin>) {
        self.0.get_or_init(|| router(admin));
    }

    fn router(&self) -> Router {
        self.0.get().cloned().unwrap_or_else(starting::router)
    }
}

/// Answers on the Unix socket until `stop`.
pub async fn serve_socket(listener: UnixListener, front: Front, stop: CancellationToken) {
    let peer_of = |stream: &UnixStream, _: &_| Peer::Unix {
        uid: stream.peer_cred().ok().map(|credentials| credentials.uid()),
    };
    listener::serve(listener, front, peer_of, stop).await;
}

/// Answers on TCP until `stop`.
pub async fn serve_tcp(listener: TcpListener, front: Front, stop: CancellationToken) {
    let peer_of = |_: &TcpStream, address: &_| Peer::Tcp { address: *address };
    listener::serve(listener, front, peer_of, stop).await;
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix { uid: Some(uid) } => write!(f, "uid {uid}"),
            Self::Unix { uid: None } => f.write_str("unknown uid"),
            Self::Tcp { address } => address.fmt(f),
        }
    }
}
