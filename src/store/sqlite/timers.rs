//! Changes of desired state at a later time. A nonce tells one arming from the next, so a late firing is harmless.

use rusqlite::{Connection, OptionalExtension, Row};

use super::column::{At, Text, Word, text, time, word};
use super::deployments;
use super::transaction::Done;
use crate::ids::DeploymentId;
use crate::store::{Fired, Timer};

pub(super) fn arm(connection: &Connection, timer: &Timer) -> Done<()> {
    deployments::require_not_archived(connection, timer.deployment)?;
    connection.execute(
        "INSERT INTO timers (deployment, nonce, state, due) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (deployment) DO UPDATE SET nonce = excluded.nonce, state = excluded.state, due = excluded.due",
        (Text(timer.deployment), &timer.nonce, Word(timer.state), At(timer.due)),
    )?;
    Ok(())
}

pub(super) fn clear(connection: &Connection, deployment: DeploymentId) -> Done<()> {
    connection.execute("DELETE FROM timers WHERE deployment = ?1", [Text(deployment)])?;
    Ok(())
}

pub(super) fn list(connection: &Connection) -> Done<Vec<Timer>> {
    let mut statement = connection.prepare_cached("SELECT * FROM timers ORDER BY due, deployment")?;
    let rows = statement.query_map((), from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn fire(connection: &Connection, timer: &Timer, next: Option<&Timer>) -> Done<Fired> {
    let armed = connection
        .query_row(
            "DELETE FROM timers WHERE deployment = ?1 AND nonce = ?2 RETURNING *",
            (Text(timer.deployment), &timer.nonce),
            from_row,
        )
        .optional()?;
    let Some(armed) = armed else { return Ok(Fired::NotArmed) };
    if is_live(connection, armed.deployment)? {
        return Ok(Fired::IsLive);
    }
    deployments::set_desired_state(connection, armed.deployment, armed.state)?;
    if let Some(next) = next {
        arm(connection, next)?;
    }
    Ok(Fired::Done)
}

fn is_live(connection: &Connection, deployment: DeploymentId) -> Done<bool> {
    Ok(connection
        .query_row("SELECT 1 FROM environments WHERE live = ?1", [Text(deployment)], |_row| Ok(()))
        .optional()?
        .is_some())
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Timer> {
    Ok(Timer {
        deployment: text(row, "deployment")?,
        nonce: row.get("nonce")?,
        state: word(row, "state")?,
        due: time(row, "due")?,
    })
}
