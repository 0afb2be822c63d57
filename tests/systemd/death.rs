//! Every role crashes, is killed and is stopped; the whole service dies over and over.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;

use crate::Test;
use crate::machine::{
    DECIDE, Process, SERVICE, SOCKETS, answers, journal, output, process, processes, property, roles, started,
    systemctl, text,
};
use crate::support::PATIENCE;

pub(crate) const TESTS: &[Test] = &[
    ("death::every_role_that_is_killed_is_back", every_role_that_is_killed_is_back),
    ("death::every_role_that_crashes_is_back", every_role_that_crashes_is_back),
    ("death::a_stopped_child_is_healed_without_systemd", a_stopped_child_is_healed_without_systemd),
    ("death::a_stopped_supervisor_is_ended_by_the_watchdog", a_stopped_supervisor_is_ended_by_the_watchdog),
    ("death::a_crash_loop_ends_at_the_start_limit_and_says_so", a_crash_loop_ends_at_the_start_limit_and_says_so),
];

fn every_role_that_is_killed_is_back() {
    for_every_role(Signal::SIGKILL, "killed");
}

/// SIGSEGV from outside is what a bug would raise inside.
fn every_role_that_crashes_is_back() {
    for_every_role(Signal::SIGSEGV, "crashed");
    assert_eq!(cores(), Vec::<String>::new());
}

fn for_every_role(signal: Signal, how: &str) {
    started();
    let roles = roles();
    for expected in ["supervisor", "frontend", "worker"] {
        assert!(roles.iter().any(|role| role == expected), "{roles:?}");
    }
    for role in &roles {
        answers();
        let before = restarts();
        let victim = process(role);
        let everybody: Vec<Process> = processes().into_keys().map(Process::of).collect();
        victim.signal(signal);
        victim.ended();
        // Whoever asks waits for what comes next, and gets the right answer from it.
        answers();
        if role == "supervisor" {
            everybody.iter().for_each(Process::ended);
            assert_eq!(restarts(), before + 1, "systemd starts it again once\n{}", journal());
        }
        if ["frontend", "worker"].contains(&role.as_str()) {
            assert_eq!(restarts(), before, "a {role} that was {how} is the supervisor's business\n{}", journal());
        }
        systemctl(&["reload", SERVICE]);
        assert_eq!(self::roles(), roles, "after a {role} was {how}");
    }
}

fn restarts() -> u32 {
    property(SERVICE, "NRestarts").parse().expect("number")
}

/// Core dumps, wherever one could have been put.
fn cores() -> Vec<String> {
    ["/", "/tmp", "/var/lib/systemd/coredump", "/usr/lib/portcullis", "/var/cache/portcullis/shared"]
        .iter()
        .flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten())
        .map(|entry| entry.path().display().to_string())
        .filter(|path| path.rsplit('/').next().is_some_and(|name| name.starts_with("core")))
        .collect()
}

fn a_stopped_child_is_healed_without_systemd() {
    started();
    let before = process("supervisor").pid;
    for role in ["frontend", "worker"] {
        answers();
        let victim = process(role);
        victim.signal(Signal::SIGSTOP);
        // Nothing can go on in it: somebody has killed it.
        victim.ended();
        answers();
    }
    assert_eq!((restarts(), process("supervisor").pid), (0, before), "{}", journal());
}

fn a_stopped_supervisor_is_ended_by_the_watchdog() {
    started();
    answers();
    let everybody: Vec<Process> = processes().into_keys().map(Process::of).collect();
    process("supervisor").signal(Signal::SIGSTOP);
    everybody.iter().for_each(Process::ended);
    answers();
    assert_eq!(restarts(), 1, "{}", journal());
    let said = journal();
    assert!(said.contains("Watchdog timeout (limit 2s)!"), "{said}");
    assert!(said.contains("Failed with result 'watchdog'"), "{said}");
}

fn a_crash_loop_ends_at_the_start_limit_and_says_so() {
    started();
    let limit: u32 = property(SERVICE, "StartLimitBurst").parse().expect("number");
    // The start above was the first.
    for start in 2..=limit {
        let supervisor = process("supervisor");
        supervisor.signal(Signal::SIGKILL);
        supervisor.ended();
        answers();
        assert_eq!(restarts(), start - 1);
    }
    // This client waits for a service that does not come: systemd closes the socket when it gives up.
    let mut waiting = UnixStream::connect(DECIDE).expect("connect");
    waiting.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let supervisor = process("supervisor");
    supervisor.signal(Signal::SIGKILL);
    supervisor.ended();
    let _ = waiting.read(&mut [0]);
    let mut late = UnixStream::connect(DECIDE);
    if let Ok(late) = &mut late {
        late.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let end = late.read(&mut [0]);
        assert!(!matches!(&end, Err(why) if why.kind() == std::io::ErrorKind::WouldBlock), "{}", journal());
    }
    assert_eq!(processes().len(), 0);
    let said = journal();
    assert!(said.contains("Start request repeated too quickly."), "{said}");
    assert!(said.contains("Failed with result 'start-limit-hit'") || said.contains("Failed with result 'signal'"), "{said}");
    assert_eq!(property(SERVICE, "ActiveState"), "failed", "{said}");
    // As the operator is told.
    let refused = output("systemctl", &["start", SERVICE]);
    assert!(!refused.status.success());
    assert!(text(&refused).contains("reset-failed"), "{}", text(&refused));
    systemctl(&["reset-failed", SERVICE, SOCKETS[0], SOCKETS[1]]);
    systemctl(&["start", SERVICE]);
    answers();
}
