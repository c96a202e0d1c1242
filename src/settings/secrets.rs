//! What is secret of an app's settings, each under a name of its own: env vars under theirs, the others under names that
//! no variable can have.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{AppSettings, Secret};

const PREVIEW_PASSWORD: &str = "=preview_auth.password";

impl AppSettings {
    /// All of it.
    #[must_use]
    pub fn secrets(&self) -> BTreeMap<Cow<'_, str>, &Secret> {
        let env = self.env.iter().map(|(name, value)| (Cow::from(name), value));
        let preview = self.preview_auth.iter().map(|auth| (PREVIEW_PASSWORD.into(), &auth.password));
        let policies = self.policies.iter().enumerate().flat_map(|(at, policy)| {
            policy.secrets().map(move |(user, password)| (policy_password(at, &user).into(), password))
        });
        env.chain(preview).chain(policies).collect()
    }

    /// Puts all of it where it belongs, in place of what is there.
    pub fn set_secrets(&mut self, mut secrets: BTreeMap<String, Secret>) {
        if let Some(auth) = &mut self.preview_auth {
            auth.password = secrets.remove(PREVIEW_PASSWORD).unwrap_or_default();
        }
        for (at, policy) in self.policies.iter_mut().enumerate() {
            for (user, password) in policy.secrets_mut() {
                *password = secrets.remove(&policy_password(at, &user)).unwrap_or_default();
            }
        }
        self.env = secrets;
    }
}

/// No name of a user has a colon, and what has one is no user's.
fn policy_password(at: usize, user: &str) -> String {
    format!("=policies[{at}]:{user}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::policy::{BasicAuthSettings, SignedLinkSettings, UserSettings};
    use crate::settings::{PolicySettings, PreviewAuthSettings};

    #[test]
    fn what_is_taken_out_goes_back_to_where_it_was_and_into_no_text() {
        let user =
            |user: &str, password: &str| UserSettings { user: user.into(), password: Secret::new(password) };
        let auth = |users| PolicySettings {
            basic_auth: Some(BasicAuthSettings { users, ..BasicAuthSettings::default() }),
            ..PolicySettings::default()
        };
        let settings = AppSettings {
            env: BTreeMap::from([("TOKEN".into(), Secret::new("canary-1"))]),
            preview_auth: Some(PreviewAuthSettings {
                password: Secret::new("canary-2"),
                ..Default::default()
            }),
            policies: vec![
                auth(vec![user("ann", "canary-3"), user("bob", "canary-4")]),
                auth(vec![user("ann", "canary-5")]),
                PolicySettings {
                    signed_link: Some(SignedLinkSettings {
                        key: Secret::new("canary-6"),
                        also: vec![Secret::new("canary-7"), Secret::new("canary-8")],
                    }),
                    ..PolicySettings::default()
                },
            ],
            ..AppSettings::default()
        };
        let json = serde_json::to_string(&settings).unwrap();
        assert!(!json.contains("canary") && !format!("{settings:?}").contains("canary"));
        let secrets: BTreeMap<String, Secret> = settings
            .secrets()
            .into_iter()
            .map(|(name, secret)| (name.into_owned(), secret.clone()))
            .collect();
        assert_eq!(secrets.len(), 8);
        let mut back: AppSettings = serde_json::from_str(&json).unwrap();
        back.set_secrets(secrets);
        assert_eq!(back, settings);
    }
}
