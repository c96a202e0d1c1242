//! What outlives a restart: the account's key, certificates with theirs, and the ledger. Files that only their owner may
//! read, from their first byte on, each written beside its place, synced, and moved there.
//!
//! Everything here blocks: see [`Vault::run`].

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::warn;

use super::dns::Record;
use super::governor::Ledger;
use crate::certs::Certificate;
use crate::error::chain;
use crate::routing::HostPattern;

/// Of a file in it.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
const LEDGER: &str = "ledger.json";

/// The folder of it all.
#[derive(Clone, Debug)]
pub(super) struct Vault {
    folder: PathBuf,
}

/// What cannot be kept, or read again.
#[derive(Debug, thiserror::Error)]
#[error("{path}")]
pub(super) struct VaultError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl VaultError {
    pub(super) fn of(path: &Path, source: io::Error) -> Self {
        Self { path: path.to_owned(), source }
    }
}

impl Vault {
    /// Opens the folder, and makes it if it is not there; whoever could read what is in it no longer can.
    pub(super) fn open(folder: &Path) -> Result<Self, VaultError> {
        let vault = Self { folder: folder.to_owned() };
        for folder in [folder.to_owned(), vault.accounts(), vault.certificates(), vault.records()] {
            let told = |source| VaultError { path: folder.clone(), source };
            DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(told)?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).map_err(told)?;
        }
        Ok(vault)
    }

    /// Does blocking `work` where it may block.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, VaultError> + Send + 'static,
    ) -> Result<T, VaultError> {
        let vault = self.clone();
        let worked = tokio::task::spawn_blocking(move || work(&vault)).await;
        let ended = |error| VaultError { path: self.folder.clone(), source: io::Error::other(error) };
        worked.map_err(ended)?
    }

    /// The account at `directory`, as it was kept.
    pub(super) fn account(&self, directory: &str) -> Result<Option<String>, VaultError> {
        read(&self.account_file(directory))
    }

    pub(super) fn keep_account(&self, directory: &str, text: &str) -> Result<(), VaultError> {
        write(&self.account_file(directory), text)
    }

    /// Puts an account that cannot be used out of the way, and keeps it: nobody knows its key otherwise.
    pub(super) fn set_aside_account(&self, directory: &str) -> Result<(), VaultError> {
        let path = self.account_file(directory);
        fs::rename(&path, path.with_extension("unreadable")).map_err(|source| VaultError { path, source })
    }

    /// All certificates that can be read and used; the others are told of and left alone.
    pub(super) fn stored(&self) -> Result<Vec<(HostPattern, Arc<Certificate>)>, VaultError> {
        let folder = self.certificates();
        let told = |source| VaultError { path: folder.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder).map_err(told)? {
            let path = entry.map_err(told)?.path();
            let Some(name) = name_of(&path) else { continue };
            let certificate = read(&path).map_err(|error| chain(&error)).and_then(|text| {
                let text = text.unwrap_or_default();
                Certificate::of_pem(&text, &text).map_err(|error| error.to_string())
            });
            match certificate {
                Ok(certificate) => found.push((name, Arc::new(certificate))),
                Err(error) => warn!(path = %path.display(), error, "a stored certificate is not used"),
            }
        }
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(found)
    }

    /// Keeps a certificate and its key in one file, so that no moment has one of each.
    pub(super) fn keep_certificate(
        &self,
        name: &HostPattern,
        chain_pem: &str,
        key_pem: &str,
    ) -> Result<(), VaultError> {
        write(&self.certificate_file(name), &format!("{key_pem}{chain_pem}"))
    }

    pub(super) fn forget_certificate(&self, name: &HostPattern) -> Result<(), VaultError> {
        remove(self.certificate_file(name))
    }

    /// Writes down a DNS record that is about to be set, so that it is taken back after a crash too.
    pub(super) fn note_record(&self, record: &Record) -> Result<(), VaultError> {
        let path = self.record_file(record);
        let text = serde_json::to_string(record)
            .map_err(|error| VaultError { path: path.clone(), source: error.into() })?;
        write(&path, &text)
    }

    pub(super) fn forget_record(&self, record: &Record) -> Result<(), VaultError> {
        remove(self.record_file(record))
    }

    /// The records that were set and not taken back.
    pub(super) fn left_records(&self) -> Result<Vec<Record>, VaultError> {
        let folder = self.records();
        let told = |source| VaultError { path: folder.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder).map_err(told)? {
            let path = entry.map_err(told)?.path();
            // What was not yet moved to its place was not yet set.
            if path.extension().is_some_and(|extension| extension == "json") {
                found.extend(read(&path)?.and_then(|text| serde_json::from_str(&text).ok()));
            }
        }
        Ok(found)
    }

    /// What happened so far. What cannot be understood is told of, and begun anew: it only keeps us from asking too often.
    pub(super) fn ledger(&self) -> Result<Ledger, VaultError> {
        let path = self.folder.join(LEDGER);
        let Some(text) = read(&path)? else { return Ok(Ledger::default()) };
        Ok(serde_json::from_str(&text).unwrap_or_else(|error| {
            warn!(path = %path.display(), error = chain(&error), "the ledger cannot be read; it is begun anew");
            Ledger::default()
        }))
    }

    pub(super) fn keep_ledger(&self, ledger: &Ledger) -> Result<(), VaultError> {
        let path = self.folder.join(LEDGER);
        let text = serde_json::to_string_pretty(ledger)
            .map_err(|error| VaultError { path: path.clone(), source: error.into() })?;
        write(&path, &text)
    }

    fn accounts(&self) -> PathBuf {
        self.folder.join("accounts")
    }

    fn certificates(&self) -> PathBuf {
        self.folder.join("certificates")
    }

    fn records(&self) -> PathBuf {
        self.folder.join("records")
    }

    fn record_file(&self, record: &Record) -> PathBuf {
        let hash = blake3::hash(format!("{}\0{}", record.name, record.value).as_bytes()).to_hex();
        self.records().join(format!("{}.json", &hash[..16]))
    }

    /// Two directories never share an account.
    fn account_file(&self, directory: &str) -> PathBuf {
        let hash = blake3::hash(directory.as_bytes()).to_hex();
        self.accounts().join(format!("{}.json", &hash[..16]))
    }

    fn certificate_file(&self, name: &HostPattern) -> PathBuf {
        let stem = match name {
            HostPattern::Exact(name) => name.to_string(),
            // No name that certificates are asked for has an underscore.
            HostPattern::Wildcard(suffix) => format!("_.{suffix}"),
            HostPattern::Any => "_".to_owned(),
        };
        self.certificates().join(format!("{stem}.pem"))
    }
}

fn name_of(path: &Path) -> Option<HostPattern> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".pem")?;
    match stem.strip_prefix("_.") {
        Some(suffix) => Some(HostPattern::Wildcard(suffix.parse().ok()?)),
        None => Some(HostPattern::Exact(stem.parse().ok()?)),
    }
}

fn read(path: &Path) -> Result<Option<String>, VaultError> {
    let told = |source| VaultError { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(told(error)),
    };
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(told)?;
    Ok(Some(text))
}

/// What is gone already is no error.
fn remove(path: PathBuf) -> Result<(), VaultError> {
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(VaultError { path, source }),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Either the old text is there afterwards or the new one, whenever the machine stops.
fn write(path: &Path, text: &str) -> Result<(), VaultError> {
    let written = || {
        let beside = path.with_extension("new");
        // What a crash left has perhaps other permissions.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    written().map_err(|source| VaultError { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_their_owner_may_read_what_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("acme");
        fs::create_dir(&place).unwrap();
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
        let vault = Vault::open(&place).unwrap();
        let name: HostPattern = "*.a.test".parse().unwrap();
        vault.keep_account("https://one.test/", "{}").unwrap();
        vault.keep_certificate(&name, "chain", "key").unwrap();
        vault.keep_certificate(&name, "chain", "another key").unwrap();
        vault.keep_ledger(&Ledger::default()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for folder in [place.clone(), vault.accounts(), vault.certificates()] {
            assert_eq!(mode(&folder), 0o700, "{}", folder.display());
        }
        let files =
            [vault.account_file("https://one.test/"), vault.certificate_file(&name), place.join(LEDGER)];
        for file in files {
            assert_eq!(mode(&file), 0o600, "{}", file.display());
        }
        assert_eq!(vault.account("https://one.test/").unwrap().as_deref(), Some("{}"));
        assert_eq!(vault.account("https://two.test/").unwrap(), None);
    }

    #[test]
    fn a_record_is_known_until_it_was_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path()).unwrap();
        let record = Record { name: "_acme-challenge.a.test".to_owned(), value: "v".to_owned() };
        vault.note_record(&record).unwrap();
        assert_eq!(
            Vault::open(folder.path()).unwrap().left_records().unwrap(),
            std::slice::from_ref(&record)
        );
        vault.forget_record(&record).unwrap();
        vault.forget_record(&record).unwrap();
        assert_eq!(vault.left_records().unwrap(), []);
    }

    #[test]
    fn what_cannot_be_used_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path()).unwrap();
        vault.keep_certificate(&"a.test".parse().unwrap(), "no certificate", "no key").unwrap();
        assert_eq!(vault.stored().unwrap(), []);
        assert!(vault.certificate_file(&"a.test".parse().unwrap()).exists());
        fs::write(folder.path().join(LEDGER), "{").unwrap();
        assert_eq!(vault.ledger().unwrap(), Ledger::default());
    }
}
