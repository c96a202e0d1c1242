//! The one place where rustls is set up.

use std::fmt;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion, version};

use super::certificate::{PemError, certificates};
use super::table::CertTable;

/// What is offered by ALPN (RFC 7301), by its registered name.
pub const HTTP_2: &[u8] = b"h2";
pub const HTTP_11: &[u8] = b"http/1.1";
#[cfg(feature = "http3")]
const HTTP_3: &[u8] = b"h3";

/// By which who validates a challenge of TLS-ALPN-01 is told from everybody else (RFC 8737 section 6.2).
pub(super) const ACME_TLS: &[u8] = b"acme-tls/1";

/// The authorities that sign the certificates of clients.
#[derive(PartialEq, Eq)]
pub struct ClientCa(Vec<CertificateDer<'static>>);

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
    #[error("the authorities of clients cannot be used")]
    Clients(#[from] rustls::client::VerifierBuilderError),
}

/// Chooses a certificate by the name that the client asks for, from the table that is published at that moment. Weak,
/// because the table holds configurations that hold this.
struct Resolver(Weak<ArcSwap<CertTable>>);

impl ClientCa {
    /// Reads authorities, and sees that certificates can be held to them.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn of_pem(pem: &str) -> Result<Self, PemError> {
        Ok(Self(certificates(pem)?))
    }

    /// Whether certificates can be held to them.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), TlsError> {
        self.verifier().map(drop)
    }

    fn verifier(&self) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
        let mut roots = RootCertStore::empty();
        for ca in &self.0 {
            roots.add(ca.clone())?;
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        Ok(WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?)
    }
}

/// How handshakes are carried out with clients of which the same is asked.
pub(super) struct Configs {
    pub(super) tcp: Arc<ServerConfig>,
    #[cfg(feature = "http3")]
    pub(super) quic: Arc<ServerConfig>,
}

impl Configs {
    /// With clients that `clients` signed, or any.
    pub(super) fn new(
        table: &Arc<ArcSwap<CertTable>>,
        protocols: &[&[u8]],
        clients: Option<&ClientCa>,
    ) -> Result<Self, TlsError> {
        Ok(Self {
            tcp: Arc::new(config(table, &[&version::TLS13, &version::TLS12], protocols, clients)?),
            // QUIC is TLS 1.3 alone (RFC 9001 section 4.2). Nothing is taken from a client before its handshake is over: it
            // could be a repetition (RFC 9001 section 9.2).
            #[cfg(feature = "http3")]
            quic: Arc::new(config(table, &[&version::TLS13], &[HTTP_3], clients)?),
        })
    }
}

/// With tickets, and without early data; the certificates are those of `table` at the time of each handshake.
fn config(
    table: &Arc<ArcSwap<CertTable>>,
    versions: &[&'static SupportedProtocolVersion],
    protocols: &[&[u8]],
    clients: Option<&ClientCa>,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions)?;
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(clients.verifier()?),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(Resolver(Arc::downgrade(table))));
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    config.max_early_data_size = 0;
    // Keys of its own, which turn over by themselves: what one configuration let in is not resumed under another.
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(config)
}

/// For who validates a challenge: one certificate, one protocol, and no session afterwards.
pub(super) fn of_challenge(
    certificate: CertificateDer<'static>,
    key: &PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let versions = &[&version::TLS13, &version::TLS12];
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions)?;
    // Not `with_single_cert`: it does not know the critical extension that the answer stands in.
    let certified = CertifiedKey::new(vec![certificate], aws_lc_rs::sign::any_supported_type(key)?);
    let resolver = Arc::new(SingleCertAndKey::from(certified));
    let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| name.parse().ok());
        let table = self.0.upgrade()?;
        let table = table.load();
        table.certificate(name.as_ref()).map(|certificate| Arc::clone(&certificate.key))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

impl fmt::Debug for ClientCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientCa({} certificates)", self.0.len())
    }
}
