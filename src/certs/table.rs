//! Which certificate each name gets, and which names ask their clients for one. Immutable.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::certificate::{Certificate, is_of};
use super::server::{ClientCa, Configs, TlsError};
use crate::routing::{HostName, HostPattern};

/// All certificates, by the names that they are offered for.
#[derive(Debug, Default)]
pub struct CertTable {
    all: Vec<Served>,
    exact: HashMap<HostName, Arc<Certificate>>,
    wildcard: HashMap<HostName, Arc<Certificate>>,
    clients: Vec<Clients>,
}

/// A certificate and what it is offered for: `hosts`, or all that it is good for if there are none.
#[derive(Clone, Debug, PartialEq)]
pub struct Served {
    pub certificate: Arc<Certificate>,
    pub hosts: Vec<HostPattern>,
}

/// Host names whose clients have to show a certificate.
#[derive(Clone)]
pub struct Clients {
    pub hosts: Vec<HostPattern>,
    pub ca: Arc<ClientCa>,
    configs: Option<Arc<Configs>>,
}

impl CertTable {
    /// Of two certificates for one name the first is offered, and the first of all where none fits. Of two demands on
    /// the clients of one name the first counts.
    #[must_use]
    pub fn new(all: Vec<Served>, clients: Vec<Clients>) -> Self {
        let mut table = Self { clients, ..Self::default() };
        for served in &all {
            let names = if served.hosts.is_empty() { served.certificate.names() } else { &served.hosts };
            for name in names {
                let (names, name) = match name {
                    HostPattern::Exact(name) => (&mut table.exact, name),
                    HostPattern::Wildcard(suffix) => (&mut table.wildcard, suffix),
                    HostPattern::Any => continue,
                };
                names.entry(name.clone()).or_insert_with(|| Arc::clone(&served.certificate));
            }
        }
        table.all = all;
        table
    }

    /// This one, and after its certificates `more`.
    #[must_use]
    pub(super) fn with(&self, more: &[Served]) -> Self {
        Self::new([&self.all, more].concat(), self.clients.clone())
    }

    /// Whether one of the certificates is offered for `host`, and good for it.
    #[must_use]
    pub(super) fn has(&self, host: &HostPattern) -> bool {
        match host {
            HostPattern::Exact(name) => {
                self.certificate(Some(name)).is_some_and(|certificate| certificate.covers(name))
            }
            HostPattern::Wildcard(suffix) => {
                self.wildcard.get(suffix).is_some_and(|found| found.names().contains(host))
            }
            HostPattern::Any => false,
        }
    }

    /// All of them, in the order in which they were given.
    #[must_use]
    pub fn all(&self) -> &[Served] {
        &self.all
    }

    /// What a client gets that asks for `name`: its own, that of `*.rest`, or the first.
    #[must_use]
    pub fn certificate(&self, name: Option<&HostName>) -> Option<&Arc<Certificate>> {
        let own = name.and_then(|name| self.exact.get(name.as_str()));
        let wildcard = || self.wildcard.get(name?.split_first_label()?.1);
        own.or_else(wildcard).or_else(|| self.all.first().map(|served| &served.certificate))
    }

    /// What `host` asks of its clients.
    #[must_use]
    pub fn clients(&self, host: &HostName) -> Option<&Clients> {
        self.clients.iter().find(|clients| clients.hosts.iter().any(|pattern| is_of(pattern, host)))
    }

    /// Gives all that ask for certificates of clients what to hold them to; what `old` has for the same authorities is
    /// kept, with its sessions.
    pub(super) fn equip(
        &mut self,
        old: &Self,
        make: impl Fn(&ClientCa) -> Result<Configs, TlsError>,
    ) -> Result<(), TlsError> {
        for clients in &mut self.clients {
            let known = old.clients.iter().find(|known| known.ca == clients.ca);
            clients.configs = match known.and_then(|known| known.configs.clone()) {
                Some(configs) => Some(configs),
                None => Some(Arc::new(make(&clients.ca)?)),
            };
        }
        Ok(())
    }
}

impl Clients {
    /// Whose clients have to show a certificate that `ca` signed.
    #[must_use]
    pub fn new(hosts: Vec<HostPattern>, ca: Arc<ClientCa>) -> Self {
        Self { hosts, ca, configs: None }
    }

    /// There once the table is published.
    pub(super) fn configs(&self) -> Option<&Configs> {
        self.configs.as_deref()
    }
}

impl PartialEq for Clients {
    fn eq(&self, other: &Self) -> bool {
        self.hosts == other.hosts && self.ca == other.ca
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("hosts", &self.hosts).field("ca", &self.ca).finish_non_exhaustive()
    }
}
