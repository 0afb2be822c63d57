//! An OCI image layout that was opened: a folder or a tar, from here on without a difference.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, open as open_path_of};
use nix::sys::stat::Mode;

use super::Descriptor;
use super::archive::Archive;
use super::file::{self, Opened, Ownership, Refusal, Section};
use super::folder::Folder;
use crate::artifact::{ARTIFACT_MAX, Digest, SealedBytes};
use crate::decision::{PolicyName, Tenant};

/// A layout, open. Nothing of it is checked until it is read, and then once.
#[derive(Debug)]
pub struct Layout {
    path: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Folder(Folder),
    Archive(Archive),
}

/// Which file of which bundle, and why it is not read.
#[derive(Debug, thiserror::Error)]
#[error("{} bundle {bundle:?}: {why}", of_member(.member.as_deref()))]
pub struct LayoutError {
    pub bundle: PathBuf,
    /// None: the folder or the tar itself.
    pub member: Option<String>,
    pub why: Refusal,
}

/// A file of a layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Member {
    Layout,
    Index,
    Blob(Digest),
}

/// Opens `<store>/<tenant>/<policy>/` or `<store>/<tenant>/<policy>.tar`.
///
/// # Errors
/// When neither is there, when both are, or when it is not a folder or a file of the kind that `ownership` allows.
pub fn open_policy(
    store: impl AsFd,
    tenant: &Tenant,
    policy: &PolicyName,
    ownership: &Ownership,
) -> Result<Layout, LayoutError> {
    let folder = Path::new(tenant.as_str()).join(policy.as_str());
    let tar = Path::new(tenant.as_str()).join(format!("{policy}.tar"));
    let parent = parent(&store, &folder, ownership)?;
    let found = |path: &Path| file::open(&parent, Path::new(path.file_name().unwrap_or_default()), ownership);
    let refuse = |why| Err(LayoutError { bundle: folder.clone(), member: None, why });
    // A folder "x.tar" is that of a policy with this name, and none of ours.
    let tar_found = match found(&tar) {
        Err(Refusal::Missing) | Ok(Opened::Folder(_)) => None,
        other => Some(other),
    };
    match (found(&folder), tar_found) {
        (Err(Refusal::Missing), Some(Ok(opened))) => Layout::of(&tar, opened, ownership),
        (Err(Refusal::Missing), Some(Err(why))) => Err(LayoutError { bundle: tar, member: None, why }),
        (_, Some(_)) => refuse(Refusal::Ambiguous),
        (Ok(Opened::File(_)), None) => {
            refuse(Refusal::Kind { found: "a regular file", expected: "a folder, or a file with .tar" })
        }
        (Ok(opened), None) => Layout::of(&folder, opened, ownership),
        (Err(why), None) => refuse(why),
    }
}

/// Opens a layout by a relative path of plain names below a folder. Every folder on the way is held to `ownership` too.
///
/// # Errors
/// When it leads elsewhere, or is not a folder or a file of the kind that `ownership` allows.
pub fn open(dir: impl AsFd, name: &Path, ownership: &Ownership) -> Result<Layout, LayoutError> {
    Layout::at(&parent(dir, name, ownership)?, name, ownership)
}

/// Opens a layout that somebody named on a command line: whose it is does not matter, and links in front of the last name are
/// followed.
///
/// # Errors
/// When it is not a folder or a regular file.
pub fn open_path(path: &Path) -> Result<Layout, LayoutError> {
    let (dir, name) = match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) if dir.as_os_str().is_empty() => (Path::new("."), Path::new(name)),
        (Some(dir), Some(name)) => (dir, Path::new(name)),
        _ => (path, Path::new(".")),
    };
    let refuse = |why| LayoutError { bundle: path.into(), member: None, why };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let dir = open_path_of(dir, flags, Mode::empty()).map_err(|errno| refuse(Refusal::Open(errno.into())))?;
    let ownership = Ownership::anyone();
    let opened = file::open(&dir, name, &ownership).map_err(refuse)?;
    Layout::of(path, opened, &ownership)
}

impl Layout {
    fn at(parent: &OwnedFd, path: &Path, ownership: &Ownership) -> Result<Self, LayoutError> {
        let refuse = |why| LayoutError { bundle: path.into(), member: None, why };
        let name = path.file_name().ok_or_else(|| refuse(Refusal::Name(path.display().to_string())))?;
        let opened = file::open(parent, Path::new(name), ownership).map_err(refuse)?;
        Self::of(path, opened, ownership)
    }

    fn of(path: &Path, opened: Opened, ownership: &Ownership) -> Result<Self, LayoutError> {
        let refuse = |member, why| LayoutError { bundle: path.into(), member, why };
        let place = match opened {
            Opened::Folder(top) => Place::Folder(
                Folder::open(top, ownership)
                    .map_err(|(member, why)| refuse(Some(member.display().to_string()), why))?,
            ),
            Opened::File(whole) => Place::Archive(Archive::open(&whole).map_err(|why| refuse(None, why))?),
        };
        Ok(Self { path: path.into(), place })
    }

    /// As it was named when it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a tar.
    #[must_use]
    pub fn is_tar(&self) -> bool {
        matches!(self.place, Place::Archive(_))
    }

    /// A blob that is not longer than `max`, in ordinary memory; its length and its digest are those of the descriptor.
    ///
    /// # Errors
    /// When it is missing, too long, not what the descriptor says, or cannot be read.
    pub fn bytes(&self, blob: &Descriptor, max: usize) -> Result<Vec<u8>, LayoutError> {
        let max = u64::try_from(max).unwrap_or(u64::MAX);
        self.of_blob(blob, |section| {
            let bytes = section.into_vec(max)?;
            check_digest(Digest::of(&bytes), blob.digest)?;
            Ok(bytes)
        })
    }

    /// A blob in memory that nobody can change any more; its length and its digest are those of the descriptor. What was
    /// hashed is what is behind the seals.
    ///
    /// # Errors
    /// When it is missing, longer than [`ARTIFACT_MAX`], not what the descriptor says, or cannot be read.
    pub fn sealed(&self, blob: &Descriptor) -> Result<SealedBytes, LayoutError> {
        let max = u64::try_from(ARTIFACT_MAX).unwrap_or(u64::MAX);
        self.of_blob(blob, |section| {
            if section.len() > max {
                return Err(Refusal::TooLong { len: section.len(), max });
            }
            let sealed = SealedBytes::read(section, ARTIFACT_MAX).map_err(Refusal::Seal)?;
            let found = u64::try_from(sealed.len()).unwrap_or(u64::MAX);
            if found != blob.size {
                return Err(Refusal::Shrunk);
            }
            check_digest(sealed.digest(), blob.digest)?;
            Ok(sealed)
        })
    }

    fn of_blob<T>(
        &self,
        blob: &Descriptor,
        read: impl FnOnce(Section) -> Result<T, Refusal>,
    ) -> Result<T, LayoutError> {
        let member = Member::Blob(blob.digest);
        let result = self.find(member).and_then(|section| {
            if section.len() != blob.size {
                return Err(Refusal::Length { found: section.len(), expected: blob.size });
            }
            read(section)
        });
        result.map_err(|why| self.refuse(&format!("{} ({})", member.path(), shown(&blob.media_type)), why))
    }

    /// A file that no descriptor speaks of.
    pub(super) fn member(&self, member: Member, max: usize) -> Result<Vec<u8>, LayoutError> {
        let max = u64::try_from(max).unwrap_or(u64::MAX);
        let result = self.find(member).and_then(|section| section.into_vec(max));
        result.map_err(|why| self.refuse(&member.path(), why))
    }

    /// How long a blob is here.
    pub(super) fn length(&self, digest: Digest) -> Result<u64, LayoutError> {
        let member = Member::Blob(digest);
        self.find(member).map(|section| section.len()).map_err(|why| self.refuse(&member.path(), why))
    }

    fn find(&self, member: Member) -> Result<Section, Refusal> {
        match &self.place {
            Place::Folder(folder) => folder.find(member),
            Place::Archive(archive) => archive.find(member),
        }
    }

    fn refuse(&self, member: &str, why: Refusal) -> LayoutError {
        LayoutError { bundle: self.path.clone(), member: Some(member.to_owned()), why }
    }
}

impl Member {
    pub(super) fn path(self) -> String {
        match self {
            Self::Layout => "oci-layout".into(),
            Self::Index => "index.json".into(),
            Self::Blob(digest) => format!("blobs/sha256/{}", hex::encode(digest.as_bytes())),
        }
    }

    pub(super) fn from_path(path: &str) -> Option<Self> {
        match path.strip_prefix("./").unwrap_or(path) {
            "oci-layout" => Some(Self::Layout),
            "index.json" => Some(Self::Index),
            path => {
                let name = path.strip_prefix("blobs/sha256/")?;
                format!("sha256:{name}").parse().ok().map(Self::Blob)
            }
        }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

/// Opens the folder that a relative path ends in, a step at a time: each is looked at, and nothing leads elsewhere.
fn parent(dir: impl AsFd, path: &Path, ownership: &Ownership) -> Result<OwnedFd, LayoutError> {
    let refuse = |why| LayoutError { bundle: path.into(), member: None, why };
    let mut parts: Vec<&Path> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(Path::new(name)),
            _ => return Err(refuse(Refusal::Name(path.display().to_string()))),
        }
    }
    if parts.pop().is_none() {
        return Err(refuse(Refusal::Name(path.display().to_string())));
    }
    let start = dir.as_fd().try_clone_to_owned().map_err(|error| refuse(Refusal::Open(error)))?;
    parts.into_iter().try_fold(start, |dir, name| {
        file::open_folder(&dir, name, ownership)
            .map_err(|why| LayoutError { member: Some(name.display().to_string()), ..refuse(why) })
    })
}

fn check_digest(found: Digest, expected: Digest) -> Result<(), Refusal> {
    if found == expected { Ok(()) } else { Err(Refusal::Digest { found, expected }) }
}

fn of_member(member: Option<&str>) -> String {
    member.map_or_else(|| "open".into(), |member| format!("read {member} of"))
}

/// A media type as somebody wrote it, for a sentence.
fn shown(media_type: &str) -> String {
    media_type.escape_debug().take(80).collect()
}
