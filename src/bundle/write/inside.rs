//! The folders of a layout that is written to, each reached through the one above it and following nothing. Where root writes
//! into somebody else's directory, who may move things around there leads no write elsewhere, and no change of a mode.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::place::{FILE_MODE, FOLDER_MODE};
use crate::bundle::layout::Member;

/// A layout's folders, open.
pub(super) struct Inside {
    top: File,
    blobs: File,
    sha256: File,
}

impl Inside {
    /// Makes an empty layout. The modes are those, whatever the umask is.
    pub(super) fn make(path: &Path) -> io::Result<Self> {
        mkdirat(AT_FDCWD, path, Mode::S_IRWXU)?;
        let top = folder(AT_FDCWD, path)?;
        let below = |parent: &File, name: &str| {
            mkdirat(parent, name, Mode::S_IRWXU)?;
            folder(parent, Path::new(name))
        };
        let blobs = below(&top, "blobs")?;
        let sha256 = below(&blobs, "sha256")?;
        for made in [&top, &blobs, &sha256] {
            made.set_permissions(Permissions::from_mode(FOLDER_MODE))?;
        }
        Ok(Self { top, blobs, sha256 })
    }

    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let top = folder(AT_FDCWD, path)?;
        let blobs = folder(&top, Path::new("blobs"))?;
        let sha256 = folder(&blobs, Path::new("sha256"))?;
        Ok(Self { top, blobs, sha256 })
    }

    /// Writes a file beside its place, brings it to the disk and renames it there.
    pub(super) fn put(&self, member: Member, bytes: &[u8]) -> io::Result<()> {
        let (dir, name) = self.place(member);
        // A leading dot: nobody takes an unfinished file for a finished one.
        let temporary = format!(".{name}.{}.tmp", std::process::id());
        let written = write_new(dir, &temporary, bytes)
            .and_then(|()| Ok(renameat(dir, temporary.as_str(), dir, name.as_str())?));
        if written.is_err() {
            // Best effort: the error that counts is the one being returned.
            let _ = unlinkat(dir, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
            return written;
        }
        dir.sync_all()
    }

    pub(super) fn remove(&self, member: Member) -> io::Result<()> {
        let (dir, name) = self.place(member);
        Ok(unlinkat(dir, name.as_str(), UnlinkatFlags::NoRemoveDir)?)
    }

    /// Brings the names of blobs to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.sha256.sync_all()?;
        self.blobs.sync_all()
    }

    fn place(&self, member: Member) -> (&File, String) {
        match member {
            Member::Layout | Member::Index => (&self.top, member.path()),
            Member::Blob(digest) => (&self.sha256, hex::encode(digest.as_bytes())),
        }
    }
}

fn folder(parent: impl std::os::fd::AsFd, name: &Path) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened: OwnedFd = openat(parent, name, flags, Mode::empty())?;
    Ok(opened.into())
}

fn write_new(dir: &File, name: &str, bytes: &[u8]) -> io::Result<()> {
    // What a killed process of the same id left behind.
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    file.write_all(bytes)?;
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::artifact::{Digest, store};

    #[test]
    fn a_link_that_takes_a_folders_place_leads_no_write_elsewhere() {
        let home = tempfile::tempdir().unwrap();
        let (layout, elsewhere) = (home.path().join("gate"), home.path().join("elsewhere"));
        let inside = Inside::make(&layout).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        let blob = Member::Blob(Digest::of(b"x"));
        let (sha256, moved) = (layout.join("blobs/sha256"), home.path().join("moved"));
        fs::rename(&sha256, &moved).unwrap();
        symlink(&elsewhere, &sha256).unwrap();
        let there = || fs::read_dir(&elsewhere).unwrap().count();
        inside.put(blob, b"x").unwrap();
        assert_eq!((there(), fs::read_dir(&moved).unwrap().count()), (0, 1));
        inside.remove(blob).unwrap();
        assert_eq!(fs::read_dir(&moved).unwrap().count(), 0);
        let error = Inside::open(&layout).err().unwrap();
        assert_eq!(error.raw_os_error(), Some(Errno::ENOTDIR as i32), "{error}");
        // Control: by its path it is written through.
        store::replace(&layout.join(blob.path()), b"x", FILE_MODE).unwrap();
        assert_eq!(there(), 1);
        // Nor is the folder itself a link.
        let link = home.path().join("link");
        symlink(&elsewhere, &link).unwrap();
        assert!(Inside::open(&link).is_err() && Inside::make(&link).is_err());
    }
}
