//! Static services: upstreams that Lockgate does not deploy.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustls::pki_types::ServerName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_yaml::Value;

use super::diagnose::Findings;
use super::document::{AppHosts, HostDocument};
use super::listeners::Listeners;
use super::tls::{of_file, pem};
use super::typed::typed;
use super::{HostRule, parsed};
use crate::certs::certificates;
use crate::error::chain;
use crate::ids::ServiceName;
use crate::routing::tls::{Believed, BelievedError, ClientTls, TargetTls};
use crate::settings::{Protocol, ProxyProtocol};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceDocument {
    #[schemars(with = "Vec<HostDocument>")]
    hosts: Value,
    /// `http://ADDRESS:PORT`, `https://ADDRESS:PORT`, or `h2c://ADDRESS:PORT` for those that speak HTTP/2 without TLS
    upstreams: Vec<String>,
    /// Who the `https://` ones have to be.
    tls: Option<ServiceTlsDocument>,
    /// They are told whose request comes by a PROXY header, which is the first of each connection to them; each request then
    /// has a connection of its own.
    proxy_protocol: Option<ProxyProtocol>,
}

/// How the certificate is judged that an upstream shows.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct ServiceTlsDocument {
    /// The name that it has to be for, and that is asked for; the address, if not given.
    server_name: Option<String>,
    /// PEM: the authorities that may have signed it, in place of the system's.
    ca: Option<PathBuf>,
    /// Any certificate is taken: whoever is on the way can pose as the service.
    insecure: bool,
}

/// Upstreams that Lockgate does not deploy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    pub hosts: Vec<HostRule>,
    pub upstreams: Vec<ServiceUpstream>,
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The file that their authorities were read from.
    pub ca: Option<PathBuf>,
}

/// Where a static service is, and what it speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceUpstream {
    pub address: SocketAddr,
    pub protocol: Protocol,
    pub tls: Option<TargetTls>,
}

/// An upstream as it is written.
struct Written {
    address: SocketAddr,
    protocol: Protocol,
    is_https: bool,
}

pub(super) fn service(
    name: &str,
    mut value: Value,
    own: &Listeners,
    findings: &mut Findings<'_>,
) -> Option<(ServiceName, ServiceConfig)> {
    let path = format!("services.{name}");
    let name: ServiceName = parsed(&path, name, findings)?;
    let document: ServiceDocument = typed(&path, &mut value, findings)?;
    let hosts = AppHosts(document.hosts).rules(&path, findings);
    let mut upstreams = Vec::new();
    for (at, text) in document.upstreams.iter().enumerate() {
        let at = format!("{path}.upstreams[{at}]");
        match upstream(text) {
            Some(upstream) => {
                own.refuse(&at, text, upstream.address, findings);
                upstreams.push(upstream);
            }
            None => {
                let message = format!("{} is not an upstream", findings.shown(&at, text));
                let remedy = "write http://ADDRESS:PORT, https://ADDRESS:PORT or h2c://ADDRESS:PORT with an IP address, for example http://10.0.0.5:8080";
                findings.add(&at, message, remedy);
            }
        }
    }
    if document.upstreams.is_empty() {
        findings.add(&path, "has no upstreams", "name at least one");
    }
    if document.proxy_protocol.is_some() && upstreams.iter().any(|one| one.protocol == Protocol::H2c) {
        findings.add(
            &format!("{path}.proxy_protocol"),
            "is told at the beginning of a connection, and those of HTTP/2 carry requests of many clients",
            "leave it out, or write http:// upstreams",
        );
    }
    let tls = tls(&path, document.tls.as_ref(), &upstreams, findings);
    let upstream = |written: Written| ServiceUpstream {
        address: written.address,
        protocol: written.protocol,
        tls: tls.as_ref().filter(|_| written.is_https).map(|(tls, name)| {
            tls.to(name.clone().unwrap_or_else(|| ServerName::from(written.address.ip())))
        }),
    };
    Some((
        name,
        ServiceConfig {
            hosts,
            upstreams: upstreams.into_iter().map(upstream).collect(),
            proxy_protocol: document.proxy_protocol,
            ca: document.tls.and_then(|tls| tls.ca),
        },
    ))
}

fn upstream(text: &str) -> Option<Written> {
    let (protocol, is_https, rest) = match text.split_once("://")? {
        ("http", rest) => (Protocol::Http1, false, rest),
        ("https", rest) => (Protocol::Http1, true, rest),
        ("h2c", rest) => (Protocol::H2c, false, rest),
        _ => return None,
    };
    let address: SocketAddr = rest.strip_suffix('/').unwrap_or(rest).parse().ok()?;
    (address.port() > 0).then_some(Written { address, protocol, is_https })
}

/// TLS to those of `upstreams` that are spoken to by it, and the name that they have to have, if it is not their address.
fn tls(
    path: &str,
    document: Option<&ServiceTlsDocument>,
    upstreams: &[Written],
    findings: &mut Findings<'_>,
) -> Option<(ClientTls, Option<ServerName<'static>>)> {
    if !upstreams.iter().any(|upstream| upstream.is_https) {
        if document.is_some() {
            let remedy = "write https://ADDRESS:PORT, or leave tls out";
            findings.add(&format!("{path}.tls"), "is for https:// upstreams, of which there is none", remedy);
        }
        return None;
    }
    let of_key = |key: &str| format!("{path}.tls.{key}");
    let (name, ca, insecure) = match document {
        Some(tls) => (tls.server_name.as_deref(), tls.ca.as_deref(), tls.insecure),
        None => (None, None, false),
    };
    let name = match name.map(|name| ServerName::try_from(name.to_owned())) {
        None => None,
        Some(Ok(name)) => Some(name),
        Some(Err(_)) => {
            let at = of_key("server_name");
            let message = format!("{} is not a name", findings.shown(&at, name.unwrap_or_default()));
            findings.add(&at, message, "write the name that the certificate is for: app.internal");
            return None;
        }
    };
    let believed = match (ca, insecure) {
        (None, false) => Believed::System,
        (Some(file), false) => authorities(&of_key("ca"), file, findings)?,
        (None, true) => {
            let remedy =
                "name the authority that signs its certificate in tls.ca, and the name in tls.server_name";
            let message = "takes any certificate: whoever is on the way can pose as the service";
            findings.warn(&of_key("insecure"), message, remedy);
            Believed::Anybody
        }
        (Some(_), true) => {
            findings.add(
                &of_key("insecure"),
                "stands beside ca, which it makes meaningless",
                "leave one out",
            );
            return None;
        }
    };
    let refused = |error: BelievedError| {
        let at = if ca.is_some() { of_key("ca") } else { format!("{path}.upstreams") };
        let remedy = "name the authority that signs its certificate in tls.ca";
        findings.add(&at, format!("cannot be used: {}", chain(&error)), remedy);
    };
    Some((ClientTls::new(believed).map_err(refused).ok()?, name))
}

fn authorities(at: &str, file: &Path, findings: &mut Findings<'_>) -> Option<Believed> {
    let text = pem(at, file, findings)?;
    let refused = |error| of_file(at, file, &error, findings);
    certificates(&text).map_err(refused).ok().map(Believed::Authorities)
}
