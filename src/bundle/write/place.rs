//! Where a bundle goes: what may be there already, what is written beside it, and the one rename that makes it count.

use std::fs::{self, File, FileType};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, RenameFlags, renameat2};

use super::{WriteError, failed};
use crate::bundle::layout::Member;
use crate::bundle::open_path;

/// Bundles hold nothing secret, and readers are other users.
pub(super) const FILE_MODE: u32 = 0o644;
pub(super) const FOLDER_MODE: u32 = 0o755;

/// A path that may be written to. Other writers of that folder are kept out for as long as this lives.
pub(super) struct Place {
    path: PathBuf,
    parent: Flock<File>,
}

/// A folder or a file beside its place. Whatever is not taken is removed.
pub(super) struct Temporary(PathBuf);

impl Place {
    /// Whoever comes while somebody else writes is told so; waiting could be for ever.
    pub(super) fn lock(path: &Path) -> Result<Self, WriteError> {
        let refuse = |source| failed(path, source);
        let whole = match path.file_name() {
            Some(_) => path.to_owned(),
            // "." and the like.
            None => fs::canonicalize(path).map_err(refuse)?,
        };
        let dir = match (whole.parent(), whole.file_name()) {
            (Some(dir), Some(_)) if dir.as_os_str().is_empty() => Path::new("."),
            (Some(dir), Some(_)) => dir,
            _ => return Err(WriteError::Name { path: path.into() }),
        };
        let parent = File::open(dir).map_err(refuse)?;
        match Flock::lock(parent, FlockArg::LockExclusiveNonblock) {
            Ok(parent) => Ok(Self { path: whole, parent }),
            Err((_, Errno::EWOULDBLOCK)) => Err(WriteError::Busy { path: path.into() }),
            Err((_, errno)) => Err(refuse(errno.into())),
        }
    }

    /// What is there may be replaced only if it is a bundle that can be read, with nothing beside it that is somebody's.
    pub(super) fn check_replaceable(&self) -> Result<(), WriteError> {
        let refuse = |why: String| WriteError::NotOurs { path: self.path.clone(), why };
        if kind(&self.path).map_err(|source| failed(&self.path, source))?.is_none() {
            return Ok(());
        }
        let layout = open_path(&self.path).map_err(|error| refuse(error.to_string()))?;
        layout.read().map_err(|error| refuse(error.to_string()))?;
        if layout.is_tar() != self.is_tar() {
            return Err(refuse("a folder is not replaced by a tar, nor a tar by a folder".into()));
        }
        if layout.is_tar() {
            return Ok(());
        }
        match stranger(&self.path).map_err(|source| failed(&self.path, source))? {
            Some(name) => Err(refuse(format!("{name:?} is no part of a bundle"))),
            None => Ok(()),
        }
    }

    pub(super) fn is_tar(&self) -> bool {
        self.path.extension().is_some_and(|extension| extension == "tar")
    }

    pub(super) fn temporary(&self) -> io::Result<Temporary> {
        // A leading dot: no policy's name has one, so nobody takes what is unfinished for a bundle.
        let mut name = std::ffi::OsString::from(".");
        name.push(self.path.file_name().unwrap_or_default());
        name.push(format!(".{}.tmp", std::process::id()));
        let path = self.path.with_file_name(name);
        // What a killed process of the same id left behind.
        remove(&path)?;
        Ok(Temporary(path))
    }

    /// Puts what was written in its place.
    pub(super) fn take(self, temporary: Temporary) -> Result<(), WriteError> {
        let flags = match kind(&self.path).map_err(|source| failed(&self.path, source))? {
            // Two folders change places; what was there before is then removed as the temporary one.
            Some(kind) if kind.is_dir() => RenameFlags::RENAME_EXCHANGE,
            Some(_) => RenameFlags::empty(),
            None => RenameFlags::RENAME_NOREPLACE,
        };
        let cwd = nix::fcntl::AT_FDCWD;
        match renameat2(cwd, temporary.path(), cwd, &self.path, flags) {
            Ok(()) => {}
            Err(errno @ Errno::EINVAL) if flags == RenameFlags::RENAME_EXCHANGE => {
                return Err(WriteError::Exchange { path: self.path.clone(), source: errno.into() });
            }
            Err(errno) => return Err(failed(&self.path, errno.into())),
        }
        self.parent.sync_all().map_err(|source| failed(&self.path, source))
    }
}

impl Temporary {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Best effort: what is left has a name that nobody reads.
        let _ = remove(&self.0);
    }
}

fn kind(path: &Path) -> io::Result<Option<FileType>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata.file_type())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn stranger(folder: &Path) -> io::Result<Option<PathBuf>> {
    for (below, folders) in [("", &["blobs"] as &[&str]), ("blobs", &["sha256"]), ("blobs/sha256", &[])] {
        for entry in fs::read_dir(folder.join(below))? {
            let name = Path::new(below).join(entry?.file_name());
            let known = name.to_str().is_some_and(|text| {
                Member::from_path(text).is_some()
                    || is_unfinished(&name)
                    || folders.iter().any(|folder| name == Path::new(below).join(folder))
            });
            if !known {
                return Ok(Some(name));
            }
        }
    }
    Ok(None)
}

/// What an `attach` that was killed left behind.
fn is_unfinished(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with('.') && name.ends_with(".tmp"))
}

fn remove(path: &Path) -> io::Result<()> {
    match kind(path)? {
        Some(kind) if kind.is_dir() => fs::remove_dir_all(path),
        Some(_) => fs::remove_file(path),
        None => Ok(()),
    }
}
