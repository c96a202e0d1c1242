//! What a run is asked to do, on the command line or by a caller.

use std::str::FromStr;
use std::time::Duration;

use http::Uri;
use http::uri::Authority;

use super::plan::Mix;
use super::tls::Authorities;

const RATE: u32 = 200;
const DURATION: Duration = Duration::from_secs(10);
const STREAM_DURATION: Duration = Duration::from_secs(3);
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is sent where, and for how long.
#[derive(Clone, Debug, clap::Args)]
pub struct VerifyOptions {
    /// Where to connect to, as http://HOST:PORT or https://HOST:PORT
    #[arg(value_name = "URL")]
    pub target: Target,
    /// A host name to ask for; may be repeated for names that move together [default: the URL's]
    #[arg(long = "host", value_name = "NAME")]
    pub hosts: Vec<Authority>,
    /// Requests a second
    #[arg(long, default_value_t = RATE, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
    /// How long requests are sent
    #[arg(long, default_value_t = DURATION.into())]
    pub duration: humantime::Duration,
    /// How long streams, slow uploads and slow downloads last
    #[arg(long, default_value_t = STREAM_DURATION.into())]
    pub stream_duration: humantime::Duration,
    /// How long an answer, or the next part of one, may take
    #[arg(long, default_value_t = TIMEOUT.into())]
    pub timeout: humantime::Duration,
    /// How often each kind of request is sent; against an app that is not the sample app, use get=1
    #[arg(long, default_value_t, value_name = "KIND=WEIGHT,…")]
    pub mix: Mix,
    /// Repeat the plan of an earlier run
    #[arg(long)]
    pub seed: Option<u64>,
    /// Believe the certificates that these authorities signed, beside those that the system believes
    #[arg(long, value_name = "FILE")]
    pub ca: Option<Authorities>,
    /// Believe every certificate
    #[arg(long)]
    pub insecure: bool,
    /// Streams may be cut by a drain deadline
    #[arg(long = "expect-cuts")]
    pub cuts_expected: bool,
}

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    authority: Authority,
    is_https: bool,
}

/// A URL that is no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a URL of the form http://HOST[:PORT] or https://HOST[:PORT]")]
pub struct TargetError {
    text: String,
}

impl VerifyOptions {
    /// The defaults of the command line.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self {
            target,
            hosts: Vec::new(),
            rate: RATE,
            duration: DURATION.into(),
            stream_duration: STREAM_DURATION.into(),
            timeout: TIMEOUT.into(),
            mix: Mix::default(),
            seed: None,
            ca: None,
            insecure: false,
            cuts_expected: false,
        }
    }

    /// The names to ask for.
    pub(super) fn hosts(&self) -> &[Authority] {
        if self.hosts.is_empty() { std::slice::from_ref(&self.target.authority) } else { &self.hosts }
    }
}

impl Target {
    pub(super) fn name(&self) -> &str {
        self.authority.host().trim_start_matches('[').trim_end_matches(']')
    }

    pub(super) fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(if self.is_https { 443 } else { 80 })
    }

    pub(super) fn is_https(&self) -> bool {
        self.is_https
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let refused = || TargetError { text: text.to_owned() };
        let uri: Uri = text.parse().map_err(|_malformed| refused())?;
        let is_https = uri.scheme_str() == Some("https");
        let is_known = is_https || uri.scheme_str() == Some("http");
        let is_plain = is_known && uri.path() == "/" && uri.query().is_none();
        let authority = uri.authority().filter(|authority| is_plain && !authority.as_str().contains('@'));
        authority.cloned().map(|authority| Self { authority, is_https }).ok_or_else(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_an_http_address_and_nothing_more() {
        for (good, name, port) in [
            ("http://a.test", "a.test", 80),
            ("http://127.0.0.1:81/", "127.0.0.1", 81),
            ("http://[::1]:82", "::1", 82),
            ("https://a.test", "a.test", 443),
            ("https://a.test:8443", "a.test", 8443),
        ] {
            let target: Target = good.parse().unwrap();
            assert_eq!((target.name(), target.port()), (name, port));
        }
        for bad in [
            "",
            "a.test",
            "ftp://a.test",
            "https://a.test/path",
            "http://a.test/path",
            "http://u@a.test",
            "http://a.test?q",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad:?} passed");
        }
    }
}
