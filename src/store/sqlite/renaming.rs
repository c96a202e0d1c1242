//! Apps by another name, and the name that the runtime knows each by.

use rusqlite::{Connection, OptionalExtension};

use super::apps;
use super::column::{Text, text};
use super::routes;
use super::secrets::Key;
use super::transaction::{Done, not_found};
use crate::ids::AppName;
use crate::store::RouteRow;

/// Octets of a name.
const NAME_MAX: usize = 63;

pub(super) fn rename(
    connection: &Connection,
    key: &Key,
    (from, to): (&AppName, &AppName),
    rows: &[RouteRow],
) -> Done<bool> {
    let Some(app) = apps::get(connection, key, from)? else { return Err(not_found("app", from)) };
    if apps::get(connection, key, to)?.is_some() {
        return Ok(false);
    }
    // Until the end of this transaction: what refers to the app is renamed after it.
    connection.pragma_update(None, "defer_foreign_keys", true)?;
    connection.execute("DELETE FROM routes WHERE app = ?1", [Text(from)])?;
    // What is sealed is sealed for its place.
    let sealed = key.seal_secrets(apps::place(to.as_str()), &app.settings)?;
    connection.execute(
        "UPDATE apps SET name = ?1, env = ?2, first_name = coalesce(first_name, name) WHERE name = ?3",
        (Text(to), sealed, Text(from)),
    )?;
    for statement in [
        "UPDATE environments SET app = ?1, generation = generation + 1 WHERE app = ?2",
        "UPDATE deployments SET app = ?1 WHERE app = ?2",
        "UPDATE operations SET app = ?1 WHERE app = ?2",
        "UPDATE instances SET app = ?1 WHERE app = ?2",
    ] {
        connection.execute(statement, (Text(to), Text(from)))?;
    }
    for row in rows {
        routes::put(connection, row)?;
    }
    Ok(true)
}

pub(super) fn first_name(connection: &Connection, app: &AppName) -> Done<AppName> {
    let query = "SELECT coalesce(first_name, name) AS first_name FROM apps WHERE name = ?1";
    let found = connection.query_row(query, [Text(app)], |row| text(row, "first_name")).optional()?;
    Ok(found.unwrap_or_else(|| app.clone()))
}

/// For an app that is new: its own name, unless that is the first one of an app that was renamed.
pub(super) fn choose_first_name(connection: &Connection, app: &AppName) -> Done<()> {
    let is_taken = |name: &str| -> rusqlite::Result<bool> {
        let query = "SELECT EXISTS (SELECT 1 FROM apps WHERE coalesce(first_name, name) = ?1 AND name <> ?2)";
        connection.query_row(query, (name, Text(app)), |row| row.get(0))
    };
    let mut name = app.as_str().to_owned();
    let mut count = 1;
    while is_taken(&name)? {
        count += 1;
        let suffix = format!("-{count}");
        let kept = app.as_str().len().min(NAME_MAX - suffix.len());
        name = format!("{}{suffix}", &app.as_str()[..kept]);
    }
    if name != app.as_str() {
        connection.execute("UPDATE apps SET first_name = ?1 WHERE name = ?2", (name, Text(app)))?;
    }
    Ok(())
}
