//! Listeners for https and the certificates that they offer, read with the configuration: what is applied is whole.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_yaml::Value;

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
    pub hsts: Delay,
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
            hsts: listener.hsts,
            acme: document.acme.read(data_dir, findings),
            ..Self::default()
        };
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

/// The files that a document names, as far as they are written out there.
pub(super) fn files(tree: &Value) -> Vec<PathBuf> {
    let listed =
        |section: &str| tree.get("tls").and_then(|tls| tls.get(section)).and_then(Value::as_sequence);
    let entries = ["certificates", "clients"].into_iter().filter_map(listed).flatten();
    let named = entries.flat_map(|entry| ["cert", "key", "ca"].map(|key| entry.get(key)));
    let ca = tree.get("tls").and_then(|tls| tls.get("acme")).and_then(|acme| acme.get("ca"));
    let services = tree.get("services").and_then(Value::as_mapping);
    let of_services = services.into_iter().flat_map(|services| services.values());
    let of_services = of_services.map(|service| service.get("tls").and_then(|tls| tls.get("ca")));
    named.chain(of_services).flatten().chain(ca).filter_map(Value::as_str).map(PathBuf::from).collect()
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
