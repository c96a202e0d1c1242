//! `volumes`: what there is, and the removal of one.

use serde_json::json;

use super::client::Client;
use super::commands::{Done, show};
use super::views::escaped;
use super::{Global, VolumesArgs, VolumesCommand, output};
use crate::api::{List, Volume};
use crate::ids::AppName;

pub(super) async fn run(global: &Global, client: &Client, args: VolumesArgs) -> Done {
    match args.command {
        None => list(global, client, args.app.as_ref()).await,
        Some(VolumesCommand::Remove { volume }) => {
            client.delete(&format!("/v1/volumes?place={}", escaped(&volume))).await?;
            let removed = json!({ "removed": volume });
            show(global, &removed, || output::line(format!("volume {volume} is removed")));
            Ok(())
        }
    }
}

async fn list(global: &Global, client: &Client, app: Option<&AppName>) -> Done {
    let path = app.map_or_else(|| "/v1/volumes".to_owned(), |app| format!("/v1/volumes?app={app}"));
    let found: List<Volume> = client.list(&path).await?;
    show(global, &found, || {
        let rows: Vec<_> = found.items.iter().map(row).collect();
        output::table(&["VOLUME", "OF", "LABEL", "NAME", "STATE", "USED BY"], &rows);
    });
    Ok(())
}

fn row(one: &Volume) -> Vec<String> {
    let state = match one {
        Volume { stray: true, .. } => "stray",
        Volume { declared: true, .. } => "declared",
        Volume { .. } => "not declared",
    };
    let used_by: Vec<_> = one.used_by.iter().map(ToString::to_string).collect();
    let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    vec![
        one.place.clone(),
        format!("{}/{}", one.app, one.environment),
        or_none(one.label.as_ref().map(ToString::to_string).unwrap_or_default()),
        one.name.clone(),
        state.to_owned(),
        or_none(used_by.join(" ")),
    ]
}
