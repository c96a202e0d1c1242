//! Policies belong to the version that was deployed with them.

use lockgate::deploy::PauseRequest;
use lockgate::settings::policy::{BasicAuthSettings, IpSettings, RateLimitSettings, UserSettings};
use lockgate::settings::{PolicySettings, Secret};

use super::*;

fn locked(password: &str) -> PolicySettings {
    let users = vec![UserSettings { user: "ann".to_owned(), password: Secret::new(password) }];
    PolicySettings {
        basic_auth: Some(BasicAuthSettings { users, ..BasicAuthSettings::default() }),
        ..PolicySettings::default()
    }
}

fn limited() -> PolicySettings {
    let limit: RateLimitSettings = serde_json::from_str(r#"{ "requests": 1, "per": "1h" }"#).unwrap();
    PolicySettings { rate_limit: Some(limit), ..PolicySettings::default() }
}

impl Bed {
    /// Whether the live version has these and no others.
    fn has(&self, policies: &[PolicySettings]) -> bool {
        self.backend(HOST)
            .unwrap()
            .policies
            .as_ref()
            .map_or(policies.is_empty(), |known| known.are_of(policies))
    }

    /// Whether the route's rate limit lets another request by.
    fn admits(&self) -> bool {
        use lockgate::routing::policy::Rule;
        let backend = self.backend(HOST).unwrap();
        let limit = backend.policies.iter().flat_map(|policies| policies.list()).find_map(|policy| {
            match &policy.rule {
                Rule::RateLimit(limit) => Some(limit),
                _ => None,
            }
        });
        let client = "192.0.2.1".parse().unwrap();
        limit.unwrap().admit(client, &http::HeaderMap::new(), self.clock.now()).is_ok()
    }

    async fn put_policies(&self, policies: &[PolicySettings]) {
        let mut web = self.store.app(&app()).await.unwrap().unwrap();
        web.settings.policies = policies.to_vec();
        self.engine.put_apps(&[web]).await.unwrap();
    }
}

#[tokio::test]
async fn a_version_keeps_the_policies_that_it_was_deployed_with_over_rollbacks_and_restarts() {
    let bed = Bed::with(|settings| settings.policies = vec![locked("canary")]).await;
    bed.deploy(&["serve", "1"]).await;
    assert!(bed.has(&[locked("canary")]));
    bed.put_policies(&[]).await;
    assert!(bed.has(&[locked("canary")]), "a deployment is what it was made");
    bed.deploy(&["serve", "2"]).await;
    assert!(bed.has(&[]));
    let mut back = bed.rollback(None, None).await.unwrap();
    bed.ended(&mut back).await;
    assert!(bed.has(&[locked("canary")]));
    let bed = bed.restart().await;
    assert!(bed.has(&[locked("canary")]), "a restart lost what it knew of the password");
    bed.engine.pause(&app(), &PauseRequest::default()).await.unwrap();
    assert!(bed.has(&[locked("canary")]), "who waits is not asked");
    let backend = bed.backend(HOST).unwrap();
    assert!(backend.hold.is_some() && !format!("{backend:?}").contains("canary"));
}

#[tokio::test]
async fn a_deploy_with_another_password_is_another_version() {
    let bed = Bed::with(|settings| settings.policies = vec![locked("one")]).await;
    bed.deploy(&["serve", "1"]).await;
    bed.put_policies(&[locked("two")]).await;
    let (second, operation) = bed.deploy(&["serve", "1"]).await;
    assert_eq!(operation.failure, None);
    assert_eq!(bed.serves(HOST), Ok(second.to_string()));
    assert!(bed.has(&[locked("two")]));
}

#[tokio::test]
async fn a_deploy_forgives_nobody_who_asked_too_often() {
    let bed = Bed::with(|settings| settings.policies = vec![limited()]).await;
    bed.deploy(&["serve", "1"]).await;
    assert!(bed.admits() && !bed.admits());
    bed.deploy(&["serve", "2"]).await;
    assert!(!bed.admits());
}

#[tokio::test]
async fn a_policy_that_is_none_is_refused_with_its_place() {
    let bed = Bed::new().await;
    let mut web = bed.store.app(&app()).await.unwrap().unwrap();
    web.settings.policies =
        vec![PolicySettings { ip: Some(IpSettings::default()), ..PolicySettings::default() }];
    let denied = bed.engine.put_apps(&[web]).await.unwrap_err();
    assert!(denied.to_string().contains("policies[0].ip"), "{denied}");
}
