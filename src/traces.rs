//! Traces: what was recorded of requests goes to a collector by OTLP, in batches, beside all that serves.
//!
//! # Invariants
//! 1. Whoever serves requests never waits for this: what finds no room in the queue is dropped, and counted.
//! 2. No more spans wait than the settings allow, whatever the collector does, those included that are being sent.
//! 3. What a collector said that it took, or will never take, is not sent to it again; what it could not take just now, or said
//!    nothing of, is, after as long a wait as it wants.
//! 4. Every span ends as one of four that are counted: exported, dropped, refused, unsent.
//!
//! What a span of a request says is `proxy/spans.rs`'s; here is how it is written (`otlp.rs`), how it waits (`queue.rs`), and
//! how it is sent (`exporter.rs`).

mod exporter;
pub(crate) mod otlp;
mod queue;
mod settings;

use std::sync::Arc;

use tokio::sync::watch;

pub use exporter::Exporter;
pub(crate) use queue::Batch;
pub(crate) use settings::Sampler;
pub use settings::TracesSettings;

use crate::clock::Clock;
use crate::telemetry::ControlStats;
use queue::Queue;

/// Takes spans, and says which requests are to have some. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Traces {
    settings: Arc<watch::Sender<Option<TracesSettings>>>,
    queue: Queue,
}

/// Traces that go where `settings` say, if they go anywhere, once the [`Exporter`] runs.
#[must_use]
pub fn open(
    settings: Option<TracesSettings>,
    clock: &Arc<dyn Clock>,
    stats: &Arc<ControlStats>,
) -> (Traces, Exporter) {
    let (queue, waiting) = queue::of(settings.as_ref(), stats);
    let (sender, receiver) = watch::channel(settings);
    let traces = Traces { settings: Arc::new(sender), queue };
    (traces, Exporter::new(receiver, waiting, Arc::clone(clock), Arc::clone(stats)))
}

impl Traces {
    /// From now on these hold.
    pub fn configure(&self, settings: Option<TracesSettings>) {
        self.queue.configure(settings.as_ref());
        self.settings.send_if_modified(|current| {
            let is_new = *current != settings;
            if is_new {
                *current = settings;
            }
            is_new
        });
    }

    /// Which requests are recorded whose caller did not decide; `None`: there is nowhere for spans to go.
    pub(crate) fn sampler(&self) -> Option<Sampler> {
        self.queue.sampler()
    }

    /// Has `batch` exported, or counts that there was no room.
    pub(crate) fn push(&self, batch: Batch) {
        self.queue.push(batch);
    }
}
