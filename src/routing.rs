//! From host name and path to the backend that serves them.
//!
//! [`Routing`] holds the route table, one immutable image that is replaced as a whole, and a cache of the names that
//! the table does not have as a whole: under wildcards, behind labels, caught by the catch-all. The data plane reads,
//! one publisher writes; neither waits for the other.
//!
//! # Invariants
//! 1. A reader sees one table; all host names that move together move with one pointer.
//! 2. The cache never serves what was read from a table older than the published one, also when the read began
//!    before the swap: entries carry the generation of the table that they were read from.
//! 3. Once [`Routing::publish`] has returned, every later [`Routing::resolve`] reads the new table.
//! 4. If one reader got an answer from the new table, no reader that starts later gets one from the old table.
//!    Therefore `publish` raises the generation *before* it stores the table: from then on every cached entry
//!    misses, and the pointer's store is the one instant at which all answers change. In the other order a
//!    reader could still hit an old entry after another reader had missed the cache and seen the new table.

pub mod backend;
pub mod balance;
pub mod cache;
mod health;
pub mod hold;
pub mod host;
pub mod https;
pub mod label;
pub mod link;
pub mod path;
pub mod policy;
pub mod preview_auth;
pub mod queue;
pub mod skew;
pub mod split;
pub mod standing;
pub mod table;
pub mod tls;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};

pub use backend::{Backend, Target};
pub use cache::RouteCache;
pub use hold::{Hold, HoldEnd, HoldRules, Refusal, WaitingPage};
pub use host::{HostName, HostPattern};
pub use table::{HostMatch, Miss, RouteTable, TableEdit, Via};

use crate::telemetry::CacheUse;

/// The published routes and the cache in front of them.
#[derive(Debug)]
pub struct Routing {
    generation: AtomicU64,
    table: ArcSwap<RouteTable>,
    cache: RouteCache,
    publishing: Mutex<()>,
    signal: watch::Sender<u64>,
    /// Told when a table was published.
    moved: Notify,
    is_doubted: AtomicBool,
    doubt: Notify,
    workers: usize,
}

impl Routing {
    /// An empty table of generation 0, for a data plane of `workers` threads.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self {
            generation: AtomicU64::new(0),
            table: ArcSwap::from_pointee(RouteTable::default()),
            cache: RouteCache::default(),
            publishing: Mutex::new(()),
            signal: watch::Sender::new(0),
            moved: Notify::new(),
            is_doubted: AtomicBool::new(false),
            doubt: Notify::new(),
            workers,
        }
    }

    /// How many worker threads the data plane has, and so how many shards a gate needs.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// The generation that a cached answer must carry to be valid.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Forgets what the cache holds of older tables. From time to time, and not on the request path.
    pub fn sweep_cache(&self) {
        self.cache.sweep(self.generation());
    }

    /// How often the route cache was asked.
    #[must_use]
    pub fn cache_use(&self) -> CacheUse {
        self.cache.usage()
    }

    /// The published table. Do not keep it: it stays what it was.
    #[must_use]
    pub fn table(&self) -> Arc<RouteTable> {
        self.table.load_full()
    }

    /// The routes of `host` and the generation that they were read from; `None` if no route matches.
    #[must_use]
    pub fn resolve(&self, host: &HostName) -> Option<(u64, HostMatch)> {
        let table = self.table.load();
        if let Some(found) = table.resolve_exact(host) {
            return Some((table.generation(), found));
        }
        let generation = self.generation();
        if let Some(found) = self.cache.find(host, generation) {
            return Some((generation, found));
        }
        let found = table.resolve_other(host)?;
        self.cache.insert(host, table.generation(), &found);
        Some((table.generation(), found))
    }

    /// Replaces the table by one that `edit` made of it, for all host names at one instant, and returns the new
    /// generation. Publishers take turns.
    pub fn publish(&self, edit: impl FnOnce(&mut TableEdit)) -> u64 {
        let _turn = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.table.load_full();
        let generation = old.generation() + 1;
        let mut changes = TableEdit::of(&old, generation);
        edit(&mut changes);
        // Invariant 4: the generation first.
        self.generation.store(generation, Ordering::SeqCst);
        self.table.store(Arc::new(changes.finish()));
        self.moved.notify_waiters();
        generation
    }

    /// Resolves once a table of another generation is published.
    ///
    /// # Cancel safety
    /// Dropping it changes nothing.
    pub async fn moved_from(&self, generation: u64) {
        loop {
            let mut moved = std::pin::pin!(self.moved.notified());
            // Before the look: a table that is published after it finds this waiter.
            moved.as_mut().enable();
            if self.table.load().generation() != generation {
                return;
            }
            moved.await;
        }
    }

    /// Asks every worker to look at its targets' orders (see [`backend::Order`]) now.
    pub fn signal_workers(&self) {
        self.signal.send_modify(|count| *count += 1);
    }

    /// Asks the control plane to look at what runs: an instance refused a connection. All but the first call until
    /// somebody looks cost one atomic exchange.
    pub fn doubt(&self) {
        // Relaxed: nothing is published by it.
        if !self.is_doubted.swap(true, Ordering::Relaxed) {
            self.doubt.notify_one();
        }
    }

    /// Resolves when [`Routing::doubt`] was called since the last time. For one task.
    pub async fn doubted(&self) {
        self.doubt.notified().await;
        self.is_doubted.store(false, Ordering::Relaxed);
    }

    /// Changes whenever [`Routing::signal_workers`] is called.
    #[must_use]
    pub fn signals(&self) -> watch::Receiver<u64> {
        self.signal.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::routing::table::tests::{backend, pattern};

    #[test]
    fn a_publish_outdates_every_cached_answer() {
        for route in ["a.test", "*.test", "*"] {
            let routing = Routing::new(1);
            let host: HostName = "a.test".parse().unwrap();
            let (old, new) = (backend("old"), backend("new"));
            routing.publish(|edit| edit.route(&pattern(route), "/", &old));
            let (first, found) = routing.resolve(&host).unwrap();
            assert!(Arc::ptr_eq(found.routes().paths()[0].backend(), &old));
            routing.publish(|edit| edit.route(&pattern(route), "/", &new));
            let (second, found) = routing.resolve(&host).unwrap();
            assert!(Arc::ptr_eq(found.routes().paths()[0].backend(), &new));
            assert_eq!((first, second), (1, 2));
        }
    }

    #[test]
    fn a_name_that_no_exact_route_has_is_looked_up_once_for_each_table() {
        let routing = Routing::new(1);
        let host: HostName = "a.test".parse().unwrap();
        for table in 1..=3 {
            routing.publish(|edit| edit.route(&pattern("*.test"), "/", &backend("wild")));
            for _ in 0..2 {
                routing.resolve(&host).unwrap();
            }
            assert_eq!(routing.cache_use(), CacheUse { hits: table, misses: table });
        }
    }

    #[test]
    fn a_name_that_gets_a_route_of_its_own_is_not_answered_from_the_cache() {
        let routing = Routing::new(1);
        let host: HostName = "a.test".parse().unwrap();
        let (wild, own) = (backend("wild"), backend("own"));
        routing.publish(|edit| edit.route(&pattern("*.test"), "/", &wild));
        routing.resolve(&host).unwrap();
        for (route, expected) in [(vec![("a.test", &own)], &own), (vec![], &wild)] {
            routing.publish(|edit| {
                edit.set(&pattern("a.test"), Vec::new());
                route.iter().for_each(|(name, backend)| edit.route(&pattern(name), "/", backend));
            });
            let (_, found) = routing.resolve(&host).unwrap();
            assert!(Arc::ptr_eq(found.routes().paths()[0].backend(), expected));
        }
    }

    #[test]
    fn a_read_that_began_before_a_publish_never_fills_the_cache_for_those_after_it() {
        let routing = Routing::new(1);
        let host: HostName = "a.test".parse().unwrap();
        let (old, new) = (backend("old"), backend("new"));
        routing.publish(|edit| edit.route(&pattern("*.test"), "/", &old));
        let slow_reader = routing.table();
        let read = slow_reader.resolve(&host).unwrap();
        routing.publish(|edit| edit.route(&pattern("*.test"), "/", &new));
        routing.cache.insert(&host, slow_reader.generation(), &read);
        let (_, found) = routing.resolve(&host).unwrap();
        assert!(Arc::ptr_eq(found.routes().paths()[0].backend(), &new));
    }

    #[test]
    fn a_doubt_is_told_once_and_again_once_somebody_has_looked() {
        let routing = Routing::new(1);
        for _ in 0..2 {
            assert!(routing.doubted().now_or_never().is_none());
            (0..3).for_each(|_| routing.doubt());
            assert!(routing.doubted().now_or_never().is_some());
        }
    }

    #[test]
    fn who_waits_for_another_table_is_told_of_each_and_of_one_that_is_there() {
        let routing = Routing::new(1);
        routing.publish(|edit| edit.route(&pattern("a.test"), "/", &backend("a")));
        let mut moved = Box::pin(routing.moved_from(1));
        assert!((&mut moved).now_or_never().is_none());
        routing.publish(|edit| edit.route(&pattern("b.test"), "/", &backend("b")));
        assert!(moved.now_or_never().is_some());
        assert!(routing.moved_from(1).now_or_never().is_some());
    }
}
