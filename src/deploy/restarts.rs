//! When an instance that ended is started again: at once, and after each further end later.
//!
//! Counted for each instance of a version, so that a replica that fails does not keep the others waiting. A deploy
//! begins anew, and so does an instance that ran well for longer than the longest wait.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::ids::{DeploymentId, InstanceId};

/// Before the second restart; each later one waits twice as long.
const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// The restarts of all instances that had one of late.
#[derive(Debug, Default)]
pub(super) struct Restarts(Mutex<HashMap<InstanceId, Tries>>);

#[derive(Debug)]
struct Tries {
    deployment: DeploymentId,
    count: u32,
    next: Instant,
    /// Since when it has been seen to run, and nothing else.
    well_since: Option<Instant>,
}

impl Restarts {
    /// If the instance may be started again now, counts the try and returns its number.
    pub(super) fn due(&self, deployment: DeploymentId, id: InstanceId, now: Instant) -> Option<u32> {
        let mut tries = self.lock();
        let tries = tries.entry(id).or_insert(Tries { deployment, count: 0, next: now, well_since: None });
        tries.well_since = None;
        if tries.next > now {
            return None;
        }
        tries.next = now + FIRST.saturating_mul(1 << tries.count.min(10)).min(LONGEST);
        tries.count += 1;
        Some(tries.count)
    }

    /// Whether the instance may not be started again yet.
    pub(super) fn waits(&self, id: InstanceId, now: Instant) -> bool {
        self.lock().get(&id).is_some_and(|tries| tries.next > now)
    }

    /// When the first of them may be started again, if all have to wait.
    pub(super) fn back_at(&self, ids: &[InstanceId], now: Instant) -> Option<Instant> {
        let all = self.lock();
        let next = ids.iter().map(|id| all.get(id).map(|tries| tries.next).filter(|next| *next > now));
        next.collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    /// It was seen to run well.
    pub(super) fn is_well(&self, id: InstanceId, now: Instant) {
        let mut all = self.lock();
        let Some(tries) = all.get_mut(&id) else { return };
        let since = *tries.well_since.get_or_insert(now);
        if now.duration_since(since) >= LONGEST {
            all.remove(&id);
        }
    }

    /// It was seen to run, and not well.
    pub(super) fn is_ill(&self, id: InstanceId) {
        if let Some(tries) = self.lock().get_mut(&id) {
            tries.well_since = None;
        }
    }

    /// Somebody deployed the version: its instances begin anew.
    pub(super) fn forget(&self, deployment: DeploymentId) {
        self.lock().retain(|_, tries| tries.deployment != deployment);
    }

    /// Forgets all others.
    pub(super) fn keep(&self, known: &HashSet<InstanceId>) {
        self.lock().retain(|id, _| known.contains(id));
    }

    /// Until the next one that waits is due.
    pub(super) fn next_in(&self, now: Instant) -> Option<Duration> {
        let tries = self.lock();
        let waiting = tries.values().filter(|tries| tries.well_since.is_none() && tries.next > now);
        waiting.map(|tries| tries.next.duration_since(now)).min()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Tries>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    fn parts() -> (Restarts, DeploymentId, InstanceId, Instant) {
        (Restarts::default(), DeploymentId::generate(), InstanceId::generate(), SystemClock.now())
    }

    #[test]
    fn restarts_come_at_once_and_then_ever_later() {
        let (restarts, version, id, mut now) = parts();
        let mut waits = Vec::new();
        for _ in 0..10 {
            assert!(restarts.due(version, id, now).is_some());
            assert!(restarts.due(version, id, now).is_none(), "a second try at the same moment");
            let wait = restarts.next_in(now).unwrap();
            waits.push(wait.as_secs());
            now += wait;
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 900, 900, 900]);
    }

    #[test]
    fn only_a_run_that_was_well_throughout_begins_anew() {
        let (restarts, version, id, now) = parts();
        restarts.due(version, id, now);
        let end = now + LONGEST * 2;
        restarts.is_well(id, now);
        restarts.is_ill(id);
        restarts.is_well(id, end);
        restarts.is_well(id, end + LONGEST - FIRST);
        assert_eq!(restarts.due(version, id, end + LONGEST), Some(2), "it was ill in between");
        restarts.is_well(id, end + LONGEST);
        restarts.is_well(id, end + LONGEST * 2);
        assert_eq!(restarts.due(version, id, end + LONGEST * 2), Some(1));
    }

    #[test]
    fn a_deploy_begins_anew_for_its_own_version_alone() {
        let (restarts, version, id, now) = parts();
        let (other, its) = (DeploymentId::generate(), InstanceId::generate());
        restarts.due(version, id, now);
        restarts.due(other, its, now);
        restarts.forget(version);
        assert_eq!(restarts.due(version, id, now), Some(1));
        assert_eq!(restarts.due(other, its, now), None);
    }
}
