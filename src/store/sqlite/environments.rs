//! Environments for previews: made by the first deploy that names them, and removed.

use rusqlite::{Connection, named_params};

use super::column::{Text, Word, text};
use super::transaction::Done;
use super::{apps, deployments};
use crate::ids::{AppName, DeploymentId, EnvironmentName};
use crate::store::{DesiredState, EnvironmentKind};

/// Makes the environment if the app has none of that name. One that was to be removed is not any more.
pub(super) fn ensure(connection: &Connection, app: &AppName, name: &EnvironmentName) -> Done<()> {
    connection.execute(
        "INSERT INTO environments (app, name, kind) SELECT name, ?2, ?3 FROM apps WHERE name = ?1
         ON CONFLICT (app, name) DO UPDATE SET removal = NULL",
        (Text(app), Text(name), Word(EnvironmentKind::Preview)),
    )?;
    apps::require_environment(connection, app, name)?;
    Ok(())
}

pub(super) fn retire(connection: &Connection, app: &AppName, name: &EnvironmentName) -> Done<()> {
    let all: Vec<DeploymentId> = connection
        .prepare_cached("SELECT id FROM deployments WHERE app = ?1 AND environment = ?2")?
        .query_map((Text(app), Text(name)), |row| text(row, "id"))?
        .collect::<Result<_, _>>()?;
    connection.execute(
        "UPDATE environments SET live = NULL, rolled_back = 0, removal = 1, generation = generation + 1
         WHERE app = ?1 AND name = ?2",
        (Text(app), Text(name)),
    )?;
    // A branch's name goes to another environment, if the branch has a deployment there.
    for id in all {
        deployments::set_desired_state(connection, id, DesiredState::Archived)?;
    }
    connection.execute("DELETE FROM routes WHERE app = ?1 AND environment = ?2", (Text(app), Text(name)))?;
    Ok(())
}

pub(super) fn removals(connection: &Connection) -> Done<Vec<(AppName, EnvironmentName)>> {
    let mut statement = connection
        .prepare_cached("SELECT app, name FROM environments WHERE removal IS NOT NULL ORDER BY app, name")?;
    let rows = statement.query_map((), |row| Ok((text(row, "app")?, text(row, "name")?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn forget(connection: &Connection, app: &AppName, name: &EnvironmentName) -> Done<bool> {
    let of = named_params! { ":app": Text(app), ":name": Text(name) };
    let is_in_use: bool = connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM instances WHERE app = :app AND environment = :name)
             OR EXISTS (SELECT 1 FROM routes WHERE app = :app AND environment = :name)
             OR EXISTS (SELECT 1 FROM operations WHERE app = :app AND environment = :name AND ended_at IS NULL)
             OR EXISTS (SELECT 1 FROM environments WHERE app = :app AND name = :name AND live IS NOT NULL)",
        of,
        |row| row.get(0),
    )?;
    if is_in_use {
        return Ok(false);
    }
    for statement in [
        "DELETE FROM events WHERE operation IN (SELECT id FROM operations WHERE app = :app AND environment = :name)",
        "DELETE FROM steps WHERE operation IN (SELECT id FROM operations WHERE app = :app AND environment = :name)",
        "DELETE FROM timers WHERE deployment IN
             (SELECT id FROM deployments WHERE app = :app AND environment = :name)",
        "DELETE FROM deployments WHERE app = :app AND environment = :name",
        "DELETE FROM operations WHERE app = :app AND environment = :name",
        "DELETE FROM environments WHERE app = :app AND name = :name",
    ] {
        connection.execute(statement, of)?;
    }
    Ok(true)
}
