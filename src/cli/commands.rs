//! What each command asks the admin API, and what it prints of the answer.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::CommandFactory;
use serde_json::json;

use super::client::{Client, ClientError};
use super::follow::Until;
use super::output::{self, Failure, word};
use super::{
    AppCommand, Cli, Command, ConfigCommand, DeployArgs, EnvironmentCommand, Global, PreviewCommand,
    PromoteArgs, RollbackArgs, ScaleArgs, ScheduleArgs, SetArgs, SwapArgs, TokenCommand, access, audit, exit,
    follow, hosts, instances, standby, verify, versions, views, volumes,
};
use crate::api::{
    App, Deployment, Environment, ExtendRequest, HostInput, LinkRequest, List, NewToken, Operation,
    PreviewLink, PromoteRequest, PutApp, Reloaded, RenameRequest, RollbackRequest, ScaleRequest,
    ScheduleRequest, SignRequest, SwapRequest, Token,
};
use crate::clock::{Clock, SystemClock};
use crate::config::Diagnostic;
use crate::ids::{AppName, EnvironmentName};
use crate::settings::{Delay, Replicas};

/// Between two looks at something that goes on behind a call.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(200);

pub(super) type Done = Result<(), Failure>;

/// Runs a command to its end.
pub(super) fn run(cli: Cli) -> Done {
    let json = cli.global.json;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(exit::FAILED, format!("cannot start threads: {error}")))?;
    let done = runtime.block_on(dispatch(cli));
    // What the command left running in the background is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done.map_err(|failure| Failure { json, ..failure })
}

async fn dispatch(cli: Cli) -> Done {
    let global = cli.global;
    match cli.command {
        Command::Serve(args) => crate::serve::run(&args.config)
            .await
            .map_err(|error| Failure::new(exit::FAILED, format!("{error:#}"))),
        Command::Demo(args) => {
            crate::demo::run(args).await.map_err(|error| Failure::new(exit::FAILED, format!("{error:#}")))
        }
        Command::Verify(args) => verify::run(&global, args).await,
        Command::SampleApp(options) => crate::sample::run(options)
            .await
            .map_err(|error| Failure::new(error.exit_code(), crate::error::chain(&error))),
        Command::Config(ConfigCommand::Check { path }) => check(&global, &path),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "lockgate", &mut script);
            output::line(String::from_utf8_lossy(&script).trim_end());
            Ok(())
        }
        Command::Config(ConfigCommand::Schema) => {
            output::line(crate::config::schema());
            Ok(())
        }
        speaking => speak(&global, Client::of(&global).map_err(usage)?, speaking).await,
    }
}

/// The commands that speak to a running lockgate.
async fn speak(global: &Global, client: Client, command: Command) -> Done {
    match command {
        Command::App(args) => match args.command {
            AppCommand::Set(args) => set_app(global, &client, args).await,
            AppCommand::Rename { app, name } => {
                let path = format!("/v1/apps/{app}/rename");
                let renamed: App = client.post(&path, &RenameRequest { name }).await?;
                show(global, &renamed, || output::line(format!("{app} is {} now", renamed.name)));
                Ok(())
            }
            AppCommand::Remove { app, detach, volumes } => {
                remove_app(global, &client, &app, (detach, volumes)).await
            }
        },
        Command::Hosts(command) => hosts::run(global, &client, command).await,
        Command::Preview(PreviewCommand::Link { app, label, good_for }) => {
            link(global, &client, &format!("/v1/apps/{app}/previews/{label}/link"), good_for).await
        }
        Command::Environment(EnvironmentCommand::Link { app, environment, good_for }) => {
            let path = format!("/v1/apps/{app}/environments/{environment}/link");
            link(global, &client, &path, good_for).await
        }
        Command::Versions { app, ephemeral } => versions::list(global, &client, &app, ephemeral).await,
        Command::Environment(EnvironmentCommand::List { app }) => {
            views::list_environments(global, &client, &app).await
        }
        Command::Environment(EnvironmentCommand::Remove { app, environment, detach }) => {
            remove_environment(global, &client, (&app, &environment), detach).await
        }
        Command::Deploy(args) => deploy(global, &client, &args).await,
        Command::Swap(args) => swap(global, &client, &args).await,
        Command::Rollback(args) => rollback(global, &client, &args).await,
        Command::Promote(args) => promote(global, &client, &args).await,
        Command::Scale(args) => scale(global, &client, &args).await,
        Command::Pause(args) => access::pause(global, &client, &args).await,
        Command::Resume { app } => access::resume(global, &client, &app).await,
        Command::Maintenance(args) => access::maintenance(global, &client, &args).await,
        Command::Disable { app } => access::disable(global, &client, &app).await,
        Command::Enable { app } => access::enable(global, &client, &app).await,
        Command::Extend { of, label, ttl } => {
            let deployment = standby::deployment_of(&client, &of, label.as_deref()).await?;
            let request = ExtendRequest { ttl: Delay(ttl.into()) };
            let path = format!("/v1/deployments/{deployment}/extend");
            let found: Deployment = client.post(&path, &request).await?;
            show(global, &found, || {
                let until = found.expires_at.map(|at| at.to_string()).unwrap_or_default();
                output::line(format!("{deployment} expires at {until}"));
            });
            Ok(())
        }
        Command::Schedule(args) => schedule(global, &client, &args).await,
        Command::Wake { app, version, detach } => {
            standby::wake(global, &client, (&app, &version), detach).await
        }
        Command::Standby { app, version, delay } => {
            let delay = Delay(delay.map_or(Duration::ZERO, Into::into));
            standby::put_to_sleep(global, &client, (&app, &version), delay).await
        }
        Command::List { app: None } => views::list_apps(global, &client).await,
        Command::List { app: Some(app) } => views::list_deployments(global, &client, &app).await,
        Command::Show { name } => views::show_any(global, &client, &name).await,
        Command::Logs { deployment, lines, follow: false } => {
            views::logs(global, &client, deployment, lines).await
        }
        Command::Logs { deployment, lines, follow: true } => {
            Ok(follow::follow_logs(global, &client, deployment, lines).await?)
        }
        Command::Cancel { operation } => {
            let done: Operation =
                client.post(&format!("/v1/operations/{operation}/cancel"), &json!({})).await?;
            show(global, &done, || output::operation(&done));
            Ok(())
        }
        Command::Finish { operation } => {
            let going: Operation =
                client.post(&format!("/v1/operations/{operation}/finish"), &json!({})).await?;
            show(global, &going, || output::operation(&going));
            Ok(())
        }
        Command::Operations { app } => views::operations(global, &client, app.as_ref()).await,
        Command::Events { of } => Ok(follow::print_events(global, &client, of).await?),
        Command::Audit { last } => audit::list(global, &client, last).await,
        Command::Instances => instances::list(global, &client).await,
        Command::Volumes(args) => volumes::run(global, &client, args).await,
        Command::Routes => views::routes(global, &client).await,
        Command::Explain { host } => views::explain(global, &client, &host).await,
        Command::Link { place, good_for } => {
            let place = host_input(&place);
            let (host, path, good_for) = (place.host, place.path, Delay(good_for.into()));
            let link = client.post("/v1/links", &SignRequest { host, path, good_for }).await?;
            show_link(global, &link);
            Ok(())
        }
        Command::Status => views::status(global, &client).await,
        Command::Doctor => views::doctor(global, &client).await,
        Command::Config(ConfigCommand::Reload) => {
            let reloaded: Reloaded = client.post("/v1/config/reload", &json!({})).await?;
            show(global, &reloaded, || {
                reloaded.changes.iter().for_each(output::line);
                for key in &reloaded.needs_restart {
                    output::line(format!("{key}: waits for a restart"));
                }
                if reloaded.changes.is_empty() {
                    output::line("nothing changed");
                }
            });
            Ok(())
        }
        Command::Token(command) => token(global, &client, command).await,
        Command::Serve(_)
        | Command::Demo(_)
        | Command::Verify(_)
        | Command::SampleApp(_)
        | Command::Completions { .. }
        | Command::Config(ConfigCommand::Check { .. } | ConfigCommand::Schema) => Ok(()),
    }
}

/// What is not named stays as it is, but for env vars: their values cannot be read, so none is dropped unasked.
async fn set_app(global: &Global, client: &Client, args: SetArgs) -> Done {
    let path = format!("/v1/apps/{}", args.app);
    let known = match client.get::<App>(&path).await {
        Ok(known) => Some(known),
        Err(ClientError::Refused(problem)) if problem.status == 404 => None,
        Err(error) => return Err(error.into()),
    };
    let env = env_pairs(&args.env)?;
    let dropped = known.iter().flat_map(|app| &app.env).filter(|name| !env.contains_key(*name));
    let dropped: Vec<_> = dropped.map(String::as_str).collect();
    if !args.replace_env && !dropped.is_empty() {
        let names = dropped.join(", ");
        return Err(usage(format!(
            "{names} would be dropped: name all env vars again, or add --replace-env"
        )));
    }
    let mut settings = match &args.settings {
        None => known.as_ref().map(|app| app.settings.clone()).unwrap_or_default(),
        Some(text) => serde_json::from_str(text).map_err(|error| usage(format!("--settings: {error}")))?,
    };
    settings.image = args.image.or(settings.image);
    settings.port = args.port.or(settings.port);
    settings.health.path = args.health.or(settings.health.path);
    if !args.command.is_empty() {
        settings.command = args.command;
    }
    match args.release_command.as_slice() {
        [] => {}
        [none] if none.is_empty() => settings.release_command = Vec::new(),
        words => settings.release_command = words.to_vec(),
    }
    if let Some(count) = args.replicas {
        settings.replicas = Replicas::new(count).map_err(usage)?;
    }
    let hosts: Vec<_> = match known {
        Some(app) if args.hosts.is_empty() => app.hosts.into_iter().map(HostInput::from).collect(),
        _ => args.hosts.iter().map(|text| host_input(text)).collect(),
    };
    // Env vars do not serialise, so that no answer can show them; here they are sent on purpose.
    let mut body = json!(PutApp { hosts, settings, env: BTreeMap::new() });
    body["env"] = json!(env);
    let app: App = client.put(&path, &body).await?;
    show(global, &app, || {
        output::line(format!("app {} is set; deploy it with `lockgate deploy {}`", app.name, app.name));
    });
    Ok(())
}

async fn link(global: &Global, client: &Client, path: &str, good_for: humantime::Duration) -> Done {
    let request = LinkRequest { good_for: Delay(good_for.into()) };
    show_link(global, &client.post(path, &request).await?);
    Ok(())
}

fn show_link(global: &Global, link: &PreviewLink) {
    show(global, link, || {
        output::progress(format!("good until {}", link.good_until));
        output::line(&link.url);
    });
}

async fn remove_app(
    global: &Global,
    client: &Client,
    app: &AppName,
    (detach, volumes): (bool, bool),
) -> Done {
    let path = format!("/v1/apps/{app}");
    client.delete(&format!("{path}?volumes={volumes}")).await?;
    if !detach {
        output::progress(format!("nothing leads to {app} any more; its instances drain"));
        until_gone(client, &path).await?;
    }
    let done = if detach { "is being removed" } else { "is removed" };
    show(global, &json!({ "app": app, "removed": !detach }), || output::line(format!("app {app} {done}")));
    Ok(())
}

async fn remove_environment(
    global: &Global,
    client: &Client,
    (app, name): (&AppName, &EnvironmentName),
    detach: bool,
) -> Done {
    let all = format!("/v1/apps/{app}/environments");
    client.delete(&format!("{all}/{name}")).await?;
    if !detach {
        output::progress(format!("nothing leads to {app}/{name} any more; its instances drain"));
        while client.list::<Environment>(&all).await?.items.iter().any(|one| one.name == *name) {
            SystemClock.sleep(LOOK_AGAIN_AFTER).await;
        }
    }
    let done = if detach { "is being removed" } else { "is removed" };
    let told = json!({ "app": app, "environment": name, "removed": !detach });
    show(global, &told, || output::line(format!("environment {app}/{name} {done}")));
    Ok(())
}

async fn until_gone(client: &Client, path: &str) -> Result<(), ClientError> {
    loop {
        match client.get::<App>(path).await {
            Ok(_) => SystemClock.sleep(LOOK_AGAIN_AFTER).await,
            Err(ClientError::Refused(problem)) if problem.status == 404 => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

async fn deploy(global: &Global, client: &Client, args: &DeployArgs) -> Done {
    let (request, notes) = args.request().map_err(usage)?;
    notes.iter().for_each(output::progress);
    let mut body = json!(request);
    body["env"] = json!(env_pairs(&args.env)?);
    let accepted: Operation = client.post(&format!("/v1/apps/{}/deployments", args.app), &body).await?;
    if args.detach {
        show(global, &accepted, || output::operation(&accepted));
        return Ok(());
    }
    follow::follow(client, accepted.id, Until::Held).await?;
    let operation = follow::settled(client, accepted.id).await?;
    conclude(global, client, operation).await
}

/// Prints how an operation that was followed stands; a failure if it did not work out.
async fn conclude(global: &Global, client: &Client, operation: Operation) -> Done {
    if !operation.state.is_end() || operation.state.is_success() {
        show(global, &operation, || output::operation(&operation));
        return Ok(());
    }
    let rolled_back = operation.state == crate::api::OperationState::RolledBack;
    let exit = if rolled_back { exit::ROLLED_BACK } else { exit::FAILED };
    let cause = operation.failure.clone().unwrap_or_default();
    let title = if cause.cause.is_empty() {
        format!("the operation was {}", word(&operation.state))
    } else {
        cause.cause
    };
    let mut failure = Failure::new(exit, title);
    failure.problem.code = cause.code;
    failure.problem.evidence = cause.evidence;
    failure.problem.remedy = cause.remedy;
    failure.problem.operation = Some(operation.id);
    let app: App = client.get(&format!("/v1/apps/{}", operation.app)).await?;
    let live = app.environments.iter().find(|environment| environment.name == operation.environment);
    failure.problem.serving = Some(match live.and_then(|environment| environment.live) {
        Some(live) => format!("{live} goes on serving"),
        None => "nothing is live yet".to_owned(),
    });
    Err(failure)
}

async fn swap(global: &Global, client: &Client, args: &SwapArgs) -> Done {
    let request = SwapRequest {
        app: None,
        environment: args.environment.clone(),
        deployment: args.deployment,
        expected_generation: args.expected_generation,
        queue: !args.no_queue,
        steps: args.steps.steps.clone(),
        step_for: args.steps.step_for,
    };
    moved(global, client, (&args.app, "swap", args.drain), &request).await
}

async fn rollback(global: &Global, client: &Client, args: &RollbackArgs) -> Done {
    let request = RollbackRequest {
        app: None,
        environment: args.how.environment.clone(),
        source: args.source,
        target: args.target,
        queue: !args.how.no_queue,
    };
    moved(global, client, (&args.app, "rollback", args.how.drain), &request).await
}

async fn promote(global: &Global, client: &Client, args: &PromoteArgs) -> Done {
    let request = PromoteRequest {
        app: None,
        environment: args.how.environment.clone(),
        deployment: args.deployment,
        from_preview: args.from_preview.clone(),
        queue: !args.how.no_queue,
    };
    moved(global, client, (&args.app, "promote", args.how.drain), &request).await
}

async fn scale(global: &Global, client: &Client, args: &ScaleArgs) -> Done {
    let replicas = Replicas::new(args.replicas).map_err(usage)?;
    let request = ScaleRequest { app: None, environment: args.environment.clone(), replicas };
    moved(global, client, (&args.app, "scale", args.drain), &request).await
}

async fn schedule(global: &Global, client: &Client, args: &ScheduleArgs) -> Done {
    let path = format!("/v1/deployments/{}/schedule", args.deployment);
    let found: Deployment = match args.state {
        None => {
            client.delete(&path).await?;
            client.get(&format!("/v1/deployments/{}", args.deployment)).await?
        }
        Some(state) => {
            let delay = Delay(args.delay.map_or(Duration::ZERO, Into::into));
            client.put(&path, &ScheduleRequest { state, delay, overwrite: !args.keep_pending }).await?
        }
    };
    show(global, &found, || {
        output::line(match &found.scheduled {
            Some(scheduled) => format!("{}: {} at {}", found.id, word(&scheduled.state), scheduled.due),
            None => format!("{}: stays {}", found.id, word(&found.desired_state)),
        });
    });
    Ok(())
}

/// Asks for something that moves the traffic, shows how it goes on, and prints its receipt.
async fn moved(
    global: &Global,
    client: &Client,
    (app, what, drain): (&AppName, &str, bool),
    request: &impl serde::Serialize,
) -> Done {
    let accepted: Operation = client.post(&format!("/v1/apps/{app}/{what}?wait=false"), request).await?;
    let until = if drain { Until::Ended } else { Until::Held };
    follow::follow(client, accepted.id, until).await?;
    let operation = follow::settled(client, accepted.id).await?;
    conclude(global, client, operation).await
}

async fn token(global: &Global, client: &Client, command: TokenCommand) -> Done {
    match command {
        TokenCommand::Create { name, scopes, expires_days } => {
            let made: Token = client.post("/v1/tokens", &NewToken { name, scopes, expires_days }).await?;
            show(global, &made, || {
                output::progress(format!("token {} ({}); its secret is shown only now:", made.name, made.id));
                output::line(made.secret.as_deref().unwrap_or_default());
            });
        }
        TokenCommand::List => {
            let found: List<Token> = client.list("/v1/tokens").await?;
            show(global, &found, || {
                let rows: Vec<_> = found
                    .items
                    .iter()
                    .map(|one| {
                        let expires = one.expires_at.map_or_else(|| "never".to_owned(), |at| at.to_string());
                        vec![one.id.to_string(), one.name.clone(), one.scopes.join(" "), expires]
                    })
                    .collect();
                output::table(&["TOKEN", "NAME", "SCOPES", "EXPIRES"], &rows);
            });
        }
        TokenCommand::Delete { id } => {
            client.delete(&format!("/v1/tokens/{id}")).await?;
            show(global, &json!({ "deleted": id }), || output::progress("deleted"));
        }
    }
    Ok(())
}

fn check(global: &Global, path: &std::path::Path) -> Done {
    let report = |found: &[Diagnostic], warnings: &[Diagnostic]| {
        let one = |one: &Diagnostic| {
            json!({
                "origin": one.origin, "line": one.line, "column": one.column, "path": one.path,
                "message": one.message, "remedy": one.remedy,
            })
        };
        let shown = |list: &[Diagnostic]| list.iter().map(one).collect::<Vec<_>>();
        json!({
            "file": path, "valid": found.is_empty(), "diagnostics": shown(found), "warnings": shown(warnings),
        })
    };
    match crate::config::load(path, &|name| std::env::var(name).ok()) {
        Ok(config) => {
            show(global, &report(&[], &config.warnings), || {
                for warning in &config.warnings {
                    output::line(format!("warning: {warning}"));
                }
                output::line(format!("{} is valid", path.display()));
            });
            Ok(())
        }
        Err(diagnostics) => {
            let report = report(&diagnostics.0, &[]);
            Err(Failure::new(exit::FAILED, diagnostics.to_string()).report(report))
        }
    }
}

pub(super) fn show<T: serde::Serialize>(global: &Global, value: &T, plain: impl FnOnce()) {
    if global.json { output::json(value) } else { plain() }
}

fn env_pairs(pairs: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    pairs
        .iter()
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(usage(format!(
                "--env is NAME=VALUE, not {:?}",
                pair.split('=').next().unwrap_or_default()
            ))),
        })
        .collect()
}

pub(super) fn host_input(text: &str) -> HostInput {
    match text.split_once('/') {
        None => HostInput { host: text.to_owned(), path: "/".to_owned(), strip: false },
        Some((host, path)) => HostInput { host: host.to_owned(), path: format!("/{path}"), strip: false },
    }
}

pub(super) fn usage(text: impl Into<String>) -> Failure {
    Failure::new(exit::USAGE, text)
}
