//! The log's own thread, and the queue before it.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::proxy::plane::StartError;
use crate::proxy::settings::AccessLogSink;

/// Bytes that may wait to be written.
const QUEUE: usize = 8 * 1024 * 1024;

/// Whole lines on their way to the writer.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    batches: Sender<Vec<u8>>,
    /// Bytes that are on their way.
    waiting: Arc<AtomicUsize>,
}

/// Opens the log and starts its writer; `None` if there is to be no log.
///
/// # Errors
/// If the file cannot be opened or the thread not started.
pub(super) fn start(sink: &AccessLogSink) -> Result<Option<(Queue, JoinHandle<()>)>, StartError> {
    let out: Box<dyn Write + Send> = match sink {
        AccessLogSink::Off => return Ok(None),
        AccessLogSink::Stdout => Box::new(io::stdout()),
        AccessLogSink::File(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            Box::new(file.map_err(|source| StartError::AccessLog { path: path.clone(), source })?)
        }
    };
    let (sender, receiver) = channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let queue = Queue { batches: sender, waiting: Arc::clone(&waiting) };
    let writer = std::thread::Builder::new().name("access-log".to_owned());
    let writer = writer.spawn(move || write_all(&receiver, &waiting, out));
    let writer = writer.map_err(|source| StartError::AccessLog { path: "a thread".into(), source })?;
    Ok(Some((queue, writer)))
}

/// Writes what comes until the last worker is gone.
fn write_all(batches: &Receiver<Vec<u8>>, waiting: &AtomicUsize, mut out: Box<dyn Write + Send>) {
    let mut failed = false;
    while let Ok(batch) = batches.recv() {
        let written = out.write_all(&batch).and_then(|()| out.flush());
        waiting.fetch_sub(batch.len(), Ordering::Relaxed);
        if let Err(error) = written
            && !std::mem::replace(&mut failed, true)
        {
            tracing::warn!(%error, "the access log cannot be written; lines are lost");
        }
    }
}

impl Queue {
    /// Has `batch` written; `false` if there is no room for it.
    pub(super) fn push(&self, batch: Vec<u8>) -> bool {
        let length = batch.len();
        if self.waiting.fetch_add(length, Ordering::Relaxed) > QUEUE {
            self.waiting.fetch_sub(length, Ordering::Relaxed);
            return false;
        }
        self.batches.send(batch).is_ok()
    }
}
