//! Whether what clients saw is one history: each swap one instant, the same for every connection and host.
//!
//! The swaps of an app are writes to a register, the answers are reads of it, and each has an interval on one
//! monotonic clock. Three rules, where swap `k` was called at `i` and answered at `r`, and a request was sent
//! at `s`, its answer's head was here at `e`, and told version `v`:
//!
//! - R1: `v` was published by some swap with `i ≤ e`.
//! - R2: every swap with `r < s` was published before, or is, the one that published `v`.
//! - R3: of two requests with `e₁ < s₂`, the second saw the same swap as the first, or a later one.
//!
//! A cutover in steps is a swap that leaves some clients what they had: from its first step on both versions are right,
//! for each request anew, until the swap of its last step, or the one back. Of a time about which nothing is known any
//! version is right, until the next swap that is.
//!
//! Together they are linearizability of that register. Versions recur (A, B, then A again), so an answer tells
//! not which swap it saw but which ones it may have seen: those of its version in the window that R1 and R2
//! leave. R3 asks whether one of them can be chosen for each answer so that the order holds. The rule only ever
//! bounds a choice from below, by earlier answers; so giving each answer, in the order of sending, the earliest
//! swap that is left to it succeeds whenever any choice does. One sort and a running maximum: `O(n log n)`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// A version's place in the caller's list of names.
pub(super) type Version = usize;

/// One swap, in the order in which the swaps were called. Times are since the run began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Swap {
    pub(super) right: Right,
    pub(super) called: Duration,
    /// `None`: no answer yet; it may have happened, or may happen at any time.
    pub(super) answered: Option<Duration>,
}

/// Which versions are right from a swap on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    Only(Version),
    /// Beside those that were right before.
    Also(Version),
    /// Nobody knows what was swapped to what.
    Any,
}

/// One answer that told its version.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    pub(super) version: Version,
    /// Before the request's first byte was sent.
    pub(super) sent: Duration,
    /// After the head of its answer arrived.
    pub(super) seen: Duration,
}

/// A rule that an answer breaks. `read` and `after` are places in the list of reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Violation {
    /// R2: `swap` to another version had been answered before the request was sent.
    Stale { read: usize, swap: usize },
    /// R1: no swap to this version had been called when the answer came.
    Early { read: usize },
    /// R3: `after` had seen a later swap and ended before this request was sent.
    Mixed { read: usize, after: usize },
}

/// The violations in `reads`. Swap numbers count the given swaps from zero.
///
/// What was live before the first swap is what the answers before it told; if there was none, any version.
pub(super) fn check(swaps: &[Swap], reads: &[Read]) -> Vec<Violation> {
    let serials = Serials::new(swaps, reads);
    let mut by_sending: Vec<usize> = (0..reads.len()).collect();
    by_sending.sort_unstable_by_key(|&read| reads[read].sent);

    let mut violations = Vec::new();
    let mut ended = BinaryHeap::<Reverse<(Duration, usize, usize)>>::new();
    // The latest swap seen by an answer that ended before the request at hand was sent, and that answer.
    let (mut seen_serial, mut seen_by) = (0, None);
    for read in by_sending {
        let Read { version, sent, seen } = reads[read];
        while let Some(&Reverse((at, serial, by))) = ended.peek()
            && at < sent
        {
            ended.pop();
            if serial > seen_serial {
                (seen_serial, seen_by) = (serial, Some(by));
            }
        }
        let first = serials.last_answered_before(sent);
        let last = serials.last_called_by(seen);
        let mut candidates = (first..=last).filter(|&serial| serials.is(serial, version)).peekable();
        if candidates.peek().is_none() {
            violations.push(if first > 0 && (0..first).any(|serial| serials.is(serial, version)) {
                Violation::Stale { read, swap: first - 1 }
            } else {
                Violation::Early { read }
            });
            continue;
        }
        match (candidates.find(|&serial| serial >= seen_serial), seen_by) {
            (Some(serial), _) => ended.push(Reverse((seen, serial, read))),
            (None, Some(after)) => violations.push(Violation::Mixed { read, after }),
            (None, None) => unreachable!("a serial above zero was seen by some answer"),
        }
    }
    violations
}

/// The swaps numbered from one; zero is what was live before them.
struct Serials {
    /// Those that are right. `None`: nothing is known of it, so it may be any version.
    versions: Vec<Option<Vec<Version>>>,
    called: Vec<Duration>,
    /// Answer times in rising order, each with the highest serial answered by then.
    answered: Vec<(Duration, usize)>,
}

impl Serials {
    fn new(swaps: &[Swap], reads: &[Read]) -> Self {
        let first_call = swaps.first().map_or(Duration::MAX, |swap| swap.called);
        let before = reads.iter().filter(|read| read.seen < first_call).min_by_key(|read| read.seen);
        let mut versions = vec![before.map(|read| vec![read.version])];
        for swap in swaps {
            let before = versions.last().cloned().flatten();
            versions.push(match swap.right {
                Right::Only(version) => Some(vec![version]),
                Right::Also(version) => before.map(|before| [before, vec![version]].concat()),
                Right::Any => None,
            });
        }

        let mut answered: Vec<(Duration, usize)> = (1..)
            .zip(swaps)
            .filter_map(|(serial, swap)| swap.answered.map(|answered| (answered, serial)))
            .collect();
        answered.sort_unstable();
        let mut highest = 0;
        for (_, serial) in &mut answered {
            highest = highest.max(*serial);
            *serial = highest;
        }
        Self { versions, called: swaps.iter().map(|swap| swap.called).collect(), answered }
    }

    fn is(&self, serial: usize, version: Version) -> bool {
        self.versions[serial].as_ref().is_none_or(|known| known.contains(&version))
    }

    fn last_answered_before(&self, sent: Duration) -> usize {
        match self.answered.partition_point(|&(answered, _)| answered < sent) {
            0 => 0,
            count => self.answered[count - 1].1,
        }
    }

    fn last_called_by(&self, seen: Duration) -> usize {
        self.called.partition_point(|&called| called <= seen)
    }
}

#[cfg(test)]
mod tests;
