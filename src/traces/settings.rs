//! Where spans go, and of which requests there are some.

use std::time::Duration;

use http::{HeaderMap, Uri};

use crate::routing::tls::ClientTls;

/// Where spans go, and of which requests there are some.
#[derive(Clone, Debug, PartialEq)]
pub struct TracesSettings {
    /// The whole URL that is posted to, with `/v1/traces`.
    pub endpoint: Uri,
    /// Of an https one.
    pub tls: Option<ClientTls>,
    /// Of each export. Marked as sensitive, so that nothing shows them.
    pub headers: HeaderMap,
    /// `service.name`
    pub service: String,
    /// The share of the traces that are recorded, 0 to 1, of those that no caller decided about who may.
    pub sample_ratio: f64,
    /// For one export and its answer.
    pub timeout: Duration,
    /// How long spans wait for others to go with.
    pub interval: Duration,
    /// How many wait at most.
    pub queue: usize,
}

/// Says by the trace's id alone whether it is recorded: so all who go by the same ratio decide alike, and whoever goes by a
/// lower one records no trace that they do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sampler(u64);

impl Sampler {
    /// As a sampler in one word: there is nowhere for spans to go.
    const NOWHERE: u64 = u64::MAX;
    const ALL: u64 = 1 << 63;

    #[expect(clippy::cast_possible_truncation, reason = "it is between 0 and 2^63")]
    pub(crate) fn new(ratio: f64) -> Self {
        Self((ratio.clamp(0.0, 1.0) * Self::ALL as f64) as u64)
    }

    pub(super) fn to_word(sampler: Option<Self>) -> u64 {
        sampler.map_or(Self::NOWHERE, |sampler| sampler.0)
    }

    pub(super) fn of_word(word: u64) -> Option<Self> {
        (word != Self::NOWHERE).then_some(Self(word))
    }

    /// As OpenTelemetry's `TraceIdRatioBased` does it in its own libraries: by the lower half of the id, which is random.
    pub(crate) fn takes(self, trace_id: [u8; 16]) -> bool {
        let [.., a, b, c, d, e, f, g, h] = trace_id;
        u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1 < self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(lower: u64) -> [u8; 16] {
        (u128::from(u64::MAX) << 64 | u128::from(lower)).to_be_bytes()
    }

    #[test]
    fn a_trace_is_sampled_by_the_lower_half_of_its_id() {
        // Of a half, as the Go and Python libraries have it: up to the middle of all ids.
        let half = Sampler::new(0.5);
        assert!(half.takes(id(0)) && half.takes(id(u64::MAX / 2)));
        assert!(!half.takes(id(u64::MAX / 2 + 2)) && !half.takes(id(u64::MAX)));
        assert!(Sampler::new(1.0).takes(id(u64::MAX)) && !Sampler::new(0.0).takes(id(0)));
    }

    #[test]
    fn whoever_records_fewer_traces_records_none_that_others_do_not() {
        let (few, many) = (Sampler::new(0.1), Sampler::new(0.3));
        let ids = (0..1000_u64).map(|n| id(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let taken: Vec<_> = ids.filter(|id| few.takes(*id)).collect();
        assert!((50..150).contains(&taken.len()), "{}", taken.len());
        assert!(taken.into_iter().all(|id| many.takes(id)));
    }

    #[test]
    fn a_sampler_goes_through_one_word() {
        for ratio in [0.0, 0.25, 1.0] {
            let sampler = Some(Sampler::new(ratio));
            assert_eq!(Sampler::of_word(Sampler::to_word(sampler)), sampler);
        }
        assert_eq!(Sampler::of_word(Sampler::to_word(None)), None);
    }
}
