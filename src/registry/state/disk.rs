//! Every change to the registry's directory, one step at a time, so that it is known what there is if power fails after any
//! of them.
//!
//! A file gets its name when all of it is on the disk: written beside its place, brought to the disk, renamed, and the
//! directory brought to the disk. What is left of an attempt has a name that begins with a dot, and is removed.

use std::cell::RefCell;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{geteuid, mkdir};

/// The registry's directory, open.
pub(super) struct Disk {
    root: OwnedFd,
    path: PathBuf,
    after: RefCell<Option<Hook>>,
}

/// Told of each step once it was taken; its error is taken for the disk's.
pub(super) type Hook = Box<dyn FnMut(&Step<'_>) -> io::Result<()>>;

/// One change. Names are relative to the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step<'a> {
    /// There is a new file with these contents, which may still be in memory only.
    Wrote(&'a str),
    /// The contents are on the disk; the name may not be.
    Synced(&'a str),
    Renamed(&'a str, &'a str),
    Removed(&'a str),
    MadeDirectory(&'a str),
    /// Names in this directory ("" for the registry's own) are on the disk.
    SyncedDirectory(&'a str),
}

/// A change that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{verb} {path:?}: {source}")]
pub(crate) struct DiskError {
    pub(super) verb: &'static str,
    pub(super) path: PathBuf,
    #[source]
    pub(super) source: io::Error,
}

/// Why the directory, or a file in it, is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("open {path:?}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("open {path:?}: owned by uid {owner}, expected {expected}; chown it to the registry's uid")]
    Owner { path: PathBuf, owner: u32, expected: u32 },
    #[error("open {path:?}: mode {mode:04o}, expected {expected:04o}; chmod it so")]
    Mode { path: PathBuf, mode: u32, expected: u32 },
    #[error(
        "open {path:?}: is not a regular file of one name (a link, or something else); put the file itself there"
    )]
    NotAFile { path: PathBuf },
    #[error("read {path:?}: is longer than {max} bytes")]
    TooLong { path: PathBuf, max: usize },
    #[error("read {path:?}: {source}")]
    Read { path: PathBuf, source: io::Error },
}

impl PlaceError {
    /// Not there at all.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl Disk {
    /// Refuses a directory that is not this user's alone: what lies in it is believed.
    pub(super) fn open(path: &Path) -> Result<Self, PlaceError> {
        let failed = |source: io::Error| PlaceError::Open { path: path.to_owned(), source };
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let root = open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        let metadata = File::from(root.try_clone().map_err(failed)?).metadata().map_err(failed)?;
        let expected = geteuid().as_raw();
        if metadata.uid() != expected {
            return Err(PlaceError::Owner { path: path.to_owned(), owner: metadata.uid(), expected });
        }
        let mode = metadata.mode() & 0o7777;
        if mode != 0o700 {
            return Err(PlaceError::Mode { path: path.to_owned(), mode, expected: 0o700 });
        }
        Ok(Self { root, path: path.to_owned(), after: RefCell::new(None) })
    }

    /// For tests: see [`Hook`].
    #[cfg(test)]
    pub(super) fn after_each_step(&self, hook: Option<Hook>) {
        *self.after.borrow_mut() = hook;
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.path.clone() } else { self.path.join(name) }
    }

    /// Makes `name` a file with what `write` writes. Afterwards there is the old one or the new one, whatever happens.
    pub(super) fn replace(
        &self,
        name: &str,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<(), DiskError> {
        let temporary = temporary(name);
        let result = self.write_new(&temporary, write).and_then(|()| self.rename(&temporary, name));
        if result.is_err() {
            // The error that counts is the one being returned; what stays is removed at the next start.
            let _ = fs::remove_file(self.path(&temporary));
            return result;
        }
        self.sync_directory(parent(name))
    }

    /// Removes a file, if it is there. It may come back after a power cut.
    pub(super) fn remove(&self, name: &str) -> Result<(), DiskError> {
        match fs::remove_file(self.path(name)) {
            Ok(()) => self.took(Step::Removed(name)).map_err(|source| self.failed("remove", name, source)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.failed("remove", name, error)),
        }
    }

    /// Makes a directory of this user's alone, if it is not there.
    pub(super) fn make_directory(&self, name: &str) -> Result<(), DiskError> {
        match mkdir(&self.path(name), Mode::S_IRWXU) {
            Ok(()) => self
                .took(Step::MadeDirectory(name))
                .map_err(|source| self.failed("make directory", name, source)),
            Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(self.failed("make directory", name, errno.into())),
        }
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        fs::rename(self.path(from), self.path(to))
            .and_then(|()| self.took(Step::Renamed(from, to)))
            .map_err(|source| self.failed("rename to", to, source))
    }

    /// Brings the names in a directory to the disk.
    pub(super) fn sync_directory(&self, name: &str) -> Result<(), DiskError> {
        self.open_directory(name)
            .and_then(|dir| File::from(dir).sync_all())
            .and_then(|()| self.took(Step::SyncedDirectory(name)))
            .map_err(|source| self.failed("bring to the disk", name, source))
    }

    /// The names in a directory ("" for the registry's own), without those of unfinished files. A directory that is not
    /// there has none.
    pub(super) fn names(&self, name: &str) -> Result<Vec<String>, PlaceError> {
        Ok(self.all_names(name)?.into_iter().filter(|name| !name.starts_with('.')).collect())
    }

    /// Removes what attempts that did not end left behind.
    pub(super) fn tidy(&self, name: &str) -> Result<(), DiskError> {
        let listed =
            self.all_names(name).map_err(|error| self.failed("list", name, io::Error::other(error)))?;
        for unfinished in listed.iter().filter(|name| name.starts_with('.')) {
            self.remove(&beneath(name, unfinished))?;
        }
        Ok(())
    }

    /// Opens a regular file of this user's (or root's), following nothing.
    pub(super) fn file(&self, name: &str) -> Result<File, PlaceError> {
        let path = self.path(name);
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = openat(&self.root, name, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::ELOOP => PlaceError::NotAFile { path: path.clone() },
            _ => PlaceError::Open { path: path.clone(), source: errno.into() },
        })?;
        let file = File::from(file);
        let metadata = file.metadata().map_err(|source| PlaceError::Open { path: path.clone(), source })?;
        if !metadata.is_file() || metadata.nlink() != 1 {
            return Err(PlaceError::NotAFile { path });
        }
        let expected = geteuid().as_raw();
        if ![0, expected].contains(&metadata.uid()) {
            return Err(PlaceError::Owner { path, owner: metadata.uid(), expected });
        }
        Ok(file)
    }

    /// All of a file, if it is not longer than `max`.
    pub(super) fn read(&self, name: &str, max: usize) -> Result<Vec<u8>, PlaceError> {
        self.contents(self.file(name)?, name, max)
    }

    /// The same of a file that nobody else may read.
    pub(super) fn read_secret(&self, name: &str, max: usize) -> Result<Vec<u8>, PlaceError> {
        let file = self.file(name)?;
        let path = self.path(name);
        let metadata = file.metadata().map_err(|source| PlaceError::Open { path: path.clone(), source })?;
        let mode = metadata.mode() & 0o7777;
        if mode != 0o600 {
            return Err(PlaceError::Mode { path, mode, expected: 0o600 });
        }
        self.contents(file, name, max)
    }

    fn contents(&self, file: File, name: &str, max: usize) -> Result<Vec<u8>, PlaceError> {
        let mut bytes = Vec::new();
        let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
        match file.take(limit).read_to_end(&mut bytes) {
            Ok(length) if length > max => Err(PlaceError::TooLong { path: self.path(name), max }),
            Ok(_) => Ok(bytes),
            Err(source) => Err(PlaceError::Read { path: self.path(name), source }),
        }
    }

    fn write_new(
        &self,
        name: &str,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<(), DiskError> {
        let written = || {
            match fs::remove_file(self.path(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let flags =
                OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            let mut file = File::from(openat(&self.root, name, flags, mode)?);
            write(&mut file)?;
            self.took(Step::Wrote(name))?;
            file.sync_all()?;
            self.took(Step::Synced(name))
        };
        written().map_err(|source| self.failed("write", name, source))
    }

    fn all_names(&self, name: &str) -> Result<Vec<String>, PlaceError> {
        let path = self.path(name);
        let failed = |source: io::Error| PlaceError::Open { path: path.clone(), source };
        let dir = match self.open_directory(name) {
            Ok(dir) => dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut dir = Dir::from_fd(dir).map_err(|errno| failed(errno.into()))?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(|errno| failed(errno.into()))?;
            // A name that is not text is none of ours.
            if let Ok(name) = entry.file_name().to_str()
                && ![".", ".."].contains(&name)
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn open_directory(&self, name: &str) -> io::Result<OwnedFd> {
        let name = if name.is_empty() { "." } else { name };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(&self.root, name, flags, Mode::empty())?)
    }

    fn took(&self, step: Step<'_>) -> io::Result<()> {
        match self.after.borrow_mut().as_mut() {
            Some(hook) => hook(&step),
            None => Ok(()),
        }
    }

    fn failed(&self, verb: &'static str, name: &str, source: io::Error) -> DiskError {
        DiskError { verb, path: self.path(name), source }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("path", &self.path).finish_non_exhaustive()
    }
}

/// `bundles/.x.tmp` for `bundles/x`: a leading dot is in no name of ours.
fn temporary(name: &str) -> String {
    match name.rsplit_once('/') {
        Some((parent, name)) => format!("{parent}/.{name}.tmp"),
        None => format!(".{name}.tmp"),
    }
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn beneath(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}
