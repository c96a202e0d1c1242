//! Which requests a policy is for.
//!
//! The path is looked at in two ways: in its normal form, and as a lax application could read it, with `%2F` and `\` as
//! separators, parameters taken off, and letters of either case. Under `paths` is what either way leads there, so that no
//! spelling leads around a policy; under `except` only what both do.

use std::borrow::Cow;

use http::Method;

use crate::routing::path::{PathPrefix, normalise};
use crate::settings::PolicySettings;

/// Which requests a policy is for; all by default.
#[derive(Debug, Default)]
pub struct Place {
    paths: Box<[Prefix]>,
    except: Box<[Prefix]>,
    methods: Box<[Method]>,
}

/// A path prefix, and how it looks in the lax form.
#[derive(Debug)]
struct Prefix {
    exact: PathPrefix,
    lax: PathPrefix,
}

/// The path of a request, as it came and in both forms.
#[derive(Debug)]
pub struct SeenPath<'a> {
    raw: &'a str,
    normal: Cow<'a, str>,
    lax: String,
}

impl Place {
    /// `None` if it is not what could be written.
    pub(super) fn new(settings: &PolicySettings) -> Option<Self> {
        let prefixes =
            |all: &[String]| all.iter().map(|text| Prefix::new(text)).collect::<Option<Box<[_]>>>();
        let methods = settings.methods.iter().map(|name| Method::from_bytes(name.as_bytes()).ok());
        Some(Self {
            paths: prefixes(&settings.paths)?,
            except: prefixes(&settings.except)?,
            methods: methods.collect::<Option<_>>()?,
        })
    }

    /// Whether paths matter.
    #[must_use]
    pub fn has_paths(&self) -> bool {
        !self.paths.is_empty() || !self.except.is_empty()
    }

    /// Whether it is for a request with that method and path; `None` where paths do not matter.
    #[must_use]
    pub fn covers(&self, method: &Method, path: Option<&SeenPath<'_>>) -> bool {
        let is_for = self.methods.is_empty() || self.methods.contains(method);
        is_for && path.is_none_or(|path| self.covers_path(path))
    }

    /// Whether it is for some requests of that path.
    #[must_use]
    pub fn covers_path(&self, path: &SeenPath<'_>) -> bool {
        let is_in = self.paths.is_empty() || self.paths.iter().any(|prefix| prefix.may_cover(path));
        is_in && !self.except.iter().any(|prefix| prefix.surely_covers(path))
    }

    /// The methods that it is for, to be read behind its name; nothing if it is for all.
    #[must_use]
    pub fn methods_told(&self) -> String {
        let names: Vec<&str> = self.methods.iter().map(Method::as_str).collect();
        if names.is_empty() { String::new() } else { format!(" (of {})", names.join(", ")) }
    }
}

impl Prefix {
    fn new(text: &str) -> Option<Self> {
        Some(Self { exact: text.parse().ok()?, lax: lax(text).parse().ok()? })
    }

    fn may_cover(&self, path: &SeenPath<'_>) -> bool {
        self.exact.covers(&path.normal) || self.lax.covers(&path.lax)
    }

    fn surely_covers(&self, path: &SeenPath<'_>) -> bool {
        self.exact.covers(&path.normal) && self.lax.covers(&path.lax)
    }
}

impl<'a> SeenPath<'a> {
    /// Of a request for the raw `path`.
    #[must_use]
    pub fn new(path: &'a str) -> Self {
        Self { raw: path, normal: normalise(path), lax: lax(path) }
    }

    /// Whether it is `scope`, or lies under it however it is read.
    pub(super) fn is_at_or_surely_under(&self, scope: &str) -> bool {
        self.raw == scope || Prefix::new(scope).is_some_and(|prefix| prefix.surely_covers(self))
    }
}

/// As the laxest application reads it.
fn lax(path: &str) -> String {
    let text = decoded(path).replace('\\', "/").to_lowercase();
    let bare: Vec<&str> = text.split('/').map(|part| part.split(';').next().unwrap_or_default()).collect();
    normalise(&bare.join("/")).into_owned()
}

/// Without its percent-encodings, and without those that come out of these. In one pass, however deep they are: strangers
/// choose how deep.
fn decoded(text: &str) -> String {
    let mut plain = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        plain.push(byte);
        while let [.., b'%', high, low] = plain[..]
            && let (Some(high), Some(low)) = (char::from(high).to_digit(16), char::from(low).to_digit(16))
        {
            plain.truncate(plain.len() - 3);
            plain.extend(u8::try_from(high << 4 | low));
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(paths: &[&str], except: &[&str], methods: &[&str]) -> Place {
        let all = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Place::new(&PolicySettings {
            paths: all(paths),
            except: all(except),
            methods: all(methods),
            ..PolicySettings::default()
        })
        .unwrap()
    }

    #[test]
    fn no_spelling_of_a_path_leads_around_a_policy() {
        let admin = place(&["/Admin"], &[], &[]);
        for path in [
            "/Admin",
            "/Admin/",
            "/Admin/x",
            "/admin/x",
            "/%41dmin",
            "/%2541dmin",
            "/%%34%31dmin",
            "//Admin",
            "/x/../Admin",
            "/x/%2e%2e/Admin",
            "/Admin;a=b/x",
            "/Admin%2Fx",
            "/Admin%5cx",
            "/x%2f..%2fAdmin",
            "/x\\..\\Admin",
            "/;/Admin",
            "/%Admin/../Admin",
        ] {
            assert!(admin.covers(&Method::GET, Some(&SeenPath::new(path))), "{path}");
        }
        for path in ["/", "/Administrator", "/x/Admin", "/x%2FAdmin"] {
            assert!(!admin.covers(&Method::GET, Some(&SeenPath::new(path))), "{path}");
        }
    }

    proptest! {
        /// Decoded one turn after the other until nothing changes, which costs a turn for each two bytes of `%2525…`.
        #[test]
        fn what_is_encoded_many_times_is_decoded_as_often(text in "[%2%54fF/.]{0,40}") {
            let mut expected = text.clone().into_bytes();
            while let Some(at) = (0..expected.len()).find(|at| {
                matches!(expected[*at..], [b'%', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit())
            }) {
                let digits = str::from_utf8(&expected[at + 1..at + 3]).unwrap();
                let byte = u8::from_str_radix(digits, 16).unwrap();
                expected.splice(at..at + 3, [byte]);
            }
            prop_assert_eq!(decoded(&text), String::from_utf8_lossy(&expected));
        }
    }

    #[test]
    fn what_is_excepted_is_so_however_it_is_read() {
        let all = place(&[], &["/public"], &[]);
        for path in ["/public", "/public/x", "/public/%61"] {
            assert!(!all.covers(&Method::GET, Some(&SeenPath::new(path))), "{path}");
        }
        for path in
            ["/PUBLIC", "/public/../admin", "/public%2f..%2fadmin", "/public/..;/admin", "/publicity", "/"]
        {
            assert!(all.covers(&Method::GET, Some(&SeenPath::new(path))), "{path}");
        }
    }

    #[test]
    fn methods_are_those_that_are_named() {
        let writes = place(&[], &[], &["POST", "PUT"]);
        assert!(writes.covers(&Method::PUT, None));
        assert!(!writes.covers(&Method::GET, None));
    }
}
