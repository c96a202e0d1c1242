//! Changes of desired state at a later time. A nonce tells one arming from the next, so a late firing is harmless.

use rusqlite::{Connection, OptionalExtension, Row, named_params};

use super::column::{At, Text, Word, json, text, time, word};
use super::deployments;
use super::transaction::Done;
use crate::clock::Timestamp;
use crate::ids::{AppName, DeploymentId, EnvironmentName, OperationId};
use crate::settings::AppSettings;
use crate::store::{DeploymentStatus, DesiredState, Fired, Timer};

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

/// Disarms what an operation has armed: it takes its cutover back. Its id ends their nonces.
pub(super) fn clear_of(connection: &Connection, operation: OperationId) -> Done<()> {
    let query = "DELETE FROM timers WHERE substr(nonce, -length(?1)) = ?1";
    connection.execute(query, [Text(operation)])?;
    Ok(())
}

/// Has every version of the environment go to rest that runs, is not live, and for which nothing is due: each after the
/// time that its own settings say.
pub(super) fn arm_left_over(
    connection: &Connection,
    (app, environment): (&AppName, &EnvironmentName),
    nonce: &str,
    now: Timestamp,
) -> Done<()> {
    let mut statement = connection.prepare_cached(
        "SELECT id, settings FROM deployments AS one
         WHERE app = :app AND environment = :environment AND label IS NULL AND status = :ready
           AND desired_state = :running
           AND NOT EXISTS (SELECT 1 FROM environments WHERE live = one.id)
           AND NOT EXISTS (SELECT 1 FROM timers WHERE deployment = one.id)",
    )?;
    let left_over = statement.query_map(
        named_params! {
            ":app": Text(app),
            ":environment": Text(environment),
            ":ready": Word(DeploymentStatus::Ready),
            ":running": Word(DesiredState::Running),
        },
        |row| Ok((text(row, "id")?, json(row, "settings")?)),
    )?;
    let left_over: Vec<(DeploymentId, AppSettings)> = left_over.collect::<Result<_, _>>()?;
    for (deployment, settings) in left_over {
        let due = now + settings.deploy.standby_after.0;
        arm(connection, &Timer { deployment, nonce: nonce.to_owned(), state: DesiredState::Standby, due })?;
    }
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
    // It runs when its wake has seen it ready, and not before.
    if armed.state != DesiredState::Running {
        deployments::set_desired_state(connection, armed.deployment, armed.state)?;
    }
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
