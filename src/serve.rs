//! Wiring: the only module that knows all parts. Start, reload, shut down.
//!
//! The order of a start: store → its routes and the static services published → listeners open → runtime, and what a restart left to
//! do → apps of the configuration → admin. Requests are served before anything else is done, and whoever asks the admin API
//! meanwhile is told that it starts.

mod reload;
mod sources;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::acme;
use crate::admin::{self, Admin, ListenError};
use crate::certs::{Certs, HTTP_2, HTTP_11, TlsError};
use crate::clock::{Clock, SystemClock};
use crate::config::{AccessLog, Config, Diagnostics, LimitsConfig};
use crate::deploy::{Options, Orchestrator, Published, Urls};
use crate::error::chain;
use crate::ids::{InstanceId, LockgateId};
use crate::proxy::{
    AccessLogFormat, AccessLogSink, AltSvc, DataPlane, Limits, ProxySettings, StartError, TlsSettings,
};
use crate::routing::Routing;
use crate::routing::https::Hsts;
use crate::runtime::{Runtime, RuntimeError};
use crate::store::sqlite::SqliteStore;
use crate::store::{Store, StoreError};

use crate::telemetry::ControlStats;
use reload::Reloader;
use sources::Sources;

/// How long requests in flight may go on when the process ends.
const GRACE: Duration = Duration::from_secs(30);
/// For operations to reach a step where a restart goes on.
const ENGINE_GRACE: Duration = Duration::from_secs(5);
/// For the spans of traces that are left to be exported.
const SPANS_GRACE: Duration = Duration::from_secs(5);
/// For calls of the admin API that are being carried out.
const MUTATIONS_GRACE: Duration = Duration::from_secs(2);
/// Reloads that wait for one that runs.
const RELOADS_MAX: usize = 16;

/// A lockgate that runs in this process.
#[derive(Debug)]
pub struct Running {
    plane: DataPlane,
    engine: Orchestrator,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    /// The one that exports traces: it has something to do once all others have ended.
    exporter: JoinSet<()>,
    mutations: TaskTracker,
    admin_address: Option<SocketAddr>,
    hangups: mpsc::Sender<()>,
}

/// The file of the configuration.
#[derive(Debug)]
pub struct ConfigFile {
    path: PathBuf,
    /// What it is made of, as it was.
    seen: Sources,
}

impl ConfigFile {
    /// The file at `path` as it is now: asked before it is loaded.
    #[must_use]
    pub fn seen(path: &Path) -> Self {
        let seen = Sources::read(crate::config::sources(path), SystemClock.wall());
        Self { path: path.to_owned(), seen }
    }
}

/// Why lockgate does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the configuration is not valid\n{0}")]
    Config(Diagnostics),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("{}", chain(.0))]
    Proxy(#[from] StartError),
    #[error("{}", chain(.0))]
    Admin(#[from] ListenError),
    #[error("the configuration is not applied: {0}")]
    Apply(String),
    #[error("{}", chain(.0))]
    Tls(#[from] TlsError),
    #[error("signals cannot be received")]
    Signals(#[source] std::io::Error),
}

/// Runs until it is told to stop: `lockgate serve`.
///
/// # Errors
/// Why it did not start.
pub async fn run(config_path: &Path) -> Result<(), ServeError> {
    log_to_stderr();
    let file = ConfigFile::seen(config_path);
    let config =
        crate::config::load(config_path, &|name| std::env::var(name).ok()).map_err(ServeError::Config)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(ServeError::Signals)?;
    let running = start(config, Some(file), false).await?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => running.reload(),
        }
    }
    info!("shutting down; instances go on");
    let again = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::select! {
        () = running.shutdown(GRACE) => {}
        // What is journaled is resumed at the next start, as after a crash.
        () = again => warn!("told to stop a second time: what is in flight is cut"),
    }
    Ok(())
}

/// Starts all parts. With `file` it is watched; with `debug_generation` upstreams are told the generation
/// of the route table.
///
/// # Errors
/// Why it did not start; nothing goes on running then.
pub async fn start(
    config: Config,
    file: Option<ConfigFile>,
    debug_generation: bool,
) -> Result<Running, ServeError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let stats = Arc::new(ControlStats::default());
    let sqlite = SqliteStore::open(&config.data_dir, Arc::clone(&clock))?;
    let of_writes = Arc::clone(&stats);
    sqlite.observe_writes(move |took| of_writes.store_committed(took));
    let store: Arc<dyn Store> = Arc::new(sqlite);
    let routing = Arc::new(Routing::new(workers(config.workers)));
    let published = Published::of_store(Arc::clone(&store), Arc::clone(&routing), Arc::clone(&clock)).await?;
    let services = reload::services_of(&config, store.as_ref(), &routing).await.map_err(ServeError::Apply)?;
    published.set_services(services);
    let certs = Certs::new(if config.http2 { &[HTTP_2, HTTP_11] } else { &[HTTP_11] })?;
    reload::publish_certificates(&certs, &config)?;
    let (acme, keeper) = acme::open(config.tls.acme.clone(), &certs, &routing, &clock, &stats).await;
    let (traces, spans) = crate::traces::open(config.traces.clone(), &clock, &stats);
    let settings =
        ProxySettings { traces: Some(traces.clone()), ..proxy_settings(&config, &certs, debug_generation) };
    // All routes are published by now: nothing that is let in finds an empty table.
    let plane = crate::proxy::start(settings, &routing, &clock)?;
    info!(listen = ?plane.addresses(), "serving");
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let front = admin::Front::default();
    let admin_address = listen_admin(&config, &front, &stop, &mut tasks).await?;
    // Whatever the engine does, or does not do, costs no request.
    let urls = urls(&config, plane.addresses(), &certs);
    let (engine, runtime) =
        control_plane(&config, published, store.lockgate_id(), &clock, &stats, urls).await?;
    let (reload, requests) = mpsc::channel(RELOADS_MAX);
    let admin = Arc::new(Admin {
        store: Arc::clone(&store),
        engine: engine.clone(),
        routing: Arc::clone(&routing),
        telemetry: Arc::clone(plane.telemetry()),
        stats: Arc::clone(&stats),
        output: Arc::new(Outputs(runtime)),
        clock: Arc::clone(&clock),
        reload,
        listen: plane.addresses().to_vec(),
        certs: Arc::clone(&certs),
        acme: acme.clone(),
        failures: admin::Failures::default(),
        mutations: TaskTracker::new(),
    });
    let (config_path, seen) = file.map(|file| (file.path, file.seen)).unzip();
    let reloader = Reloader::new(
        config.clone(),
        config_path,
        engine.clone(),
        Arc::clone(&routing),
        Arc::clone(&store),
        (stats, certs, acme, traces),
    );
    reloader.apply_first().await.map_err(ServeError::Apply)?;
    // Whoever is answered finds the apps of the configuration.
    front.open(Arc::clone(&admin));
    let (hangups, hung_up) = mpsc::channel(1);
    tasks.spawn(reloader.keep(seen, requests, hung_up, stop.clone()));
    tasks.spawn(keeper.keep(stop.clone()));
    let mut exporter = JoinSet::new();
    exporter.spawn(spans.keep(stop.clone()));
    let mutations = admin.mutations.clone();
    Ok(Running { plane, engine, stop, tasks, exporter, mutations, admin_address, hangups })
}

async fn control_plane(
    config: &Config,
    published: Published,
    lockgate: LockgateId,
    clock: &Arc<dyn Clock>,
    stats: &Arc<ControlStats>,
    urls: Urls,
) -> Result<(Orchestrator, Arc<dyn Runtime>), ServeError> {
    let runtime = crate::runtime::select(
        config.runtime,
        config.docker_socket.clone(),
        lockgate,
        &config.data_dir,
        Arc::clone(clock),
    )
    .await?;
    let options = Options {
        apex: config.apex.clone(),
        urls,
        https: !config.tls.listen.is_empty(),
        ephemeral_ttl: config.ephemeral.default_ttl,
        ephemeral_sweep_every: config.ephemeral.sweep_every,
        ephemeral_max_per_app: config.ephemeral.max_per_app,
        idle_after: config.ephemeral.idle_after,
        reserved_labels: config.ephemeral.reserved_labels.clone(),
        preview_auth: config.ephemeral.preview_auth.clone(),
        history_keep: config.history.keep,
        stats: Arc::clone(stats),
    };
    let engine = published.begin(Arc::clone(&runtime), options).await?;
    Ok((engine, runtime))
}

async fn listen_admin(
    config: &Config,
    front: &admin::Front,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> Result<Option<SocketAddr>, ServeError> {
    let socket = admin::bind_socket(&config.admin_socket)?;
    tasks.spawn(admin::serve_socket(socket, front.clone(), stop.clone()));
    let Some(address) = config.admin_address else { return Ok(None) };
    let listener = admin::bind_tcp(address).await?;
    let bound = listener.local_addr().map_err(|source| ListenError::Tcp { address, source })?;
    tasks.spawn(admin::serve_tcp(listener, front.clone(), stop.clone()));
    Ok(Some(bound))
}

/// What instances write, as the runtime has it.
#[derive(Debug)]
struct Outputs(Arc<dyn Runtime>);

impl admin::Output for Outputs {
    fn follow(&self, instance: InstanceId, lines: usize) -> BoxStream<'static, Result<String, String>> {
        let runtime = Arc::clone(&self.0);
        let followed = stream::once(async move { runtime.follow(&instance, lines).await });
        followed.try_flatten().map_err(|error| chain(&error)).boxed()
    }
}

impl Running {
    /// Where requests are served.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        self.plane.addresses()
    }

    /// Where the admin API listens beside its socket.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    fn reload(&self) {
        match self.hangups.try_send(()) {
            // One that waits already will see what this one would.
            Ok(()) | Err(TrySendError::Full(())) => {}
            Err(TrySendError::Closed(())) => warn!("not reloaded: lockgate is shutting down"),
        }
    }

    /// As [`Running::shutdown`], and takes all instances away with it: for a lockgate that is not to come back.
    pub async fn shutdown_with_instances(self, grace: Duration) {
        let engine = self.engine.clone();
        self.shutdown(grace).await;
        if let Err(error) = engine.remove_instances(grace).await {
            error!(error = chain(&error), "instances not removed");
        }
    }

    /// Stops accepting, lets requests in flight end within `grace`, and ends. Instances go on.
    pub async fn shutdown(self, grace: Duration) {
        let Self { plane, engine, stop, mut tasks, mut exporter, mutations, .. } = self;
        plane.shutdown(grace).await;
        stop.cancel();
        engine.shutdown(ENGINE_GRACE).await;
        mutations.close();
        if tokio::time::timeout(MUTATIONS_GRACE, mutations.wait()).await.is_err() {
            warn!(left = mutations.len(), "calls of the admin API cut short");
        }
        if tokio::time::timeout(SPANS_GRACE, exporter.join_next()).await.is_err() {
            warn!("the collector of traces takes too long: spans are lost");
        }
        tasks.shutdown().await;
    }
}

/// As `url` says, or as the first listeners serve: by https where a certificate covers the host.
fn urls(config: &Config, addresses: &[SocketAddr], certs: &Arc<Certs>) -> Urls {
    if let Some(pattern) = config.url.clone() {
        return Urls::new(move |host| pattern.origin(host));
    }
    let port = |at: usize| addresses.get(at).map(SocketAddr::port);
    let (http, https) = (port(0).filter(|_| !config.http.is_empty()), port(config.http.len()));
    let certs = Arc::clone(certs);
    Urls::new(move |host| {
        let is_covered = || host.parse().is_ok_and(|name| certs.covers(&name));
        match (https.filter(|_| is_covered()), http) {
            (Some(443), _) => format!("https://{host}"),
            (Some(port), _) => format!("https://{host}:{port}"),
            (None, None | Some(80)) => format!("http://{host}"),
            (None, Some(port)) => format!("http://{host}:{port}"),
        }
    })
}

fn proxy_settings(config: &Config, certs: &Arc<Certs>, debug_generation: bool) -> ProxySettings {
    let tls = TlsSettings {
        listen: config.tls.listen.clone(),
        proxy_protocol: config.tls.proxy_protocol.clone(),
        connections: config.tls.connections,
        certs: Arc::clone(certs),
        port: https_port(config),
        redirects: config.redirect.is_some(),
        hsts: Hsts::of(config.tls.hsts).value().cloned(),
        http3: config.tls.http3,
        alt_svc: config.tls.alt_svc.map(|told| AltSvc { port: told.port, max_age: told.max_age.0 }),
    };
    ProxySettings {
        listen: config.http.clone(),
        proxy_protocol: config.proxy_protocol.clone(),
        connections: config.connections,
        tls: Some(tls).filter(|tls| !tls.listen.is_empty()),
        http2: config.http2,
        trusted_proxies: config.trusted_proxies.clone(),
        via: config.via.clone(),
        forwarded: config.forwarded,
        access_log: match &config.access_log {
            AccessLog::Off => AccessLogSink::Off,
            AccessLog::Stdout => AccessLogSink::Stdout,
            AccessLog::File(path) => AccessLogSink::File(path.clone()),
        },
        access_log_format: match config.access_log_format {
            crate::config::AccessLogFormat::Json => AccessLogFormat::Json,
            crate::config::AccessLogFormat::Combined => AccessLogFormat::Combined,
        },
        limits: limits(&config.limits),
        debug_generation,
        ..ProxySettings::default()
    }
}

/// Where clients are sent who are to come by https: as is written, as people are told, or as it is listened for.
fn https_port(config: &Config) -> u16 {
    let told = || config.url.as_ref().and_then(|url| url.https_port());
    let listened = || config.tls.listen.first().map(SocketAddr::port);
    config.redirect.or_else(told).or_else(listened).unwrap_or(443)
}

fn limits(config: &LimitsConfig) -> Limits {
    let own = Limits::default();
    let or = |given: Option<crate::settings::Delay>, own| given.map_or(own, |delay| delay.0);
    Limits {
        proxy_header: or(config.proxy_header, own.proxy_header),
        handshake: or(config.handshake, own.handshake),
        keep_alive: or(config.keep_alive, own.keep_alive),
        head: or(config.head, own.head),
        tcp_keepalive: or(config.tcp_keepalive, own.tcp_keepalive),
        body_idle: or(config.body_idle, own.body_idle),
        body_floor: config.body_floor.unwrap_or(own.body_floor),
        body_floor_after: or(config.body_floor_after, own.body_floor_after),
        connect: or(config.connect, own.connect),
        response_head: or(config.response_head, own.response_head),
        response_idle: or(config.response_idle, own.response_idle),
        half_closed: or(config.half_closed, own.half_closed),
        pool_idle: or(config.pool_idle, own.pool_idle),
        upstream_ping: or(config.upstream_ping, own.upstream_ping),
        close_spread: or(config.close_spread, own.close_spread),
        head_bytes: config.head_bytes.unwrap_or(own.head_bytes),
        field_bytes: config.field_bytes.unwrap_or(own.field_bytes),
        target_bytes: config.target_bytes.unwrap_or(own.target_bytes),
        body_bytes: config.body_bytes.unwrap_or(own.body_bytes),
        http2_streams: config.http2_streams.unwrap_or(own.http2_streams),
        http2_resets_per_minute: config.http2_resets_per_minute.unwrap_or(own.http2_resets_per_minute),
        http2_resets: config.http2_resets.unwrap_or(own.http2_resets),
        connections: config.connections.or(own.connections),
        connections_per_client: config.connections_per_client.unwrap_or(own.connections_per_client),
        ..own
    }
}

fn workers(wanted: usize) -> usize {
    if wanted > 0 {
        return wanted;
    }
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("LOCKGATE_LOG")
        .unwrap_or_else(|_unset| tracing_subscriber::EnvFilter::new("info,rusqlite_migration=warn"))
        // Below that, bollard writes whole requests to the log: the apps' environment with its secrets.
        .add_directive("bollard=info".parse().expect("it is a directive"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let set = if std::io::stderr().is_terminal() { builder.try_init() } else { builder.json().try_init() };
    if let Err(error) = set {
        // Somebody set a logger before: theirs is used.
        tracing::debug!(error, "logging was set up already");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_sent_to_the_port_of_https_that_the_outside_sees() {
        let listener = "https: { address: '127.0.0.1:8443' }";
        for (listeners, url, port) in [
            (listener, "null", 8443),
            (listener, "'https://{host}'", 443),
            (listener, "'https://{host}:9443'", 9443),
            (listener, "'http://{host}:8080'", 8443),
            ("http: { redirect: 10443 }, https: { address: '127.0.0.1:8443' }", "'https://{host}'", 10443),
        ] {
            let text = format!("listeners: {{ {listeners} }}\nurl: {url}\n");
            let config = crate::config::parse(&text, "lockgate.yaml", &|_| None).unwrap();
            let certs = Certs::new(&[HTTP_11]).unwrap();
            let settings = proxy_settings(&config, &certs, false);
            assert_eq!(settings.tls.map(|tls| tls.port), Some(port), "{text}");
        }
    }

    #[test]
    fn the_documented_limits_are_those_of_the_data_plane() {
        let text = include_str!("../config/lockgate.yaml");
        let documented = crate::config::parse(text, "lockgate.yaml", &|_| None).unwrap();
        assert_eq!(limits(&documented.limits), Limits::default());
    }
}
