//! Steps and events: what an operation did, and what can be followed of it.

use rusqlite::{Connection, Row, named_params};

use super::column::{At, Text, Word, text, time, time_if_any, word};
use super::operations;
use super::transaction::Done;
use crate::clock::Timestamp;
use crate::ids::OperationId;
use crate::store::{Event, EventKind, NewEvent, Step, StepEnd, StepOutcome};

pub(super) fn begin_step(
    connection: &Connection,
    operation: OperationId,
    step: &str,
    at: Timestamp,
) -> Done<()> {
    operations::require(connection, operation)?;
    let begun = connection.execute(
        "INSERT INTO steps (operation, name, began_at) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
        (Text(operation), step, At(at)),
    )?;
    if begun == 1 {
        append(connection, &NewEvent { operation, kind: EventKind::StepBegan, text: step.to_owned(), at })?;
    }
    Ok(())
}

/// A step that was never begun (one that is skipped) began when it ended.
pub(super) fn end_step(
    connection: &Connection,
    operation: OperationId,
    step: &str,
    end: &StepEnd,
) -> Done<bool> {
    operations::require(connection, operation)?;
    let ended = connection.execute(
        "INSERT INTO steps (operation, name, began_at, ended_at, outcome, detail)
         VALUES (:operation, :name, :at, :at, :outcome, :detail)
         ON CONFLICT (operation, name) DO UPDATE SET ended_at = excluded.ended_at, outcome = excluded.outcome,
             detail = excluded.detail
         WHERE steps.ended_at IS NULL",
        named_params! {
            ":operation": Text(operation),
            ":name": step,
            ":at": At(end.at),
            ":outcome": Word(end.outcome),
            ":detail": end.detail,
        },
    )?;
    if ended == 1 {
        let text = format!("{step} {}", outcome_word(end.outcome));
        append(connection, &NewEvent { operation, kind: EventKind::StepEnded, text, at: end.at })?;
    }
    Ok(ended == 1)
}

/// Of an operation that ends: what it had begun and not ended.
pub(super) fn skip_open_steps(connection: &Connection, operation: OperationId, at: Timestamp) -> Done<()> {
    let end = StepEnd { outcome: StepOutcome::Skipped, detail: None, at };
    for step in steps(connection, operation)?.into_iter().filter(|step| step.ended_at.is_none()) {
        end_step(connection, operation, &step.name, &end)?;
    }
    Ok(())
}

pub(super) fn steps(connection: &Connection, operation: OperationId) -> Done<Vec<Step>> {
    let mut statement =
        connection.prepare_cached("SELECT * FROM steps WHERE operation = ?1 ORDER BY ordinal")?;
    let rows = statement.query_map([Text(operation)], step_from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn append(connection: &Connection, event: &NewEvent) -> Done<i64> {
    connection.execute(
        "INSERT INTO events (operation, kind, text, at) VALUES (?1, ?2, ?3, ?4)",
        (Text(event.operation), Word(event.kind), &event.text, At(event.at)),
    )?;
    Ok(connection.last_insert_rowid())
}

pub(super) fn events(
    connection: &Connection,
    operation: Option<OperationId>,
    after: i64,
    limit: u32,
) -> Done<Vec<Event>> {
    let events = match operation {
        Some(operation) => connection
            .prepare_cached("SELECT * FROM events WHERE operation = ?1 AND id > ?2 ORDER BY id LIMIT ?3")?
            .query_map((Text(operation), after, limit), event_from_row)?
            .collect::<Result<_, _>>()?,
        None => connection
            .prepare_cached("SELECT * FROM events WHERE id > ?1 ORDER BY id LIMIT ?2")?
            .query_map((after, limit), event_from_row)?
            .collect::<Result<_, _>>()?,
    };
    Ok(events)
}

const fn outcome_word(outcome: StepOutcome) -> &'static str {
    match outcome {
        StepOutcome::Done => "done",
        StepOutcome::Failed => "failed",
        StepOutcome::Skipped => "skipped",
    }
}

fn step_from_row(row: &Row<'_>) -> rusqlite::Result<Step> {
    Ok(Step {
        name: row.get("name")?,
        began_at: time(row, "began_at")?,
        ended_at: time_if_any(row, "ended_at")?,
        outcome: row.get::<_, Option<Word<_>>>("outcome")?.map(|Word(outcome)| outcome),
        detail: row.get("detail")?,
    })
}

fn event_from_row(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        id: row.get("id")?,
        operation: text(row, "operation")?,
        kind: word(row, "kind")?,
        text: row.get("text")?,
        at: time(row, "at")?,
    })
}
