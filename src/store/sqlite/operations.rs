//! Operations: accepted once for each idempotency key, ended once.

use rusqlite::{Connection, OptionalExtension, Row, named_params};

use super::column::{At, Json, Text, Word, json_if_any, text, text_if_any, time, time_if_any, word};
use super::secrets::Key;
use super::transaction::{Done, Stop, found, not_found};
use super::{apps, calls, deployments, environments, journal, timers};
use crate::clock::Timestamp;
use crate::ids::OperationId;
use crate::store::{
    Accepted, EventKind, IdempotencyKey, NewDeployment, NewEvent, NewOperation, Of, Operation, OperationEnd,
    OperationState, Page, StoreError,
};

pub(super) fn begin(
    connection: &Connection,
    key: &Key,
    operation: &NewOperation,
    deployment: Option<&NewDeployment>,
) -> Done<Accepted> {
    if let Some(idempotency) = &operation.idempotency
        && let Some(earlier) = earlier(connection, idempotency)?
    {
        return Ok(Accepted::Repeated(earlier));
    }
    if deployment.is_some() {
        environments::ensure(connection, &operation.app, &operation.environment)?;
    }
    apps::require_environment(connection, &operation.app, &operation.environment)?;
    if let Some(about) = operation.deployment
        && deployment.is_none()
    {
        deployments::require(connection, about)?;
    }
    connection.execute(
        "INSERT INTO operations
             (id, kind, app, environment, deployment, request, actor, idempotency_key, fingerprint, created_at)
         VALUES (:id, :kind, :app, :environment, :deployment, :request, :actor, :key, :fingerprint, :at)",
        named_params! {
            ":id": Text(operation.id),
            ":kind": Word(operation.kind),
            ":app": Text(&operation.app),
            ":environment": Text(&operation.environment),
            ":deployment": deployment.map(|new| new.id).or(operation.deployment).map(Text),
            ":request": operation.request,
            ":actor": operation.actor,
            ":key": operation.idempotency.as_ref().map(|idempotency| &idempotency.key),
            ":fingerprint": operation.idempotency.as_ref().map(|idempotency| &idempotency.fingerprint),
            ":at": At(operation.at),
        },
    )?;
    if let Some(deployment) = deployment {
        deployments::create(connection, key, operation, deployment)?;
    }
    Ok(Accepted::New)
}

pub(super) fn get(connection: &Connection, id: OperationId) -> Done<Option<Operation>> {
    Ok(connection.query_row("SELECT * FROM operations WHERE id = ?1", [Text(id)], from_row).optional()?)
}

pub(super) fn list(connection: &Connection, of: &Of, page: Page) -> Done<Vec<Operation>> {
    let mut statement = connection.prepare_cached(
        "SELECT * FROM operations WHERE (?1 IS NULL OR app = ?1) AND (?2 IS NULL OR environment = ?2)
         ORDER BY ordinal DESC LIMIT ?3 OFFSET ?4",
    )?;
    let of = (of.app.as_ref().map(Text), of.environment.as_ref().map(Text));
    let rows = statement.query_map((of.0, of.1, page.limit, page.offset), from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn unfinished(connection: &Connection) -> Done<Vec<Operation>> {
    let mut statement =
        connection.prepare_cached("SELECT * FROM operations WHERE ended_at IS NULL ORDER BY ordinal")?;
    let rows = statement.query_map((), from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn start(connection: &Connection, id: OperationId, at: Timestamp) -> Done<()> {
    let changed = connection.execute(
        "UPDATE operations SET state = ?1, started_at = ?2 WHERE id = ?3 AND state = ?4",
        (Word(OperationState::Running), At(at), Text(id), Word(OperationState::Queued)),
    )?;
    // One that runs or has ended stays as it is.
    if changed == 0 { require(connection, id) } else { Ok(()) }
}

pub(super) fn end(connection: &Connection, id: OperationId, end: &OperationEnd) -> Done<bool> {
    if !end.state.is_end() {
        return Err(Stop::Unusable(format!("{:?} is no end of an operation", end.state)));
    }
    let changed = connection.execute(
        "UPDATE operations SET state = :state, failure = :failure, receipt = coalesce(:receipt, receipt), ended_at = :at
         WHERE id = :id AND ended_at IS NULL",
        named_params! {
            ":state": Word(end.state),
            ":failure": end.failure.as_ref().map(Json),
            ":receipt": end.receipt,
            ":at": At(end.at),
            ":id": Text(id),
        },
    )?;
    if changed == 1 {
        journal::skip_open_steps(connection, id, end.at)?;
        // With the end itself, or whoever follows the operation would wait for it in vain after a crash between the two.
        let text = end.failure.as_ref().map_or_else(String::new, |failure| failure.cause.clone());
        let event = NewEvent { operation: id, kind: EventKind::Ended, text, at: end.at };
        journal::append(connection, &event)?;
    }
    decided(connection, id, changed)
}

/// The flag, the timers of what ran on because of the rollback, and the end: a crash finds all of it or nothing.
pub(super) fn confirm_rollback(
    connection: &Connection,
    id: OperationId,
    operation_end: &OperationEnd,
    nonce: &str,
) -> Done<()> {
    let operation = get(connection, id)?.ok_or_else(|| not_found("operation", id))?;
    apps::clear_rolled_back(connection, &operation.app, &operation.environment)?;
    timers::arm_left_over(connection, (&operation.app, &operation.environment), nonce, operation_end.at)?;
    end(connection, id, operation_end)?;
    Ok(())
}

pub(super) fn put_receipt(connection: &Connection, id: OperationId, receipt: &str) -> Done<()> {
    let query = "UPDATE operations SET receipt = ?1 WHERE id = ?2 AND ended_at IS NULL";
    let changed = connection.execute(query, (receipt, Text(id)))?;
    // The one that it ended with is whole.
    if changed == 0 { require(connection, id) } else { Ok(()) }
}

pub(super) fn request_cancel(connection: &Connection, id: OperationId) -> Done<bool> {
    let query = "UPDATE operations SET cancel_requested = 1 WHERE id = ?1 AND ended_at IS NULL";
    let changed = connection.execute(query, [Text(id)])?;
    decided(connection, id, changed)
}

/// From here on the operation is resumed forward.
pub(super) fn set_cutover(connection: &Connection, id: OperationId, cutover: &str) -> Done<()> {
    let changed =
        connection.execute("UPDATE operations SET cutover = ?1 WHERE id = ?2", (cutover, Text(id)))?;
    found(changed, "operation", id)
}

pub(super) fn require(connection: &Connection, id: OperationId) -> Done<()> {
    connection
        .query_row("SELECT 1 FROM operations WHERE id = ?1", [Text(id)], |_row| Ok(()))
        .optional()?
        .ok_or_else(|| not_found("operation", id))
}

fn decided(connection: &Connection, id: OperationId, changed: usize) -> Done<bool> {
    if changed == 0 {
        require(connection, id)?;
    }
    Ok(changed > 0)
}

pub(super) fn earlier(connection: &Connection, idempotency: &IdempotencyKey) -> Done<Option<OperationId>> {
    let earlier: Option<(OperationId, String)> = connection
        .query_row(
            "SELECT id, fingerprint FROM operations WHERE idempotency_key = ?1",
            [&idempotency.key],
            |row| Ok((text(row, "id")?, row.get("fingerprint")?)),
        )
        .optional()?;
    match earlier {
        Some((_, fingerprint)) if fingerprint != idempotency.fingerprint => {
            Err(StoreError::KeyReused { key: idempotency.key.clone() }.into())
        }
        Some((id, _)) => Ok(Some(id)),
        // A key names one call: one that made something else has another fingerprint.
        None => calls::refuse_reuse(connection, idempotency).map(|()| None),
    }
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Operation> {
    Ok(Operation {
        id: text(row, "id")?,
        kind: word(row, "kind")?,
        app: text(row, "app")?,
        environment: text(row, "environment")?,
        deployment: text_if_any(row, "deployment")?,
        request: row.get("request")?,
        actor: row.get("actor")?,
        state: word(row, "state")?,
        cancel_requested: row.get("cancel_requested")?,
        created_at: time(row, "created_at")?,
        started_at: time_if_any(row, "started_at")?,
        ended_at: time_if_any(row, "ended_at")?,
        cutover: row.get("cutover")?,
        failure: json_if_any(row, "failure")?,
        receipt: row.get("receipt")?,
    })
}
