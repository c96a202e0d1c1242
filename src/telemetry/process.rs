//! What the kernel says of this process, under the names that Prometheus clients share (`process_…`).

use std::fs;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Of `/proc/…/stat`; Linux tells programs the same rate on every machine, whatever its own is.
const TICKS_PER_SECOND: f64 = 100.0;

/// As it is now; without what cannot be read, as on a machine without `/proc`.
pub(super) fn registry() -> Registry {
    let mut registry = Registry::with_prefix("process");
    let stat = fs::read_to_string("/proc/self/stat").ok();
    if let Some(ticks) = stat.as_deref().and_then(|text| ticks(text, &[CPU_USER, CPU_SYSTEM])) {
        let cpu: Counter<f64, AtomicU64> = Counter::default();
        cpu.inc_by(ticks / TICKS_PER_SECOND);
        registry.register_with_unit("cpu", "CPU time, of user and system", Unit::Seconds, cpu);
    }
    if let (Some(ticks), Some(boot)) = (stat.as_deref().and_then(|text| ticks(text, &[STARTED])), booted()) {
        let at = gauge(boot + ticks / TICKS_PER_SECOND);
        registry.register_with_unit("start_time", "When it was started, since 1970", Unit::Seconds, at);
    }
    if let Some(bytes) = resident() {
        registry.register_with_unit("resident_memory", "Resident memory", Unit::Bytes, gauge(bytes));
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is what lists them.
        let open = open.count().saturating_sub(1);
        registry.register(
            "open_fds",
            "Open file descriptors",
            gauge(f64::from(u32::try_from(open).unwrap_or(u32::MAX))),
        );
    }
    registry
}

/// Fields behind the program's name.
const CPU_USER: usize = 11;
const CPU_SYSTEM: usize = 12;
const STARTED: usize = 19;

/// The sum of these fields.
fn ticks(stat: &str, fields: &[usize]) -> Option<f64> {
    // The name may hold blanks and parentheses.
    let (_, rest) = stat.rsplit_once(')')?;
    let found: Vec<&str> = rest.split_ascii_whitespace().collect();
    fields.iter().map(|at| found.get(*at)?.parse::<f64>().ok()).sum()
}

fn booted() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn resident() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix("kB")?;
    Some(kib.trim().parse::<f64>().ok()? * 1024.0)
}

fn gauge(value: f64) -> Gauge<f64, AtomicU64> {
    let gauge = Gauge::default();
    gauge.set(value);
    gauge
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_counted_from_behind_the_name_whatever_it_holds() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 4200 1 2";
        assert_eq!(ticks(stat, &[CPU_USER, CPU_SYSTEM]), Some(300.0));
        assert_eq!(ticks(stat, &[STARTED]), Some(4200.0));
        assert_eq!(ticks("7 (a) S 1", &[STARTED]), None);
    }

    #[test]
    fn a_process_has_memory_descriptors_and_a_time_at_which_it_began() {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry()).unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.split(' ').next() == Some(name));
            line.and_then(|line| line.rsplit(' ').next())
                .unwrap_or_else(|| panic!("{name}: {text}"))
                .parse()
                .unwrap()
        };
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_open_fds") >= 3.0);
        let age =
            crate::clock::Timestamp::now().as_duration().as_secs_f64() - value("process_start_time_seconds");
        assert!((-2.0..3600.0).contains(&age), "{age}");
    }
}
