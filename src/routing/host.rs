//! Host names as a type: compared without case, trailing dot and port.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A host name in the one form that is compared: lower case, no trailing dot, no port. International names are
/// in A-label form; IP literals are names like any other, IPv6 in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Box<str>);

/// What a route is for: one host name, all names one label below a suffix, or whatever no other route matches.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    Exact(HostName),
    /// `*.suffix`
    Wildcard(HostName),
    /// `*`
    Any,
}

/// Not a host name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a host name: {problem}")]
pub struct HostError {
    text: String,
    problem: &'static str,
}

impl HostName {
    /// Parses the value of `Host` or the authority of a request target: a name and perhaps a port
    /// (RFC 9110 section 7.2, RFC 3986 section 3.2).
    ///
    /// # Errors
    /// Names what is wrong with it; such a request is answered with 400.
    pub fn from_authority(text: &str) -> Result<Self, HostError> {
        let (name, port) = split_port(text).ok_or_else(|| problem(text, "the IPv6 literal does not end"))?;
        if port.is_some_and(|port| !is_port(port)) {
            return Err(problem(text, "the port is not a number up to 65535"));
        }
        name.parse().map_err(|HostError { problem, .. }| HostError { text: text.to_owned(), problem })
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// First label and rest, if there are both and it is not an IP literal.
    #[must_use]
    pub fn split_first_label(&self) -> Option<(&str, &str)> {
        if self.0.starts_with('[') || self.0.parse::<Ipv4Addr>().is_ok() {
            return None;
        }
        self.0.split_once('.')
    }
}

impl FromStr for HostName {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        if let Some(literal) = text.strip_prefix('[') {
            let address = literal.strip_suffix(']').and_then(|inner| inner.parse::<Ipv6Addr>().ok());
            let address = address.ok_or_else(|| problem(text, "not an IPv6 literal"))?;
            return Ok(Self(format!("[{address}]").into()));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        check_labels(name).map_err(|cause| problem(text, cause))?;
        Ok(Self(name.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostPattern {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        match text.strip_prefix("*.") {
            _ if text == "*" => Ok(Self::Any),
            Some(suffix) => Ok(Self::Wildcard(suffix.parse()?)),
            None => Ok(Self::Exact(text.parse()?)),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    let after_literal = if text.starts_with('[') { text.find(']')? + 1 } else { 0 };
    match text[after_literal..].find(':') {
        None => Some((text, None)),
        Some(at) => Some((&text[..after_literal + at], Some(&text[after_literal + at + 1..]))),
    }
}

/// Empty is allowed: RFC 3986 section 3.2.3.
fn is_port(text: &str) -> bool {
    text.is_empty()
        || (text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok())
}

/// What a name consists of. Underscores are not RFC 1123, but names with them exist and harm nobody.
static IS_NAME: [bool; 256] = {
    let mut is_name = [false; 256];
    let mut byte: u8 = 0;
    while byte < 128 {
        is_name[byte as usize] = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        byte += 1;
    }
    is_name
};

/// In one pass: it is done for every name that a connection did not ask for before.
fn check_labels(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("it is empty");
    }
    if name.len() > 253 {
        return Err("it is longer than 253 octets");
    }
    let (mut length, mut before) = (0_usize, b'.');
    for byte in name.bytes() {
        if !IS_NAME[usize::from(byte)] {
            return Err(
                "only letters, digits, -, _ and . are allowed; write international names in their xn-- form",
            );
        }
        if byte == b'.' {
            check_end(length, before)?;
            length = 0;
        } else if byte == b'-' && before == b'.' {
            return Err(HYPHEN);
        } else {
            length += 1;
        }
        before = byte;
    }
    check_end(length, before)
}

const HYPHEN: &str = "a label begins or ends with a hyphen";

/// That a label of that `length`, whose `last` byte it is, is one.
fn check_end(length: usize, last: u8) -> Result<(), &'static str> {
    match length {
        0 => Err("a label is empty"),
        64.. => Err("a label is longer than 63 octets"),
        _ if last == b'-' => Err(HYPHEN),
        _ => Ok(()),
    }
}

fn problem(text: &str, problem: &'static str) -> HostError {
    HostError { text: text.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever strangers send, what becomes of it is one spelling of one name, and a name again.
        #[test]
        fn a_name_has_one_spelling(text in "\\PC{0,40}|[a-zA-Z0-9.:\\[\\]-]{0,40}|[a-z]{1,9}\\.[A-Z]{1,9}\\.?(:[0-9]{0,6})?") {
            let Ok(name) = HostName::from_authority(&text) else { return Ok(()) };
            for spelling in [text.to_ascii_uppercase(), name.to_string()] {
                prop_assert_eq!(HostName::from_authority(&spelling), Ok(name.clone()), "{}", text);
            }
            prop_assert_eq!(name.as_str().parse(), Ok(name.clone()), "{}", text);
            prop_assert!(name.as_str().len() <= 253 && !name.as_str().is_empty());
            prop_assert!(name.as_str().bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()));
            if let Some((label, rest)) = name.split_first_label() {
                prop_assert!(!label.is_empty() && !label.contains('.'));
                prop_assert!(rest.parse::<HostName>().is_ok(), "{}", rest);
            }
        }
    }

    #[test]
    fn names_are_compared_without_case_dot_and_port() {
        for (text, name) in [
            ("Example.COM", "example.com"),
            ("example.com.", "example.com"),
            ("example.com:8080", "example.com"),
            ("example.com.:8080", "example.com"),
            ("example.com:", "example.com"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[0:0::1]:443", "[::1]"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("under_score.test", "under_score.test"),
        ] {
            assert_eq!(HostName::from_authority(text).unwrap().as_str(), name, "{text}");
        }
    }

    #[test]
    fn labels_and_names_are_as_long_as_they_may_be() {
        let label = "x".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", &label[..61]);
        for name in [format!("{label}.{label}"), longest.clone(), "a-b--c.d".to_owned()] {
            assert_eq!(HostName::from_authority(&name).unwrap().as_str(), name);
        }
        assert!(HostName::from_authority(&format!("{longest}x")).is_err());
    }

    #[test]
    fn what_is_not_a_host_is_refused() {
        let long = "a.".repeat(130);
        for text in [
            "",
            ".",
            ":80",
            "a..b",
            "a b",
            "a,b",
            "a/b",
            "user@a",
            "a%41",
            "-a.b",
            "a-.b",
            "a.-b",
            "a.b-",
            "a.b-.",
            "a:65536",
            "a:b",
            "a:+1",
            "a:1:2",
            "[::1",
            "[::1]x",
            "[gg]",
            "bücher.example",
            "a\0b",
            "a..",
            &long,
            &"x".repeat(64),
            &format!("a.{}.b", "x".repeat(64)),
        ] {
            assert!(HostName::from_authority(text).is_err(), "{text:?} passed");
        }
    }

    #[test]
    fn ip_literals_have_no_first_label() {
        for (text, split) in
            [("a.b.c", Some(("a", "b.c"))), ("10.0.0.1", None), ("[::1]", None), ("localhost", None)]
        {
            assert_eq!(text.parse::<HostName>().unwrap().split_first_label(), split);
        }
    }
}
