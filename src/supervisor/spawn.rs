//! One child: fork, its descriptors in their places, its power taken away, exec.
//!
//! Programs are opened once, when the service starts, and run from those descriptors: a file that is replaced later
//! changes nothing, and an install under a private home works although the children could not walk there.

use std::ffi::{CStr, CString};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{ForkResult, Pid, execveat, fork};
use serde::Serialize;

use super::config::Identity;
use super::log::say;
use crate::sandbox::Role;
use crate::sandbox::privileges::{ResourceLimits, surrender};
use crate::wire::channel::Channel;
use crate::wire::control::{ASSIGNMENT_MAX, FromChild, Isolation, ToChild, fd};
use crate::wire::frame::{self, EncodeError};

/// Sources of descriptors are first moved above this, so that none is overwritten before it is in its place.
const OUT_OF_THE_WAY: RawFd = 16;
/// EX_OSERR: the child could not be made what it was to be.
const EXIT_NOT_STARTED: i32 = 71;

/// Why there is no child.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpawnError {
    #[error("open program {path:?}: {why}")]
    Program { path: PathBuf, why: String },
    #[error("make assignment: {0}")]
    Assignment(#[source] io::Error),
    #[error("make assignment: {0}")]
    Encode(#[from] EncodeError),
    #[error("make control channel: {0}")]
    Channel(#[source] io::Error),
    #[error("make handover channel: {0}")]
    Handover(#[source] io::Error),
    #[error("the configuration has no class of that name any more")]
    NoClass,
    #[error("fork: {0}")]
    Fork(#[source] io::Error),
}

/// What children are made from, opened before the sandbox.
#[derive(Debug)]
pub(super) struct Programs {
    frontend: OwnedFd,
    worker: OwnedFd,
    null: OwnedFd,
    directory: PathBuf,
}

impl Programs {
    /// Opens `portcullis-frontend` and `portcullis-worker` beside this program.
    pub(super) fn open(isolation: Isolation) -> Result<Self, SpawnError> {
        let own = Path::new("/proc/self/exe");
        let failed =
            |path: &Path, why: io::Error| SpawnError::Program { path: path.into(), why: why.to_string() };
        let here = own.read_link().map_err(|why| failed(own, why))?;
        // Whoever owns this very program is trusted with the others too.
        let trusted = own.metadata().map_err(|why| failed(&here, why))?.uid();
        let directory = here.parent().unwrap_or(Path::new("/")).to_owned();
        let open = |name: &str| {
            let path = directory.join(name);
            program(&path, trusted, isolation).map_err(|why| SpawnError::Program { path, why })
        };
        let (frontend, worker) = (open("portcullis-frontend")?, open("portcullis-worker")?);
        let null = Path::new("/dev/null");
        let null = File::open(null).map_err(|why| failed(null, why))?.into();
        Ok(Self { frontend, worker, null, directory })
    }

    /// Where they are.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

fn program(path: &Path, trusted: u32, isolation: Isolation) -> Result<OwnedFd, String> {
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

/// A child to be.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    /// Frontend or worker.
    pub(super) role: Role,
    /// Shown by ps(1).
    pub(super) title: String,
    pub(super) identity: Identity,
    pub(super) isolation: Isolation,
    pub(super) limits: ResourceLimits,
    pub(super) assignment: BorrowedFd<'a>,
    /// See [`fd::FIRST`] and [`fd::SECOND`].
    pub(super) first: BorrowedFd<'a>,
    pub(super) second: Option<BorrowedFd<'a>>,
}

/// A child that runs, and the way to it.
pub(super) struct Launched {
    pub(super) pid: Pid,
    pub(super) channel: Channel<ToChild, FromChild>,
}

/// Starts the child. What goes wrong after the fork is told over the channel as [`FromChild::Failed`].
///
/// JUSTIFICATION: std's `Command` can neither exec from a descriptor nor place descriptors by number.
#[expect(unsafe_code, reason = "fork has no safe form")]
pub(super) fn spawn(programs: &Programs, launch: &Launch<'_>) -> Result<Launched, SpawnError> {
    let (channel, theirs) = Channel::pair(crate::wire::control::CONTROL_MAX).map_err(SpawnError::Channel)?;
    let supervisor = nix::unistd::getpid();
    // SAFETY: this process has one thread (checked by `sandbox::Given`), so no lock is held by another one and the
    // child may allocate.
    match unsafe { fork() }.map_err(|errno| SpawnError::Fork(errno.into()))? {
        ForkResult::Parent { child } => Ok(Launched { pid: child, channel }),
        ForkResult::Child => {
            let why = become_child(programs, launch, theirs.as_fd(), supervisor);
            // The supervisor will see the exit, should it not hear why.
            let _ = theirs.send(&FromChild::Failed { why }, None);
            std::process::exit(EXIT_NOT_STARTED)
        }
    }
}

/// Runs in the child; returns only what went wrong.
fn become_child(
    programs: &Programs,
    launch: &Launch<'_>,
    control: BorrowedFd<'_>,
    supervisor: Pid,
) -> String {
    let program = match launch.role {
        Role::Worker => &programs.worker,
        Role::Supervisor | Role::Frontend => &programs.frontend,
    };
    let Ok(title) = CString::new(launch.title.as_str()) else { return "title with a NUL in it".to_owned() };
    let program = match place_descriptors(programs, launch, control, program.as_fd()) {
        Ok(program) => program,
        Err(why) => return format!("place descriptors: {why}"),
    };
    let Identity { uid, gid } = launch.identity;
    if let Err(why) = surrender(uid, gid, launch.isolation, &launch.limits, supervisor.as_raw()) {
        return why.to_string();
    }
    let nothing: [&CStr; 0] = [];
    match execveat(&program, c"", &[title.as_c_str()], &nothing, AtFlags::AT_EMPTY_PATH) {
        Err(errno) => format!("run portcullis-{}: {errno}", launch.role),
        // Cannot be: exec does not return.
        Ok(never) => match never {},
    }
}

/// 0 is /dev/null, 1 and 2 are our stderr, the rest is as [`fd`] says; everything else is closed by exec. Returns the
/// program to run.
fn place_descriptors(
    programs: &Programs,
    launch: &Launch<'_>,
    control: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> io::Result<File> {
    let stderr = std::io::stderr();
    let wanted = [
        (Some(programs.null.as_fd()), 0),
        (Some(stderr.as_fd()), 1),
        (Some(control), fd::CONTROL),
        (Some(launch.assignment), fd::ASSIGNMENT),
        (Some(launch.first), fd::FIRST),
        (launch.second, fd::SECOND),
    ];
    let mut moved = Vec::with_capacity(wanted.len());
    for (source, number) in wanted {
        let Some(source) = source else { continue };
        moved.push((duplicate(source)?, number));
    }
    let program = File::from(duplicate(program)?);
    let mut last = 0;
    for (source, number) in &moved {
        place(source.as_fd(), *number)?;
        last = last.max(*number);
    }
    close_on_exec_above(last)?;
    Ok(program)
}

fn duplicate(descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    let number = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(OUT_OF_THE_WAY))?;
    // JUSTIFICATION: F_DUPFD_CLOEXEC is the only way to duplicate above a number, and gives back a number.
    #[expect(unsafe_code, reason = "a new descriptor arrives as a number")]
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// JUSTIFICATION: the numbers are an agreement between two programs; no owner of the old descriptor there survives exec.
#[expect(unsafe_code, reason = "dup2 onto a number has no safe form")]
fn place(source: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: this is the forked child: what it overwrites is a copy whose owner is in memory that exec discards, and
    // that is not used before.
    let placed = unsafe { nix::unistd::dup2_raw(source, number) }?;
    // It must stay open.
    let _ = placed.into_raw_fd();
    Ok(())
}

/// JUSTIFICATION: neither std nor nix has close_range.
#[expect(unsafe_code, reason = "close_range has no safe form")]
fn close_on_exec_above(last: RawFd) -> io::Result<()> {
    let first = nix::libc::c_uint::try_from(last).unwrap_or(nix::libc::c_uint::MAX).saturating_add(1);
    let flags = nix::libc::c_int::try_from(nix::libc::CLOSE_RANGE_CLOEXEC).unwrap_or(0);
    // SAFETY: closes nothing now; takes no pointers.
    let result = unsafe { nix::libc::close_range(first, nix::libc::c_uint::MAX, flags) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// The assignment as nobody can change it any more: a sealed memfd, to be read from its start.
pub(super) fn assignment(message: &impl Serialize) -> Result<OwnedFd, SpawnError> {
    let bytes = frame::encode(message, ASSIGNMENT_MAX)?;
    let make = || -> io::Result<OwnedFd> {
        let flags = MFdFlags::MFD_CLOEXEC
            | MFdFlags::MFD_ALLOW_SEALING
            | MFdFlags::from_bits_retain(nix::libc::MFD_NOEXEC_SEAL);
        let mut file = File::from(memfd_create(c"assignment", flags)?);
        file.write_all(&bytes)?;
        file.rewind()?;
        let seals =
            SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(file.into())
    };
    make().map_err(SpawnError::Assignment)
}

/// As many open files as wanted, or as many as this process may give.
pub(super) fn open_files(wanted: u64, title: &str) -> u64 {
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(wanted, |(_, hard)| hard);
    if wanted > hard {
        say!(
            "{title}: needs {wanted} open files, may have {hard}; raise the hard limit (LimitNOFILE=, ulimit -Hn)"
        );
    }
    wanted.min(hard)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_assignment_is_read_from_its_start_and_cannot_be_changed() {
        let sealed = assignment(&"what to do").expect("assignment");
        let mut file = File::from(sealed);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("read");
        assert_eq!(frame::decode::<String>(&bytes).expect("decode"), "what to do");
        assert_eq!(file.write(b"x").expect_err("sealed").raw_os_error(), Some(Errno::EPERM as i32));
        assert_eq!(file.set_len(0).expect_err("sealed").raw_os_error(), Some(Errno::EPERM as i32));
    }

    #[test]
    fn programs_others_may_write_or_may_not_run_are_refused() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("program");
        std::fs::write(&path, "#!/bin/true").expect("write");
        let own = nix::unistd::geteuid().as_raw();
        let look = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
            program(&path, own, Isolation::DistinctUids).map(drop)
        };
        assert_eq!(look(0o755), Ok(()));
        assert!(look(0o775).expect_err("writable").starts_with("others may write it (mode 0775)"));
        assert!(
            look(0o750).expect_err("not for others").starts_with("other users may not run it (mode 0750)")
        );
        program(directory.path(), own, Isolation::SharedUid).expect_err("a directory");
    }
}
