//! The tree that things are placed in: the host's, or an image's below `--root`.
//!
//! Every directory on the way down is opened without following links and looked at: who can write one of them, or link
//! it elsewhere, could have root place a program somewhere else, or put something else in its place.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fsync, geteuid, unlinkat};
use sha2::{Digest as _, Sha256};

use super::lock::Lock;
use super::mounts;
use super::root::{check_mode, check_owner, resolve};
use crate::artifact::Digest;

/// Bits that let somebody other than the owner change a thing.
pub(super) const OTHERS_WRITE: u32 = 0o022;
/// One step of a copy, bytes.
const COPIED_AT_ONCE: usize = 256 << 10;

/// What is in the way.
#[derive(Debug, thiserror::Error)]
pub(super) enum TreeError {
    #[error("{action} {path:?}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "use {path:?}: it is a symbolic link, and none is followed; remove it, or put in its place what it leads to"
    )]
    Link { path: PathBuf },
    #[error("use {path:?}: it is {what}, expected {expected}; move it away")]
    Kind { path: PathBuf, what: &'static str, expected: &'static str },
    #[error("use {path:?}: owned by uid {found}, expected {expected}; chown it, or move it away")]
    Owner { path: PathBuf, found: u32, expected: String },
    #[error("use {path:?}: others may write it (mode {mode:04o}); chmod go-w {path:?}")]
    OthersWrite { path: PathBuf, mode: u32 },
    #[error("read {path:?}: longer than {max} bytes")]
    TooLong { path: PathBuf, max: u64 },
    #[error("read {path:?}: not text")]
    NotText { path: PathBuf },
    #[error("use {path:?}: expected an absolute path without \"..\"")]
    Path { path: PathBuf },
    #[error("copy to {path:?}: what is copied was changed meanwhile; try again")]
    Changed { path: PathBuf },
    #[error("remove {path:?}: something is mounted at {point:?}; unmount it")]
    Mounted { path: PathBuf, point: PathBuf },
    #[error("install into {path:?}: another install or uninstall is at work there; wait for it")]
    Busy { path: PathBuf },
}

/// What stands at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    /// A regular file that nobody else can change.
    File {
        digest: Digest,
        mode: u32,
    },
}

/// A root, and whose files are trusted in it.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    at: PathBuf,
    own: Uid,
    _lock: Option<Lock>,
}

impl Tree {
    /// Opens `root` and keeps others of our kind out of it for as long as it lives.
    pub(super) fn open(root: &Path) -> Result<Self, TreeError> {
        let at = resolve(root, &[])?;
        let own = geteuid();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(&at, flags, Mode::empty());
        let root = File::from(root.map_err(|errno| failed("open", &at, errno.into()))?);
        let metadata = root.metadata().map_err(|source| failed("open", &at, source))?;
        check(&at, &metadata)?;
        let lock = Lock::take(&at)?;
        Ok(Self { root: root.into(), at, own, _lock: lock })
    }

    /// Where it is, without links.
    pub(super) fn at(&self) -> &Path {
        &self.at
    }

    /// Whether this is the tree that this process lives in.
    pub(super) fn is_host(&self) -> bool {
        self.at == Path::new("/")
    }

    /// Whether what is placed here will be root's.
    pub(super) fn is_roots(&self) -> bool {
        self.own.is_root()
    }

    /// What stands at `path`, if it is something that we may use or replace.
    pub(super) fn look(&self, path: &Path) -> Result<Found, TreeError> {
        let Some((mut file, metadata)) = self.file(path)? else { return Ok(Found::Nothing) };
        let digest = digest_of(&mut file).map_err(|source| self.failed("read", path, source))?;
        Ok(Found::File { digest, mode: metadata.mode() & 0o7777 })
    }

    /// Whether there is anything at all at `path`, a link that leads nowhere included.
    pub(super) fn is_there(&self, path: &Path) -> Result<bool, TreeError> {
        let (above, name) = parts(path)?;
        let Some(directory) = self.directory(above)? else { return Ok(false) };
        match fs::symlink_metadata(through(&directory, name)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(self.failed("look at", path, source)),
        }
    }

    /// Whether there is a directory at `path`, and every one on the way is one we may use.
    pub(super) fn has_directory(&self, path: &Path) -> Result<bool, TreeError> {
        Ok(self.directory(path)?.is_some())
    }

    /// The text of a file, if it is there.
    pub(super) fn text(&self, path: &Path, max: u64) -> Result<Option<String>, TreeError> {
        let Some((file, _)) = self.file(path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(max + 1).read_to_end(&mut bytes).map_err(|source| self.failed("read", path, source))?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > max {
            return Err(TreeError::TooLong { path: self.shown(path), max });
        }
        String::from_utf8(bytes).map(Some).map_err(|_| TreeError::NotText { path: self.shown(path) })
    }

    /// A regular file, to copy it elsewhere.
    pub(super) fn open_file(&self, path: &Path) -> Result<File, TreeError> {
        match self.file(path)? {
            Some((file, _)) => Ok(file),
            None => Err(self.failed("open", path, io::ErrorKind::NotFound.into())),
        }
    }

    /// Makes one directory, 0755; the one above it is there.
    pub(super) fn make_directory(&self, path: &Path) -> Result<(), TreeError> {
        let (above, name) = parts(path)?;
        let above = self.existing(above)?;
        mkdirat(&above, name, Mode::S_IRWXU)
            .map_err(|errno| self.failed("make directory", path, errno.into()))?;
        let made = File::from(self.existing(path)?);
        // Not the umask's business, and not that of a set-group-ID bit above.
        made.set_permissions(Permissions::from_mode(0o755))
            .map_err(|source| self.failed("make directory", path, source))?;
        self.own_it(&made)
            .and_then(|()| fsync(&above))
            .map_err(|errno| self.failed("make directory", path, errno.into()))
    }

    /// Copies to a temporary name beside `path`, brings it to the disk, renames it there. What was there before is there
    /// until then, and stays if anything fails.
    pub(super) fn place(
        &self,
        path: &Path,
        content: &mut dyn Read,
        digest: &Digest,
        mode: u32,
    ) -> Result<(), TreeError> {
        let (above, name) = parts(path)?;
        let directory = self.existing(above)?;
        let temporary = unfinished_name(name);
        let result = self.write_new(&directory, &temporary, content, digest, mode, path).and_then(|()| {
            renameat(&directory, temporary.as_os_str(), &directory, name)
                .map_err(|errno| self.failed("place", path, errno.into()))
        });
        if result.is_err() {
            // Best effort: the error that counts is the one being returned.
            let _ = unlinkat(&directory, temporary.as_os_str(), UnlinkatFlags::NoRemoveDir);
            return result;
        }
        fsync(&directory).map_err(|errno| self.failed("place", path, errno.into()))
    }

    /// Removes a file or a link, which need not be there.
    pub(super) fn remove_file(&self, path: &Path) -> Result<(), TreeError> {
        let (above, name) = parts(path)?;
        let Some(directory) = self.directory(above)? else { return Ok(()) };
        match unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => fsync(&directory).map_err(|errno| self.failed("remove", path, errno.into())),
            Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.failed("remove", path, errno.into())),
        }
    }

    /// Removes a directory if it is empty; says whether it is gone.
    pub(super) fn remove_empty(&self, path: &Path) -> Result<bool, TreeError> {
        let (above, name) = parts(path)?;
        let Some(directory) = self.directory(above)? else { return Ok(true) };
        match unlinkat(&directory, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(true),
            // EBUSY: something is mounted there. ENOTDIR: it is not what we made.
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::EBUSY | Errno::ENOTDIR) => Ok(false),
            Err(errno) => Err(self.failed("remove directory", path, errno.into())),
        }
    }

    /// Whether it could be removed with all that is in it: the way there has no links, and nothing is mounted in it.
    pub(super) fn check_removable(&self, path: &Path) -> Result<(), TreeError> {
        self.is_there(path)?;
        let (shown, table) = (self.shown(path), "read mounts below");
        match mounts::first_within(&shown).map_err(|source| self.failed(table, path, source))? {
            Some(point) => Err(TreeError::Mounted { path: shown, point }),
            None => Ok(()),
        }
    }

    /// Removes a directory with all that is in it. A link in its place, or in it, is removed and not followed.
    pub(super) fn remove_all(&self, path: &Path) -> Result<(), TreeError> {
        self.check_removable(path)?;
        let (above, name) = parts(path)?;
        let Some(directory) = self.directory(above)? else { return Ok(()) };
        match fs::remove_dir_all(through(&directory, name)) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => self.remove_file(path),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed("remove", path, error)),
            _ => Ok(()),
        }
    }

    fn write_new(
        &self,
        directory: &OwnedFd,
        name: &OsStr,
        content: &mut dyn Read,
        digest: &Digest,
        mode: u32,
        path: &Path,
    ) -> Result<(), TreeError> {
        // What a killed process left behind; nobody else is at work here.
        match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(self.failed("place", path, errno.into())),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let mut file = File::from(file.map_err(|errno| self.failed("place", path, errno.into()))?);
        let written = copy(content, &mut file).map_err(|source| self.failed("place", path, source))?;
        if written != *digest {
            return Err(TreeError::Changed { path: self.shown(path) });
        }
        self.own_it(&file).map_err(|errno| self.failed("place", path, errno.into()))?;
        file.set_permissions(Permissions::from_mode(mode))
            .and_then(|()| file.sync_all())
            .map_err(|source| self.failed("place", path, source))
    }

    /// Root's things are root:root whatever directory they are made in; an ordinary user's stay as they are made.
    fn own_it(&self, file: &File) -> Result<(), Errno> {
        if self.is_roots() { fchown(file, Some(Uid::from_raw(0)), Some(Gid::from_raw(0))) } else { Ok(()) }
    }

    /// A regular file, by its descriptor, and what the kernel says of it.
    fn file(&self, path: &Path) -> Result<Option<(File, Metadata)>, TreeError> {
        let (above, name) = parts(path)?;
        let Some(directory) = self.directory(above)? else { return Ok(None) };
        // O_NONBLOCK: a FIFO must not hold us up.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&directory, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ELOOP) => return Err(TreeError::Link { path: self.shown(path) }),
            Err(errno) => return Err(self.failed("open", path, errno.into())),
        };
        let metadata = file.metadata().map_err(|source| self.failed("open", path, source))?;
        if !metadata.is_file() {
            let what = if metadata.is_dir() { "a directory" } else { "no regular file" };
            return Err(TreeError::Kind { path: self.shown(path), what, expected: "a file" });
        }
        check(&self.shown(path), &metadata)?;
        Ok(Some((file, metadata)))
    }

    /// A path in the tree as it is outside.
    pub(super) fn shown(&self, path: &Path) -> PathBuf {
        self.at.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn failed(&self, action: &'static str, path: &Path, source: io::Error) -> TreeError {
        failed(action, &self.shown(path), source)
    }

    fn existing(&self, path: &Path) -> Result<OwnedFd, TreeError> {
        self.directory(path)?.ok_or_else(|| self.failed("open", path, io::ErrorKind::NotFound.into()))
    }

    /// Goes down to `path`; `None` where something on the way is not there.
    fn directory(&self, path: &Path) -> Result<Option<OwnedFd>, TreeError> {
        let mut here = self.root.try_clone().map_err(|source| failed("open", &self.at, source))?;
        let mut at = PathBuf::from("/");
        for component in path.components() {
            let name = match component {
                Component::RootDir => continue,
                Component::Normal(name) => name,
                _ => return Err(TreeError::Path { path: self.shown(path) }),
            };
            at.push(name);
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let next = match openat(&here, name, flags, Mode::empty()) {
                Ok(next) => File::from(next),
                Err(Errno::ENOENT) => return Ok(None),
                Err(Errno::ELOOP) => return Err(TreeError::Link { path: self.shown(&at) }),
                Err(Errno::ENOTDIR) => {
                    let link =
                        fs::symlink_metadata(through(&here, name)).is_ok_and(|found| found.is_symlink());
                    return Err(match link {
                        true => TreeError::Link { path: self.shown(&at) },
                        false => {
                            TreeError::Kind { path: self.shown(&at), what: "a file", expected: "a directory" }
                        }
                    });
                }
                Err(errno) => return Err(self.failed("open", &at, errno.into())),
            };
            let metadata = next.metadata().map_err(|source| self.failed("open", &at, source))?;
            check(&self.shown(&at), &metadata)?;
            here = next.into();
        }
        Ok(Some(here))
    }
}

/// Where a file of that path is until it is whole.
pub(super) fn unfinished(path: &Path) -> PathBuf {
    path.with_file_name(unfinished_name(path.file_name().unwrap_or_default()))
}

/// The digest of everything that can still be read.
pub(super) fn digest_of(content: &mut dyn Read) -> io::Result<Digest> {
    copy(content, &mut io::sink())
}

fn copy(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; COPIED_AT_ONCE];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => return Ok(Digest::from_bytes(hash.finalize().into())),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let read = buffer.get(..length).unwrap_or_default();
        hash.update(read);
        to.write_all(read)?;
    }
}

/// Root's or our own, and nobody else may write it.
fn check(path: &Path, metadata: &Metadata) -> Result<(), TreeError> {
    check_owner(path, metadata, &[])?;
    check_mode(path, metadata)
}

/// The directory that a path is in, and its name there.
fn parts(path: &Path) -> Result<(&Path, &OsStr), TreeError> {
    let wrong = || TreeError::Path { path: path.into() };
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(wrong());
    }
    path.parent().zip(path.file_name()).ok_or_else(wrong)
}

/// What a file is called until it is whole. The same each time, so that who comes after a killed process finds it.
fn unfinished_name(name: &OsStr) -> OsString {
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(".portcullis-install");
    temporary
}

/// A name in an open directory, for the parts of std that take paths only.
fn through(directory: &OwnedFd, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name)
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> TreeError {
    TreeError::Io { action, path: path.into(), source }
}
