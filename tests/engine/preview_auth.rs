//! Previews that are not for everybody: who says so, and links that stay good.

use lockgate::deploy::LinkRequest;
use lockgate::ids::EphemeralLabel;
use lockgate::routing::preview_auth::PreviewAuth;
use lockgate::settings::{PreviewAuthMode, PreviewAuthSettings, Secret};

use super::*;

const HOUR: Delay = Delay::seconds(3600);

fn by(mode: PreviewAuthMode) -> PreviewAuthSettings {
    PreviewAuthSettings { mode, user: "ann".to_owned(), password: Secret::new("canary") }
}

fn feat() -> EphemeralLabel {
    "feat".parse().unwrap()
}

fn labelled() -> DeployRequest {
    DeployRequest { label: Some(feat()), ttl: Some(HOUR), force: true, ..request(&["serve", "1"]) }
}

impl Bed {
    fn auth(&self) -> Option<PreviewAuth> {
        let (_, found) = self.routing.resolve(&"feat.web.test".parse().unwrap()).unwrap();
        found.route("/", self.clock.now()).unwrap().auth.map(|auth| PreviewAuth::clone(auth))
    }

    async fn preview_again(&self) {
        let mut submitted = self.try_submit(labelled()).await.unwrap();
        assert_eq!(self.ended(&mut submitted).await.state, OperationState::Succeeded);
    }

    async fn link(&self, good_for: Delay) -> Result<String, Denied> {
        let request = LinkRequest { good_for };
        self.engine.preview_link(&app(), &feat(), request).await.map(|(url, _)| url)
    }
}

#[tokio::test]
async fn a_preview_opens_as_its_app_says_or_else_as_the_default_does_over_restarts_too() {
    let options = Options { preview_auth: Some(by(PreviewAuthMode::Link)), ..Options::default() };
    let bed = Bed::with_options(options, |_| {}).await;
    bed.preview_again().await;
    assert!(matches!(bed.auth(), Some(PreviewAuth::Link(_))));

    let mut web = bed.store.app(&app()).await.unwrap().unwrap();
    web.settings.preview_auth = Some(by(PreviewAuthMode::Basic));
    bed.engine.put_apps(std::slice::from_ref(&web)).await.unwrap();
    assert!(matches!(bed.auth(), Some(PreviewAuth::Link(_))), "a deployment is what it was made");
    bed.preview_again().await;
    assert_eq!(bed.auth(), Some(PreviewAuth::basic("ann", "canary")));
    let bed = bed.restart().await;
    assert_eq!(bed.auth(), Some(PreviewAuth::basic("ann", "canary")));
    let (_, found) = bed.routing.resolve(&HOST.parse().unwrap()).unwrap();
    assert!(found.route("/", bed.clock.now()).unwrap().auth.is_none(), "the app itself is shut");
    for text in [format!("{:?}", bed.auth()), serde_json::to_string(&web.settings).unwrap()] {
        assert!(!text.contains("canary"), "{text}");
    }

    web.settings.preview_auth = Some(by(PreviewAuthMode::Off));
    bed.engine.put_apps(&[web]).await.unwrap();
    bed.preview_again().await;
    assert_eq!(bed.auth(), None);
}

#[tokio::test]
async fn a_signed_link_outlives_a_redeploy_of_its_label_and_a_restart() {
    let bed = Bed::with(|settings| settings.preview_auth = Some(by(PreviewAuthMode::Link))).await;
    let denied = bed.link(HOUR).await.unwrap_err();
    assert_eq!(denied.code(), "ephemeral_unknown");
    bed.preview_again().await;
    let url = bed.link(HOUR).await.unwrap();
    let token = url.strip_prefix("http://feat.web.test/?lockgate_link=").unwrap().to_owned();
    let opens = |bed: &Bed| match bed.auth() {
        Some(PreviewAuth::Link(key)) => key.verify(&token, bed.clock.wall().as_second()).is_some(),
        Some(PreviewAuth::Basic(_)) | None => false,
    };
    assert!(opens(&bed));
    bed.preview_again().await;
    assert!(opens(&bed), "another deployment of the label");
    let bed = bed.restart().await;
    assert!(opens(&bed));
    bed.clock.set_time_of_day(Duration::from_secs(3601));
    assert!(!opens(&bed), "its time is over");
    assert!(matches!(bed.link(Delay::seconds(0)).await.unwrap_err(), Denied::Invalid { .. }));
}

fn staging() -> EnvironmentName {
    "staging".parse().unwrap()
}

impl Bed {
    async fn stage(&self) -> DeploymentId {
        let environment = Some(staging());
        let request = DeployRequest { environment, force: true, ..request(&["serve", "1"]) };
        let mut submitted = self.try_submit(request).await.unwrap();
        assert_eq!(self.ended(&mut submitted).await.state, OperationState::Succeeded);
        submitted.deployment.unwrap()
    }

    fn auth_at(&self, host: &str) -> (Option<PreviewAuth>, bool) {
        let (_, found) = self.routing.resolve(&host.parse().unwrap()).unwrap();
        let route = found.route("/", self.clock.now()).unwrap();
        (route.auth.map(|auth| PreviewAuth::clone(auth)), route.is_preview)
    }
}

#[tokio::test]
async fn an_environment_for_previews_opens_as_a_preview_does_by_all_of_its_names() {
    let apex = Some("apps.test".parse().unwrap());
    let options = Options { apex, preview_auth: Some(by(PreviewAuthMode::Link)), ..Options::default() };
    let bed = Bed::with_options(options, |_| {}).await;
    bed.deploy(&["serve", "1"]).await;
    let denied =
        bed.engine.environment_link(&app(), &staging(), LinkRequest { good_for: HOUR }).await.unwrap_err();
    assert_eq!(denied.code(), "environment_not_found");
    let deployment = bed.stage().await;
    let names = ["web-staging.apps.test".to_owned(), format!("web-{}.apps.test", deployment.short())];
    for name in &names {
        let (auth, is_preview) = bed.auth_at(name);
        assert!(matches!(auth, Some(PreviewAuth::Link(_))) && is_preview, "{name}: {auth:?}");
    }
    assert_eq!(bed.auth_at(HOST), (None, false));
    assert_eq!(bed.auth_at("web.apps.test"), (None, false));
    let link = bed.engine.environment_link(&app(), &staging(), LinkRequest { good_for: HOUR }).await.unwrap();
    let token = link.0.strip_prefix("http://web-staging.apps.test/?lockgate_link=").unwrap();
    let opens = |bed: &Bed, name: &str| match bed.auth_at(name).0 {
        Some(PreviewAuth::Link(key)) => key.verify(token, bed.clock.wall().as_second()).is_some(),
        Some(PreviewAuth::Basic(_)) | None => false,
    };
    assert!(opens(&bed, &names[0]) && opens(&bed, &names[1]));
    bed.stage().await;
    assert!(opens(&bed, &names[0]), "another version of the environment");
    let bed = bed.restart().await;
    assert!(opens(&bed, &names[0]));
    let production = EnvironmentName::production();
    let denied = bed.engine.environment_link(&app(), &production, LinkRequest { good_for: HOUR }).await;
    assert_eq!(denied.unwrap_err().code(), "preview_links_off");
}

#[tokio::test]
async fn links_are_signed_only_where_they_open_something() {
    let bed = Bed::with(|settings| settings.preview_auth = Some(by(PreviewAuthMode::Basic))).await;
    bed.preview_again().await;
    assert_eq!(bed.link(HOUR).await.unwrap_err().code(), "preview_links_off");
}

#[tokio::test]
async fn a_password_that_nobody_could_give_is_refused() {
    let bed = Bed::new().await;
    let mut web = bed.store.app(&app()).await.unwrap().unwrap();
    for (user, password, field) in [
        ("", "x", "preview_auth.user"),
        ("a:b", "x", "preview_auth.user"),
        ("a", "", "preview_auth.password"),
    ] {
        let (user, password) = (user.to_owned(), Secret::new(password));
        web.settings.preview_auth =
            Some(PreviewAuthSettings { mode: PreviewAuthMode::Basic, user, password });
        let denied = bed.engine.put_apps(std::slice::from_ref(&web)).await.unwrap_err();
        assert!(matches!(&denied, Denied::Invalid { field: named, .. } if named == field), "{denied:?}");
    }
}
