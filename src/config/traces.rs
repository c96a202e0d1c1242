//! Whether, where and how traces are exported.

use std::collections::BTreeMap;
use std::path::PathBuf;

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::diagnose::Findings;
use super::services::authorities;
use crate::error::chain;
use crate::routing::tls::{Believed, BelievedError, ClientTls};
use crate::settings::Delay;
use crate::traces::TracesSettings;

/// Where the headers stand, whose values are secrets.
pub(super) const HEADERS: &str = "traces.headers";

/// A worker's batch has to find room in it.
const QUEUE_MIN: usize = 100;

/// These are of the message itself.
const OWN: [HeaderName; 5] = [CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING];

/// Spans of requests by OTLP; none are recorded without an endpoint.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TracesDocument {
    /// The whole URL of a collector that takes OTLP by HTTP: `http://collector:4318/v1/traces`
    endpoint: Option<String>,
    /// Sent with each export.
    headers: BTreeMap<String, String>,
    /// PEM: whom the certificate of an https endpoint is held to, in place of the system's authorities.
    pub(super) ca: Option<PathBuf>,
    /// `service.name`
    service: String,
    /// Of the traces that no caller decided about who may: 0.1 is one in ten, by the trace's id.
    sample_ratio: f64,
    /// For one export and its answer.
    timeout: Delay,
    /// How long spans wait for others to go with.
    interval: Delay,
    /// How many spans wait at most; what comes beyond is dropped, and counted.
    queue: usize,
}

impl Default for TracesDocument {
    fn default() -> Self {
        Self {
            endpoint: None,
            headers: BTreeMap::new(),
            ca: None,
            service: "lockgate".to_owned(),
            sample_ratio: 1.0,
            timeout: Delay::seconds(10),
            interval: Delay::seconds(5),
            queue: 10_000,
        }
    }
}

impl TracesDocument {
    /// What it means; `None` if nothing is to be exported, or something is wrong.
    pub(super) fn read(&self, findings: &mut Findings<'_>) -> Option<TracesSettings> {
        self.check(findings);
        let headers = self.headers(findings);
        let Some(endpoint) = &self.endpoint else {
            if self.ca.is_some() || !self.headers.is_empty() {
                let remedy = "write the URL of the collector, or leave traces out";
                findings.warn("traces.endpoint", "is missing: no traces are exported", remedy);
            }
            return None;
        };
        let is_url = |uri: &Uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.authority().is_some_and(|at| !at.as_str().contains('@') && at.port_u16() != Some(0))
        };
        let Some(uri) = endpoint.parse().ok().filter(is_url) else {
            let shown = findings.shown("traces.endpoint", endpoint);
            let remedy =
                "write for example http://collector:4318/v1/traces; a password goes into traces.headers";
            findings.add("traces.endpoint", format!("{shown} is not an http or https URL"), remedy);
            return None;
        };
        if uri.path() == "/" {
            let remedy = "write all of it, for example http://collector:4318/v1/traces";
            findings.warn("traces.endpoint", "has no path: nothing is added to it", remedy);
        }
        let tls = if uri.scheme_str() == Some("https") { Some(self.tls(findings)?) } else { None };
        if tls.is_none() && self.ca.is_some() {
            findings.add("traces.ca", "is for an https endpoint", "write https://, or leave it out");
        }
        Some(TracesSettings {
            endpoint: uri,
            tls,
            headers,
            service: self.service.clone(),
            sample_ratio: self.sample_ratio,
            timeout: self.timeout.0,
            interval: self.interval.0,
            queue: self.queue,
        })
    }

    fn check(&self, findings: &mut Findings<'_>) {
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            let remedy = "write a number from 0 to 1: 0.1 is one trace in ten";
            findings.add("traces.sample_ratio", "is out of range", remedy);
        }
        if self.service.is_empty() {
            findings.add("traces.service", "is empty", "write the name that these traces are found by");
        }
        for (key, delay) in [("timeout", self.timeout), ("interval", self.interval)] {
            if delay.0.is_zero() {
                findings.add(&format!("traces.{key}"), "is not positive", "write for example 5s");
            }
        }
        if self.queue < QUEUE_MIN {
            let remedy = format!("write at least {QUEUE_MIN}: spans come in batches of some dozens");
            findings.add("traces.queue", format!("is less than {QUEUE_MIN}"), remedy);
        }
    }

    fn headers(&self, findings: &mut Findings<'_>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let path = format!("{HEADERS}.{name}");
            let Ok(header) = HeaderName::try_from(name) else {
                findings.add(&path, "is not the name of a header", "write for example Authorization");
                continue;
            };
            if OWN.contains(&header) {
                findings.add(&path, "is set by Lockgate itself", "leave it out");
                continue;
            }
            // What a file ends with.
            let Ok(mut value) = HeaderValue::try_from(value.trim_end()) else {
                findings.add(&path, "has a value that no header can have", "write one line of plain text");
                continue;
            };
            value.set_sensitive(true);
            headers.append(header, value);
        }
        headers
    }

    fn tls(&self, findings: &mut Findings<'_>) -> Option<ClientTls> {
        let (at, believed) = match &self.ca {
            None => ("traces.endpoint", Believed::System),
            Some(file) => ("traces.ca", authorities("traces.ca", file, findings)?),
        };
        let refused = |error: BelievedError| {
            let remedy = "name the authority that signs the collector's certificate in traces.ca";
            findings.add(at, format!("cannot be used: {}", chain(&error)), remedy);
        };
        ClientTls::new(believed).map_err(refused).ok()
    }
}
