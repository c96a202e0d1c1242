//! Requests over HTTP/2: one connection carries many of them, and is never to be closed from the other side.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST};
use http::{Request, Version};
use http_body::Body as _;
use http_body_util::BodyExt;

use super::client::{Answer, Body, Client, Received};
use super::plan::{Reuse, Slot};
use super::tally::Fault;
use crate::error::chain;

/// The connections of one run that are kept.
#[derive(Debug, Default)]
pub(super) struct Http2(Mutex<Vec<Kept>>);

#[derive(Debug)]
struct Kept {
    sender: SendRequest<Bytes>,
    /// That its certificate was looked at for.
    host: usize,
    since: Instant,
}

impl Http2 {
    /// Lets go of the connections; they end with what is in flight.
    pub(super) fn close(&self, client: &Client) {
        let all = std::mem::take(&mut *self.lock());
        for mut kept in all {
            if has_ended(&mut kept.sender) {
                client.tally().closed_idle(kept.since, client.clock().now());
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    pub(super) async fn send_http2(&self, slot: &Slot, request: Request<Body>) -> Result<Answer, Fault> {
        let (head, body) = request.into_parts();
        let uri = self.uri(slot, &head.uri).ok_or_else(|| Fault::Failed("no URL".to_owned()))?;
        let mut request = Request::from_parts(head, ());
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        let headers = request.headers_mut();
        headers.remove(HOST);
        headers.remove(CONNECTION);
        // Half of the bodies tell their length.
        if let Some(length) =
            body.size_hint().exact().filter(|length| *length > 0 && slot.number.is_multiple_of(2))
        {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        let mut sender = self.sender_http2(slot).await?;
        let sent = self.clock().now();
        let is_empty = body.is_end_stream();
        let (response, stream) = sender.send_request(request, is_empty).map_err(|error| before(&error))?;
        if !is_empty {
            self.drivers.spawn(pass(body, stream));
        }
        let response = tokio::time::timeout(self.timeout(), response)
            .await
            .map_err(|_elapsed| Fault::Failed("no answer in time".to_owned()))?
            .map_err(|error| before(&error))?;
        self.tally().saw(slot, response.headers(), sent, self.clock().now());
        Ok(Answer { response: response.map(Received::Http2), kept: None })
    }

    pub(super) async fn frame_http2(&self, body: &mut RecvStream) -> Result<Option<Bytes>, Fault> {
        let Some(data) = self.in_time("more of the body", body.data()).await? else { return Ok(None) };
        let data = data.map_err(|error| Fault::Truncated(chain(&error)))?;
        body.flow_control().release_capacity(data.len()).map_err(|error| Fault::Truncated(chain(&error)))?;
        Ok(Some(data))
    }

    /// A connection that has room for one more request.
    async fn sender_http2(&self, slot: &Slot) -> Result<SendRequest<Bytes>, Fault> {
        while slot.reuse == Reuse::Kept
            && let Some((mut sender, since)) = self.kept(slot.host)
        {
            if has_ended(&mut sender) {
                self.forget(since);
                self.tally().closed_idle(since, self.clock().now());
                continue;
            }
            return self.in_time("free connection", sender.ready()).await?.map_err(|error| before(&error));
        }
        let stream = self.connect(slot).await?;
        let shaken = self.in_time("HTTP/2", h2::client::handshake(stream)).await?;
        let (sender, connection) = shaken.map_err(|error| Fault::Reset(chain(&error)))?;
        self.drivers.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = chain(&error), "connection ended");
            }
        });
        let sender =
            self.in_time("free connection", sender.ready()).await?.map_err(|error| before(&error))?;
        if slot.reuse == Reuse::Kept {
            let kept = Kept { sender: sender.clone(), host: slot.host, since: self.clock().now() };
            self.http2.lock().push(kept);
        }
        Ok(sender)
    }

    fn kept(&self, host: usize) -> Option<(SendRequest<Bytes>, Instant)> {
        let all = self.http2.lock();
        let kept = all.iter().find(|kept| !self.has_tls() || kept.host == host)?;
        Some((kept.sender.clone(), kept.since))
    }

    fn forget(&self, since: Instant) {
        self.http2.lock().retain(|kept| kept.since != since);
    }
}

/// Whether the other side closed it, or said that it takes no more.
fn has_ended(sender: &mut SendRequest<Bytes>) -> bool {
    let mut nobody = std::task::Context::from_waker(std::task::Waker::noop());
    matches!(sender.poll_ready(&mut nobody), std::task::Poll::Ready(Err(_)))
}

/// Sends a body as fast as the other side reads. What is wrong is told by the answer.
async fn pass(mut body: Body, mut stream: SendStream<Bytes>) {
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(mut data) = frame.into_data() else { continue };
        while !data.is_empty() {
            stream.reserve_capacity(data.len());
            let room = tokio::time::timeout(
                Duration::from_secs(60),
                std::future::poll_fn(|cx| stream.poll_capacity(cx)),
            );
            let Ok(Some(Ok(room))) = room.await else { return stream.send_reset(Reason::CANCEL) };
            if stream.send_data(data.split_to(room.min(data.len())), false).is_err() {
                return;
            }
        }
    }
    if let Err(error) = stream.send_data(Bytes::new(), true) {
        tracing::debug!(%error, "the end of a request was not sent");
    }
}

fn before(error: &h2::Error) -> Fault {
    Fault::Reset(format!("before the answer: {}", chain(error)))
}
