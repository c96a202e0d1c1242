//! What the checks on a target say of it: it is in rotation, out of it, or back for so long that its share of the requests
//! still grows.
//!
//! One word, which each request reads and the checks write. Who sees that the share is whole makes it one that is well, so that
//! all others pay one look.
//!
//! # Not here
//! How a target answers requests ([`super::standing`]), and how it is checked (`deploy::health`).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::standing::Share;

/// The health of one target.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// [`Health::WELL`], [`Health::ILL`], or by how many milliseconds it came back after `first`, and one.
    word: AtomicU64,
    /// When it came back for the first time.
    first: OnceLock<Instant>,
}

impl Health {
    const WELL: u64 = 0;
    const ILL: u64 = u64::MAX;

    /// Whether it is in rotation with the whole of its share.
    pub(super) fn is_whole(&self) -> bool {
        self.word.load(Ordering::Relaxed) == Self::WELL
    }

    pub(super) fn is_ill(&self) -> bool {
        self.word.load(Ordering::Relaxed) == Self::ILL
    }

    pub(super) fn set(&self, is_well: bool) {
        self.word.store(if is_well { Self::WELL } else { Self::ILL }, Ordering::Relaxed);
    }

    /// It was out of rotation, if it was, until `at`.
    pub(super) fn come_back(&self, at: Instant) {
        let after = at.saturating_duration_since(*self.first.get_or_init(|| at)).as_millis();
        let word = u64::try_from(after).unwrap_or(Self::ILL - 2) + 1;
        // Release: who reads this word finds `first`. One that was not out of it stays as it is.
        let _was_well = self.word.compare_exchange(Self::ILL, word, Ordering::Release, Ordering::Relaxed);
    }

    /// What it gets at `now`, if its share grows for so long.
    pub(super) fn share(&self, now: Instant, slow_start: Duration) -> Share {
        // Acquire: pairs with the release of `come_back`.
        let word = match self.word.load(Ordering::Acquire) {
            Self::WELL => return Share::All,
            Self::ILL => return Share::None,
            word => word,
        };
        let back = self.first.get().and_then(|first| first.checked_add(Duration::from_millis(word - 1)));
        let since = back.map(|back| now.saturating_duration_since(back));
        let share = since.map_or(Share::All, |since| Share::after(since, slow_start));
        if share == Share::All {
            // Unless the checks wrote something else meanwhile.
            let _changed = self.word.compare_exchange(word, Self::WELL, Ordering::Relaxed, Ordering::Relaxed);
        }
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    const SLOW: Duration = Duration::from_secs(10);

    #[test]
    fn each_time_that_it_comes_back_its_share_grows_anew() {
        let (health, start) = (Health::default(), SystemClock.now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(health.share(start, SLOW), Share::All);
        health.come_back(start);
        assert!(health.is_whole(), "it was not out of rotation");
        for back in [100, 200] {
            health.set(false);
            assert_eq!((health.share(at(back), SLOW), health.is_ill()), (Share::None, true));
            health.come_back(at(back));
            // Checks go on, and say the same.
            health.come_back(at(back + 3));
            assert_eq!(health.share(at(back), SLOW), Share::Part(0));
            assert_eq!(health.share(at(back + 5), SLOW), Share::Part(Share::WHOLE / 2));
            assert!(!health.is_whole() && !health.is_ill());
            assert_eq!(health.share(at(back + 10), SLOW), Share::All);
            assert!(health.is_whole());
        }
        health.set(false);
        health.come_back(at(300));
        assert_eq!(health.share(at(300), Duration::ZERO), Share::All, "where nothing starts slowly");
    }
}
