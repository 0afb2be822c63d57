//! `portcullis demo`: everything it promises to show is shown and as expected, and nothing of it is left behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

#[path = "support/copies.rs"]
mod copies;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use copies::copy_program;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;
use tempfile::TempDir;

/// An ordinary user that no test machine has.
const USER: &str = "65533";
const PROGRAMS: [&str; 9] = [
    env!("CARGO_BIN_EXE_portcullis"),
    env!("CARGO_BIN_EXE_portcullis-supervisor"),
    env!("CARGO_BIN_EXE_portcullis-spawner"),
    env!("CARGO_BIN_EXE_portcullis-registry"),
    env!("CARGO_BIN_EXE_portcullis-builder"),
    env!("CARGO_BIN_EXE_portcullis-exporter"),
    env!("CARGO_BIN_EXE_portcullis-gateway"),
    env!("CARGO_BIN_EXE_portcullis-frontend"),
    env!("CARGO_BIN_EXE_portcullis-worker"),
];

/// The programs where every user can run them: the build's own directory may lie in somebody's home.
fn installed(programs: &[&str]) -> TempDir {
    let dir = TempDir::with_prefix("portcullis-programs-").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for program in programs {
        let to = dir.path().join(Path::new(program).file_name().unwrap());
        copy_program(Path::new(program), &to);
    }
    dir
}

fn demo(programs: &TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(programs.path().join("portcullis"));
    command.arg("demo").args(args).stdin(Stdio::null());
    command
}

/// Runs a demo with `--json` to its end; gives its events and checks that all is as expected and nothing is left.
fn events(mut command: Command) -> Vec<Value> {
    let output = command.output().unwrap();
    let (text, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{errors}\n{text}", output.status);
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(!PathBuf::from(of(&events, "start")[0]["dir"].as_str().unwrap()).exists(), "directory left");
    assert_eq!(events.last().unwrap()["event"], "stopped");
    assert!(!is_there(of(&events, "ready")[0]["supervisor_pid"].as_i64().unwrap()), "supervisor left");
    events
}

fn of<'e>(events: &'e [Value], kind: &str) -> Vec<&'e Value> {
    events.iter().filter(|event| event["event"] == kind).collect()
}

fn is_there(pid: i64) -> bool {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), None).is_ok()
}

fn everything_is_shown(events: &[Value], isolation: &str) {
    // Every kind of answer, with all that belongs to it.
    let decisions = of(events, "decision");
    for (outcome, policy, status, reason) in [
        ("allowed", "jwt-gate", None, "x-auth-subject: demo"),
        ("denied", "jwt-gate", Some(403), "scope missing"),
        ("denied", "jwt-gate", Some(401), "token expired"),
        ("denied", "jwt-gate", Some(401), "signature wrong"),
        ("allowed", "ip-allowlist", None, "network: 10.0.0.0/8"),
        ("denied", "ip-allowlist", Some(403), "source address not listed"),
        ("allowed", "rate-class", None, "x-rate-class: login"),
        ("timed_out", "spin", None, "deadline passed"),
        ("trapped", "trap", None, "policy trapped: unreachable"),
    ] {
        let found = decisions.iter().find(|event| {
            event["outcome"] == outcome
                && event["policy"] == policy
                && event["status"].as_u64() == status
                && event["reason"].as_str().unwrap().starts_with(reason)
        });
        let event = found.unwrap_or_else(|| panic!("no {outcome} by {policy}: {reason}\n{decisions:#?}"));
        let digest = event["digest"].as_str().unwrap();
        assert!(
            of(events, "policy")
                .iter()
                .any(|signed| signed["policy"] == policy && signed["digest"] == digest),
            "{event} names no policy that was signed"
        );
        assert!(event["micros"].as_u64().unwrap() > 0 && event["tenant"].is_string(), "{event}");
    }
    assert!(decisions.iter().all(|event| event["unexpected"] == Value::Array(vec![])), "{decisions:#?}");

    // The tampered policy is refused, the last good one decides, in a new generation.
    let tampered = of(events, "tampered")[0];
    let good = of(events, "policy").into_iter().find(|signed| signed["policy"] == "ip-allowlist").unwrap();
    assert!(tampered["refused"].as_str().unwrap().contains("it was changed"), "{tampered}");
    assert_eq!((&tampered["policy"], &tampered["serving"]), (&good["policy"], &good["digest"]));
    assert_ne!(tampered["stored"], good["digest"]);
    assert!(tampered["generation"].as_u64() >= Some(2), "{tampered}");
    let place = events.iter().position(|event| event == tampered).unwrap();
    let after: Vec<_> = of(&events[place..], "decision");
    assert!(after.len() == 2 && after.iter().all(|event| event["digest"] == good["digest"]), "{after:#?}");

    let burst = of(events, "burst")[0];
    assert!(burst["decisions"].as_u64().unwrap() > 0, "{burst}");
    assert!(burst["p50_ns"].as_u64() <= burst["p99_ns"].as_u64() && burst["p50_ns"].as_u64() > Some(0));

    let table = of(events, "processes")[0];
    assert_eq!(table["isolation"], isolation);
    let processes = table["processes"].as_array().unwrap();
    let roles: Vec<_> = processes.iter().map(|process| process["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["supervisor", "spawner", "frontend", "registry", "worker", "worker"]);
    for process in processes {
        assert_eq!((&process["seccomp"], &process["no_new_privs"]), (&2.into(), &1.into()), "{process}");
        if !["supervisor", "spawner"].contains(&process["role"].as_str().unwrap()) {
            // Its own, besides those it was born under.
            assert!(
                process["seccomp_filters"].as_u64() > processes[0]["seccomp_filters"].as_u64(),
                "{process}"
            );
            assert_eq!(
                (&process["cap_eff"], &process["landlock_proven_threads"]),
                (&"0".into(), &process["threads"])
            );
        }
    }
    let mut uids: Vec<_> = processes.iter().map(|process| process["uid"].as_u64().unwrap()).collect();
    uids.sort_unstable();
    uids.dedup();
    let as_root = isolation == "DistinctUids";
    assert_eq!(uids.len(), if as_root { 5 } else { 1 });
    // Descriptors of a process that is not dumpable are root's to see.
    let visible = processes.iter().filter(|process| process["open_files"].is_u64()).count();
    assert_eq!(visible == processes.len(), as_root, "{processes:#?}");

    let summary = of(events, "summary")[0];
    assert_eq!((&summary["ok"], &summary["isolation"]), (&true.into(), &isolation.into()));
}

#[test]
fn everything_is_shown_and_as_expected() {
    let programs = installed(&PROGRAMS);
    let isolation = if geteuid().is_root() { "DistinctUids" } else { "SharedUid" };
    everything_is_shown(&events(demo(&programs, &["--json"])), isolation);
}

#[test]
fn an_ordinary_user_sees_the_same_and_is_told_what_is_weak() {
    let programs = installed(&PROGRAMS);
    let as_user = |args: &[&str]| {
        if !geteuid().is_root() {
            return demo(&programs, args);
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid", USER, "--regid", USER, "--clear-groups", "--"]);
        command.arg(programs.path().join("portcullis")).arg("demo").args(args).stdin(Stdio::null());
        command
    };
    let shown = events(as_user(&["--json"]));
    everything_is_shown(&shown, "SharedUid");
    if geteuid().is_root() {
        assert_eq!(of(&shown, "start")[0]["uid"].to_string(), USER);
    }

    let output = as_user(&[]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("ISOLATION IS WEAK"), "{text}");
    assert!(text.contains("not visible"), "{text}");
    assert!(!text.contains('\u{1b}'), "colour where there is no terminal:\n{text}");
}

/// A demo that runs, read line by line. Told to stop, and its end waited for, when dropped.
struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    dir: PathBuf,
    supervisor: i64,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, dir: PathBuf::new(), supervisor: 0 }
    }

    /// Reads up to the first event of that kind; it has to come when the service runs.
    fn up_to(&mut self, kind: &str) -> Value {
        loop {
            let line = self.lines.next().unwrap_or_else(|| panic!("ended before {kind}")).unwrap();
            let event: Value = serde_json::from_str(&line).expect(&line);
            match event["event"].as_str().unwrap() {
                "start" => self.dir = event["dir"].as_str().unwrap().into(),
                "ready" => self.supervisor = event["supervisor_pid"].as_i64().unwrap(),
                _ => {}
            }
            if event["event"] == kind {
                assert!(self.dir.is_dir() && is_there(self.supervisor), "{event}");
                return event;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Sends the signal; gives the exit code, the events that came after it, and what was complained about.
    fn end(mut self, signal: Signal) -> (Option<i32>, Vec<Value>, String) {
        self.signal(signal);
        let rest = self.lines.by_ref().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        let status = self.child.wait().unwrap();
        assert!(!self.dir.exists(), "directory left after {signal}");
        assert!(!is_there(self.supervisor), "supervisor left after {signal}");
        (status.code(), rest, errors)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

#[test]
fn kept_it_answers_until_it_is_told_to_stop() {
    let programs = installed(&PROGRAMS);
    let mut running = Running::start(demo(&programs, &["--json", "--keep"]));
    let keeping = running.up_to("keeping");
    let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap());
    let examples = keeping["examples"].as_array().unwrap();
    // 0 allow, 1 deny, 2 refused; and 0 for the status.
    for (example, code) in examples.iter().zip([0, 1, 1, 2, 0]) {
        let line = example.as_str().unwrap();
        let output = Command::new("sh").args(["-c", line]).env("PATH", &path).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{line}\n{text}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert_eq!(examples.len(), 5);
    let (code, rest, errors) = running.end(Signal::SIGINT);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert_eq!(of(&rest, "stopped").len(), 1, "{rest:?}");
}

#[test]
fn interrupted_in_the_middle_it_leaves_nothing_behind() {
    let programs = installed(&PROGRAMS);
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut running = Running::start(demo(&programs, &["--json", "--seconds", "60"]));
        running.up_to("ready");
        let (code, rest, errors) = running.end(signal);
        assert_eq!(code, Some(1), "{errors}");
        assert!(errors.contains("demo interrupted"), "{errors}");
        assert!(of(&rest, "summary").is_empty(), "{rest:?}");
    }
}

#[test]
fn programs_that_are_missing_are_named_with_the_command_that_builds_them() {
    let programs = installed(&PROGRAMS[..1]);
    let output = demo(&programs, &[]).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    for part in [
        "portcullis-supervisor",
        "portcullis-spawner",
        "portcullis-registry",
        "portcullis-builder",
        "portcullis-exporter",
        "portcullis-gateway",
        "portcullis-frontend",
        "portcullis-worker",
        "cargo build --release",
    ] {
        assert!(errors.contains(part), "no {part:?} in {errors}");
    }
    assert!(output.stdout.is_empty(), "something was started");
}
