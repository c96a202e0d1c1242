//! The files that the configuration is made of: what they said when they were read, and whether they may say something else.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock::Timestamp;

/// Within so long after a change another one may leave the same marks: no file system that is used keeps coarser times.
const COARSEST: Duration = Duration::from_secs(2);

/// The files as they were.
#[derive(Debug)]
pub(super) struct Sources {
    files: Vec<Known>,
    /// When the first of them was read.
    at: Timestamp,
}

/// One file as it was.
#[derive(Debug)]
struct Known {
    path: PathBuf,
    /// `None` if it was not there.
    marks: Option<Marks>,
    /// Its text.
    said: blake3::Hash,
}

/// What changes with a file's text, and with what is put in its place, behind links as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Marks {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Sources {
    pub(super) fn read(files: Vec<PathBuf>, now: Timestamp) -> Self {
        Self { files: files.into_iter().map(Known::read).collect(), at: now }
    }

    /// The same of `files`: what is known of one stays as it is, and the others are read. One of those that was changed since
    /// the first were read may have been loaded as it was before: it says something else than what it is found to say.
    pub(super) fn of(mut self, files: Vec<PathBuf>) -> Self {
        let is_first = self.files.is_empty();
        let known = |path: PathBuf| {
            let at = self.files.iter().position(|known| known.path == path);
            at.map(|at| self.files.swap_remove(at)).unwrap_or_else(|| {
                let mut known = Known::read(path);
                if !is_first && known.marks.is_some_and(|marks| marks.are_too_new(self.at)) {
                    known.said = blake3::hash(b"-");
                }
                known
            })
        };
        Self { files: files.into_iter().map(known).collect(), at: self.at }
    }

    /// Whether both say the same: a change of their times alone is none.
    pub(super) fn says_the_same_as(&self, other: &Self) -> bool {
        let texts = |sources: &Self| -> Vec<_> {
            sources.files.iter().map(|known| (known.path.clone(), known.said)).collect()
        };
        texts(self) == texts(other)
    }

    /// `false` if nothing was done to them: so nobody has to read, nor to look for what they name.
    pub(super) fn may_have_changed(&self) -> bool {
        self.files.iter().any(|Known { path, marks, .. }| {
            Marks::of(path) != *marks || marks.is_some_and(|marks| marks.are_too_new(self.at))
        })
    }
}

impl Known {
    fn read(path: PathBuf) -> Self {
        // The marks first: what changes in between has others than these.
        let marks = Marks::of(&path);
        // Missing and empty are told apart; and one that is too large is refused by the reload.
        let said = match crate::config::read_source(&path) {
            Some(text) => blake3::hash(format!("+{text}").as_bytes()),
            None => blake3::hash(b""),
        };
        Self { path, marks, said }
    }
}

impl Marks {
    /// `None` if it is not there.
    fn of(file: &Path) -> Option<Self> {
        let known = fs::metadata(file).ok()?;
        Some(Self {
            device: known.dev(),
            inode: known.ino(),
            size: known.size(),
            modified: (known.mtime(), known.mtime_nsec()),
            changed: (known.ctime(), known.ctime_nsec()),
        })
    }

    /// A change after that may have left the same.
    fn are_too_new(&self, at: Timestamp) -> bool {
        Timestamp::from_second(self.changed.0).is_ok_and(|changed| changed >= at - COARSEST)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::symlink;
    use std::time::SystemTime;

    use super::*;
    use crate::clock::{Clock, SystemClock};

    #[test]
    fn what_is_done_to_a_file_is_seen_and_what_is_done_beside_it_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("first"), "one").unwrap();
        fs::write(at("second"), "two").unwrap();
        symlink("first", at("link")).unwrap();
        // As if they had been there for long, and not as what is written now looks on any file system.
        let read = || {
            let files = vec![at("link"), at("second"), at("missing")];
            for file in files.iter().filter(|file| file.exists()) {
                File::options().write(true).open(file).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
            }
            Sources::read(files, SystemClock.wall() + Duration::from_secs(60))
        };
        let known = read();
        fs::write(at(".second.swp"), "swap").unwrap();
        fs::write(at("log"), "line").unwrap();
        fs::remove_file(at("log")).unwrap();
        assert!(!known.may_have_changed());
        let turned = || {
            symlink("second", at("new")).unwrap();
            fs::rename(at("new"), at("link")).unwrap();
        };
        let acts: [(&str, &dyn Fn(), bool); 4] = [
            ("as long as before", &|| fs::write(at("second"), "six").unwrap(), true),
            ("a link is turned", &turned, true),
            ("it was missing", &|| fs::write(at("missing"), "").unwrap(), true),
            ("the same once more", &|| fs::write(at("second"), "six").unwrap(), false),
        ];
        for (what, act, is_another_text) in acts {
            let known = read();
            act();
            assert!(known.may_have_changed(), "{what}");
            assert_eq!(!known.says_the_same_as(&read()), is_another_text, "{what}");
        }
        let known = read();
        fs::remove_file(at("missing")).unwrap();
        assert!(known.may_have_changed() && !known.says_the_same_as(&read()));
    }

    #[test]
    fn what_was_written_just_before_it_was_read_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        // Taken before: the machine may have much else to do between the two.
        let now = SystemClock.wall();
        fs::write(&file, "one").unwrap();
        assert!(Sources::read(vec![file], now).may_have_changed());
    }
}
