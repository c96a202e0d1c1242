//! https targets: whose certificates are believed, and a connection that has TLS or not.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use crate::unverified::AnyCertificate;

/// Certificate authorities that are believed beside those of the system.
#[derive(Clone, PartialEq, Eq)]
pub struct Authorities(Vec<CertificateDer<'static>>);

/// A file that holds no authorities.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct AuthoritiesError {
    path: String,
    problem: String,
}

/// A connection to the target, without TLS or with it.
pub(super) type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Makes connections for `protocol`; what it remembers of sessions is used again.
pub(super) fn connector(
    authorities: Option<&Authorities>,
    insecure: bool,
    protocol: &[u8],
) -> Result<TlsConnector, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let mut config = if insecure {
        let any = Arc::new(AnyCertificate(provider));
        builder.dangerous().with_custom_certificate_verifier(any).with_no_client_auth()
    } else {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for authority in authorities.iter().flat_map(|authorities| &authorities.0) {
            roots.add(authority.clone())?;
        }
        builder.with_root_certificates(roots).with_no_client_auth()
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

impl FromStr for Authorities {
    type Err = AuthoritiesError;

    /// Reads them from the file of that name.
    fn from_str(path: &str) -> Result<Self, AuthoritiesError> {
        let refused = |problem: String| AuthoritiesError { path: path.to_owned(), problem };
        let pem = std::fs::read(PathBuf::from(path)).map_err(|error| refused(error.to_string()))?;
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let all = all.map_err(|error| refused(error.to_string()))?;
        if all.is_empty() { Err(refused("holds no certificate".to_owned())) } else { Ok(Self(all)) }
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authorities({})", self.0.len())
    }
}
