//! Which of a backend's targets serves a request: as its app says, of two taken at random the one with less in flight.
//!
//! Healthy targets first, without those that are passed over because they failed several times in a row; one that
//! comes back gets its share by and by. If that leaves none, any will do: the last one stays. A request that a target
//! failed goes to another one, whatever would have it go to the same.

mod spread;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::routing::balance::Balance;
use crate::routing::queue::Places;
use crate::routing::standing::{Ejection, Millis, Share};
use crate::routing::{Backend, Target};

use super::target::{LocalBackend, LocalTarget};

/// What a target's failures mean at one moment.
#[derive(Clone, Copy)]
pub(crate) struct Judge<'a> {
    pub(crate) at: Instant,
    /// When the data plane started.
    pub(crate) started: Instant,
    pub(crate) ejection: &'a Ejection,
}

/// What a request says of where it is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Any,
    /// To the one that this leads to, each time.
    Key(u64),
    /// To the one that stands there.
    Target(usize),
}

/// What one worker keeps of a backend to choose between its targets.
pub(super) enum Way {
    TwoChoices,
    /// What each target has saved up.
    RoundRobin(Box<[Cell<i64>]>),
    /// What each target's rank is made of.
    Hash(Box<[u64]>),
    Sticky {
        seeds: Box<[u64]>,
        /// What each target is called in cookies.
        names: Box<[Box<str>]>,
    },
}

impl Judge<'_> {
    fn now(self) -> Millis {
        Millis::try_from(self.at.saturating_duration_since(self.started).as_millis()).unwrap_or(Millis::MAX)
    }
}

impl Way {
    pub(super) fn of(backend: &Backend) -> Self {
        let seeds = || backend.targets.iter().map(|target| seed(&mark(backend, target))).collect();
        match &backend.balance {
            Balance::TwoChoices => Self::TwoChoices,
            Balance::RoundRobin => {
                Self::RoundRobin(backend.targets.iter().map(|_| Cell::default()).collect())
            }
            Balance::Hash(_) => Self::Hash(seeds()),
            Balance::Sticky(key) => {
                let name = |target| key.name_of(&mark(backend, target));
                let names = backend.targets.iter().map(|target| name(target)).collect();
                Self::Sticky { seeds: seeds(), names }
            }
        }
    }

    fn seeds(&self) -> &[u64] {
        match self {
            Self::TwoChoices | Self::RoundRobin(_) => &[],
            Self::Hash(seeds) | Self::Sticky { seeds, .. } => seeds,
        }
    }

    fn names(&self) -> &[Box<str>] {
        match self {
            Self::TwoChoices | Self::RoundRobin(_) | Self::Hash(_) => &[],
            Self::Sticky { names, .. } => names,
        }
    }
}

impl LocalBackend {
    /// Where the target stands that cookies call by this name.
    pub(crate) fn named(&self, name: &[u8]) -> Option<usize> {
        self.way.names().iter().position(|known| known.as_bytes() == name)
    }

    /// What cookies call the target, if they name any.
    pub(crate) fn name_of(&self, target: &Rc<LocalTarget>) -> Option<&str> {
        let at = self.targets.iter().position(|other| Rc::ptr_eq(other, target))?;
        self.way.names().get(at).map(|name| &**name)
    }
}

/// A number that is the same for the same bytes, on every worker and after every start.
pub(crate) fn seed(of: &[u8]) -> u64 {
    let hash = blake3::hash(of);
    hash.as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

/// Chooses a target other than `not`, if there is another one.
pub(crate) fn choose<'a>(
    backend: &'a LocalBackend,
    wanted: Wanted,
    not: Option<&Rc<LocalTarget>>,
    judge: Judge<'_>,
    random: &mut impl FnMut() -> u64,
) -> Option<&'a Rc<LocalTarget>> {
    let targets = &*backend.targets;
    if let [only] = targets {
        return Some(only);
    }
    let is_all_well = not.is_none() && targets.iter().all(|target| target.is_unsuspected());
    if is_all_well && !backend.is_weighted && matches!(backend.way, Way::TwoChoices) {
        return least_of_two(targets, random);
    }
    let is_other = |target: &Rc<LocalTarget>| not.is_none_or(|not| !Rc::ptr_eq(not, target));
    let share = |at: usize| if is_other(&targets[at]) { targets[at].share(judge) } else { Share::None };
    if let Wanted::Target(at) = wanted
        && at < targets.len()
        && share(at) != Share::None
    {
        return targets.get(at);
    }
    // Where none has the whole of its share, all are alike.
    let is_any_whole = is_all_well || (0..targets.len()).any(|at| share(at) == Share::All);
    let in_rotation = |at: usize| {
        let share = match share(at) {
            Share::Part(part) if is_any_whole => part,
            Share::Part(_) | Share::All => Share::WHOLE,
            Share::None => 0,
        };
        share * u64::from(targets[at].target.weight)
    };
    let whoever = |at: usize| if is_other(&targets[at]) { u64::from(targets[at].target.weight) } else { 0 };
    let at =
        one_of(backend, wanted, in_rotation, random).or_else(|| one_of(backend, wanted, whoever, random));
    targets.get(at.unwrap_or_default())
}

/// Where the targets stand that may serve a request which may have to wait: the one that it wants, or all in rotation; if
/// that leaves none, whoever there is.
pub(crate) fn eligible(
    backend: &LocalBackend,
    wanted: Wanted,
    not: Option<&Rc<LocalTarget>>,
    judge: Judge<'_>,
) -> Vec<usize> {
    let targets = &*backend.targets;
    let is_other = |at: &usize| targets.len() == 1 || not.is_none_or(|not| !Rc::ptr_eq(not, &targets[*at]));
    let serves = |at: &usize| targets[*at].share(judge) != Share::None;
    if let Wanted::Target(at) = wanted
        && at < targets.len()
        && is_other(&at)
        && serves(&at)
    {
        return vec![at];
    }
    let others: Vec<usize> = (0..targets.len()).filter(is_other).collect();
    let in_rotation: Vec<usize> = others.iter().copied().filter(serves).collect();
    if in_rotation.is_empty() { others } else { in_rotation }
}

/// Where the one of `eligible` stands that [`choose`] would choose if there were only those with a place free.
pub(crate) fn choose_free(
    backend: &LocalBackend,
    wanted: Wanted,
    eligible: &[usize],
    judge: Judge<'_>,
    random: &mut impl FnMut() -> u64,
) -> Option<usize> {
    let targets = &*backend.targets;
    let is_free = |at: usize| eligible.contains(&at) && targets[at].places().is_some_and(Places::has_free);
    let share = |at: usize| targets[at].share(judge);
    let is_any_whole = eligible.iter().any(|at| is_free(*at) && share(*at) == Share::All);
    let weigh = |at: usize| {
        if !is_free(at) {
            return 0;
        }
        let share = match share(at) {
            Share::Part(part) if is_any_whole => part,
            Share::Part(_) | Share::All | Share::None => Share::WHOLE,
        };
        share * u64::from(targets[at].target.weight)
    };
    one_of(backend, wanted, weigh, random)
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

/// Where the one stands that the backend's way leads to.
fn one_of(
    backend: &LocalBackend,
    wanted: Wanted,
    weigh: impl Fn(usize) -> u64,
    random: &mut impl FnMut() -> u64,
) -> Option<usize> {
    let targets = &*backend.targets;
    match (&backend.way, wanted) {
        (way @ (Way::Hash(_) | Way::Sticky { .. }), Wanted::Key(key)) => {
            spread::highest(way.seeds(), key, weigh)
        }
        (Way::RoundRobin(turns), _) => {
            if turns.iter().all(|turn| turn.get() == 0) {
                // Not all workers begin with the same one.
                turns
                    .iter()
                    .for_each(|turn| turn.set(i64::try_from(random() % Share::WHOLE).unwrap_or_default()));
            }
            spread::in_turn(turns, weigh)
        }
        (Way::TwoChoices | Way::Hash(_) | Way::Sticky { .. }, _) => {
            spread::two_choices(targets.len(), weigh, |at| targets[at].load(), random)
        }
    }
}

/// [`spread::two_choices`] where all weigh the same.
fn least_of_two<'a>(
    targets: &'a [Rc<LocalTarget>],
    random: &mut impl FnMut() -> u64,
) -> Option<&'a Rc<LocalTarget>> {
    let count = targets.len() as u64;
    let at = |at: u64| targets.get(usize::try_from(at).unwrap_or_default());
    let first = random().checked_rem(count)?;
    let second = (first + 1 + random().checked_rem(count - 1)?) % count;
    let (first, second) = (at(first)?, at(second)?);
    Some(if second.load() < first.load() { second } else { first })
}

/// What tells a target from the others for as long as it is the same application: an instance's id; the address of what
/// others run, which stays theirs over restarts of Lockgate.
fn mark(backend: &Backend, target: &Target) -> Vec<u8> {
    if backend.stats.labels.is_some() {
        target.id.to_string().into_bytes()
    } else {
        target.address.to_string().into_bytes()
    }
}

impl LocalTarget {
    /// Whether nothing speaks against it; nearly always nothing does.
    fn is_unsuspected(&self) -> bool {
        self.has_arrived.get() && self.target.has_recovered() && self.target.standing.is_clean()
    }

    fn share(&self, judge: Judge<'_>) -> Share {
        let slow_start = self.slow_start(judge);
        let back = self.target.share_by_checks(judge.at, slow_start);
        if back == Share::None {
            return Share::None;
        }
        let grown = self.share_of_newcomer(judge.at).and(back);
        if self.target.standing.is_clean() {
            grown
        } else {
            self.target.standing.share(judge.now(), slow_start).and(grown)
        }
    }

    /// What it gets for how long it has been there.
    fn share_of_newcomer(&self, now: Instant) -> Share {
        let (Some(joined), Some(slow_start)) = (self.target.joined, self.target.slow_start) else {
            return Share::All;
        };
        if self.has_arrived.get() {
            return Share::All;
        }
        let share = Share::after(now.saturating_duration_since(joined), slow_start);
        self.has_arrived.set(share == Share::All);
        share
    }

    fn slow_start(&self, judge: Judge<'_>) -> Duration {
        self.target.slow_start.unwrap_or(judge.ejection.slow_start)
    }

    /// It answered a request.
    pub(crate) fn answered(&self, judge: Judge<'_>) {
        if !self.target.standing.is_clean() {
            self.target.standing.answered(judge.now(), self.slow_start(judge));
        }
    }
}
