//! The configuration file: read, interpolated, checked whole, and given back as values. Nothing here runs.
//!
//! Three passes: the text becomes a tree (syntax, duplicate keys), `${…}` in its scalars is filled in, and each
//! section becomes its type. Whatever is wrong is told with line, column, key path and remedy, all of it at once where
//! that is possible.

mod acme;
mod check;
mod diagnose;
mod diff;
mod dns;
mod document;
mod interpolate;
mod listeners;
mod places;
mod services;
mod tls;
mod traces;
mod typed;
mod url;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_yaml::{Mapping, Value};

pub use diagnose::{Diagnostic, Diagnostics};
pub use diff::diff;
pub use document::{AccessLog, AccessLogFormat, EphemeralConfig, HistoryConfig, LimitsConfig, schema};
pub use services::{ServiceConfig, ServiceUpstream};
pub use tls::{AltSvcConfig, TlsConfig};

use diagnose::{Filled, Findings};
use document::{AppHosts, Document};
use listeners::Listeners;
use services::service;
use typed::typed;
use url::{UrlPattern, UrlPatternError};

use crate::ids::{AppName, ServiceName};
use crate::routing::HostName;
use crate::routing::host::{HostError, HostPattern};
use crate::routing::path::PathPrefix;
use crate::settings::{AppSettings, RuntimeKind};
use crate::traces::TracesSettings;

/// Of a configuration file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What the file means, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub http: Vec<SocketAddr>,
    /// The port at which clients are sent to https; `None`: they are not.
    pub redirect: Option<u16>,
    /// Who has to begin connections to `http` with a PROXY header; `None`: nobody.
    pub proxy_protocol: Option<Vec<IpNet>>,
    /// How many connections there may be to `http`; `None`: as many as there may be at all.
    pub connections: Option<usize>,
    pub tls: TlsConfig,
    /// Whether clients may speak HTTP/2.
    pub http2: bool,
    pub admin_socket: PathBuf,
    pub admin_address: Option<SocketAddr>,
    pub data_dir: PathBuf,
    pub apex: Option<HostName>,
    /// The origin that people and apps are told; `None`: that of the listeners.
    pub url: Option<UrlPattern>,
    pub runtime: RuntimeKind,
    /// Of the Docker engine; what `DOCKER_HOST` names, or the usual one, if not given.
    pub docker_socket: Option<PathBuf>,
    /// 0: one for each core.
    pub workers: usize,
    pub trusted_proxies: Vec<IpNet>,
    /// The name in `Via`; `None` leaves it out.
    pub via: Option<String>,
    pub forwarded: bool,
    pub access_log: AccessLog,
    pub access_log_format: AccessLogFormat,
    /// Where traces are exported to; `None`: nowhere.
    pub traces: Option<TracesSettings>,
    pub limits: LimitsConfig,
    pub ephemeral: EphemeralConfig,
    pub history: HistoryConfig,
    pub apps: BTreeMap<AppName, AppConfig>,
    pub services: BTreeMap<ServiceName, ServiceConfig>,
    /// What should be looked at, and keeps nothing from running.
    pub warnings: Vec<Diagnostic>,
    /// The document after interpolation, for the diff of a reload.
    document: Value,
    /// Which of its scalars were filled in: they are not shown.
    filled: Filled,
}

/// An app of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct AppConfig {
    pub hosts: Vec<HostRule>,
    pub settings: AppSettings,
}

/// A host pattern with a path prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRule {
    pub pattern: HostPattern,
    pub prefix: PathPrefix,
    pub strip: bool,
}

/// Reads and checks the file at `path`; `env` gives the values of `${NAME}`.
///
/// # Errors
/// Everything that is wrong with it, with its places.
pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, Diagnostics> {
    let origin = path.display().to_string();
    let text = interpolate::read_file(path, FILE_BYTES_MAX).map_err(|problem| {
        Diagnostics::of_file(&origin, problem, "check the path and who may read it; --config names another")
    })?;
    parse(&text, &origin, env)
}

/// The files that the configuration at `path` is made of: itself, and what `${file:…}` and `tls` name in it, as far as it
/// can be read.
#[must_use]
pub fn sources(path: &Path) -> Vec<PathBuf> {
    let text = interpolate::read_file(path, FILE_BYTES_MAX).unwrap_or_default();
    let named =
        serde_yaml::from_str(&text).map(|tree| [interpolate::files(&tree), tls::files(&tree)].concat());
    let named = named.unwrap_or_default();
    std::iter::once(path.to_owned()).chain(named).collect()
}

/// What one of the [`sources`] says, if it can be read.
#[must_use]
pub fn read_source(path: &Path) -> Option<String> {
    interpolate::read_file(path, FILE_BYTES_MAX).ok()
}

/// Checks a configuration text; `origin` names it in diagnostics.
///
/// # Errors
/// Everything that is wrong with it, with its places.
pub fn parse(text: &str, origin: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, Diagnostics> {
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
        let message = format!("has {} bytes", text.len());
        return Err(Diagnostics::of_file(origin, message, "at most 1 MiB is read"));
    }
    let mut findings = Findings::new(origin, text);
    let mut tree: Value = match serde_yaml::from_str(text) {
        Ok(Value::Null) => Value::Mapping(Mapping::new()),
        Ok(tree) => tree,
        Err(error) => return Err(findings.syntax(&error)),
    };
    interpolate::fill(&mut tree, env, &mut findings);
    let config = build(&tree, &mut findings);
    match config {
        Some(config) if findings.is_empty() => Ok(config),
        _ => Err(findings.into_diagnostics()),
    }
}

fn build(tree: &Value, findings: &mut Findings<'_>) -> Option<Config> {
    let Value::Mapping(root) = tree else {
        findings.add("", "the document is not a mapping", "write keys such as `listeners:` and `apps:`");
        return None;
    };
    // A section whose keys are all commented out is one that is not given.
    let mut rest: Mapping = root.clone().into_iter().filter(|(_, value)| !value.is_null()).collect();
    let apps = section(&mut rest, "apps", findings);
    let services = section(&mut rest, "services", findings);
    let mut rest = Value::Mapping(rest);
    let document: Document = typed("", &mut rest, findings)?;
    // After the typed pass it holds only what is right: nothing is told a second time for each app.
    let deploy = rest.get("deploy").and_then(Value::as_mapping).cloned().unwrap_or_default();
    check::deploy("deploy", &deploy, &document.deploy, findings);
    let mut tls = TlsConfig::read(&document.listeners.https, &document.tls, &document.data_dir, findings);
    let files = &mut tls.files;
    let apps =
        apps.into_iter().filter_map(|(name, value)| app(&name, value, (&deploy, files), findings)).collect();
    let own = Listeners::of(&document, &tls);
    let services: BTreeMap<_, _> =
        services.into_iter().filter_map(|(name, value)| service(&name, value, &own, findings)).collect();
    tls.files.extend(services.values().filter_map(|service: &ServiceConfig| service.ca.clone()));
    tls.files.extend(document.traces.ca.clone());
    let config = Config {
        http: document.listeners.http.addresses(),
        redirect: document.listeners.http.redirect,
        proxy_protocol: document.listeners.http.proxy_protocol.map(|proxies| proxies.from),
        connections: document.listeners.http.connections,
        tls,
        http2: document.listeners.http2,
        admin_socket: document.admin.socket,
        admin_address: document.admin.address,
        data_dir: document.data_dir,
        apex: host(document.apex.as_deref(), findings),
        url: url(document.url.as_deref(), findings),
        runtime: document.runtime,
        docker_socket: document.docker.socket,
        workers: document.workers,
        trusted_proxies: document.trusted_proxies,
        via: document.via,
        forwarded: document.forwarded,
        access_log: document.access_log,
        access_log_format: document.access_log_format,
        traces: document.traces.read(findings),
        limits: document.limits,
        ephemeral: document.ephemeral,
        history: document.history,
        apps,
        services,
        warnings: Vec::new(),
        document: tree.clone(),
        filled: findings.filled().clone(),
    };
    check::whole(&config, findings);
    Some(Config { warnings: findings.take_warnings(), ..config })
}

/// Takes a section of named entries out of the document.
fn section(root: &mut Mapping, key: &str, findings: &mut Findings<'_>) -> Vec<(String, Value)> {
    match root.remove(key) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Mapping(entries)) => entries
            .into_iter()
            .filter_map(|(name, value)| match name {
                Value::String(name) => Some((name, value)),
                other => {
                    findings.add(key, format!("{other:?} is not a name"), "names are text; put it in quotes");
                    None
                }
            })
            .collect(),
        Some(_) => {
            findings.add(key, "is not a mapping of names", "write one key for each");
            Vec::new()
        }
    }
}

fn app(
    name: &str,
    value: Value,
    (common, files): (&Mapping, &mut Vec<PathBuf>),
    findings: &mut Findings<'_>,
) -> Option<(AppName, AppConfig)> {
    let path = format!("apps.{name}");
    let name: AppName = parsed(&path, name, findings)?;
    let mut entries = match value {
        Value::Mapping(entries) => entries,
        Value::Null => Mapping::new(),
        _ => {
            findings.add(&path, "is not a mapping", "write hosts, image or command, and so on below it");
            return None;
        }
    };
    let hosts = AppHosts(entries.remove("hosts").unwrap_or_default()).rules(&path, findings);
    let own = entries.get("deploy").and_then(Value::as_mapping).cloned().unwrap_or_default();
    overlay(&mut entries, common);
    files.extend(tls::read_ca(&path, &mut entries, findings)?);
    let settings: AppSettings = typed(&path, &mut Value::Mapping(entries), findings)?;
    if settings.tls.as_ref().is_some_and(|tls| tls.insecure) {
        let remedy =
            "name the authority that signs its certificate in tls.ca, and the name in tls.server_name";
        let message = "takes any certificate: whoever is on the way can pose as the app";
        findings.warn(&format!("{path}.tls.insecure"), message, remedy);
    }
    check::app(&path, &own, &settings, findings);
    Some((name, AppConfig { hosts, settings }))
}

/// Puts the document's `deploy` below the app's own, key by key.
fn overlay(entries: &mut Mapping, common: &Mapping) {
    let mut merged = common.clone();
    match entries.get("deploy") {
        None | Some(Value::Null) => {}
        Some(Value::Mapping(own)) => merged.extend(own.clone()),
        // Not a mapping: left as it is, for the typed pass to refuse.
        Some(_) => return,
    }
    entries.insert(Value::String("deploy".to_owned()), Value::Mapping(merged));
}

fn parsed<T: std::str::FromStr<Err = impl std::fmt::Display>>(
    path: &str,
    text: &str,
    findings: &mut Findings<'_>,
) -> Option<T> {
    text.parse().map_err(|error: T::Err| findings.add(path, error.to_string(), "rename it")).ok()
}

fn host(text: Option<&str>, findings: &mut Findings<'_>) -> Option<HostName> {
    text?
        .parse()
        .map_err(|error: HostError| findings.refuse("apex", &error, "write for example apps.example.com"))
        .ok()
}

fn url(text: Option<&str>, findings: &mut Findings<'_>) -> Option<UrlPattern> {
    let remedy = "write for example https://{host}, or https://{host}:8443";
    text?.parse().map_err(|error: UrlPatternError| findings.refuse("url", &error, remedy)).ok()
}

#[cfg(test)]
mod tests;
