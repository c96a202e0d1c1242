//! An HTTP client of the admin API: one connection a call, over the Unix socket or with a token over TCP.

use std::path::PathBuf;

use bytes::Bytes;
use http::uri::Authority;
use http::{Method, Request, Response, header, request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

use super::Global;
use crate::api::{LIMIT_MAX, List, Problem};
use crate::error::chain;

/// Where the admin API is.
#[derive(Clone, Debug)]
pub enum Endpoint {
    Socket(PathBuf),
    Tcp { authority: String, token: Option<String> },
}

/// Speaks to one lockgate.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Endpoint,
}

/// Why a call has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no lockgate answers at {endpoint}: {detail}")]
    Unreachable { endpoint: String, detail: String },
    #[error("lockgate went away in the middle of its answer: {detail}")]
    Broken { detail: String },
    #[error("{}", .0.title)]
    Refused(Box<Problem>),
    #[error("the answer is not what was expected: {detail}")]
    Unexpected { detail: String },
}

impl ClientError {
    /// Whether lockgate is away, or about to be back: the same call may well be answered in a moment.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Broken { .. } | Self::Unreachable { .. } => true,
            Self::Refused(problem) => problem.code == "starting",
            Self::Unexpected { .. } => false,
        }
    }
}

/// A response whose connection is driven as long as it is held.
#[derive(Debug)]
pub(super) struct Streamed {
    pub(super) response: Response<Incoming>,
    _connection: JoinSet<()>,
}

impl Client {
    /// For an endpoint that is known.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    /// As the command line says.
    ///
    /// # Errors
    /// If the URL is not `http://host:port`.
    pub(super) fn of(global: &Global) -> Result<Self, String> {
        let Some(url) = &global.url else { return Ok(Self::new(Endpoint::Socket(global.socket.clone()))) };
        let authority = authority(url)
            .ok_or_else(|| format!("--url {url:?} is not of the form http://127.0.0.1:9900"))?;
        Ok(Self::new(Endpoint::Tcp { authority, token: global.token.clone() }))
    }

    /// GET.
    ///
    /// # Errors
    /// If nobody answers, or the answer is a problem.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, None::<&()>).await
    }

    /// All pieces of a list. One that grows at its head meanwhile may show an item twice.
    pub(super) async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<List<T>, ClientError> {
        let found = self.first(u32::MAX, path).await?;
        Ok(List { next_offset: None, ..found })
    }

    /// The first `most` items of a list.
    pub(super) async fn first<T: DeserializeOwned>(
        &self,
        most: u32,
        path: &str,
    ) -> Result<List<T>, ClientError> {
        let mut items = Vec::new();
        let mut offset = 0;
        let and = if path.contains('?') { '&' } else { '?' };
        loop {
            let limit = (most - offset).min(LIMIT_MAX);
            let piece: List<T> = self.get(&format!("{path}{and}limit={limit}&offset={offset}")).await?;
            items.extend(piece.items);
            match piece.next_offset {
                Some(next) if next > offset && next < most => offset = next,
                next_offset => return Ok(List { items, next_offset }),
            }
        }
    }

    /// POST with a JSON body.
    ///
    /// # Errors
    /// If nobody answers, or the answer is a problem.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// PUT with a JSON body.
    ///
    /// # Errors
    /// If nobody answers, or the answer is a problem.
    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call(Method::PUT, path, Some(body)).await
    }

    pub(super) async fn delete(&self, path: &str) -> Result<(), ClientError> {
        let streamed = self.send(Method::DELETE, path, Bytes::new()).await?;
        let status = streamed.response.status();
        let body = read(streamed.response.into_body()).await?;
        if status.is_success() { Ok(()) } else { Err(refused(status.as_u16(), &body)) }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let body = match body {
            None => Bytes::new(),
            Some(body) => serde_json::to_vec(body).map_err(|error| unexpected(&error))?.into(),
        };
        let streamed = self.send(method, path, body).await?;
        let status = streamed.response.status();
        let body = read(streamed.response.into_body()).await?;
        if !status.is_success() {
            return Err(refused(status.as_u16(), &body));
        }
        serde_json::from_slice(&body).map_err(|error| unexpected(&error))
    }

    /// Sends a request and gives back the response with its body still to come.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Streamed, ClientError> {
        self.open(Request::builder().method(method).uri(path), body).await
    }

    /// Follows server-sent events, from after the one whose id is `last`.
    pub(super) async fn events(&self, path: &str, last: Option<&str>) -> Result<Streamed, ClientError> {
        let mut request = Request::builder().uri(path);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        self.open(request, Bytes::new()).await
    }

    async fn open(&self, request: request::Builder, body: Bytes) -> Result<Streamed, ClientError> {
        let unreachable = |error: std::io::Error| ClientError::Unreachable {
            endpoint: self.endpoint.to_string(),
            detail: error.to_string(),
        };
        match &self.endpoint {
            Endpoint::Socket(socket) => {
                let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
                self.exchange(stream, "localhost", request, body).await
            }
            Endpoint::Tcp { authority, .. } => {
                let stream = TcpStream::connect(authority).await.map_err(unreachable)?;
                self.exchange(stream, authority, request, body).await
            }
        }
    }

    async fn exchange<S>(
        &self,
        stream: S,
        host: &str,
        request: request::Builder,
        body: Bytes,
    ) -> Result<Streamed, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let broken = |error: hyper::Error| ClientError::Unreachable {
            endpoint: self.endpoint.to_string(),
            detail: chain(&error),
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let mut driver = JoinSet::new();
        // Its end comes with the response's end or as the response's error.
        driver.spawn(async move { drop(connection.await) });
        let mut request = request.header(header::HOST, host);
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Endpoint::Tcp { token: Some(token), .. } = &self.endpoint {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body)).map_err(|error| unexpected(&error))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        Ok(Streamed { response, _connection: driver })
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Tcp { authority, .. } => f.write_str(authority),
        }
    }
}

/// Of `http://host:port`.
fn authority(url: &str) -> Option<String> {
    let rest = url.strip_prefix("http://")?;
    let authority: Authority = rest.strip_suffix('/').unwrap_or(rest).parse().ok()?;
    let is_plain = !authority.host().is_empty() && !authority.as_str().contains('@');
    (is_plain && authority.port_u16().is_some()).then(|| authority.to_string())
}

async fn read(body: Incoming) -> Result<Bytes, ClientError> {
    let collected = body.collect().await.map_err(|error| unexpected(&error))?;
    Ok(collected.to_bytes())
}

pub(super) fn refused(status: u16, body: &[u8]) -> ClientError {
    let problem = serde_json::from_slice(body).unwrap_or_else(|_other| Problem {
        status,
        code: "unknown".to_owned(),
        title: format!("answered {status}: {}", String::from_utf8_lossy(&body[..body.len().min(200)])),
        ..Problem::default()
    });
    ClientError::Refused(Box::new(problem))
}

fn unexpected(error: &dyn std::error::Error) -> ClientError {
    ClientError::Unexpected { detail: chain(error) }
}
