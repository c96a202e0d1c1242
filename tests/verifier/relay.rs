//! A tiny proxy that keeps its promises, or breaks one of them on purpose.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

type Failure = Box<dyn Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, Failure>;

/// What it does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sabotage {
    Nothing,
    /// Ends a response in its middle.
    CutBody,
    /// Alters a byte.
    FlipByte,
    /// Ends the connection instead of answering.
    Reset,
    /// Answers by itself with 502.
    BadGateway,
    /// Sends a submission twice.
    SendTwice,
    /// Answers a submission well without passing it on as one.
    Swallow,
    /// Sends some requests to the version that is not live.
    WrongUpstream,
    /// Ends a WebSocket without a close frame.
    DropWebsocket,
    /// Ends a WebSocket with the close frame of a restart.
    RestartWebsocket,
    /// Closes the connections that are idle when it switches.
    CloseIdle,
}

/// The relay, with two upstreams and one live one for each host.
#[derive(Debug)]
pub(crate) struct Relay {
    pub address: SocketAddr,
    sabotage: Sabotage,
    upstreams: [SocketAddr; 2],
    live: [AtomicUsize; 2],
    asked: AtomicU64,
    /// How many answers each host has been given.
    served: [watch::Sender<u64>; 2],
    switches: watch::Sender<u64>,
    tasks: TaskTracker,
}

/// The hosts that the relay knows, in the order of `live` and `served`.
pub(crate) const HOSTS: [&str; 2] = ["one.test", "two.test"];

impl Relay {
    pub(crate) async fn start(sabotage: Sabotage, upstreams: [SocketAddr; 2]) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            sabotage,
            upstreams,
            live: Default::default(),
            asked: AtomicU64::new(0),
            served: [watch::Sender::new(0), watch::Sender::new(0)],
            switches: watch::Sender::new(0),
            tasks: TaskTracker::new(),
        });
        relay.tasks.spawn(accept(Arc::clone(&relay), listener));
        relay
    }

    /// Has a host served by the other upstream from now on.
    pub(crate) fn switch(&self, host: usize, upstream: usize) {
        self.live[host].store(upstream, Ordering::SeqCst);
        self.switches.send_modify(|switches| *switches += 1);
    }

    /// Resolves when a host has been given that many more answers.
    pub(crate) async fn served(&self, host: usize, more: u64) {
        let mut served = self.served[host].subscribe();
        let until = *served.borrow() + more;
        served.wait_for(|served| *served >= until).await.unwrap();
    }

    /// Whether it is this request's turn to be sabotaged: one in eight.
    fn strikes(&self, sabotage: Sabotage) -> bool {
        self.sabotage == sabotage && self.asked.fetch_add(1, Ordering::Relaxed) % 8 == 7
    }
}

async fn accept(relay: Arc<Relay>, listener: TcpListener) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        relay.tasks.spawn(serve(Arc::clone(&relay), stream));
    }
}

async fn serve(relay: Arc<Relay>, stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut switches = relay.switches.subscribe();
    let service = service_fn(|request| answer(Arc::clone(&relay), request));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let switched = async {
        switches.changed().await.unwrap();
        if relay.sabotage != Sabotage::CloseIdle {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        _ = connection.as_mut() => return,
        () = switched => connection.as_mut().graceful_shutdown(),
    }
    if connection.await.is_err() {
        // The client went away, which is its own affair.
    }
}

async fn answer(relay: Arc<Relay>, mut request: Request<Incoming>) -> Result<Response<Body>, Failure> {
    let host = usize::from(request.headers()["host"] == HOSTS[1]);
    let live = relay.live[host].load(Ordering::SeqCst);
    let upstream = relay.upstreams[live ^ usize::from(relay.strikes(Sabotage::WrongUpstream))];
    let submission = request.method() == Method::POST;
    if relay.strikes(Sabotage::Reset) {
        return Err("sabotaged".into());
    }
    if relay.strikes(Sabotage::BadGateway) {
        let mut response = Response::new(Empty::new().map_err(Into::into).boxed_unsync());
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        return Ok(response);
    }
    if submission && relay.strikes(Sabotage::Swallow) {
        *request.uri_mut() = "/echo".parse()?;
    }
    let client = hyper::upgrade::on(&mut request);
    let (head, body) = request.into_parts();
    let body = if submission && relay.strikes(Sabotage::SendTwice) {
        let body = body.collect().await?.to_bytes();
        let copy = Full::new(body.clone()).map_err(Into::into).boxed_unsync();
        send(&relay, upstream, Request::from_parts(head.clone(), copy)).await?;
        Full::new(body).map_err(Into::into).boxed_unsync()
    } else {
        body.map_err(Into::into).boxed_unsync()
    };
    let mut response = send(&relay, upstream, Request::from_parts(head, body)).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let upstream = hyper::upgrade::on(&mut response);
        relay.tasks.spawn(tunnel(Arc::clone(&relay), client, upstream));
    }
    relay.served[host].send_modify(|served| *served += 1);
    let (head, body) = response.into_parts();
    let body = if relay.strikes(Sabotage::CutBody) {
        cut(body).await
    } else if relay.strikes(Sabotage::FlipByte) {
        body.map_frame(flipped).map_err(Into::into).boxed_unsync()
    } else {
        body.map_err(Into::into).boxed_unsync()
    };
    Ok(Response::from_parts(head, body))
}

/// One request on a connection of its own.
async fn send(
    relay: &Relay,
    upstream: SocketAddr,
    request: Request<Body>,
) -> Result<Response<Incoming>, Failure> {
    let stream = TokioIo::new(TcpStream::connect(upstream).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    relay.tasks.spawn(connection.with_upgrades());
    Ok(sender.send_request(request).await?)
}

/// The first frame, then a failure, which ends the connection.
async fn cut(mut body: Incoming) -> Body {
    let first: Option<Result<_, Failure>> = body.frame().await.map(|frame| frame.map_err(Into::into));
    let failure = stream::once(async {
        // Not ready at once, so that the head and the first frame are written before.
        tokio::task::yield_now().await;
        Err("sabotaged".into())
    });
    StreamBody::new(stream::iter(first).chain(failure)).boxed_unsync()
}

fn flipped(frame: Frame<Bytes>) -> Frame<Bytes> {
    frame.map_data(|data| {
        let mut data = data.to_vec();
        data[0] ^= 1;
        data.into()
    })
}

async fn tunnel(relay: Arc<Relay>, client: OnUpgrade, upstream: OnUpgrade) -> Result<(), Failure> {
    let (mut client, mut upstream) = (TokioIo::new(client.await?), TokioIo::new(upstream.await?));
    let close_frame: &[u8] = match relay.sabotage {
        Sabotage::DropWebsocket => &[],
        Sabotage::RestartWebsocket => &[0x88, 2, 0x03, 0xf4],
        _ => {
            tokio::io::copy_bidirectional(&mut client, &mut upstream).await?;
            return Ok(());
        }
    };
    for _echo in 0..3 {
        pass(&mut client, &mut upstream).await?;
        pass(&mut upstream, &mut client).await?;
    }
    client.write_all(close_frame).await?;
    client.shutdown().await?;
    Ok(())
}

async fn pass(from: &mut TokioIo<Upgraded>, to: &mut TokioIo<Upgraded>) -> Result<(), Failure> {
    let mut buffer = [0; 1024];
    let length = from.read(&mut buffer).await?;
    Ok(to.write_all(&buffer[..length]).await?)
}
