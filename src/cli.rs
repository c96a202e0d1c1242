//! The command line. But for `serve`, `demo`, the load of `verify` and `config check|schema` it speaks only the admin API.

mod access;
mod access_args;
mod app_args;
mod audit;
mod client;
mod commands;
mod deploy_args;
mod follow;
mod hosts;
mod instances;
mod output;
mod server_args;
mod standby;
mod verify;
mod versions;
mod views;
mod volumes;
mod words;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::ids::{AppName, DeploymentId, OperationId};

pub use access_args::{MaintenanceArgs, PauseArgs};
pub use app_args::{
    AppArgs, AppCommand, EnvironmentCommand, HostsCommand, PreviewCommand, SetArgs, VolumesArgs,
    VolumesCommand,
};
pub use client::{Client, ClientError, Endpoint};
pub use deploy_args::{
    DeployArgs, MoveArgs, PromoteArgs, RollbackArgs, ScaleArgs, ScheduleArgs, StepArgs, SwapArgs,
};
pub(crate) use output::receipt_text;
pub use server_args::{ConfigCommand, ServeArgs, TokenCommand, VerifyArgs};
pub use words::Followed;
use words::{deployment, followed};

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
        /// Name of the app.
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
    Resume {
        /// Name of the app.
        app: AppName,
    },
    /// Answer for an app with 503 while its instances go on running.
    Maintenance(MaintenanceArgs),
    /// Take an app out of service and stop its instances, until `enable`.
    Disable {
        /// Name of the app.
        app: AppName,
    },
    /// Start a disabled app again; answers when it is reached.
    Enable {
        /// Name of the app.
        app: AppName,
    },
    /// Move the expiry of an ephemeral deployment.
    Extend {
        /// The deployment; or its app, with the label behind it.
        #[arg(value_name = "DEPLOYMENT|APP")]
        of: String,
        /// Of the app.
        label: Option<String>,
        /// From now, as 24h.
        #[arg(long)]
        ttl: humantime::Duration,
    },
    /// Put a deployment into standby, or archive it, now or later.
    Schedule(ScheduleArgs),
    /// Start a version that is in standby.
    Wake {
        /// Name of the app.
        app: AppName,
        /// Deployment, or label of a preview.
        version: String,
        /// Do not wait until it serves.
        #[arg(long)]
        detach: bool,
    },
    /// Stop a version and keep it; a request starts it again.
    Standby {
        /// Name of the app.
        app: AppName,
        /// Deployment, or label of a preview. Not what is live.
        version: String,
        /// How long from now, as 10m [default: at once]
        #[arg(long = "in", value_name = "DELAY")]
        delay: Option<humantime::Duration>,
    },
    /// List apps, or the deployments of one.
    List {
        /// List the deployments of this app.
        app: Option<AppName>,
    },
    /// Show an app, a deployment or an operation.
    Show {
        /// Name of an app, or id of a deployment or an operation.
        name: String,
    },
    /// Show what a deployment's instances wrote.
    Logs {
        /// Its id, as `lockgate versions APP` lists it.
        #[arg(value_parser = deployment)]
        deployment: DeploymentId,
        /// Of each instance.
        #[arg(long, short = 'n', default_value_t = 100)]
        lines: usize,
        /// Go on with what they write until they end.
        #[arg(long, short)]
        follow: bool,
    },
    /// Cancel an operation: what it did is undone.
    Cancel {
        /// Its id, as `lockgate operations` lists it.
        operation: OperationId,
    },
    /// Have a cutover in steps take the last one now.
    Finish {
        /// Its id, as `lockgate operations` lists it.
        operation: OperationId,
    },
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
    /// List the volumes: of what each is, who has it, and which are stray; or remove one that nobody has.
    Volumes(VolumesArgs),
    /// List the routes.
    Routes,
    /// Say how a host name (and path) is resolved, and why.
    Explain {
        /// `www.example.com` or `www.example.com/path`
        host: String,
    },
    /// Sign a link to a host name (and path) at which the policy `signed_link` wants one.
    Link {
        /// `files.example.com/report.pdf`: it opens that and what is below it.
        place: String,
        /// How long it is good, as 24h.
        #[arg(long = "for", value_name = "TIME", default_value = "24h")]
        good_for: humantime::Duration,
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
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Put a checked load on an app and count what is not right.
    Verify(VerifyArgs),
    /// The app that `demo` deploys.
    #[command(hide = true)]
    SampleApp(crate::sample::SampleOptions),
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// The arguments below a command that nothing is told of.
    fn unexplained(command: &clap::Command, path: &str) -> Vec<String> {
        let path = format!("{path} {}", command.get_name());
        let silent = command.get_arguments().filter(|one| one.get_help().is_none() && !one.is_hide_set());
        let own = silent.map(|one| format!("{path}: {}", one.get_id()));
        let below = command.get_subcommands().flat_map(|one| unexplained(one, &path));
        own.chain(below).collect()
    }

    #[test]
    fn who_names_an_app_where_a_deployment_is_meant_is_told_where_its_ids_are() {
        for words in
            [&["logs", "web"][..], &["schedule", "web", "standby"], &["rollback", "web", "--to", "web"]]
        {
            let refused = Cli::try_parse_from([&["lockgate"], words].concat()).unwrap_err().to_string();
            assert!(refused.contains("`lockgate versions web` lists those of app web"), "{refused}");
        }
        let refused = Cli::try_parse_from(["lockgate", "logs", "dep_1"]).unwrap_err().to_string();
        assert!(refused.contains("as `lockgate versions APP` lists it"), "{refused}");
    }

    #[test]
    fn every_argument_says_what_it_is() {
        assert_eq!(unexplained(&Cli::command(), ""), Vec::<String>::new());
    }
}
