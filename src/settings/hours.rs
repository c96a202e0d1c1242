//! Office hours: at which times an app's versions go to standby, and run again.

use std::sync::LazyLock;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Of five fields, as in a crontab.
static PARSER: LazyLock<CronParser> =
    LazyLock::new(|| CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build());

/// At each of these times all that serves of an app goes to a state: its previews, and what is live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HoursSettings {
    /// Minute, hour, day of the month, month, day of the week, as in a crontab: `0 20 * * MON-FRI`. A time that a clock
    /// change leaves out comes right after it, one that comes twice comes once.
    pub cron: String,
    /// By its IANA name: `Europe/Berlin`.
    #[serde(default = "utc")]
    pub timezone: String,
    pub state: HoursState,
}

/// What a time of [`HoursSettings`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HoursState {
    /// Stopped after its drain; the next request starts it again, unless the app says `wake: false`.
    Standby,
    Running,
}

impl HoursSettings {
    /// What is wrong with it: the key, and a sentence without its subject.
    pub(super) fn fault(&self) -> Option<(&'static str, String)> {
        if let Err(cause) = self.zone() {
            return Some(("timezone", cause));
        }
        let cron = match self.parsed() {
            Ok(cron) => cron,
            Err(cause) => return Some(("cron", cause)),
        };
        let begin = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
        // The 30th of February.
        cron.find_next_occurrence(&begin, false).is_err().then(|| ("cron", "never comes".to_owned()))
    }

    /// When it was due last, `now` included; `None` if never.
    #[must_use]
    pub fn due_last(&self, now: Timestamp) -> Option<Timestamp> {
        let now = now.to_zoned(self.zone().ok()?);
        Some(self.parsed().ok()?.find_previous_occurrence(&now, true).ok()?.timestamp())
    }

    /// When it is due after `now`.
    #[must_use]
    pub fn due_next(&self, now: Timestamp) -> Option<Timestamp> {
        let now = now.to_zoned(self.zone().ok()?);
        Some(self.parsed().ok()?.find_next_occurrence(&now, false).ok()?.timestamp())
    }

    fn zone(&self) -> Result<TimeZone, String> {
        TimeZone::get(&self.timezone).map_err(|error| format!("is no time zone that is known here: {error}"))
    }

    fn parsed(&self) -> Result<Cron, String> {
        PARSER.parse(&self.cron).map_err(|error| format!("is not a cron pattern: {error}"))
    }
}

fn utc() -> String {
    "UTC".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn berlin(cron: &str) -> HoursSettings {
        HoursSettings {
            cron: cron.to_owned(),
            timezone: "Europe/Berlin".to_owned(),
            state: HoursState::Standby,
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn it_is_due_by_the_clock_of_its_zone_in_summer_and_in_winter() {
        let evening = berlin("0 20 * * *");
        assert_eq!(evening.due_next(at("2026-01-15T12:00:00Z")), Some(at("2026-01-15T19:00:00Z")));
        assert_eq!(evening.due_next(at("2026-07-15T12:00:00Z")), Some(at("2026-07-15T18:00:00Z")));
        assert_eq!(evening.due_last(at("2026-07-15T18:00:00Z")), Some(at("2026-07-15T18:00:00Z")));
        assert_eq!(evening.due_last(at("2026-07-15T17:59:59Z")), Some(at("2026-07-14T18:00:00Z")));
    }

    #[test]
    fn a_time_that_the_clock_leaves_out_in_spring_comes_right_after_it_and_once() {
        // At 2:00 it is 3:00.
        let night = berlin("30 2 * * *");
        let first = night.due_next(at("2026-03-28T12:00:00Z")).unwrap();
        assert_eq!(first, at("2026-03-29T01:00:00Z"));
        assert_eq!(night.due_next(first), Some(at("2026-03-30T00:30:00Z")));
        assert_eq!(night.due_last(at("2026-03-29T12:00:00Z")), Some(first));
    }

    #[test]
    fn a_time_that_comes_twice_in_autumn_is_due_once() {
        // At 3:00 it is 2:00 again.
        let night = berlin("30 2 * * *");
        let first = night.due_next(at("2026-10-24T12:00:00Z")).unwrap();
        assert_eq!(first, at("2026-10-25T00:30:00Z"));
        assert_eq!(night.due_next(first), Some(at("2026-10-26T01:30:00Z")));
        assert_eq!(night.due_last(at("2026-10-25T12:00:00Z")), Some(first));
    }

    #[test]
    fn what_is_no_time_says_which_key_is_wrong() {
        for (cron, zone, key) in [
            ("soon", "UTC", "cron"),
            ("0 25 * * *", "UTC", "cron"),
            ("0 0 12 * * *", "UTC", "cron"),
            ("0 0 30 2 *", "UTC", "cron"),
            ("0 20 * * *", "Europe/Berlni", "timezone"),
        ] {
            let hours =
                HoursSettings { cron: cron.into(), timezone: zone.into(), state: HoursState::Running };
            assert_eq!(hours.fault().map(|(key, _)| key), Some(key), "{cron} {zone}");
        }
        assert_eq!(berlin("0 20 * * MON-FRI").fault(), None);
    }
}
