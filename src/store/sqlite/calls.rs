//! Calls that made something that is no operation, by their idempotency key, so that it is made once.

use std::error::Error;
use std::fmt::Display;
use std::str::FromStr;

use rusqlite::{Connection, OptionalExtension};

use super::column::{Text, text};
use super::operations;
use super::transaction::Done;
use crate::store::{IdempotencyKey, StoreError};

/// Older ones are forgotten.
pub(super) const KEPT: u32 = 10_000;

/// Takes the key for what is about to be made under this name or id; otherwise what the key made before.
pub(super) fn claim<T>(connection: &Connection, key: &IdempotencyKey, made: &T) -> Done<Option<T>>
where
    T: Display + FromStr<Err: Error + Send + Sync + 'static>,
{
    if operations::earlier(connection, key)?.is_some() {
        return Err(StoreError::KeyReused { key: key.key.clone() }.into());
    }
    let earlier = connection
        .query_row("SELECT made FROM calls WHERE idempotency_key = ?1", [&key.key], |row| text(row, "made"))
        .optional()?;
    if earlier.is_none() {
        connection.execute(
            "INSERT INTO calls (idempotency_key, fingerprint, made) VALUES (?1, ?2, ?3)",
            (&key.key, &key.fingerprint, Text(made)),
        )?;
        let forget = "DELETE FROM calls WHERE ordinal <= (SELECT max(ordinal) FROM calls) - ?1";
        connection.execute(forget, [KEPT])?;
    }
    Ok(earlier)
}

/// Whether a call under this key made something.
pub(super) fn has_made(connection: &Connection, key: &IdempotencyKey) -> Done<bool> {
    let query = "SELECT EXISTS (SELECT 1 FROM calls WHERE idempotency_key = ?1)";
    Ok(connection.query_row(query, [&key.key], |row| row.get(0))?)
}

/// Refuses a key that another call was made with.
pub(super) fn refuse_reuse(connection: &Connection, key: &IdempotencyKey) -> Done<()> {
    let query = "SELECT fingerprint FROM calls WHERE idempotency_key = ?1
                 UNION ALL SELECT fingerprint FROM answers WHERE idempotency_key = ?1";
    let fingerprint: Option<String> = connection.query_row(query, [&key.key], |row| row.get(0)).optional()?;
    if fingerprint.is_some_and(|fingerprint| fingerprint != key.fingerprint) {
        return Err(StoreError::KeyReused { key: key.key.clone() }.into());
    }
    Ok(())
}
