//! Deployments: made once, moved along their statuses by compare-and-set.

use rusqlite::{Connection, OptionalExtension, Row, named_params};

use super::column::{
    At, Count, Json, Text, Word, count, json, json_if_any, text, text_if_any, time, time_if_any, word,
};
use super::secrets::{Key, Place};
use super::transaction::{Done, found, not_found};
use super::{apps, instances, routes, timers};
use crate::clock::Timestamp;
use crate::ids::{AppName, DeploymentId, EnvironmentName};
use crate::store::{
    Deployment, DeploymentStatus, DesiredState, Failure, NewDeployment, NewOperation, Of, Page, StoreError,
    WakePlan,
};

/// As `pending`, with the next sequence number of its environment.
pub(super) fn create(
    connection: &Connection,
    key: &Key,
    operation: &NewOperation,
    deployment: &NewDeployment,
) -> Done<()> {
    let id = deployment.id.to_string();
    let sequence = apps::next_sequence(connection, &operation.app, &operation.environment)?;
    connection.execute(
        "INSERT INTO deployments (id, app, environment, sequence, status, desired_state, settings, env, git, pinned,
             label, expires_at, operation, created_at)
         VALUES (:id, :app, :environment, :sequence, :status, :desired_state, :settings, :env, :git, :pinned,
             :label, :expires_at, :operation, :at)",
        named_params! {
            ":id": id,
            ":app": Text(&operation.app),
            ":environment": Text(&operation.environment),
            ":sequence": Count(sequence),
            ":status": Word(DeploymentStatus::Pending),
            ":desired_state": Word(DesiredState::Running),
            ":settings": Json(&deployment.settings),
            ":env": key.seal_secrets(place(&id), &deployment.settings)?,
            ":git": Json(&deployment.git),
            ":pinned": deployment.pinned,
            ":label": deployment.label.as_ref().map(Text),
            ":expires_at": deployment.expires_at.map(At),
            ":operation": Text(operation.id),
            ":at": At(operation.at),
        },
    )?;
    Ok(())
}

pub(super) fn get(connection: &Connection, key: &Key, id: DeploymentId) -> Done<Option<Deployment>> {
    let query = "SELECT * FROM deployments WHERE id = ?1";
    connection.query_row(query, [Text(id)], |row| Ok(from_row(row, key))).optional()?.transpose()
}

pub(super) fn require(connection: &Connection, id: DeploymentId) -> Done<()> {
    connection
        .query_row("SELECT 1 FROM deployments WHERE id = ?1", [Text(id)], |_row| Ok(()))
        .optional()?
        .ok_or_else(|| not_found("deployment", id))
}

pub(super) fn require_not_archived(connection: &Connection, id: DeploymentId) -> Done<()> {
    require(connection, id)?;
    let query = "SELECT 1 FROM deployments WHERE id = ?1 AND desired_state = ?2";
    let archived = connection.query_row(query, (Text(id), Word(DesiredState::Archived)), |_row| Ok(()));
    match archived.optional()? {
        Some(()) => Err(StoreError::Archived { deployment: id }.into()),
        None => Ok(()),
    }
}

pub(super) fn list(connection: &Connection, key: &Key, of: &Of, page: Page) -> Done<Vec<Deployment>> {
    let mut statement = connection.prepare_cached(
        "SELECT * FROM deployments WHERE (?1 IS NULL OR app = ?1) AND (?2 IS NULL OR environment = ?2)
         ORDER BY ordinal DESC LIMIT ?3 OFFSET ?4",
    )?;
    let of = (of.app.as_ref().map(Text), of.environment.as_ref().map(Text));
    let rows = statement.query_map((of.0, of.1, page.limit, page.offset), |row| Ok(from_row(row, key)))?;
    rows.map(|row| row?).collect()
}

pub(super) fn ways_back(
    connection: &Connection,
    (app, environment): (&AppName, &EnvironmentName),
    from: DeploymentId,
    limit: u32,
) -> Done<Vec<DeploymentId>> {
    let mut statement = connection.prepare_cached(
        "SELECT earlier.id FROM deployments AS earlier
             JOIN deployments AS source ON source.id = :source
             JOIN environments AS place ON place.app = earlier.app AND place.name = earlier.environment
         WHERE earlier.app = :app AND earlier.environment = :environment AND earlier.label IS NULL
           AND earlier.status = :ready AND earlier.desired_state <> :archived
           AND earlier.live_generation < source.live_generation
           AND (NOT place.rolled_back OR earlier.sequence < source.sequence)
         ORDER BY earlier.live_generation DESC LIMIT :limit",
    )?;
    let found = statement.query_map(
        named_params! {
            ":app": Text(app),
            ":environment": Text(environment),
            ":source": Text(from),
            ":ready": Word(DeploymentStatus::Ready),
            ":archived": Word(DesiredState::Archived),
            ":limit": limit,
        },
        |row| text(row, "id"),
    )?;
    Ok(found.collect::<Result<_, _>>()?)
}

pub(super) fn in_service(connection: &Connection, key: &Key) -> Done<Vec<Deployment>> {
    let mut statement = connection.prepare_cached(
        "SELECT * FROM deployments WHERE (status = ?1 AND desired_state IN (?2, ?3))
             OR status IN (SELECT value FROM json_each(?4))
         ORDER BY ordinal",
    )?;
    let unended: Vec<_> = DeploymentStatus::ALL.into_iter().filter(|status| !status.is_end()).collect();
    let (running, standby) = (Word(DesiredState::Running), Word(DesiredState::Standby));
    let wanted = (Word(DeploymentStatus::Ready), running, standby, Json(unended));
    let rows = statement.query_map(wanted, |row| Ok(from_row(row, key)))?;
    rows.map(|row| row?).collect()
}

pub(super) fn set_status(
    connection: &Connection,
    id: DeploymentId,
    to: DeploymentStatus,
    failure: Option<&Failure>,
) -> Done<bool> {
    let changed = connection.execute(
        "UPDATE deployments SET status = :to, failure = coalesce(:failure, failure)
         WHERE id = :id AND status IN (SELECT value FROM json_each(:predecessors))",
        named_params! {
            ":to": Word(to),
            ":failure": failure.map(Json),
            ":id": Text(id),
            ":predecessors": Json(to.predecessors()),
        },
    )?;
    if changed == 0 {
        require(connection, id)?;
    }
    Ok(changed > 0)
}

pub(super) fn set_pinned(
    connection: &Connection,
    id: DeploymentId,
    pinned: &str,
    state_hash: &str,
) -> Done<()> {
    let query = "UPDATE deployments SET pinned = ?1, state_hash = ?2 WHERE id = ?3";
    found(connection.execute(query, (pinned, state_hash, Text(id)))?, "deployment", id)
}

/// An archived one stays so, and nothing is due for it any more.
pub(super) fn set_desired_state(connection: &Connection, id: DeploymentId, state: DesiredState) -> Done<()> {
    let archived = DesiredState::Archived;
    let changed = connection.execute(
        "UPDATE deployments SET desired_state = :state
         WHERE id = :id AND (desired_state <> :archived OR :state = :archived)",
        named_params! { ":state": Word(state), ":id": Text(id), ":archived": Word(archived) },
    )?;
    if changed == 0 {
        return require_not_archived(connection, id);
    }
    if state == archived {
        timers::clear(connection, id)?;
        routes::release(connection, id)?;
    }
    Ok(())
}

pub(super) fn fall_asleep(connection: &Connection, id: DeploymentId) -> Done<bool> {
    change_state(connection, id, (DesiredState::Running, DesiredState::Standby))
}

pub(super) fn wake(connection: &Connection, plan: &WakePlan) -> Done<bool> {
    if !change_state(connection, plan.deployment, (DesiredState::Standby, DesiredState::Running))? {
        return Ok(false);
    }
    connection.execute("UPDATE deployments SET failure = NULL WHERE id = ?1", [Text(plan.deployment)])?;
    for instance in &plan.instances {
        instances::put(connection, instance)?;
    }
    if let Some(rest) = &plan.rest {
        timers::arm(connection, rest)?;
    }
    Ok(true)
}

/// Of a ready one, if it is in the first of the two states.
fn change_state(
    connection: &Connection,
    id: DeploymentId,
    (from, to): (DesiredState, DesiredState),
) -> Done<bool> {
    let query =
        "UPDATE deployments SET desired_state = ?1 WHERE id = ?2 AND status = ?3 AND desired_state = ?4";
    let changed =
        connection.execute(query, (Word(to), Text(id), Word(DeploymentStatus::Ready), Word(from)))?;
    if changed == 0 {
        require(connection, id)?;
    }
    Ok(changed > 0)
}

pub(super) fn note_failure(connection: &Connection, id: DeploymentId, failure: &Failure) -> Done<()> {
    let query = "UPDATE deployments SET failure = ?1 WHERE id = ?2";
    found(connection.execute(query, (Json(failure), Text(id)))?, "deployment", id)
}

pub(super) fn set_expiry(connection: &Connection, id: DeploymentId, at: Timestamp) -> Done<()> {
    let query = "UPDATE deployments SET expires_at = ?1 WHERE id = ?2 AND label IS NOT NULL";
    found(connection.execute(query, (At(at), Text(id)))?, "ephemeral deployment", id)
}

fn place(id: &str) -> Place<'_> {
    Place { table: "deployments", row: id }
}

pub(super) fn from_row(row: &Row<'_>, key: &Key) -> Done<Deployment> {
    let id: String = row.get("id")?;
    let env: Vec<u8> = row.get("env")?;
    let mut deployment = Deployment {
        id: text(row, "id")?,
        app: text(row, "app")?,
        environment: text(row, "environment")?,
        ordinal: count(row, "ordinal")?,
        sequence: count(row, "sequence")?,
        status: word(row, "status")?,
        desired_state: word(row, "desired_state")?,
        settings: json(row, "settings")?,
        git: json(row, "git")?,
        pinned: row.get("pinned")?,
        state_hash: row.get("state_hash")?,
        label: text_if_any(row, "label")?,
        expires_at: time_if_any(row, "expires_at")?,
        failure: json_if_any(row, "failure")?,
        operation: text(row, "operation")?,
        created_at: time(row, "created_at")?,
        live_at: time_if_any(row, "live_at")?,
    };
    key.open_secrets(place(&id), &env, &mut deployment.settings)?;
    Ok(deployment)
}
