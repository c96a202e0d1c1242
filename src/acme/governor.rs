//! When an order may be begun: not before the back-off of its name is over, nor more than so many in an hour. Pure; what
//! it knows is a ledger that outlives restarts.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use super::Concern;
use crate::clock::Timestamp;
use crate::routing::HostPattern;

const HOUR: Duration = Duration::from_secs(60 * 60);
/// The longest wait of ours.
const BACK_OFF_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest that an authority is obeyed: no window of theirs is longer, and a wrong clock there is not for ever.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// However short its wait, it is not asked again earlier for when to renew (RFC 9773 section 4.3.2).
const ASK_AGAIN_MIN: Duration = Duration::from_secs(60);

/// What happened so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Ledger {
    /// By name, what has not succeeded since.
    failures: BTreeMap<String, Failures>,
    /// Of the authority itself: its directory, or the account there.
    authority: Failures,
    /// Who failed there.
    applicant: Applicant,
    /// When orders were begun, within the last hour.
    orders: Vec<Timestamp>,
    /// From when on the authority wants to be asked again when to renew.
    renewal_info: Option<Timestamp>,
    /// By name, the directory that its certificate came from.
    sources: BTreeMap<String, String>,
}

/// What has failed, and how often since it last succeeded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Failures {
    pub(super) count: u32,
    pub(super) next: Option<Timestamp>,
    pub(super) error: String,
    pub(super) concern: Concern,
}

/// Who asks, as far as it decides whether there is an account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Applicant {
    pub(super) directory: String,
    /// A hash of the external account; empty without one.
    pub(super) external_account: String,
}

/// Lets orders through.
#[derive(Debug)]
pub(super) struct Governor {
    pub(super) ledger: Ledger,
    orders_per_hour: usize,
    first: Duration,
}

impl Governor {
    pub(super) fn new(ledger: Ledger, orders_per_hour: usize, first: Duration) -> Self {
        Self { ledger, orders_per_hour, first }
    }

    /// From now on it is this one who asks. What another authority did holds nothing up, nor that this one refused another
    /// external account.
    pub(super) fn ask_as(&mut self, applicant: Applicant) {
        let known = std::mem::replace(&mut self.ledger.applicant, applicant);
        let now = &self.ledger.applicant;
        let is_elsewhere = known.directory != now.directory && !known.directory.is_empty();
        let is_other = known.external_account != now.external_account;
        if is_elsewhere || is_other && self.ledger.authority.concern == Concern::ExternalAccount {
            self.ledger.authority = Failures::default();
        }
        if is_elsewhere {
            self.ledger.renewal_info = None;
        }
    }

    /// How often `name` has failed in a row.
    pub(super) fn failures(&self, name: &HostPattern) -> Option<&Failures> {
        self.ledger.failures.get(&name.to_string())
    }

    /// The authority's own, if there are any.
    pub(super) fn authority(&self) -> Option<&Failures> {
        Some(&self.ledger.authority).filter(|failures| failures.count > 0)
    }

    /// From when on an order for `name` may be begun.
    pub(super) fn begins_at(&self, name: &HostPattern, now: Timestamp) -> Timestamp {
        let authority = self.ledger.authority.next.unwrap_or(now);
        let own = self.failures(name).and_then(|failures| failures.next).unwrap_or(now);
        let since = now - HOUR;
        let mut orders: Vec<_> =
            self.ledger.orders.iter().copied().filter(|at| *at > since && *at <= now).collect();
        orders.sort();
        // The oldest that has to be an hour old.
        let full = orders.len().checked_sub(self.orders_per_hour).and_then(|at| orders.get(at));
        let governed = full.map_or(now, |oldest| *oldest + HOUR);
        // A clock that was set back keeps nobody waiting for longer than anything may.
        authority.max(own).max(governed).min(now + RETRY_AFTER_MAX)
    }

    /// An order for `name` is about to be begun. Until something else is told it counts as one that failed: a crash in the
    /// middle is to be no way round the back-off.
    pub(super) fn begin(&mut self, name: &HostPattern, now: Timestamp) {
        self.ledger.orders.retain(|at| *at > now - HOUR && *at <= now);
        self.ledger.orders.push(now);
        let failures = self.ledger.failures.entry(name.to_string()).or_default();
        fail(failures, self.first, now, "it was not finished", None);
    }

    /// What was begun was dropped, as something else is to be asked for: nothing failed. It stays an order, of which there
    /// are so many in an hour.
    pub(super) fn dropped(&mut self, name: &HostPattern) {
        let key = name.to_string();
        if let Some(failures) = self.ledger.failures.get_mut(&key) {
            failures.count = failures.count.saturating_sub(1);
            failures.next = None;
            if failures.count == 0 {
                self.ledger.failures.remove(&key);
            }
        }
    }

    pub(super) fn succeeded(&mut self, name: &HostPattern, directory: &str) {
        self.ledger.failures.remove(&name.to_string());
        self.ledger.sources.insert(name.to_string(), directory.to_owned());
        self.ledger.authority = Failures::default();
    }

    /// What was begun has failed; the authority may have said from when on it will hear of it again.
    pub(super) fn failed(
        &mut self,
        name: &HostPattern,
        now: Timestamp,
        error: &str,
        retry_after: Option<Duration>,
    ) {
        let failures = self.ledger.failures.entry(name.to_string()).or_default();
        // `begin` has counted it.
        failures.count = failures.count.saturating_sub(1);
        fail(failures, self.first, now, error, retry_after);
    }

    /// The authority is away, or does not know us; the name that was begun has nothing to do with it.
    pub(super) fn authority_failed(
        &mut self,
        name: &HostPattern,
        now: Timestamp,
        error: &str,
        concern: Concern,
        retry_after: Option<Duration>,
    ) {
        self.dropped(name);
        // Nothing was ordered.
        self.ledger.orders.pop();
        fail(&mut self.ledger.authority, self.first, now, error, retry_after);
        self.ledger.authority.concern = concern;
    }

    /// The authority refused to say when to renew, and wants to be left alone with it for so long: whatever the certificate.
    /// Returns when it may be asked again.
    pub(super) fn ask_later(&mut self, now: Timestamp, retry_after: Duration) -> Timestamp {
        let next = now + retry_after.clamp(ASK_AGAIN_MIN, RETRY_AFTER_MAX);
        self.ledger.renewal_info = Some(next);
        next
    }

    /// From when on the authority may be asked when to renew.
    pub(super) fn asks_at(&self, now: Timestamp) -> Timestamp {
        let away = self.ledger.authority.next.unwrap_or(now);
        let refused = self.ledger.renewal_info.unwrap_or(now);
        away.max(refused).min(now + RETRY_AFTER_MAX)
    }

    /// Whether its certificate is known to come from another directory.
    pub(super) fn is_foreign(&self, name: &HostPattern, directory: &str) -> bool {
        self.ledger.sources.get(&name.to_string()).is_some_and(|known| known != directory)
    }

    /// Forgets what is known of names that nobody wants; not before their back-off is over, or taking a name out and in
    /// would be a way round it.
    pub(super) fn sweep(&mut self, is_wanted: impl Fn(&str) -> bool, now: Timestamp) {
        self.ledger.failures.retain(|name, failures| is_wanted(name) || failures.next > Some(now));
    }
}

/// Counts one more, and says when to try again: after twice as long each time, up to a day.
pub(super) fn fail(
    failures: &mut Failures,
    first: Duration,
    now: Timestamp,
    error: &str,
    retry_after: Option<Duration>,
) {
    let doubled = first.saturating_mul(1 << failures.count.min(20)).min(BACK_OFF_MAX);
    let wait = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX).max(doubled);
    failures.count = failures.count.saturating_add(1);
    failures.next = Some(now + SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX));
    error.clone_into(&mut failures.error);
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_secs(60);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn name(text: &str) -> HostPattern {
        text.parse().unwrap()
    }

    fn governor(orders_per_hour: usize) -> Governor {
        Governor::new(Ledger::default(), orders_per_hour, FIRST)
    }

    #[test]
    fn each_failure_doubles_the_wait_up_to_a_day_and_a_success_ends_it() {
        let (mut governor, a) = (governor(1000), name("a.test"));
        let mut now = at(0);
        for (round, expected) in [60, 120, 240, 480].into_iter().enumerate() {
            governor.begin(&a, now);
            governor.failed(&a, now, "no", None);
            assert_eq!(governor.begins_at(&a, now), now + Duration::from_secs(expected), "round {round}");
            assert_eq!(governor.begins_at(&name("b.test"), now), now, "others have nothing to do with it");
            now = governor.begins_at(&a, now);
        }
        for _ in 0..40 {
            governor.begin(&a, now);
            governor.failed(&a, now, "no", None);
            now = governor.begins_at(&a, now);
        }
        governor.begin(&a, now);
        governor.failed(&a, now, "no", None);
        assert_eq!(governor.begins_at(&a, now), now + BACK_OFF_MAX);
        governor.succeeded(&a, "d");
        assert_eq!(governor.begins_at(&a, now), now);
    }

    /// Fixed fault: other settings had to wait for the back-off of what those before them had begun.
    #[test]
    fn what_was_dropped_for_other_settings_has_not_failed_and_is_an_order_all_the_same() {
        let (mut governor, a) = (governor(2), name("a.test"));
        governor.begin(&a, at(0));
        governor.dropped(&a);
        assert_eq!(governor.begins_at(&a, at(1)), at(1));
        governor.begin(&a, at(1));
        governor.failed(&a, at(1), "no", None);
        governor.begin(&a, at(61));
        governor.dropped(&a);
        assert_eq!(governor.failures(&a).unwrap().count, 1, "what failed before stays");
        assert_eq!(governor.begins_at(&a, at(62)), at(3601), "two orders in an hour");
    }

    #[test]
    fn what_was_begun_before_a_crash_has_failed() {
        let (mut governor, a) = (governor(1000), name("a.test"));
        governor.begin(&a, at(0));
        let text = serde_json::to_string(&governor.ledger).unwrap();
        let again = Governor::new(serde_json::from_str(&text).unwrap(), 1000, FIRST);
        assert_eq!(again.begins_at(&a, at(1)), at(60));
        assert_eq!(again.failures(&a).unwrap().count, 1);
    }

    #[test]
    fn no_hour_has_more_orders_than_are_allowed() {
        let mut governor = governor(3);
        let mut begun = Vec::new();
        for second in (0..20_000).step_by(60) {
            let host = name(&format!("h{second}.test"));
            if governor.begins_at(&host, at(second)) <= at(second) {
                governor.begin(&host, at(second));
                governor.succeeded(&host, "d");
                begun.push(second);
            }
        }
        assert!(begun.len() >= 15, "{begun:?}");
        for window in begun.windows(4) {
            assert!(window[3] - window[0] >= 3600, "{window:?}");
        }
    }

    #[test]
    fn the_authority_is_obeyed_but_not_for_ever() {
        let (mut governor, a) = (governor(1000), name("a.test"));
        governor.begin(&a, at(0));
        governor.failed(&a, at(0), "rate limited", Some(Duration::from_secs(9000)));
        assert_eq!(governor.begins_at(&a, at(0)), at(9000));
        governor.begin(&a, at(0));
        governor.failed(&a, at(0), "rate limited", Some(Duration::from_secs(u64::MAX)));
        assert_eq!(governor.begins_at(&a, at(0)), at(0) + RETRY_AFTER_MAX);
    }

    #[test]
    fn an_authority_that_is_away_is_no_name_s_failure_and_holds_all_of_them() {
        let (mut governor, a, b) = (governor(1), name("a.test"), name("b.test"));
        governor.begin(&a, at(0));
        governor.authority_failed(&a, at(0), "away", Concern::Authority, None);
        assert_eq!(governor.failures(&a), None);
        assert_eq!(governor.begins_at(&b, at(0)), at(60));
        governor.begin(&b, at(60));
        governor.authority_failed(&b, at(60), "away", Concern::Authority, None);
        assert_eq!(governor.begins_at(&a, at(60)), at(180));
        governor.begin(&a, at(180));
        governor.succeeded(&a, "d");
        assert_eq!(governor.authority(), None);
    }

    #[test]
    fn whoever_asks_elsewhere_or_as_another_does_not_wait_for_what_was_before_him() {
        let applicant = |directory: &str, external_account: &str| Applicant {
            directory: directory.to_owned(),
            external_account: external_account.to_owned(),
        };
        let (first, a) = (applicant("one", ""), name("a.test"));
        for (concern, next, waits) in [
            (Concern::ExternalAccount, applicant("one", ""), true),
            (Concern::ExternalAccount, applicant("one", "other"), false),
            (Concern::Authority, applicant("one", "other"), true),
            (Concern::Authority, applicant("two", ""), false),
        ] {
            let mut governor = governor(1000);
            governor.ask_as(first.clone());
            governor.begin(&a, at(0));
            governor.authority_failed(&a, at(0), "no", concern, Some(Duration::from_secs(9000)));
            let text = serde_json::to_string(&governor.ledger).unwrap();
            let mut again = Governor::new(serde_json::from_str(&text).unwrap(), 1000, FIRST);
            again.ask_as(next.clone());
            let expected = if waits { at(9000) } else { at(1) };
            assert_eq!(again.begins_at(&a, at(1)), expected, "{concern:?} {next:?}");
        }
    }

    #[test]
    fn an_authority_that_refuses_to_say_when_to_renew_is_left_alone_for_as_long_as_it_wants_within_bounds() {
        for (seconds, expected) in
            [(7200, 7200), (0, 60), (59, 60), (u64::MAX, RETRY_AFTER_MAX.as_secs().cast_signed())]
        {
            let (mut governor, a) = (governor(1000), name("a.test"));
            governor.ask_as(Applicant { directory: "one".to_owned(), ..Applicant::default() });
            assert_eq!(governor.asks_at(at(0)), at(0));
            assert_eq!(governor.ask_later(at(0), Duration::from_secs(seconds)), at(expected));
            let text = serde_json::to_string(&governor.ledger).unwrap();
            let mut again = Governor::new(serde_json::from_str(&text).unwrap(), 1000, FIRST);
            assert_eq!(again.asks_at(at(1)), at(expected), "after a restart");
            assert_eq!(again.begins_at(&a, at(1)), at(1), "orders have nothing to do with it");
            // A clock that was set back.
            assert_eq!(again.asks_at(at(-900_000)), at(-900_000) + RETRY_AFTER_MAX);
            again.ask_as(Applicant { directory: "two".to_owned(), ..Applicant::default() });
            assert_eq!(again.asks_at(at(1)), at(1), "another one did not refuse");
        }
    }

    #[test]
    fn an_authority_that_is_away_is_not_asked_when_to_renew() {
        let (mut governor, a) = (governor(1000), name("a.test"));
        governor.begin(&a, at(0));
        governor.authority_failed(&a, at(0), "away", Concern::Authority, None);
        assert_eq!(governor.asks_at(at(1)), at(60));
    }

    #[test]
    fn a_name_that_is_taken_out_and_put_in_again_still_waits() {
        let (mut governor, a) = (governor(1000), name("a.test"));
        governor.begin(&a, at(0));
        governor.sweep(|_| false, at(30));
        assert_eq!(governor.begins_at(&a, at(30)), at(60));
        governor.sweep(|_| false, at(61));
        assert_eq!(governor.failures(&a), None);
    }
}
