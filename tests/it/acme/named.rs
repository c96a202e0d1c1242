//! A DNS server of the test's own: BIND, with a zone that takes dynamic updates.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::{eventually, free_port};

/// The zone that it has.
pub(crate) const ZONE: &str = "test";
/// In which somebody else has a record.
pub(crate) const OWNER: &str = "_acme-challenge.previews.test";
pub(crate) const FOREIGN: &str = "\"of somebody else\"";
pub(crate) const SECRET: &str = "x1Kl3yNuVLQDdrVqqmZbGMxCmWKfMKGiTsbmB4oXc9g=";
pub(crate) const OTHER_SECRET: &str = "K0N3HIaYzpRrQmSR1bOQy6bZ9hDWvHWdYMzY7jUqvN4=";

/// A running `named`.
pub(crate) struct Named {
    folder: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

/// Whether there is one. Without it the test is reported as skipped; under `LOCKGATE_TEST_PEBBLE=require` it fails.
pub(crate) fn is_there(test: &str) -> bool {
    let found = |program| {
        Command::new(program).arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    let is_there = found("named") && found("dig");
    if !is_there {
        let is_required = std::env::var("LOCKGATE_TEST_PEBBLE").is_ok_and(|value| value == "require");
        assert!(!is_required, "named or dig is missing");
        println!("SKIPPED: named: {test}");
    }
    is_there
}

impl Named {
    /// Its keys are named by what they are: `hmac-sha256`, `hmac-sha384`, `hmac-sha512`, and `stranger`, which may nothing.
    fn prepare() -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let place = folder.path().display();
        let key = |name: &str, algorithm: &str| {
            format!("key \"{name}\" {{ algorithm {algorithm}; secret \"{SECRET}\"; }};\n")
        };
        let keys =
            ["hmac-sha256", "hmac-sha384", "hmac-sha512"].map(|algorithm| key(algorithm, algorithm)).concat();
        let grants = ["hmac-sha256", "hmac-sha384", "hmac-sha512"]
            .map(|name| format!("grant {name} zonesub TXT; "))
            .concat();
        let config = format!(
            r#"options {{
    directory "{place}"; pid-file "{place}/pid"; session-keyfile "{place}/session.key";
    listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
    recursion no; dnssec-validation no;
}};
controls {{ }};
{keys}{stranger}zone "{ZONE}" {{ type primary; file "{place}/zone"; update-policy {{ {grants}}}; }};
"#,
            stranger = key("stranger", "hmac-sha256"),
        );
        let zone = format!(
            "$TTL 60\n@ IN SOA ns.{ZONE}. root.{ZONE}. 1 3600 600 86400 60\n@ IN NS ns.{ZONE}.\nns IN A 127.0.0.1\n\
             {OWNER}. IN TXT {FOREIGN}\n"
        );
        std::fs::write(folder.path().join("named.conf"), config).unwrap();
        std::fs::write(folder.path().join("zone"), zone).unwrap();
        Self { folder, port, child: None }
    }

    /// One that answers.
    pub(crate) async fn start() -> Self {
        let mut named = Self::prepare();
        named.spawn().await;
        named
    }

    pub(crate) async fn spawn(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.log()).unwrap();
        let child = Command::new("named")
            .args(["-g", "-c"])
            .arg(self.folder.path().join("named.conf"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        eventually("named answers", async || !self.records(OWNER).is_empty()).await;
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap_or_default();
            child.wait().unwrap();
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// How lockgate is told of it.
    pub(crate) fn update(&self, key: &str) -> Value {
        let server = format!("127.0.0.1:{}", self.port);
        json!({ "server": server, "key_name": key, "key_secret": SECRET })
    }

    /// The TXT records of `name`.
    pub(crate) fn records(&self, name: &str) -> Vec<String> {
        let asked = Command::new("dig")
            .args(["@127.0.0.1", "-p", &self.port.to_string(), "+short", "+tries=2", "+time=5", "TXT", name])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&asked.stdout).into_owned();
        text.lines().filter(|line| line.starts_with('"')).map(ToOwned::to_owned).collect()
    }

    /// What it says that it did.
    pub(crate) fn logged(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("named.log")
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            std::io::Write::write_all(&mut std::io::stderr(), self.logged().as_bytes()).unwrap_or_default();
        }
    }
}
