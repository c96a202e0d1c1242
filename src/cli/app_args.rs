//! What is said of an app on the command line: its settings, host names, environments, previews and volumes.

use clap::{Args, Subcommand};

use crate::ids::{AppName, EnvironmentName, EphemeralLabel};

use super::words::label_of;

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
    Rename {
        /// Name of the app.
        app: AppName,
        /// Its name from then on.
        name: AppName,
    },
    /// Take the app out of service and remove it with its history; waits until it is gone.
    Remove {
        /// Name of the app.
        app: AppName,
        /// Answer as soon as nothing leads to it any more.
        #[arg(long)]
        detach: bool,
        /// Remove its volumes too, with all that is in them; otherwise an app of the same name finds them again.
        #[arg(long)]
        volumes: bool,
    },
}

#[derive(Debug, Args)]
pub struct SetArgs {
    /// Name of the app.
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
    /// How many instances each version has, 1 to 100.
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

#[derive(Debug, Subcommand)]
pub enum HostsCommand {
    /// List the app's own host names; `routes` lists the generated ones, too.
    List {
        /// Name of the app.
        app: AppName,
    },
    /// Add a host name, perhaps with a path prefix: www.example.com, '*.example.com', '*', example.com/api.
    Add {
        /// Name of the app.
        app: AppName,
        /// The host name, perhaps with a path prefix.
        host: String,
        /// Take the prefix off before the path goes upstream.
        #[arg(long)]
        strip: bool,
    },
    /// Take a host name away; what is in flight through it ends as it would have.
    Remove {
        /// Name of the app.
        app: AppName,
        /// As `lockgate hosts list` shows it, with its path prefix.
        host: String,
    },
    /// Give a host name's place to another one, at one instant.
    Rename {
        /// Name of the app.
        app: AppName,
        /// The host name that it has, as `lockgate hosts list` shows it.
        from: String,
        /// The host name that takes its place.
        to: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum EnvironmentCommand {
    /// List the app's environments with what is live in each.
    List {
        /// Name of the app.
        app: AppName,
    },
    /// Sign a link: whoever has it may see the environment until its time is over.
    Link {
        /// Name of the app.
        app: AppName,
        /// Name of the environment.
        environment: EnvironmentName,
        /// How long it is good, as 24h.
        #[arg(long = "for", value_name = "TIME", default_value = "24h")]
        good_for: humantime::Duration,
    },
    /// Take an environment for previews out of service and remove it with its history; waits until it is gone.
    Remove {
        /// Name of the app.
        app: AppName,
        /// Name of the environment.
        environment: EnvironmentName,
        /// Answer as soon as nothing leads to it any more.
        #[arg(long)]
        detach: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum PreviewCommand {
    /// Sign a link: whoever has it may see the preview until its time is over.
    Link {
        /// Name of the app.
        app: AppName,
        /// Or what it was made of.
        #[arg(value_parser = label_of)]
        label: EphemeralLabel,
        /// How long it is good, as 24h.
        #[arg(long = "for", value_name = "TIME", default_value = "24h")]
        good_for: humantime::Duration,
    },
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct VolumesArgs {
    /// Of this app alone.
    pub app: Option<AppName>,
    #[command(subcommand)]
    pub command: Option<VolumesCommand>,
}

#[derive(Debug, Subcommand)]
pub enum VolumesCommand {
    /// Remove a volume with all that is in it; refused while a version has it or the app's settings name it.
    Remove {
        /// As the list shows it.
        volume: String,
    },
}
