//! Which of a backend's targets serves a request: of two taken at random, the one with less in flight.
//!
//! Healthy targets first, without those that are passed over because they failed several times in a row; one that
//! comes back gets its share by and by. If that leaves none, any will do: the last one stays.

use std::rc::Rc;
use std::time::Instant;

use crate::routing::standing::{Ejection, Millis, Share};

use super::target::{LocalBackend, LocalTarget};

/// What a target's failures mean at one moment.
#[derive(Clone, Copy)]
pub(crate) struct Judge<'a> {
    pub(crate) at: Instant,
    /// When the data plane started.
    pub(crate) started: Instant,
    pub(crate) ejection: &'a Ejection,
}

impl Judge<'_> {
    fn now(self) -> Millis {
        Millis::try_from(self.at.saturating_duration_since(self.started).as_millis()).unwrap_or(Millis::MAX)
    }
}

/// Chooses a target other than `not`, if there is another one.
pub(crate) fn choose<'a>(
    backend: &'a LocalBackend,
    not: Option<&Rc<LocalTarget>>,
    judge: Judge<'_>,
    random: &mut impl FnMut() -> u64,
) -> Option<&'a Rc<LocalTarget>> {
    if let [only] = &*backend.targets {
        return Some(only);
    }
    if not.is_none() && backend.targets.iter().all(|target| target.is_unsuspected()) {
        return least_of_two(backend, |_| true, random);
    }
    let is_other = |target: &Rc<LocalTarget>| not.is_none_or(|not| !Rc::ptr_eq(not, target));
    in_rotation(backend, is_other, judge, random)
        .or_else(|| least_of_two(backend, is_other, random))
        .or_else(|| backend.targets.first())
}

/// `target` of `backend` failed a request. Says whether it is passed over from now on.
pub(crate) fn failed(backend: &LocalBackend, target: &Rc<LocalTarget>, judge: Judge<'_>) -> bool {
    let may_serve =
        |other: &&Rc<LocalTarget>| !Rc::ptr_eq(other, target) && other.share(judge) != Share::None;
    let is_last = || !backend.targets.iter().any(|other| may_serve(&other));
    let Some(duration) = target.target.standing.failed(judge.now(), judge.ejection, is_last) else {
        return false;
    };
    let (failures, seconds) = (judge.ejection.failures, duration.as_secs_f64());
    tracing::warn!(instance = %target.target.id, failures, seconds, "target is passed over: it failed in a row");
    true
}

/// One in rotation, with regard to those that have just come back.
fn in_rotation<'a>(
    backend: &'a LocalBackend,
    is_other: impl Fn(&Rc<LocalTarget>) -> bool,
    judge: Judge<'_>,
    random: &mut impl FnMut() -> u64,
) -> Option<&'a Rc<LocalTarget>> {
    let least =
        least_of_two(backend, |target| is_other(target) && target.share(judge) != Share::None, random)?;
    let Share::Part(part) = least.share(judge) else { return Some(least) };
    if random() % Share::WHOLE < part {
        return Some(least);
    }
    least_of_two(backend, |target| is_other(target) && target.share(judge) == Share::All, random)
        .or(Some(least))
}

fn least_of_two<'a>(
    backend: &'a LocalBackend,
    may_serve: impl Fn(&Rc<LocalTarget>) -> bool,
    random: &mut impl FnMut() -> u64,
) -> Option<&'a Rc<LocalTarget>> {
    let count = backend.targets.iter().filter(|target| may_serve(target)).count() as u64;
    let nth = |n: u64| {
        let mut candidates = backend.targets.iter().filter(|target| may_serve(target));
        candidates.nth(usize::try_from(n).unwrap_or_default())
    };
    match count {
        0 => None,
        1 => nth(0),
        _ => {
            let first = random() % count;
            let second = (first + 1 + random() % (count - 1)) % count;
            let (first, second) = (nth(first)?, nth(second)?);
            Some(if second.load() < first.load() { second } else { first })
        }
    }
}

impl LocalTarget {
    /// Whether nothing speaks against it; nearly always nothing does.
    fn is_unsuspected(&self) -> bool {
        self.target.is_healthy() && self.target.standing.is_clean()
    }

    fn share(&self, judge: Judge<'_>) -> Share {
        if !self.target.is_healthy() {
            return Share::None;
        }
        if self.target.standing.is_clean() {
            Share::All
        } else {
            self.target.standing.share(judge.now(), judge.ejection)
        }
    }

    /// It answered a request.
    pub(crate) fn answered(&self, judge: Judge<'_>) {
        if !self.target.standing.is_clean() {
            self.target.standing.answered(judge.now(), judge.ejection);
        }
    }
}
