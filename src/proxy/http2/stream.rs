//! One stream: a request, and its response as fast as the client's window lets it through.

use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header;
use http::{Request, Response, StatusCode};
use http_body::Body as _;

use crate::proxy::body::Body;
use crate::proxy::client::Client;
use crate::proxy::tunnel::{self, Upgrade};
use crate::upstream::{Abort, Duplex, Phase, Source};

use super::{Shared, head};

/// Serves one request. `tunnel` is what its client sends if it asked for an extended CONNECT.
pub(super) async fn serve(
    client: Rc<Client>,
    connection: Rc<Shared>,
    request: Request<Source>,
    tunnel: Option<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let _listed = client.worker.list(&client);
    client.activity.begin_request(!request.body().is_end_stream());
    let mut expects = request.headers().contains_key(header::EXPECT);
    let answered = {
        let mut handling = pin!(crate::proxy::handle(Rc::clone(&client), request));
        std::future::poll_fn(|cx| {
            begin_poll(&client, cx);
            if respond.poll_reset(cx).is_ready() {
                return Poll::Ready(None);
            }
            let polled = handling.as_mut().poll(cx);
            if expects && polled.is_pending() && client.activity.awaits_client() {
                expects = false;
                go_on(&mut respond);
            }
            polled.map(Some)
        })
        .await
    };
    connection.client.learn_from(&client);
    let Some(Ok(response)) = answered else { return connection.was_reset() };
    let (parts, body) = response.into_parts();
    let mut head = Response::from_parts(parts, ());
    head::to_client(head.headers_mut(), &client);
    head::own_values(head.headers_mut());
    let upgrade = client.upgrade.borrow_mut().take();
    if let (Some(upgrade), Some(tunnel)) = (upgrade, tunnel) {
        return carry(&client, upgrade, head, tunnel, respond).await;
    }
    let is_whole = body.is_end_stream();
    match respond.send_response(head, is_whole) {
        Ok(stream) if !is_whole => {
            Pipe { client, body, stream, held: Bytes::new(), is_read: false }.run().await
        }
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "a response was not sent"),
    }
}

/// Tells the client that the application agreed (RFC 8441 section 5), and carries bytes.
async fn carry(
    client: &Client,
    upgrade: Upgrade,
    mut head: Response<()>,
    tunnel: RecvStream,
    mut respond: SendResponse<Bytes>,
) {
    head::to_agreement(&mut head);
    match respond.send_response(head, false) {
        Ok(stream) => {
            let downstream = Duplex::new(stream, tunnel);
            Box::pin(tunnel::run(client, upgrade, downstream, Bytes::new())).await;
        }
        Err(error) => tracing::debug!(%error, "an agreement was not sent"),
    }
}

fn begin_poll(client: &Client, cx: &Context<'_>) {
    client.activity.keep_waker(cx.waker());
    client.polls.set(client.polls.get().wrapping_add(1));
}

/// The upstream reads the body (RFC 9110 section 10.1.1).
fn go_on(respond: &mut SendResponse<Bytes>) {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::CONTINUE;
    if let Err(error) = respond.send_informational(response) {
        tracing::debug!(%error, "100 was not sent");
    }
}

/// A response on its way to the client.
struct Pipe {
    client: Rc<Client>,
    body: Body,
    stream: SendStream<Bytes>,
    /// Read, and not yet given to the connection.
    held: Bytes,
    /// What is held is the end.
    is_read: bool,
}

impl Pipe {
    async fn run(mut self) {
        if let Err(reason) = std::future::poll_fn(|cx| self.poll(cx)).await {
            self.stream.send_reset(reason);
        }
    }

    /// Ready when the response is sent, or the client does not want it any more; or why it is cut short.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Reason>> {
        begin_poll(&self.client, cx);
        match self.client.activity.abort() {
            None => {}
            Some(Abort::ReaderTooSlow | Abort::Idle) => return Poll::Ready(Err(Reason::CANCEL)),
            Some(_) => return Poll::Ready(Err(Reason::INTERNAL_ERROR)),
        }
        if self.stream.poll_reset(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        loop {
            if !self.held.is_empty() {
                match self.poll_send(cx) {
                    Poll::Ready(Some(())) => {}
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => {
                        self.client.activity.await_reader();
                        // The request may go on meanwhile.
                        self.body.drive(cx);
                        return Poll::Pending;
                    }
                }
                continue;
            }
            let sent = match std::task::ready!(std::pin::Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.hold(data);
                        continue;
                    }
                    Err(frame) => match frame.into_trailers() {
                        Ok(trailers) => self.stream.send_trailers(trailers),
                        Err(_unknown) => continue,
                    },
                },
                Some(Err(_cut_short)) => return Poll::Ready(Err(Reason::INTERNAL_ERROR)),
                None => self.stream.send_data(Bytes::new(), true),
            };
            if let Err(error) = sent {
                tracing::debug!(%error, "the end of a response was not sent");
            }
            return Poll::Ready(Ok(()));
        }
    }

    fn hold(&mut self, data: Bytes) {
        self.held = data;
        self.is_read = self.body.is_end_stream();
        if self.held.is_empty() {
            // Its end, if it is that, is seen at the next look.
            return;
        }
        self.stream.reserve_capacity(self.held.len());
        if self.is_read {
            // The request is over, but what its client has not taken is still looked after.
            self.client.activity.enter(Phase::Response);
        }
    }

    /// Gives what the window has room for to the connection; `None` when that was the end.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Option<()>> {
        let mut room = self.stream.capacity();
        while room == 0 {
            match std::task::ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(capacity)) => room = capacity,
                Some(Err(_)) | None => return Poll::Ready(None),
            }
        }
        let part = self.held.split_to(room.min(self.held.len()));
        self.client.activity.wrote(part.len());
        let is_end = self.is_read && self.held.is_empty();
        let sent = self.stream.send_data(part, is_end);
        Poll::Ready((sent.is_ok() && !is_end).then_some(()))
    }
}
