//! Name and password (RFC 7617). Kept are hashes, never a password; comparing takes the same time whatever is compared.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

use crate::settings::policy::BasicAuthSettings;

/// Who may come.
#[derive(Debug)]
pub struct BasicAuth {
    users: Box<[User]>,
    /// What `WWW-Authenticate` says.
    challenge: HeaderValue,
    user_header: Option<HeaderName>,
}

#[derive(Debug)]
struct User {
    name: HeaderValue,
    credential: Credential,
}

/// The hash of what `Authorization: Basic` may have.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential(blake3::Hash);

impl BasicAuth {
    pub(super) fn new(settings: &BasicAuthSettings) -> Option<Self> {
        let realm = settings.realm.as_deref().unwrap_or("restricted");
        let user = |user: &crate::settings::policy::UserSettings| {
            let name = HeaderValue::from_str(&user.user).ok()?;
            // What is empty was lost, and would let anybody in.
            let password = Some(user.password.expose()).filter(|password| !password.is_empty())?;
            Some(User { name, credential: Credential::new(&user.user, password) })
        };
        let header = settings.user_header.as_deref().map(|name| HeaderName::from_bytes(name.as_bytes()));
        Some(Self {
            users: settings.users.iter().map(user).collect::<Option<_>>()?,
            challenge: HeaderValue::from_str(&format!("Basic realm=\"{realm}\", charset=\"UTF-8\"")).ok()?,
            user_header: header.transpose().ok()?,
        })
    }

    /// What who is refused is asked for.
    #[must_use]
    pub fn challenge(&self) -> &HeaderValue {
        &self.challenge
    }

    /// Lets the request by, and takes off what it was let in by; `false` if it has nothing of that kind.
    #[must_use]
    pub fn admit(&self, headers: &mut HeaderMap) -> bool {
        // All are compared, whoever it is.
        let is_of = |user: &User| user.credential.is_in(headers).then(|| user.name.clone());
        let found = self.users.iter().filter_map(is_of).last();
        let Some(name) = found else { return false };
        headers.remove(AUTHORIZATION);
        if let Some(header) = &self.user_header {
            headers.insert(header, name);
        }
        true
    }
}

impl Credential {
    /// For that name and password.
    #[must_use]
    pub fn new(user: &str, password: &str) -> Self {
        Self(blake3::hash(BASE64_STANDARD.encode(format!("{user}:{password}")).as_bytes()))
    }

    /// Whether the one `Authorization` of a request is it.
    #[must_use]
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        let mut all = headers.get_all(AUTHORIZATION).iter();
        let (Some(only), None) = (all.next(), all.next()) else { return false };
        let Some((scheme, credential)) = only.as_bytes().split_at_checked("basic ".len()) else {
            return false;
        };
        scheme.eq_ignore_ascii_case(b"basic ") && blake3::hash(credential.trim_ascii()) == self.0
    }
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[credential]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Secret;
    use crate::settings::policy::UserSettings;

    fn auth() -> BasicAuth {
        let user =
            |user: &str, password: &str| UserSettings { user: user.into(), password: Secret::new(password) };
        BasicAuth::new(&BasicAuthSettings {
            realm: Some("Staff".into()),
            users: vec![user("ann", "x:y"), user("bob", "z")],
            user_header: Some("X-User".into()),
        })
        .unwrap()
    }

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (AUTHORIZATION, HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn who_has_name_and_password_is_let_by_and_named_and_nobody_else() {
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        let (wrong, half, good) = (basic("ann:z"), basic("ann"), basic("bob:z"));
        for (text, name) in [("ann:x:y", "ann"), ("bob:z", "bob")] {
            let mut headers = headers(&[&basic(text)]);
            headers.insert("x-user", HeaderValue::from_static("root"));
            assert!(auth().admit(&mut headers), "{text}");
            assert_eq!(headers["x-user"], name);
            assert!(!headers.contains_key(AUTHORIZATION));
        }
        for wrong in [&[][..], &[wrong.as_str()], &[&half], &["Bearer x"], &["Basic"], &["Basic "]] {
            assert!(!auth().admit(&mut headers(wrong)), "{wrong:?}");
        }
        assert!(!auth().admit(&mut headers(&[&good, &good])), "two of them");
    }

    #[test]
    fn a_user_whose_password_was_lost_makes_it_unreadable() {
        let users = vec![UserSettings { user: "ann".into(), password: Secret::default() }];
        assert!(BasicAuth::new(&BasicAuthSettings { users, ..BasicAuthSettings::default() }).is_none());
    }
}
