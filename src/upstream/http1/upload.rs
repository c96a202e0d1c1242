//! A request on its way to a target: its head, and its body as the head says that it is framed (RFC 9112 section 6).

use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Request};
use http_body::{Body as _, Frame};
use tokio::io::AsyncWrite;

use crate::upstream::{BodyFault, RequestBody};

use super::head;

/// How the end of a request's body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    None,
    Length(u64),
    Chunked,
}

/// Why a request was not sent whole.
#[derive(Debug)]
pub(super) enum Unsent {
    Wire(io::Error),
    Body(BodyFault),
}

/// A request of which something is left to send.
pub(super) struct Upload {
    /// Before the data: a head, or what begins a chunk.
    lead: Vec<u8>,
    /// How much of it is written.
    lead_written: usize,
    data: Bytes,
    /// Behind the data.
    trail: &'static [u8],
    body: RequestBody,
    framing: Framing,
    /// What is at hand is the end.
    is_read: bool,
    has_written: bool,
    /// It failed: nothing more is sent.
    is_broken: bool,
}

impl Framing {
    /// Of a request whose head says how its body is framed. One without a body has none, whatever it says.
    pub(super) fn of(request: &Request<RequestBody>) -> Self {
        let headers = request.headers();
        if request.body().is_end_stream() {
            return Self::None;
        }
        let length = || headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
        match length().filter(|_| !headers.contains_key(TRANSFER_ENCODING)) {
            Some(length) => Self::Length(length),
            None => Self::Chunked,
        }
    }
}

impl Upload {
    /// `head` is what is still to be written of it.
    pub(super) fn new(head: Vec<u8>, body: RequestBody, framing: Framing) -> Self {
        Self {
            lead: head,
            lead_written: 0,
            data: Bytes::new(),
            trail: b"",
            body,
            framing,
            is_read: framing == Framing::None,
            has_written: false,
            is_broken: false,
        }
    }

    /// Whether the target may have got a part of it.
    pub(super) fn has_written(&self) -> bool {
        self.has_written
    }

    /// Whether something of it is to come from its client.
    pub(super) fn is_coming(&self) -> bool {
        !self.is_read && !self.is_broken
    }

    /// Whether it failed.
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Sends what there is and what the socket takes; ready when all of it is sent, or cannot be.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<Result<(), Unsent>> {
        if self.is_broken {
            return Poll::Pending;
        }
        let polled = self.poll_all(cx, socket);
        if let Poll::Ready(Err(_)) = &polled {
            // Never an end in order.
            self.is_broken = true;
            self.body = RequestBody::Empty;
            self.data = Bytes::new();
        }
        polled
    }

    fn poll_all(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<Result<(), Unsent>> {
        loop {
            // Before the first byte: a head and the beginning of its body go in one piece.
            let next = if self.is_read || !self.data.is_empty() || !self.trail.is_empty() {
                None
            } else {
                Some(Pin::new(&mut self.body).poll_frame(cx))
            };
            let is_waiting = matches!(next, Some(Poll::Pending));
            if let Some(Poll::Ready(frame)) = next {
                self.take(frame).map_err(Unsent::Body)?;
            }
            ready!(self.poll_write(cx, socket)).map_err(Unsent::Wire)?;
            if self.is_read || is_waiting {
                // TLS takes more than the socket does.
                ready!(Pin::new(&mut *socket).poll_flush(cx)).map_err(Unsent::Wire)?;
            }
            if self.is_read {
                return Poll::Ready(Ok(()));
            }
            if is_waiting {
                return Poll::Pending;
            }
        }
    }

    /// Makes the next of the body ready to be written.
    fn take(&mut self, frame: Option<Result<Frame<Bytes>, BodyFault>>) -> Result<(), BodyFault> {
        let trailers = match frame.transpose()?.map(Frame::into_data) {
            Some(Ok(data)) => return self.take_data(data),
            Some(Err(frame)) => frame.into_trailers().ok(),
            None => None,
        };
        match self.framing {
            // However it ended: the next request would be taken for the rest of it.
            Framing::Length(left) if left > 0 => Err(BodyFault::Truncated),
            Framing::None | Framing::Length(_) | Framing::Chunked => {
                self.finish(trailers.as_ref());
                Ok(())
            }
        }
    }

    fn take_data(&mut self, data: Bytes) -> Result<(), BodyFault> {
        // A chunk of no bytes would be the end.
        if data.is_empty() {
            return Ok(());
        }
        match &mut self.framing {
            Framing::None => return Err(BodyFault::TooLarge),
            Framing::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(BodyFault::TooLarge)?;
                self.data = data;
                if *left == 0 {
                    self.end();
                }
            }
            Framing::Chunked => {
                self.make_room();
                // It writes to memory.
                let _written = write!(self.lead, "{:x}\r\n", data.len());
                self.data = data;
                self.trail = b"\r\n";
                if self.body.is_end_stream() {
                    self.trail = b"\r\n0\r\n\r\n";
                    self.end();
                }
            }
        }
        Ok(())
    }

    /// The body has ended, with `trailers` if there are any.
    fn finish(&mut self, trailers: Option<&HeaderMap>) {
        if self.framing == Framing::Chunked {
            self.make_room();
            self.lead.extend_from_slice(b"0\r\n");
            if let Some(trailers) = trailers {
                head::write_fields(trailers, &mut self.lead);
            }
            self.lead.extend_from_slice(b"\r\n");
        }
        self.end();
    }

    fn end(&mut self) {
        self.is_read = true;
        self.body = RequestBody::Empty;
    }

    /// What is written is forgotten, so that the lead can begin anew; a head that is not stays before what is added.
    fn make_room(&mut self) {
        if self.lead_written == self.lead.len() {
            self.lead.clear();
            self.lead_written = 0;
        }
    }

    /// Writes all that is at hand.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        loop {
            let lead = self.lead.get(self.lead_written..).unwrap_or_default();
            let parts = [lead, &self.data[..], self.trail];
            let written = match parts {
                [[], [], []] => return Poll::Ready(Ok(())),
                // For one part the kernel has a shorter way.
                [only, [], []] | [[], only, []] | [[], [], only] => {
                    ready!(Pin::new(&mut *socket).poll_write(cx, only))?
                }
                parts => ready!(Pin::new(&mut *socket).poll_write_vectored(cx, &parts.map(IoSlice::new)))?,
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.has_written = true;
            self.advance(written);
        }
    }

    fn advance(&mut self, written: usize) {
        let of_lead = written.min(self.lead.len() - self.lead_written);
        self.lead_written += of_lead;
        let of_data = (written - of_lead).min(self.data.len());
        self.data.advance(of_data);
        self.trail = self.trail.get(written - of_lead - of_data..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use http::HeaderValue;
    use tokio::io::AsyncReadExt;

    use crate::upstream::body::Again;

    use super::*;

    fn body(data: &[&'static [u8]], trailers: Option<HeaderMap>) -> RequestBody {
        let first: VecDeque<Bytes> = data.iter().map(|data| Bytes::from_static(data)).collect();
        RequestBody::Again(Box::new(Again { first, rest: RequestBody::Empty, trailers }))
    }

    /// What a target gets whose socket takes `room` bytes at a time.
    async fn sent(mut upload: Upload, room: usize) -> (Result<(), Unsent>, Vec<u8>) {
        let (mut near, mut far) = tokio::io::duplex(room);
        let send = async move {
            let result = std::future::poll_fn(|cx| upload.poll(cx, &mut near)).await;
            assert!(upload.has_written());
            if result.is_err() {
                let more = std::future::poll_fn(|cx| Poll::Ready(upload.poll(cx, &mut near))).await;
                assert!(more.is_pending(), "nothing follows what went wrong: {more:?}");
            }
            result
        };
        let read = async move {
            let mut came = Vec::new();
            far.read_to_end(&mut came).await.unwrap();
            came
        };
        tokio::join!(send, read)
    }

    #[tokio::test]
    async fn a_body_goes_as_its_framing_says_however_little_the_socket_takes() {
        let trailers = HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("t"))]);
        for room in [1, 3, 64 * 1024] {
            for (parts, trailers, framing, expected) in [
                (&[&b"ab"[..], b"", b"c"][..], None, Framing::Length(3), "abc"),
                (&[b"ab", b"", b"c"], None, Framing::Chunked, "2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"),
                (&[b"ab"], Some(trailers.clone()), Framing::Chunked, "2\r\nab\r\n0\r\netag: t\r\n\r\n"),
                (&[], Some(trailers.clone()), Framing::Chunked, "0\r\netag: t\r\n\r\n"),
                (&[b"0123456789abcdefg"], None, Framing::Chunked, "11\r\n0123456789abcdefg\r\n0\r\n\r\n"),
            ] {
                let upload = Upload::new(b"head".to_vec(), body(parts, trailers), framing);
                let (result, came) = sent(upload, room).await;
                result.unwrap();
                assert_eq!(String::from_utf8(came).unwrap(), format!("head{expected}"), "{room}");
            }
        }
    }

    #[tokio::test]
    async fn a_body_that_is_not_as_long_as_its_head_says_is_never_sent_as_if_it_were() {
        let trailers = HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("t"))]);
        for (parts, trailers, fault) in [
            (&[&b"ab"[..]][..], None, BodyFault::Truncated),
            (&[b"ab"], Some(trailers), BodyFault::Truncated),
            (&[b"ab", b"cd"], None, BodyFault::TooLarge),
        ] {
            let upload = Upload::new(b"head".to_vec(), body(parts, trailers), Framing::Length(3));
            let (result, came) = sent(upload, 1024).await;
            assert!(matches!(result, Err(Unsent::Body(found)) if found == fault), "{result:?}");
            assert_eq!(came, b"headab");
        }
    }

    #[tokio::test]
    async fn a_target_that_takes_no_more_is_told_once() {
        let (mut near, far) = tokio::io::duplex(1);
        drop(far);
        let mut upload = Upload::new(b"head".to_vec(), body(&[b"ab"], None), Framing::Length(2));
        let result = std::future::poll_fn(|cx| upload.poll(cx, &mut near)).await;
        assert!(matches!(result, Err(Unsent::Wire(_))) && !upload.has_written(), "{result:?}");
        let again = std::future::poll_fn(|cx| Poll::Ready(upload.poll(cx, &mut near).is_pending())).await;
        assert!(again, "nobody asks twice");
    }
}
