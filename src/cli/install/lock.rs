//! Two of our kind must not be at work in the same tree. What they lock is a file that nobody else can open: a lock on a
//! directory can be taken, and held, by whoever may read it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::geteuid;

use super::root::{check_owner, resolve};
use super::tree::TreeError;

/// On the host, where nothing is left of it after a boot.
const RUN: &str = "/run";
const HOST: &str = "portcullis-install.lock";
/// In the root of an image.
const IMAGE: &str = ".portcullis-install.lock";

/// Held for as long as it lives, and removed then.
#[derive(Debug)]
pub(super) struct Lock {
    _locked: Flock<File>,
    path: PathBuf,
}

impl Lock {
    /// `None` where we cannot write anyway: there is only something to look at.
    pub(super) fn take(root: &Path) -> Result<Option<Self>, TreeError> {
        let host = root == Path::new("/");
        let path = match resolve(Path::new(RUN), &[]) {
            Ok(run) if host => run.join(HOST),
            _ => root.join(IMAGE),
        };
        let failed = |action, source| TreeError::Io { action, path: path.clone(), source };
        loop {
            let file = match open(&path) {
                Ok(file) => file,
                Err(error) if is_hopeless(&error) => return Ok(None),
                Err(error) => return Err(failed("open", error)),
            };
            check_owner(&path, &file.metadata().map_err(|source| failed("look at", source))?, &[])?;
            let locked =
                Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
                    Errno::EWOULDBLOCK => TreeError::Busy { path: root.into() },
                    errno => failed("lock", errno.into()),
                })?;
            // Whoever held it may have removed it between our two calls; then it is nobody's any more.
            if locked.metadata().map_err(|source| failed("look at", source))?.nlink() > 0 {
                return Ok(Some(Self { _locked: locked, path }));
            }
        }
    }
}

impl Drop for Lock {
    /// While it is still locked. One that stays is opened by the next.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags.bits());
    options.open(path)
}

fn is_hopeless(error: &io::Error) -> bool {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => true,
        io::ErrorKind::PermissionDenied => !geteuid().is_root(),
        _ => false,
    }
}
