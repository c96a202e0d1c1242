//! Clients that speak HTTP/2: one that is well-behaved, and one that writes its frames by hand.

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::{Plane, Wire, within};
pub(crate) use crate::support::{get, post};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// A client with one connection.
pub(crate) struct Http2 {
    pub(crate) send: SendRequest<Bytes>,
    pub(crate) driver: JoinSet<Result<(), h2::Error>>,
}

/// A response of it.
pub(crate) type Whole = crate::support::Whole<h2::Error>;

impl Http2 {
    pub(crate) async fn connect(plane: &Plane) -> Self {
        Self::with(plane, &mut h2::client::Builder::new()).await
    }

    pub(crate) async fn with(plane: &Plane, builder: &mut h2::client::Builder) -> Self {
        let stream = within(TcpStream::connect(plane.address)).await.unwrap();
        Self::on(stream, builder).await
    }

    pub(crate) async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        Self::on(stream, &mut h2::client::Builder::new()).await
    }

    async fn on(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        builder: &mut h2::client::Builder,
    ) -> Self {
        let (send, connection) = within(builder.handshake(stream)).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Self { send, driver }
    }

    /// Begins a request, whose body follows or not.
    pub(crate) async fn begin(
        &mut self,
        request: Request<()>,
        has_body: bool,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        self.send = within(self.send.clone().ready()).await.unwrap();
        self.send.send_request(request, !has_body).unwrap()
    }

    pub(crate) async fn answer(&mut self, request: Request<()>) -> Whole {
        let (response, _) = self.begin(request, false).await;
        Whole::of(response).await
    }

    pub(crate) async fn get(&mut self, uri: &str) -> Whole {
        self.answer(get(uri)).await
    }

    /// Waits until the connection is over.
    pub(crate) async fn ended(mut self) -> Option<h2::Error> {
        drop(self.send);
        within(self.driver.join_next()).await.unwrap().unwrap().err()
    }
}

impl Whole {
    pub(crate) async fn of(response: ResponseFuture) -> Self {
        let (head, mut body) = within(response).await.unwrap().into_parts();
        let mut whole = Self::begun(Response::from_parts(head, ()));
        while let Some(data) = within(body.data()).await {
            match data {
                Ok(data) => {
                    body.flow_control().release_capacity(data.len()).unwrap();
                    whole.body.extend_from_slice(&data);
                }
                Err(error) => {
                    whole.error = Some(error);
                    return whole;
                }
            }
        }
        whole.trailers = within(body.trailers()).await.unwrap();
        whole
    }
}

/// All data of a body.
pub(crate) async fn all(body: &mut RecvStream) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(part) = data(body).await {
        whole.extend_from_slice(&part.unwrap());
    }
    whole
}

/// The next data of a response.
pub(crate) async fn data(body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let data = within(body.data()).await;
    if let Some(Ok(data)) = &data {
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    data
}

/// One frame.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// Of RST_STREAM and GOAWAY.
    pub(crate) fn reason(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Fields as HPACK literals that no table remembers.
pub(crate) fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            let length = text.len();
            if length < 127 {
                block.push(u8::try_from(length).unwrap());
            } else {
                block.push(127);
                let mut rest = length - 127;
                while rest >= 128 {
                    block.push(u8::try_from(rest % 128 + 128).unwrap());
                    rest /= 128;
                }
                block.push(u8::try_from(rest).unwrap());
            }
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A request for `/` of `a.test`, with `more` fields.
pub(crate) fn request(stream: u32, flags: u8, more: &[(&str, &str)]) -> Vec<u8> {
    let usual = [(":method", "GET"), (":scheme", "http"), (":authority", "a.test"), (":path", "/")];
    frame(HEADERS, END_HEADERS | flags, stream, &fields(&[&usual[..], more].concat()))
}

impl Wire {
    /// Begins an HTTP/2 connection.
    pub(crate) async fn begin_http2(plane: &Plane) -> Self {
        let mut wire = plane.connect().await;
        wire.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
        wire
    }

    /// The next frame; `None` at the end of the connection.
    pub(crate) async fn try_frame(&mut self) -> Option<Frame> {
        let header = self.try_bytes(9).await?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let payload = self.try_bytes(usize::try_from(length).unwrap()).await?;
        let stream = u32::from_be_bytes(header[5..9].try_into().unwrap());
        Some(Frame { kind: header[3], stream, payload })
    }

    /// The next frame of a kind.
    pub(crate) async fn frame(&mut self, kind: u8) -> Frame {
        self.frame_of(&[kind]).await
    }

    /// The next frame of one of these kinds.
    pub(crate) async fn frame_of(&mut self, kinds: &[u8]) -> Frame {
        loop {
            let frame = self.try_frame().await.expect("the connection ended");
            if kinds.contains(&frame.kind) {
                return frame;
            }
        }
    }

    /// Why the connection was ended.
    pub(crate) async fn goaway(&mut self) -> u32 {
        let reason = self.frame(GOAWAY).await.reason();
        while self.try_frame().await.is_some() {}
        reason
    }
}
