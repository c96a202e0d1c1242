//! Which program a command means, and a digest of it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{env, path};

use crate::runtime::RuntimeError;

const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Of an executable beyond this only the length counts.
const HASHED: u64 = 256 * 1024 * 1024;
/// The same of a file that an argument names: a script, most often.
const FILE_HASHED: u64 = 16 * 1024 * 1024;

/// A command that can be run.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    /// Where it is to run, if its settings say.
    pub(super) directory: Option<PathBuf>,
    /// Of the path, the bytes and the arguments; behind a `+`, if any of these is a file, of the files.
    pub(super) digest: String,
}

impl Program {
    /// Looks where a shell would: a name in `PATH`, a path with a slash in `directory`.
    pub(super) fn find(command: &[String], directory: Option<&str>) -> Result<Self, RuntimeError> {
        let Some(name) = command.first().filter(|name| !name.is_empty()) else {
            return Err(RuntimeError::Command {
                command: String::new(),
                detail: "the process runtime runs commands, not images: set `command`".to_owned(),
            });
        };
        let cannot = |detail: String| RuntimeError::Command { command: name.clone(), detail };
        let directory = match directory {
            None => None,
            Some(named) => {
                let absolute = path::absolute(named).map_err(|cause| cannot(cause.to_string()))?;
                if !absolute.is_dir() {
                    return Err(cannot(format!("there is no directory {}", absolute.display())));
                }
                Some(absolute)
            }
        };
        let path = if name.contains('/') {
            let base = directory.clone().map_or_else(env::current_dir, Ok);
            let path = base.map_err(|cause| cannot(cause.to_string()))?.join(name);
            is_executable(&path).map_err(cannot)?;
            path
        } else {
            let places = search_path();
            env::split_paths(&places)
                .map(|place| place.join(name))
                .find(|path| is_executable(path).is_ok())
                .ok_or_else(|| cannot(format!("no such program in {places}")))?
        };
        let mut digest = digest(&path, &command[1..]).map_err(|cause| cannot(cause.to_string()))?;
        if let Some(of_files) = digest_of_files(&command[1..], directory.as_deref()) {
            digest = format!("{digest}+{of_files}");
        }
        Ok(Self { path, directory, digest })
    }

    /// Whether `pinned` is of the same program with the same arguments. The files that these name may be an app's data,
    /// which changes as it runs: a deploy after that is a new version, but nothing is kept from running for it.
    pub(super) fn is_pinned_by(&self, pinned: &str) -> bool {
        let program = |digest: &str| digest.split('+').next().map(str::to_owned);
        program(&self.digest) == program(pinned)
    }
}

/// `PATH` as Lockgate has it, for looking up commands and for the apps.
pub(super) fn search_path() -> String {
    env::var("PATH").ok().filter(|path| !path.is_empty()).unwrap_or_else(|| USUAL_PATH.to_owned())
}

fn is_executable(path: &Path) -> Result<(), String> {
    let file = path.metadata().map_err(|cause| format!("{}: {cause}", path.display()))?;
    if !file.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    if file.permissions().mode() & 0o111 == 0 {
        return Err(format!("{} is not executable: chmod +x it", path.display()));
    }
    Ok(())
}

fn digest(program: &Path, arguments: &[String]) -> io::Result<String> {
    let file = File::open(program)?;
    let length = file.metadata()?.len();
    let mut hasher = blake3::Hasher::new();
    // Each part with its length, so that no two commands run into one text.
    for part in
        std::iter::once(program.as_os_str().as_encoded_bytes()).chain(arguments.iter().map(String::as_bytes))
    {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    hasher.update(&length.to_le_bytes()).update_reader(file.take(HASHED))?;
    Ok(format!("blake3:{}", hasher.finalize().to_hex()))
}

/// Of the regular files that arguments name, as the program would find them; `None` where no argument does. A relative
/// one is looked for where the program runs; without a directory of the settings that is an empty one.
fn digest_of_files(arguments: &[String], directory: Option<&Path>) -> Option<String> {
    let base = directory.unwrap_or_else(|| Path::new("/nowhere"));
    let mut hasher = blake3::Hasher::new();
    let mut has_any = false;
    for argument in arguments {
        // What cannot be read is the program's to complain of.
        let Ok(Some((length, bytes))) = regular_file(&base.join(argument)) else { continue };
        has_any |= hasher.update(&length.to_le_bytes()).update_reader(bytes).is_ok();
    }
    has_any.then(|| hasher.finalize().to_hex().to_string())
}

/// Length and contents. Never more than its length is read: those of `/proc` say 0 and may never end.
fn regular_file(path: &Path) -> io::Result<Option<(u64, io::Take<File>)>> {
    // Before it is opened: a pipe would be waited for.
    if !path.metadata()?.is_file() {
        return Ok(None);
    }
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    Ok(Some((length, file.take(length.min(FILE_HASHED)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(command: &[&str], directory: Option<&str>) -> Result<Program, RuntimeError> {
        let command: Vec<String> = command.iter().map(|part| (*part).to_owned()).collect();
        Program::find(&command, directory)
    }

    #[test]
    fn a_name_is_looked_for_in_path_and_a_path_in_the_directory() {
        assert!(find(&["sh"], None).unwrap().path.ends_with("sh"));
        assert_eq!(find(&["./sh"], Some("/bin")).unwrap().path, Path::new("/bin/./sh"));
    }

    #[test]
    fn what_cannot_be_run_is_said_with_its_reason() {
        let cases: [(&[&str], Option<&str>, &str); 5] = [
            (&[], None, "set `command`"),
            (&["no-such-program"], None, "no such program in"),
            (&["/no/such"], None, "/no/such"),
            (&["/etc/passwd"], None, "not executable"),
            (&["sh"], Some("/no/such"), "no directory /no/such"),
        ];
        for (command, directory, reason) in cases {
            let error = find(command, directory).unwrap_err().to_string();
            assert!(error.contains(reason), "{command:?}: {error}");
        }
    }

    #[test]
    fn a_script_that_changed_is_another_version_and_data_that_changed_keeps_nothing_from_running() {
        let place = tempfile::tempdir().unwrap();
        let script = place.path().join("app.sh");
        std::fs::write(&script, "one").unwrap();
        let directory = place.path().to_str();
        let run_in = |directory| find(&["sh", "app.sh", "-v"], directory).unwrap();
        let first = run_in(directory);
        assert_eq!(run_in(directory).digest, first.digest);
        std::fs::write(&script, "two").unwrap();
        let second = run_in(directory);
        assert_ne!(second.digest, first.digest);
        assert!(second.is_pinned_by(&first.digest));
        let named = find(&["sh", script.to_str().unwrap(), "-v"], None).unwrap();
        assert!(named.digest.contains('+') && !named.is_pinned_by(&first.digest), "another argument");
        assert!(!run_in(None).digest.contains('+'), "it runs elsewhere: it would not find the file");
        // Neither is read to an end that does not come.
        let pipe = place.path().join("pipe");
        std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        for endless in [pipe.to_str().unwrap(), "/proc/kmsg", "/dev/zero", directory.unwrap()] {
            find(&["sh", endless], None).unwrap();
        }
    }

    #[test]
    fn the_digest_follows_bytes_and_arguments() {
        let place = tempfile::tempdir().unwrap();
        let program = place.path().join("app");
        std::fs::write(&program, "one").unwrap();
        let digest = |arguments: &[&str]| {
            digest(&program, &arguments.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>()).unwrap()
        };
        let first = digest(&["ab"]);
        assert_eq!(digest(&["ab"]), first);
        assert_ne!(digest(&["a", "b"]), first);
        std::fs::write(&program, "two").unwrap();
        assert_ne!(digest(&["ab"]), first);
    }
}
