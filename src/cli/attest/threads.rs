//! Every thread's status: who it is, what it may, which filters it has.

use super::Expectations;
use super::process::Subject;
use super::report::{Area, Findings, Verdict};
use super::view;
use crate::sandbox::{Declared, Status};
use crate::supervisor::config::Identity;
use crate::wire::control::Isolation;

/// Looks at each thread by itself: no state of a process is taken for that of its threads.
pub(super) fn check(subject: &Subject, expected: &Expectations, findings: &mut Findings) {
    let threads = match view::numbers(subject.pid, "task") {
        Ok(threads) => threads,
        Err(unseen) => {
            return findings.add(Area::Threads, "threads", Verdict::unseen(&unseen, "a list of threads"));
        }
    };
    // Supervisor and spawner are nobody's to witness: one thread, by design.
    let wanted = subject.threads.unwrap_or(1);
    findings.add(Area::Threads, "threads", Verdict::compare(threads.len(), wanted));
    for thread in &threads {
        match view::status(subject.pid, *thread) {
            Ok(status) => one(*thread, &status, subject, expected, findings),
            Err(unseen) => {
                let check = format!("thread {thread}");
                findings.add(Area::Threads, check, Verdict::unseen(&unseen, "a status"));
            }
        }
    }
    landlock(threads.len(), subject, findings);
}

fn one(thread: i32, status: &Status, subject: &Subject, expected: &Expectations, findings: &mut Findings) {
    let isolation = expected.isolation;
    let mut add =
        |check: &str, verdict| findings.add(Area::Threads, format!("thread {thread}: {check}"), verdict);
    let configured = expected.identity(subject);
    let [_, gid, ..] = status.gid;
    let Identity { uid, gid } = configured.unwrap_or(Identity { uid: subject.uid, gid });
    let groups = match isolation {
        Isolation::DistinctUids => "no groups",
        Isolation::SharedUid => "its user's groups",
    };
    add(
        "identity",
        Verdict::of(status.expect_identity(uid, gid, isolation), &format!("uid {uid}, gid {gid}, {groups}")),
    );
    let sets = match isolation {
        Isolation::DistinctUids => "all five sets",
        Isolation::SharedUid => "all but the bounding set",
    };
    let held = expected.declared(subject.role).map_or(0, Declared::capability_mask);
    add("capabilities", Verdict::of(status.expect_capabilities(held, isolation), sets));
    add(
        "no_new_privs and seccomp",
        match expected.filters(subject.role) {
            Some(filters) => {
                Verdict::of(status.expect_sealed(filters), &format!("sealed, {filters} filters"))
            }
            None => Verdict::hidden("the supervisor's filters, which are the measure, cannot be counted"),
        },
    );
    add("tracer", Verdict::compare(status.tracer, 0));
    if configured.is_none() {
        add("identity is the configured one", Verdict::hidden(expected.why_no_configuration()));
    }
}

/// `/proc` has nothing on Landlock (up to Linux 6.18 at least): what there is, is what the process said of itself.
fn landlock(threads: usize, subject: &Subject, findings: &mut Findings) {
    let check = "Landlock domain";
    match &subject.ready {
        Some(ready) if usize::try_from(ready.landlock_proven_threads) != Ok(threads) => {
            let found = format!("proven by {} threads, by its own word", ready.landlock_proven_threads);
            findings.add(Area::Threads, check, Verdict::different(&found, &format!("by all {threads}")));
        }
        Some(_) => findings.add(
            Area::Threads,
            check,
            Verdict::invisible(
                "Landlock is not shown in /proc; by its own word, each of its threads failed to open a file before \
                 it was sealed",
            ),
        ),
        None => findings.add(Area::Threads, check, Verdict::invisible("Landlock is not shown in /proc")),
    }
}
