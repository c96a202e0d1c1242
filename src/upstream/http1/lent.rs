//! Buffers that the connections of a worker take turns with, so that one is nearly always in the processor's cache, and a
//! connection that waits holds none.

use std::cell::{RefCell, RefMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

/// What is read at once, in bytes.
const LEAST: usize = 8 * 1024;
const MOST: usize = 128 * 1024;

/// What several small reads share, in bytes.
const SHARED: usize = 32 * 1024;

/// The buffers of one worker.
#[derive(Default)]
pub(in crate::upstream) struct Lent {
    head: RefCell<Vec<u8>>,
    read: RefCell<BytesMut>,
}

/// How much one connection reads at once: what brings little is read in small pieces, what fills them in larger ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Appetite(usize);

impl Default for Appetite {
    fn default() -> Self {
        Self(LEAST)
    }
}

impl Appetite {
    /// What is read where no more than `left` is to come, if anybody knows.
    pub(super) fn wanted(self, left: Option<u64>) -> usize {
        let left = left.map_or(self.0, |left| usize::try_from(left).unwrap_or(usize::MAX));
        left.min(self.0).max(LEAST)
    }

    /// A read brought so many bytes.
    pub(super) fn fed(&mut self, bytes: usize) {
        if bytes >= self.0 {
            self.0 = (self.0 * 2).min(MOST);
        } else if bytes < self.0 / 4 {
            self.0 = (self.0 / 2).max(LEAST);
        }
    }
}

impl Lent {
    /// Where a head is written, empty.
    pub(super) fn head(&self) -> RefMut<'_, Vec<u8>> {
        let mut head = self.head.borrow_mut();
        head.clear();
        head
    }

    /// Reads at least `wanted` bytes, if there are so many. What it gives keeps the buffer that it is a part of, and no other.
    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        socket: &mut (impl AsyncRead + Unpin),
        wanted: usize,
    ) -> Poll<io::Result<Bytes>> {
        let mut buffer = self.read.borrow_mut();
        if buffer.capacity() > SHARED.max(wanted) {
            // Left of a larger one.
            *buffer = BytesMut::new();
        }
        if buffer.capacity() < wanted && !buffer.try_reclaim(wanted) {
            *buffer = BytesMut::with_capacity(wanted.max(SHARED));
        }
        ready!(poll_read_buf(Pin::new(socket), cx, &mut *buffer))?;
        Poll::Ready(Ok(buffer.split().freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_appetite_grows_with_what_fills_it_and_shrinks_with_what_does_not() {
        let mut appetite = Appetite::default();
        assert_eq!(appetite.wanted(None), LEAST);
        for _ in 0..10 {
            appetite.fed(appetite.wanted(None));
        }
        assert_eq!(appetite.wanted(None), MOST);
        assert_eq!(appetite.wanted(Some(u64::MAX)), MOST);
        assert_eq!(appetite.wanted(Some(LEAST as u64 + 1)), LEAST + 1);
        assert_eq!(appetite.wanted(Some(1)), LEAST);
        appetite.fed(MOST / 4);
        assert_eq!(appetite.wanted(None), MOST, "enough for it to stay");
        for _ in 0..10 {
            appetite.fed(1);
        }
        assert_eq!(appetite.wanted(None), LEAST);
    }
}
