//! How a backend's requests are spread over its targets, as the data plane has it.

use http::HeaderName;

use crate::settings::{BalanceSettings, HashKey};

/// 96 bits: no two targets have the same, and nobody finds another's by trying.
const NAME_LENGTH: usize = 24;

/// What decides which target gets a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// Of two taken at random the one with less in flight.
    #[default]
    TwoChoices,
    /// One after the other, each worker by itself.
    RoundRobin,
    /// The same of a request leads to the same target.
    Hash(HashBy),
    /// A cookie leads to the target that served its visitor first.
    Sticky(StickyKey),
}

/// What of a request decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashBy {
    Client,
    Path,
    Header(HeaderName),
    Cookie(Box<str>),
}

/// What the names that targets have in cookies are made with: nobody else can tell which target has which name.
#[derive(Clone, PartialEq, Eq)]
pub struct StickyKey([u8; 32]);

impl Balance {
    /// As the settings say; `secret` is the instance's own.
    #[must_use]
    pub fn of(settings: &BalanceSettings, secret: &[u8; 32]) -> Self {
        match settings {
            BalanceSettings::TwoChoices => Self::TwoChoices,
            BalanceSettings::RoundRobin => Self::RoundRobin,
            BalanceSettings::Sticky => Self::Sticky(StickyKey::new(secret)),
            BalanceSettings::Hash(HashKey::Client) => Self::Hash(HashBy::Client),
            BalanceSettings::Hash(HashKey::Path) => Self::Hash(HashBy::Path),
            BalanceSettings::Hash(HashKey::Header(name)) => Self::Hash(HashBy::Header(name.0.clone())),
            BalanceSettings::Hash(HashKey::Cookie(name)) => Self::Hash(HashBy::Cookie(name.as_str().into())),
        }
    }
}

impl StickyKey {
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(blake3::derive_key("lockgate 2026 sticky cookie", secret))
    }

    /// What a cookie calls a target.
    #[must_use]
    pub fn name_of(&self, target: &[u8]) -> Box<str> {
        let hash = blake3::keyed_hash(&self.0, target).to_hex();
        hash[..NAME_LENGTH].into()
    }
}

impl std::fmt::Debug for StickyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}
