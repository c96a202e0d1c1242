//! Env vars are encrypted in their column: AES-256-GCM under a key that lies in a file of its own.
//!
//! A sealed value is one byte of format, the nonce, then ciphertext and tag. Table and row are authenticated with
//! it, so a value that was copied to another row does not open there.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};

use super::transaction::{Done, Stop};
use crate::settings::{AppSettings, Secret};
use crate::store::Env;

const FORMAT: u8 = 1;
const KEY_LEN: usize = 32;

/// The key of this installation.
pub(super) struct Key {
    seal: RandomizedNonceKey,
    links: [u8; KEY_LEN],
}

/// Where a sealed value belongs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) table: &'static str,
    pub(super) row: &'a str,
}

/// The value was not sealed by this key for this place, or was changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct NotOurs;

impl Key {
    /// Reads the key from `path`; `None` if there is no such file.
    ///
    /// # Errors
    /// The file cannot be read or holds no key.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, String> {
        match fs::read(path) {
            Ok(bytes) => Self::from_bytes(&bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("cannot read the key {}: {error}", path.display())),
        }
    }

    /// Makes a key and the file `path`, which is complete or not there.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn create(path: &Path) -> Result<Self, String> {
        let told = |error: io::Error| format!("cannot write the key {}: {error}", path.display());
        let mut bytes = [0; KEY_LEN];
        getrandom::fill(&mut bytes).map_err(|error| format!("cannot make a key: {error}"))?;
        let unfinished = path.with_extension("key.new");
        write_private(&unfinished, &bytes).and_then(|()| fs::rename(&unfinished, path)).map_err(told)?;
        Self::from_bytes(&bytes)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let links = blake3::derive_key("lockgate 2026-11 links to previews", bytes);
        RandomizedNonceKey::new(&AES_256_GCM, bytes)
            .map(|seal| Self { seal, links })
            .map_err(|_unspecified| format!("the key has {} bytes instead of {KEY_LEN}", bytes.len()))
    }

    /// Made of the key, and tells nothing of it.
    pub(super) fn of_links(&self) -> [u8; KEY_LEN] {
        self.links
    }

    /// Encrypts `plain` for `place`.
    pub(super) fn seal(&self, place: Place<'_>, plain: &[u8]) -> Done<Vec<u8>> {
        let mut text = plain.to_vec();
        let nonce = self
            .seal
            .seal_in_place_append_tag(Aad::from(place.name()), &mut text)
            .map_err(|_unspecified| Stop::Unusable(format!("cannot encrypt for {}", place.name())))?;
        let mut sealed = vec![FORMAT];
        sealed.extend_from_slice(nonce.as_ref());
        sealed.append(&mut text);
        Ok(sealed)
    }

    /// Decrypts what [`Key::seal`] made for the same place.
    pub(super) fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<Vec<u8>, NotOurs> {
        let (&FORMAT, rest) = sealed.split_first().ok_or(NotOurs)? else { return Err(NotOurs) };
        let (nonce, text) = rest.split_at_checked(NONCE_LEN).ok_or(NotOurs)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_unspecified| NotOurs)?;
        let mut text = text.to_vec();
        let plain = self
            .seal
            .open_in_place(nonce, Aad::from(place.name()), &mut text)
            .map_err(|_unspecified| NotOurs)?;
        Ok(plain.to_vec())
    }

    /// Encrypts what is secret of the settings.
    pub(super) fn seal_secrets(&self, place: Place<'_>, settings: &AppSettings) -> Done<Vec<u8>> {
        let secrets = settings.secrets();
        let exposed: BTreeMap<&str, &str> =
            secrets.iter().map(|(name, secret)| (&**name, secret.expose())).collect();
        let plain = serde_json::to_vec(&exposed).map_err(|error| Stop::Unusable(error.to_string()))?;
        self.seal(place, &plain)
    }

    /// Decrypts what is secret of the settings, and puts it there.
    pub(super) fn open_secrets(
        &self,
        place: Place<'_>,
        sealed: &[u8],
        settings: &mut AppSettings,
    ) -> Done<()> {
        settings.set_secrets(self.open_map(place, sealed)?);
        Ok(())
    }

    fn open_map(&self, place: Place<'_>, sealed: &[u8]) -> Done<Env> {
        let plain = self.open(place, sealed).map_err(|NotOurs| {
            Stop::Unusable(format!(
                "the env vars of {} do not open with the key of this data directory: restore the secret.key that \
                 belongs to it, or set them again",
                place.name()
            ))
        })?;
        let env: BTreeMap<String, Secret> = serde_json::from_slice(&plain)
            // The cause quotes what it could not read, which is secret.
            .map_err(|_quotes| {
                Stop::Unusable(format!("the env vars of {} are not readable", place.name()))
            })?;
        Ok(env)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[key]")
    }
}

impl Place<'_> {
    /// Tables have fixed names without a slash, so no two places share a name.
    fn name(self) -> String {
        format!("{}/{}", self.table, self.row)
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    // The name lasts only when its directory is written too; the rename that follows is synced with the database's.
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> Key {
        Key::from_bytes(&[byte; KEY_LEN]).unwrap()
    }

    const WEB: Place<'_> = Place { table: "apps", row: "web" };

    #[test]
    fn a_sealed_value_opens_only_with_its_key_in_its_place_and_unchanged() {
        let sealed = key(1).seal(WEB, b"canary").ok().unwrap();
        assert_eq!(key(1).open(WEB, &sealed).unwrap(), b"canary");
        assert!(!sealed.windows(6).any(|part| part == b"canary"));
        assert!(key(2).open(WEB, &sealed).is_err());
        assert!(key(1).open(Place { row: "api", ..WEB }, &sealed).is_err());
        assert!(key(1).open(Place { table: "deployments", ..WEB }, &sealed).is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key(1).open(WEB, &changed).is_err(), "byte {at}");
            assert!(key(1).open(WEB, &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn the_same_value_never_looks_the_same() {
        assert_ne!(key(1).seal(WEB, b"canary").ok(), key(1).seal(WEB, b"canary").ok());
    }
}
