//! The built-in sample app: what the demo deploys and the tests put behind the proxy.
//!
//! It answers with its version and with what it received, so that a client can tell which version served it
//! and whether a byte was lost on the way; and it misbehaves as its environment tells it to.

mod answers;
mod content;
mod http2;
mod options;
mod record;
mod tls;
mod websocket;

use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use http::Request;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, SystemClock};
use content::Broken;
use record::Record;

pub use options::{Health, SampleOptions, TlsFiles};
pub use tls::TlsError;

/// How long the app waits, after it was asked to stop, for what is in flight.
const FINISH_WITHIN: Duration = Duration::from_secs(60);
/// How long a connection may be idle, or take for the handshake of TLS or a request's head.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// Why the sample app ended other than by being asked to.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot open the record file {}", path.display())]
    RecordFile { path: PathBuf, source: std::io::Error },
    #[error("cannot speak TLS")]
    Tls(#[from] TlsError),
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
    #[error("ended with code {code} after {after_ms} ms, as its options ask")]
    Exit { code: u8, after_ms: u64 },
}

/// A sample app that listens: connections wait in its backlog until it serves.
#[derive(Debug)]
pub struct Sample {
    app: Arc<App>,
    listener: TcpListener,
    address: SocketAddr,
}

/// One running sample app, as its answers see it.
#[derive(Debug)]
struct App {
    options: SampleOptions,
    /// Where it speaks TLS.
    tls: Option<Arc<ServerConfig>>,
    /// Tells this start of the app from every other one.
    instance: String,
    clock: Arc<dyn Clock>,
    started: Instant,
    record: Record,
    submissions: AtomicU64,
    /// Requests for /.
    asked: AtomicU64,
    /// Cancelled when the app was asked to stop.
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl SampleError {
    /// What the process should exit with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Listen { .. } | Self::RecordFile { .. } | Self::Tls(_) | Self::Signals(_) => 1,
            Self::Exit { code, .. } => *code,
        }
    }
}

/// Runs the sample app until a SIGTERM or SIGINT, then finishes what is in flight.
///
/// # Errors
/// If it cannot listen or record, or if its options make it end by itself.
pub async fn run(options: SampleOptions) -> Result<(), SampleError> {
    let mut signals = Signals::listen()?;
    if options.exit_after_ms == Some(0) {
        return Err(SampleError::Exit { code: options.exit_code, after_ms: 0 });
    }
    let sample = Sample::bind(options, Arc::new(SystemClock)).await?;
    let app = Arc::clone(&sample.app);
    say(format_args!("listening on {}, version {}", sample.address, app.options.version));

    let stop = CancellationToken::new();
    let serving = sample.serve(stop.clone());
    let asked = async {
        signals.until_asked_to_stop(app.options.ignore_sigterm).await;
        stop.cancel();
        let delay = Duration::from_millis(app.options.sigterm_delay_ms.unwrap_or(0));
        app.clock.sleep(delay).await;
    };
    tokio::select! {
        ((), ()) = async { tokio::join!(serving, asked) } => {
            say(format_args!("stopped"));
            Ok(())
        }
        exit = until_exit(&app) => Err(exit),
    }
}

impl Sample {
    /// Takes the port; clients may connect from now on.
    ///
    /// # Errors
    /// If the address is taken, or a file that the options name is not what it has to be.
    pub async fn bind(options: SampleOptions, clock: Arc<dyn Clock>) -> Result<Self, SampleError> {
        let address = SocketAddr::new(options.host, options.port);
        let listen = |source| SampleError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let record = Record::open(options.record_file.as_deref())?;
        let app = App {
            tls: options.tls.as_ref().map(tls::config).transpose()?,
            instance: uuid::Uuid::now_v7().simple().to_string(),
            started: clock.now(),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
            options,
            clock,
            record,
            submissions: AtomicU64::new(0),
            asked: AtomicU64::new(0),
        };
        Ok(Self { app: Arc::new(app), listener, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`, then no longer accepts, finishes what is in flight, and returns.
    pub fn serve(self, stop: CancellationToken) -> impl Future<Output = ()> + Send {
        let Self { app, listener, .. } = self;
        async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => break,
                    accepted = listener.accept() => match accepted {
                        Ok((stream, _)) => {
                            app.tasks.spawn(serve_connection(Arc::clone(&app), stream));
                        }
                        // Out of file descriptors: some come free when a connection ends.
                        Err(error) => {
                            say(format_args!("cannot accept: {error}"));
                            app.clock.sleep(Duration::from_millis(10)).await;
                        }
                    },
                }
            }
            drop(listener);
            app.stopping.cancel();
            app.tasks.close();
            tokio::select! {
                () = app.tasks.wait() => (),
                () = app.clock.sleep(FINISH_WITHIN) => say(format_args!("gave up on {} connections", app.tasks.len())),
            }
        }
    }
}

/// One client connection; when the app stops, it ends after the request in flight.
async fn serve_connection(app: Arc<App>, stream: TcpStream) {
    // `/drop` sets its linger time to zero, which turns the close into a reset. It needs a handle beside the
    // one that hyper owns.
    let Ok(socket) = stream.as_fd().try_clone_to_owned().map(Arc::new) else { return };
    if let Err(error) = stream.set_nodelay(true) {
        say(format_args!("cannot set nodelay: {error}"));
    }
    let ended = match &app.tls {
        None => match speaks_http2(&stream).await {
            Ok(is_http2) => converse(&app, &socket, stream, is_http2).await,
            // Gone before it said a word.
            Err(_gone) => return,
        },
        Some(config) => match tokio::time::timeout(IDLE_TIMEOUT, tls::accept(config, stream)).await {
            Ok(Ok((stream, is_http2))) => converse(&app, &socket, stream, is_http2).await,
            Ok(Err(error)) => return say(format_args!("no TLS with a client: {error}")),
            Err(_elapsed) => return say(format_args!("no TLS with a client in time")),
        },
    };
    if let Err(error) = ended {
        tracing::debug!(error = crate::error::chain(&*error), "sample connection ended");
    }
}

/// What is said on a connection, whatever carries it.
async fn converse(
    app: &Arc<App>,
    socket: &Arc<OwnedFd>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    is_http2: bool,
) -> Result<(), Broken> {
    if is_http2 {
        return Ok(http2::serve(app, socket, stream).await?);
    }
    let service = service_fn(|request: Request<Incoming>| {
        let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        answers::answer(Arc::clone(app), Arc::clone(socket), request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => ended?,
        () = app.stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await?;
        }
    }
    Ok(())
}

/// Whether the client begins with HTTP/2. What it sent is left there.
async fn speaks_http2(stream: &TcpStream) -> std::io::Result<bool> {
    let mut begin = [0; http2::PREFACE_BEGIN.len()];
    loop {
        let seen = stream.peek(&mut begin).await?;
        let begin = &begin[..seen];
        if !http2::PREFACE_BEGIN.starts_with(begin) || begin.is_empty() {
            return Ok(false);
        }
        if begin.len() == http2::PREFACE_BEGIN.len() {
            return Ok(true);
        }
        // The rest is on its way; there is nothing to wait for that says so.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Resolves when the options ask the app to end by itself.
async fn until_exit(app: &App) -> SampleError {
    let Some(after_ms) = app.options.exit_after_ms else { return std::future::pending().await };
    app.clock.sleep_until(app.started + Duration::from_millis(after_ms)).await;
    SampleError::Exit { code: app.options.exit_code, after_ms }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn listen() -> Result<Self, SampleError> {
        let listen = |kind| signal(kind).map_err(SampleError::Signals);
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Prints each signal until one asks the app to stop.
    async fn until_asked_to_stop(&mut self, ignore_terminate: bool) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {
                    say(format_args!("got SIGTERM"));
                    if !ignore_terminate {
                        return;
                    }
                }
                _ = self.interrupt.recv() => {
                    say(format_args!("got SIGINT"));
                    return;
                }
                _ = self.hang_up.recv() => say(format_args!("got SIGHUP")),
            }
        }
    }
}

/// One line of the app's own log, on standard output.
fn say(line: std::fmt::Arguments<'_>) {
    // Whoever started the app may have closed the pipe; that must not end the app, as println would.
    if writeln!(std::io::stdout(), "{line}").is_err() {
        tracing::trace!("nobody reads the sample app's output");
    }
}
