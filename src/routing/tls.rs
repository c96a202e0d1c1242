//! How a target is spoken to by TLS: whom it has to show itself to be, and who may say so.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// What is spoken over it, by its registered name (RFC 7301).
const HTTP_11: &[u8] = b"http/1.1";

/// Whose word is taken for who a target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Believed {
    /// The authorities of this machine.
    System,
    /// These, and no others.
    Authorities(Vec<CertificateDer<'static>>),
    /// Anybody's: a target may be whoever it likes.
    Anybody,
}

/// Why nobody can be believed.
#[derive(Debug, thiserror::Error)]
pub enum BelievedError {
    #[error("this machine has no certificate authorities")]
    NoSystem,
    #[error("it is not an authority that certificates can be held to")]
    Authority(#[source] rustls::Error),
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

/// TLS to the targets of one service, which share their sessions.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    believed: Believed,
}

/// TLS to one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetTls {
    tls: ClientTls,
    name: ServerName<'static>,
}

impl ClientTls {
    /// TLS 1.2 and 1.3 to whoever is believed.
    ///
    /// # Errors
    /// Why nobody is.
    pub fn new(believed: Believed) -> Result<Self, BelievedError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(BelievedError::Setup)?;
        let mut config = match roots(&believed)? {
            Some(roots) => builder.with_root_certificates(roots).with_no_client_auth(),
            None => {
                let any = Arc::new(AnyCertificate(provider));
                builder.dangerous().with_custom_certificate_verifier(any).with_no_client_auth()
            }
        };
        config.alpn_protocols = vec![HTTP_11.to_vec()];
        Ok(Self { config: Arc::new(config), believed })
    }

    /// To a target that has to be `name`.
    #[must_use]
    pub fn to(&self, name: ServerName<'static>) -> TargetTls {
        TargetTls { tls: self.clone(), name }
    }
}

impl TargetTls {
    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.tls.config)
    }

    pub(crate) fn name(&self) -> ServerName<'static> {
        self.name.clone()
    }
}

/// `None`: anybody will do.
fn roots(believed: &Believed) -> Result<Option<RootCertStore>, BelievedError> {
    let mut roots = RootCertStore::empty();
    match believed {
        Believed::Anybody => return Ok(None),
        Believed::System => {
            let (usable, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if usable == 0 {
                return Err(BelievedError::NoSystem);
            }
        }
        Believed::Authorities(authorities) => {
            for authority in authorities {
                roots.add(authority.clone()).map_err(BelievedError::Authority)?;
            }
        }
    }
    Ok(Some(roots))
}

/// Two that believe the same are the same: which sessions they have kept is nobody's concern.
impl PartialEq for ClientTls {
    fn eq(&self, other: &Self) -> bool {
        self.believed == other.believed
    }
}

impl Eq for ClientTls {}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientTls").field(&self.believed).finish()
    }
}

/// Sees that the target holds the key of the certificate that it shows, whatever that is.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
