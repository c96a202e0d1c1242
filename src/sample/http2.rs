//! HTTP/2, for clients that agreed on it by TLS, and without TLS for those that begin with it.

use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, Request, Response, Version};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use super::content::{Body, Broken};
use super::{App, answers};

/// What a connection begins with that speaks it without TLS.
pub(super) const PREFACE_BEGIN: &[u8] = b"PRI * HTTP/2";

/// What a client may send before it was read, so that uploads do not wait for each other on a busy machine.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;

/// A request's body.
struct StreamBody {
    stream: RecvStream,
    has_data: bool,
}

/// One client connection; when the app stops, it ends after the requests in flight.
pub(super) async fn serve(
    app: &Arc<App>,
    socket: &Arc<OwnedFd>,
    stream: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<(), h2::Error> {
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    let mut connection = builder.handshake::<_, Bytes>(stream).await?;
    let mut requests = JoinSet::new();
    let mut is_stopping = false;
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(accepted) = accepted else { return Ok(()) };
                let (request, respond) = accepted?;
                requests.spawn(answer(Arc::clone(app), Arc::clone(socket), request, respond));
            }
            () = app.stopping.cancelled(), if !is_stopping => {
                is_stopping = true;
                connection.graceful_shutdown();
            }
            Some(ended) = requests.join_next() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "sample request ended");
                }
            }
        }
    }
}

async fn answer(
    app: Arc<App>,
    socket: Arc<OwnedFd>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let is_head = request.method() == Method::HEAD;
    let request = request.map(|stream| StreamBody { stream, has_data: true }.boxed_unsync());
    // Without an answer the stream is reset.
    let Ok(response) = answers::answer(app, socket, request).await else { return };
    let (head, body) = response.into_parts();
    let mut head = Response::from_parts(head, ());
    *head.version_mut() = Version::HTTP_2;
    // As it does over HTTP/1.1, where the library sees to it.
    if let Some(length) = http_body::Body::size_hint(&body).exact() {
        head.headers_mut().entry(CONTENT_LENGTH).or_insert(HeaderValue::from(length));
    }
    let is_empty = is_head || http_body::Body::is_end_stream(&body);
    match respond.send_response(head, is_empty) {
        Ok(stream) if !is_empty => {
            if let Err(error) = send(body, stream).await {
                tracing::debug!(%error, "sample answer not sent");
            }
        }
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "sample answer not sent"),
    }
}

/// As fast as the client reads.
async fn send(mut body: Body, mut stream: SendStream<Bytes>) -> Result<(), h2::Error> {
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame;
        match frame.into_data() {
            Ok(mut data) => {
                while !data.is_empty() {
                    stream.reserve_capacity(data.len());
                    let Some(room) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else {
                        return Ok(());
                    };
                    let room = room?.min(data.len());
                    stream.send_data(data.split_to(room), false)?;
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return stream.send_trailers(trailers);
                }
            }
        }
    }
    stream.send_data(Bytes::new(), true)
}

impl http_body::Body for StreamBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        if this.has_data {
            if let Some(data) = ready!(this.stream.poll_data(cx)) {
                let data = data?;
                this.stream.flow_control().release_capacity(data.len())?;
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            this.has_data = false;
        }
        let trailers = ready!(this.stream.poll_trailers(cx))?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }
}
