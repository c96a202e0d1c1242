//! What is said on the command line of Lockgate itself.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::api::Scope;
use crate::ids::{AppName, TokenId};

use super::words::scope;

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The configuration file.
    #[arg(long, short, env = "LOCKGATE_CONFIG", default_value = "/etc/lockgate/lockgate.yaml")]
    pub config: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Read a configuration file and say what is wrong with it.
    Check {
        /// The file.
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
        /// Its id, as `lockgate token list` shows it.
        #[arg(value_name = "TOKEN")]
        id: TokenId,
    },
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub options: crate::verify::VerifyOptions,
    /// Have the admin API tell of this app's swaps meanwhile, and count what the wrong version answers; without --host,
    /// ask for the app's own host names
    #[arg(long)]
    pub app: Option<AppName>,
}
