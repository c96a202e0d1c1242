//! A backend that is held: its requests wait, instead of being refused, until somebody releases them.
//!
//! For what is about to serve: a deployment that is started by its first request, or a short pause. A [`Hold`] is part
//! of the [`super::Backend`] that the table leads to. Whoever ends it publishes first what the requests are to find:
//! they resolve their routes again, as after a closed gate.
//!
//! # Invariants
//! 1. Never more than `cap` requests wait, over all workers. A [`Place`] that exists is counted, and no other.
//! 2. Once [`Hold::release`] or [`Hold::refuse`] has returned, nobody waits any more and nobody begins to: those who
//!    wait are woken in all workers, and who comes later is told how it ended. The first end counts.
//! 3. A request that got a place has rung the bell, or another one has since [`Hold::take_wanted`] was last asked.
//!
//! What is not held comes by none of this: there is no hold in its backend.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::Notify;

/// Requests that wait for one backend, or for several that belong together.
#[derive(Debug)]
pub struct Hold {
    rules: HoldRules,
    /// Networks whose clients it does not concern.
    lets_by: Box<[IpNet]>,
    /// When it is to be over, where that is known.
    until: Option<Instant>,
    /// Woken when the first request waits; `None` if nobody wants to know.
    bell: Option<Arc<Notify>>,
    waiting: AtomicUsize,
    is_wanted: AtomicBool,
    end: OnceLock<HoldEnd>,
    ended: Notify,
}

/// How long and how many may wait, and what the others are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldRules {
    /// How long one request waits at most.
    pub limit: Duration,
    /// How many wait at most; 0 refuses each at once.
    pub cap: usize,
    /// What is told who waited too long.
    pub timed_out: Refusal,
    /// What is told who finds no place.
    pub full: Refusal,
    /// For people who look at a page; `None` has them wait like everybody.
    pub page: Option<WaitingPage>,
}

/// A browser that goes to a page waits `after` at most, and is then shown a page that asks again by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingPage {
    pub after: Duration,
    pub shown: Refusal,
}

/// A 503 for a request that is not held, or no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Stable, for programs.
    pub code: &'static str,
    /// For people; says nothing of the inside.
    pub detail: &'static str,
    /// Seconds after which it is worth trying again.
    pub retry_after: u16,
    /// Seconds after which a page asks again by itself; `None` if it does not.
    pub refresh: Option<u16>,
}

/// How a hold ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldEnd {
    /// The routes lead to what serves: resolve them again.
    Released,
    /// It will not serve.
    Refused(Refusal),
}

/// What becomes of a request that meets a hold.
#[derive(Debug)]
pub enum Entered<'a> {
    Waits(Place<'a>),
    Ended(HoldEnd),
    /// As many wait as may.
    Full,
}

/// One request that waits. Dropping it gives the place to another one.
#[derive(Debug)]
#[must_use = "dropping the place ends the wait"]
pub struct Place<'a> {
    hold: &'a Hold,
}

impl Hold {
    /// A hold that begins now. `bell` is rung when a request waits and [`Hold::take_wanted`] was not asked since the
    /// one before it: never more than one ring that nobody has heard.
    #[must_use]
    pub fn new(rules: HoldRules, bell: Option<Arc<Notify>>) -> Self {
        Self {
            rules,
            lets_by: Box::default(),
            until: None,
            bell,
            waiting: AtomicUsize::new(0),
            is_wanted: AtomicBool::new(false),
            end: OnceLock::new(),
            ended: Notify::new(),
        }
    }

    /// The same, but for clients of `networks`: their requests go on as if it were not there.
    #[must_use]
    pub fn letting_by(self, networks: Vec<IpNet>) -> Self {
        Self { lets_by: networks.into(), ..self }
    }

    /// The same, told to be over at that time.
    #[must_use]
    pub fn until(self, at: Instant) -> Self {
        Self { until: Some(at), ..self }
    }

    /// What is told who finds no place: to come back when it is over, where that is known.
    #[must_use]
    pub fn full(&self, now: Instant) -> Refusal {
        let full = self.rules.full;
        let Some(until) = self.until else { return full };
        let left = until.saturating_duration_since(now).as_millis().div_ceil(1000);
        Refusal { retry_after: u16::try_from(left).unwrap_or(u16::MAX).max(1), ..full }
    }

    /// Whether it does not concern a client.
    #[must_use]
    pub fn lets_by(&self, client: impl FnOnce() -> IpAddr) -> bool {
        if self.lets_by.is_empty() {
            return false;
        }
        let client = client();
        self.lets_by.iter().any(|network| network.contains(&client))
    }

    /// Its rules.
    #[must_use]
    pub fn rules(&self) -> &HoldRules {
        &self.rules
    }

    /// How many requests wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Takes a place, if there is one and the hold goes on.
    pub fn enter(&self) -> Entered<'_> {
        if let Some(end) = self.end.get() {
            return Entered::Ended(*end);
        }
        let one_more = |waiting: usize| (waiting < self.rules.cap).then_some(waiting + 1);
        // AcqRel pairs with the Release of a place that was given back.
        if self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_err() {
            return Entered::Full;
        }
        let place = Place { hold: self };
        // AcqRel pairs with `take_wanted`: whoever took it before this sees the request, or is woken for it.
        if let Some(bell) = &self.bell
            && !self.is_wanted.swap(true, Ordering::AcqRel)
        {
            bell.notify_one();
        }
        Entered::Waits(place)
    }

    /// Whether a request waited since this was last asked.
    pub fn take_wanted(&self) -> bool {
        self.is_wanted.swap(false, Ordering::AcqRel)
    }

    /// Ends it: the routes lead to what serves. They were published before.
    pub fn release(&self) {
        self.end_with(HoldEnd::Released);
    }

    /// Ends it: all that waits, and whatever still comes, is told `refusal`.
    pub fn refuse(&self, refusal: Refusal) {
        self.end_with(HoldEnd::Refused(refusal));
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<HoldEnd> {
        self.end.get().copied()
    }

    fn end_with(&self, end: HoldEnd) {
        // Who ended it first decided.
        if self.end.set(end).is_ok() {
            self.ended.notify_waiters();
        }
    }
}

impl Place<'_> {
    /// Waits until the hold ends.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing; it may be asked for again.
    pub async fn ended(&self) -> HoldEnd {
        loop {
            let mut ended = std::pin::pin!(self.hold.ended.notified());
            // Before the look: an end that comes after it finds this waiter.
            ended.as_mut().enable();
            if let Some(end) = self.hold.end() {
                return end;
            }
            ended.await;
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.hold.waiting.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::sync::atomic::AtomicU64;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const NO: Refusal = Refusal { code: "no", detail: "No.", retry_after: 1, refresh: None };

    fn rules(cap: usize) -> HoldRules {
        HoldRules { limit: Duration::from_secs(1), cap, timed_out: NO, full: NO, page: None }
    }

    fn place(hold: &Hold) -> Place<'_> {
        match hold.enter() {
            Entered::Waits(place) => place,
            other => panic!("no place: {other:?}"),
        }
    }

    fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn places_are_counted_and_given_back() {
        let hold = Hold::new(rules(2), None);
        let (one, _two) = (place(&hold), place(&hold));
        assert!(matches!(hold.enter(), Entered::Full));
        drop(one);
        let _three = place(&hold);
        assert!(matches!(hold.enter(), Entered::Full) && hold.waiting() == 2);
        assert!(matches!(Hold::new(rules(0), None).enter(), Entered::Full));
    }

    #[test]
    fn the_first_end_is_told_to_all_who_wait_and_to_all_who_come_later() {
        let hold = Hold::new(rules(2), None);
        let (one, two) = (place(&hold), place(&hold));
        let (mut one, mut two) = (pin!(one.ended()), pin!(two.ended()));
        assert!(poll(one.as_mut()).is_pending());
        hold.refuse(NO);
        hold.release();
        let refused = HoldEnd::Refused(NO);
        assert_eq!((poll(one), poll(two.as_mut())), (Poll::Ready(refused), Poll::Ready(refused)));
        assert!(matches!(hold.enter(), Entered::Ended(end) if end == refused));
    }

    #[test]
    fn the_bell_rings_once_until_somebody_has_looked() {
        let bell = Arc::new(Notify::new());
        let hold = Hold::new(rules(9), Some(Arc::clone(&bell)));
        assert!(!hold.take_wanted());
        let rung = || {
            let notified = pin!(bell.notified());
            poll(notified).is_ready()
        };
        drop((place(&hold), place(&hold)));
        assert!(rung() && !rung() && hold.take_wanted() && !hold.take_wanted());
        drop(place(&hold));
        assert!(rung() && hold.take_wanted());
        let full = Hold::new(rules(0), Some(Arc::clone(&bell)));
        assert!(matches!(full.enter(), Entered::Full) && !full.take_wanted() && !rung());
    }

    #[test]
    fn no_end_is_missed_and_no_place_lost_whatever_the_threads_do() {
        const CAP: usize = 3;
        for _ in 0..200 {
            let hold = Hold::new(rules(CAP), None);
            let (refused, most) = (AtomicU64::new(0), AtomicUsize::new(0));
            std::thread::scope(|threads| {
                for _ in 0..4 {
                    threads.spawn(|| {
                        loop {
                            match hold.enter() {
                                Entered::Ended(end) => return assert_eq!(end, HoldEnd::Released),
                                Entered::Full => drop(refused.fetch_add(1, Ordering::Relaxed)),
                                Entered::Waits(place) => {
                                    most.fetch_max(hold.waiting(), Ordering::Relaxed);
                                    let runtime = tokio::runtime::Builder::new_current_thread().build();
                                    let end = runtime.unwrap().block_on(place.ended());
                                    assert_eq!(end, HoldEnd::Released);
                                }
                            }
                        }
                    });
                }
                while hold.waiting() < CAP {
                    std::thread::yield_now();
                }
                hold.release();
            });
            assert_eq!(hold.waiting(), 0);
            assert!(most.load(Ordering::Relaxed) <= CAP);
        }
    }
}
