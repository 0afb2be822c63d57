//! What values may look like that only this file has: modes, paths, UIDs and GIDs.

use std::path::{Component, Path, PathBuf};

use toml::de::DeValue;

use crate::document::values::{number, text};

/// The UID (and GID) that stands for "nobody" and for whatever has none here: never granted, never a role's.
const OVERFLOW_ID: u32 = 65534;

/// Permission bits of a socket, octal in a string.
pub(super) fn mode(value: &DeValue<'_>) -> Result<u32, String> {
    let written = text(value)?;
    u32::from_str_radix(written, 8)
        .ok()
        .filter(|mode| *mode <= 0o777 && (3..=4).contains(&written.len()))
        .ok_or_else(|| format!("{written:?} is not a mode; write octal permission bits like \"0660\""))
}

/// An absolute path without `..`, which does not depend on where anybody stands.
pub(super) fn path(value: &DeValue<'_>) -> Result<PathBuf, String> {
    let written = text(value)?;
    let path = PathBuf::from(written);
    if written.contains('\0') || !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
        return Err(format!("{written:?} is not an absolute path without \"..\""));
    }
    Ok(path)
}

/// Stands for the directory that systemd puts credentials into (`LoadCredential=`), at the start of a path.
const CREDENTIALS: &str = "$CREDENTIALS_DIRECTORY/";

/// A path, or one in the directory of the credentials.
pub(super) fn trust_path(credentials: Option<&Path>) -> impl Fn(&DeValue<'_>) -> Result<PathBuf, String> {
    move |value| {
        let written = text(value)?;
        let Some(rest) = written.strip_prefix(CREDENTIALS) else { return path(value) };
        let Some(credentials) = credentials else {
            return Err(format!(
                "{written:?}: CREDENTIALS_DIRECTORY is not set; start with LoadCredential= in the unit, or write the \
                 file's own path"
            ));
        };
        let ordinary = Path::new(rest).components().all(|part| matches!(part, Component::Normal(_)));
        if rest.is_empty() || rest.contains('\0') || !ordinary || !credentials.is_absolute() {
            return Err(format!("{written:?} names no file in the directory of the credentials"));
        }
        Ok(credentials.join(rest))
    }
}

/// Longest path of a socket, bytes: `sun_path` is 108 with its end.
const SOCKET_PATH_MAX: usize = 107;

pub(super) fn socket_path(value: &DeValue<'_>) -> Result<PathBuf, String> {
    let path = path(value)?;
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(format!("path of a socket is longer than {SOCKET_PATH_MAX} bytes"));
    }
    if path.file_name().is_none() {
        return Err(format!("{:?} names no file", path.display().to_string()));
    }
    Ok(path)
}

/// A UID or GID that a role may run as.
pub(super) fn role_id(value: &DeValue<'_>) -> Result<u32, String> {
    match grantable_id(value)? {
        0 => Err("0 is root; every role needs a UID and GID without privilege".to_owned()),
        id => Ok(id),
    }
}

/// A UID or GID that something may be granted to.
pub(super) fn grantable_id(value: &DeValue<'_>) -> Result<u32, String> {
    number(0..=u32::MAX)(value).and_then(grantable)
}

/// The same of one that is read already.
pub(super) fn grantable(id: u32) -> Result<u32, String> {
    match id {
        OVERFLOW_ID => {
            Err(format!("{OVERFLOW_ID} stands for every user that has no UID here; it is never granted"))
        }
        u32::MAX => Err(format!("{} is not a UID or GID", u32::MAX)),
        id => Ok(id),
    }
}
