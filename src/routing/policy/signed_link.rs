//! Links that are good for a host and a path until a time, signed by HMAC-SHA-256 (RFC 2104), so that an application can write
//! them as well. Comparing takes the same time whatever is compared.

use std::fmt;
use std::iter::once;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::place::SeenPath;
use crate::routing::host::HostName;
use crate::routing::link;
use crate::settings::Secret;
use crate::settings::policy::SignedLinkSettings;

/// The keys of a policy's links: the first signs them, and what any of them signed is good.
pub struct SignedLink(Box<[hmac::Key]>);

impl SignedLink {
    pub(super) fn new(settings: &SignedLinkSettings) -> Option<Self> {
        let made = |key: &Secret| {
            // What is empty was lost, and anybody could sign with it.
            let key = Some(key.expose()).filter(|key| !key.is_empty())?;
            Some(hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()))
        };
        once(&settings.key).chain(&settings.also).map(made).collect::<Option<_>>().map(Self)
    }

    /// A token for `path`, and what is below it, of that host; good until then, in seconds of Unix time.
    #[must_use]
    pub fn sign(&self, host: &HostName, path: &str, until: i64) -> String {
        let tag = hmac::sign(&self.0[0], &signed(host, path, until));
        let mut signature = [0; 32];
        signature.copy_from_slice(tag.as_ref());
        link::token(until, &signature)
    }

    /// Until when the token is good for exactly that place; `None` if it is over, or not signed for it by one of these keys.
    #[must_use]
    pub fn verify(&self, token: &str, host: &HostName, path: &str, now: i64) -> Option<i64> {
        let (until, signature) = link::read(token, now)?;
        let signed = signed(host, path, until);
        let is_by = |key: &hmac::Key| hmac::verify(key, &signed, &signature).is_ok();
        self.0.iter().any(is_by).then_some(until)
    }

    /// What a browser keeps of a token that was good for `path`.
    #[must_use]
    pub fn kept(token: &str, path: &str) -> String {
        format!("{token}.{}", BASE64_URL_SAFE_NO_PAD.encode(path))
    }

    /// Whether what was kept opens `path`: it was signed for it, or for a path that it lies under however it is read.
    #[must_use]
    pub fn opens(&self, kept: &str, host: &HostName, path: &SeenPath<'_>, now: i64) -> bool {
        let Some((token, scope)) = kept.rsplit_once('.') else { return false };
        let scope = BASE64_URL_SAFE_NO_PAD.decode(scope).ok().and_then(|scope| String::from_utf8(scope).ok());
        scope.is_some_and(|scope| {
            self.verify(token, host, &scope, now).is_some() && path.is_at_or_surely_under(&scope)
        })
    }
}

/// No host name and no path has a line's end.
fn signed(host: &HostName, path: &str, until: i64) -> Vec<u8> {
    format!("{host}\n{path}\n{until}").into_bytes()
}

impl fmt::Debug for SignedLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[keys]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key: &str) -> SignedLink {
        keys(key, &[])
    }

    fn keys(key: &str, also: &[&str]) -> SignedLink {
        let also = also.iter().copied().map(Secret::new).collect();
        SignedLink::new(&SignedLinkSettings { key: Secret::new(key), also }).unwrap()
    }

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    #[test]
    fn a_token_is_good_for_its_host_and_path_until_its_time_and_for_nothing_else() {
        let (own, host) = (key("k"), host("a.test"));
        let token = own.sign(&host, "/x", 1000);
        assert_eq!(own.verify(&token, &host, "/x", 999), Some(1000));
        assert_eq!(own.verify(&token, &host, "/x", 1000), None, "over");
        assert_eq!(own.verify(&token, &host, "/x/y", 999), None);
        assert_eq!(own.verify(&token, &"b.test".parse().unwrap(), "/x", 999), None);
        assert_eq!(key("l").verify(&token, &host, "/x", 999), None);
        let later = token.replacen("1000", "9000", 1);
        for forged in [later.as_str(), "", ".", "1000.", "1000", "x.y", &token[..token.len() - 1]] {
            assert_eq!(own.verify(forged, &host, "/x", 0), None, "{forged}");
        }
    }

    #[test]
    fn what_another_of_its_keys_signed_is_good_and_the_first_one_signs() {
        let (old, new, host) = (key("old"), keys("new", &["older", "old"]), host("a.test"));
        let token = old.sign(&host, "/x", 1000);
        assert_eq!(new.verify(&token, &host, "/x", 999), Some(1000));
        assert!(new.opens(&SignedLink::kept(&token, "/x"), &host, &SeenPath::new("/x/y"), 999));
        assert_eq!(new.sign(&host, "/x", 1000), key("new").sign(&host, "/x", 1000));
        assert_eq!(keys("new", &["older"]).verify(&token, &host, "/x", 999), None);
    }

    #[test]
    fn it_is_the_hmac_that_others_write() {
        // printf 'a.test\n/x\n1000' | openssl dgst -sha256 -hmac k
        let expected = "1000.a34e8bb0340fb66f1164949517f467559775f23b16ce6f24c3a8f4db1fda7439";
        assert_eq!(key("k").sign(&host("A.test."), "/x", 1000), expected);
    }

    #[test]
    fn what_is_kept_opens_its_path_and_what_is_below_it_in_every_reading() {
        let (own, host) = (key("k"), host("a.test"));
        let kept = |path: &str| SignedLink::kept(&own.sign(&host, path, 1000), path);
        let opens = |kept: &str, path, now| own.opens(kept, &host, &SeenPath::new(path), now);
        for (scope, path, expected) in [
            ("/x", "/x", true),
            ("/x", "/x/y", true),
            ("/x/", "/x/y", true),
            ("/", "/y", true),
            ("/%61", "/%61", true),
            ("/%61", "/%61/y", false),
            ("/x", "/", false),
            ("/x", "/xy", false),
            ("/x", "/x/../y", false),
            ("/x", "/x%2f..%2fy", false),
            ("/x", "/x/..;/y", false),
        ] {
            assert_eq!(opens(&kept(scope), path, 999), expected, "{scope} {path}");
        }
        assert!(!opens(&kept("/x"), "/x", 1000), "over");
        let wider = SignedLink::kept(&own.sign(&host, "/x", 1000), "/");
        assert!(!opens(&wider, "/", 999) && !opens("", "/", 999));
    }

    #[test]
    fn a_key_that_was_lost_makes_it_unreadable_and_none_is_shown() {
        assert!(SignedLink::new(&SignedLinkSettings::default()).is_none());
        let lost = SignedLinkSettings { key: Secret::new("k"), also: vec![Secret::default()] };
        assert!(SignedLink::new(&lost).is_none());
        assert_eq!(format!("{:?}", keys("canary", &["canary"])), "[keys]");
    }
}
