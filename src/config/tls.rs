//! Listeners for https and the certificates that they offer, read with the configuration: what is applied is whole.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_yaml::{Mapping, Value};

use super::acme::AcmeDocument;
use super::diagnose::Findings;
use super::document::ProxiesDocument;
use super::interpolate::read_file;
use crate::acme::AcmeSettings;
use crate::certs::{Certificate, ClientCa, Clients, Part, PemError, Served};
use crate::clock::{Clock, SystemClock};
use crate::routing::HostPattern;
use crate::routing::host::HostError;
use crate::settings::Delay;

/// Of a file with certificates or a key.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HttpsListener {
    /// Address and port; none: no TLS.
    #[schemars(with = "Option<String>")]
    address: Option<SocketAddr>,
    /// More of them.
    #[schemars(with = "Vec<String>")]
    also: Vec<SocketAddr>,
    /// Browsers are told to come by https alone for so long, by answers that do not say it themselves; 0s: they are not.
    pub(super) hsts: Delay,
    /// As of `listeners.http`; the header comes before the handshake.
    pub(super) proxy_protocol: Option<ProxiesDocument>,
    /// As of `listeners.http`; those of HTTP/3 count among them.
    pub(super) connections: Option<usize>,
    /// HTTP/3 as well, by UDP at the same addresses. Experimental; for builds with the feature `http3`.
    http3: bool,
    /// What answers by TLS tell of HTTP/3.
    alt_svc: Option<AltSvcConfig>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AltSvcConfig {
    /// At which it is reached from outside, if that is not the listener's own.
    pub port: Option<u16>,
    /// How long clients may remember it; 0s: they are to forget it.
    pub max_age: Delay,
}

impl Default for AltSvcConfig {
    fn default() -> Self {
        Self { port: None, max_age: Delay(Duration::from_secs(24 * 60 * 60)) }
    }
}

/// Certificates, and who has to show one.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TlsDocument {
    /// The first is for names that no other fits.
    certificates: Vec<CertificateDocument>,
    /// Host names whose clients have to show a certificate.
    clients: Vec<ClientsDocument>,
    acme: AcmeDocument,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CertificateDocument {
    /// PEM: the certificate, then those that it was signed by.
    cert: PathBuf,
    /// PEM, without a password.
    key: PathBuf,
    /// What it is offered for; all that it is good for, if not given.
    #[serde(default)]
    hosts: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ClientsDocument {
    hosts: Vec<String>,
    /// PEM: the authorities that sign them.
    ca: PathBuf,
}

/// What is served over TLS.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TlsConfig {
    pub listen: Vec<SocketAddr>,
    /// Who has to begin connections with a PROXY header; `None`: nobody.
    pub proxy_protocol: Option<Vec<IpNet>>,
    /// How many connections there may be with TLS; `None`: as many as there may be at all.
    pub connections: Option<usize>,
    pub hsts: Delay,
    /// HTTP/3 as well.
    pub http3: bool,
    /// What is told of it; `None`: nothing.
    pub alt_svc: Option<AltSvcConfig>,
    pub certificates: Vec<Served>,
    pub clients: Vec<Clients>,
    /// How others are asked for; `None`: they are not.
    pub acme: Option<AcmeSettings>,
    /// What they were read from.
    pub files: Vec<PathBuf>,
}

impl TlsConfig {
    /// Reads what the document names.
    pub(super) fn read(
        listener: &HttpsListener,
        document: &TlsDocument,
        data_dir: &Path,
        findings: &mut Findings<'_>,
    ) -> Self {
        if listener.address.is_none() && !listener.also.is_empty() {
            findings.add(
                "listeners.https.also",
                "stands without an address",
                "write listeners.https.address",
            );
        }
        let mut config = Self {
            listen: listener.address.into_iter().chain(listener.also.iter().copied()).collect(),
            proxy_protocol: listener.proxy_protocol.as_ref().map(|proxies| proxies.from.clone()),
            connections: listener.connections,
            hsts: listener.hsts,
            http3: listener.http3,
            acme: document.acme.read(data_dir, findings),
            ..Self::default()
        };
        if config.http3 {
            config.look_at_http3(findings);
        }
        config.alt_svc = alt_svc(listener, findings);
        config.files.extend(document.acme.ca.clone());
        if config.acme.is_some() && config.listen.is_empty() {
            let remedy = "write listeners.https.address: 0.0.0.0:443";
            findings.add("tls.acme.directory", "asks for certificates that no listener offers", remedy);
        }
        for (at, named) in document.certificates.iter().enumerate() {
            let path = format!("tls.certificates[{at}]");
            config.files.extend([named.cert.clone(), named.key.clone()]);
            let hosts = patterns(&path, &named.hosts, findings);
            let Some(certificate) = certificate(&path, named, findings) else { continue };
            look_at(&path, &certificate, &hosts, findings);
            config.certificates.push(Served { certificate: Arc::new(certificate), hosts });
        }
        for (at, named) in document.clients.iter().enumerate() {
            let path = format!("tls.clients[{at}]");
            config.files.push(named.ca.clone());
            let hosts = patterns(&path, &named.hosts, findings);
            if named.hosts.is_empty() {
                findings.add(&format!("{path}.hosts"), "names nobody", "write hosts: [admin.example.com]");
            }
            let at = format!("{path}.ca");
            let ca = pem(&at, &named.ca, findings).and_then(|pem| match ClientCa::of_pem(&pem) {
                Ok(ca) => Some(ca),
                Err(error) => {
                    of_file(&at, &named.ca, &error, findings);
                    None
                }
            });
            config.clients.extend(ca.map(|ca| Clients::new(hosts, Arc::new(ca))));
        }
        config
    }
}

impl TlsConfig {
    fn look_at_http3(&self, findings: &mut Findings<'_>) {
        let key = "listeners.https.http3";
        if !cfg!(feature = "http3") {
            let remedy = "leave it out, or build lockgate with: cargo build --release --features http3";
            findings.add(key, "needs the feature http3, which this build does not have", remedy);
        }
        if self.listen.is_empty() {
            findings.add(key, "stands without an address", "write listeners.https.address");
        }
        if self.proxy_protocol.is_some() {
            // Nobody would say whose the packets are.
            let remedy = "leave one of the two out";
            findings.add(key, "goes with no listeners.https.proxy_protocol: QUIC has no such header", remedy);
        }
    }
}

/// What is told of HTTP/3: where it is unless something else is written, and without it at most that it is to be forgotten.
fn alt_svc(listener: &HttpsListener, findings: &mut Findings<'_>) -> Option<AltSvcConfig> {
    let key = "listeners.https.alt_svc";
    let written = listener.alt_svc;
    if written.is_some() && !cfg!(feature = "http3") {
        let remedy = "leave it out, or build lockgate with: cargo build --release --features http3";
        findings.add(key, "needs the feature http3, which this build does not have", remedy);
    }
    let told = written.or_else(|| listener.http3.then(AltSvcConfig::default))?;
    let AltSvcConfig { port, max_age: Delay(max_age) } = told;
    if port == Some(0) {
        findings.add(&format!("{key}.port"), "is no port", "write the port that clients reach it at");
    }
    if !listener.http3 && !max_age.is_zero() {
        let remedy = "write listeners.https.http3: true, or max_age: 0s to have clients forget it";
        findings.add(key, "tells of HTTP/3, which is not served", remedy);
    }
    if !max_age.is_zero() && max_age < Duration::from_secs(1) {
        findings.add(&format!("{key}.max_age"), "is told in whole seconds", "write 1s or more, or 0s");
    }
    Some(told)
}

/// The files that a document names, as far as they are written out there.
pub(super) fn files(tree: &Value) -> Vec<PathBuf> {
    let listed =
        |section: &str| tree.get("tls").and_then(|tls| tls.get(section)).and_then(Value::as_sequence);
    let entries = ["certificates", "clients"].into_iter().filter_map(listed).flatten();
    let named = entries.flat_map(|entry| ["cert", "key", "ca"].map(|key| entry.get(key)));
    let ca = tree.get("tls").and_then(|tls| tls.get("acme")).and_then(|acme| acme.get("ca"));
    let services = tree.get("services").and_then(Value::as_mapping);
    let of_services = services.into_iter().flat_map(|services| services.values());
    let apps = tree.get("apps").and_then(Value::as_mapping);
    let of_both = of_services.chain(apps.into_iter().flat_map(|apps| apps.values()));
    let of_both = of_both.map(|one| one.get("tls").and_then(|tls| tls.get("ca")));
    let of_traces = tree.get("traces").and_then(|traces| traces.get("ca"));
    named.chain(of_both).flatten().chain(ca).chain(of_traces).filter_map(named_file).collect()
}

/// Puts the text of the file that an app's `tls.ca` names in its place, so that each version keeps what it was deployed with;
/// returns the file. `None`: it cannot be read, which is told.
pub(super) fn read_ca(path: &str, app: &mut Mapping, findings: &mut Findings<'_>) -> Option<Option<PathBuf>> {
    let Some(ca) = app.get_mut("tls").and_then(|tls| tls.get_mut("ca")) else { return Some(None) };
    let Some(file) = named_file(ca) else { return Some(None) };
    *ca = Value::String(pem(&format!("{path}.tls.ca"), &file, findings)?);
    Some(Some(file))
}

/// The file that it names, unless it is what stands in one.
fn named_file(ca: &Value) -> Option<PathBuf> {
    ca.as_str().filter(|text| !text.contains("-----BEGIN")).map(PathBuf::from)
}

fn certificate(path: &str, named: &CertificateDocument, findings: &mut Findings<'_>) -> Option<Certificate> {
    let (cert, key) = (format!("{path}.cert"), format!("{path}.key"));
    let chain_pem = pem(&cert, &named.cert, findings);
    let key_pem = pem(&key, &named.key, findings);
    Certificate::of_pem(&chain_pem?, &key_pem?)
        .map_err(|error| match error.part {
            Part::Chain => of_file(&cert, &named.cert, &error, findings),
            Part::Key => of_file(&key, &named.key, &error, findings),
        })
        .ok()
}

pub(super) fn pem(path: &str, file: &Path, findings: &mut Findings<'_>) -> Option<String> {
    let problem = |problem: String| {
        let message = format!("file {} {problem}", findings.shown(path, &file.display().to_string()));
        findings.add(path, message, "check the path and who may read it");
    };
    read_file(file, PEM_BYTES_MAX).map_err(problem).ok()
}

pub(super) fn of_file(path: &str, file: &Path, error: &PemError, findings: &mut Findings<'_>) {
    let message = format!("file {} {error}", findings.shown(path, &file.display().to_string()));
    findings.add(path, message, error.remedy);
}

/// What clients will not take, and will have to be looked at: nothing that a start should fail for.
fn look_at(path: &str, certificate: &Certificate, hosts: &[HostPattern], findings: &mut Findings<'_>) {
    let cert = format!("{path}.cert");
    let now = SystemClock.wall();
    let (from, until) = (certificate.not_before, certificate.not_after);
    if until <= now {
        findings.warn(&cert, format!("has expired at {until}"), "put a new one there; it is read at once");
    } else if now < from {
        findings.warn(&cert, format!("is not valid before {from}"), "look at the clock of this machine");
    }
    if certificate.names().is_empty() {
        let remedy =
            "clients look for the host among its subject alternative names: ask for one that has them";
        findings.warn(&cert, "names no host", remedy);
    }
    for (at, host) in hosts.iter().enumerate().filter(|(_, host)| !certificate.names().contains(host)) {
        let is_covered = match host {
            HostPattern::Exact(name) => certificate.covers(name),
            HostPattern::Wildcard(_) | HostPattern::Any => false,
        };
        if !is_covered {
            let at = format!("{path}.hosts[{at}]");
            let message = format!(
                "{} is not among the names of the certificate",
                findings.shown(&at, &host.to_string())
            );
            findings.warn(&at, message, "clients will not accept it: name a certificate that is good for it");
        }
    }
}

fn patterns(path: &str, hosts: &[String], findings: &mut Findings<'_>) -> Vec<HostPattern> {
    let mut found = Vec::new();
    for (at, host) in hosts.iter().enumerate() {
        let at = format!("{path}.hosts[{at}]");
        let remedy = "write www.example.com or '*.example.com'";
        match host.parse() {
            Ok(HostPattern::Any) => findings.add(&at, "is not a host name", remedy),
            Ok(pattern) => found.push(pattern),
            Err(error) => findings.refuse(&at, &error as &HostError, remedy),
        }
    }
    found
}
