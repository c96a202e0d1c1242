//! How many requests a target serves at once where its app limits that, and the queue of those that wait for a place.
//!
//! # Invariants
//! 1. Never more than its limit hold a place at a target, over all workers and all backends that it is part of. A
//!    [`Place`] that exists is counted, and no other.
//! 2. A place that is given back goes to who has waited for one there the longest; nobody passes by those who wait, and no
//!    place is left free while somebody waits for it. Who gives up waiting hands on what he was given meanwhile.
//! 3. Never more than `size` wait in a queue. A [`Waiting`] that exists is counted, and no other.
//!
//! The first two are those of tokio's semaphore, which is fair; what is ours is to ask for places in all targets that would
//! do, and to give back all but the first that comes.
//!
//! What is not limited comes by none of this: there is no queue in its backend.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::settings::QueueSettings;

/// What a target can serve at once.
#[derive(Debug)]
pub struct Places {
    free: Arc<Semaphore>,
    limit: u32,
}

/// One of a target's places. Dropping it gives it to who waits for it, or to whoever comes.
#[derive(Debug)]
#[must_use = "dropping the place lets another request have it"]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// Those who wait for a place at one of several targets.
#[derive(Debug)]
pub struct Queue {
    size: usize,
    timeout: Duration,
    waiting: AtomicUsize,
}

/// One that waits. Dropping it makes room for another.
#[derive(Debug)]
#[must_use = "dropping it makes room in the queue"]
pub struct Waiting {
    queue: Arc<Queue>,
}

/// Waits for the first place that comes free at one of several targets.
///
/// # Cancel safety
/// Dropping it gives up the places that it has in the queues, and hands on what it was given.
#[must_use = "a wait goes on only while it is polled"]
#[derive(Default)]
pub struct FirstPlace {
    /// Where each target stands, and the wait for a place there.
    asked: Vec<(usize, Asked)>,
}

/// The wait for a place at one target.
type Asked = Pin<Box<dyn Future<Output = Option<Place>>>>;

impl Places {
    /// As many as that, all free.
    #[must_use]
    pub fn new(limit: u32) -> Self {
        let permits = usize::try_from(limit).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(permits)), limit }
    }

    /// How many there are, free or not.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Whether one is free. What is free is not waited for.
    #[must_use]
    pub fn has_free(&self) -> bool {
        self.free.available_permits() > 0
    }

    /// Takes one that is free.
    #[must_use]
    pub fn take(&self) -> Option<Place> {
        let permit = Arc::clone(&self.free).try_acquire_owned().ok()?;
        Some(Place { _permit: permit })
    }

    fn ask(&self) -> Asked {
        let free = Arc::clone(&self.free);
        Box::pin(async move {
            // Nobody closes it.
            let permit = free.acquire_owned().await.ok()?;
            Some(Place { _permit: permit })
        })
    }
}

impl Queue {
    /// For `size` requests, each for `timeout` at most.
    #[must_use]
    pub fn new(size: usize, timeout: Duration) -> Self {
        Self { size, timeout, waiting: AtomicUsize::new(0) }
    }

    /// As the settings say.
    #[must_use]
    pub fn of(settings: QueueSettings) -> Self {
        Self::new(usize::try_from(settings.size).unwrap_or(usize::MAX), settings.timeout.0)
    }

    /// How long one waits at most.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Whether the other one takes as many for as long.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        (self.size, self.timeout) == (other.size, other.timeout)
    }

    /// Joins those who wait, if there is room.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Option<Waiting> {
        let one_more = |waiting: usize| (waiting < self.size).then_some(waiting + 1);
        // AcqRel pairs with the Release of one that left.
        self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        Some(Waiting { queue: Arc::clone(self) })
    }
}

impl Waiting {
    /// Whether it is among those who wait in `queue`.
    #[must_use]
    pub fn is_in(&self, queue: &Arc<Queue>) -> bool {
        Arc::ptr_eq(&self.queue, queue)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.queue.waiting.fetch_sub(1, Ordering::Release);
    }
}

impl FirstPlace {
    /// Whether it waits for the target that stands there.
    #[must_use]
    pub fn asks(&self, at: usize) -> bool {
        self.asked.iter().any(|(asked, _)| *asked == at)
    }

    /// Waits for a place of the target that stands there, too, behind all who do already.
    pub fn ask(&mut self, at: usize, places: &Places) {
        self.asked.push((at, places.ask()));
    }

    /// Waits for nothing of the targets that stand elsewhere.
    pub fn keep_only(&mut self, wanted: &[usize]) {
        self.asked.retain(|(at, _)| wanted.contains(at));
    }
}

impl Future for FirstPlace {
    type Output = (usize, Place);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<(usize, Place)> {
        for at in 0..self.asked.len() {
            let (target, asked) = &mut self.asked[at];
            if let Poll::Ready(Some(place)) = asked.as_mut().poll(cx) {
                let target = *target;
                // It has ended; the others go on for whoever polls again.
                drop(self.asked.swap_remove(at));
                return Poll::Ready((target, place));
            }
        }
        Poll::Pending
    }
}

impl std::fmt::Debug for FirstPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.asked.iter().map(|(at, _)| at)).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn poll(wait: &mut FirstPlace) -> Option<(usize, Place)> {
        match Pin::new(wait).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(got) => Some(got),
            Poll::Pending => None,
        }
    }

    fn wait_for(targets: &[Places]) -> FirstPlace {
        let mut wait = FirstPlace::default();
        targets.iter().enumerate().for_each(|(at, places)| wait.ask(at, places));
        assert!(poll(&mut wait).is_none());
        wait
    }

    #[test]
    fn whoever_waits_longest_gets_what_comes_free_wherever_and_nobody_passes_by() {
        let targets = [Places::new(1), Places::new(1)];
        let (one, two) = (targets[0].take().unwrap(), targets[1].take().unwrap());
        let (mut first, mut second) = (wait_for(&targets), wait_for(&targets));
        drop(two);
        assert!(!targets[1].has_free() && targets[1].take().is_none(), "it is the first one's");
        assert!(poll(&mut second).is_none());
        assert_eq!(poll(&mut first).unwrap().0, 1);
        // Given back as it was taken: the other place it waited for is not kept by it.
        drop((one, first));
        assert_eq!(poll(&mut second).unwrap().0, 0);
        drop(second);
        assert!(targets.iter().all(Places::has_free));
    }

    #[test]
    fn who_gives_up_hands_on_what_he_was_given() {
        let targets = [Places::new(1)];
        let only = targets[0].take().unwrap();
        let (first, mut second) = (wait_for(&targets), wait_for(&targets));
        drop(only);
        drop(first);
        assert_eq!(poll(&mut second).unwrap().0, 0);
    }

    #[test]
    fn no_more_wait_than_may() {
        let queue = Arc::new(Queue::new(2, Duration::from_secs(1)));
        let (one, _two) = (queue.enter().unwrap(), queue.enter().unwrap());
        assert!(queue.enter().is_none());
        drop(one);
        assert!(queue.enter().is_some() && queue.waiting() == 1);
        assert!(Arc::new(Queue::new(0, Duration::from_secs(1))).enter().is_none());
    }

    /// Were a wake-up lost this would hang; were a place given twice the count would be too high.
    #[test]
    fn no_place_is_given_twice_and_none_lost_whatever_the_threads_do() {
        const LIMIT: usize = 2;
        const THREADS: usize = 8;
        let targets: [(Places, AtomicUsize); 2] =
            std::array::from_fn(|_| (Places::new(2), AtomicUsize::new(0)));
        std::thread::scope(|threads| {
            for thread in 0..THREADS {
                let targets = &targets;
                threads.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    for round in 0..2000 {
                        let mut wait = FirstPlace::default();
                        targets.iter().enumerate().for_each(|(at, (places, _))| wait.ask(at, places));
                        // Some leave at once, with or without a place.
                        if (round + thread) % 5 == 0 {
                            drop(poll(&mut wait));
                            continue;
                        }
                        let (at, place) = runtime.block_on(&mut wait);
                        drop(wait);
                        let (_, held) = &targets[at];
                        assert!(held.fetch_add(1, Ordering::SeqCst) < LIMIT, "more than may");
                        std::thread::yield_now();
                        held.fetch_sub(1, Ordering::SeqCst);
                        drop(place);
                    }
                });
            }
        });
        for (places, _) in &targets {
            assert_eq!(places.free.available_permits(), LIMIT);
        }
    }
}
