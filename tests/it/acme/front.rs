//! What stands before an authority: it passes all on, but what it is to answer itself.

use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{self, AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::pebble::Pebble;
use crate::support::free_port;

/// It goes with its tasks.
pub(crate) struct Front {
    port: u16,
    script: Arc<Mutex<Vec<Scripted>>>,
    _serving: JoinSet<()>,
}

/// How requests for what begins with a path are answered.
pub(crate) struct Scripted {
    pub(crate) path: &'static str,
    /// The first of them one by one; those behind them are passed on.
    pub(crate) answers: Vec<String>,
    /// So many were asked.
    pub(crate) asked: usize,
}

#[derive(Clone)]
struct Door {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    behind: u16,
    script: Arc<Mutex<Vec<Scripted>>>,
}

impl Front {
    /// What it is to answer is told the port that it listens at.
    pub(crate) async fn open(pebble: &Pebble, script: impl FnOnce(u16) -> Vec<Scripted>) -> Self {
        let port = free_port();
        let script = Arc::new(Mutex::new(script(port)));
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let own = pebble.own_certificate();
        let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.certificate()], key)
            .unwrap();
        let door = Door {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            connector: TlsConnector::from(Arc::new(pebble.client())),
            behind: pebble.port(),
            script: Arc::clone(&script),
        };
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let door = door.clone();
                // Who leaves in the middle asks again.
                connections.spawn(async move { door.pass(stream).await.unwrap_or_default() });
            }
        });
        Self { port, script, _serving: serving }
    }

    pub(crate) fn directory(&self) -> String {
        format!("https://localhost:{}/dir", self.port)
    }

    /// How often what begins with `path` was asked for.
    pub(crate) fn asked(&self, path: &str) -> usize {
        let script = self.script.lock().unwrap();
        script.iter().filter(|scripted| scripted.path == path).map(|scripted| scripted.asked).sum()
    }
}

impl Door {
    /// The authority makes its URLs of the host that it is asked for: they lead here as well.
    async fn pass(&self, stream: TcpStream) -> io::Result<()> {
        let mut client = self.acceptor.accept(stream).await?;
        let mut read = Vec::new();
        while !read.windows(2).any(|two| two == b"\r\n") {
            if client.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        }
        if let Some(answer) = self.scripted(&read) {
            client.write_all(answer.as_bytes()).await?;
            client.shutdown().await?;
            io::copy(&mut client, &mut io::sink()).await?;
            return Ok(());
        }
        let stream = TcpStream::connect(("127.0.0.1", self.behind)).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut server = self.connector.connect(name, stream).await?;
        server.write_all(&read).await?;
        copy_bidirectional(&mut client, &mut server).await?;
        Ok(())
    }

    fn scripted(&self, request: &[u8]) -> Option<String> {
        let request = String::from_utf8_lossy(request);
        let path = request.split(' ').nth(1)?;
        let mut script = self.script.lock().unwrap();
        let scripted = script.iter_mut().find(|scripted| path.starts_with(scripted.path))?;
        scripted.asked += 1;
        scripted.answers.get(scripted.asked - 1).cloned()
    }
}
