//! Names and identifiers as types: parsed at the edge, trusted inside.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// A name that is not an RFC 1123 label, or an id that is not one of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error(
        "{text:?} is not a valid {kind}: use 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit"
    )]
    Name { kind: &'static str, text: String },
    #[error("{text:?} is not a valid {kind}: expected {prefix} and 32 hexadecimal digits")]
    Id { kind: &'static str, prefix: &'static str, text: String },
}

/// Of a label of a host name (RFC 1035 section 2.3.4).
const LABEL_OCTETS_MAX: usize = 63;

/// Whether `text` is an RFC 1123 label in lower case, 1–63 octets.
#[must_use]
pub fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=LABEL_OCTETS_MAX).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-'
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident: $kind:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String)]
        pub struct $name(#[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))] String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                if is_label(text) {
                    return Ok(Self(text.to_owned()));
                }
                Err(IdError::Name { kind: $kind, text: text.to_owned() })
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident: $kind:literal, $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String)]
        pub struct $name(Uuid);

        impl $name {
            /// A fresh id; later ones sort after earlier ones (UUIDv7).
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// The last eight digits, which are random: enough to tell deployments of one app apart.
            #[must_use]
            pub fn short(&self) -> String {
                let digits = self.0.simple().to_string();
                digits[24..].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0.simple())
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                text.strip_prefix($prefix)
                    .filter(|digits| digits.len() == 32)
                    .and_then(|digits| Uuid::try_parse(digits).ok())
                    .map(Self)
                    .ok_or_else(|| IdError::Id { kind: $kind, prefix: $prefix, text: text.to_owned() })
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    )*};
}

names! {
    /// An app: what is deployed, with its settings, host names and environments.
    AppName: "app name";
    /// An environment of an app; `production` exists from the start.
    EnvironmentName: "environment name";
    /// The first label of a host name under which an ephemeral deployment is reached.
    EphemeralLabel: "label";
    /// A static service of the configuration.
    ServiceName: "service name";
    /// A team's namespace; `default` exists from the start.
    WorkspaceName: "workspace name";
}

ids! {
    /// An immutable snapshot of one version.
    DeploymentId: "deployment id", "dep_";
    /// One running container or process of a deployment.
    InstanceId: "instance id", "ins_";
    /// One journaled run of a command.
    OperationId: "operation id", "op_";
    /// One Lockgate installation: what its containers are labelled with.
    LockgateId: "lockgate id", "lg_";
    /// An API token; not its secret.
    TokenId: "token id", "tok_";
}

impl EnvironmentName {
    /// The environment of production kind that each app has.
    #[must_use]
    pub fn production() -> Self {
        Self("production".to_owned())
    }
}

impl EphemeralLabel {
    /// A label that people recognise a name by, as that of a branch: in lower case, with hyphens for `_`, `/` and `.`,
    /// without what cannot be in one. `None` if nothing is left.
    #[must_use]
    pub fn made_of(name: &str) -> Option<Self> {
        let mapped = name.chars().filter_map(|character| match character.to_ascii_lowercase() {
            '_' | '/' | '.' => Some('-'),
            other if other.is_ascii_alphanumeric() || other == '-' => Some(other),
            _ => None,
        });
        let mapped: String =
            mapped.skip_while(|character| *character == '-').take(LABEL_OCTETS_MAX).collect();
        mapped.trim_end_matches('-').parse().ok()
    }
}

impl WorkspaceName {
    /// The workspace that exists from the start.
    #[must_use]
    pub fn default_workspace() -> Self {
        Self("default".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_rfc_1123_labels() {
        for good in ["a", "web", "web-2", "0", &"x".repeat(63)] {
            assert_eq!(good.parse::<AppName>().unwrap().as_str(), good);
        }
        for bad in ["", "-web", "web-", "Web", "a.b", "a_b", "ü", &"x".repeat(64)] {
            assert!(bad.parse::<AppName>().is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn a_label_is_made_of_a_name_as_people_know_it() {
        let cut = format!("{}-", "x".repeat(62));
        for (name, label) in [
            ("Feat/X_1", Some("feat-x-1")),
            ("a.b", Some("a-b")),
            ("ü!x", Some("x")),
            ("-a-", Some("a")),
            // Fixed fault: hyphens were taken off before it was cut, and what then ended in one was refused.
            (&format!("{cut}x"), Some(&cut[..62])),
            ("功能", None),
            ("__", None),
        ] {
            assert_eq!(EphemeralLabel::made_of(name).as_ref().map(EphemeralLabel::as_str), label, "{name}");
        }
    }

    #[test]
    fn an_id_survives_its_text_form_and_refuses_anothers() {
        let id = DeploymentId::generate();
        assert_eq!(id.to_string().parse::<DeploymentId>().unwrap(), id);
        assert!(id.to_string().parse::<InstanceId>().is_err());
        assert!("dep_123".parse::<DeploymentId>().is_err());
        assert_eq!(id.short().len(), 8);
    }
}
