//! Landlock: no file, no TCP, no signal and no abstract socket beyond this process, except what is listed.
//!
//! All rights of ABI 6 are handled and required (Linux 6.12); there is no best effort. It covers the calling thread and
//! those made after it, and /proc shows nothing of it, so every thread proves it by an `open` that fails.

use std::fs::File;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use nix::unistd::gettid;

use super::{Role, SealError};

/// The rights we know and require: files with truncate and device ioctls, TCP, signals, abstract sockets.
const REQUIRED: ABI = ABI::V6;

/// One thing a role may still reach by path. A path that is not there is an error, not a rule less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed<'a> {
    /// Read one file.
    ReadFile(&'a Path),
    /// Read and write one file or device, as it is: no truncating, no making, no removing.
    ReadWriteFile(&'a Path),
    /// List a directory and read everything beneath.
    ReadDir(&'a Path),
    /// List, read, make, write, rename and remove files, directories and sockets beneath.
    ReadWriteDir(&'a Path),
    /// Read and execute everything beneath (programs and shared libraries).
    Execute(&'a Path),
}

impl<'a> Allowed<'a> {
    fn path(self) -> &'a Path {
        match self {
            Self::ReadFile(path)
            | Self::ReadWriteFile(path)
            | Self::ReadDir(path)
            | Self::ReadWriteDir(path)
            | Self::Execute(path) => path,
        }
    }

    fn rights(self) -> BitFlags<AccessFs> {
        match self {
            Self::ReadFile(_) => AccessFs::ReadFile.into(),
            Self::ReadWriteFile(_) => AccessFs::ReadFile | AccessFs::WriteFile,
            Self::ReadDir(_) => AccessFs::ReadFile | AccessFs::ReadDir,
            Self::ReadWriteDir(_) => {
                AccessFs::ReadFile
                    | AccessFs::ReadDir
                    | AccessFs::WriteFile
                    | AccessFs::Truncate
                    | AccessFs::MakeReg
                    | AccessFs::MakeDir
                    | AccessFs::MakeSock
                    | AccessFs::RemoveFile
                    | AccessFs::RemoveDir
                    | AccessFs::Refer
            }
            Self::Execute(_) => AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir,
        }
    }
}

/// What every child needs of the system before it puts itself under a Landlock of its own, and so what the supervisor
/// must allow, whose Landlock its children inherit: libraries, what the kernel says of the process and the machine,
/// and /dev/null. The binaries' directory and all that is the service's own come beside it.
#[must_use]
pub fn system_paths() -> Vec<Allowed<'static>> {
    [
        Allowed::Execute(Path::new("/usr/lib")),
        Allowed::Execute(Path::new("/usr/lib64")),
        Allowed::Execute(Path::new("/lib")),
        Allowed::Execute(Path::new("/lib64")),
        Allowed::ReadFile(Path::new("/etc/ld.so.cache")),
        Allowed::ReadDir(Path::new("/proc")),
        Allowed::ReadDir(Path::new("/sys/fs/cgroup")),
        Allowed::ReadDir(Path::new("/sys/devices/system/cpu")),
        Allowed::ReadWriteFile(Path::new("/dev/null")),
    ]
    .into_iter()
    // Distributions differ in which of them there are; what is missing cannot be needed.
    .filter(|allowed| allowed.path().exists())
    .collect()
}

/// Proves on the calling thread, which may be any, that Landlock lets a frontend or worker open nothing: an `open`
/// that worked in [`Given::check`](super::Given::check) fails now.
///
/// # Errors
/// The `open` succeeded (this thread was started before `confine`) or failed for another reason.
pub fn prove_landlock() -> Result<(), SealError> {
    prove(Role::Worker)
}

/// What to open. Children live under the supervisor's Landlock as well as their own, so the probe must be something
/// that the supervisor's allows; the supervisor is allowed /proc, so its own probe is the root directory.
pub(super) const fn probe(role: Role) -> &'static str {
    match role {
        Role::Supervisor => "/",
        Role::Frontend | Role::Worker => "/proc/self/status",
    }
}

pub(super) fn prove(role: Role) -> Result<(), SealError> {
    let path = probe(role);
    let thread = gettid().as_raw();
    match File::open(path) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EACCES) => Ok(()),
        Err(source) => Err(SealError::Unproven { path, thread, source }),
        Ok(_) => Err(SealError::StillOpen { path, thread }),
    }
}

/// Puts the calling thread under Landlock; sets no_new_privs too. Returns the kernel's ABI.
pub(super) fn restrict(allowed: &[Allowed<'_>]) -> Result<u32, SealError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(REQUIRED))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(REQUIRED)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(REQUIRED)))
        .map_err(|source| SealError::LandlockMissing { source })?
        .create()
        .map_err(|source| match source {
            RulesetError::CreateRuleset(_) => SealError::LandlockMissing { source },
            other => SealError::Landlock(other),
        })?;
    for allow in allowed {
        let refused = |source: Box<dyn std::error::Error + Send + Sync>| SealError::LandlockRule {
            path: allow.path().to_owned(),
            source,
        };
        let path = PathFd::new(allow.path()).map_err(|error| refused(Box::new(error)))?;
        ruleset = ruleset
            .add_rule(PathBeneath::new(path, allow.rights()))
            .map_err(|error| refused(Box::new(error)))?;
    }
    let status = ruleset.restrict_self().map_err(SealError::Landlock)?;
    match (status.ruleset, status.no_new_privs, status.landlock) {
        (RulesetStatus::FullyEnforced, true, LandlockStatus::Available { effective_abi, kernel_abi }) => {
            let abi = kernel_abi.unwrap_or(effective_abi as i32);
            u32::try_from(abi).map_err(|_| SealError::LandlockPartial(format!("ABI {abi}")))
        }
        (ruleset, no_new_privs, landlock) => {
            Err(SealError::LandlockPartial(format!("{ruleset:?}, no_new_privs {no_new_privs}, {landlock:?}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// /proc says NoNewPrivs 1 and Seccomp 2 of such a thread all the same: only the proof shows it.
    #[test]
    fn landlock_is_proven_on_threads_made_after_it_and_refused_on_one_made_before() {
        let (ask, asked) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        // Landlock covers single threads, so this test's own thread can be the confined process.
        thread::scope(|scope| {
            scope.spawn(move || {
                asked.recv().expect("asked");
                tell.send(prove_landlock()).expect("tell");
            });
            scope.spawn(move || {
                assert!(matches!(prove_landlock(), Err(SealError::StillOpen { .. })), "control");
                let abi = restrict(&[]).expect("landlock");
                assert!(abi >= 6, "ABI {abi}");
                prove_landlock().expect("the thread that asked for it");
                for _ in 0..3 {
                    thread::spawn(|| prove_landlock().expect("a thread made after")).join().expect("join");
                }
                ask.send(()).expect("ask");
            });
        });
        let before = told.recv().expect("told");
        assert!(matches!(before, Err(SealError::StillOpen { .. })), "{before:?}");
    }

    #[test]
    fn what_is_allowed_can_be_done_and_nothing_beside() {
        let home = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| home.path().join(name);
        for name in ["read", "write", "other"] {
            std::fs::create_dir(at(name)).expect("mkdir");
            std::fs::write(at(name).join("file"), b"x").expect("write");
        }
        thread::scope(|scope| {
            scope.spawn(|| {
                let (read, write) = (at("read"), at("write"));
                let null = Path::new("/dev/null");
                restrict(&[
                    Allowed::ReadDir(&read),
                    Allowed::ReadWriteDir(&write),
                    Allowed::ReadWriteFile(null),
                ])
                .expect("landlock");
                std::fs::read(read.join("file")).expect("read");
                std::fs::write(read.join("file"), b"y").expect_err("write where only reading is allowed");
                std::fs::write(write.join("new"), b"y").expect("write");
                std::fs::rename(write.join("new"), write.join("file")).expect("rename");
                std::fs::remove_file(write.join("file")).expect("remove");
                File::options().write(true).open(null).expect("write /dev/null");
                let other = std::fs::read(at("other").join("file")).expect_err("not listed");
                assert_eq!(other.raw_os_error(), Some(nix::libc::EACCES));
            });
        });
    }

    #[test]
    fn a_path_that_is_not_there_is_an_error_that_names_it() {
        thread::spawn(|| {
            let error = restrict(&[Allowed::ReadFile(Path::new("/nonexistent/x"))]).expect_err("refused");
            assert!(error.to_string().starts_with("allow \"/nonexistent/x\" in Landlock: "), "{error}");
            prove_landlock().expect_err("nothing was enforced");
        })
        .join()
        .expect("join");
    }

    /// Pinned, so that a change of the rights a role is denied shows up in review.
    #[test]
    fn the_rights_that_are_denied() {
        assert_eq!(AccessFs::from_all(REQUIRED).bits(), 0xffff);
        assert_eq!(AccessNet::from_all(REQUIRED).bits(), 0b11);
        assert_eq!(Scope::from_all(REQUIRED).bits(), 0b11);
    }

    #[test]
    fn a_kernel_without_landlock_is_refused_with_what_it_takes() {
        let source = Ruleset::default().create().expect_err("nothing handled");
        let text = SealError::LandlockMissing { source }.to_string();
        assert!(text.contains("Linux 6.12") && text.contains("/sys/kernel/security/lsm"), "{text}");
    }
}
