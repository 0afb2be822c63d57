//! The files and directories the configuration names: are they there, whose are they, who could change them?
//!
//! Everything is opened once and looked at through its descriptor. What leads to it is checked too: who may rename a
//! directory above a file may replace the file.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;

use super::{Inode, Surroundings};

/// Largest trust policy, bytes: a thousand tenants with their signers.
const TRUST_MAX: u64 = 1 << 20;
/// Most files in the directory of tenants: as many as may be served at one time, and names that are used up.
pub(super) const TENANT_FILES_MAX: usize = 65_536;
/// Largest file of a tenant, bytes.
const TENANT_MAX: u64 = 64 << 10;
/// Largest file of keys, bytes.
const SECRET_MAX: u64 = crate::bundle::confidential::KEYS_FILE_MAX as u64;
/// Bits that let somebody other than the owner change a thing.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Whose files are trusted: root's and the supervisor's own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owners {
    pub(super) uid: u32,
}

impl Owners {
    fn check(self, path: &Path, what: &str, metadata: &Metadata) -> Result<(), String> {
        let owner = metadata.uid();
        if owner != 0 && owner != self.uid {
            let expected = if self.uid == 0 { "0".to_owned() } else { format!("{} or 0", self.uid) };
            let way_out = format!("chown root {}", path.display());
            return Err(format!(
                "open {what} {path:?}: owned by uid {owner}, expected {expected}; {way_out}"
            ));
        }
        let mode = metadata.mode();
        if mode & OTHERS_WRITE != 0 {
            let way_out = format!("chmod go-w {}", path.display());
            return Err(format!(
                "open {what} {path:?}: others may write it (mode {:04o}); {way_out}",
                mode & 0o7777
            ));
        }
        Ok(())
    }

    /// Nobody else may replace what stands at `path` (which is there), or a directory above it.
    fn check_above(self, path: &Path, what: &str) -> Result<(), String> {
        let real = path.canonicalize().map_err(|why| format!("open {what} {path:?}: {why}"))?;
        for above in real.ancestors().skip(1) {
            let metadata =
                above.metadata().map_err(|why| format!("open {what} {path:?}: {above:?}: {why}"))?;
            let (mode, owner) = (metadata.mode(), metadata.uid());
            if mode & OTHERS_WRITE != 0 && mode & STICKY == 0 {
                return Err(format!(
                    "open {what} {path:?}: others may write {above:?} above it (mode {:04o}); chmod go-w it",
                    mode & 0o7777
                ));
            }
            if owner != 0 && owner != self.uid {
                return Err(format!(
                    "open {what} {path:?}: {above:?} above it is owned by uid {owner}, expected 0 or the service's own"
                ));
            }
        }
        Ok(())
    }
}

/// The configuration itself.
pub(super) fn read_config(path: &Path, around: &Surroundings, max: u64) -> Result<String, String> {
    file(path, "configuration", Owners { uid: around.uid }, max)
}

/// The trust policy. It is text, and no key of anybody's to keep secret; more is not asked here.
pub(super) fn trust(path: &Path, owners: Owners) -> Result<String, String> {
    let text = file(path, "trust policy", owners, TRUST_MAX)?;
    if text.contains("PRIVATE KEY-----") {
        return Err(format!(
            "open trust policy {path:?}: holds a private key; only public halves belong on this machine"
        ));
    }
    Ok(text)
}

/// Keys that open what is confidential. Nobody but their owner, and whom systemd lets read a credential, may read them.
pub(super) fn secret(path: &Path, owners: Owners) -> Result<String, String> {
    const WHAT: &str = "secret";
    let mode = path.metadata().map_err(|why| format!("open {WHAT} {path:?}: {why}"))?.mode() & 0o7777;
    if mode & 0o007 != 0 {
        return Err(format!(
            "open {WHAT} {path:?}: everybody may read it (mode {mode:04o}); chmod 0600 {}",
            path.display()
        ));
    }
    file(path, WHAT, owners, SECRET_MAX)
}

/// Where bundles are dropped. Whoever delivers them may own it, and a group may write it.
pub(super) fn store(path: &Path, owners: Owners) -> Result<Inode, String> {
    let metadata = directory(path, "store")?;
    owners.check_above(path, "store")?;
    Ok(Inode::of(&metadata))
}

/// Where tenants are, a file each: the names in it that do not begin with a dot, in their order.
pub(super) fn tenants(path: &Path, owners: Owners) -> Result<(Inode, Vec<String>), String> {
    const WHAT: &str = "tenants";
    let metadata = directory(path, WHAT)?;
    owners.check(path, WHAT, &metadata)?;
    owners.check_above(path, WHAT)?;
    let failed = |why: std::io::Error| format!("list {WHAT} {path:?}: {why}");
    let mut names = Vec::new();
    for entry in path.read_dir().map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.into_string().map_err(|name| {
            format!("list {WHAT} {path:?}: {name:?} is no tenant's file; expected <tenant>.toml")
        })?;
        // Locks and unfinished files.
        if name.starts_with('.') {
            continue;
        }
        if names.len() >= TENANT_FILES_MAX {
            return Err(format!("list {WHAT} {path:?}: more than {TENANT_FILES_MAX} files"));
        }
        names.push(name);
    }
    names.sort_unstable();
    Ok((Inode::of(&metadata), names))
}

/// One of them. The directory was looked at: nobody else can put anything there.
pub(super) fn tenant(path: &Path, owners: Owners) -> Result<String, String> {
    const WHAT: &str = "tenant";
    let file = open(path, WHAT, OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW)?;
    regular(file, path, WHAT, owners, TENANT_MAX)
}

/// A role's own directory, a class's cache or the registry's state: nobody else so much as looks into it.
pub(super) fn own_directory(path: &Path, what: &str, uid: u32, owners: Owners) -> Result<Inode, String> {
    let metadata = directory(path, what)?;
    if metadata.uid() != uid {
        return Err(format!(
            "open {what} {path:?}: owned by uid {}, expected {uid}; chown {uid} {}",
            metadata.uid(),
            path.display()
        ));
    }
    let mode = metadata.mode() & 0o7777;
    if mode != 0o700 {
        return Err(format!(
            "open {what} {path:?}: mode {mode:04o}, expected 0700; chmod 0700 {}",
            path.display()
        ));
    }
    owners.check_above(path, what)?;
    Ok(Inode::of(&metadata))
}

/// The directory a socket is to be made in.
pub(super) fn socket_directory(socket: &Path, owners: Owners) -> Result<(), String> {
    let path = socket.parent().ok_or_else(|| format!("socket {socket:?} is in no directory"))?;
    let metadata = directory(path, "socket's directory")?;
    owners.check(path, "socket's directory", &metadata)?;
    owners.check_above(path, "socket's directory")
}

/// O_PATH: a role's own directory may be looked at, but not be opened, by a supervisor that is not root.
fn directory(path: &Path, what: &str) -> Result<Metadata, String> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)
        .and_then(|directory| directory.metadata())
        .map_err(|why| format!("open {what} {path:?}: {why}"))
}

/// The text of a regular file that nobody else may change. O_NONBLOCK: a FIFO must not hold us up.
fn file(path: &Path, what: &str, owners: Owners, max: u64) -> Result<String, String> {
    let file = open(path, what, OFlag::O_NONBLOCK)?;
    let text = regular(file, path, what, owners, max)?;
    owners.check_above(path, what)?;
    Ok(text)
}

fn open(path: &Path, what: &str, flags: OFlag) -> Result<File, String> {
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
    file.map_err(|why| {
        // Landlock knows directories, not their names.
        let hint = match why.kind() {
            ErrorKind::PermissionDenied => {
                "; if its directory is another than when the service started, restart the service"
            }
            _ => "",
        };
        format!("open {what} {path:?}: {why}{hint}")
    })
}

fn regular(file: File, path: &Path, what: &str, owners: Owners, max: u64) -> Result<String, String> {
    let metadata = file.metadata().map_err(|why| format!("open {what} {path:?}: {why}"))?;
    if !metadata.is_file() {
        return Err(format!("open {what} {path:?}: not a regular file"));
    }
    owners.check(path, what, &metadata)?;
    let mut text = String::new();
    let read =
        file.take(max + 1).read_to_string(&mut text).map_err(|why| format!("read {what} {path:?}: {why}"))?;
    if u64::try_from(read).unwrap_or(u64::MAX) > max {
        return Err(format!("read {what} {path:?}: longer than {max} bytes"));
    }
    Ok(text)
}
