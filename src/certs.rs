//! The certificates of the data plane: which one a name gets, and who may connect by it.
//!
//! [`Certs`] holds one immutable table that is replaced as a whole, as the routes are. The data plane looks up and
//! nothing else.
//!
//! # Invariants
//! 1. A change of certificates ends no session: what makes tickets outlives every table. A TLS configuration is made once
//!    for all names, and once for each set of client authorities, which share no tickets; and so is one for QUIC.
//! 2. A table is made of certificates that were read whole, and whose keys are theirs. What cannot be read changes
//!    nothing.
//! 3. What a challenge of ACME is answered with is there for all workers at one instant, and is offered to those alone who
//!    ask for it by the protocol of the challenge; nobody's session begins with it.
//! 4. A request comes over a connection only if the certificate that was offered to it covers the request's host, and
//!    that host asks the same of its clients as the name that was asked for ([`Session::carries`]).

mod certificate;
mod challenges;
mod server;
mod table;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::ServerConfig;

pub use certificate::{Certificate, Part, PemError, certificates};
pub use challenges::{Answer, Challenges};
pub use server::{ClientCa, HTTP_2, HTTP_11, TlsError};
pub use table::{CertTable, Clients, Served};

use crate::routing::{HostName, HostPattern};
use server::Configs;

/// The published table of certificates. Cheap to look up in, from any thread.
pub struct Certs {
    table: Arc<ArcSwap<CertTable>>,
    /// What clients may speak, the best first.
    protocols: &'static [&'static [u8]],
    /// For all names that ask nothing of their clients.
    open: Configs,
    sources: Mutex<Sources>,
    challenges: Arc<Challenges>,
}

/// What the published table was made of: two publish, each its part.
#[derive(Default)]
struct Sources {
    configured: CertTable,
    issued: Vec<Served>,
}

/// How a connection is served: what a handshake is carried out with, and what becomes of it.
pub struct Offer {
    pub config: Arc<ServerConfig>,
    pub session: Session,
}

/// What a connection was made with.
#[derive(Clone, Debug)]
pub struct Session {
    /// The name that the client asked for; none, if it asked for an address.
    name: Option<HostName>,
    certificate: Option<Arc<Certificate>>,
    clients: Option<Arc<ClientCa>>,
}

impl Certs {
    /// Without a certificate: every handshake fails. Clients are offered `protocols`, the best first.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn new(protocols: &'static [&'static [u8]]) -> Result<Arc<Self>, TlsError> {
        let table = Arc::new(ArcSwap::from_pointee(CertTable::default()));
        let open = Configs::new(&table, protocols, None)?;
        let (sources, challenges) = (Mutex::default(), Arc::default());
        Ok(Arc::new(Self { table, protocols, open, sources, challenges }))
    }

    /// What is published now.
    #[must_use]
    pub fn table(&self) -> Arc<CertTable> {
        self.table.load_full()
    }

    /// Offers what is in `table` from now on, beside what was issued. Handshakes that have begun may still be answered from
    /// the table before it.
    ///
    /// # Errors
    /// If client authorities are new and nobody can be held to them; the table stays what it was then.
    pub fn publish(&self, table: CertTable) -> Result<(), TlsError> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        self.store(table.with(&sources.issued))?;
        sources.configured = table;
        Ok(())
    }

    /// Offers `issued` from now on, beside what is configured, which comes first. Whether that changes anything.
    ///
    /// # Errors
    /// As [`Certs::publish`].
    pub fn publish_issued(&self, issued: Vec<Served>) -> Result<bool, TlsError> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.issued == issued {
            return Ok(false);
        }
        self.store(sources.configured.with(&issued))?;
        sources.issued = issued;
        Ok(true)
    }

    /// Whether the configuration has a certificate that is good for `host`.
    #[must_use]
    pub fn is_configured(&self, host: &HostPattern) -> bool {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).configured.has(host)
    }

    /// What challenges of ACME are answered with.
    #[must_use]
    pub fn challenges(&self) -> &Arc<Challenges> {
        &self.challenges
    }

    fn store(&self, mut table: CertTable) -> Result<(), TlsError> {
        table.equip(&self.table.load(), |ca| Configs::new(&self.table, self.protocols, Some(ca)))?;
        self.table.store(Arc::new(table));
        Ok(())
    }

    /// How to answer a client that asks for `name`.
    #[must_use]
    pub fn offer(&self, name: Option<&str>) -> Offer {
        self.offer_one(name, |configs| &configs.tcp)
    }

    /// The same by QUIC.
    #[cfg(feature = "http3")]
    #[must_use]
    pub fn offer_quic(&self, name: Option<&str>) -> Offer {
        self.offer_one(name, |configs| &configs.quic)
    }

    fn offer_one(&self, name: Option<&str>, of: impl Fn(&Configs) -> &Arc<ServerConfig>) -> Offer {
        let name: Option<HostName> = name.and_then(|name| name.parse().ok());
        let table = self.table.load();
        let clients = name.as_ref().and_then(|name| table.clients(name));
        let configs = clients.and_then(Clients::configs).unwrap_or(&self.open);
        let session = Session {
            certificate: table.certificate(name.as_ref()).cloned(),
            clients: clients.map(|clients| Arc::clone(&clients.ca)),
            name,
        };
        Offer { config: Arc::clone(of(configs)), session }
    }

    /// Whether a certificate is there that is good for `host`.
    #[must_use]
    pub fn covers(&self, host: &HostName) -> bool {
        self.table.load().certificate(Some(host)).is_some_and(|certificate| certificate.covers(host))
    }

    /// Whether requests for `host` may come without TLS.
    #[must_use]
    pub fn is_open(&self, host: &HostName) -> bool {
        self.table.load().clients(host).is_none()
    }
}

impl Session {
    /// Whether a request for `host` may come over this connection. The name that it was made for may whatever its
    /// certificate says: who connected took it.
    #[must_use]
    pub fn carries(&self, host: &HostName, certs: &Certs) -> bool {
        let is_covered = self.name.as_ref() == Some(host)
            || self.certificate.as_ref().is_some_and(|certificate| {
                certificate.covers(host) && self.name.as_ref().is_none_or(|name| certificate.covers(name))
            });
        let table = certs.table.load();
        is_covered && table.clients(host).map(|clients| &clients.ca) == self.clients.as_ref()
    }
}

impl fmt::Debug for Certs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Certs").field(&self.table.load()).finish()
    }
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Offer").field(&self.session).finish()
    }
}
