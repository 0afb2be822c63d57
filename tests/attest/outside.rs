//! A service that was as declared, and then somebody changed something. Each time it is put right again, and so is what
//! attest says.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;

use nix::sys::ptrace;
use nix::unistd::{Pid, gettid};
use portcullis::client::blocking::Connection;
use portcullis::client::{Deadline, Question};
use portcullis::wire::control::Process;

use super::copies::copy_program;
use super::support::{PATIENCE, Service, policy, tenant};
use super::{Test, attest, is_root, site};

pub(super) const TESTS: &[Test] = &[
    ("outside::a_limit_that_was_changed_is_noticed", limits),
    ("outside::modes_and_owners_that_were_changed_are_noticed", modes),
    ("outside::a_stranger_with_a_roles_uid_is_noticed", strangers),
    ("outside::a_tracer_is_noticed", tracer),
    ("outside::a_client_in_another_network_namespace_is_no_difference", namespaces),
    ("outside::a_configuration_that_waits_holds_nobody_up", fifo),
    ("outside::a_program_that_was_replaced_is_noticed", programs),
];

fn service() -> Service {
    site().class("one", "").start()
}

fn worker(service: &Service) -> Process {
    let processes = service.processes();
    processes.into_iter().find(|process| process.role == "worker").unwrap()
}

/// Sets a soft limit of a process of that UID and GID, as whoever runs as them may.
fn limit(process: &Process, limit: &str) {
    let mut command = Command::new("prlimit");
    command.arg("--pid").arg(process.pid.to_string()).arg(limit).uid(process.uid).gid(process.uid);
    let status = command.status().expect("run prlimit: apt-get install util-linux");
    assert!(status.success(), "prlimit {limit}: {status}");
}

fn limits() {
    if !is_root() {
        return;
    }
    let service = service();
    let worker = worker(&service);
    let text = fs::read_to_string(format!("/proc/{}/limits", worker.pid)).unwrap();
    for (name, flag) in [("Max open files", "--nofile"), ("Max processes", "--nproc")] {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let old = line.split_whitespace().next().unwrap();
        limit(&worker, &format!("{flag}=100:"));
        attest(&service).assert_only(&format!("worker one: limits: {name}: 100 soft, {old} hard, expected"));
        limit(&worker, &format!("{flag}={old}:"));
        attest(&service).assert_as_declared();
    }
}

fn set_mode(path: &Path, mode: u32) -> u32 {
    let old = fs::metadata(path).unwrap().mode() & 0o7777;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    old
}

fn modes() {
    let service = service();
    for (name, mode, said) in [
        ("run/decide.sock", 0o600, "client socket"),
        ("run/operator.sock", 0o700, "operator socket"),
        ("trust.toml", 0o666, "trust.toml"),
        ("state", 0o755, "state"),
        ("cache/one", 0o755, "cache"),
        ("portcullis.toml", 0o666, "configuration"),
    ] {
        let path = service.site.path(name);
        let old = set_mode(&path, mode);
        let report = attest(&service);
        report.assert_only(said);
        assert!(report.differences().iter().all(|one| one.starts_with("service: files: ")), "{name}");
        set_mode(&path, old);
        attest(&service).assert_as_declared();
    }
    if is_root() {
        let cache = service.site.path("cache/one");
        let owner = fs::metadata(&cache).unwrap().uid();
        std::os::unix::fs::chown(&cache, Some(owner + 1), None).unwrap();
        attest(&service).assert_only("cache");
        std::os::unix::fs::chown(&cache, Some(owner), None).unwrap();
        attest(&service).assert_as_declared();
    }
}

fn strangers() {
    if !is_root() {
        return;
    }
    let service = service();
    for process in service.processes().iter().filter(|process| process.uid != 0) {
        // Lives until its standard input ends.
        let mut stranger =
            Command::new("cat").uid(process.uid).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let report = attest(&service);
        report.assert_only(&format!("strangers with the UID of a role: pid {} (cat)", stranger.id()));
        drop(stranger.stdin.take());
        stranger.wait().unwrap();
        attest(&service).assert_as_declared();
    }
}

fn tracer() {
    if !is_root() {
        return;
    }
    let service = service();
    let pid = worker(&service).pid;
    let (traced, is_traced) = channel();
    let (finish, is_finished) = channel::<()>();
    // Who traces is a thread: with it, tracing ends.
    let tracer = thread::spawn(move || {
        ptrace::seize(Pid::from_raw(pid), ptrace::Options::empty()).unwrap();
        traced.send(gettid()).unwrap();
        let _ = is_finished.recv();
    });
    let thread = is_traced.recv().unwrap();
    attest(&service).assert_only(&format!("worker one: threads: thread {pid}: tracer: {thread}"));
    drop(finish);
    tracer.join().unwrap();
    attest(&service).assert_as_declared();
}

/// A connection's socket is in the namespace of who connected: a container's, say.
fn namespaces() {
    if !is_root() {
        return;
    }
    let service = site().class("one", "").tenant("acme", "one", &[("gate", "hostile/selective")], "").start();
    let worker = worker(&service).pid;
    let mut client = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().unwrap())
        .arg(HOLD)
        .arg(service.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run unshare: apt-get install util-linux");
    let mut said = String::new();
    let mut output = BufReader::new(client.stdout.take().unwrap());
    output.read_line(&mut said).unwrap();
    assert_eq!(said, "connected\n");
    // The control: the worker has a socket that is not in its namespace's list.
    let list = fs::read_to_string(format!("/proc/{worker}/net/unix")).unwrap();
    let listed = |inode: &str| list.lines().any(|line| line.split_whitespace().nth(6) == Some(inode));
    let links = fs::read_dir(format!("/proc/{worker}/fd")).unwrap();
    let mut links = links.map(|entry| fs::read_link(entry.unwrap().path()).unwrap());
    let foreign = links.any(|link| {
        let link = link.to_str().unwrap();
        let inode = link.strip_prefix("socket:[").and_then(|link| link.strip_suffix(']'));
        inode.is_some_and(|inode| !listed(inode))
    });
    assert!(foreign, "no socket of another namespace");
    attest(&service).assert_as_declared();
    // Now the client leaves its namespace, and nobody is left in there.
    client.stdin.as_mut().unwrap().write_all(b"leave\n").unwrap();
    said.clear();
    output.read_line(&mut said).unwrap();
    assert_eq!(said, "left\n");
    let report = attest(&service);
    report.assert_as_declared();
    let unlisted =
        report.checks(worker.into(), "descriptors").into_iter().find(|one| one["check"] == "1 sockets");
    assert_eq!(unlisted.unwrap()["verdict"], "not_visible", "what no list has is not called right");
    drop(client.stdin.take());
    assert!(client.wait().unwrap().success());
}

const HOLD: &str = "--hold-connection";

/// Is the client of that test, if it was started as such: connects, asks, and stays until its standard input ends.
pub(super) fn run_if_asked() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, socket] = &arguments[..]
        && flag == HOLD
    {
        let mut connection = Connection::open(Path::new(socket), &tenant("acme"), PATIENCE).unwrap();
        // Who is welcomed is on the way to a worker; who has an answer is there.
        let question = Question::opaque("", b"x");
        let asked = connection.send(&tenant("acme"), &policy("gate"), Deadline::Default, question.input());
        asked.unwrap();
        connection.flush().unwrap();
        let _ = connection.receive().unwrap();
        std::io::stdout().write_all(b"connected\n").unwrap();
        std::io::stdin().read_line(&mut String::new()).unwrap();
        let outside =
            fs::File::open(format!("/proc/{}/ns/net", std::os::unix::process::parent_id())).unwrap();
        nix::sched::setns(outside, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        std::io::stdout().write_all(b"left\n").unwrap();
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        drop(connection);
        std::process::exit(0);
    }
}

/// Opened as a file is, it would wait for somebody who writes.
fn fifo() {
    let service = service();
    let path = service.site.path("fifo.toml");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let mut command = Command::new(super::program());
    command.args(["attest", "--json", "--socket"]).arg(service.site.path("run/operator.sock"));
    let report = super::Report::of(&command.arg("--config").arg(&path).output().unwrap());
    report.assert_only("not a regular file");
}

/// After an upgrade of the files, what runs is still the old program.
fn programs() {
    if !is_root() {
        return;
    }
    let mut site = site().class("one", "");
    let programs = site.path("programs");
    fs::create_dir(&programs).unwrap();
    fs::set_permissions(&programs, fs::Permissions::from_mode(0o755)).unwrap();
    for program in [
        env!("CARGO_BIN_EXE_portcullis-supervisor"),
        env!("CARGO_BIN_EXE_portcullis-spawner"),
        env!("CARGO_BIN_EXE_portcullis-registry"),
        env!("CARGO_BIN_EXE_portcullis-builder"),
        env!("CARGO_BIN_EXE_portcullis-exporter"),
        env!("CARGO_BIN_EXE_portcullis-gateway"),
        env!("CARGO_BIN_EXE_portcullis-frontend"),
        env!("CARGO_BIN_EXE_portcullis-worker"),
    ] {
        let copy = programs.join(Path::new(program).file_name().unwrap());
        copy_program(Path::new(program), &copy);
    }
    site.supervisor = programs.join("portcullis-supervisor");
    let service = site.start();
    attest(&service).assert_as_declared();
    let worker = programs.join("portcullis-worker");
    set_mode(&worker, 0o775);
    attest(&service).assert_only("program worker");
    set_mode(&worker, 0o755);
    attest(&service).assert_as_declared();
    // Who may write the directory may put another program there.
    set_mode(&programs, 0o777);
    attest(&service).assert_only("mode 0777");
    set_mode(&programs, 0o755);
    attest(&service).assert_as_declared();

    let new = programs.join("new");
    copy_program(&worker, &new);
    fs::rename(&new, &worker).unwrap();
    let report = attest(&service);
    let differences = report.differences();
    assert!(
        differences.iter().any(|one| {
            one.starts_with("worker one: surroundings: program: ") && one.contains("restart after an upgrade")
        }),
        "{differences:#?}"
    );
    assert_eq!(report.code, 1);
}
