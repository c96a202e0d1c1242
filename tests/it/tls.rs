//! Certificates of the whole program: read, watched, swapped under load, and told of.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lockgate::api::{App, Deployment, Diagnosis, List, Status};
use lockgate::cli::ClientError;
use lockgate::clock::SystemClock;
use lockgate::deploy::FindingKind;
use lockgate::verify::{Verdict, Verifier, VerifyOptions};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::ca::{Ca, Leaf};
use crate::support::{HOST, Lockgate, PATIENCE, eventually, for_load, free_port, turn_for_load};

const NAMES: [&str; 2] = [HOST, "www.web.test"];

/// A lockgate with https.
struct Bed {
    lockgate: Lockgate,
    certificates: tempfile::TempDir,
    ca: Ca,
    port: u16,
}

impl Bed {
    async fn start(change: impl FnOnce(&mut serde_json::Value)) -> Self {
        let (certificates, ca, port) = (tempfile::tempdir().unwrap(), Ca::new(), free_port());
        ca.leaf(&NAMES).write(certificates.path(), "web");
        std::fs::write(certificates.path().join("ca"), &ca.pem).unwrap();
        let mut lockgate = Lockgate::prepare(|config| {
            config["listeners"]["https"] = json!({ "address": format!("127.0.0.1:{port}") });
            config["tls"] = json!({ "certificates": [entry(certificates.path(), "web")] });
            change(config);
        });
        lockgate.spawn("").await;
        Self { lockgate, certificates, ca, port }
    }

    fn offer(&self, leaf: &Leaf) {
        leaf.write(self.certificates.path(), "web");
    }

    /// What is answered at [`HOST`], and the certificate that was shown.
    async fn ask(&self) -> std::io::Result<(String, Vec<u8>)> {
        let connector = TlsConnector::from(Arc::new(self.ca.client()));
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let mut stream = connector.connect(ServerName::try_from(HOST).unwrap(), stream).await?;
        let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok((answer, stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()))
    }

    async fn shows(&self, leaf: &Leaf) -> bool {
        self.ask().await.is_ok_and(|(_, shown)| shown == leaf.certificate().to_vec())
    }

    /// Does `work` while the verifier puts its load on the app by https.
    async fn under_load(&self, work: impl Future<Output = ()>) -> Verdict {
        let ca = self.certificates.path().join("ca").display().to_string();
        let options = VerifyOptions {
            hosts: NAMES.map(|name| name.parse().unwrap()).to_vec(),
            duration: Duration::from_secs(300).into(),
            timeout: PATIENCE.into(),
            rate: 50,
            stream_duration: Duration::from_secs(1).into(),
            ca: Some(ca.parse().unwrap()),
            ..VerifyOptions::new(format!("https://127.0.0.1:{}", self.port).parse().unwrap())
        };
        let _turn = turn_for_load().await;
        let verifier = Verifier::new(options, Arc::new(SystemClock));
        let handle = verifier.handle();
        let working = async {
            handle.flowing().await;
            work.await;
            handle.stop();
        };
        tokio::join!(verifier.run(), working).0
    }
}

fn entry(folder: &Path, name: &str) -> serde_json::Value {
    json!({ "cert": folder.join(format!("{name}.pem")), "key": folder.join(format!("{name}.key")) })
}

#[tokio::test(flavor = "multi_thread")]
async fn swaps_of_versions_and_of_certificates_under_load_by_https_spill_nothing() {
    let bed = Bed::start(for_load).await;
    bed.lockgate.deploy("one").await.unwrap();
    let verdict = bed
        .under_load(async {
            for version in ["two", "three"] {
                let leaf = bed.ca.leaf(&NAMES);
                bed.offer(&leaf);
                eventually("the new certificate is offered", async || bed.shows(&leaf).await).await;
                bed.lockgate.deploy(version).await.unwrap();
            }
        })
        .await;
    assert!(verdict.is_clean(), "{verdict}");
    let (answer, _) = bed.ask().await.unwrap();
    assert!(answer.contains("x-version: three"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_offered_at_once_and_a_broken_one_leaves_the_old() {
    let bed = Bed::start(|_| {}).await;
    let (old, new) = (bed.ca.leaf(&NAMES), bed.ca.leaf(&NAMES));
    bed.offer(&old);
    eventually("the certificate is offered", async || bed.shows(&old).await).await;

    let file = bed.certificates.path().join("web.pem");
    std::fs::write(&file, "no certificate").unwrap();
    eventually("it is refused", async || {
        let log = bed.lockgate.logged();
        log.contains("configuration not applied") && log.contains("tls.certificates[0].cert")
    })
    .await;
    assert!(bed.shows(&old).await, "the old one goes on");
    // The certificate before its key, as many write them: no moment counts that has one of each.
    std::fs::write(&file, &new.chain).unwrap();
    assert!(bed.shows(&old).await || bed.shows(&new).await);
    bed.offer(&new);
    eventually("what is right again is offered", async || bed.shows(&new).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_about_to_expire_is_told_of() {
    let bed = Bed::start(|_| {}).await;
    let diagnosis: Diagnosis = bed.lockgate.client.get("/v1/doctor").await.unwrap();
    let of_certificates = |diagnosis: &Diagnosis| {
        let kinds = diagnosis.findings.iter().map(|finding| finding.kind);
        let kinds = kinds.filter(|kind| {
            matches!(kind, FindingKind::CertificateExpired | FindingKind::CertificateExpiring)
        });
        kinds.collect::<Vec<_>>()
    };
    assert_eq!(of_certificates(&diagnosis), []);
    for (days, kind) in [(10, FindingKind::CertificateExpiring), (-10, FindingKind::CertificateExpired)] {
        bed.offer(&bed.ca.leaf_for(&NAMES, days));
        eventually("it is told", async || {
            let diagnosis: Diagnosis = bed.lockgate.client.get("/v1/doctor").await.unwrap();
            of_certificates(&diagnosis) == [kind]
        })
        .await;
        let status: Status = bed.lockgate.client.get("/v1/status").await.unwrap();
        let [certificate] = &status.certificates[..] else { panic!("{status:?}") };
        assert!(certificate.expires_soon && certificate.names == NAMES, "{certificate:?}");
        let shown = bed.lockgate.cli(&["status"]);
        let shown = String::from_utf8_lossy(&shown.stdout);
        assert!(shown.contains("certificate of web.test, www.web.test expires at"), "{shown}");
    }
    let metrics = crate::metrics::scrape(&bed.lockgate).await;
    let series = "lockgate_certificate_expiry_timestamp_seconds{names=\"web.test,www.web.test\"} ";
    assert!(metrics.contains(series), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_a_certificate_harms_no_other() {
    let bed = Bed::start(|config| {
        config["listeners"]["http"]["redirect"] = json!(443);
        config["listeners"]["https"]["hsts"] = json!("1h");
        config["apps"]["web"]["hosts"] = json!([HOST, "bare.test"]);
    })
    .await;
    bed.lockgate.deploy("one").await.unwrap();
    let (answer, _) = bed.ask().await.unwrap();
    assert!(answer.contains("x-version: one"), "{answer}");
    assert!(answer.contains("strict-transport-security: max-age=3600"), "{answer}");
    assert_eq!(bed.lockgate.version("bare.test").await.unwrap(), "one");
    // People are told of https where a certificate covers the name, and nowhere else.
    let preview = json!({ "env": { "VERSION": "seen" }, "label": "feat" });
    bed.lockgate.deploy_with(&preview, "end").await.unwrap();
    let all: List<Deployment> = bed.lockgate.client.get("/v1/apps/web/deployments").await.unwrap();
    let mut urls: Vec<String> = all.items.into_iter().filter_map(|one| one.url).collect();
    urls.sort();
    assert_eq!(urls, [bed.lockgate.url("feat.web.test"), format!("https://{HOST}:{}", bed.port)]);
    let plain = bed.lockgate.raw(HOST).await;
    assert!(plain.contains("308 ") && plain.contains("location: https://web.test/"), "{plain}");
}

/// Answers every request by TLS, with the certificate `leaf`.
async fn answer_by_tls(listener: TcpListener, leaf: Leaf) {
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
    let config = builder.with_single_cert(vec![leaf.certificate()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    while let Ok((stream, _)) = listener.accept().await {
        // One that is not believed gets no further.
        let Ok(mut stream) = acceptor.accept(stream).await else { continue };
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { break };
            head.push(byte);
        }
        let answer =
            b"HTTP/1.1 200 OK\r\nX-Version: by-tls\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        // Whoever left does not read it.
        let _left = async { stream.write_all(answer).await.and(stream.shutdown().await) }.await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_by_tls_is_held_to_its_authority_which_is_watched() {
    let (folder, ca, other) = (tempfile::tempdir().unwrap(), Ca::new(), Ca::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut answering = JoinSet::new();
    answering.spawn(answer_by_tls(listener, ca.leaf(&["s.internal"])));
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, &ca.pem).unwrap();
    let mut lockgate = Lockgate::prepare(|config| {
        config["services"] = json!({ "secure": {
            "hosts": ["s.test"],
            "upstreams": [format!("https://{address}")],
            "tls": { "ca": file, "server_name": "s.internal" },
        } });
    });
    lockgate.spawn("").await;
    assert_eq!(lockgate.version("s.test").await.unwrap(), "by-tls");
    std::fs::write(&file, &other.pem).unwrap();
    eventually("it is not believed any more", async || {
        lockgate.raw("s.test").await.contains("lockgate-reason: upstream_tls_failed")
    })
    .await;
    std::fs::write(&file, &ca.pem).unwrap();
    eventually("it is again", async || lockgate.version("s.test").await.is_ok()).await;
}

#[test]
fn a_check_of_the_configuration_warns_of_certificates() {
    let folder = tempfile::tempdir().unwrap();
    Ca::new().leaf_for(&NAMES, -1).write(folder.path(), "web");
    let path = folder.path().join("lockgate.yaml");
    let config = json!({
        "listeners": { "https": { "address": "127.0.0.1:1" } },
        "tls": { "certificates": [entry(folder.path(), "web")] },
    });
    std::fs::write(&path, config.to_string()).unwrap();
    let output = std::process::Command::new(crate::support::BINARY)
        .args(["config", "check"])
        .arg(&path)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(
        told.contains("warning: ") && told.contains("has expired") && told.contains("is valid"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_and_a_service_have_the_last_word_on_https_over_the_listener() {
    let app = free_port();
    let upstream = TcpListener::bind(("127.0.0.1", app)).await.unwrap();
    let mut services = JoinSet::new();
    services.spawn(async move {
        while let Ok((mut stream, _)) = upstream.accept().await {
            let mut head = [0; 4096];
            if stream.read(&mut head).await.is_ok() {
                let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
                drop(stream.write_all(answer).await);
            }
        }
    });
    let service = |https: &str| json!({ "old": { "hosts": [NAMES[1]], "upstreams": [format!("http://127.0.0.1:{app}")], "https": https } });
    let bed = Bed::start(|config| {
        config["listeners"]["http"]["redirect"] = json!(443);
        config["listeners"]["https"]["hsts"] = json!("1d");
        config["apps"]["web"]["hosts"] = json!([HOST]);
        config["apps"]["web"]["https"] = json!("allow");
        config["apps"]["web"]["hsts"] = json!("60s");
        config["services"] = service("allow");
    })
    .await;
    bed.lockgate.deploy("one").await.unwrap();
    assert_eq!(bed.lockgate.version(HOST).await, Ok("one".to_owned()));
    let (answer, _) = bed.ask().await.unwrap();
    assert!(answer.contains("strict-transport-security: max-age=60\r\n"), "{answer}");
    assert!(bed.lockgate.raw(NAMES[1]).await.starts_with("HTTP/1.1 200 "));
    let explained = bed.lockgate.cli(&["explain", HOST]);
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(
        explained.contains("without TLS it is served") && explained.contains("max-age=60"),
        "{explained}"
    );

    bed.lockgate.change_config(|config| {
        config["apps"]["web"]["https"] = json!("redirect");
        config["services"] = service("redirect");
    });
    assert!(bed.lockgate.cli(&["config", "reload"]).status.success());
    let raw = bed.lockgate.raw(NAMES[1]).await;
    let place = format!("location: https://{}/\r\n", NAMES[1]);
    assert!(raw.starts_with("HTTP/1.1 308 ") && raw.contains(&place), "{raw}");
    assert_eq!(bed.lockgate.version(HOST).await, Ok("one".to_owned()), "a version is what it was made");
    bed.lockgate.deploy("two").await.unwrap();
    assert_eq!(bed.lockgate.version(HOST).await, Err("status 308".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_of_the_api_whose_listener_for_https_goes_is_told_of_and_refused_once_it_has_gone() {
    let mut bed = Bed::start(|_| {}).await;
    let mine = json!({ "hosts": [{ "host": "mine.test" }], "settings": { "https": "redirect" } });
    let put = async |bed: &Bed| bed.lockgate.client.put::<App>("/v1/apps/mine", &mine).await;
    put(&bed).await.unwrap();
    bed.lockgate.change_config(|config| drop(config["listeners"].as_object_mut().unwrap().remove("https")));
    assert!(bed.lockgate.cli(&["config", "reload"]).status.success());
    eventually("it is told of", async || {
        let log = bed.lockgate.logged();
        log.contains("https of the app leads to no listener") && log.contains("\"app\":\"mine\"")
    })
    .await;
    bed.lockgate.kill();
    bed.lockgate.spawn("").await;
    let ClientError::Refused(problem) = put(&bed).await.unwrap_err() else { panic!("it is no refusal") };
    assert_eq!((problem.status, problem.code.as_str()), (422, "invalid"));
    assert_eq!(problem.evidence, ["field: https"]);
    assert!(problem.remedy.unwrap().contains("listeners.https.address"));
}
