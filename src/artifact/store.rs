//! Where artifacts lie on disk: `<dir>/<tenant>/<policy>.cwasm` and `<policy>.statement.json` beside it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::decision::{PolicyName, Tenant};

/// Where a tenant's compiled policy lies.
#[must_use]
pub fn cwasm_path(dir: &Path, tenant: &Tenant, policy: &PolicyName) -> PathBuf {
    dir.join(tenant.as_str()).join(format!("{policy}.cwasm"))
}

/// Where its signed statement lies.
#[must_use]
pub fn statement_path(dir: &Path, tenant: &Tenant, policy: &PolicyName) -> PathBuf {
    dir.join(tenant.as_str()).join(format!("{policy}.statement.json"))
}

/// Puts an artifact in place. Each of the two files appears whole or not at all, the statement last. A reader that
/// comes between the two sees a pair that does not match, which is refused like any other tampering; the version that
/// is loaded goes on serving.
///
/// # Errors
/// When a file or directory cannot be made, written or renamed.
pub fn write(
    dir: &Path,
    tenant: &Tenant,
    policy: &PolicyName,
    cwasm: &[u8],
    signed: &[u8],
) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(dir.join(tenant.as_str()))?;
    replace(&cwasm_path(dir, tenant, policy), cwasm, 0o644)?;
    replace(&statement_path(dir, tenant, policy), signed, 0o644)
}

/// Writes a file beside its place, brings it to the disk and renames it there. An error leaves what was there before.
///
/// # Errors
/// When it cannot be made, written or renamed.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the path of a file"));
    };
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    // A leading dot: no policy's name has one, so nobody takes an unfinished file for an artifact.
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = dir.join(temporary);
    let result = write_new(&temporary, bytes, mode).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = result {
        // Best effort: the error that counts is the one being returned.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    File::open(dir)?.sync_all()
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // What a killed process of the same id left behind.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}
