//! Taking power away: the supervisor's own, before its first fork and once more after it, and a child's, between fork
//! and exec.
//!
//! The trap this order answers: `setresuid` clears capabilities only when it leaves UID 0. A process that runs as an
//! ordinary user with ambient capabilities changes its child's UID and the child keeps every one of them, across exec
//! too, and can go back to root. So each set is emptied by name, read back, and the way back is tried.

use std::io;

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, chdir, getppid, setgroups, setresgid, setresuid, setsid};

use super::Role;
use super::declared::{ConfiguredLimit, Declared, DeclaredError, LimitValue};
use super::status::{Mismatch, Status, StatusError};
use crate::wire::control::{BuildLimits, Isolation};

/// All that the service works with, between supervisor and spawner: give children UIDs, empty their bounding sets,
/// signal them.
pub const SERVICE_NEEDS: [Capability; 4] =
    [Capability::CAP_KILL, Capability::CAP_SETGID, Capability::CAP_SETPCAP, Capability::CAP_SETUID];

/// The limits of a child that follow from the configuration. The others are numbers in `sandbox/<role>.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfiguredLimits {
    /// Descriptors, the inherited ones included.
    pub open_files: u64,
    /// Threads of all processes of the child's UID together, so only where the UID is the class's own; count every
    /// generation that may live at the same time. `None`: as it is.
    pub processes: Option<u64>,
    /// Of a builder.
    pub build: Option<BuildLimits>,
}

/// Why power could not be taken away. Whoever gets it must exit.
#[derive(Debug, thiserror::Error)]
pub enum SurrenderError {
    #[error("{step}: {source}; a filter or limit around the service does this: take it off")]
    Call { step: &'static str, source: io::Error },
    #[error("{step}: {source}; a filter around the service that blocks capset or prctl does this")]
    Capabilities { step: &'static str, source: CapsError },
    #[error(
        "set {limit} to {wanted}: the hard limit is {hard}; raise it in the unit or shell that starts the service"
    )]
    Limit { limit: &'static str, wanted: u64, hard: u64 },
    #[error(transparent)]
    Status(#[from] StatusError),
    #[error(transparent)]
    Declared(#[from] DeclaredError),
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
/// [`SERVICE_NEEDS`], or to nothing where it was started without, and says which. Limits as declared, umask 077, `/`.
///
/// Whatever takes another privilege (chown of a class's directory, binding in a directory of root's) comes before.
///
/// # Errors
/// Has a part of the four but not all, or something could not be taken away.
pub fn settle() -> Result<Isolation, SurrenderError> {
    let needed: CapsHashSet = SERVICE_NEEDS.into_iter().collect();
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
    }
    reduce_to(&found, isolation)?;
    set_limits(&Declared::of(Role::Supervisor)?, None)?;
    chdir("/").map_err(call("change to \"/\""))?;
    umask(Mode::from_bits_truncate(0o077));
    Ok(isolation)
}

/// For supervisor and spawner, once each is on its own: reduces this process to what its file in `sandbox/` keeps of
/// the four.
///
/// # Errors
/// Something could not be taken away, or was not there.
pub fn keep(role: Role, isolation: Isolation) -> Result<(), SurrenderError> {
    reduce_to(&kept(&Declared::of(role)?, isolation)?, isolation)
}

/// For the supervisor's first child, between fork and exec: becomes what the spawner is started as. Its capabilities
/// are ambient, which is how they survive an exec of a process that is not root's; it takes care of that first thing
/// ([`keep`]). Exec right after it; exit on any error.
///
/// # Errors
/// Anything that could not be set, or is not as it should be when read back.
pub fn endow(isolation: Isolation, supervisor_pid: i32) -> Result<(), SurrenderError> {
    let declared = Declared::of(Role::Spawner)?;
    let kept = kept(&declared, isolation)?;
    setsid().map_err(call("start a session"))?;
    if isolation == Isolation::DistinctUids {
        caps::set(None, CapSet::Effective, &kept).map_err(capabilities("reduce the effective set"))?;
        caps::set(None, CapSet::Permitted, &kept).map_err(capabilities("reduce the permitted set"))?;
        caps::set(None, CapSet::Inheritable, &kept).map_err(capabilities("set the inheritable set"))?;
        for capability in &kept {
            caps::raise(None, CapSet::Ambient, *capability)
                .map_err(capabilities("raise in the ambient set"))?;
        }
    }
    leave_the_parents_ways(&declared, None, supervisor_pid)
}

/// For the spawner's child, between clone and exec: takes everything away, in the one order that works, and checks
/// that it is gone. Exec right after it; exit on any error.
///
/// `supervisor_pid` is what the supervisor's `getpid` said: this process must be a child of it by now.
///
/// # Errors
/// Anything that could not be taken away, or was still there when read back.
pub fn surrender(
    role: Role,
    (uid, gid): (u32, u32),
    isolation: Isolation,
    limits: &ConfiguredLimits,
    supervisor_pid: i32,
) -> Result<(), SurrenderError> {
    if uid == 0 {
        return Err(SurrenderError::Root);
    }
    let declared = Declared::of(role)?;
    // A new session first: no controlling terminal can signal or be written to.
    setsid().map_err(call("start a session"))?;
    if isolation == Isolation::DistinctUids {
        change_identity(uid, gid)?;
    }
    caps::clear(None, CapSet::Ambient).map_err(capabilities("clear the ambient set"))?;
    caps::clear(None, CapSet::Inheritable).map_err(capabilities("clear the inheritable set"))?;
    // Clears the effective set with it.
    caps::clear(None, CapSet::Permitted).map_err(capabilities("clear the permitted set"))?;
    leave_the_parents_ways(&declared, Some(limits), supervisor_pid)?;
    look_again(uid, gid, isolation)
}

/// What every child is given before its exec, whatever its power.
fn leave_the_parents_ways(
    declared: &Declared,
    limits: Option<&ConfiguredLimits>,
    supervisor_pid: i32,
) -> Result<(), SurrenderError> {
    // A change of UID would clear it, so it comes after.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(call("set the parent death signal"))?;
    // If the supervisor died before that line, no signal will come.
    let parent = getppid();
    if parent != Pid::from_raw(supervisor_pid) {
        return Err(SurrenderError::Orphaned { expected: supervisor_pid, found: parent.as_raw() });
    }
    set_limits(declared, limits)?;
    chdir("/").map_err(call("change to \"/\""))?;
    umask(Mode::from_bits_truncate(0o077));
    // The supervisor blocks signals to read them from a descriptor; that would go through exec.
    SigSet::empty().thread_set_mask().map_err(call("unblock signals"))
}

fn kept(declared: &Declared, isolation: Isolation) -> Result<CapsHashSet, SurrenderError> {
    match isolation {
        Isolation::DistinctUids => Ok(declared.kept_capabilities()?.into_iter().collect()),
        Isolation::SharedUid => Ok(CapsHashSet::new()),
    }
}

/// Permitted, effective and bounding are `kept`; inheritable and ambient are empty.
fn reduce_to(kept: &CapsHashSet, isolation: Isolation) -> Result<(), SurrenderError> {
    caps::clear(None, CapSet::Ambient).map_err(capabilities("clear the ambient set"))?;
    caps::clear(None, CapSet::Inheritable).map_err(capabilities("clear the inheritable set"))?;
    if isolation == Isolation::DistinctUids {
        // Takes CAP_SETPCAP, so it comes before that may go itself.
        for capability in caps::all().difference(kept) {
            drop_bounding(*capability)?;
        }
    }
    caps::set(None, CapSet::Effective, kept).map_err(capabilities("reduce the effective set"))?;
    caps::set(None, CapSet::Permitted, kept).map_err(capabilities("reduce the permitted set"))?;
    Ok(Status::of_this_thread()?.expect_capabilities(mask(kept), isolation)?)
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
    status.expect_capabilities(0, isolation)?;
    let root = Uid::from_raw(0);
    if setresuid(root, root, root).is_ok() { Err(SurrenderError::Regained) } else { Ok(()) }
}

fn set_limits(declared: &Declared, configured: Option<&ConfiguredLimits>) -> Result<(), SurrenderError> {
    let build = configured.and_then(|configured| configured.build);
    for limit in &declared.limits {
        let value = match limit.value {
            LimitValue::Number(number) => Some(number),
            LimitValue::FromConfiguration(ConfiguredLimit::OpenFiles) => configured.map(|c| c.open_files),
            LimitValue::FromConfiguration(ConfiguredLimit::Processes) => configured.and_then(|c| c.processes),
            LimitValue::FromConfiguration(ConfiguredLimit::BuildCpu) => build.map(|build| build.cpu.into()),
            LimitValue::FromConfiguration(ConfiguredLimit::BuildMemory) => build.map(|build| build.memory),
            LimitValue::FromConfiguration(ConfiguredLimit::BuildOutput) => build.map(|build| build.output),
        };
        if let Some(value) = value {
            let (name, resource) = limit.limit.resource();
            set_limit(name, resource, value)?;
        }
    }
    Ok(())
}

/// Sets the soft and the hard limit; lowering needs no privilege.
fn set_limit(name: &'static str, resource: Resource, wanted: u64) -> Result<(), SurrenderError> {
    let (_, hard) = getrlimit(resource).map_err(call("read a resource limit"))?;
    if wanted > hard {
        return Err(SurrenderError::Limit { limit: name, wanted, hard });
    }
    // At the hard one the kernel sends SIGKILL, which tells nobody why; at the soft one SIGXCPU.
    let above = if resource == Resource::RLIMIT_CPU { wanted.saturating_add(1).min(hard) } else { wanted };
    setrlimit(resource, wanted, above).map_err(call("set a resource limit"))
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

    #[test]
    fn supervisor_and_spawner_share_what_the_service_needs() {
        let of = |role| Declared::of(role).expect("file").capability_mask();
        let needed = mask(&SERVICE_NEEDS.into_iter().collect());
        assert_eq!(of(Role::Supervisor) | of(Role::Spawner), needed);
        assert_eq!(of(Role::Supervisor) & of(Role::Spawner), 0);
    }

    #[test]
    fn uid_0_is_refused_before_anything_is_done() {
        let limits = ConfiguredLimits { open_files: 64, processes: None, build: None };
        let pid = Pid::this().as_raw();
        let refused = surrender(Role::Worker, (0, 0), Isolation::DistinctUids, &limits, pid);
        assert!(matches!(refused, Err(SurrenderError::Root)));
    }
}
