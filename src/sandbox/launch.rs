//! How one of our programs starts another: opened once and checked, its descriptors in their places, exec.
//!
//! Programs are run from descriptors: a file that is replaced later changes nothing, and an install under a private
//! home works although the children could not walk there.

use std::ffi::{CStr, CString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, OFlag, fcntl};
use nix::unistd::execveat;

use crate::wire::control::Isolation;

/// Sources of descriptors are first moved above this, so that none is overwritten before it is in its place.
const OUT_OF_THE_WAY: RawFd = 32;
/// EX_OSERR of sysexits.h, for a forked process that did not become what it was to be.
pub const EXIT_NOT_STARTED: u8 = 71;

/// Why a program is not one to start.
#[derive(Debug, thiserror::Error)]
#[error("open program {path:?}: {why}")]
pub struct ProgramError {
    path: PathBuf,
    why: String,
}

/// The directory of the running program, and who owns that program.
///
/// # Errors
/// `/proc` is not there.
pub fn own_directory() -> Result<(PathBuf, u32), ProgramError> {
    let own = Path::new("/proc/self/exe");
    let failed = |path: &Path, why: io::Error| ProgramError { path: path.into(), why: why.to_string() };
    let here = own.read_link().map_err(|why| failed(own, why))?;
    let owner = own.metadata().map_err(|why| failed(&here, why))?.uid();
    Ok((here.parent().unwrap_or(Path::new("/")).to_owned(), owner))
}

/// Opens a program beside this one. Whoever owns this very program is trusted with the others too, as are root and
/// this user; nobody else may be able to write it.
///
/// # Errors
/// Says what is wrong with the file and what to do.
pub fn open_program(name: &str, isolation: Isolation) -> Result<OwnedFd, ProgramError> {
    let (directory, trusted) = own_directory()?;
    let path = directory.join(name);
    check_and_open(&path, trusted, isolation).map_err(|why| ProgramError { path, why })
}

/// Opens a program that people's program starts: beside it, or in `../lib/portcullis/`, where what nobody types is installed.
///
/// # Errors
/// Says what is wrong with the file and what to do.
pub fn open_companion(name: &str, isolation: Isolation) -> Result<OwnedFd, ProgramError> {
    let (directory, trusted) = own_directory()?;
    let beside = directory.join(name);
    let path = match directory.parent() {
        Some(above) if !beside.exists() => above.join("lib/portcullis").join(name),
        _ => beside,
    };
    check_and_open(&path, trusted, isolation).map_err(|why| ProgramError { path, why })
}

fn check_and_open(path: &Path, trusted: u32, isolation: Isolation) -> Result<OwnedFd, String> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
    let open = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
    let file = open.map_err(|why| why.to_string())?;
    let metadata = file.metadata().map_err(|why| why.to_string())?;
    let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
    let own = nix::unistd::geteuid().as_raw();
    if !metadata.is_file() {
        return Err("not a regular file".to_owned());
    }
    if ![0, own, trusted].contains(&owner) {
        return Err(format!("owned by uid {owner}, expected {own} or 0"));
    }
    if mode & 0o022 != 0 {
        return Err(format!("others may write it (mode {mode:04o}); chmod go-w {}", path.display()));
    }
    if isolation == Isolation::DistinctUids && mode & 0o001 == 0 {
        return Err(format!("other users may not run it (mode {mode:04o}); chmod o+x {}", path.display()));
    }
    Ok(file.into())
}

/// In a forked child: every descriptor at its number; all others are closed by exec. Returns the program, moved out of
/// the way, for [`exec`].
///
/// # Errors
/// What the kernel refused.
pub fn place(wanted: &[(BorrowedFd<'_>, RawFd)], program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut moved = Vec::with_capacity(wanted.len());
    for (source, number) in wanted {
        moved.push((duplicate(*source)?, *number));
    }
    let program = duplicate(program)?;
    let mut last = 0;
    for (source, number) in &moved {
        put(source.as_fd(), *number)?;
        last = last.max(*number);
    }
    close_on_exec_from(last.saturating_add(1))?;
    Ok(program)
}

/// Becomes the program, with a title for ps(1) and an empty environment. Returns only what went wrong.
pub fn exec(program: &OwnedFd, title: &str) -> io::Error {
    let Ok(title) = CString::new(title) else { return io::Error::other("title with a NUL in it") };
    let nothing: [&CStr; 0] = [];
    match execveat(program, c"", &[title.as_c_str()], &nothing, AtFlags::AT_EMPTY_PATH) {
        Err(errno) => errno.into(),
        // Cannot be: exec does not return.
        Ok(never) => match never {},
    }
}

/// /dev/null, for a child's standard input.
///
/// # Errors
/// It cannot be opened.
pub fn null() -> Result<OwnedFd, ProgramError> {
    let path = Path::new("/dev/null");
    let open = File::open(path).map_err(|why| ProgramError { path: path.into(), why: why.to_string() })?;
    Ok(open.into())
}

/// A copy whose number is above all those that are agreed on between programs.
///
/// # Errors
/// There are too many descriptors.
pub fn duplicate(descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    let number = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(OUT_OF_THE_WAY)).map_err(|errno| match errno {
        Errno::EINVAL | Errno::EMFILE => io::Error::other(format!(
            "there are not {OUT_OF_THE_WAY} descriptors and some more; raise the limit of open files (LimitNOFILE=, \
             ulimit -n)"
        )),
        errno => errno.into(),
    })?;
    // JUSTIFICATION: F_DUPFD_CLOEXEC is the only way to duplicate above a number, and gives back a number.
    #[expect(unsafe_code, reason = "a new descriptor arrives as a number")]
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// JUSTIFICATION: the numbers are an agreement between two programs; no owner of the old descriptor there survives exec.
#[expect(unsafe_code, reason = "dup2 onto a number has no safe form")]
fn put(source: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: this is the forked child: what it overwrites is a copy whose owner is in memory that exec discards, and
    // that is not used before.
    let placed = unsafe { nix::unistd::dup2_raw(source, number) }?;
    // It must stay open.
    let _ = placed.into_raw_fd();
    Ok(())
}

/// Marks every descriptor from `first` on, so that exec closes it.
fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    close_range(first, nix::libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor from `first` on: what whoever started this program left open. Only for the first lines of a
/// main, where nothing owns a descriptor yet.
///
/// # Errors
/// The kernel has no close_range (before Linux 5.9).
pub fn close_from(first: RawFd) -> io::Result<()> {
    close_range(first, 0)
}

/// JUSTIFICATION: neither std nor nix has close_range.
#[expect(unsafe_code, reason = "close_range has no safe form")]
fn close_range(first: RawFd, flags: nix::libc::c_uint) -> io::Result<()> {
    let first = nix::libc::c_uint::try_from(first).map_err(|_| io::ErrorKind::InvalidInput)?;
    let flags = nix::libc::c_int::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: takes no pointers. What it closes belongs to nobody, see `close_from`, or is only marked.
    let result = unsafe { nix::libc::close_range(first, nix::libc::c_uint::MAX, flags) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn programs_others_may_write_or_may_not_run_are_refused() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("program");
        std::fs::write(&path, "#!/bin/true").expect("write");
        let own = nix::unistd::geteuid().as_raw();
        let look = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
            check_and_open(&path, own, Isolation::DistinctUids).map(drop)
        };
        assert_eq!(look(0o755), Ok(()));
        assert!(look(0o775).expect_err("writable").starts_with("others may write it (mode 0775)"));
        assert!(
            look(0o750).expect_err("not for others").starts_with("other users may not run it (mode 0750)")
        );
        check_and_open(directory.path(), own, Isolation::SharedUid).expect_err("a directory");
    }
}
