//! Whether, where and how certificates are asked for.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::Uri;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::diagnose::Findings;
use super::dns::DnsUpdateDocument;
use super::tls::{of_file, pem};
use crate::acme::{AcmeSettings, Challenge, DnsHook, DnsMeans, DnsName, DnsSettings, Eab};
use crate::certs::certificates;
use crate::routing::HostName;
use crate::settings::Delay;

/// Certificates by ACME; none are asked for without a directory.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AcmeDocument {
    /// The URL of the authority's directory.
    directory: Option<String>,
    /// Whom the authority may write to.
    email: Option<String>,
    /// The authority's terms of service are agreed to.
    terms_agreed: bool,
    /// How a name is proved to be ours, the next one after each failure.
    challenges: Vec<Challenge>,
    /// PEM: whom the directory's own certificate is held to, in place of the system's authorities.
    pub(super) ca: Option<PathBuf>,
    /// Where keys and certificates are kept.
    storage: Option<PathBuf>,
    /// Ties the account to one that the authority knows already.
    eab: Option<EabDocument>,
    /// One certificate is asked for all names one label below; by dns-01.
    preview_zone: Option<String>,
    /// For dns-01: a program and its first arguments. Never a shell.
    dns_hook: Vec<String>,
    dns_hook_timeout: Delay,
    /// For dns-01, in place of the program: a server that takes dynamic updates.
    dns_update: Option<DnsUpdateDocument>,
    /// From when a record was set until the authority is told to look.
    dns_propagation: Delay,
    /// In any hour no more are begun.
    orders_per_hour: usize,
    /// After the first failure for a name; doubled by each further one, and never more than a day.
    retry_after: Delay,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EabDocument {
    key_id: String,
    /// base64url, as the authority shows it.
    hmac_key: String,
}

impl Default for AcmeDocument {
    fn default() -> Self {
        Self {
            directory: None,
            email: None,
            terms_agreed: false,
            challenges: vec![Challenge::Http01, Challenge::TlsAlpn01],
            ca: None,
            storage: None,
            eab: None,
            preview_zone: None,
            dns_hook: Vec::new(),
            dns_hook_timeout: Delay::seconds(120),
            dns_update: None,
            dns_propagation: Delay::seconds(30),
            orders_per_hour: 60,
            retry_after: Delay::seconds(60),
        }
    }
}

impl AcmeDocument {
    /// What it means; `None` if nothing is to be asked for, or something is wrong.
    pub(super) fn read(&self, data_dir: &Path, findings: &mut Findings<'_>) -> Option<AcmeSettings> {
        let Some(directory) = &self.directory else {
            if self.terms_agreed || self.email.is_some() || self.preview_zone.is_some() {
                let remedy = "write the URL of the authority's directory, or leave tls.acme out";
                findings.warn("tls.acme.directory", "is missing: no certificate is asked for", remedy);
            }
            return None;
        };
        self.check(directory, findings);
        let roots = self.ca.as_ref().and_then(|file| {
            let pem = pem("tls.acme.ca", file, findings)?;
            certificates(&pem).map_err(|error| of_file("tls.acme.ca", file, &error, findings)).ok()
        });
        let preview_zone = self.zone(findings);
        let dns = self.dns(preview_zone.as_ref(), findings);
        Some(AcmeSettings {
            directory: directory.clone(),
            email: self.email.clone(),
            eab: self.eab.as_ref().and_then(|eab| eab.read(findings)),
            challenges: self.challenges.clone(),
            roots,
            storage: self.storage.clone().unwrap_or_else(|| data_dir.join("acme")),
            preview_zone,
            dns,
            orders_per_hour: self.orders_per_hour,
            retry_after: self.retry_after.0,
        })
    }

    fn check(&self, directory: &str, findings: &mut Findings<'_>) {
        let is_https = |uri: &Uri| uri.scheme_str() == Some("https") && uri.host().is_some();
        if !directory.parse().is_ok_and(|uri| is_https(&uri)) {
            let shown = findings.shown("tls.acme.directory", directory);
            let remedy = "write for example https://acme-v02.api.letsencrypt.org/directory";
            findings.add("tls.acme.directory", format!("{shown} is not an https URL"), remedy);
        }
        if !self.terms_agreed {
            let remedy = "read what the authority asks for, and write terms_agreed: true";
            findings.add("tls.acme.terms_agreed", "is not true, and no authority goes without it", remedy);
        }
        if let Some(email) = self.email.as_ref().filter(|email| !is_email(email)) {
            let shown = findings.shown("tls.acme.email", email);
            let remedy = "write for example ops@example.com, without mailto:";
            findings.add("tls.acme.email", format!("{shown} is not one address"), remedy);
        }
        if self.challenges.is_empty() {
            let remedy = "write at least one of http-01, tls-alpn-01 and dns-01";
            findings.add("tls.acme.challenges", "is empty: no name could be proved", remedy);
        }
        let has_dns = self.challenges.contains(&Challenge::Dns01);
        if has_dns && self.dns_hook.is_empty() && self.dns_update.is_none() {
            let remedy = "write dns_update, for a server that takes dynamic updates, or dns_hook: [/path/of/a/program], which \
                          sets and takes back TXT records";
            let problem = "names dns-01, and there is neither dns_update nor dns_hook";
            findings.add("tls.acme.challenges", problem, remedy);
        }
        if !self.dns_hook.is_empty() && self.dns_update.is_some() {
            let problem = "is there beside dns_hook, and only one of them can set the records";
            findings.add("tls.acme.dns_update", problem, "leave one of them out");
        }
        if self.preview_zone.is_some() && !has_dns {
            let remedy = "no other challenge proves a whole zone: add dns-01, with dns_update or dns_hook";
            findings.add("tls.acme.preview_zone", "needs the challenge dns-01", remedy);
        }
        if self.dns_hook.first().is_some_and(|program| !Path::new(program).is_absolute()) {
            findings.add("tls.acme.dns_hook[0]", "is not an absolute path", "write the program's whole path");
        }
        if self.orders_per_hour == 0 {
            findings.add("tls.acme.orders_per_hour", "is 0", "write at least 1");
        }
        for (key, delay) in [("dns_hook_timeout", self.dns_hook_timeout), ("retry_after", self.retry_after)] {
            if delay.0.is_zero() {
                findings.add(&format!("tls.acme.{key}"), "is not positive", "write for example 1m");
            }
        }
    }

    fn dns(&self, preview_zone: Option<&HostName>, findings: &mut Findings<'_>) -> Option<DnsSettings> {
        let means = match &self.dns_update {
            Some(update) => DnsMeans::Update(update.read(findings)?),
            None if self.dns_hook.is_empty() => return None,
            None => {
                DnsMeans::Hook(DnsHook { command: self.dns_hook.clone(), timeout: self.dns_hook_timeout.0 })
            }
        };
        if let (DnsMeans::Update(update), Some(preview_zone)) = (&means, preview_zone)
            && let (Some(zone), Ok(name)) = (&update.zone, preview_zone.as_str().parse::<DnsName>())
            && !name.is_within(zone)
        {
            let remedy = "write the zone of the DNS that has it as dns_update.zone, or leave that out";
            findings.add("tls.acme.preview_zone", format!("is not in dns_update.zone, {zone}"), remedy);
        }
        Some(DnsSettings { means, propagation: self.dns_propagation.0 })
    }

    fn zone(&self, findings: &mut Findings<'_>) -> Option<HostName> {
        let path = "tls.acme.preview_zone";
        let remedy = "write the name below which previews are, without *.: previews.example.com";
        let zone = self.preview_zone.as_ref()?.parse::<HostName>();
        let zone = zone.map_err(|error| findings.refuse(path, &error, remedy)).ok()?;
        if zone.split_first_label().is_none() {
            findings.add(path, "is not a name that a certificate can be for", remedy);
        }
        Some(zone)
    }
}

impl EabDocument {
    fn read(&self, findings: &mut Findings<'_>) -> Option<Eab> {
        // Some authorities show it with its padding.
        let decoded = BASE64_URL_SAFE_NO_PAD.decode(self.hmac_key.trim_end_matches('='));
        match decoded {
            Ok(hmac_key) if !hmac_key.is_empty() => Some(Eab { key_id: self.key_id.clone(), hmac_key }),
            Ok(_) | Err(_) => {
                let remedy = "copy it as the authority shows it; best from a file: '${file:…}'";
                findings.add("tls.acme.eab.hmac_key", "is not base64url", remedy);
                None
            }
        }
    }
}

/// Enough to catch a list, a name or a URL; whether anybody reads it the authority finds out.
fn is_email(text: &str) -> bool {
    let is_plain = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_graphic() && !matches!(c, ',' | ':' | '/' | '@'))
    };
    text.split_once('@').is_some_and(|(user, domain)| is_plain(user) && is_plain(domain))
}
