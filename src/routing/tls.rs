//! How a target is spoken to by TLS: whom it has to show itself to be, and who may say so.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::unverified::AnyCertificate;

/// What is spoken over it, by its registered name (RFC 7301).
const HTTP_11: &[u8] = b"http/1.1";
pub(crate) const HTTP_2: &[u8] = b"h2";

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

    /// The same for those that speak HTTP/2.
    #[must_use]
    pub fn over_http2(self) -> Self {
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = vec![HTTP_2.to_vec()];
        Self { config: Arc::new(config), ..self }
    }

    /// To a target that has to be `name`.
    #[must_use]
    pub fn to(&self, name: ServerName<'static>) -> TargetTls {
        TargetTls { tls: self.clone(), name }
    }

    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }
}

impl TargetTls {
    /// The same for one that speaks HTTP/2.
    #[must_use]
    pub fn over_http2(self) -> Self {
        Self { tls: self.tls.over_http2(), ..self }
    }

    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        self.tls.config()
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
