//! What an app says of https belongs to the version that was deployed with it.

use lockgate::deploy::{FindingKind, PauseRequest};
use lockgate::routing::https::OwnHttps;
use lockgate::settings::HttpsMode;
use lockgate::store::IdempotencyKey;

use super::*;

const OPEN: Option<HttpsMode> = Some(HttpsMode::Allow);
const HSTS: Option<Delay> = Some(Delay::seconds(60));

#[tokio::test]
async fn a_version_and_its_previews_keep_what_the_app_said_of_https() {
    let bed = Bed::with(|settings| (settings.https, settings.hsts) = (OPEN, HSTS)).await;
    let says = |bed: &Bed, host: &str, own: (Option<HttpsMode>, Option<Delay>)| {
        bed.backend(host).unwrap().https == OwnHttps::of(own.0, own.1)
    };
    bed.deploy(&["serve", "1"]).await;
    assert!(says(&bed, HOST, (OPEN, HSTS)));
    let preview = DeployRequest { label: Some("feat".parse().unwrap()), ..request(&["serve", "p"]) };
    let mut preview = bed.try_submit(preview).await.unwrap();
    assert_eq!(bed.ended(&mut preview).await.state, OperationState::Succeeded);
    let feat = format!("feat.{HOST}");
    assert!(says(&bed, &feat, (OPEN, HSTS)));

    let mut web = bed.store.app(&app()).await.unwrap().unwrap();
    (web.settings.https, web.settings.hsts) = (Some(HttpsMode::Redirect), None);
    bed.engine.put_apps(&[web]).await.unwrap();
    assert!(says(&bed, HOST, (OPEN, HSTS)), "a deployment is what it was made");
    bed.deploy(&["serve", "2"]).await;
    assert!(says(&bed, HOST, (Some(HttpsMode::Redirect), None)) && says(&bed, &feat, (OPEN, HSTS)));
    let mut back = bed.rollback(None, None).await.unwrap();
    bed.ended(&mut back).await;
    assert!(says(&bed, HOST, (OPEN, HSTS)));
    let bed = bed.restart().await;
    assert!(says(&bed, HOST, (OPEN, HSTS)) && says(&bed, &feat, (OPEN, HSTS)));
    bed.engine.pause(&app(), &PauseRequest::default()).await.unwrap();
    let paused = bed.backend(HOST).unwrap();
    assert!(paused.hold.is_some() && says(&bed, HOST, (OPEN, HSTS)), "who waits is told otherwise");
}

#[tokio::test]
async fn an_hsts_that_browsers_cannot_be_told_is_refused_with_its_place() {
    let bed = Bed::new().await;
    let mut web = bed.store.app(&app()).await.unwrap().unwrap();
    web.settings.hsts = Some(Delay(Duration::from_millis(999)));
    let denied = bed.engine.put_apps(&[web]).await.unwrap_err().to_string();
    assert!(denied.contains("hsts is below a second"), "{denied}");
}

#[tokio::test]
async fn what_an_app_of_the_api_says_of_https_is_refused_where_nobody_listens_for_it() {
    let bed = Bed::new().await;
    let mut web = bed.store.app(&app()).await.unwrap().unwrap();
    let key = IdempotencyKey { key: "k".to_owned(), fingerprint: "the same".to_owned() };
    for (https, hsts, expected) in [(Some(HttpsMode::Redirect), HSTS, "https"), (OPEN, HSTS, "hsts")] {
        (web.settings.https, web.settings.hsts) = (https, hsts);
        for key in [None, Some(&key)] {
            let denied = bed.engine.put_app(&web, key).await.unwrap_err();
            let Denied::Invalid { field, remedy: Some(remedy), .. } = &denied else { panic!("{denied:?}") };
            assert!(field == expected && remedy.contains("listeners.https.address"), "{denied:?}");
        }
    }
    (web.settings.https, web.settings.hsts) = (OPEN, Some(Delay::seconds(0)));
    bed.engine.put_app(&web, Some(&key)).await.unwrap();
}

#[tokio::test]
async fn what_is_live_and_says_of_https_what_nobody_is_told_any_more_is_told_by_the_doctor() {
    let bed = Bed::with_options(Options { https: true, ..Options::default() }, |_| {}).await;
    let mut web = bed.store.app(&app()).await.unwrap().unwrap();
    (web.settings.https, web.settings.hsts) = (Some(HttpsMode::Redirect), HSTS);
    bed.engine.put_app(&web, None).await.unwrap();
    bed.deploy(&["serve", "1"]).await;
    let told = async |bed: &Bed| {
        let findings = bed.engine.doctor().await.unwrap();
        let unheard = findings.into_iter().filter(|finding| finding.kind == FindingKind::HttpsUnheard);
        unheard.map(|finding| (finding.subject, finding.cause)).collect::<Vec<_>>()
    };
    assert_eq!(told(&bed).await, []);
    let bed = Bed { options: Options::default(), ..bed }.restart().await;
    let [(subject, https), (_, hsts)] = &told(&bed).await[..] else { panic!("{:?}", told(&bed).await) };
    assert!(subject == "web/production" && https.starts_with("https of deployment"), "{https}");
    assert!(https.contains("leads to no listener") && hsts.starts_with("hsts of deployment"), "{hsts}");
}
