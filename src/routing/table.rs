//! The immutable route table, and how the next one is made from it.
//!
//! Host names are spread over shards that tables share: making the next table copies the shards that change and
//! the list of shards, so its cost follows the change and not the number of host names.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::time::Instant;

use super::backend::Backend;
use super::host::{HostName, HostPattern};
use super::label::{LabelMiss, Labels};
use super::path::{PathPrefix, normalise};
use super::preview_auth::PreviewAuth;
use super::skew::Skew;
use super::split::Split;

const SHARDS: usize = 512;

/// All routes at one generation.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    generation: u64,
    exact: Shards,
    wildcard: Shards,
    any: Option<Arc<HostRoutes>>,
}

/// The routes of one host pattern.
#[derive(Debug)]
pub struct HostRoutes {
    pattern: HostPattern,
    paths: Box<[PathRoute]>,
}

/// One path prefix of a host and where it leads.
#[derive(Clone, Debug)]
pub struct PathRoute {
    pub prefix: PathPrefix,
    /// Whether the prefix is taken off before the path goes upstream.
    pub strip: bool,
    /// Whether the paths under it are held to the route's own answer when it has no target.
    backend: Arc<Backend>,
    /// A share of its visitors gets another version; `None` nearly always.
    split: Option<Arc<Split>>,
    /// Pages stay with the version that they came from; `None` where the app does not ask for it.
    skew: Option<Arc<Skew>>,
    /// It leads into an environment for previews.
    is_preview: bool,
    /// Its name is one version's, or one preview's, and goes with that.
    is_passing: bool,
    /// What a request must have there.
    auth: Option<Arc<PreviewAuth>>,
    /// The labels of its app, tried on a stripped first label.
    labels: Option<Arc<Labels>>,
}

/// A host name's routes, and the way that led there.
#[derive(Clone, Debug)]
pub struct HostMatch {
    routes: Arc<HostRoutes>,
    via: Via,
}

/// How a host name was matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    Exact,
    /// By `*.rest`; its first label may be a live ephemeral label, and otherwise the app's live version answers.
    Wildcard {
        label: Arc<str>,
    },
    /// By stripping its first label, which must be a live ephemeral label.
    Stripped {
        label: Arc<str>,
    },
    /// By the catch-all route.
    Any,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub struct RouteMatch<'a> {
    pub backend: &'a Arc<Backend>,
    pub route: &'a PathRoute,
    /// Of the ephemeral deployment, if one answers.
    pub label: Option<&'a str>,
    /// When the label expires.
    pub expires_at: Option<Instant>,
    /// What a request must have before it goes there.
    pub auth: Option<&'a Arc<PreviewAuth>>,
    /// It is a preview: search engines have no business there.
    pub is_preview: bool,
}

/// Why a request goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    NoRoute,
    EphemeralUnknown,
    EphemeralExpired,
}

/// The next table in the making.
#[derive(Debug)]
pub struct TableEdit {
    table: RouteTable,
}

type Names = HashMap<HostName, Arc<HostRoutes>, foldhash::fast::FixedState>;

#[derive(Clone, Debug)]
struct Shards(Box<[Arc<Names>]>);

impl RouteTable {
    /// Counts the publishes.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The routes of `host`, in the order of precedence: exact, `*.rest`, the rest behind a stripped first label,
    /// the catch-all.
    #[must_use]
    pub fn resolve(&self, host: &HostName) -> Option<HostMatch> {
        self.resolve_exact(host).or_else(|| self.resolve_other(host))
    }

    /// The routes of `host` by its whole name.
    pub(super) fn resolve_exact(&self, host: &HostName) -> Option<HostMatch> {
        let routes = self.exact.get(host.as_str())?;
        Some(HostMatch { routes: Arc::clone(routes), via: Via::Exact })
    }

    /// The routes of `host` where it has none by its whole name.
    pub(super) fn resolve_other(&self, host: &HostName) -> Option<HostMatch> {
        if let Some((label, rest)) = host.split_first_label() {
            if let Some(routes) = self.wildcard.get(rest) {
                return Some(HostMatch {
                    routes: Arc::clone(routes),
                    via: Via::Wildcard { label: label.into() },
                });
            }
            let of_rest = self.exact.get(rest).or_else(|| self.wildcard.get(rest.split_once('.')?.1));
            if let Some(routes) = of_rest.filter(|routes| routes.has_labels()) {
                return Some(HostMatch {
                    routes: Arc::clone(routes),
                    via: Via::Stripped { label: label.into() },
                });
            }
        }
        let routes = self.any.as_ref()?;
        Some(HostMatch { routes: Arc::clone(routes), via: Via::Any })
    }

    /// The routes of exactly this pattern.
    #[must_use]
    pub fn routes(&self, pattern: &HostPattern) -> Option<&Arc<HostRoutes>> {
        match pattern {
            HostPattern::Exact(name) => self.exact.get(name.as_str()),
            HostPattern::Wildcard(suffix) => self.wildcard.get(suffix.as_str()),
            HostPattern::Any => self.any.as_ref(),
        }
    }

    /// All host patterns with their routes, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<HostRoutes>> {
        self.exact.iter().chain(self.wildcard.iter()).chain(self.any.iter())
    }
}

impl HostRoutes {
    /// What they are routes of.
    #[must_use]
    pub fn pattern(&self) -> &HostPattern {
        &self.pattern
    }

    /// Longest prefix first.
    #[must_use]
    pub fn paths(&self) -> &[PathRoute] {
        &self.paths
    }

    fn has_labels(&self) -> bool {
        self.paths.iter().any(|path| path.labels.is_some())
    }

    fn route(&self, path: &str) -> Option<&PathRoute> {
        match &*self.paths {
            [only] if only.prefix.is_root() => Some(only),
            paths => {
                let normal = normalise(path);
                paths.iter().find(|route| route.prefix.covers(&normal))
            }
        }
    }
}

impl PathRoute {
    /// A route that keeps its prefix and knows no labels.
    #[must_use]
    pub fn new(prefix: PathPrefix, backend: Arc<Backend>) -> Self {
        Self {
            prefix,
            strip: false,
            backend,
            split: None,
            skew: None,
            is_preview: false,
            is_passing: false,
            auth: None,
            labels: None,
        }
    }

    /// With another version for a share of its visitors.
    #[must_use]
    pub fn with_split(mut self, split: Option<Arc<Split>>) -> Self {
        self.split = split;
        self
    }

    /// The other version, if there is one; not for who asks for a label.
    #[must_use]
    pub fn split(&self) -> Option<&Split> {
        self.split.as_deref()
    }

    /// Into an environment for previews, and what a request must have there.
    #[must_use]
    pub fn into_preview(mut self, auth: Option<Arc<PreviewAuth>>) -> Self {
        self.is_preview = true;
        self.auth = auth;
        self
    }

    /// By a name that goes with a version or a preview.
    #[must_use]
    pub fn passing(mut self) -> Self {
        self.is_passing = true;
        self
    }

    /// Whether its name goes with a version or a preview; those come and go with every deploy.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        self.is_passing
    }

    /// With the versions that pages may stay with.
    #[must_use]
    pub fn with_skew(mut self, skew: Option<Arc<Skew>>) -> Self {
        self.skew = skew;
        self
    }

    /// The versions that pages may stay with, if they do; not for who asks for a label.
    #[must_use]
    pub fn skew(&self) -> Option<&Skew> {
        self.skew.as_deref()
    }

    /// With the labels of its app.
    #[must_use]
    pub fn with_labels(mut self, labels: Arc<Labels>) -> Self {
        self.labels = Some(labels);
        self
    }

    /// Taking the prefix off.
    #[must_use]
    pub fn stripping(mut self) -> Self {
        self.strip = true;
        self
    }

    /// The backend of the route itself, when no label is asked for.
    #[must_use]
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
}

impl HostMatch {
    /// Whether it is the other one, of an older table perhaps: nothing of these routes has changed.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.routes, &other.routes) && self.via == other.via
    }

    /// The routes of the matched pattern.
    #[must_use]
    pub fn routes(&self) -> &HostRoutes {
        &self.routes
    }

    /// How they were found.
    #[must_use]
    pub fn via(&self) -> &Via {
        &self.via
    }

    /// Where a request for the raw `path` goes at the time `now`.
    ///
    /// # Errors
    /// Which 404 it is.
    pub fn route(&self, path: &str, now: Instant) -> Result<RouteMatch<'_>, Miss> {
        let route = self.routes.route(path).ok_or(Miss::NoRoute)?;
        let live = RouteMatch {
            backend: &route.backend,
            route,
            label: None,
            expires_at: None,
            auth: route.auth.as_ref(),
            is_preview: route.is_preview,
        };
        let (label, is_required) = match &self.via {
            Via::Exact | Via::Any => return Ok(live),
            Via::Wildcard { label } => (&**label, false),
            Via::Stripped { label } => (&**label, true),
        };
        let found = match &route.labels {
            Some(labels) => labels.find(label, now),
            None => Err(LabelMiss::Unknown),
        };
        match found {
            Ok(labelled) => Ok(RouteMatch {
                backend: &labelled.backend,
                route,
                label: Some(label),
                expires_at: Some(labelled.expires_at),
                auth: labelled.auth.as_ref(),
                is_preview: true,
            }),
            Err(_) if !is_required => Ok(live),
            Err(LabelMiss::Unknown) => Err(Miss::EphemeralUnknown),
            Err(LabelMiss::Expired) => Err(Miss::EphemeralExpired),
        }
    }
}

impl TableEdit {
    pub(super) fn of(table: &RouteTable, generation: u64) -> Self {
        Self { table: RouteTable { generation, ..table.clone() } }
    }

    pub(super) fn finish(self) -> RouteTable {
        self.table
    }

    /// Sets all routes of `pattern`; none removes it.
    pub fn set(&mut self, pattern: &HostPattern, mut paths: Vec<PathRoute>) {
        paths.sort_by_key(|route| std::cmp::Reverse(route.prefix.as_str().len()));
        let routes = (!paths.is_empty())
            .then(|| Arc::new(HostRoutes { pattern: pattern.clone(), paths: paths.into_boxed_slice() }));
        match pattern {
            HostPattern::Exact(name) => self.table.exact.set(name, routes),
            HostPattern::Wildcard(suffix) => self.table.wildcard.set(suffix, routes),
            HostPattern::Any => self.table.any = routes,
        }
    }

    /// Removes every route: for a table that is built from nothing.
    pub fn clear(&mut self) {
        self.table = RouteTable { generation: self.table.generation, ..RouteTable::default() };
    }

    /// Leads one path of `pattern` to `backend`; its other paths stay. For tests and benches.
    ///
    /// # Panics
    /// If `prefix` is not a path prefix.
    #[expect(clippy::panic, reason = "callers write the prefix in their source")]
    pub fn route(&mut self, pattern: &HostPattern, prefix: &str, backend: &Arc<Backend>) {
        let prefix: PathPrefix = prefix.parse().unwrap_or_else(|error| panic!("{error}"));
        let mut paths = self.table.routes(pattern).map(|routes| routes.paths.to_vec()).unwrap_or_default();
        paths.retain(|route| route.prefix != prefix);
        paths.push(PathRoute::new(prefix, Arc::clone(backend)));
        self.set(pattern, paths);
    }
}

impl Shards {
    fn get(&self, name: &str) -> Option<&Arc<HostRoutes>> {
        self.0[shard_of(name)].get(name)
    }

    fn set(&mut self, name: &HostName, routes: Option<Arc<HostRoutes>>) {
        let shard = Arc::make_mut(&mut self.0[shard_of(name.as_str())]);
        match routes {
            Some(routes) => shard.insert(name.clone(), routes),
            None => shard.remove(name.as_str()),
        };
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<HostRoutes>> {
        self.0.iter().flat_map(|shard| shard.values())
    }
}

impl Default for Shards {
    fn default() -> Self {
        let empty = Arc::new(Names::default());
        Self((0..SHARDS).map(|_| Arc::clone(&empty)).collect())
    }
}

impl std::borrow::Borrow<str> for HostName {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

fn shard_of(name: &str) -> usize {
    let hash = foldhash::fast::FixedState::with_seed(0x10c4).hash_one(HashedName(name));
    usize::try_from(hash % SHARDS as u64).unwrap_or_default()
}

#[derive(Hash)]
struct HashedName<'a>(&'a str);

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::label::Labelled;
    use super::*;
    use crate::telemetry::BackendStats;

    pub(crate) fn backend(name: &str) -> Arc<Backend> {
        Arc::new(Backend::new(Box::default(), Arc::new(BackendStats::for_service(name, 1))))
    }

    pub(crate) fn pattern(text: &str) -> HostPattern {
        text.parse().unwrap()
    }

    fn table(edit: impl FnOnce(&mut TableEdit)) -> RouteTable {
        let mut changes = TableEdit::of(&RouteTable::default(), 1);
        edit(&mut changes);
        changes.finish()
    }

    fn serves(table: &RouteTable, host: &str, path: &str, now: Instant) -> Result<String, Miss> {
        let found = table.resolve(&host.parse().unwrap()).ok_or(Miss::NoRoute)?;
        found.route(path, now).map(|route| route.backend.stats.name().to_owned())
    }

    #[expect(clippy::disallowed_methods, reason = "a test's own clock")]
    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn hosts_are_matched_in_the_order_of_precedence() {
        let now = now();
        let mut labels = Labels::default();
        labels.insert(
            "feat",
            Labelled { backend: backend("preview"), expires_at: now + Duration::from_secs(1), auth: None },
        );
        labels.insert("old", Labelled { backend: backend("expired"), expires_at: now, auth: None });
        let labels = Arc::new(labels);
        let live = |name: &str| PathRoute::new(PathPrefix::root(), backend(name)).with_labels(labels.clone());
        let table = table(|edit| {
            edit.set(&pattern("app.test"), vec![live("app")]);
            edit.set(&pattern("*.wild.test"), vec![live("wild")]);
            edit.route(&pattern("exact.wild.test"), "/", &backend("exact"));
            edit.route(&pattern("plain.test"), "/", &backend("plain"));
            edit.route(&pattern("*"), "/", &backend("any"));
        });
        for (host, expected) in [
            ("app.test", Ok("app")),
            ("APP.test.", Ok("app")),
            ("exact.wild.test", Ok("exact")),
            ("feat.wild.test", Ok("preview")),
            ("old.wild.test", Ok("wild")),
            ("other.wild.test", Ok("wild")),
            ("feat.app.test", Ok("preview")),
            ("unknown.app.test", Err(Miss::EphemeralUnknown)),
            ("old.app.test", Err(Miss::EphemeralExpired)),
            ("a.feat.app.test", Ok("any")),
            ("feat.x.wild.test", Ok("preview")),
            ("feat.exact.wild.test", Ok("any")),
            ("unknown.x.wild.test", Err(Miss::EphemeralUnknown)),
            ("a.feat.x.wild.test", Ok("any")),
            ("x.plain.test", Ok("any")),
            ("wild.test", Ok("any")),
        ] {
            assert_eq!(serves(&table, host, "/", now), expected.map(str::to_owned), "{host}");
        }
    }

    #[test]
    fn the_longest_prefix_wins_and_dot_segments_do_not_reach_another_prefix() {
        let table = table(|edit| {
            edit.route(&pattern("a.test"), "/", &backend("root"));
            edit.route(&pattern("a.test"), "/api", &backend("api"));
            edit.route(&pattern("a.test"), "/api/admin", &backend("admin"));
        });
        let now = now();
        for (path, name) in [
            ("/", "root"),
            ("/apix", "root"),
            ("/api", "api"),
            ("/api/x", "api"),
            ("/api/admin/x", "admin"),
            ("/api/x/../admin/y", "admin"),
            ("/api/../x", "root"),
            ("/api/%2e%2e/x", "root"),
        ] {
            assert_eq!(serves(&table, "a.test", path, now), Ok(name.to_owned()), "{path}");
        }
    }

    proptest! {
        /// The sharded table answers as a linear scan over the rules would.
        #[test]
        fn the_table_equals_a_linear_scan(
            rules in prop::collection::vec("(\\*\\.)?[ab](\\.[ab]){0,2}", 0..12),
            hosts in prop::collection::vec("[ab](\\.[ab]){0,3}", 1..12),
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        ) {
            let mut kept = rules.clone();
            let table = table(|edit| {
                for rule in &rules {
                    edit.route(&pattern(rule), "/", &backend(rule));
                }
                for index in removed {
                    if !rules.is_empty() {
                        let gone = index.get(&rules);
                        edit.set(&pattern(gone), Vec::new());
                        kept.retain(|rule| rule != gone);
                    }
                }
            });
            for host in hosts {
                let rest = host.split_once('.').map(|(_, rest)| format!("*.{rest}"));
                let scan = kept.iter().find(|rule| **rule == host)
                    .or_else(|| kept.iter().find(|rule| Some(*rule) == rest.as_ref()));
                prop_assert_eq!(serves(&table, &host, "/", now()).ok(), scan.cloned());
            }
        }
    }
}
