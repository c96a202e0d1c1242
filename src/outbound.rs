//! A request of Lockgate's own to a server elsewhere: one connection for each, with TLS or without, and an answer of limited
//! size. Who asks so asks seldom, and nothing has to be kept between two requests.

use std::error::Error;
use std::io;
use std::pin::pin;

use bytes::Bytes;
use http::header::HOST;
use http::uri::Authority;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("cannot connect to {0}")]
    Connect(String, #[source] io::Error),
    #[error("the TLS handshake with {0} failed")]
    Handshake(String, #[source] io::Error),
    #[error("the connection to {0} failed")]
    Connection(String, #[source] hyper::Error),
    #[error("the answer of {0} cannot be read")]
    Body(String, #[source] Box<dyn Error + Send + Sync>),
}

/// Sends `request` to the server at `authority`, and gives its answer, of whose body no more than `bytes_max` are taken. There is
/// no limit of time; dropping it gives it up.
///
/// # Errors
/// Why there is no answer. The server may have got the request all the same.
pub(crate) async fn ask<B>(
    tls: Option<&TlsConnector>,
    authority: &Authority,
    request: Request<B>,
    bytes_max: usize,
) -> Result<Response<Bytes>, AskError>
where
    B: Body + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let place = authority.to_string();
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let usual = if tls.is_some() { 443 } else { 80 };
    let port = authority.port_u16().unwrap_or(usual);
    let connect = |error| AskError::Connect(place.clone(), error);
    let stream = TcpStream::connect((name, port)).await.map_err(connect)?;
    let request = origin_form(request, &place);
    let Some(tls) = tls else { return exchange(stream, &place, request, bytes_max).await };
    let server = ServerName::try_from(name.to_owned()).map_err(|error| connect(io::Error::other(error)))?;
    let stream = tls.connect(server, stream).await;
    let stream = stream.map_err(|error| AskError::Handshake(place.clone(), error))?;
    exchange(stream, &place, request, bytes_max).await
}

async fn exchange<B>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    place: &str,
    request: Request<B>,
    bytes_max: usize,
) -> Result<Response<Bytes>, AskError>
where
    B: Body + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let failed = |error| AskError::Connection(place.to_owned(), error);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let mut connection = pin!(connection);
    let answered = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, bytes_max).collect().await;
        let body = body.map_err(|error| AskError::Body(place.to_owned(), error))?.to_bytes();
        Ok(Response::from_parts(parts, body))
    };
    let mut answered = pin!(answered);
    tokio::select! {
        answer = &mut answered => answer,
        // It ends as its last answer was read, or because something is wrong, which the answer tells.
        _ended = &mut connection => answered.await,
    }
}

/// As an origin server is asked (RFC 9112 section 3.2.1).
fn origin_form<B>(mut request: Request<B>, place: &str) -> Request<B> {
    if let Ok(host) = HeaderValue::try_from(place) {
        request.headers_mut().insert(HOST, host);
    }
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    if let Ok(uri) = target.parse() {
        *request.uri_mut() = uri;
    }
    request
}
