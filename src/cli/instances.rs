//! The instances with what is in flight at each.

use super::Global;
use super::client::{Client, ClientError};
use super::commands::{Done, show};
use super::output::{self, word};
use crate::api::{Instance, List};

pub(super) async fn list(global: &Global, client: &Client) -> Done {
    let found = all(client).await?;
    show(global, &found, || table(&found));
    Ok(())
}

pub(super) async fn all(client: &Client) -> Result<List<Instance>, ClientError> {
    client.list("/v1/instances").await
}

pub(super) fn table(found: &List<Instance>) {
    let row = |one: &Instance| {
        let health = if one.healthy { "healthy" } else { "-" };
        vec![
            one.id.short(),
            one.app.to_string(),
            one.deployment.to_string(),
            word(&one.phase),
            health.to_owned(),
            one.address.clone().unwrap_or_default(),
            format!("{}+{}", one.requests, one.streams),
        ]
    };
    let rows: Vec<_> = found.items.iter().map(row).collect();
    output::table(&["INSTANCE", "APP", "DEPLOYMENT", "PHASE", "HEALTH", "ADDRESS", "IN FLIGHT"], &rows);
}
