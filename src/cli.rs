//! The command line. But for `serve`, `demo`, `verify` and `config check|schema` it speaks only the admin API.

mod access;
mod audit;
mod client;
mod commands;
mod follow;
mod hosts;
mod instances;
mod output;
mod standby;
mod versions;
mod views;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::api::{DeployRequest, Scope};
use crate::ids::{AppName, DeploymentId, EnvironmentName, EphemeralLabel, OperationId, TokenId};
use crate::settings::{Delay, Percent};

pub use client::{Client, ClientError, Endpoint};
pub(crate) use output::receipt_text;

/// Where the admin socket is if nothing else is said.
pub const SOCKET: &str = "/run/lockgate/admin.sock";

/// What ends a command, as exit codes. They do not change.
pub mod exit {
    /// What was asked for did not work out: a deploy failed, a check found something.
    pub const FAILED: u8 = 1;
    /// The command line is wrong (clap's own).
    pub const USAGE: u8 = 2;
    /// Lockgate refused it; nothing changed.
    pub const REFUSED: u8 = 3;
    /// No lockgate answers there.
    pub const UNREACHABLE: u8 = 4;
    /// The new version did not hold, and the old one serves again.
    pub const ROLLED_BACK: u8 = 5;
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused and nothing changed, 4 no lockgate \
                          answers, 5 the new version did not hold and the old one serves again.";

#[derive(Debug, Parser)]
#[command(name = "lockgate", version, about = "Ingress and deploy orchestrator in one", after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// For every command that speaks to a running lockgate.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Unix socket of the running lockgate.
    #[arg(long, global = true, env = "LOCKGATE_SOCKET", default_value = SOCKET)]
    pub socket: PathBuf,
    /// Speak to this address (http://127.0.0.1:9900) with a token instead of the socket.
    #[arg(long, global = true, env = "LOCKGATE_URL")]
    pub url: Option<String>,
    /// API token for --url.
    #[arg(long, global = true, env = "LOCKGATE_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Print JSON, for programs.
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the ingress and the orchestrator.
    Serve(ServeArgs),
    /// See it work: deploys a sample app and swaps it under load.
    Demo(crate::demo::DemoArgs),
    /// Create an app, or change its settings and host names.
    #[command(name = "app")]
    App(AppArgs),
    /// List, add, remove or rename the host names of an app.
    #[command(subcommand)]
    Hosts(HostsCommand),
    /// Sign links to previews that are not for everybody.
    #[command(subcommand)]
    Preview(PreviewCommand),
    /// List the versions of an app: active, standby, ephemeral, replaced.
    Versions {
        app: AppName,
        /// Only those with a label.
        #[arg(long)]
        ephemeral: bool,
    },
    /// List or remove the environments of an app; a deploy makes those that it names.
    #[command(subcommand)]
    Environment(EnvironmentCommand),
    /// Deploy a new version of an app.
    Deploy(DeployArgs),
    /// Make a ready deployment live; answers when every request is served by it.
    Swap(SwapArgs),
    /// Go back to an earlier version at once; deploys do not go live until a promote.
    Rollback(RollbackArgs),
    /// Make a version live and let deploys go live again.
    Promote(PromoteArgs),
    /// Give the live version another number of instances, without a deploy; later deploys have as many.
    Scale(ScaleArgs),
    /// Have new requests to an app wait until `resume`; what is in flight goes on.
    Pause(PauseArgs),
    /// End a pause: what waits is served.
    Resume { app: AppName },
    /// Answer for an app with 503 while its instances go on running.
    Maintenance(MaintenanceArgs),
    /// Take an app out of service and stop its instances, until `enable`.
    Disable { app: AppName },
    /// Start a disabled app again; answers when it is reached.
    Enable { app: AppName },
    /// Move the expiry of an ephemeral deployment.
    Extend {
        /// The deployment; or its app, with the label behind it.
        #[arg(value_name = "DEPLOYMENT|APP")]
        of: String,
        label: Option<String>,
        /// From now, as 24h.
        #[arg(long)]
        ttl: humantime::Duration,
    },
    /// Put a deployment into standby, or archive it, now or later.
    Schedule(ScheduleArgs),
    /// Start a version that is in standby.
    Wake {
        app: AppName,
        /// Deployment, or label of a preview.
        version: String,
        /// Do not wait until it serves.
        #[arg(long)]
        detach: bool,
    },
    /// Stop a version and keep it; a request starts it again.
    Standby {
        app: AppName,
        /// Deployment, or label of a preview. Not what is live.
        version: String,
        /// How long from now, as 10m [default: at once]
        #[arg(long = "in", value_name = "DELAY")]
        delay: Option<humantime::Duration>,
    },
    /// List apps, or the deployments of one.
    List { app: Option<AppName> },
    /// Show an app, a deployment or an operation.
    Show { name: String },
    /// Show what a deployment's instances wrote.
    Logs {
        deployment: DeploymentId,
        /// Of each instance.
        #[arg(long, short = 'n', default_value_t = 100)]
        lines: usize,
        /// Go on with what they write until they end.
        #[arg(long, short)]
        follow: bool,
    },
    /// Cancel an operation: what it did is undone.
    Cancel { operation: OperationId },
    /// Have a cutover in steps take the last one now.
    Finish { operation: OperationId },
    /// List the operations, the newest first: who, what, when, how long, and what was cut.
    Operations {
        /// Of this app alone.
        app: Option<AppName>,
    },
    /// Follow what happens in an operation, or in the one that made a deployment, to its end.
    Events {
        /// Operation or deployment.
        #[arg(value_name = "OPERATION|DEPLOYMENT", value_parser = followed)]
        of: Followed,
    },
    /// List who asked for what to be changed, and how it was answered, the newest first.
    Audit {
        /// So many at most.
        #[arg(long, short = 'n', default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        last: u32,
    },
    /// List the instances with what is in flight at each.
    Instances,
    /// List the routes.
    Routes,
    /// Say how a host name (and path) is resolved, and why.
    Explain {
        /// `www.example.com` or `www.example.com/path`
        host: String,
    },
    /// Say how everything is.
    Status,
    /// Look for what is not as it should be; exit code 1 if something is found.
    Doctor,
    /// Check, describe or reload the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make, list or delete API tokens.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Print a completion script for a shell, to be put where it looks for them.
    Completions { shell: clap_complete::Shell },
    /// Put a checked load on an app and count what is not right.
    Verify(crate::verify::VerifyOptions),
    /// The app that `demo` deploys.
    #[command(hide = true)]
    SampleApp(crate::sample::SampleOptions),
}

/// What has events.
#[derive(Clone, Copy, Debug)]
pub enum Followed {
    Operation(OperationId),
    Deployment(DeploymentId),
}

fn followed(text: &str) -> Result<Followed, String> {
    let operation = text.parse().map(Followed::Operation);
    operation
        .or_else(|_other| text.parse().map(Followed::Deployment))
        .map_err(|_neither| "write the id of an operation (op_…) or of a deployment (dep_…)".to_owned())
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    #[arg(long, short, env = "LOCKGATE_CONFIG", default_value = "/etc/lockgate/lockgate.yaml")]
    pub config: PathBuf,
}

#[derive(Debug, Args)]
pub struct AppArgs {
    #[command(subcommand)]
    pub command: AppCommand,
}

#[derive(Debug, Subcommand)]
pub enum AppCommand {
    /// Create the app, or change what is named of it; the rest stays.
    Set(SetArgs),
    /// Give the app another name; what runs goes on, and its generated host names change with it.
    Rename { app: AppName, name: AppName },
    /// Take the app out of service and remove it with its history; waits until it is gone.
    Remove {
        app: AppName,
        /// Answer as soon as nothing leads to it any more.
        #[arg(long)]
        detach: bool,
        /// Remove its volumes too, with all that is in them; otherwise an app of the same name finds them again.
        #[arg(long)]
        volumes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum PreviewCommand {
    /// Sign a link: whoever has it may see the preview until its time is over.
    Link {
        app: AppName,
        /// Or what it was made of.
        #[arg(value_parser = label_of)]
        label: EphemeralLabel,
        /// How long it is good, as 24h.
        #[arg(long = "for", value_name = "TIME", default_value = "24h")]
        good_for: humantime::Duration,
    },
}

#[derive(Debug, Subcommand)]
pub enum HostsCommand {
    /// List the app's own host names; `routes` lists the generated ones, too.
    List { app: AppName },
    /// Add a host name, perhaps with a path prefix: www.example.com, '*.example.com', '*', example.com/api.
    Add {
        app: AppName,
        host: String,
        /// Take the prefix off before the path goes upstream.
        #[arg(long)]
        strip: bool,
    },
    /// Take a host name away; what is in flight through it ends as it would have.
    Remove { app: AppName, host: String },
    /// Give a host name's place to another one, at one instant.
    Rename { app: AppName, from: String, to: String },
}

#[derive(Debug, Subcommand)]
pub enum EnvironmentCommand {
    /// List the app's environments with what is live in each.
    List { app: AppName },
    /// Sign a link: whoever has it may see the environment until its time is over.
    Link {
        app: AppName,
        environment: EnvironmentName,
        /// How long it is good, as 24h.
        #[arg(long = "for", value_name = "TIME", default_value = "24h")]
        good_for: humantime::Duration,
    },
    /// Take an environment for previews out of service and remove it with its history; waits until it is gone.
    Remove {
        app: AppName,
        environment: EnvironmentName,
        /// Answer as soon as nothing leads to it any more.
        #[arg(long)]
        detach: bool,
    },
}

#[derive(Debug, Args)]
pub struct SetArgs {
    pub app: AppName,
    /// Host name, perhaps with a path prefix: www.example.com, '*.example.com', example.com/api.
    #[arg(long = "host")]
    pub hosts: Vec<String>,
    /// Image that a deploy uses if it names none.
    #[arg(long)]
    pub image: Option<String>,
    /// Port that the app listens on.
    #[arg(long)]
    pub port: Option<u16>,
    /// Path of the health check.
    #[arg(long)]
    pub health: Option<String>,
    #[arg(long)]
    pub replicas: Option<u16>,
    /// A word of the command that every deploy runs once before the new instances start, as a migration; once for each
    /// word. A single empty word: none.
    #[arg(long = "release-command", value_name = "WORD", allow_hyphen_values = true)]
    pub release_command: Vec<String>,
    /// Env var, NAME=VALUE. They are replaced together: values that were set before cannot be read.
    #[arg(long = "env", short)]
    pub env: Vec<String>,
    /// Drop env vars that are not named here.
    #[arg(long)]
    pub replace_env: bool,
    /// Other settings as JSON, as the API takes them; they replace all settings.
    #[arg(long)]
    pub settings: Option<String>,
    /// Command and arguments, after --.
    #[arg(last = true)]
    pub command: Vec<String>,
}

#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[derive(Debug, Args)]
pub struct DeployArgs {
    pub app: AppName,
    /// Where to; one that is not there is made, for previews [default: production]
    #[arg(long)]
    pub environment: Option<EnvironmentName>,
    /// Image reference; the app's if not given.
    #[arg(long, short)]
    pub image: Option<String>,
    /// Deploy that version again, with its settings, env vars and exact image.
    #[arg(id = "of_version", long = "version", value_name = "DEPLOYMENT", conflicts_with = "image")]
    pub of_version: Option<DeploymentId>,
    /// Env var, NAME=VALUE.
    #[arg(long = "env", short)]
    pub env: Vec<String>,
    /// Commit that this version is made of.
    #[arg(long)]
    pub commit: Option<String>,
    #[arg(long)]
    pub branch: Option<String>,
    /// Ephemeral: never live, reached at `LABEL.<any host of the app>`.
    #[arg(long, value_name = "LABEL")]
    pub ephemeral: Option<String>,
    /// Time to live of an ephemeral deployment.
    #[arg(long)]
    pub ttl: Option<String>,
    /// Refuse where there are too many, instead of ending the one that expires soonest.
    #[arg(long, requires = "ephemeral")]
    pub no_evict: bool,
    /// It is reached at once, and starts with its first request.
    #[arg(long, requires = "ephemeral")]
    pub lazy: bool,
    /// Deploy even if an equal deployment is live.
    #[arg(long)]
    pub force: bool,
    /// Become ready, but do not take the traffic.
    #[arg(long)]
    pub no_cutover: bool,
    /// Refuse while another operation is in progress, instead of waiting in line.
    #[arg(long)]
    pub no_queue: bool,
    #[command(flatten)]
    pub steps: StepArgs,
    /// Do not wait for the end.
    #[arg(long)]
    pub detach: bool,
    /// Command and arguments, after --; the app's if not given.
    #[arg(last = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RollbackArgs {
    pub app: AppName,
    /// The deployment to go back to [default: the newest earlier one that was live]
    #[arg(long = "to", value_name = "DEPLOYMENT")]
    pub target: Option<DeploymentId>,
    /// Refuse if another deployment is live.
    #[arg(long = "from", value_name = "DEPLOYMENT")]
    pub source: Option<DeploymentId>,
    #[arg(long)]
    pub environment: Option<EnvironmentName>,
    /// Answer after the drain of the version that was live instead of after the cutover.
    #[arg(long)]
    pub drain: bool,
    /// Refuse while another operation is in progress, instead of waiting in line.
    #[arg(long)]
    pub no_queue: bool,
}

#[derive(Debug, Args)]
pub struct PromoteArgs {
    pub app: AppName,
    /// The live one, after a rollback: it stays live, and deploys go live again.
    #[arg(required_unless_present = "from_preview")]
    pub deployment: Option<DeploymentId>,
    /// Deploy the very image of this preview, with production's settings and env vars, and make it live.
    #[arg(long, value_name = "LABEL", conflicts_with = "deployment", value_parser = label_of)]
    pub from_preview: Option<EphemeralLabel>,
    #[arg(long)]
    pub environment: Option<EnvironmentName>,
    /// Answer after the drain of the version that was live instead of after the cutover.
    #[arg(long)]
    pub drain: bool,
    /// Refuse while another operation is in progress, instead of waiting in line.
    #[arg(long)]
    pub no_queue: bool,
}

#[derive(Debug, Args)]
pub struct ScaleArgs {
    pub app: AppName,
    /// 1 to 100.
    pub replicas: u16,
    #[arg(long)]
    pub environment: Option<EnvironmentName>,
    /// Answer after the drain of the instances that go.
    #[arg(long)]
    pub drain: bool,
}

#[derive(Debug, Args)]
pub struct PauseArgs {
    pub app: AppName,
    /// How long requests wait from now on; what waits then, and what comes later, is refused until `resume`.
    #[arg(long = "for", value_name = "DELAY", default_value = "60s")]
    pub limit: humantime::Duration,
    /// So many wait at most; the others are refused at once.
    #[arg(long, default_value_t = 1000)]
    pub queue: u32,
    /// Answer once nothing is in flight; exit code 1 if something is when requests have waited as long as they may.
    #[arg(long)]
    pub wait: bool,
}

#[derive(Debug, Args)]
pub struct MaintenanceArgs {
    pub app: AppName,
    #[arg(action = clap::ArgAction::Set, value_parser = clap::builder::BoolishValueParser::new(), value_name = "on|off")]
    pub on: bool,
    /// What people are told.
    #[arg(long)]
    pub message: Option<String>,
    /// Network whose clients reach the app all the same, as 192.0.2.0/24; may be repeated.
    #[arg(long, value_name = "NETWORK")]
    pub allow: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ScheduleArgs {
    pub deployment: DeploymentId,
    /// running: woken; standby: stopped and kept; archived: removed, and can be deployed again.
    #[arg(required_unless_present = "clear", conflicts_with = "clear", value_parser = scheduled_state)]
    pub state: Option<crate::api::ScheduledState>,
    /// How long from now, as 10m [default: at once]
    #[arg(long = "in", value_name = "DELAY", conflicts_with = "clear")]
    pub delay: Option<humantime::Duration>,
    /// Leave alone what is pending already.
    #[arg(long, conflicts_with = "clear")]
    pub keep_pending: bool,
    /// Leave its desired state as it is.
    #[arg(long)]
    pub clear: bool,
}

fn scheduled_state(text: &str) -> Result<crate::api::ScheduledState, String> {
    serde_json::from_value(text.into()).map_err(|_unknown| "write running, standby or archived".to_owned())
}

#[derive(Debug, Args)]
pub struct SwapArgs {
    pub app: AppName,
    pub deployment: DeploymentId,
    #[arg(long)]
    pub environment: Option<EnvironmentName>,
    /// Refuse if the environment's generation is another one.
    #[arg(long)]
    pub expected_generation: Option<u64>,
    #[command(flatten)]
    pub steps: StepArgs,
    /// Answer after the drain of the old version instead of after the cutover.
    #[arg(long)]
    pub drain: bool,
    /// Refuse while another operation is in progress, instead of waiting in line.
    #[arg(long)]
    pub no_queue: bool,
}

/// A cutover in steps.
#[derive(Clone, Debug, Args)]
pub struct StepArgs {
    /// Shares of the visitors that get the version one after the other, as 5%,25%,100%; each stays on its version.
    #[arg(long, value_delimiter = ',', value_name = "SHARES")]
    pub steps: Vec<Percent>,
    /// How long each step before the last lasts; a minute if not given.
    #[arg(long, requires = "steps", value_name = "DURATION", value_parser = delay)]
    pub step_for: Option<Delay>,
}

fn delay(text: &str) -> Result<Delay, String> {
    serde_json::from_value(serde_json::json!(text)).map_err(|error| error.to_string())
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Read a configuration file and say what is wrong with it.
    Check {
        #[arg(env = "LOCKGATE_CONFIG", default_value = "/etc/lockgate/lockgate.yaml")]
        path: PathBuf,
    },
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// Have the running lockgate read its configuration again.
    Reload,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token; its secret is printed once.
    Create {
        /// What it is for, as it stands in the audit trail.
        name: String,
        /// `read`: to look; `deploy`: that, and to deploy, swap, roll back and pause; `admin`: that, and apps, host names,
        /// the configuration, tokens and the audit trail.
        #[arg(long = "scope", value_parser = scope, required = true)]
        scopes: Vec<Scope>,
        /// Days until it expires; 0 for never.
        #[arg(long)]
        expires_days: Option<u32>,
    },
    /// List them, without their secrets.
    List,
    /// Refuse it from now on.
    Delete {
        // Not `token`: clap would take it for the global --token, which is text.
        #[arg(value_name = "TOKEN")]
        id: TokenId,
    },
}

/// Runs the command that was given on the command line.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::failure(&failure);
            ExitCode::from(failure.exit)
        }
    }
}

impl DeployArgs {
    fn request(&self) -> Result<(DeployRequest, Vec<String>), String> {
        let mut notes = Vec::new();
        let label = match &self.ephemeral {
            None => None,
            Some(text) => {
                let label = label_of(text)?;
                if label.as_str() != text {
                    notes.push(format!("label {text:?} becomes {:?}", label.as_str()));
                }
                Some(label)
            }
        };
        let ttl = match &self.ttl {
            None => None,
            Some(text) => Some(delay(text)?),
        };
        let request = DeployRequest {
            environment: self.environment.clone(),
            image: self.image.clone(),
            version: self.of_version,
            command: (!self.command.is_empty()).then(|| self.command.clone()),
            git: crate::api::GitFacts {
                commit: self.commit.clone(),
                branch: self.branch.clone(),
                subject: None,
            },
            label,
            ttl,
            evict: !self.no_evict,
            lazy: self.lazy,
            force: self.force,
            cutover: !self.no_cutover,
            queue: !self.no_queue,
            steps: self.steps.steps.clone(),
            step_for: self.steps.step_for,
            ..DeployRequest::default()
        };
        Ok((request, notes))
    }
}

/// A label, or what one is made of.
fn label_of(text: &str) -> Result<EphemeralLabel, String> {
    EphemeralLabel::made_of(text).ok_or_else(|| format!("no label can be made of {text:?}"))
}

fn scope(text: &str) -> Result<Scope, String> {
    serde_json::from_value(serde_json::json!(text))
        .map_err(|_unknown| "one of read, deploy, admin".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
