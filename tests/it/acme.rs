//! Certificates by ACME with the real binary, against a real ACME server that looks for its answers here.

mod account;
mod asleep;
mod dns_update;
mod front;
mod named;
mod pebble;
mod retry_after;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use lockgate::api::{Access, App, Diagnosis};
use lockgate::deploy::{Finding, FindingKind};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{HOST, Lockgate, eventually, free_port};
use pebble::{Pebble, files, is_there};

const WWW: &str = "www.web.test";
/// Of a certificate, where nobody waits for its end.
const LONG: u64 = 90 * 24 * 60 * 60;

/// A lockgate that asks a pebble for certificates.
struct Bed {
    lockgate: Lockgate,
    pebble: Pebble,
    https: u16,
}

impl Bed {
    /// Neither runs yet.
    fn prepare(life_seconds: u64, challenges: &[&str], change: impl FnOnce(&mut Value)) -> Self {
        let (http, https) = (free_port(), free_port());
        let pebble = Pebble::prepare(http, https, life_seconds);
        let lockgate = Lockgate::prepare(|config| {
            // Where pebble looks, beside where the tests ask.
            config["listeners"]["http"]["also"] = json!([format!("127.0.0.1:{http}")]);
            config["listeners"]["https"] = json!({ "address": format!("127.0.0.1:{https}") });
            config["tls"] = json!({ "acme": {
                "directory": pebble.directory(),
                "ca": pebble.ca(),
                "email": "ops@web.test",
                "terms_agreed": true,
                "challenges": challenges,
                "retry_after": "200ms",
                "orders_per_hour": 1000,
            } });
            change(config);
        });
        Self { lockgate, pebble, https }
    }

    async fn start(life_seconds: u64, challenges: &[&str], change: impl FnOnce(&mut Value)) -> Self {
        let mut bed = Self::prepare(life_seconds, challenges, change);
        bed.spawn().await;
        bed
    }

    /// Both, and the first version of the app.
    async fn spawn(&mut self) {
        self.pebble.spawn(&[]).await;
        self.lockgate.spawn("").await;
        self.lockgate.deploy("one").await.unwrap();
    }

    /// What a client gets that believes pebble alone.
    fn ask(&self, host: &str, root: &PathBuf) -> Option<String> {
        let asked = Command::new("curl")
            .args(["-sSi", "--cacert"])
            .arg(root)
            .args(["--resolve", &format!("{host}:{}:127.0.0.1", self.https)])
            .arg(format!("https://{host}:{}/", self.https))
            .output()
            .unwrap();
        asked.status.success().then(|| String::from_utf8_lossy(&asked.stdout).into_owned())
    }

    /// Waits until that client is served at `host`, and returns the authority that it believes.
    async fn serves(&self, host: &str) -> PathBuf {
        let root = self.pebble.root();
        eventually("a certificate of pebble's is offered", async || {
            self.ask(host, &root).is_some_and(|answer| answer.contains("x-version: one"))
        })
        .await;
        root
    }

    async fn raw(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.lockgate.port())).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn finding(&self, kind: FindingKind) -> Option<Finding> {
        let diagnosis: Diagnosis = self.lockgate.client.get("/v1/doctor").await.unwrap();
        diagnosis.findings.into_iter().find(|finding| finding.kind == kind)
    }

    fn storage(&self) -> PathBuf {
        self.lockgate.folder.path().join("data/acme")
    }

    /// The file with the certificate of `host` and its key.
    fn certificate(&self, host: &str) -> Option<String> {
        std::fs::read_to_string(self.storage().join(format!("certificates/{host}.pem"))).ok()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_challenge_brings_certificates_that_clients_believe_and_keys_that_nobody_reads() {
    if !is_there("each_challenge_brings_certificates_that_clients_believe_and_keys_that_nobody_reads") {
        return;
    }
    for challenge in ["http-01", "tls-alpn-01"] {
        let bed = Bed::start(LONG, &[challenge], |_| {}).await;
        bed.serves(HOST).await;
        bed.serves(WWW).await;
        // A certificate is offered before it is counted.
        let issued = r#"lockgate_acme_orders_total{result="issued"} 2"#;
        let mut metrics = String::new();
        eventually("both are counted", async || {
            metrics = crate::metrics::scrape(&bed.lockgate).await;
            metrics.contains(issued)
        })
        .await;
        assert!(metrics.contains(r#"lockgate_certificate_expiry_timestamp_seconds{names="web.test"}"#));
        let kept = files(&bed.storage());
        // The account, the ledger and two certificates.
        assert!(kept.len() >= 4, "{kept:?}");
        for file in kept {
            let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", file.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_for_previews_gets_one_certificate_by_dns_and_its_records_are_taken_back() {
    if !is_there("a_zone_for_previews_gets_one_certificate_by_dns_and_its_records_are_taken_back") {
        return;
    }
    let mut told = None;
    let mut bed = Bed::prepare(LONG, &["dns-01"], |config| {
        config["apps"]["web"]["hosts"] = json!([HOST, "pr-1.previews.test"]);
        config["tls"]["acme"]["preview_zone"] = json!("previews.test");
        config["tls"]["acme"]["dns_propagation"] = json!("0s");
    });
    let (hook, written) = bed.pebble.dns_hook();
    bed.lockgate.change_config(|config| config["tls"]["acme"]["dns_hook"] = json!([hook]));
    told.replace(written);
    bed.spawn().await;
    bed.serves(HOST).await;
    bed.serves("pr-1.previews.test").await;
    assert!(bed.certificate("pr-1.previews.test").is_none(), "the zone's is for it");
    let told = std::fs::read_to_string(told.unwrap()).unwrap();
    for line in ["present _acme-challenge.previews.test", "cleanup _acme-challenge.previews.test"] {
        assert!(told.lines().any(|found| found == line), "{told}");
    }
    assert_eq!(told.matches("present").count(), told.matches("cleanup").count(), "{told}");
    assert_eq!(files(&bed.storage().join("records")), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_away_or_refuses_costs_nothing_but_time_even_while_the_app_is_paused() {
    if !is_there("an_authority_that_is_away_or_refuses_costs_nothing_but_time_even_while_the_app_is_paused") {
        return;
    }
    let mut bed = Bed::prepare(LONG, &["http-01"], |config| {
        config["listeners"]["http"]["redirect"] = json!(443);
    });
    bed.lockgate.spawn("").await;
    bed.lockgate.deploy("one").await.unwrap();
    eventually("it is told that the authority is away", async || {
        bed.finding(FindingKind::AcmeAway).await.is_some_and(|found| found.cause.contains("cannot connect"))
    })
    .await;
    assert_eq!(
        bed.lockgate.version(HOST).await.unwrap(),
        "one",
        "without a certificate nobody is sent to https"
    );

    // All nonces are refused: it answers, and no account comes of it.
    bed.pebble.spawn(&[("PEBBLE_WFE_NONCEREJECT", "100")]).await;
    eventually("it is told what the authority says", async || {
        bed.finding(FindingKind::AcmeAway).await.is_some_and(|found| found.cause.contains("badNonce"))
    })
    .await;
    bed.pebble.kill();

    let path = "/v1/apps/web/pause?wait=true";
    let paused: App = bed.lockgate.client.post(path, &json!({ "for": "10m", "queue": 0 })).await.unwrap();
    assert!(matches!(paused.access, Access::Paused { .. }), "{paused:?}");
    // Many are refused.
    bed.pebble.spawn(&[("PEBBLE_WFE_NONCEREJECT", "20")]).await;
    eventually("there is a certificate", async || bed.certificate(HOST).is_some()).await;
    let _: App = bed.lockgate.client.post("/v1/apps/web/resume", &json!({})).await.unwrap();
    bed.serves(HOST).await;
    let plain = bed.raw("/").await;
    assert!(plain.contains("308 ") && plain.contains("location: https://web.test/"), "{plain}");
    // Nobody asks for that one: it is the app's.
    let unknown = bed.raw("/.well-known/acme-challenge/nobody-knows-it").await;
    assert!(unknown.contains("x-version: one"), "{unknown}");
    eventually("nothing is amiss any more", async || bed.finding(FindingKind::AcmeAway).await.is_none())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_proved_is_told_of_and_tried_by_the_next_challenge() {
    if !is_there("a_name_that_is_not_proved_is_told_of_and_tried_by_the_next_challenge") {
        return;
    }
    // Pebble looks where nobody listens.
    let mut bed = Bed::prepare(LONG, &["http-01"], |config| {
        config["listeners"]["http"]["also"] = json!([]);
        config["apps"]["web"]["hosts"] = json!([HOST]);
    });
    bed.pebble.spawn(&[("PEBBLE_VA_ALWAYS_VALID", "0")]).await;
    bed.lockgate.spawn("").await;
    bed.lockgate.deploy("one").await.unwrap();
    eventually("it is told, with what the authority found", async || {
        let found = bed.finding(FindingKind::CertificateNotIssued).await;
        found.is_some_and(|found| {
            let cause = &found.cause;
            found.subject == HOST && cause.contains("not proved by http-01") && cause.contains("connection")
        })
    })
    .await;
    let is_repeated = |found: Finding| !found.cause.starts_with("attempt 1 failed");
    eventually("it is tried again", async || {
        bed.finding(FindingKind::CertificateNotIssued).await.is_some_and(is_repeated)
    })
    .await;
    assert_eq!(bed.lockgate.version(HOST).await.unwrap(), "one");
    let shown = bed.lockgate.cli(&["doctor"]);
    let told = String::from_utf8_lossy(&shown.stderr);
    assert!(told.contains(HOST) && told.contains("http-01"), "{shown:?}");
    bed.lockgate
        .change_config(|config| config["tls"]["acme"]["challenges"] = json!(["http-01", "tls-alpn-01"]));
    bed.serves(HOST).await;
    eventually("nothing is amiss any more", async || {
        bed.finding(FindingKind::CertificateNotIssued).await.is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_behind_the_redirect_and_those_of_removed_hosts_are_not() {
    if !is_there("certificates_are_renewed_behind_the_redirect_and_those_of_removed_hosts_are_not") {
        return;
    }
    // Two thirds of it are more than it takes to get both and to give one up.
    let bed = Bed::start(30, &["http-01"], |config| {
        config["listeners"]["http"]["redirect"] = json!(443);
    })
    .await;
    bed.serves(HOST).await;
    bed.serves(WWW).await;
    bed.lockgate.change_config(|config| config["apps"]["web"]["hosts"] = json!([HOST]));
    let removed = "the configuration is another one";
    eventually(removed, async || bed.lockgate.logged().contains("configuration reloaded")).await;
    let (web, www) = (bed.certificate(HOST).unwrap(), bed.certificate(WWW).unwrap());
    eventually("it is renewed", async || bed.certificate(HOST).is_some_and(|now| now != web)).await;
    bed.serves(HOST).await;
    // Both were issued together: by now the other one would have been renewed too, or it has gone.
    let again = bed.certificate(HOST).unwrap();
    eventually("it is renewed again", async || bed.certificate(HOST).is_some_and(|now| now != again)).await;
    assert!(bed.certificate(WWW).is_none_or(|now| now == www), "nobody asked for that one");
    let metrics = crate::metrics::scrape(&bed.lockgate).await;
    assert!(metrics.contains(r#"lockgate_acme_orders_total{result="renewed"}"#), "{metrics}");
    assert!(!bed.lockgate.logged().contains("no certificate issued"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_account_and_certificates_and_needs_no_authority() {
    if !is_there("a_restart_keeps_account_and_certificates_and_needs_no_authority") {
        return;
    }
    let mut bed = Bed::start(LONG, &["tls-alpn-01"], |_| {}).await;
    let root = bed.serves(HOST).await;
    bed.serves(WWW).await;
    let contents = |files: Vec<PathBuf>| {
        let read = files.into_iter().filter_map(|file| Some((std::fs::read(&file).ok()?, file)));
        let mut read: Vec<_> = read.collect();
        read.sort();
        read
    };
    // A certificate is offered before it is noted where it came from, by a file that takes the place of another.
    let is_noted = |(text, _): &(Vec<u8>, PathBuf)| {
        String::from_utf8_lossy(text).contains(&format!("{WWW:?}: \"https:"))
    };
    let mut before = Vec::new();
    eventually("all is written down", async || {
        before = contents(files(&bed.storage()));
        before.len() == 4 && before.iter().any(is_noted)
    })
    .await;
    bed.pebble.kill();
    bed.lockgate.kill();
    bed.lockgate.spawn("").await;
    eventually("both are served as before", async || {
        [HOST, WWW]
            .iter()
            .all(|host| bed.ask(host, &root).is_some_and(|answer| answer.contains("x-version: one")))
    })
    .await;
    assert!(bed.finding(FindingKind::AcmeAway).await.is_none(), "nobody asked");
    assert_eq!(contents(files(&bed.storage())), before);
}
