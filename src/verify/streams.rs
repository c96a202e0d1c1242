//! Exchanges that last: they are open while a swap happens, and must live on.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, HOST, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderValue, Method, Request};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::client::{Client, success};
use super::exchange::{VERSION, header, request};
use super::plan::Slot;
use super::tally::Fault;
use super::tls::Stream;
use crate::error::chain;

/// Between two events, or two messages.
const BEAT: Duration = Duration::from_millis(100);

type Socket = WebSocketStream<Stream>;

/// Events whose ids count from one, without a gap, to the number asked for.
pub(super) async fn events(client: &Client, slot: &Slot, time: Duration) -> Result<(), Fault> {
    let count = beats(time);
    let path = format!("/sse?n={count}&ms={}", BEAT.as_millis());
    let mut answer = client.send(slot, request(Method::GET, &path), Duration::ZERO).await?;
    success(&answer.response)?;
    let (mut received, mut rest) = (0, String::new());
    while let Some(data) = client.frame(answer.response.body_mut()).await? {
        rest.push_str(&String::from_utf8_lossy(&data));
        while let Some((event, after)) = rest.split_once("\n\n") {
            let id = event.lines().find_map(|line| line.strip_prefix("id: "));
            if id.and_then(|id| id.parse().ok()) != Some(received + 1) {
                return Err(Fault::Truncated(format!("event {id:?} came after event {received}")));
            }
            received += 1;
            rest = after.to_owned();
        }
    }
    if received == count && rest.is_empty() {
        return Ok(());
    }
    Err(Fault::Truncated(format!("the stream ended after {received} of {count} events")))
}

/// A WebSocket that echoes a sequence; between two messages nothing may arrive.
pub(super) async fn websocket(client: &Client, slot: &Slot, time: Duration) -> Result<(), Fault> {
    let (mut socket, version) = open(client, slot).await?;
    let first = say(client, &mut socket, "version").await?;
    if version.is_some_and(|version| version != first) {
        return Err(Fault::Failed(format!("the handshake was answered by another version than {first}")));
    }
    for number in 1..=beats(time) {
        match tokio::time::timeout(BEAT, socket.next()).await {
            Err(_quiet) => (),
            Ok(None) => return Err(Fault::Truncated("ended without a close frame".to_owned())),
            Ok(Some(message)) => return Err(unasked(&message.map_err(|error| broken(&error))?)),
        }
        let said = number.to_string();
        let heard = say(client, &mut socket, &said).await?;
        if heard != said {
            return Err(Fault::Truncated(format!("said {said:?}, heard {heard:?}")));
        }
    }
    socket.close(None).await.map_err(|error| broken(&error))?;
    // The echo of the close frame, then the end.
    while let Some(message) = client.in_time("end of the WebSocket", socket.next()).await? {
        message.map_err(|error| broken(&error))?;
    }
    Ok(())
}

/// The handshake, with the version that its answer told.
async fn open(client: &Client, slot: &Slot) -> Result<(Socket, Option<String>), Fault> {
    let mut request = Request::new(());
    // The library wants a scheme; what is sent is the path and the Host header.
    *request.uri_mut() = http::Uri::from_static("ws://target/ws");
    let headers = request.headers_mut();
    headers.insert(HOST, client.host(slot));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    if let Ok(key) = HeaderValue::from_str(&generate_key()) {
        headers.insert(SEC_WEBSOCKET_KEY, key);
    }
    let stream = client.connect(slot).await?;
    let sent = client.clock().now();
    let opened = client.in_time("handshake", tokio_tungstenite::client_async(request, stream)).await?;
    let (socket, response) = opened.map_err(|error| match error {
        Error::Http(response) => {
            success(&response).err().unwrap_or_else(|| Fault::Failed("no WebSocket".to_owned()))
        }
        error => Fault::Reset(format!("in the handshake: {}", chain(&error))),
    })?;
    client.tally().saw(slot, response.headers(), sent, client.clock().now());
    let version = header(&response, VERSION);
    Ok((socket, version))
}

/// Sends one message and waits for the next.
async fn say(client: &Client, socket: &mut Socket, text: &str) -> Result<String, Fault> {
    let sent = client.in_time("room for a message", socket.send(Message::text(text))).await?;
    sent.map_err(|error| broken(&error))?;
    match client.in_time("echo", socket.next()).await? {
        None => Err(Fault::Truncated("ended without a close frame".to_owned())),
        Some(Err(error)) => Err(broken(&error)),
        Some(Ok(Message::Text(text))) => Ok(text.to_string()),
        Some(Ok(message)) => Err(unasked(&message)),
    }
}

fn broken(error: &Error) -> Fault {
    Fault::Truncated(format!("ended without a close frame: {}", chain(error)))
}

/// A message that no message asked for. Only a close frame that says "restart" is a cut that was announced.
fn unasked(message: &Message) -> Fault {
    match message {
        Message::Close(Some(frame)) if frame.code == CloseCode::Restart => {
            Fault::Cut("closed with 1012".to_owned())
        }
        Message::Close(Some(frame)) => Fault::Truncated(format!("closed with {}", frame.code)),
        Message::Close(None) => Fault::Truncated("closed without a code".to_owned()),
        message => Fault::Truncated(format!("{message:?} came unasked")),
    }
}

fn beats(time: Duration) -> u64 {
    u64::try_from(time.as_millis() / BEAT.as_millis()).unwrap_or(u64::MAX).max(1)
}
