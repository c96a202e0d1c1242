//! What whoever asks for certificates is told.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::dns::name::DnsName;
use crate::routing::HostName;
use crate::routing::host::HostError;

const DNS_PORT: u16 = 53;

/// Where certificates are asked for, for whom, and how names are proved to be ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmeSettings {
    /// The URL of the authority's directory.
    pub directory: String,
    /// Whom the authority may write to.
    pub email: Option<String>,
    pub eab: Option<Eab>,
    /// How a name may be proved, in the order in which it is tried; the next one after each failure.
    pub challenges: Vec<Challenge>,
    /// Whom the directory's own certificate is held to; the system's authorities if none are given.
    pub roots: Option<Vec<CertificateDer<'static>>>,
    /// Keys, certificates and what happened so far are kept there.
    pub storage: PathBuf,
    /// One certificate is for all names one label below.
    pub preview_zone: Option<HostName>,
    /// There for DNS-01.
    pub dns: Option<DnsSettings>,
    /// In any hour no more are begun.
    pub orders_per_hour: usize,
    /// After the first failure; twice as long after each further one, and never more than a day.
    pub retry_after: Duration,
}

/// A proof that a name is ours (RFC 8555 section 8, RFC 8737).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Challenge {
    /// A file at the name's port 80.
    #[serde(rename = "http-01")]
    Http01,
    /// A handshake at its port 443.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
    /// A TXT record; alone good for `*.` names.
    #[serde(rename = "dns-01")]
    Dns01,
}

/// Ties the account to one that the authority knows already.
#[derive(Clone, PartialEq, Eq)]
pub struct Eab {
    pub key_id: String,
    pub hmac_key: Vec<u8>,
}

/// How TXT records are set and taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSettings {
    pub means: DnsMeans,
    /// From when a record was set until the authority is told to look.
    pub propagation: Duration,
}

/// Who sets and takes back TXT records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsMeans {
    Hook(DnsHook),
    Update(DnsUpdate),
}

/// A program that sets and takes back TXT records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsHook {
    /// The program and its first arguments; never a shell.
    pub command: Vec<String>,
    /// It is ended when it takes longer.
    pub timeout: Duration,
}

/// A server that takes dynamic updates (RFC 2136).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsUpdate {
    pub server: DnsServer,
    /// The server is asked for it if it is not given.
    pub zone: Option<DnsName>,
    pub key: TsigKey,
    /// Of the records, in seconds.
    pub ttl: u32,
    /// For each question and its answer.
    pub timeout: Duration,
}

/// Where a DNS server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsServer {
    /// A name, or an address without brackets.
    pub host: String,
    pub port: u16,
}

/// What messages to a DNS server are signed with (RFC 8945).
#[derive(Clone, PartialEq, Eq)]
pub struct TsigKey {
    pub name: DnsName,
    pub algorithm: TsigAlgorithm,
    pub secret: Vec<u8>,
}

/// Of the algorithms of RFC 8945 section 6 those that are still to be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TsigAlgorithm {
    #[default]
    HmacSha256,
    HmacSha384,
    HmacSha512,
}

impl Challenge {
    /// Its registered name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::Dns01 => "dns-01",
        }
    }
}

impl TsigAlgorithm {
    /// Its registered name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::HmacSha384 => "hmac-sha384",
            Self::HmacSha512 => "hmac-sha512",
        }
    }
}

impl FromStr for DnsServer {
    type Err = HostError;

    /// A name or an address, and perhaps a port: 53 if there is none.
    fn from_str(text: &str) -> Result<Self, HostError> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: address.ip().to_string(), port: address.port() });
        }
        if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Ok(Self { host: address.to_string(), port: DNS_PORT });
        }
        let host = HostName::from_authority(text)?;
        let port = text.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        Ok(Self { host: host.to_string(), port: port.unwrap_or(DNS_PORT) })
    }
}

impl fmt::Display for DnsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.parse::<Ipv6Addr>() {
            Ok(address) => write!(f, "[{address}]:{}", self.port),
            Err(_) => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Debug for TsigKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, algorithm, .. } = self;
        f.debug_struct("TsigKey").field("name", name).field("algorithm", algorithm).finish_non_exhaustive()
    }
}

impl Eab {
    /// Tells one from another, and nothing of the key.
    pub(super) fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.key_id.as_bytes()).update(&[0]).update(&self.hmac_key);
        hasher.finalize().to_hex()[..16].to_owned()
    }
}

impl fmt::Debug for Eab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Eab").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}
