//! `lockgate demo`: deploys the built-in sample app on free ports, swaps it back and forth under a checked load, opens
//! a preview by its label, and prints the receipts and the verifier's count.

#![expect(clippy::print_stdout, reason = "what it does is to show")]

pub mod image;

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::BodyExt;
use serde_json::json;

use crate::api::{Operation, Receipt};
use crate::cli::{Client, ClientError, Endpoint, receipt_text};
use crate::clock::SystemClock;
use crate::ids::DeploymentId;
use crate::serve::{self, Running};
use crate::settings::{Delay, Protocol, RuntimeKind};
use crate::verify::{Handle, Kind, Mix, Target, Verdict, Verifier, VerifyOptions};

const HOSTS: [&str; 2] = ["demo.localhost", "www.demo.localhost"];
const LABEL: &str = "preview";
/// Longer than any run; the load ends when the swaps are done.
const LOAD_MAX: Duration = Duration::from_secs(60 * 60);
/// However slow the machine is, what is in flight is neither given up before nor cut.
const IN_FLIGHT_MAX: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Where the sample app runs: process needs nothing, docker an engine.
    #[arg(long, value_parser = runtime, default_value = "process")]
    runtime: RuntimeKind,
    /// End after the swaps; exit code 1 if anything was spilled.
    #[arg(long)]
    once: bool,
    /// How often the versions are swapped under load.
    #[arg(long, default_value_t = 100)]
    swaps: u32,
    /// Requests a second.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// How often each kind of request is sent, as KIND=WEIGHT,…; all kinds if not given.
    #[arg(long)]
    mix: Option<Mix>,
    /// What the sample app is spoken to by.
    #[arg(long, value_parser = protocol, default_value = "http1")]
    protocol: Protocol,
    /// Stop each replaced version after its drain, so that the next swap has to wake it.
    #[arg(long)]
    stop_old: bool,
    /// Port to listen on; any free one if 0.
    #[arg(long, default_value_t = 0)]
    port: u16,
}

/// A lockgate of its own, with a client of its admin API.
struct Stage {
    running: Running,
    client: Client,
    socket: PathBuf,
    port: u16,
}

/// Runs the demo.
///
/// # Errors
/// What did not work, or that something was spilled.
pub async fn run(args: DemoArgs) -> anyhow::Result<()> {
    // Never one that is there: it may be somebody else's, or left by a demo that was killed.
    let random = getrandom::u32().context("no random number")?;
    let folder = std::env::temp_dir().join(format!("lockgate-demo-{random:08x}"));
    let made = std::fs::DirBuilder::new().mode(0o700).create(&folder);
    made.with_context(|| format!("cannot make {}", folder.display()))?;
    let stage = match Stage::open(&folder, &args).await {
        Ok(stage) => stage,
        Err(error) => {
            std::fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
            return Err(error);
        }
    };
    let shown = show(&stage, &args).await;
    if shown.is_ok() && !args.once {
        println!("\ntry:  curl -H 'Host: {}' http://127.0.0.1:{}/", HOSTS[0], stage.port);
        println!("      curl -H 'Host: {LABEL}.{}' http://127.0.0.1:{}/", HOSTS[0], stage.port);
        println!("      lockgate --socket {} status", stage.socket.display());
        println!("\nstill up: press Ctrl-C to end");
        tokio::signal::ctrl_c().await.context("cannot wait for Ctrl-C")?;
    }
    let closed = stage.close(&folder).await;
    shown.and(closed)
}

async fn show(stage: &Stage, args: &DemoArgs) -> anyhow::Result<()> {
    println!(
        "lockgate listens on http://127.0.0.1:{}, its admin socket is {}",
        stage.port,
        stage.socket.display()
    );
    let one = stage.deploy(json!({ "env": { "VERSION": "one" } })).await?;
    println!("deployed one: {one}");
    let two = stage.deploy(json!({ "env": { "VERSION": "two" }, "cutover": false })).await?;
    println!("deployed two: {two} (ready, not live)");
    let preview = stage.deploy(json!({ "env": { "VERSION": LABEL }, "label": LABEL, "ttl": "1h" })).await?;
    println!("deployed a preview: {preview} at http://{LABEL}.{}:{}/", HOSTS[0], stage.port);

    println!("\n{} swaps under {} requests a second, to {}:", args.swaps, args.rate, HOSTS.join(" and "));
    let (verdict, receipts) = stage.swap_under_load(args, [one, two]).await?;
    for (number, receipt) in
        receipts.iter().enumerate().filter(|(number, _)| is_shown(*number, receipts.len()))
    {
        println!("swap {}:\n{}", number + 1, receipt_text(receipt));
    }
    println!("\n{}", summary(&receipts));
    println!("\n{verdict}");
    let found = preview_version(stage).await?;
    println!("the preview still answers as {found:?}; the live host names never did");
    if !verdict.is_clean() || found != LABEL {
        bail!("something was spilled: see the counts above");
    }
    println!("nothing was spilled");
    Ok(())
}

impl Stage {
    async fn open(folder: &Path, args: &DemoArgs) -> anyhow::Result<Self> {
        let socket = folder.join("admin.sock");
        let own = std::env::current_exe().context("cannot find the running program")?;
        let sample = match args.runtime {
            RuntimeKind::Docker => json!({ "image": image::build(own, None).await?, "port": 8080 }),
            RuntimeKind::Auto | RuntimeKind::Process => {
                json!({ "command": [own, "sample-app"] })
            }
        };
        // Shared by all instances, so that a submission that came twice is seen; containers share no folder.
        let env = match args.runtime {
            RuntimeKind::Docker => json!({}),
            RuntimeKind::Auto | RuntimeKind::Process => json!({ "RECORD_FILE": folder.join("submissions") }),
        };
        // With --stop-old each replaced version is stopped once it has drained, and woken by the swap back to it.
        // It gets no grace then: whatever were still in flight would be cut.
        let (watch, standby_after, stop_grace) =
            if args.stop_old { ("1500ms", "0s", "0s") } else { ("100ms", "30m", "5s") };
        let mut app = json!({
            "hosts": HOSTS,
            "env": env,
            "health": { "path": "/health" },
            "protocol": args.protocol,
            "deploy": {
                "watch": watch, "standby_after": standby_after,
                "drain_timeout": Delay(IN_FLIGHT_MAX), "stream_drain_timeout": Delay(IN_FLIGHT_MAX),
                "stop_grace": stop_grace,
            },
        });
        merge(&mut app, sample);
        let config = json!({
            "listeners": { "http": { "address": format!("127.0.0.1:{}", args.port) } },
            "admin": { "socket": socket },
            "data_dir": folder.join("data"),
            "runtime": args.runtime,
            "access_log": "off",
            // The verifier's connections all come from one address.
            "limits": { "connections_per_client": 0 },
            "apps": { "demo": app },
        });
        // JSON is YAML.
        let config = crate::config::parse(&config.to_string(), "the demo's configuration", &|_| None)?;
        let running = serve::start(config, None, true).await?;
        let port = running.addresses().first().context("nothing listens")?.port();
        Ok(Self { running, client: Client::new(Endpoint::Socket(socket.clone())), socket, port })
    }

    async fn deploy(&self, request: serde_json::Value) -> anyhow::Result<DeploymentId> {
        let done: Operation = self.client.post("/v1/apps/demo/deployments?wait=true", &request).await?;
        done.deployment.context("the operation names no deployment")
    }

    /// Swaps the two versions back and forth while the verifier sends; the first is live.
    async fn swap_under_load(
        &self,
        args: &DemoArgs,
        versions: [DeploymentId; 2],
    ) -> anyhow::Result<(Verdict, Vec<Receipt>)> {
        let target: Target = format!("http://127.0.0.1:{}", self.port).parse()?;
        let mut options = VerifyOptions::new(target);
        options.hosts = HOSTS.iter().map(|host| host.parse()).collect::<Result<_, _>>()?;
        options.rate = args.rate;
        options.mix = match (&args.mix, args.protocol) {
            (Some(mix), _) => mix.clone(),
            (None, Protocol::Http1 | Protocol::Https) => options.mix,
            // The sample app takes them by HTTP/1.1 alone.
            (None, Protocol::H2c | Protocol::H2) => options.mix.without(Kind::Websocket),
        };
        options.duration = LOAD_MAX.into();
        options.timeout = IN_FLIGHT_MAX.into();
        let verifier = Verifier::new(options, Arc::new(SystemClock));
        let handle = verifier.handle();
        handle.swap_answered(handle.swap_called("one"));
        let (verdict, receipts) =
            tokio::join!(verifier.run(), self.swap_often(args.swaps, versions, &handle));
        Ok((verdict, receipts?))
    }

    async fn swap_often(
        &self,
        swaps: u32,
        versions: [DeploymentId; 2],
        load: &Handle,
    ) -> anyhow::Result<Vec<Receipt>> {
        load.flowing().await;
        let mut receipts = Vec::new();
        let names = ["one", "two"];
        for number in 1..=swaps {
            let next = usize::from(!number.is_multiple_of(2));
            let token = load.swap_called(names[next]);
            let swapped =
                self.client.post("/v1/apps/demo/swap", &json!({ "deployment": versions[next] })).await;
            let operation: Operation = match swapped {
                Ok(operation) => operation,
                Err(error) => {
                    // Refused is refused; after any other error nobody knows whether it happened.
                    if let ClientError::Refused(_) = &error {
                        load.swap_failed(token);
                    }
                    load.stop();
                    return Err(error).with_context(|| format!("swap {number}"));
                }
            };
            load.swap_answered(token);
            receipts.extend(operation.receipt);
        }
        load.stop();
        Ok(receipts)
    }

    /// Removes what the demo started, and its folder.
    async fn close(self, folder: &Path) -> anyhow::Result<()> {
        self.running.shutdown_with_instances(GRACE).await;
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))
    }
}

/// The first and the last few: all of them are in `lockgate operations`.
fn is_shown(number: usize, all: usize) -> bool {
    number == 0 || number + 2 >= all
}

fn summary(receipts: &[Receipt]) -> String {
    let mut publishes: Vec<u64> = receipts.iter().map(|receipt| receipt.publish_us).collect();
    publishes.sort_unstable();
    let median = publishes.get(publishes.len() / 2).copied().unwrap_or_default();
    let at = |count: fn(&Receipt) -> u64| receipts.iter().map(count).sum::<u64>();
    format!(
        "{} swaps; publish: median {median} us, most {} us; in flight at the cutovers: {} requests, {} streams; \
         asked during them: {} requests, {} failed",
        receipts.len(),
        publishes.last().copied().unwrap_or_default(),
        at(|receipt| receipt.in_flight_at_cutover.requests),
        at(|receipt| receipt.in_flight_at_cutover.streams),
        at(|receipt| receipt.requests_during.total),
        at(|receipt| receipt.requests_during.failed),
    )
}

/// What the preview answers, asked as a browser would.
async fn preview_version(stage: &Stage) -> anyhow::Result<String> {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", stage.port)).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await?;
    let host = format!("{LABEL}.{}", HOSTS[0]);
    let request = http::Request::get("/").header("host", host).header("connection", "close");
    let request = request.body(http_body_util::Empty::<bytes::Bytes>::new())?;
    let answered = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        // The connection does not end before somebody took it.
        body.collect().await?;
        Ok::<_, hyper::Error>(head)
    };
    let (head, ended) = tokio::join!(answered, connection);
    ended?;
    let head = head?;
    let version = head.headers.get("x-version").and_then(|value| value.to_str().ok());
    Ok(version.unwrap_or_default().to_owned())
}

fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
    if let (serde_json::Value::Object(into), serde_json::Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

fn protocol(text: &str) -> Result<Protocol, String> {
    // The sample app speaks no TLS.
    let protocol: Option<Protocol> = serde_json::from_value(json!(text)).ok();
    protocol.filter(|protocol| !protocol.is_tls()).ok_or_else(|| "one of http1, h2c".to_owned())
}

fn runtime(text: &str) -> Result<RuntimeKind, String> {
    serde_json::from_value(json!(text)).map_err(|_unknown| "one of process, docker, auto".to_owned())
}
