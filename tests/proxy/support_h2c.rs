//! Where a test plays an application that speaks HTTP/2.

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use lockgate::routing::Target;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::support::{Plane, Upstream, Wire, within};
use crate::support_http2::{SETTINGS, frame};

/// Requests that wait for the test.
const CALLS: usize = 1024;

/// The application: it hands the test every request on every connection.
pub(crate) struct App {
    pub(crate) upstream: Upstream,
    calls: mpsc::Receiver<Call>,
    _tasks: JoinSet<()>,
}

/// A request that waits for its answer.
pub(crate) struct Call {
    pub(crate) request: Request<RecvStream>,
    pub(crate) respond: SendResponse<Bytes>,
    /// Which connection it came over.
    pub(crate) connection: usize,
}

impl App {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl Fn(&mut h2::server::Builder) + Send + 'static) -> Self {
        let upstream = Upstream::h2c().await;
        let listener = upstream.listener();
        let (sender, calls) = mpsc::channel(CALLS);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            for connection in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                let mut builder = h2::server::Builder::new();
                change(&mut builder);
                connections.spawn(serve(stream, builder, connection, sender.clone()));
            }
        });
        Self { upstream, calls, _tasks: tasks }
    }

    /// One that is spoken to as `how` says, by TLS, once it has accepted that.
    pub(crate) async fn by_tls(acceptor: TlsAcceptor, how: impl FnOnce(Target) -> Target) -> Self {
        let upstream = Upstream::spoken_to(how).await;
        let listener = upstream.listener();
        let (sender, calls) = mpsc::channel(CALLS);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            for connection in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (acceptor, sender) = (acceptor.clone(), sender.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    serve(stream, h2::server::Builder::new(), connection, sender).await;
                });
            }
        });
        Self { upstream, calls, _tasks: tasks }
    }

    /// An application behind `host` of a plane.
    pub(crate) async fn behind(plane: &Plane, host: &str) -> Self {
        let app = Self::start().await;
        plane.route(host, &app.upstream);
        app
    }

    /// One that answers every request at once with `status`, once its body has come.
    pub(crate) async fn answering(status: u16) -> Upstream {
        let upstream = Upstream::h2c().await;
        let listener = upstream.listener();
        upstream.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    let mut requests = JoinSet::new();
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        requests.spawn(async move {
                            let mut call = Call { request, respond, connection: 0 };
                            while let Some(Ok(data)) = call.request.body_mut().data().await {
                                let window = call.request.body_mut().flow_control();
                                window.release_capacity(data.len()).unwrap_or_default();
                            }
                            call.answer(status);
                        });
                    }
                });
            }
        });
        upstream
    }

    pub(crate) async fn call(&mut self) -> Call {
        within(self.calls.recv()).await.unwrap()
    }

    /// Where it is, and what comes there.
    pub(crate) fn parts(&mut self) -> (&Upstream, &mut mpsc::Receiver<Call>) {
        (&self.upstream, &mut self.calls)
    }

    /// Whether a request waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.calls.is_empty()
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    builder: h2::server::Builder,
    number: usize,
    calls: mpsc::Sender<Call>,
) {
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        if calls.send(Call { request, respond, connection: number }).await.is_err() {
            return;
        }
    }
}

impl Call {
    pub(crate) fn path(&self) -> &str {
        self.request.uri().path()
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.request.headers().get(name).map(|value| value.to_str().unwrap())
    }

    /// Answers without a body.
    pub(crate) fn answer(mut self, status: u16) {
        let response = Response::builder().status(status).body(()).unwrap();
        // Whoever asked may be gone.
        drop(self.respond.send_response(response, true));
    }

    /// Begins an answer with a body.
    pub(crate) fn begin(&mut self, response: http::response::Builder) -> SendStream<Bytes> {
        self.respond.send_response(response.body(()).unwrap(), false).unwrap()
    }

    /// Answers with a body that comes whole, and perhaps trailers.
    pub(crate) fn whole(mut self, body: &str, trailers: Option<HeaderMap>) {
        let mut stream = self.begin(Response::builder());
        stream.send_data(Bytes::copy_from_slice(body.as_bytes()), trailers.is_none()).unwrap();
        if let Some(trailers) = trailers {
            stream.send_trailers(trailers).unwrap();
        }
    }

    pub(crate) fn reset(&mut self, reason: Reason) {
        self.respond.send_reset(reason);
    }

    /// Why the other side ended it.
    pub(crate) async fn was_reset(&mut self) -> Reason {
        within(std::future::poll_fn(|cx| self.respond.poll_reset(cx))).await.unwrap()
    }
}

pub(crate) fn trailers(fields: &[(&'static str, &str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

impl Wire {
    /// The application's side of an HTTP/2 connection, whose frames the test writes: it says `settings` first.
    pub(crate) async fn serve_http2(&mut self, settings: &[u8]) {
        self.until("SM\r\n\r\n").await;
        self.send(frame(SETTINGS, 0, 0, settings)).await;
    }
}
