//! Which submissions this app has received, and how often: what shows a request lost or sent twice.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::SampleError;

/// The submissions by id, in memory or in a file that the instances of an app share.
#[derive(Debug)]
pub(super) struct Record {
    store: Store,
}

#[derive(Debug)]
enum Store {
    Memory(Mutex<BTreeMap<String, u64>>),
    /// Append-only, one id per line: written by every instance, and read whole when somebody asks.
    File {
        path: PathBuf,
        appender: File,
    },
}

/// The answer of `/record`.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    instance: &'a str,
    /// Whether other instances' submissions are in it.
    shared: bool,
    /// How often each id was received.
    ids: BTreeMap<String, u64>,
}

impl Record {
    pub(super) fn open(path: Option<&Path>) -> Result<Self, SampleError> {
        let Some(path) = path else { return Ok(Self { store: Store::Memory(Mutex::default()) }) };
        let appender = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|source| SampleError::RecordFile { path: path.to_owned(), source })?;
        Ok(Self { store: Store::File { path: path.to_owned(), appender } })
    }

    /// Notes that a submission arrived; before it is answered, so that an answer proves a record.
    pub(super) fn add(&self, id: &str) -> std::io::Result<()> {
        match &self.store {
            Store::Memory(ids) => {
                let mut ids = ids.lock().unwrap_or_else(PoisonError::into_inner);
                *ids.entry(id.to_owned()).or_insert(0) += 1;
                Ok(())
            }
            // One write of one short line in append mode: lines of several processes do not mix.
            Store::File { appender, .. } => {
                let mut appender = appender;
                appender.write_all(format!("{id}\n").as_bytes())
            }
        }
    }

    /// The submissions whose id begins with `prefix`.
    pub(super) fn report<'a>(&self, instance: &'a str, prefix: &str) -> std::io::Result<Report<'a>> {
        let wanted = |id: &str| id.starts_with(prefix);
        match &self.store {
            Store::Memory(ids) => {
                let ids = ids.lock().unwrap_or_else(PoisonError::into_inner);
                let ids = ids.iter().filter(|(id, _)| wanted(id)).map(|(id, n)| (id.clone(), *n)).collect();
                Ok(Report { instance, shared: false, ids })
            }
            Store::File { path, .. } => {
                let mut ids = BTreeMap::new();
                for id in std::fs::read_to_string(path)?.lines().filter(|id| wanted(id)) {
                    *ids.entry(id.to_owned()).or_insert(0) += 1;
                }
                Ok(Report { instance, shared: true, ids })
            }
        }
    }
}
