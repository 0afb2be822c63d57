//! A running service and its processes, found as anybody on the machine would find them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::time::Instant;

use nix::unistd::Pid;
use portcullis::client::Question;
use portcullis::decision::Outcome;
use portcullis::wire::client::Deadline;
use portcullis::wire::control::ProcessState;
use tempfile::TempDir;

use crate::probes::Surroundings;
use crate::standin::StandIn;
use crate::support::{PATIENCE, Service, Site, policy, tenant};

/// One process of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) role: String,
    /// As ps(1) shows it.
    pub(crate) title: String,
    pub(crate) pid: Pid,
    pub(crate) uid: u32,
}

/// A service with two classes, one tenant each.
pub(crate) fn site() -> Site {
    Site::new()
        .class("one", "threads = 1\n")
        .tenant("acme", "one", &[("gate", "hostile/selective")], "")
        .class("two", "threads = 1\n")
        .tenant("globex", "two", &[("gate", "hostile/selective")], "")
        .telemetry("")
        .gateway("http", GATE)
}

/// What a listener for HTTP says of itself. The deadline is for a machine that is busy, and traces every call.
pub(crate) const GATE: &str =
    "protocol = \"http\"\nrequest = \"own\"\ntenant = \"acme\"\npolicy = \"gate\"\ndeadline = \"5s\"\n";

/// Who starts the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum As {
    Root,
    /// An ordinary user with the capabilities that the service is to have, as systemd starts it.
    Ambient,
}

/// The UID of [`As::Ambient`].
pub(crate) const STARTER: u32 = 61_009;

pub(crate) fn site_of(starter: As) -> Site {
    let mut site = site();
    if starter == As::Ambient {
        for place in [".", "run"] {
            chown(site.path(place), Some(STARTER), Some(STARTER)).expect("chown");
        }
        let line = format!(
            "setpriv --reuid={STARTER} --regid={STARTER} --clear-groups \
             --inh-caps=+setuid,+setgid,+setpcap,+kill --ambient-caps=+setuid,+setgid,+setpcap,+kill"
        );
        site.through = line.split_whitespace().map(str::to_owned).collect();
    }
    site
}

/// Starts a service, and waits for its exporter as well: the service is ready without it.
pub(crate) fn start(site: Site) -> Service {
    let service = site.start();
    let serves = |one: &portcullis::wire::control::Process| {
        one.role == "exporter" && one.state == ProcessState::Serving
    };
    wait_until(|| service.processes().iter().any(serves), "the exporter serves");
    service
}

/// The supervisor and its children but builders: one that has looked at a policy may be on its way out when the service is ready.
pub(crate) fn processes(service: &Service) -> Vec<Process> {
    let supervisor = service.pid();
    let mut found = vec![look_at(supervisor).expect("the supervisor runs")];
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        if parent.and_then(|parent| parent.trim().parse().ok()) == Some(supervisor.as_raw()) {
            found.extend(look_at(Pid::from_raw(pid)));
        }
    }
    found.retain(|process| process.role != "builder");
    found.sort_by_key(|process| process.pid);
    found
}

fn look_at(pid: Pid) -> Option<Process> {
    let of = format!("/proc/{pid}");
    let program = fs::read_link(format!("{of}/exe")).ok()?;
    let role = program.file_name()?.to_str()?.strip_prefix("portcullis-")?.to_owned();
    let title = fs::read_to_string(format!("{of}/cmdline")).ok()?.split('\0').next()?.to_owned();
    // The directory itself belongs to root while the process cannot be dumped.
    let status = fs::read_to_string(format!("{of}/status")).ok()?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse();
    Some(Process { role, title, pid, uid: uid.ok()? })
}

/// The process of a role, of the workers that of class `one`, as soon as there is one and no other: one that was replaced is
/// there until it has finished what was begun.
pub(crate) fn process(service: &Service, role: &str) -> Process {
    only(service, |process| match role {
        "worker" => process.title == "portcullis-worker: one",
        role => process.role == role,
    })
}

pub(crate) fn only(service: &Service, wanted: impl Fn(&Process) -> bool) -> Process {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut all = processes(service);
        all.retain(&wanted);
        if let [process] = &all[..] {
            return process.clone();
        }
        assert!(Instant::now() < until, "not one, but {all:?}\n{}", service.log());
        std::thread::yield_now();
    }
}

/// The process of a role, as soon as there is one again.
pub(crate) fn process_again(service: &Service, role: &str) -> Process {
    answers_again(service);
    process(service, role)
}

/// What is around a process of `service` with this UID, and a stranger of the same user.
pub(crate) fn surroundings(service: &Service, uid: u32, stranger: &StandIn) -> Surroundings {
    let own_directory = TempDir::new().expect("directory");
    fs::set_permissions(&own_directory, fs::Permissions::from_mode(0o700)).expect("chmod");
    let own_file = own_directory.path().join("file");
    fs::write(&own_file, "x").expect("write");
    for own in [own_directory.path(), &own_file] {
        chown(own, Some(uid), Some(uid)).expect("chown");
    }
    Surroundings {
        supervisor: service.pid(),
        frontend: process(service, "frontend").pid,
        sibling: only(service, |process| process.title == "portcullis-worker: two").pid,
        stranger: stranger.pid(),
        socket: service.socket(),
        own_directory,
        other_cache: service.site.path("cache/two"),
    }
}

/// Asks until there is an answer, which must then be the right one.
pub(crate) fn answers_again(service: &Service) {
    let until = Instant::now() + PATIENCE;
    loop {
        let question = Question::opaque("", b"allow");
        let answer =
            service.client().decide(&tenant("acme"), &policy("gate"), Deadline::Default, question.input());
        match answer {
            Ok(decision) => return assert_eq!(decision.outcome, Outcome::Allow),
            Err(error) => assert!(Instant::now() < until, "no answer: {error}\n{}", service.log()),
        }
        std::thread::yield_now();
    }
}

/// Whether the gate that a proxy asks at is open, if the policy says so.
pub(crate) fn asks_through_the_gateway(service: &Service) -> bool {
    let asked = || -> std::io::Result<String> {
        let mut proxy = std::os::unix::net::UnixStream::connect(service.site.path("run/http.sock"))?;
        proxy.set_read_timeout(Some(PATIENCE))?;
        std::io::Write::write_all(
            &mut proxy,
            b"GET /do/allow HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        )?;
        let mut said = String::new();
        std::io::Read::read_to_string(&mut proxy, &mut said)?;
        Ok(said)
    };
    asked().is_ok_and(|said| said.starts_with("HTTP/1.1 2"))
}

/// Whether a process is gone: not there, or dead and only not waited for yet.
pub(crate) fn gone(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| Some(stat.rsplit_once(')')?.1.trim_start().starts_with(['Z', 'X'])))
        .unwrap_or(true)
}

/// Waits for what there is no event for that a stranger could wait for.
pub(crate) fn wait_until(so: impl Fn() -> bool, what: &str) {
    let until = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::yield_now();
    }
}

pub(crate) fn wait_until_gone(pid: Pid) {
    wait_until(|| gone(pid), &format!("process {pid} is gone"));
}

pub(crate) fn wait_until_said(service: &Service, what: &str) {
    wait_until(|| service.log().contains(what), &format!("the service says {what:?}"));
}

/// The UID that owns what /proc shows of a process: root's while it cannot be dumped.
pub(crate) fn shown_to(pid: Pid) -> u32 {
    fs::metadata(format!("/proc/{pid}/environ")).expect("environ").uid()
}
