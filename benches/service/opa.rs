//! The same closed loops against `opa run --server`, where `OPA_BIN` names a binary.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::Plan;
use crate::load::{Exchange, Halves, Load, closed_loop};
use crate::report::{Row, Spread, median};
use crate::subject::{INPUT, TENANT, hashing, processes};
use crate::support::PATIENCE;
use crate::wire::Wire;

/// Reads the whole input and allows, as the hashing policy does.
const POLICY: &str = "package bench\n\nallow if crypto.md5(input.bytes) != \"\"\n";

/// How many times as much OPA takes; nothing without `OPA_BIN`.
pub(super) fn compared(plan: &Plan) -> Vec<Row> {
    let Some(binary) = std::env::var_os("OPA_BIN") else { return Vec::new() };
    let service = hashing("");
    let pids = processes(&service);
    let opa = Opa::start(Path::new(&binary), &[("bench.rego", POLICY)]);
    let input = format!(r#"{{"bytes":"{}"}}"#, "x".repeat(INPUT));
    let connect = || opa.connect("bench/allow", &input).unwrap();
    let opa_pid = [opa.pid()];
    [1, 4, 16]
        .into_iter()
        .flat_map(|connections| {
            let mut ours: Vec<Wire> = (0..connections).map(|_| Wire::to_service(&service, TENANT)).collect();
            let mut theirs: Vec<Http> = (0..connections).map(|_| connect()).collect();
            let rounds: Vec<(Load, Load)> = (0..plan.rounds)
                .map(|_| {
                    let theirs = closed_loop(&mut theirs, &opa_pid, plan.round);
                    (theirs, closed_loop(&mut ours, &pids, plan.round))
                })
                .collect();
            let row = |figure: &str, of: fn(&Load) -> f64| {
                let ratios = Spread::of(rounds.iter().map(|(theirs, ours)| of(theirs) / of(ours)));
                let detail = format!(
                    "{:.1} against {:.1} us",
                    median(rounds.iter().map(|round| of(&round.0))),
                    median(rounds.iter().map(|round| of(&round.1)))
                );
                let what =
                    format!("OPA over a Unix socket, {figure}, {connections} connections, against ours");
                Row::new(&format!("opa/{connections}-{figure}"), what, "x", ratios).detail(detail)
            };
            [
                row("p50", |load| load.percentile(50.0)),
                row("p99", |load| load.percentile(99.0)),
                row("cpu", |load| load.cpu_us),
            ]
        })
        .collect()
}

/// A running OPA; ended when dropped.
pub(super) struct Opa {
    child: Child,
    dir: TempDir,
}

impl Opa {
    /// With these files, by their names, as policies and data.
    pub(super) fn start(binary: &Path, files: &[(&str, &str)]) -> Self {
        let dir = TempDir::with_prefix("portcullis-opa-").unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let child = Command::new(binary)
            .args(["run", "--server", "--log-level", "error", "--disable-telemetry", "--addr"])
            .arg(format!("unix://{}", dir.path().join("socket").display()))
            .args(files.iter().map(|(name, _)| dir.path().join(name)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("start {binary:?}: {error}"));
        let opa = Self { child, dir };
        let patience = Instant::now() + PATIENCE;
        while UnixStream::connect(opa.dir.path().join("socket")).is_err() {
            assert!(Instant::now() < patience, "OPA does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        opa
    }

    pub(super) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// A connection that asks for a rule, `package/rule`, with an input document.
    pub(super) fn connect(&self, rule: &str, input: &str) -> std::io::Result<Http> {
        let stream = UnixStream::connect(self.dir.path().join("socket"))?;
        let body = format!(r#"{{"input":{input}}}"#);
        let request = format!(
            "POST /v1/data/{rule} HTTP/1.1\r\nHost: opa\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        Ok(Http { stream, request, buffer: vec![0; 16 << 10] })
    }
}

impl Drop for Opa {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One kept-alive connection.
pub(super) struct Http {
    stream: UnixStream,
    request: String,
    buffer: Vec<u8>,
}

impl Exchange for Http {
    fn exchange(&mut self) {
        self.send();
        self.receive();
    }
}

impl Halves for Http {
    fn send(&mut self) {
        self.stream.write_all(self.request.as_bytes()).unwrap();
    }

    fn receive(&mut self) {
        let mut have = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[have..]).unwrap();
            assert!(read > 0, "OPA closed the connection");
            have += read;
            let reply = std::str::from_utf8(&self.buffer[..have]).unwrap();
            let Some((head, body)) = reply.split_once("\r\n\r\n") else { continue };
            let length: usize = head
                .lines()
                .find_map(|line| line.strip_prefix("Content-Length: "))
                .and_then(|length| length.parse().ok())
                .unwrap_or_else(|| panic!("no length: {reply}"));
            if body.len() >= length {
                assert!(body.contains("\"result\":true"), "{reply}");
                return;
            }
        }
    }
}

impl AsFd for Http {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
