//! TLS to instances that speak it themselves.

use std::net::SocketAddr;

use rustls::pki_types::ServerName;
use tracing::error;

use crate::error::chain;
use crate::routing::tls::{Believed, ClientTls, TargetTls};
use crate::settings::{AppTlsSettings, Protocol};

/// How the instances of one version are spoken to; they share their sessions.
#[derive(Clone, Debug)]
pub(super) struct AppTls {
    tls: ClientTls,
    name: Option<ServerName<'static>>,
}

impl AppTls {
    /// `None` if not by TLS, or if nobody can be believed: then they are not spoken to.
    pub(super) fn of(protocol: Protocol, tls: Option<&AppTlsSettings>) -> Option<Self> {
        if !protocol.is_tls() {
            return None;
        }
        let silent = AppTlsSettings::default();
        let settings = tls.unwrap_or(&silent);
        let believed = match (&settings.ca, settings.insecure) {
            (_, true) => Believed::Anybody,
            (None, false) => Believed::System,
            // If none of them can be one, nobody is believed.
            (Some(_), false) => Believed::Authorities(settings.authorities().unwrap_or_default()),
        };
        let made = ClientTls::new(believed);
        let made = made.inspect_err(|error| error!(error = chain(error), "instances by TLS are not served"));
        let tls = if protocol.is_http2() { made.ok()?.over_http2() } else { made.ok()? };
        Some(Self { tls, name: settings.name() })
    }

    /// To the one at `address`.
    pub(super) fn to(&self, address: SocketAddr) -> TargetTls {
        self.tls.to(self.name.clone().unwrap_or_else(|| ServerName::from(address.ip())))
    }
}
