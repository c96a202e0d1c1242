//! The tables, and how an older database becomes one of today.

use std::sync::LazyLock;

use rusqlite::Connection;
use rusqlite_migration::{M, Migrations};

/// In the file's header: tells a Lockgate database from another program's. ASCII `LKGT`.
pub(super) const APPLICATION_ID: i32 = 0x4c4b_4754;

/// `user_version` of a database that has all of [`MIGRATIONS`].
pub(super) const VERSION: i64 = 11;

/// Only ever appended to: what has been released is never edited.
static MIGRATIONS: LazyLock<Migrations<'static>> = LazyLock::new(|| {
    Migrations::new(vec![
        M::up(FIRST),
        M::up(SCALE).foreign_key_check(),
        M::up(ACCESS),
        M::up(CALLS),
        M::up(SPLIT),
        M::up(REMOVAL),
        M::up(FIRST_NAME),
        M::up(HOURS),
        M::up(ANSWERS),
        M::up(ENVIRONMENT_REMOVAL),
        M::up(LIVE_GENERATION),
    ])
});

/// Brings the database up to [`VERSION`].
pub(super) fn migrate(connection: &mut Connection) -> rusqlite_migration::Result<()> {
    // A table that others refer to is changed by putting another one in its place; its migration checks at its end
    // that all references hold.
    connection.pragma_update(None, "foreign_keys", "OFF")?;
    let migrated = MIGRATIONS.to_latest(connection);
    connection.pragma_update(None, "foreign_keys", "ON")?;
    migrated
}

/// Words of enums are checked here too, so that another program's write cannot put in what no version can read.
const FIRST: &str = "
CREATE TABLE installation (
    only_row    INTEGER PRIMARY KEY CHECK (only_row = 1),
    lockgate_id TEXT NOT NULL,
    key_check   BLOB NOT NULL, -- sealed by the key that the env columns are sealed by
    created_at  TEXT NOT NULL
) STRICT;

CREATE TABLE apps (
    name      TEXT PRIMARY KEY,
    workspace TEXT NOT NULL,
    hosts     TEXT NOT NULL, -- as the app asks for them; who has them stands in routes
    settings  TEXT NOT NULL,
    env       BLOB NOT NULL, -- sealed
    origin    TEXT NOT NULL CHECK (origin IN ('config', 'api'))
) STRICT, WITHOUT ROWID;

CREATE TABLE environments (
    app           TEXT NOT NULL REFERENCES apps (name),
    name          TEXT NOT NULL,
    kind          TEXT NOT NULL CHECK (kind IN ('production', 'preview')),
    live          TEXT REFERENCES deployments (id) DEFERRABLE INITIALLY DEFERRED,
    rolled_back   INTEGER NOT NULL DEFAULT 0 CHECK (rolled_back IN (0, 1)),
    generation    INTEGER NOT NULL DEFAULT 0,
    last_sequence INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (app, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE operations (
    ordinal          INTEGER PRIMARY KEY, -- order of acceptance
    id               TEXT NOT NULL UNIQUE,
    kind             TEXT NOT NULL CHECK (kind IN ('deploy', 'swap', 'rollback', 'promote')),
    app              TEXT NOT NULL,
    environment      TEXT NOT NULL,
    deployment       TEXT REFERENCES deployments (id) DEFERRABLE INITIALLY DEFERRED,
    request          TEXT NOT NULL,
    actor            TEXT NOT NULL,
    state            TEXT NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'running', 'succeeded',
                         'succeeded-with-warnings', 'rolled-back', 'failed', 'superseded', 'cancelled')),
    cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    idempotency_key  TEXT UNIQUE,
    fingerprint      TEXT,
    created_at       TEXT NOT NULL,
    started_at       TEXT,
    ended_at         TEXT,
    cutover          TEXT,
    failure          TEXT,
    receipt          TEXT,
    CHECK ((idempotency_key IS NULL) = (fingerprint IS NULL)),
    CHECK ((state IN ('queued', 'running')) = (ended_at IS NULL))
) STRICT;
CREATE INDEX operations_unfinished ON operations (ordinal) WHERE ended_at IS NULL;

CREATE TABLE steps (
    ordinal   INTEGER PRIMARY KEY, -- order of begin
    operation TEXT NOT NULL REFERENCES operations (id),
    name      TEXT NOT NULL,
    began_at  TEXT NOT NULL,
    ended_at  TEXT,
    outcome   TEXT CHECK (outcome IN ('done', 'failed', 'skipped')),
    detail    TEXT,
    UNIQUE (operation, name),
    CHECK ((ended_at IS NULL) = (outcome IS NULL))
) STRICT;

CREATE TABLE events (
    id        INTEGER PRIMARY KEY AUTOINCREMENT, -- a follower's place: never given twice
    operation TEXT NOT NULL REFERENCES operations (id),
    kind      TEXT NOT NULL CHECK (kind IN ('step-began', 'step-ended', 'progress', 'cutover', 'warning', 'ended')),
    text      TEXT NOT NULL,
    at        TEXT NOT NULL
) STRICT;
CREATE INDEX events_of_operation ON events (operation, id);

CREATE TABLE deployments (
    ordinal       INTEGER PRIMARY KEY, -- order of creation, over all environments
    id            TEXT NOT NULL UNIQUE,
    app           TEXT NOT NULL,
    environment   TEXT NOT NULL,
    sequence      INTEGER NOT NULL,
    status        TEXT NOT NULL CHECK (status IN ('pending', 'building', 'starting', 'checking', 'finalizing',
                      'ready', 'failed', 'cancelled', 'superseded')),
    desired_state TEXT NOT NULL CHECK (desired_state IN ('running', 'standby', 'archived')),
    settings      TEXT NOT NULL,
    env           BLOB NOT NULL, -- sealed
    git           TEXT NOT NULL,
    pinned        TEXT,
    state_hash    TEXT,
    label         TEXT,
    expires_at    TEXT,
    failure       TEXT,
    operation     TEXT NOT NULL REFERENCES operations (id),
    created_at    TEXT NOT NULL,
    live_at       TEXT,
    UNIQUE (app, environment, sequence),
    FOREIGN KEY (app, environment) REFERENCES environments (app, name)
) STRICT;
CREATE INDEX deployments_by_status ON deployments (status, desired_state);

CREATE TABLE instances (
    id                TEXT PRIMARY KEY,
    app               TEXT NOT NULL,
    environment       TEXT NOT NULL,
    deployment        TEXT NOT NULL REFERENCES deployments (id),
    operation         TEXT NOT NULL,
    phase             TEXT NOT NULL CHECK (phase IN ('starting', 'running', 'draining', 'stopped')),
    handle            TEXT,
    address           TEXT,
    started_at        TEXT,
    stop_signalled_at TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX instances_of_deployment ON instances (deployment);

CREATE TABLE routes (
    host        TEXT NOT NULL,
    path        TEXT NOT NULL,
    strip       INTEGER NOT NULL CHECK (strip IN (0, 1)),
    sticky      TEXT NOT NULL CHECK (sticky IN ('live', 'environment', 'branch', 'deployment', 'commit', 'ephemeral')),
    app         TEXT NOT NULL,
    environment TEXT NOT NULL,
    deployment  TEXT REFERENCES deployments (id),
    PRIMARY KEY (host, path), -- one owner for each
    FOREIGN KEY (app, environment) REFERENCES environments (app, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX routes_of_environment ON routes (app, environment, sticky);

CREATE TABLE timers (
    deployment TEXT PRIMARY KEY REFERENCES deployments (id),
    nonce      TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('running', 'standby', 'archived')),
    due        TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    hash       BLOB NOT NULL,
    scopes     TEXT NOT NULL,
    created_at TEXT NOT NULL,
    expires_at TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    at        TEXT NOT NULL,
    actor     TEXT NOT NULL,
    action    TEXT NOT NULL,
    target    TEXT NOT NULL,
    status    INTEGER NOT NULL,
    operation TEXT
) STRICT;
";

/// The words of `kind` are no longer checked here: each new one would take a copy of the table.
const SCALE: &str = "
CREATE TABLE new_operations (
    ordinal          INTEGER PRIMARY KEY, -- order of acceptance
    id               TEXT NOT NULL UNIQUE,
    kind             TEXT NOT NULL,
    app              TEXT NOT NULL,
    environment      TEXT NOT NULL,
    deployment       TEXT REFERENCES deployments (id) DEFERRABLE INITIALLY DEFERRED,
    request          TEXT NOT NULL,
    actor            TEXT NOT NULL,
    state            TEXT NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'running', 'succeeded',
                         'succeeded-with-warnings', 'rolled-back', 'failed', 'superseded', 'cancelled')),
    cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    idempotency_key  TEXT UNIQUE,
    fingerprint      TEXT,
    created_at       TEXT NOT NULL,
    started_at       TEXT,
    ended_at         TEXT,
    cutover          TEXT,
    failure          TEXT,
    receipt          TEXT,
    CHECK ((idempotency_key IS NULL) = (fingerprint IS NULL)),
    CHECK ((state IN ('queued', 'running')) = (ended_at IS NULL))
) STRICT;
INSERT INTO new_operations SELECT * FROM operations;
DROP TABLE operations;
ALTER TABLE new_operations RENAME TO operations;
CREATE INDEX operations_unfinished ON operations (ordinal) WHERE ended_at IS NULL;

ALTER TABLE environments ADD COLUMN replicas INTEGER; -- scaled to; NULL: as the app's settings say
ALTER TABLE instances ADD COLUMN spare INTEGER NOT NULL DEFAULT 0 CHECK (spare IN (0, 1));
";

const ACCESS: &str = r#"ALTER TABLE apps ADD COLUMN access TEXT NOT NULL DEFAULT '{"mode":"open"}'"#;

const CALLS: &str = "
CREATE TABLE calls (
    ordinal         INTEGER PRIMARY KEY AUTOINCREMENT,
    idempotency_key TEXT NOT NULL UNIQUE,
    fingerprint     TEXT NOT NULL,
    made            TEXT NOT NULL -- the name or id of what the call made
) STRICT;
";

const SPLIT: &str = "
ALTER TABLE environments ADD COLUMN split TEXT; -- JSON; NULL: all visitors get the live version
";

const REMOVAL: &str = "
ALTER TABLE apps ADD COLUMN removal INTEGER; -- retired, to be removed: 1 with its volumes, 0 without; NULL: neither
";

const FIRST_NAME: &str = "
ALTER TABLE apps ADD COLUMN first_name TEXT; -- by which the runtime knows it; NULL: by its name
";

const HOURS: &str = "
ALTER TABLE apps ADD COLUMN hours_at TEXT; -- the last of its times that was heeded; NULL: it never had any
";

const ANSWERS: &str = "
CREATE TABLE answers (
    ordinal         INTEGER PRIMARY KEY AUTOINCREMENT,
    idempotency_key TEXT NOT NULL UNIQUE,
    fingerprint     TEXT NOT NULL,
    status          INTEGER NOT NULL,
    content_type    TEXT, -- NULL: the answer has no body
    body            BLOB NOT NULL -- sealed: a link to a preview is as good as a password
) STRICT;
";

const ENVIRONMENT_REMOVAL: &str = "
ALTER TABLE environments ADD COLUMN removal INTEGER; -- 1: retired, to be removed; NULL: not
";

/// What went live before it is numbered back from its environment's generation, by the times that are known.
const LIVE_GENERATION: &str = "
ALTER TABLE deployments ADD COLUMN live_generation INTEGER; -- its environment's since it was made live last
UPDATE deployments AS one SET live_generation =
    (SELECT generation FROM environments WHERE app = one.app AND name = one.environment)
    - (SELECT count(*) FROM deployments AS later
       WHERE later.app = one.app AND later.environment = one.environment AND later.live_at > one.live_at)
WHERE live_at IS NOT NULL;
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_migrations_apply_and_end_at_the_version_that_is_named() {
        MIGRATIONS.validate().unwrap();
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(version, VERSION);
    }

    #[test]
    fn what_was_live_before_it_was_numbered_keeps_its_order() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "foreign_keys", "OFF").unwrap();
        MIGRATIONS.to_version(&mut connection, 10).unwrap();
        let rows = r#"
            INSERT INTO environments (app, name, kind, generation) VALUES ('web', 'production', 'production', 7);
            INSERT INTO deployments (id, app, environment, sequence, status, desired_state, settings, env, git,
                operation, created_at, live_at)
            SELECT value ->> 0, 'web', 'production', key, 'ready', 'running', '', x'', '', '', '', value ->> 1
            FROM json_each('[["second", "2026-01-02"], ["third", "2026-01-03"], ["first", "2026-01-01"],
                ["never", null]]')"#;
        connection.execute_batch(rows).unwrap();
        migrate(&mut connection).unwrap();
        let numbered = "SELECT group_concat(id || ' ' || coalesce(live_generation, '-'), ', ' ORDER BY id)
            FROM deployments";
        let numbered: String = connection.query_row(numbered, [], |row| row.get(0)).unwrap();
        assert_eq!(numbered, "first 5, never -, second 6, third 7");
    }
}
