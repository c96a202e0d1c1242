//! Applying the configuration: at the start, and again on a signal, on a change of the file, and by the API.
//!
//! One task does it, so that two reloads never mix. A file that is not valid changes nothing.
//!
//! The files are looked at before they are loaded, and followed before that: what becomes of them meanwhile is told, and is
//! another text than the one that was seen. So no change is lost, and at worst one is applied twice.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::sources::Sources;
use crate::acme::Acme;
use crate::admin::ReloadRequest;
use crate::api::Reloaded;
use crate::certs::{CertTable, Certs, TlsError};
use crate::clock::{Clock, SystemClock};
use crate::config::{AppConfig, Config, HostRule, ServiceUpstream};
use crate::deploy::{Orchestrator, ServiceRoute};
use crate::error::chain;
use crate::ids::{AppName, InstanceId, WorkspaceName};
use crate::routing::balance::Balance;
use crate::routing::https::OwnHttps;
use crate::routing::queue::{Places, Queue};
use crate::routing::{Backend, Routing, Target};
use crate::settings::unheard_https;
use crate::store::{App, AuditEntry, HostRow, Origin, Store};
use crate::telemetry::{BackendStats, ControlStats};
use crate::traces::Traces;

/// Editors write in several strokes: the file is read when it has been quiet for that long.
const QUIET: Duration = Duration::from_millis(300);

/// Owns what the running configuration is.
#[derive(Debug)]
pub(super) struct Reloader {
    /// What lockgate was started with: sections that wait for a restart are compared with it.
    started: Config,
    current: Config,
    path: Option<PathBuf>,
    engine: Orchestrator,
    routing: Arc<Routing>,
    store: Arc<dyn Store>,
    stats: Arc<ControlStats>,
    certs: Arc<Certs>,
    acme: Acme,
    traces: Traces,
}

impl Reloader {
    pub(super) fn new(
        current: Config,
        path: Option<PathBuf>,
        engine: Orchestrator,
        routing: Arc<Routing>,
        store: Arc<dyn Store>,
        (stats, certs, acme, traces): (Arc<ControlStats>, Arc<Certs>, Acme, Traces),
    ) -> Self {
        Self { started: current.clone(), current, path, engine, routing, store, stats, certs, acme, traces }
    }

    /// Applies the configuration that lockgate was started with, but for its services: see [`services_of`].
    pub(super) async fn apply_first(&self) -> Result<(), String> {
        self.put_apps(&self.current).await.map(|()| self.count_reload())
    }

    /// Reloads when asked to, by a signal too, and when one of the files changes, until `stop`. `seen` are the files as they
    /// were before they were loaded.
    pub(super) async fn keep(
        mut self,
        mut seen: Option<Sources>,
        mut requests: mpsc::Receiver<ReloadRequest>,
        mut hangups: mpsc::Receiver<()>,
        stop: CancellationToken,
    ) {
        let (changed, mut changes) = mpsc::channel(1);
        if self.path.is_some() {
            // Nobody told of what was done to them so far; there is room for it.
            let _told = changed.try_send(());
        }
        let mut watch = self.path.as_ref().and_then(|_| Watch::new(changed));
        seen = self.follow(seen, watch.as_mut());
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                request = requests.recv() => {
                    let Some(request) = request else { break };
                    seen = self.look(watch.as_mut());
                    let answer = self.reload().await;
                    seen = self.follow(seen, watch.as_mut());
                    if request.send(answer).is_err() {
                        info!("nobody waits for the answer to the reload");
                    }
                }
                Some(()) = hangups.recv() => {
                    seen = self.look(watch.as_mut());
                    self.reload_for("signal").await;
                    seen = self.follow(seen, watch.as_mut());
                }
                Some(()) = changes.recv() => {
                    tokio::time::sleep(QUIET).await;
                    while changes.try_recv().is_ok() {}
                    // Others write beside them: editors, and logs.
                    if seen.as_ref().is_some_and(|seen| !seen.may_have_changed()) {
                        continue;
                    }
                    let now = self.look(watch.as_mut());
                    let is_same = now.as_ref().zip(seen.as_ref()).is_some_and(|(now, seen)| now.says_the_same_as(seen));
                    seen = now;
                    if !is_same {
                        self.reload_for("watch").await;
                        seen = self.follow(seen, watch.as_mut());
                    }
                }
            }
        }
    }

    /// A reload that nobody waits for: the log and the audit trail say how it went.
    async fn reload_for(&mut self, actor: &str) {
        let reloaded = self.reload().await;
        let entry = AuditEntry {
            id: 0,
            at: SystemClock.wall(),
            actor: actor.to_owned(),
            action: "reload".to_owned(),
            target: self.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
            status: if reloaded.is_ok() { 200 } else { 422 },
            operation: None,
        };
        if let Err(error) = self.store.append_audit(&entry).await {
            warn!(error = chain(&error), actor, "audit entry of a reload not written");
        }
    }

    async fn reload(&mut self) -> Result<Reloaded, String> {
        let Some(path) = self.path.clone() else { return Err("there is no configuration file".to_owned()) };
        let loaded =
            crate::config::load(&path, &|name| std::env::var(name).ok()).map_err(|error| error.to_string());
        let applied = match loaded {
            Ok(new) => {
                let mut reloaded = crate::config::diff(&self.current, &new);
                reloaded.needs_restart = crate::config::diff(&self.started, &new).needs_restart;
                self.apply(&new).await.map(|()| {
                    self.current = new;
                    reloaded
                })
            }
            Err(diagnostics) => Err(diagnostics),
        };
        match &applied {
            Ok(reloaded) => {
                self.count_reload();
                info!(changes = reloaded.changes.len(), needs_restart = ?reloaded.needs_restart, "configuration reloaded");
            }
            Err(diagnostics) => {
                self.stats.reload_refused();
                warn!(diagnostics, "configuration not applied; what ran before goes on running")
            }
        }
        applied
    }

    fn count_reload(&self) {
        self.stats.reloaded(SystemClock.wall().as_duration().as_secs_f64());
    }

    /// Hands the apps and services to those who run them, all or none. What is live stays live.
    async fn apply(&self, config: &Config) -> Result<(), String> {
        self.put_apps(config).await?;
        // Before the routes: each connection looks at what TLS asks when those change.
        publish_certificates(&self.certs, config).map_err(|error| chain(&error))?;
        self.engine.set_services(services(config, &self.routing, &self.store.link_key()));
        self.acme.configure(config.tls.acme.clone());
        self.traces.configure(config.traces.clone());
        Ok(())
    }

    async fn put_apps(&self, config: &Config) -> Result<(), String> {
        let mut apps: Vec<_> = config.apps.iter().map(|(name, app)| store_app(name, app)).collect();
        let known = self.store.apps().await.map_err(|error| chain(&error))?;
        refuse_taken(config, &known)?;
        warn_unheard(config, &known);
        let is_left_out = |app: &App| app.origin == Origin::Config && !config.apps.contains_key(&app.name);
        for app in known.into_iter().filter(is_left_out) {
            warn!(app = %app.name, "the app is no longer in the configuration; it goes on serving, and is the API's now");
            // What the file gives to another one goes there: an app may be renamed.
            let taken: Vec<_> = apps.iter().flat_map(|other: &App| other.hosts.clone()).collect();
            let is_kept = |row: &HostRow| {
                !taken.iter().any(|other| (&other.host, &other.path) == (&row.host, &row.path))
            };
            let hosts = app.hosts.iter().filter(|row| is_kept(row)).cloned().collect();
            apps.push(App { origin: Origin::Api, hosts, ..app });
        }
        self.engine.put_apps(&apps).await.map_err(|denied| chain(&denied))
    }

    /// Reads the files that the configuration is made of. From just before on these are watched.
    fn look(&self, watch: Option<&mut Watch>) -> Option<Sources> {
        self.follow(None, watch)
    }

    /// Watches the files that the configuration is made of by now, of which `seen` are known.
    fn follow(&self, seen: Option<Sources>, watch: Option<&mut Watch>) -> Option<Sources> {
        let mut files = crate::config::sources(self.path.as_deref()?);
        // Where their paths are filled in, these alone say them.
        files.extend(self.current.tls.files.iter().cloned());
        files.sort();
        files.dedup();
        if let Some(watch) = watch {
            watch.follow(&files);
        }
        let seen = seen.unwrap_or_else(|| Sources::read(Vec::new(), SystemClock.wall()));
        Some(seen.of(files))
    }
}

/// Offers the certificates of `config`, and tells what of the configuration should be looked at.
pub(super) fn publish_certificates(certs: &Certs, config: &Config) -> Result<(), TlsError> {
    for warning in &config.warnings {
        warn!(path = warning.path, remedy = warning.remedy, "{}", warning.message);
    }
    certs.publish(CertTable::new(config.tls.certificates.clone(), config.tls.clients.clone()))
}

/// The static services that lockgate is started with: they need no runtime, and are served before it is asked.
pub(super) async fn services_of(
    config: &Config,
    store: &dyn Store,
    routing: &Routing,
) -> Result<Vec<ServiceRoute>, String> {
    refuse_taken(config, &store.apps().await.map_err(|error| chain(&error))?)?;
    Ok(services(config, routing, &store.link_key()))
}

fn services(config: &Config, routing: &Routing, secret: &[u8; 32]) -> Vec<ServiceRoute> {
    let mut routes = Vec::new();
    for (name, service) in &config.services {
        let workers = routing.workers();
        let target = |upstream: &ServiceUpstream| {
            let target = Target::new(InstanceId::generate(), upstream.address, workers);
            let target = target.speaking(upstream.protocol).over(upstream.tls.clone());
            let places = service.limit.map(|(limit, _)| Arc::new(Places::new(limit)));
            Arc::new(target.told_by(service.proxy_protocol).weighing(upstream.weight).limited_to(places))
        };
        let targets = service.upstreams.iter().map(target).collect();
        let stats = Arc::new(BackendStats::for_service(name.as_str(), workers));
        let balance = Balance::of(&service.balance, secret);
        let queue = service.limit.map(|(_, queue)| Arc::new(Queue::of(queue)));
        let backend = Arc::new(
            Backend::new(targets, stats)
                .balanced(balance)
                .queueing(queue)
                .with_https(OwnHttps::of(service.https, service.hsts)),
        );
        routes.extend(service.hosts.iter().map(|rule| ServiceRoute {
            host: rule.pattern.clone(),
            prefix: rule.prefix.clone(),
            strip: rule.strip,
            backend: Arc::clone(&backend),
            policies: service.policies.as_slice().into(),
        }));
    }
    routes
}

/// A host of a static service must not be an app's: the file is checked for its own, these are the others.
fn refuse_taken(config: &Config, known: &[App]) -> Result<(), String> {
    let others = known.iter().filter(|app| !config.apps.contains_key(&app.name));
    for (app, row) in others.flat_map(|app| app.hosts.iter().map(move |row| (app, row))) {
        let is_same =
            |rule: &HostRule| rule.pattern.to_string() == row.host && rule.prefix.to_string() == row.path;
        if let Some((name, _)) = config.services.iter().find(|(_, service)| service.hosts.iter().any(is_same))
        {
            return Err(format!("services.{name}: host {} belongs to app {}", row.host, app.name));
        }
    }
    Ok(())
}

/// Of apps that are not the file's: what they say of https was heard where they were put, and will not be by these listeners.
fn warn_unheard(config: &Config, known: &[App]) {
    if !config.tls.listen.is_empty() {
        return;
    }
    for app in known.iter().filter(|app| !config.apps.contains_key(&app.name)) {
        for (field, detail, remedy) in unheard_https(app.settings.https, app.settings.hsts) {
            warn!(app = %app.name, field, remedy, "{field} of the app {detail}: it is served without TLS");
        }
    }
}

/// Tells when something happens in the folders of files: editors and mounted volumes replace files instead of writing
/// into them.
struct Watch {
    watcher: notify::RecommendedWatcher,
    /// With the device and the number of each: another one may take its place.
    folders: BTreeMap<PathBuf, Option<(u64, u64)>>,
}

impl Watch {
    fn new(changed: mpsc::Sender<()>) -> Option<Self> {
        let told = move |event: notify::Result<notify::Event>| match event {
            // A full channel means that somebody was told already.
            Ok(event) if !event.kind.is_access() => drop(changed.try_send(())),
            Ok(_) | Err(_) => {}
        };
        match notify::recommended_watcher(told) {
            Ok(watcher) => Some(Self { watcher, folders: BTreeMap::new() }),
            Err(error) => {
                unwatched(&error);
                None
            }
        }
    }

    /// Watches the folders of `files`, and no others. One that cannot be watched, or is another than it was, is tried again
    /// the next time.
    fn follow(&mut self, files: &[PathBuf]) {
        let wanted: BTreeMap<PathBuf, Option<(u64, u64)>> =
            files.iter().map(|file| folder(file)).map(|folder| (folder.clone(), number(&folder))).collect();
        for stale in self.folders.iter().filter(|(folder, number)| wanted.get(*folder) != Some(*number)) {
            // What cannot be unwatched is gone.
            drop(self.watcher.unwatch(stale.0));
        }
        self.folders.retain(|folder, number| wanted.get(folder) == Some(number));
        for (folder, number) in wanted {
            if self.folders.contains_key(&folder) {
                continue;
            }
            match self.watcher.watch(&folder, RecursiveMode::NonRecursive) {
                Ok(()) => drop(self.folders.insert(folder, number)),
                Err(error) => unwatched(&error),
            }
        }
    }
}

fn number(folder: &Path) -> Option<(u64, u64)> {
    let known = std::fs::metadata(folder).ok()?;
    Some((known.dev(), known.ino()))
}

/// Where it is told that something happens to `file`: its folder, or the nearest above that is there, in which it may appear.
fn folder(file: &Path) -> PathBuf {
    let above = file
        .ancestors()
        .skip(1)
        .map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
    above.into_iter().find(|folder| folder.is_dir()).unwrap_or_else(|| Path::new(".")).to_owned()
}

fn unwatched(error: &notify::Error) {
    warn!(
        error = chain(error),
        "a file of the configuration is not watched; reload with SIGHUP or `lockgate config reload`"
    );
}

fn store_app(name: &AppName, app: &AppConfig) -> App {
    let host = |rule: &HostRule| HostRow {
        host: rule.pattern.to_string(),
        path: rule.prefix.to_string(),
        strip: rule.strip,
    };
    App {
        workspace: WorkspaceName::default_workspace(),
        name: name.clone(),
        hosts: app.hosts.iter().map(host).collect(),
        settings: app.settings.clone(),
        origin: Origin::Config,
    }
}
