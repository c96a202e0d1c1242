//! One request and its response on a stream: both bodies, driven by the task of the client that they are for.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::{Body as _, Frame};

use crate::upstream::body::Again;
use crate::upstream::target::LocalTarget;
use crate::upstream::{BodyFault, RequestBody, UpstreamError, WireError};

use super::duplex::Duplex;
use super::link::Place;

/// Interim responses before the response that are taken.
const INTERIM_MAX: u32 = 64;

/// Bytes of a request's body that are kept until its response begins: then the request cannot go out once more.
const KEPT_BYTES: usize = 64 * 1024;

/// A stream whose response has begun. Dropping it resets what has not ended.
pub(crate) struct Stream {
    upload: Option<Upload>,
    response: RecvStream,
    /// All data have come, or there are none.
    has_data: bool,
    /// What is missing of a body whose length was told.
    missing: Option<u64>,
    target: Rc<LocalTarget>,
    // Last: the place is free when the rest is gone.
    place: Place,
}

/// A request on its way.
pub(super) struct Upload {
    send: SendStream<Bytes>,
    body: RequestBody,
    /// Read, and not yet given to the connection.
    held: Bytes,
    /// What is held is the end.
    is_read: bool,
    /// Its end was given to the connection, or the target does not want the rest.
    is_over: bool,
    kept: Option<Kept>,
}

/// What was read of a body.
#[derive(Default)]
struct Kept {
    data: VecDeque<Bytes>,
    bytes: usize,
    trailers: Option<HeaderMap>,
}

impl Upload {
    pub(super) fn new(send: SendStream<Bytes>, body: RequestBody) -> Self {
        let is_over = body.is_end_stream();
        Self { send, body, held: Bytes::new(), is_read: false, is_over, kept: Some(Kept::default()) }
    }

    /// The body as it was, unless too much of it was read to be kept.
    pub(super) fn into_body(self) -> Option<RequestBody> {
        let Kept { data, trailers, .. } = self.kept?;
        if data.is_empty() && trailers.is_none() {
            return Some(self.body);
        }
        Some(RequestBody::Again(Box::new(Again { first: data, rest: self.body, trailers })))
    }

    /// Sends what the target has opened a window for; ready when the request is sent whole, or nobody wants the rest.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyFault>> {
        while !self.is_over {
            if self.send.poll_reset(cx).is_ready() {
                self.end();
                break;
            }
            if !self.held.is_empty() {
                ready!(self.poll_send(cx));
                continue;
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => self.take(frame),
                Some(Err(fault)) => {
                    // Never an end in order.
                    self.send.send_reset(Reason::CANCEL);
                    self.is_over = true;
                    return Poll::Ready(Err(fault));
                }
                None => self.finish(),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn take(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) => {
                if let Some(kept) = &mut self.kept {
                    kept.bytes += data.len();
                    kept.data.push_back(data.clone());
                    if kept.bytes > KEPT_BYTES {
                        self.kept = None;
                    }
                }
                self.is_read = self.body.is_end_stream();
                self.send.reserve_capacity(data.len());
                self.held = data;
                if self.is_read && self.held.is_empty() {
                    self.finish();
                }
            }
            Err(frame) => {
                let Ok(trailers) = frame.into_trailers() else { return };
                if let Some(kept) = &mut self.kept {
                    kept.trailers = Some(trailers.clone());
                }
                // If it cannot be sent, the stream is over, and its response tells.
                if let Err(error) = self.send.send_trailers(trailers) {
                    tracing::debug!(%error, "the end of a request was not sent");
                }
                self.is_over = true;
            }
        }
    }

    fn finish(&mut self) {
        if let Err(error) = self.send.send_data(Bytes::new(), true) {
            tracing::debug!(%error, "the end of a request was not sent");
        }
        self.is_over = true;
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut room = self.send.capacity();
        while room == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(capacity)) => room = capacity,
                Some(Err(_)) | None => {
                    self.end();
                    return Poll::Ready(());
                }
            }
        }
        let part = self.held.split_to(room.min(self.held.len()));
        let is_end = self.is_read && self.held.is_empty();
        if self.send.send_data(part, is_end).is_err() {
            self.end();
        } else if is_end {
            self.is_over = true;
        }
        Poll::Ready(())
    }

    /// The target does not want the rest.
    fn end(&mut self) {
        self.is_over = true;
        self.held = Bytes::new();
    }
}

/// Waits for the head of the response while the request goes on.
pub(super) async fn head(
    response: &mut ResponseFuture,
    upload: &mut Upload,
) -> Result<Response<RecvStream>, UpstreamError> {
    let mut interim = 0;
    std::future::poll_fn(|cx| {
        if let Poll::Ready(Err(fault)) = upload.poll(cx) {
            return Poll::Ready(Err(UpstreamError::Body(fault)));
        }
        while let Poll::Ready(Some(Ok(_interim))) = response.poll_informational(cx) {
            interim += 1;
            if interim > INTERIM_MAX {
                return Poll::Ready(Err(UpstreamError::Malformed(WireError::Interim)));
            }
        }
        Pin::new(&mut *response).poll(cx).map_err(|error| {
            if error.is_library() || error.get_io().is_none() && error.reason().is_none() {
                UpstreamError::Malformed(error.into())
            } else {
                UpstreamError::Closed(error.into())
            }
        })
    })
    .await
}

impl Stream {
    pub(super) fn new(
        response: Response<RecvStream>,
        method: &Method,
        upload: Upload,
        target: Rc<LocalTarget>,
        place: Place,
    ) -> Response<Box<Self>> {
        let is_bodiless = *method == Method::HEAD
            || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let length =
            response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let missing = if is_bodiless { Some(0) } else { length };
        let upload = Some(Upload { kept: None, ..upload });
        response.map(|response| {
            let has_data = !is_bodiless && !response.is_end_stream();
            Box::new(Self { upload, response, has_data, missing, target, place })
        })
    }

    /// The stream as it is behind an extended CONNECT, and the place that it has.
    pub(crate) fn into_duplex(self) -> Option<(Duplex, Place)> {
        let Upload { send, .. } = self.upload?;
        Some((Duplex::new(send, self.response), self.place))
    }

    pub(crate) fn target(&self) -> &Rc<LocalTarget> {
        &self.target
    }

    pub(crate) fn connected_in(&self) -> Option<Duration> {
        self.place.connected_in
    }

    /// Whether nothing more of the response comes.
    pub(crate) fn is_end(&self) -> bool {
        !self.has_data || self.response.is_end_stream()
    }

    /// What is to come of the body, if its length was told.
    pub(crate) fn missing(&self) -> Option<u64> {
        self.missing
    }

    /// Has the request go on; ready when nothing of it is left to send.
    pub(crate) fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(upload) = &mut self.upload else { return Poll::Ready(()) };
        // What is wrong with the body has been told where it was found.
        let _sent_or_not = ready!(upload.poll(cx));
        self.upload = None;
        Poll::Ready(())
    }

    /// Whether something of the request is to come from its client.
    pub(crate) fn is_coming(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| !upload.is_read && !upload.is_over)
    }

    /// Whether the request has been sent whole, or nobody wants the rest.
    pub(crate) fn is_sent(&self) -> bool {
        self.upload.as_ref().is_none_or(|upload| upload.is_over)
    }

    /// The next frame of the response.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        // It goes on beside the response, which is what is asked for.
        let _beside = self.poll_upload(cx);
        if !self.has_data {
            return Poll::Ready(None);
        }
        match ready!(self.response.poll_data(cx)) {
            Some(Ok(data)) => {
                // The window opens as the client takes what came.
                self.response.flow_control().release_capacity(data.len())?;
                self.missing = self.missing.map(|missing| missing.saturating_sub(data.len() as u64));
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            // A target that closes its connection behind a response that is whole.
            Some(Err(_closed)) if self.missing == Some(0) => {
                self.has_data = false;
                Poll::Ready(None)
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                let trailers = ready!(self.response.poll_trailers(cx))?;
                self.has_data = false;
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
        }
    }
}
