//! Who asked for what to be changed.

use super::client::Client;
use super::commands::{Done, show};
use super::{Global, output};
use crate::api::{Audit, List};

pub(super) async fn list(global: &Global, client: &Client, last: u32) -> Done {
    let found: List<Audit> = client.first(last, "/v1/audit").await?;
    show(global, &found, || {
        let row = |one: &Audit| {
            let operation = one.operation.map_or_else(|| "-".to_owned(), |operation| operation.to_string());
            let method = one.action.split(' ').next().unwrap_or_default();
            let call = format!("{method} {}", one.target);
            vec![one.at.to_string(), one.actor.clone(), call, one.status.to_string(), operation]
        };
        let rows: Vec<_> = found.items.iter().map(row).collect();
        output::table(&["AT", "BY", "CALL", "STATUS", "OPERATION"], &rows);
    });
    Ok(())
}
