//! What there is, printed: apps, deployments, operations, routes, instances.

use std::time::Duration;

use serde_json::json;

use super::client::Client;
use super::commands::{Done, show};
use super::output::{self, Failure, word};
use super::{Global, exit, instances};
use crate::api::{
    App, Deployment, Diagnosis, Environment, Explanation, List, Logs, Operation, Route, Status,
};
use crate::ids::{AppName, DeploymentId, EnvironmentName};
use crate::settings::Enforced;

pub(super) async fn list_apps(global: &Global, client: &Client) -> Done {
    let apps: List<App> = client.list("/v1/apps").await?;
    show(global, &apps, || {
        let rows: Vec<_> = apps
            .items
            .iter()
            .map(|app| {
                let hosts: Vec<_> = app
                    .hosts
                    .iter()
                    .map(|row| format!("{}{}", row.host, if row.path == "/" { "" } else { &row.path }))
                    .collect();
                let production =
                    app.environments.iter().find(|one| one.name == EnvironmentName::production());
                let live = production.and_then(|environment| environment.live);
                let note = if production.is_some_and(|one| one.rolled_back) { "rolled back" } else { "" };
                let access = json!(app.access);
                vec![
                    app.name.to_string(),
                    access["mode"].as_str().unwrap_or_default().to_owned(),
                    hosts.join(" "),
                    live.map_or_else(|| "-".to_owned(), |live| live.to_string()),
                    note.to_owned(),
                ]
            })
            .collect();
        output::table(&["APP", "ACCESS", "HOSTS", "LIVE", ""], &rows);
    });
    Ok(())
}

pub(super) async fn list_environments(global: &Global, client: &Client, app: &AppName) -> Done {
    let found: List<Environment> = client.list(&format!("/v1/apps/{app}/environments")).await?;
    show(global, &found, || {
        let row = |one: &Environment| {
            let live = one.live.map_or_else(|| "-".to_owned(), |live| live.to_string());
            let note = if one.rolled_back { "rolled back" } else { "" };
            vec![one.name.to_string(), word(&one.kind), live, note.to_owned()]
        };
        let rows: Vec<_> = found.items.iter().map(row).collect();
        output::table(&["ENVIRONMENT", "KIND", "LIVE", ""], &rows);
    });
    Ok(())
}

pub(super) async fn list_deployments(global: &Global, client: &Client, app: &AppName) -> Done {
    let found: List<Deployment> = client.list(&format!("/v1/apps/{app}/deployments")).await?;
    show(global, &found, || {
        let rows: Vec<_> = found
            .items
            .iter()
            .map(|one| {
                let state = if one.live { "live".to_owned() } else { word(&one.desired_state) };
                let label = one.label.as_ref().map_or_else(String::new, ToString::to_string);
                vec![
                    one.id.to_string(),
                    one.sequence.to_string(),
                    word(&one.status),
                    state,
                    label,
                    one.created_at.to_string(),
                ]
            })
            .collect();
        output::table(&["DEPLOYMENT", "SEQ", "STATUS", "STATE", "LABEL", "CREATED"], &rows);
    });
    Ok(())
}

pub(super) async fn show_any(global: &Global, client: &Client, name: &str) -> Done {
    if name.starts_with("op_") {
        let found: Operation = client.get(&format!("/v1/operations/{name}")).await?;
        show(global, &found, || {
            output::operation(&found);
            let rows: Vec<_> = found
                .steps
                .iter()
                .map(|step| {
                    let outcome = step.outcome.map_or_else(|| "running".to_owned(), |outcome| word(&outcome));
                    let detail = step.detail.as_deref().and_then(|detail| detail.lines().next());
                    vec![step.name.clone(), outcome, detail.unwrap_or_default().to_owned()]
                })
                .collect();
            output::table(&["STEP", "OUTCOME", "DETAIL"], &rows);
            for step in &found.steps {
                let further = step.detail.iter().flat_map(|detail| detail.lines().skip(1));
                further.for_each(|line| output::line(format!("{}: {line}", step.name)));
            }
        });
        return Ok(());
    }
    let kind = if name.starts_with("dep_") { "deployments" } else { "apps" };
    let found: serde_json::Value = client.get(&format!("/v1/{kind}/{name}")).await?;
    if global.json {
        output::json(&found);
        return Ok(());
    }
    for (key, value) in found.as_object().into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        output::line(format!("{key}: {text}"));
    }
    Ok(())
}

pub(super) async fn logs(global: &Global, client: &Client, deployment: DeploymentId, lines: usize) -> Done {
    let found: List<Logs> = client.get(&format!("/v1/deployments/{deployment}/logs?lines={lines}")).await?;
    show(global, &found, || {
        for one in &found.items {
            one.lines.iter().for_each(|line| output::line(format!("{} {line}", one.instance.short())));
        }
    });
    Ok(())
}

pub(super) async fn operations(global: &Global, client: &Client, app: Option<&AppName>) -> Done {
    let path = app.map_or_else(|| "/v1/operations".to_owned(), |app| format!("/v1/operations?app={app}"));
    let found: List<Operation> = client.list(&path).await?;
    show(global, &found, || {
        let rows: Vec<_> = found
            .items
            .iter()
            .map(|one| {
                let took = one.ended_at.map(|end| end.duration_since(one.created_at).as_millis());
                let took = took.and_then(|millis| u64::try_from(millis).ok()).map(Duration::from_millis);
                vec![
                    one.id.to_string(),
                    word(&one.kind),
                    format!("{}/{}", one.app, one.environment),
                    word(&one.state),
                    one.actor.clone(),
                    one.created_at.to_string(),
                    took.map_or_else(|| "-".to_owned(), |took| humantime::format_duration(took).to_string()),
                    one.receipt
                        .as_ref()
                        .map_or_else(|| "-".to_owned(), |receipt| receipt.cut.len().to_string()),
                ]
            })
            .collect();
        let head = ["OPERATION", "KIND", "TARGET", "STATE", "BY", "CREATED", "TOOK", "CUT"];
        output::table(&head, &rows);
    });
    Ok(())
}

pub(super) async fn routes(global: &Global, client: &Client) -> Done {
    let found: List<Route> = client.list("/v1/routes").await?;
    show(global, &found, || {
        let rows: Vec<_> = found
            .items
            .iter()
            .map(|one| {
                let mut to = one.deployment.map_or_else(|| "-".to_owned(), |to| to.to_string());
                if let Some(split) = &one.split {
                    to = format!("{to}, {} % {}", split.share, split.deployment);
                }
                let (sticky, target) = match (&one.app, &one.environment) {
                    (Some(app), Some(environment)) => (word(&one.sticky), format!("{app}/{environment}")),
                    _ => ("service".to_owned(), one.service.clone().unwrap_or_default()),
                };
                vec![one.host.clone(), one.path.clone(), sticky, target, to]
            })
            .collect();
        output::table(&["HOST", "PATH", "STICKY", "TARGET", "DEPLOYMENT"], &rows);
    });
    Ok(())
}

pub(super) async fn explain(global: &Global, client: &Client, host: &str) -> Done {
    let (host, path) = host
        .split_once('/')
        .map_or_else(|| (host, "/".to_owned()), |(host, rest)| (host, format!("/{rest}")));
    let query = format!("/v1/explain?host={}&path={}", escaped(host), escaped(&path));
    let found: Explanation = client.get(&query).await?;
    show(global, &found, || {
        output::line(format!("{}{} at generation {}", found.host, found.path, found.generation));
        found.trail.iter().for_each(|line| output::line(format!("  {line}")));
        if let Some(deployment) = &found.deployment {
            output::line(format!("  served by {deployment}"));
        }
        if let Some(split) = &found.split {
            output::line(format!("  {} % by {}", split.share, split.deployment));
        }
        for target in found.targets.iter().chain(&found.split_targets) {
            let gate = if target.open { "open" } else { "closed" };
            let health = if target.healthy { "healthy" } else { "unhealthy" };
            output::line(format!(
                "  {} {} {health}, gate {gate}, {} requests, {} streams in flight",
                target.instance.short(),
                target.address,
                target.requests,
                target.streams
            ));
        }
        if let Some(code) = &found.code {
            output::line(format!("  answered with {code}"));
        }
    });
    Ok(())
}

pub(super) async fn doctor(global: &Global, client: &Client) -> Done {
    let found: Diagnosis = client.get("/v1/doctor").await?;
    if found.findings.is_empty() {
        show(global, &found, || output::line("nothing is amiss"));
        return Ok(());
    }
    let mut failure = Failure::new(exit::FAILED, format!("{} amiss", found.findings.len()));
    failure.problem.evidence = found
        .findings
        .iter()
        .map(|one| format!("{} {}: {}; {}", word(&one.kind), one.subject, one.cause, one.remedy))
        .collect();
    Err(failure.report(json!(found)))
}

pub(super) async fn status(global: &Global, client: &Client) -> Done {
    let found: Status = client.get("/v1/status").await?;
    let found_instances = instances::all(client).await?;
    if global.json {
        output::json(&json!({ "status": found, "instances": found_instances.items }));
        return Ok(());
    }
    let available =
        if found.runtime_available { "" } else { " (not available; what is live goes on serving)" };
    output::line(format!("lockgate {} listens on {}", found.version, found.listen.join(", ")));
    output::line(format!("runtime: {}{available}", found.runtime));
    let kept = [("cpu", found.limits.cpu), ("memory", found.limits.memory), ("pids", found.limits.pids)];
    let loose: Vec<_> = kept
        .iter()
        .filter(|(_, kept)| *kept != Enforced::Exactly)
        .map(|(limit, kept)| format!("{limit}: {}", word(kept)))
        .collect();
    if !loose.is_empty() {
        output::line(format!("limits not kept exactly: {}", loose.join(", ")));
    }
    output::line(format!(
        "{} apps, {} routes at generation {}, in flight: {} requests, {} streams, operations: {}",
        found.apps,
        found.routes,
        found.generation,
        found.requests,
        found.streams,
        found.operations.len()
    ));
    for one in found.certificates.iter().filter(|one| one.expires_soon) {
        output::line(format!("certificate of {} expires at {}", one.names.join(", "), one.not_after));
    }
    instances::table(&found_instances);
    Ok(())
}

/// For a query: everything but unreserved characters and `/`.
pub(super) fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}
