//! Instances as Lockgate means them to be; a row is there before its container is and until after it.

use rusqlite::{Connection, Row, named_params};

use super::column::{At, Text, Word, text, time_if_any, word};
use super::deployments;
use super::transaction::Done;
use crate::ids::{DeploymentId, InstanceId};
use crate::store::InstanceRow;

pub(super) fn put(connection: &Connection, instance: &InstanceRow) -> Done<()> {
    deployments::require(connection, instance.deployment)?;
    connection.execute(
        "INSERT INTO instances
             (id, app, environment, deployment, operation, phase, handle, address, started_at, stop_signalled_at,
              spare)
         VALUES (:id, :app, :environment, :deployment, :operation, :phase, :handle, :address, :started_at,
             :stop_signalled_at, :spare)
         ON CONFLICT (id) DO UPDATE SET environment = excluded.environment, deployment = excluded.deployment, operation = excluded.operation, phase = excluded.phase,
             handle = excluded.handle, address = excluded.address, started_at = excluded.started_at,
             stop_signalled_at = excluded.stop_signalled_at",
        named_params! {
            ":id": Text(instance.id),
            ":app": Text(&instance.app),
            ":environment": Text(&instance.environment),
            ":deployment": Text(instance.deployment),
            ":operation": Text(instance.operation),
            ":phase": Word(instance.phase),
            ":handle": instance.handle,
            ":address": instance.address,
            ":started_at": instance.started_at.map(At),
            ":stop_signalled_at": instance.stop_signalled_at.map(At),
            // Nor is the app among what is replaced: it is renamed with all that is its.
            // Not among what is replaced: somebody may write back a row that he read before a resize.
            ":spare": instance.spare,
        },
    )?;
    Ok(())
}

pub(super) fn list(connection: &Connection, deployment: Option<DeploymentId>) -> Done<Vec<InstanceRow>> {
    let mut statement = connection
        .prepare_cached("SELECT * FROM instances WHERE ?1 IS NULL OR deployment = ?1 ORDER BY id")?;
    let rows = statement.query_map([deployment.map(Text)], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Deleting one that is not there is a success: a removal is tried again after a crash.
pub(super) fn delete(connection: &Connection, id: InstanceId) -> Done<()> {
    connection.execute("DELETE FROM instances WHERE id = ?1", [Text(id)])?;
    Ok(())
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<InstanceRow> {
    Ok(InstanceRow {
        id: text(row, "id")?,
        app: text(row, "app")?,
        environment: text(row, "environment")?,
        deployment: text(row, "deployment")?,
        operation: text(row, "operation")?,
        phase: word(row, "phase")?,
        handle: row.get("handle")?,
        address: row.get("address")?,
        started_at: time_if_any(row, "started_at")?,
        stop_signalled_at: time_if_any(row, "stop_signalled_at")?,
        spare: row.get("spare")?,
    })
}
