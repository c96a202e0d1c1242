//! The data plane as a whole: listeners bound, one thread per worker, and how it ends.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{oneshot, watch};

use crate::clock::Clock;
use crate::routing::Routing;
use crate::telemetry::Telemetry;

use super::access_log;
use super::addresses::Addresses;
#[cfg(feature = "http3")]
use super::http3;
use super::room::Room;
use super::settings::{ProxySettings, Scheme};
use super::worker::{self, Listener, Listeners, Shared, Stage, Worker};

const BACKLOG: i32 = 4096;

/// To a client that is silent, once the first was not answered.
const PROBE_EVERY: Duration = Duration::from_secs(15);
const PROBES: u32 = 4;

/// How long workers have to end once all that is left was told to.
const ENDING_WITHIN: Duration = Duration::from_secs(5);

/// The running data plane.
#[derive(Debug)]
pub struct DataPlane {
    addresses: Vec<SocketAddr>,
    stage: watch::Sender<Stage>,
    workers: Vec<Thread>,
    telemetry: Arc<Telemetry>,
    log_writer: Option<JoinHandle<()>>,
}

/// All that one worker listens on.
#[derive(Default)]
struct Sockets {
    tcp: Vec<(Scheme, TcpListener)>,
    /// Empty without HTTP/3.
    quic: Vec<UdpSocket>,
}

#[derive(Debug)]
struct Thread {
    ended: oneshot::Receiver<()>,
    handle: JoinHandle<()>,
}

/// Why the data plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address}: {remedy}")]
    Listen {
        address: SocketAddr,
        remedy: &'static str,
        #[source]
        source: io::Error,
    },
    #[cfg(feature = "http3")]
    #[error("cannot set up HTTP/3")]
    Http3(#[from] http3::SetupError),
    #[error("cannot write the access log to {path}: check the path and its permissions")]
    AccessLog {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot start worker {number}")]
    Worker {
        number: usize,
        #[source]
        source: io::Error,
    },
}

/// Binds every address for every worker and starts the workers, as many as `routing` says.
///
/// # Errors
/// [`StartError`] names the address and what to do about it; nothing goes on running then.
pub fn start(
    settings: ProxySettings,
    routing: &Arc<Routing>,
    clock: &Arc<dyn Clock>,
) -> Result<DataPlane, StartError> {
    let count = routing.workers().max(1);
    let mut listeners: Vec<Sockets> = (0..count).map(|_| Sockets::default()).collect();
    let mut addresses = Vec::new();
    let keepalive = keepalive(settings.limits.tcp_keepalive);
    let secure = settings.tls.iter().flat_map(|tls| &tls.listen).map(|address| (Scheme::Https, address));
    let plain = settings.listen.iter().map(|address| (Scheme::Http, address));
    for (scheme, wanted) in plain.chain(secure) {
        // Sockets that share a port would also share it with another Lockgate: ask for it alone first.
        let with_quic = has_quic(&settings, scheme);
        if wanted.port() != 0 {
            drop(bind(*wanted, Sharing::Alone, None).map_err(|source| listen_error(*wanted, source))?);
            if with_quic {
                drop(bind_quic(*wanted, Sharing::Alone).map_err(|source| listen_error(*wanted, source))?);
            }
        }
        // The first worker's socket settles the port, if any will do.
        let mut address = *wanted;
        for sockets in &mut listeners {
            let socket = bind(address, Sharing::Workers, keepalive.as_ref())
                .map_err(|source| listen_error(address, source))?;
            address = socket.local_addr().map_err(|source| listen_error(address, source))?;
            sockets.tcp.push((scheme, socket));
            if with_quic {
                let socket = bind_quic(address, Sharing::Workers);
                sockets.quic.push(socket.map_err(|source| listen_error(address, source))?);
            }
        }
        addresses.push(address);
    }
    #[cfg(feature = "http3")]
    let quic = match settings.tls.as_ref().filter(|tls| tls.http3) {
        Some(tls) => Some(http3::Setup::new(&tls.certs, &settings.limits)?),
        None => None,
    };
    #[cfg(feature = "http3")]
    let alternatives = http3::alternatives(settings.tls.as_ref(), &addresses[settings.listen.len()..]);
    let telemetry = Arc::new(Telemetry::new(count));
    let (access_log, log_writer) = access_log::open(&settings.access_log, settings.access_log_format)?;
    let per_client = settings.limits.connections_per_client;
    let per_address = (per_client > 0).then(|| Arc::new(Addresses::new(per_client)));
    let settings = Arc::new(settings);
    let stage = watch::Sender::new(Stage::Serving);
    let room = Room::of(&settings, count);
    let started = clock.now();
    let mut workers = Vec::new();
    for (number, sockets) in listeners.into_iter().enumerate() {
        let shared = Shared {
            routing: Arc::clone(routing),
            settings: Arc::clone(&settings),
            clock: Arc::clone(clock),
            started,
            telemetry: Arc::clone(&telemetry),
            access_log: access_log.clone(),
            addresses: per_address.clone(),
            #[cfg(feature = "http3")]
            quic: quic.clone(),
            #[cfg(feature = "http3")]
            alternatives: alternatives.clone(),
        };
        let thread = spawn(number, sockets, room, shared, stage.subscribe());
        workers.push(thread.map_err(|source| StartError::Worker { number, source })?);
    }
    Ok(DataPlane { addresses, stage, workers, telemetry, log_writer })
}

impl DataPlane {
    /// Where it listens, in the order of the settings, without TLS first; with the port that was chosen where any would do.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What it counts.
    #[must_use]
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.telemetry
    }

    /// Stops accepting, lets requests in flight end, closes idle connections, and after `grace` ends what is left.
    pub async fn shutdown(self, grace: Duration) {
        self.stage.send_replace(Stage::Draining);
        let mut threads = Vec::new();
        let ended = async {
            for Thread { ended, handle } in self.workers {
                threads.push(handle);
                // A worker that panicked has ended too.
                let _ended = ended.await;
            }
        };
        let deadline = async {
            tokio::time::sleep(grace).await;
            self.stage.send_replace(Stage::Ending);
            tokio::time::sleep(ENDING_WITHIN).await;
        };
        let all_ended = tokio::select! {
            () = ended => true,
            () = deadline => false,
        };
        if !all_ended {
            // It does not come to its next await. Nobody waits for it: its thread goes with the process.
            tracing::error!("a worker does not end; it is left behind");
            return;
        }
        // The log's writer ends when the last worker is gone.
        for thread in threads.into_iter().chain(self.log_writer) {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

fn spawn(
    number: usize,
    sockets: Sockets,
    room: Room,
    shared: Shared,
    stage: watch::Receiver<Stage>,
) -> io::Result<Thread> {
    let (ending, ended) = oneshot::channel();
    let (started, starting) = mpsc::sync_channel(1);
    let handle = std::thread::Builder::new().name(format!("proxy-{number}")).spawn(move || {
        let _ending: oneshot::Sender<()> = ending;
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return tell(&started, Err(error)),
        };
        runtime.block_on(async {
            match open(sockets, &shared) {
                Ok(listeners) => {
                    tell(&started, Ok(()));
                    let worker = Rc::new(Worker::new(number, room, shared));
                    worker::run(worker, listeners, stage).await;
                }
                Err(error) => tell(&started, Err(error)),
            }
        });
    })?;
    starting.recv().unwrap_or_else(|_| Err(io::Error::other("its thread ended")))?;
    Ok(Thread { ended, handle })
}

/// To be called in the worker's runtime.
#[cfg_attr(not(feature = "http3"), expect(unused_variables, reason = "what is shared is of HTTP/3 alone"))]
fn open(sockets: Sockets, shared: &Shared) -> io::Result<Listeners> {
    let listener = |(scheme, socket): (Scheme, TcpListener)| {
        let port = socket.local_addr()?.port();
        Ok(Listener { socket: tokio::net::TcpListener::from_std(socket)?, scheme, port })
    };
    let tcp = sockets.tcp.into_iter().map(listener).collect::<io::Result<_>>()?;
    #[cfg(feature = "http3")]
    let quic = match &shared.quic {
        Some(setup) => sockets.quic.into_iter().map(|socket| http3::Listener::open(socket, setup)).collect(),
        None => Ok(Vec::new()),
    };
    Ok(Listeners {
        tcp,
        #[cfg(feature = "http3")]
        quic: quic?,
    })
}

/// Whoever started the worker waits for this.
fn tell(started: &mpsc::SyncSender<io::Result<()>>, result: io::Result<()>) {
    let _waiting = started.send(result);
}

/// Whether that listener takes QUIC as well.
fn has_quic(settings: &ProxySettings, scheme: Scheme) -> bool {
    cfg!(feature = "http3") && scheme == Scheme::Https && settings.tls.as_ref().is_some_and(|tls| tls.http3)
}

/// Who may listen on the same port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Alone,
    /// The kernel spreads connections over the workers' sockets.
    Workers,
}

fn bind(address: SocketAddr, sharing: Sharing, keepalive: Option<&TcpKeepalive>) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(sharing == Sharing::Workers)?;
    socket.set_nonblocking(true)?;
    // Connections inherit these.
    socket.set_tcp_nodelay(true)?;
    if let Some(keepalive) = keepalive {
        socket.set_tcp_keepalive(keepalive)?;
    }
    socket.bind(&SockAddr::from(address))?;
    if sharing == Sharing::Workers {
        socket.listen(BACKLOG)?;
    }
    Ok(socket.into())
}

/// The kernel gives a worker's socket what comes from one address and port, and so all of a connection.
fn bind_quic(address: SocketAddr, sharing: Sharing) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(sharing == Sharing::Workers)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(address))?;
    Ok(socket.into())
}

/// How a client that has been silent for `idle` is probed; not at all if that is zero.
fn keepalive(idle: Duration) -> Option<TcpKeepalive> {
    // What the kernel takes.
    let idle = (!idle.is_zero()).then(|| idle.clamp(Duration::from_secs(1), Duration::from_secs(32_767)))?;
    let probes = TcpKeepalive::new().with_time(idle).with_interval(PROBE_EVERY.min(idle));
    Some(probes.with_retries(PROBES))
}

fn listen_error(address: SocketAddr, source: io::Error) -> StartError {
    let remedy = match source.kind() {
        io::ErrorKind::AddrInUse => "another program listens there; stop it or choose another address",
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need the capability CAP_NET_BIND_SERVICE; grant it or choose a higher port"
        }
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has that address; choose one that it has"
        }
        _ => "check the address in the configuration",
    };
    StartError::Listen { address, remedy, source }
}
