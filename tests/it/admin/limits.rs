//! What a single caller can cost: bodies too big, too deep or too slow, heads that never end, connections without number.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::wire::{self, Ask};
use super::{Admin, problem};
use crate::support::PATIENCE;

const DEPLOYMENTS: &str = "/v1/apps/web/deployments";
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Of each listener.
const CONNECTIONS_MAX: usize = 128;

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_big_is_refused() {
    let admin = Admin::start().await;
    let json = || Ask::new("POST", DEPLOYMENTS).header("content-type", "application/json");
    // Announced: answered without waiting for it.
    let announced = json().header("content-length", &(BODY_BYTES_MAX + 1).to_string());
    problem(&admin.socket(&announced).await, 413, "body_too_large");
    // Found out on the way.
    let piece = "x".repeat(0x10000);
    let chunked: String = (0..=16).map(|_| format!("10000\r\n{piece}\r\n")).collect();
    let found = json().header("transfer-encoding", "chunked").body(chunked);
    problem(&admin.socket(&found).await, 413, "body_too_large");
    let fits = json().body(" ".repeat(BODY_BYTES_MAX - 2) + "{}");
    assert_eq!(admin.socket(&fits).await.status, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_big_is_refused() {
    let admin = Admin::start().await;
    let long = "x".repeat(33 * 1024);
    for ask in [Ask::get("/v1/apps").header("x-long", &long), Ask::get(format!("/v1/apps/{long}"))] {
        let answer = admin.socket(&ask).await;
        assert!([414, 431].contains(&answer.status), "{answer:?}");
    }
    assert_eq!(admin.socket(&Ask::get("/v1/apps").header("x-long", &long[..16 * 1024])).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn json_of_any_depth_harms_nothing() {
    let admin = Admin::start().await;
    for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("{\"git\":", "}"), ("{\"env\":{\"a\":", "}}")] {
        for depth in [200, 50_000] {
            let body = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            let ask = Ask::new("POST", DEPLOYMENTS).header("content-type", "application/json").body(body);
            problem(&admin.socket(&ask).await, 422, "invalid");
        }
    }
    assert_eq!(admin.socket(&Ask::get("/v1/status")).await.status, 200);
    assert!(admin.lockgate.deployments().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_or_body_that_does_not_come_is_given_up() {
    let admin = Admin::start().await;
    let half_a_head = async {
        let mut stream = TcpStream::connect(("127.0.0.1", admin.port)).await.unwrap();
        stream.write_all(b"GET /v1/apps HTTP/1.1\r\nhost: loc").await.unwrap();
        let mut read = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("closed").unwrap();
    };
    let half_a_body = async {
        let ask = Ask::new("POST", DEPLOYMENTS).header("content-type", "application/json");
        let answer = admin.socket(&ask.header("content-length", "100").body("{")).await;
        problem(&answer, 408, "body_timeout");
    };
    tokio::join!(half_a_head, half_a_body);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_bound_wait_and_the_socket_answers_all_the_same() {
    let admin = Admin::start().await;
    let secret = admin.secret("read");
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        held.push(TcpStream::connect(("127.0.0.1", admin.port)).await.unwrap());
    }
    assert_eq!(admin.socket(&Ask::get("/v1/apps")).await.status, 200);
    let answer = wire::tcp(admin.port, &Ask::get("/v1/apps").token(&secret).bytes()).await;
    assert_eq!(answer.status, 200);
    // It was let in when one of the others had gone.
    let has_ended = |stream: &TcpStream| matches!(stream.try_read(&mut [0; 1]), Ok(0));
    let mut ended = 0;
    for stream in &held {
        // Asks the system anew: readiness alone may be older.
        let readable = tokio::time::timeout(std::time::Duration::ZERO, stream.readable()).await;
        ended += usize::from(readable.is_ok() && has_ended(stream));
    }
    assert!(ended > 0, "more than {CONNECTIONS_MAX} connections at once");
}
