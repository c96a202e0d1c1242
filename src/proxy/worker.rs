//! One worker: a thread with its own runtime, listeners, upstream pools and gate shards.

use std::cell::{Cell, Ref, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use crate::certs::Certs;
use crate::clock::Clock;
use crate::proxy_header::Ends;
use crate::routing::Routing;
use crate::telemetry::{Telemetry, WorkerCells};
use crate::upstream::balance::{self, Judge};
use crate::upstream::{LocalBackend, LocalTarget, Tick, TickLimits, Upstreams};

use super::access_log::AccessLog;
use super::addresses::{Addresses, Place};
use super::client::Client;
use super::give_back::GiveBack;
use super::headers::{Peer, Via};
#[cfg(feature = "http3")]
use super::http3;
use super::memo::Memos;
use super::proxied;
use super::request_id::RequestIds;
use super::retry::RetryBudget;
use super::room::{Open, Room};
use super::server;
use super::settings::{ProxySettings, Scheme};
use super::spans::Tracer;
use super::upload::Uploads;

/// Bytes that a tunnel reads at once.
const SCRATCH: usize = 64 * 1024;

/// How long a worker waits before it accepts again after an accept failed: file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections of one thread share.
pub(crate) struct Worker {
    pub(crate) number: usize,
    pub(crate) routing: Arc<Routing>,
    pub(crate) settings: Arc<ProxySettings>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) started: Instant,
    pub(crate) now: Rc<Cell<Tick>>,
    pub(crate) upstreams: Upstreams,
    pub(crate) ids: RequestIds,
    pub(crate) via: Option<Via>,
    pub(crate) retries: RetryBudget,
    /// Lent to tunnels for one read.
    pub(crate) scratch: RefCell<Box<[u8]>>,
    pub(super) limits: TickLimits,
    clients: RefCell<Clients>,
    next_client: Cell<u64>,
    pub(super) open: Open,
    last_peer: RefCell<Option<Peer>>,
    pub(crate) memos: Memos,
    pub(crate) uploads: Uploads,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) access_log: Option<AccessLog>,
    /// `None` if there will never be anywhere for spans to go.
    pub(crate) tracer: Option<Tracer>,
    /// `None` if addresses may have any number of connections.
    addresses: Option<Arc<Addresses>>,
    /// What is told of HTTP/3 to who came to each of these ports with TLS.
    #[cfg(feature = "http3")]
    pub(super) alternatives: Vec<(u16, HeaderValue)>,
    /// The generation at the last tick.
    pub(super) swept_generation: Cell<u64>,
    is_draining: Cell<bool>,
    pub(super) give_back: GiveBack,
    date: RefCell<Option<(Tick, HeaderValue)>>,
}

type Clients = HashMap<u64, Rc<Client>, foldhash::fast::RandomState>;

/// One of a worker's connections, until its task ends.
pub(crate) struct Counted {
    worker: Rc<Worker>,
    scheme: Scheme,
}

/// What a worker has in common with the others, and never writes to.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) routing: Arc<Routing>,
    pub(crate) settings: Arc<ProxySettings>,
    pub(crate) clock: Arc<dyn Clock>,
    /// When the data plane started: where the workers' milliseconds begin.
    pub(crate) started: Instant,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) access_log: Option<AccessLog>,
    pub(crate) addresses: Option<Arc<Addresses>>,
    /// `None` if HTTP/3 is not asked for.
    #[cfg(feature = "http3")]
    pub(crate) quic: Option<http3::Setup>,
    /// By the ports that clients come to with TLS.
    #[cfg(feature = "http3")]
    pub(crate) alternatives: Vec<(u16, HeaderValue)>,
}

/// How far the data plane's end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Serving,
    /// No new connections; requests in flight end.
    Draining,
    /// What is left is ended.
    Ending,
}

/// A listening socket and its port. What is set on it, as the option to send without delay, its connections inherit.
pub(crate) struct Listener {
    pub(crate) socket: TcpListener,
    pub(crate) scheme: Scheme,
    pub(crate) port: u16,
}

/// All that a worker listens on.
pub(crate) struct Listeners {
    pub(crate) tcp: Vec<Listener>,
    #[cfg(feature = "http3")]
    pub(crate) quic: Vec<http3::Listener>,
}

/// A client's connection, and the port that it came to.
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) scheme: Scheme,
    port: u16,
    /// Its client's, if the peer is a proxy that said so.
    pub(crate) ends: Option<Rc<Ends>>,
}

/// A connection that is served.
pub(crate) struct Admitted {
    pub(crate) stream: TcpStream,
    pub(crate) scheme: Scheme,
    pub(crate) peer: Peer,
    /// Among the connections of its address, if they are counted.
    pub(crate) place: Option<Place>,
    pub(crate) counted: Counted,
}

/// A client's place in its worker's list, for as long as the connection lives.
pub(crate) struct Listed {
    client: Rc<Client>,
    key: u64,
}

impl Worker {
    pub(crate) fn new(number: usize, room: Room, shared: Shared) -> Self {
        let Shared {
            routing,
            settings,
            clock,
            started,
            telemetry,
            access_log,
            addresses,
            #[cfg(feature = "http3")]
            alternatives,
            #[cfg(feature = "http3")]
            quic,
        } = shared;
        // Its sockets are open by now.
        #[cfg(feature = "http3")]
        drop(quic);
        let now = Rc::new(Cell::new(0));
        let limits = &settings.limits;
        Self {
            number,
            upstreams: Upstreams::new(
                number,
                Rc::clone(&now),
                Arc::clone(&clock),
                limits.of_connects(),
                Arc::clone(&telemetry),
            ),
            ids: RequestIds::new(&*clock),
            via: settings.via.as_deref().and_then(Via::new),
            retries: RetryBudget::default(),
            scratch: RefCell::new(vec![0; SCRATCH].into_boxed_slice()),
            limits: limits.in_ticks(),
            clients: RefCell::default(),
            next_client: Cell::new(0),
            open: Open::new(room),
            last_peer: RefCell::default(),
            memos: Memos::default(),
            uploads: Uploads::default(),
            telemetry,
            access_log,
            tracer: settings.traces.clone().map(Tracer::new),
            addresses,
            #[cfg(feature = "http3")]
            alternatives,
            swept_generation: Cell::new(0),
            is_draining: Cell::new(false),
            give_back: GiveBack::default(),
            date: RefCell::default(),
            now,
            routing,
            settings,
            clock,
            started,
        }
    }

    /// Counts one more connection.
    pub(super) fn count(self: &Rc<Self>, scheme: Scheme) -> Counted {
        self.open.begin(scheme);
        Counted { worker: Rc::clone(self), scheme }
    }

    /// Admits a connection, unless its address has too many.
    pub(crate) fn admit(self: &Rc<Self>, accepted: Accepted, counted: Counted) -> Option<Admitted> {
        let Accepted { stream, peer, scheme, port, ends } = accepted;
        let address = ends.as_ref().map_or(peer, |ends| ends.source);
        let peer = self.peer(address, (scheme, port)).with(ends);
        let Some(place) = self.place(&peer) else {
            if scheme == Scheme::Http {
                server::turn_away(self, stream);
            }
            return None;
        };
        Some(Admitted { stream, scheme, peer, place, counted })
    }

    /// A place for a connection among those of its address, if they are counted; or there are too many.
    pub(super) fn place(&self, peer: &Peer) -> Option<Option<Place>> {
        let Some(addresses) = self.addresses.as_ref().filter(|_| !peer.is_trusted()) else {
            return Some(None);
        };
        let place = addresses.enter(peer.address);
        if place.is_none() {
            self.cells().connections_refused.add(1);
            tracing::debug!(client = %peer.address, "connection refused: its address has too many");
        }
        place.map(Some)
    }

    /// What is known of `peer`. Often it is the one that came last: what stands before Lockgate is few.
    pub(super) fn peer(&self, peer: SocketAddr, (scheme, port): (Scheme, u16)) -> Peer {
        let mut last = self.last_peer.borrow_mut();
        match &*last {
            Some(last) if last.is_of(peer, (scheme, port)) => last.clone(),
            Some(_) | None => {
                last.insert(Peer::new(peer, (scheme, port), &self.settings.trusted_proxies)).clone()
            }
        }
    }

    /// The time for `Date`, for whom hyper does not put it on. The same for a tick.
    pub(crate) fn date(&self) -> HeaderValue {
        let mut date = self.date.borrow_mut();
        match &*date {
            Some((tick, text)) if *tick == self.now.get() => text.clone(),
            Some(_) | None => {
                let text = httpdate::fmt_http_date(self.clock.wall().into());
                let text = HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""));
                date.insert((self.now.get(), text)).1.clone()
            }
        }
    }

    /// Whether responses say that their connection closes.
    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.get()
    }

    pub(crate) fn list(self: &Rc<Self>, client: &Rc<Client>) -> Listed {
        let key = self.next_client.get();
        self.next_client.set(key + 1);
        self.clients.borrow_mut().insert(key, Rc::clone(client));
        if !client.is_stream() {
            self.cells().connections.add(1);
        }
        Listed { client: Rc::clone(client), key }
    }

    /// For how many ticks a connection is kept whose upstream keeps it for `seconds`.
    pub(crate) fn keep_for(&self, seconds: u32) -> Tick {
        let a_second_less = seconds.saturating_sub(1);
        self.settings.limits.ticks(Duration::from_secs(u64::from(a_second_less)))
    }

    /// What the failures of targets mean at `now`.
    pub(crate) fn judge(&self, now: Instant) -> Judge<'_> {
        Judge { at: now, started: self.started, ejection: &self.settings.ejection }
    }

    /// A target failed a request, by refusing the connection, by its answer, or by giving none.
    pub(crate) fn blame(&self, backend: &LocalBackend, target: &Rc<LocalTarget>) {
        if balance::failed(backend, target, self.judge(self.clock.now())) {
            backend.backend.stats.of(self.number).ejections.add(1);
        }
    }

    /// The certificates, if there is a listener for https.
    pub(crate) fn certs(&self) -> Option<&Certs> {
        self.settings.tls.as_ref().map(|tls| &*tls.certs)
    }

    /// What this worker counts.
    pub(crate) fn cells(&self) -> &WorkerCells {
        self.telemetry.of(self.number)
    }

    pub(crate) fn clients(&self) -> Ref<'_, Clients> {
        self.clients.borrow()
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let worker = &self.client.worker;
        if !self.client.is_stream() {
            worker.cells().connections_ended.add(1);
        }
        worker.clients.borrow_mut().remove(&self.key);
        // An upgrade that was not taken up holds its client, which holds it.
        drop(self.client.upgrade.borrow_mut().take());
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.worker.open.end(self.scheme);
        // A panic ends one connection and no other; it is a fault of ours all the same.
        if std::thread::panicking() {
            tracing::error!("a connection's task panicked");
        }
    }
}

/// Accepts and serves until the data plane ends. What is left then ends with the runtime.
pub(crate) async fn run(worker: Rc<Worker>, listeners: Listeners, mut stage: watch::Receiver<Stage>) {
    let mut ticks = tokio::time::interval(worker.settings.limits.tick);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut signals = worker.routing.signals();
    // Apart, so that what comes here is rare: each time the runtime wakes itself by a system call.
    let mut accepting = JoinSet::new();
    for listener in listeners.tcp {
        // Each by itself, so that none waits for the room of another, or for its turn behind one that is flooded.
        accepting.spawn_local(accept_all(Rc::clone(&worker), listener));
    }
    #[cfg(feature = "http3")]
    let quic = http3::accept_all(&worker, listeners.quic);
    loop {
        tokio::select! {
            Some(ended) = accepting.join_next(), if !worker.is_draining() => return give_up(ended),
            () = worker.open.none(), if worker.is_draining() => break,
            _ = ticks.tick() => worker.tick(),
            Ok(()) = signals.changed() => worker.obey(),
            changed = stage.changed() => {
                // The data plane's handle was dropped: there is nobody left to serve for.
                let now = if changed.is_err() { Stage::Ending } else { *stage.borrow_and_update() };
                match now {
                    Stage::Serving => {}
                    Stage::Draining => {
                        accepting.abort_all();
                        worker.is_draining.set(true);
                        worker.refuse_held();
                    }
                    Stage::Ending => break,
                }
            }
        }
    }
    worker.end_all();
    #[cfg(feature = "http3")]
    quic.end().await;
    worker.upstreams.close();
}

/// Accepts as long as it is polled.
async fn accept_all(worker: Rc<Worker>, listener: Listener) {
    let Listener { socket, scheme, port } = listener;
    loop {
        worker.open.room_for(scheme).await;
        let Ok((stream, peer)) = socket.accept().await else {
            // There are no descriptors left.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let accepted = Accepted { stream, peer, scheme, port, ends: None };
        let counted = worker.count(scheme);
        if worker.settings.headers_from(scheme).is_some() {
            tokio::task::spawn_local(proxied::serve(Rc::clone(&worker), accepted, counted));
        } else if let Some(admitted) = worker.admit(accepted, counted) {
            tokio::task::spawn_local(server::serve(Rc::clone(&worker), admitted));
        }
    }
}

/// A worker that cannot accept is none.
fn give_up(accepting: Result<(), JoinError>) {
    if let Err(error) = accepting
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}

/// A panic ends one connection and no other; it is a fault of ours all the same.
pub(super) fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked");
    }
}
