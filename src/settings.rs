//! What an app runs and how it is deployed: one type for configuration, API, store and engine.
//!
//! A deployment keeps a full copy, so that going back to it restores all of it. Every default stands
//! here and nowhere else.

mod balance;
mod faults;
mod hours;
mod https;
pub mod policy;
pub mod queue;
mod secrets;
mod status;
mod tls;
mod values;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use balance::{BalanceSettings, CookieName, FieldName, HashKey};
pub use faults::SettingsFault;
pub use hours::{HoursSettings, HoursState};
pub use https::unheard_https;
pub use policy::PolicySettings;
pub use queue::QueueSettings;
pub use status::StatusRange;
pub use tls::AppTlsSettings;
pub use values::{Delay, Percent, Replicas, Secret};

/// The settings of an app, and of each deployment at the time when it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AppSettings {
    /// Image reference, for the `docker` runtime: `repository[:tag][@sha256:…]`.
    pub image: Option<String>,
    /// Command and arguments, never a shell. `$PORT` in an argument becomes the port. Needed by the
    /// `process` runtime; replaces the image's command under `docker`.
    pub command: Vec<String>,
    /// Command and arguments, never a shell, that every deploy runs once in the new version's environment before its
    /// instances start, as a migration; if it does not exit with 0 the deploy fails.
    pub release_command: Vec<String>,
    /// Working directory of the commands (`process` runtime); the data directory of the instance otherwise.
    pub directory: Option<String>,
    /// Port the app listens on inside its container; it is told in `PORT`. The `process` runtime chooses a free one.
    pub port: Option<u16>,
    /// What the app speaks on that port. Clients speak what they like.
    pub protocol: Protocol,
    /// Who its instances have to be, with `protocol: https` and `h2`; from the next deploy on.
    pub tls: Option<AppTlsSettings>,
    /// The app is told whose request comes by a PROXY header, which is the first of each connection to it; each request then
    /// has a connection of its own. For `protocol: http1` and `https` alone.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How requests are spread over the app's instances.
    pub balance: BalanceSettings,
    /// For how long the share of an instance grows, from nothing to the whole, that joins others by scaling or comes back
    /// to them. If not given, one that was passed over for its failures takes 10 s, and all others none. Never of a swap,
    /// whose instances are all new.
    pub slow_start: Option<Delay>,
    /// How many requests and streams one instance serves at once, all that leads to it together; `null` is no limit.
    pub max_concurrent_requests: Option<u32>,
    /// Who waits where all instances serve as many as they may; 1000 requests for 10 s each if not given.
    pub queue: Option<QueueSettings>,
    /// What becomes of requests to the app without TLS, from the next deploy on; as `listeners.http.redirect` of the
    /// configuration says if not given. Its previews follow it.
    pub https: Option<HttpsMode>,
    /// Browsers are told to come to the app by https alone for so long, by answers over TLS that do not say it themselves, from
    /// the next deploy on; 0s: they are not. As `listeners.https.hsts` of the configuration says if not given.
    pub hsts: Option<Delay>,
    /// Environment variables; encrypted at rest, never shown again.
    #[serde(skip_serializing)]
    pub env: BTreeMap<String, Secret>,
    /// What outlives an instance: kept by Lockgate for the app and its environment, or for the preview.
    pub volumes: Vec<VolumeSettings>,
    /// How many instances serve at once: 1 to 100.
    pub replicas: Replicas,
    /// The health check by HTTP.
    pub health: HealthSettings,
    /// How a cutover goes.
    pub deploy: DeploySettings,
    /// Limits of each instance.
    pub resources: ResourceSettings,
    /// Whether a request to a version in standby starts it; `false` answers 503 `deployment_in_standby`.
    pub wake: bool,
    /// How long a request waits for that; a browser that goes to a page is shown one after 5 s that asks again by itself.
    pub wake_timeout: Delay,
    /// How many requests wait for one version; more are answered 503 `queue_full` at once.
    pub wake_queue: u32,
    /// After a start that failed, requests do not start the version again for so long: 503 `wake_failed` at once.
    pub wake_backoff: Delay,
    /// A preview, or what is live in an environment for previews, that had no request for so long and has nothing in
    /// flight goes to standby by itself; 0s is never. As `ephemeral.idle_after` of the configuration says if not given.
    /// With `wake: false` nothing does, because no request would start it again.
    pub idle_after: Option<Delay>,
    /// Production goes to standby in the same way, and stays live. It never does otherwise.
    pub scale_to_zero: bool,
    /// So many versions of each environment stay running whatever `idle_after` and `deploy.standby_after` say: first what
    /// is live, so that 1 leaves nobody to wait for a start, then those that a rollback would go to, the newest first.
    /// What somebody puts into standby, or `schedule` does, goes all the same, and previews by label do not count.
    pub min_warm: u16,
    /// Office hours: times at which all of the app's previews, and what is live in each of its environments, go to
    /// standby or run again. A request wakes them all the same.
    pub schedule: Vec<HoursSettings>,
    /// Who may see the app's previews (its ephemeral deployments, and its environments for previews), from their next
    /// deploy on; as `ephemeral.preview_auth` of the configuration says if not given.
    pub preview_auth: Option<PreviewAuthSettings>,
    /// Whether the requests of a page go on to the version that it came from while that one still runs; they do not if
    /// not given.
    pub skew_protection: Option<SkewProtection>,
    /// What is asked of its requests and changed on them and their responses, in this order, from the next deploy on:
    /// each version keeps those that it was deployed with.
    pub policies: Vec<PolicySettings>,
}

/// How long pages stay with the version that they came from: never longer than it runs, which `deploy.standby_after`
/// says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SkewProtection {
    /// From when the page was loaded; at least a second.
    pub max_age: Delay,
}

/// Who may see a preview.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PreviewAuthSettings {
    pub mode: PreviewAuthMode,
    /// Of mode `basic`.
    pub user: String,
    /// Of mode `basic`; encrypted at rest, never shown again.
    #[serde(skip_serializing)]
    pub password: Secret,
}

/// How a preview is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PreviewAuthMode {
    /// By anybody.
    #[default]
    Off,
    /// By name and password.
    Basic,
    /// By a link that `lockgate preview link` signs.
    Link,
}

/// The app's own health check, for readiness and for as long as it is live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealthSettings {
    /// Path to GET; it begins with `/`. Without it readiness is a TCP connect.
    pub path: Option<String>,
    /// Statuses of the answer that are a success, as `200-399`. A redirect is not followed.
    #[schema(value_type = String)]
    pub status: StatusRange,
    /// Command that the engine runs in the container, never a shell; exit code 0 is healthy. It takes the place of the
    /// image's own health check. `docker` runtime alone.
    pub command: Vec<String>,
    /// Between two checks of a live instance.
    pub interval: Delay,
    /// Of one check.
    pub timeout: Delay,
    /// In a row, until an instance is ready.
    pub successes: u32,
    /// In a row, until a live instance is unhealthy.
    pub failures: u32,
}

/// Readiness, cutover, drain and stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeploySettings {
    pub readiness_mode: ReadinessMode,
    /// Of mode `delay`: running that long without exiting is ready.
    pub readiness_delay: Delay,
    /// An instance that is not ready by then has failed.
    pub health_timeout: Delay,
    /// A release command that has not ended by then has failed.
    pub release_timeout: Delay,
    /// What happens to the old version before the new one is started.
    pub strategy: Strategy,
    /// Of strategy `hold`: a new version that does not serve by then, counted from when requests were held, is removed,
    /// and the old one started again.
    pub hold_timeout: Delay,
    /// Of strategy `hold`: so many requests wait at most; the others are refused with 503.
    pub hold_queue: u32,
    pub drain_mode: DrainMode,
    /// Of mode `delay`; an explicit 0s means no wait.
    pub drain_delay: Delay,
    /// For requests in flight, counted from the cutover.
    pub drain_timeout: Delay,
    /// For streams in flight (WebSockets and event streams), counted from the cutover.
    pub stream_drain_timeout: Delay,
    /// After the cutover: a new instance that exits or turns unhealthy in this time takes the traffic back.
    pub watch: Delay,
    /// After the cutover: what of a new version's requests in that time takes the traffic back.
    pub rollback_on: RollbackOn,
    /// After it was replaced, a deployment's instances are kept running that long for an instant rollback.
    pub standby_after: Delay,
    /// After it was put into standby, its stopped instances are kept that long; 0s keeps them for good. The version
    /// that a rollback would go to is always kept.
    pub archive_after: Delay,
    /// Signal that asks the app to stop; the image's own, or TERM.
    pub stop_signal: Option<StopSignal>,
    /// Between that signal and KILL.
    pub stop_grace: Delay,
    /// When to pull an image.
    pub pull: PullPolicy,
}

/// How much worse than the version before it a new version may be while it is watched. Only what the app failed
/// counts: 5xx, malformed answers, resets, refused connections and time-outs; not 4xx, and not clients that leave.
/// Rollbacks are never judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RollbackOn {
    /// That many percentage points more of its requests fail than of the version before in the ten minutes before the
    /// cutover, and more than chance would have it; `null` is never.
    pub error_rate: Option<Percent>,
    /// More than 1 in 100 of its answers, and at least 5, take longer than that share of the 99th percentile of the
    /// version before; `null` is never. 300% is three times as long.
    pub latency_p99: Option<Percent>,
    /// Before each of the two versions has had so many requests, only a version is given up of which nearly all of at
    /// least 10 fail, where those before did not; what came too late is then left out.
    pub min_requests: u64,
}

/// Limits of one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceSettings {
    /// Memory in MiB, without swap; at least 16.
    pub memory_mib: u64,
    /// CPU time in thousandths of a core; 0 is no limit.
    pub cpu_millis: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Files and sockets that one process may have open. Not given: the engine's own limit under `docker`, 65536 under
    /// `process`. An engine that may not go that high refuses to start the instance.
    pub open_files: Option<u64>,
}

/// How far a runtime holds instances to their `resources`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Enforcement {
    pub cpu: Enforced,
    pub memory: Enforced,
    pub pids: Enforced,
}

/// How far an instance is held to a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Enforced {
    Exactly,
    /// What runs away is ended, far above the limit.
    Roughly,
    No,
}

/// A place for files that outlives the instances. Never a path of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VolumeSettings {
    /// 1 to 63 of a-z, 0-9 and -. The instance is told the place in `LOCKGATE_VOLUME_<NAME>`, in upper case and with `_`
    /// for `-`.
    pub name: String,
    /// Where it is inside the container. The `process` runtime has a directory of its own choice.
    pub path: String,
    /// Instances cannot write to it (`docker` runtime; the `process` runtime cannot keep them from it).
    pub read_only: bool,
    /// Several instances may write to it at once, as happens at every deploy and with more than one replica.
    pub shared: bool,
}

/// How readiness is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReadinessMode {
    /// The container's health check if the app or its image has one, else `http` if a path is named, else `tcp` if a port
    /// is, else `delay`.
    #[default]
    Auto,
    /// GET of the health path answers as `health.status` says.
    Http,
    /// The port accepts a connection.
    Tcp,
    /// The engine reports the container's own health check as healthy.
    DockerHealth,
    /// Running for `readiness_delay` without exiting.
    Delay,
}

/// In which order versions stop and start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The new version is ready before the old one loses a request; for a while both run.
    #[default]
    Swap,
    /// Requests wait while the old version stops and the new one starts: no two instances run at once.
    Hold,
}

/// How the old version is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DrainMode {
    /// `inflight`.
    #[default]
    Auto,
    /// Until nothing is in flight, or the deadline.
    Inflight,
    /// A fixed wait of `drain_delay`.
    Delay,
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PullPolicy {
    /// When the engine does not have it.
    #[default]
    Missing,
    Always,
    Never,
}

/// A signal that may ask an app to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum StopSignal {
    Term,
    Int,
    Quit,
    Hup,
    Usr1,
    Usr2,
    /// Asks web servers to end their connections in order.
    Winch,
}

/// Which runtime starts and stops instances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RuntimeKind {
    /// `docker` where an engine answers, else `process`.
    #[default]
    Auto,
    Docker,
    Process,
}

/// What an app speaks to Lockgate. What clients speak has nothing to do with it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// HTTP/1.1
    #[default]
    Http1,
    /// HTTP/2 without TLS and with prior knowledge, as gRPC servers speak it.
    H2c,
    /// HTTP/1.1 over TLS
    Https,
    /// HTTP/2 over TLS, agreed upon in the handshake; who does not agree is not spoken to.
    H2,
}

impl Protocol {
    /// Whether many requests go over one connection.
    #[must_use]
    pub fn is_http2(self) -> bool {
        match self {
            Self::H2c | Self::H2 => true,
            Self::Http1 | Self::Https => false,
        }
    }

    /// Of its URLs.
    #[must_use]
    pub fn scheme(self) -> &'static str {
        if self.is_tls() { "https" } else { "http" }
    }

    /// Whether it is never spoken without TLS.
    #[must_use]
    pub fn is_tls(self) -> bool {
        match self {
            Self::Https | Self::H2 => true,
            Self::Http1 | Self::H2c => false,
        }
    }
}

/// What becomes of requests that come without TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HttpsMode {
    /// They are sent to https by 308, where a certificate covers the name.
    Redirect,
    /// They are served.
    Allow,
}

/// Whether browsers can be told so: not at all, or for a second at least.
#[must_use]
pub fn is_hsts(delay: Delay) -> bool {
    delay.0.is_zero() || delay.0.as_secs() > 0
}

/// What to write instead.
pub(crate) const HSTS_REMEDY: &str = "write for example 180d, or 0s for none";

/// A version of the PROXY protocol.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

impl Default for AppSettings {
    fn default() -> Self {
        Self {
            image: None,
            command: Vec::new(),
            release_command: Vec::new(),
            directory: None,
            port: None,
            protocol: Protocol::default(),
            tls: None,
            proxy_protocol: None,
            balance: BalanceSettings::default(),
            slow_start: None,
            max_concurrent_requests: None,
            queue: None,
            https: None,
            hsts: None,
            env: BTreeMap::new(),
            volumes: Vec::new(),
            replicas: Replicas::default(),
            health: HealthSettings::default(),
            deploy: DeploySettings::default(),
            resources: ResourceSettings::default(),
            wake: true,
            wake_timeout: Delay::seconds(30),
            wake_queue: 1000,
            wake_backoff: Delay::seconds(30),
            idle_after: None,
            scale_to_zero: false,
            min_warm: 0,
            schedule: Vec::new(),
            preview_auth: None,
            skew_protection: None,
            policies: Vec::new(),
        }
    }
}

impl Default for SkewProtection {
    fn default() -> Self {
        Self { max_age: Delay::seconds(12 * 60 * 60) }
    }
}

impl Default for HealthSettings {
    fn default() -> Self {
        Self {
            path: None,
            status: StatusRange::default(),
            command: Vec::new(),
            interval: Delay::seconds(10),
            timeout: Delay::seconds(5),
            successes: 1,
            failures: 3,
        }
    }
}

impl Default for DeploySettings {
    fn default() -> Self {
        Self {
            readiness_mode: ReadinessMode::Auto,
            readiness_delay: Delay::seconds(5),
            health_timeout: Delay::seconds(90),
            release_timeout: Delay::seconds(5 * 60),
            strategy: Strategy::Swap,
            hold_timeout: Delay::seconds(60),
            hold_queue: 1000,
            drain_mode: DrainMode::Auto,
            drain_delay: Delay::seconds(2),
            drain_timeout: Delay::seconds(30),
            stream_drain_timeout: Delay::seconds(300),
            watch: Delay::seconds(5),
            rollback_on: RollbackOn::default(),
            standby_after: Delay::seconds(30 * 60),
            archive_after: Delay::seconds(7 * 24 * 60 * 60),
            stop_signal: None,
            stop_grace: Delay::seconds(30),
            pull: PullPolicy::Missing,
        }
    }
}

impl Default for RollbackOn {
    fn default() -> Self {
        Self { error_rate: Some(Percent::of(10)), latency_p99: None, min_requests: 100 }
    }
}

impl Default for ResourceSettings {
    fn default() -> Self {
        Self { memory_mib: 512, cpu_millis: 0, pids: 512, open_files: None }
    }
}

impl AppSettings {
    /// The same with another number of instances.
    #[must_use]
    pub fn with_replicas(self, replicas: Replicas) -> Self {
        Self { replicas, ..self }
    }
}

impl StopSignal {
    /// Its name with the `SIG`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Term => "SIGTERM",
            Self::Int => "SIGINT",
            Self::Quit => "SIGQUIT",
            Self::Hup => "SIGHUP",
            Self::Usr1 => "SIGUSR1",
            Self::Usr2 => "SIGUSR2",
            Self::Winch => "SIGWINCH",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_json_but_their_secrets_do_not_leave() {
        let mut settings = AppSettings { port: Some(3000), ..AppSettings::default() };
        settings.env.insert("TOKEN".into(), Secret::new("canary"));
        let json = serde_json::to_string(&settings).unwrap();
        assert!(!json.contains("canary") && !format!("{settings:?}").contains("canary"));
        let back: AppSettings = serde_json::from_str(&json).unwrap();
        settings.env.clear();
        assert_eq!(back, settings);
    }
}
