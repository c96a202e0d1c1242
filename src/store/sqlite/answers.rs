//! Answers of calls that were carried out, by their idempotency key, so that a repeat changes nothing and is told the same.

use rusqlite::{Connection, OptionalExtension, named_params};

use super::secrets::{Key, NotOurs, Place};
use super::transaction::{Done, Stop};
use super::{calls, operations};
use crate::store::{IdempotencyKey, KeptAnswer};

/// The answer to the same call; nothing where there is none, or where what the call made has the key.
pub(super) fn get(connection: &Connection, seal: &Key, key: &IdempotencyKey) -> Done<Option<KeptAnswer>> {
    if operations::earlier(connection, key)?.is_some() {
        return Ok(None);
    }
    let found = connection
        .query_row(
            "SELECT status, content_type, body FROM answers WHERE idempotency_key = ?1",
            [&key.key],
            |row| Ok((row.get("status")?, row.get("content_type")?, row.get::<_, Vec<u8>>("body")?)),
        )
        .optional()?;
    let Some((status, content_type, sealed)) = found else { return Ok(None) };
    let body = seal.open(place(key), &sealed).map_err(|NotOurs| {
        Stop::Unusable("an earlier answer does not open with the key of this data directory".to_owned())
    })?;
    Ok(Some(KeptAnswer { status, content_type, body }))
}

/// Keeps the answer, unless what the call made has the key: how that is now is a better answer.
pub(super) fn keep(
    connection: &Connection,
    seal: &Key,
    key: &IdempotencyKey,
    answer: &KeptAnswer,
) -> Done<()> {
    if operations::earlier(connection, key)?.is_some() || calls::has_made(connection, key)? {
        return Ok(());
    }
    connection.execute(
        "INSERT INTO answers (idempotency_key, fingerprint, status, content_type, body)
         VALUES (:key, :fingerprint, :status, :content_type, :body)
         ON CONFLICT (idempotency_key) DO NOTHING",
        named_params! {
            ":key": key.key,
            ":fingerprint": key.fingerprint,
            ":status": answer.status,
            ":content_type": answer.content_type,
            ":body": seal.seal(place(key), &answer.body)?,
        },
    )?;
    let forget = "DELETE FROM answers WHERE ordinal <= (SELECT max(ordinal) FROM answers) - ?1";
    connection.execute(forget, [calls::KEPT])?;
    Ok(())
}

fn place(key: &IdempotencyKey) -> Place<'_> {
    Place { table: "answers", row: &key.key }
}
