//! An upgraded connection: bytes both ways until both directions have ended.
//!
//! A direction that ends is passed on as half a close. Nothing is held while nothing flows: bytes are read into a
//! buffer that the worker lends, and only what the other side does not take at once is kept.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::upstream::{Abort, Connection, Stream};

use super::client::Client;
use super::exchange::{End, Exchange};
use super::websocket::Frames;

/// An upgrade that both sides agreed to.
pub(crate) struct Upgrade {
    pub(crate) upstream: Upstream,
    pub(crate) exchange: Box<Exchange>,
    pub(crate) is_websocket: bool,
}

/// The application's side of one.
pub(crate) enum Upstream {
    Connection(Box<Connection>),
    Stream(Box<Stream>),
}

/// One direction.
struct Flow {
    /// Read and not yet written.
    held: Bytes,
    state: FlowState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlowState {
    Open,
    /// The reading side has ended; what is held is still to be written.
    Ending,
    Ended,
}

/// Carries bytes between `downstream` and the application until both directions have ended, or the tunnel is cut. `read`
/// is what the client sent behind its request.
pub(crate) async fn run(
    client: &Client,
    upgrade: Upgrade,
    downstream: impl AsyncRead + AsyncWrite + Unpin,
    read: Bytes,
) {
    let Upgrade { upstream, exchange, is_websocket } = upgrade;
    let frames = is_websocket.then(Frames::default);
    match upstream {
        Upstream::Connection(connection) => {
            let (upstream, first, _counted) = connection.into_socket();
            carry(client, exchange, frames, (downstream, read), (upstream, first)).await;
        }
        Upstream::Stream(stream) => {
            let Some((upstream, _place)) = stream.into_duplex() else { return };
            carry(client, exchange, frames, (downstream, read), (upstream, Bytes::new())).await;
        }
    }
}

async fn carry(
    client: &Client,
    mut exchange: Box<Exchange>,
    mut frames: Option<Frames>,
    (mut downstream, read): (impl AsyncRead + AsyncWrite + Unpin, Bytes),
    (mut upstream, first): (impl AsyncRead + AsyncWrite + Unpin, Bytes),
) {
    let mut up = Flow::new(read);
    let mut down = Flow::new(first);
    if let Some(frames) = &mut frames {
        down.held = frames.pass(std::mem::take(&mut down.held));
    }
    let activity = &client.activity;
    std::future::poll_fn(|cx| {
        activity.keep_waker(cx.waker());
        if activity.abort().is_some() {
            return Poll::Ready(());
        }
        if activity.closes_stream()
            && let Some(frames) = &mut frames
        {
            frames.close();
        }
        let over_up = up.poll(cx, client, &mut downstream, &mut upstream, None);
        let over_down = down.poll(cx, client, &mut upstream, &mut downstream, frames.as_mut());
        match (over_up, over_down) {
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => Poll::Ready(()),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(()),
            _ => Poll::Pending,
        }
    })
    .await;
    exchange.end = match activity.abort() {
        Some(Abort::Cut) => End::Own("drain_cut"),
        _ => End::Complete,
    };
}

impl Flow {
    fn new(held: Bytes) -> Self {
        Self { held, state: FlowState::Open }
    }

    /// Moves what can be moved.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &Client,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        mut frames: Option<&mut Frames>,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Some(frames) = &mut frames
                && self.held.is_empty()
                && let Some(close) = frames.take_close()
            {
                self.held = close;
            }
            while !self.held.is_empty() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.held))?;
                self.held.advance(written);
                client.activity.progressed();
            }
            // TLS takes more than the socket does.
            ready!(Pin::new(&mut *to).poll_flush(cx))?;
            match self.state {
                FlowState::Ended => return Poll::Ready(Ok(())),
                FlowState::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = FlowState::Ended;
                }
                FlowState::Open => ready!(self.poll_fill(cx, client, from, to, frames.as_deref_mut()))?,
            }
        }
    }

    /// Reads once, and writes at once what the other side takes.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        client: &Client,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        frames: Option<&mut Frames>,
    ) -> Poll<io::Result<()>> {
        let mut lent = client.worker.scratch.borrow_mut();
        let mut buf = ReadBuf::new(&mut lent);
        ready!(Pin::new(from).poll_read(cx, &mut buf))?;
        let read = buf.filled();
        if read.is_empty() {
            self.state = FlowState::Ending;
            return Poll::Ready(Ok(()));
        }
        if let Some(frames) = frames {
            self.held = frames.pass(Bytes::copy_from_slice(read));
            return Poll::Ready(Ok(()));
        }
        let written = match Pin::new(to).poll_write(cx, read) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        client.activity.progressed();
        self.held = Bytes::copy_from_slice(&read[written..]);
        Poll::Ready(Ok(()))
    }
}
