//! Sends what waits to the collector, a batch at a time, and waits as long as the collector wants.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::error::chain;
use crate::outbound;
use crate::retry_after::wait_of;
use crate::telemetry::ControlStats;

use super::otlp;
use super::queue::{Batch, Waiting};
use super::settings::TracesSettings;

/// Of one export: no more batches are added once it is so long.
const BODY_BYTES: usize = 1024 * 1024;
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Before an export that failed is tried again, if the collector says nothing else; doubled by each that fails in a row.
const BACK_OFF: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);

/// A collector that wants a longer wait is asked again all the same.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// Sends spans until it is told to stop.
#[derive(Debug)]
pub struct Exporter {
    settings: watch::Receiver<Option<TracesSettings>>,
    waiting: Waiting,
    clock: Arc<dyn Clock>,
    stats: Arc<ControlStats>,
    /// What was taken from the queue and has not been exported, the oldest first.
    pending: VecDeque<Batch>,
    /// When the oldest of them goes, at the latest.
    due: Instant,
    /// Nothing is sent before.
    not_before: Instant,
    /// In a row.
    failures: u32,
}

/// Why spans are still here.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error(transparent)]
    Ask(#[from] outbound::AskError),
    #[error("it did not answer in time")]
    Late,
    /// It may take them later.
    #[error("it answered {0}")]
    Busy(StatusCode, Option<Duration>),
    /// It will never take them.
    #[error("it answered {0}")]
    Refused(StatusCode),
    #[error("its URL names no host")]
    NoHost,
    #[error("the request cannot be made")]
    Request(#[from] http::Error),
}

impl Exporter {
    pub(super) fn new(
        settings: watch::Receiver<Option<TracesSettings>>,
        waiting: Waiting,
        clock: Arc<dyn Clock>,
        stats: Arc<ControlStats>,
    ) -> Self {
        let now = clock.now();
        let pending = VecDeque::new();
        Self { settings, waiting, clock, stats, pending, due: now, not_before: now, failures: 0 }
    }

    /// Exports until `stop`, and then what is left, once. Whoever waits for the end has a limit of time for it.
    pub async fn keep(mut self, stop: CancellationToken) {
        loop {
            let export = self.clock.sleep_until(self.next_export());
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = self.settings.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.reconfigured();
                }
                Some(batch) = self.waiting.next() => self.take(batch),
                // To its end also at `stop`: the collector may have all of it, and would get it a second time.
                () = export, if !self.pending.is_empty() => self.export().await,
            }
        }
        self.finish().await;
    }

    fn take(&mut self, batch: Batch) {
        let Some(interval) = self.settings.borrow().as_ref().map(|settings| settings.interval) else {
            return self.give_up(batch.spans);
        };
        if self.pending.is_empty() {
            self.due = self.clock.now() + interval;
        }
        self.pending.push_back(batch);
    }

    /// Earlier than they are due if they are many.
    fn next_export(&self) -> Instant {
        let (bytes, spans) = self
            .pending
            .iter()
            .fold((0, 0), |(bytes, spans), batch| (bytes + batch.text.len(), spans + batch.spans));
        // Half a queue of room is left for those that come meanwhile.
        let half = self.settings.borrow().as_ref().map_or(0, |settings| settings.queue / 2);
        if bytes >= BODY_BYTES || spans > half { self.not_before } else { self.due.max(self.not_before) }
    }

    /// Other settings, perhaps another collector: a wait that the last one wanted is over.
    fn reconfigured(&mut self) {
        (self.failures, self.not_before) = (0, self.clock.now());
        if self.settings.borrow_and_update().is_none() {
            let left = self.pending.drain(..).map(|batch| batch.spans).sum();
            self.give_up(left);
        }
    }

    /// Sends the oldest of what waits.
    async fn export(&mut self) {
        let Some(settings) = self.settings.borrow().clone() else { return };
        let (batches, spans) = self.oldest();
        let body = otlp::request(&settings.service, self.pending.iter().take(batches));
        let sent = send(&settings, body.into(), &*self.clock).await;
        let now = self.clock.now();
        match sent {
            Ok(answer) => self.exported(spans, answer.body()),
            Err(ExportError::Refused(status)) => {
                self.stats.spans_refused(spans);
                warn!(endpoint = %settings.endpoint, %status, spans, "the collector refuses spans: they are lost");
            }
            Err(error) => return self.failed(&error, &settings, now),
        }
        if self.failures > 0 {
            info!(endpoint = %settings.endpoint, "the collector answers again");
        }
        self.failures = 0;
        self.pending.drain(..batches);
        self.waiting.ended(spans);
        self.due = now + settings.interval;
    }

    /// How many batches go in one export, and how many spans.
    fn oldest(&self) -> (usize, usize) {
        let (mut batches, mut spans, mut bytes) = (0, 0, 0);
        for batch in &self.pending {
            if bytes >= BODY_BYTES {
                break;
            }
            (batches, spans, bytes) = (batches + 1, spans + batch.spans, bytes + batch.text.len());
        }
        (batches, spans)
    }

    fn exported(&self, spans: usize, answer: &[u8]) {
        let (rejected, why) = otlp::rejected(answer).unwrap_or_default();
        let rejected = rejected.min(spans);
        if rejected > 0 {
            warn!(rejected, why, "the collector did not take all spans: those are lost");
        }
        self.stats.spans_exported(spans - rejected);
        self.stats.spans_refused(rejected);
    }

    fn failed(&mut self, error: &ExportError, settings: &TracesSettings, now: Instant) {
        if self.failures == 0 {
            warn!(
                endpoint = %settings.endpoint,
                error = chain(error),
                "spans cannot be exported; they wait, and what finds no room is dropped"
            );
        }
        let wait = match error {
            ExportError::Busy(_, Some(wanted)) => (*wanted).min(RETRY_AFTER_MAX),
            _ => back_off(self.failures),
        };
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + wait;
    }

    /// What is left goes out once, without a second try.
    async fn finish(&mut self) {
        while let Some(batch) = self.waiting.take() {
            self.take(batch);
        }
        let settings = self.settings.borrow().clone();
        while let (Some(settings), false) = (&settings, self.pending.is_empty()) {
            let (batches, spans) = self.oldest();
            let body = otlp::request(&settings.service, self.pending.iter().take(batches));
            match send(settings, body.into(), &*self.clock).await {
                Ok(answer) => self.exported(spans, answer.body()),
                Err(error) => {
                    let left = self.pending.drain(..).map(|batch| batch.spans).sum::<usize>();
                    warn!(endpoint = %settings.endpoint, error = chain(&error), spans = left, "spans are lost");
                    return self.give_up(left);
                }
            }
            self.pending.drain(..batches);
            self.waiting.ended(spans);
        }
    }

    fn give_up(&self, spans: usize) {
        self.stats.spans_unsent(spans);
        self.waiting.ended(spans);
    }
}

async fn send(
    settings: &TracesSettings,
    body: Bytes,
    clock: &dyn Clock,
) -> Result<Response<Bytes>, ExportError> {
    let mut request =
        Request::builder().method(Method::POST).uri(settings.endpoint.clone()).body(Full::new(body))?;
    request.headers_mut().insert(CONTENT_TYPE, otlp::content_type());
    let agent = concat!("lockgate/", env!("CARGO_PKG_VERSION"));
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(agent));
    for (name, value) in &settings.headers {
        request.headers_mut().insert(name.clone(), value.clone());
    }
    let tls = settings.tls.as_ref().map(|tls| TlsConnector::from(tls.config()));
    let Some(authority) = settings.endpoint.authority() else { return Err(ExportError::NoHost) };
    let asked = outbound::ask(tls.as_ref(), authority, request, ANSWER_BYTES_MAX);
    let answer =
        tokio::time::timeout(settings.timeout, asked).await.map_err(|_elapsed| ExportError::Late)??;
    match answer.status() {
        status if status.is_success() => Ok(answer),
        status @ (StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT) => {
            let wait = answer.headers().get(RETRY_AFTER).and_then(|value| wait_of(value, clock.wall()));
            Err(ExportError::Busy(status, wait))
        }
        status => Err(ExportError::Refused(status)),
    }
}

/// A part of it is left to chance, so that many do not come back at the same moment.
fn back_off(failures: u32) -> Duration {
    let whole = BACK_OFF.saturating_mul(1 << failures.min(8)).min(BACK_OFF_MAX);
    let chance = getrandom::u32().unwrap_or_default();
    whole / 2 + whole / 2 * (chance >> 16) / (1 << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_up_to_a_limit() {
        for (failures, most) in [(0, 1), (1, 2), (4, 16), (5, 30), (1000, 30)] {
            let (wait, most) = (back_off(failures), Duration::from_secs(most));
            assert!(most / 2 <= wait && wait <= most, "{failures}: {wait:?}");
        }
    }
}
