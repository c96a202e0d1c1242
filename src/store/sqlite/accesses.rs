//! Whether clients reach each app.

use rusqlite::{Connection, OptionalExtension};

use super::column::{Json, Text, json, text};
use super::transaction::{Done, found};
use super::{journal, operations};
use crate::clock::Timestamp;
use crate::ids::{AppName, OperationId};
use crate::store::{Access, EventKind, NewEvent};

pub(super) fn get(connection: &Connection, app: &AppName) -> Done<Option<Access>> {
    let query = "SELECT access FROM apps WHERE name = ?1";
    Ok(connection.query_row(query, [Text(app)], |row| json(row, "access")).optional()?)
}

pub(super) fn list(connection: &Connection) -> Done<Vec<(AppName, Access)>> {
    let mut statement = connection
        .prepare_cached("SELECT name, access FROM apps WHERE access ->> '$.mode' <> 'open' ORDER BY name")?;
    let rows = statement.query_map((), |row| Ok((text(row, "name")?, json(row, "access")?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn set(
    connection: &Connection,
    app: &AppName,
    access: &Access,
    journal: Option<(OperationId, Timestamp)>,
) -> Done<()> {
    let changed =
        connection.execute("UPDATE apps SET access = ?1 WHERE name = ?2", (Json(access), Text(app)))?;
    found(changed, "app", app)?;
    if *access == Access::Disabled {
        connection.execute(
            "UPDATE deployments SET desired_state = 'standby'
             WHERE app = ?1 AND status = 'ready' AND desired_state = 'running' AND label IS NULL
                 AND id NOT IN (SELECT live FROM environments WHERE app = ?1 AND live IS NOT NULL)",
            [Text(app)],
        )?;
    }
    if let Some((operation, at)) = journal {
        operations::set_cutover(connection, operation, "{}")?;
        let text = format!("{app} is enabled");
        journal::append(connection, &NewEvent { operation, kind: EventKind::Cutover, text, at })?;
    }
    Ok(())
}
