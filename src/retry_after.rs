//! When a server wants to be asked again.

use std::time::{Duration, SystemTime};

use http::HeaderValue;

use crate::clock::Timestamp;

/// The value of a `Retry-After`: seconds, or a date (RFC 9110 section 10.2.3).
pub(crate) fn wait_of(value: &HeaderValue, now: Timestamp) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(SystemTime::from(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_in_seconds_or_as_a_date() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Thu, 01 Jan 2026 00:02:00 GMT", Some(120)),
            ("Wed, 31 Dec 2025 00:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let wait = wait_of(&HeaderValue::from_static(text), now);
            assert_eq!(wait, expected.map(Duration::from_secs), "{text}");
        }
    }
}
