//! The way to a directory that somebody names on the command line: the root of a tree, or where the programs are. Who
//! owns a directory on that way, or a link, or can write one of them, chooses where it leads.

use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::geteuid;

use super::tree::{OTHERS_WRITE, TreeError};

/// In a directory with this bit nobody can rename or remove what is another's.
const STICKY: u32 = 0o1000;
/// As many as the kernel follows.
const LINKS_MAX: usize = 40;

/// The path without links, each of which, like each directory, is root's, our own or that of one of the `trusted`, and
/// closed to others.
pub(super) fn resolve(path: &Path, trusted: &[u32]) -> Result<PathBuf, TreeError> {
    let failed = |path: &Path, source| TreeError::Io { action: "open", path: path.into(), source };
    let whole = std::path::absolute(path).map_err(|source| failed(path, source))?;
    let mut left = names(&whole);
    let mut at = PathBuf::from("/");
    let mut metadata = at.metadata().map_err(|source| failed(&at, source))?;
    let mut links = 0;
    while let Some(name) = left.pop() {
        check_above(&at, &metadata, trusted)?;
        if name == ".." {
            at.pop();
        } else {
            at.push(&name);
        }
        metadata = at.symlink_metadata().map_err(|source| failed(&at, source))?;
        if metadata.is_symlink() {
            check_owner(&at, &metadata, trusted)?;
            links += 1;
            if links > LINKS_MAX {
                return Err(failed(path, Errno::ELOOP.into()));
            }
            let target = at.read_link().map_err(|source| failed(&at, source))?;
            left.extend(names(&target));
            at =
                if target.is_absolute() { PathBuf::from("/") } else { at.parent().unwrap_or(&at).to_owned() };
            metadata = at.metadata().map_err(|source| failed(&at, source))?;
        }
    }
    if !metadata.is_dir() {
        return Err(failed(path, io::ErrorKind::NotADirectory.into()));
    }
    check_owner(&at, &metadata, trusted)?;
    check_mode(&at, &metadata)?;
    Ok(at)
}

/// The last one first.
fn names(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    });
    let mut names: Vec<OsString> = names.collect();
    names.reverse();
    names
}

fn check_above(path: &Path, metadata: &Metadata, trusted: &[u32]) -> Result<(), TreeError> {
    check_owner(path, metadata, trusted)?;
    if metadata.mode() & STICKY == 0 { check_mode(path, metadata) } else { Ok(()) }
}

pub(super) fn check_owner(path: &Path, metadata: &Metadata, trusted: &[u32]) -> Result<(), TreeError> {
    let (found, own) = (metadata.uid(), geteuid());
    if found == 0 || found == own.as_raw() || trusted.contains(&found) {
        return Ok(());
    }
    let expected = if own.is_root() { "0".to_owned() } else { format!("{own} or 0") };
    Err(TreeError::Owner { path: path.into(), found, expected })
}

pub(super) fn check_mode(path: &Path, metadata: &Metadata) -> Result<(), TreeError> {
    if metadata.mode() & OTHERS_WRITE != 0 {
        return Err(TreeError::OthersWrite { path: path.into(), mode: metadata.mode() & 0o7777 });
    }
    Ok(())
}
