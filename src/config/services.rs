//! Static services: upstreams that Lockgate does not deploy.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use rustls::pki_types::ServerName;
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
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
use crate::settings::policy::policy_faults;
use crate::settings::queue::queue_faults;
use crate::settings::{
    BalanceSettings, Delay, HttpsMode, PolicySettings, Protocol, ProxyProtocol, QueueSettings,
};

/// Of upstreams.
const WEIGHTS: RangeInclusive<u16> = 1..=1000;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceDocument {
    #[schemars(with = "Vec<HostDocument>")]
    hosts: Value,
    upstreams: Vec<UpstreamDocument>,
    /// Who the `https://` and `h2://` ones have to be.
    tls: Option<ServiceTlsDocument>,
    /// They are told whose request comes by a PROXY header, which is the first of each connection to them; each request then
    /// has a connection of its own.
    proxy_protocol: Option<ProxyProtocol>,
    /// How requests are spread over them.
    #[serde(default)]
    balance: BalanceSettings,
    /// How many requests and streams one upstream serves at once; no limit if not given.
    max_concurrent_requests: Option<u32>,
    /// Who waits where all upstreams serve as many as they may.
    queue: Option<QueueSettings>,
    /// What becomes of requests to it without TLS; as `listeners.http.redirect` says if not given.
    https: Option<HttpsMode>,
    /// Browsers are told to come to it by https alone for so long, by answers over TLS that do not say it themselves; 0s: they
    /// are not. As `listeners.https.hsts` says if not given.
    hsts: Option<Delay>,
    /// What is asked of its requests and changed on them and their responses, in this order.
    #[serde(default)]
    policies: Vec<PolicySettings>,
}

/// An upstream: its URL alone, or with its weight.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum UpstreamDocument {
    /// `http://ADDRESS:PORT`, `https://ADDRESS:PORT`, and for those that speak HTTP/2 `h2c://ADDRESS:PORT` without TLS and
    /// `h2://ADDRESS:PORT` with it
    Url(String),
    Weighted(WeightedDocument),
}

/// An upstream that gets more or fewer requests than others.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WeightedDocument {
    /// As it is written without a weight.
    url: String,
    /// One of weight 3 gets three times as many requests as one of weight 1: 1 to 1000.
    #[serde(default = "one")]
    weight: u16,
}

/// Reads an [`UpstreamDocument`].
struct UpstreamText;

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
    pub balance: BalanceSettings,
    /// How many requests each upstream serves at once, and who waits.
    pub limit: Option<(u32, QueueSettings)>,
    pub https: Option<HttpsMode>,
    pub hsts: Option<Delay>,
    pub policies: Vec<PolicySettings>,
    /// The file that their authorities were read from.
    pub ca: Option<PathBuf>,
}

/// Where a static service is, and what it speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceUpstream {
    pub address: SocketAddr,
    pub protocol: Protocol,
    pub tls: Option<TargetTls>,
    pub weight: u16,
}

/// An upstream as it is written.
struct Written {
    address: SocketAddr,
    protocol: Protocol,
    weight: u16,
}

impl<'de> Deserialize<'de> for UpstreamDocument {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(UpstreamText)
    }
}

impl<'de> Visitor<'de> for UpstreamText {
    type Value = UpstreamDocument;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("http://ADDRESS:PORT, or { url: http://ADDRESS:PORT, weight: 3 }")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<UpstreamDocument, E> {
        Ok(UpstreamDocument::Url(text.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<UpstreamDocument, A::Error> {
        WeightedDocument::deserialize(MapAccessDeserializer::new(map)).map(UpstreamDocument::Weighted)
    }
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
    for (at, written) in document.upstreams.iter().enumerate() {
        let item = format!("{path}.upstreams[{at}]");
        let (at, text, weight) = match written {
            UpstreamDocument::Url(text) => (item, text, one()),
            UpstreamDocument::Weighted(one) => {
                if !WEIGHTS.contains(&one.weight) {
                    let remedy = "write 1 to 1000; an upstream that is to get nothing is left out";
                    findings.add(&format!("{item}.weight"), "is out of range", remedy);
                }
                (format!("{item}.url"), &one.url, one.weight)
            }
        };
        match upstream(text, weight) {
            Some(upstream) => {
                own.refuse(&at, text, upstream.address, findings);
                upstreams.push(upstream);
            }
            None => {
                let message = format!("{} is not an upstream", findings.shown(&at, text));
                let remedy = "write http://ADDRESS:PORT, https://, h2c:// or h2:// with an IP address, for example http://10.0.0.5:8080";
                findings.add(&at, message, remedy);
            }
        }
    }
    for (field, detail, remedy) in queue_faults(document.max_concurrent_requests, document.queue) {
        findings.add(&format!("{path}.{field}"), detail, remedy);
    }
    if document.upstreams.is_empty() {
        findings.add(&path, "has no upstreams", "name at least one");
    }
    if document.proxy_protocol.is_some() && upstreams.iter().any(|one| one.protocol.is_http2()) {
        findings.add(
            &format!("{path}.proxy_protocol"),
            "is told at the beginning of a connection, and those of HTTP/2 carry requests of many clients",
            "leave it out, or write http:// or https:// upstreams",
        );
    }
    let mut faults = Vec::new();
    policy_faults(&format!("{path}.policies"), &document.policies, &mut faults);
    for fault in faults {
        findings.fault(&fault.field.clone(), fault);
    }
    let tls = tls(&path, document.tls.as_ref(), &upstreams, findings);
    let upstream = |written: Written| ServiceUpstream {
        address: written.address,
        protocol: written.protocol,
        weight: written.weight,
        tls: tls.as_ref().filter(|_| written.protocol.is_tls()).map(|(tls, name)| {
            let tls = if written.protocol.is_http2() { tls.clone().over_http2() } else { tls.clone() };
            tls.to(name.clone().unwrap_or_else(|| ServerName::from(written.address.ip())))
        }),
    };
    Some((
        name,
        ServiceConfig {
            hosts,
            upstreams: upstreams.into_iter().map(upstream).collect(),
            proxy_protocol: document.proxy_protocol,
            balance: document.balance,
            limit: document.max_concurrent_requests.map(|limit| (limit, document.queue.unwrap_or_default())),
            https: document.https,
            hsts: document.hsts,
            policies: document.policies,
            ca: document.tls.and_then(|tls| tls.ca),
        },
    ))
}

fn upstream(text: &str, weight: u16) -> Option<Written> {
    let (protocol, rest) = match text.split_once("://")? {
        ("http", rest) => (Protocol::Http1, rest),
        ("https", rest) => (Protocol::Https, rest),
        ("h2", rest) => (Protocol::H2, rest),
        ("h2c", rest) => (Protocol::H2c, rest),
        _ => return None,
    };
    let address: SocketAddr = rest.strip_suffix('/').unwrap_or(rest).parse().ok()?;
    (address.port() > 0).then_some(Written { address, protocol, weight })
}

fn one() -> u16 {
    1
}

/// TLS to those of `upstreams` that are spoken to by it, and the name that they have to have, if it is not their address.
fn tls(
    path: &str,
    document: Option<&ServiceTlsDocument>,
    upstreams: &[Written],
    findings: &mut Findings<'_>,
) -> Option<(ClientTls, Option<ServerName<'static>>)> {
    if !upstreams.iter().any(|upstream| upstream.protocol.is_tls()) {
        if document.is_some() {
            let remedy = "write https://ADDRESS:PORT or h2://ADDRESS:PORT, or leave tls out";
            findings.add(
                &format!("{path}.tls"),
                "is for https:// and h2:// upstreams, of which there is none",
                remedy,
            );
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

pub(super) fn authorities(at: &str, file: &Path, findings: &mut Findings<'_>) -> Option<Believed> {
    let text = pem(at, file, findings)?;
    let refused = |error| of_file(at, file, &error, findings);
    certificates(&text).map_err(refused).ok().map(Believed::Authorities)
}
