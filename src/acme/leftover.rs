//! DNS records that were set and are not taken back yet: each is tried again after a wait that grows, and not for ever.

use std::time::Duration;

use tracing::warn;

use super::dns::Record;
use super::governor::{Failures, fail};
use super::settings::DnsSettings;
use super::vault::Vault;
use super::{Concern, Trouble};
use crate::clock::{Clock, Timestamp};
use crate::error::chain;

/// After so many tries a person has to look: about five days, where `retry_after` is what it usually is.
const TRIES_MAX: u32 = 16;

/// All that are known, with what has failed of each.
#[derive(Debug)]
pub(super) struct Leftovers {
    /// The first wait.
    first: Duration,
    records: Vec<(Record, Failures)>,
}

impl Leftovers {
    /// Of what was noted by whoever was here before: each is tried at once, whatever failed then.
    pub(super) fn new(noted: Vec<Record>, first: Duration) -> Self {
        Self { first, records: noted.into_iter().map(|record| (record, Failures::default())).collect() }
    }

    /// One that may be tried now; only at that name, if one is given.
    pub(super) fn due(&self, now: Timestamp, name: Option<&str>) -> Option<Record> {
        let is_due = |failures: &Failures| match failures.next {
            Some(next) => next <= now,
            None => failures.count == 0,
        };
        let mut found = self
            .records
            .iter()
            .filter(|(record, failures)| is_due(failures) && name.is_none_or(|name| record.name == name));
        found.next().map(|(record, _)| record.clone())
    }

    /// Takes `record` back and forgets it; or keeps it here, to be tried again.
    pub(super) async fn take_back(
        &mut self,
        record: Record,
        dns: &DnsSettings,
        vault: &Vault,
        clock: &dyn Clock,
    ) {
        if let Err(error) = dns.clean_up(&record, clock).await {
            let error = chain(&error);
            let next = self.failed(&record, clock.wall(), &error);
            let next = next.map_or_else(|| "never by itself".to_owned(), |next| next.to_string());
            return warn!(error, record = record.name, next, "a DNS record is not taken back yet");
        }
        self.records.retain(|(known, _)| *known != record);
        if let Err(error) = vault.run(move |vault| vault.forget_record(&record)).await {
            warn!(error = chain(&error), "a DNS record that was taken back is still noted");
        }
    }

    /// Returns when it is tried again.
    fn failed(&mut self, record: &Record, now: Timestamp, error: &str) -> Option<Timestamp> {
        let at = self.records.iter().position(|(known, _)| known == record).unwrap_or_else(|| {
            self.records.push((record.clone(), Failures::default()));
            self.records.len() - 1
        });
        let failures = &mut self.records[at].1;
        fail(failures, self.first, now, error, None);
        if failures.count >= TRIES_MAX {
            failures.next = None;
        }
        failures.next
    }

    /// Those that could not be taken back.
    pub(super) fn troubles(&self) -> impl Iterator<Item = Trouble> {
        let failed = self.records.iter().filter(|(_, failures)| failures.count > 0);
        failed.map(|(record, failures)| Trouble {
            subject: record.name.clone(),
            concern: Concern::Record,
            is_covered: true,
            failures: failures.count,
            error: format!("TXT {:?} is not taken back: {}", record.value, failures.error),
            next: failures.next,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_secs(60);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn record(name: &str, value: &str) -> Record {
        Record { name: name.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn each_is_tried_at_once_then_after_a_wait_that_doubles_and_in_the_end_no_more() {
        let (own, other) = (record("a", "v"), record("b", "v"));
        let mut left = Leftovers::new(vec![own.clone(), other.clone()], FIRST);
        assert_eq!(left.due(at(0), None), Some(own.clone()));
        let mut now = 0;
        let mut waits = Vec::new();
        while left.due(at(now), Some("a")).is_some() {
            let Some(next) = left.failed(&own, at(now), "away") else { break };
            waits.push(next.as_second() - at(now).as_second());
            assert_eq!(left.due(next - Duration::from_secs(1), Some("a")), None);
            now = next.as_second() - at(0).as_second();
        }
        let day = 24 * 60 * 60;
        assert_eq!(waits[..4], [60, 120, 240, 480]);
        assert_eq!((waits.len(), waits[14]), (15, day));
        assert_eq!(left.due(at(now + 1000 * day), Some("a")), None, "for ever");
        assert_eq!(left.due(at(0), None), Some(other), "one holds no other up");
        let troubles: Vec<_> = left.troubles().collect();
        let [told] = &troubles[..] else { panic!("{troubles:?}") };
        assert_eq!((told.subject.as_str(), told.failures, told.next), ("a", 16, None));
        assert!(told.error.contains("TXT \"v\"") && told.error.contains("away"), "{told:?}");
    }
}
