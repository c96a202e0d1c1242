//! The target's socket as hyper sees it, which can remember a request that it wrote.
//!
//! A request that a kept connection loses may be sent again. Copying every head in advance would cost more than
//! all such losses; so what is written is remembered, one copy of a few hundred bytes, and parsed if it is needed.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::RequestBody;
use super::socket::Socket;

/// A target's socket.
pub(super) struct UpstreamIo {
    socket: Socket,
    memory: Rc<Memory>,
}

/// Bytes of interim responses and the head of a response after which no more are read. hyper would read interim ones
/// for ever, and nobody else's turn would come. What one read brings is never too much: most of it may be body.
const HEADS_MAX: usize = 256 * 1024;

/// The first write since it was asked to remember, and what came since the request.
#[derive(Default)]
pub(super) struct Memory {
    is_asked: Cell<bool>,
    bytes: RefCell<Vec<u8>>,
    /// What may still be read before the head is complete; `None` if none is awaited.
    head_left: Cell<Option<usize>>,
    is_flooded: Cell<bool>,
}

impl UpstreamIo {
    pub(super) fn new(socket: Socket, memory: Rc<Memory>) -> Self {
        Self { socket, memory }
    }

    pub(super) fn into_socket(self) -> Socket {
        self.socket
    }
}

impl Memory {
    /// The next request is to be remembered, or not.
    pub(super) fn ask(&self, remembers: bool) {
        self.is_asked.set(remembers);
        self.bytes.borrow_mut().clear();
        self.head_left.set(Some(HEADS_MAX));
        self.is_flooded.set(false);
    }

    /// The head of the response is complete.
    pub(super) fn head_came(&self) {
        self.head_left.set(None);
    }

    /// Whether more came before the head was complete than may.
    pub(super) fn is_flooded(&self) -> bool {
        self.is_flooded.get()
    }

    /// Whether to read on; asked before, because only hyper knows where in a read the head ends.
    fn may_read(&self) -> io::Result<()> {
        self.is_flooded.set(self.head_left.get() == Some(0));
        if self.is_flooded() { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) }
    }

    fn was_read(&self, bytes: usize) {
        self.head_left.set(self.head_left.get().map(|left| left.saturating_sub(bytes)));
    }

    /// The request that was written, without a body.
    pub(super) fn request(&self) -> Option<Request<RequestBody>> {
        parse(std::str::from_utf8(&self.bytes.borrow()).ok()?)
    }

    fn remember(&self, bufs: &[IoSlice<'_>]) {
        if self.is_asked.take() {
            let mut bytes = self.bytes.borrow_mut();
            bufs.iter().for_each(|buf| bytes.extend_from_slice(buf));
        }
    }
}

/// Reads what hyper writes: nothing but heads in order.
fn parse(text: &str) -> Option<Request<RequestBody>> {
    let (head, _body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let mut request = Request::new(RequestBody::Empty);
    *request.method_mut() = Method::from_bytes(first.next()?.as_bytes()).ok()?;
    *request.uri_mut() = first.next()?.parse::<Uri>().ok()?;
    for line in lines {
        let (name, value) = line.split_once(": ")?;
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        // There is no body; only a build that breaks the rule on purpose gets here with one.
        if name != CONTENT_LENGTH && name != TRANSFER_ENCODING || value == "0" {
            request.headers_mut().append(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
        }
    }
    Some(request)
}

impl AsyncRead for UpstreamIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let Self { socket, memory } = self.get_mut();
        memory.may_read()?;
        ready!(Pin::new(socket).poll_read(cx, buf))?;
        memory.was_read(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.memory.remember(&[IoSlice::new(buf)]);
        Pin::new(&mut self.get_mut().socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.memory.remember(bufs);
        let socket = Pin::new(&mut self.get_mut().socket);
        match bufs {
            // As nearly always: a head without a body, for which the kernel has a shorter way.
            [only] => socket.poll_write(cx, only),
            _ => socket.poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::{HEADS_MAX, Memory};

    #[test]
    fn one_read_of_a_head_with_much_of_its_body_is_no_flood() {
        let memory = Memory::default();
        for _request_on_one_connection in 0..2 {
            memory.ask(false);
            memory.may_read().unwrap();
            memory.was_read(HEADS_MAX * 2);
            memory.head_came();
            // The rest of the body.
            memory.may_read().unwrap();
            memory.was_read(HEADS_MAX * 2);
            assert!(memory.may_read().is_ok() && !memory.is_flooded());
        }
    }

    #[test]
    fn reading_ends_when_no_head_came_in_all_that_may_come_before() {
        let memory = Memory::default();
        memory.ask(false);
        memory.may_read().unwrap();
        memory.was_read(HEADS_MAX - 1);
        memory.may_read().unwrap();
        memory.was_read(1);
        assert!(memory.may_read().is_err() && memory.is_flooded());
        memory.ask(false);
        assert!(memory.may_read().is_ok() && !memory.is_flooded(), "the next request");
    }
}
