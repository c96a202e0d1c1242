//! What files are read as, and how they are refused.

mod acme;
mod apps;
mod certificates;
mod document;
mod interpolate;
mod listeners;
mod load;
mod secrets;
mod traces;
mod upstreams;

use super::*;

const HTTPS: &str = "listeners: { https: { address: '127.0.0.1:443' } }\n";

fn no_env(_: &str) -> Option<String> {
    None
}

fn parse_plain(text: &str) -> Result<Config, Diagnostics> {
    parse(text, "lockgate.yaml", &no_env)
}

/// Why `text` is refused: for something at `path`, in words that hold `told`.
#[track_caller]
fn refused(text: &str, path: &str, told: &str) -> Diagnostics {
    let refused = parse_plain(text).expect_err(text);
    let is_told = refused.0.iter().any(|one| one.path == path && one.message.contains(told));
    assert!(is_told, "{path} {told:?}: {refused}\n{text}");
    refused
}

/// A certificate of that name, good until the beginning of `year`, and its key.
fn pem(name: &str, year: i32) -> (String, String) {
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}
