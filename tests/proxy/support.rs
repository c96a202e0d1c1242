//! A data plane of one test, upstreams that do what the test says, and raw clients.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{HeaderMap, Request, Response};
use lockgate::clock::{Clock, SystemClock, Timestamp};
use lockgate::gate::Awaited;
use lockgate::ids::InstanceId;
use lockgate::proxy::{self, DataPlane, Limits, ProxySettings, StartError};
use lockgate::routing::backend::Order;
use lockgate::routing::{Backend, HostPattern, Routing, Target};
use lockgate::settings::Protocol;
use lockgate::telemetry::BackendStats;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

/// An answer without a body.
pub(crate) const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
pub(crate) const CREATED: &str = "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n";

/// More than the kernel's buffers of the four sockets of a request take together.
pub(crate) const SOCKET_BUFFERS: usize = 64 * 1024 * 1024;

/// Nothing in these tests takes that long unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A limit that the test itself keeps to: longer than its thread waits for its turn on a busy machine, while workers have theirs.
pub(crate) const LONGER: Duration = Duration::from_secs(3);

/// Workers that a test's targets are ready for.
pub(crate) const WORKERS: usize = 4;

/// A data plane, with one worker unless a test asks for [`WORKERS`].
pub(crate) struct Plane {
    pub(crate) routing: Arc<Routing>,
    pub(crate) address: SocketAddr,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) plane: DataPlane,
}

/// The machine's clock, until it is stopped and moved by hand.
#[derive(Debug, Default)]
pub(crate) struct TestClock {
    stopped: Mutex<Option<Instant>>,
    /// The time of day, if a test says it.
    wall: Mutex<Option<Timestamp>>,
    /// Calls until one panics.
    panics_in: AtomicUsize,
    /// Whoever asks for the time waits for it.
    pub(crate) stalled: Mutex<()>,
}

/// Where a test plays the application.
pub(crate) struct Upstream {
    listener: Arc<TcpListener>,
    pub(crate) target: Arc<Target>,
    pub(crate) backend: Arc<Backend>,
    tasks: Mutex<JoinSet<()>>,
    heads: Arc<Mutex<Vec<String>>>,
    response: Arc<Mutex<&'static str>>,
}

/// One end of a connection.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    /// Read and not yet asked for.
    read: Vec<u8>,
}

/// A response over HTTP/2 or HTTP/3 as far as it came, and the error that ended it.
#[derive(Debug)]
pub(crate) struct Whole<E> {
    pub(crate) head: Response<()>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) error: Option<E>,
}

impl<E> Whole<E> {
    /// Of which nothing but the head has come.
    pub(crate) fn begun(head: Response<()>) -> Self {
        Self { head, body: Vec::new(), trailers: None, error: None }
    }

    pub(crate) fn status(&self) -> u16 {
        self.head.status().as_u16()
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.headers().get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Plane {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut ProxySettings)) -> Self {
        Self::try_with(change).unwrap()
    }

    pub(crate) fn try_with(change: impl FnOnce(&mut ProxySettings)) -> Result<Self, StartError> {
        Self::of_workers(1, change)
    }

    pub(crate) fn of_workers(
        workers: usize,
        change: impl FnOnce(&mut ProxySettings),
    ) -> Result<Self, StartError> {
        let mut settings = ProxySettings {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            via: None,
            // Limits that a test does not set are none that it could come to, however busy the machine.
            limits: Limits {
                tick: Duration::from_millis(10),
                proxy_header: PATIENCE,
                handshake: PATIENCE,
                head: PATIENCE,
                body_floor_after: PATIENCE,
                connect: PATIENCE,
                response_head: PATIENCE,
                response_idle: PATIENCE,
                pool_idle: PATIENCE,
                upstream_ping: PATIENCE,
                ..Limits::default()
            },
            ..ProxySettings::default()
        };
        change(&mut settings);
        let routing = Arc::new(Routing::new(workers));
        let clock = Arc::new(TestClock::default());
        let plane = proxy::start(settings, &routing, &(clock.clone() as Arc<dyn Clock>))?;
        Ok(Self { routing, address: plane.addresses()[0], clock, plane })
    }

    /// Leads `host` to `upstream`.
    pub(crate) fn route(&self, host: &str, upstream: &Upstream) -> u64 {
        self.routing.publish(|edit| edit.route(&pattern(host), "/", &upstream.backend))
    }

    /// One swap in the order that the engine keeps. `probe` asks once it is done; the old version is then drained, and has
    /// no connection left.
    pub(crate) async fn swap(
        &self,
        host: &str,
        old: &Upstream,
        new: &Upstream,
        probe: impl Future<Output = ()>,
    ) {
        new.target.gate.reopen();
        new.target.connections.reopen();
        new.target.set_order(Order::Serve);
        self.route(host, new);
        old.target.gate.close();
        probe.await;
        within(old.target.gate.drained(Awaited::Everything)).await;
        old.target.set_order(Order::CloseIdle);
        self.routing.signal_workers();
        old.target.connections.close();
        within(old.target.connections.drained(Awaited::Everything)).await;
    }

    /// Swaps two versions at `a.test`, which answer 200 and 201, a hundred times. Once each is done `probe` asks, and gets
    /// the new one's status.
    pub(crate) async fn swaps(&self, versions: [&Upstream; 2], mut probe: impl AsyncFnMut() -> u16) {
        for swap in 0..100 {
            let (old, new) = (versions[swap % 2], versions[(swap + 1) % 2]);
            let probe = async { assert_eq!(probe().await, [201, 200][swap % 2], "swap {swap}") };
            self.swap("a.test", old, new, probe).await;
        }
    }

    /// A client's connection and the one to the upstream behind it, both kept after one request to `a.test`.
    pub(crate) async fn kept(&self, upstream: &Upstream) -> (Wire, Wire) {
        let mut client = self.connect().await;
        client.send(GET).await;
        let mut app = upstream.accept().await;
        app.head().await;
        app.send(OK).await;
        assert!(client.head().await.starts_with("HTTP/1.1 200 "));
        (client, app)
    }

    /// A request whose kept connection the app closes in place of an answer, so that it is sent once more.
    pub(crate) async fn lose_kept(&self, upstream: &Upstream) {
        let (mut client, mut app) = self.kept(upstream).await;
        client.send(GET).await;
        app.head().await;
        drop(app);
        let mut fresh = upstream.accept().await;
        fresh.head().await;
        fresh.send(OK).await;
        client.head().await;
    }

    pub(crate) async fn connect(&self) -> Wire {
        Wire::new(within(TcpStream::connect(self.address)).await.unwrap())
    }

    /// A new connection, one request, and all that comes back until the proxy closes.
    pub(crate) async fn exchange(&self, request: impl AsRef<[u8]>) -> String {
        let mut client = self.connect().await;
        client.send(request).await;
        client.rest().await
    }

    /// Connections that each of the workers took.
    pub(crate) fn taken(&self) -> [u64; WORKERS] {
        std::array::from_fn(|worker| self.plane.telemetry().of(worker).connections.get())
    }

    pub(crate) fn metrics(&self) -> String {
        self.plane.telemetry().render()
    }

    /// For how long all requests together waited here, and not for their application.
    pub(crate) fn waited(&self) -> Duration {
        let metrics = self.metrics();
        let sum = |name: &str| -> f64 {
            let series = format!("lockgate_{name}_seconds_sum{{app=\"test\",");
            let line = metrics.lines().find(|line| line.starts_with(&series)).expect(&series);
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        Duration::from_secs_f64(sum("http_response_first_byte") - sum("upstream_response_head"))
    }

    /// Waits until `condition` holds; workers get their turn meanwhile.
    pub(crate) async fn settle(&self, condition: impl Fn() -> bool) {
        within(async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    pub(crate) async fn shutdown(self) {
        within(self.plane.shutdown(Duration::from_secs(5))).await;
    }
}

impl TestClock {
    /// Has whoever asks for the time the `nth` time from now on panic.
    pub(crate) fn panic_at(&self, nth: usize) {
        self.panics_in.store(nth, Ordering::Relaxed);
    }

    /// Stops it, and moves it forward.
    pub(crate) fn advance(&self, by: Duration) {
        let mut stopped = self.stopped.lock().unwrap();
        *stopped = Some(stopped.unwrap_or_else(|| SystemClock.now()) + by);
    }

    /// Sets the time of day to that many seconds of Unix time, and stops it there.
    pub(crate) fn set_wall(&self, seconds: i64) {
        *self.wall.lock().unwrap() = Some(Timestamp::from_second(seconds).unwrap());
    }
}

impl Clock for TestClock {
    fn now(&self) -> Instant {
        drop(self.stalled.lock());
        let left =
            self.panics_in.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        assert_ne!(left, Ok(1), "a fault put in by a test");
        self.stopped.lock().unwrap().unwrap_or_else(|| SystemClock.now())
    }

    fn wall(&self) -> Timestamp {
        self.wall.lock().unwrap().unwrap_or_else(|| SystemClock.wall())
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        SystemClock.sleep_until(deadline)
    }
}

impl Upstream {
    pub(crate) async fn start() -> Self {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = listener.local_addr().unwrap();
        Self { listener, ..Self::at(address).await }
    }

    /// A target at `address`, where something else listens.
    pub(crate) async fn at(address: SocketAddr) -> Self {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let target = Arc::new(Target::new(InstanceId::generate(), address, WORKERS));
        let stats = Arc::new(BackendStats::for_service("test", WORKERS));
        let backend = Arc::new(Backend::new(Box::new([target.clone()]), stats));
        Self {
            listener,
            target,
            backend,
            tasks: Mutex::default(),
            heads: Arc::default(),
            response: Arc::default(),
        }
    }

    /// One that is spoken to by HTTP/2.
    pub(crate) async fn h2c() -> Self {
        Self::spoken_to(|target| target.speaking(Protocol::H2c)).await
    }

    /// One that is spoken to in another way.
    pub(crate) async fn spoken_to(how: impl FnOnce(Target) -> Target) -> Self {
        Self::start().await.with_target(how)
    }

    /// The same upstream, with a target of another kind.
    pub(crate) fn with_target(self, how: impl FnOnce(Target) -> Target) -> Self {
        let target = Arc::new(how(Target::new(InstanceId::generate(), self.target.address, WORKERS)));
        Self { backend: backend(&[&target]), target, ..self }
    }

    /// An upstream that answers every request on every connection with `response`.
    pub(crate) async fn answering(response: &'static str) -> Self {
        let upstream = Self::start().await;
        upstream.answer(response);
        let (listener, heads, response) =
            (upstream.listener.clone(), upstream.heads.clone(), upstream.response.clone());
        upstream.tasks.lock().unwrap().spawn(async move {
            let mut wires = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (heads, response) = (heads.clone(), response.clone());
                wires.spawn(async move {
                    let mut wire = Wire::new(stream);
                    while let Some(head) = wire.try_head().await {
                        heads.lock().unwrap().push(head);
                        let response = *response.lock().unwrap();
                        wire.send(response).await;
                    }
                });
            }
        });
        upstream
    }

    /// Answers with `response` from now on.
    pub(crate) fn answer(&self, response: &'static str) {
        *self.response.lock().unwrap() = response;
    }

    /// The heads of all requests that were answered.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    pub(crate) fn listener(&self) -> Arc<TcpListener> {
        Arc::clone(&self.listener)
    }

    /// Does something for as long as this is there.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().unwrap().spawn(task);
    }

    pub(crate) async fn accept(&self) -> Wire {
        Wire::new(within(self.listener.accept()).await.unwrap().0)
    }
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, read: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Sends what is taken of `bytes`.
    pub(crate) async fn write_some(&mut self, bytes: &[u8]) -> usize {
        self.stream.write(bytes).await.unwrap()
    }

    /// Goes away without a word.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }

    /// Ends this side; the other may go on.
    pub(crate) async fn finish(&mut self) {
        within(self.stream.shutdown()).await.unwrap();
    }

    /// Bytes up to and with the first `end`.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        let found = self.try_until(end).await;
        found.unwrap_or_else(|| panic!("the connection ended before {end:?}: {:?}", self.text()))
    }

    /// A head, up to and with its empty line.
    pub(crate) async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    pub(crate) async fn try_head(&mut self) -> Option<String> {
        self.try_until("\r\n\r\n").await
    }

    /// The next `count` bytes.
    pub(crate) async fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            assert!(self.fill().await, "the connection ended after {:?}", self.text());
        }
        self.read.drain(..count).collect()
    }

    /// The next `count` bytes, unless the connection ends before.
    pub(crate) async fn try_bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.read.len() < count {
            if !self.fill().await {
                return None;
            }
        }
        Some(self.read.drain(..count).collect())
    }

    /// Everything until the other side closes or resets.
    pub(crate) async fn rest(&mut self) -> String {
        while self.fill().await {}
        let text = self.text();
        self.read.clear();
        text
    }

    /// How the connection ends; nothing may come before.
    pub(crate) async fn end(&mut self) -> Result<(), std::io::ErrorKind> {
        let ended = within(self.stream.read_buf(&mut self.read)).await;
        assert!(self.read.is_empty(), "bytes instead of the end: {:?}", self.text());
        ended.map(drop).map_err(|error| error.kind())
    }

    /// Waits until the other side closed or reset; nothing may have come.
    pub(crate) async fn closed(&mut self) {
        assert_eq!(self.rest().await, "", "bytes instead of the end");
    }

    async fn try_until(&mut self, end: &str) -> Option<String> {
        loop {
            let found = self.read.windows(end.len()).position(|window| window == end.as_bytes());
            if let Some(at) = found {
                let bytes: Vec<u8> = self.read.drain(..at + end.len()).collect();
                return Some(String::from_utf8_lossy(&bytes).into_owned());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    async fn fill(&mut self) -> bool {
        // A reset is an end, too.
        within(self.stream.read_buf(&mut self.read)).await.unwrap_or(0) > 0
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }
}

/// A target that nobody listens on: its port is taken until the test ends, so that nobody else does.
pub(crate) fn unreachable() -> Arc<Target> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = Box::leak(Box::new(socket)).local_addr().unwrap();
    Arc::new(Target::new(InstanceId::generate(), address, WORKERS))
}

pub(crate) fn get(uri: &str) -> Request<()> {
    Request::get(uri).body(()).unwrap()
}

pub(crate) fn post(uri: &str) -> Request<()> {
    Request::post(uri).body(()).unwrap()
}

/// What the access log tells of each request: its path, its status, and how it ended.
pub(crate) fn logged(path: &Path) -> Vec<String> {
    let log = std::fs::read_to_string(path).unwrap();
    let told = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        [line["path"].to_string(), line["status"].to_string(), line["end"].to_string()].join(" ")
    };
    log.lines().map(told).collect()
}

/// A GET and a POST of `a.test` were cut, each once, and no stream.
pub(crate) fn assert_cut_requests(upstream: &Upstream) {
    let mut cuts = upstream.target.take_cuts();
    cuts.sort_by(|a, b| a.method.cmp(&b.method));
    assert_eq!(
        cuts.iter().map(|cut| (cut.stream, &*cut.method, &*cut.host)).collect::<Vec<_>>(),
        [(false, "GET", "a.test"), (false, "POST", "a.test")]
    );
}

pub(crate) fn backend(targets: &[&Arc<Target>]) -> Arc<Backend> {
    let targets = targets.iter().map(|target| Arc::clone(target)).collect();
    Arc::new(Backend::new(targets, Arc::new(BackendStats::for_service("test", WORKERS))))
}

pub(crate) fn pattern(text: &str) -> HostPattern {
    text.parse().unwrap()
}

/// The value of a header field in a head.
pub(crate) fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

pub(crate) fn status(head: &str) -> u16 {
    head.split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no status: {head:?}"))
}

/// Fails the test instead of waiting for ever.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("waited in vain")
}

/// How many requests were served in all.
pub(crate) async fn all_of(mut load: JoinSet<u64>) -> u64 {
    let mut served = 0;
    while let Some(count) = load.join_next().await {
        served += count.unwrap();
    }
    served
}
