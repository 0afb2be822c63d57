//! A tar with nothing in it that depends on who wrote it, or when.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use tar::{Builder, EntryType, Header};

use super::place::FILE_MODE;
use crate::bundle::layout::Member;

/// A tar that is being written.
pub(super) struct Tarball(Builder<File>);

pub(super) fn start(path: &Path) -> io::Result<Tarball> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    // Whatever the umask is.
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    Ok(Tarball(Builder::new(file)))
}

/// Into a file that is there already, and empty.
pub(super) fn into(file: File) -> Tarball {
    Tarball(Builder::new(file))
}

impl Tarball {
    pub(super) fn add(&mut self, member: Member, bytes: &[u8]) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_path(member.path())?;
        header.set_entry_type(EntryType::Regular);
        header.set_size(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        header.set_mode(FILE_MODE);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        self.0.append(&header, bytes)
    }

    /// Writes the end mark and brings all of it to the disk.
    pub(super) fn finish(self) -> io::Result<()> {
        self.0.into_inner()?.sync_all()
    }
}
