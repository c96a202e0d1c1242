//! One process for one data directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

/// How often the lock is tried for.
const TRIES: u32 = 25;
const AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Held as long as the store is open; the kernel takes it back from a process that dies.
#[derive(Debug)]
pub(super) struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes the lock in the file `path`.
    ///
    /// # Errors
    /// Says who holds it.
    pub(super) fn take(path: &Path) -> Result<Self, String> {
        let told = |error: io::Error| format!("cannot take the lock {}: {error}", path.display());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(told)?;
        // The last holder may just be ending, or a process that it is starting has its descriptors for a moment.
        for tries_left in (0..TRIES).rev() {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if tries_left > 0 => {
                    std::thread::park_timeout(AGAIN_AFTER)
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(held(&mut file)),
                Err(error) => return Err(told(error.into())),
            }
        }
        write_pid(&mut file).map_err(told)?;
        Ok(Self { _file: file })
    }
}

fn held(file: &mut File) -> String {
    let mut pid = String::new();
    let holder = match file.read_to_string(&mut pid) {
        Ok(_) if !pid.trim().is_empty() => format!("process {}", pid.trim()),
        // The holder has the lock and is about to write its pid, or the file cannot be read: still held.
        Ok(_) | Err(_) => "another process".to_owned(),
    };
    format!("{holder} is using it; stop that one first, or choose another data_dir")
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}
