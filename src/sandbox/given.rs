//! What the supervisor left to this process, checked before anything else happens in it, and the step from there into
//! Landlock. Nothing here takes power away: that was to be done before exec, and is refused if it was not.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use nix::sys::prctl;
use nix::sys::resource::getrlimit;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, getcwd, getgid, setresgid, setresuid};

use super::declared::{Declared, LimitValue};
use super::landlock::{self, Places};
use super::status::{Mismatch, Status};
use super::{Confined, Role, SealError};
use crate::wire::control::Isolation;

/// Proof: what the supervisor left has been checked.
#[derive(Debug)]
#[must_use = "checked in order to be confined"]
pub struct Given {
    role: Role,
    declared: Declared,
}

impl Given {
    /// Checks that this process runs as `uid` and `gid` and nothing else, holds the capabilities its file declares and
    /// no other, cannot get back to root without them, has the limits that are declared, one thread, umask 077 and `/`
    /// as its directory.
    ///
    /// Call it first, while the process has one thread and is still dumpable.
    ///
    /// # Errors
    /// Names the first thing that is not as it must be.
    pub fn check(role: Role, uid: u32, gid: u32, isolation: Isolation) -> Result<Self, SealError> {
        let left = |mismatch| SealError::Left { role, mismatch };
        let declared = Declared::of(role)?;
        // These two keep the service's own UID.
        let has_power = matches!(role, Role::Supervisor | Role::Spawner);
        if uid == 0 && !has_power {
            return Err(SealError::Root { role });
        }
        let status = Status::of_this_thread()?;
        status.expect_identity(uid, gid, isolation).map_err(left)?;
        status.expect_capabilities(declared.capability_mask(), isolation).map_err(left)?;
        status.expect_abort_works().map_err(left)?;
        if !has_power {
            cannot_regain_root(role)?;
        }
        for limit in &declared.limits {
            let LimitValue::Number(value) = limit.value else { continue };
            let (name, resource) = limit.limit.resource();
            let (soft, hard) = getrlimit(resource).map_err(call("read a resource limit"))?;
            if (soft, hard) != (value, value) {
                return Err(left(Mismatch::new(name, format!("{soft}/{hard}"), format!("{value}/{value}"))));
            }
        }
        let directory = getcwd().map_err(call("read the working directory"))?;
        if directory.as_os_str() != "/" {
            return Err(left(Mismatch::new("working directory", directory.display(), "/")));
        }
        // There is no call that reads the mask without setting it.
        let mask = umask(Mode::from_bits_truncate(0o077)).bits();
        if mask != 0o077 {
            return Err(left(Mismatch::new("umask", format!("{mask:03o}"), "077")));
        }
        single_thread(role)?;
        control(role)?;
        Ok(Self { role, declared })
    }

    /// Makes this process not dumpable and puts it under Landlock with nothing but what its file allows, in `places`.
    /// Covers this thread and those it starts from now on, so there must be no other.
    ///
    /// Opens `/proc/self/pagemap` no more: create the engine before.
    ///
    /// # Errors
    /// The kernel lacks a right that is required here, a path cannot be opened, or the proof fails.
    pub fn confine(self, places: &Places) -> Result<Confined, SealError> {
        single_thread(self.role)?;
        prctl::set_dumpable(false).map_err(call("clear PR_SET_DUMPABLE"))?;
        control(self.role)?;
        let mut landlock_abi = 0;
        for domain in self.declared.landlock.iter().filter(|one| !landlock::is_shared(self.role, one)) {
            landlock_abi = landlock::restrict(domain, places)?;
        }
        landlock::prove(self.role)?;
        Ok(Confined { role: self.role, landlock_abi })
    }
}

/// The probe that has to fail under Landlock has to work without, or its failure is no proof.
fn control(role: Role) -> Result<(), SealError> {
    let path = landlock::probe(role);
    File::options()
        .read(true)
        .custom_flags(nix::libc::O_CLOEXEC)
        .open(path)
        .map(drop)
        .map_err(|source| SealError::Control { path, source })
}

fn cannot_regain_root(role: Role) -> Result<(), SealError> {
    let root = Uid::from_raw(0);
    if setresuid(root, root, root).is_ok() {
        return Err(SealError::Regained { role });
    }
    // Where a process without capabilities was given gid 0 on purpose, this one is its own.
    let group = Gid::from_raw(0);
    if getgid() != group && setresgid(group, group, group).is_ok() {
        return Err(SealError::Regained { role });
    }
    Ok(())
}

fn single_thread(role: Role) -> Result<(), SealError> {
    let threads = std::fs::read_dir("/proc/self/task")
        .map_err(|source| SealError::Call { step: "list \"/proc/self/task\"", source })?
        .count();
    if threads == 1 { Ok(()) } else { Err(SealError::TooManyThreads { role, threads }) }
}

fn call(step: &'static str) -> impl Fn(nix::Error) -> SealError {
    move |errno| SealError::Call { step, source: io::Error::from(errno) }
}
