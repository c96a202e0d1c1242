//! QUIC's streams as h3 wants them. Not those of `h3-quinn`, because here a stream that is dropped in the middle is reset and
//! never ended, a client that takes nothing more is seen while nothing is sent, and what h3 holds back of a request is
//! bounded.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use quinn::{ConnectionError, ReadError, StoppedError, VarInt, WriteError};

use crate::proxy::client::Client;

use super::fields::{Pseudo, Refused};
use super::frames::{Excess, Fault, Followed, Frames};

/// Bytes of a request that h3 may have and its upstream has not taken; beyond that nothing is read.
const AHEAD_MAX: u64 = 64 * 1024;

/// Bytes that are read at once.
const READ: usize = 64 * 1024;

/// Bytes that a client may send on streams that carry no request: once, and for each request.
const CONTROL_BYTES: u64 = 64 * 1024;
const CONTROL_BYTES_PER_REQUEST: u64 = 1024;

type Boxed<T> = Pin<Box<dyn Future<Output = T>>>;
type Stopped = Boxed<Result<Option<VarInt>, StoppedError>>;

/// A connection.
pub(super) struct Quic {
    opener: Opener,
    client: Rc<Client>,
    accepted: Rc<Accepted>,
    streams: Option<Boxed<Result<(quinn::SendStream, quinn::RecvStream), ConnectionError>>>,
    one_way: Option<Boxed<Result<quinn::RecvStream, ConnectionError>>>,
}

/// What opens streams.
pub(super) struct Opener {
    connection: quinn::Connection,
    opening: Option<Boxed<Result<quinn::SendStream, ConnectionError>>>,
}

/// What is known of the streams that came.
#[derive(Default)]
pub(super) struct Accepted {
    last: RefCell<Option<Rc<Flow>>>,
    /// Streams from this one on are refused: the client was told so.
    pub(super) until: Cell<Option<u64>>,
    control_bytes: Cell<u64>,
    /// Of how many streams a request may still come.
    requests: Cell<u64>,
}

/// What is common to both directions of a request's stream.
pub(super) struct Flow {
    pub(super) id: u64,
    /// Whom it stands for.
    pub(super) client: Rc<Client>,
    /// With what it is reset if it does not end in order.
    code: Cell<Code>,
    /// The pseudo-headers of the request, once its head has come.
    pub(super) pseudo: Cell<Pseudo>,
    /// Data that h3 has and nobody has taken.
    ahead: Cell<u64>,
    /// `None` once it is over: the client has all that there is, or wants no more of it.
    stopped: RefCell<Option<Stopped>>,
    /// The client took its request back in the middle.
    is_gone: Cell<bool>,
    is_malformed: Cell<bool>,
    /// Somebody looks whether it is gone.
    pub(super) is_watched: Cell<bool>,
}

/// Both directions.
pub(super) struct Stream {
    sending: Sending,
    receiving: Receiving,
}

/// What goes to the client.
pub(super) struct Sending {
    stream: quinn::SendStream,
    /// `None`: it carries no request.
    flow: Option<Rc<Flow>>,
    writing: Option<WriteBuf<Bytes>>,
    is_over: bool,
}

/// What comes from it.
pub(super) struct Receiving {
    stream: quinn::RecvStream,
    connection: quinn::Connection,
    kind: Kind,
}

enum Kind {
    Request(Rc<Flow>, Frames),
    Control(Rc<Accepted>),
}

impl Quic {
    /// `connection`, which is that of `client`.
    pub(super) fn new(connection: quinn::Connection, client: Rc<Client>, accepted: Rc<Accepted>) -> Self {
        let opener = Opener { connection, opening: None };
        Self { opener, client, accepted, streams: None, one_way: None }
    }
}

impl Accepted {
    /// That of the stream that was accepted last.
    pub(super) fn take(&self) -> Option<Rc<Flow>> {
        self.last.borrow_mut().take()
    }

    fn count_control(&self, bytes: usize) -> Result<(), Excess> {
        let bytes = self.control_bytes.get() + bytes as u64;
        self.control_bytes.set(bytes);
        let allowed = CONTROL_BYTES + CONTROL_BYTES_PER_REQUEST * self.requests.get();
        if bytes > allowed { Err(Excess) } else { Ok(()) }
    }
}

impl Flow {
    fn new(stream: &quinn::SendStream, client: Rc<Client>) -> Self {
        Self {
            id: VarInt::from(stream.id()).into_inner(),
            client,
            code: Cell::new(Code::H3_INTERNAL_ERROR),
            pseudo: Cell::default(),
            ahead: Cell::new(0),
            stopped: RefCell::new(Some(Box::pin(stream.stopped()))),
            is_gone: Cell::new(false),
            is_malformed: Cell::new(false),
            is_watched: Cell::new(false),
        }
    }

    /// Ready when the client has all that there is, or wants no more of it.
    pub(super) fn poll_over(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut stopped = self.stopped.borrow_mut();
        if self.is_gone.get() {
            return Poll::Ready(());
        }
        if let Some(waiting) = &mut *stopped {
            let _how = ready!(waiting.as_mut().poll(cx));
            *stopped = None;
        }
        Poll::Ready(())
    }

    /// The client took its request back in the middle. Whether somebody is told.
    pub(super) fn was_reset(&self) -> bool {
        self.is_gone.set(true);
        self.client.activity.wake();
        self.is_watched.get()
    }

    /// What the client sent is no message (RFC 9114 section 4.1.2).
    pub(super) fn was_malformed(&self) {
        self.is_malformed.set(true);
        self.fail_with(Code::H3_MESSAGE_ERROR);
        self.client.activity.wake();
    }

    pub(super) fn is_malformed(&self) -> bool {
        self.is_malformed.get()
    }

    /// Resets it with that `code` unless it ends in order.
    pub(super) fn fail_with(&self, code: Code) {
        self.code.set(code);
    }

    /// Somebody took so much of the data.
    pub(super) fn took(&self, bytes: usize) {
        self.ahead.set(self.ahead.get().saturating_sub(bytes as u64));
    }
}

impl quic::Connection<Bytes> for Quic {
    type RecvStream = Receiving;
    type OpenStreams = Opener;

    fn poll_accept_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::RecvStream, ConnectionErrorIncoming>> {
        let connection = &self.opener.connection;
        let accepting = self.one_way.get_or_insert_with(|| {
            let connection = connection.clone();
            Box::pin(async move { connection.accept_uni().await })
        });
        let accepted = ready!(accepting.as_mut().poll(cx));
        self.one_way = None;
        let kind = Kind::Control(Rc::clone(&self.accepted));
        let connection = connection.clone();
        Poll::Ready(accepted.map(|stream| Receiving { stream, connection, kind }).map_err(of_connection))
    }

    fn poll_accept_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, ConnectionErrorIncoming>> {
        let connection = &self.opener.connection;
        loop {
            let accepting = self.streams.get_or_insert_with(|| {
                let connection = connection.clone();
                Box::pin(async move { connection.accept_bi().await })
            });
            let accepted = ready!(accepting.as_mut().poll(cx));
            self.streams = None;
            let (mut sending, mut receiving) = accepted.map_err(of_connection)?;
            let id = VarInt::from(sending.id()).into_inner();
            if self.accepted.until.get().is_some_and(|until| id >= until) {
                let code = number(Code::H3_REQUEST_REJECTED);
                // If its client has given it up it is refused as well.
                let _gone = (sending.reset(code), receiving.stop(code));
                continue;
            }
            self.accepted.requests.set(self.accepted.requests.get() + 1);
            let flow = Rc::new(Flow::new(&sending, Rc::new(Client::of_stream(&self.client))));
            self.accepted.last.replace(Some(Rc::clone(&flow)));
            let kind = Kind::Request(Rc::clone(&flow), Frames::default());
            let connection = connection.clone();
            return Poll::Ready(Ok(Stream {
                sending: Sending { stream: sending, flow: Some(flow), writing: None, is_over: false },
                receiving: Receiving { stream: receiving, connection, kind },
            }));
        }
    }

    fn opener(&self) -> Self::OpenStreams {
        Opener { connection: self.opener.connection.clone(), opening: None }
    }
}

impl quic::OpenStreams<Bytes> for Opener {
    type BidiStream = Stream;
    type SendStream = Sending;

    fn poll_open_bidi(
        &mut self,
        _cx: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, StreamErrorIncoming>> {
        // A server has no requests (RFC 9114 section 6.1).
        Poll::Ready(Err(StreamErrorIncoming::Unknown("a server opens no request".into())))
    }

    fn poll_open_send(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::SendStream, StreamErrorIncoming>> {
        let connection = &self.connection;
        let opening = self.opening.get_or_insert_with(|| {
            let connection = connection.clone();
            Box::pin(async move { connection.open_uni().await })
        });
        let opened = ready!(opening.as_mut().poll(cx));
        self.opening = None;
        let stream = opened.map_err(|error| of_stream(of_connection(error)))?;
        Poll::Ready(Ok(Sending { stream, flow: None, writing: None, is_over: false }))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.connection.close(number(code), reason);
    }
}

impl quic::OpenStreams<Bytes> for Quic {
    type BidiStream = Stream;
    type SendStream = Sending;

    fn poll_open_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, StreamErrorIncoming>> {
        self.opener.poll_open_bidi(cx)
    }

    fn poll_open_send(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::SendStream, StreamErrorIncoming>> {
        self.opener.poll_open_send(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.opener.close(code, reason);
    }
}

impl quic::SendStream<Bytes> for Sending {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        while let Some(writing) = self.writing.as_mut().filter(|writing| writing.has_remaining()) {
            let polled = Pin::new(&mut self.stream).poll_write(cx, writing.chunk());
            let Some(flow) = &self.flow else {
                let written = ready!(polled).map_err(of_write)?;
                writing.advance(written);
                continue;
            };
            if polled.is_pending() {
                flow.client.activity.await_reader();
            }
            let written = ready!(polled).map_err(of_write)?;
            flow.client.activity.wrote(written);
            writing.advance(written);
        }
        self.writing = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.writing.is_some() {
            return Err(StreamErrorIncoming::Unknown("the last part is not written yet".into()));
        }
        self.writing = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.is_over = true;
        Poll::Ready(self.stream.finish().map_err(|error| StreamErrorIncoming::Unknown(error.into())))
    }

    fn reset(&mut self, code: u64) {
        self.is_over = true;
        // If its client has given it up it is reset as well.
        let _gone = self.stream.reset(VarInt::from_u64(code).unwrap_or(VarInt::MAX));
    }

    fn send_id(&self) -> StreamId {
        id_of(self.stream.id())
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        // quinn would end it, as if that were all.
        if let (Some(flow), false) = (&self.flow, self.is_over) {
            let _gone = self.stream.reset(number(flow.code.get()));
        }
    }
}

impl quic::RecvStream for Receiving {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        if let Kind::Request(flow, _) = &self.kind
            && flow.ahead.get() >= AHEAD_MAX
        {
            // h3 has something to give; whoever takes it comes back.
            return Poll::Pending;
        }
        loop {
            let polled = pin!(self.stream.read_chunk(READ, true)).poll(cx);
            let Some(chunk) = ready!(polled).map_err(of_read)? else { break };
            let (flow, followed) = match &mut self.kind {
                Kind::Request(flow, frames) => (flow, frames.follow(chunk.bytes)),
                Kind::Control(accepted) => {
                    let counted = accepted.count_control(chunk.bytes.len());
                    let counted = counted.map_err(|Excess| self.give_up(Code::H3_EXCESSIVE_LOAD));
                    return Poll::Ready(counted.map(|()| Some(chunk.bytes)));
                }
            };
            flow.client.activity.progressed();
            match followed {
                // A part of a head, of which h3 would make nothing.
                Ok(Followed { pass, .. }) if pass.is_empty() => {}
                Ok(Followed { pass, data, head }) => {
                    flow.ahead.set(flow.ahead.get() + data);
                    if let Some(pseudo) = head {
                        flow.pseudo.set(pseudo);
                    }
                    return Poll::Ready(Ok(Some(pass)));
                }
                Err(Fault::Section(Refused::Malformed)) => {
                    flow.was_malformed();
                    let error_code = Code::H3_MESSAGE_ERROR.value();
                    return Poll::Ready(Err(StreamErrorIncoming::StreamTerminated { error_code }));
                }
                Err(Fault::Section(Refused::Undecodable)) => {
                    return Poll::Ready(Err(self.give_up(Code::QPACK_DECOMPRESSION_FAILED)));
                }
                Err(Fault::Excess(Excess)) => {
                    return Poll::Ready(Err(self.give_up(Code::H3_EXCESSIVE_LOAD)));
                }
            }
        }
        match &self.kind {
            // h3 would take it for the end of the body.
            Kind::Request(_, frames) if !frames.is_between() => {
                Poll::Ready(Err(self.give_up(Code::H3_FRAME_ERROR)))
            }
            Kind::Request(..) | Kind::Control(_) => Poll::Ready(Ok(None)),
        }
    }

    fn stop_sending(&mut self, code: u64) {
        let _gone = self.stream.stop(VarInt::from_u64(code).unwrap_or(VarInt::MAX));
    }

    fn recv_id(&self) -> StreamId {
        id_of(self.stream.id())
    }
}

impl Receiving {
    /// Ends the connection.
    fn give_up(&self, code: Code) -> StreamErrorIncoming {
        self.connection.close(number(code), b"");
        StreamErrorIncoming::StreamTerminated { error_code: code.value() }
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if let Kind::Request(..) = &self.kind {
            // The response may be whole all the same (RFC 9114 section 4.1).
            let _ended = self.stream.stop(number(Code::H3_NO_ERROR));
        }
    }
}

impl quic::SendStream<Bytes> for Stream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.sending.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.sending.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.sending.poll_finish(cx)
    }

    fn reset(&mut self, code: u64) {
        self.sending.reset(code);
    }

    fn send_id(&self) -> StreamId {
        self.sending.send_id()
    }
}

impl quic::RecvStream for Stream {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.receiving.poll_data(cx)
    }

    fn stop_sending(&mut self, code: u64) {
        self.receiving.stop_sending(code);
    }

    fn recv_id(&self) -> StreamId {
        self.receiving.recv_id()
    }
}

impl quic::BidiStream<Bytes> for Stream {
    type SendStream = Sending;
    type RecvStream = Receiving;

    fn split(self) -> (Sending, Receiving) {
        (self.sending, self.receiving)
    }
}

pub(super) fn number(code: Code) -> VarInt {
    VarInt::from_u64(code.value()).unwrap_or(VarInt::MAX)
}

fn id_of(id: quinn::StreamId) -> StreamId {
    let id = VarInt::from(id).into_inner();
    StreamId::try_from(id).unwrap_or_else(|_| unreachable!("both are of 62 bits"))
}

fn of_connection(error: ConnectionError) -> ConnectionErrorIncoming {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            ConnectionErrorIncoming::ApplicationClose { error_code: close.error_code.into_inner() }
        }
        ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        other => ConnectionErrorIncoming::Undefined(Arc::new(other)),
    }
}

fn of_stream(connection_error: ConnectionErrorIncoming) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error }
}

fn of_read(error: ReadError) -> StreamErrorIncoming {
    match error {
        ReadError::Reset(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() },
        ReadError::ConnectionLost(error) => of_stream(of_connection(error)),
        other => StreamErrorIncoming::Unknown(other.into()),
    }
}

fn of_write(error: WriteError) -> StreamErrorIncoming {
    match error {
        WriteError::Stopped(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() },
        WriteError::ConnectionLost(error) => of_stream(of_connection(error)),
        other => StreamErrorIncoming::Unknown(other.into()),
    }
}
