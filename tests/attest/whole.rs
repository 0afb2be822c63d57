//! A service as it should be, seen by root and by others.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::time::Instant;

use portcullis::decision::Outcome;
use portcullis::sandbox::{Declared, Environment, Role, Session};
use portcullis::wire::control::ProcessState;
use serde_json::Value;

use super::copies::copy_program;
use super::ports::free_port;
use super::support::{PATIENCE, Service, is_root};
use super::{Report, Test, attest, attest_command, program, site};

pub(super) const TESTS: &[Test] = &[
    ("whole::a_running_service_is_as_declared", a_running_service_is_as_declared),
    ("whole::every_declared_check_is_made", every_declared_check_is_made),
    ("whole::what_is_hidden_is_never_called_right", what_is_hidden_is_never_called_right),
    ("whole::people_get_a_table_that_fits", people_get_a_table_that_fits),
    ("whole::a_service_that_is_not_there_is_neither_right_nor_wrong", nobody_there),
];

/// Somebody who has nothing to do with the service.
const STRANGER: u32 = 12_345;

/// Once there is everybody who stays and nobody else: the service is ready without its exporter, and while the builder that has
/// looked at the policy is on its way out.
fn two_classes() -> Service {
    let mut site = site()
        .class("one", "")
        .class("two", "")
        .tenant("acme", "one", &[("gate", "hostile/selective")], "")
        .telemetry(&format!("listen = \"127.0.0.1:{}\"\n", free_port()));
    site.service.push_str(&format!("operators = [{STRANGER}]\n"));
    let service = site.start();
    let until = Instant::now() + PATIENCE;
    loop {
        let processes = service.status().processes.processes;
        let serves =
            |role: &str| processes.iter().any(|one| one.role == role && one.state == ProcessState::Serving);
        if serves("exporter") && processes.iter().all(|one| one.role != "builder") {
            return service;
        }
        assert!(Instant::now() < until, "{processes:#?}\n{}", service.log());
    }
}

fn a_running_service_is_as_declared() {
    let service = two_classes();
    attest(&service).assert_as_declared();
    // With an open connection, after decisions, and with workers of a later generation.
    let _connection = service.connect("acme");
    assert_eq!(service.ask("acme", "gate", b"allow").outcome, Outcome::Allow);
    attest(&service).assert_as_declared();
    assert_eq!(service.reload(), None);
    let report = attest(&service);
    report.assert_as_declared();
    // Root sees everything that anybody can see.
    let hidden = report.count("not_visible") - report.count("not_visible_to_anybody");
    assert_eq!(hidden == 0, is_root(), "{hidden} not visible");
}

/// As many as the files in `sandbox/` have lines, for each process, thread and number.
fn every_declared_check_is_made() {
    let service = two_classes();
    let processes = service.processes();
    let report = attest(&service);
    assert_eq!(processes.len(), 7, "{processes:?}");
    for process in &processes {
        let role = Role::ALL.into_iter().find(|role| role.name() == process.role).unwrap();
        let declared = Declared::of(role).unwrap();
        let names = |area: &str| -> BTreeSet<String> {
            let checks = report.checks(process.pid.into(), area);
            checks.iter().map(|finding| finding["check"].as_str().unwrap().to_owned()).collect()
        };
        // Identity, capabilities, seals and tracer of each thread; how many; Landlock.
        let threads = usize::try_from(process.threads).unwrap();
        assert_eq!(names("threads").len(), threads * 4 + 2, "{role}: {:?}", names("threads"));
        let shared = usize::from(!is_root() && !matches!(role, Role::Supervisor | Role::Spawner));
        assert_eq!(names("limits").len(), declared.limits.len() - shared, "{role}: {:?}", names("limits"));
        let mut around: BTreeSet<&str> = ["program", "umask", "working directory", "dumpable"].into();
        if declared.process.environment == Environment::Empty {
            around.insert("environment");
        }
        if declared.process.session == Session::Own {
            around.extend(["session", "controlling terminal"]);
        }
        if role != Role::Supervisor {
            around.extend([
                "root directory",
                "control group",
                "user namespace",
                "net namespace",
                "mnt namespace",
            ]);
        }
        let made = names("surroundings");
        assert!(around.iter().all(|check| made.contains(*check)), "{role}: {made:?}");
        if !is_root() {
            continue;
        }
        let open = names("descriptors");
        for one in declared.descriptors.inherited.iter().filter(|one| !one.closed_when_sealed) {
            assert!(open.contains(&one.number.to_string()), "{role}: {} is not in {open:?}", one.number);
        }
        for one in &declared.descriptors.later {
            assert!(open.contains(&format!("others: {}", one.is)), "{role}: {} is not in {open:?}", one.is);
        }
        assert!(open.contains("listening sockets"), "{role}: {open:?}");
        let memory = names("memory");
        for check in [
            "writable and executable",
            "stack",
            "[vdso]: code is",
            "libc.so.6: written",
            "libc.so.6: code is",
        ] {
            assert!(memory.iter().any(|made| made.contains(check)), "{role}: no {check} in {memory:?}");
        }
        let program = format!("portcullis-{role}: code is");
        assert!(memory.iter().any(|made| made.contains(&program)), "{role}: {memory:?}");
        let runs_policies = process.class.as_ref().is_some_and(|class| class.as_str() == "one");
        for (made, check) in [(&memory, "memfd:portcullis-policy (deleted): sealed"), (&open, "is sealed")] {
            // The registry keeps a copy for the next worker, and maps none; the supervisor keeps the accounts.
            let keeps = matches!(role, Role::Registry | Role::Supervisor);
            let has = runs_policies || (keeps && check == "is sealed");
            assert_eq!(made.iter().any(|made| made.contains(check)), has, "{role}: {made:?}");
        }
    }
    let files: Vec<&Value> = report.findings().iter().filter(|finding| finding["area"] == "files").collect();
    // And the directory they are in.
    let programs = if is_root() { Role::ALL.len() + 1 } else { 1 };
    // Configuration and what a reload would say, trust policy, three sockets, two caches, state.
    assert_eq!(files.len(), programs + 9, "{files:#?}");
}

fn what_is_hidden_is_never_called_right() {
    if !super::is_root() {
        return;
    }
    let service = two_classes();
    // Where others may run it from.
    let copy = service.site.path("portcullis");
    copy_program(&program(), &copy);
    let as_stranger = |more: &[&str]| {
        let mut command = attest_command(&copy, &service);
        command.arg("--json").args(more).uid(STRANGER).gid(STRANGER);
        Report::of(&command.output().unwrap())
    };
    let report = as_stranger(&[]);
    report.assert_as_declared();
    let processes = service.processes();
    for process in &processes {
        for area in ["descriptors", "memory"] {
            let checks = report.checks(process.pid.into(), area);
            assert!(!checks.is_empty(), "{} {area}", process.role);
            assert!(checks.iter().all(|finding| finding["verdict"] == "not_visible"), "{checks:?}");
        }
        for name in ["program", "working directory", "environment", "user namespace"] {
            let around = report.checks(process.pid.into(), "surroundings");
            let mut made = around.iter().filter(|finding| finding["check"] == name);
            assert!(made.all(|finding| finding["verdict"] == "not_visible"), "{around:?}");
        }
        // What everybody may see is compared all the same.
        let threads = report.checks(process.pid.into(), "threads");
        assert!(threads.iter().any(|finding| finding["verdict"] == "as_declared"), "{threads:?}");
    }
    // Who says more must have seen less of it.
    assert!(report.count("not_visible") > report.count("not_visible_to_anybody"));
    assert_eq!(as_stranger(&["--strict"]).code, 1, "hidden is not good enough");
    let root = attest_command(&program(), &service).args(["--json", "--strict"]).output().unwrap();
    assert_eq!(Report::of(&root).code, 0, "what nobody can see does not count");
}

fn people_get_a_table_that_fits() {
    let service = two_classes();
    let output = attest_command(&program(), &service).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let report = attest(&service);
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}\n{text}");
    }
    for subject in ["supervisor", "spawner", "frontend", "worker one", "worker two"] {
        assert!(text.lines().any(|line| line.starts_with(subject)), "{text}");
    }
    let [checks, right, hidden] = ["checks", "as_declared", "not_visible"].map(|what| report.count(what));
    let last = format!("{checks} checks: {right} as declared, 0 different, {hidden} not visible");
    assert_eq!(text.lines().last(), Some(last.as_str()));
}

fn nobody_there() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(program());
    let output = command.arg("attest").arg("--socket").arg(directory.path().join("none")).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{output:?}");
}
