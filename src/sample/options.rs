//! How the sample app is to behave.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::builder::FalseyValueParser;

/// What the sample app is told, as options or by its environment.
#[derive(Clone, Debug, clap::Args)]
pub struct SampleOptions {
    /// Address to listen on
    #[arg(long, env = "HOST", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    pub host: IpAddr,
    /// Port to listen on; 0 for any that is free
    #[arg(long, env = "PORT", default_value_t = 8080)]
    pub port: u16,
    #[command(flatten)]
    pub tls: Option<TlsFiles>,
    /// The version that it answers with
    #[arg(long, env = "VERSION", default_value = "dev")]
    pub version: String,
    /// The deployment that it answers with, as Lockgate tells it
    #[arg(long, env = "LOCKGATE_DEPLOYMENT", value_name = "ID")]
    pub deployment: Option<String>,
    /// What /health answers
    #[arg(long, env = "HEALTH", value_enum, default_value_t = Health::Ok)]
    pub health: Health,
    /// /health answers 503 for this long after the start
    #[arg(long, env = "HEALTH_AFTER_MS", value_name = "MS")]
    pub health_after_ms: Option<u64>,
    /// /health answers 503 from this long after the start
    #[arg(long, env = "HEALTH_FAIL_AFTER_MS", value_name = "MS")]
    pub health_fail_after_ms: Option<u64>,
    /// Append each submission to this file, which other instances may share
    #[arg(long, env = "RECORD_FILE", value_name = "FILE")]
    pub record_file: Option<PathBuf>,
    /// Record every n-th submission and then reset its connection instead of answering it
    #[arg(long, env = "DROP_SUBMISSIONS", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub drop_submissions: Option<u64>,
    /// Answer every n-th request for / with 500
    #[arg(long, env = "FAIL_EVERY", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub fail_every: Option<u64>,
    /// Take at least this long to end after a SIGTERM
    #[arg(long, env = "SIGTERM_DELAY_MS", value_name = "MS")]
    pub sigterm_delay_ms: Option<u64>,
    /// Print a SIGTERM and go on
    #[arg(long, env = "IGNORE_SIGTERM", value_parser = FalseyValueParser::new())]
    pub ignore_sigterm: bool,
    /// End by itself, with what is in flight, this long after the start; 0: before it listens
    #[arg(long, env = "EXIT_AFTER_MS", value_name = "MS")]
    pub exit_after_ms: Option<u64>,
    /// The exit code for that
    #[arg(long, env = "EXIT_CODE", default_value_t = 1)]
    pub exit_code: u8,
}

/// What it speaks TLS with; without it, it speaks none.
#[derive(Clone, Debug, clap::Args)]
pub struct TlsFiles {
    /// Speak TLS and nothing else, with the certificates of this PEM file, its own first
    #[arg(long = "tls-cert", env = "TLS_CERT", value_name = "FILE", required = false, requires = "key")]
    pub cert: PathBuf,
    /// The certificate's key, in PEM
    #[arg(long = "tls-key", env = "TLS_KEY", value_name = "FILE", required = false, requires = "cert")]
    pub key: PathBuf,
}

/// What `/health` answers between the two moments that the options give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Health {
    /// 200
    Ok,
    /// 503
    Never,
    /// 200 or 503, at random
    Random,
}

impl Default for SampleOptions {
    /// For use inside another process: loopback, any free port, well behaved.
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            tls: None,
            version: "dev".to_owned(),
            deployment: None,
            health: Health::Ok,
            health_after_ms: None,
            health_fail_after_ms: None,
            record_file: None,
            sigterm_delay_ms: None,
            ignore_sigterm: false,
            drop_submissions: None,
            fail_every: None,
            exit_after_ms: None,
            exit_code: 1,
        }
    }
}
