//! A frontend that lies: a service as it should be, and on another socket somebody who answers for it.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::BytesMut;
use portcullis::wire::control::{Process, ProcessState};
use portcullis::wire::frame;
use portcullis::wire::operator::{
    OPERATOR_REPLY_MAX, OPERATOR_REQUEST_MAX, OperatorReply, OperatorRequest, Status,
};

use super::support::{Service, read_frame};
use super::{Report, Test, is_root, program, site};

pub(super) const TESTS: &[Test] = &[
    ("lies::what_is_said_to_be_starting_is_looked_at", starting),
    ("lies::only_children_of_the_supervisor_are_looked_into", foreign),
    ("lies::a_list_that_cannot_be_is_noticed", lists),
    ("lies::a_version_cannot_drive_the_terminal", version),
];

fn service() -> Service {
    site().class("one", "").start()
}

/// What attest prints where the service's answer is this one.
fn told(service: &Service, status: &Status, more: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("operator.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let mut reply = BytesMut::new();
    frame::encode_frame(&OperatorReply::Status(status.clone()), &mut reply, OPERATOR_REPLY_MAX).unwrap();
    let is_done = Arc::clone(&done);
    let liar = thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            if is_done.load(Ordering::Relaxed) {
                break;
            }
            let request = read_frame(&mut stream, OPERATOR_REQUEST_MAX).unwrap();
            let _: OperatorRequest = frame::decode(&request).unwrap();
            std::io::Write::write_all(&mut stream, &reply).unwrap();
        }
    });
    let mut command = Command::new(program());
    command.args(["attest", "--json", "--socket"]).arg(&path);
    command.arg("--config").arg(service.site.path("portcullis.toml")).args(more);
    let output = command.output().unwrap();
    done.store(true, Ordering::Relaxed);
    drop(std::os::unix::net::UnixStream::connect(Path::new(&path)).unwrap());
    liar.join().unwrap();
    output
}

fn lied(service: &Service, change: impl FnOnce(&mut Status)) -> Report {
    let mut status = service.status();
    change(&mut status);
    Report::of(&told(service, &status, &[]))
}

fn worker(status: &mut Status) -> &mut Process {
    status.processes.processes.iter_mut().find(|process| process.role == "worker").unwrap()
}

/// Believed of the young only, and then it is hidden and not invisible; and somebody has to serve.
fn starting() {
    let service = service();
    lied(&service, |_| {}).assert_as_declared();
    let pid = i64::from(worker(&mut service.status()).pid);
    let mut status = service.status();
    worker(&mut status).state = ProcessState::Starting;
    let report = Report::of(&told(&service, &status, &[]));
    report.assert_only("workers of class one that serve: 0, expected 1 or more");
    let checks = report.checks(pid, "threads");
    for (check, verdict) in [("sealed", "not_visible"), ("capabilities", "as_declared")] {
        let found = checks.iter().find(|one| one["check"].as_str().unwrap().ends_with(check)).unwrap();
        assert_eq!(found["verdict"], verdict, "{checks:#?}");
    }
    assert!(
        checks.iter().all(|one| one["to_anybody"] != true),
        "hidden, and --strict counts it: {checks:#?}"
    );
    assert!(!report.checks(pid, "surroundings").is_empty());

    // An additional one that may well be starting is nothing wrong, and not good enough for the strict either.
    // Spawner and supervisor are never starting when somebody answers.
    let report = lied(&service, |status| {
        for process in &mut status.processes.processes {
            process.state = ProcessState::Starting;
        }
    });
    let differences = report.differences();
    for role in ["supervisor", "spawner"] {
        let said = format!("{role}: threads: sealed: a {role} that is said to be starting");
        assert!(differences.iter().any(|one| one.starts_with(&said)), "{said}: {differences:#?}");
    }
}

fn foreign() {
    let service = service();
    let mut stranger = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(stranger.id()).unwrap();
    // The control: what is looked into has findings.
    let honest = service.status();
    let frontend = honest.processes.processes.iter().find(|process| process.role == "frontend").unwrap();
    assert!(!lied(&service, |_| {}).checks(frontend.pid.into(), "descriptors").is_empty());

    let report = lied(&service, |status| worker(status).pid = pid);
    let differences = report.differences();
    let said = format!("worker one ({pid}): a child of {}", std::process::id());
    assert!(differences.iter().any(|one| one.contains(&said)), "{differences:#?}");
    assert!(report.findings().iter().all(|one| one["pid"] != pid), "it was looked into");

    let report = lied(&service, |status| status.supervisor_pid = pid);
    assert_eq!(report.code, 1);
    assert!(report.findings().iter().all(|one| one["pid"].is_null()), "somebody was looked into");
    if is_root() {
        let differences = report.differences();
        assert!(differences.iter().any(|one| one.contains("program of the supervisor")), "{differences:#?}");
    }
    drop(stranger.stdin.take());
    stranger.wait().unwrap();
}

fn lists() {
    let service = service();
    let honest = lied(&service, |_| {});
    honest.assert_as_declared();
    let pid = i64::from(worker(&mut service.status()).pid);
    let report = lied(&service, |status| {
        let double = worker(status).clone();
        status.processes.processes.push(double);
    });
    assert!(report.differences().iter().any(|one| one.contains("listed more than once: 1, expected 0")));
    let threads = |report: &Report| report.checks(pid, "threads").len();
    assert_eq!(threads(&report), threads(&honest), "it is looked at once");

    let report = lied(&service, |status| {
        let one = worker(status).clone();
        // Above any pid_max.
        let more = (0..1_000).map(|n| Process { pid: i32::MAX - n, ..one.clone() });
        status.processes.processes.extend(more);
    });
    let differences = report.differences();
    assert_eq!(differences.len(), 1, "one for all of them: {differences:#?}");
    report.assert_only("processes listed: 1005, expected the supervisor and its 4 children");
}

fn version() {
    let service = service();
    let mut status = service.status();
    status.version = "0\u{9b}31m\u{202e}".to_owned();
    let output = told(&service, &status, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("0\\\\u{9b}31m\\\\u{202e}"), "{text}");
    assert!(!text.contains(['\u{9b}', '\u{202e}']), "{text}");
}
