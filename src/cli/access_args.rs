//! What is said on the command line of an app that is not served for a while.

use clap::Args;

use crate::ids::AppName;

#[derive(Debug, Args)]
pub struct PauseArgs {
    /// Name of the app.
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
    /// Name of the app.
    pub app: AppName,
    /// Whether it is from now on.
    #[arg(action = clap::ArgAction::Set, value_parser = clap::builder::BoolishValueParser::new(), value_name = "on|off")]
    pub on: bool,
    /// What people are told.
    #[arg(long)]
    pub message: Option<String>,
    /// Network whose clients reach the app all the same, as 192.0.2.0/24; may be repeated.
    #[arg(long, value_name = "NETWORK")]
    pub allow: Vec<String>,
}
