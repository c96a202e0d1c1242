//! One request from its first byte to the last byte of its response: what is counted and logged of it, and the
//! guard that keeps its target in service.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version, header};
use http_body::Body as _;

use crate::routing::https::OwnHttps;
use crate::routing::queue::Place;
use crate::telemetry::{BackendCells, FailedBy};
use crate::upstream::{Abort, Answer, LocalBackend, LocalTarget, Phase, RequestGuard, Source};

use super::access_log::Logged;
use super::client::Client;
use super::headers::{X_REQUEST_ID, X_ROBOTS_TAG};
use super::policy::Policed;
use super::request_id::is_request_id;
use super::skew::{is_page_shown, keep_private};
use super::spans::Traced;
use super::trace;

/// One request. Dropping it is its end: it is counted, logged, and its guard is let go.
pub(crate) struct Exchange {
    pub(crate) client: Rc<Client>,
    pub(crate) started: Instant,
    pub(crate) id: HeaderValue,
    pub(crate) method: Method,
    pub(crate) version: Version,
    pub(crate) has_body: bool,
    pub(crate) backend: Option<Rc<LocalBackend>>,
    pub(crate) target: Option<Rc<LocalTarget>>,
    pub(crate) guard: Option<RequestGuard>,
    /// What it holds of its target where that serves only so many at once.
    pub(crate) place: Option<Place>,
    pub(crate) status: StatusCode,
    pub(crate) response_bytes: u64,
    /// When the head of the response came.
    pub(crate) responded: Option<Instant>,
    /// And in which poll of the connection.
    responded_in: u32,
    pub(crate) is_stream: bool,
    /// When it went on that had waited for its backend to serve.
    released: Option<Instant>,
    /// When it was last sent to a target.
    pub(super) attempted: Instant,
    /// How the connection was got that a response came over.
    pub(super) link: Option<Link>,
    /// What the route puts on the response.
    pub(crate) mark: Mark,
    /// The cookie that keeps its visitor with its target, if there is one to be set.
    pub(crate) pin: Option<Box<HeaderValue>>,
    /// What the policies of its route know of it; `None` where there are none.
    pub(crate) policed: Option<Box<Policed>>,
    pub(crate) preview: Preview,
    /// What its route says of https for itself, if anything; `None` while there is no route, of which nobody can tell what it would say.
    pub(crate) https: Option<Option<Arc<OwnHttps>>>,
    /// What only the access log wants to know; `None` if there is none.
    pub(crate) logged: Option<Box<Logged>>,
    /// Its place in its trace, if spans are exported.
    pub(crate) traced: Option<Box<Traced>>,
    pub(crate) end: End,
}

/// An upstream connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Link {
    New { connected_in: Duration },
    Reused,
}

/// What the route of a request puts on its response.
pub(crate) enum Mark {
    None,
    /// The cookie of a visitor that is new to a split.
    Visitor(HeaderValue),
    /// Somebody goes to a page: the cookie that has the rest of it come from the same version, if it is one, and that of
    /// a split.
    Page {
        cookie: Option<HeaderValue>,
        visitor: Option<HeaderValue>,
    },
    /// The page that it is for came from another version than the live one.
    Pinned,
}

/// Whether a preview answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preview {
    No,
    /// It was not let in yet.
    AtDoor,
    Yes,
}

/// How a response is looked after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Shape {
    #[default]
    Plain,
    EventStream,
    /// Of gRPC: it may rest like an event stream, and is timed as a request is, because nobody can tell which one ends soon.
    Call,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Not yet.
    Open,
    /// The response ended as it should.
    Complete,
    /// Lockgate answered itself, with this code.
    Own(&'static str),
    /// The upstream ended in the middle of its response.
    Truncated,
}

impl Mark {
    fn put_on(&self, status: StatusCode, headers: &mut HeaderMap) {
        match self {
            Self::None => {}
            Self::Visitor(cookie) => {
                headers.append(header::SET_COOKIE, cookie.clone());
            }
            Self::Page { cookie, visitor } => {
                let cookie = cookie.as_ref().filter(|_| is_page_shown(status, headers));
                if cookie.is_some() {
                    keep_private(headers);
                }
                for cookie in visitor.iter().chain(cookie) {
                    headers.append(header::SET_COOKIE, cookie.clone());
                }
            }
            Self::Pinned => keep_private(headers),
        }
    }
}

impl Exchange {
    pub(crate) fn begin(client: &Rc<Client>, request: &Request<Source>) -> Self {
        let worker = &client.worker;
        let started = worker.clock.now();
        let kept = if client.peer.is_trusted() { request.headers().get(X_REQUEST_ID) } else { None };
        let id = match kept.filter(|id| is_request_id(id)) {
            Some(id) => id.clone(),
            None if crate::fault::sabotaged("no_ids") => HeaderValue::from_static("-"),
            None => worker.ids.make(started),
        };
        client.begin(started, request.method());
        worker.retries.earn();
        let logged = worker.access_log.is_some().then(|| Logged::of(request, client));
        let mut exchange = Self::new(client, started, id, request.method().clone(), logged);
        exchange.traced = Traced::begin(client, request);
        exchange.version = request.version();
        exchange.has_body = !request.body().is_end_stream();
        exchange
    }

    /// A head that was not understood, or not there in time. Nobody knows what it asked for.
    pub(crate) fn unread(client: &Rc<Client>) -> Self {
        let worker = &client.worker;
        let started = worker.clock.now();
        let logged = worker.access_log.is_some().then(|| Box::new(Logged::unread(client)));
        let method = Method::from_bytes(b"-").unwrap_or_default();
        Self::new(client, started, worker.ids.make(started), method, logged)
    }

    fn new(
        client: &Rc<Client>,
        started: Instant,
        id: HeaderValue,
        method: Method,
        logged: Option<Box<Logged>>,
    ) -> Self {
        Self {
            client: Rc::clone(client),
            started,
            id,
            method,
            version: Version::HTTP_11,
            has_body: false,
            backend: None,
            target: None,
            guard: None,
            place: None,
            // What stands in the log of a client that left before the response.
            status: StatusCode::from_u16(499).unwrap_or_default(),
            response_bytes: 0,
            responded: None,
            responded_in: 0,
            is_stream: false,
            released: None,
            attempted: started,
            link: None,
            mark: Mark::None,
            pin: None,
            policed: None,
            preview: Preview::No,
            https: None,
            logged,
            traced: None,
            end: End::Open,
        }
    }

    /// What the upstream answered has come whole, or it has not.
    fn count(&self) {
        if crate::fault::sabotaged("no_metrics") {
            return;
        }
        let worker = &self.client.worker;
        let number = worker.number;
        // Most responses come whole with their head: then this is the same moment, and asking for the time is not free.
        let now = match self.responded {
            Some(at) if self.responded_in == self.client.polls.get() => at,
            Some(_) | None => worker.clock.now(),
        };
        let cells = match &self.backend {
            Some(local) => local.backend.stats.of(number),
            None => worker.telemetry.unmatched.of(number),
        };
        cells.respond(&self.method, self.status, self.version);
        cells.request_body.observe_bytes(self.request_bytes());
        cells.response_body.observe_bytes(self.response_bytes);
        if let Some(head) = self.upstream_took() {
            cells.upstream_head.observe(head);
        }
        if self.is_stopped() {
            cells.stopped_by_policies.add(1);
        } else {
            self.judge(cells, self.responded.filter(|_| !self.is_stream));
        }
        if self.is_stream {
            cells.streams.add(1);
        } else {
            let first_byte = self.responded.map(|at| at.saturating_duration_since(self.started));
            cells.took(first_byte, now.saturating_duration_since(self.started));
        }
        match self.reason() {
            Some(code) => worker.cells().own_answer(code),
            // Its client left.
            None if self.end == End::Open => worker.cells().client_aborts.add(1),
            None => {}
        }
        if let Some(log) = &worker.access_log {
            log.write(self, now);
        }
        if let Some(tracer) = &worker.tracer {
            tracer.write(self, now);
        }
    }

    /// Why the client did not get a whole answer of the application's, unless it left by itself.
    pub(crate) fn reason(&self) -> Option<&'static str> {
        match self.end {
            End::Complete => None,
            End::Own(code) => Some(code),
            End::Truncated => Some("upstream_truncated"),
            // Ended from outside, in the middle of the response if there is one.
            End::Open => match self.client.activity.abort()? {
                Abort::Cut => Some("drain_cut"),
                Abort::Shutdown => Some("shutdown"),
                Abort::ResponseIdle | Abort::ResponseTimeout => Some("upstream_timeout"),
                Abort::ReaderTooSlow => Some("reader_too_slow"),
                Abort::HeadTimeout | Abort::BodyTimeout => Some("request_timeout"),
                Abort::Idle | Abort::ClientGone => None,
            },
        }
    }

    /// From the request on its connection to the head of the response, if its target gave one.
    pub(super) fn upstream_took(&self) -> Option<Duration> {
        let since = self.responded?.saturating_duration_since(self.attempted);
        Some(match self.link? {
            Link::New { connected_in } => since.saturating_sub(connected_in),
            Link::Reused => since,
        })
    }

    /// The door of a preview or the policies of its route answered it, or it ended while they were asked: its version had
    /// nothing to do with it.
    fn is_stopped(&self) -> bool {
        self.preview == Preview::AtDoor || self.policed.as_ref().is_some_and(|policed| !policed.let_by())
    }

    /// Counts it for or against the version that served it.
    fn judge(&self, cells: &BackendCells, responded: Option<Instant>) {
        match (self.failed_by(), responded) {
            (Some(by), _) => cells.fail(by),
            (None, Some(responded)) if self.end == End::Complete => {
                // What was held waited for Lockgate, not for the application.
                let asked = self.released.unwrap_or(self.started);
                cells.answered(responded.saturating_duration_since(asked));
            }
            (None, _) => {}
        }
    }

    /// Whose fault it is that the client did not get a whole answer.
    fn failed_by(&self) -> Option<FailedBy> {
        match self.end {
            End::Truncated => Some(FailedBy::App),
            End::Own("drain_cut") => Some(FailedBy::Us),
            // Ended from outside in the middle of the response.
            End::Open if self.responded.is_some() => match self.client.activity.abort() {
                Some(Abort::ResponseIdle) => Some(FailedBy::AppTooLate),
                Some(Abort::Cut | Abort::Shutdown) => Some(FailedBy::Us),
                Some(
                    Abort::Idle
                    | Abort::HeadTimeout
                    | Abort::BodyTimeout
                    | Abort::ResponseTimeout
                    | Abort::ReaderTooSlow
                    | Abort::ClientGone,
                )
                | None => self.failed_by_status(),
            },
            End::Open | End::Complete | End::Own(_) => self.failed_by_status(),
        }
    }

    fn failed_by_status(&self) -> Option<FailedBy> {
        if !self.status.is_server_error() {
            return None;
        }
        Some(match self.end {
            End::Own("connect_failed" | "upstream_malformed" | "upstream_reset" | "upstream_tls_failed") => {
                FailedBy::App
            }
            End::Own("connect_timeout" | "upstream_timeout") => FailedBy::AppTooLate,
            End::Own(_) => FailedBy::Us,
            End::Open | End::Complete | End::Truncated => FailedBy::App,
        })
    }

    /// Bytes of the request's body.
    pub(crate) fn request_bytes(&self) -> u64 {
        if self.has_body { self.client.activity.request_bytes() } else { 0 }
    }

    /// It waits for a held backend.
    pub(crate) fn hold(&mut self, backend: &Rc<LocalBackend>, now: Instant) {
        if let Some(logged) = &mut self.logged {
            logged.hold(now);
        }
        self.backend = Some(Rc::clone(backend));
        self.client.activity.enter(Phase::Held);
    }

    /// It goes on.
    pub(crate) fn unhold(&mut self, now: Instant) {
        if let Some(logged) = &mut self.logged {
            logged.unhold(now);
        }
        self.released = Some(now);
        self.attempted = now;
        self.client.activity.enter(Phase::Request);
    }

    /// A target serves it.
    pub(crate) fn serve(
        &mut self,
        backend: &Rc<LocalBackend>,
        target: &Rc<LocalTarget>,
        guard: Option<RequestGuard>,
        generation: u64,
    ) {
        if self.target.is_some() {
            self.attempted = self.client.worker.clock.now();
        }
        if let Some(logged) = &mut self.logged {
            logged.attempt(generation);
        }
        self.backend = Some(Rc::clone(backend));
        self.target = Some(Rc::clone(target));
        self.guard = guard;
        self.client.activity.serve_by(target);
    }

    /// It goes upstream with this `traceparent`.
    pub(crate) fn trace(&mut self, traceparent: Option<&HeaderValue>) {
        if let Some(logged) = &mut self.logged {
            logged.trace_id = traceparent.and_then(trace::trace_id).map(str::to_owned);
        }
    }

    /// Its target answered.
    pub(crate) fn reached(&mut self, answer: &Answer) {
        self.link =
            Some(answer.connected_in().map_or(Link::Reused, |connected_in| Link::New { connected_in }));
        if let Some(logged) = &mut self.logged {
            logged.reached(answer.resent);
        }
        if let Some(traced) = &mut self.traced {
            traced.attempt_answered(answer.response.status(), answer.resent);
        }
    }

    /// It failed, or a target failed it.
    pub(crate) fn failed(&mut self, error: &(dyn std::error::Error + 'static)) {
        if let Some(logged) = &mut self.logged {
            logged.failed(error);
        }
    }

    /// Both sides agreed to another protocol: a stream from here on.
    pub(crate) fn upgraded(&mut self) {
        self.status = StatusCode::SWITCHING_PROTOCOLS;
        self.is_stream = true;
        self.guard = self.guard.take().map(RequestGuard::into_stream);
        self.client.activity.enter(Phase::Tunnel);
    }

    /// Puts on the response what its route has for it.
    pub(crate) fn mark(&self, status: StatusCode, headers: &mut HeaderMap) {
        self.mark_preview(headers);
        self.mark.put_on(status, headers);
        if let Some(pin) = &self.pin {
            headers.append(header::SET_COOKIE, HeaderValue::clone(pin));
        }
        self.mark_policed(headers);
    }

    /// And what its policies have for it.
    pub(crate) fn mark_policed(&self, headers: &mut HeaderMap) {
        if let Some(policed) = &self.policed {
            policed.mark(headers);
        }
    }

    /// Search engines have no business in a preview.
    pub(crate) fn mark_preview(&self, headers: &mut HeaderMap) {
        if self.preview != Preview::No {
            headers.insert(X_ROBOTS_TAG, HeaderValue::from_static("noindex"));
        }
    }

    /// The response head is passed on; its body follows.
    pub(crate) fn respond(&mut self, status: StatusCode, shape: Shape) {
        self.status = status;
        self.responded = Some(self.client.worker.clock.now());
        self.responded_in = self.client.polls.get();
        self.is_stream = shape == Shape::EventStream;
        if shape == Shape::Plain {
            self.client.activity.enter(Phase::Response);
        } else {
            self.guard = self.guard.take().map(RequestGuard::into_stream);
            self.client.activity.enter(Phase::EventStream);
        }
        if crate::fault::sabotaged("guard_at_headers") {
            self.guard = None;
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.client.activity.end_request();
        // Where the end of the connection is the end of the body, an end in order would hide that bytes are missing.
        let is_unfinished = matches!(self.end, End::Open | End::Truncated);
        self.client.is_cut.set(is_unfinished && self.version == Version::HTTP_10);
        self.count();
    }
}
