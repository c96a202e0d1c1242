//! What clients got from one backend: how many answers, how soon, and whose fault the failed ones were.

use std::time::Duration;

use super::{BackendCells, BackendStats, Latencies};

/// Counts since the backend was first served. A request counts when it ends, a stream as well; one that the policies of its
/// route answered does not, as nobody asked the backend for anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub requests: u64,
    /// Of those, what the application failed: it answered 5xx, malformed, too late or not at all, could not be
    /// connected to, or ended in the middle of a response.
    pub failed_by_app: u64,
    /// Of those, for want of an answer in time.
    pub late_by_app: u64,
    /// Of the requests, what Lockgate failed: nothing could serve it, its drain deadline cut it, or the proxy ended.
    pub failed_by_us: u64,
    /// Of those that the application answered whole and without a failure: how long it took to the head of its
    /// response. Streams are left out.
    pub answered_in: Latencies,
}

/// Whose fault it is that a client did not get a whole answer. A client that leaves is nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedBy {
    App,
    /// It is slow, or the machine is.
    AppTooLate,
    Us,
}

impl Tally {
    /// What was failed by anybody.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed_by_app + self.failed_by_us
    }

    /// What has been counted since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            failed_by_app: self.failed_by_app.saturating_sub(before.failed_by_app),
            late_by_app: self.late_by_app.saturating_sub(before.late_by_app),
            failed_by_us: self.failed_by_us.saturating_sub(before.failed_by_us),
            answered_in: self.answered_in.since(&before.answered_in),
        }
    }
}

impl BackendStats {
    /// How many requests and streams have ended, over all workers, without those that policies answered.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.workers.iter().map(|cells| cells.ended()).sum()
    }

    /// The sum over all workers. They may go on counting while it is made.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let mut sum = Tally::default();
        for cells in &self.workers {
            sum.requests += cells.ended();
            sum.failed_by_app += cells.failed_by_app.get();
            sum.late_by_app += cells.late_by_app.get();
            sum.failed_by_us += cells.failed_by_us.get();
            cells.answered_in.add_to(&mut sum.answered_in);
        }
        sum
    }
}

impl BackendCells {
    fn ended(&self) -> u64 {
        let all: u64 = self.responses.iter().map(|(_, count)| count).sum();
        all.saturating_sub(self.stopped_by_policies.get())
    }

    /// Counts a request that the application answered whole, by how long it took to the head of its response.
    pub fn answered(&self, first_byte: Duration) {
        self.answered_in.observe(first_byte);
    }

    /// Counts a request whose client did not get a whole answer.
    pub fn fail(&self, by: FailedBy) {
        match by {
            FailedBy::App => self.failed_by_app.add(1),
            FailedBy::AppTooLate => {
                self.failed_by_app.add(1);
                self.late_by_app.add(1);
            }
            FailedBy::Us => self.failed_by_us.add(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode, Version};

    use super::*;

    #[test]
    fn what_all_workers_counted_since_then_is_summed() {
        let stats = BackendStats::for_service("some", 2);
        let count = |worker: usize, by| {
            stats.of(worker).respond(&Method::GET, StatusCode::BAD_GATEWAY, Version::HTTP_11);
            stats.of(worker).fail(by);
        };
        count(0, FailedBy::App);
        let before = stats.tally();
        count(0, FailedBy::Us);
        count(1, FailedBy::App);
        count(1, FailedBy::AppTooLate);
        stats.of(1).respond(&Method::GET, StatusCode::OK, Version::HTTP_11);
        let expected =
            Tally { requests: 4, failed_by_app: 2, late_by_app: 1, failed_by_us: 1, ..Tally::default() };
        assert_eq!(stats.tally().since(&before), expected);
    }
}
