//! A request to a backend whose targets serve only so many at once: it takes a place, waits for one, or is refused.
//!
//! It waits for all targets that may serve it, and in each behind those who came before. A visitor that is pinned waits for
//! its own. When the routes of its host change it goes back to them, so that after a swap the new version serves it; its
//! time and its room in the queue go on.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;

use crate::routing::queue::{FirstPlace, Place, Queue, Waiting};
use crate::upstream::balance::{self, Wanted};
use crate::upstream::{Abort, LocalBackend, LocalTarget};

use super::client::Client;
use super::error::ForwardError;
use super::exchange::Exchange;
use super::memo::Memo;

/// After so long each that waits looks again which targets may serve: one may have come back, or be out of rotation. Who
/// looks first is the first at one that came back.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What a request has of a queue, over all of its tries.
#[derive(Debug, Default)]
pub(crate) struct Queued {
    room: Option<Waiting>,
    /// When it began to wait.
    since: Option<Instant>,
}

/// What is asked for.
pub(crate) struct Request<'a> {
    pub(crate) client: &'a Client,
    pub(crate) authority: &'a HeaderValue,
    /// What it was resolved to.
    pub(crate) memo: &'a Rc<Memo>,
    pub(crate) backend: &'a Rc<LocalBackend>,
    pub(crate) wanted: Wanted,
    /// The target that failed it.
    pub(crate) not: Option<&'a Rc<LocalTarget>>,
}

/// A place at a target that may serve the request; `None` once its routes are others.
///
/// # Errors
/// What the client is told: there is no room in the queue, it waited too long, or the data plane ends.
pub(crate) async fn place(
    request: &Request<'_>,
    exchange: &mut Exchange,
    queue: &Arc<Queue>,
    queued: &mut Queued,
) -> Result<Option<(usize, Place)>, ForwardError> {
    if let Some(place) = request.take() {
        queued.room = None;
        return Ok(Some(place));
    }
    let (worker, backend) = (&request.client.worker, request.backend);
    if worker.is_draining() {
        return Err(ForwardError::Aborted(Abort::Shutdown));
    }
    let cells = &backend.backend.stats.of(worker.number).queue;
    let began = worker.clock.now();
    let deadline = *queued.since.get_or_insert(began) + queue.timeout();
    let room = queued.room.take().filter(|room| room.is_in(queue)).or_else(|| queue.enter());
    let Some(room) = room.filter(|_| began < deadline) else {
        exchange.backend = Some(Rc::clone(backend));
        cells.refused.add(1);
        return Err(ForwardError::QueueFull(seconds(queue.timeout())));
    };
    exchange.hold(backend, began);
    let counted = cells.wait();
    let waited = tokio::select! {
        biased;
        found = request.wait() => Some(found),
        () = worker.clock.sleep_until(deadline) => None,
    };
    drop(counted);
    exchange.unhold(worker.clock.now());
    match waited {
        Some(Some(place)) => {
            cells.released.add(1);
            Ok(Some(place))
        }
        Some(None) => {
            queued.room = Some(room);
            Ok(None)
        }
        None => {
            cells.timed_out.add(1);
            Err(ForwardError::QueueFull(seconds(queue.timeout())))
        }
    }
}

impl Request<'_> {
    /// One that is free.
    fn take(&self) -> Option<(usize, Place)> {
        let (worker, targets) = (&self.client.worker, &self.backend.targets);
        let judge = worker.judge(worker.clock.now());
        let eligible = balance::eligible(self.backend, self.wanted, self.not, judge);
        loop {
            let random = &mut || worker.ids.random();
            let at = balance::choose_free(self.backend, self.wanted, &eligible, judge, random)?;
            // Another worker may have been faster.
            let place = targets.get(at)?.take_place();
            if let Some(place) = place {
                return Some((at, place));
            }
        }
    }

    /// The first that comes free of those that may serve; `None` once the routes are others.
    async fn wait(&self) -> Option<(usize, Place)> {
        let worker = &self.client.worker;
        let mut first = FirstPlace::default();
        let mut generation = self.memo.generation;
        loop {
            let now = worker.clock.now();
            let eligible = balance::eligible(self.backend, self.wanted, self.not, worker.judge(now));
            first.keep_only(&eligible);
            for at in eligible {
                if let Some(places) = self.backend.targets.get(at).and_then(|target| target.places())
                    && !first.asks(at)
                {
                    first.ask(at, places);
                }
            }
            tokio::select! {
                biased;
                () = worker.routing.moved_from(generation) => {
                    let memo = self.client.resolve(self.authority).ok()?;
                    if !memo.found.is_same(&self.memo.found) {
                        return None;
                    }
                    generation = memo.generation;
                }
                found = &mut first => return Some(found),
                () = worker.clock.sleep_until(now + LOOK_AGAIN) => {}
            }
        }
    }
}

/// After how long it is worth trying again: all who wait now have been served by then, or have not.
fn seconds(timeout: Duration) -> u16 {
    u16::try_from(timeout.as_millis().div_ceil(1000)).unwrap_or(u16::MAX).max(1)
}
