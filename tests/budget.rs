//! What a request may cost, by count: time is for the benches. The figures stand in docs/performance.md.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use lockgate::clock::{Clock, SystemClock};
use lockgate::ids::InstanceId;
use lockgate::proxy::{self, DataPlane, ProxySettings};
use lockgate::routing::{Backend, Routing, Target};
use lockgate::telemetry::BackendStats;
use rustix::process::{Pid, Signal, kill_process};

const REQUESTS: u64 = 2000;

/// Allocations of a request on a kept connection, and of one on a connection of its own.
const ON_A_KEPT_CONNECTION: u64 = 2;
const ON_ITS_OWN: u64 = 19;

/// System calls that read, and that write, for a request on a kept connection: one for the client and one for the
/// upstream.
const READS: u64 = 2;
const WRITES: u64 = 2;

/// Bytes that a kept connection holds once it has had no request for a while, and how many are looked at: fewer than one
/// address may have.
const AT_REST: u64 = 2048;
const RESTING: usize = 200;

/// Bytes that a response holds whose client does not read it, and how many are looked at.
const HELD_UP: u64 = 384 * 1024;
const UNREAD: usize = 50;

/// What else the data plane allocates meanwhile: once in a tick, and once for many requests.
const BESIDE: u64 = REQUESTS / 5;

const KEPT: &str = "GET /100 HTTP/1.1\r\nHost: budget.test\r\n\r\n";
const CLOSING: &str = "GET /100 HTTP/1.1\r\nHost: budget.test\r\nConnection: close\r\n\r\n";

/// As nginx answers, with the last byte of its body as the end.
const ANSWER: &str = "HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Sat, 01 Jan 2000 00:00:00 GMT\r\n\
    Content-Type: application/octet-stream\r\nContent-Length: 10\r\nLast-Modified: Sat, 01 Jan 2000 00:00:00 GMT\r\n\
    Connection: keep-alive\r\nETag: \"6a1a-64\"\r\nAccept-Ranges: bytes\r\n\r\nxxxxxxxxx!";

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static HELD: AtomicU64 = AtomicU64::new(0);

/// One test counts at a time.
static COUNTS: Mutex<()> = Mutex::new(());

thread_local! {
    /// This thread plays a client or an upstream, and is not what is measured.
    static IS_OURS: Cell<bool> = const { Cell::new(false) };
}

/// The system's allocator, counting what other threads than ours ask for and hold.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

/// Some bytes are held from now on, and others no more.
fn count(more: usize, fewer: usize) {
    if !IS_OURS.get() {
        ALLOCATIONS.fetch_add(u64::from(more > 0), Ordering::Relaxed);
        HELD.fetch_add((more as u64).wrapping_sub(fewer as u64), Ordering::Relaxed);
    }
}

// SAFETY: it is the system's allocator, which does all of the work; counting does not allocate.
#[expect(unsafe_code, reason = "there is no other way to count allocations")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[test]
fn a_request_is_within_its_budget_of_allocations() {
    IS_OURS.set(true);
    let _alone = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    let (plane, address) = start(upstream());
    let mut kept = TcpStream::connect(address).unwrap();
    let per_kept = counted(|| ask(&mut kept, KEPT));
    let per_closing = counted(|| ask(&mut TcpStream::connect(address).unwrap(), CLOSING));
    drop((kept, plane));
    let told = format!("allocations of {REQUESTS} requests: {per_kept} kept, {per_closing} on their own");
    assert!(per_kept <= ON_A_KEPT_CONNECTION * REQUESTS + BESIDE, "{told}");
    assert!(per_closing <= ON_ITS_OWN * REQUESTS + BESIDE, "{told}");
    println!("{told}");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "nothing tells from outside that a connection rests")]
fn a_kept_connection_without_requests_is_within_its_budget_of_memory() {
    IS_OURS.set(true);
    let _alone = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    let (plane, address) = start(upstream());
    let connected = || {
        let mut client = TcpStream::connect(address).unwrap();
        ask(&mut client, KEPT);
        client
    };
    drop(connected());
    let before = HELD.load(Ordering::Relaxed);
    let mut clients: Vec<TcpStream> = (0..RESTING).map(|_| connected()).collect();
    let per_connection =
        || HELD.load(Ordering::Relaxed).saturating_sub(before) / u64::try_from(RESTING).unwrap();
    let busy = per_connection();
    let rests = |_: &u32| per_connection() <= AT_REST;
    let rested = (0..3000).inspect(|_| thread::sleep(Duration::from_millis(20))).find(rests).is_some();
    let told = format!("bytes held by a kept connection: {busy}, and {} at rest", per_connection());
    assert!(rested, "{told}");
    println!("{told}");
    clients.iter_mut().for_each(|client| ask(client, KEPT));
    drop(plane);
}

/// The upstream sends faster than its client reads: each way may hold a buffer, and the pieces of one on their way.
#[test]
#[expect(clippy::disallowed_methods, reason = "nothing tells from outside that no more is buffered")]
fn a_response_that_nobody_reads_is_within_its_budget_of_memory() {
    IS_OURS.set(true);
    let _alone = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    let (plane, address) = start(endless());
    let before = HELD.load(Ordering::Relaxed);
    let clients: Vec<TcpStream> = (0..UNREAD)
        .map(|_| {
            let mut client = TcpStream::connect(address).unwrap();
            client.write_all(KEPT.as_bytes()).unwrap();
            client
        })
        .collect();
    let (mut most, mut looks) = (0, 0);
    for _ in 0..3000 {
        thread::sleep(Duration::from_millis(20));
        most = most.max(HELD.load(Ordering::Relaxed).saturating_sub(before) / u64::try_from(UNREAD).unwrap());
        // Two seconds from when there is something.
        looks += u64::from(most >= 16 * 1024);
        if looks == 100 {
            break;
        }
    }
    assert!((16 * 1024..=HELD_UP).contains(&most), "bytes held for a response that nobody reads: {most}");
    println!("bytes held for a response that nobody reads: {most}");
    drop((clients, plane));
}

#[test]
fn a_request_on_a_kept_connection_takes_one_read_and_one_write_on_each_side() {
    IS_OURS.set(true);
    if Command::new("strace").arg("-V").output().is_err() {
        println!("SKIPPED: strace: a_request_on_a_kept_connection_takes_one_read_and_one_write_on_each_side");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (mut traced, address) = serve_under_strace(folder.path(), "127.0.0.6:0", upstream(), &["-c"]);
    let mut client = connect(address);
    (0..REQUESTS).for_each(|_| ask(&mut client, KEPT));
    stop(&mut traced);
    let told = std::fs::read_to_string(folder.path().join("calls")).unwrap();
    let reads = calls(&told, &["recvfrom", "recvmsg", "readv"]);
    let writes = calls(&told, &["sendto", "sendmsg", "writev"]);
    assert!(reads >= READS * REQUESTS && writes >= WRITES * REQUESTS, "not counted:\n{told}");
    assert!(reads <= READS * REQUESTS + BESIDE && writes <= WRITES * REQUESTS + BESIDE, "{told}");
}

#[test]
fn a_response_that_its_connection_ends_with_goes_in_one_segment_with_the_end() {
    IS_OURS.set(true);
    if Command::new("strace").arg("-V").output().is_err() {
        println!(
            "SKIPPED: strace: a_response_that_its_connection_ends_with_goes_in_one_segment_with_the_end"
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let what = ["-e", "trace=sendto"];
    let (mut traced, address) = serve_under_strace(folder.path(), "127.0.0.7:0", upstream(), &what);
    let mut client = connect(address);
    (0..10).for_each(|_| ask(&mut client, KEPT));
    (0..10).for_each(|_| ask(&mut TcpStream::connect(address).unwrap(), CLOSING));
    stop(&mut traced);
    let told = std::fs::read_to_string(folder.path().join("calls")).unwrap();
    // Beside those of the first look, which may be one that was not answered.
    let held_back = told.lines().filter(|line| line.contains("MSG_MORE")).count();
    assert!((10..=12).contains(&held_back), "{held_back} of 10, and none that a request may follow: {told}");
}

/// A whole Lockgate with one worker, whose system calls strace tells of in the file `calls`. It is given a port of `own`, an
/// address at which nobody else asks for ports meanwhile.
fn serve_under_strace(folder: &Path, own: &str, upstream: SocketAddr, what: &[&str]) -> (Child, SocketAddr) {
    let address = TcpListener::bind(own).unwrap().local_addr().unwrap();
    let config = serde_json::json!({
        "listeners": { "http": { "address": address } },
        "admin": { "socket": folder.join("admin.sock") },
        "data_dir": folder.join("data"),
        "runtime": "process",
        "workers": 1,
        "access_log": "off",
        "services": { "budget": { "upstreams": [format!("http://{upstream}")], "hosts": ["*"] } },
    });
    std::fs::write(folder.join("lockgate.yaml"), config.to_string()).unwrap();
    let log = std::fs::File::create(folder.join("log")).unwrap();
    let traced = Command::new("strace")
        .arg("-f")
        .args(what)
        .arg("-o")
        .arg(folder.join("calls"))
        .args([env!("CARGO_BIN_EXE_lockgate"), "serve", "--config"])
        .arg(folder.join("lockgate.yaml"))
        .stderr(log)
        .spawn()
        .unwrap();
    (traced, address)
}

/// Once it serves.
#[expect(clippy::disallowed_methods, reason = "a process that starts has nothing else to be waited on")]
fn connect(address: SocketAddr) -> TcpStream {
    let serves = |_: &u32| TcpStream::connect(address).is_ok_and(|mut client| try_ask(&mut client, CLOSING));
    (0..6000).inspect(|_| thread::sleep(Duration::from_millis(20))).find(serves).expect("it does not serve");
    TcpStream::connect(address).unwrap()
}

/// Asks what is traced to end, and waits for both.
fn stop(strace: &mut Child) {
    let id = strace.id();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let traced = Pid::from_raw(children.split_whitespace().next().unwrap().parse().unwrap()).unwrap();
    kill_process(traced, Signal::TERM).unwrap();
    strace.wait().unwrap();
}

/// How often strace counted calls of these names: the fourth column, and the name is the last.
fn calls(told: &str, names: &[&str]) -> u64 {
    let lines = told.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let counted = lines.filter(|words| words.last().is_some_and(|name| names.contains(name)));
    counted.map(|words| words[3].parse::<u64>().unwrap()).sum()
}

/// What the data plane allocates for [`REQUESTS`] calls, once it has all that it keeps.
fn counted(mut request: impl FnMut()) -> u64 {
    (0..100).for_each(|_| request());
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    (0..REQUESTS).for_each(|_| request());
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

/// One worker with all that is on by default.
fn start(upstream: SocketAddr) -> (DataPlane, SocketAddr) {
    let routing = Arc::new(Routing::new(1));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let settings = ProxySettings { listen: vec!["127.0.0.1:0".parse().unwrap()], ..ProxySettings::default() };
    let plane = proxy::start(settings, &routing, &clock).unwrap();
    let target = Arc::new(Target::new(InstanceId::generate(), upstream, 1));
    let stats = Arc::new(BackendStats::for_service("budget", 1));
    let backend = Arc::new(Backend::new(Box::new([target]), stats));
    routing.publish(|edit| edit.route(&"*".parse().unwrap(), "/", &backend));
    let address = plane.addresses()[0];
    (plane, address)
}

/// Answers every request on one connection at a time.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        IS_OURS.set(true);
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            while read_until(&mut stream, b"\r\n\r\n") {
                stream.write_all(ANSWER.as_bytes()).unwrap();
            }
        }
    });
    address
}

/// Sends to everybody without an end.
fn endless() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        IS_OURS.set(true);
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                IS_OURS.set(true);
                read_until(&mut stream, b"\r\n\r\n");
                let _until_closed =
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n");
                while stream.write_all(&[0; 64 * 1024]).is_ok() {}
            });
        }
    });
    address
}

fn ask(client: &mut TcpStream, request: &str) {
    assert!(try_ask(client, request), "no whole answer");
}

fn try_ask(client: &mut TcpStream, request: &str) -> bool {
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    client.write_all(request.as_bytes()).unwrap();
    read_until(client, b"\r\n\r\nxxxxxxxxx!")
}

/// Reads until what came ends with `end`; `false` if the other side ends before.
fn read_until(stream: &mut TcpStream, end: &[u8]) -> bool {
    let (mut read, mut buf) = (0, [0; 8192]);
    while !buf[..read].ends_with(end) {
        match stream.read(&mut buf[read..]) {
            Ok(0) | Err(_) => return false,
            Ok(more) => read += more,
        }
    }
    true
}
