//! One certificate with its chain and its key, as they are read from PEM.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::clock::Timestamp;
use crate::error::chain;
use crate::routing::{HostName, HostPattern};

/// A certificate whose key is its own.
pub struct Certificate {
    names: Box<[HostPattern]>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub(super) key: Arc<CertifiedKey>,
}

/// Where something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Chain,
    Key,
}

/// PEM that is no certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct PemError {
    pub part: Part,
    problem: String,
    pub remedy: &'static str,
}

impl Certificate {
    /// Reads a chain, the certificate of the server first, and the key of that.
    ///
    /// # Errors
    /// What is wrong, and with which of the two. Nothing of the key is repeated.
    pub fn of_pem(chain_pem: &str, key_pem: &str) -> Result<Self, PemError> {
        let chain = certificates(chain_pem)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_told_below| {
            refuse(
                Part::Key,
                "holds no private key",
                "write the key in PEM: -----BEGIN PRIVATE KEY-----, without a password",
            )
        })?;
        Self::new(chain, key)
    }

    fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, PemError> {
        let unreadable = |problem: String| {
            let remedy = "write the server's certificate first, then those that it was signed by";
            PemError { part: Part::Chain, problem, remedy }
        };
        let leaf = chain.first().ok_or_else(|| unreadable("holds no certificate".to_owned()))?;
        let (_, parsed) = X509Certificate::from_der(leaf)
            .map_err(|error| unreadable(format!("its first certificate cannot be read: {error}")))?;
        let time = |seconds: i64| Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        let (not_before, not_after) =
            (time(parsed.validity().not_before.timestamp()), time(parsed.validity().not_after.timestamp()));
        let names = names_of(&parsed);
        let key =
            CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(
                |error| match error {
                    rustls::Error::InconsistentKeys(_) => refuse(
                        Part::Key,
                        "is not the key of the certificate",
                        "name the key that the certificate was asked for with",
                    ),
                    other => refuse(
                        Part::Key,
                        &format!("cannot be used: {}", chain_of(&other)),
                        "use an RSA, ECDSA or Ed25519 key",
                    ),
                },
            )?;
        Ok(Self { names, not_before, not_after, key: Arc::new(key) })
    }

    /// What it is good for: host names, `*.` names and addresses.
    #[must_use]
    pub fn names(&self) -> &[HostPattern] {
        &self.names
    }

    /// The certificate itself, as it was signed.
    #[must_use]
    pub fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.key.cert.first()
    }

    /// Whether a client that asks for `host` accepts it.
    #[must_use]
    pub fn covers(&self, host: &HostName) -> bool {
        self.names.iter().any(|name| is_of(name, host))
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        // Whose key is its own is told by its certificate.
        self.key.cert == other.key.cert
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("names", &self.names)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Whether `host` is one of `pattern`'s; a wildcard stands for one label (RFC 6125 section 6.4.3).
pub(super) fn is_of(pattern: &HostPattern, host: &HostName) -> bool {
    match pattern {
        HostPattern::Exact(name) => name == host,
        HostPattern::Wildcard(suffix) => {
            host.split_first_label().is_some_and(|(_, rest)| rest == suffix.as_str())
        }
        HostPattern::Any => true,
    }
}

/// All certificates in `pem`; at least one.
///
/// # Errors
/// If it is not PEM, or holds none.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let remedy = "write it in PEM: -----BEGIN CERTIFICATE-----";
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(refuse(Part::Chain, "holds no certificate", remedy)),
        Err(error) => Err(refuse(Part::Chain, &format!("is not PEM: {error}"), remedy)),
    }
}

fn names_of(certificate: &X509Certificate<'_>) -> Box<[HostPattern]> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Box::default() };
    let name = |name: &GeneralName<'_>| match name {
        // Other names are legal, and nothing that a host is called.
        GeneralName::DNSName(name) => name.parse().ok(),
        GeneralName::IPAddress(bytes) => address(bytes).and_then(|text| text.parse().ok()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).filter(|name| *name != HostPattern::Any).collect()
}

/// As it stands in a `Host`.
fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    let v6 = <[u8; 16]>::try_from(bytes).ok()?;
    Some(format!("[{}]", std::net::Ipv6Addr::from(v6)))
}

fn chain_of(error: &rustls::Error) -> String {
    chain(error)
}

fn refuse(part: Part, problem: &str, remedy: &'static str) -> PemError {
    PemError { part, problem: problem.to_owned(), remedy }
}
