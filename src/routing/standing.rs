//! How a target has answered of late, and whether it is passed over for that: passive ejection.
//!
//! One word for each target, shared by all workers. It is zero while nothing is known against the target, and then
//! all that a request does is read it; only failures, and the answers of a target that had failed, write it.
//!
//! # Not here
//! What counts as a failure and which target is taken instead (`upstream::balance`), active health (`deploy::health`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Milliseconds since the data plane started.
pub type Millis = u64;

/// When a target is passed over, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Failures in a row; 0 never passes a target over.
    pub failures: u16,
    /// For how long at first; each time doubles it.
    pub first: Duration,
    pub longest: Duration,
    /// For how long its share of the requests grows afterwards, from nothing to the whole. A target that has come
    /// through that is as good as new.
    pub slow_start: Duration,
}

/// The failures of one target.
#[derive(Debug, Default)]
pub struct Standing(AtomicU64);

/// What of the requests that would be its own a target gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    All,
    /// Of [`Share::WHOLE`].
    Part(u64),
    None,
}

/// The word: failures in a row, how often it was passed over, and until when.
#[derive(Clone, Copy)]
struct Record {
    failures: u16,
    times: u8,
    until: Millis,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            failures: 5,
            first: Duration::from_secs(10),
            longest: Duration::from_secs(300),
            slow_start: Duration::from_secs(10),
        }
    }
}

impl Share {
    pub const WHOLE: u64 = 1 << 16;

    /// What a target gets so long after it came, if its share grows for `slow_start`.
    #[must_use]
    pub fn after(since: Duration, slow_start: Duration) -> Self {
        match (millis(since), millis(slow_start)) {
            (since, slow) if since < slow => Self::Part(
                u64::try_from(u128::from(since) * u128::from(Self::WHOLE) / u128::from(slow))
                    .unwrap_or(Self::WHOLE),
            ),
            _ => Self::All,
        }
    }

    /// The lesser of the two.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, _) | (_, Self::None) => Self::None,
            (Self::All, share) | (share, Self::All) => share,
            (Self::Part(one), Self::Part(other)) => Self::Part(one.min(other)),
        }
    }
}

impl Standing {
    /// Whether nothing is known against the target.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    /// What it gets at `now`, if its share grows for so long once it is back.
    #[must_use]
    pub fn share(&self, now: Millis, slow_start: Duration) -> Share {
        let record = Record::of(self.0.load(Ordering::Relaxed));
        if record.times == 0 {
            return Share::All;
        }
        let Some(since) = now.checked_sub(record.until) else { return Share::None };
        Share::after(Duration::from_millis(since), slow_start)
    }

    /// It failed at `now`. Says for how long it is passed over from now on, if it is; the last one never is.
    pub fn failed(&self, now: Millis, ejection: &Ejection, is_last: impl Fn() -> bool) -> Option<Duration> {
        let mut ejected = None;
        let update = |word| {
            let mut record = Record::of(word);
            ejected = None;
            if now < record.until {
                return None;
            }
            record.failures = record.failures.saturating_add(1);
            if ejection.failures > 0 && record.failures >= ejection.failures && !is_last() {
                let duration = ejection.first.saturating_mul(1 << record.times.min(31)).min(ejection.longest);
                record = Record {
                    failures: 0,
                    times: record.times.saturating_add(1),
                    until: now.saturating_add(millis(duration)),
                };
                ejected = Some(duration);
            }
            Some(record.word())
        };
        // Only this word counts, and nothing is published by it.
        let _unchanged_while_out = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
        ejected
    }

    /// It answered a request that began at `now`.
    pub fn answered(&self, now: Millis, slow_start: Duration) {
        let update = |word| {
            let record = Record::of(word);
            let is_new = record.times == 0 || now >= record.until.saturating_add(millis(slow_start));
            let next = if is_new { 0 } else { Record { failures: 0, ..record }.word() };
            (now >= record.until && next != word).then_some(next)
        };
        let _unchanged_while_out = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }
}

impl Record {
    const UNTIL_BITS: u32 = 40;

    fn of(word: u64) -> Self {
        let [times, ..] = (word >> 16).to_le_bytes();
        let [low, high, ..] = word.to_le_bytes();
        Self { failures: u16::from_le_bytes([low, high]), times, until: word >> (64 - Self::UNTIL_BITS) }
    }

    fn word(self) -> u64 {
        let until = self.until.min((1 << Self::UNTIL_BITS) - 1);
        until << (64 - Self::UNTIL_BITS) | u64::from(self.times) << 16 | u64::from(self.failures)
    }
}

fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Millis = 1000;

    fn fail(standing: &Standing, times: u32, now: Millis) -> Option<Duration> {
        (0..times).filter_map(|_| standing.failed(now, &Ejection::default(), || false)).last()
    }

    #[test]
    fn only_failures_in_a_row_count() {
        let (standing, ejection) = (Standing::default(), Ejection::default());
        for now in 0..20 {
            assert_eq!(fail(&standing, 4, now), None);
            standing.answered(now, ejection.slow_start);
            assert!(standing.is_clean());
        }
        assert_eq!(fail(&standing, 5, 20), Some(Duration::from_secs(10)));
        assert_eq!(standing.share(20, ejection.slow_start), Share::None);
    }

    #[test]
    fn each_time_is_twice_as_long_up_to_the_longest_until_it_serves_through_its_slow_start() {
        let (standing, ejection) = (Standing::default(), Ejection::default());
        let mut now = 0;
        for seconds in [10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(fail(&standing, 5, now), Some(Duration::from_secs(seconds)));
            assert_eq!(fail(&standing, 5, now + seconds * SECOND - 1), None, "it is out");
            assert_eq!(standing.share(now + seconds * SECOND - 1, ejection.slow_start), Share::None);
            now += seconds * SECOND;
            standing.answered(now, ejection.slow_start);
            assert!(!standing.is_clean());
        }
        standing.answered(now + 10 * SECOND, ejection.slow_start);
        assert!(standing.is_clean());
        assert_eq!(fail(&standing, 5, now), Some(Duration::from_secs(10)));
    }

    #[test]
    fn its_share_grows_evenly_after_it_came_back() {
        let (standing, ejection) = (Standing::default(), Ejection::default());
        fail(&standing, 5, 7);
        let back = 7 + 10 * SECOND;
        assert_eq!(standing.share(back, ejection.slow_start), Share::Part(0));
        assert_eq!(standing.share(back + 2500, ejection.slow_start), Share::Part(Share::WHOLE / 4));
        assert_eq!(standing.share(back + 5 * SECOND, ejection.slow_start), Share::Part(Share::WHOLE / 2));
        assert_eq!(standing.share(back + 10 * SECOND, ejection.slow_start), Share::All);
    }

    #[test]
    fn the_last_one_stays_and_goes_once_there_is_another() {
        let (standing, ejection) = (Standing::default(), Ejection::default());
        for _ in 0..100 {
            assert_eq!(standing.failed(0, &ejection, || true), None);
        }
        assert_eq!(standing.share(0, ejection.slow_start), Share::All);
        assert!(standing.failed(0, &ejection, || false).is_some());
    }

    #[test]
    fn without_a_number_of_failures_nothing_is_passed_over() {
        let (standing, never) = (Standing::default(), Ejection { failures: 0, ..Ejection::default() });
        for _ in 0..100 {
            assert_eq!(standing.failed(0, &never, || false), None);
        }
    }
}
