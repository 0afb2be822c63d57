//! The directory of tenants, locked: one command at a time. What begins with a dot in it is ours and no tenant's.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use serde::{Deserialize, Serialize};

use crate::artifact::store::replace;
use crate::cli::files::{self, FileError};
use crate::decision::Tenant;
use crate::supervisor::config::EXTENSION;

/// Held by the command that is at work. Nobody else can open it: a lock on a directory can be taken by whoever may read it.
const LOCK: &str = ".lock";
/// What is under way.
const INTENT: &str = ".unfinished";
/// Largest file that is read, bytes.
const FILE_MAX: usize = 64 << 10;
/// Between two tries to take the lock.
const PAUSE: Duration = Duration::from_millis(20);

/// What is done with a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Operation {
    Add,
    Suspend,
    Resume,
    Remove,
}

impl Operation {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Remove => "remove",
        }
    }
}

/// On the disk before the first step of a change, and gone after the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Intent {
    pub(super) operation: Operation,
    pub(super) tenant: Tenant,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum DirectoryError {
    #[error("{action} {path:?}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("lock {path:?}: another `portcullis tenant` is at work; try again when it is done")]
    Busy { path: PathBuf },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("read {path:?}: {why}; remove it if you know what was under way")]
    Intent { path: PathBuf, why: String },
    #[error("read {path:?}: it is not UTF-8")]
    Text { path: PathBuf },
}

/// Locked as long as it lives.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    _locked: Flock<File>,
}

impl Directory {
    /// Waits for who is at work in it, but not for ever.
    pub(super) fn lock(path: &Path, patience: Duration) -> Result<Self, DirectoryError> {
        let until = Instant::now() + patience;
        let lock = path.join(LOCK);
        let failed = |action, source| DirectoryError::Io { action, path: lock.clone(), source };
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags.bits());
        let mut file = options.open(&lock).map_err(|source| failed("open", source))?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => {
                    let directory = Self { path: path.to_owned(), _locked: locked };
                    directory.tidy()?;
                    return Ok(directory);
                }
                Err((again, Errno::EWOULDBLOCK | Errno::EINTR)) if Instant::now() < until => file = again,
                Err((_, Errno::EWOULDBLOCK)) => return Err(DirectoryError::Busy { path: lock }),
                Err((_, errno)) => return Err(failed("lock", errno.into())),
            }
            std::thread::sleep(PAUSE);
        }
    }

    pub(super) fn file_of(&self, tenant: &Tenant) -> PathBuf {
        file_of(&self.path, tenant)
    }

    /// A tenant's file, if there is one.
    pub(super) fn read(&self, tenant: &Tenant) -> Result<Option<String>, DirectoryError> {
        let path = self.file_of(tenant);
        match files::read_strangers(&path, FILE_MAX) {
            Ok(bytes) => Ok(Some(String::from_utf8(bytes).map_err(|_| DirectoryError::Text { path })?)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whole and on the disk, or as it was.
    pub(super) fn write(&self, tenant: &Tenant, text: &str) -> Result<(), DirectoryError> {
        let path = self.file_of(tenant);
        replace(&path, text.as_bytes(), 0o644).map_err(|source| DirectoryError::Io {
            action: "write",
            path,
            source,
        })
    }

    pub(super) fn begin(&self, intent: &Intent) -> Result<(), DirectoryError> {
        let path = self.path.join(INTENT);
        let written = serde_json::to_vec(intent).map_err(io::Error::other);
        written.and_then(|bytes| replace(&path, &bytes, 0o644)).map_err(|source| DirectoryError::Io {
            action: "write",
            path,
            source,
        })
    }

    /// A power cut may bring it back: what it says is done by then, and is found to be.
    pub(super) fn end(&self) -> Result<(), DirectoryError> {
        let path = self.path.join(INTENT);
        let removed = fs::remove_file(&path)
            .and_then(|()| File::open(&self.path))
            .and_then(|directory| directory.sync_all());
        removed.map_err(|source| DirectoryError::Io { action: "remove", path, source })
    }

    /// Removes what killed commands did not finish writing.
    fn tidy(&self) -> Result<(), DirectoryError> {
        let failed = |source| DirectoryError::Io { action: "list", path: self.path.clone(), source };
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if name.to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(".tmp")) {
                let path = self.path.join(name);
                let failed = |source| DirectoryError::Io { action: "remove", path: path.clone(), source };
                fs::remove_file(&path).map_err(failed)?;
            }
        }
        Ok(())
    }
}

pub(super) fn file_of(directory: &Path, tenant: &Tenant) -> PathBuf {
    directory.join(format!("{tenant}{EXTENSION}"))
}

/// What is under way, or was when its command was killed.
pub(super) fn intent(directory: &Path) -> Result<Option<Intent>, DirectoryError> {
    let path = directory.join(INTENT);
    match files::read_strangers(&path, FILE_MAX) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| DirectoryError::Intent { path, why: error.to_string() }),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error.into()),
    }
}
