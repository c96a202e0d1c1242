//! Names that are proved by dynamic updates of a real DNS server (RFC 2136), which a real authority asks.

use std::path::PathBuf;

use lockgate::deploy::FindingKind;
use serde_json::{Value, json};

use super::named::{self, FOREIGN, Named, OTHER_SECRET, OWNER, SECRET};
use super::pebble::{self, files};
use super::{Bed, LONG};
use crate::support::eventually;

const PREVIEW: &str = "pr-1.previews.test";
/// Its record stands at the same name as the zone's.
const APEX: &str = "previews.test";

impl Bed {
    /// Neither runs yet; the authority asks `named`.
    fn with_updates(named: &Named, hosts: &[&str], update: &Value) -> Self {
        let mut bed = Self::prepare(LONG, &["dns-01"], |config| {
            config["apps"]["web"]["hosts"] = json!(hosts);
            config["tls"]["acme"]["preview_zone"] = json!(APEX);
            config["tls"]["acme"]["dns_propagation"] = json!("0s");
            config["tls"]["acme"]["dns_update"] = update.clone();
        });
        bed.pebble.resolve_at(named.port());
        bed
    }

    fn noted(&self) -> Vec<PathBuf> {
        files(&self.storage().join("records"))
    }
}

fn are_there(test: &str) -> bool {
    pebble::is_there(test) && named::is_there(test)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_and_its_apex_are_proved_by_updates_that_touch_no_other_record() {
    let test = "a_zone_and_its_apex_are_proved_by_updates_that_touch_no_other_record";
    if !are_there(test) {
        return;
    }
    for (algorithm, zone) in
        [("hmac-sha256", json!("test")), ("hmac-sha384", json!(null)), ("hmac-sha512", json!(null))]
    {
        let named = Named::start().await;
        let mut update = named.update(algorithm);
        update["algorithm"] = json!(algorithm);
        update["zone"] = zone;
        let mut bed = Bed::with_updates(&named, &[APEX, PREVIEW], &update);
        bed.spawn().await;
        bed.serves(APEX).await;
        bed.serves(PREVIEW).await;
        assert!(bed.certificate(PREVIEW).is_none(), "the zone's is for it");
        eventually("no record is noted any more", async || bed.noted().is_empty()).await;
        assert_eq!(named.records(OWNER), [FOREIGN], "{algorithm}");
        let logged = named.logged();
        for what in ["adding an RR", "deleting an RR"] {
            assert_eq!(logged.matches(what).count(), 2, "{what}: {logged}");
        }
        assert!(!bed.lockgate.logged().contains("no certificate issued"), "{algorithm}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_updates_from_being_made_is_told_with_its_key_and_without_the_secret() {
    let test = "what_keeps_updates_from_being_made_is_told_with_its_key_and_without_the_secret";
    if !are_there(test) {
        return;
    }
    let named = Named::start().await;
    let good = named.update("hmac-sha256");
    let with = |key: &str, value: &str| {
        let mut update = good.clone();
        update[key] = json!(value);
        update
    };
    let mut bed = Bed::with_updates(&named, &[PREVIEW], &good);
    bed.spawn().await;
    bed.serves(PREVIEW).await;
    let issued = bed.certificate("_.previews.test");
    let nowhere = format!("127.0.0.1:{}", crate::support::free_port());
    for (update, told) in [
        (with("key_secret", OTHER_SECRET), vec!["BADSIG", "dns_update.key_secret"]),
        (with("key_name", "unknown"), vec!["BADKEY", "dns_update.key_name"]),
        (with("algorithm", "hmac-sha512"), vec!["BADKEY", "algorithm"]),
        (with("key_name", "stranger"), vec!["REFUSED", "_acme-challenge.web.test", "the key stranger"]),
        (with("zone", "web.test"), vec!["NOTAUTH", "dns_update.server and zone"]),
        (with("server", &nowhere), vec!["cannot be asked", "Connection refused", "dns_update.server"]),
    ] {
        bed.lockgate.kill();
        // Nobody waits for what was before.
        std::fs::remove_file(bed.storage().join("ledger.json")).unwrap();
        bed.lockgate.change_config(|config| {
            config["tls"]["acme"]["dns_update"] = update;
            config["tls"]["acme"]["preview_zone"] = json!(null);
            config["tls"]["acme"]["retry_after"] = json!("1h");
            config["apps"]["web"]["hosts"] = json!(["web.test"]);
        });
        bed.lockgate.spawn("").await;
        let mut cause = String::new();
        eventually("it is told", async || {
            let found = bed.finding(FindingKind::CertificateNotIssued).await;
            cause = found.map(|found| found.cause).unwrap_or_default();
            told.iter().all(|part| cause.contains(part))
        })
        .await;
        assert!(cause.contains("tls.acme.dns_update") && !cause.contains("="), "{cause}");
    }
    // What could not be taken back is, as soon as it can.
    bed.lockgate.change_config(|config| {
        config["tls"]["acme"]["dns_update"] = good.clone();
        config["tls"]["acme"]["retry_after"] = json!("200ms");
    });
    eventually("no record is noted any more", async || bed.noted().is_empty()).await;
    assert_eq!(named.records("_acme-challenge.web.test"), Vec::<String>::new());
    assert_eq!(bed.certificate("_.previews.test"), issued, "it goes on being there");
    for file in files(bed.lockgate.folder.path()) {
        let is_written = file.starts_with(bed.storage()) || file == bed.lockgate.log();
        let written = std::fs::read(&file).unwrap_or_default();
        let written = String::from_utf8_lossy(&written);
        let is_told = [SECRET, OTHER_SECRET].iter().any(|secret| written.contains(secret));
        assert!(!is_written || !is_told, "{}", file.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_a_crash_left_is_taken_back_at_the_next_start() {
    let test = "a_record_that_a_crash_left_is_taken_back_at_the_next_start";
    if !are_there(test) {
        return;
    }
    let named = Named::start().await;
    let mut bed = Bed::with_updates(&named, &["web.test"], &named.update("hmac-sha256"));
    // It waits with the record set, and after the start that is to take it back nothing is ordered.
    bed.lockgate.change_config(|config| {
        config["tls"]["acme"]["dns_propagation"] = json!("1h");
        config["tls"]["acme"]["retry_after"] = json!("1h");
        config["tls"]["acme"]["preview_zone"] = json!(null);
    });
    bed.spawn().await;
    let records = || named.records("_acme-challenge.web.test");
    eventually("the record is set", async || records().len() == 1).await;
    bed.lockgate.kill();
    assert_eq!((records().len(), bed.noted().len()), (1, 1));
    bed.lockgate.spawn("").await;
    eventually("the record is gone", async || records().is_empty() && bed.noted().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_could_not_be_taken_back_is_before_the_next_order() {
    let test = "a_record_that_could_not_be_taken_back_is_before_the_next_order";
    if !are_there(test) {
        return;
    }
    let mut named = Named::start().await;
    let mut bed = Bed::with_updates(&named, &["web.test"], &named.update("hmac-sha256"));
    // The server goes while this is waited for.
    bed.lockgate.change_config(|config| {
        config["tls"]["acme"]["dns_propagation"] = json!("15s");
        config["tls"]["acme"]["preview_zone"] = json!(null);
    });
    bed.spawn().await;
    let records = |named: &Named| named.records("_acme-challenge.web.test");
    eventually("the record is set", async || records(&named).len() == 1).await;
    let left = records(&named);
    named.kill();
    eventually("it is not taken back", async || bed.lockgate.logged().contains("is not taken back yet"))
        .await;
    eventually("it is told of", async || bed.finding(FindingKind::DnsRecordLeft).await.is_some()).await;
    let found = bed.finding(FindingKind::DnsRecordLeft).await.unwrap();
    assert_eq!(found.subject, "_acme-challenge.web.test");
    assert!(found.cause.contains(&left[0]) && found.cause.contains("it is tried again at"), "{found:?}");
    // The server has it still, and is asked at once.
    named.spawn().await;
    bed.serves("web.test").await;
    eventually("no record is there or noted", async || records(&named).is_empty() && bed.noted().is_empty())
        .await;
    eventually("nothing is told of it", async || bed.finding(FindingKind::DnsRecordLeft).await.is_none())
        .await;
}
