//! What the types alone do not show: ranges, and that a host has one owner.

use std::collections::BTreeMap;

use serde_yaml::Mapping;

use super::Config;
use super::diagnose::Findings;
use super::document::LimitsConfig;
use crate::ids::is_label;
use crate::settings::{AppSettings, Delay, DeploySettings, HSTS_REMEDY, is_hsts, unheard_https};

/// Each is a thread with listeners of its own.
const WORKERS_MAX: usize = 1024;
/// Of the address of a Unix socket.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Checks what concerns the whole document.
pub(super) fn whole(config: &Config, findings: &mut Findings<'_>) {
    if let Some(address) = config.admin_address.filter(|address| !address.ip().is_loopback()) {
        let message =
            format!("{} is not a loopback address", findings.shown("admin.address", &address.to_string()));
        let remedy = "the admin API is not for the network: use 127.0.0.1 and a tunnel";
        findings.add("admin.address", message, remedy);
    }
    if config.admin_socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        let remedy = "the system allows 107 bytes for the path of a socket";
        findings.add("admin.socket", "is too long", remedy);
    }
    if config.workers > WORKERS_MAX {
        findings.add("workers", format!("is above {WORKERS_MAX}"), "0 is one for each core");
    }
    if let Some(name) = config.via.as_deref().filter(|name| !is_token(name)) {
        let message = format!("{} is not a name for Via", findings.shown("via", name));
        findings.add("via", message, "write letters, digits, - and _; or null, which leaves Via out");
    }
    if config.redirect.is_some() && config.tls.listen.is_empty() {
        let remedy = "write listeners.https.address, or leave the redirect out";
        findings.add("listeners.http.redirect", "leads to no listener", remedy);
    }
    for (key, from) in [
        ("listeners.http.proxy_protocol.from", &config.proxy_protocol),
        ("listeners.https.proxy_protocol.from", &config.tls.proxy_protocol),
    ] {
        if from.as_ref().is_some_and(Vec::is_empty) {
            let remedy =
                "write the networks of the proxies, for example [10.0.0.0/8]; or leave proxy_protocol out";
            findings.add(key, "names no network: every connection would be closed", remedy);
        }
    }
    for (key, count) in [
        ("listeners.http.connections", config.connections),
        ("listeners.https.connections", config.tls.connections),
    ] {
        at_least_one(key, count != Some(0), findings);
    }
    own_https(config, findings);
    if config.redirect == Some(0) {
        findings.add("listeners.http.redirect", "is 0", "write the port that clients use for https: 443");
    }
    if !config.tls.listen.is_empty() && config.tls.certificates.is_empty() && config.tls.acme.is_none() {
        let remedy = "write tls: { certificates: [{ cert: …, key: … }] }, or tls.acme";
        findings.warn(
            "listeners.https.address",
            "has no certificate to offer: every handshake fails",
            remedy,
        );
    }
    limits(&config.limits, findings);
    let auth = AppSettings { preview_auth: config.ephemeral.preview_auth.clone(), ..AppSettings::default() };
    for fault in auth.faults() {
        findings.add(&format!("ephemeral.{}", fault.field), &fault.detail, fault.remedy);
    }
    positive("ephemeral.default_ttl", config.ephemeral.default_ttl, findings);
    positive("ephemeral.sweep_every", config.ephemeral.sweep_every, findings);
    at_least_one("ephemeral.max_per_app", config.ephemeral.max_per_app > 0, findings);
    for (at, label) in config.ephemeral.reserved_labels.iter().enumerate() {
        if !is_label(label) {
            let path = format!("ephemeral.reserved_labels[{at}]");
            let message = format!("{} is not a label", findings.shown(&path, label));
            findings.add(&path, message, "use 1 to 63 of a-z, 0-9 and -");
        }
    }
    owners(config, findings);
}

/// What listeners, apps and services say of https.
fn own_https(config: &Config, findings: &mut Findings<'_>) {
    let services = config.services.iter().map(|(name, service)| (format!("services.{name}"), service.hsts));
    let listeners = ("listeners.https".to_owned(), Some(config.tls.hsts));
    for (owner, _) in services.chain([listeners]).filter(|(_, hsts)| !hsts.is_none_or(is_hsts)) {
        findings.add(&format!("{owner}.hsts"), "is below a second", HSTS_REMEDY);
    }
    if !config.tls.listen.is_empty() {
        return;
    }
    let apps = config.apps.iter().map(|(name, app)| {
        let settings = &app.settings;
        (format!("apps.{name}"), unheard_https(settings.https, settings.hsts))
    });
    let services = config
        .services
        .iter()
        .map(|(name, service)| (format!("services.{name}"), unheard_https(service.https, service.hsts)));
    let listeners = ("listeners.https".to_owned(), unheard_https(None, Some(config.tls.hsts)));
    for (owner, faults) in apps.chain(services).chain([listeners]) {
        for (field, detail, remedy) in faults {
            findings.add(&format!("{owner}.{field}"), detail, remedy);
        }
    }
}

/// Checks an app; `own` is its `deploy` as far as it is written there and not taken from the document's.
pub(super) fn app(path: &str, own: &Mapping, settings: &AppSettings, findings: &mut Findings<'_>) {
    for fault in settings.faults() {
        let key = fault.field.strip_prefix("deploy.");
        if key.is_some_and(|key| !own.contains_key(key)) {
            // It is the document's, and told there.
            continue;
        }
        findings.fault(&format!("{path}.{}", fault.field), fault);
    }
}

/// Checks the document's own `deploy` section, of which only the keys in `written` stand there.
pub(super) fn deploy(path: &str, written: &Mapping, settings: &DeploySettings, findings: &mut Findings<'_>) {
    let positives = [
        ("health_timeout", settings.health_timeout),
        ("release_timeout", settings.release_timeout),
        ("hold_timeout", settings.hold_timeout),
    ];
    for (key, delay) in positives.into_iter().filter(|(key, _)| written.contains_key(*key)) {
        positive(&format!("{path}.{key}"), delay, findings);
    }
}

fn limits(limits: &LimitsConfig, findings: &mut Findings<'_>) {
    let delays = [
        ("proxy_header", limits.proxy_header),
        ("handshake", limits.handshake),
        ("keep_alive", limits.keep_alive),
        ("head", limits.head),
        ("body_idle", limits.body_idle),
        ("connect", limits.connect),
        ("response_head", limits.response_head),
        ("response_idle", limits.response_idle),
        ("half_closed", limits.half_closed),
        ("pool_idle", limits.pool_idle),
        ("upstream_ping", limits.upstream_ping),
    ];
    for (key, delay) in delays {
        positive(&format!("limits.{key}"), delay.unwrap_or(Delay::seconds(1)), findings);
    }
    let counts = [
        ("head_bytes", limits.head_bytes),
        ("field_bytes", limits.field_bytes),
        ("target_bytes", limits.target_bytes),
        ("connections", limits.connections),
    ];
    for (key, count) in counts {
        at_least_one(&format!("limits.{key}"), count != Some(0), findings);
    }
}

fn owners(config: &Config, findings: &mut Findings<'_>) {
    let mut owners: BTreeMap<(String, String), String> = BTreeMap::new();
    let apps = config.apps.iter().map(|(name, app)| (format!("apps.{name}"), &app.hosts));
    let services = config.services.iter().map(|(name, service)| (format!("services.{name}"), &service.hosts));
    for (owner, hosts) in apps.chain(services) {
        for (at, rule) in hosts.iter().enumerate() {
            let path = format!("{owner}.hosts[{at}]");
            let key = (rule.pattern.to_string(), rule.prefix.to_string());
            if let Some(first) = owners.get(&key) {
                let whole = if rule.prefix.is_root() { key.0.clone() } else { format!("{}{}", key.0, key.1) };
                let host = findings.shown(&path, &whole);
                let message = format!("host {host} belongs to {first} already");
                let remedy = "a host name and path have one owner: take it from one of the two";
                findings.add(&path, message, remedy);
            } else {
                owners.insert(key, owner.clone());
            }
        }
    }
}

fn positive(path: &str, delay: Delay, findings: &mut Findings<'_>) {
    if delay.0.is_zero() {
        findings.add(path, "is not positive", "write for example 30s");
    }
}

fn at_least_one(path: &str, holds: bool, findings: &mut Findings<'_>) {
    if !holds {
        findings.add(path, "is 0", "write at least 1");
    }
}

/// Of RFC 9110 section 5.6.2, as pseudonyms in `Via` are.
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}
