//! The load verifier on the command line. Of an app that it is named it learns the swaps from the admin API.

use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use serde_json::json;

use super::client::{Client, ClientError};
use super::commands::{Done, show, usage};
use super::output::{self, Failure};
use super::views::escaped;
use super::{Global, VerifyArgs, exit};
use crate::api::{App, Explanation};
use crate::clock::{Clock, SystemClock};
use crate::ids::AppName;
use crate::verify::{Handle, Serving, Verdict, Verifier};

/// A look at what serves that takes longer shows nothing.
const LOOK_WITHIN: Duration = Duration::from_secs(5);
/// How often the hosts are asked for until all were told of the same route table.
const LOOKS: u32 = 20;
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

pub(super) async fn run(global: &Global, args: VerifyArgs) -> Done {
    let clock = Arc::new(SystemClock);
    let verdict = match &args.app {
        None => {
            let verifier = Verifier::new(args.options, clock);
            let handle = verifier.handle();
            until_interrupted(verifier.run(), handle).await?
        }
        Some(app) => {
            let client = Client::of(global).map_err(usage)?;
            let mut options = args.options;
            if options.hosts.is_empty() {
                options.hosts = own_hosts(&client, app).await?;
            }
            let first = moving_together(&client, app, &options.hosts).await?;
            let look = async || {
                let looked = tokio::time::timeout(LOOK_WITHIN, explained(&client, &first)).await;
                looked.ok()?.ok().and_then(serving)
            };
            let verifier = Verifier::new(options, clock);
            let handle = verifier.handle();
            until_interrupted(verifier.run_watching(look), handle).await?
        }
    };
    conclude(global, &verdict)
}

/// Ctrl-C ends the load, and pressed again the command.
async fn until_interrupted(run: impl Future<Output = Verdict>, load: Handle) -> Result<Verdict, Failure> {
    let interrupted = async {
        tokio::signal::ctrl_c().await?;
        output::progress("nothing more is sent; what is in flight is waited for");
        load.stop();
        tokio::signal::ctrl_c().await
    };
    let mut run = std::pin::pin!(run);
    tokio::select! {
        verdict = &mut run => Ok(verdict),
        pressed = interrupted => match pressed {
            Ok(()) => Err(Failure::new(exit::FAILED, "interrupted")),
            // Nobody can interrupt it, then.
            Err(_) => Ok(run.await),
        },
    }
}

fn conclude(global: &Global, verdict: &Verdict) -> Done {
    if verdict.is_clean() {
        show(global, verdict, || output::line(verdict));
        return Ok(());
    }
    if !global.json {
        output::line(verdict);
    }
    Err(Failure::new(exit::FAILED, "something was not right: see above").report(json!(verdict)))
}

/// Those of the app's host names that stand for one name and have no path prefix.
async fn own_hosts(client: &Client, app: &AppName) -> Result<Vec<Authority>, Failure> {
    let found: App = client.get(&format!("/v1/apps/{app}")).await?;
    let exact = found.hosts.iter().filter(|row| row.path == "/" && !row.host.contains('*'));
    let hosts: Vec<Authority> = exact.filter_map(|row| row.host.parse().ok()).collect();
    if hosts.is_empty() {
        return Err(usage(format!("app {app} has no host name of its own that is one name: add --host")));
    }
    Ok(hosts)
}

/// One of the hosts, where all of them lead to the same version of the app: they move together.
async fn moving_together(client: &Client, app: &AppName, hosts: &[Authority]) -> Result<Authority, Failure> {
    for _ in 0..LOOKS {
        let mut found = Vec::new();
        for host in hosts {
            let explanation = explained(client, host).await?;
            if explanation.app.as_deref() != Some(app.as_str()) {
                let remedy = format!("see where it leads with `lockgate explain {host}`");
                return Err(usage(format!("{host} does not lead to app {app}")).remedy(remedy));
            }
            found.push(explanation);
        }
        let (Some(first), Some(host)) = (found.first(), hosts.first()) else { break };
        if let Some(other) = found.iter().find(|other| other.deployment != first.deployment)
            && other.generation == first.generation
        {
            let (one, another) = (&first.host, &other.host);
            return Err(usage(format!("{one} and {another} do not lead to the same version of app {app}"))
                .remedy("verify host names apart that do not move together"));
        }
        if found.iter().all(|other| other.generation == first.generation) {
            return Ok(host.clone());
        }
        SystemClock.sleep(LOOK_AGAIN_AFTER).await;
    }
    Err(Failure::new(
        exit::FAILED,
        "the routes change too often to tell whether the host names move together",
    ))
}

async fn explained(client: &Client, host: &Authority) -> Result<Explanation, ClientError> {
    client.get(&format!("/v1/explain?host={}&path=/", escaped(host.as_str()))).await
}

fn serving(explained: Explanation) -> Option<Serving> {
    let split = explained.split.map(|split| split.deployment);
    Some(Serving { generation: explained.generation, live: explained.deployment?, split })
}
