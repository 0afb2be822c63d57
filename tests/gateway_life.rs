//! The gateway as a process: when it is there, who comes in, what it answers, and what becomes of it when anybody ends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed test panics"
)]

#[path = "support/ports.rs"]
mod ports;
mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis::wire::control::{Process, ProcessState};
use ports::free_port;
use support::{PATIENCE, Service, Site, is_root};

/// HTTP whose status is the decision; the policy lets GET through and nothing else.
const HTTP: &str =
    "protocol = \"http\"\nrequest = \"own\"\ntenant = \"acme\"\npolicy = \"gate\"\ndeadline = \"5s\"\n";

/// What an answer said.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
}

impl Answer {
    fn is_open(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

trait Way: Read + Write {}
impl<T: Read + Write> Way for T {}

fn by_unix(service: &Service, name: &str) -> UnixStream {
    let stream = UnixStream::connect(service.site.path(&format!("run/{name}.sock"))).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Asks one question; `None` where there was no answer, which lets nobody through either.
fn ask(mut way: impl Way, method: &str) -> Option<Answer> {
    let request =
        format!("{method} /x HTTP/1.1\r\nhost: a.example\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    way.write_all(request.as_bytes()).ok()?;
    let mut said = String::new();
    way.read_to_string(&mut said).ok()?;
    let (head, _) = said.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_lowercase() })
}

/// Whether the gate is open, if there is an answer.
fn opens(way: impl Way, method: &str) -> Option<bool> {
    ask(way, method).map(|answer| answer.is_open())
}

fn processes(service: &Service, role: &str) -> Vec<Process> {
    let all = service.processes().into_iter();
    all.filter(|process| process.role == role && process.state == ProcessState::Serving).collect()
}

/// The one that serves, other than `before`.
fn again(service: &Service, role: &str, before: i32) -> Process {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(one) = processes(service, role).into_iter().find(|process| process.pid != before) {
            return one;
        }
        assert!(Instant::now() < until, "no new {role}\n{}", service.log());
    }
}

/// Asks until the gate opens. Meanwhile it must not open for what is denied.
fn opens_again(service: &Service) {
    let until = Instant::now() + PATIENCE;
    while opens(by_unix(service, "http"), "GET") != Some(true) {
        assert_ne!(opens(by_unix(service, "http"), "DELETE"), Some(true));
        assert!(Instant::now() < until, "it does not open again\n{}", service.log());
    }
}

/// Whether the gateway of that generation has ended by itself, with nothing left to do, and not by its filter.
fn has_drained(log: &str, generation: u64) -> bool {
    let of_it = format!("gateway generation {generation} ");
    log.lines().any(|line| line.contains(&of_it) && line.ends_with(": drained"))
}

fn site() -> Site {
    Site::new().class("one", "threads = 1\n").tenant("acme", "one", &[("gate", "since-0.1")], "")
}

#[test]
fn without_a_gateway_there_is_no_such_process() {
    let service = site().start();
    assert_eq!(processes(&service, "gateway"), []);
    assert!(service.try_connect("acme").is_ok(), "the control");
}

#[test]
fn a_decision_is_asked_for_over_each_kind_of_socket() {
    let port = free_port();
    let service = site()
        .gateway("http", &format!("{HTTP}socket_mode = \"0600\"\n"))
        .gateway("tcp", &format!("{HTTP}listen = \"127.0.0.1:{port}\"\n"))
        .start();
    assert_eq!(processes(&service, "gateway").len(), 1, "it serves before the service says that it is ready");
    let mode = fs::metadata(service.site.path("run/http.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let by_tcp = || {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    for _ in 0..3 {
        assert_eq!(opens(by_unix(&service, "http"), "GET"), Some(true), "{}", service.log());
        assert_eq!(opens(by_unix(&service, "http"), "DELETE"), Some(false));
        assert_eq!(opens(by_tcp(), "GET"), Some(true));
        assert_eq!(opens(by_tcp(), "DELETE"), Some(false));
    }
    let answer = ask(by_tcp(), "GET").unwrap();
    assert!(answer.head.contains("x-portcullis-decision: "), "{}", answer.head);
    let gateway = &processes(&service, "gateway")[0];
    if is_root() {
        assert_ne!(gateway.uid, 0);
        let frontend = &processes(&service, "frontend")[0];
        assert_ne!(gateway.uid, frontend.uid);
    }
    assert_eq!(
        gateway.ready.as_ref().map(|ready| ready.landlock_proven_threads),
        Some(gateway.threads),
        "each of its threads"
    );
    let (status, log) = service.stop();
    assert!(status.success(), "{log}");
    assert!(has_drained(&log, 1), "{log}");
}

#[test]
fn whoever_dies_is_replaced_and_nothing_is_let_through_meanwhile() {
    let service = site().gateway("http", HTTP).start();
    opens_again(&service);
    for role in ["gateway", "worker", "frontend", "gateway", "frontend"] {
        for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
            let before = processes(&service, role)[0].pid;
            kill(Pid::from_raw(before), signal).unwrap();
            opens_again(&service);
            again(&service, role, before);
        }
    }
    let gateway = processes(&service, "gateway")[0].pid;
    let registry = processes(&service, "registry")[0].pid;
    kill(Pid::from_raw(registry), Signal::SIGKILL).unwrap();
    again(&service, "registry", registry);
    opens_again(&service);
    assert_eq!(processes(&service, "gateway")[0].pid, gateway, "who does not concern it does not end it");
}

#[test]
fn a_connection_outlives_everybody_but_the_gateway() {
    let service = site().gateway("http", HTTP).start();
    let mut kept = by_unix(&service, "http");
    let mut asked = |method: &str| {
        let request = format!("{method} /x HTTP/1.1\r\nhost: a.example\r\n\r\n");
        kept.write_all(request.as_bytes()).unwrap();
        head_of(&mut kept)
    };
    assert_eq!(asked("GET"), 200);
    for role in ["worker", "frontend"] {
        let before = processes(&service, role)[0].pid;
        kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
        let until = Instant::now() + PATIENCE;
        loop {
            assert_ne!(asked("DELETE"), 200);
            if asked("GET") == 200 {
                break;
            }
            assert!(Instant::now() < until, "{}", service.log());
        }
    }
    assert_eq!(service.reload(), None);
    assert_eq!(asked("GET"), 200, "a reload that changes nothing of it breaks no connection");
}

/// Reads one answer whole, and gives its status.
fn head_of(way: &mut impl Read) -> u16 {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        way.read_exact(&mut byte).unwrap();
        head.extend_from_slice(&byte);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    way.read_exact(&mut vec![0; length.trim().parse().unwrap()]).unwrap();
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn who_is_no_peer_is_turned_away_by_what_the_kernel_says() {
    let own = nix::unistd::geteuid().as_raw();
    let service = site()
        .gateway("http", &format!("{HTTP}peers = [{own}, 4242]\nsocket_mode = \"0666\"\n"))
        .gateway("other", &format!("{HTTP}peers = [{}]\nsocket_mode = \"0666\"\n", own + 77))
        .start();
    assert_eq!(opens(by_unix(&service, "http"), "GET"), Some(true), "the control");
    assert_eq!(opens(by_unix(&service, "other"), "GET"), None);
    if is_root() {
        // The same question from another user.
        let request = "GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        for (uid, opens) in [(4242, true), (4243, false)] {
            let mut curl = Command::new("python3");
            let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
                          try:\n s.sendall(sys.argv[2].encode())\n print(s.recv(12))\nexcept OSError: print('closed')";
            curl.args(["-c", script]).arg(service.site.path("run/http.sock")).arg(request);
            let said = curl.uid(uid).gid(uid).stdin(Stdio::null()).output().unwrap();
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            assert_eq!(said.contains("200"), opens, "{uid}: {said}\n{}", service.log());
        }
    }
    assert_eq!(opens(by_unix(&service, "http"), "GET"), Some(true), "nobody else notices");
}

#[test]
fn no_more_come_in_than_there_are_places_and_they_become_free() {
    let service = site().gateway("http", &format!("{HTTP}max_connections = 3\n")).start();
    let question = "GET /x HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut inside: Vec<UnixStream> = (0..3).map(|_| by_unix(&service, "http")).collect();
    for stream in &mut inside {
        stream.write_all(question.as_bytes()).unwrap();
        assert_eq!(head_of(stream), 200, "the control");
    }
    let mut outside = by_unix(&service, "http");
    outside.write_all(question.as_bytes()).unwrap();
    // Whoever is inside is answered meanwhile, and the log says who waits.
    let until = Instant::now() + PATIENCE;
    while !service.log().contains("there are max_connections, 3: others wait") {
        inside[0].write_all(question.as_bytes()).unwrap();
        assert_eq!(head_of(&mut inside[0]), 200);
        assert!(Instant::now() < until, "{}", service.log());
    }
    outside.set_nonblocking(true).unwrap();
    assert_eq!(outside.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "one more");
    outside.set_nonblocking(false).unwrap();
    inside.pop();
    assert_eq!(head_of(&mut outside), 200, "there is a place");
}

#[test]
fn a_reload_changes_listeners_and_what_takes_a_restart_is_said() {
    let service = site().tenant("globex", "one", &[("gate", "since-0.1")], "").gateway("http", HTTP).start();
    let before = processes(&service, "gateway")[0].pid;
    let path = service.site.path("portcullis.toml");
    let config = fs::read_to_string(&path).unwrap();
    let with = |from: &str, to: &str| {
        assert!(config.contains(from));
        fs::write(&path, config.replace(from, to)).unwrap();
        service.reload()
    };
    assert_eq!(with("tenant = \"acme\"", "tenant = \"globex\""), None);
    let after = again(&service, "gateway", before).pid;
    opens_again(&service);
    assert_ne!(after, before);
    let until = Instant::now() + PATIENCE;
    while !has_drained(&service.log(), 1) {
        assert!(Instant::now() < until, "{}", service.log());
    }
    assert_eq!(service.reload(), None);
    assert_eq!(processes(&service, "gateway")[0].pid, after, "the control: nothing of it changes");

    let refused = with("[gateway.listener.http]", "[gateway.listener.other]").unwrap();
    assert!(refused.contains("restart the service to change the set of gateway.listener"), "{refused}");
    let refused = with("run/http.sock", "run/elsewhere.sock").unwrap();
    assert!(
        refused.contains("restart the service to change the socket of gateway.listener.http"),
        "{refused}"
    );
    let refused = with("tenant = \"acme\"", "tenant = \"nobody\"").unwrap();
    assert!(refused.contains("there is no tenant \"nobody\""), "{refused}");
    opens_again(&service);
}

#[test]
fn a_tenant_that_no_listener_names_is_not_asked_for() {
    // By the frontend's word, whatever the gateway asks.
    let service = site().tenant("globex", "one", &[("gate", "since-0.1")], "").gateway("http", HTTP).start();
    opens_again(&service);
    if !is_root() {
        return;
    }
    let gateway = processes(&service, "gateway")[0].uid;
    for (tenant, permitted) in [("acme", true), ("globex", false)] {
        let mut asks = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        asks.args(["decide", "--socket"]).arg(service.socket());
        asks.args(["--tenant", tenant, "--policy", "gate", "--url", "http://a.example/"]);
        let output = asks.uid(gateway).gid(gateway).stdin(Stdio::null()).output().unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(said.contains("may not ask for that tenant"), !permitted, "{tenant}: {said}");
    }
}

#[test]
fn a_port_that_somebody_has_is_said_and_nothing_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let refused = site().gateway("tcp", &format!("{HTTP}listen = \"{address}\"\n")).try_start();
    let Err((status, log)) = refused else { panic!("it started") };
    assert_eq!(status.code(), Some(69), "{log}");
    assert!(log.contains(&format!("listen on {address}: ")), "{log}");
}

#[test]
fn what_is_under_way_is_finished_and_whoever_comes_later_is_not_let_through() {
    let service = site().gateway("http", HTTP).start();
    opens_again(&service);
    // Half a question: it has come in, and is not decided.
    let mut halfway = by_unix(&service, "http");
    halfway.write_all(b"GET /x HTTP/1.1\r\nhost: a\r\n").unwrap();
    opens_again(&service);
    service.signal(Signal::SIGTERM);
    service.await_notification("STOPPING=1");
    let ended = halfway.write_all(b"\r\n").and_then(|()| {
        let mut said = String::new();
        halfway.read_to_string(&mut said).map(|_| said)
    });
    match ended {
        Ok(said) => assert!(said.is_empty() || said.starts_with("HTTP/1.1 "), "{said}"),
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}")
        }
    }
    let (status, log) = service.ended();
    assert!(status.success(), "{log}");
    assert!(!log.contains("did not drain in time"), "{log}");
    assert!(has_drained(&log, 1), "{log}");
}
