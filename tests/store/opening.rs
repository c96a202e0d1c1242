use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use lockgate::store::Store;

use crate::support::{Scratch, open, web};

fn refusal(dir: &Path) -> String {
    open(dir).unwrap_err().to_string()
}

/// Names and digests of what is kept; not the lock, and not what SQLite makes whenever it opens a database.
fn files(dir: &Path) -> Vec<(String, String)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .filter(|(name, _)| name != "lockgate.lock" && !name.ends_with("-shm"))
        .filter(|(name, bytes)| !(name.ends_with("-wal") && bytes.is_empty()))
        .map(|(name, bytes)| (name, blake3::hash(&bytes).to_string()))
        .collect();
    files.sort();
    files
}

/// A directory in which a store was, and is closed.
async fn closed() -> tempfile::TempDir {
    let scratch = Scratch::with_web().await;
    scratch.live().await;
    let Scratch { store, dir } = scratch;
    drop(store);
    dir
}

#[test]
fn the_directory_and_its_files_are_for_their_owner_alone() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("a/lockgate");
    let store = open(&dir).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    drop(store);
}

#[tokio::test]
async fn what_was_written_is_there_after_a_reopen_and_the_installation_is_the_same() {
    let scratch = Scratch::with_web().await;
    let live = scratch.live().await;
    let id = scratch.store.lockgate_id();
    let (app, routes) = (scratch.store.app(&web()).await.unwrap(), scratch.store.routes().await.unwrap());
    let scratch = scratch.reopen();
    assert_eq!(scratch.store.lockgate_id(), id);
    assert_eq!(scratch.store.app(&web()).await.unwrap(), app);
    assert_eq!(scratch.store.routes().await.unwrap(), routes);
    assert_eq!(routes[0].deployment, Some(live));
}

#[test]
fn a_second_open_is_refused_and_names_the_holder() {
    let scratch = Scratch::new();
    let said = refusal(scratch.dir.path());
    assert!(said.contains(&format!("process {} is using it", std::process::id())), "{said}");
    let scratch = scratch.reopen();
    drop(scratch);
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_nothing_is_changed() {
    let dir = closed().await;
    let raw = rusqlite::Connection::open(dir.path().join("lockgate.db")).unwrap();
    raw.pragma_update(None, "user_version", 4711).unwrap();
    raw.close().unwrap();
    let before = files(dir.path());
    let said = refusal(dir.path());
    assert!(said.contains("schema 4711") && said.contains("newer"), "{said}");
    assert_eq!(files(dir.path()), before);
}

#[tokio::test]
async fn a_damaged_database_is_refused_with_a_remedy_and_nothing_is_changed() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 6] = [
        ("empty", |bytes| bytes.clear()),
        ("cut within the header", |bytes| bytes.truncate(50)),
        ("cut in half", |bytes| bytes.truncate(bytes.len() / 2)),
        ("cut at a page", |bytes| bytes.truncate(bytes.len() - 4096)),
        ("garbage", |bytes| bytes.fill(b'x')),
        ("garbage behind the header", |bytes| bytes[4096..].fill(0xa5)),
    ];
    for (what, damage) in damages {
        let dir = closed().await;
        let database = dir.path().join("lockgate.db");
        let mut bytes = fs::read(&database).unwrap();
        damage(&mut bytes);
        fs::write(&database, bytes).unwrap();
        let before = files(dir.path());
        let said = refusal(dir.path());
        assert!(said.contains("Restore a backup"), "{what}: {said}");
        assert_eq!(files(dir.path()), before, "{what}");
    }
}

#[tokio::test]
async fn a_log_without_its_database_is_no_reason_to_start_empty() {
    let scratch = Scratch::with_web().await;
    let copy = tempfile::tempdir().unwrap();
    fs::copy(scratch.dir.path().join("lockgate.db-wal"), copy.path().join("lockgate.db-wal")).unwrap();
    let said = refusal(copy.path());
    assert!(said.contains("lockgate.db is missing"), "{said}");
}

#[tokio::test]
async fn a_database_of_another_program_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let raw = rusqlite::Connection::open(dir.path().join("lockgate.db")).unwrap();
    raw.execute_batch("CREATE TABLE notes (text)").unwrap();
    raw.close().unwrap();
    let said = refusal(dir.path());
    assert!(said.contains("another program"), "{said}");
}

#[tokio::test]
async fn a_missing_and_a_wrong_key_are_told_apart_and_neither_is_replaced() {
    let dir = closed().await;
    let key = dir.path().join("secret.key");
    let right = fs::read(&key).unwrap();
    fs::write(&key, [7; 32]).unwrap();
    let said = refusal(dir.path());
    assert!(said.contains("secret.key is not the key"), "{said}");
    assert_eq!(fs::read(&key).unwrap(), [7; 32]);
    fs::remove_file(&key).unwrap();
    let said = refusal(dir.path());
    assert!(said.contains("secret.key is missing"), "{said}");
    assert!(!key.exists());
    fs::write(&key, right).unwrap();
    drop(open(dir.path()).unwrap());
}

#[tokio::test]
async fn what_a_crashed_first_start_left_behind_is_no_hindrance() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("lockgate.db.new"), b"half").unwrap();
    fs::write(dir.path().join("lockgate.db.new-journal"), b"half").unwrap();
    fs::write(dir.path().join("secret.key.new"), b"half").unwrap();
    drop(open(dir.path()).unwrap());
}
