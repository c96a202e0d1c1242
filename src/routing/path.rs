//! Path prefixes, matched on a normalised copy of the path while the raw bytes go upstream.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// A path that begins with `/`, without a trailing one (but for `/` itself), already in normal form.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathPrefix(Box<str>);

/// Not a usable path prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a path prefix: it begins with / and has no query, no dot segments and no encoded letters"
)]
pub struct PrefixError {
    text: String,
}

impl PathPrefix {
    /// The prefix that every path has.
    #[must_use]
    pub fn root() -> Self {
        Self("/".into())
    }

    /// The prefix as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `/`.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.len() == 1
    }

    /// Whether `normal`, a path in normal form, lies under this prefix. A match ends at a segment.
    #[must_use]
    pub fn covers(&self, normal: &str) -> bool {
        self.is_root()
            || normal.strip_prefix(&*self.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The path that goes upstream when the prefix is stripped: what follows it in the raw path, or in the normal
    /// form where the raw path spells the prefix in another way.
    #[must_use]
    pub fn strip<'a>(&self, raw: &'a str) -> Cow<'a, str> {
        if self.is_root() {
            return Cow::Borrowed(raw);
        }
        let rest = match raw.strip_prefix(&*self.0) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => Cow::Borrowed(rest),
            _ => Cow::Owned(normalise(raw).get(self.0.len()..).unwrap_or_default().to_owned()),
        };
        if rest.is_empty() { Cow::Borrowed("/") } else { rest }
    }
}

impl FromStr for PathPrefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let is_plain =
            text.starts_with('/') && !text.contains(['?', '#', ' ', '\\']) && normalise(text) == text;
        if !is_plain {
            return Err(PrefixError { text: text.to_owned() });
        }
        let trimmed = text.trim_end_matches('/');
        Ok(Self(if trimmed.is_empty() { "/".into() } else { trimmed.into() }))
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Decodes percent-encoded unreserved characters, then resolves dot segments and merges slashes
/// (RFC 3986 section 6.2.2). `%2F` is data, never a separator. `..` above the root stays at the root. A dot segment with
/// parameters (`..;x`) is one: servlet containers take the parameters off before they resolve it.
#[must_use]
pub fn normalise(path: &str) -> Cow<'_, str> {
    if is_normal(path) {
        return Cow::Borrowed(path);
    }
    let decoded = decode_unreserved(path);
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_with_slash = false;
    for segment in decoded.split('/') {
        // Up to its parameters, which are looked at for dot segments alone.
        let name = segment.split(';').next().unwrap_or_default();
        ends_with_slash = segment.is_empty() || matches!(name, "." | "..");
        match name {
            "." => {}
            ".." => {
                segments.pop();
            }
            _ if segment.is_empty() => {}
            _ => segments.push(segment),
        }
    }
    let mut normal = String::with_capacity(path.len());
    for segment in &segments {
        normal.push('/');
        normal.push_str(segment);
    }
    if ends_with_slash || normal.is_empty() {
        normal.push('/');
    }
    Cow::Owned(normal)
}

/// Whether normalising would change nothing; the usual case, found without allocating.
fn is_normal(path: &str) -> bool {
    path.starts_with('/') && !path.contains('%') && !path.contains("//") && !path.contains("/.")
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Whether `byte` behind what is decoded would make an encoding of what was none, as in `%6%61`: it stays as it is, or the
/// normal form would not be one.
fn completes(decoded: &str, byte: u8) -> bool {
    let is_begun = match decoded.as_bytes() {
        [.., b'%'] => true,
        [.., b'%', digit] => digit.is_ascii_hexdigit(),
        _ => false,
    };
    is_begun && byte.is_ascii_hexdigit()
}

fn decode_unreserved(path: &str) -> String {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        decoded.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 3);
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if is_unreserved(byte) && !completes(&decoded, byte) => {
                decoded.push(char::from(byte));
                rest = &rest[at + 3..];
            }
            _ => {
                decoded.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    decoded.push_str(rest);
    decoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_normal_form_has_nothing_left_to_resolve(path in "/([a-c./;6]|%2[eEfF]|%61|%36|%25|%){0,24}") {
            let normal = normalise(&path).into_owned();
            prop_assert!(normal.starts_with('/') && !normal.contains("//"), "{}", normal);
            // Nor anything left to decode, as `%6ab` of `%6%61b` would have.
            prop_assert_eq!(normalise(&normal), normal.as_str(), "{}", path);
            for segment in normal.split('/') {
                prop_assert!(!matches!(segment.split(';').next(), Some("." | "..")), "{} of {}", segment, path);
            }
            // A prefix covers what is below it, however that is spelled, and nothing else.
            let prefix: PathPrefix = "/a".parse().unwrap();
            let is_below = normal == "/a" || normal.starts_with("/a/");
            prop_assert_eq!(prefix.covers(&normal), is_below);
            if is_below {
                prop_assert!(prefix.strip(&path).starts_with('/'), "{}", path);
            }
        }
    }

    #[test]
    fn normal_forms() {
        for (raw, normal) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/./b/", "/a/b/"),
            ("/a/../b", "/b"),
            ("/../../b", "/b"),
            ("//a///b", "/a/b"),
            ("/%61pp/%2e%2e/x", "/x"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a%zz", "/a%zz"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/.hidden", "/.hidden"),
            ("/a/..;/b", "/b"),
            ("/a/..;x=1;y/b", "/b"),
            ("/a/%2e%2E;/b", "/b"),
            ("/a/.;/b", "/a/b"),
            ("/a/..;", "/"),
            ("/a/;/b;x=..", "/a/;/b;x=.."),
            ("/a/...;/b", "/a/...;/b"),
            ("/a/..%3b/b", "/a/..%3b/b"),
            ("/a/%252e%252e/b", "/a/%252e%252e/b"),
        ] {
            assert_eq!(normalise(raw), normal, "{raw}");
        }
    }

    #[test]
    fn a_prefix_ends_at_a_segment_and_is_not_escaped() {
        let app: PathPrefix = "/app/".parse().unwrap();
        for (path, covered) in [
            ("/app", true),
            ("/app/", true),
            ("/app/x", true),
            ("/apple", false),
            ("/app/../admin", false),
            ("/app/%2e%2e/admin", false),
            ("/app/..;/admin", false),
            ("/app/x/..;/..;/admin", false),
            ("/app/x/..;/admin", true),
            ("/x/../app/y", true),
            ("/", false),
        ] {
            assert_eq!(app.covers(&normalise(path)), covered, "{path}");
        }
    }

    #[test]
    fn stripping_keeps_the_raw_bytes_of_the_rest() {
        let app: PathPrefix = "/app".parse().unwrap();
        for (raw, upstream) in [("/app", "/"), ("/app/", "/"), ("/app//x%2F", "//x%2F"), ("/%61pp/y", "/y")] {
            assert_eq!(app.strip(raw), upstream, "{raw}");
        }
    }
}
