//! What the types of the settings alone do not show: one list for the configuration file and the admin API.

use super::policy::policy_faults;
use super::queue::queue_faults;
use super::tls::tls_faults;
use super::{AppSettings, HSTS_REMEDY, PreviewAuthMode, Strategy, is_hsts};
use crate::ids::EnvironmentName;

/// The least memory that an instance is given.
const MEMORY_MIB_MIN: u64 = 16;

/// Fewer let no program start; more no kernel allows by default (`fs.nr_open`).
const OPEN_FILES: std::ops::RangeInclusive<u64> = 64..=1_048_576;

/// One thing that is wrong with an app's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsFault {
    /// Key path below the app: `health.path`.
    pub field: String,
    /// What stands there, where that may be told.
    pub value: Option<String>,
    /// A sentence without its subject: `does not begin with /`.
    pub detail: String,
    pub remedy: &'static str,
}

impl AppSettings {
    /// Everything that is wrong; empty where they can be deployed.
    #[must_use]
    pub fn faults(&self) -> Vec<SettingsFault> {
        let mut faults = Vec::new();
        if let Some(path) = self.health.path.as_ref().filter(|path| !is_path(path)) {
            faults.push(SettingsFault {
                field: "health.path".to_owned(),
                value: Some(path.clone()),
                detail: if path.starts_with('/') {
                    "has a character that a path must not have".to_owned()
                } else {
                    "does not begin with /".to_owned()
                },
                remedy: "write for example /up",
            });
        }
        let mut refuse = |holds: bool, field: &str, detail: &str, remedy: &'static str| {
            if !holds {
                faults.push(SettingsFault {
                    field: field.to_owned(),
                    value: None,
                    detail: detail.to_owned(),
                    remedy,
                });
            }
        };
        refuse(
            self.proxy_protocol.is_none() || !self.protocol.is_http2(),
            "proxy_protocol",
            "is told at the beginning of a connection, and those of HTTP/2 carry requests of many clients",
            "leave it out, or write protocol: http1 or https",
        );
        let faults_of_tls = tls_faults(self.protocol, self.tls.as_ref());
        for (field, detail, remedy) in
            queue_faults(self.max_concurrent_requests, self.queue).into_iter().chain(faults_of_tls)
        {
            refuse(false, field, detail, remedy);
        }
        let positive = [
            ("health.interval", self.health.interval),
            ("health.timeout", self.health.timeout),
            ("deploy.health_timeout", self.deploy.health_timeout),
            ("deploy.release_timeout", self.deploy.release_timeout),
            ("deploy.hold_timeout", self.deploy.hold_timeout),
            ("wake_timeout", self.wake_timeout),
        ];
        for (field, delay) in positive {
            refuse(!delay.0.is_zero(), field, "is not positive", "write for example 30s");
        }
        let at_least_one = [
            ("health.successes", u64::from(self.health.successes)),
            ("health.failures", u64::from(self.health.failures)),
            ("resources.pids", self.resources.pids),
            ("wake_queue", u64::from(self.wake_queue)),
        ];
        for (field, count) in at_least_one {
            refuse(count > 0, field, "is 0", "write at least 1");
        }
        let rule = &self.deploy.rollback_on;
        refuse(rule.min_requests > 0, "deploy.rollback_on.min_requests", "is 0", "write at least 1");
        let points = rule.error_rate.is_none_or(|points| (1..=100).contains(&points.count()));
        let remedy = "write for example 10%, or null for never";
        refuse(points, "deploy.rollback_on.error_rate", "is not 1% to 100%", remedy);
        let ratio = rule.latency_p99.is_none_or(|ratio| ratio.count() > 100);
        let remedy = "write for example 300%, or null for never";
        refuse(ratio, "deploy.rollback_on.latency_p99", "is not above 100%", remedy);
        let memory = self.resources.memory_mib;
        let below = format!("is below {MEMORY_MIB_MIN}");
        refuse(memory >= MEMORY_MIB_MIN, "resources.memory_mib", &below, "give it at least 16 MiB");
        let files = self.resources.open_files;
        let remedy = "leave it out, or allow at least 64 and at most 1048576";
        let has_sane_files = files.is_none_or(|files| OPEN_FILES.contains(&files));
        refuse(has_sane_files, "resources.open_files", "is not 64 to 1048576", remedy);
        for (command, words) in [
            ("command", &self.command),
            ("release_command", &self.release_command),
            ("health.command", &self.health.command),
        ] {
            for (at, word) in words.iter().enumerate() {
                let field = format!("{command}[{at}]");
                refuse(at > 0 || !word.is_empty(), &field, "is empty", "name the program");
                refuse(!word.contains('\0'), &field, "contains a NUL", NUL);
            }
        }
        let remedy = "write wake: true, or leave out scale_to_zero";
        let wakes = self.wake || !self.scale_to_zero;
        refuse(
            wakes,
            "scale_to_zero",
            "is true, and with wake: false no request would start it again",
            remedy,
        );
        refuse(self.hsts.is_none_or(is_hsts), "hsts", "is below a second", HSTS_REMEDY);
        refuse(self.port != Some(0), "port", "is 0", "name the port that the app listens on");
        if let Some(auth) = self.preview_auth.as_ref().filter(|auth| auth.mode == PreviewAuthMode::Basic) {
            let is_user = !auth.user.is_empty() && !auth.user.contains(':');
            refuse(is_user, "preview_auth.user", "is empty or contains a colon", "name somebody");
            let has_password = !auth.password.expose().is_empty();
            refuse(has_password, "preview_auth.password", "is not given", "give one, or choose mode link");
        }
        let max_age = self.skew_protection.map_or(u64::MAX, |skew| skew.max_age.0.as_secs());
        refuse(max_age > 0, "skew_protection.max_age", "is below a second", "write for example 12h");
        let runs_beside = self.skew_protection.is_none() || self.deploy.strategy == Strategy::Swap;
        let detail = "is given, and with strategy hold no earlier version runs";
        refuse(runs_beside, "skew_protection", detail, "leave it out, or write deploy.strategy: swap");
        // Values are never repeated: only what is wrong with the name is told.
        let has_good_names = !self.env.keys().any(|name| name.is_empty() || name.contains(['=', '\0']));
        let remedy = "names are not empty and contain no =";
        refuse(has_good_names, "env", "has a name that no variable can have", remedy);
        for (name, value) in &self.env {
            refuse(!value.expose().contains('\0'), &format!("env.{name}"), "contains a NUL", NUL);
        }
        let is_alone = self.deploy.strategy == Strategy::Hold;
        if is_alone && self.replicas.count() > 1 {
            faults.push(SettingsFault {
                field: "replicas".to_owned(),
                value: None,
                detail: "is more than 1, and with strategy hold no two instances run at once".to_owned(),
                remedy: "write replicas: 1, or deploy.strategy: swap",
            });
        }
        for (at, hours) in self.schedule.iter().enumerate() {
            let Some((key, detail)) = hours.fault() else { continue };
            let (value, remedy) = match key {
                "cron" => (&hours.cron, "write minute, hour, day, month and weekday: 0 20 * * MON-FRI"),
                _ => (&hours.timezone, "write its IANA name: Europe/Berlin"),
            };
            faults.push(SettingsFault {
                field: format!("schedule[{at}].{key}"),
                value: Some(value.clone()),
                detail,
                remedy,
            });
        }
        self.volume_faults(&mut faults);
        policy_faults("policies", &self.policies, &mut faults);
        faults
    }

    fn volume_faults(&self, faults: &mut Vec<SettingsFault>) {
        for (at, volume) in self.volumes.iter().enumerate() {
            let mut add = |key: &str, value: Option<&String>, detail: &str, remedy: &'static str| {
                let field = format!("volumes[{at}].{key}");
                faults.push(SettingsFault {
                    field,
                    value: value.cloned(),
                    detail: detail.to_owned(),
                    remedy,
                });
            };
            let earlier = &self.volumes[..at];
            if volume.name.parse::<EnvironmentName>().is_err() {
                add(
                    "name",
                    Some(&volume.name),
                    "is not the name of a volume",
                    "use 1 to 63 of a-z, 0-9 and -",
                );
            } else if earlier.iter().any(|other| other.name == volume.name) {
                add("name", Some(&volume.name), "is there twice", "give each volume a name of its own");
            }
            if !is_mount_path(&volume.path) {
                let remedy = "write a path as /data or /var/lib/app, of a-z, A-Z, 0-9, ., _ and -";
                add("path", Some(&volume.path), "is not a place for a volume", remedy);
            } else if earlier.iter().any(|other| is_inside(&volume.path, &other.path)) {
                add("path", Some(&volume.path), "is inside another volume's", "use paths side by side");
            }
            if !volume.read_only && !volume.shared && self.deploy.strategy == Strategy::Swap {
                add(
                    "shared",
                    None,
                    "is not said, and a deploy has two instances at once",
                    "write deploy.strategy: hold, or shared: true if several may write to it at once, or read_only: true",
                );
            }
        }
    }
}

/// Absolute, plain, and not over what the container needs.
fn is_mount_path(path: &str) -> bool {
    let is_plain = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    let Some(rest) = path.strip_prefix('/') else { return false };
    let mut parts = rest.split('/');
    parts.clone().all(is_plain)
        && path.len() <= 255
        && !parts.next().is_some_and(|first| matches!(first, "proc" | "sys" | "dev" | "etc"))
}

/// Whether one of them contains the other.
fn is_inside(a: &str, b: &str) -> bool {
    let contains = |outer: &str, inner: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    contains(a, b) || contains(b, a)
}

const NUL: &str = "no process can be given that";

/// What a request line takes as it stands (RFC 9112, 3.2.1).
fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.parse::<http::uri::PathAndQuery>().is_ok() && !text.contains('#')
}

#[cfg(test)]
mod tests {
    use super::super::{
        AppSettings, Delay, Percent, RollbackOn, Secret, SkewProtection, Strategy, VolumeSettings,
    };

    #[test]
    fn the_defaults_have_none_and_every_bad_value_is_named() {
        assert_eq!(AppSettings::default().faults(), []);
        let mut bad = AppSettings {
            port: Some(0),
            command: vec![String::new()],
            release_command: vec!["migrate".to_owned(), "\0".to_owned()],
            ..AppSettings::default()
        };
        bad.health.path = Some("up".to_owned());
        bad.health.interval = Delay::seconds(0);
        bad.health.timeout = Delay::seconds(0);
        bad.health.successes = 0;
        bad.health.command = vec![String::new()];
        bad.health.failures = 0;
        bad.deploy.health_timeout = Delay::seconds(0);
        bad.deploy.release_timeout = Delay::seconds(0);
        bad.deploy.hold_timeout = Delay::seconds(0);
        bad.deploy.rollback_on = RollbackOn {
            error_rate: Some(Percent::of(0)),
            latency_p99: Some(Percent::of(100)),
            min_requests: 0,
        };
        bad.resources.memory_mib = 15;
        bad.resources.pids = 0;
        bad.resources.open_files = Some(63);
        bad.wake_timeout = Delay::seconds(0);
        bad.wake_queue = 0;
        bad.env.insert("A=B".to_owned(), Secret::new("canary\0"));
        let faults = bad.faults();
        assert!(!format!("{faults:?}").contains("canary"));
        let fields: Vec<_> = faults.iter().map(|fault| fault.field.as_str()).collect();
        let expected = [
            "health.path",
            "health.interval",
            "health.timeout",
            "deploy.health_timeout",
            "deploy.release_timeout",
            "deploy.hold_timeout",
            "wake_timeout",
            "health.successes",
            "health.failures",
            "resources.pids",
            "wake_queue",
            "deploy.rollback_on.min_requests",
            "deploy.rollback_on.error_rate",
            "deploy.rollback_on.latency_p99",
            "resources.memory_mib",
            "resources.open_files",
            "command[0]",
            "release_command[1]",
            "health.command[0]",
            "port",
            "env",
            "env.A=B",
        ];
        assert_eq!(fields, expected);
    }

    #[test]
    fn pages_stay_for_a_second_at_least_and_where_two_versions_may_run() {
        let fields = |millis, strategy| {
            let max_age = Delay(std::time::Duration::from_millis(millis));
            let mut settings =
                AppSettings { skew_protection: Some(SkewProtection { max_age }), ..AppSettings::default() };
            settings.deploy.strategy = strategy;
            settings.faults().into_iter().map(|fault| fault.field).collect::<Vec<_>>()
        };
        assert_eq!(fields(1000, Strategy::Swap), [""; 0]);
        assert_eq!(fields(999, Strategy::Swap), ["skew_protection.max_age"]);
        assert_eq!(fields(1000, Strategy::Hold), ["skew_protection"]);
    }

    #[test]
    fn a_volume_has_a_plain_name_and_path_and_says_whether_it_is_shared() {
        let volume = |name: &str, path: &str| VolumeSettings {
            name: name.to_owned(),
            path: path.to_owned(),
            shared: true,
            ..VolumeSettings::default()
        };
        let fields = |volumes: Vec<VolumeSettings>| {
            let faults = AppSettings { volumes, ..AppSettings::default() }.faults();
            faults.into_iter().map(|fault| fault.field).collect::<Vec<_>>()
        };
        assert_eq!(fields(vec![volume("data", "/data"), volume("log-1", "/var/log/app_1.d")]), [""; 0]);
        for name in ["", "Data", "a/b", "..", "a.b", "-a", &"a".repeat(64)] {
            assert_eq!(fields(vec![volume(name, "/data")]), ["volumes[0].name"], "{name:?}");
        }
        let paths = [
            "", "data", "/", "/data/", "//data", "/a/../b", "/a/./b", "/a b", "/a:b", "/a,b", "/proc/1",
            "/dev",
        ];
        for path in paths {
            assert_eq!(fields(vec![volume("data", path)]), ["volumes[0].path"], "{path:?}");
        }
        assert_eq!(fields(vec![volume("a", "/a"), volume("a", "/b")]), ["volumes[1].name"]);
        for path in ["/a", "/a/b"] {
            assert_eq!(fields(vec![volume("a", "/a"), volume("b", path)]), ["volumes[1].path"], "{path}");
        }
        let alone = VolumeSettings { shared: false, ..volume("a", "/a") };
        assert_eq!(fields(vec![alone.clone()]), ["volumes[0].shared"]);
        assert_eq!(fields(vec![VolumeSettings { read_only: true, ..alone }]), [""; 0]);
    }

    #[test]
    fn a_health_path_is_what_a_request_line_takes() {
        for bad in ["", "up", "/a b", "/a#b", "/a\r\nX: y"] {
            let mut settings = AppSettings::default();
            settings.health.path = Some(bad.to_owned());
            assert_eq!(settings.faults().len(), 1, "{bad:?}");
        }
        let mut settings = AppSettings::default();
        settings.health.path = Some("/up?deep=1".to_owned());
        assert_eq!(settings.faults(), []);
    }
}
