//! What whoever asks for certificates is told.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::routing::HostName;

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
    pub dns: Option<DnsHook>,
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

/// A program that sets and takes back TXT records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsHook {
    /// The program and its first arguments; never a shell.
    pub command: Vec<String>,
    /// It is ended when it takes longer.
    pub timeout: Duration,
    /// From when a record was set until the authority is told to look.
    pub propagation: Duration,
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

impl fmt::Debug for Eab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Eab").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}
