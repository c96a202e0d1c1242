//! Cells with one writer each: adding is a load and a store, and never a locked instruction.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Method, StatusCode, Version};

/// The upper bounds of all buckets but the last, which has none.
type Bounds = [u64; 13];

/// Of durations, in microseconds.
const MICROS: Bounds = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
];

/// Of bodies, in bytes: none, and from 256 to a GiB in steps of four.
const BYTES: Bounds = [
    0,
    1 << 8,
    1 << 10,
    1 << 12,
    1 << 14,
    1 << 16,
    1 << 18,
    1 << 20,
    1 << 22,
    1 << 24,
    1 << 26,
    1 << 28,
    1 << 30,
];

const METHODS: [&str; 8] = ["_OTHER", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// A count with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// Durations or sizes with one writer.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; 14],
    sum: Counter,
}

/// What a histogram is of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Measure {
    Seconds,
    Bytes,
}

/// Counts by key, for keys of a closed list of which few occur. What no longer fits is counted under the last.
#[derive(Debug)]
pub struct CounterTable<const N: usize>([(AtomicU64, Counter); N]);

impl Counter {
    /// Adds `count`. Only the writer's own thread may.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// What was counted.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Histogram {
    /// Counts a duration.
    pub fn observe(&self, duration: Duration) {
        self.add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX), &MICROS);
    }

    /// Counts a size.
    pub fn observe_bytes(&self, bytes: u64) {
        self.add(bytes, &BYTES);
    }

    fn add(&self, value: u64, bounds: &Bounds) {
        let bucket = bounds.iter().position(|bound| value <= *bound).unwrap_or(bounds.len());
        self.buckets[bucket].add(1);
        self.sum.add(value);
    }

    /// All that was counted together, in microseconds or bytes.
    pub(super) fn sum(&self) -> u64 {
        self.sum.get()
    }

    /// Adds this one's counts to those of `buckets`.
    pub(super) fn add_to(&self, buckets: &mut [(f64, u64); 14]) {
        for (sum, own) in buckets.iter_mut().zip(&self.buckets) {
            sum.1 += own.get();
        }
    }
}

impl Measure {
    /// Buckets by their upper bounds, in this unit, with nothing in them.
    pub(super) fn buckets(self) -> [(f64, u64); 14] {
        let bounds = match self {
            Self::Seconds => &MICROS,
            Self::Bytes => &BYTES,
        };
        std::array::from_fn(|at| (bounds.get(at).map_or(f64::INFINITY, |bound| self.of(*bound)), 0))
    }

    /// A sum or a bound as it is told.
    pub(super) fn of(self, value: u64) -> f64 {
        match self {
            Self::Seconds => Duration::from_micros(value).as_secs_f64(),
            // More than 2^53 bytes are told roughly.
            #[expect(clippy::cast_precision_loss, reason = "OpenMetrics has no other numbers")]
            Self::Bytes => value as f64,
        }
    }
}

impl<const N: usize> CounterTable<N> {
    /// Counts one under `key`, which is not 0.
    pub(super) fn add(&self, key: u64) {
        for (slot, count) in &self.0 {
            let found = slot.load(Ordering::Relaxed);
            if found == 0 {
                slot.store(key, Ordering::Relaxed);
            }
            if found == key || found == 0 {
                count.add(1);
                return;
            }
        }
        if let Some((_, count)) = self.0.last() {
            count.add(1);
        }
    }

    /// Counts one under a word of [`CODES`].
    pub(super) fn add_named(&self, word: &str) {
        let at = CODES.iter().position(|code| *code == word).unwrap_or_default();
        self.add(at as u64 + 1);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0
            .iter()
            .map(|(key, count)| (key.load(Ordering::Relaxed), count.get()))
            .filter(|(key, _)| *key != 0)
    }
}

impl<const N: usize> Default for CounterTable<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Default::default()))
    }
}

/// The codes of own answers that are counted by name.
const CODES: [&str; 45] = [
    "_other",
    "bad_request",
    "target_too_long",
    "headers_too_large",
    "method_not_allowed",
    "transfer_coding_unknown",
    "expectation_failed",
    "loop_detected",
    "no_route",
    "ephemeral_unknown",
    "ephemeral_expired",
    "no_backend",
    "draining",
    "connect_failed",
    "connect_timeout",
    "upstream_reset",
    "upstream_malformed",
    "upstream_timeout",
    "upstream_truncated",
    "client_abort",
    "body_too_large",
    "request_timeout",
    "drain_cut",
    "idle_timeout",
    "shutdown",
    "internal",
    "deployment_in_standby",
    "waking",
    "wake_timeout",
    "wake_failed",
    "queue_full",
    "misdirected_request",
    "wake_cancelled",
    "too_many_connections",
    "cooldown",
    "reader_too_slow",
    "preview_password_required",
    "preview_link_required",
    "app_paused",
    "app_maintenance",
    "app_disabled",
    "hold_timeout",
    "hold_queue_full",
    "upstream_tls_failed",
    "signed_link_required",
];

/// The code of a key of [`CounterTable::add_named`].
pub(super) fn code_of(key: u64) -> &'static str {
    let at = usize::try_from(key.saturating_sub(1)).unwrap_or_default();
    CODES.get(at).copied().unwrap_or(CODES[0])
}

pub(super) fn response_key(method: &Method, status: StatusCode, version: Version) -> u64 {
    let method = match *method {
        Method::GET => 1,
        Method::HEAD => 2,
        Method::POST => 3,
        Method::PUT => 4,
        Method::PATCH => 5,
        Method::DELETE => 6,
        Method::OPTIONS => 7,
        _ => 0,
    };
    let protocol = match version {
        Version::HTTP_2 => 1,
        Version::HTTP_3 => 2,
        _ => 0,
    };
    protocol << 24 | method << 16 | u64::from(status.as_u16())
}

/// Method, status and protocol of a key.
pub(super) fn response_of(key: u64) -> (&'static str, u64, &'static str) {
    let method = usize::try_from(key >> 16 & 0xff).ok().and_then(|at| METHODS.get(at));
    let protocol = ["1.1", "2", "3"].get(usize::try_from(key >> 24).unwrap_or_default());
    (method.copied().unwrap_or(METHODS[0]), key & 0xffff, protocol.copied().unwrap_or("1.1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_counts_the_rest_under_its_last_key() {
        let table = CounterTable::<3>::default();
        for key in [1, 2, 2, 3, 4, 5] {
            table.add(key);
        }
        assert_eq!(table.iter().collect::<Vec<_>>(), [(1, 1), (2, 2), (3, 3)]);
    }

    #[test]
    fn a_response_key_tells_method_status_and_protocol() {
        for (method, name) in [(Method::POST, "POST"), (Method::from_bytes(b"BREW").unwrap(), "_OTHER")] {
            for (version, protocol) in [
                (Version::HTTP_10, "1.1"),
                (Version::HTTP_11, "1.1"),
                (Version::HTTP_2, "2"),
                (Version::HTTP_3, "3"),
            ] {
                let key = response_key(&method, StatusCode::IM_A_TEAPOT, version);
                assert_eq!(response_of(key), (name, 418, protocol));
            }
        }
    }
}
