//! How long an application took to answer, finely enough to compare two versions: four buckets to each doubling.

use std::time::Duration;

use super::Counter;

/// From 64 µs to 67 s; what is shorter or longer is counted in the first or the last.
const BUCKETS: usize = 80;
const FIRST_OCTAVE: u32 = 6;

/// Counts with one writer.
#[derive(Debug)]
pub(super) struct LatencyCells([Counter; BUCKETS]);

/// Counts by how long it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latencies([u64; BUCKETS]);

impl LatencyCells {
    pub(super) fn observe(&self, took: Duration) {
        self.0[bucket_of(took)].add(1);
    }

    pub(super) fn add_to(&self, sum: &mut Latencies) {
        for (sum, own) in sum.0.iter_mut().zip(&self.0) {
            *sum += own.get();
        }
    }
}

impl Latencies {
    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// What has been counted since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at].saturating_sub(before.0[at])))
    }

    /// 99 of 100 took at most that long; `None` where nothing was counted.
    #[must_use]
    pub fn p99(&self) -> Option<Duration> {
        let mut slower = self.count() / 100;
        let count = self.0.iter().enumerate().rev().filter(|(_, count)| **count > 0);
        for (bucket, count) in count {
            if *count > slower {
                return Some(upper_bound(bucket));
            }
            slower -= count;
        }
        None
    }

    /// How many took longer than `limit` for certain: what shares a bucket with it is left out.
    #[must_use]
    pub fn slower_than(&self, limit: Duration) -> u64 {
        self.0.iter().skip(bucket_of(limit) + 1).sum()
    }
}

impl Default for LatencyCells {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

fn bucket_of(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1 << FIRST_OCTAVE);
    let octave = micros.ilog2();
    let quarter = (micros >> (octave - 2)) & 3;
    let bucket = u64::from(octave - FIRST_OCTAVE) * 4 + quarter;
    usize::try_from(bucket).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

fn upper_bound(bucket: usize) -> Duration {
    let (octave, quarter) = (bucket / 4, bucket as u64 % 4);
    Duration::from_micros((1 << FIRST_OCTAVE << octave) / 4 * (5 + quarter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_in_a_bucket_whose_bounds_are_a_quarter_of_a_doubling_apart() {
        for micros in (64..1_000_000).step_by(7) {
            let took = Duration::from_micros(micros);
            let bucket = bucket_of(took);
            assert!(took < upper_bound(bucket), "{micros}");
            assert!(bucket == 0 || took >= upper_bound(bucket - 1), "{micros}");
        }
        for (out, bucket) in [(Duration::ZERO, 0), (Duration::MAX, BUCKETS - 1)] {
            assert_eq!(bucket_of(out), bucket);
        }
    }

    #[test]
    fn the_99th_percentile_leaves_out_one_in_a_hundred() {
        let (cells, mut sum) = (LatencyCells::default(), Latencies::default());
        assert_eq!(sum.p99(), None);
        let observe = |times, millis| {
            (0..times).for_each(|_| cells.observe(Duration::from_millis(millis)));
        };
        observe(198, 10);
        observe(2, 1000);
        cells.add_to(&mut sum);
        let p99 = sum.p99().unwrap();
        assert!(p99 > Duration::from_millis(10) && p99 < Duration::from_millis(13), "{p99:?}");
        assert_eq!(sum.slower_than(Duration::from_millis(500)), 2);
        observe(1, 1000);
        let mut more = Latencies::default();
        cells.add_to(&mut more);
        assert!(more.p99().unwrap() > Duration::from_secs(1));
        assert_eq!(more.since(&sum).count(), 1);
        // No one is called slower than something that shares its bucket.
        assert_eq!(more.slower_than(Duration::from_millis(1000)), 0);
        assert_eq!(more.slower_than(Duration::MAX), 0);
    }
}
