//! API tokens, by the hash of their secret.

use rusqlite::{Connection, Row, named_params};

use super::column::{At, Json, Text, json, text, time, time_if_any};
use super::transaction::Done;
use crate::ids::TokenId;
use crate::store::Token;

pub(super) fn put(connection: &Connection, token: &Token) -> Done<()> {
    connection.execute(
        "INSERT INTO tokens (id, name, hash, scopes, created_at, expires_at)
         VALUES (:id, :name, :hash, :scopes, :created_at, :expires_at)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, hash = excluded.hash, scopes = excluded.scopes,
             created_at = excluded.created_at, expires_at = excluded.expires_at",
        named_params! {
            ":id": Text(token.id),
            ":name": token.name,
            ":hash": token.hash,
            ":scopes": Json(&token.scopes),
            ":created_at": At(token.created_at),
            ":expires_at": token.expires_at.map(At),
        },
    )?;
    Ok(())
}

pub(super) fn list(connection: &Connection) -> Done<Vec<Token>> {
    let mut statement = connection.prepare_cached("SELECT * FROM tokens ORDER BY created_at, id")?;
    let rows = statement.query_map((), from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn delete(connection: &Connection, id: TokenId) -> Done<bool> {
    Ok(connection.execute("DELETE FROM tokens WHERE id = ?1", [Text(id)])? > 0)
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Token> {
    Ok(Token {
        id: text(row, "id")?,
        name: row.get("name")?,
        hash: row.get("hash")?,
        scopes: json(row, "scopes")?,
        created_at: time(row, "created_at")?,
        expires_at: time_if_any(row, "expires_at")?,
    })
}
