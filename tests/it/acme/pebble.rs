//! An ACME server of the test's own, with a DNS server that answers everything with this machine.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustls::ClientConfig;
use serde_json::{Value, json};

use crate::ca::{Ca, Leaf};
use crate::support::{eventually, free_port};

/// A running `pebble` with its `pebble-challtestsrv`.
pub(crate) struct Pebble {
    folder: tempfile::TempDir,
    ca: Ca,
    ports: Ports,
    /// A DNS server that it asks in place of its own.
    resolver: Option<u16>,
    children: Vec<Child>,
}

/// Where it listens, and where it looks for the answers to its challenges.
#[derive(Clone, Copy)]
struct Ports {
    directory: u16,
    management: u16,
    dns: u16,
    dns_management: u16,
    http: u16,
    tls: u16,
}

/// Whether there is one. Without it the test is reported as skipped; under `LOCKGATE_TEST_PEBBLE=require` it fails.
pub(crate) fn is_there(test: &str) -> bool {
    let found = |program| {
        Command::new(program).arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    let is_there = found("pebble") && found("pebble-challtestsrv") && found("curl");
    if !is_there {
        let is_required = std::env::var("LOCKGATE_TEST_PEBBLE").is_ok_and(|value| value == "require");
        assert!(!is_required, "pebble, pebble-challtestsrv or curl is missing");
        println!("SKIPPED: pebble: {test}");
    }
    is_there
}

impl Pebble {
    /// Looks for answers at these ports; it does not run yet.
    pub(crate) fn prepare(http: u16, tls: u16, life_seconds: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ports = Ports {
            directory: free_port(),
            management: free_port(),
            dns: free_port(),
            dns_management: free_port(),
            http,
            tls,
        };
        let ca = Ca::new();
        let (cert, key) = ca.leaf(&["localhost"]).write(folder.path(), "server");
        std::fs::write(folder.path().join("ca.pem"), &ca.pem).unwrap();
        let config = json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{}", ports.directory),
            "managementListenAddress": format!("127.0.0.1:{}", ports.management),
            "certificate": cert,
            "privateKey": key,
            "httpPort": ports.http,
            "tlsPort": ports.tls,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "certificateValidityPeriod": life_seconds,
        } });
        std::fs::write(folder.path().join("pebble.json"), config.to_string()).unwrap();
        Self { folder, ca, ports, resolver: None, children: Vec::new() }
    }

    /// Gives accounts to nobody but who has this key, from its next start on.
    pub(crate) fn want_external_account(&self, key_id: &str, hmac_key: &str) {
        let path = self.folder.path().join("pebble.json");
        let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config["pebble"]["externalAccountBindingRequired"] = json!(true);
        config["pebble"]["externalAccountMACKeys"] = json!({ key_id: hmac_key });
        std::fs::write(path, config.to_string()).unwrap();
    }

    /// Looks for records there, from its next start on.
    pub(crate) fn resolve_at(&mut self, port: u16) {
        self.resolver = Some(port);
    }

    pub(crate) fn port(&self) -> u16 {
        self.ports.directory
    }

    /// With which it answers as `localhost`.
    pub(crate) fn own_certificate(&self) -> Leaf {
        let read = |name: &str| std::fs::read_to_string(self.folder.path().join(name)).unwrap();
        Leaf { chain: read("server.pem"), key: read("server.key") }
    }

    /// A client that takes it for what it is.
    pub(crate) fn client(&self) -> ClientConfig {
        self.ca.client()
    }

    pub(crate) fn directory(&self) -> String {
        format!("https://localhost:{}/dir", self.ports.directory)
    }

    /// Whom its own certificate is held to.
    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Starts it, with its switches for what it is to do wrong.
    pub(crate) async fn spawn(&mut self, switches: &[(&str, &str)]) {
        let dns = format!("127.0.0.1:{}", self.ports.dns);
        let log = |name: &str| std::fs::File::create(self.folder.path().join(name)).unwrap();
        let challtestsrv = Command::new("pebble-challtestsrv")
            .args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", "", "-dns01", &dns])
            .arg("-management")
            .arg(format!("127.0.0.1:{}", self.ports.dns_management))
            .stdout(log("dns.log"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.children.push(challtestsrv);
        let resolver = self.resolver.map_or(dns, |port| format!("127.0.0.1:{port}"));
        let pebble = Command::new("pebble")
            .args(["-strict", "-dnsserver", &resolver, "-config"])
            .arg(self.folder.path().join("pebble.json"))
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_AUTHZREUSE", "0")
            .env("PEBBLE_WFE_NONCEREJECT", "0")
            .envs(switches.iter().copied())
            .stdout(log("pebble.log"))
            .stderr(log("pebble.errors"))
            .spawn()
            .unwrap();
        self.children.push(pebble);
        let places = [self.directory(), self.first_root()];
        eventually("pebble answers", async || places.iter().all(|url| self.curl(url).is_some())).await;
    }

    pub(crate) fn kill(&mut self) {
        for mut child in self.children.drain(..) {
            child.kill().unwrap_or_default();
            child.wait().unwrap();
        }
    }

    /// Writes the authority that signs what it issues; another one at each start.
    pub(crate) fn root(&self) -> PathBuf {
        let pem = self.curl(&self.first_root()).unwrap();
        let path = self.folder.path().join("root.pem");
        std::fs::write(&path, pem).unwrap();
        path
    }

    fn first_root(&self) -> String {
        format!("https://localhost:{}/roots/0", self.ports.management)
    }

    /// What it says that it did.
    pub(crate) fn logged(&self) -> String {
        let read = |name| std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        read("pebble.log") + &read("pebble.errors")
    }

    /// A program that sets and takes back records in its DNS, and writes down what it was told.
    pub(crate) fn dns_hook(&self) -> (PathBuf, PathBuf) {
        let (hook, told) = (self.folder.path().join("hook"), self.folder.path().join("hook.told"));
        let script = format!(
            r#"#!/bin/bash
set -eu
echo "$1 $2" >>'{told}'
case $1 in
  present) path=/set-txt body='{{"host":"'$2'.","value":"'$3'"}}' ;;
  cleanup) path=/clear-txt body='{{"host":"'$2'."}}' ;;
esac
exec 3<>/dev/tcp/127.0.0.1/{port}
printf 'POST %s HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s' "$path" "${{#body}}" "$body" >&3
grep -q ' 200 ' <&3
"#,
            told = told.display(),
            port = self.ports.dns_management,
        );
        std::fs::write(&hook, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&hook, mode).unwrap();
        (hook, told)
    }

    fn curl(&self, url: &str) -> Option<String> {
        let answer =
            Command::new("curl").args(["-sSf", "--cacert"]).arg(self.ca()).arg(url).output().unwrap();
        answer.status.success().then(|| String::from_utf8(answer.stdout).unwrap())
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            std::io::Write::write_all(&mut std::io::stderr(), self.logged().as_bytes()).unwrap_or_default();
        }
    }
}

/// All files below `folder`.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}
