//! An authority that says when it wants to be asked again (RFC 8555 section 6.6, RFC 9110 section 10.2.3, RFC 9773 section 4.3).

use jiff::{Timestamp, ToSpan};
use lockgate::deploy::{Finding, FindingKind};
use serde_json::{Value, json};

use super::front::{Front, Scripted};
use super::pebble::is_there;
use super::{Bed, LONG, WWW};
use crate::support::{HOST, eventually};

const BUSY: &str = "503 Service Unavailable";
const TOO_MANY: &str = "429 Too Many Requests";

fn refusal(path: &'static str, status: &str, seconds: u32) -> Scripted {
    let body = json!({ "type": "urn:ietf:params:acme:error:rateLimited", "detail": "later" }).to_string();
    // Who is busy has no time for documents either.
    let (kind, body) =
        if status == TOO_MANY { ("application/problem+json", body) } else { ("text/html", String::new()) };
    Scripted { path, answers: vec![answer(status, seconds, kind, &body)], asked: 0 }
}

fn answer(status: &str, seconds: u32, kind: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nRetry-After: {seconds}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len(),
    )
}

/// The directory of the authority at `port`, which has renewal information (RFC 9773) beside what pebble has.
fn directory(port: u16) -> Scripted {
    let url = |path: &str| format!("https://localhost:{port}{path}");
    let body = json!({
        "newNonce": url("/nonce-plz"),
        "newAccount": url("/sign-me-up"),
        "newOrder": url("/order-plz"),
        "revokeCert": url("/revoke-cert"),
        "keyChange": url("/rollover-account-key"),
        "renewalInfo": url("/renewal-info"),
    });
    let answer = answer("200 OK", 0, "application/json", &body.to_string());
    Scripted { path: "/dir", answers: vec![answer; 100], asked: 0 }
}

fn next(found: &Finding) -> Timestamp {
    let (_, next) = found.cause.split_once("tried again at ").unwrap();
    next.split(';').next().unwrap().parse().unwrap()
}

impl Bed {
    async fn behind(script: impl FnOnce(u16) -> Vec<Scripted>) -> (Self, Front) {
        let mut bed = Self::prepare(LONG, &["http-01"], |_| {});
        let front = Front::open(&bed.pebble, script).await;
        let directory = front.directory();
        bed.lockgate.change_config(|config| config["tls"]["acme"]["directory"] = json!(directory));
        bed.spawn().await;
        (bed, front)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_obeyed_wherever_the_authority_says_it_and_over_a_restart() {
    if !is_there("retry_after_is_obeyed_wherever_the_authority_says_it_and_over_a_restart") {
        return;
    }
    for (path, status, kind) in [
        ("/dir", BUSY, FindingKind::AcmeAway),
        ("/nonce-plz", BUSY, FindingKind::AcmeAway),
        ("/sign-me-up", TOO_MANY, FindingKind::AcmeAway),
        ("/order-plz", BUSY, FindingKind::AcmeAway),
        ("/order-plz", TOO_MANY, FindingKind::CertificateNotIssued),
    ] {
        let (mut bed, _front) = Bed::behind(|_| vec![refusal(path, status, 3600)]).await;
        let mut found = None;
        eventually("it is told", async || {
            found = bed.finding(kind).await;
            found.is_some()
        })
        .await;
        let found = found.unwrap();
        // Its own wait would be 200 ms.
        assert!(next(&found) > Timestamp::now() + 30.minutes(), "{path} {status}: {found:?}");
        if kind == FindingKind::CertificateNotIssued {
            // The other name has nothing to do with it.
            bed.serves(if found.subject == HOST { WWW } else { HOST }).await;
        }
        bed.lockgate.kill();
        bed.lockgate.spawn("").await;
        let mut again = None;
        eventually("it is told again", async || {
            again = bed.finding(kind).await;
            again.is_some()
        })
        .await;
        assert_eq!(next(&again.unwrap()), next(&found), "{path} {status}");
        assert_eq!(bed.lockgate.version(HOST).await.unwrap(), "one");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_to_be_waited_for_is_followed_by_a_certificate() {
    if !is_there("what_was_to_be_waited_for_is_followed_by_a_certificate") {
        return;
    }
    for path in ["/sign-me-up", "/order-plz"] {
        let (bed, _front) = Bed::behind(|_| vec![refusal(path, BUSY, 1)]).await;
        bed.serves(HOST).await;
        bed.serves(WWW).await;
        assert!(bed.lockgate.logged().contains("503"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_does_not_say_when_to_renew_is_asked_again_when_it_wants_to_be() {
    if !is_there("an_authority_that_does_not_say_when_to_renew_is_asked_again_when_it_wants_to_be") {
        return;
    }
    const PATH: &str = "/renewal-info/";
    for status in [TOO_MANY, BUSY] {
        let (mut bed, front) = Bed::behind(|port| vec![directory(port), refusal(PATH, status, 7200)]).await;
        bed.serves(HOST).await;
        bed.serves(WWW).await;
        let ledger = bed.storage().join("ledger.json");
        let read = || -> Value {
            serde_json::from_str(&std::fs::read_to_string(&ledger).unwrap_or_default()).unwrap_or_default()
        };
        let told = || read()["renewal_info"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
        eventually("it is written down", async || told().is_some()).await;
        let wait = told().unwrap().duration_since(Timestamp::now());
        assert!((90..=120).contains(&wait.as_mins()), "{status}: {wait}");
        // Neither a restart nor another certificate is a reason to ask. The first of these would have been asked about before
        // the second was ordered.
        bed.lockgate.kill();
        bed.lockgate.spawn("").await;
        for host in ["api.web.test", "docs.web.test"] {
            bed.lockgate.change_config(|config| config["apps"]["web"]["hosts"] = json!([HOST, WWW, host]));
            bed.serves(host).await;
        }
        assert_eq!(front.asked(PATH), 1, "{status}");

        bed.lockgate.kill();
        let mut later = read();
        later["renewal_info"] = json!(Timestamp::now() - 1.second());
        std::fs::write(&ledger, later.to_string()).unwrap();
        bed.lockgate.spawn("").await;
        eventually("it is asked again", async || front.asked(PATH) > 1).await;
        assert_eq!(bed.lockgate.version(HOST).await.unwrap(), "one");
    }
}
