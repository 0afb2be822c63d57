//! From a component to something a worker will load: `keygen`, then `build`, then `sign`; `verify` and `inspect` look
//! at the result as a worker would, and as a person would.

mod build;
mod componentize;
mod inspect;
mod keygen;
mod sign;
mod verify;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use zeroize::Zeroizing;

use super::CommandResult;
use crate::artifact::{ARTIFACT_MAX, KeyError, PublicKey, SealError, SealedBytes, SigningKey, store};

/// Longest key file that is read, bytes.
const KEY_MAX: usize = 16 << 10;

/// Each says in its own file what it does.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Keygen(keygen::Keygen),
    Build(build::Build),
    Sign(sign::Sign),
    Verify(verify::Verify),
    Inspect(inspect::Inspect),
    Componentize(componentize::Componentize),
}

impl Command {
    pub(super) fn run(self) -> CommandResult {
        match self {
            Self::Keygen(command) => command.run(),
            Self::Build(command) => command.run(),
            Self::Sign(command) => command.run(),
            Self::Verify(command) => command.run(),
            Self::Inspect(command) => command.run(),
            Self::Componentize(command) => command.run(),
        }
    }
}

/// A file that is in the way of a command.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("open {path:?}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("read {path:?}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("read {path:?}: it is longer than {max} bytes")]
    TooLong { path: PathBuf, max: usize },
    #[error("read {path:?}: {source}")]
    Seal { path: PathBuf, source: SealError },
    #[error("read key {path:?}: {source}")]
    Key { path: PathBuf, source: KeyError },
    #[error("read key {path:?}: it is not text")]
    KeyText { path: PathBuf },
    #[error("write {path:?}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path:?} is not named *.cwasm; say where its statement is with --statement")]
    Name { path: PathBuf },
}

/// Reads a file once, at most `max` bytes of it.
fn read(path: &Path, max: usize) -> Result<Vec<u8>, FileError> {
    let file = File::open(path).map_err(|source| FileError::Open { path: path.into(), source })?;
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(|source| FileError::Read { path: path.into(), source })?;
    if bytes.len() > max { Err(FileError::TooLong { path: path.into(), max }) } else { Ok(bytes) }
}

/// Reads a compiled policy once, into memory that cannot change.
fn read_sealed(path: &Path) -> Result<SealedBytes, FileError> {
    let file = File::open(path).map_err(|source| FileError::Open { path: path.into(), source })?;
    SealedBytes::read(file, ARTIFACT_MAX).map_err(|source| FileError::Seal { path: path.into(), source })
}

fn read_key_text(path: &Path) -> Result<Zeroizing<String>, FileError> {
    let bytes = Zeroizing::new(read(path, KEY_MAX)?);
    let text = std::str::from_utf8(&bytes).map_err(|_| FileError::KeyText { path: path.into() })?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn read_signing_key(path: &Path) -> Result<SigningKey, FileError> {
    SigningKey::from_pem(&read_key_text(path)?).map_err(|source| FileError::Key { path: path.into(), source })
}

fn read_public_keys(paths: &[PathBuf]) -> Result<Vec<PublicKey>, FileError> {
    let read_key = |path: &PathBuf| {
        PublicKey::from_pem(&read_key_text(path)?)
            .map_err(|source| FileError::Key { path: path.into(), source })
    };
    paths.iter().map(read_key).collect()
}

/// Writes a whole file or, on any error, nothing.
fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    store::replace(path, bytes, 0o644).map_err(|source| FileError::Write { path: path.into(), source })
}

/// `x.cwasm` has its statement in `x.statement.json`.
fn statement_beside(cwasm: &Path) -> Result<PathBuf, FileError> {
    if cwasm.extension().is_some_and(|extension| extension == "cwasm") {
        Ok(cwasm.with_extension("statement.json"))
    } else {
        Err(FileError::Name { path: cwasm.into() })
    }
}
