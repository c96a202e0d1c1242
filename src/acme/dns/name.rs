//! A name of the DNS, in the one form that is compared and signed: lower case, uncompressed (RFC 4034 section 6.2).

use std::fmt;
use std::str::FromStr;

const LABEL_BYTES_MAX: usize = 63;
const NAME_BYTES_MAX: usize = 255;

/// Labels, each behind its length, the empty one of the root last.
#[derive(Clone, PartialEq, Eq)]
pub struct DnsName(Box<[u8]>);

/// Not a name of the DNS.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a name of the DNS: {problem}")]
pub struct DnsNameError {
    text: String,
    problem: &'static str,
}

impl DnsName {
    /// Of labels as a message has them.
    pub(super) fn of_labels<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, &'static str> {
        let mut wire = Vec::new();
        for label in labels {
            let length = u8::try_from(label.len()).unwrap_or(u8::MAX);
            match usize::from(length) {
                0 => return Err("a label is empty"),
                length if length > LABEL_BYTES_MAX => return Err("a label is longer than 63 octets"),
                _ => wire.push(length),
            }
            wire.extend(label.iter().map(u8::to_ascii_lowercase));
        }
        wire.push(0);
        if wire.len() > NAME_BYTES_MAX {
            return Err("it is longer than 255 octets");
        }
        Ok(Self(wire.into()))
    }

    pub(super) fn as_wire(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is `zone`, or a name below it.
    #[must_use]
    pub fn is_within(&self, zone: &Self) -> bool {
        let mut rest: &[u8] = &self.0;
        while rest != &*zone.0 {
            let Some((length, behind)) = rest.split_first() else { return false };
            rest = behind.get(usize::from(*length)..).unwrap_or_default();
        }
        true
    }

    fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest: &[u8] = &self.0;
        std::iter::from_fn(move || {
            let (length, behind) = rest.split_first().filter(|(length, _)| **length > 0)?;
            let (label, behind) = behind.split_at_checked(usize::from(*length))?;
            rest = behind;
            Some(label)
        })
    }
}

impl FromStr for DnsName {
    type Err = DnsNameError;

    fn from_str(text: &str) -> Result<Self, DnsNameError> {
        let problem = |problem| DnsNameError { text: text.to_owned(), problem };
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !name.bytes().all(is_plain) {
            return Err(problem("only letters, digits, -, _ and . are allowed"));
        }
        Self::of_labels(name.split('.').map(str::as_bytes)).map_err(problem)
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.labels().next().is_none() {
            return f.write_str(".");
        }
        for (at, label) in self.labels().enumerate() {
            let dot = if at == 0 { "" } else { "." };
            write!(f, "{dot}{}", label.escape_ascii())?;
        }
        Ok(())
    }
}

impl fmt::Debug for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> DnsName {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_is_compared_without_case_and_trailing_dot() {
        assert_eq!(name("Example.COM."), name("example.com"));
        assert_eq!(name("Example.COM.").to_string(), "example.com");
        assert_eq!(name("a.bc").as_wire(), b"\x01a\x02bc\x00");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(64);
        let longer = "a.".repeat(127) + "ab";
        for bad in ["", ".", "a..b", ".a", "a b", "é.test", "a/b", &long, &longer] {
            assert!(bad.parse::<DnsName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_zone_has_the_names_below_it_by_whole_labels() {
        for (below, zone, expected) in [
            ("_acme-challenge.a.test", "a.test", true),
            ("a.test", "a.test", true),
            ("a.test", "test", true),
            ("ba.test", "a.test", false),
            ("test", "a.test", false),
            ("a.test.b", "a.test", false),
        ] {
            assert_eq!(name(below).is_within(&name(zone)), expected, "{below} {zone}");
        }
        // What looks like the length of a label, and stands in one.
        let strange = DnsName::of_labels([&b"x\x01a"[..], b"test"]).unwrap();
        assert!(!strange.is_within(&name("a.test")));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(labels in prop::collection::vec("[a-z0-9_-]{1,40}", 1..6)) {
            let text = labels.join(".");
            prop_assert_eq!(name(&text).to_string(), text);
        }
    }
}
