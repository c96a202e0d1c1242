//! What is published: which deployment each route leads to, and the targets of each deployment.
//!
//! Each deployment has two backends over the same instances, each with gates of its own: `live` behind the routes
//! that a swap moves, and `own` behind all others (deployment, commit, branch, ephemeral label). A swap closes the
//! `live` gates of the old version and leaves its own host names served; before a stop both are closed.
//!
//! The one writer of the route table. It mirrors the store's route rows, so that a publish touches only the host
//! names that change. Everything here happens under one lock held for the length of a publish.
//!
//! Whoever changes route rows holds the [`Turn`] from its read of the store to its publish: otherwise rows that were
//! read before a swap could be published after it, and lead to gates that are closed.

mod labels;
mod limits;
mod services;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::handover::Handover;
use super::tls::AppTls;
use crate::clock::{Clock, Timestamp};
use crate::gate::InFlight;
use crate::ids::{AppName, DeploymentId, EnvironmentName, InstanceId};
use crate::routing::balance::Balance;
use crate::routing::https::OwnHttps;
use crate::routing::path::PathPrefix;
use crate::routing::{Backend, Hold, HostPattern, Routing, Target};
use crate::settings::{
    AppTlsSettings, BalanceSettings, Delay, PolicySettings, PreviewAuthSettings, Protocol, ProxyProtocol,
    QueueSettings,
};
use crate::store::{self, Access, Deployment, HostRow, RouteRow, Sticky};
use crate::telemetry::{BackendStats, Tally};
use limits::Limits;
pub use services::ServiceRoute;
use state::{AppLabels, State, Unit, auth_of, keyed, labels_of};

/// Holds what is published and publishes its changes.
#[derive(Debug)]
pub(super) struct Publisher {
    routing: Arc<Routing>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    turn: tokio::sync::Mutex<()>,
    /// Rung when a request waits for a held deployment.
    bell: Arc<Notify>,
}

/// The right to change which route leads where; one at a time.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    _guard: tokio::sync::MutexGuard<'a, ()>,
}

/// Whose targets they are.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) app: AppName,
    pub(super) environment: EnvironmentName,
    pub(super) deployment: DeploymentId,
    /// Orders the deployments of the environment.
    pub(super) sequence: u64,
    /// It was live before: there are pages of it.
    pub(super) has_pages: bool,
    /// Who may see it in an environment for previews; `None` in production, and of a label.
    pub(super) preview_auth: Option<PreviewAuthSettings>,
    /// For how long its pages stay with it, and while it is live those of the versions before with theirs.
    pub(super) pages_for: Option<Delay>,
    pub(super) protocol: Protocol,
    /// Who its instances have to be, if they speak TLS.
    pub(super) tls: Option<AppTlsSettings>,
    pub(super) proxy_protocol: Option<ProxyProtocol>,
    pub(super) balance: BalanceSettings,
    pub(super) slow_start: Option<Delay>,
    /// How many requests each instance serves at once, and who waits.
    pub(super) limit: Option<(u32, QueueSettings)>,
    pub(super) https: Option<Arc<OwnHttps>>,
    pub(super) policies: Arc<[PolicySettings]>,
    /// Whose requests its rate limits count together.
    pub(super) counted_in: Arc<str>,
}

/// How much a deployment is asked for, on all of its routes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Activity {
    pub(super) deployment: DeploymentId,
    /// How many requests and streams have ended.
    pub(super) ended: u64,
    /// Something is in flight, or somebody decides about its routes or keeps its requests back.
    pub(super) is_busy: bool,
}

impl Publisher {
    pub(super) fn new(routing: Arc<Routing>, clock: Arc<dyn Clock>, link_key: [u8; 32]) -> Self {
        let state = State { workers: routing.workers(), link_key, ..State::default() };
        Self {
            routing,
            clock,
            state: Mutex::new(state),
            turn: tokio::sync::Mutex::new(()),
            bell: Arc::default(),
        }
    }

    pub(super) fn routing(&self) -> &Arc<Routing> {
        &self.routing
    }

    /// Waits until nobody else changes routes.
    pub(super) async fn turn(&self) -> Turn<'_> {
        Turn { _guard: self.turn.lock().await }
    }

    /// Sets what the store says, and publishes all of it at once.
    pub(super) fn load(&self, _turn: &Turn<'_>, rows: Vec<RouteRow>) {
        let mut state = self.lock();
        state.rows = rows.into_iter().filter_map(keyed).collect();
        let hosts = state.all_hosts();
        self.publish(&state, &hosts);
    }

    /// Leads `rows` where they say, all at one instant; returns the new generation of the route table.
    pub(super) fn lead(&self, _turn: &Turn<'_>, rows: &[RouteRow]) -> u64 {
        let mut state = self.lock();
        let rows: Vec<_> = rows.iter().cloned().filter_map(keyed).collect();
        let hosts: BTreeSet<_> = rows.iter().map(|((host, _), _)| host.clone()).collect();
        state.rows.extend(rows);
        self.publish(&state, &hosts)
    }

    /// The same for the routes of a version that goes live. It has the traffic whole, whatever share it had before.
    pub(super) fn lead_live(&self, _turn: &Turn<'_>, to: DeploymentId, rows: &[RouteRow]) -> u64 {
        let mut state = self.lock();
        let rows: Vec<_> = rows.iter().cloned().filter_map(keyed).collect();
        let mut hosts: BTreeSet<_> = rows.iter().map(|((host, _), _)| host.clone()).collect();
        state.rows.extend(rows);
        if let Some(unit) = state.units.get_mut(&to) {
            unit.keeps_pages = true;
        }
        let place = state.units.get(&to).map(|unit| (unit.owner.app.clone(), unit.owner.environment.clone()));
        if let Some(place) = place.filter(|place| state.splits.contains_key(place)) {
            state.splits.remove(&place);
            hosts.extend(state.hosts_of_environment(&place));
        }
        self.publish(&state, &hosts)
    }

    /// Leads a share of the visitors of an environment's live routes to another version, or no longer.
    pub(super) fn split(
        &self,
        _turn: &Turn<'_>,
        app: &AppName,
        environment: &EnvironmentName,
        split: Option<&store::Split>,
    ) {
        let mut state = self.lock();
        let place = (app.clone(), environment.clone());
        match split {
            Some(split) => drop(state.splits.insert(place.clone(), split.clone())),
            None => drop(state.splits.remove(&place)),
        }
        let hosts = state.hosts_of_environment(&place);
        self.publish(&state, &hosts);
    }

    /// Makes `rows` all the rows there are, and publishes the host names whose rows differ, all at one instant.
    pub(super) fn replace(&self, _turn: &Turn<'_>, rows: Vec<RouteRow>) {
        let mut state = self.lock();
        let rows: BTreeMap<_, _> = rows.into_iter().filter_map(keyed).collect();
        let gone = state.rows.keys().filter(|key| !rows.contains_key(*key));
        let changed = rows.iter().filter(|(key, row)| state.rows.get(*key) != Some(*row));
        let hosts: BTreeSet<_> =
            gone.chain(changed.map(|(key, _)| key)).map(|(host, _)| host.clone()).collect();
        state.rows = rows;
        if !hosts.is_empty() {
            self.publish(&state, &hosts);
        }
    }

    /// Replaces the static services.
    pub(super) fn set_services(&self, services: Vec<ServiceRoute>) {
        let mut state = self.lock();
        let mut hosts: BTreeSet<_> = state.services.keys().map(|(host, _)| host.clone()).collect();
        let known: BTreeMap<_, _> = state
            .services
            .values()
            .map(|service| (service.name().to_owned(), Arc::clone(&service.backend)))
            .collect();
        let mut made = BTreeMap::new();
        let mut kept = |service: ServiceRoute| {
            let backend = made.entry(service.name().to_owned()).or_insert_with(|| {
                let known = known.get(service.name()).filter(|backend| service.leads_where(backend));
                state.service_backend(&service, known)
            });
            ServiceRoute { backend: Arc::clone(backend), ..service }
        };
        let services: BTreeMap<_, _> = services
            .into_iter()
            .map(|service| ((service.host.clone(), service.prefix.clone()), kept(service)))
            .collect();
        state.services = services;
        hosts.extend(state.services.keys().map(|(host, _)| host.clone()));
        self.publish(&state, &hosts);
    }

    /// Whether a static service has that place.
    pub(super) fn is_service(&self, host: &HostPattern, prefix: &PathPrefix) -> bool {
        self.lock().services.contains_key(&(host.clone(), prefix.clone()))
    }

    /// The row of exactly that host name, without a path prefix.
    pub(super) fn row(&self, host: &str) -> Option<RouteRow> {
        let key = (host.parse().ok()?, PathPrefix::root());
        self.lock().rows.get(&key).cloned()
    }

    /// Whether a static service has that host name, without a path prefix.
    pub(super) fn is_service_host(&self, host: &str) -> bool {
        host.parse().is_ok_and(|pattern| self.is_service(&pattern, &PathPrefix::root()))
    }

    /// The running instances of a deployment; routes that lead to it are published again if there are any. A target
    /// that is there already stays the same object, with its gate. What is held stays held.
    pub(super) fn set_instances(&self, owner: &Owner, instances: &[(InstanceId, SocketAddr)]) {
        let mut state = self.lock();
        let hold = state.units.get(&owner.deployment).and_then(Unit::hold).cloned();
        self.put_unit(&mut state, owner, Some(instances), hold.as_ref());
    }

    /// Serves a deployment by these instances. If it was held, its requests are released to them.
    pub(super) fn serve(&self, owner: &Owner, instances: &[(InstanceId, SocketAddr)]) {
        let mut state = self.lock();
        if let Some(unit) = state.units.get_mut(&owner.deployment) {
            unit.keeps_pages |= owner.has_pages;
        }
        let held = self.put_unit(&mut state, owner, Some(instances), None);
        drop(state);
        if let Some(hold) = held {
            hold.release();
        }
    }

    /// Has the requests of a deployment wait; its targets stay known. Returns what held it until now, which the caller
    /// has to end.
    #[must_use]
    pub(super) fn hold(&self, owner: &Owner, hold: &Arc<Hold>) -> Option<Arc<Hold>> {
        self.put_unit(&mut self.lock(), owner, None, Some(hold))
    }

    /// Serves a deployment by the targets that it has, and releases who waited for it.
    pub(super) fn unhold(&self, owner: &Owner) {
        let held = self.put_unit(&mut self.lock(), owner, None, None);
        if let Some(hold) = held {
            hold.release();
        }
    }

    /// What holds a deployment now.
    pub(super) fn held_by(&self, deployment: DeploymentId) -> Option<Arc<Hold>> {
        self.lock().units.get(&deployment).and_then(Unit::hold).cloned()
    }

    /// Rung when a request waits for a deployment.
    pub(super) fn bell(&self) -> &Arc<Notify> {
        &self.bell
    }

    /// The held deployments that a request waited for since this was last asked.
    pub(super) fn wanted(&self) -> Vec<DeploymentId> {
        let state = self.lock();
        let is_wanted = |unit: &&Unit| unit.hold().is_some_and(|hold| hold.take_wanted());
        state.units.values().filter(is_wanted).map(|unit| unit.owner.deployment).collect()
    }

    /// Makes the unit of a deployment anew and publishes its routes; without `instances` it keeps its targets. Returns
    /// what held it until now.
    fn put_unit(
        &self,
        state: &mut State,
        owner: &Owner,
        instances: Option<&[(InstanceId, SocketAddr)]>,
        hold: Option<&Arc<Hold>>,
    ) -> Option<Arc<Hold>> {
        let known = state.units.get(&owner.deployment);
        let policies = state.policies_of(owner);
        let mut limits = Limits::of(owner, known);
        // One for all instances of a version, with the sessions that can be gone on with; what it says never changes.
        let tls =
            known.map_or_else(|| AppTls::of(owner.protocol, owner.tls.as_ref()), |unit| unit.tls.clone());
        let mut made = |known: Option<&Arc<Backend>>| {
            let balance = Balance::of(&owner.balance, &state.link_key);
            let backend = self
                .backend(known, (owner, tls.as_ref()), instances, &mut limits)
                .balanced(balance)
                .with_policies(policies.clone())
                .with_https(owner.https.clone());
            Arc::new(Backend { hold: hold.cloned(), ..backend })
        };
        let (live, own) = (made(known.map(|unit| &unit.live)), made(known.map(|unit| &unit.own)));
        let held = known.and_then(Unit::hold).cloned();
        let keeps_pages = known.map_or(owner.has_pages, |unit| unit.keeps_pages);
        // Whoever read the deployment before its app was renamed does not know of it.
        let app = known.map_or_else(|| owner.app.clone(), |unit| unit.owner.app.clone());
        let owner = &Owner { app, ..owner.clone() };
        let auth = auth_of(owner, &state.link_key);
        let unit = Unit { owner: owner.clone(), live, own, auth, keeps_pages, tls };
        state.units.insert(owner.deployment, unit);
        let hosts = state.hosts_of_deployment(owner);
        if !hosts.is_empty() {
            self.publish(state, &hosts);
        }
        held
    }

    /// From now on the requests of the deployment's pages go where everybody's go.
    pub(super) fn release_pages(&self, deployment: DeploymentId) {
        let mut state = self.lock();
        let Some(unit) = state.units.get_mut(&deployment).filter(|unit| unit.keeps_pages) else { return };
        unit.keeps_pages = false;
        let owner = unit.owner.clone();
        let hosts = state.hosts_of_deployment(&owner);
        if !hosts.is_empty() {
            self.publish(&state, &hosts);
        }
    }

    /// Forgets a deployment that has no targets any more. Its host names stay known, without a backend.
    pub(super) fn forget(&self, deployment: DeploymentId) {
        let mut state = self.lock();
        let Some(unit) = state.units.remove(&deployment) else { return };
        let hosts = state.hosts_of_deployment(&unit.owner);
        if !hosts.is_empty() {
            self.publish(&state, &hosts);
        }
        drop(state);
        if let Some(hold) = unit.hold() {
            hold.release();
        }
    }

    /// Has the requests to the app's host names meet `hold`, from one instant on, or nothing any more; returns what stood
    /// in its place, to be ended.
    pub(super) fn set_access(
        &self,
        app: &AppName,
        access: Access,
        hold: Option<Arc<Hold>>,
    ) -> Option<Arc<Hold>> {
        let mut state = self.lock();
        let before = match hold {
            Some(hold) => state.accesses.insert(app.clone(), (access, hold)),
            None => state.accesses.remove(app),
        };
        let hosts = state.hosts_of_app(app);
        if !hosts.is_empty() {
            self.publish(&state, &hosts);
        }
        before.map(|(_, hold)| hold)
    }

    /// Has the requests to the deployment's environment wait until the handover ends.
    pub(super) fn begin_handover(&self, from: &Deployment, handover: Handover) {
        let mut state = self.lock();
        state.handovers.insert((from.app.clone(), from.environment.clone()), handover);
        let hosts = state.hosts_of_app(&from.app);
        self.publish(&state, &hosts);
    }

    /// Has requests no longer wait for a handover, and returns it for those that do, if there was one.
    pub(super) fn end_handover(&self, of: &Deployment) -> Option<Handover> {
        let mut state = self.lock();
        let handover = state.handovers.remove(&(of.app.clone(), of.environment.clone()))?;
        let hosts = state.hosts_of_app(&of.app);
        self.publish(&state, &hosts);
        Some(handover)
    }

    pub(super) fn has_handover(&self, of: &Deployment) -> bool {
        self.lock().handovers.contains_key(&(of.app.clone(), of.environment.clone()))
    }

    /// Whether the app's instances are not to run.
    pub(super) fn is_disabled(&self, app: &AppName) -> bool {
        self.lock().accesses.get(app).is_some_and(|(access, _)| *access == Access::Disabled)
    }

    /// Until when which requests wait.
    pub(super) fn pauses(&self) -> Vec<(Timestamp, Arc<Hold>)> {
        let state = self.lock();
        let pauses = state.accesses.values().filter_map(|(access, hold)| match access {
            Access::Paused { until, .. } => Some((*until, Arc::clone(hold))),
            Access::Open | Access::Maintenance { .. } | Access::Disabled => None,
        });
        pauses.collect()
    }

    /// Has all that is the app's under its other name, at one instant; `rows` are all routes there are. What its targets
    /// serve goes on; what is counted begins anew, under that name.
    pub(super) fn rename(&self, _turn: &Turn<'_>, from: &AppName, to: &AppName, rows: Vec<RouteRow>) {
        let mut state = self.lock();
        let mut hosts = state.hosts_of_app(from);
        state.rows = rows.into_iter().filter_map(keyed).collect();
        let (workers, link_key) = (state.workers, state.link_key);
        for unit in state.units.values_mut().filter(|unit| unit.owner.app == *from) {
            unit.owner.app = to.clone();
            let stats = || Arc::new(BackendStats::for_deployment(labels_of(&unit.owner), workers));
            let anew = |backend: &Backend| Arc::new(Backend { stats: stats(), ..backend.clone() });
            (unit.live, unit.own) = (anew(&unit.live), anew(&unit.own));
            unit.auth = auth_of(&unit.owner, &link_key);
        }
        if let Some(labels) = state.labels.remove(from) {
            state.labels.insert(to.clone(), labels);
        }
        if let Some(access) = state.accesses.remove(from) {
            state.accesses.insert(to.clone(), access);
        }
        hosts.extend(state.hosts_of_app(to));
        self.publish(&state, &hosts);
    }

    /// The deployments of the app that have targets, and whether live routes lead there.
    pub(super) fn units_of_app(&self, app: &AppName) -> Vec<(DeploymentId, bool)> {
        let state = self.lock();
        let is_live = |id: DeploymentId| {
            state.rows.values().any(|row| {
                row.deployment == Some(id) && matches!(row.sticky, Sticky::Live | Sticky::Environment)
            })
        };
        let units = state.units.iter().filter(|(_, unit)| unit.owner.app == *app);
        units.map(|(id, _)| (*id, is_live(*id))).collect()
    }

    /// All targets of the app's deployments.
    pub(super) fn targets_of_app(&self, app: &AppName) -> Vec<Arc<Target>> {
        let state = self.lock();
        let units = state.units.values().filter(|unit| unit.owner.app == *app);
        units.flat_map(Unit::targets).cloned().collect()
    }

    /// How much each deployment that has targets is asked for.
    pub(super) fn activities(&self) -> Vec<Activity> {
        let state = self.lock();
        state.units.values().map(|unit| state.activity_of(unit)).collect()
    }

    /// How much a deployment is asked for; `None` if it has no targets.
    pub(super) fn activity(&self, deployment: DeploymentId) -> Option<Activity> {
        let state = self.lock();
        state.units.get(&deployment).map(|unit| state.activity_of(unit))
    }

    /// Whether requests to the app's host names meet something else than its versions.
    pub(super) fn is_shut(&self, app: &AppName) -> bool {
        self.lock().accesses.contains_key(app)
    }

    /// The targets behind the routes that a swap moves.
    pub(super) fn live_targets(&self, deployment: DeploymentId) -> Vec<Arc<Target>> {
        self.lock().units.get(&deployment).map(|unit| unit.live.targets.to_vec()).unwrap_or_default()
    }

    /// The targets behind the deployment's own names.
    pub(super) fn own_targets(&self, deployment: DeploymentId) -> Vec<Arc<Target>> {
        self.lock().units.get(&deployment).map(|unit| unit.own.targets.to_vec()).unwrap_or_default()
    }

    /// Both.
    pub(super) fn all_targets(&self, deployment: DeploymentId) -> Vec<Arc<Target>> {
        self.lock().units.get(&deployment).map(|unit| unit.targets().cloned().collect()).unwrap_or_default()
    }

    /// The counters of what comes by the routes that a swap moves.
    pub(super) fn live_stats(&self, deployment: DeploymentId) -> Option<Arc<BackendStats>> {
        self.lock().units.get(&deployment).map(|unit| Arc::clone(&unit.live.stats))
    }

    /// Of every deployment, what clients got by those routes.
    pub(super) fn live_tallies(&self) -> Vec<(DeploymentId, Tally)> {
        self.lock().units.iter().map(|(id, unit)| (*id, unit.live.stats.tally())).collect()
    }

    /// Both targets of an instance.
    pub(super) fn targets_of(&self, instance: InstanceId) -> Vec<Arc<Target>> {
        let state = self.lock();
        let all = state.units.values().flat_map(Unit::targets);
        all.filter(|target| target.id == instance).cloned().collect()
    }

    /// Routes that lead to the deployment, by their host's text.
    pub(super) fn hosts(&self, deployment: DeploymentId) -> Vec<String> {
        self.lock()
            .rows
            .values()
            .filter(|row| row.deployment == Some(deployment))
            .map(|row| row.host.host.clone())
            .collect()
    }

    fn backend(
        &self,
        known: Option<&Arc<Backend>>,
        (owner, tls): (&Owner, Option<&AppTls>),
        instances: Option<&[(InstanceId, SocketAddr)]>,
        limits: &mut Limits,
    ) -> Backend {
        let workers = self.routing.workers();
        let stats = known.map_or_else(
            || Arc::new(BackendStats::for_deployment(labels_of(owner), workers)),
            |backend| Arc::clone(&backend.stats),
        );
        let same = |id: InstanceId, address: SocketAddr| {
            known?.targets.iter().find(|target| target.id == id && target.address == address).cloned()
        };
        let queue = limits.queue.clone();
        let mut new = |id: InstanceId, address: SocketAddr| {
            Target::new(id, address, workers)
                .speaking(owner.protocol)
                .over(tls.map(|tls| tls.to(address)))
                .told_by(owner.proxy_protocol)
                .starting_slowly(owner.slow_start.map(|delay| delay.0))
                .limited_to(limits.places(id, address))
        };
        let targets = match instances {
            Some(instances) => {
                let joins_others = instances.iter().any(|&(id, address)| same(id, address).is_some());
                let mut new = |id, address| {
                    let target = new(id, address);
                    if joins_others { target.joining(self.clock.now()) } else { target }
                };
                let target = |&(id, address): &(InstanceId, SocketAddr)| {
                    same(id, address).unwrap_or_else(|| Arc::new(new(id, address)))
                };
                instances.iter().map(target).collect()
            }
            None => known.map(|backend| backend.targets.clone()).unwrap_or_default(),
        };
        let comeback = known.map(|backend| Arc::clone(&backend.comeback)).unwrap_or_default();
        Backend { comeback, queue, ..Backend::new(targets, stats) }
    }

    /// When a deployment without targets is to have one again, if that is known.
    pub(super) fn expect_back(&self, deployment: DeploymentId, at: Option<Instant>) {
        if let Some(unit) = self.lock().units.get(&deployment) {
            unit.live.comeback.expect(at);
            unit.own.comeback.expect(at);
        }
    }

    /// Publishes the routes of `hosts` as the state has them.
    fn publish(&self, state: &State, hosts: &BTreeSet<HostPattern>) -> u64 {
        if crate::fault::sabotaged("publish_per_host") {
            for host in hosts {
                self.routing.publish(|edit| edit.set(host, state.paths(host, &mut AppLabels::new())));
                std::thread::park_timeout(std::time::Duration::from_millis(100));
            }
            return self.routing.generation();
        }
        self.routing.publish(|edit| {
            let mut labels = AppLabels::new();
            for host in hosts {
                edit.set(host, state.paths(host, &mut labels));
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sum over targets.
pub(super) fn in_flight(targets: &[Arc<Target>]) -> InFlight {
    targets.iter().fold(InFlight::default(), |sum, target| {
        let one = target.gate.in_flight();
        InFlight { requests: sum.requests + one.requests, streams: sum.streams + one.streams }
    })
}

/// What a stored host is as pattern and prefix.
///
/// # Errors
/// Which part of it is not valid.
pub fn parse_host(row: &HostRow) -> Result<(HostPattern, PathPrefix), String> {
    let pattern = row.host.parse::<HostPattern>().map_err(|error| error.to_string())?;
    let prefix = row.path.parse::<PathPrefix>().map_err(|error| error.to_string())?;
    Ok((pattern, prefix))
}
