//! Learning of swaps by looking what serves, for a run that nobody tells of them.
//!
//! A look shows what was so at some instant between its asking and its answer. So what changed did it between the asking
//! of the last look that showed what was before and the answer of the first that shows what is after: whatever is in
//! flight then may come from either. Of more than one change between two looks, and of looks that showed nothing,
//! nobody knows what served meanwhile, and nothing is held against any version.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::tally::Tally;
use crate::clock::Clock;

/// Short against the time that two deploys are apart, and cheap against the load.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What serves the hosts of a run, as whoever publishes their routes says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// Higher by one after each change of whatever is routed.
    pub generation: u64,
    /// As answers name it in `X-Deployment`.
    pub live: String,
    /// What some of the visitors get instead, while a cutover goes in steps.
    pub split: Option<String>,
}

/// What was seen so far.
#[derive(Debug)]
pub(super) struct Watch<'run> {
    tally: &'run Tally,
    clock: &'run dyn Clock,
    known: Option<Serving>,
    /// When the look was asked for that showed it; the run's begin before the first one.
    since: Instant,
    /// A look after that one showed nothing.
    is_blind: bool,
}

impl<'run> Watch<'run> {
    pub(super) fn new(tally: &'run Tally, clock: &'run dyn Clock, began: Instant) -> Self {
        Self { tally, clock, known: None, since: began, is_blind: false }
    }

    pub(super) async fn look(&mut self, look: &impl AsyncFn() -> Option<Serving>) {
        let asked = self.clock.now();
        match look().await {
            Some(serving) => self.saw(serving, asked, self.clock.now()),
            None => self.is_blind = true,
        }
    }

    /// Looks again and again, and once more after `over`, so that nothing was sent after the last look.
    pub(super) async fn go_on(mut self, look: &impl AsyncFn() -> Option<Serving>, over: &CancellationToken) {
        loop {
            let is_last = over.is_cancelled();
            self.look(look).await;
            if is_last {
                break;
            }
            tokio::select! {
                () = self.clock.sleep(LOOK_EVERY) => (),
                () = over.cancelled() => (),
            }
        }
        if self.is_blind {
            self.tally.unknown(self.since);
        }
    }

    fn saw(&mut self, serving: Serving, asked: Instant, answered: Instant) {
        let is_one_step = !self.is_blind
            && self
                .known
                .as_ref()
                .is_none_or(|known| matches!(serving.generation.checked_sub(known.generation), Some(0 | 1)));
        let is_same = self.known.as_ref().is_some_and(|known| known.serves_as(&serving));
        if !is_one_step {
            self.tally.unknown(self.since);
        }
        if !is_one_step || !is_same {
            let is_change = self.known.is_some() && !is_same;
            self.tally.serves(&serving, is_change, (self.since, answered));
        }
        (self.known, self.since, self.is_blind) = (Some(serving), asked, false);
    }
}

impl Serving {
    fn serves_as(&self, other: &Self) -> bool {
        (&self.live, &self.split) == (&other.live, &other.split)
    }
}

#[cfg(test)]
mod tests;
