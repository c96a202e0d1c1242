//! The audit trail; only ever appended to.

use rusqlite::{Connection, Row};

use super::column::{At, Text, text_if_any, time};
use super::transaction::Done;
use crate::store::{AuditEntry, Page};

pub(super) fn append(connection: &Connection, entry: &AuditEntry) -> Done<()> {
    connection.execute(
        "INSERT INTO audit (at, actor, action, target, status, operation) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        (At(entry.at), &entry.actor, &entry.action, &entry.target, entry.status, entry.operation.map(Text)),
    )?;
    Ok(())
}

pub(super) fn list(connection: &Connection, page: Page) -> Done<Vec<AuditEntry>> {
    let mut statement =
        connection.prepare_cached("SELECT * FROM audit ORDER BY id DESC LIMIT ?1 OFFSET ?2")?;
    let rows = statement.query_map((page.limit, page.offset), from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<AuditEntry> {
    Ok(AuditEntry {
        id: row.get("id")?,
        at: time(row, "at")?,
        actor: row.get("actor")?,
        action: row.get("action")?,
        target: row.get("target")?,
        status: row.get("status")?,
        operation: text_if_any(row, "operation")?,
    })
}
