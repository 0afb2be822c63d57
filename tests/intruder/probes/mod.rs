//! What an intruder tries, by what it is after. Each attempt is a few system calls of a thread that was taken over; the
//! same attempt is made in a process of the same UID that has no sandbox, where it must work, or be answered as the
//! kernel answers any ordinary process.

pub(crate) mod inside;
pub(crate) mod kernel;
pub(crate) mod outside;
pub(crate) mod processes;

use std::path::PathBuf;

use nix::libc;
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::hijack::{Answer, Thread};

/// One attempt.
pub(crate) struct Probe {
    pub(crate) name: &'static str,
    /// What happens without a sandbox.
    pub(crate) unsealed: Unsealed,
    /// Roles that are to be able to do it, or that something else stops than is usual, and why.
    pub(crate) but: &'static [(&'static str, Instead)],
    pub(crate) attempt: fn(&mut Thread, &Surroundings) -> Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsealed {
    Works,
    /// Refused to an ordinary user with this errno.
    Refused(i32),
    /// What it answers depends on the machine; the process lives, which in a sealed one it must not.
    Lives,
}

/// What happens in a sealed process other than: death by SIGSYS in a worker, frontend, exporter or gateway; in the roles that
/// start them that, or EACCES or EPERM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Instead {
    /// Part of what the role is for.
    May(&'static str),
    /// Lets it be tried, and it fails with this.
    Errno(i32),
}

/// What is around the process.
pub(crate) struct Surroundings {
    pub(crate) supervisor: Pid,
    pub(crate) frontend: Pid,
    /// A worker of another class.
    pub(crate) sibling: Pid,
    /// An ordinary process of the same UID without any sandbox.
    pub(crate) stranger: Pid,
    pub(crate) socket: PathBuf,
    /// That only the process's user may enter, with a file in it.
    pub(crate) own_directory: TempDir,
    pub(crate) other_cache: PathBuf,
}

impl Surroundings {
    fn own_file(&self) -> PathBuf {
        self.own_directory.path().join("file")
    }
}

const fn probe(
    name: &'static str,
    unsealed: Unsealed,
    attempt: fn(&mut Thread, &Surroundings) -> Answer,
) -> Probe {
    Probe { name, unsealed, but: &[], attempt }
}

impl Probe {
    const fn but(mut self, but: &'static [(&'static str, Instead)]) -> Self {
        self.but = but;
        self
    }
}

const PAGE: u64 = 4096;
/// No descriptor.
const NONE: u64 = u64::MAX;
const AT_CWD: u64 = libc::AT_FDCWD.cast_unsigned() as u64;

/// Goes on with what a call has given, unless it was refused or the end.
fn then(first: Answer, next: impl FnOnce(u64) -> Answer) -> Answer {
    match first {
        Ok(given @ 0..) => next(given.cast_unsigned()),
        refused_or_dead => refused_or_dead,
    }
}

fn open(thread: &mut Thread, path: &str) -> Answer {
    let path = thread.text(path);
    thread.call(libc::SYS_openat, [AT_CWD, path, 0, 0, 0, 0])
}

fn number(pid: Pid) -> u64 {
    u64::from(pid.as_raw().cast_unsigned())
}

fn flag(flag: i32) -> u64 {
    u64::from(flag.cast_unsigned())
}
