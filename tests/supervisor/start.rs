//! What it takes to start, and what is said when that is not there.

use std::os::unix::net::UnixListener;
use std::process::Stdio;

use portcullis::wire::control::{Isolation, Process, ProcessState};

use crate::service::{As, Site, programs};
use crate::{Test, is_root};

pub(crate) const TESTS: &[Test] = &[
    ("all_children_serve_and_sigterm_ends_them", all_children_serve_and_sigterm_ends_them),
    ("the_doors_open_when_every_class_serves", the_doors_open_when_every_class_serves),
    (
        "an_ordinary_user_gets_one_uid_and_every_other_wall",
        an_ordinary_user_gets_one_uid_and_every_other_wall,
    ),
    ("ambient_capabilities_do_not_reach_the_children", ambient_capabilities_do_not_reach_the_children),
    ("distinct_uids_are_refused_without_privilege", distinct_uids_are_refused_without_privilege),
    ("a_wrong_configuration_starts_nothing", a_wrong_configuration_starts_nothing),
    ("wrong_usage_is_refused", wrong_usage_is_refused),
    ("check_starts_nothing", check_starts_nothing),
    ("a_worker_that_cannot_start_ends_the_start", a_worker_that_cannot_start_ends_the_start),
    ("a_worker_that_is_not_sealed_gets_no_traffic", a_worker_that_is_not_sealed_gets_no_traffic),
    (
        "a_worker_that_does_not_prove_landlock_gets_no_traffic",
        a_worker_that_does_not_prove_landlock_gets_no_traffic,
    ),
    ("a_second_service_on_the_same_socket_is_refused", a_second_service_on_the_same_socket_is_refused),
    ("sockets_are_taken_from_systemd", sockets_are_taken_from_systemd),
];

fn all_children_serve_and_sigterm_ends_them() {
    let site = Site::new(As::Caller);
    let mut service = site.start();
    let table = service.wait_until_all_serve();
    let root = nix::unistd::geteuid().is_root();
    assert_eq!(table.isolation, if root { Isolation::DistinctUids } else { Isolation::SharedUid });
    let roles: Vec<_> = table.processes.iter().map(|p| (p.role.as_str(), p.generation, p.threads)).collect();
    assert_eq!(roles, [("frontend", 1, 1), ("registry", 1, 1), ("worker", 1, 1), ("worker", 1, 1)]);
    if root {
        assert_eq!(table.processes.iter().map(|p| p.uid).collect::<Vec<_>>(), [61000, 61010, 61001, 61002]);
        for process in &table.processes {
            let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).expect("status");
            for line in
                ["CapBnd:\t0000000000000000", "CapPrm:\t0000000000000000", "Seccomp:\t2", "NoNewPrivs:\t1"]
            {
                assert!(status.contains(line), "{status}");
            }
        }
    }
    let lasting: Vec<_> = service.lasting.iter().map(|p| (p.role.as_str(), p.threads)).collect();
    assert_eq!(lasting, [("supervisor", 1), ("spawner", 1)]);
    power_is_divided(&service.lasting, root);
    service.stop();
    for process in &table.processes {
        assert!(!std::path::Path::new(&format!("/proc/{}", process.pid)).exists(), "{process:?} is left");
    }
    assert_eq!(std::fs::read_dir(site.path("run")).expect("list").count(), 0, "the sockets are gone");
}

/// One can end processes, the other can start them.
#[track_caller]
fn power_is_divided(lasting: &[Process], privileged: bool) {
    for (process, keeps) in lasting.iter().zip([1 << 5, 0b111 << 6]) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).expect("status");
        let keeps: u64 = if privileged { keeps } else { 0 };
        for set in ["CapPrm", "CapEff"] {
            assert!(status.contains(&format!("{set}:\t{keeps:016x}")), "{status}");
        }
        assert!(!privileged || status.contains(&format!("CapBnd:\t{keeps:016x}")), "{status}");
        for line in
            ["CapInh:\t0000000000000000", "CapAmb:\t0000000000000000", "Seccomp:\t2", "NoNewPrivs:\t1"]
        {
            assert!(status.contains(line), "{line}: {status}");
        }
    }
}

/// Whoever connects before waits at the socket: the very first that anybody is told is the whole table.
fn the_doors_open_when_every_class_serves() {
    let site = Site::new(As::Caller);
    let mut service = site.start();
    let table = service.wait_until(|_, _| true);
    assert_eq!(table.processes.len(), 4, "{table:?}");
    assert!(table.processes.iter().all(|process| process.state == ProcessState::Serving), "{table:?}");
    service.stop();
}

fn an_ordinary_user_gets_one_uid_and_every_other_wall() {
    if !is_root() {
        return;
    }
    let site = Site::new(As::Ordinary);
    let mut service = site.start();
    let table = service.wait_until_all_serve();
    assert_eq!(table.isolation, Isolation::SharedUid);
    assert!(table.processes.iter().all(|process| process.uid == table.processes[0].uid));
    let said = service.stop();
    assert_eq!(said.matches("WARNING: started without privilege").count(), 1, "loud, and once: {said}");
}

/// Leaving a UID that is not 0 takes no capability away by itself.
fn ambient_capabilities_do_not_reach_the_children() {
    if !is_root() {
        return;
    }
    let site = Site::new(As::Ambient);
    let mut service = site.start();
    let table = service.wait_until_all_serve();
    assert_eq!(table.isolation, Isolation::DistinctUids);
    assert_eq!(table.processes.iter().map(|p| p.uid).collect::<Vec<_>>(), [61000, 61010, 61001, 61002]);
    power_is_divided(&service.lasting, true);
    for process in &table.processes {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).expect("status");
        assert_eq!(
            status
                .lines()
                .filter(|line| line.starts_with("Cap") && line.ends_with("0000000000000000"))
                .count(),
            5
        );
    }
    service.stop();
}

fn distinct_uids_are_refused_without_privilege() {
    if !is_root() {
        return;
    }
    let site = Site::new(As::Ordinary);
    site.write(&site.sound("10s", "").replace("drain", "require_distinct_uids = true\ndrain"));
    let (code, said) = site.run_to_end();
    assert_eq!(code, Some(78));
    assert!(said.contains("@/portcullis.toml:8:25: require_distinct_uids: "), "{said}");
    let mut command = site.command();
    command.env("INVOCATION_ID", "x");
    site.configure("");
    assert_eq!(command.status().expect("run").code(), Some(78), "the default under systemd");
}

fn a_wrong_configuration_starts_nothing() {
    let site = Site::new(As::Caller);
    site.configure("[tenant.acme]\nclass = \"c\"\npolicies = []\nuids = [65534]\ncolour = 1\n");
    let (code, said) = site.run_to_end();
    assert_eq!(code, Some(78));
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert!(lines[0].starts_with("@/portcullis.toml:27:9: class: there is no [class.c]"), "{said}");
    assert_eq!(std::fs::read_dir(site.path("run")).expect("list").count(), 0, "not even a socket");
}

fn wrong_usage_is_refused() {
    let mut command = std::process::Command::new(programs().join("portcullis-supervisor"));
    let output = command.arg("--no-sandbox").output().expect("run");
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("usage: portcullis-supervisor --config PATH"));
}

fn check_starts_nothing() {
    let site = Site::new(As::Caller);
    let output = site.command().arg("--check").output().expect("run");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    assert_eq!(std::fs::read_dir(site.path("run")).expect("list").count(), 0);
}

fn a_worker_that_cannot_start_ends_the_start() {
    let site = Site::new(As::Caller);
    site.configure("[tenant.fails]\nclass = \"b\"\npolicies = []\nuids = [1]\n");
    let (code, said) = site.run_to_end();
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("start: worker b: did not start: no policy could be loaded"), "{said}");
    assert_eq!(std::fs::read_dir(site.path("run")).expect("list").count(), 0, "the sockets are gone");
}

/// The child says Ready, and is not believed, although /proc says Seccomp 2 of it: that is the supervisor's filter.
fn a_worker_that_is_not_sealed_gets_no_traffic() {
    let site = Site::new(As::Caller);
    site.configure("[tenant.unsealed]\nclass = \"a\"\npolicies = []\nuids = [1]\n");
    let (code, said) = site.run_to_end();
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("start: worker a: witness worker pid "), "{said}");
    assert!(said.contains(": Seccomp_filters is "), "{said}");
}

/// Sealed by all that the kernel shows, and with a thread that did not see a file refused.
fn a_worker_that_does_not_prove_landlock_gets_no_traffic() {
    let site = Site::new(As::Caller);
    site.configure("[tenant.unproven]\nclass = \"a\"\npolicies = []\nuids = [1]\n");
    let (code, said) = site.run_to_end();
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("start: worker a: only 0 of its 1 threads have proved Landlock"), "{said}");
}

fn a_second_service_on_the_same_socket_is_refused() {
    let site = Site::new(As::Caller);
    let mut service = site.start();
    service.wait_until_all_serve();
    let (code, said) = site.run_to_end();
    assert_eq!(code, Some(69));
    assert!(said.contains("somebody listens there; is the service running already?"), "{said}");
    service.wait_until_all_serve();
    service.stop();
}

fn sockets_are_taken_from_systemd() {
    let site = Site::new(As::Caller);
    let decide = UnixListener::bind(site.path("run/decide.sock")).expect("bind");
    let operator = UnixListener::bind(site.path("run/operator.sock")).expect("bind");
    let mut command = std::process::Command::new("sh");
    let script = "LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=decide:operator \
                  exec \"$0\" --config \"$1\" 3<&0 4<&1 0</dev/null 1>&2";
    command
        .arg("-c")
        .arg(script)
        .arg(programs().join("portcullis-supervisor"))
        .arg(site.path("portcullis.toml"));
    command.stdin(std::os::fd::OwnedFd::from(decide)).stdout(std::os::fd::OwnedFd::from(operator));
    command.stderr(Stdio::piped());
    let mut service = site.start_with(command);
    let table = service.wait_until_all_serve();
    assert!(table.processes.iter().all(|process| process.state == ProcessState::Serving));
    service.stop();
    assert_eq!(std::fs::read_dir(site.path("run")).expect("list").count(), 2, "systemd's sockets stay");
}
