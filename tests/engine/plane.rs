//! A data plane in front of the engine's routes: what clients get while it deploys.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lockgate::clock::Clock;
use lockgate::proxy::{self, DataPlane, Limits, ProxySettings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Bed, HOST};

const LONG: Duration = Duration::from_secs(365 * 24 * 60 * 60);

pub(crate) struct Plane {
    plane: DataPlane,
    address: SocketAddr,
}

impl Plane {
    pub(crate) fn before(bed: &Bed) -> Self {
        let settings = ProxySettings {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            // The clock of the tests leaps by hours, which must not end a request that has only just come.
            limits: Limits {
                tick: Duration::from_millis(10),
                response_head: LONG,
                response_idle: LONG,
                ..Limits::default()
            },
            ..ProxySettings::default()
        };
        let clock: Arc<dyn Clock> = bed.clock.clone();
        let plane = proxy::start(settings, &bed.routing, &clock).unwrap();
        Self { address: plane.addresses()[0], plane }
    }

    /// A connection with a request on it.
    pub(crate) async fn ask(&self, fields: &str) -> TcpStream {
        self.ask_at(HOST, fields).await
    }

    /// The same of another host.
    pub(crate) async fn ask_at(&self, host: &str, fields: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// The whole answer to a request.
    pub(crate) async fn get(&self, fields: &str) -> String {
        Self::rest(self.ask(fields).await).await
    }

    /// All that comes back.
    pub(crate) async fn rest(mut stream: TcpStream) -> String {
        let mut answer = String::new();
        super::within(stream.read_to_string(&mut answer)).await.unwrap();
        answer
    }

    /// Asks so often, one after the other.
    pub(crate) async fn get_often(&self, times: u32) {
        for _ in 0..times {
            self.get("").await;
        }
    }

    pub(crate) async fn shutdown(self) {
        super::within(self.plane.shutdown(Duration::from_secs(5))).await;
    }
}
