//! Single values as people write them: a duration, a share, a count, and what is never shown.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// A number of instances, 1 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema, ToSchema)]
#[serde(transparent)]
#[schema(value_type = u16)]
pub struct Replicas(#[schemars(range(min = 1, max = 100))] u16);

/// A share as people write it: `10%`, up to 10000%.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema, ToSchema)]
#[schemars(with = "String")]
#[schema(value_type = String)]
pub struct Percent(u16);

/// A duration as people write it: `250ms`, `30s`, `5m`, `1h 30m`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, JsonSchema, ToSchema)]
#[schemars(with = "String")]
#[schema(value_type = String)]
pub struct Delay(pub Duration);

/// Reads one.
struct DelayText;

/// A value that appears in no answer, log, or debug output.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, JsonSchema, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String)]
pub struct Secret(String);

impl Replicas {
    /// A count of instances.
    ///
    /// # Errors
    /// Says the bounds when `count` is not 1 to 100.
    pub fn new(count: u16) -> Result<Self, String> {
        if (1..=100).contains(&count) {
            return Ok(Self(count));
        }
        Err(format!("{count} replicas are out of range: 1 to 100"))
    }

    /// The number.
    #[must_use]
    pub const fn count(self) -> u16 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Replicas {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(u16::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

impl Default for Replicas {
    fn default() -> Self {
        Self(1)
    }
}

impl Delay {
    /// No delay is longer: ten years, so that no sum of times overflows.
    pub const MAX: Self = Self::seconds(3650 * 24 * 60 * 60);

    /// `count` seconds.
    #[must_use]
    pub const fn seconds(count: u64) -> Self {
        Self(Duration::from_secs(count))
    }
}

impl Percent {
    /// The largest share that can be written.
    const MAX: u16 = 10_000;

    /// `count` in a hundred, at most 10000.
    #[must_use]
    pub const fn of(count: u16) -> Self {
        Self(if count > Self::MAX { Self::MAX } else { count })
    }

    /// How many in a hundred.
    #[must_use]
    pub const fn count(self) -> u16 {
        self.0
    }

    /// 1 for 100%.
    #[must_use]
    pub fn share(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count = text.strip_suffix('%').and_then(|count| count.trim_end().parse().ok());
        let count =
            count.ok_or_else(|| format!("{text:?} is not a share: write it with its sign, as 10%"))?;
        if count > Self::MAX {
            return Err(format!("{text:?} is too much: write {}% at most", Self::MAX));
        }
        Ok(Self(count))
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl fmt::Debug for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Delay {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Delay {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(DelayText)
    }
}

impl Visitor<'_> for DelayText {
    type Value = Delay;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration with its unit: 250ms, 30s, 5m or 1h")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Delay, E> {
        let delay = humantime::parse_duration(text).map(Delay).map_err(|cause| {
            E::custom(format!("{text:?} is not a duration ({cause}): write it as 250ms, 30s, 5m or 1h"))
        })?;
        if delay > Delay::MAX {
            return Err(E::custom(format!("{text:?} is longer than ten years")));
        }
        Ok(delay)
    }
}

impl Secret {
    /// Wraps a value.
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself: for the instance that needs it and the store that encrypts it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::AppSettings;

    #[test]
    fn a_bad_duration_says_how_to_write_one() {
        let error = serde_json::from_str::<Delay>("\"soon\"").unwrap_err().to_string();
        assert!(error.contains("\"soon\" is not a duration") && error.contains("250ms"), "{error}");
        let error = serde_json::from_str::<Delay>("\"9000000 years\"").unwrap_err().to_string();
        assert!(error.contains("longer than ten years"), "{error}");
    }

    #[test]
    fn replicas_have_bounds() {
        for bad in ["0", "101"] {
            let json = format!("{{\"replicas\":{bad}}}");
            assert!(serde_json::from_str::<AppSettings>(&json).unwrap_err().to_string().contains("1 to 100"));
        }
    }
}
