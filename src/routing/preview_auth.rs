//! Who may see a preview: whoever has its name and password, or a link that Lockgate signed.
//!
//! Kept are hashes and a key, never a password. Both comparisons take the same time whatever is compared.

use std::fmt;

use super::link;
use super::policy::basic_auth::Credential;

/// What a request must have to reach a preview.
#[derive(Clone, PartialEq, Eq)]
pub enum PreviewAuth {
    /// What `Authorization: Basic` has to have.
    Basic(Credential),
    /// A link or its cookie, signed by this key.
    Link(LinkKey),
}

/// The key of one label's links.
#[derive(Clone, PartialEq, Eq)]
pub struct LinkKey(blake3::Hash);

impl PreviewAuth {
    /// For that name and password (RFC 7617).
    #[must_use]
    pub fn basic(user: &str, password: &str) -> Self {
        Self::Basic(Credential::new(user, password))
    }

    /// For links to a label of an app, signed under the installation's key.
    #[must_use]
    pub fn link(installation: &[u8; 32], app: &str, label: &str) -> Self {
        // Joined by a character that is in no name.
        Self::Link(LinkKey(blake3::keyed_hash(installation, format!("{app}\0{label}").as_bytes())))
    }
}

impl LinkKey {
    /// A token that is good until then, in seconds of Unix time.
    #[must_use]
    pub fn sign(&self, until: i64) -> String {
        link::token(until, self.signature(until).as_bytes())
    }

    /// Until when the token is good; `None` if it is over, or not signed by this key.
    #[must_use]
    pub fn verify(&self, token: &str, now: i64) -> Option<i64> {
        let (until, signature) = link::read(token, now)?;
        (self.signature(until) == blake3::Hash::from_bytes(signature)).then_some(until)
    }

    fn signature(&self, until: i64) -> blake3::Hash {
        blake3::keyed_hash(self.0.as_bytes(), until.to_string().as_bytes())
    }
}

impl fmt::Debug for PreviewAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic(_) => "[basic]",
            Self::Link(_) => "[link]",
        })
    }
}

impl fmt::Debug for LinkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[key]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_good_for_its_label_until_its_time_and_for_nothing_else() {
        let of = |app: &str, label: &str| match PreviewAuth::link(&[7; 32], app, label) {
            PreviewAuth::Link(key) => key,
            PreviewAuth::Basic(_) => unreachable!(),
        };
        let token = of("web", "feat").sign(1000);
        assert_eq!(of("web", "feat").verify(&token, 999), Some(1000));
        assert_eq!(of("web", "feat").verify(&token, 1000), None, "over");
        assert_eq!(of("web", "other").verify(&token, 999), None);
        assert_eq!(of("api", "feat").verify(&token, 999), None);
        assert_eq!(of("we", "bfeat").verify(&token, 999), None);
        let later = token.replacen("1000", "9000", 1);
        for forged in [later.as_str(), "", ".", "1000.", "1000", "x.y", &token[..token.len() - 1]] {
            assert_eq!(of("web", "feat").verify(forged, 0), None, "{forged}");
        }
        let other = PreviewAuth::link(&[8; 32], "web", "feat");
        assert!(matches!(other, PreviewAuth::Link(key) if key.verify(&token, 0).is_none()));
    }
}
