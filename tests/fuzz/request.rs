//! Whatever bytes a client sends: the application gets requests that can be read in one way alone, or none; the client gets
//! answers, or the end of its connection; and nothing hangs.
#![no_main]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use lockgate::clock::{Clock, SystemClock};
use lockgate::ids::InstanceId;
use lockgate::proxy::{self, DataPlane, Limits, ProxySettings};
use lockgate::routing::{Backend, Routing, Target};
use lockgate::telemetry::BackendStats;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(5);

static BED: LazyLock<Bed> = LazyLock::new(Bed::start);
static IS_ODD: AtomicBool = AtomicBool::new(false);
static ODD: Mutex<String> = Mutex::new(String::new());

struct Bed {
    runtime: Runtime,
    address: SocketAddr,
    _plane: DataPlane,
}

impl Bed {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let target = Arc::new(Target::new(InstanceId::generate(), listener.local_addr().unwrap(), 1));
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
        let routing = Arc::new(Routing::new(1));
        let backend = Arc::new(Backend::new([target].into(), Arc::new(BackendStats::for_service("fuzz", 1))));
        routing.publish(|edit| edit.route(&"*".parse().unwrap(), "/", &backend));
        let limits = Limits {
            tick: Duration::from_millis(10),
            head: Duration::from_millis(500),
            body_idle: Duration::from_millis(500),
            ..Limits::default()
        };
        let settings = ProxySettings { listen: vec!["127.0.0.1:0".parse().unwrap()], limits, ..ProxySettings::default() };
        let plane = proxy::start(settings, &routing, &(Arc::new(SystemClock) as Arc<dyn Clock>)).unwrap();
        Self { runtime, address: plane.addresses()[0], _plane: plane }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let bed = &*BED;
    let answer = bed.runtime.block_on(async {
        let mut stream = TcpStream::connect(bed.address).await.unwrap();
        // Whoever is refused early may not get to send all.
        let _sent = stream.write_all(bytes).await;
        let _ended = stream.shutdown().await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "it hangs after {:?}", String::from_utf8_lossy(&answer));
        answer
    });
    let is_http2 = bytes.starts_with(b"PRI * ");
    assert!(answer.is_empty() || is_http2 || answer.starts_with(b"HTTP/1."), "{:?}", String::from_utf8_lossy(&answer));
    if IS_ODD.load(Ordering::Acquire) {
        panic!("{}", ODD.lock().unwrap_or_else(PoisonError::into_inner));
    }
});

/// An application that answers, and looks at every byte.
async fn serve(mut stream: TcpStream) {
    let mut read = Vec::new();
    loop {
        match look(&read) {
            Ok(Some(used)) => {
                read.drain(..used);
                if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.is_err() {
                    return;
                }
            }
            Ok(None) => match stream.read_buf(&mut read).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            },
            Err(why) => {
                *ODD.lock().unwrap_or_else(PoisonError::into_inner) = format!("{why}: {:?}", String::from_utf8_lossy(&read));
                return IS_ODD.store(true, Ordering::Release);
            }
        }
    }
}

/// The length of the request that `bytes` begin with; `None` if more of it has to come.
fn look(bytes: &[u8]) -> Result<Option<usize>, &'static str> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end]).unwrap_or_default();
    let mut lines = bytes[..end].split(|byte| *byte == b'\n');
    let line = lines.next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [method, target, b"HTTP/1.1"] = parts[..] else { return Err("a request line of other than three parts") };
    let is_token = |text: &[u8]| {
        !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
    };
    if !is_token(method) {
        return Err("a method that is none");
    }
    if !(target.starts_with(b"/") && target.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#')) {
        return Err("a target that is not in origin-form");
    }
    let (mut hosts, mut lengths, mut codings) = (0, Vec::new(), Vec::new());
    for line in lines {
        let Some(line) = line.strip_suffix(b"\r").or(Some(line)) else { continue };
        if line.contains(&b'\r') || line.contains(&0) {
            return Err("a bare CR, or a NUL");
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return Err("a line without a colon") };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if !is_token(name) {
            return Err("a name that is none");
        }
        match name.to_ascii_lowercase().as_slice() {
            b"host" => hosts += 1,
            b"content-length" => lengths.push(value.to_vec()),
            b"transfer-encoding" => codings.push(value.to_ascii_lowercase()),
            b"keep-alive" | b"proxy-connection" | b"http2-settings" | b"proxy-authorization" => {
                return Err("a field of another hop");
            }
            _ => {}
        }
    }
    // No line ends in LF alone.
    if head.matches('\n').count() != head.matches("\r\n").count() {
        return Err("a bare LF");
    }
    if hosts != 1 {
        return Err("no Host, or more than one");
    }
    let body = &bytes[end + 4..];
    match (&lengths[..], &codings[..]) {
        ([], []) => Ok(Some(end + 4)),
        ([length], []) => {
            let text = std::str::from_utf8(length).unwrap_or_default();
            let length: usize = text.parse().map_err(|_| "a length that is none")?;
            if text != length.to_string() {
                return Err("a length that is not in its shortest form");
            }
            Ok((body.len() >= length).then_some(end + 4 + length))
        }
        ([], [coding]) if coding == b"chunked" => Ok(chunks(body)?.map(|length| end + 4 + length)),
        _ => Err("a body that is framed in two ways"),
    }
}

/// The length of a chunked body; `None` if more of it has to come.
fn chunks(bytes: &[u8]) -> Result<Option<usize>, &'static str> {
    let mut at = 0;
    loop {
        let Some(end) = bytes[at..].windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
        let digits = &bytes[at..at + end];
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err("a chunk with an extension, or a size that is none");
        }
        let size = std::str::from_utf8(digits).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let size = size.ok_or("a chunk's size that is too large")?;
        at += end + 2;
        if size == 0 {
            // Trailers end in an empty line.
            let Some(end) = bytes[at..].windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
            if end == 0 {
                return Ok(Some(at + 2));
            }
            return Ok(bytes[at..].windows(4).position(|four| four == b"\r\n\r\n").map(|end| at + end + 4));
        }
        if bytes.len() < at + size + 2 {
            return Ok(None);
        }
        if &bytes[at + size..at + size + 2] != b"\r\n" {
            return Err("a chunk that does not end where it should");
        }
        at += size + 2;
    }
}
