//! The document as the user writes it; every default of the file stands here (those of apps in `settings`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_yaml::Value;

use super::HostRule;
use super::diagnose::Findings;
use super::services::ServiceDocument;
use super::tls::{HttpsListener, TlsDocument};
use super::traces::TracesDocument;
use crate::routing::host::{HostError, HostPattern};
use crate::routing::path::{PathPrefix, PrefixError};
use crate::settings::{AppSettings, Delay, DeploySettings, PreviewAuthSettings, RuntimeKind};

/// All but `apps` and `services`, whose entries are read one by one.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Document {
    pub(super) listeners: Listeners,
    pub(super) tls: TlsDocument,
    pub(super) admin: AdminDocument,
    /// Where the store is.
    pub(super) data_dir: PathBuf,
    /// Generated host names live under it.
    pub(super) apex: Option<String>,
    /// The origin that people and apps are told, with `{host}` in it.
    pub(super) url: Option<String>,
    pub(super) runtime: RuntimeKind,
    pub(super) docker: DockerDocument,
    /// Threads of the data plane; 0 is one for each core.
    pub(super) workers: usize,
    /// Networks whose forwarding headers are believed.
    #[schemars(with = "Vec<String>")]
    pub(super) trusted_proxies: Vec<IpNet>,
    /// The name in `Via`.
    pub(super) via: Option<String>,
    /// Whether applications are told who their clients are by `Forwarded` (RFC 7239) beside `X-Forwarded-*`.
    pub(super) forwarded: bool,
    pub(super) access_log: AccessLog,
    pub(super) access_log_format: AccessLogFormat,
    pub(super) traces: TracesDocument,
    pub(super) limits: LimitsConfig,
    /// For every app that does not say otherwise, key by key.
    pub(super) deploy: DeploySettings,
    pub(super) ephemeral: EphemeralConfig,
    pub(super) history: HistoryConfig,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Listeners {
    pub(super) http: Listener,
    pub(super) https: HttpsListener,
    /// Whether clients may speak HTTP/2 beside HTTP/1.1, by ALPN over TLS and with prior knowledge without it.
    pub(super) http2: bool,
}

impl Default for Listeners {
    fn default() -> Self {
        Self { http: Listener::default(), https: HttpsListener::default(), http2: true }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Listener {
    /// Address and port.
    #[schemars(with = "String")]
    address: SocketAddr,
    /// More of them.
    #[schemars(with = "Vec<String>")]
    also: Vec<SocketAddr>,
    /// The port of https to which requests are sent by 308, for names that a certificate covers.
    pub(super) redirect: Option<u16>,
    /// Connections have to come through one of these proxies, and to begin with a PROXY header; not given: clients connect
    /// themselves.
    pub(super) proxy_protocol: Option<ProxiesDocument>,
    /// Client connections that it may have, of those of `limits.connections`; more wait to be accepted. Not given: as many
    /// as there may be.
    pub(super) connections: Option<usize>,
}

/// Who sends PROXY headers.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ProxiesDocument {
    /// Networks of the proxies.
    #[schemars(with = "Vec<String>")]
    pub(super) from: Vec<IpNet>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AdminDocument {
    /// Always there; only its owner may open it.
    pub(super) socket: PathBuf,
    /// Loopback only, with bearer tokens.
    #[schemars(with = "Option<String>")]
    pub(super) address: Option<SocketAddr>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DockerDocument {
    /// Of the engine; what `DOCKER_HOST` names, or the usual one, if not given.
    pub(super) socket: Option<PathBuf>,
}

/// Where the access log goes: `off`, `stdout`, or `{ file: /path }`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AccessLog {
    Off,
    #[default]
    Stdout,
    File(PathBuf),
}

/// What a line of the access log looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AccessLogFormat {
    /// One JSON object.
    #[default]
    Json,
    /// As Apache and nginx write it.
    Combined,
}

/// Time-outs and sizes of the data plane; what is not given keeps the default that `config/lockgate.yaml` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// A PROXY header, from the connection on, where listeners want one.
    pub proxy_header: Option<Delay>,
    /// A TLS handshake, from the connection on.
    pub handshake: Option<Delay>,
    /// A kept connection without a request.
    pub keep_alive: Option<Delay>,
    /// A request head, from its first byte to its last.
    pub head: Option<Delay>,
    /// A client connection on which nothing comes for that long is probed by TCP; 0s: never.
    pub tcp_keepalive: Option<Delay>,
    /// Between two bytes of a request body.
    pub body_idle: Option<Delay>,
    /// The least rate of a body in bytes per second, at which a client sends or reads it; 0 is none.
    pub body_floor: Option<u64>,
    /// From when on that rate is asked for.
    pub body_floor_after: Option<Delay>,
    pub connect: Option<Delay>,
    /// From the end of the request to the head of the response.
    pub response_head: Option<Delay>,
    /// Between two bytes of a response.
    pub response_idle: Option<Delay>,
    /// A client that closed its side may still wait for its answer that long.
    pub half_closed: Option<Delay>,
    /// An upstream connection without use.
    pub pool_idle: Option<Delay>,
    /// An HTTP/2 connection to an application that is silent for so long, while it should answer, is pinged.
    pub upstream_ping: Option<Delay>,
    /// Over which WebSockets are closed at the end of a drain.
    pub close_spread: Option<Delay>,
    /// Request line and header fields together.
    pub head_bytes: Option<usize>,
    /// The value of one header field.
    pub field_bytes: Option<usize>,
    pub target_bytes: Option<usize>,
    pub body_bytes: Option<u64>,
    /// Requests at once on one HTTP/2 connection.
    pub http2_streams: Option<u32>,
    /// So many requests that a client resets before they are answered end its HTTP/2 connection: in a minute.
    pub http2_resets_per_minute: Option<u32>,
    /// And ever.
    pub http2_resets: Option<u32>,
    /// Client connections of all workers; four fifths of the process's file descriptors if not given.
    pub connections: Option<usize>,
    /// From one IPv4 address or IPv6 /64 network, trusted proxies excepted; 0 is no limit.
    pub connections_per_client: Option<usize>,
}

/// Ephemeral deployments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EphemeralConfig {
    pub default_ttl: Delay,
    /// Past that the one that expires soonest goes.
    pub max_per_app: usize,
    /// Between two looks at all that has expired, beside the timers of each.
    pub sweep_every: Delay,
    /// Without a request for so long they go to standby, where their app does not say so itself; zero: never.
    pub idle_after: Delay,
    /// Beside `www` and `admin`.
    pub reserved_labels: Vec<String>,
    /// Who may see previews of apps that do not say so themselves.
    pub preview_auth: Option<PreviewAuthSettings>,
}

/// What the store remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HistoryConfig {
    /// Of operations, archived and failed deployments, and the audit trail; zero: for good.
    pub keep: Delay,
}

/// For the schema: an app is its settings and its hosts.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its shape is used")]
struct AppDocument {
    hosts: Option<Vec<HostDocument>>,
    #[serde(flatten)]
    settings: AppSettings,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its shape is used")]
struct WholeDocument {
    #[serde(flatten)]
    document: Document,
    apps: Option<BTreeMap<String, AppDocument>>,
    services: Option<BTreeMap<String, ServiceDocument>>,
}

/// A host name: text, or a mapping where a prefix is to be stripped.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its shape is used")]
pub(super) enum HostDocument {
    /// `www.example.com`, `*.example.com`, `*`, `example.com/api`
    Text(String),
    Mapping {
        host: String,
        path: Option<String>,
        strip: Option<bool>,
    },
}

/// The value of a `hosts` key.
pub(super) struct AppHosts(pub(super) Value);

impl Default for Document {
    fn default() -> Self {
        Self {
            listeners: Listeners::default(),
            tls: TlsDocument::default(),
            admin: AdminDocument::default(),
            data_dir: PathBuf::from("/var/lib/lockgate"),
            apex: None,
            url: None,
            runtime: RuntimeKind::Auto,
            docker: DockerDocument::default(),
            workers: 0,
            trusted_proxies: Vec::new(),
            via: Some("lockgate".to_owned()),
            forwarded: false,
            access_log: AccessLog::default(),
            access_log_format: AccessLogFormat::default(),
            traces: TracesDocument::default(),
            limits: LimitsConfig::default(),
            deploy: DeploySettings::default(),
            ephemeral: EphemeralConfig::default(),
            history: HistoryConfig::default(),
        }
    }
}

impl Default for Listener {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([0, 0, 0, 0], 80)),
            also: Vec::new(),
            redirect: None,
            proxy_protocol: None,
            connections: None,
        }
    }
}

impl Listener {
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        std::iter::once(self.address).chain(self.also.iter().copied()).collect()
    }
}

impl Default for AdminDocument {
    fn default() -> Self {
        Self { socket: PathBuf::from("/run/lockgate/admin.sock"), address: None }
    }
}

impl Default for EphemeralConfig {
    fn default() -> Self {
        Self {
            default_ttl: Delay::seconds(24 * 60 * 60),
            max_per_app: 10,
            sweep_every: Delay::seconds(5 * 60),
            idle_after: Delay::seconds(60 * 60),
            reserved_labels: Vec::new(),
            preview_auth: None,
        }
    }
}

impl Default for HistoryConfig {
    fn default() -> Self {
        Self { keep: Delay::seconds(90 * 24 * 60 * 60) }
    }
}

/// By hand: a derived one wants a YAML tag for the file.
impl<'de> Deserialize<'de> for AccessLog {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Log;

        impl<'de> Visitor<'de> for Log {
            type Value = AccessLog;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("off, stdout, or { file: /path }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<AccessLog, E> {
                match text {
                    "off" => Ok(AccessLog::Off),
                    "stdout" => Ok(AccessLog::Stdout),
                    other => Err(E::unknown_variant(other, &["off", "stdout", "{ file: /path }"])),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<AccessLog, A::Error> {
                let mut file = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key != "file" {
                        return Err(de::Error::unknown_field(&key, &["file"]));
                    }
                    file = Some(map.next_value()?);
                }
                file.map(AccessLog::File).ok_or_else(|| de::Error::missing_field("file"))
            }
        }

        from.deserialize_any(Log)
    }
}

impl AppHosts {
    /// The rules, as far as they are right.
    pub(super) fn rules(&self, owner: &str, findings: &mut Findings<'_>) -> Vec<HostRule> {
        let path = format!("{owner}.hosts");
        let items = match &self.0 {
            Value::Null => return Vec::new(),
            Value::Sequence(items) => items,
            _ => {
                findings.add(&path, "is not a list", "write hosts: [www.example.com]");
                return Vec::new();
            }
        };
        let rule = |(at, item): (usize, &Value)| one(&format!("{path}[{at}]"), item, findings);
        items.iter().enumerate().filter_map(rule).collect()
    }
}

fn one(path: &str, item: &Value, findings: &mut Findings<'_>) -> Option<HostRule> {
    let remedy =
        "write www.example.com, '*.example.com', example.com/api, or { host: …, path: …, strip: true }";
    let of_key = |key: &str| format!("{path}.{key}");
    let (host, prefix, strip) = match item {
        Value::String(text) => {
            let (host, prefix) = text.split_at(text.find('/').unwrap_or(text.len()));
            let prefix = if prefix.is_empty() { "/" } else { prefix };
            ((path.to_owned(), host), (path.to_owned(), prefix), false)
        }
        Value::Mapping(entries) => {
            for key in entries.keys().map(|key| key.as_str().unwrap_or("?")) {
                if !["host", "path", "strip"].contains(&key) {
                    findings
                        .type_error(&of_key(key), &format!("unknown field `{key}`, `host`, `path`, `strip`"));
                    return None;
                }
            }
            let text = |key| entries.get(key).map(|value| value.as_str().ok_or("is not text"));
            let Some(host) = text("host") else {
                findings.add(path, "names no host", remedy);
                return None;
            };
            let strip = match entries.get("strip") {
                None => Ok(false),
                Some(Value::Bool(strip)) => Ok(*strip),
                // What is filled in is text.
                Some(Value::String(text)) if text == "true" || text == "false" => Ok(text == "true"),
                Some(_) => Err("is neither true nor false"),
            };
            let mut right = |key: &str, problem: &str| findings.add(&of_key(key), problem, remedy);
            (
                (of_key("host"), host.map_err(|problem| right("host", problem)).ok()?),
                (
                    of_key("path"),
                    text("path").unwrap_or(Ok("/")).map_err(|problem| right("path", problem)).ok()?,
                ),
                strip.map_err(|problem| right("strip", problem)).ok()?,
            )
        }
        _ => {
            findings.add(path, "is neither text nor a mapping", remedy);
            return None;
        }
    };
    let pattern: Option<HostPattern> =
        host.1.parse().map_err(|error: HostError| findings.refuse(&host.0, &error, remedy)).ok();
    let prefix: Option<PathPrefix> =
        prefix.1.parse().map_err(|error: PrefixError| findings.refuse(&prefix.0, &error, remedy)).ok();
    Some(HostRule { pattern: pattern?, prefix: prefix?, strip })
}

/// The JSON Schema of the configuration, for editors.
#[must_use]
pub fn schema() -> String {
    let schema = schemars::schema_for!(WholeDocument);
    // A schema has text keys only, so it can always be written.
    serde_json::to_string_pretty(&schema).unwrap_or_default()
}
