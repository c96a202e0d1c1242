//! The scrape: sums the cells and writes them as OpenMetrics text.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::cells::{Measure, code_of, response_of};
use super::{
    BackendCells, BackendStats, Counter, CounterTable, Histogram, TargetEntry, Telemetry, WorkerCells,
};
use crate::gate::InFlight;

/// One series' labels.
type Labels<'a> = Vec<(&'a str, &'a str)>;

pub(super) fn render(telemetry: &Arc<Telemetry>, register_more: impl FnOnce(&mut Registry)) -> String {
    let mut registry = Registry::with_prefix("lockgate");
    register_more(&mut registry);
    registry.register_collector(Box::new(Scrape(Arc::clone(telemetry))));
    let mut out = String::new();
    // Writing to a string does not fail.
    let _written = text::encode_registry(&mut out, &registry)
        .and_then(|()| text::encode_registry(&mut out, &super::process::registry()))
        .and_then(|()| text::encode_eof(&mut out));
    out
}

#[derive(Debug)]
struct Scrape(Arc<Telemetry>);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let entries = self.0.targets();
        let targets: Vec<Shown<'_>> = entries.iter().filter_map(Shown::of).collect();
        let of_targets = targets.iter().map(|target| Arc::clone(&target.stats));
        let backends: BTreeMap<*const BackendStats, Arc<BackendStats>> = of_targets
            .chain(self.0.held())
            .chain([Arc::clone(&self.0.unmatched)])
            .map(|stats| (Arc::as_ptr(&stats), stats))
            .collect();
        let mut series: BTreeMap<Name<'_>, Series<'_>> = BTreeMap::new();
        for stats in backends.values() {
            series.entry(name(stats)).or_default().push(stats);
        }
        encode_backends(&series.into_values().collect::<Vec<_>>(), &mut encoder)?;
        encode_targets(&targets, &mut encoder)?;
        encode_workers(&self.0, &mut encoder)
    }
}

/// App or service, environment, deployment.
type Name<'a> = (&'a str, &'a str, &'a str);

/// What is counted under one name. Of a deployment that is twice: what came by the routes that a swap moves, and by its
/// own.
type Series<'a> = Vec<&'a BackendStats>;

/// A target as it is now.
struct Shown<'a> {
    instance: &'a str,
    stats: Arc<BackendStats>,
    in_flight: InFlight,
    connections: u64,
}

impl<'a> Shown<'a> {
    fn of(entry: &'a TargetEntry) -> Option<Self> {
        Some(Self {
            instance: &entry.instance,
            stats: entry.stats.upgrade()?,
            in_flight: entry.requests.upgrade()?.in_flight(),
            connections: entry.connections.upgrade()?.in_flight().requests,
        })
    }
}

fn name(stats: &BackendStats) -> Name<'_> {
    match &stats.labels {
        Some(labels) => (stats.name(), labels.environment.as_str(), labels.deployment.as_str()),
        None => (stats.name(), "", ""),
    }
}

fn encode_backends(backends: &[Series<'_>], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "Requests by the status that the client got";
    let mut metric = encoder.encode_descriptor("http_requests", help, None, MetricType::Counter)?;
    for stats in backends {
        for ((method, code, protocol), count) in responses(stats) {
            let code = code.to_string();
            let own = [("method", method), ("code", code.as_str()), ("protocol", protocol)];
            counter(&mut metric, &labelled(named(stats), &own), count)?;
        }
    }
    let help = "From the first byte of a request to the last of its response; streams are left out";
    histogram(encoder, backends, ("http_request_duration", help), Measure::Seconds, |cells| &cells.duration)?;
    let help = "From the first byte of a request to the head of its response";
    histogram(encoder, backends, ("http_response_first_byte", help), Measure::Seconds, |cells| {
        &cells.first_byte
    })?;
    let help = "From a request on its upstream connection to the head of the response";
    histogram(encoder, backends, ("upstream_response_head", help), Measure::Seconds, |cells| {
        &cells.upstream_head
    })?;
    let help = "Request bodies, those of none included";
    histogram(encoder, backends, ("http_request_body_size", help), Measure::Bytes, |cells| {
        &cells.request_body
    })?;
    let help = "Response bodies, those of none included";
    histogram(encoder, backends, ("http_response_body_size", help), Measure::Bytes, |cells| {
        &cells.response_body
    })?;
    let help = "To connect to a target";
    histogram(encoder, backends, ("upstream_connect_duration", help), Measure::Seconds, |cells| {
        &cells.connects.took
    })?;
    for (name, help, of) in BACKEND_COUNTERS {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for stats in backends {
            counter(&mut metric, &labelled(named(stats), &[]), sum(stats, of))?;
        }
    }
    let help = "Connections to targets by how connecting went";
    let mut metric = encoder.encode_descriptor("upstream_connects", help, None, MetricType::Counter)?;
    for stats in backends {
        for (result, of) in CONNECTS {
            counter(&mut metric, &labelled(named(stats), &[("result", result)]), sum(stats, of))?;
        }
    }
    let help = "Requests sent to targets, repeats included";
    let mut metric = encoder.encode_descriptor("upstream_requests", help, None, MetricType::Counter)?;
    for stats in backends {
        let sent = sum(stats, |cells| &cells.connects.ok) + sum(stats, |cells| &cells.connects.reused);
        counter(&mut metric, &labelled(named(stats), &[]), sent)?;
    }
    let help = "Requests by the kind of upstream connection they found";
    let mut metric = encoder.encode_descriptor("upstream_pool_reuse", help, None, MetricType::Counter)?;
    for stats in backends {
        for (result, of) in REUSES {
            counter(&mut metric, &labelled(named(stats), &[("result", result)]), sum(stats, of))?;
        }
    }
    let help = "Requests that waited for a held backend, or were refused by it";
    let mut metric = encoder.encode_descriptor("holds", help, None, MetricType::Counter)?;
    for stats in backends {
        for (result, of) in HOLDS {
            counter(&mut metric, &labelled(named(stats), &[("result", result)]), sum(stats, of))?;
        }
    }
    let help = "Requests that wait for a held backend";
    let mut metric = encoder.encode_descriptor("held_requests", help, None, MetricType::Gauge)?;
    for stats in backends {
        let began = sum(stats, |cells| &cells.holds.began);
        let waiting = began.saturating_sub(sum(stats, |cells| &cells.holds.ended));
        metric.encode_family(&labelled(named(stats), &[]))?.encode_gauge(&signed(waiting))?;
    }
    let help = "Requests that waited for a place at a target, or found no room to";
    let mut metric = encoder.encode_descriptor("queue_waits", help, None, MetricType::Counter)?;
    for stats in backends {
        for (result, of) in QUEUE_WAITS {
            counter(&mut metric, &labelled(named(stats), &[("result", result)]), sum(stats, of))?;
        }
    }
    let help = "Requests that wait for a place at a target";
    let mut metric = encoder.encode_descriptor("queued_requests", help, None, MetricType::Gauge)?;
    for stats in backends {
        let began = sum(stats, |cells| &cells.queue.began);
        let waiting = began.saturating_sub(sum(stats, |cells| &cells.queue.ended));
        metric.encode_family(&labelled(named(stats), &[]))?.encode_gauge(&signed(waiting))?;
    }
    Ok(())
}

type Of = fn(&BackendCells) -> &Counter;

const HOLDS: [(&str, Of); 3] = [
    ("released", |cells| &cells.holds.released),
    ("timed_out", |cells| &cells.holds.timed_out),
    ("refused", |cells| &cells.holds.refused),
];

const QUEUE_WAITS: [(&str, Of); 3] = [
    ("served", |cells| &cells.queue.released),
    ("timed_out", |cells| &cells.queue.timed_out),
    ("refused", |cells| &cells.queue.refused),
];

const BACKEND_COUNTERS: [(&str, &str, Of); 2] = [
    ("streams", "Upgraded connections and event streams begun", |cells| &cells.streams),
    ("upstream_ejections", "Targets passed over for a while because they failed in a row", |cells| {
        &cells.ejections
    }),
];

const CONNECTS: [(&str, Of); 3] = [
    ("ok", |cells| &cells.connects.ok),
    ("failed", |cells| &cells.connects.failed),
    ("timeout", |cells| &cells.connects.timed_out),
];

const REUSES: [(&str, Of); 2] =
    [("reused", |cells| &cells.connects.reused), ("stale", |cells| &cells.connects.stale)];

fn encode_targets(targets: &[Shown<'_>], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    type Of = fn(&Shown<'_>) -> u64;
    let gauges: [(&str, &str, Of); 3] = [
        ("in_flight_requests", "Requests that passed a gate and have not ended", |target| {
            target.in_flight.requests
        }),
        ("in_flight_streams", "Streams that passed a gate and have not ended", |target| {
            target.in_flight.streams
        }),
        ("upstream_connections", "Open connections to a target", |target| target.connections),
    ];
    for (gauge, help, of) in gauges {
        let mut metric = encoder.encode_descriptor(gauge, help, None, MetricType::Gauge)?;
        let mut sums: BTreeMap<(Name<'_>, &str), u64> = BTreeMap::new();
        for target in targets {
            *sums.entry((name(&target.stats), target.instance)).or_default() += of(target);
        }
        for ((name, instance), sum) in sums {
            metric.encode_family(&labelled(name, &[("instance", instance)]))?.encode_gauge(&signed(sum))?;
        }
    }
    Ok(())
}

type OfWorker = fn(&WorkerCells) -> &Counter;

const HANDSHAKES: [(&str, &str, OfWorker); 6] = [
    ("ok", "1.2", |cells| &cells.handshakes.tls12),
    ("ok", "1.3", |cells| &cells.handshakes.tls13),
    ("failed", "", |cells| &cells.handshakes.failed),
    ("timeout", "", |cells| &cells.handshakes.timed_out),
    ("not_tls", "", |cells| &cells.handshakes.not_tls),
    ("challenge", "", |cells| &cells.handshakes.challenges),
];

const PROXY_HEADERS: [(&str, OfWorker); 6] = [
    ("ok", |cells| &cells.proxy_headers.ok),
    ("untrusted", |cells| &cells.proxy_headers.untrusted),
    ("missing", |cells| &cells.proxy_headers.missing),
    ("malformed", |cells| &cells.proxy_headers.malformed),
    ("timeout", |cells| &cells.proxy_headers.timed_out),
    ("closed", |cells| &cells.proxy_headers.closed),
];

fn encode_workers(telemetry: &Telemetry, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let counters: [(&str, &str, OfWorker); 10] = [
        ("listener_connections", "Client connections accepted", |cells| &cells.connections),
        (
            "listener_connection_rests",
            "Times that a client connection without requests gave up its buffers",
            |cells| &cells.connection_rests,
        ),
        ("listener_connections_refused", "Client connections closed: too many from their address", |cells| {
            &cells.connections_refused
        }),
        ("http2_connections", "Client connections that speak HTTP/2", |cells| &cells.http2_connections),
        (
            "http2_connections_calmed",
            "HTTP/2 connections ended because their client reset or flooded",
            |cells| &cells.http2_connections_calmed,
        ),
        ("gate_refusals", "Requests that a closed gate sent back to the routes", |cells| {
            &cells.gate_refusals
        }),
        ("route_memo_hits", "Requests whose route was known from an earlier one", |cells| &cells.memo_hits),
        ("route_memo_misses", "Requests whose route was looked up", |cells| &cells.memo_misses),
        ("client_aborts", "Requests whose client left before their end", |cells| &cells.client_aborts),
        ("access_log_dropped", "Lines that the access log had no room for", |cells| {
            &cells.access_log_dropped
        }),
    ];
    let sum = |of: OfWorker| telemetry.workers.iter().map(|cells| of(cells).get()).sum::<u64>();
    for (name, help, of) in counters {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&sum(of), None)?;
    }
    encode_cuts(telemetry, encoder)?;
    encode_by_code(
        telemetry,
        encoder,
        ("retries", "Requests sent to a target once more", |cells| &cells.retries),
    )?;
    let help = "TLS handshakes by how they went";
    let mut metric = encoder.encode_descriptor("tls_handshakes", help, None, MetricType::Counter)?;
    for (result, version, of) in HANDSHAKES {
        counter(&mut metric, &vec![("result", result), ("version", version)], sum(of))?;
    }
    let help = "Of a TLS handshake that succeeded";
    let unit = Some(&Unit::Seconds);
    let metric = encoder.encode_descriptor("tls_handshake_duration", help, unit, MetricType::Histogram)?;
    let took = telemetry.workers.iter().map(|cells| &cells.handshakes.took);
    encode_histogram(metric, Measure::Seconds, took)?;
    let help = "TLS handshakes that went on with an earlier session";
    let mut metric = encoder.encode_descriptor("tls_resumptions", help, None, MetricType::Counter)?;
    metric.encode_counter::<NoLabelSet, _, u64>(&sum(|cells| &cells.handshakes.resumed), None)?;
    let help = "Client connections that have to begin with a PROXY header, by how that went; only ok ones are served";
    let mut metric = encoder.encode_descriptor("proxy_protocol_headers", help, None, MetricType::Counter)?;
    for (result, of) in PROXY_HEADERS {
        counter(&mut metric, &vec![("result", result)], sum(of))?;
    }
    let help = "Open client connections";
    let mut metric = encoder.encode_descriptor("listener_connections_open", help, None, MetricType::Gauge)?;
    let open = sum(|cells| &cells.connections).saturating_sub(sum(|cells| &cells.connections_ended));
    metric.encode_gauge(&signed(open))?;
    encode_by_code(telemetry, encoder, ("errors", "Answers that Lockgate made itself", |cells| &cells.errors))
}

fn encode_cuts(telemetry: &Telemetry, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let kinds: [(&str, OfWorker); 2] =
        [("request", |cells| &cells.cuts.requests), ("stream", |cells| &cells.cuts.streams)];
    let help = "Requests and streams ended at their drain deadline";
    let mut metric = encoder.encode_descriptor("drain_cut", help, None, MetricType::Counter)?;
    for (kind, of) in kinds {
        let count = telemetry.workers.iter().map(|cells| of(cells).get()).sum();
        counter(&mut metric, &vec![("kind", kind)], count)?;
    }
    Ok(())
}

/// What is counted by the code of an answer, those codes that occurred.
fn encode_by_code<const N: usize>(
    telemetry: &Telemetry,
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, of): (&str, &str, fn(&WorkerCells) -> &CounterTable<N>),
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (key, count) in telemetry.workers.iter().flat_map(|cells| of(cells).iter()) {
        *sums.entry(code_of(key)).or_default() += count;
    }
    for (code, count) in sums {
        counter(&mut metric, &vec![("reason", code)], count)?;
    }
    Ok(())
}

fn histogram(
    encoder: &mut DescriptorEncoder<'_>,
    backends: &[Series<'_>],
    (name, help): (&str, &str),
    measure: Measure,
    of: fn(&BackendCells) -> &Histogram,
) -> fmt::Result {
    let unit = match measure {
        Measure::Seconds => Unit::Seconds,
        Measure::Bytes => Unit::Bytes,
    };
    let mut metric = encoder.encode_descriptor(name, help, Some(&unit), MetricType::Histogram)?;
    for stats in backends {
        let cells = stats.iter().flat_map(|stats| &stats.workers).map(|cells| of(cells));
        encode_histogram(metric.encode_family(&labelled(named(stats), &[]))?, measure, cells)?;
    }
    Ok(())
}

/// One histogram of what several workers counted.
fn encode_histogram<'a>(
    mut metric: MetricEncoder<'_>,
    measure: Measure,
    counted: impl Iterator<Item = &'a Histogram>,
) -> fmt::Result {
    let (mut buckets, mut sum) = (measure.buckets(), 0);
    for cells in counted {
        cells.add_to(&mut buckets);
        sum += cells.sum();
    }
    let count = buckets.iter().map(|(_, count)| count).sum();
    metric.encode_histogram::<NoLabelSet>(measure.of(sum), count, &buckets, None)
}

fn counter(metric: &mut MetricEncoder<'_>, labels: &Labels<'_>, count: u64) -> fmt::Result {
    metric.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)
}

fn named<'a>(series: &Series<'a>) -> Name<'a> {
    series.first().map_or(("", "", ""), |stats| name(stats))
}

fn labelled<'a>((app, environment, deployment): Name<'a>, own: &[(&'a str, &'a str)]) -> Labels<'a> {
    let mut labels = vec![("app", app), ("environment", environment), ("deployment", deployment)];
    labels.extend_from_slice(own);
    labels
}

fn responses(series: &Series<'_>) -> BTreeMap<(&'static str, u64, &'static str), u64> {
    let mut sums = BTreeMap::new();
    let cells = series.iter().flat_map(|stats| &stats.workers);
    for (key, count) in cells.flat_map(|cells| cells.responses.iter()) {
        *sums.entry(response_of(key)).or_default() += count;
    }
    sums
}

fn sum(series: &Series<'_>, of: Of) -> u64 {
    series.iter().flat_map(|stats| &stats.workers).map(|cells| of(cells).get()).sum()
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{Method, StatusCode, Version};

    use super::*;
    use crate::gate::Gate;

    /// A deployment has a backend for the routes that a swap moves and one for its own: one series for both.
    #[test]
    fn what_two_backends_of_one_name_counted_is_shown_together() {
        let telemetry = Arc::new(Telemetry::new(1));
        let backends = [(); 2].map(|()| Arc::new(BackendStats::for_service("a", 1)));
        let gates = [(); 2].map(|()| Arc::new(Gate::new(1)));
        for (stats, gate) in backends.iter().zip(&gates) {
            telemetry.show_target(&"ins_1", stats, gate, gate);
            stats.of(0).respond(&Method::GET, StatusCode::OK, Version::HTTP_11);
            stats.of(0).took(None, Duration::from_millis(3));
        }
        let _held = [gates[0].enter(0).unwrap(), gates[1].enter(0).unwrap()];
        let text = telemetry.render();
        let series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let mut names: Vec<&str> = series.iter().map(|line| line.rsplit_once(' ').unwrap().0).collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(names.len(), before, "a series stands twice:\n{text}");
        for line in [
            r#"lockgate_http_requests_total{app="a",environment="",deployment="",method="GET",code="200",protocol="1.1"} 2"#,
            r#"lockgate_http_request_duration_seconds_count{app="a",environment="",deployment=""} 2"#,
            r#"lockgate_in_flight_requests{app="a",environment="",deployment="",instance="ins_1"} 2"#,
        ] {
            assert!(series.contains(&line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_two_workers_counted_is_shown_together() {
        let telemetry = Arc::new(Telemetry::new(2));
        let stats = Arc::new(BackendStats::for_service("a\"b", 2));
        let (requests, connections) = (Arc::new(Gate::new(2)), Arc::new(Gate::new(2)));
        telemetry.show_target(&"ins_1", &stats, &requests, &connections);
        telemetry.show_target(&"ins_1", &stats, &requests, &connections);
        for worker in 0..2 {
            stats.of(worker).respond(&Method::GET, StatusCode::OK, Version::HTTP_11);
            stats.of(worker).took(None, Duration::from_millis(3));
            telemetry.of(worker).own_answer("no_route");
        }
        let _held = requests.enter(1).unwrap();
        let text = telemetry.render();
        for line in [
            r#"lockgate_http_requests_total{app="a\"b",environment="",deployment="",method="GET",code="200",protocol="1.1"} 2"#,
            r#"lockgate_http_request_duration_seconds_bucket{le="0.005",app="a\"b",environment="",deployment=""} 2"#,
            r#"lockgate_http_request_duration_seconds_bucket{le="0.0025",app="a\"b",environment="",deployment=""} 0"#,
            r#"lockgate_in_flight_requests{app="a\"b",environment="",deployment="",instance="ins_1"} 1"#,
            r#"lockgate_errors_total{reason="no_route"} 2"#,
        ] {
            assert_eq!(text.lines().filter(|found| *found == line).count(), 1, "{line}\n{text}");
        }
        drop(stats);
        assert!(!telemetry.render().contains("ins_1"));
    }
}
