//! Taking power away: the supervisor's own, before its first fork, and a child's, between fork and exec.
//!
//! The trap this order answers: `setresuid` clears capabilities only when it leaves UID 0. A supervisor that runs as
//! an ordinary user with ambient capabilities changes its child's UID and the child keeps every one of them, across
//! exec too, and can go back to root. So each set is emptied by name, read back, and the way back is tried.

use std::io;

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, chdir, getppid, setgroups, setresgid, setresuid, setsid};

use super::Role;
use super::status::{Mismatch, Status, StatusError};
use crate::wire::control::Isolation;

/// All that the supervisor works with: give its children UIDs, empty their bounding sets, signal them.
pub const SUPERVISOR_KEEPS: [Capability; 4] =
    [Capability::CAP_KILL, Capability::CAP_SETGID, Capability::CAP_SETPCAP, Capability::CAP_SETUID];

/// How much a child may use. What is not here is the same for all: no core, no locked memory, no message queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourceLimits {
    /// Descriptors, the inherited ones included.
    pub open_files: u64,
    /// Threads of all processes of the child's UID together, so only where the UID is the class's own; count every
    /// generation that may live at the same time. `None`: as it is.
    pub processes: Option<u64>,
}

/// Why power could not be taken away. Whoever gets it must exit.
#[derive(Debug, thiserror::Error)]
pub enum SurrenderError {
    #[error("{step}: {source}")]
    Call { step: &'static str, source: io::Error },
    #[error("{step}: {source}; a filter around the service that blocks capset or prctl does this")]
    Capabilities { step: &'static str, source: CapsError },
    #[error(
        "set {limit} to {wanted}: the hard limit is {hard}; raise it in the unit or shell that starts the service"
    )]
    Limit { limit: &'static str, wanted: u64, hard: u64 },
    #[error(transparent)]
    Status(#[from] StatusError),
    #[error("give up privileges: {0}")]
    Left(#[from] Mismatch),
    #[error("give up privileges: setresuid to 0 succeeded after all was given up")]
    Regained,
    #[error("give up privileges: uid 0 is not one to give to a child")]
    Root,
    #[error("parent is pid {found}, expected supervisor pid {expected}: the supervisor is gone")]
    Orphaned { expected: i32, found: i32 },
    #[error(
        "keep capabilities: has {found:#x} of the needed {needed:#x} (setuid, setgid, setpcap, kill); give the \
         service all four, or none to run with one uid"
    )]
    Partial { found: u64, needed: u64 },
}

/// For the supervisor, before it reads its configuration's consequences into the world: reduces this process to
/// [`SUPERVISOR_KEEPS`], or to nothing where it was started without, and says which. No core files, umask 077, `/`.
///
/// Whatever takes another privilege (chown of a class's directory, binding in a directory of root's) comes before.
///
/// # Errors
/// Has a part of the four but not all, or something could not be taken away.
pub fn settle() -> Result<Isolation, SurrenderError> {
    let needed: CapsHashSet = SUPERVISOR_KEEPS.into_iter().collect();
    let held = caps::read(None, CapSet::Permitted).map_err(capabilities("read the permitted set"))?;
    let found: CapsHashSet = held.intersection(&needed).copied().collect();
    let isolation = if found == needed {
        Isolation::DistinctUids
    } else if found.is_empty() {
        Isolation::SharedUid
    } else {
        return Err(SurrenderError::Partial { found: mask(&found), needed: mask(&needed) });
    };
    if isolation == Isolation::DistinctUids {
        caps::set(None, CapSet::Effective, &needed).map_err(capabilities("use the four capabilities"))?;
        setgroups(&[]).map_err(call("drop supplementary groups"))?;
        for capability in caps::all().difference(&needed) {
            drop_bounding(*capability)?;
        }
    }
    caps::clear(None, CapSet::Ambient).map_err(capabilities("clear the ambient set"))?;
    caps::clear(None, CapSet::Inheritable).map_err(capabilities("clear the inheritable set"))?;
    caps::set(None, CapSet::Effective, &found).map_err(capabilities("reduce the effective set"))?;
    caps::set(None, CapSet::Permitted, &found).map_err(capabilities("reduce the permitted set"))?;
    limit("RLIMIT_CORE", Resource::RLIMIT_CORE, 0)?;
    chdir("/").map_err(call("change to \"/\""))?;
    umask(Mode::from_bits_truncate(0o077));
    Status::of_this_thread()?.expect_capabilities(Role::Supervisor, isolation)?;
    Ok(isolation)
}

/// For the supervisor's child, between fork and exec: takes everything away, in the one order that works, and checks
/// that it is gone. Exec right after it; exit on any error.
///
/// `supervisor_pid` is what the supervisor's `getpid` said before it forked.
///
/// # Errors
/// Anything that could not be taken away, or was still there when read back.
pub fn surrender(
    uid: u32,
    gid: u32,
    isolation: Isolation,
    limits: &ResourceLimits,
    supervisor_pid: i32,
) -> Result<(), SurrenderError> {
    if uid == 0 {
        return Err(SurrenderError::Root);
    }
    // A new session first: no controlling terminal can signal or be written to.
    setsid().map_err(call("start a session"))?;
    if isolation == Isolation::DistinctUids {
        change_identity(uid, gid)?;
    }
    caps::clear(None, CapSet::Ambient).map_err(capabilities("clear the ambient set"))?;
    caps::clear(None, CapSet::Inheritable).map_err(capabilities("clear the inheritable set"))?;
    // Clears the effective set with it.
    caps::clear(None, CapSet::Permitted).map_err(capabilities("clear the permitted set"))?;
    // Only now: a change of UID clears it.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(call("set the parent death signal"))?;
    // If the supervisor died before that line, no signal will come.
    let parent = getppid();
    if parent != Pid::from_raw(supervisor_pid) {
        return Err(SurrenderError::Orphaned { expected: supervisor_pid, found: parent.as_raw() });
    }
    limit("RLIMIT_CORE", Resource::RLIMIT_CORE, 0)?;
    limit("RLIMIT_MEMLOCK", Resource::RLIMIT_MEMLOCK, 0)?;
    limit("RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE, 0)?;
    limit("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE, limits.open_files)?;
    if let Some(processes) = limits.processes {
        limit("RLIMIT_NPROC", Resource::RLIMIT_NPROC, processes)?;
    }
    chdir("/").map_err(call("change to \"/\""))?;
    umask(Mode::from_bits_truncate(0o077));
    // The supervisor may block signals to read them from a descriptor; that would go through exec.
    SigSet::empty().thread_set_mask().map_err(call("unblock signals"))?;
    look_again(uid, gid, isolation)
}

fn change_identity(uid: u32, gid: u32) -> Result<(), SurrenderError> {
    setgroups(&[]).map_err(call("drop supplementary groups"))?;
    // Takes CAP_SETPCAP, so it comes before the UID where that is left from 0.
    for capability in caps::all() {
        drop_bounding(capability)?;
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setresgid(gid, gid, gid).map_err(call("change gid"))?;
    setresuid(uid, uid, uid).map_err(call("change uid"))
}

/// A capability that this kernel does not know is not in the set.
fn drop_bounding(capability: Capability) -> Result<(), SurrenderError> {
    if caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
        caps::drop(None, CapSet::Bounding, capability).map_err(capabilities("drop from the bounding set"))?;
    }
    Ok(())
}

fn look_again(uid: u32, gid: u32, isolation: Isolation) -> Result<(), SurrenderError> {
    let status = Status::of_this_thread()?;
    status.expect_identity(uid, gid, isolation)?;
    status.expect_capabilities(Role::Worker, isolation)?;
    let root = Uid::from_raw(0);
    if setresuid(root, root, root).is_ok() { Err(SurrenderError::Regained) } else { Ok(()) }
}

/// Sets the soft and the hard limit; lowering needs no privilege.
fn limit(name: &'static str, resource: Resource, wanted: u64) -> Result<(), SurrenderError> {
    let (_, hard) = getrlimit(resource).map_err(call("read a resource limit"))?;
    if wanted > hard {
        return Err(SurrenderError::Limit { limit: name, wanted, hard });
    }
    setrlimit(resource, wanted, wanted).map_err(call("set a resource limit"))
}

fn mask(set: &CapsHashSet) -> u64 {
    set.iter().map(Capability::bitmask).fold(0, |all, one| all | one)
}

fn call(step: &'static str) -> impl Fn(nix::Error) -> SurrenderError {
    move |errno| SurrenderError::Call { step, source: io::Error::from(errno) }
}

fn capabilities(step: &'static str) -> impl Fn(CapsError) -> SurrenderError {
    move |source| SurrenderError::Capabilities { step, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::status::SUPERVISOR_CAPABILITIES;

    #[test]
    fn the_four_are_what_status_expects() {
        assert_eq!(mask(&SUPERVISOR_KEEPS.into_iter().collect()), SUPERVISOR_CAPABILITIES);
    }

    #[test]
    fn uid_0_is_refused_before_anything_is_done() {
        let limits = ResourceLimits { open_files: 64, processes: None };
        let pid = Pid::this().as_raw();
        assert!(matches!(surrender(0, 0, Isolation::DistinctUids, &limits, pid), Err(SurrenderError::Root)));
    }
}
