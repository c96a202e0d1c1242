//! The admin API as a stranger meets it: bytes over loopback TCP and over the Unix socket.

mod contract;
mod events;
mod guard;
mod idempotency;
mod limits;
mod lists;
mod once;
mod problems;
mod records;
mod wire;

use lockgate::api::{Problem, Token};
use serde_json::json;

use crate::support::{Lockgate, free_port};
use wire::{Answer, Ask};

/// A lockgate whose admin API listens on TCP as well.
struct Admin {
    lockgate: Lockgate,
    port: u16,
}

impl Admin {
    async fn start() -> Self {
        let mut admin = Self::prepare();
        admin.lockgate.spawn("").await;
        admin
    }

    fn prepare() -> Self {
        let port = free_port();
        let lockgate =
            Lockgate::prepare(|config| config["admin"]["address"] = json!(format!("127.0.0.1:{port}")));
        Self { lockgate, port }
    }

    /// Over TCP.
    async fn tcp(&self, ask: &Ask) -> Answer {
        wire::tcp(self.port, &ask.bytes()).await
    }

    /// Over the Unix socket.
    async fn socket(&self, ask: &Ask) -> Answer {
        wire::socket(&self.lockgate.socket(), &ask.bytes()).await
    }

    /// Makes a token as an operator does.
    fn token(&self, scope: &str) -> Token {
        let made = self.lockgate.cli(&["--json", "token", "create", scope, "--scope", scope]);
        assert_eq!(made.status.code(), Some(0), "{}", String::from_utf8_lossy(&made.stderr));
        serde_json::from_slice(&made.stdout).unwrap()
    }

    fn secret(&self, scope: &str) -> String {
        self.token(scope).secret.unwrap()
    }
}

/// Checks that the answer is a problem with this status and code (RFC 9457), and gives it back.
#[track_caller]
fn problem(answer: &Answer, status: u16, code: &str) -> Problem {
    let told = format!("{answer:?}");
    assert_eq!(answer.status, status, "{told}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{told}");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{told}");
    let problem: Problem = answer.json();
    assert_eq!((problem.status, problem.code.as_str()), (status, code), "{told}");
    assert!(!problem.title.is_empty(), "{told}");
    problem
}
