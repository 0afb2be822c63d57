//! Reads the policy store, which others write: nothing is followed, waited for or believed.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstat};

use crate::artifact::{ARTIFACT_MAX, SIGNED_STATEMENT_MAX, SealError, SealedBytes};
use crate::decision::{PolicyName, Tenant};

/// The directory, opened anew for each read: it may be replaced while the service runs.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("open {path:?}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("open {path:?}: is a symbolic link, expected a file or directory")]
    Link { path: PathBuf },
    #[error("open {path:?}: is not a regular file")]
    NotAFile { path: PathBuf },
    #[error("read {path:?}: longer than {max} bytes")]
    TooLong { path: PathBuf, max: usize },
    #[error("read {path:?}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("read {path:?}: {source}")]
    Seal { path: PathBuf, source: SealError },
}

impl Store {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The `.cwasm`, in sealed memory, and its signed statement. Each is read once.
    pub(super) fn read(
        &self,
        tenant: &Tenant,
        policy: &PolicyName,
    ) -> Result<(SealedBytes, Vec<u8>), StoreError> {
        let root = open_at(None, &self.path, &self.path, OFlag::O_DIRECTORY)?;
        let path = self.path.join(tenant.as_str());
        let dir = open_at(Some(&root), Path::new(tenant.as_str()), &path, OFlag::O_DIRECTORY)?;
        let (signed, _) = read_file(&dir, &path, &format!("{policy}.statement.json"), SIGNED_STATEMENT_MAX)?;
        let name = format!("{policy}.cwasm");
        let file = open_file(&dir, &path, &name)?;
        let cwasm = SealedBytes::read(file, ARTIFACT_MAX)
            .map_err(|source| StoreError::Seal { path: path.join(&name), source })?;
        Ok((cwasm, signed))
    }
}

/// Reads a small file whole; also returns where it is.
pub(super) fn read_file(
    dir: &OwnedFd,
    path: &Path,
    name: &str,
    max: usize,
) -> Result<(Vec<u8>, PathBuf), StoreError> {
    let file = open_file(dir, path, name)?;
    let path = path.join(name);
    let mut bytes = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    match file.take(limit).read_to_end(&mut bytes) {
        Ok(length) if length > max => Err(StoreError::TooLong { path, max }),
        Ok(_) => Ok((bytes, path)),
        Err(source) => Err(StoreError::Read { path, source }),
    }
}

/// Opens a regular file of a directory, without following a link and without waiting for whoever holds a pipe.
pub(super) fn open_file(dir: &OwnedFd, path: &Path, name: &str) -> Result<std::fs::File, StoreError> {
    let path = path.join(name);
    let file = open_at(Some(dir), Path::new(name), &path, OFlag::O_NONBLOCK)?;
    let kind =
        fstat(&file).map_err(|errno| StoreError::Read { path: path.clone(), source: errno.into() })?.st_mode;
    if kind & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
        return Err(StoreError::NotAFile { path });
    }
    Ok(std::fs::File::from(file))
}

fn open_at(dir: Option<&OwnedFd>, name: &Path, path: &Path, flags: OFlag) -> Result<OwnedFd, StoreError> {
    let flags = flags | OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let opened = match dir {
        Some(dir) => openat(dir, name, flags, Mode::empty()),
        None => open(name, flags, Mode::empty()),
    };
    opened.map_err(|errno| match errno {
        Errno::ELOOP => StoreError::Link { path: path.to_owned() },
        // O_DIRECTORY | O_NOFOLLOW on a link.
        Errno::ENOTDIR if flags.contains(OFlag::O_DIRECTORY) => StoreError::Link { path: path.to_owned() },
        _ => StoreError::Open { path: path.to_owned(), source: errno.into() },
    })
}

/// A directory's descriptor, for callers that read it.
pub(super) fn open_directory(path: &Path) -> Result<OwnedFd, StoreError> {
    open_at(None, path, path, OFlag::O_DIRECTORY)
}
