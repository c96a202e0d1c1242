//! The host names of an app, one at a time.

use super::client::Client;
use super::commands::{Done, host_input, show};
use super::output;
use super::views::escaped;
use super::{Global, HostsCommand};
use crate::api::{HostInput, HostRow, List, RenameHost};

pub(super) async fn run(global: &Global, client: &Client, command: HostsCommand) -> Done {
    let of = |app: &crate::ids::AppName| format!("/v1/apps/{app}/hosts");
    let found: List<HostRow> = match command {
        HostsCommand::List { app } => client.list(&of(&app)).await?,
        HostsCommand::Add { app, host, strip } => {
            client.post(&of(&app), &HostInput { strip, ..host_input(&host) }).await?
        }
        HostsCommand::Remove { app, host } => {
            let gone = host_input(&host);
            let query = format!("host={}&path={}", escaped(&gone.host), escaped(&gone.path));
            client.delete(&format!("{}?{query}", of(&app))).await?;
            client.list(&of(&app)).await?
        }
        HostsCommand::Rename { app, from, to } => {
            let request = RenameHost { from: host_input(&from), to: host_input(&to) };
            client.post(&format!("{}/rename", of(&app)), &request).await?
        }
    };
    show(global, &found, || {
        let row = |one: &HostRow| {
            let prefix = if one.strip { "stripped" } else { "kept" };
            vec![one.host.clone(), one.path.clone(), prefix.to_owned()]
        };
        let rows: Vec<_> = found.items.iter().map(row).collect();
        output::table(&["HOST", "PATH", "PREFIX"], &rows);
    });
    Ok(())
}
