//! Whether clients reach an app: pause, resume, maintenance, disable, enable.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use serde_json::json;

use super::client::Client;
use super::commands::{Done, show, usage};
use super::{Global, MaintenanceArgs, PauseArgs, output};
use crate::api::{Access, App, MaintenanceRequest, Operation, PauseRequest};
use crate::ids::AppName;
use crate::settings::Delay;

pub(super) async fn pause(global: &Global, client: &Client, args: &PauseArgs) -> Done {
    let request = PauseRequest { limit: Delay(args.limit.into()), queue: args.queue };
    let what = if args.wait { "pause?wait=true" } else { "pause" };
    change(global, client, &args.app, what, &request).await
}

pub(super) async fn resume(global: &Global, client: &Client, app: &AppName) -> Done {
    change(global, client, app, "resume", &json!({})).await
}

pub(super) async fn maintenance(global: &Global, client: &Client, args: &MaintenanceArgs) -> Done {
    let allow = args.allow.iter().map(|text| network(text)).collect::<Option<_>>();
    let allow = allow.ok_or_else(|| usage("--allow is a network, as 192.0.2.0/24, or an address"))?;
    let request = MaintenanceRequest { on: args.on, message: args.message.clone(), allow };
    change(global, client, &args.app, "maintenance", &request).await
}

pub(super) async fn disable(global: &Global, client: &Client, app: &AppName) -> Done {
    change(global, client, app, "disable", &json!({})).await
}

pub(super) async fn enable(global: &Global, client: &Client, app: &AppName) -> Done {
    let operation: Operation = client.post(&format!("/v1/apps/{app}/enable"), &json!({})).await?;
    show(global, &operation, || output::operation(&operation));
    Ok(())
}

/// One address is a network as well.
fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// Asks for another access, and says what it is then.
async fn change(
    global: &Global,
    client: &Client,
    app: &AppName,
    what: &str,
    request: &impl Serialize,
) -> Done {
    let app: App = client.post(&format!("/v1/apps/{app}/{what}"), request).await?;
    show(global, &app, || {
        let name = &app.name;
        output::line(match &app.access {
            Access::Open => format!("app {name} is open"),
            Access::Paused { until, .. } => {
                format!(
                    "app {name} is paused: requests wait until {until}; end it with `lockgate resume {name}`"
                )
            }
            Access::Maintenance { .. } => format!("app {name} is in maintenance"),
            Access::Disabled => format!("app {name} is disabled; its instances stop after their drain"),
        });
        let left = app.in_flight;
        if left != crate::api::Counts::default() {
            output::line(format!("  in flight: {} requests, {} streams", left.requests, left.streams));
        }
    });
    Ok(())
}
