//! Every role crashes, is killed and is stopped; the whole service dies over and over.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use portcullis::client::ClientError;
use portcullis::client::blocking::Connection;

use crate::Test;
use crate::machine::{
    DECIDE, Process, SERVICE, SOCKETS, SOUND, answers, client, configure, drop_in, everybody, impatient,
    installed, journal, process, processes, property, roles, settled, started, systemctl,
};
use crate::support::{PATIENCE, tenant};

pub(crate) const TESTS: &[Test] = &[
    ("death::every_role_that_is_killed_is_back", every_role_that_is_killed_is_back),
    ("death::every_role_that_crashes_is_back", every_role_that_crashes_is_back),
    ("death::a_stopped_child_is_healed_without_systemd", a_stopped_child_is_healed_without_systemd),
    ("death::a_stopped_supervisor_is_ended_by_the_watchdog", a_stopped_supervisor_is_ended_by_the_watchdog),
    (
        "death::a_class_that_keeps_dying_does_not_end_the_others",
        a_class_that_keeps_dying_does_not_end_the_others,
    ),
    (
        "death::a_crash_loop_ends_at_the_start_limit_and_says_so",
        a_crash_loop_ends_at_the_start_limit_and_says_so,
    ),
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
    assert!(roles.len() >= 5, "{roles:?}");
    for role in &roles {
        answers();
        let before = restarts();
        let victim = process(role);
        let everybody = everybody();
        victim.signal(signal);
        victim.ended();
        let healed = ["frontend", "registry", "worker"].contains(&role.as_str());
        if !healed {
            everybody.iter().for_each(Process::ended);
        }
        // Whoever asks waits for what comes next, and gets the right answer from it.
        answers();
        if healed {
            assert_eq!(
                restarts(),
                before,
                "a {role} that was {how} is the supervisor's business\n{}",
                journal()
            );
        } else {
            assert_eq!(
                restarts(),
                before + 1,
                "without a {role} systemd starts everything again\n{}",
                journal()
            );
        }
        systemctl(&["reload", SERVICE]);
        // The next is killed when everybody who was replaced has ended.
        settled();
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
    installed();
    impatient();
    systemctl(&["start", SERVICE]);
    answers();
    let everybody = everybody();
    process("supervisor").signal(Signal::SIGSTOP);
    everybody.iter().for_each(Process::ended);
    answers();
    let said = journal();
    assert_eq!(restarts(), 1, "{said}");
    assert!(said.contains("Watchdog timeout (limit 2s)!"), "{said}");
    assert!(said.contains("Failed with result 'watchdog'"), "{said}");
}

/// For longer than the watchdog waits.
fn a_class_that_keeps_dying_does_not_end_the_others() {
    const LONGER: Duration = Duration::from_secs(3);
    installed();
    impatient();
    let cache = "/var/cache/portcullis/alone";
    fs::create_dir(cache).expect("mkdir");
    fs::set_permissions(cache, fs::Permissions::from_mode(0o700)).expect("chmod");
    chown(cache, Some(61002), Some(61002)).expect("chown");
    let alone = format!(
        "[class.alone]\nuid = 61002\ngid = 61002\ncache = {cache:?}\n\
         [tenant.lonely]\nclass = \"alone\"\npolicies = []\nuids = [0]\n"
    );
    configure(&format!("{SOUND}{alone}"));
    systemctl(&["start", SERVICE]);
    let mut client = client();
    let begun = Instant::now();
    let mut deaths = 0;
    // More than once, however slow the machine is: a class that dies once does not keep dying.
    while begun.elapsed() < LONGER || deaths < 2 {
        // Waits for the class to be there.
        client.ping(&tenant("lonely"), PATIENCE).unwrap_or_else(|why| panic!("{why}\n{}", journal()));
        let owned = |pid: &i32| fs::metadata(format!("/proc/{pid}")).is_ok_and(|of| of.uid() == 61002);
        let victim = processes().into_keys().find(owned).and_then(Process::find);
        // Between a death and the next life the connection is the old one's.
        let Some(victim) = victim else { continue };
        victim.signal(Signal::SIGKILL);
        victim.ended();
        deaths += 1;
        answers();
    }
    assert_eq!(restarts(), 0, "{}", journal());
    assert!(
        !journal().contains("worker shared generation 2"),
        "the other class goes on as it was\n{}",
        journal()
    );
}

fn a_crash_loop_ends_at_the_start_limit_and_says_so() {
    installed();
    let limit: u32 = property(SERVICE, "StartLimitBurst").parse().expect("number");
    assert_eq!(property(SERVICE, "StartLimitIntervalUSec"), "1min", "the unit as it is packaged");
    // Here as many starts may take longer than that, and the limit is to be met.
    drop_in(SERVICE, "[Unit]\nStartLimitIntervalSec=10min\n");
    assert_eq!(property(SERVICE, "StartLimitBurst"), limit.to_string());
    systemctl(&["start", SERVICE]);
    let mut starts = 1;
    loop {
        answers();
        let supervisor = process("supervisor");
        supervisor.signal(Signal::SIGKILL);
        supervisor.ended();
        if is_given_up() {
            break;
        }
        starts += 1;
        assert!(starts <= limit, "it is started for ever\n{}", journal());
    }
    assert_eq!(starts, limit);
    println!("measured: given up after {starts} starts that served; at most {limit} in a minute");
    let said = journal();
    assert!(said.contains("Start request repeated too quickly."), "{said}");
    assert_eq!(property(SERVICE, "ActiveState"), "failed", "{said}");
    assert_eq!(processes().len(), 0);
    for socket in SOCKETS {
        assert_eq!(property(socket, "Result"), "service-start-limit-hit", "{said}");
    }
    // An operator gets it back.
    systemctl(&["reset-failed", SERVICE, SOCKETS[0], SOCKETS[1]]);
    systemctl(&["start", SERVICE]);
    answers();
}

/// Waits for the next start, or until systemd has closed the socket because there will be none.
fn is_given_up() -> bool {
    loop {
        match Connection::open(Path::new(DECIDE), &tenant("acme"), PATIENCE) {
            Ok(_) => return false,
            Err(ClientError::Connect { .. }) => return true,
            // The end of what was there, or the beginning of what comes.
            Err(ClientError::Closed(_) | ClientError::Farewell(_)) => {}
            Err(why) => panic!("{why}\n{}", journal()),
        }
    }
}
