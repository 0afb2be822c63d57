//! The processes as the kernel sees them: every thread's status, read from `/proc`, and not what anybody says of
//! itself. But for Landlock, which `/proc` does not show: that each thread has tried and failed to open a file.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use super::DemoError;
use super::event::{Process, Unexpected};
use crate::sandbox::{Declared, Role, Status as Thread, StatusError};
use crate::wire::control::{self, Isolation, ProcessState};
use crate::wire::operator::Status;

/// All processes of the service that serve, the supervisor and the spawner among them.
pub(super) fn look(status: &Status) -> Result<(Vec<Process>, Isolation), DemoError> {
    let isolation = status.processes.isolation;
    // This process started the supervisor.
    let own = own_filters()?;
    let mut uids = HashSet::new();
    let mut processes = Vec::new();
    let serving = |process: &&control::Process| process.state == ProcessState::Serving;
    for known in status.processes.processes.iter().filter(serving) {
        let role = Role::ALL.into_iter().find(|role| role.name() == known.role);
        let mut seen = process(known, role, isolation, own)?;
        // These two are one user's, each with a part of the power.
        let shares = matches!(role, Some(Role::Supervisor | Role::Spawner));
        if !shares && !uids.insert(seen.uid) && isolation == Isolation::DistinctUids {
            seen.unexpected.0.push(format!("expected a UID of its own, {} is another's too", seen.uid));
        }
        processes.push(seen);
    }
    Ok((processes, isolation))
}

/// `started_under` is how many seccomp filters the service was started under: they say nothing of whether it is sealed.
fn process(
    known: &control::Process,
    role: Option<Role>,
    isolation: Isolation,
    started_under: u32,
) -> Result<Process, DemoError> {
    let pid = known.pid;
    let proc = format!("/proc/{pid}");
    let look = |cause| DemoError::Look { pid, cause };
    let threads = threads(Path::new(&proc)).map_err(look)?;
    let first = threads.first().ok_or_else(|| look(io::ErrorKind::NotFound.into()))?;
    let declared = role.and_then(|role| Declared::of(role).ok());
    let keeps = declared.map_or(0, |declared| declared.capability_mask());
    let may_hold = if isolation == Isolation::DistinctUids { keeps } else { 0 };
    let filters = started_under + role.map_or(0, Role::filters_in_force);
    let every = |holds: &dyn Fn(&Thread) -> bool| threads.iter().all(holds);
    let proven = known.ready.as_ref().map(|ready| ready.landlock_proven_threads);
    let expectations = [
        (role.is_some(), "expected a role that there is"),
        (every(&|thread| thread.effective == may_hold), "expected no other effective capabilities"),
        (
            isolation == Isolation::SharedUid || every(&|thread| thread.bounding == may_hold),
            "expected no other capabilities in the bounding set",
        ),
        (every(&|thread| thread.no_new_privs == 1), "expected no_new_privs on every thread"),
        (
            every(&|thread| thread.seccomp == 2 && thread.seccomp_filters == filters),
            "expected a seccomp filter of its own on every thread",
        ),
        (every(&|thread| thread.uid.iter().all(|uid| thread.uid.first() == Some(uid))), "expected one UID"),
        (first.uid.first() == Some(&known.uid), "expected the UID that status gives"),
        (
            proven.and_then(|proven| usize::try_from(proven).ok()) == Some(threads.len()),
            "expected every thread to have proved Landlock",
        ),
    ];
    Ok(Process {
        role: known.role.clone(),
        class: known.class.as_ref().map(ToString::to_string),
        pid,
        uid: first.uid.first().copied().unwrap_or(u32::MAX),
        cap_eff: format!("{:x}", threads.iter().fold(0, |all, thread| all | thread.effective)),
        cap_bnd: format!("{:x}", threads.iter().fold(0, |all, thread| all | thread.bounding)),
        no_new_privs: threads.iter().map(|thread| thread.no_new_privs).min().unwrap_or(0),
        seccomp: threads.iter().map(|thread| thread.seccomp).min().unwrap_or(0),
        seccomp_filters: threads.iter().map(|thread| thread.seccomp_filters).min().unwrap_or(0),
        threads: threads.len(),
        landlock_proven_threads: proven,
        landlock_abi: known.ready.as_ref().map(|ready| ready.landlock_abi),
        open_files: fs::read_dir(format!("{proc}/fd")).map(Iterator::count).ok(),
        unexpected: Unexpected::where_not(expectations),
    })
}

fn own_filters() -> Result<u32, DemoError> {
    let own = Thread::of_this_thread().map_err(cause);
    let look = |cause| DemoError::Look { pid: i32::try_from(std::process::id()).unwrap_or(0), cause };
    Ok(own.map_err(look)?.seccomp_filters)
}

fn threads(proc: &Path) -> io::Result<Vec<Thread>> {
    fs::read_dir(proc.join("task"))?
        .map(|entry| Thread::read(&entry?.path().join("status")).map_err(cause))
        .collect()
}

fn cause(error: StatusError) -> io::Error {
    match error {
        StatusError::Read { source, .. } => source,
        field @ StatusError::Field { .. } => io::Error::new(io::ErrorKind::InvalidData, field),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::Ready;

    /// This very process is not sealed: all of that must be noticed.
    #[test]
    fn a_process_that_is_not_sealed_is_not_as_expected() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let known = control::Process {
            role: "worker".to_owned(),
            class: None,
            generation: 1,
            pid,
            uid: 4_000_000_000,
            state: ProcessState::Serving,
            threads: 1,
            restarts: 0,
            ready: Some(Ready {
                loaded: 0,
                refused: 0,
                pagemap_scan: false,
                landlock_abi: 7,
                landlock_proven_threads: 0,
            }),
        };
        let seen =
            process(&known, Some(Role::Worker), Isolation::DistinctUids, own_filters().unwrap()).unwrap();
        let text = seen.unexpected.0.join("; ");
        for part in ["no_new_privs", "filter of its own", "UID that status gives", "proved Landlock"] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        assert!(seen.threads >= 1 && seen.open_files.is_some_and(|count| count > 0));
    }
}
