//! The access log: one line for each request, written by a thread of its own.
//!
//! Workers never wait for it: what finds the queue full is dropped and counted. What strangers wrote is cut to a
//! length, its control characters are escaped, and secrets in a query are left out.

mod combined;
mod json;
mod writer;

use std::borrow::Cow;
use std::cell::RefCell;
use std::net::IpAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Request, Version, header};
use jiff::SignedDuration;

use crate::clock::Timestamp;

use super::client::Client;
use super::exchange::Exchange;
use super::plane::StartError;
use super::settings::{AccessLogFormat, AccessLogSink};
use super::worker::Worker;
use writer::Queue;

/// A worker hands its lines to the writer when they are so many bytes, and at each tick: to wake a thread for each line
/// costs a fifth of what the request does.
const BATCH: usize = 32 * 1024;

/// Bytes of a field that a client wrote.
const FIELD_MAX: usize = 1024;

/// Query parameters whose values stay out of the log.
const SECRETS: [&str; 14] = [
    "access_token",
    "api_key",
    "apikey",
    "auth",
    "code",
    "key",
    "lockgate_link",
    "lockgate_signed",
    "passwd",
    "password",
    "secret",
    "sig",
    "signature",
    "token",
];

/// A worker's side of the log.
#[derive(Clone, Debug)]
pub(crate) struct AccessLog {
    queue: Queue,
    format: AccessLogFormat,
    /// Not handed over yet.
    batch: RefCell<Batch>,
}

/// Whole lines.
#[derive(Clone, Debug, Default)]
struct Batch {
    text: Vec<u8>,
    lines: u64,
}

/// What only the log wants to know of a request.
#[derive(Debug)]
pub(crate) struct Logged {
    client_ip: IpAddr,
    host: String,
    path: String,
    query: Option<String>,
    user_agent: Option<String>,
    referer: Option<String>,
    version: Version,
    request_on_connection: u32,
    pub(super) trace_id: Option<String>,
    /// How often the request was sent to a target.
    attempts: u32,
    /// How long it waited for a held backend, until now and since the wait that goes on began.
    held: Duration,
    held_since: Option<Instant>,
    /// Of the route table that led to the last target.
    generation: Option<u64>,
    /// Why the request, or the last attempt, failed.
    error: Option<String>,
}

/// One request that is over, with all that is told of it.
struct Entry<'a> {
    exchange: &'a Exchange,
    logged: &'a Logged,
    now: Instant,
}

/// Opens the log and starts its writer.
///
/// # Errors
/// If the file cannot be opened or the thread not started.
pub(crate) fn open(
    sink: &AccessLogSink,
    format: AccessLogFormat,
) -> Result<(Option<AccessLog>, Option<JoinHandle<()>>), StartError> {
    let Some((queue, writer)) = writer::start(sink)? else { return Ok((None, None)) };
    Ok((Some(AccessLog { queue, format, batch: RefCell::default() }), Some(writer)))
}

impl AccessLog {
    /// Logs a request that ended at `now`.
    pub(crate) fn write(&self, exchange: &Exchange, now: Instant) {
        let Some(logged) = &exchange.logged else { return };
        let entry = Entry { exchange, logged, now };
        let mut batch = self.batch.borrow_mut();
        match self.format {
            AccessLogFormat::Json => json::write(&mut batch.text, &entry),
            AccessLogFormat::Combined => combined::write(&mut batch.text, &entry),
        }
        batch.text.push(b'\n');
        batch.lines += 1;
        let is_full = batch.text.len() >= BATCH;
        drop(batch);
        if is_full {
            self.hand_over(&exchange.client.worker);
        }
    }

    /// Has what `worker` logged written, or counts that there was no room.
    pub(crate) fn hand_over(&self, worker: &Worker) {
        let lines = self.batch.borrow().lines;
        if lines > 0 && !self.push() {
            worker.cells().access_log_dropped.add(lines);
        }
    }

    fn push(&self) -> bool {
        let Batch { text, .. } = self.batch.take();
        text.is_empty() || self.queue.push(text)
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        // What ended with the worker. If there is no room for it, nobody is left to be told how much it was.
        self.push();
    }
}

impl Logged {
    pub(crate) fn of<B>(request: &Request<B>, client: &Client) -> Box<Self> {
        let headers = request.headers();
        Box::new(Self {
            client_ip: client.address(headers),
            host: host_of(request),
            path: printable(request.uri().path().as_bytes()),
            query: request.uri().query().map(|query| printable(without_secrets(query).as_bytes())),
            user_agent: text_of(headers, &header::USER_AGENT),
            referer: text_of(headers, &header::REFERER).map(|referer| match referer.split_once('?') {
                Some((page, query)) => format!("{page}?{}", without_secrets(query)),
                None => referer,
            }),
            version: request.version(),
            ..Self::unread(client)
        })
    }

    /// Of a head that could not be read.
    pub(crate) fn unread(client: &Client) -> Self {
        Self {
            client_ip: client.peer.address,
            host: String::new(),
            path: String::new(),
            query: None,
            user_agent: None,
            referer: None,
            version: Version::HTTP_11,
            request_on_connection: client.requests.get(),
            trace_id: None,
            attempts: 0,
            held: Duration::ZERO,
            held_since: None,
            generation: None,
            error: None,
        }
    }

    /// It waits for a held backend from `now` on.
    pub(crate) fn hold(&mut self, now: Instant) {
        self.held_since = Some(now);
    }

    /// It does not wait any more.
    pub(crate) fn unhold(&mut self, now: Instant) {
        self.held = self.held_until(now);
        self.held_since = None;
    }

    fn held_until(&self, now: Instant) -> Duration {
        self.held + self.held_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// The request is sent to a target, which a route of `generation` led to.
    pub(crate) fn attempt(&mut self, generation: u64) {
        self.attempts += 1;
        self.generation = Some(generation);
    }

    /// The target answered, after it was sent `resent` times more.
    pub(crate) fn reached(&mut self, resent: u32) {
        self.attempts += resent;
    }

    pub(crate) fn failed(&mut self, error: &(dyn std::error::Error + 'static)) {
        self.error = Some(printable(crate::error::chain(error).as_bytes()));
    }
}

impl Entry<'_> {
    /// When the request began.
    fn began(&self) -> Timestamp {
        let worker = &self.exchange.client.worker;
        worker.clock.wall() - SignedDuration::try_from(self.took()).unwrap_or_default()
    }

    fn took(&self) -> Duration {
        self.now.saturating_duration_since(self.exchange.started)
    }

    fn protocol(&self) -> &'static str {
        match self.logged.version {
            Version::HTTP_10 => "1.0",
            Version::HTTP_2 => "2.0",
            Version::HTTP_3 => "3.0",
            _ => "1.1",
        }
    }
}

/// The host that routes: the target's, if it has one, without a name and password before it.
pub(super) fn host_of<B>(request: &Request<B>) -> String {
    match request.uri().authority() {
        Some(authority) => {
            let authority = authority.as_str();
            printable(authority.rsplit_once('@').map_or(authority, |(_user, host)| host).as_bytes())
        }
        None => text_of(request.headers(), &header::HOST).unwrap_or_default(),
    }
}

pub(super) fn text_of(headers: &HeaderMap, name: &header::HeaderName) -> Option<String> {
    headers.get(name).map(HeaderValue::as_bytes).map(printable)
}

/// Text that may stand in any log: cut to length, without control characters and marks that turn its direction.
pub(super) fn printable(bytes: &[u8]) -> String {
    let given = String::from_utf8_lossy(&bytes[..bytes.len().min(FIELD_MAX)]);
    if given.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return given.into_owned();
    }
    let mut text = String::new();
    for character in given.chars() {
        let turns = matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if character.is_control() || turns {
            text.extend(character.escape_unicode());
        } else {
            text.push(character);
        }
    }
    text
}

fn without_secrets(query: &str) -> String {
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if SECRETS.contains(&decoded(name).to_ascii_lowercase().as_str()) => {
            format!("{name}=[redacted]")
        }
        _ => pair.to_owned(),
    });
    pairs.collect::<Vec<_>>().join("&")
}

/// The name of a parameter without percent-encodings, as applications read it.
fn decoded(name: &str) -> Cow<'_, str> {
    let Some((first, rest)) = name.split_once('%') else { return Cow::Borrowed(name) };
    let mut text = first.to_owned();
    for part in rest.split('%') {
        let digits = part.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                text.push(char::from(byte));
                text.push_str(&part[2..]);
            }
            None => {
                text.push('%');
                text.push_str(part);
            }
        }
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i4_what_strangers_write_cannot_forge_a_line_or_show_a_secret() {
        assert_eq!(
            printable("a\r\nb\u{1b}[31m\u{202e}\u{85}ä".as_bytes()),
            "a\\u{d}\\u{a}b\\u{1b}[31m\\u{202e}\\u{85}ä"
        );
        assert_eq!(printable(&[b'x'; 2000]).len(), FIELD_MAX);
        assert_eq!(
            without_secrets("a=1&Token=x&password=&tokens=2"),
            "a=1&Token=[redacted]&password=[redacted]&tokens=2"
        );
        assert_eq!(
            without_secrets(
                "lockgate%5Fsigned=x&%4Bey=y&to%6ben=z&%6=1&%zzkey=2&%+6key=3&k%C3%A9y=4&a%26token=5"
            ),
            "lockgate%5Fsigned=[redacted]&%4Bey=[redacted]&to%6ben=[redacted]&%6=1&%zzkey=2&%+6key=3&k%C3%A9y=4&a%26token=5"
        );
    }
}
