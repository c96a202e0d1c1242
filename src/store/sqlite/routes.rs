//! Who has which host pattern and path, and where it leads.

use rusqlite::{Connection, OptionalExtension, Row, named_params};

use super::apps;
use super::column::{Json, Text, Word, text, text_if_any, word};
use super::transaction::Done;
use crate::ids::{AppName, DeploymentId, EnvironmentName};
use crate::store::{DeploymentStatus, DesiredState, HostRow, RouteRow, Sticky, StoreError};

pub(super) fn list(connection: &Connection) -> Done<Vec<RouteRow>> {
    let mut statement = connection.prepare_cached("SELECT * FROM routes ORDER BY host, path")?;
    let rows = statement.query_map((), from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Adds or moves routes outside a swap; a `live` one leads to the live deployment whatever the row says.
pub(super) fn put_all(connection: &Connection, rows: &[RouteRow]) -> Done<()> {
    for row in rows {
        let environment = apps::require_environment(connection, &row.app, &row.environment)?;
        let deployment = match row.sticky {
            Sticky::Live => environment.live,
            Sticky::Environment
            | Sticky::Branch
            | Sticky::Deployment
            | Sticky::Commit
            | Sticky::Ephemeral => row.deployment,
        };
        refuse_to_unstick(connection, row)?;
        put(connection, &RouteRow { deployment, ..row.clone() })?;
    }
    Ok(())
}

/// Adds or replaces one route, unless another app has the place.
pub(super) fn put(connection: &Connection, row: &RouteRow) -> Done<()> {
    let changed = connection
        .prepare_cached(
            "INSERT INTO routes (host, path, strip, sticky, app, environment, deployment)
             VALUES (:host, :path, :strip, :sticky, :app, :environment, :deployment)
             ON CONFLICT (host, path) DO UPDATE SET strip = excluded.strip, sticky = excluded.sticky,
                 environment = excluded.environment, deployment = excluded.deployment
             WHERE routes.app = excluded.app",
        )?
        .execute(named_params! {
            ":host": row.host.host,
            ":path": row.host.path,
            ":strip": row.host.strip,
            ":sticky": Word(row.sticky),
            ":app": Text(&row.app),
            ":environment": Text(&row.environment),
            ":deployment": row.deployment.map(Text),
        })?;
    if changed == 1 {
        return Ok(());
    }
    let owner = present(connection, &row.host)?.map_or_else(|| row.app.clone(), |(owner, ..)| owner);
    Err(StoreError::HostTaken { host: shown(&row.host), owner }.into())
}

/// A generated name that equals one of the app's own hosts must not take it from the live deployment, and those of a
/// deployment and a commit never move.
pub(super) fn refuse_to_unstick(connection: &Connection, row: &RouteRow) -> Done<()> {
    let Some((owner, sticky, deployment)) = present(connection, &row.host)? else { return Ok(()) };
    let is_stuck = match sticky {
        Sticky::Live => row.sticky != Sticky::Live,
        Sticky::Deployment | Sticky::Commit => row.sticky != sticky || row.deployment != deployment,
        Sticky::Environment | Sticky::Branch | Sticky::Ephemeral => row.sticky != sticky,
    };
    if is_stuck { Err(StoreError::HostTaken { host: shown(&row.host), owner }.into()) } else { Ok(()) }
}

/// All `live` routes of the environment lead to `to`.
pub(super) fn lead_live(
    connection: &Connection,
    app: &AppName,
    environment: &EnvironmentName,
    to: DeploymentId,
) -> Done<()> {
    connection.execute(
        "UPDATE routes SET deployment = ?1 WHERE app = ?2 AND environment = ?3 AND sticky = ?4",
        (Text(to), Text(app), Text(environment), Word(Sticky::Live)),
    )?;
    Ok(())
}

/// An archived deployment has no names of its own any more; that of its branch goes to the branch's next newest.
pub(super) fn release(connection: &Connection, gone: DeploymentId) -> Done<()> {
    let next: Option<(DeploymentId, EnvironmentName)> = connection
        .query_row(
            "SELECT next.id, next.environment FROM deployments next JOIN deployments gone ON gone.id = ?1
             WHERE next.app = gone.app AND next.id != gone.id AND next.label IS NULL AND next.status = ?2
                 AND next.desired_state != ?3
                 AND json_extract(next.git, '$.branch') = json_extract(gone.git, '$.branch')
             ORDER BY next.ordinal DESC LIMIT 1",
            (Text(gone), Word(DeploymentStatus::Ready), Word(DesiredState::Archived)),
            |row| Ok((text(row, "id")?, text(row, "environment")?)),
        )
        .optional()?;
    if let Some((next, environment)) = next {
        connection.execute(
            "UPDATE routes SET deployment = ?1, environment = ?2 WHERE deployment = ?3 AND sticky = ?4",
            (Text(next), Text(environment), Text(gone), Word(Sticky::Branch)),
        )?;
    }
    let own = Json([Sticky::Branch, Sticky::Commit, Sticky::Deployment]);
    connection.execute(
        "DELETE FROM routes WHERE deployment = ?1 AND sticky IN (SELECT value FROM json_each(?2))",
        (Text(gone), own),
    )?;
    Ok(())
}

pub(super) fn delete_live(connection: &Connection, app: &AppName, host: &HostRow) -> Done<()> {
    connection.execute(
        "DELETE FROM routes WHERE host = ?1 AND path = ?2 AND app = ?3 AND sticky = ?4",
        (&host.host, &host.path, Text(app), Word(Sticky::Live)),
    )?;
    Ok(())
}

/// As a person writes it.
pub(super) fn shown(host: &HostRow) -> String {
    if host.path == "/" { host.host.clone() } else { format!("{}{}", host.host, host.path) }
}

fn present(connection: &Connection, host: &HostRow) -> Done<Option<(AppName, Sticky, Option<DeploymentId>)>> {
    let query = "SELECT app, sticky, deployment FROM routes WHERE host = ?1 AND path = ?2";
    let found = connection.query_row(query, (&host.host, &host.path), |row| {
        Ok((text(row, "app")?, word(row, "sticky")?, text_if_any(row, "deployment")?))
    });
    Ok(found.optional()?)
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<RouteRow> {
    Ok(RouteRow {
        host: HostRow { host: row.get("host")?, path: row.get("path")?, strip: row.get("strip")? },
        sticky: word(row, "sticky")?,
        app: text(row, "app")?,
        environment: text(row, "environment")?,
        deployment: text_if_any(row, "deployment")?,
    })
}
