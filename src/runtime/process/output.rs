//! What an instance writes: a file that it appends to by itself, so that Lockgate's end does not end the app.
//!
//! Nothing stands between app and file that could cut it, so it is cut afterwards: a file past its size is
//! copied aside and emptied in place, which an appending writer does not notice. Lines written in between are
//! lost; an app that writes faster than we look exceeds the size for that long.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::runtime::lines::Lines;

/// Of the file, and of the earlier one beside it.
pub(super) const SIZE: u64 = 10 * 1024 * 1024;
/// How far back the last lines are looked for.
const LOOK_BACK: u64 = 1024 * 1024;

/// Opens it for the app.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Cuts it if it is past `size`.
pub(super) fn cut(path: &Path, size: u64) -> io::Result<()> {
    if fs::metadata(path)?.len() <= size {
        return Ok(());
    }
    let mut kept =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(earlier(path))?;
    io::copy(&mut tail(path, size)?, &mut kept)?;
    OpenOptions::new().write(true).open(path)?.set_len(0)
}

/// The last `count` lines, oldest first.
pub(super) fn last(path: &Path, count: usize) -> io::Result<Vec<String>> {
    let mut lines = Lines::last(count);
    for path in [earlier(path), path.to_owned()] {
        match tail(&path, LOOK_BACK) {
            Ok(mut tail) => {
                let mut bytes = Vec::new();
                tail.read_to_end(&mut bytes)?;
                lines.push(0, &bytes);
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(lines.finish())
}

/// A reader that stays where it is: the last lines, then those that are written.
#[derive(Debug)]
pub(super) struct Follower {
    path: PathBuf,
    /// Up to where it has read.
    at: u64,
    lines: Lines,
}

impl Follower {
    /// Begins with the last `count` lines.
    pub(super) fn open(path: PathBuf, count: usize) -> io::Result<Self> {
        let mut lines = Lines::last(count);
        match tail(&earlier(&path), LOOK_BACK) {
            Ok(mut tail) => {
                let mut bytes = Vec::new();
                tail.read_to_end(&mut bytes)?;
                lines.push(0, &bytes);
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(cause),
        }
        let at = fs::metadata(&path)?.len().saturating_sub(LOOK_BACK);
        Ok(Self { path, at, lines })
    }

    /// The lines that were ended since the last call. A file that was cut in between is read from its start: lines of
    /// the file before it that were not read by then are left out.
    pub(super) fn more(&mut self) -> io::Result<Vec<String>> {
        let mut file = File::open(&self.path)?;
        if file.metadata()?.len() < self.at {
            self.at = 0;
        }
        file.seek(SeekFrom::Start(self.at))?;
        let mut bytes = Vec::new();
        self.at += file.take(LOOK_BACK).read_to_end(&mut bytes)? as u64;
        self.lines.push(0, &bytes);
        Ok(self.lines.take())
    }

    /// What has no end yet.
    pub(super) fn finish(self) -> Vec<String> {
        self.lines.finish()
    }
}

fn tail(path: &Path, length: u64) -> io::Result<io::Take<File>> {
    let mut file = File::open(path)?;
    let end = file.metadata()?.len();
    file.seek(SeekFrom::Start(end.saturating_sub(length)))?;
    Ok(file.take(length))
}

fn earlier(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_follower_reads_each_line_once_and_goes_on_after_a_cut() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("output.log");
        let mut writer = open(&path).unwrap();
        writer.write_all(b"one\ntwo\nthr").unwrap();
        let mut follower = Follower::open(path.clone(), 1).unwrap();
        assert_eq!(follower.more().unwrap(), ["two"]);
        assert!(follower.more().unwrap().is_empty());
        writer.write_all(b"ee\ntwo\ntwo\n").unwrap();
        assert_eq!(follower.more().unwrap(), ["three", "two", "two"]);
        cut(&path, 10).unwrap();
        writer.write_all(b"four\nfive").unwrap();
        assert_eq!(follower.more().unwrap(), ["four"]);
        assert_eq!(follower.finish(), ["five"]);
    }

    #[test]
    fn a_cut_keeps_the_last_lines_and_the_writer_goes_on() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("output.log");
        let mut writer = open(&path).unwrap();
        writer.write_all(b"one\ntwo\nthree\n").unwrap();
        cut(&path, 100).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 14, "a small file stays whole");
        cut(&path, 10).unwrap();
        writer.write_all(b"four\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"four\n");
        assert_eq!(last(&path, 2).unwrap(), ["three", "four"]);
    }
}
