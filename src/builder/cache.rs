//! The class's cache: machine code that was compiled on this host, each under its digest, in a directory that nobody else
//! can enter.
//!
//! Nothing in it is believed. An entry is its digest's bytes or it is removed, so whatever a disk, a power failure or somebody
//! with the class's UID did to it costs one more compilation. Several builders of a class may be at it at the same
//! time: entries appear by rename, and what is young may be a neighbour's and is left alone.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;

use crate::artifact::{ARTIFACT_MAX, Digest, SealError, SealedBytes, store::replace};

/// Younger files are left alone by [`Cache::sweep`]: a neighbour may be about to rename them, or to tell of them. Far longer
/// than a builder lives.
const YOUNG: Duration = Duration::from_secs(600);

pub(super) struct Cache {
    path: PathBuf,
    /// Largest entry, bytes.
    largest: u64,
}

/// Why the cache is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum CacheError {
    #[error("open cache {path:?}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("open cache {path:?}: it is not a directory")]
    NotADirectory { path: PathBuf },
    #[error("open cache {path:?}: owned by uid {owner}, expected {expected}; chown it to the class's uid")]
    Owner { path: PathBuf, owner: u32, expected: u32 },
    #[error("open cache {path:?}: mode {mode:04o}, expected 0700; chmod 0700 it")]
    Mode { path: PathBuf, mode: u32 },
    #[error("write {path:?}: {source}; {way_out}")]
    Write { path: PathBuf, source: io::Error, way_out: &'static str },
    #[error("remove {path:?}: {source}")]
    Remove { path: PathBuf, source: io::Error },
    #[error("read {path:?}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("read {path:?}: {source}")]
    Seal { path: PathBuf, source: SealError },
}

/// What became of an entry.
pub(super) enum Recalled {
    Whole(SealedBytes),
    Missing,
    /// It was there and not what it should be, why, and that it is gone now.
    Corrupt(String),
}

impl Cache {
    pub(super) fn new(path: PathBuf, largest: u64) -> Self {
        Self { path, largest: largest.min(ARTIFACT_MAX as u64) }
    }

    /// Refuses a directory that is not ours alone: what lies in it is about to become code in the class's workers.
    pub(super) fn check(&self) -> Result<(), CacheError> {
        let path = || self.path.clone();
        let metadata =
            fs::symlink_metadata(&self.path).map_err(|source| CacheError::Open { path: path(), source })?;
        let (owner, expected, mode) = (metadata.uid(), geteuid().as_raw(), metadata.mode() & 0o7777);
        if !metadata.is_dir() {
            return Err(CacheError::NotADirectory { path: path() });
        }
        if owner != expected {
            return Err(CacheError::Owner { path: path(), owner, expected });
        }
        if mode != 0o700 {
            return Err(CacheError::Mode { path: path(), mode });
        }
        Ok(())
    }

    /// Puts code under its digest. Afterwards it is there and on the disk, or there is an error and nothing new.
    pub(super) fn keep(&self, digest: Digest, code: &[u8]) -> Result<(), CacheError> {
        self.check()?;
        let path = self.entry(digest);
        replace(&path, code, 0o600).map_err(|source| {
            let way_out = match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOSPC | Errno::EDQUOT) => "make room on that file system",
                Some(Errno::EROFS) => "mount it for writing",
                Some(Errno::EFBIG) => "raise builder.output",
                Some(Errno::EISDIR | Errno::ENOTEMPTY | Errno::EEXIST) => "remove what is there",
                _ => "see that the class's uid can write there",
            };
            CacheError::Write { path, source, way_out }
        })
    }

    /// The entry of this digest, if it is whole.
    pub(super) fn recall(&self, digest: Digest) -> Result<Recalled, CacheError> {
        let path = self.entry(digest);
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(&path) {
            Ok(file) => file,
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOENT) => return Ok(Recalled::Missing),
                Some(Errno::ELOOP) => return Ok(remove(&path, "it is a symbolic link")),
                // A socket, or a device without a driver.
                Some(Errno::ENXIO) => return Ok(remove(&path, "it is not a regular file")),
                Some(Errno::EACCES | Errno::EPERM) => return Ok(remove(&path, "it cannot be read")),
                _ => return Err(CacheError::Read { path, source: error }),
            },
        };
        match self.look(&file, digest) {
            Ok(Ok(code)) => Ok(Recalled::Whole(code)),
            Ok(Err(why)) => Ok(remove(&path, &why)),
            Err(SealError::Read(source)) => Err(CacheError::Read { path, source }),
            Err(source) => Err(CacheError::Seal { path, source }),
        }
    }

    /// What is in an open entry, or what is wrong with it; an error is one of reading.
    fn look(&self, file: &File, digest: Digest) -> Result<Result<SealedBytes, String>, SealError> {
        let metadata = file.metadata().map_err(SealError::Read)?;
        if !metadata.is_file() {
            return Ok(Err("it is not a regular file".into()));
        }
        let (owner, expected) = (metadata.uid(), geteuid().as_raw());
        if owner != expected || metadata.mode() & 0o7777 != 0o600 || metadata.nlink() != 1 {
            let (mode, links) = (metadata.mode() & 0o7777, metadata.nlink());
            return Ok(Err(format!(
                "it is of uid {owner}, mode {mode:04o} and has {links} names, expected uid {expected}, mode 0600 and one"
            )));
        }
        if metadata.len() > self.largest {
            let (length, largest) = (metadata.len(), self.largest);
            return Ok(Err(format!(
                "it is {length} bytes long, at most {largest} are kept (builder.output)"
            )));
        }
        let limit = usize::try_from(self.largest).unwrap_or(ARTIFACT_MAX);
        let code = SealedBytes::read(file, limit)?;
        if code.digest() != digest {
            return Ok(Err(format!("its {} bytes have digest {}", code.len(), code.digest())));
        }
        Ok(Ok(code))
    }

    /// Removes all files but these entries and what is young.
    pub(super) fn sweep(&self, wanted: &[Digest]) {
        let keep: BTreeSet<PathBuf> = wanted.iter().map(|digest| self.entry(*digest)).collect();
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) => return tracing::warn!(path = ?self.path, %error, "list cache"),
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if keep.contains(&path) {
                continue;
            }
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if is_young(&metadata) {
                continue;
            }
            if metadata.is_dir() {
                tracing::warn!(?path, "a directory in the cache is nobody's; remove it");
            } else if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(?path, %error, "remove from cache");
            }
        }
    }

    /// Removes all entries but these, however young, and old unfinished files. Afterwards they are gone from the disk, or there
    /// is an error.
    pub(super) fn clear(&self, wanted: &[Digest]) -> Result<(), CacheError> {
        let failed = |path: PathBuf, source| CacheError::Remove { path, source };
        let keep: BTreeSet<PathBuf> = wanted.iter().map(|digest| self.entry(*digest)).collect();
        let entries = fs::read_dir(&self.path).map_err(|source| failed(self.path.clone(), source))?;
        for entry in entries {
            let entry = entry.map_err(|source| failed(self.path.clone(), source))?;
            let path = entry.path();
            // A neighbour may be about to rename it.
            let unfinished = entry.file_name().as_encoded_bytes().starts_with(b".")
                && fs::symlink_metadata(&path).is_ok_and(|metadata| is_young(&metadata));
            if keep.contains(&path) || unfinished {
                continue;
            }
            match fs::remove_file(&path) {
                // No builder made it, so no tenant's code is in it.
                Err(source) if source.kind() == io::ErrorKind::IsADirectory => {
                    tracing::warn!(?path, "a directory in the cache is nobody's; remove it");
                }
                Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(failed(path, source)),
                _ => {}
            }
        }
        let directory = File::open(&self.path).and_then(|directory| directory.sync_all());
        directory.map_err(|source| failed(self.path.clone(), source))
    }

    fn entry(&self, digest: Digest) -> PathBuf {
        self.path.join(format!("{}.cwasm", hex::encode(digest.as_bytes())))
    }
}

/// A time in the future is no reason to keep a file forever.
fn is_young(metadata: &fs::Metadata) -> bool {
    let age = metadata.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
    age.is_some_and(|age| age < YOUNG)
}

fn remove(path: &Path, why: &str) -> Recalled {
    match fs::remove_file(path) {
        Ok(()) => Recalled::Corrupt(format!("{path:?}: {why}; it was removed")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Recalled::Corrupt(format!("{path:?}: {why}; somebody else has removed it"))
        }
        Err(error) => Recalled::Corrupt(format!("{path:?}: {why}; remove it: {error}")),
    }
}
