//! A new version held against the one before it by what clients got: the figures, and whether they are worse.
//!
//! Only what the application failed counts: 5xx, malformed answers, refused or reset connections, time-outs. Not 4xx,
//! not clients that leave, and nothing that Lockgate refused or cut.
//!
//! Two figures that differ by chance differ little where there were many requests, and much where there were few. So
//! the error rate has to be worse by the points that the settings give, and by [`DEVIATIONS`] standard deviations of
//! the difference that chance alone makes.

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
    /// 99 of 100 answers took at most that long to the head, in microseconds.
    pub p99_us: Option<u64>,
}

/// What each live version did of late, sampled now and then.
#[derive(Debug, Default)]
pub(super) struct Baselines(Mutex<HashMap<DeploymentId, VecDeque<(Instant, Tally)>>>);

impl Evidence {
    /// Why the new version is given up; `None` while nothing speaks against it, or too few requests speak at all.
    pub(super) fn against(old: &Figures, new: &Tally, rule: &RollbackOn) -> Option<Failure> {
        let figures = Figures::of(new);
        if old.requests < rule.min_requests || figures.requests < rule.min_requests {
            return None;
        }
        let (code, cause) = too_many_errors(old, &figures, rule.error_rate)
            .map(|cause| ("error_rate", cause))
            .or_else(|| too_slow(old, new, rule.latency_p99).map(|cause| ("latency", cause)))?;
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
        Self { requests, failed: tally.failed_by_app, p99_us }
    }

    fn error_rate(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.failed as f64 / self.requests as f64 }
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { requests, failed, p99_us } = self;
        write!(f, "{requests} requests, {failed} failed ({:.1} %)", self.error_rate() * 100.0)?;
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

fn too_many_errors(old: &Figures, new: &Figures, points: Option<Percent>) -> Option<String> {
    let points = points?;
    let (before, now) = (old.error_rate(), new.error_rate());
    let all = (old.requests + new.requests) as f64;
    let together = (old.failed + new.failed) as f64 / all;
    let spread = 1.0 / old.requests as f64 + 1.0 / new.requests as f64;
    let by_chance = (together * (1.0 - together) * spread).sqrt();
    let worse = now - before;
    if worse < points.share() || worse < DEVIATIONS * by_chance {
        return None;
    }
    let (now, before) = (now * 100.0, before * 100.0);
    Some(format!("{now:.1} % of its requests failed, of the version before {before:.1} %"))
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
            // Too few, on either side.
            ((1000, 0), (0, 99), false),
            ((99, 0), (0, 1000), false),
            ((0, 0), (0, 1000), false),
            // Ten points more, as chance has it every now and then.
            ((60, 40), (50, 50), false),
        ] {
            let took = Duration::from_millis(5);
            let before = Figures::of(&tally(old.0, old.1, took));
            let found = Evidence::against(&before, &tally(new.0, new.1, took), &rule);
            assert_eq!(found.is_some(), expected, "{old:?} {new:?}: {found:?}");
            assert!(found.is_none_or(|failure| failure.code == "error_rate"));
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
            let found = Evidence::against(&before, &new, rule);
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
        assert_eq!(Evidence::against(&before, &stats.tally(), &asked), None);
    }

    #[test]
    fn a_version_is_compared_with_what_it_did_of_late() {
        let publisher = Publisher::new(Arc::new(Routing::new(1)), [0; 32]);
        let version = DeploymentId::generate();
        let owner = Owner {
            app: "web".parse().unwrap(),
            environment: EnvironmentName::production(),
            deployment: version,
            sequence: 1,
            has_pages: false,
            preview_auth: None,
            pages_for: None,
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
