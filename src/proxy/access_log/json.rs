//! One JSON object for each request.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::Entry;
use crate::proxy::exchange::{End, Link};

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttfb_ms: Option<f64>,
    request_id: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<&'a str>,
    client_ip: IpAddr,
    peer_ip: IpAddr,
    protocol: &'static str,
    scheme: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_version: Option<&'static str>,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<&'a str>,
    status: u16,
    request_bytes: u64,
    response_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    referer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    environment: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deployment: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_ms: Option<f64>,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    route_generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_connection: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_connect_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_header_ms: Option<f64>,
    connection_requests: u32,
    is_stream: bool,
    end: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// Adds `entry` to `text`, without a line end.
pub(super) fn write(text: &mut Vec<u8>, entry: &Entry<'_>) {
    // Text and numbers can always be written, and memory takes them.
    let _written = serde_json::to_writer(text, &Line::of(entry));
}

impl<'a> Line<'a> {
    fn of(entry: &Entry<'a>) -> Self {
        let Entry { exchange, logged, .. } = *entry;
        let stats = exchange.backend.as_ref().map(|local| &*local.backend.stats);
        let labels = stats.and_then(|stats| stats.labels.as_ref());
        let since = |began| exchange.responded.map(|at| at.saturating_duration_since(began));
        let connect = match exchange.link {
            Some(Link::New { connected_in }) => Some(connected_in),
            Some(Link::Reused) | None => None,
        };
        Self {
            time: format!("{:.6}", entry.began()),
            duration_ms: milliseconds(entry.took()),
            ttfb_ms: since(exchange.started).map(milliseconds),
            request_id: String::from_utf8_lossy(exchange.id.as_bytes()),
            trace_id: logged.trace_id.as_deref(),
            client_ip: logged.client_ip,
            peer_ip: exchange.client.peer.address,
            protocol: entry.protocol(),
            scheme: exchange.client.peer.scheme.as_str(),
            tls_version: exchange.client.tls.as_ref().map(|tls| tls.version),
            method: exchange.method.as_str(),
            host: &logged.host,
            path: &logged.path,
            query: logged.query.as_deref(),
            status: exchange.status.as_u16(),
            request_bytes: exchange.request_bytes(),
            response_bytes: exchange.response_bytes,
            user_agent: logged.user_agent.as_deref(),
            referer: logged.referer.as_deref(),
            app: stats.map(|stats| stats.name()),
            environment: labels.map(|labels| labels.environment.as_str()),
            deployment: labels.map(|labels| labels.deployment.as_str()),
            instance: exchange.target.as_ref().map(|target| target.target.id.to_string()),
            held_ms: Some(logged.held_until(entry.now)).filter(|held| !held.is_zero()).map(milliseconds),
            attempts: logged.attempts,
            route_generation: logged.generation,
            upstream_connection: exchange.link.map(|link| match link {
                Link::New { .. } => "new",
                Link::Reused => "reused",
            }),
            upstream_connect_ms: connect.map(milliseconds),
            upstream_header_ms: exchange.upstream_took().map(milliseconds),
            connection_requests: logged.request_on_connection,
            is_stream: exchange.is_stream,
            end: exchange.reason().unwrap_or(match exchange.end {
                End::Complete => "ok",
                End::Own(_) | End::Truncated | End::Open => "client_abort",
            }),
            error: logged.error.as_deref(),
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
