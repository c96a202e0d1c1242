//! The route cache: how host names were resolved that the table does not have as a whole, each tagged with its table's
//! generation.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dashmap::DashMap;

use super::host::HostName;
use super::table::HostMatch;
use crate::telemetry::CacheUse;

/// Strangers choose host names under wildcards; more than these are not remembered.
const ENTRIES_MAX: usize = 65_536;

/// Host name → (generation, match). An entry of another generation than the asker's is a miss, so one new
/// generation invalidates all of them.
#[derive(Debug, Default)]
pub struct RouteCache {
    entries: DashMap<HostName, (u64, HostMatch), foldhash::fast::RandomState>,
    /// About how many entries there are: `DashMap::len` would take every shard's lock.
    count: AtomicUsize,
    /// The generation of the last sweep.
    swept: AtomicU64,
    /// Written by all workers: it is asked only for what their memos do not know.
    hits: AtomicU64,
    misses: AtomicU64,
}

impl RouteCache {
    pub(super) fn find(&self, host: &HostName, generation: u64) -> Option<HostMatch> {
        let found = self.known(host, generation);
        let count = if found.is_some() { &self.hits } else { &self.misses };
        count.fetch_add(1, Ordering::Relaxed);
        found
    }

    pub(super) fn usage(&self) -> CacheUse {
        CacheUse { hits: self.hits.load(Ordering::Relaxed), misses: self.misses.load(Ordering::Relaxed) }
    }

    fn known(&self, host: &HostName, generation: u64) -> Option<HostMatch> {
        let entry = self.entries.get(host)?;
        let (tag, found) = entry.value();
        let valid = *tag == generation || crate::fault::sabotaged("cache_without_generation");
        valid.then(|| found.clone())
    }

    pub(super) fn insert(&self, host: &HostName, generation: u64, found: &HostMatch) {
        if let Some(mut entry) = self.entries.get_mut(host) {
            *entry = (generation, found.clone());
            return;
        }
        if self.count.load(Ordering::Relaxed) >= ENTRIES_MAX {
            return;
        }
        if self.entries.insert(host.clone(), (generation, found.clone())).is_none() {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Drops entries of older generations than `generation`: they can no longer be hit, and only hold old backends in
    /// memory. Not for the request path: it takes milliseconds where the cache is full.
    pub(super) fn sweep(&self, generation: u64) {
        if self.swept.swap(generation, Ordering::Relaxed) == generation
            || crate::fault::sabotaged("cache_without_generation")
        {
            return;
        }
        let mut dropped = 0;
        self.entries.retain(|_, (tag, _)| {
            dropped += usize::from(*tag < generation);
            *tag >= generation
        });
        self.count.fetch_sub(dropped, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::routing::path::PathPrefix;
    use crate::routing::table::PathRoute;
    use crate::routing::{Backend, Routing};
    use crate::telemetry::BackendStats;

    #[test]
    fn a_sweep_drops_what_is_older_and_makes_room() {
        let (cache, routing) = (RouteCache::default(), Routing::new(1));
        let stats = Arc::new(BackendStats::for_service("some", 1));
        let backend = Arc::new(Backend::new(Box::default(), stats));
        let route = PathRoute::new(PathPrefix::root(), backend);
        routing.publish(|edit| edit.set(&"*".parse().unwrap(), vec![route]));
        let (_, found) = routing.resolve(&"a.test".parse().unwrap()).unwrap();
        for n in 0..ENTRIES_MAX {
            cache.insert(&format!("{n}.test").parse().unwrap(), 1, &found);
        }
        let (known, new): (HostName, HostName) = ("0.test".parse().unwrap(), "new.test".parse().unwrap());
        cache.insert(&new, 2, &found);
        assert!(cache.find(&new, 2).is_none(), "there is no bound");
        cache.insert(&known, 2, &found);
        assert!(cache.find(&known, 2).is_some() && cache.find(&known, 1).is_none());
        cache.sweep(2);
        assert_eq!(cache.entries.len(), 1);
        cache.insert(&new, 2, &found);
        assert!(cache.find(&new, 2).is_some());
    }
}
