//! What is over and old is forgotten, but for what somebody may still want to go back to or ask about.

use rusqlite::{Connection, named_params};

use super::column::{At, Word};
use super::transaction::Done;
use crate::clock::Timestamp;
use crate::store::{DeploymentStatus, DesiredState, Pruned};

/// Rows of one kind that one transaction deletes at most: swaps wait for the same writer.
const AT_ONCE: u32 = 200;

/// Deletes some of what ended before `before`: deployments that serve nothing and never will again, operations that
/// did not make a deployment that is kept, with their steps and events, and audit rows. The `newest` deployments of
/// each environment stay in any case.
pub(super) fn prune(connection: &Connection, before: Timestamp, newest: u32) -> Done<Pruned> {
    let deployments = connection.execute(
        "DELETE FROM deployments WHERE ordinal IN (
             SELECT ordinal FROM deployments AS old
             WHERE coalesce(live_at, created_at) < :before
               AND (desired_state = :archived OR status IN (:failed, :cancelled, :superseded))
               AND (SELECT count(*) FROM deployments AS newer
                    WHERE newer.app = old.app AND newer.environment = old.environment
                      AND newer.sequence > old.sequence) >= :newest
               AND NOT EXISTS (SELECT 1 FROM environments WHERE live = old.id)
               AND NOT EXISTS (SELECT 1 FROM instances WHERE deployment = old.id)
               AND NOT EXISTS (SELECT 1 FROM routes WHERE deployment = old.id)
               AND NOT EXISTS (SELECT 1 FROM timers WHERE deployment = old.id)
               AND NOT EXISTS (SELECT 1 FROM operations
                               WHERE deployment = old.id AND coalesce(ended_at, :before) >= :before)
             LIMIT :at_once)",
        named_params! {
            ":before": At(before),
            ":archived": Word(DesiredState::Archived),
            ":failed": Word(DeploymentStatus::Failed),
            ":cancelled": Word(DeploymentStatus::Cancelled),
            ":superseded": Word(DeploymentStatus::Superseded),
            ":newest": newest,
            ":at_once": AT_ONCE,
        },
    )?;
    let is_over = "SELECT id FROM operations AS old WHERE ended_at < ?1
                     AND NOT EXISTS (SELECT 1 FROM deployments WHERE operation = old.id)
                   ORDER BY ordinal LIMIT ?2";
    for table in ["steps", "events"] {
        let query = format!("DELETE FROM {table} WHERE operation IN ({is_over})");
        connection.execute(&query, (At(before), AT_ONCE))?;
    }
    let query = format!("DELETE FROM operations WHERE id IN ({is_over})");
    let operations = connection.execute(&query, (At(before), AT_ONCE))?;
    let query = "DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at < ?1 ORDER BY id LIMIT ?2)";
    let audit = connection.execute(query, (At(before), AT_ONCE))?;
    Ok(Pruned { deployments, operations, audit })
}
