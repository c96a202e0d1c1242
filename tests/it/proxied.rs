//! PROXY headers in and out of the whole program: one lockgate is the app of another.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::support::{BINARY, HOST, Lockgate, PATIENCE};

/// Answers each request with what it says of its client's address.
async fn mirror(listener: TcpListener) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(reflect(stream));
    }
}

async fn reflect(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    let address = head.lines().find_map(|line| line.strip_prefix("x-real-ip: ")).unwrap_or("none");
    let length = address.len();
    let answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{address}");
    stream.write_all(answer.as_bytes()).await
}

/// What is answered to a client at `address`.
async fn ask(port: u16, address: Ipv4Addr) -> std::io::Result<String> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((IpAddr::V4(address), 0).into())?;
    let mut stream = socket.connect((Ipv4Addr::LOCALHOST, port).into()).await?;
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_wants_proxy_headers_gets_healthy_and_knows_its_clients() {
    for version in ["v1", "v2"] {
        let (folder, mirrored) =
            (tempfile::tempdir().unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let inner = json!({
            "listeners": { "http": {
                "address": "127.0.0.1:${PORT}",
                "proxy_protocol": { "from": ["127.0.0.1/32"] },
            } },
            "admin": { "socket": folder.path().join("admin.sock") },
            "data_dir": folder.path().join("data"),
            "runtime": "process",
            "workers": 1,
            "access_log": "off",
            "services": { "mirror": {
                "hosts": ["*"],
                "upstreams": [format!("http://{}", mirrored.local_addr().unwrap())],
            } },
        });
        let path = folder.path().join("lockgate.yaml");
        std::fs::write(&path, inner.to_string()).unwrap();
        let mut reflecting = JoinSet::new();
        reflecting.spawn(mirror(mirrored));
        let mut lockgate = Lockgate::prepare(|config| {
            let web = &mut config["apps"]["web"];
            web["command"] = json!([BINARY, "serve", "--config", path]);
            web["proxy_protocol"] = json!(version);
        });
        lockgate.spawn("").await;
        lockgate.deploy("one").await.unwrap();
        for last in [7, 8, 7] {
            let address = Ipv4Addr::new(127, 0, 0, last);
            let answer = tokio::time::timeout(PATIENCE, ask(lockgate.port(), address)).await;
            let answer = answer.expect("no answer").unwrap();
            assert!(answer.ends_with(&format!("\r\n\r\n{address}")), "{version}: {answer}");
        }
    }
}
