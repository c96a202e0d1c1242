//! How TXT records are set by dynamic updates, for the challenge dns-01.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::diagnose::Findings;
use crate::acme::{DnsName, DnsServer, DnsUpdate, TsigAlgorithm, TsigKey};
use crate::settings::{Delay, Secret};

const PATH: &str = "tls.acme.dns_update";
/// A record is there for minutes.
const TTL_MAX: Delay = Delay::seconds(24 * 60 * 60);

/// A server that takes dynamic updates (RFC 2136), and the key that they are signed with (RFC 8945).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DnsUpdateDocument {
    /// A name or an address, and perhaps a port; by TCP.
    server: String,
    /// The zone that has the records; the server is asked for it if it is not given.
    zone: Option<String>,
    /// As the server knows the key.
    key_name: String,
    /// base64, as `tsig-keygen` writes it.
    #[serde(skip_serializing)]
    key_secret: Secret,
    #[serde(default)]
    algorithm: TsigAlgorithm,
    /// Of the records: in whole seconds, up to a day.
    #[serde(default = "ttl")]
    ttl: Delay,
    /// For each question and its answer.
    #[serde(default = "timeout")]
    timeout: Delay,
}

fn ttl() -> Delay {
    Delay::seconds(60)
}

fn timeout() -> Delay {
    Delay::seconds(10)
}

impl DnsUpdateDocument {
    /// What it means; `None` if something is wrong.
    pub(super) fn read(&self, findings: &mut Findings<'_>) -> Option<DnsUpdate> {
        let server = self.server.parse::<DnsServer>();
        let remedy = "write a name or an address, and perhaps a port: ns1.example.com, or 192.0.2.53:53";
        let server = server.map_err(|error| findings.refuse(&at("server"), &error, remedy)).ok();
        let remedy = "write the zone that the server has, for example example.com, or leave it out: the server is asked";
        let zone = self.zone.as_deref().map(|zone| name("zone", zone, remedy, findings));
        let remedy = "write the name that the key has in the configuration of the server";
        let key_name = name("key_name", &self.key_name, remedy, findings);
        let secret = self.secret(findings);
        let ttl = u32::try_from(self.ttl.0.as_secs()).ok().filter(|_| self.ttl <= TTL_MAX);
        if ttl.is_none() {
            findings.add(&at("ttl"), "is longer than a day", "write for example 1m");
        }
        if self.timeout.0.is_zero() {
            findings.add(&at("timeout"), "is not positive", "write for example 10s");
        }
        let zone = match zone {
            Some(zone) => Some(zone?),
            None => None,
        };
        let key = TsigKey { name: key_name?, algorithm: self.algorithm, secret: secret? };
        Some(DnsUpdate { server: server?, zone, key, ttl: ttl?, timeout: self.timeout.0 })
    }

    fn secret(&self, findings: &mut Findings<'_>) -> Option<Vec<u8>> {
        let decoded = BASE64_STANDARD.decode(self.key_secret.expose().trim());
        let secret = decoded.ok().filter(|secret| !secret.is_empty());
        if secret.is_none() {
            let remedy = "copy the secret as tsig-keygen writes it; best from a file: '${file:…}'";
            findings.add(&at("key_secret"), "is not base64", remedy);
        }
        secret
    }
}

fn at(key: &str) -> String {
    format!("{PATH}.{key}")
}

fn name(key: &str, text: &str, remedy: &str, findings: &mut Findings<'_>) -> Option<DnsName> {
    text.parse().map_err(|error| findings.refuse(&at(key), &error, remedy)).ok()
}
