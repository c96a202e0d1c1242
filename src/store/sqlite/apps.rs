//! Apps, their environments, and the `live` routes of their host names.

use rusqlite::{Connection, OptionalExtension, Row, named_params};

use super::column::{At, Json, Text, Word, count, json, json_if_any, text, text_if_any, time_if_any, word};
use super::secrets::{Key, Place};
use super::transaction::{Done, found, not_found};
use super::{renaming, routes};
use crate::clock::Timestamp;
use crate::ids::{AppName, DeploymentId, EnvironmentName};
use crate::settings::Replicas;
use crate::store::{App, Environment, EnvironmentKind, HostRow, RouteRow, Split, Sticky, StoreError};

pub(super) fn put_all(connection: &Connection, key: &Key, apps: &[App]) -> Done<()> {
    let mut changed = Vec::new();
    // What any of them gives up is free before another one takes it.
    for app in apps {
        refuse_repeated_hosts(app)?;
        let before: Option<Vec<HostRow>> = connection
            .query_row("SELECT hosts FROM apps WHERE name = ?1", [Text(&app.name)], |row| json(row, "hosts"))
            .optional()?;
        let Some(before) = before else { continue };
        for gone in before.iter().filter(|old| !app.hosts.iter().any(|new| same_place(old, new))) {
            routes::delete_live(connection, &app.name, gone)?;
        }
        if before != app.hosts {
            changed.push(&app.name);
        }
    }
    for app in apps {
        put(connection, key, app)?;
    }
    for app in changed {
        // A swap that was planned with the old host names must not bring one of them back.
        connection.execute(
            "UPDATE environments SET generation = generation + 1 WHERE app = ?1 AND name = ?2",
            (Text(app), Text(&EnvironmentName::production())),
        )?;
    }
    Ok(())
}

pub(super) fn hours_at(connection: &Connection, app: &AppName) -> Done<Option<Timestamp>> {
    let query = "SELECT hours_at FROM apps WHERE name = ?1";
    let found = connection.query_row(query, [Text(app)], |row| time_if_any(row, "hours_at")).optional()?;
    Ok(found.flatten())
}

pub(super) fn set_hours_at(connection: &Connection, app: &AppName, at: Timestamp) -> Done<()> {
    let query = "UPDATE apps SET hours_at = ?1 WHERE name = ?2";
    found(connection.execute(query, (At(at), Text(app)))?, "app", app)
}

fn put(connection: &Connection, key: &Key, app: &App) -> Done<()> {
    let production = EnvironmentName::production();
    let is_new = environment(connection, &app.name, &production)?.is_none();
    // Whoever said last how many instances there are to be is heeded.
    connection.execute(
        "UPDATE environments SET replicas = NULL
         WHERE app = ?1 AND (SELECT settings ->> '$.replicas' FROM apps WHERE name = ?1) <> ?2",
        (Text(&app.name), app.settings.replicas.count()),
    )?;
    connection.execute(
        "INSERT INTO apps (name, workspace, hosts, settings, env, origin)
         VALUES (:name, :workspace, :hosts, :settings, :env, :origin)
         ON CONFLICT (name) DO UPDATE SET workspace = excluded.workspace, hosts = excluded.hosts,
             settings = excluded.settings, env = excluded.env, origin = excluded.origin, removal = NULL",
        named_params! {
            ":name": Text(&app.name),
            ":workspace": Text(&app.workspace),
            ":hosts": Json(&app.hosts),
            ":settings": Json(&app.settings),
            ":env": key.seal_secrets(place(&app.name.to_string()), &app.settings)?,
            ":origin": Word(app.origin),
        },
    )?;
    connection.execute(
        "INSERT INTO environments (app, name, kind) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
        (Text(&app.name), Text(&production), Word(EnvironmentKind::Production)),
    )?;
    if is_new {
        renaming::choose_first_name(connection, &app.name)?;
    }
    let environment = require_environment(connection, &app.name, &production)?;
    for host in &app.hosts {
        routes::put(connection, &route(app, host, environment.live))?;
    }
    Ok(())
}

pub(super) fn get(connection: &Connection, key: &Key, name: &AppName) -> Done<Option<App>> {
    let found = connection
        .query_row("SELECT * FROM apps WHERE name = ?1", [Text(name)], |row| Ok(from_row(row, key)))
        .optional()?;
    found.transpose()
}

pub(super) fn list(connection: &Connection, key: &Key) -> Done<Vec<App>> {
    let mut statement = connection.prepare_cached("SELECT * FROM apps ORDER BY name")?;
    let rows = statement.query_map((), |row| Ok(from_row(row, key)))?;
    rows.map(|row| row?).collect()
}

pub(super) fn environment(
    connection: &Connection,
    app: &AppName,
    name: &EnvironmentName,
) -> Done<Option<Environment>> {
    let query = "SELECT * FROM environments WHERE app = ?1 AND name = ?2";
    Ok(connection.query_row(query, (Text(app), Text(name)), environment_from_row).optional()?)
}

pub(super) fn environments(connection: &Connection, app: &AppName) -> Done<Vec<Environment>> {
    let mut statement =
        connection.prepare_cached("SELECT * FROM environments WHERE app = ?1 ORDER BY name")?;
    let rows = statement.query_map([Text(app)], environment_from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn retire(connection: &Connection, app: &AppName, with_volumes: bool) -> Done<()> {
    for statement in [
        "DELETE FROM timers WHERE deployment IN (SELECT id FROM deployments WHERE app = ?1)",
        "UPDATE environments SET live = NULL, rolled_back = 0, split = NULL, generation = generation + 1 WHERE app = ?1",
        "DELETE FROM routes WHERE app = ?1",
        "UPDATE deployments SET desired_state = 'archived' WHERE app = ?1",
        "UPDATE apps SET hosts = '[]' WHERE name = ?1",
    ] {
        connection.execute(statement, [Text(app)])?;
    }
    let query = "UPDATE apps SET removal = ?1 WHERE name = ?2";
    connection.execute(query, (with_volumes, Text(app)))?;
    Ok(())
}

pub(super) fn removals(connection: &Connection) -> Done<Vec<(AppName, bool)>> {
    let mut statement = connection
        .prepare_cached("SELECT name, removal FROM apps WHERE removal IS NOT NULL ORDER BY name")?;
    let rows = statement.query_map((), |row| Ok((text(row, "name")?, row.get("removal")?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn forget(connection: &Connection, app: &AppName) -> Done<bool> {
    let is_in_use: bool = connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM instances WHERE app = ?1)
             OR EXISTS (SELECT 1 FROM routes WHERE app = ?1)
             OR EXISTS (SELECT 1 FROM operations WHERE app = ?1 AND ended_at IS NULL)
             OR EXISTS (SELECT 1 FROM environments WHERE app = ?1 AND live IS NOT NULL)",
        [Text(app)],
        |row| row.get(0),
    )?;
    if is_in_use {
        return Ok(false);
    }
    for statement in [
        "DELETE FROM events WHERE operation IN (SELECT id FROM operations WHERE app = ?1)",
        "DELETE FROM steps WHERE operation IN (SELECT id FROM operations WHERE app = ?1)",
        "DELETE FROM timers WHERE deployment IN (SELECT id FROM deployments WHERE app = ?1)",
        "DELETE FROM deployments WHERE app = ?1",
        "DELETE FROM operations WHERE app = ?1",
        "DELETE FROM environments WHERE app = ?1",
        "DELETE FROM apps WHERE name = ?1",
    ] {
        connection.execute(statement, [Text(app)])?;
    }
    Ok(true)
}

pub(super) fn clear_rolled_back(
    connection: &Connection,
    app: &AppName,
    environment: &EnvironmentName,
) -> Done<()> {
    let query = "UPDATE environments SET rolled_back = 0 WHERE app = ?1 AND name = ?2";
    found(connection.execute(query, (Text(app), Text(environment)))?, "environment", environment)
}

pub(super) fn set_split(
    connection: &Connection,
    app: &AppName,
    environment: &EnvironmentName,
    split: Option<&Split>,
) -> Done<()> {
    require_environment(connection, app, environment)?;
    let query =
        "UPDATE environments SET split = ?1, generation = generation + 1 WHERE app = ?2 AND name = ?3";
    connection.execute(query, (split.map(Json), Text(app), Text(environment)))?;
    Ok(())
}

/// The environment, or which of the two names is unknown.
pub(super) fn require_environment(
    connection: &Connection,
    app: &AppName,
    name: &EnvironmentName,
) -> Done<Environment> {
    if let Some(environment) = environment(connection, app, name)? {
        return Ok(environment);
    }
    let known = connection
        .query_row("SELECT 1 FROM apps WHERE name = ?1", [Text(app)], |_row| Ok(()))
        .optional()?
        .is_some();
    if known {
        return Err(not_found("environment", format!("{app}/{name}")));
    }
    Err(not_found("app", app))
}

/// The next sequence number of the environment.
pub(super) fn next_sequence(
    connection: &Connection,
    app: &AppName,
    environment: &EnvironmentName,
) -> Done<u64> {
    Ok(connection.query_row(
        "UPDATE environments SET last_sequence = last_sequence + 1 WHERE app = ?1 AND name = ?2
         RETURNING last_sequence",
        (Text(app), Text(environment)),
        |row| count(row, "last_sequence"),
    )?)
}

fn route(app: &App, host: &HostRow, live: Option<DeploymentId>) -> RouteRow {
    RouteRow {
        host: host.clone(),
        sticky: Sticky::Live,
        app: app.name.clone(),
        environment: EnvironmentName::production(),
        deployment: live,
    }
}

fn refuse_repeated_hosts(app: &App) -> Done<()> {
    for (position, host) in app.hosts.iter().enumerate() {
        if app.hosts[..position].iter().any(|earlier| same_place(earlier, host)) {
            return Err(StoreError::HostTaken { host: routes::shown(host), owner: app.name.clone() }.into());
        }
    }
    Ok(())
}

fn same_place(a: &HostRow, b: &HostRow) -> bool {
    (&a.host, &a.path) == (&b.host, &b.path)
}

pub(super) fn place(name: &str) -> Place<'_> {
    Place { table: "apps", row: name }
}

fn from_row(row: &Row<'_>, key: &Key) -> Done<App> {
    let name: AppName = text(row, "name")?;
    let env: Vec<u8> = row.get("env")?;
    let mut app = App {
        workspace: text(row, "workspace")?,
        hosts: json(row, "hosts")?,
        settings: json(row, "settings")?,
        origin: word(row, "origin")?,
        name,
    };
    key.open_secrets(place(app.name.as_str()), &env, &mut app.settings)?;
    Ok(app)
}

/// `None` too for a number that is none of a number of replicas, which nothing of ours writes.
fn replicas(row: &Row<'_>) -> rusqlite::Result<Option<Replicas>> {
    let count: Option<u16> = row.get("replicas")?;
    Ok(count.and_then(|count| Replicas::new(count).ok()))
}

fn environment_from_row(row: &Row<'_>) -> rusqlite::Result<Environment> {
    Ok(Environment {
        app: text(row, "app")?,
        name: text(row, "name")?,
        kind: word(row, "kind")?,
        live: text_if_any(row, "live")?,
        rolled_back: row.get("rolled_back")?,
        generation: count(row, "generation")?,
        replicas: replicas(row)?,
        split: json_if_any(row, "split")?,
    })
}
