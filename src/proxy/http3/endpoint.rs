//! A worker's UDP sockets: handshakes, whose connections they become, and how many there may be.

use std::cell::Cell;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use h3::error::Code;
use quinn::crypto::rustls::NoInitialCipherSuite;
use quinn::{EndpointConfig, IdleTimeout, Incoming, TokioRuntime, TransportConfig};
use quinn_proto::HashedConnectionIdGenerator;
use tokio::task::JoinSet;

use crate::certs::{Certs, Session};
use crate::proxy::client::Client;
use crate::proxy::http2::{CONNECTION_WINDOW, STREAM_WINDOW};
use crate::proxy::settings::{Limits, Scheme};
use crate::proxy::tls::Tls;
use crate::proxy::worker::{Counted, Worker};
use crate::proxy_header::Ends;

use super::quic::number;
use super::session::ByName;

/// Streams that carry no request: HTTP/3 needs three, and what is not known is to be let in and given up (RFC 9114 section 6.2).
const CONTROL_STREAMS: u32 = 8;

/// Handshakes under way in a worker from which on clients have to show that they have the address that they write down
/// (RFC 9000 section 8.1.2). Those cost a client one more round trip, and who only sends costs nothing but an answer.
const UNPROVEN_MAX: usize = 64;

/// Clients that wait for their handshake to begin, and bytes that they may send meanwhile.
const WAITING_MAX: usize = 256;
const WAITING_BYTES: u64 = 16 * 1024;
const WAITING_BYTES_ALL: u64 = 1024 * 1024;

/// How long clients that are still there at the end are told that it is the end.
const LINGER: Duration = Duration::from_secs(1);

/// What the sockets of all workers have in common.
#[derive(Clone)]
pub(crate) struct Setup {
    endpoint: EndpointConfig,
    server: quinn::ServerConfig,
}

/// HTTP/3 cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("TLS has none of the ciphers that QUIC begins with")]
    Cipher(#[from] NoInitialCipherSuite),
    #[error("a limit is more than QUIC can say")]
    Limit(#[from] quinn::VarIntBoundsExceeded),
    #[error("the system has no random numbers")]
    Random(#[from] getrandom::Error),
}

/// A socket.
pub(crate) struct Listener {
    endpoint: quinn::Endpoint,
    port: u16,
}

/// A worker's sockets while it serves.
pub(crate) struct Accepting {
    endpoints: Vec<quinn::Endpoint>,
    _tasks: JoinSet<()>,
}

/// One of a worker's handshakes, until it is over.
struct Shaking(Rc<Cell<usize>>);

impl Setup {
    pub(crate) fn new(certs: &Arc<Certs>, limits: &Limits) -> Result<Self, SetupError> {
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(ByName::new(certs)?));
        server
            .transport_config(Arc::new(transport(limits)?))
            // Another address may be another worker's, who does not know the connection.
            .migration(false)
            .max_incoming(WAITING_MAX)
            .incoming_buffer_size(WAITING_BYTES)
            .incoming_buffer_size_total(WAITING_BYTES_ALL);
        // Of the same keys for all workers: who is asked about a connection of another one can say that it is not there.
        let mut endpoint = EndpointConfig::default();
        let key = getrandom::u64()?;
        endpoint.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(key)));
        Ok(Self { endpoint, server })
    }
}

fn transport(limits: &Limits) -> Result<TransportConfig, SetupError> {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(limits.http2_streams.into())
        .max_concurrent_uni_streams(CONTROL_STREAMS.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(CONNECTION_WINDOW.into())
        .datagram_receive_buffer_size(None);
    // Whether a client is still there is asked as TCP asks it; how long it may do nothing is ours to say.
    let silence = (!limits.tcp_keepalive.is_zero()).then(|| limits.tcp_keepalive * 2);
    transport.keep_alive_interval(silence.map(|_| limits.tcp_keepalive.min(PING_EVERY)));
    transport.max_idle_timeout(silence.map(IdleTimeout::try_from).transpose()?);
    Ok(transport)
}

/// Clients end connections by themselves on which nothing came for half a minute.
const PING_EVERY: Duration = Duration::from_secs(15);

impl Listener {
    /// To be called by the worker whose it is.
    pub(crate) fn open(socket: UdpSocket, setup: &Setup) -> std::io::Result<Self> {
        let port = socket.local_addr()?.port();
        let Setup { endpoint, server } = setup.clone();
        let endpoint = quinn::Endpoint::new(endpoint, Some(server), socket, Arc::new(TokioRuntime))?;
        Ok(Self { endpoint, port })
    }
}

/// Serves whoever comes, and refuses them once the data plane drains.
pub(crate) fn accept_all(worker: &Rc<Worker>, listeners: Vec<Listener>) -> Accepting {
    let mut tasks = JoinSet::new();
    let shaking = Rc::new(Cell::new(0));
    let endpoints = listeners.iter().map(|listener| listener.endpoint.clone()).collect();
    for listener in listeners {
        tasks.spawn_local(accept(Rc::clone(worker), listener, Rc::clone(&shaking)));
    }
    Accepting { endpoints, _tasks: tasks }
}

impl Accepting {
    /// Ends those that are left.
    pub(crate) async fn end(self) {
        for endpoint in &self.endpoints {
            endpoint.close(number(Code::H3_NO_ERROR), b"");
        }
        let told = async {
            for endpoint in &self.endpoints {
                endpoint.wait_idle().await;
            }
        };
        // Whether they heard it or not, it is the end.
        let _told = tokio::time::timeout(LINGER, told).await;
    }
}

async fn accept(worker: Rc<Worker>, listener: Listener, shaking: Rc<Cell<usize>>) {
    loop {
        worker.open.room_for(Scheme::Https).await;
        let Some(incoming) = listener.endpoint.accept().await else { return };
        if worker.is_draining() {
            // Its client is told at once, and need not find out.
            incoming.refuse();
            continue;
        }
        if shaking.get() >= UNPROVEN_MAX && incoming.may_retry() && !incoming.remote_address_validated() {
            // It may; that was asked.
            let _sent = incoming.retry();
            continue;
        }
        let shaking = Shaking::new(&shaking);
        let (worker, counted) = (Rc::clone(&worker), worker.count(Scheme::Https));
        tokio::task::spawn_local(serve(worker, incoming, listener.port, shaking, counted));
    }
}

async fn serve(worker: Rc<Worker>, incoming: Incoming, port: u16, shaking: Shaking, counted: Counted) {
    let _counted = counted;
    let peer = worker.peer(incoming.remote_address(), (Scheme::Https, port));
    let Some(connection) = Box::pin(shake(&worker, incoming)).await else { return };
    drop(shaking);
    // Not before: until then the address may be anybody's.
    let Some(_place) = worker.place(&peer) else {
        return connection.close(number(Code::H3_EXCESSIVE_LOAD), b"");
    };
    let made_with = connection.handshake_data().and_then(|data| data.downcast::<Session>().ok());
    let Some(made_with) = made_with else {
        return connection.close(number(Code::H3_INTERNAL_ERROR), b"");
    };
    let tls = Tls::of_quic(*made_with);
    let peer = peer.with(ends(&connection, port).map(Rc::new));
    let client = Rc::new(Client::without_socket(&worker, peer, Some(tls)));
    let _listed = worker.list(&client);
    Box::pin(super::serve(&client, connection)).await;
}

/// `None`: the handshake failed, which is counted and costs nobody else.
async fn shake(worker: &Worker, incoming: Incoming) -> Option<quinn::Connection> {
    let cells = &worker.cells().handshakes;
    let began = worker.clock.now();
    let shaken = async { incoming.accept()?.await };
    match tokio::time::timeout(worker.settings.limits.handshake, shaken).await {
        Ok(Ok(connection)) => {
            cells.tls13.add(1);
            cells.took.observe(worker.clock.now().saturating_duration_since(began));
            return Some(connection);
        }
        Ok(Err(error)) => {
            cells.failed.add(1);
            tracing::debug!(error = crate::error::chain(&error), "QUIC handshake failed");
        }
        Err(_elapsed) => cells.timed_out.add(1),
    }
    None
}

/// `None` where the system does not say at which address the connection came.
fn ends(connection: &quinn::Connection, port: u16) -> Option<Ends> {
    let destination = SocketAddr::new(connection.local_ip()?, port);
    Some(Ends { source: connection.remote_address(), destination })
}

impl Shaking {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Shaking {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
