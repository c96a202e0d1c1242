//! How people and apps are told where something is served.

use std::fmt;
use std::str::FromStr;

/// Stands for the host name.
const HOST: &str = "{host}";

/// The origin of every host name, as whoever stands before Lockgate has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlPattern(String);

/// Why a text is no [`UrlPattern`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not http:// or https:// with {HOST} and perhaps a port behind it")]
pub struct UrlPatternError;

impl UrlPattern {
    #[must_use]
    pub fn origin(&self, host: &str) -> String {
        self.0.replace(HOST, host)
    }

    /// The port at which hosts are reached by https, if they are by that.
    #[must_use]
    pub fn https_port(&self) -> Option<u16> {
        let port = self.0.strip_prefix("https://")?.strip_prefix(HOST)?;
        port.strip_prefix(':').map_or(Some(443), |port| port.parse().ok())
    }
}

impl FromStr for UrlPattern {
    type Err = UrlPatternError;

    fn from_str(text: &str) -> Result<Self, UrlPatternError> {
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let port = rest.and_then(|rest| rest.strip_prefix(HOST)).ok_or(UrlPatternError)?;
        let is_port = |port: &str| {
            port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
        };
        if port.is_empty() || is_port(port) { Ok(Self(text.to_owned())) } else { Err(UrlPatternError) }
    }
}

impl fmt::Display for UrlPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
