//! No rule that nothing uses: a service does everything that its processes are for, under a tracer, and each call is held
//! against the rules of every filter it had to pass.

use std::collections::HashSet;
use std::os::unix::net::UnixListener;
use std::process::Command;

use portcullis::sandbox::Role;

use crate::jobs;
use crate::rules::{self, Rule};
use crate::scene;
use crate::tracer::{self, Call};
use crate::workload;

/// Rules that are used where no test can bring it about: role, beginning of the rule, reason.
const UNSEEN: &[(&str, &str, &str)] = &[
    ("frontend", "clock_gettime", VDSO),
    ("worker", "clock_gettime", VDSO),
    ("worker", "futex (FUTEX_WAIT,", MALLOC),
    ("supervisor", "clock_gettime", VDSO),
    ("registry", "clock_gettime", VDSO),
    ("exporter", "clock_gettime", VDSO),
    (
        "exporter",
        "futex (FUTEX_WAKE,",
        "locks of std and tokio: one thread has nobody to wake, unless it crashes",
    ),
    ("exporter", "socket (AF_INET6", V6),
    ("gateway", "clock_gettime", VDSO),
    ("gateway", "futex (FUTEX_WAIT,", MALLOC),
    ("spawner", "socket (AF_INET6", V6),
    ("builder", "clock_gettime", VDSO),
    (
        "builder",
        "pwritev2",
        "a builder has something to say when it fails in a way of its own, which none here does",
    ),
    ("builder", "restart_syscall", "a builder that was stopped in a timed wait; its waits are milliseconds"),
    (
        "builder",
        "futex (FUTEX_WAIT_BITSET,",
        "std's channels: the thread for the job usually waits before the seal",
    ),
    ("spawner", "clock_gettime", VDSO),
    ("spawner", "futex (FUTEX_WAIT,", MALLOC),
    ("spawner", "fstat", "ld.so of glibc 2.39 and later asks this way what it has opened"),
    ("spawner", "sched_yield", "std's channels, when two threads of a child meet in one: chance again"),
    ("spawner", "arch_prctl (ARCH_CET_STATUS)", "ld.so of glibc 2.39 and later asks for shadow stacks"),
];
const VDSO: &str = "on a machine whose clock the vDSO cannot read, asking for the time is a system call";
const V6: &str = "there is one collector at a time, and this one is at an address of IPv4";
const MALLOC: &str =
    "glibc's own locks: two threads in malloc at the same moment, which only chance brings about";

pub(crate) fn no_rule_is_there_that_nothing_uses() {
    let mut seen = HashSet::new();
    for run in workload::RUNS {
        seen.extend(traced(*run));
    }
    seen.extend(traced_jobs());
    assert!(seen.len() > 1000, "{} calls: the tracer sees too little", seen.len());
    let mut wrong = Vec::new();
    // The fetcher is no part of the service.
    for role in Role::ALL.into_iter().filter(|role| *role != Role::Fetcher) {
        let rules = rules::of(role);
        let under: Vec<&Call> =
            seen.iter().filter(|call| call.filters.iter().any(|filter| filter == role.name())).collect();
        assert!(under.len() > 20, "{role}: {} calls: the tracer does not see it", under.len());
        let used = used(&rules, &under).unwrap_or_else(|stray| panic!("{role}: no rule allows {stray:?}"));
        let unseen: Vec<&str> =
            UNSEEN.iter().filter(|(of, ..)| *of == role.name()).map(|(_, rule, _)| *rule).collect();
        for (number, rule) in rules.iter().enumerate() {
            if !used.contains(&number) && !unseen.iter().any(|unseen| rule.name.starts_with(unseen)) {
                wrong.push(format!("{role}: nothing uses {}", rule.name));
            }
        }
        for unseen in unseen.iter().filter(|unseen| !rules.iter().any(|rule| rule.name.starts_with(**unseen)))
        {
            wrong.push(format!("{role}: there is no rule {unseen} that could be unseen"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Which rules are used; a call that none allows is an error: it could not have been made.
fn used<'c>(rules: &[Rule], calls: &[&'c Call]) -> Result<HashSet<usize>, &'c Call> {
    let mut used = HashSet::new();
    for call in calls {
        let by = rules.iter().position(|rule| rule.allows(call.number, &call.arguments)).ok_or(*call)?;
        used.insert(by);
    }
    Ok(used)
}

/// Does builders' jobs under the tracer.
fn traced_jobs() -> HashSet<Call> {
    let directory = tempfile::tempdir().expect("directory");
    let socket = directory.path().join("tracer.sock");
    let listener = UnixListener::bind(&socket).expect("bind");
    let own = std::env::current_exe().expect("exe");
    let mut jobs = Command::new(&own);
    jobs.arg(tracer::START).arg(&socket).arg(&own).arg(jobs::ARGUMENT);
    let mut jobs = jobs.spawn().expect("start");
    let seen = tracer::calls(listener.accept().expect("accept").0);
    assert!(jobs.wait().expect("wait").success(), "the builders' jobs");
    seen
}

/// Runs a service under the tracer, and lets `run` use it up.
fn traced(run: workload::Run) -> HashSet<Call> {
    let mut site = workload::site();
    let socket = site.path("tracer.sock");
    let listener = UnixListener::bind(&socket).expect("bind");
    let own = std::env::current_exe().expect("exe");
    let text = |path: &std::path::Path| path.to_str().expect("text").to_owned();
    site.through = vec![text(&own), tracer::START.to_owned(), text(&socket)];
    // The trace has to be read while the service runs, or the tracer would wait.
    let reader = std::thread::spawn(move || tracer::calls(listener.accept().expect("accept").0));
    let service = scene::start(site);
    run(service);
    reader.join().expect("the trace")
}
