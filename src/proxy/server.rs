//! Serves one client connection from its first byte to its orderly end.

use std::future::Future;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::upstream::{Abort, Phase, Source};

use super::client::Client;
use super::error::ForwardError;
use super::error_page::{self, Form};
use super::headers::X_REQUEST_ID;
use super::http2;
use super::io::ClientIo;
use super::settings::Scheme;
use super::socket::Socket;
use super::tls;
use super::tunnel;
use super::worker::{Admitted, Worker};

/// What is read of a client that is still sending, so that it gets to read the answer; and for how long.
const LINGER_BYTES: usize = 256 * 1024;
const LINGER: Duration = Duration::from_secs(2);

/// How hyper's part of a connection ended.
enum Ended {
    /// With what was read and not used.
    Done(Bytes),
    Failed,
    /// On a head that is none, and that nobody answered.
    Unread(ForwardError, hyper::Error),
    Aborted(Abort),
    /// The client speaks HTTP/2, as what was read shows.
    Http2(Bytes),
}

/// Closes a connection that is not served. It is told why, if it is there to read it; nothing is waited for.
pub(crate) fn turn_away(worker: &Worker, stream: TcpStream) {
    let verdict = ForwardError::TooManyConnections.verdict();
    worker.cells().own_answer(verdict.code);
    let id = worker.ids.make(worker.clock.now());
    let mut response = error_page::render(verdict, Form::Json, &id);
    response.headers_mut().insert(X_REQUEST_ID, id);
    if let Ok(mut stream) = stream.into_std() {
        let _read_or_not = stream.write(&error_page::to_bytes(response, worker.clock.wall()));
    }
}

/// Serves requests until either side closes.
pub(crate) async fn serve(worker: Rc<Worker>, admitted: Admitted) {
    let Admitted { stream, scheme, peer, place: _place, counted: _counted } = admitted;
    let (socket, tls) = match (scheme, worker.certs()) {
        (Scheme::Https, Some(certs)) => {
            // Boxed because a handshake is over soon.
            let Some((socket, tls)) = Box::pin(tls::accept(&worker, certs, stream)).await else { return };
            (socket, Some(tls))
        }
        (Scheme::Http, _) | (_, None) => (Socket::Plain(stream), None),
    };
    let client = Rc::new(Client::new(&worker, peer, socket, tls));
    let _listed = worker.list(&client);
    if client.tls.as_ref().is_some_and(|tls| tls.is_http2) {
        // Whoever agreed to it and begins with something else has made an error of HTTP/2.
        return Box::pin(serve_http2(&client, Bytes::new())).await;
    }
    match drive(&client).await {
        Ended::Done(read) => {
            let upgrade = client.upgrade.borrow_mut().take();
            // What follows hyper's part is rare, and boxed: every connection would carry the room for it.
            if let Some(upgrade) = upgrade {
                let socket = client.socket.borrow_mut().take();
                if let Some(socket) = socket {
                    Box::pin(tunnel::run(&client, upgrade, socket, read)).await;
                }
            } else if client.activity.is_receiving() {
                Box::pin(end(&client, b"")).await;
            } else if client.tls.is_some() {
                Box::pin(close(&client)).await;
            } else {
                // What was written last waits for it.
                drop(client.socket.borrow_mut().take());
            }
        }
        Ended::Failed | Ended::Aborted(_) if client.is_cut.get() => reset(&client),
        Ended::Failed => Box::pin(end(&client, b"")).await,
        Ended::Unread(error, cause) => {
            Box::pin(end(&client, &super::refuse_unread(&client, &error, &cause))).await;
        }
        Ended::Aborted(Abort::HeadTimeout) => {
            let error = ForwardError::Aborted(Abort::HeadTimeout);
            Box::pin(end(&client, &super::refuse_unread(&client, &error, &error))).await;
        }
        Ended::Aborted(Abort::Idle) if client.tls.is_some() => Box::pin(close(&client)).await,
        Ended::Aborted(_) => {}
        Ended::Http2(read) => Box::pin(serve_http2(&client, read)).await,
    }
}

/// Serves a connection that speaks HTTP/2, of which `read` was read, until either side closes.
async fn serve_http2(client: &Rc<Client>, read: Bytes) {
    http2::serve(client, read).await;
    end(client, b"").await;
}

/// What a look at hyper's part of a connection came to.
enum Look {
    Done,
    Ended(Ended),
    /// There has been no request for a while.
    Rest,
}

/// Serves requests by HTTP/1.1. Between those that are far apart the connection keeps little more than its socket.
async fn drive(client: &Rc<Client>) -> Ended {
    let mut unread = Bytes::new();
    loop {
        // Boxed because it is most of what a connection needs, and gone while the connection rests.
        match Box::pin(requests(client, unread)).await {
            ControlFlow::Break(ended) => return ended,
            ControlFlow::Continue(left) => {
                // A copy, which does not keep the buffer that it was read into.
                unread = Bytes::copy_from_slice(&left);
                drop(left);
                if let Some(abort) = client.rest(&unread).await {
                    return Ended::Aborted(abort);
                }
            }
        }
    }
}

/// Serves requests until the connection ends or rests; then with what was read and not used.
async fn requests(client: &Rc<Client>, unread: Bytes) -> ControlFlow<Ended, Bytes> {
    let io = TokioIo::new(ClientIo::new(Rc::clone(client), unread));
    let service = service_fn(|request: Request<Incoming>| {
        // Before the first poll: from here on half a close is not the end.
        client.activity.begin_request(!request.body().is_end_stream());
        client.answering();
        client.raw_heads.borrow_mut().pass(request.body().size_hint().exact());
        super::handle(Rc::clone(client), request.map(Source::Http1))
    });
    let limits = &client.worker.settings.limits;
    let mut connection = http1::Builder::new()
        .max_header_size(limits.head_bytes)
        .max_buf_size(limits.buffer_bytes())
        .header_read_timeout(None)
        .half_close(true)
        .serve_connection(io, service);
    let look = std::future::poll_fn(|cx| {
        let activity = &client.activity;
        activity.keep_waker(cx.waker());
        client.polls.set(client.polls.get().wrapping_add(1));
        if client.is_to_rest() {
            return Poll::Ready(Look::Rest);
        }
        // A request without a response yet ends by itself, with an answer.
        let before = activity.abort().filter(|_| !matches!(activity.phase(), Phase::Request | Phase::Held));
        if let Some(abort) = before {
            return Poll::Ready(Look::Ended(Ended::Aborted(abort)));
        }
        match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(match client.preface() {
                Some(read) => Look::Ended(Ended::Http2(read)),
                None => Look::Done,
            }),
            Poll::Ready(Err(error)) => {
                let is_malformed = error.is_parse() || error.is_parse_too_large();
                Poll::Ready(Look::Ended(match (client.unread(), client.preface()) {
                    (_, Some(read)) => Ended::Http2(read),
                    (Some(unread), None) if is_malformed => Ended::Unread(unread, error),
                    (Some(_) | None, None) => Ended::Failed,
                }))
            }
            Poll::Pending => match activity.abort() {
                Some(abort) => Poll::Ready(Look::Ended(Ended::Aborted(abort))),
                None => {
                    client.beside.drive(cx);
                    client.poll_gone(cx).map(|()| Look::Ended(Ended::Aborted(Abort::ClientGone)))
                }
            },
        }
    })
    .await;
    match look {
        Look::Done => ControlFlow::Break(Ended::Done(connection.into_parts().read_buf)),
        Look::Rest => ControlFlow::Continue(connection.into_parts().read_buf),
        Look::Ended(ended) => ControlFlow::Break(ended),
    }
}

/// Ends the connection so that nobody takes it for an end in order.
fn reset(client: &Client) {
    if let Some(stream) = client.socket.borrow_mut().take() {
        // If it cannot be reset it is gone already.
        let _or_gone = stream.tcp().set_zero_linger();
    }
}

/// Ends the connection so that the client gets to read what was written to it: a socket that is closed with
/// unread bytes resets the connection, and takes the answer along.
async fn end(client: &Client, last_words: &[u8]) {
    let socket = client.socket.borrow_mut().take();
    if let Some(socket) = socket {
        linger(socket, last_words).await;
    }
}

/// Tells the client that this is the end in order, which TLS does not leave to the socket.
async fn close(client: &Client) {
    let socket = client.socket.borrow_mut().take();
    if let Some(mut socket) = socket {
        // Whether it is there to hear it or not, the connection is over.
        let _over = tokio::time::timeout(LINGER, socket.shutdown()).await;
    }
}

/// Writes the last that a connection carries, and reads for a while what its client still sends.
pub(crate) async fn linger(mut stream: Socket, last_words: &[u8]) {
    let lingered = async {
        stream.write_all(last_words).await?;
        stream.shutdown().await?;
        let mut scratch = [0; 4096];
        let mut left = LINGER_BYTES;
        while left > 0 {
            let read = stream.read(&mut scratch).await?;
            if read == 0 {
                break;
            }
            left = left.saturating_sub(read);
        }
        std::io::Result::Ok(())
    };
    // Whether the client read it or not, the connection is over.
    let _over = tokio::time::timeout(LINGER, lingered).await;
}
