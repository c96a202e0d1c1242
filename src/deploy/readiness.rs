//! Whether an instance may get its first request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::concealed::conceal;
use super::tls::AppTls;
use crate::clock::Clock;
use crate::ids::InstanceId;
use crate::probe::{Probe, ProbeError};
use crate::runtime::{Exit, Health, Instance, InstanceState, Pinned, Ports, Runtime, RuntimeError};
use crate::settings::{AppSettings, Delay, ReadinessMode, RuntimeKind};
use crate::store::Failure;

/// Between two looks at something that is not ready.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How many of the last log lines a failure shows.
const LOG_LINES: usize = 20;

/// How readiness is judged, once the mode `auto` is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Check {
    Probe(Probe),
    /// The container's own health check.
    ByContainer,
    /// Running that long.
    Running(Duration),
}

impl Check {
    /// What the settings and the image mean together.
    ///
    /// # Errors
    /// If the mode asks for something that is not there.
    pub(super) fn of(settings: &AppSettings, pinned: &Pinned, has_port: bool) -> Result<Self, Failure> {
        let http = http_probe(settings).map(Self::Probe);
        let has_health_check = pinned.has_health_check || !settings.health.command.is_empty();
        let delay = Self::Running(settings.deploy.readiness_delay.0);
        match settings.deploy.readiness_mode {
            ReadinessMode::Auto if has_health_check => Ok(Self::ByContainer),
            ReadinessMode::Auto if !has_port => Ok(delay),
            ReadinessMode::Auto => Ok(http.unwrap_or(Self::Probe(Probe::Tcp))),
            ReadinessMode::Http => http.ok_or_else(|| {
                Failure::new("no_health_path", "readiness_mode is http, but no health.path is set")
                    .remedy("set health.path, for example to /up")
            }),
            ReadinessMode::Tcp => Ok(Self::Probe(Probe::Tcp)),
            ReadinessMode::DockerHealth if has_health_check => Ok(Self::ByContainer),
            ReadinessMode::DockerHealth => Err(Failure::new(
                "no_health_check",
                "readiness_mode is docker-health, but neither the app nor its image has a health check",
            )
            .remedy("set health.command, add HEALTHCHECK to the image, or use readiness_mode http with health.path")),
            ReadinessMode::Delay => Ok(delay),
        }
    }
}

/// The GET that the settings ask for.
pub(super) fn http_probe(settings: &AppSettings) -> Option<Probe> {
    let AppSettings { health, protocol, proxy_protocol, .. } = settings;
    health.path.clone().map(|path| Probe::Http {
        path,
        status: health.status,
        protocol: *protocol,
        proxy_protocol: *proxy_protocol,
    })
}

/// Waits until the instance is ready.
///
/// # Errors
/// What was seen instead: it exited, or was not ready in time; with its last log lines, but for values of its env vars.
pub(super) async fn wait_ready(
    runtime: &dyn Runtime,
    clock: &Arc<dyn Clock>,
    instance: &Instance,
    check: &Check,
    settings: &AppSettings,
) -> Result<(), Failure> {
    let waited = waited_for(runtime, clock, instance, check, settings).await;
    waited.map_err(|failure| conceal(failure, &settings.env))
}

async fn waited_for(
    runtime: &dyn Runtime,
    clock: &Arc<dyn Clock>,
    instance: &Instance,
    check: &Check,
    settings: &AppSettings,
) -> Result<(), Failure> {
    let began = clock.now();
    let limit = match check {
        // That one ends by itself, and must not be cut short by the limit of those that may not.
        Check::Running(delay) => settings.deploy.health_timeout.0.max(*delay),
        Check::Probe(_) | Check::ByContainer => settings.deploy.health_timeout.0,
    };
    let deadline = began + limit;
    let mut successes = 0;
    let mut last_seen = String::from("nothing was seen");
    let mut last_probe: Option<ProbeError> = None;
    let tls = AppTls::of(settings.protocol, settings.tls.as_ref());
    loop {
        match runtime.inspect(&instance.id).await {
            Ok(Some(now)) => {
                if let InstanceState::Exited(exit) = &now.state {
                    return Err(exited(runtime, instance.id, exit).await);
                }
                match look(&now, check, (settings, tls.as_ref()), clock, began).await {
                    Look::Ready => successes += 1,
                    Look::Failed(detail) => {
                        return Err(
                            Failure::new("unhealthy", detail).seen(log_lines(runtime, instance.id).await)
                        );
                    }
                    Look::NotYet(seen, probe) => (successes, last_seen, last_probe) = (0, seen, probe),
                }
                let needed = if let Check::Probe(_) = check { settings.health.successes.max(1) } else { 1 };
                if successes >= needed {
                    return Ok(());
                }
            }
            Ok(None) => {
                return Err(Failure::new("instance_gone", "the instance was removed while it was checked"));
            }
            // The engine may be away for a moment; the deadline decides.
            Err(error) => last_seen = error.to_string(),
        }
        if clock.now() >= deadline {
            return Err(too_late(runtime, instance.id, limit, &last_seen, last_probe.as_ref()).await);
        }
        clock.sleep_until(deadline.min(clock.now() + LOOK_EVERY)).await;
    }
}

enum Look {
    Ready,
    Failed(String),
    NotYet(String, Option<ProbeError>),
}

async fn look(
    now: &Instance,
    check: &Check,
    (settings, tls): (&AppSettings, Option<&AppTls>),
    clock: &Arc<dyn Clock>,
    began: Instant,
) -> Look {
    let InstanceState::Running { health } = now.state else {
        return Look::NotYet("it is not running yet".to_owned(), None);
    };
    match check {
        Check::Running(delay) if clock.now().duration_since(began) >= *delay => Look::Ready,
        Check::Running(delay) => Look::NotYet(format!("running, for less than {delay:?}"), None),
        Check::ByContainer => match health {
            Health::Healthy => Look::Ready,
            Health::Unhealthy => Look::Failed("its own health check says unhealthy".to_owned()),
            Health::None | Health::Starting => {
                Look::NotYet("its own health check says starting".to_owned(), None)
            }
        },
        Check::Probe(probe) => match now.address {
            None => Look::NotYet("it has no address yet".to_owned(), None),
            Some(address) => {
                let tls = tls.map(|tls| tls.to(address));
                match probe.ask(address, tls.as_ref(), settings.health.timeout.0, clock).await {
                    Ok(()) => Look::Ready,
                    Err(error) => Look::NotYet(error.to_string(), Some(error)),
                }
            }
        },
    }
}

/// Its exit code in words.
pub(super) fn said(exit: &Exit) -> String {
    exit.code.map_or_else(|| "an unknown code".to_owned(), |code| format!("code {code}"))
}

/// The failure of an instance that ended.
pub(super) async fn exited(runtime: &dyn Runtime, instance: InstanceId, exit: &Exit) -> Failure {
    let failure = if exit.out_of_memory {
        Failure::new("out_of_memory", "the instance was ended for want of memory")
            .remedy("raise resources.memory_mib")
    } else {
        Failure::new("instance_exited", format!("the instance exited with {}", said(exit)))
            .remedy("read its last lines above; run it by hand with the same env vars")
    };
    failure.seen(log_lines(runtime, instance).await)
}

async fn too_late(
    runtime: &dyn Runtime,
    instance: InstanceId,
    limit: Duration,
    last_seen: &str,
    last_probe: Option<&ProbeError>,
) -> Failure {
    let limit = Delay(limit);
    let elsewhere = match last_probe {
        Some(ProbeError::Connect { address, .. }) => {
            // The runtime may be away; then there is one hint less.
            runtime.ports(&instance).await.ok().and_then(|ports| hint(*address, &ports, runtime.kind()))
        }
        _ => None,
    };
    let (seen, remedy) = elsewhere.unzip();
    let remedy = remedy.flatten().or_else(|| last_probe.map(ProbeError::remedy));
    Failure::new("not_ready", format!("the instance was not ready within {limit}"))
        .seen([format!("last seen: {last_seen}")])
        .seen(seen)
        .seen(log_lines(runtime, instance).await)
        .remedy(remedy.unwrap_or_else(|| "raise deploy.health_timeout".to_owned()))
}

/// What it does instead of accepting connections at `address`, and what to do about that if it is told by it.
fn hint(address: SocketAddr, ports: &Ports, kind: RuntimeKind) -> Option<(String, Option<String>)> {
    let wanted = address.port();
    let list = |ports: &mut Vec<u16>| {
        ports.sort_unstable();
        ports.dedup();
        ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
    };
    match ports {
        Ports::Unknown => None,
        Ports::Exposed(exposed) if exposed.is_empty() || exposed.contains(&wanted) => None,
        Ports::Exposed(exposed) => {
            let others = list(&mut exposed.clone());
            let remedy = format!("set port to the one that the app listens on: its image exposes {others}");
            Some((format!("its image exposes {others}, not {wanted}"), Some(remedy)))
        }
        Ports::Listening(found) if found.is_empty() => Some(("it listens on no port".to_owned(), None)),
        Ports::Listening(found) => {
            let mut there = found.iter().filter(|one| one.port() == wanted).peekable();
            if there.peek().is_some() {
                let is_local = there.all(|one| one.ip().is_loopback()) && !address.ip().is_loopback();
                let seen = format!("it listens on port {wanted} of 127.0.0.1 alone");
                let remedy = "make the app listen on 0.0.0.0 instead of 127.0.0.1".to_owned();
                return is_local.then_some((seen, Some(remedy)));
            }
            let others = list(&mut found.iter().map(SocketAddr::port).collect());
            let remedy = match kind {
                RuntimeKind::Process => format!("make the app listen on the port in PORT (here {wanted})"),
                RuntimeKind::Docker | RuntimeKind::Auto => {
                    format!(
                        "set port to {others}, or make the app listen on the port in PORT (here {wanted})"
                    )
                }
            };
            Some((format!("nothing listens on port {wanted}, but it listens on {others}"), Some(remedy)))
        }
    }
}

/// The last lines of its output, or why there are none.
pub(super) async fn log_lines(runtime: &dyn Runtime, instance: InstanceId) -> Vec<String> {
    match runtime.logs(&instance, LOG_LINES).await {
        Ok(lines) if lines.is_empty() => vec!["log: (it wrote nothing)".to_owned()],
        Ok(lines) => lines.into_iter().map(|line| format!("log: {line}")).collect(),
        Err(RuntimeError::NotFound { .. }) => Vec::new(),
        Err(error) => vec![format!("log: cannot be read: {error}")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_apps_own_health_command_is_the_containers_health_check() {
        let pinned = Pinned { digest: String::new(), has_health_check: false, exposed_port: None };
        let mut settings = AppSettings::default();
        settings.health.path = Some("/up".to_owned());
        for mode in [ReadinessMode::Auto, ReadinessMode::DockerHealth] {
            settings.deploy.readiness_mode = mode;
            settings.health.command.clear();
            assert_ne!(Check::of(&settings, &pinned, true).ok(), Some(Check::ByContainer));
            settings.health.command.push("/check".to_owned());
            assert_eq!(Check::of(&settings, &pinned, true).unwrap(), Check::ByContainer);
        }
    }

    #[test]
    fn a_refused_connection_is_explained_by_where_the_app_listens() {
        let wanted = "172.18.0.2:3000".parse().unwrap();
        let on = |addresses: &[&str]| {
            Ports::Listening(addresses.iter().map(|address| address.parse().unwrap()).collect())
        };
        let docker = RuntimeKind::Docker;
        for (ports, kind, seen, remedy) in [
            (on(&[]), docker, "listens on no port", None),
            (on(&["0.0.0.0:8080"]), docker, "on port 3000, but it listens on 8080", Some("set port to 8080")),
            (
                on(&["0.0.0.0:90", "[::]:80", "0.0.0.0:80"]),
                docker,
                "listens on 80, 90",
                Some("set port to 80, 90"),
            ),
            (
                on(&["0.0.0.0:8080"]),
                RuntimeKind::Process,
                "it listens on 8080",
                Some("make the app listen on"),
            ),
            (on(&["127.0.0.1:3000"]), docker, "of 127.0.0.1 alone", Some("listen on 0.0.0.0")),
            (Ports::Exposed(vec![80]), docker, "its image exposes 80, not 3000", Some("set port")),
        ] {
            let (told, advised) = hint(wanted, &ports, kind).unwrap();
            assert!(told.contains(seen), "{told}");
            assert_eq!(advised.is_some(), remedy.is_some(), "{advised:?}");
            assert!(advised.unwrap_or_default().contains(remedy.unwrap_or_default()), "{told}");
        }
        for ports in [
            Ports::Unknown,
            Ports::Exposed(vec![]),
            Ports::Exposed(vec![80, 3000]),
            on(&["127.0.0.1:3000", "0.0.0.0:3000"]),
        ] {
            assert_eq!(hint(wanted, &ports, docker), None, "{ports:?}");
        }
    }
}
