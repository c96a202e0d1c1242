//! The account at an authority: one that it wants to be told of, and one that it has forgotten.

use lockgate::deploy::FindingKind;
use serde_json::json;

use super::pebble::{files, is_there};
use super::{Bed, LONG, WWW};
use crate::support::{HOST, eventually};

const KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
const WRONG_KEY: &str = "b10lLJs8l1GPIzsLP0s6pMt8O0XVGnfTaCeROxQM0BIt2XrJMDHJZBM5NuQmQJQH";

#[tokio::test(flavor = "multi_thread")]
async fn an_external_account_that_is_wanted_is_told_of_and_its_key_gets_certificates_at_once() {
    if !is_there("an_external_account_that_is_wanted_is_told_of_and_its_key_gets_certificates_at_once") {
        return;
    }
    // Nobody waits for that long: another key is tried at once.
    let mut bed = Bed::prepare(LONG, &["http-01"], |config| {
        config["tls"]["acme"]["retry_after"] = json!("1h");
    });
    bed.pebble.want_external_account("kid-1", KEY);
    bed.spawn().await;
    let told = async |cause: &str| {
        let found = bed.finding(FindingKind::AcmeAway).await;
        found.is_some_and(|found| found.cause.contains(cause) && found.remedy.contains("tls.acme.eab"))
    };
    eventually("it is told what is missing", async || told("tls.acme.eab is missing").await).await;
    let shown = bed.lockgate.cli(&["doctor"]);
    let shown = String::from_utf8_lossy(&shown.stderr);
    assert!(
        shown.contains("tls.acme.eab is missing") && shown.contains("externalAccountRequired"),
        "{shown}"
    );

    let with_key = |key_id: &str, key: &str| {
        bed.lockgate.change_config(|config| {
            config["tls"]["acme"]["eab"] = json!({ "key_id": key_id, "hmac_key": key });
        });
    };
    for (key_id, key) in [("kid-1", WRONG_KEY), ("kid-2", KEY)] {
        with_key(key_id, key);
        eventually("it is told what is not taken", async || told("gives no account for tls.acme.eab").await)
            .await;
    }
    assert_eq!(bed.lockgate.version(HOST).await.unwrap(), "one");
    with_key("kid-1", KEY);
    bed.serves(HOST).await;
    bed.serves(WWW).await;
    eventually("nothing is amiss any more", async || bed.finding(FindingKind::AcmeAway).await.is_none())
        .await;
    for file in files(bed.lockgate.folder.path()) {
        let is_written = file.starts_with(bed.storage()) || file == bed.lockgate.log();
        let written = std::fs::read(&file).unwrap_or_default();
        let written = String::from_utf8_lossy(&written);
        assert!(!is_written || !written.contains(KEY) && !written.contains(WRONG_KEY), "{}", file.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_the_authority_forgot_is_made_anew_while_the_old_certificate_is_served() {
    if !is_there("an_account_that_the_authority_forgot_is_made_anew_while_the_old_certificate_is_served") {
        return;
    }
    let mut bed = Bed::start(LONG, &["http-01", "tls-alpn-01"], |config| {
        config["apps"]["web"]["hosts"] = json!([HOST]);
    })
    .await;
    let root = bed.serves(HOST).await;
    let issued = bed.certificate(HOST);
    // All that it knows is in its memory.
    bed.pebble.kill();
    bed.pebble.spawn(&[]).await;
    bed.lockgate.change_config(|config| config["apps"]["web"]["hosts"] = json!([HOST, WWW]));
    eventually("there is a certificate from the new account", async || {
        assert!(bed.ask(HOST, &root).is_some_and(|answer| answer.contains("x-version: one")));
        bed.certificate(WWW).is_some()
    })
    .await;
    bed.serves(WWW).await;
    assert_eq!(bed.certificate(HOST), issued);
    let aside = files(&bed.storage().join("accounts"));
    assert!(aside.iter().any(|file| file.extension().is_some_and(|end| end == "unreadable")), "{aside:?}");
    // It was no failure of the name, or the next challenge would have been tried.
    let logged = bed.lockgate.logged();
    assert!(logged.contains("does not know the account") && !logged.contains("tls-alpn-01"), "{logged}");
    eventually("nothing is amiss any more", async || {
        let kinds = [FindingKind::AcmeAway, FindingKind::CertificateNotIssued];
        bed.finding(kinds[0]).await.is_none() && bed.finding(kinds[1]).await.is_none()
    })
    .await;
}
