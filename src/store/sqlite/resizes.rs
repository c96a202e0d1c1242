//! Another number of instances, in one transaction.

use rusqlite::Connection;

use super::column::{Json, Text};
use super::transaction::{Done, Stop, found};
use super::{apps, journal, operations};
use crate::fault;
use crate::store::{EventKind, NewEvent, Resize, Resized, StepEnd, StepOutcome};

pub(super) fn commit(connection: &Connection, resize: &Resize) -> Done<()> {
    apps::require_environment(connection, &resize.app, &resize.environment)?;
    if let Some(replicas) = resize.replicas {
        connection.execute(
            "UPDATE environments SET replicas = ?1 WHERE app = ?2 AND name = ?3",
            (replicas.count(), Text(&resize.app), Text(&resize.environment)),
        )?;
    }
    if let Some(deployment) = &resize.deployment {
        of_deployment(connection, resize, deployment)?;
    }
    if let Some((operation, marker)) = &resize.journal {
        operations::set_cutover(connection, *operation, marker)?;
        let count = resize.replicas.map(|replicas| replicas.count()).unwrap_or_default();
        let text = format!("{}/{} has {count} instances", resize.app, resize.environment);
        let event = NewEvent { operation: *operation, kind: EventKind::Cutover, text, at: resize.at };
        journal::append(connection, &event)?;
        let detail = Some(format!("{count} instances"));
        let end = StepEnd { outcome: StepOutcome::Done, detail, at: resize.at };
        journal::end_step(connection, *operation, "scale", &end)?;
    }
    fault::at("store.resize.before").map_err(|injected| Stop::Unusable(injected.to_string()))
}

fn of_deployment(connection: &Connection, resize: &Resize, deployment: &Resized) -> Done<()> {
    let changed = connection.execute(
        "UPDATE deployments SET settings = json_set(settings, '$.replicas', ?1), state_hash = coalesce(?2, state_hash)
         WHERE id = ?3 AND app = ?4 AND environment = ?5",
        (
            deployment.replicas.count(),
            &deployment.state_hash,
            Text(deployment.id),
            Text(&resize.app),
            Text(&resize.environment),
        ),
    )?;
    found(changed, "deployment", deployment.id)?;
    for (spare, ids) in [(false, &deployment.joining), (true, &deployment.leaving)] {
        connection.execute(
            "UPDATE instances SET spare = ?1 WHERE deployment = ?2 AND id IN (SELECT value FROM json_each(?3))",
            (spare, Text(deployment.id), Json(ids)),
        )?;
    }
    Ok(())
}
