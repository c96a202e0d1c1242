//! Who may do what, and who did it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::ids::{OperationId, TokenId};

/// An API token; its secret is only known as a hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub id: TokenId,
    pub name: String,
    /// Keyed blake3 of the secret.
    pub hash: Vec<u8>,
    pub scopes: Vec<String>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
}

/// Who did what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// Set by the store.
    pub id: i64,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub actor: String,
    /// `POST /v1/apps/{app}/deployments`
    pub action: String,
    /// What it was done to: `web/production`.
    pub target: String,
    /// HTTP status of the answer.
    pub status: u16,
    pub operation: Option<OperationId>,
}
