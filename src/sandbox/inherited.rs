//! What a child was started with: the descriptors that were agreed on, and nothing in its environment.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::RawFd;

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::os::fd::AsRawFd;

use super::status::Mismatch;
use super::{Declared, Environment, Role, SealError};

/// Checks, in the first lines of a child's main, that it has exactly the descriptors that its file in `sandbox/`
/// declares as inherited, and an empty environment.
///
/// # Errors
/// Names the descriptors that are missing or too many.
pub fn check_inherited(role: Role) -> Result<(), SealError> {
    let declared = Declared::of(role)?;
    let left = |mismatch| SealError::Left { role, mismatch };
    let inherited = declared.descriptors.inherited.iter();
    let expected: BTreeSet<RawFd> = inherited.clone().map(|one| one.number).collect();
    let required: BTreeSet<RawFd> = inherited.filter(|one| !one.optional).map(|one| one.number).collect();
    let found =
        open_descriptors().map_err(|source| SealError::Call { step: "list \"/proc/self/fd\"", source })?;
    if !found.is_subset(&expected) || !required.is_subset(&found) {
        return Err(left(Mismatch::new("descriptors", format!("{found:?}"), format!("{expected:?}"))));
    }
    let variables = std::env::vars_os().count();
    if declared.process.environment == Environment::Empty && variables != 0 {
        return Err(left(Mismatch::new("environment", format!("{variables} variables"), "empty")));
    }
    Ok(())
}

fn open_descriptors() -> io::Result<BTreeSet<RawFd>> {
    let mut directory =
        Dir::open("/proc/self/fd", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    // Open only while we look.
    let own = directory.as_raw_fd();
    let mut found = BTreeSet::new();
    for entry in directory.iter() {
        let name = entry?;
        // But for `.` and `..` these are numbers.
        if let Some(number) = name.file_name().to_str().ok().and_then(|name| name.parse().ok())
            && number != own
        {
            found.insert(number);
        }
    }
    Ok(found)
}
