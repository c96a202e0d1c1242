//! One client connection: what it is doing, who is at its other end, and which route it used last.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::io::Interest;

use crate::proxy_header::Ends;
use crate::routing::HostName;
use crate::routing::backend::Cut;
use crate::upstream::{Abort, Activity, Phase, Read};

use super::beside::Beside;
use super::error::ForwardError;
use super::headers::Peer;
use super::http2;
use super::memo::Memo;
use super::raw_heads::RawHeads;
use super::socket::{Heard, Socket};
use super::tls::{Tls, ToHttps};
use super::tunnel::Upgrade;
use super::unsent;
use super::worker::Worker;

/// One client connection.
pub(crate) struct Client {
    pub(crate) worker: Rc<Worker>,
    pub(crate) activity: Rc<Activity>,
    pub(crate) peer: Peer,
    /// What its connection was made with, if that is TLS.
    pub(crate) tls: Option<Tls>,
    /// The route that was used last; most connections use one.
    memo: RefCell<Option<Rc<Memo>>>,
    /// Polls of its task, to tell whether two things happened in one.
    pub(crate) polls: Cell<u32>,
    /// Requests begun on it.
    pub(crate) requests: Cell<u32>,
    /// The end of the connection is to be seen as a failure: the end of a response that began is missing.
    pub(crate) is_cut: Cell<bool>,
    /// What the connection becomes once hyper is done with it.
    pub(crate) upgrade: RefCell<Option<Upgrade>>,
    /// It stands for one stream of this one, a connection of HTTP/2 or HTTP/3, and has no socket.
    connection: Option<Rc<Self>>,
    /// What was read is the beginning of an HTTP/2 connection.
    speaks_http2: Cell<bool>,
    /// The socket, which hyper reads and writes through [`super::io::ClientIo`].
    pub(crate) socket: RefCell<Option<Socket>>,
    pub(crate) raw_heads: RefCell<RawHeads>,
    /// The request whose response has begun, if it is not sent whole.
    pub(crate) beside: Beside,
    /// hyper has a response of ours to write, or a part of one.
    is_answering: Cell<bool>,
    /// The client asked for the end of the connection behind the response.
    is_last: Cell<bool>,
    /// The status of the answer that hyper gave by itself, and that was kept back.
    withheld: Cell<Option<StatusCode>>,
    /// The client sent more than the request that is being served.
    has_more: Cell<bool>,
    rest: Cell<Rest>,
    /// The request that is being served, for what is told of it if it is cut.
    current: RefCell<Current>,
}

/// Whether a connection without a request has given up what it needs for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    No,
    /// Its task is told to.
    Asked,
    Yes,
}

struct Current {
    began: Instant,
    method: Method,
}

impl Client {
    pub(crate) fn new(worker: &Rc<Worker>, peer: Peer, mut socket: Socket, tls: Option<Tls>) -> Self {
        let client = Self::without_socket(worker, peer, tls);
        socket.count(&client.activity);
        Self { socket: RefCell::new(Some(socket)), ..client }
    }

    /// One whose connection is somebody else's to read and to write.
    pub(crate) fn without_socket(worker: &Rc<Worker>, peer: Peer, tls: Option<Tls>) -> Self {
        Self {
            worker: Rc::clone(worker),
            activity: Rc::new(Activity::new(Rc::clone(&worker.now))),
            peer,
            tls,
            memo: RefCell::default(),
            polls: Cell::new(0),
            requests: Cell::new(0),
            is_cut: Cell::new(false),
            upgrade: RefCell::default(),
            connection: None,
            speaks_http2: Cell::new(false),
            socket: RefCell::default(),
            raw_heads: RefCell::default(),
            beside: Beside::default(),
            is_answering: Cell::new(false),
            is_last: Cell::new(false),
            withheld: Cell::new(None),
            has_more: Cell::new(false),
            rest: Cell::new(Rest::No),
            current: RefCell::new(Current { began: worker.started, method: Method::GET }),
        }
    }

    /// One stream of `connection`, which is counted, timed and cut as a client of its own. What is known of the peer and
    /// of the route that was used last is the connection's.
    pub(crate) fn of_stream(connection: &Rc<Self>) -> Self {
        let before = connection.requests.get();
        connection.requests.set(before.wrapping_add(1));
        Self {
            memo: RefCell::new(connection.memo.borrow().clone()),
            requests: Cell::new(before),
            connection: Some(Rc::clone(connection)),
            ..Self::without_socket(&connection.worker, connection.peer.clone(), connection.tls.clone())
        }
    }

    /// Remembers the route that `stream` used.
    pub(crate) fn learn_from(&self, stream: &Self) {
        if let Some(memo) = stream.memo.borrow().as_ref() {
            self.memo.replace(Some(Rc::clone(memo)));
        }
    }

    /// Whether it stands for one stream of a connection of HTTP/2 or HTTP/3.
    pub(crate) fn is_stream(&self) -> bool {
        self.connection.is_some()
    }

    /// The ends of the connection by which a request came. If it came through a trusted proxy the client is whom that one
    /// named, whose port nobody knows.
    pub(crate) fn ends(&self, headers: &HeaderMap) -> Result<Ends, ForwardError> {
        let ends = match &self.peer.ends {
            Some(told) => **told,
            None => self.ends_of_socket().ok_or(ForwardError::Aborted(Abort::ClientGone))?,
        };
        let client = self.address(headers);
        let is_peer = client == ends.source.ip().to_canonical();
        let source = if is_peer { ends.source } else { SocketAddr::new(client, 0) };
        Ok(Ends { source, ..ends })
    }

    /// `None` if the connection is over.
    fn ends_of_socket(&self) -> Option<Ends> {
        let socket = self.connection.as_deref().unwrap_or(self).socket.borrow();
        let tcp = socket.as_ref()?.tcp();
        Some(Ends { source: tcp.peer_addr().ok()?, destination: tcp.local_addr().ok()? })
    }

    /// Whose request it is: what trusted proxies say of it is believed.
    pub(crate) fn address(&self, headers: &HeaderMap) -> IpAddr {
        self.peer.client(headers, &self.worker.settings.trusted_proxies)
    }

    /// Bytes came from the client.
    pub(crate) fn read(&self, bytes: &[u8]) {
        match self.activity.read() {
            Read::HeadBegins => self.raw_heads.borrow_mut().begin(bytes),
            Read::HeadGoesOn => self.raw_heads.borrow_mut().go_on(bytes),
            Read::Other => return,
        }
        if self.requests.get() == 0 && self.worker.settings.http2 {
            self.speaks_http2.set(self.raw_heads.borrow().begin_with(http2::PREFACE_BEGIN));
        }
    }

    /// Whether the client has begun an HTTP/2 connection.
    pub(crate) fn speaks_http2(&self) -> bool {
        self.speaks_http2.get()
    }

    /// What was read of an HTTP/2 connection, if the client has begun one.
    pub(crate) fn preface(&self) -> Option<Bytes> {
        self.speaks_http2().then(|| self.raw_heads.borrow_mut().take().into())
    }

    /// hyper has a request, whose response it will write.
    pub(crate) fn answering(&self) {
        self.is_answering.set(true);
    }

    /// hyper has nothing more to write for now.
    pub(crate) fn flushed(&self) {
        if self.activity.phase() == Phase::Idle {
            self.is_answering.set(false);
        }
    }

    /// Says whether hyper ends the connection behind the response.
    pub(crate) fn ends_behind(&self, is_last: bool) {
        self.is_last.set(is_last);
    }

    /// Whether what hyper writes now is the end of a response, and of the connection.
    pub(crate) fn writes_last(&self) -> bool {
        self.is_last.get() && self.activity.phase() == Phase::Idle && !self.activity.is_receiving()
    }

    /// Keeps back what hyper writes while there is no response of ours: its own answer to a head that it cannot read,
    /// which has no reason, no id and no body.
    pub(crate) fn withholds(&self, written: &[u8]) -> bool {
        if self.is_answering.get() {
            return false;
        }
        let status = written.get(9..12).and_then(|digits| StatusCode::from_bytes(digits).ok());
        self.withheld.set(self.withheld.get().or(status));
        true
    }

    /// Why hyper gave up a connection whose head it could not read, if nobody told the client yet.
    pub(crate) fn unread(&self) -> Option<ForwardError> {
        if self.is_answering.get() {
            return None;
        }
        Some(match self.withheld.get() {
            Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE) => ForwardError::HeadTooLarge,
            Some(StatusCode::URI_TOO_LONG) => ForwardError::TargetTooLong,
            Some(_) | None => ForwardError::BadRequest("The request's head is malformed."),
        })
    }

    /// The routes of `authority`. The one that was used last answers for one comparison, but only as long as the
    /// route table is the one it was read from.
    pub(crate) fn resolve(&self, authority: &HeaderValue) -> Result<Rc<Memo>, ForwardError> {
        let generation = self.worker.routing.generation();
        if let Some(memo) = &*self.memo.borrow()
            && (memo.generation == generation || crate::fault::sabotaged("cache_without_generation"))
            && *memo.authority == *authority.as_bytes()
        {
            self.worker.cells().memo_hits.add(1);
            return Ok(Rc::clone(memo));
        }
        // What one connection with TLS may carry says nothing of another one.
        let hash = match self.tls.is_none().then(|| self.worker.memos.find(authority, generation)) {
            Some(Ok(memo)) => {
                self.worker.cells().memo_hits.add(1);
                self.memo.replace(Some(Rc::clone(&memo)));
                return Ok(memo);
            }
            Some(Err(hash)) => Some(hash),
            None => None,
        };
        self.worker.cells().memo_misses.add(1);
        let name = authority.to_str().ok().and_then(|text| HostName::from_authority(text).ok());
        let name = name.ok_or(ForwardError::BadRequest("The host name is not valid."))?;
        // Once for each generation of the routes: whoever changes what TLS asks publishes them again.
        let https = self.check_tls(&name)?;
        let (generation, found) = self.worker.routing.resolve(&name).ok_or(ForwardError::NoRoute)?;
        let memo = Rc::new(Memo::new(generation, authority, found, https));
        if let Some(hash) = hash {
            self.worker.memos.keep(hash, &memo);
        }
        self.memo.replace(Some(Rc::clone(&memo)));
        Ok(memo)
    }

    /// Sees that requests for `host` may come over this connection; and where they are sent, if they are to come by https.
    fn check_tls(&self, host: &HostName) -> Result<Option<ToHttps>, ForwardError> {
        let Some(settings) = &self.worker.settings.tls else { return Ok(None) };
        match &self.tls {
            Some(tls) if tls.carries(host, &settings.certs) => Ok(None),
            Some(_) => Err(ForwardError::Misdirected),
            None => ToHttps::of(host, settings),
        }
    }

    /// Has its task give up what a request needs, if there has been none for a while.
    pub(crate) fn rest_if_idle(&self) {
        if self.rest.get() == Rest::No
            && self.activity.may_rest(&self.worker.limits)
            && !self.is_answering.get()
        {
            self.rest.set(Rest::Asked);
            self.activity.wake();
        }
    }

    /// Whether its task is to rest now.
    pub(crate) fn is_to_rest(&self) -> bool {
        self.rest.get() == Rest::Asked
    }

    /// Waits, with as little as can be, until the client sends something or the connection is to end. Before it hyper had
    /// `unread` left.
    pub(crate) async fn rest(&self, unread: &[u8]) -> Option<Abort> {
        self.rest.set(Rest::Yes);
        self.worker.cells().connection_rests.add(1);
        if unread.is_empty() {
            self.raw_heads.borrow_mut().forget();
        }
        let ended = std::future::poll_fn(|cx| {
            self.activity.keep_waker(cx.waker());
            if let Some(abort) = self.activity.abort() {
                return Poll::Ready(Some(abort));
            }
            match &*self.socket.borrow() {
                // Whatever it is, an error as well: hyper will read it.
                Some(socket) => socket.tcp().poll_read_ready(cx).map(|_ready| None),
                None => Poll::Ready(Some(Abort::ClientGone)),
            }
        })
        .await;
        self.rest.set(Rest::No);
        ended
    }

    /// Looks how its reader gets on with a response that it holds up.
    pub(crate) fn look_at_reader(&self) {
        if self.is_stream() {
            // Its window is all that there is to see.
            if self.activity.awaits_reader() {
                self.activity.look_at_reader(0);
            }
            return;
        }
        if self.activity.awaits_reader()
            && let Some(socket) = &*self.socket.borrow()
            && let Ok(unsent) = unsent::bytes(socket.tcp())
        {
            self.activity.look_at_reader(unsent);
        }
    }

    /// Looks whether the client of a held request is still there. Its body is not read, and hides the end of what it
    /// sent from [`Client::poll_gone`].
    pub(crate) fn look_at_held(&self) {
        if self.activity.phase() != Phase::Held || !self.activity.is_receiving() {
            return;
        }
        let socket = self.socket.borrow();
        let Some(socket) = socket.as_ref().map(Socket::tcp) else { return };
        if !matches!(socket.take_error(), Ok(None)) {
            return self.activity.ask(Abort::ClientGone);
        }
        let ready = pin!(socket.ready(Interest::READABLE));
        if let Poll::Ready(Ok(ready)) = ready.poll(&mut Context::from_waker(Waker::noop()))
            && ready.is_read_closed()
        {
            self.activity.half_closed();
        }
    }

    /// Looks whether the client is still there while its request is served: ready when it is gone.
    ///
    /// hyper does not look, so that a client that closed its side gets its answer. What the client sent beyond its
    /// request is left for hyper, and then there is nothing more to see.
    pub(crate) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        let waits = matches!(
            self.activity.phase(),
            Phase::Request | Phase::Held | Phase::Response | Phase::EventStream
        );
        if !waits || self.activity.is_receiving() || self.has_more.get() {
            return Poll::Pending;
        }
        let mut socket = self.socket.borrow_mut();
        let Some(socket) = &mut *socket else { return Poll::Pending };
        match ready!(socket.poll_heard(cx)) {
            Ok(Heard::End) => self.activity.half_closed(),
            Ok(Heard::More) => self.has_more.set(true),
            Err(_reset) => return Poll::Ready(()),
        }
        Poll::Pending
    }

    /// A request begins.
    pub(crate) fn begin(&self, now: Instant, method: &Method) {
        self.requests.set(self.requests.get().wrapping_add(1));
        self.has_more.set(false);
        let mut current = self.current.borrow_mut();
        current.began = now;
        current.method = method.clone();
    }

    /// The request that is being served, as something that was ended at `now`.
    pub(crate) fn as_cut(&self, is_stream: bool, now: Instant) -> Cut {
        let current = self.current.borrow();
        // What is being served was resolved, and nothing since.
        let memo = self.memo.borrow();
        let host = memo.as_ref().map_or(&b""[..], |memo| &memo.authority);
        Cut {
            stream: is_stream,
            method: current.method.to_string(),
            host: String::from_utf8_lossy(host).into_owned(),
            age: now.saturating_duration_since(current.began),
        }
    }
}
