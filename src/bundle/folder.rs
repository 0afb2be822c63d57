//! A bundle as a folder: `oci-layout`, `index.json`, `blobs/sha256/<hex>`.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::file::{self, Ownership, Refusal, Section};
use super::layout::Member;

/// A layout folder that was opened once: whatever happens to its name later, everything below is read through these
/// descriptors.
#[derive(Debug)]
pub(super) struct Folder {
    top: OwnedFd,
    blobs: OwnedFd,
    ownership: Ownership,
}

impl Folder {
    pub(super) fn open(top: OwnedFd, ownership: &Ownership) -> Result<Self, (PathBuf, Refusal)> {
        let step = |dir: &OwnedFd, name: &str, shown: &str| {
            file::open_folder(dir, Path::new(name), ownership).map_err(|why| (shown.into(), why))
        };
        let blobs = step(&top, "blobs", "blobs")?;
        let blobs = step(&blobs, "sha256", "blobs/sha256")?;
        Ok(Self { top, blobs, ownership: ownership.clone() })
    }

    pub(super) fn find(&self, member: Member) -> Result<Section, Refusal> {
        match member {
            Member::Layout | Member::Index => {
                file::open_file(&self.top, Path::new(&member.path()), &self.ownership)
            }
            Member::Blob(digest) => {
                let name = hex::encode(digest.as_bytes());
                file::open_file(&self.blobs, Path::new(&name), &self.ownership)
            }
        }
    }
}
