//! What is published, as data: the store's route rows, the units of deployments, and the routes that come of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use tracing::warn;

use super::{Activity, Owner, ServiceRoute, parse_host};
use crate::deploy::handover::Handover;
use crate::deploy::preview;
use crate::deploy::tls::AppTls;
use crate::ids::{AppName, DeploymentId, EnvironmentName};
use crate::routing::label::{Labelled, Labels};
use crate::routing::path::PathPrefix;
use crate::routing::policy::Policies;
use crate::routing::policy::rate_limit::Limiters;
use crate::routing::preview_auth::PreviewAuth;
use crate::routing::skew::Skew;
use crate::routing::split::Split;
use crate::routing::table::PathRoute;
use crate::routing::{Backend, Hold, HostPattern, Target};
use crate::store::{self, Access, RouteRow, Sticky};
use crate::telemetry::{BackendStats, DeploymentLabels};

/// The labels of apps, made once in a publish.
pub(super) type AppLabels = HashMap<AppName, Arc<Labels>>;

#[derive(Debug, Default)]
pub(super) struct State {
    /// By host pattern and path prefix.
    pub(super) rows: BTreeMap<(HostPattern, PathPrefix), RouteRow>,
    pub(super) services: BTreeMap<(HostPattern, PathPrefix), ServiceRoute>,
    pub(super) units: HashMap<DeploymentId, Unit>,
    pub(super) labels: HashMap<AppName, BTreeMap<Box<str>, Label>>,
    /// Of the apps that are not open.
    pub(super) accesses: HashMap<AppName, (Access, Arc<Hold>)>,
    pub(super) handovers: HashMap<(AppName, EnvironmentName), Handover>,
    /// Of which environments a share of the visitors gets another version than the live one.
    pub(super) splits: HashMap<(AppName, EnvironmentName), store::Split>,
    /// Of the data plane, for the counters of backends.
    pub(super) workers: usize,
    /// What links to previews are signed under.
    pub(super) link_key: [u8; 32],
    /// What rate limits know, over deploys.
    pub(super) limiters: Limiters,
}

/// A deployment with targets, or one that is held; both of its backends are held by the same.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) owner: Owner,
    pub(super) live: Arc<Backend>,
    pub(super) own: Arc<Backend>,
    /// What a request must have to come here by the names of an environment for previews.
    pub(super) auth: Option<Arc<PreviewAuth>>,
    /// How its instances are spoken to, if by TLS.
    pub(super) tls: Option<AppTls>,
    /// Requests of its pages may come here once another version is live.
    pub(super) keeps_pages: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Label {
    pub(super) deployment: DeploymentId,
    pub(super) expires_at: Instant,
    /// Nobody has to end its deployment any more; the label is kept to tell it from one that never was.
    pub(super) is_ended: bool,
    pub(super) auth: Option<Arc<PreviewAuth>>,
}

impl Owner {
    pub(super) fn is_beside(&self, other: &Self) -> bool {
        (&self.app, &self.environment) == (&other.app, &other.environment)
    }
}

impl Unit {
    pub(super) fn hold(&self) -> Option<&Arc<Hold>> {
        self.live.hold.as_ref()
    }

    pub(super) fn targets(&self) -> impl Iterator<Item = &Arc<Target>> {
        self.live.targets.iter().chain(self.own.targets.iter())
    }
}

impl State {
    pub(super) fn all_hosts(&self) -> BTreeSet<HostPattern> {
        self.rows.keys().chain(self.services.keys()).map(|(host, _)| host.clone()).collect()
    }

    pub(super) fn activity_of(&self, unit: &Unit) -> Activity {
        // Before the counts: what ends is counted before it leaves its gate.
        let is_in_flight = unit.targets().any(|target| !target.gate.in_flight().is_zero());
        let owner = &unit.owner;
        let place = (owner.app.clone(), owner.environment.clone());
        let is_decided_about = self.accesses.contains_key(&owner.app)
            || self.handovers.contains_key(&place)
            || self.splits.contains_key(&place);
        Activity {
            deployment: owner.deployment,
            ended: unit.live.stats.ended() + unit.own.stats.ended(),
            is_busy: is_in_flight || is_decided_about || unit.hold().is_some(),
        }
    }

    /// Those of the deployment, made once.
    pub(super) fn policies_of(&self, owner: &Owner) -> Option<Arc<Policies>> {
        let known = self.units.get(&owner.deployment).and_then(|unit| unit.live.policies.clone());
        known.filter(|policies| policies.are_of(&owner.policies)).or_else(|| {
            let made = Policies::new(&owner.policies, &self.limiters, &owner.counted_in, self.workers);
            made.map(Arc::new)
        })
    }

    /// What a static service leads to. If that is what it led to before, as `known`, it keeps its counts, its connections,
    /// and what is known of its targets.
    pub(super) fn service_backend(
        &self,
        service: &ServiceRoute,
        known: Option<&Arc<Backend>>,
    ) -> Arc<Backend> {
        let before = known.and_then(|backend| backend.policies.as_ref());
        let is_same =
            before.map_or(service.policies.is_empty(), |policies| policies.are_of(&service.policies));
        let is_same = is_same && known.is_none_or(|known| known.https == service.backend.https);
        if let Some(known) = known.filter(|_| is_same) {
            return Arc::clone(known);
        }
        let scope = format!("service {}", service.backend.stats.name());
        let policies = Policies::new(&service.policies, &self.limiters, &scope, self.workers);
        let same = Backend::clone(known.unwrap_or(&service.backend));
        Arc::new(same.with_policies(policies.map(Arc::new)).with_https(service.backend.https.clone()))
    }

    pub(super) fn hosts_of_app(&self, app: &AppName) -> BTreeSet<HostPattern> {
        self.rows.iter().filter(|(_, row)| row.app == *app).map(|((host, _), _)| host.clone()).collect()
    }

    pub(super) fn hosts_of_environment(
        &self,
        (app, environment): &(AppName, EnvironmentName),
    ) -> BTreeSet<HostPattern> {
        let is_of = |row: &RouteRow| row.app == *app && row.environment == *environment;
        self.rows.iter().filter(|(_, row)| is_of(row)).map(|((host, _), _)| host.clone()).collect()
    }

    /// The other version of a route that a swap moves, for its share of the visitors. While the app is not open nobody
    /// gets either.
    pub(super) fn split_of(&self, row: &RouteRow) -> Option<&store::Split> {
        if self.splits.is_empty() || !is_moved(row.sticky) || self.accesses.contains_key(&row.app) {
            return None;
        }
        let split = self.splits.get(&(row.app.clone(), row.environment.clone()));
        split.filter(|split| row.deployment != Some(split.to))
    }

    pub(super) fn shared(&self, split: &store::Split) -> Option<Arc<Split>> {
        let unit = self.units.get(&split.to)?;
        Some(Arc::new(Split::new(&split.operation.to_string(), Arc::clone(&unit.live), split.share)))
    }

    /// The versions of a route that a swap moves with which pages may stay, if they do: earlier ones that were live and
    /// run, and one that has a share. Who went back from a version has decided against it, so that none is later than the
    /// live one. While the app is not open, or one version is stopped for another, nobody stays.
    pub(super) fn skew_of(&self, row: &RouteRow, split: Option<&store::Split>) -> Option<Arc<Skew>> {
        let live = self.units.get(&row.deployment.filter(|_| is_moved(row.sticky))?)?;
        let pages_for = live.owner.pages_for?;
        let place = (row.app.clone(), row.environment.clone());
        if self.accesses.contains_key(&row.app) || self.handovers.contains_key(&place) {
            return None;
        }
        let keeps_pages = |unit: &&Unit| {
            unit.keeps_pages
                && unit.owner.sequence < live.owner.sequence
                && unit.owner.is_beside(&live.owner)
                && unit.hold().is_none()
                && !unit.own.targets.is_empty()
        };
        let earlier = self.units.values().filter(keeps_pages);
        let warm = earlier.map(|unit| (unit.owner.deployment, Arc::clone(&unit.own)));
        let share = split.and_then(|split| self.units.get(&split.to));
        let share = share.map(|unit| (unit.owner.deployment, Arc::clone(&unit.live)));
        // A share that is an earlier version's is found first.
        let warm = share.into_iter().chain(warm).collect();
        Some(Arc::new(Skew::new(live.owner.deployment, warm, pages_for.0.as_secs())))
    }

    /// Hosts whose routes change with the deployment's targets: its own, and all of the app if it has a label.
    pub(super) fn hosts_of_deployment(&self, owner: &Owner) -> BTreeSet<HostPattern> {
        let has_label = self
            .labels
            .get(&owner.app)
            .is_some_and(|labels| labels.values().any(|label| label.deployment == owner.deployment));
        if has_label {
            return self.hosts_of_app(&owner.app);
        }
        let place = (owner.app.clone(), owner.environment.clone());
        let has_share = self.splits.get(&place).is_some_and(|split| split.to == owner.deployment);
        let has_pages = |row: &RouteRow| {
            let live = row.deployment.and_then(|live| self.units.get(&live));
            live.is_some_and(|live| live.owner.pages_for.is_some())
        };
        let leads_there = |row: &RouteRow| {
            let is_beside = || row.app == place.0 && row.environment == place.1 && is_moved(row.sticky);
            row.deployment == Some(owner.deployment) || is_beside() && (has_share || has_pages(row))
        };
        self.rows.iter().filter(|(_, row)| leads_there(row)).map(|((host, _), _)| host.clone()).collect()
    }

    /// `labels` has those of the apps that a host was made for in the same publish: they are the same for all of an app's.
    pub(super) fn paths(&self, host: &HostPattern, labels: &mut AppLabels) -> Vec<PathRoute> {
        let from = (host.clone(), PathPrefix::root());
        let apps = self.rows.range(from.clone()..).take_while(|((other, _), _)| other == host).map(
            |((_, prefix), row)| {
                let backend = self.handed_over(row, self.backend_of(row));
                let backend = self.held(&row.app, backend);
                let split = self.split_of(row);
                let route = PathRoute::new(prefix.clone(), backend)
                    .with_labels(self.shared_labels(&row.app, labels))
                    .with_split(split.and_then(|split| self.shared(split)))
                    .with_skew(self.skew_of(row, split));
                let route = if row.environment == EnvironmentName::production() {
                    route
                } else {
                    let unit = row.deployment.and_then(|deployment| self.units.get(&deployment));
                    route.into_preview(unit.and_then(|unit| unit.auth.clone()))
                };
                let is_lasting = is_moved(row.sticky) && row.environment == EnvironmentName::production();
                let route = if is_lasting { route } else { route.passing() };
                if row.host.strip { route.stripping() } else { route }
            },
        );
        let services =
            self.services.range(from..).take_while(|((other, _), _)| other == host).map(|(_, service)| {
                let route = PathRoute::new(service.prefix.clone(), Arc::clone(&service.backend));
                if service.strip { route.stripping() } else { route }
            });
        apps.chain(services).collect()
    }

    pub(super) fn backend_of(&self, row: &RouteRow) -> Arc<Backend> {
        match row.deployment.and_then(|deployment| self.units.get(&deployment)) {
            Some(unit) => match row.sticky {
                Sticky::Live | Sticky::Environment => Arc::clone(&unit.live),
                Sticky::Branch | Sticky::Deployment | Sticky::Commit | Sticky::Ephemeral => {
                    Arc::clone(&unit.own)
                }
            },
            None => self.nobody(&row.app, row.environment.as_str()),
        }
    }

    /// As a handover in its environment has it.
    pub(super) fn handed_over(&self, row: &RouteRow, backend: Arc<Backend>) -> Arc<Backend> {
        let handover = if self.handovers.is_empty() {
            None
        } else {
            self.handovers.get(&(row.app.clone(), row.environment.clone()))
        };
        let Some(handover) = handover else { return backend };
        held_by(&backend, &handover.hold)
    }

    /// As the access to the app has it.
    pub(super) fn held(&self, app: &AppName, backend: Arc<Backend>) -> Arc<Backend> {
        let Some((_, hold)) = self.accesses.get(app) else { return backend };
        held_by(&backend, hold)
    }

    fn shared_labels(&self, app: &AppName, known: &mut AppLabels) -> Arc<Labels> {
        if let Some(labels) = known.get(app) {
            return Arc::clone(labels);
        }
        let labels = self.labels_of(app);
        known.insert(app.clone(), Arc::clone(&labels));
        labels
    }

    pub(super) fn labels_of(&self, app: &AppName) -> Arc<Labels> {
        let mut labels = Labels::default();
        for (text, label) in self.labels.get(app).into_iter().flatten() {
            let unit = self.units.get(&label.deployment);
            let backend = unit.map_or_else(|| self.nobody(app, ""), |unit| Arc::clone(&unit.own));
            // Previews are looked at while the app itself is worked on.
            let is_disabled = self.accesses.get(app).is_some_and(|(access, _)| *access == Access::Disabled);
            let backend = if is_disabled { self.held(app, backend) } else { backend };
            labels.insert(text, Labelled { backend, expires_at: label.expires_at, auth: label.auth.clone() });
        }
        Arc::new(labels)
    }

    /// What a name leads to that is known and has no target: 503, not 404.
    pub(super) fn nobody(&self, app: &AppName, environment: &str) -> Arc<Backend> {
        let labels = DeploymentLabels {
            app: app.to_string(),
            environment: environment.to_owned(),
            deployment: String::new(),
        };
        Arc::new(Backend::new(Box::default(), Arc::new(BackendStats::for_deployment(labels, self.workers))))
    }
}

/// The same backend, whose requests wait for `hold`.
fn held_by(backend: &Backend, hold: &Arc<Hold>) -> Arc<Backend> {
    Arc::new(backend.clone().held(Arc::clone(hold)))
}

/// Whether a swap moves such routes.
pub(super) fn is_moved(sticky: Sticky) -> bool {
    match sticky {
        Sticky::Live | Sticky::Environment => true,
        Sticky::Branch | Sticky::Deployment | Sticky::Commit | Sticky::Ephemeral => false,
    }
}

pub(super) fn keyed(row: RouteRow) -> Option<((HostPattern, PathPrefix), RouteRow)> {
    match parse_host(&row.host) {
        Ok(key) => Some((key, row)),
        Err(error) => {
            // Checked by whoever wrote it; one that is damaged harms no other route.
            warn!(host = row.host.host, path = row.host.path, error, "route left out");
            None
        }
    }
}

/// What a request must have to reach it by the names of an environment for previews.
pub(super) fn auth_of(owner: &Owner, link_key: &[u8; 32]) -> Option<Arc<PreviewAuth>> {
    let settings = owner.preview_auth.as_ref()?;
    preview::auth(settings, link_key, &owner.app, &preview::place_of(&owner.environment))
}

pub(super) fn labels_of(owner: &Owner) -> DeploymentLabels {
    DeploymentLabels {
        app: owner.app.to_string(),
        environment: owner.environment.to_string(),
        deployment: owner.deployment.to_string(),
    }
}
