//! The spans of one request: one of its own, and one below it for each time that it was sent to a target. Names and attributes
//! are those of OpenTelemetry's conventions for HTTP; nothing of a query is in them.
//!
//! Nothing here is done for requests while there is nowhere for spans to go, and next to nothing for those whose trace is not
//! sampled.

use std::borrow::Cow;
use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use http::{Method, Request, StatusCode, Version, header};

use crate::ids::InstanceId;
use crate::routing::Target;
use crate::settings::Protocol;
use crate::traces::otlp::{Attribute, Hex, Kind, Number, Span, Status};
use crate::traces::{Batch, Sampler, Traces};
use crate::upstream::RequestBody;

use super::access_log::{host_of, printable, text_of};
use super::client::Client;
use super::exchange::{End, Exchange};
use super::settings::Scheme;
use super::trace::{self, Context, SpanId, TRACESTATE};
use super::worker::Worker;

/// A worker hands its spans over when they are so many bytes, and at each tick; as it does with lines of the log.
const BATCH: usize = 32 * 1024;

/// A worker's side of what exports spans.
#[derive(Debug)]
pub(crate) struct Tracer {
    traces: Traces,
    /// Not handed over yet.
    batch: RefCell<Batch>,
}

/// A request's place in its trace.
pub(crate) struct Traced {
    /// Where its caller is, if that one said so.
    caller: Option<Context>,
    here: Context,
    /// What its spans will say; `None`: it is not sampled.
    recorded: Option<Box<Recorded>>,
}

/// What only spans want to know of a request.
struct Recorded {
    trace_state: Option<String>,
    client: IpAddr,
    host: String,
    path: String,
    user_agent: Option<String>,
    attempts: Vec<Attempt>,
}

/// One time that it was sent to a target.
struct Attempt {
    span_id: SpanId,
    began: Instant,
    /// `None`: as the request did.
    ended: Option<Instant>,
    instance: InstanceId,
    address: SocketAddr,
    url: String,
    version: &'static str,
    status: Option<StatusCode>,
    /// The code of why it failed.
    error: Option<&'static str>,
    /// Kept connections that ended before they answered it.
    stale: u32,
}

impl Tracer {
    pub(super) fn new(traces: Traces) -> Self {
        Self { traces, batch: RefCell::default() }
    }

    fn sampler(&self) -> Option<Sampler> {
        self.traces.sampler()
    }

    /// Records a request that ended at `now`, if its trace is sampled.
    pub(super) fn write(&self, exchange: &Exchange, now: Instant) {
        let Some(traced) = &exchange.traced else { return };
        let Some(recorded) = &traced.recorded else { return };
        let ended = Ended { exchange, traced, recorded, now, wall: wall_nanos(&exchange.client.worker) };
        let mut batch = self.batch.borrow_mut();
        batch.add(&ended.server());
        for at in 0..recorded.attempts.len() {
            batch.add(&ended.client(at));
        }
        let is_full = batch.text.len() >= BATCH;
        drop(batch);
        if is_full {
            self.hand_over();
        }
    }

    /// Has what was recorded exported.
    pub(super) fn hand_over(&self) {
        let batch = self.batch.take();
        if batch.spans > 0 {
            self.traces.push(batch);
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.hand_over();
    }
}

impl Traced {
    /// `None` if there is nowhere for spans to go. Whether its trace is sampled a caller that is trusted has decided; of one
    /// that starts here its id does; and of a stranger's chance does, who could choose the id.
    pub(super) fn begin<B>(client: &Rc<Client>, request: &Request<B>) -> Option<Box<Self>> {
        let worker = &client.worker;
        let sampler = worker.tracer.as_ref()?.sampler()?;
        let caller = trace::given(request.headers());
        let Context { trace_id, is_sampled, .. } = caller.unwrap_or_else(|| Context::started(&worker.ids));
        let is_sampled = match caller {
            Some(_) if client.peer.is_trusted() => is_sampled,
            Some(_) => sampler.takes(Context::started(&worker.ids).trace_id),
            None => sampler.takes(trace_id),
        };
        let here = Context { trace_id, span_id: trace::span_id(&worker.ids), is_sampled };
        let recorded = is_sampled.then(|| Box::new(Recorded::of(client, request, caller.is_some())));
        Some(Box::new(Self { caller, here, recorded }))
    }

    pub(super) fn caller(&self) -> Option<Context> {
        self.caller
    }

    pub(super) fn context(&self) -> Context {
        self.here
    }

    /// It is about to be sent to `target`, which is told that this attempt is what it is asked by.
    pub(super) fn attempt(&mut self, worker: &Worker, target: &Target, request: &mut Request<RequestBody>) {
        let Some(recorded) = &mut self.recorded else { return };
        let span_id = trace::span_id(&worker.ids);
        Context { span_id, ..self.here }.write(request.headers_mut(), &worker.ids);
        let scheme = if target.tls.is_some() { "https" } else { "http" };
        let path = printable(request.uri().path().as_bytes());
        recorded.attempts.push(Attempt {
            span_id,
            began: worker.clock.now(),
            ended: None,
            instance: target.id,
            address: target.address,
            url: format!("{scheme}://{}{path}", target.address),
            version: match target.protocol {
                Protocol::Http1 | Protocol::Https => "1.1",
                Protocol::H2c | Protocol::H2 => "2",
            },
            status: None,
            error: None,
            stale: 0,
        });
    }

    /// The target answered, after so many kept connections had turned out to have ended.
    pub(super) fn attempt_answered(&mut self, status: StatusCode, stale: u32) {
        if let Some(attempt) = self.last_attempt() {
            (attempt.status, attempt.stale) = (Some(status), stale);
        }
    }

    pub(super) fn attempt_failed(&mut self, worker: &Worker, code: &'static str) {
        if let Some(attempt) = self.last_attempt() {
            (attempt.ended, attempt.error) = (Some(worker.clock.now()), Some(code));
        }
    }

    fn last_attempt(&mut self) -> Option<&mut Attempt> {
        self.recorded.as_mut()?.attempts.last_mut()
    }
}

impl Recorded {
    fn of<B>(client: &Client, request: &Request<B>, has_caller: bool) -> Self {
        let headers = request.headers();
        Self {
            trace_state: text_of(headers, &TRACESTATE).filter(|_| has_caller),
            client: client.address(headers),
            host: host_of(request),
            path: printable(request.uri().path().as_bytes()),
            user_agent: text_of(headers, &header::USER_AGENT),
            attempts: Vec::new(),
        }
    }
}

/// One request that is over, and what is told of it.
struct Ended<'a> {
    exchange: &'a Exchange,
    traced: &'a Traced,
    recorded: &'a Recorded,
    now: Instant,
    /// The same in nanoseconds since 1970.
    wall: u64,
}

impl<'a> Ended<'a> {
    fn server(&self) -> Span<'a> {
        let Self { exchange, traced, recorded, .. } = *self;
        let client = &exchange.client;
        let scheme = client.peer.scheme;
        let (host, port) = split(&recorded.host, scheme);
        let mut attributes = method_attributes(&exchange.method);
        attributes.extend([
            Attribute::text("url.scheme", scheme.as_str()),
            Attribute::text("url.path", &*recorded.path),
            Attribute::text("server.address", host),
            Attribute::number("server.port", port),
            Attribute::text("client.address", recorded.client.to_string()),
            Attribute::text("network.peer.address", client.peer.address.to_string()),
            Attribute::text("network.protocol.version", version(exchange.version)),
            Attribute::number("http.request.body.size", exchange.request_bytes()),
            Attribute::number("http.response.body.size", exchange.response_bytes),
            Attribute::text("lockgate.request_id", String::from_utf8_lossy(exchange.id.as_bytes())),
        ]);
        attributes.extend(
            recorded.user_agent.as_deref().map(|agent| Attribute::text("user_agent.original", agent)),
        );
        if exchange.responded.is_some() || exchange.status == StatusCode::SWITCHING_PROTOCOLS {
            attributes.push(status(exchange.status));
        }
        if let Some(local) = &exchange.backend {
            let stats = &local.backend.stats;
            attributes.push(Attribute::text("lockgate.app", stats.name()));
            if let Some(labels) = &stats.labels {
                attributes.push(Attribute::text("lockgate.environment", &*labels.environment));
                attributes.push(Attribute::text("lockgate.deployment", &*labels.deployment));
            }
        }
        attributes.extend(self.reason().map(|reason| Attribute::text("lockgate.reason", reason)));
        let error = self.error();
        let has_failed = error.is_some();
        attributes.extend(error.map(|error| Attribute::text("error.type", error)));
        Span {
            trace_id: Hex(&traced.here.trace_id),
            span_id: Hex(&traced.here.span_id),
            parent_span_id: traced.caller.as_ref().map(|caller| Hex(&caller.span_id)),
            trace_state: recorded.trace_state.as_deref(),
            flags: Span::flags_of(traced.caller.is_some()),
            name: name(&exchange.method),
            kind: Kind::Server,
            start_time_unix_nano: self.nanos(exchange.started),
            end_time_unix_nano: self.nanos(self.now),
            attributes,
            status: Status::of(has_failed),
        }
    }

    /// The attempt that came as that one.
    fn client(&self, at: usize) -> Span<'a> {
        let Self { exchange, traced, recorded, .. } = *self;
        let attempt = &recorded.attempts[at];
        let mut attributes = method_attributes(&exchange.method);
        attributes.extend([
            Attribute::text("url.full", &*attempt.url),
            Attribute::text("server.address", attempt.address.ip().to_string()),
            Attribute::number("server.port", attempt.address.port()),
            Attribute::text("network.protocol.version", attempt.version),
            Attribute::text("lockgate.instance", attempt.instance.to_string()),
        ]);
        attributes.extend(attempt.status.map(status));
        if at > 0 {
            attributes.push(Attribute::number("http.request.resend_count", at as u64));
        }
        if attempt.stale > 0 {
            attributes.push(Attribute::number("lockgate.stale_connections", attempt.stale));
        }
        let error = attempt.error.map(Cow::Borrowed).or_else(|| self.error_of(attempt));
        let has_failed = error.is_some();
        attributes.extend(error.map(|error| Attribute::text("error.type", error)));
        Span {
            trace_id: Hex(&traced.here.trace_id),
            span_id: Hex(&attempt.span_id),
            parent_span_id: Some(Hex(&traced.here.span_id)),
            trace_state: recorded.trace_state.as_deref(),
            flags: Span::flags_of(false),
            name: name(&exchange.method),
            kind: Kind::Client,
            start_time_unix_nano: self.nanos(attempt.began),
            end_time_unix_nano: self.nanos(attempt.ended.unwrap_or(self.now)),
            attributes,
            status: Status::of(has_failed),
        }
    }

    /// Why its client did not get a whole answer of the application's, as the access log has it.
    fn reason(&self) -> Option<&'static str> {
        let has_left = self.exchange.end == End::Open;
        self.exchange.reason().or_else(|| has_left.then_some("client_abort"))
    }

    /// Why it is a failure, if it is one: what the client did wrong is none (of a span of a server).
    fn error(&self) -> Option<Cow<'static, str>> {
        let status = self.exchange.status;
        let reason = self.exchange.reason();
        if status.is_server_error() {
            return Some(reason.map_or_else(|| code(status), Cow::Borrowed));
        }
        reason.filter(|_| !status.is_client_error()).map(Cow::Borrowed)
    }

    /// Why the last attempt is a failure, which ended as the request did.
    fn error_of(&self, attempt: &Attempt) -> Option<Cow<'static, str>> {
        let is_cut = attempt.status.is_none() || matches!(self.exchange.end, End::Open | End::Truncated);
        match self.reason().filter(|_| is_cut) {
            Some(reason) => Some(Cow::Borrowed(reason)),
            None => attempt.status.filter(|status| status.as_u16() >= 400).map(code),
        }
    }

    /// A moment of the monotonic clock, in nanoseconds since 1970.
    fn nanos(&self, at: Instant) -> Number {
        let ago = self.now.saturating_duration_since(at).as_nanos();
        Number(self.wall.saturating_sub(u64::try_from(ago).unwrap_or(u64::MAX)))
    }
}

fn wall_nanos(worker: &Worker) -> u64 {
    u64::try_from(worker.clock.wall().as_nanosecond()).unwrap_or_default()
}

/// The name of a span: of methods that nobody knows there could be any number.
fn name(method: &Method) -> &str {
    if is_known(method) { method.as_str() } else { "HTTP" }
}

fn method_attributes(method: &Method) -> Vec<Attribute<'_>> {
    if is_known(method) {
        return vec![Attribute::text("http.request.method", method.as_str())];
    }
    vec![
        Attribute::text("http.request.method", "_OTHER"),
        Attribute::text("http.request.method_original", printable(method.as_str().as_bytes())),
    ]
}

/// Of RFC 9110 and RFC 5789.
fn is_known(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET
            | Method::HEAD
            | Method::POST
            | Method::PUT
            | Method::DELETE
            | Method::CONNECT
            | Method::OPTIONS
            | Method::TRACE
            | Method::PATCH
    )
}

fn status<'a>(status: StatusCode) -> Attribute<'a> {
    Attribute::number("http.response.status_code", status.as_u16())
}

fn code(status: StatusCode) -> Cow<'static, str> {
    Cow::Owned(status.as_u16().to_string())
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    }
}

/// The host and port that a request is for.
fn split(authority: &str, scheme: Scheme) -> (&str, u16) {
    let usual = match scheme {
        Scheme::Http => 80,
        Scheme::Https => 443,
    };
    // What is in brackets has colons of its own.
    match authority.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?))) {
        Some((host, port)) if !host.starts_with('[') || host.ends_with(']') => (host, port),
        Some(_) | None => (authority, usual),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_told_apart_from_its_port() {
        for (authority, expected) in [
            ("a.test", ("a.test", 443)),
            ("a.test:8443", ("a.test", 8443)),
            ("[2001:db8::1]", ("[2001:db8::1]", 443)),
            ("[2001:db8::1]:8443", ("[2001:db8::1]", 8443)),
            ("", ("", 443)),
        ] {
            assert_eq!(split(authority, Scheme::Https), expected);
        }
    }
}
