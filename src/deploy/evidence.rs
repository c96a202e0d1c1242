//! A new version held against the one before it by what clients got: the figures, and whether they are worse.
//!
//! Only what the application failed counts: 5xx, malformed answers, refused or reset connections, time-outs. Not 4xx,
//! not clients that leave, and nothing that Lockgate refused or cut.
//!
//! Two figures that differ by chance differ little where there were many requests, and much where there were few. So
//! the error rate has to be worse by the points that the settings give, and by [`DEVIATIONS`] standard deviations of
//! the difference that chance alone makes. Where either version had few requests that measure is none, and only a
//! version that fails nearly all of them is given up: if drawing as many requests from those of both versions, blindly,
//! would hardly ever give so many failures (Fisher's exact test), without those that came too late, which a busy
//! machine makes of any version's.
//!
//! Whatever the figures before: a version is not given up for what the one before it fails as well meanwhile.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::publisher::Publisher;
use crate::ids::{AppName, DeploymentId};
use crate::settings::{Percent, RollbackOn};
use crate::store::Failure;
use crate::telemetry::Tally;

/// One look in a thousand would see that much by chance.
const DEVIATIONS: f64 = 3.0;
/// Where there are few requests: of so many at least of the new version's,
const FEW_MIN: u64 = 10;
/// so large a share has to fail,
const NEARLY_ALL: f64 = 0.9;
/// and chance may make that of what both versions did once in so many times. Small, because there are ten looks a second.
const BY_CHANCE: f64 = 1.0 / 100_000.0;
/// Fewer requests of the version before, since the new one gets some, excuse nothing.
const MEANWHILE_MIN: u64 = 5;
/// Fewer slow requests than that say nothing of the slowest hundredth.
const SLOW_MIN: u64 = 5;
/// What the version before did is remembered in steps of that,
const SAMPLE_EVERY: Duration = Duration::from_secs(60);
/// and so many of them: its error rate is that of the last ten minutes.
const SAMPLES: usize = 10;

/// What clients got from both versions while the new one was watched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Evidence {
    /// The version before, in the ten minutes before the cutover.
    pub old: Figures,
    /// The new version, since the cutover.
    pub new: Figures,
}

/// What clients got from one version.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Figures {
    /// Requests that the app answered or failed; streams, and clients that left, are not among them.
    pub requests: u64,
    /// Of those, what the app failed: 5xx, malformed, too late, reset, or no connection.
    pub failed: u64,
    /// Of those, what came too late.
    #[serde(default)]
    pub late: u64,
    /// 99 of 100 answers took at most that long to the head, in microseconds.
    pub p99_us: Option<u64>,
}

/// What a new version is judged by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case<'a> {
    /// What clients got from the version before, until the new one had a share of them,
    pub(super) before: &'a Figures,
    /// and since then, where it goes on.
    pub(super) meanwhile: &'a Tally,
    pub(super) new: &'a Tally,
}

/// What each live version did of late, sampled now and then.
#[derive(Debug, Default)]
pub(super) struct Baselines(Mutex<HashMap<DeploymentId, VecDeque<(Instant, Tally)>>>);

impl Evidence {
    /// Why the new version is given up; `None` while nothing speaks against it, or too few requests speak at all.
    pub(super) fn against(case: Case<'_>, rule: &RollbackOn) -> Option<Failure> {
        let (old, figures) = (case.before, Figures::of(case.new));
        let are_enough = old.requests >= rule.min_requests && figures.requests >= rule.min_requests;
        let errors = rule.error_rate.and_then(|points| {
            let found = if are_enough {
                too_many_errors(old, &figures, points)
            } else {
                nearly_all_failed(old, &figures, points)
            };
            found.filter(|_| !is_excused(&Figures::of(case.meanwhile), &figures, points))
        });
        let slow = || too_slow(old, case.new, rule.latency_p99.filter(|_| are_enough));
        let (code, cause) =
            errors.map(|cause| ("error_rate", cause)).or_else(|| slow().map(|cause| ("latency", cause)))?;
        let evidence = [format!("new version: {figures}"), format!("version before: {old}")];
        Some(Failure::new(code, cause).seen(evidence).remedy(
            "look at its logs; deploy.rollback_on says how much worse than the version before it may be",
        ))
    }
}

impl Figures {
    pub(super) fn of(tally: &Tally) -> Self {
        let p99_us = tally.answered_in.p99().map(|p99| u64::try_from(p99.as_micros()).unwrap_or(u64::MAX));
        let requests = tally.answered_in.count() + tally.failed_by_app;
        Self { requests, failed: tally.failed_by_app, late: tally.late_by_app, p99_us }
    }

    /// Without what came too late.
    fn in_time(&self) -> Self {
        let Self { requests, failed, late, p99_us } = *self;
        Self { requests: requests - late.min(requests), failed: failed - late.min(failed), late: 0, p99_us }
    }

    fn error_rate(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.failed as f64 / self.requests as f64 }
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { requests, failed, late, p99_us } = self;
        write!(f, "{requests} requests, {failed} failed ({:.1} %)", self.error_rate() * 100.0)?;
        if *late > 0 {
            write!(f, ", {late} of them for coming too late")?;
        }
        match p99_us {
            Some(micros) => write!(f, ", 99 of 100 answered within {:.1} ms", *micros as f64 / 1000.0),
            None => Ok(()),
        }
    }
}

impl Baselines {
    /// Remembers what has been counted until `now`. To be called now and then.
    pub(super) fn sample(&self, publisher: &Publisher, now: Instant) {
        let all = publisher.live_tallies();
        let mut known = self.lock();
        known.retain(|version, _| all.iter().any(|(other, _)| other == version));
        for (version, tally) in all {
            let samples = known.entry(version).or_default();
            if samples.back().is_some_and(|(at, _)| now.saturating_duration_since(*at) < SAMPLE_EVERY) {
                continue;
            }
            if samples.len() == SAMPLES {
                samples.pop_front();
            }
            samples.push_back((now, tally));
        }
    }

    /// What was counted of the app's versions begins anew.
    pub(super) fn forget_all_of(&self, publisher: &Publisher, app: &AppName) {
        let versions = publisher.units_of_app(app);
        self.lock().retain(|version, _| versions.iter().all(|(other, _)| other != version));
    }

    /// What clients got from `version` of late: of the last ten minutes, or since it was first served.
    pub(super) fn of(&self, publisher: &Publisher, version: DeploymentId) -> Option<Figures> {
        let tally = publisher.live_stats(version)?.tally();
        let known = self.lock();
        let full = known.get(&version).filter(|samples| samples.len() == SAMPLES);
        let oldest = full.and_then(|samples| samples.front());
        Some(Figures::of(&oldest.map_or_else(|| tally.clone(), |(_, before)| tally.since(before))))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeploymentId, VecDeque<(Instant, Tally)>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn too_many_errors(old: &Figures, new: &Figures, points: Percent) -> Option<String> {
    let all = (old.requests + new.requests) as f64;
    let together = (old.failed + new.failed) as f64 / all;
    let spread = 1.0 / old.requests as f64 + 1.0 / new.requests as f64;
    let by_chance = (together * (1.0 - together) * spread).sqrt();
    let worse = new.error_rate() - old.error_rate();
    let is_worse = worse >= points.share() && worse >= DEVIATIONS * by_chance;
    is_worse.then(|| told(old, new))
}

fn nearly_all_failed(old: &Figures, new: &Figures, points: Percent) -> Option<String> {
    let (old, new) = (old.in_time(), new.in_time());
    let is_worse = new.requests >= FEW_MIN
        && new.error_rate() >= NEARLY_ALL
        && new.error_rate() - old.error_rate() >= points.share();
    (is_worse && by_chance(&old, &new) <= BY_CHANCE).then(|| told(&old, &new))
}

fn told(old: &Figures, new: &Figures) -> String {
    let (now, before) = (new.error_rate() * 100.0, old.error_rate() * 100.0);
    format!("{now:.1} % of its requests failed, of the version before {before:.1} %")
}

/// Whether the version before is hardly better since the new one gets requests: then it is something else that fails.
fn is_excused(meanwhile: &Figures, new: &Figures, points: Percent) -> bool {
    meanwhile.requests >= MEANWHILE_MIN && new.error_rate() - meanwhile.error_rate() < points.share()
}

/// How probable it is that so many or more of the failures of both fall to the new version's requests, if nothing but
/// chance says whose they are: the tail of the hypergeometric distribution.
fn by_chance(old: &Figures, new: &Figures) -> f64 {
    let all = old.requests + new.requests;
    let failed = old.failed + new.failed;
    let good = all - failed;
    let first = new.failed;
    let mut one = (ln_choose(failed, first) + ln_choose(good, new.requests - first)
        - ln_choose(all, new.requests))
    .exp();
    let mut sum = one;
    for count in first..new.requests.min(failed) {
        let more = (failed - count) as f64 * (new.requests - count) as f64;
        let fewer = (count + 1) as f64 * (good + count + 1 - new.requests) as f64;
        one *= more / fewer;
        sum += one;
    }
    sum
}

/// The logarithm of the number of ways to choose `count` of `all`.
fn ln_choose(all: u64, count: u64) -> f64 {
    let count = count.min(all - count);
    (1..=count).map(|at| ((all - count + at) as f64 / at as f64).ln()).sum()
}

fn too_slow(old: &Figures, new: &Tally, ratio: Option<Percent>) -> Option<String> {
    let before = Duration::from_micros(old.p99_us?);
    let limit = before.mul_f64(ratio?.share());
    let slower = new.answered_in.slower_than(limit);
    let hundredth = new.answered_in.count() / 100;
    if slower < SLOW_MIN || slower <= hundredth {
        return None;
    }
    let of = new.answered_in.count();
    let before = before.as_secs_f64() * 1000.0;
    let limit = limit.as_secs_f64() * 1000.0;
    Some(format!(
        "{slower} of {of} answers took longer than {limit:.1} ms; 99 of 100 of the version before took at most {before:.1} ms"
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{Method, StatusCode};

    use super::super::publisher::Owner;
    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::ids::EnvironmentName;
    use crate::routing::Routing;
    use crate::telemetry::{BackendStats, FailedBy};

    fn tally(answered: u64, failed: u64, took: Duration) -> Tally {
        let stats = BackendStats::for_service("some", 1);
        for at in 0..answered + failed {
            stats.of(0).respond(&Method::GET, StatusCode::OK, http::Version::HTTP_11);
            if at < failed { stats.of(0).fail(FailedBy::App) } else { stats.of(0).answered(took) }
        }
        stats.tally()
    }

    fn against(before: &Figures, new: &Tally, rule: &RollbackOn) -> Option<Failure> {
        Evidence::against(Case { before, meanwhile: &Tally::default(), new }, rule)
    }

    #[test]
    fn more_errors_than_before_speak_against_a_version_only_where_there_were_enough_requests() {
        let rule = RollbackOn::default();
        for (old, new, expected) in [
            ((1000, 0), (80, 20), true),
            // One more than the points ask for.
            ((1000, 0), (90, 11), true),
            ((1000, 0), (95, 5), false),
            // It always failed, or failed as often.
            ((0, 1000), (0, 1000), false),
            ((500, 500), (60, 60), false),
            ((500, 500), (20, 100), true),
            // Too few, on either side, and not nearly all of them.
            ((1000, 0), (20, 79), false),
            ((99, 0), (500, 500), false),
            // Ten points more, as chance has it every now and then.
            ((60, 40), (50, 50), false),
        ] {
            let took = Duration::from_millis(5);
            let before = Figures::of(&tally(old.0, old.1, took));
            let found = against(&before, &tally(new.0, new.1, took), &rule);
            assert_eq!(found.is_some(), expected, "{old:?} {new:?}: {found:?}");
            assert!(found.is_none_or(|failure| failure.code == "error_rate"));
        }
    }

    #[test]
    fn of_few_requests_nearly_all_have_to_fail_and_not_by_chance() {
        let rule = RollbackOn::default();
        for (old, new, expected) in [
            ((1000, 0), (0, 10), true),
            ((20, 0), (0, 20), true),
            ((10, 0), (0, 10), true),
            ((1000, 0), (1, 19), true),
            ((99, 0), (0, 1000), true),
            // Half of them, or a few: nobody knows.
            ((1000, 0), (10, 10), false),
            ((1000, 0), (0, 9), false),
            ((5, 0), (0, 10), false),
            ((0, 0), (0, 1000), false),
            // What failed often before has to be seen to fail more for longer.
            ((50, 50), (0, 12), false),
            ((50, 50), (0, 40), true),
            ((10, 90), (0, 90), false),
            ((0, 50), (0, 50), false),
        ] {
            let took = Duration::from_millis(5);
            let before = Figures::of(&tally(old.0, old.1, took));
            let found = against(&before, &tally(new.0, new.1, took), &rule);
            assert_eq!(found.is_some(), expected, "{old:?} {new:?}: {found:?}");
        }
        let off = RollbackOn { error_rate: None, ..rule };
        let before = Figures::of(&tally(1000, 0, Duration::ZERO));
        assert_eq!(against(&before, &tally(0, 50, Duration::ZERO), &off), None);
    }

    #[test]
    fn of_few_requests_those_that_came_too_late_say_nothing() {
        let rule = RollbackOn::default();
        let before = Figures::of(&tally(1000, 0, Duration::from_millis(5)));
        for (late, failed, expected) in [(20, 0, false), (90, 9, false), (20, 10, true)] {
            let stats = BackendStats::for_service("some", 1);
            (0..late).for_each(|_| stats.of(0).fail(FailedBy::AppTooLate));
            (0..failed).for_each(|_| stats.of(0).fail(FailedBy::App));
            // What Lockgate itself refuses is nobody's.
            (0..50).for_each(|_| stats.of(0).fail(FailedBy::Us));
            let found = against(&before, &stats.tally(), &rule);
            assert_eq!(found.is_some(), expected, "{late} late, {failed} failed: {found:?}");
        }
    }

    #[test]
    fn a_version_is_not_given_up_for_what_the_one_before_fails_as_well_meanwhile() {
        let rule = RollbackOn::default();
        let took = Duration::from_millis(5);
        let before = Figures::of(&tally(1000, 0, took));
        for (new, meanwhile, expected) in [
            ((0, 20), (0, 20), false),
            ((0, 20), (1, 19), false),
            ((0, 20), (20, 0), true),
            ((0, 20), (0, 1), true),
            ((500, 500), (50, 50), false),
            ((500, 500), (100, 0), true),
        ] {
            let meanwhile = &tally(meanwhile.0, meanwhile.1, took);
            let new = &tally(new.0, new.1, took);
            let found = Evidence::against(Case { before: &before, meanwhile, new }, &rule);
            assert_eq!(found.is_some(), expected, "{new:?} {meanwhile:?}: {found:?}");
        }
    }

    #[test]
    fn chance_is_what_the_tables_of_the_exact_test_say() {
        let figures = |requests, failed| Figures { requests, failed, ..Figures::default() };
        for (old, new, expected) in [
            // The lady who tasted tea, all right and one wrong.
            ((4, 0), (4, 4), 1.0 / 70.0),
            ((4, 1), (4, 3), 17.0 / 70.0),
            ((10, 0), (10, 10), 1.0 / 184_756.0),
            ((10, 10), (10, 10), 1.0),
            ((0, 0), (10, 10), 1.0),
            ((7, 2), (5, 0), 1.0),
        ] {
            let is = by_chance(&figures(old.0, old.1), &figures(new.0, new.1));
            assert!((is / expected - 1.0).abs() < 1e-9, "{old:?} {new:?}: {is}, not {expected}");
        }
    }

    #[test]
    fn slower_answers_speak_against_a_version_only_where_that_is_asked_for() {
        let before = Figures::of(&tally(1000, 0, Duration::from_millis(10)));
        let asked = RollbackOn { latency_p99: Some(Percent::of(300)), ..RollbackOn::default() };
        for (millis, rule, expected) in
            [(100, &asked, true), (20, &asked, false), (100, &RollbackOn::default(), false)]
        {
            let new = tally(200, 0, Duration::from_millis(millis));
            let found = against(&before, &new, rule);
            assert_eq!(
                found.map(|failure| failure.code),
                expected.then(|| "latency".to_owned()),
                "{millis} ms"
            );
        }
        // A few slow ones are no hundredth.
        let stats = BackendStats::for_service("some", 1);
        (0..996).for_each(|_| stats.of(0).answered(Duration::from_millis(10)));
        (0..4).for_each(|_| stats.of(0).answered(Duration::from_secs(10)));
        assert_eq!(against(&before, &stats.tally(), &asked), None);
    }

    #[test]
    fn a_version_is_compared_with_what_it_did_of_late() {
        let publisher = Publisher::new(Arc::new(Routing::new(1)), Arc::new(SystemClock), [0; 32]);
        let version = DeploymentId::generate();
        let owner = Owner {
            app: "web".parse().unwrap(),
            environment: EnvironmentName::production(),
            deployment: version,
            sequence: 1,
            has_pages: false,
            preview_auth: None,
            pages_for: None,
            protocol: crate::settings::Protocol::Http1,
            tls: None,
            proxy_protocol: None,
            balance: crate::settings::BalanceSettings::default(),
            slow_start: None,
            limit: None,
            https: None,
            policies: [].into(),
            counted_in: "".into(),
        };
        publisher.set_instances(&owner, &[]);
        let stats = publisher.live_stats(version).unwrap();
        let baselines = Baselines::default();
        let began = SystemClock.now();
        let answered = |times| (0..times).for_each(|_| stats.of(0).answered(Duration::from_millis(1)));
        for minute in 0..20 {
            // Twice in a minute: the second is left out.
            for second in [0, 30] {
                baselines.sample(&publisher, began + Duration::from_secs(minute * 60 + second));
            }
            answered(1);
        }
        assert_eq!(baselines.of(&publisher, version).unwrap().requests, 10);
        publisher.forget(version);
        baselines.sample(&publisher, began);
        assert_eq!(baselines.of(&publisher, version), None);
        assert!(baselines.lock().is_empty());
    }
}
