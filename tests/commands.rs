//! `portcullis decide`, `status` and `reload` as they are typed, against a service that the test plays.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says no by panicking"
)]

mod fake_service;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use bytes::BytesMut;
use fake_service::{FakeService, Peer, denied};
use portcullis::decision::{Decision, DecisionId, HeaderValue, Input, Obligations, Outcome, Quota, Refusal};
use portcullis::wire::client::{ClientFrame, Deadline, ServerFrame};
use portcullis::wire::control::{AskedReload, Isolation, ProcessTable};
use portcullis::wire::frame;
use portcullis::wire::operator::{
    FrontendCounters, OPERATOR_REPLY_MAX, OPERATOR_REQUEST_MAX, OperatorReply, OperatorRequest, Status,
};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn portcullis(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.env("PORTCULLIS_SOCKET", socket).env("PORTCULLIS_OPERATOR_SOCKET", socket);
    command
}

fn decide(socket: &Path) -> Command {
    let mut command = portcullis(socket);
    command.args(["decide", "--tenant", "acme", "--policy", "gate"]);
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Runs with this on standard input.
fn fed(command: &mut Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// Answers one question with that.
fn answering(decision: Decision) -> FakeService {
    FakeService::start(move |listener| {
        let (mut peer, _) = Peer::welcome(listener, "retail");
        let bytes = peer.frame().unwrap();
        let ClientFrame::Decide { id, .. } = frame::decode(&bytes).unwrap() else { panic!("no question") };
        peer.send(&ServerFrame::Decision { id, decision });
    })
}

#[test]
fn the_exit_code_is_the_answer() {
    let outcomes = [
        (Outcome::Allow, 0, "allow\n"),
        (Outcome::Deny { reason: "no token".to_owned() }, 1, "deny: no token\n"),
        (
            Outcome::Refused(Refusal::Quota { which: Quota::Queue, retry_after_ms: 7 }),
            2,
            "refused: quota exceeded: queue, retry after 7 ms\n",
        ),
    ];
    for (outcome, code, line) in outcomes {
        let service = answering(Decision { outcome, ..denied("") });
        let output = decide(service.socket()).args(["--url", "https://a/"]).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(text(&output.stdout).starts_with(line), "{output:?}");
        service.finish();
    }
}

#[test]
fn flags_become_the_question() {
    let service = FakeService::start(|listener| {
        let (mut peer, asked_for) = Peer::welcome(listener, "retail");
        assert_eq!(asked_for, "acme");
        let bytes = peer.frame().unwrap();
        let ClientFrame::Decide { id, tenant, policy, deadline, trace, input } =
            frame::decode(&bytes).unwrap()
        else {
            panic!("no question")
        };
        assert_eq!((tenant, policy), ("acme", "gate"));
        assert!(matches!(deadline, Deadline::Absolute { .. }));
        assert_eq!(trace.unwrap().to_string(), TRACEPARENT);
        let Input::Http(http) = frame::decode(input).unwrap() else { panic!("not http") };
        assert_eq!(
            (http.method, http.scheme, http.host, http.path, http.query, http.body),
            ("POST", "https", "api.example", "/v1", Some("a=b"), Some(b"from stdin".as_slice()))
        );
        let headers: Vec<_> = http.headers.iter().map(|header| (header.name, header.value)).collect();
        assert_eq!(headers, [("x", b"1".as_slice()), ("y", b"2:3")]);
        assert_eq!((http.source.port, http.source.principal), (5000, Some("shop")));
        let obligations = Obligations {
            status: Some(403),
            headers_set: vec![HeaderValue { name: "a".to_owned(), value: b"b".as_slice().into() }],
            ..Obligations::default()
        };
        let decision = Some(DecisionId::from_random([0xd1; 16]));
        let decision = Decision { obligations, id: decision, ..denied("why") };
        peer.send(&ServerFrame::Decision { id, decision });
    });
    let output = fed(
        decide(service.socket())
            .args(["--url", "https://api.example/v1?a=b", "--method", "POST", "--deadline", "20s"])
            .args(["-H", "x: 1", "-H", "y:2:3", "--body", "-", "--json"])
            .args(["--source", "[::1]:5000", "--source-principal", "shop"])
            .args(["--traceparent", TRACEPARENT]),
        b"from stdin",
    );
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["outcome"], "deny");
    assert_eq!(answer["reason"], "why");
    assert_eq!(answer["id"], "d1".repeat(16));
    assert_eq!(answer["obligations"]["status"], 403);
    assert_eq!(answer["obligations"]["headers_set"], serde_json::json!([["a", "b"]]));
    service.finish();
}

#[test]
fn json_on_standard_input_becomes_the_question() {
    let service = FakeService::start(|listener| {
        let (mut peer, _) = Peer::welcome(listener, "retail");
        let bytes = peer.frame().unwrap();
        let ClientFrame::Decide { id, deadline, input, .. } = frame::decode(&bytes).unwrap() else {
            panic!("no question")
        };
        assert_eq!(deadline, Deadline::Default);
        assert_eq!(frame::decode(input), Ok(Input::Opaque { content_type: "text/plain", bytes: b"hello" }));
        peer.echo(id, "");
    });
    let json = br#"{"opaque": {"content_type": "text/plain", "bytes": {"text": "hello"}}}"#;
    let output = fed(decide(service.socket()).args(["--json-input", "-"]), json);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    service.finish();
}

#[test]
fn what_makes_no_sense_exits_64_before_anything_is_asked() {
    let nowhere = Path::new("/nonexistent/socket");
    for args in [
        &[][..],
        &["--url", "no url"],
        &["--url", "https://a/", "--opaque", "-"],
        &["--url", "https://a/", "--deadline", "20m"],
        &["--url", "https://a/", "-H", "no colon"],
        &["--url", "https://a/", "--body", "/nonexistent/body"],
        &["--url", "https://a/", "--source", "somewhere"],
        &["--json-input", "/dev/null"],
        &["--url", "https://a/", "--tenant", "UPPER"],
    ] {
        let output = decide(nowhere).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{args:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
    let output = decide(nowhere).args(["--url", "https://a/", "--deadline", "1ms"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(text(&output.stderr).contains("/nonexistent/socket"), "{output:?}");
}

/// Answers each operator in turn with the next of these.
fn operators(listener: &UnixListener, replies: impl IntoIterator<Item = OperatorReply>) {
    for reply in replies {
        let (mut stream, _) = listener.accept().unwrap();
        let mut incoming = BytesMut::new();
        let request = loop {
            if let Some(request) = frame::next_frame(&mut incoming, OPERATOR_REQUEST_MAX).unwrap() {
                break request;
            }
            let mut chunk = [0; 64];
            let length = stream.read(&mut chunk).unwrap();
            assert_ne!(length, 0, "no request came");
            incoming.extend_from_slice(&chunk[..length]);
        };
        assert_eq!(frame::decode(&request), Ok(OperatorRequest::Status));
        let mut bytes = BytesMut::new();
        frame::encode_frame(&reply, &mut bytes, OPERATOR_REPLY_MAX).unwrap();
        stream.write_all(&bytes).unwrap();
    }
}

fn status(supervisor_pid: i32, reloads: u64, last_reload_error: Option<&str>) -> OperatorReply {
    OperatorReply::Status(Status {
        version: "0.1.0".to_owned(),
        supervisor_pid,
        processes: ProcessTable {
            isolation: Isolation::DistinctUids,
            reloads,
            last_reload_error: last_reload_error.map(str::to_owned),
            // The sixth begins after whatever is asked for here, the others before.
            asked: Some(Box::new(AskedReload {
                number: reloads,
                began_ns: if reloads == 6 { u64::MAX } else { 0 },
                error: last_reload_error.map(str::to_owned),
                adopted: last_reload_error.is_none(),
                behind: Vec::new(),
            })),
            processes: Vec::new(),
        },
        frontend: FrontendCounters { accepted: 42, ..FrontendCounters::default() },
        workers: Vec::new(),
        untold: Vec::new(),
    })
}

#[test]
fn status_is_for_people_and_for_programs() {
    let service =
        FakeService::start(|listener| operators(listener, [status(77, 3, None), status(77, 3, None)]));
    let output = portcullis(service.socket()).arg("status").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).starts_with("portcullis 0.1.0, supervisor 77, 3 reloads\n"), "{output:?}");
    let output = portcullis(service.socket()).args(["status", "--json"]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["frontend"]["accepted"], 42);
    service.finish();
}

#[test]
fn status_says_who_may_ask() {
    let service = FakeService::start(|listener| operators(listener, [OperatorReply::NotPermitted]));
    let output = portcullis(service.socket()).arg("status").output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(text(&output.stderr).contains("`operators`"), "{output:?}");
    service.finish();
}

/// A process with the supervisor's name that exits with 7 when it is told to reload.
fn supervisor(directory: &Path) -> std::process::Child {
    let program = directory.join("portcullis-supervisor");
    std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
    // No shell can trap what is ignored when it starts, as SIGHUP is under nohup.
    let mut child = Command::new("env")
        .arg("--default-signal=HUP")
        .arg(program)
        // A shell looks at its traps between two commands, so there is one behind the wait.
        .args(["-c", "trap 'exit 7' HUP; echo ready; read nothing; exit 1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    assert_eq!(ready, "ready\n");
    child
}

#[test]
fn reload_signals_the_supervisor_and_waits_for_the_end() {
    for (error, code, says) in [(None, 0, "reload 6 done"), (Some("line 3: no"), 1, "line 3: no")] {
        let directory = tempfile::tempdir().unwrap();
        let mut supervisor = supervisor(directory.path());
        let pid = i32::try_from(supervisor.id()).unwrap();
        let service = FakeService::start(move |listener| {
            let refused_before = Some("an old error");
            operators(
                listener,
                [status(pid, 5, refused_before), status(pid, 5, refused_before), status(pid, 6, error)],
            );
        });
        let output = portcullis(service.socket()).arg("reload").output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(format!("{output:?}").contains(says), "{output:?}");
        assert_eq!(supervisor.wait().unwrap().code(), Some(7), "it was not signalled");
        service.finish();
    }
}

#[test]
fn reload_signals_nothing_that_is_not_the_supervisor() {
    let mut bystander = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = i32::try_from(bystander.id()).unwrap();
    let service = FakeService::start(move |listener| operators(listener, [status(pid, 5, None)]));
    let output = portcullis(service.socket()).arg("reload").output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(text(&output.stderr).contains("not signalled"), "{output:?}");
    service.finish();
    // Killed by this and not by what came before.
    bystander.kill().unwrap();
    assert_eq!(bystander.wait().unwrap().signal(), Some(9));
}

const BEFORE: &str = include_str!("../src/cli/top/fixtures/before.txt");
const NOW: &str = include_str!("../src/cli/top/fixtures/now.txt");

/// An exporter that tells these pages, one a connection, and the last one for ever after.
fn exporter(directory: &Path, status: &'static str) -> std::path::PathBuf {
    let socket = directory.join("metrics.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for page in std::iter::once(BEFORE).chain(std::iter::repeat(NOW)) {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut asked = Vec::new();
            let mut byte = [0];
            while !asked.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) > 0 {
                asked.extend(byte);
            }
            assert!(asked.starts_with(b"GET /metrics HTTP/1.0\r\n"), "{asked:?}");
            // Whoever asked may have had enough.
            let _ = write!(stream, "HTTP/1.0 {status}\r\ncontent-length: {}\r\n\r\n{page}", page.len());
        }
    });
    socket
}

fn top(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(["top", "--interval", "100ms", "--config", "/nonexistent", "--socket"]).arg(socket);
    command
}

#[test]
fn top_shows_two_looks_at_the_exporter() {
    let directory = tempfile::tempdir().unwrap();
    let output = top(&exporter(directory.path(), "200 OK")).arg("--once").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = text(&output.stdout);
    assert!(said.starts_with("portcullis ") && said.contains("\nacme "), "{said}");
    assert!(said.contains("class one ") && !said.contains('\u{1b}'), "{said}");
    assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");

    let output = top(&directory.path().join("nobody.sock")).arg("--once").output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let directory = tempfile::tempdir().unwrap();
    let output = top(&exporter(directory.path(), "503 Nothing")).arg("--once").output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(text(&output.stderr).contains("503 Nothing"), "{output:?}");
}

#[test]
fn top_ends_when_it_is_interrupted_while_it_waits_for_an_answer() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("metrics.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut child = top(&socket).stdout(Stdio::null()).spawn().unwrap();
    // It waits for what never comes.
    let (mut stream, _) = listener.accept().unwrap();
    stream.read_exact(&mut [0; 16]).unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "an exporter that does not answer would be 3");
}

#[test]
fn top_gives_the_terminal_back_when_it_is_interrupted() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = top(&exporter(directory.path(), "200 OK")).stdout(Stdio::piped()).spawn().unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut said = Vec::new();
    while !text(&said).contains("DEC/S") {
        assert_ne!(reader.read_until(b'\n', &mut said).unwrap(), 0, "{}", text(&said));
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    reader.read_to_end(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(said.starts_with(b"\x1b[?1049h") && said.ends_with(b"\x1b[?1049l"), "{}", text(&said));
}
