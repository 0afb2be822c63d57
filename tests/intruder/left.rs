//! What each process of a running service was left with, as the kernel tells it: of every thread, what it may; of every
//! process, what it holds.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use portcullis::sandbox::Role;

use crate::hijack::{Death, Thread, threads};
use crate::scene::{self, As, Process, answers_again, processes, shown_to, wait_until_gone};
use crate::standin::StandIn;
use crate::support::{FIRST_CLASS_UID, Service};

/// All capabilities that a role's threads have in any set.
fn capabilities(role: &str) -> u64 {
    match role {
        "worker" | "frontend" | "registry" | "exporter" | "gateway" => 0,
        // CAP_KILL.
        "supervisor" => 0x20,
        // CAP_SETGID, CAP_SETUID, CAP_SETPCAP.
        "spawner" => 0x1c0,
        other => panic!("what may a {other} have?"),
    }
}

/// Fields of a thread's status, by name.
fn status(path: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).expect("status");
    let pair =
        |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    text.lines().filter_map(pair).collect()
}

pub(crate) fn every_thread_of_every_process_is_sealed() {
    for starter in [As::Root, As::Ambient] {
        let service = scene::start(scene::site_of(starter));
        let mut roles: Vec<String> = Vec::new();
        for process in processes(&service) {
            for thread in threads(process.pid) {
                sealed(&process, thread, starter);
            }
            roles.push(process.role);
        }
        // The fetcher is no part of the service, and a builder is there for a job only: tests/builder/sealed.rs.
        let comes_and_goes = |role: &Role| matches!(role, Role::Fetcher | Role::Builder);
        for role in Role::ALL.into_iter().filter(|role| !comes_and_goes(role)) {
            assert!(roles.iter().any(|found| found == role.name()), "no {role} in {roles:?}");
        }
        // The control: a process without a sandbox looks otherwise.
        let stand_in = StandIn::start(FIRST_CLASS_UID);
        let status = status(&format!("/proc/{}/status", stand_in.pid()));
        assert_eq!((status["Seccomp"].as_str(), status["NoNewPrivs"].as_str()), ("0", "0"));
        assert_ne!(status["CapBnd"], "0000000000000000");
    }
}

fn sealed(process: &Process, thread: Pid, starter: As) {
    let status = status(&format!("/proc/{}/task/{thread}/status", process.pid));
    let what = format!("{} ({thread}), started by {starter:?}", process.title);
    let expect = |field: &str, expected: &str| assert_eq!(status[field], expected, "{what}: {field}");
    let held = capabilities(&process.role);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        expect(set, &format!("{held:016x}"));
    }
    expect("CapInh", "0000000000000000");
    expect("CapAmb", "0000000000000000");
    expect("NoNewPrivs", "1");
    expect("Seccomp", "2");
    let filters: u32 = status["Seccomp_filters"].parse().expect("number");
    let role = Role::ALL.into_iter().find(|role| role.name() == process.role).expect("a role");
    assert_eq!(filters, role.filters_in_force(), "{what}: filters");
    let uid = match (held, starter) {
        (0, _) => process.uid,
        (_, As::Root) => 0,
        (_, As::Ambient) => scene::STARTER,
    };
    assert!(held != 0 || uid != 0, "{what}: is root");
    let four = [uid.to_string().as_str(); 4].join("\t");
    expect("Uid", &four);
    expect("Gid", &four);
    expect("Groups", "");
    expect("Umask", "0077");
}

/// An abort is a crash of native code, and what panics end in.
pub(crate) fn a_crash_leaves_no_core_and_nobody_may_look_at_a_process() {
    let service = scene::start(scene::site());
    for process in processes(&service).iter().filter(|process| process.pid != service.pid()) {
        let limits = fs::read_to_string(format!("/proc/{}/limits", process.pid)).expect("limits");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("core");
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{process:?}");
        // What /proc shows of a process belongs to its user, or to root if it is not to be looked at.
        assert_eq!(shown_to(process.pid), 0, "{process:?}");

        if process.uid == 0 {
            // Who is root on this machine may look at everything.
            continue;
        }
        // The looker ends first: whoever is traced is not seen to end before.
        let stranger = StandIn::start(process.uid);
        let looker = StandIn::start(process.uid);
        assert_eq!(shown_to(looker.pid()), process.uid, "control");
        let mut thread = Thread::take_over(looker.pid());
        for (pid, expected) in [(stranger.pid(), 0), (process.pid, -i64::from(libc::EPERM))] {
            let seize = [0x4206, u64::from(pid.as_raw().cast_unsigned()), 0, 0, 0, 0];
            assert_eq!(thread.call(libc::SYS_ptrace, seize), Ok(expected), "trace {pid} of {process:?}");
        }
    }
    for role in ["worker", "frontend", "registry", "exporter", "gateway"] {
        let process = scene::process(&service, role);
        assert_eq!(abort(process.pid), (Death::Signal(Signal::SIGABRT), false), "{role}");
        wait_until_gone(process.pid);
        answers_again(&service);
    }
    assert_eq!(abort(service.pid()), (Death::Signal(Signal::SIGABRT), false), "supervisor");
    assert_eq!(cores(service.site.dir.path()), Vec::<PathBuf>::new());
    control_of_cores();
}

/// Lets a thread abort its own process, by the calls that abort(3) is made of; whether there was a core.
fn abort(pid: Pid) -> (Death, bool) {
    let mut thread = Thread::take_over(pid);
    let number = u64::from(pid.as_raw().cast_unsigned());
    assert_eq!(thread.call(libc::SYS_tgkill, [number, number, 6, 0, 0, 0]), Ok(0));
    (thread.run_to_its_end(), thread.dumped_core())
}

/// The same in a process that may leave a core.
fn control_of_cores() {
    let home = tempfile::tempdir().expect("directory");
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("chmod");
    chown(&home, Some(FIRST_CLASS_UID), Some(FIRST_CLASS_UID)).expect("chown");
    let (soft, hard) = getrlimit(Resource::RLIMIT_CORE).expect("limit");
    setrlimit(Resource::RLIMIT_CORE, hard, hard).expect("allow cores");
    let stand_in = StandIn::start_in(FIRST_CLASS_UID, home.path());
    setrlimit(Resource::RLIMIT_CORE, soft, hard).expect("as it was");
    let ended = abort(stand_in.pid());
    assert_eq!(ended, (Death::Signal(Signal::SIGABRT), true), "control; needs a core_pattern that works");
}

fn cores(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for place in [Path::new("/"), directory, &directory.join("run"), &directory.join("store")] {
        let entries = fs::read_dir(place).expect("list").flatten().map(|entry| entry.path());
        found.extend(entries.filter(|path| path.file_name().is_some_and(|name| name == "core")));
    }
    found
}

/// The supervisor is started by somebody who leaves a hundred descriptors open.
pub(crate) fn no_descriptor_comes_along() {
    let mut site = scene::site();
    let canary = site.path("canary");
    fs::write(&canary, "x").expect("write");
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let own = std::env::current_exe().expect("exe");
    site.through = vec![text(&own), crate::LEAK.to_owned(), text(&canary)];
    let service = scene::start(site);
    assert!(service.log().contains(crate::LEAKS), "control: the supervisor was given them");
    for process in processes(&service).iter().filter(|process| process.pid != service.pid()) {
        let all = descriptors(process.pid);
        let kinds: BTreeMap<i32, &str> = all.iter().map(|(number, what)| (*number, kind(what))).collect();
        let fixed: &[(i32, &str)] = match process.role.as_str() {
            "worker" => &[(0, "null"), (3, "socket"), (5, "socket"), (6, "socket")],
            "frontend" => &[(0, "null"), (3, "socket"), (5, "socket"), (6, "socket")],
            "registry" => &[(0, "null"), (3, "socket")],
            "exporter" => &[(0, "null"), (3, "socket"), (5, "socket")],
            "gateway" => &[(0, "null"), (3, "socket"), (5, "socket"), (6, "socket")],
            _ => &[(0, "null")],
        };
        for (number, expected) in fixed {
            assert_eq!(kinds.get(number), Some(expected), "{process:?}: {all:?}");
        }
        let log = text(&service.site.path("log"));
        assert_eq!((&all[&1], &all[&2]), (&log, &log), "{process:?}");
        let allowed: &[&str] = match process.role.as_str() {
            // Its policies, sealed; what it looks at its own memory with.
            "worker" => &["null", "log", "socket", "event", "policy", "pagemap"],
            // The loop, and each worker's channel.
            "frontend" | "exporter" | "gateway" => &["null", "log", "socket", "event"],
            // Its own directory; policies for workers that are yet to come, sealed; each worker's channel.
            "registry" => &["null", "log", "socket", "event", "state", "policy"],
            _ => &["null", "log", "socket", "program"],
        };
        for (number, what) in &all {
            assert!(allowed.contains(&kind(what)), "{process:?}: {number} is {what}, a {}", kind(what));
        }
    }
}

pub(crate) fn descriptors(pid: Pid) -> BTreeMap<i32, String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").flatten();
    let number = |path: &Path| path.file_name()?.to_str()?.parse().ok();
    let target = |path: &Path| Some(fs::read_link(path).ok()?.to_str()?.to_owned());
    entries.filter_map(|entry| Some((number(&entry.path())?, target(&entry.path())?))).collect()
}

fn kind(what: &str) -> &'static str {
    match what {
        "/dev/null" => "null",
        "anon_inode:[eventpoll]" | "anon_inode:[eventfd]" => "event",
        _ if what.ends_with("/log") => "log",
        _ if what.ends_with("/state") => "state",
        _ if what.starts_with("socket:") => "socket",
        _ if what.starts_with("/memfd:portcullis-policy") => "policy",
        _ if what.ends_with("/pagemap") => "pagemap",
        _ if what.contains("/portcullis-") && !what.ends_with("/canary") => "program",
        _ => "stranger",
    }
}

/// What a policy was loaded from is still there, and stays what it was.
pub(crate) fn a_worker_cannot_change_its_policies() {
    let service = scene::start(scene::site());
    let worker = scene::process(&service, "worker");
    let policy = descriptors(worker.pid).into_iter().find(|(_, what)| kind(what) == "policy");
    let (number, _) = policy.expect("a worker keeps its policies' files");
    let fd = u64::from(number.cast_unsigned());
    let mut thread = Thread::take_over(worker.pid);
    let bytes = thread.place(b"EVIL");
    // What it keeps is open for reading alone.
    assert_eq!(thread.call(libc::SYS_write, [fd, bytes, 4, 0, 0, 0]), Ok(-i64::from(libc::EBADF)));
    // And it is sealed, for root as well, who may open it for writing.
    let path = format!("/proc/{}/fd/{number}", worker.pid);
    let mut writable = fs::File::options().write(true).open(path).expect("open");
    let error = std::io::Write::write(&mut writable, b"EVIL").expect_err("sealed");
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    // The control: the same call where there is no seal.
    assert_eq!(thread.call(libc::SYS_write, [2, bytes, 4, 0, 0, 0]), Ok(4));
    drop(thread);
    answers_again(&service);
    // Every other way is not even asked.
    let ways = |fd: u64| {
        [
            (libc::SYS_ftruncate, [fd, 0, 0, 0, 0, 0]),
            (libc::SYS_mmap, [0, 4096, 3, 1, fd, 0]),
            // To add a seal is to be told whether there may be more: F_ADD_SEALS, F_SEAL_FUTURE_WRITE.
            (libc::SYS_fcntl, [fd, 1033, 16, 0, 0, 0]),
            (libc::SYS_pwrite64, [fd, 0, 1, 0, 0, 0]),
        ]
    };
    for way in 0..ways(0).len() {
        let worker = scene::process_again(&service, "worker");
        let policy = descriptors(worker.pid).into_iter().find(|(_, what)| kind(what) == "policy");
        let (call, arguments) = ways(u64::from(policy.expect("a policy").0.cast_unsigned()))[way];
        let answer = Thread::take_over(worker.pid).call(call, arguments);
        assert_eq!(answer, Err(Death::Signal(Signal::SIGSYS)), "call {call}");
        wait_until_gone(worker.pid);
        answers_again(&service);
    }
}

pub(crate) fn a_child_has_no_environment_terminal_or_directory() {
    let service = scene::start(scene::site());
    for process in processes(&service).iter().filter(|process| process.pid != service.pid()) {
        let of = format!("/proc/{}", process.pid);
        assert_eq!(fs::read(format!("{of}/environ")).expect("environ"), b"", "{process:?}");
        assert_eq!(fs::read_link(format!("{of}/cwd")).expect("cwd"), Path::new("/"), "{process:?}");
        let stat = fs::read_to_string(format!("{of}/stat")).expect("stat");
        let fields: Vec<&str> = stat.rsplit_once(')').expect("stat").1.split_whitespace().collect();
        // State, parent, group, session, terminal.
        let (session, terminal) = (fields[3], fields[4]);
        assert_eq!((session, terminal), (process.pid.to_string().as_str(), "0"), "{process:?}");
        assert_eq!(status(&format!("{of}/status"))["Umask"], "0077", "{process:?}");
    }
    let environment = |service: &Service| fs::read(format!("/proc/{}/environ", service.pid()));
    assert_ne!(environment(&service).expect("environ"), b"", "control: the supervisor was given one");
}
