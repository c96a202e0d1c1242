//! One HTTP/1.1 connection to a target, read and written by whoever uses it (RFC 9112).
//!
//! Its codec is ours because a proxy does less than a client: a request is written from the fields that it came with, in
//! one go, and no state machine stands between a response and the body that it is passed on in. Heads are read by
//! httparse.

mod chunks;
mod download;
mod head;
mod lent;
mod upload;

use std::future::Future as _;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response};
use http_body::Frame;
use tokio::io::AsyncWrite;
use tokio::task::coop::unconstrained;

use crate::telemetry::ConnectCells;

use super::added::Added;
use super::body::RequestBody;
use super::socket::Socket;
use super::target::{ConnectionGuard, LocalTarget};
use super::{Tick, UpstreamError, WireError};

use download::Download;
use lent::Appetite;
pub(super) use lent::Lent;
use upload::{Framing, Unsent, Upload};

/// A response head that is larger is malformed.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Bytes of empty lines and interim responses after which no more are read: they could come for ever, and nobody else's turn
/// would.
const HEADS_BYTES_MAX: usize = 256 * 1024;

/// A connection, and what is on its way over it.
pub(crate) struct Connection {
    socket: Socket,
    /// What is left to send of the request; `None` if nothing is.
    upload: Option<Box<Upload>>,
    download: Download,
    /// Read, and not yet taken for a part of a response.
    read: Bytes,
    /// How much to read at once.
    appetite: Appetite,
    /// It failed, or its target ended it.
    has_ended: bool,
    target: Rc<LocalTarget>,
    is_reused: bool,
    connected_in: Duration,
    /// For how long the upstream keeps it without use, if it said so.
    keep_for: Option<Tick>,
    may_keep: bool,
    /// From then on the upstream may close it at any moment.
    pub(super) idle_until: Tick,
    _counted: ConnectionGuard,
}

/// A request while its response is awaited.
#[expect(clippy::struct_excessive_bools, reason = "each is something that has happened or not")]
struct Exchange<'a> {
    request: &'a mut Option<Request<RequestBody>>,
    added: &'a Added,
    is_head: bool,
    has_begun: bool,
    has_written: bool,
    /// What was read of its body went with the connection.
    has_body: bool,
    /// Bytes that came before the head of its response.
    came: usize,
    /// The beginning of a head that has not come whole.
    partial: BytesMut,
}

impl Exchange<'_> {
    /// So many bytes came that are no part of the head of its response.
    fn pass(&mut self, bytes: usize) -> Result<(), UpstreamError> {
        self.came += bytes;
        if self.came > HEADS_BYTES_MAX {
            return Err(UpstreamError::Malformed(WireError::Interim));
        }
        Ok(())
    }
}

impl Connection {
    /// Connects to `target`; `header` is the first that it gets, if it gets one.
    pub(super) async fn open(
        target: &Rc<LocalTarget>,
        cells: &ConnectCells,
        header: Option<&[u8]>,
    ) -> Result<Box<Self>, UpstreamError> {
        let counted = target.count_connection()?;
        let began = target.clock().now();
        let connecting = Socket::open(&target.target, header);
        let connected = tokio::time::timeout(target.limits().connect, connecting).await;
        let socket = match connected {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => {
                cells.failed.add(1);
                return Err(error);
            }
            Err(_elapsed) => {
                cells.timed_out.add(1);
                return Err(UpstreamError::ConnectTimeout);
            }
        };
        let connected_in = target.clock().now().saturating_duration_since(began);
        cells.ok.add(1);
        cells.took.observe(connected_in);
        Ok(Box::new(Self {
            socket,
            upload: None,
            download: Download::Ended,
            read: Bytes::new(),
            appetite: Appetite::default(),
            has_ended: false,
            target: Rc::clone(target),
            is_reused: false,
            connected_in,
            keep_for: None,
            may_keep: true,
            idle_until: 0,
            _counted: counted,
        }))
    }

    /// Whether it served a request before this one.
    pub(crate) fn is_reused(&self) -> bool {
        self.is_reused
    }

    /// How long connecting took, if it was opened for the request that it serves.
    pub(crate) fn connected_in(&self) -> Option<Duration> {
        (!self.is_reused).then_some(self.connected_in)
    }

    pub(crate) fn target(&self) -> &Rc<LocalTarget> {
        &self.target
    }

    /// Sends the request with what is `added` and waits for the head of its response. `request` is there afterwards if it
    /// failed and may be sent once more: none of it was written, or the connection ended and it is one that `may_repeat`.
    pub(super) async fn exchange(
        &mut self,
        request: &mut Option<Request<RequestBody>>,
        added: &Added,
        may_repeat: bool,
    ) -> Result<Response<()>, UpstreamError> {
        let is_head = request.as_ref().is_some_and(|request| *request.method() == Method::HEAD);
        let mut exchange = Exchange {
            request,
            added,
            is_head,
            has_begun: false,
            has_written: false,
            has_body: false,
            came: 0,
            partial: BytesMut::new(),
        };
        let answered = std::future::poll_fn(|cx| self.poll_exchange(cx, &mut exchange)).await;
        let may_be_sent_again = match &answered {
            Err(UpstreamError::Closed(_)) => may_repeat || !exchange.has_written && !exchange.has_body,
            Ok(_) | Err(_) => false,
        };
        if !may_be_sent_again {
            *exchange.request = None;
        }
        self.has_ended |= answered.is_err();
        answered
    }

    fn poll_exchange(
        &mut self,
        cx: &mut Context<'_>,
        exchange: &mut Exchange<'_>,
    ) -> Poll<Result<Response<()>, UpstreamError>> {
        if !exchange.has_begun {
            exchange.has_begun = true;
            self.begin(cx, exchange)?;
        }
        if self.upload.is_some() {
            match self.poll_send(cx) {
                Poll::Ready(Err(Unsent::Body(fault))) => return Poll::Ready(Err(UpstreamError::Body(fault))),
                // It may have answered before it closed its side: that is read below.
                Poll::Ready(Ok(()) | Err(Unsent::Wire(_))) | Poll::Pending => {}
            }
            exchange.has_written |= self.upload.as_ref().is_none_or(|upload| upload.has_written());
        }
        self.poll_head(cx, exchange)
    }

    /// Writes what the socket takes of a request.
    fn begin(&mut self, cx: &mut Context<'_>, exchange: &mut Exchange<'_>) -> Result<(), UpstreamError> {
        let Some(request) = exchange.request else { return Err(UpstreamError::Retired) };
        let framing = Framing::of(request);
        let target = Rc::clone(&self.target);
        let mut lent = target.lent().head();
        head::write(request, exchange.added, framing, &mut lent);
        if framing != Framing::None {
            exchange.has_body = true;
            let body = std::mem::replace(request.body_mut(), RequestBody::Empty);
            self.upload = Some(Box::new(Upload::new(lent.to_vec(), body, framing)));
            return Ok(());
        }
        let written = match Pin::new(&mut self.socket).poll_write(cx, &lent) {
            Poll::Ready(Ok(written)) => written,
            // It got nothing of this request: whatever it said is no answer to it (RFC 9112 section 9.2).
            Poll::Ready(Err(closed)) if self.is_reused => return Err(UpstreamError::Closed(closed.into())),
            Poll::Ready(Err(_closed)) => {
                // What it said before it closed its side is read all the same.
                self.may_keep = false;
                return Ok(());
            }
            Poll::Pending => 0,
        };
        exchange.has_written = written > 0;
        // TLS takes more than the socket does.
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        self.may_keep &= !matches!(flushed, Poll::Ready(Err(_)));
        if written < lent.len() || flushed.is_pending() {
            let rest = lent.get(written..).unwrap_or_default().to_vec();
            self.upload = Some(Box::new(Upload::new(rest, RequestBody::Empty, Framing::None)));
        }
        Ok(())
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        exchange: &mut Exchange<'_>,
    ) -> Poll<Result<Response<()>, UpstreamError>> {
        loop {
            if self.read.is_empty() {
                match ready!(self.poll_read(cx)) {
                    Ok(bytes) if bytes.is_empty() => {
                        return Poll::Ready(Err(UpstreamError::Closed(WireError::Ended)));
                    }
                    Ok(bytes) => self.read = bytes,
                    Err(error) => return Poll::Ready(Err(UpstreamError::Closed(error.into()))),
                }
            }
            if !exchange.partial.is_empty() {
                exchange.partial.extend_from_slice(&self.read);
                let has_line = self.read.contains(&b'\n');
                self.read = Bytes::new();
                if !has_line && exchange.partial.len() < HEAD_BYTES_MAX {
                    // Not looked at from its beginning for every byte.
                    continue;
                }
                self.read = exchange.partial.split().freeze();
            }
            let empty = head::empty_lines(&self.read);
            if empty > 0 {
                // Taken off at once: they are not read again with whatever follows.
                drop(self.read.split_to(empty));
                exchange.pass(empty)?;
                continue;
            }
            let came = self.read.len();
            // Once its response is there a request is not sent again: the map of its fields is free for the response's.
            let room = || {
                exchange.request.as_mut().map(|sent| std::mem::take(sent.headers_mut())).unwrap_or_default()
            };
            match head::read(&self.read, room).map_err(UpstreamError::Malformed)? {
                None if came >= HEAD_BYTES_MAX => {
                    return Poll::Ready(Err(UpstreamError::Malformed(WireError::TooLarge)));
                }
                None => {
                    // The handle that shares its memory goes first: then it is not copied.
                    exchange.partial = BytesMut::new();
                    exchange.partial = BytesMut::from(std::mem::take(&mut self.read));
                }
                Some((head, _)) if head.len > HEAD_BYTES_MAX => {
                    return Poll::Ready(Err(UpstreamError::Malformed(WireError::TooLarge)));
                }
                Some((head, response)) => {
                    drop(self.read.split_to(head.len));
                    let status = response.status();
                    if head::is_interim(status) {
                        exchange.pass(head.len)?;
                        continue;
                    }
                    self.may_keep &= head.keeps;
                    self.download =
                        Download::of(&head, status, exchange.is_head).map_err(UpstreamError::Malformed)?;
                    return Poll::Ready(Ok(response));
                }
            }
        }
    }

    /// Some of what came; nothing at its end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<Bytes>> {
        let left = match self.download {
            Download::Length(left) => Some(left),
            Download::Ended | Download::Chunked(_) | Download::UntilEnd => None,
        };
        let wanted = self.appetite.wanted(left);
        let bytes = ready!(self.target.lent().poll_read(cx, &mut self.socket, wanted))?;
        self.appetite.fed(bytes.len());
        Poll::Ready(Ok(bytes))
    }

    /// Has the request go on; ready when it is sent whole, or cannot be.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Unsent>> {
        let Some(upload) = &mut self.upload else { return Poll::Ready(Ok(())) };
        let sent = ready!(upload.poll(cx, &mut self.socket));
        match &sent {
            Ok(()) => self.upload = None,
            Err(Unsent::Body(_)) => self.has_ended = true,
            // What it wrote before it closed its side can still be read, but nothing follows this request.
            Err(Unsent::Wire(error)) => {
                tracing::debug!(%error, "the rest of a request was not sent");
                self.may_keep = false;
            }
        }
        Poll::Ready(sent)
    }

    /// Has the request go on beside its response.
    pub(crate) fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // What is wrong with the body has been told where it was found; a target that reads no more may still answer.
        self.poll_send(cx).map(|_sent_or_not| ())
    }

    /// The next frame of the response.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        // It goes on beside the response, which is what is asked for.
        let _beside = self.poll_upload(cx);
        loop {
            if self.download.is_end() {
                return Poll::Ready(None);
            }
            if self.has_ended {
                return Poll::Ready(Some(Err(WireError::Ended)));
            }
            if !self.read.is_empty() {
                let next = self.download.next(&mut self.read);
                self.has_ended |= next.is_err();
                match next? {
                    Some(frame) => return Poll::Ready(Some(Ok(frame))),
                    None => continue,
                }
            }
            // What is waited for keeps no buffer.
            self.read = Bytes::new();
            match ready!(self.poll_read(cx)) {
                Ok(bytes) if bytes.is_empty() => {
                    self.has_ended = true;
                    if !self.download.ends_with_connection() {
                        return Poll::Ready(Some(Err(WireError::Ended)));
                    }
                    self.download = Download::Ended;
                }
                Ok(bytes) => self.read = bytes,
                Err(error) => {
                    self.has_ended = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
        }
    }

    /// Whether all of the response has come.
    pub(crate) fn is_end(&self) -> bool {
        self.download.is_end()
    }

    /// Whether something of the request is to come from its client.
    pub(crate) fn is_coming(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| upload.is_coming())
    }

    /// Whether nothing is left to send of the request.
    pub(crate) fn is_sent(&self) -> bool {
        self.upload.is_none()
    }

    /// What is to come of the body, if its length was told.
    pub(crate) fn missing(&self) -> Option<u64> {
        self.download.missing()
    }

    /// Whether the last request and its response are over and the next may be sent, as far as is known.
    pub(crate) fn is_free(&self) -> bool {
        !self.has_ended && self.upload.is_none() && self.download.is_end() && self.read.is_empty()
    }

    /// Whether nothing came on an idle connection: neither its end nor anything that nobody asked for.
    pub(super) fn is_quiet(&mut self) -> bool {
        if self.is_free() {
            // Whatever else its task did: it is looked at.
            let look = pin!(unconstrained(std::future::poll_fn(|cx| self.poll_read(cx))));
            let came = look.poll(&mut Context::from_waker(Waker::noop())).is_ready();
            self.has_ended = came;
        }
        self.is_free()
    }

    /// Waits until the request is sent whole; `false` if the connection ended before.
    pub(crate) async fn sent(&mut self) -> bool {
        std::future::poll_fn(|cx| {
            let sent = self.poll_send(cx);
            if let Poll::Ready(sent) = sent {
                return Poll::Ready(sent.is_ok());
            }
            if self.upload.as_ref().is_some_and(|upload| upload.is_broken()) {
                return Poll::Ready(false);
            }
            // The response is over: whatever comes now is an end, or as good as one.
            self.poll_read(cx).map(|_end| false)
        })
        .await
    }

    /// Takes it back into its target's pool, or closes it: invariant 1 of `upstream`.
    pub(crate) fn release(mut self: Box<Self>) {
        if self.may_keep && self.is_free() {
            self.is_reused = true;
            let target = Rc::clone(&self.target);
            let keep_for = self.keep_for;
            target.keep(self, keep_for);
        }
    }

    /// It is closed after this request.
    pub(crate) fn never_keep(&mut self) {
        self.may_keep = false;
    }

    /// For how many ticks the upstream keeps it without use.
    pub(crate) fn keep_for(&mut self, ticks: Tick) {
        self.keep_for = Some(ticks);
    }

    /// The bare socket after an upgrade, with what was read behind the response head.
    pub(crate) fn into_socket(self) -> (Socket, Bytes, ConnectionGuard) {
        (self.socket, self.read, self._counted)
    }
}
