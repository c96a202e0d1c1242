//! Deployments with a label: which there are, which are over, and which were.

use rusqlite::Connection;

use super::column::{At, Text, Word, text, time};
use super::deployments;
use super::secrets::Key;
use super::transaction::Done;
use crate::clock::Timestamp;
use crate::ids::AppName;
use crate::store::{Deployment, DeploymentStatus, DesiredState, EndedLabel};

pub(super) fn list(connection: &Connection, key: &Key, app: Option<&AppName>) -> Done<Vec<Deployment>> {
    let mut statement = connection.prepare_cached(
        "SELECT * FROM deployments WHERE label IS NOT NULL AND status = ?1 AND desired_state != ?2
             AND (?3 IS NULL OR app = ?3)
         ORDER BY ordinal",
    )?;
    let wanted = (Word(DeploymentStatus::Ready), Word(DesiredState::Archived), app.map(Text));
    let rows = statement.query_map(wanted, |row| Ok(deployments::from_row(row, key)))?;
    rows.map(|row| row?).collect()
}

pub(super) fn expired(connection: &Connection, key: &Key, now: Timestamp) -> Done<Vec<Deployment>> {
    let mut statement = connection.prepare_cached(
        "SELECT * FROM deployments WHERE label IS NOT NULL AND status = ?1 AND desired_state != ?2
             AND expires_at <= ?3
         ORDER BY ordinal",
    )?;
    let wanted = (Word(DeploymentStatus::Ready), Word(DesiredState::Archived), At(now));
    let rows = statement.query_map(wanted, |row| Ok(deployments::from_row(row, key)))?;
    rows.map(|row| row?).collect()
}

pub(super) fn ended(connection: &Connection, since: Timestamp, now: Timestamp) -> Done<Vec<EndedLabel>> {
    let mut statement = connection.prepare_cached(
        "SELECT app, label, id, expires_at FROM deployments WHERE label IS NOT NULL AND status = ?1
             AND desired_state = ?2 AND expires_at > ?3 AND expires_at <= ?4
         ORDER BY expires_at",
    )?;
    let wanted = (Word(DeploymentStatus::Ready), Word(DesiredState::Archived), At(since), At(now));
    let rows = statement.query_map(wanted, |row| {
        Ok(EndedLabel {
            app: text(row, "app")?,
            label: text(row, "label")?,
            deployment: text(row, "id")?,
            expired_at: time(row, "expires_at")?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
