//! Files that commands read and write: once, no more than so many bytes, whole or not at all.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use zeroize::Zeroizing;

use crate::artifact::{KeyError, PublicKey, SigningKey, store};
use crate::bundle::{ConfidentialError, SecretKeys};

/// Longest key file that is read, bytes.
const KEY_MAX: usize = 16 << 10;

/// A file that is in the way of a command.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("open {path:?}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("read {path:?}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("read {path:?}: it is longer than {max} bytes")]
    TooLong { path: PathBuf, max: usize },
    #[error("read key {path:?}: {source}")]
    Key { path: PathBuf, source: KeyError },
    #[error("read key {path:?}: it is not text")]
    KeyText { path: PathBuf },
    #[error("read {path:?}: {source}")]
    Secret { path: PathBuf, source: Box<ConfidentialError> },
    #[error("write {path:?}: {source}")]
    Write { path: PathBuf, source: io::Error },
}

impl FileError {
    /// There is nothing of that name.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads a file once, at most `max` bytes of it.
pub(super) fn read(path: &Path, max: usize) -> Result<Vec<u8>, FileError> {
    let file = File::open(path).map_err(|source| FileError::Open { path: path.into(), source })?;
    read_open(file, path, max)
}

fn read_open(file: File, path: &Path, max: usize) -> Result<Vec<u8>, FileError> {
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(|source| FileError::Read { path: path.into(), source })?;
    if bytes.len() > max { Err(FileError::TooLong { path: path.into(), max }) } else { Ok(bytes) }
}

/// The same of a file in a place that others write to: no link is followed, nothing is waited for.
pub(super) fn read_strangers(path: &Path, max: usize) -> Result<Vec<u8>, FileError> {
    let open = |source| FileError::Open { path: path.into(), source };
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits()).open(path).map_err(open)?;
    if !file.metadata().map_err(open)?.is_file() {
        return Err(open(io::Error::other("it is not a regular file")));
    }
    read_open(file, path, max)
}

fn read_key_text(path: &Path) -> Result<Zeroizing<String>, FileError> {
    let bytes = Zeroizing::new(read(path, KEY_MAX)?);
    let text = std::str::from_utf8(&bytes).map_err(|_| FileError::KeyText { path: path.into() })?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// A file of keys that open what is confidential.
pub(super) fn read_secrets(path: &Path) -> Result<SecretKeys, FileError> {
    SecretKeys::parse(&read_key_text(path)?)
        .map_err(|source| FileError::Secret { path: path.into(), source: source.into() })
}

pub(super) fn read_signing_key(path: &Path) -> Result<SigningKey, FileError> {
    SigningKey::from_pem(&read_key_text(path)?).map_err(|source| FileError::Key { path: path.into(), source })
}

pub(super) fn read_public_key(path: &Path) -> Result<PublicKey, FileError> {
    PublicKey::from_pem(&read_key_text(path)?).map_err(|source| FileError::Key { path: path.into(), source })
}

pub(super) fn read_public_keys(paths: &[PathBuf]) -> Result<Vec<PublicKey>, FileError> {
    paths.iter().map(|path| read_public_key(path)).collect()
}

/// Writes a whole file or, on any error, nothing.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    store::replace(path, bytes, 0o644).map_err(|source| FileError::Write { path: path.into(), source })
}

/// Makes a file that was not there before, whole or not at all.
pub(super) fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let failed = |source| FileError::Write { path: path.into(), source };
    let mut file = File::options().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.map_err(|error| {
        // What is not whole is of no use to anyone.
        let _ = fs::remove_file(path);
        failed(error)
    })
}
