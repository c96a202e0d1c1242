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
pub(super) const LEAST: usize = 8 * 1024;
pub(super) const MOST: usize = 128 * 1024;

/// What several small reads share, in bytes.
const SHARED: usize = 32 * 1024;

/// The buffers of one worker.
#[derive(Default)]
pub(in crate::upstream) struct Lent {
    head: RefCell<Vec<u8>>,
    read: RefCell<BytesMut>,
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
