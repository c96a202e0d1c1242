//! Spans on their way to the exporter: bounded, and filled without waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::mpsc;

use crate::telemetry::ControlStats;

use super::settings::{Sampler, TracesSettings};

/// Batches that may be on their way; the spans in them are what is counted.
const BATCHES: usize = 4096;

/// Some spans, as they are written out, with commas between them.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) text: Vec<u8>,
    pub(crate) spans: usize,
}

/// The side of those who have some.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    batches: mpsc::Sender<Batch>,
    bounds: Arc<Bounds>,
    stats: Arc<ControlStats>,
}

/// The exporter's side.
#[derive(Debug)]
pub(super) struct Waiting {
    batches: mpsc::Receiver<Batch>,
    bounds: Arc<Bounds>,
}

/// Read for each request: one word each, and no lock. None of them says anything of another, so no order is asked for.
#[derive(Debug)]
struct Bounds {
    sampler: AtomicU64,
    /// Spans that were pushed and have not ended.
    waiting: AtomicUsize,
    max: AtomicUsize,
}

pub(super) fn of(settings: Option<&TracesSettings>, stats: &Arc<ControlStats>) -> (Queue, Waiting) {
    let (sender, receiver) = mpsc::channel(BATCHES);
    let bounds = Bounds {
        sampler: AtomicU64::new(Sampler::to_word(None)),
        waiting: AtomicUsize::new(0),
        max: AtomicUsize::new(0),
    };
    let bounds = Arc::new(bounds);
    let queue = Queue { batches: sender, bounds: Arc::clone(&bounds), stats: Arc::clone(stats) };
    queue.configure(settings);
    (queue, Waiting { batches: receiver, bounds })
}

impl Queue {
    pub(super) fn configure(&self, settings: Option<&TracesSettings>) {
        let max = settings.map_or(0, |settings| settings.queue);
        self.bounds.max.store(max, Ordering::Relaxed);
        let sampler = settings.map(|settings| Sampler::new(settings.sample_ratio));
        self.bounds.sampler.store(Sampler::to_word(sampler), Ordering::Relaxed);
    }

    pub(super) fn sampler(&self) -> Option<Sampler> {
        Sampler::of_word(self.bounds.sampler.load(Ordering::Relaxed))
    }

    pub(super) fn push(&self, batch: Batch) {
        let (spans, bounds) = (batch.spans, &self.bounds);
        let before = bounds.waiting.fetch_add(spans, Ordering::Relaxed);
        let has_room = before + spans <= bounds.max.load(Ordering::Relaxed);
        if !has_room || self.batches.try_send(batch).is_err() {
            bounds.waiting.fetch_sub(spans, Ordering::Relaxed);
            self.stats.spans_dropped(spans);
        }
    }
}

impl Waiting {
    /// The next batch; `None` once nobody is left who could have one. Nothing is lost if it is dropped.
    pub(super) async fn next(&mut self) -> Option<Batch> {
        self.batches.recv().await
    }

    /// The next batch, if there is one now.
    pub(super) fn take(&mut self) -> Option<Batch> {
        self.batches.try_recv().ok()
    }

    /// So many spans do not wait any more.
    pub(super) fn ended(&self, spans: usize) {
        self.bounds.waiting.fetch_sub(spans, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(spans: usize) -> Batch {
        Batch { text: Vec::new(), spans }
    }

    /// Also while the exporter has them: they count until they have ended.
    #[test]
    fn no_more_spans_wait_than_may() {
        let stats = Arc::new(ControlStats::default());
        let (queue, mut waiting) = of(None, &stats);
        queue.bounds.max.store(10, Ordering::Relaxed);
        queue.push(batch(6));
        queue.push(batch(5));
        queue.push(batch(4));
        let taken: Vec<usize> = std::iter::from_fn(|| waiting.take()).map(|batch| batch.spans).collect();
        assert_eq!(taken, [6, 4]);
        queue.push(batch(1));
        assert!(waiting.take().is_none());
        waiting.ended(10);
        queue.push(batch(10));
        assert!(waiting.take().is_some());
    }
}
