//! Which of an app's instances, or of a service's upstreams, gets a request.

use std::fmt;

use http::HeaderName;
use schemars::JsonSchema;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// How requests are spread over the instances of an app or the upstreams of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BalanceSettings {
    /// Of two taken at random the one with less in flight.
    #[default]
    TwoChoices,
    /// One after the other.
    RoundRobin,
    /// Where a visitor came first, by a cookie that Lockgate sets.
    Sticky,
    /// What is the same of requests sends them to the same one; of those without it, two choices.
    Hash(HashKey),
}

/// What of a request decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HashKey {
    /// The client's address.
    Client,
    /// The path, without the query.
    Path,
    /// The field of that name.
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    Header(FieldName),
    /// The cookie of that name.
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    Cookie(CookieName),
}

/// The name of a header field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldName(pub HeaderName);

/// The name of a cookie: a token (RFC 6265 section 4.1.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CookieName(String);

/// Reads [`BalanceSettings`].
struct Balance;

/// Reads a [`HashKey`].
struct Key;

impl CookieName {
    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Serialize for FieldName {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.0.as_str())
    }
}

impl<'de> Deserialize<'de> for FieldName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let refused = |_| D::Error::custom(format!("{text:?} is not the name of a header field"));
        text.parse().map(Self).map_err(refused)
    }
}

impl<'de> Deserialize<'de> for CookieName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        // The same characters as in the name of a field, but with their case.
        if HeaderName::try_from(text.as_str()).is_err() {
            return Err(D::Error::custom(format!("{text:?} is not the name of a cookie")));
        }
        Ok(Self(text))
    }
}

impl<'de> Deserialize<'de> for BalanceSettings {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Balance)
    }
}

impl<'de> Visitor<'de> for Balance {
    type Value = BalanceSettings;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("two-choices, round-robin, sticky, or { hash: client }")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<BalanceSettings, E> {
        match text {
            "two-choices" => Ok(BalanceSettings::TwoChoices),
            "round-robin" => Ok(BalanceSettings::RoundRobin),
            "sticky" => Ok(BalanceSettings::Sticky),
            "hash" => Err(E::custom("hash does not say by what: write for example { hash: client }")),
            other => Err(E::unknown_variant(other, &["two-choices", "round-robin", "sticky", "{ hash: … }"])),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<BalanceSettings, A::Error> {
        only_key(map, |key, map| match key {
            "hash" => map.next_value().map(BalanceSettings::Hash),
            other => Err(A::Error::unknown_field(other, &["hash"])),
        })
    }
}

impl<'de> Deserialize<'de> for HashKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Key)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = HashKey;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("client, path, { header: NAME } or { cookie: NAME }")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<HashKey, E> {
        match text {
            "client" => Ok(HashKey::Client),
            "path" => Ok(HashKey::Path),
            "header" | "cookie" => Err(E::custom(format!("{text} has no name: write {{ {text}: NAME }}"))),
            other => {
                Err(E::unknown_variant(other, &["client", "path", "{ header: NAME }", "{ cookie: NAME }"]))
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<HashKey, A::Error> {
        only_key(map, |key, map| match key {
            "header" => map.next_value().map(HashKey::Header),
            "cookie" => map.next_value().map(HashKey::Cookie),
            other => Err(A::Error::unknown_field(other, &["header", "cookie"])),
        })
    }
}

/// What the one key of `map` says.
fn only_key<'de, A: MapAccess<'de>, T>(
    mut map: A,
    read: impl FnOnce(&str, &mut A) -> Result<T, A::Error>,
) -> Result<T, A::Error> {
    let key: String = map.next_key()?.ok_or_else(|| A::Error::custom("says nothing: write one key"))?;
    let value = read(&key, &mut map)?;
    match map.next_key::<String>()? {
        None => Ok(value),
        Some(second) => Err(A::Error::custom(format!("has {key} and {second}: leave one out"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_is_written_as_it_is_read() {
        for text in [
            "\"two-choices\"",
            "\"round-robin\"",
            "\"sticky\"",
            "{\"hash\":\"client\"}",
            "{\"hash\":\"path\"}",
            "{\"hash\":{\"header\":\"x-user\"}}",
            "{\"hash\":{\"cookie\":\"SID\"}}",
        ] {
            let read: BalanceSettings = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
    }

    #[test]
    fn what_is_none_of_them_is_refused_and_says_why() {
        for (text, told) in [
            ("\"least\"", "unknown variant `least`, expected one of `two-choices`"),
            ("\"hash\"", "does not say by what"),
            ("{}", "says nothing"),
            ("{\"hash\":\"cookie\"}", "write { cookie: NAME }"),
            ("{\"hash\":\"colour\"}", "expected one of `client`"),
            ("{\"hash\":{\"query\":\"a\"}}", "unknown field `query`"),
            ("{\"hash\":{\"header\":\"a b\"}}", "\"a b\" is not the name of a header field"),
            ("{\"hash\":{\"cookie\":\"a=b\"}}", "\"a=b\" is not the name of a cookie"),
            ("{\"hash\":{\"cookie\":\"a\",\"header\":\"b\"}}", "has cookie and header: leave one out"),
            ("{\"hash\":\"client\",\"sticky\":true}", "has hash and sticky"),
            ("7", "expected two-choices, round-robin, sticky, or { hash: client }"),
        ] {
            let error = serde_json::from_str::<BalanceSettings>(text).unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
