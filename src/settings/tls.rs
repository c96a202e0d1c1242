//! How an app's instances are known, that speak TLS themselves.

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Protocol;

/// How the certificate is judged that an instance shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AppTlsSettings {
    /// The name that it has to be for, and that is asked for: no certificate is for the address of an instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// PEM: the authorities that may have signed it, in place of the system's. In the configuration file the path of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Any certificate is taken: whoever is on the way can pose as the app.
    pub insecure: bool,
}

impl AppTlsSettings {
    /// The name, if one is given that can be one.
    #[must_use]
    pub fn name(&self) -> Option<ServerName<'static>> {
        ServerName::try_from(self.server_name.clone()?).ok()
    }

    /// The authorities, if they are given and each can be one; `None` if one of them cannot.
    #[must_use]
    pub fn authorities(&self) -> Option<Vec<CertificateDer<'static>>> {
        let pem = self.ca.as_deref()?;
        let all: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().ok()?;
        let mut roots = RootCertStore::empty();
        let are_usable = all.iter().all(|one| roots.add(one.clone()).is_ok());
        (!all.is_empty() && are_usable).then_some(all)
    }
}

/// What is wrong with the two: the field, why, and what to write.
type Fault = (&'static str, &'static str, &'static str);

pub(super) fn tls_faults(protocol: Protocol, tls: Option<&AppTlsSettings>) -> Vec<Fault> {
    let mut faults = Vec::new();
    if !protocol.is_tls() {
        if tls.is_some() {
            faults.push((
                "tls",
                "is for apps that speak TLS themselves",
                "write protocol: https or h2, or leave it out",
            ));
        }
        return faults;
    }
    let unnamed = AppTlsSettings::default();
    let tls = tls.unwrap_or(&unnamed);
    if tls.server_name.is_some() && tls.name().is_none() {
        faults.push((
            "tls.server_name",
            "is not a name",
            "write the name that the certificate is for: app.internal",
        ));
    }
    if tls.server_name.is_none() && !tls.insecure {
        let detail = "is not given, and no certificate is for the address of an instance";
        faults.push(("tls.server_name", detail, "write the name that the certificate is for: app.internal"));
    }
    if tls.ca.is_some() && tls.insecure {
        faults.push(("tls.insecure", "stands beside ca, which it makes meaningless", "leave one out"));
    }
    if tls.ca.is_some() && tls.authorities().is_none() {
        let remedy = "write certificates of authorities in PEM: -----BEGIN CERTIFICATE-----";
        faults.push(("tls.ca", "holds no certificates of authorities in PEM", remedy));
    }
    faults
}
