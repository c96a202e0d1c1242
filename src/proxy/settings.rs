//! What the data plane is told: where to listen, whom to believe, and its limits.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use ipnet::IpNet;

use crate::certs::Certs;
use crate::routing::standing::Ejection;
use crate::traces::Traces;
use crate::upstream::{ConnectLimits, Tick, TickLimits};

/// Bytes that a client's connection may buffer in each direction.
const BUFFER: usize = 256 * 1024;

/// What the data plane is told. How many workers it has is `Routing::workers`.
#[derive(Clone, Debug)]
pub struct ProxySettings {
    /// Where every worker listens, without TLS.
    pub listen: Vec<SocketAddr>,
    /// Networks from which connections without TLS come through a proxy: each has to begin with a PROXY header, and those
    /// from elsewhere are closed. `None`: clients connect themselves.
    pub proxy_protocol: Option<Vec<IpNet>>,
    /// How many of all connections may be without TLS; `None`: all.
    pub connections: Option<usize>,
    pub tls: Option<TlsSettings>,
    /// Whether a client may begin with HTTP/2 without having been told that it is there.
    pub http2: bool,
    /// Peers whose `X-Forwarded-*` and `X-Request-Id` are believed and appended to.
    pub trusted_proxies: Vec<IpNet>,
    /// The name under which this proxy appears in `Via`; none leaves `Via` out.
    pub via: Option<String>,
    /// Whether applications are told by `Forwarded` (RFC 7239) as well.
    pub forwarded: bool,
    pub access_log: AccessLogSink,
    pub access_log_format: AccessLogFormat,
    /// What takes the spans of requests, while there is somewhere for them to go; `None`: there never is.
    pub traces: Option<Traces>,
    pub limits: Limits,
    /// When a target that fails is passed over.
    pub ejection: Ejection,
    /// Tells the upstream the route table's generation in `Lockgate-Generation`; for the verifier.
    pub debug_generation: bool,
}

/// HTTP/1.1 over TLS, beside the plain one.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    pub listen: Vec<SocketAddr>,
    /// The same for connections with TLS: the header comes before the handshake.
    pub proxy_protocol: Option<Vec<IpNet>>,
    /// How many of all connections may be with TLS, those of HTTP/3 included; `None`: all.
    pub connections: Option<usize>,
    pub certs: Arc<Certs>,
    /// At what port clients are sent to https, who ask by plain HTTP for a name that a certificate covers.
    pub port: u16,
    /// Whether they are, where an app does not say itself what becomes of them.
    pub redirects: bool,
    /// `Strict-Transport-Security` of answers that have none, where an app does not say it itself.
    pub hsts: Option<HeaderValue>,
    /// HTTP/3 as well, by UDP at the same addresses. Nothing without the feature `http3`.
    pub http3: bool,
    /// What answers tell of it; `None`: nothing.
    pub alt_svc: Option<AltSvc>,
}

/// How clients that came by TLS over TCP are told of HTTP/3 (RFC 7838).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AltSvc {
    /// Where clients find it; `None`: at the port that they came to.
    pub port: Option<u16>,
    /// How long they may remember it; none at all: they are to forget it.
    pub max_age: Duration,
}

/// How requests come to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

/// Where the access log goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLogSink {
    #[default]
    Off,
    Stdout,
    File(PathBuf),
}

/// What a line of the access log looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// One JSON object.
    #[default]
    Json,
    /// As Apache and nginx write it.
    Combined,
}

/// Time-outs and sizes. A time-out ends what makes no progress; there is no limit on the whole of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A PROXY header, from the connection on.
    pub proxy_header: Duration,
    /// A TLS handshake, from the connection on, or from the PROXY header.
    pub handshake: Duration,
    /// A kept connection without a request.
    pub keep_alive: Duration,
    /// A request head, from its first byte to its last.
    pub head: Duration,
    /// A client connection on which nothing comes for that long is asked by TCP whether its other end is still there;
    /// zero: never.
    pub tcp_keepalive: Duration,
    /// Between two bytes of a request body.
    pub body_idle: Duration,
    /// The least rate, in bytes per second, at which a client sends a request body or takes a response, after
    /// `body_floor_after` of waiting for it.
    pub body_floor: u64,
    pub body_floor_after: Duration,
    pub connect: Duration,
    /// From the end of the request to the head of the response.
    pub response_head: Duration,
    /// Between two bytes of a response; event streams and upgraded connections have no such limit.
    pub response_idle: Duration,
    /// How long a client that closed its side may still wait for the answer. It cannot be told from one that is
    /// gone until something is written to it.
    pub half_closed: Duration,
    /// How long a client's connection has no request until what it needs for one is given up. The next one makes it anew.
    pub rest: Duration,
    /// An upstream connection without use, unless the upstream says otherwise in `Keep-Alive`.
    pub pool_idle: Duration,
    /// An HTTP/2 connection to an application on which nothing came for so long, while something is awaited, is pinged
    /// and gets no more requests; if nothing comes for as long again it is closed.
    pub upstream_ping: Duration,
    /// Over how long WebSockets are spread when they are closed at the end of a drain.
    pub close_spread: Duration,
    /// The coarseness of all of these.
    pub tick: Duration,
    /// Request line and header fields together, in bytes.
    pub head_bytes: usize,
    /// One header field's value, in bytes.
    pub field_bytes: usize,
    /// The request target, in bytes.
    pub target_bytes: usize,
    /// A request body, in bytes.
    pub body_bytes: u64,
    /// Requests at once on one HTTP/2 connection.
    pub http2_streams: u32,
    /// Requests that a client resets before they are answered, on one HTTP/2 connection, in a minute and ever; at the last of
    /// them the connection ends.
    pub http2_resets_per_minute: u32,
    pub http2_resets: u32,
    /// Client connections of all workers; the default is four fifths of the process's file descriptors.
    pub connections: Option<usize>,
    /// Client connections from one IPv4 address or IPv6 /64 network, to all workers; those of trusted proxies do not
    /// count. 0 is no limit.
    pub connections_per_client: usize,
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            proxy_protocol: None,
            connections: None,
            tls: None,
            http2: true,
            trusted_proxies: Vec::new(),
            via: Some("lockgate".to_owned()),
            forwarded: false,
            access_log: AccessLogSink::Off,
            access_log_format: AccessLogFormat::Json,
            traces: None,
            limits: Limits::default(),
            ejection: Ejection::default(),
            debug_generation: false,
        }
    }
}

impl ProxySettings {
    /// Who has to begin a connection by that scheme with a PROXY header; `None`: nobody.
    pub(crate) fn headers_from(&self, scheme: Scheme) -> Option<&[IpNet]> {
        match scheme {
            Scheme::Http => self.proxy_protocol.as_deref(),
            Scheme::Https => self.tls.as_ref()?.proxy_protocol.as_deref(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            proxy_header: Duration::from_secs(5),
            handshake: Duration::from_secs(10),
            keep_alive: Duration::from_secs(75),
            head: Duration::from_secs(10),
            tcp_keepalive: Duration::from_secs(60),
            body_idle: Duration::from_secs(60),
            body_floor: 240,
            body_floor_after: Duration::from_secs(10),
            connect: Duration::from_secs(5),
            response_head: Duration::from_secs(60),
            response_idle: Duration::from_secs(60),
            half_closed: Duration::from_secs(60),
            rest: Duration::from_secs(1),
            pool_idle: Duration::from_secs(4),
            upstream_ping: Duration::from_secs(10),
            close_spread: Duration::from_secs(3),
            tick: Duration::from_millis(250),
            head_bytes: 32 * 1024,
            field_bytes: 16 * 1024,
            target_bytes: 8 * 1024,
            body_bytes: 1024 * 1024 * 1024,
            http2_streams: 128,
            http2_resets_per_minute: 100,
            http2_resets: 500,
            connections: None,
            connections_per_client: 256,
        }
    }
}

impl Scheme {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

impl Limits {
    pub(crate) fn in_ticks(&self) -> TickLimits {
        TickLimits {
            keep_alive: self.ticks(self.keep_alive),
            rest: self.ticks(self.rest),
            head: self.ticks(self.head),
            body_idle: self.ticks(self.body_idle),
            response_head: self.ticks(self.response_head),
            response_idle: self.ticks(self.response_idle),
            half_closed: self.ticks(self.half_closed),
            floor_after: self.ticks(self.body_floor_after),
            floor_per_tick: self.body_floor * u64::try_from(self.tick.as_millis()).unwrap_or(u64::MAX) / 1000,
        }
    }

    /// What a client's connection may buffer in each direction: a head, or as much of a body.
    pub(crate) fn buffer_bytes(&self) -> usize {
        BUFFER.max(self.head_bytes)
    }

    pub(crate) fn of_connects(&self) -> ConnectLimits {
        ConnectLimits {
            connect: self.connect,
            keep_idle: self.ticks(self.pool_idle),
            ping: self.upstream_ping,
            ticks_per_second: self.ticks(Duration::from_secs(1)),
        }
    }

    /// `duration` in ticks, rounded up, and never less than one. Added to a moment it is always one: applications and clients
    /// say how long they wait.
    pub(crate) fn ticks(&self, duration: Duration) -> Tick {
        let ticks = duration.as_millis().div_ceil(self.tick.as_millis().max(1));
        // The tick in which a phase begins is already running.
        Tick::try_from(ticks).unwrap_or(Tick::MAX).min(Tick::MAX / 2) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_that_they_wait_is_still_a_moment_when_it_is_added_to_one() {
        let limits = Limits { tick: Duration::from_millis(250), ..Limits::default() };
        assert_eq!(limits.ticks(Duration::from_secs(1)), 5);
        let now: Tick = 1_000_000;
        // By `Keep-Alive`, and by `grpc-timeout`.
        for seconds in [u64::from(u32::MAX) / 4, u64::from(u32::MAX), 3600 * 99_999_999] {
            let ticks = limits.ticks(Duration::from_secs(seconds));
            assert!(now.checked_add(ticks).is_some(), "{seconds} s are {ticks} ticks");
        }
    }
}
