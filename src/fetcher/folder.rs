//! The folder that a pull fills: the blobs of an OCI image layout, reached by its descriptor and by nothing else.
//!
//! A blob is `blobs/sha256/<hex>.part` until its whole digest has matched, and then renamed. What an earlier try left is
//! believed no more than what comes over the network: it is hashed again from its first byte.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use sha2::{Digest as _, Sha256};

use super::error::{FetchError, read, write, write_errno};
use crate::artifact::Digest;

/// Read or written at once.
pub(super) const STEP: usize = 64 << 10;

/// The folder, its `blobs` and its `blobs/sha256`.
pub(super) struct Folder {
    root: OwnedFd,
    blobs: OwnedFd,
    sha256: OwnedFd,
}

/// A blob that is not whole.
pub(super) struct Part {
    pub(super) file: File,
    pub(super) hash: Sha256,
    pub(super) have: u64,
}

impl Folder {
    /// Makes what is not there yet.
    pub(super) fn open(root: OwnedFd) -> Result<Self, FetchError> {
        let blobs = directory(&root, "blobs")?;
        let sha256 = directory(&blobs, "sha256")?;
        Ok(Self { root, blobs, sha256 })
    }

    /// Whether a blob is there, whole and with its digest. One that is there and not whole is removed.
    pub(super) fn has(&self, digest: &Digest, size: u64) -> Result<bool, FetchError> {
        let name = hex::encode(digest.as_bytes());
        let Some(mut file) = open_regular(&self.sha256, &name, OFlag::O_RDONLY)? else { return Ok(false) };
        let what = digest.to_string();
        let (have, hash) = rehash(&mut file, size, &what)?;
        if have == size && Digest::from_bytes(hash.finalize().into()) == *digest {
            return Ok(true);
        }
        self.forget(&name)?;
        Ok(false)
    }

    /// The bytes of a blob that [`Self::has`] has found good.
    pub(super) fn bytes(&self, digest: &Digest, max: usize) -> Result<Vec<u8>, FetchError> {
        let what = digest.to_string();
        let name = hex::encode(digest.as_bytes());
        let file = open_regular(&self.sha256, &name, OFlag::O_RDONLY)?
            .ok_or_else(|| read(&what)(io::ErrorKind::NotFound.into()))?;
        let mut bytes = Vec::new();
        file.take(max as u64 + 1).read_to_end(&mut bytes).map_err(read(&what))?;
        if bytes.len() > max || Digest::of(&bytes) != *digest {
            return Err(read(&what)(io::Error::other("it has changed since it was looked at")));
        }
        Ok(bytes)
    }

    /// What an earlier try left of a blob, hashed from byte 0; or nothing, to begin with.
    pub(super) fn part(&self, digest: &Digest, size: u64) -> Result<Part, FetchError> {
        let (name, what) = (part_name(digest), digest.to_string());
        if let Some(mut file) = open_regular(&self.sha256, &name, OFlag::O_RDWR)? {
            let (have, hash) = rehash(&mut file, size, &what)?;
            if have <= size {
                return Ok(Part { file, hash, have });
            }
            self.forget(&name)?;
        }
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&self.sha256, name.as_str(), flags, Mode::from_bits_truncate(0o600));
        let file = file.map_err(write_errno(&what))?.into();
        Ok(Part { file, hash: Sha256::new(), have: 0 })
    }

    /// Gives a blob its name. The whole of it must have had its digest.
    pub(super) fn finish(&self, digest: &Digest, part: Part) -> Result<(), FetchError> {
        let what = digest.to_string();
        part.file.sync_all().map_err(write(&what))?;
        let name = hex::encode(digest.as_bytes());
        renameat(&self.sha256, part_name(digest).as_str(), &self.sha256, name.as_str())
            .map_err(write_errno(&what))
    }

    pub(super) fn discard_part(&self, digest: &Digest) -> Result<(), FetchError> {
        self.forget(&part_name(digest))
    }

    /// A small blob at once.
    pub(super) fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<(), FetchError> {
        self.discard_part(digest)?;
        let mut part = self.part(digest, bytes.len() as u64)?;
        part.file.write_all(bytes).map_err(write(&digest.to_string()))?;
        self.finish(digest, part)
    }

    /// The last step: nothing but these blobs is left, and all of it is on the disk. There is no `index.json`: that is for
    /// the command to write, once it has read all of this again.
    pub(super) fn complete(&self, blobs: &BTreeSet<Digest>) -> Result<(), FetchError> {
        let wanted: BTreeSet<_> =
            blobs.iter().map(|digest| hex::encode(digest.as_bytes()).into_bytes()).collect();
        remove_all_but(&self.sha256, &wanted)?;
        remove_all_but(&self.blobs, &BTreeSet::from([b"sha256".to_vec()]))?;
        remove_all_but(&self.root, &BTreeSet::from([b"blobs".to_vec()]))?;
        [&self.sha256, &self.blobs, &self.root].into_iter().try_for_each(sync)
    }

    fn forget(&self, name: &str) -> Result<(), FetchError> {
        match unlinkat(&self.sha256, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(write_errno(name)(errno)),
        }
    }
}

fn part_name(digest: &Digest) -> String {
    format!("{}.part", hex::encode(digest.as_bytes()))
}

fn directory(parent: &OwnedFd, name: &str) -> Result<OwnedFd, FetchError> {
    match mkdirat(parent, name, Mode::from_bits_truncate(0o700)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(write_errno(name)(errno)),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::empty()).map_err(write_errno(name))
}

/// What is not a regular file is not what an earlier try left, and goes.
fn open_regular(directory: &OwnedFd, name: &str, flags: OFlag) -> Result<Option<File>, FetchError> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    match openat(directory, name, flags, Mode::empty()) {
        Ok(file) => {
            let file = File::from(file);
            let is_file = file.metadata().map_err(read(name))?.is_file();
            if is_file { Ok(Some(file)) } else { remove(directory, OsStr::new(name)).map(|()| None) }
        }
        Err(Errno::ENOENT) => Ok(None),
        Err(Errno::ELOOP | Errno::EISDIR | Errno::ENXIO) => {
            remove(directory, OsStr::new(name)).map(|()| None)
        }
        Err(errno) => Err(read(name)(errno.into())),
    }
}

/// Hashes what is there, and no more than a byte above `size`.
fn rehash(file: &mut File, size: u64, what: &str) -> Result<(u64, Sha256), FetchError> {
    file.seek(SeekFrom::Start(0)).map_err(read(what))?;
    let mut hash = Sha256::new();
    let mut have = 0_u64;
    let mut buffer = vec![0; STEP];
    while have <= size {
        let count = file.read(&mut buffer).map_err(read(what))?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        hash.update(bytes);
        have = have.saturating_add(count as u64);
    }
    Ok((have, hash))
}

fn remove_all_but(directory: &OwnedFd, keep: &BTreeSet<Vec<u8>>) -> Result<(), FetchError> {
    let what = "the folder";
    let mut names = Vec::new();
    let mut listing = Dir::from_fd(directory.try_clone().map_err(read(what))?).map_err(write_errno(what))?;
    for entry in listing.iter() {
        let name = entry.map_err(write_errno(what))?.file_name().to_bytes().to_vec();
        if !matches!(name.as_slice(), b"." | b"..") && !keep.contains(&name) {
            names.push(name);
        }
    }
    names.iter().try_for_each(|name| remove(directory, OsStr::from_bytes(name)))
}

fn remove(directory: &OwnedFd, name: &OsStr) -> Result<(), FetchError> {
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => unlinkat(directory, name, UnlinkatFlags::RemoveDir),
        other => other,
    }
    .map_err(write_errno(&name.to_string_lossy()))
}

fn sync(directory: &OwnedFd) -> Result<(), FetchError> {
    nix::unistd::fsync(directory.as_fd()).map_err(write_errno("the folder"))
}
