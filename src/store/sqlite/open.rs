//! Opens a data directory: ours alone, sound, of a known schema, with its key — or not at all.
//!
//! A new database is built under another name and renamed when it is whole. So a `lockgate.db` that is empty was
//! damaged, and nothing here ever takes it for a new one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::column::{At, Text};
use super::lock::DirLock;
use super::schema;
use super::secrets::{Key, Place};
use crate::clock::Clock;
use crate::ids::LockgateId;
use crate::store::StoreError;

/// How long a statement waits for another program that has the database open, such as a `sqlite3` shell.
const BUSY: Duration = Duration::from_secs(5);

/// Of the smallest page. SQLite takes a file without a whole page for a new database, and would start empty.
const PAGE: u64 = 512;

const KEY_CHECK: Place<'static> = Place { table: "installation", row: "key_check" };

/// A data directory that is ours until `lock` is dropped.
pub(super) struct Opened {
    pub(super) id: LockgateId,
    pub(super) database: PathBuf,
    pub(super) connection: Connection,
    pub(super) key: Key,
    pub(super) lock: DirLock,
}

/// Opens `data_dir`, and makes it and a new database where there is none.
pub(super) fn open(data_dir: &Path, clock: &dyn Clock) -> Result<Opened, StoreError> {
    let refused = |detail| StoreError::Open { path: data_dir.display().to_string(), detail };
    make_directory(data_dir).map_err(|error| refused(format!("cannot create the directory: {error}")))?;
    let lock = DirLock::take(&data_dir.join("lockgate.lock")).map_err(refused)?;
    let database = data_dir.join("lockgate.db");
    let key_file = data_dir.join("secret.key");
    if !exists(&database).map_err(refused)? {
        refuse_orphaned_log(&database).map_err(refused)?;
        let key =
            Key::read(&key_file).transpose().unwrap_or_else(|| Key::create(&key_file)).map_err(refused)?;
        create(&database, &key, clock).map_err(refused)?;
    }
    let mut connection = writable(&database).map_err(|error| refused(unreadable(&error.to_string())))?;
    // Until it is known to be ours and sound, closing it must not move its log into it.
    no_checkpoint_on_close(&connection, true).map_err(refused)?;
    inspect(&connection, &database).map_err(refused)?;
    configure(&connection).map_err(refused)?;
    schema::migrate(&mut connection)
        .map_err(|error| refused(format!("cannot bring the schema up to date: {error}")))?;
    let key = Key::read(&key_file).map_err(refused)?.ok_or_else(|| {
        refused(
            "secret.key is missing, and the env vars in lockgate.db are encrypted with it: put it back from a backup"
                .to_owned(),
        )
    })?;
    let id = identify(&connection, &key).map_err(refused)?;
    no_checkpoint_on_close(&connection, false).map_err(refused)?;
    Ok(Opened { id, database, connection, key, lock })
}

/// The writer's connection again, after the last one could not be trusted any more.
pub(super) fn reopen(database: &Path) -> Result<Connection, String> {
    let connection = writable(database).map_err(|error| error.to_string())?;
    inspect(&connection, database)?;
    configure(&connection)?;
    Ok(connection)
}

/// A connection that cannot write.
pub(super) fn read_only(database: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags)?;
    connection.busy_timeout(BUSY)?;
    Ok(connection)
}

/// Never creates the file.
fn writable(database: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags)?;
    connection.busy_timeout(BUSY)?;
    Ok(connection)
}

fn make_directory(data_dir: &Path) -> io::Result<()> {
    if data_dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = data_dir.parent() {
        fs::create_dir_all(parent)?;
    }
    DirBuilder::new().mode(0o700).create(data_dir)
}

fn exists(database: &Path) -> Result<bool, String> {
    match fs::metadata(database) {
        Ok(file) if file.len() < PAGE => Err(damaged("lockgate.db is cut short")),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("cannot look at lockgate.db: {error}")),
    }
}

/// A log without its database means that somebody took the database away.
fn refuse_orphaned_log(database: &Path) -> Result<(), String> {
    let log = beside(database, "-wal");
    if fs::symlink_metadata(log).is_ok() {
        return Err(damaged("lockgate.db is missing, but its log lockgate.db-wal is there"));
    }
    Ok(())
}

fn create(database: &Path, key: &Key, clock: &dyn Clock) -> Result<(), String> {
    let unfinished = beside(database, ".new");
    for leftover in [unfinished.clone(), beside(&unfinished, "-journal")] {
        remove_if_any(&leftover).map_err(|error| format!("cannot remove {}: {error}", leftover.display()))?;
    }
    let told = |error: io::Error| format!("cannot create lockgate.db: {error}");
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished).map_err(told)?;
    fill(&unfinished, key, clock).map_err(|detail| format!("cannot create lockgate.db: {detail}"))?;
    file.sync_all().map_err(told)?;
    fs::rename(&unfinished, database).map_err(told)?;
    sync_directory(database).map_err(told)?;
    tracing::info!(database = %database.display(), "created a new store");
    Ok(())
}

/// Without a log of its own, so that one rename moves all of it.
fn fill(database: &Path, key: &Key, clock: &dyn Clock) -> Result<(), String> {
    let sealed = key.seal(KEY_CHECK, b"lockgate").map_err(|_stop| "cannot encrypt".to_owned())?;
    let mut connection = writable(database).map_err(|error| error.to_string())?;
    schema::migrate(&mut connection).map_err(|error| error.to_string())?;
    connection
        .pragma_update(None, "application_id", schema::APPLICATION_ID)
        .and_then(|()| {
            connection.execute(
                "INSERT INTO installation (only_row, lockgate_id, key_check, created_at) VALUES (1, ?1, ?2, ?3)",
                (Text(LockgateId::generate()), sealed, At(clock.wall())),
            )
        })
        .map_err(|error| error.to_string())?;
    connection.close().map_err(|(_connection, error)| error.to_string())
}

/// Refuses a file that is damaged, not ours or too new; changes nothing.
fn inspect(connection: &Connection, database: &Path) -> Result<(), String> {
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let application = number("application_id").map_err(|error| unreadable(&error.to_string()))?;
    if application != i64::from(schema::APPLICATION_ID) {
        return Err(format!("{} is a database of another program; nothing was changed", database.display()));
    }
    let version = number("user_version").map_err(|error| unreadable(&error.to_string()))?;
    if version > schema::VERSION {
        return Err(format!(
            "lockgate.db has schema {version}, and this Lockgate knows {} at most: it was written by a newer one. Run \
             that version, or restore a backup of before the upgrade; nothing was changed",
            schema::VERSION
        ));
    }
    let found: String = connection
        .query_row("PRAGMA quick_check(1)", (), |row| row.get(0))
        .map_err(|error| unreadable(&error.to_string()))?;
    if found == "ok" { Ok(()) } else { Err(unreadable(&found)) }
}

/// Each setting is read back: one that did not take would lose writes in silence.
fn configure(connection: &Connection) -> Result<(), String> {
    let failed = |error: rusqlite::Error| format!("cannot set up the connection: {error}");
    let journal: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)).map_err(failed)?;
    if journal != "wal" {
        return Err(format!(
            "the file system does not support a write-ahead log (journal mode is {journal})"
        ));
    }
    for (pragma, value, meant) in
        [("synchronous", "FULL", 2), ("foreign_keys", "ON", 1), ("trusted_schema", "OFF", 0)]
    {
        connection.pragma_update(None, pragma, value).map_err(failed)?;
        let set: i64 = connection.pragma_query_value(None, pragma, |row| row.get(0)).map_err(failed)?;
        if set != meant {
            return Err(format!("cannot set up the connection: {pragma} is {set} instead of {meant}"));
        }
    }
    Ok(())
}

fn identify(connection: &Connection, key: &Key) -> Result<LockgateId, String> {
    let (Text(id), check) = connection
        .query_row("SELECT lockgate_id, key_check FROM installation", (), |row| {
            Ok((row.get::<_, Text<LockgateId>>(0)?, row.get::<_, Vec<u8>>(1)?))
        })
        .map_err(|error| unreadable(&error.to_string()))?;
    key.open(KEY_CHECK, &check).map_err(|_not_ours| {
        "secret.key is not the key that the env vars in lockgate.db are encrypted with: put the right one back from a \
         backup"
            .to_owned()
    })?;
    Ok(id)
}

fn no_checkpoint_on_close(connection: &Connection, on: bool) -> Result<(), String> {
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, on)
        .map(|_now| ())
        .map_err(|error| error.to_string())
}

fn unreadable(detail: &str) -> String {
    damaged(&format!("lockgate.db is damaged ({detail})"))
}

fn damaged(what: &str) -> String {
    format!(
        "{what}; nothing was changed. Restore a backup, or move lockgate.db, lockgate.db-wal and lockgate.db-shm away \
         to start empty"
    )
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn remove_if_any(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn sync_directory(of: &Path) -> io::Result<()> {
    of.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}
