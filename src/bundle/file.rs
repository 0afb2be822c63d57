//! One file or folder of a place that others write to: opened once, below a descriptor, following nothing, waiting for
//! nothing; and looked at only after it is open, since a name may mean something else a moment later.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Component, Path};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;

use super::archive::TarError;
use crate::artifact::{Digest, SealError};

/// Bits of a mode that let others write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Who may own files and folders, and who else may write to them.
#[derive(Debug, Clone)]
pub struct Ownership(Option<Rules>);

#[derive(Debug, Clone)]
struct Rules {
    owners: BTreeSet<u32>,
    writable: u32,
}

/// Why a file is not read. One variant per check.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("is not there")]
    Missing,
    #[error("name {0:?} leads elsewhere; only plain names below the folder are opened")]
    Name(String),
    #[error("is a link or lies behind one; links are not followed, put the file itself there")]
    Link,
    #[error("{0}")]
    Open(#[source] io::Error),
    #[error("is {found}, expected {expected}")]
    Kind { found: &'static str, expected: &'static str },
    #[error("has {links} names (hard links), so others may change it; copy it instead")]
    HardLink { links: u64 },
    #[error("owned by uid {found}, expected {expected}")]
    Owner { found: u32, expected: String },
    #[error("may be written by others (mode {mode:04o}); take that away with chmod go-w")]
    Mode { mode: u32 },
    #[error("is {len} bytes long, at most {max} are read")]
    TooLong { len: u64, max: u64 },
    #[error("is {found} bytes long, expected {expected}")]
    Length { found: u64, expected: u64 },
    #[error("became shorter while it was read")]
    Shrunk,
    #[error("has digest {found}, expected {expected}: it was changed")]
    Digest { found: Digest, expected: Digest },
    #[error("{0}")]
    Read(#[source] io::Error),
    #[error("{0}")]
    Seal(#[source] SealError),
    #[error("{0}")]
    Tar(#[from] TarError),
    #[error("is there twice, as a folder and as a tar; remove one of them")]
    Ambiguous,
}

/// Part of an open file. Reading is by position, so that nobody shares an offset.
#[derive(Debug)]
pub(super) struct Section {
    file: Arc<File>,
    offset: u64,
    len: u64,
    read: u64,
}

/// What a name turned out to be.
pub(super) enum Opened {
    Folder(OwnedFd),
    File(Section),
}

impl Ownership {
    /// The rules of a folder that a deploy user or root writes to: everything below belongs to root, to this process or
    /// to the owner of the folder, and others may write only where they may write to the folder itself.
    ///
    /// # Errors
    /// When the folder cannot be looked at.
    pub fn of(dir: impl AsFd) -> io::Result<Self> {
        let metadata = File::from(dir.as_fd().try_clone_to_owned()?).metadata()?;
        let owners = [0, geteuid().as_raw(), metadata.uid()].into();
        Ok(Self(Some(Rules { owners, writable: metadata.mode() & WRITABLE_BY_OTHERS })))
    }

    /// Nobody but these, and nobody else may write.
    #[must_use]
    pub fn only(owners: &[u32]) -> Self {
        Self(Some(Rules { owners: owners.iter().copied().collect(), writable: 0 }))
    }

    /// For people who look at files of their own choice: no rule.
    #[must_use]
    pub fn anyone() -> Self {
        Self(None)
    }

    fn check(&self, metadata: &Metadata) -> Result<(), Refusal> {
        let Some(rules) = &self.0 else { return Ok(()) };
        if !rules.owners.contains(&metadata.uid()) {
            let expected = rules.owners.iter().map(u32::to_string).collect::<Vec<_>>().join(" or ");
            return Err(Refusal::Owner { found: metadata.uid(), expected });
        }
        if metadata.mode() & WRITABLE_BY_OTHERS & !rules.writable != 0 {
            return Err(Refusal::Mode { mode: metadata.mode() & 0o7777 });
        }
        Ok(())
    }
}

/// Opens a folder or a regular file of one name, whatever it is.
pub(super) fn open(dir: impl AsFd, name: &Path, ownership: &Ownership) -> Result<Opened, Refusal> {
    // Without O_NONBLOCK a FIFO would wait for a writer, and some devices for their line.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = File::from(open_beneath(dir, name, flags)?);
    let metadata = file.metadata().map_err(Refusal::Open)?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        ownership.check(&metadata)?;
        return Ok(Opened::Folder(file.into()));
    }
    if !kind.is_file() {
        return Err(Refusal::Kind { found: kind_of(&metadata), expected: "a regular file" });
    }
    ownership.check(&metadata)?;
    if metadata.nlink() != 1 {
        return Err(Refusal::HardLink { links: metadata.nlink() });
    }
    Ok(Opened::File(Section::of(Arc::new(file), 0, metadata.len())))
}

pub(super) fn open_file(dir: impl AsFd, name: &Path, ownership: &Ownership) -> Result<Section, Refusal> {
    match open(dir, name, ownership)? {
        Opened::File(section) => Ok(section),
        Opened::Folder(_) => Err(Refusal::Kind { found: "a folder", expected: "a regular file" }),
    }
}

pub(super) fn open_folder(dir: impl AsFd, name: &Path, ownership: &Ownership) -> Result<OwnedFd, Refusal> {
    match open(dir, name, ownership)? {
        Opened::Folder(folder) => Ok(folder),
        Opened::File(_) => Err(Refusal::Kind { found: "a regular file", expected: "a folder" }),
    }
}

/// One plain name at a time: beneath is the only place that leads to, and a link is not followed. `openat2` could be told so
/// for a whole path, but its arguments lie in memory, where no filter sees them: the profile that the registry is born under
/// has `openat` alone, so that nothing can make a set-user-ID file.
fn open_beneath(dir: impl AsFd, name: &Path, flags: OFlag) -> Result<OwnedFd, Refusal> {
    let mut parts = name.components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_) | Component::CurDir), None) => {}
        _ => return Err(Refusal::Name(name.display().to_string())),
    }
    loop {
        return match openat(&dir, name, flags | OFlag::O_NOFOLLOW, Mode::empty()) {
            Ok(fd) => Ok(fd),
            Err(Errno::EINTR) => continue,
            Err(Errno::ENOENT) => Err(Refusal::Missing),
            Err(Errno::ELOOP) => Err(Refusal::Link),
            Err(Errno::ENXIO) => Err(Refusal::Kind { found: "a socket", expected: "a regular file" }),
            Err(errno) => Err(Refusal::Open(errno.into())),
        };
    }
}

fn kind_of(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    match () {
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() => "a block device",
        () if kind.is_char_device() => "a character device",
        () => "something else",
    }
}

impl Section {
    pub(super) fn of(file: Arc<File>, offset: u64, len: u64) -> Self {
        Self { file, offset, len, read: 0 }
    }

    /// Bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// All of it, if it is not longer than `max`.
    pub(super) fn into_vec(mut self, max: u64) -> Result<Vec<u8>, Refusal> {
        if self.len > max {
            return Err(Refusal::TooLong { len: self.len, max });
        }
        let len = usize::try_from(self.len).map_err(|_| Refusal::TooLong { len: self.len, max })?;
        let mut bytes = vec![0; len];
        self.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Refusal::Shrunk,
            _ => Refusal::Read(error),
        })?;
        Ok(bytes)
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.len.saturating_sub(self.read);
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(part) = buffer.get_mut(..room) else { return Ok(0) };
        let count = self.file.read_at(part, self.offset.saturating_add(self.read))?;
        self.read = self.read.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }
}
