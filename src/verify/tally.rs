//! What happened, counted while the run goes on.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;
use tokio_util::sync::CancellationToken;

use super::exchange::{DEPLOYMENT, INSTANCE, Record, VERSION, submission_id};
use super::history::{self, Read, Right, Swap, Violation};
use super::plan::{Kind, Slot};
use super::verdict::{Class, Counts, Evidence, Latency, Verdict};
use super::watch::Serving;

/// The first failures are kept with what is known about them.
const EVIDENCE: usize = 20;
/// Failures are counted under so many reasons.
const REASONS: usize = 50;
/// A request that is sent later than this after its time is counted as late.
const LATE: Duration = Duration::from_millis(50);

/// How a request went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// No answer, or one that is not a success.
    Failed(String),
    /// The connection ended before the answer.
    Reset(String),
    /// The answer, or the request as the app received it, is not whole.
    Truncated(String),
    /// The proxy ended a stream, and said so.
    Cut(String),
}

/// The counts of one run.
#[derive(Debug)]
pub(super) struct Tally {
    epoch: Instant,
    hosts: Vec<String>,
    state: Mutex<State>,
    /// Cancelled when every host has answered once, or the run is over.
    pub(super) flowing: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    failed_by: BTreeMap<String, u64>,
    sent_by: BTreeMap<Kind, u64>,
    evidence: Vec<Evidence>,
    /// Microseconds, one for each short request that was answered well.
    latencies: Vec<u64>,
    silent_hosts: BTreeSet<usize>,
    versions: Vec<String>,
    version_numbers: HashMap<String, history::Version>,
    instances: BTreeSet<String>,
    /// Answers by the version that they told.
    answers_of: BTreeMap<String, u64>,
    named_by: Naming,
    reads: Vec<Read>,
    /// The slot of each read.
    read_by: Vec<(u64, Kind, usize)>,
    /// `None`: the swap failed, so that nothing was to change.
    swaps: Vec<Option<Swap>>,
    /// Of those, the answered ones that changed nothing: they say what is live.
    restated: u64,
    /// Each submission that was begun, and whether it was answered well.
    submissions: BTreeMap<u64, bool>,
    submissions_checked: Option<u64>,
}

/// By what an answer says which version it comes from, to compare it with the swaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Naming {
    /// By the name that the app gives itself.
    #[default]
    Version,
    /// By the id that Lockgate gave it.
    Deployment,
}

impl Tally {
    pub(super) fn new(epoch: Instant, hosts: Vec<String>) -> Self {
        let silent_hosts = (0..hosts.len()).collect();
        Self {
            epoch,
            hosts,
            state: Mutex::new(State { silent_hosts, ..State::default() }),
            flowing: CancellationToken::new(),
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().counts
    }

    pub(super) fn sending(&self, slot: &Slot, late_by: Duration) {
        let mut state = self.lock();
        state.counts.sent += 1;
        *state.sent_by.entry(slot.kind).or_insert(0) += 1;
        if late_by > LATE {
            state.counts.late += 1;
        }
    }

    /// The head of an answer is here.
    pub(super) fn saw(&self, slot: &Slot, headers: &HeaderMap, sent: Instant, seen: Instant) {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let (version, instance) = (text(VERSION), text(INSTANCE));
        let mut state = self.lock();
        if let Some(instance) = instance.filter(|instance| !state.instances.contains(*instance)) {
            state.instances.insert(instance.to_owned());
        }
        if let Some(version) = version {
            *state.answers_of.entry(version.to_owned()).or_insert(0) += 1;
        }
        let named = match state.named_by {
            Naming::Version => version,
            Naming::Deployment => text(DEPLOYMENT),
        };
        if let Some(version) = named {
            let version = state.version(version);
            state.reads.push(Read { version, sent: sent - self.epoch, seen: seen - self.epoch });
            state.read_by.push((slot.number, slot.kind, slot.host));
        }
    }

    /// A request is over; `took` is since it was due.
    pub(super) fn ended(&self, slot: &Slot, outcome: Result<(), Fault>, took: Duration, at: Instant) {
        let mut state = self.lock();
        let Err(fault) = outcome else {
            state.counts.ok += 1;
            if !slot.kind.is_long() {
                state.latencies.push(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
            }
            if state.silent_hosts.remove(&slot.host) && state.silent_hosts.is_empty() {
                self.flowing.cancel();
            }
            return;
        };
        let (class, what) = match fault {
            Fault::Failed(what) => (Class::Failed, what),
            Fault::Reset(what) => (Class::Reset, what),
            Fault::Truncated(what) => (Class::Truncated, what),
            Fault::Cut(what) => (Class::Cut, what),
        };
        if class == Class::Failed {
            state.failed_because(&what, 1);
        }
        state.keep(class, at - self.epoch, slot.kind.name(), &self.hosts[slot.host], what);
    }

    /// Requests that never came to an end, because the run was over or their task failed.
    pub(super) fn unfinished(&self, count: u64) {
        if count == 0 {
            return;
        }
        let mut state = self.lock();
        state.counts.failed += count;
        state.failed_because("not finished", count);
    }

    pub(super) fn closed_idle(&self, since: Instant, noticed: Instant) {
        let what = format!("closed by the other side within {:.1?} without a request", noticed - since);
        self.lock().keep(Class::ClosedIdle, noticed - self.epoch, "connection", "", what);
    }

    pub(super) fn submitting(&self, number: u64) {
        self.lock().submissions.insert(number, false);
    }

    pub(super) fn submitted(&self, number: u64) {
        self.lock().submissions.insert(number, true);
    }

    pub(super) fn has_submissions(&self) -> bool {
        !self.lock().submissions.is_empty()
    }

    /// Compares what was submitted with what the app received. What is missing counts only if it cannot be
    /// with another instance.
    pub(super) fn check_submissions(&self, run: &str, record: &Record, now: Instant) {
        let at = now - self.epoch;
        let mut state = self.lock();
        let complete = record.shared || state.instances.len() <= 1;
        let submissions = std::mem::take(&mut state.submissions);
        for (&number, &answered) in &submissions {
            let id = submission_id(run, number);
            match record.ids.get(&id).copied().unwrap_or(0) {
                0 if answered && complete => {
                    let what = format!("submission {id} was answered well but never received");
                    state.keep(Class::Lost, at, "submission", "", what);
                }
                0 | 1 => (),
                times => {
                    let what = format!("submission {id} was sent once and received {times} times");
                    state.keep(Class::Duplicated, at, "submission", "", what);
                }
            }
        }
        state.submissions_checked = complete.then_some(submissions.len() as u64);
    }

    /// What answers are compared by from now on.
    pub(super) fn name_by(&self, naming: Naming) {
        self.lock().named_by = naming;
    }

    pub(super) fn swap_called(
        &self,
        version: &str,
        right: fn(history::Version) -> Right,
        called: Instant,
    ) -> usize {
        let mut state = self.lock();
        let right = right(state.version(version));
        state.swaps.push(Some(Swap { right, called: called - self.epoch, answered: None }));
        state.swaps.len() - 1
    }

    /// Between `since` and `seen` it became so that this serves; `is_change`: something else served before.
    pub(super) fn serves(&self, serving: &Serving, is_change: bool, (since, seen): (Instant, Instant)) {
        let mut state = self.lock();
        let live = Right::Only(state.version(&serving.live));
        let split = serving.split.as_ref().map(|split| Right::Also(state.version(split)));
        let (called, answered) = (since - self.epoch, Some(seen - self.epoch));
        state.swaps.push(Some(Swap { right: live, called, answered }));
        state.swaps.extend(split.map(|right| Some(Swap { right, called, answered })));
        state.restated += 1 + u64::from(split.is_some()) - u64::from(is_change);
    }

    /// From `since` on nobody knows what serves, until it is told again.
    pub(super) fn unknown(&self, since: Instant) {
        let called = since - self.epoch;
        self.lock().swaps.push(Some(Swap { right: Right::Any, called, answered: None }));
    }

    pub(super) fn swap_answered(&self, number: usize, answered: Instant) {
        let answered = answered - self.epoch;
        if let Some(Some(swap)) = self.lock().swaps.get_mut(number) {
            swap.answered = Some(answered);
        }
    }

    pub(super) fn swap_failed(&self, number: usize) {
        if let Some(swap) = self.lock().swaps.get_mut(number) {
            *swap = None;
        }
    }

    /// The verdict on all of it.
    pub(super) fn verdict(&self, elapsed: Duration, cuts_expected: bool, seed: u64) -> Verdict {
        let mut state = self.lock();
        let swaps: Vec<Swap> = state.swaps.iter().copied().flatten().collect();
        let told = !state.swaps.is_empty();
        if told {
            for violation in history::check(&swaps, &state.reads) {
                self.judge(&mut state, &swaps, violation);
            }
        }
        let answered = swaps.iter().filter(|swap| swap.answered.is_some()).count() as u64;
        Verdict {
            counts: state.counts,
            failed_by: state.failed_by.clone(),
            sent_by: state.sent_by.clone(),
            versions: state.answers_of.clone(),
            swaps: answered - state.restated,
            answers_checked: told.then_some(state.reads.len() as u64),
            submissions_checked: state.submissions_checked,
            latency: Latency::of(std::mem::take(&mut state.latencies)),
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            seed,
            cuts_expected,
            evidence: state.evidence.clone(),
        }
    }

    fn judge(&self, state: &mut State, swaps: &[Swap], violation: Violation) {
        let name = |read: usize| state.versions[state.reads[read].version].as_str();
        let (class, read, what) = match violation {
            Violation::Stale { read, swap } => {
                let swap = &swaps[swap];
                let late = state.reads[read].sent.saturating_sub(swap.answered.unwrap_or_default());
                let new = match swap.right {
                    Right::Only(version) | Right::Also(version) => state.versions[version].as_str(),
                    Right::Any => "another one",
                };
                let old = name(read);
                let what = format!("served by {old}, sent {late:.1?} after the swap to {new} was answered");
                (Class::WrongVersion, read, what)
            }
            Violation::Early { read } => {
                let what = format!("served by {} before a swap to it was called", name(read));
                (Class::WrongVersion, read, what)
            }
            Violation::Mixed { read, after } => {
                let (_, kind, host) = state.read_by[after];
                let (other, new) = (format!("{} to {}", kind.name(), self.hosts[host]), name(after));
                let what = format!("served by {}, sent after {other} had been served by {new}", name(read));
                (Class::Mixed, read, what)
            }
        };
        let (number, kind, host) = state.read_by[read];
        let at = state.reads[read].sent;
        state.keep(class, at, kind.name(), &self.hosts[host], format!("request {number}: {what}"));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The number of a version, by which the history knows it.
    fn version(&mut self, name: &str) -> history::Version {
        if let Some(&number) = self.version_numbers.get(name) {
            return number;
        }
        let number = self.versions.len();
        self.versions.push(name.to_owned());
        self.version_numbers.insert(name.to_owned(), number);
        number
    }

    fn failed_because(&mut self, reason: &str, count: u64) {
        let known = self.failed_by.contains_key(reason) || self.failed_by.len() < REASONS;
        let reason = if known { reason } else { "other" };
        *self.failed_by.entry(reason.to_owned()).or_insert(0) += count;
    }

    /// Counts what went wrong, and keeps the first as evidence.
    fn keep(&mut self, class: Class, at: Duration, kind: &'static str, host: &str, what: String) {
        *self.counts.of(class) += 1;
        if self.evidence.len() < EVIDENCE {
            let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
            self.evidence.push(Evidence { at_ms, class, kind, host: host.to_owned(), what });
        }
    }
}
