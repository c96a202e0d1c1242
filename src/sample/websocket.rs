//! `/ws`: tells its version on the first message and echoes every later one.

use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::App;
use super::answers::text;
use super::content::{Body, Received, whole};

/// Answers the handshake; the conversation goes on in a task of the app.
pub(super) fn upgrade(app: &Arc<App>, mut request: Request<Received>) -> Response<Body> {
    let Some(accept) = accept_value(&request) else {
        return text(StatusCode::UPGRADE_REQUIRED, "this is a WebSocket\n");
    };
    let upgrade = hyper::upgrade::on(&mut request);
    app.tasks.spawn(serve(Arc::clone(app), upgrade));
    let mut response = Response::new(whole(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// The proof that the handshake was understood; `None` if the request is not one.
fn accept_value(request: &Request<Received>) -> Option<HeaderValue> {
    let headers = request.headers();
    headers.get(UPGRADE).filter(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))?;
    let key = headers.get(SEC_WEBSOCKET_KEY)?;
    HeaderValue::from_str(&derive_accept_key(key.as_bytes())).ok()
}

async fn serve(app: Arc<App>, upgrade: OnUpgrade) {
    let ended = match upgrade.await {
        Ok(upgraded) => converse(&app, upgraded).await.map_err(|error| crate::error::chain(&error)),
        Err(error) => Err(crate::error::chain(&error)),
    };
    if let Err(error) = ended {
        tracing::debug!(error, "sample websocket ended");
    }
}

async fn converse(app: &App, upgraded: Upgraded) -> Result<(), Error> {
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    let mut answer = Some(Message::text(app.options.version.as_str()));
    loop {
        let message = tokio::select! {
            message = socket.next() => message,
            () = app.stopping.cancelled() => return go_away(socket).await,
        };
        match message.transpose()? {
            Some(message @ (Message::Text(_) | Message::Binary(_))) => {
                socket.send(answer.take().unwrap_or(message)).await?;
            }
            // The library itself answers a ping, and a close frame with its echo.
            Some(Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_)) => (),
            None => return Ok(()),
        }
    }
}

/// A stream has no last answer to finish: the client is told to come back elsewhere.
async fn go_away(mut socket: WebSocketStream<TokioIo<Upgraded>>) -> Result<(), Error> {
    let frame = CloseFrame { code: CloseCode::Away, reason: "stopping".into() };
    socket.close(Some(frame)).await?;
    while socket.next().await.transpose()?.is_some() {}
    Ok(())
}
