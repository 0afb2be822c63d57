//! The supervisor's look at a child that says it is sealed: every thread, as the kernel sees it.
//!
//! Promise nothing, look. What a child tells of itself is not used here. Landlock cannot be seen from outside; a child
//! proves that itself, on each thread.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::status::{Mismatch, Status, StatusError};
use super::{Declared, DeclaredError, Role};
use crate::wire::control::Isolation;

/// A sealed role makes no threads, so the second look already finds the same ones.
const LOOKS: usize = 8;

/// What a child must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    pub role: Role,
    pub uid: u32,
    pub gid: u32,
    pub isolation: Isolation,
    /// Seccomp filters in force on every thread, those it was born under included.
    pub filters: u32,
}

/// How many seccomp filters are in force on the calling thread: what a child made now would be born under.
///
/// # Errors
/// `/proc` cannot be read.
pub fn own_filters() -> Result<u32, StatusError> {
    Ok(Status::of_this_thread()?.seccomp_filters)
}

/// What was seen: all threads as expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Witnessed {
    pub threads: u32,
}

/// Why no traffic may reach the process.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    #[error("witness {role} pid {pid} thread {thread}: {mismatch}")]
    Thread { role: Role, pid: i32, thread: i32, mismatch: Mismatch },
    #[error(transparent)]
    Declared(#[from] DeclaredError),
    #[error("witness {role} pid {pid}: it is gone")]
    Gone { role: Role, pid: i32 },
    #[error("witness {role} pid {pid}: its threads still change after {LOOKS} looks")]
    Restless { role: Role, pid: i32 },
    #[error("witness {role} pid {pid}: {source}")]
    Status { role: Role, pid: i32, source: StatusError },
    #[error("witness {role} pid {pid}: list \"{path}\": {source}; /proc must show other users' processes")]
    List { role: Role, pid: i32, path: PathBuf, source: io::Error },
}

/// Reads the status of every thread of `pid` until two looks in a row find the same threads, all as `expected`.
///
/// `pid` must be a child of the caller that it has not waited for, so that the number cannot come to mean another process.
///
/// # Errors
/// Names the thread and the field that is not as expected.
pub fn look(pid: i32, expected: &Expected) -> Result<Witnessed, WitnessError> {
    let role = expected.role;
    let held = Declared::of(role)?.capability_mask();
    let mut before = BTreeSet::new();
    for _ in 0..LOOKS {
        let threads = threads(pid, role)?;
        let mut vanished = false;
        for &thread in &threads {
            vanished |= !check(pid, thread, expected, held)?;
        }
        if threads == before && !vanished {
            let threads = u32::try_from(threads.len()).unwrap_or(u32::MAX);
            return Ok(Witnessed { threads });
        }
        before = threads;
    }
    Err(WitnessError::Restless { role, pid })
}

fn threads(pid: i32, role: Role) -> Result<BTreeSet<i32>, WitnessError> {
    let path = PathBuf::from(format!("/proc/{pid}/task"));
    let listed = std::fs::read_dir(&path).and_then(|entries| {
        entries
            .map(|entry| {
                let name = entry?.file_name();
                name.to_str().and_then(|name| name.parse().ok()).ok_or(io::ErrorKind::InvalidData.into())
            })
            .collect::<io::Result<BTreeSet<i32>>>()
    });
    match listed {
        Ok(threads) if threads.is_empty() => Err(WitnessError::Gone { role, pid }),
        Ok(threads) => Ok(threads),
        Err(error) if is_gone(&error) => Err(WitnessError::Gone { role, pid }),
        Err(source) => Err(WitnessError::List { role, pid, path, source }),
    }
}

/// False if the thread ended between the listing and the look.
fn check(pid: i32, thread: i32, expected: &Expected, held: u64) -> Result<bool, WitnessError> {
    let Expected { role, uid, gid, isolation, filters } = *expected;
    let path = format!("/proc/{pid}/task/{thread}/status");
    let status = match Status::read(Path::new(&path)) {
        Ok(status) => status,
        Err(StatusError::Read { source, .. }) if is_gone(&source) => return Ok(false),
        Err(source) => return Err(WitnessError::Status { role, pid, source }),
    };
    if matches!(status.state, 'Z' | 'X') {
        return Err(WitnessError::Gone { role, pid });
    }
    status
        .expect_sealed(filters)
        .and_then(|()| status.expect_identity(uid, gid, isolation))
        .and_then(|()| status.expect_capabilities(held, isolation))
        .map(|()| true)
        .map_err(|mismatch| WitnessError::Thread { role, pid, thread, mismatch })
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECTED: Expected = Expected {
        role: Role::Worker,
        uid: 61001,
        gid: 61001,
        isolation: Isolation::DistinctUids,
        filters: 1,
    };

    #[test]
    fn this_test_is_not_sealed_and_the_error_names_pid_thread_and_field() {
        let pid = i32::try_from(std::process::id()).expect("pid");
        let error = look(pid, &EXPECTED).expect_err("not sealed").to_string();
        assert!(error.starts_with(&format!("witness worker pid {pid} thread ")), "{error}");
        assert!(error.ends_with(": NoNewPrivs is 0, expected 1"), "{error}");
    }

    #[test]
    fn a_process_that_is_not_there_is_gone() {
        // Larger than any pid_max.
        let error = look(i32::MAX, &EXPECTED).expect_err("gone");
        assert_eq!(error.to_string(), "witness worker pid 2147483647: it is gone");
    }
}
