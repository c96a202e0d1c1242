//! The one thread that writes.
//!
//! # Invariants
//! 1. Writes happen one after the other, each in a transaction of its own, and are answered after its commit.
//! 2. A connection on which a write failed for any reason but the store's own rules is not used again: the next
//!    write opens and checks a new one. An fsync that failed is never tried again on the same connection, because
//!    the kernel may have dropped what it could not write.
//!
//! A write whose caller has gone away is done all the same.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::Connection;

use super::open;
use super::transaction::{self, Done};
use crate::clock::Clock;
use crate::fault;
use crate::store::StoreError;

/// Writes that wait for their turn; more make their callers wait.
const QUEUE: usize = 64;

/// A write that takes longer means a disk that somebody should look at.
const SLOW: Duration = Duration::from_secs(1);

/// Told how long each write took, on the thread that writes.
pub(super) type Observer = Box<dyn Fn(Duration) + Send + Sync>;

/// Owns the thread; dropping it waits for the writes that were accepted.
#[derive(Debug)]
pub(super) struct Writer {
    // Dropped first, which ends the thread.
    queue: Queue,
    _thread: Joined,
}

/// The way to the thread.
#[derive(Clone, Debug)]
pub(super) struct Queue(SyncSender<Job>);

/// Joins its thread when dropped.
#[derive(Debug)]
struct Joined(Option<JoinHandle<()>>);

type Job = Box<dyn FnOnce(&mut Desk) + Send>;

/// What the thread works with.
struct Desk {
    database: PathBuf,
    /// `None` after a failure that it may not be used after.
    connection: Option<Connection>,
    clock: Arc<dyn Clock>,
    observer: Arc<OnceLock<Observer>>,
}

impl Writer {
    /// Starts the thread with the connection that it is to own.
    pub(super) fn start(
        database: PathBuf,
        connection: Connection,
        clock: Arc<dyn Clock>,
        observer: Arc<OnceLock<Observer>>,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE);
        let desk = Desk { database, connection: Some(connection), clock, observer };
        let scope = fault::Scope::current();
        let thread = thread::Builder::new().name("store-writer".to_owned()).spawn(move || {
            scope.enter();
            work(desk, &queue);
        })?;
        Ok(Self { queue: Queue(jobs), _thread: Joined(Some(thread)) })
    }

    /// A way to the thread, which ends only after this is dropped.
    pub(super) fn queue(&self) -> Queue {
        self.queue.clone()
    }
}

impl Queue {
    /// Runs `work` in a transaction and answers when it is committed. Blocks the calling thread.
    pub(super) fn write<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Connection) -> Done<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = sync_channel(1);
        let job: Job = Box::new(move |desk| {
            if reply.send(desk.write(action, work)).is_err() {
                tracing::debug!(action, "nobody waited for a write");
            }
        });
        let broke_off = || StoreError::Failed { action, detail: "the writer broke off".to_owned() };
        self.0.send(job).map_err(|_ended| broke_off())?;
        answer.recv().map_err(|_panicked| broke_off())?
    }
}

impl Desk {
    fn write<T>(
        &mut self,
        action: &'static str,
        work: impl FnOnce(&Connection) -> Done<T>,
    ) -> Result<T, StoreError> {
        let failed = |detail: String| StoreError::Failed { action, detail };
        fault::at("store.write").map_err(|injected| failed(injected.to_string()))?;
        let began = self.clock.now();
        // Taken out, so that a panic leaves none behind.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => open::reopen(&self.database).map_err(failed)?,
        };
        let done = transaction::write(&mut connection, work);
        let sound = done.as_ref().err().is_none_or(transaction::Stop::leaves_connection_sound);
        if sound && connection.is_autocommit() {
            self.connection = Some(connection);
        }
        let took = self.clock.now().saturating_duration_since(began);
        if let Some(observer) = self.observer.get() {
            observer(took);
        }
        if took > SLOW {
            tracing::warn!(action, took_ms = took.as_millis(), "the store writes slowly");
        }
        done.map_err(|stop| {
            let error = stop.told(action);
            if !sound {
                tracing::error!(action, %error, "a write failed; the database is opened anew and checked");
            }
            error
        })
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's writer panicked");
        }
    }
}

fn work(mut desk: Desk, jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        // A panic is a broken invariant of one write; it must not take the store from all others.
        if catch_unwind(AssertUnwindSafe(|| job(&mut desk))).is_err() {
            tracing::error!("a write panicked and was rolled back");
        }
    }
}
