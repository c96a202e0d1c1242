//! Which status codes of a health check are a success.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// One status code or a range of them: `204`, `200-399`.
#[derive(Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct StatusRange {
    first: u16,
    last: u16,
}

impl StatusRange {
    /// Whether `status` is one of them.
    #[must_use]
    pub const fn contains(self, status: u16) -> bool {
        self.first <= status && status <= self.last
    }
}

impl Default for StatusRange {
    fn default() -> Self {
        Self { first: 200, last: 299 }
    }
}

impl FromStr for StatusRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let code = |text: &str| text.trim().parse().ok().filter(|code| (200..=599).contains(code));
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (code(first), code(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!("{text:?} is no status code and no range of them: write 204 or 200-399")),
        }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return self.first.fmt(f);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl fmt::Debug for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for StatusRange {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(TextOrNumber)
    }
}

/// YAML takes `204` for a number.
struct TextOrNumber;

impl Visitor<'_> for TextOrNumber {
    type Value = StatusRange;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a status code or a range of them")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<StatusRange, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<StatusRange, E> {
        self.visit_str(&number.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_or_a_range_is_read_and_written_as_it_is_meant() {
        for (json, contained, shown) in [
            ("\"200-399\"", [200, 302, 399], "200-399"),
            ("204", [204, 204, 204], "204"),
            ("\" 301 - 308 \"", [301, 302, 308], "301-308"),
        ] {
            let range: StatusRange = serde_json::from_str(json).unwrap();
            assert!(contained.iter().all(|status| range.contains(*status)), "{json}");
            assert!(!range.contains(contained[0] - 1) && !range.contains(contained[2] + 1), "{json}");
            assert_eq!(range.to_string(), shown);
            assert_eq!(serde_json::to_string(&range).unwrap(), format!("{shown:?}"));
        }
        for bad in ["\"\"", "\"2xx\"", "\"399-200\"", "\"100-199\"", "\"200-600\"", "99", "-1", "true"] {
            let error = serde_json::from_str::<StatusRange>(bad).unwrap_err().to_string();
            assert!(error.contains("status code"), "{bad}: {error}");
        }
    }
}
