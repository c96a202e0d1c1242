//! Clients that speak HTTP/3: one that is well-behaved, and one that writes its frames by hand.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use h3::client::{RequestStream, SendRequest};
use h3::error::{ConnectionError, StreamError};
use h3_quinn::{BidiStream, OpenStreams};
use http::Request;
use lockgate::proxy::ProxySettings;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, ReadError, RecvStream, SendStream};
use tokio::task::JoinSet;

use crate::ca::Ca;
use crate::support::{Upstream, within};
pub(crate) use crate::support::{get, post};
use crate::tls::Bed;

pub(crate) const DATA: u64 = 0;
pub(crate) const HEADERS: u64 = 1;

pub(crate) const EXCESSIVE_LOAD: u64 = 0x107;
pub(crate) const FRAME_ERROR: u64 = 0x106;
pub(crate) const REQUEST_INCOMPLETE: u64 = 0x10d;
pub(crate) const MESSAGE_ERROR: u64 = 0x10e;
pub(crate) const UNDECODABLE: u64 = 0x200;

/// A client with one connection.
pub(crate) struct Http3 {
    pub(crate) send: SendRequest<OpenStreams, Bytes>,
    pub(crate) connection: Connection,
    driver: JoinSet<ConnectionError>,
    pub(crate) endpoint: Endpoint,
}

/// A request of it.
pub(crate) type Asked = RequestStream<BidiStream<Bytes>, Bytes>;

/// A request that was written by hand.
pub(crate) struct Raw {
    sending: SendStream,
    receiving: RecvStream,
    /// Data that came and was not asked for.
    data: Vec<u8>,
}

/// A response of it.
pub(crate) type Whole = crate::support::Whole<StreamError>;

/// A data plane with HTTP/3, a certificate for `a.test` and `b.test`, and a route to the upstream from there.
pub(crate) async fn bed() -> Bed {
    bed_with(|_| {}).await
}

pub(crate) async fn bed_with(change: impl FnOnce(&mut ProxySettings)) -> Bed {
    let bed = Bed::with(|tls| tls.http3 = true, change).await;
    bed.offer(&[&bed.ca.leaf(&["a.test", "b.test"])]);
    bed.route("a.test");
    bed
}

/// The same, with an upstream that does what the test says.
pub(crate) async fn bed_to_upstream() -> (Bed, Upstream) {
    let (bed, upstream) = (bed().await, Upstream::start().await);
    bed.plane.route("a.test", &upstream);
    (bed, upstream)
}

impl Bed {
    /// Where it listens with TLS, and with QUIC.
    pub(crate) fn secure(&self) -> SocketAddr {
        self.plane.plane.addresses()[1]
    }
}

pub(crate) fn config(ca: &Ca) -> ClientConfig {
    of_tls(ca.client())
}

/// The same with another set-up of TLS.
pub(crate) fn of_tls(mut config: rustls::ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"h3".to_vec()];
    ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
}

/// Not at the address at which the data plane listens: any of its ports may be asked for there.
pub(crate) fn endpoint() -> Endpoint {
    Endpoint::client("127.0.0.2:0".parse().unwrap()).unwrap()
}

pub(crate) async fn connect(bed: &Bed, name: &str) -> Connection {
    within(endpoint().connect_with(config(&bed.ca), bed.secure(), name).unwrap()).await.unwrap()
}

impl Http3 {
    pub(crate) async fn connect(bed: &Bed) -> Self {
        Self::with(bed, config(&bed.ca)).await
    }

    pub(crate) async fn with(bed: &Bed, config: ClientConfig) -> Self {
        Self::at(bed.secure(), config).await
    }

    /// By another way.
    pub(crate) async fn at(address: SocketAddr, config: ClientConfig) -> Self {
        let endpoint = endpoint();
        let connecting = endpoint.connect_with(config, address, "a.test").unwrap();
        let connection = within(connecting).await.unwrap();
        let quic = h3_quinn::Connection::new(connection.clone());
        let (mut running, send) = within(h3::client::new(quic)).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(async move { std::future::poll_fn(|cx| running.poll_close(cx)).await });
        Self { send, connection, driver, endpoint }
    }

    /// Begins a request, whose body follows.
    pub(crate) async fn begin(&mut self, request: Request<()>) -> Asked {
        within(self.send.send_request(request)).await.unwrap()
    }

    /// And one without a body.
    pub(crate) async fn ask(&mut self, request: Request<()>) -> Asked {
        let mut asked = self.begin(request).await;
        within(asked.finish()).await.unwrap();
        asked
    }

    pub(crate) async fn answer(&mut self, request: Request<()>) -> Whole {
        let asked = self.ask(request).await;
        Whole::of(asked).await.unwrap()
    }

    pub(crate) async fn get(&mut self, uri: &str) -> Whole {
        self.answer(get(uri)).await
    }

    /// Waits until the connection is over.
    pub(crate) async fn ended(&mut self) -> ConnectionError {
        within(self.driver.join_next()).await.unwrap().unwrap()
    }
}

impl Whole {
    pub(crate) async fn of(mut asked: Asked) -> Result<Self, StreamError> {
        let head = within(asked.recv_response()).await?;
        let mut whole = Self::begun(head);
        loop {
            match within(asked.recv_data()).await {
                Ok(Some(data)) => whole.body.extend_from_slice(data.chunk()),
                Ok(None) => break,
                Err(error) => {
                    whole.error = Some(error);
                    return Ok(whole);
                }
            }
        }
        whole.trailers = within(asked.recv_trailers()).await?;
        Ok(whole)
    }
}

impl Raw {
    /// Sends those bytes on a stream of their own.
    pub(crate) async fn begin(connection: &Connection, bytes: &[u8]) -> Self {
        let (mut sending, receiving) = within(connection.open_bi()).await.unwrap();
        // Whoever ends the connection meanwhile is asked how.
        let _or_ended = within(sending.write_all(bytes)).await;
        Self { sending, receiving, data: Vec::new() }
    }

    /// And nothing more.
    pub(crate) async fn ask(connection: &Connection, bytes: &[u8]) -> Self {
        let mut asked = Self::begin(connection, bytes).await;
        let _or_ended = asked.sending.finish();
        asked
    }

    /// The status of the answer, or the code by which the stream was reset.
    pub(crate) async fn status(&mut self) -> Result<u16, u64> {
        let mut whole = Vec::new();
        loop {
            match within(self.receiving.read_chunk(65_536, true)).await {
                Ok(Some(chunk)) => whole.extend_from_slice(&chunk.bytes),
                Ok(None) => break,
                Err(ReadError::Reset(code)) => return Err(code.into_inner()),
                Err(ReadError::ConnectionLost(_)) => return Err(0),
                Err(error) => panic!("{error}"),
            }
        }
        Ok(status_of(&whole))
    }
}

impl Raw {
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        within(self.sending.write_all(bytes)).await.unwrap();
    }

    /// Frames of that kind with all of `payload`.
    pub(crate) async fn send_as(&mut self, kind: u64, payload: &[u8]) {
        for part in payload.chunks(50_000) {
            self.send(&frame(kind, part)).await;
        }
    }

    /// Sends nothing more.
    pub(crate) fn finish(&mut self) {
        self.sending.finish().unwrap();
    }

    /// Takes the request back.
    pub(crate) fn reset(&mut self) {
        let code = 0x10c_u32.into();
        let _ended = (self.sending.reset(code), self.receiving.stop(code));
    }

    /// The status of a response whose body follows.
    pub(crate) async fn head(&mut self) -> u16 {
        let (kind, payload) = self.frame().await.unwrap().expect("no response");
        status_of(&frame(kind, &payload))
    }

    /// Whether there is a response, whatever it is.
    pub(crate) async fn is_answered(&mut self) -> bool {
        self.frame().await.is_ok_and(|frame| frame.is_some())
    }

    /// The next `count` bytes of data.
    pub(crate) async fn data(&mut self, count: usize) -> Vec<u8> {
        while self.data.len() < count {
            let (kind, payload) = self.frame().await.unwrap().expect("the end of the data");
            assert_eq!(kind, DATA);
            self.data.extend(payload);
        }
        self.data.drain(..count).collect()
    }

    /// How it ends; nothing may come before.
    pub(crate) async fn end(&mut self) -> Result<(), u64> {
        self.frame().await.map(|more| assert!(more.is_none(), "{more:?} instead of the end"))
    }

    /// The next frame; none at the end, or the code by which the stream was reset.
    async fn frame(&mut self) -> Result<Option<(u64, Vec<u8>)>, u64> {
        let Some(kind) = self.number().await? else { return Ok(None) };
        let length = self.number().await?.expect("a frame without a length");
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        within(self.receiving.read_exact(&mut payload)).await.map_err(reset_code)?;
        Ok(Some((kind, payload)))
    }

    async fn number(&mut self) -> Result<Option<u64>, u64> {
        let mut first = [0];
        match within(self.receiving.read(&mut first)).await {
            Ok(None) => return Ok(None),
            Ok(Some(_)) => {}
            Err(error) => return Err(reset_code(error.into())),
        }
        let mut rest = vec![0; (1 << (first[0] >> 6)) - 1];
        within(self.receiving.read_exact(&mut rest)).await.map_err(reset_code)?;
        let value = u64::from(first[0] & 0x3f);
        Ok(Some(rest.iter().fold(value, |value, byte| value << 8 | u64::from(*byte))))
    }
}

fn reset_code(error: quinn::ReadExactError) -> u64 {
    match error {
        quinn::ReadExactError::ReadError(ReadError::Reset(code)) => code.into_inner(),
        other => panic!("{other}"),
    }
}

/// Of a response that begins with its head, as h3 writes it: by QPACK's table, or by Huffman (RFC 9204 appendix A).
fn status_of(response: &[u8]) -> u16 {
    assert_eq!(u64::from(response[0]), HEADERS, "{response:?}");
    let length = 1 << (response[1] >> 6);
    match &response[1 + length + 2..] {
        [0xd9, ..] => 200,
        [0xff, 4, ..] => 400,
        [0xff, 6, ..] => 421,
        [0xff, 5, ..] => 403,
        [0x5f, 9, 0x83, 0x68, 0x0d, 0xff, ..] => 405,
        [0x5f, 9, 0x82, 0x6c, 2, ..] => 502,
        other => panic!("another status: {:x?}", &other[..8]),
    }
}

/// How the other side ended the connection.
pub(crate) async fn closed(connection: &Connection) -> u64 {
    match within(connection.closed()).await {
        quinn::ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
        other => panic!("{other}"),
    }
}

/// The code of an error of a stream.
pub(crate) fn code(error: &StreamError) -> u64 {
    match error {
        StreamError::RemoteTerminate { code, .. } => code.value(),
        other => panic!("{other:?}"),
    }
}

/// One frame (RFC 9114 section 7.1).
pub(crate) fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
    [&number(kind)[..], &number(payload.len() as u64), payload].concat()
}

/// As QUIC writes it.
pub(crate) fn number(value: u64) -> Vec<u8> {
    match value {
        0..64 => vec![u8::try_from(value).unwrap()],
        _ => (value | 0b10 << 30).to_be_bytes()[4..].to_vec(),
    }
}

/// Fields as literals of QPACK that no table knows (RFC 9204 section 4.5.6).
pub(crate) fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![0, 0];
    for (name, value) in fields {
        integer(&mut block, 0x20, 3, name.len());
        block.extend(name.as_bytes());
        integer(&mut block, 0, 7, value.len());
        block.extend(value.as_bytes());
    }
    block
}

fn integer(block: &mut Vec<u8>, flags: u8, bits: u32, value: usize) {
    let most = (1 << bits) - 1;
    if value < most {
        return block.push(flags | u8::try_from(value).unwrap());
    }
    block.push(flags | u8::try_from(most).unwrap());
    let mut left = value - most;
    while left >= 128 {
        block.push(u8::try_from(left % 128).unwrap() | 128);
        left /= 128;
    }
    block.push(u8::try_from(left).unwrap());
}

/// The head of a GET, with those fields.
pub(crate) fn head(more: &[(&str, &str)]) -> Vec<u8> {
    let own = [(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", "/")];
    frame(HEADERS, &fields(&[&own[..], more].concat()))
}
