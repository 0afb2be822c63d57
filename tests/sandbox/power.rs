//! Power that was there and is gone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl::set_keepcaps;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, raise, sigaction};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, chdir, chown, getpid, getsid, setgroups, setresgid, setresuid};
use portcullis::sandbox::privileges::{
    ConfiguredLimits, SERVICE_NEEDS, SurrenderError, endow, keep, settle, surrender,
};
use portcullis::sandbox::{Given, Role, SealError};
use portcullis::wire::control::Isolation;
use seccompiler::{SeccompAction, SeccompFilter};

use crate::child::{
    CLASS, End, LIMITS, SERVICE, exec, identity, pipe, run, run_unsealed, start, this_program, wait,
};

const SHADOW: &str = "/etc/shadow";

pub(crate) fn from_root() {
    let four = raise_everything(&SERVICE_NEEDS.into_iter().collect());
    setgroups(&[Gid::from_raw(27)]).expect("groups");
    // A plain change of UID from root clears what is effective, so the control is what a child has before it.
    let control = run(Role::Worker, || {
        File::open(SHADOW).expect("shadow");
        assert_eq!(field("CapInh"), format!("{four:016x}"));
        assert_eq!(field("CapAmb"), format!("{four:016x}"));
        assert_eq!(field("Groups"), "27");
    });
    assert_eq!(control, End::Exit(0));
    let supervisor = getpid();
    assert_eq!(run(Role::Worker, || stripped_child(supervisor)), End::Exit(0));
}

/// The trap: an ordinary user with ambient capabilities, as `User=` and `AmbientCapabilities=` give them.
pub(crate) fn from_ambient() {
    let this = this_program();
    let end = run(Role::Supervisor, || {
        become_service();
        exec(&this, "ambient-supervisor");
    });
    assert_eq!(end, End::Exit(0));
}

pub(crate) fn ambient_supervisor() {
    assert_eq!(field("Uid"), [SERVICE.to_string().as_str(); 4].join("\t"));
    assert_eq!(settle().expect("settle"), Isolation::DistinctUids);
    // The control: a change of UID alone, and root is one call away.
    let control = run(Role::Worker, || {
        change_uid(CLASS);
        assert_eq!(field("CapEff"), "00000000000001e0");
        change_uid(0);
        File::open(SHADOW).expect("shadow");
    });
    assert_eq!(control, End::Exit(0));
    let supervisor = getpid();
    assert_eq!(run(Role::Worker, || stripped_child(supervisor)), End::Exit(0));
}

fn stripped_child(supervisor: Pid) {
    surrender(Role::Worker, (CLASS, CLASS), Isolation::DistinctUids, &LIMITS, supervisor.as_raw())
        .expect("surrender");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    for id in ["Uid", "Gid"] {
        assert_eq!(field(id), [CLASS.to_string().as_str(); 4].join("\t"), "{id}");
    }
    assert_eq!(field("Groups"), "");
    assert_eq!(field("Umask"), "0077");
    assert_eq!(field("SigBlk"), "0000000000000000");
    let root = Uid::from_raw(0);
    for (real, effective) in [(root, root), (Uid::from_raw(CLASS), root)] {
        setresuid(real, effective, root).expect_err("the way back");
    }
    let error = File::open(SHADOW).expect_err("shadow");
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    assert_eq!(getrlimit(Resource::RLIMIT_CORE), Ok((0, 0)));
    assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((LIMITS.open_files, LIMITS.open_files)));
    assert_eq!(getsid(None), Ok(getpid()), "a session of its own");
    assert_eq!(std::env::current_dir().expect("cwd"), Path::new("/"));
    let _given = Given::check(Role::Worker, CLASS, CLASS, Isolation::DistinctUids).expect("given");
}

pub(crate) fn settle_keeps_four() {
    let home = tempfile::tempdir().expect("tempdir");
    let secret = home.path().join("secret");
    std::fs::write(&secret, b"x").expect("write");
    std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
    chown(&secret, Some(Uid::from_raw(CLASS)), None).expect("chown");
    raise_everything(&[Capability::CAP_CHOWN].into_iter().collect());
    let end = run(Role::Supervisor, || {
        File::open(&secret).expect("root reads all: the control");
        assert_eq!(settle().expect("settle"), Isolation::DistinctUids);
        for (set, expected) in
            [("CapInh", "0"), ("CapPrm", "1e0"), ("CapEff", "1e0"), ("CapBnd", "1e0"), ("CapAmb", "0")]
        {
            assert_eq!(field(set), format!("{expected:0>16}"), "{set}");
        }
        let error = File::open(&secret).expect_err("a class's file");
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
        let error =
            Given::check(Role::Supervisor, 0, 0, Isolation::DistinctUids).expect_err("too much by now");
        assert!(error.to_string().contains("CapPrm is 0x1e0, expected 0x20"), "{error}");
        change_uid(CLASS);
    });
    assert_eq!(end, End::Exit(0));
}

/// One can end processes and one can start them, and neither can do the other's part.
pub(crate) fn the_four_are_divided() {
    let me = getpid();
    let stopped = |uid| {
        let (mut ready, told) = pipe();
        let (hold, release) = pipe();
        let child = start(Role::Worker, move || {
            change_uid(uid);
            crate::child::report_and_wait(told, hold);
        });
        assert_eq!(ready.read(&mut [0]).expect("ready"), 1);
        (child, release)
    };
    let (victim, _release) = stopped(CLASS);
    let end = run(Role::Supervisor, || {
        settle().expect("settle");
        kill(victim, None).expect("control");
        keep(Role::Supervisor, Isolation::DistinctUids).expect("keep");
        drop(Given::check(Role::Supervisor, 0, 0, Isolation::DistinctUids).expect("given"));
        assert_eq!((field("CapEff"), field("CapBnd")), (format!("{:016x}", 0x20), format!("{:016x}", 0x20)));
        kill(victim, None).expect("it ends others");
        let user = Uid::from_raw(CLASS);
        setresuid(user, user, user).expect_err("it changes no UID");
        caps::set(None, CapSet::Permitted, &SERVICE_NEEDS.into_iter().collect()).expect_err("no way back");
    });
    assert_eq!(end, End::Exit(0));
    let end = run(Role::Spawner, || {
        settle().expect("settle");
        endow(Isolation::DistinctUids, me.as_raw()).expect("endow");
        assert_eq!(field("CapAmb"), format!("{:016x}", 0x1c0), "so that they survive exec");
        keep(Role::Spawner, Isolation::DistinctUids).expect("keep");
        drop(Given::check(Role::Spawner, 0, 0, Isolation::DistinctUids).expect("given"));
        assert_eq!((field("CapEff"), field("CapAmb")), (format!("{:016x}", 0x1c0), format!("{:016x}", 0)));
        caps::set(None, CapSet::Permitted, &SERVICE_NEEDS.into_iter().collect()).expect_err("no way back");
        change_uid(CLASS + 1);
        assert_eq!(kill(victim, None), Err(nix::errno::Errno::EPERM), "it ends nobody");
    });
    assert_eq!(end, End::Exit(0));
    kill(victim, Signal::SIGKILL).expect("clean up");
    wait(victim);
}

pub(crate) fn settle_refuses_a_part() {
    let end = run(Role::Supervisor, || {
        caps::drop(None, CapSet::Effective, Capability::CAP_SETPCAP).expect("drop");
        caps::drop(None, CapSet::Permitted, Capability::CAP_SETPCAP).expect("drop");
        let error = settle().expect_err("three of four");
        assert!(error.to_string().starts_with("keep capabilities: has 0xe0 of the needed 0x1e0"), "{error}");
    });
    assert_eq!(end, End::Exit(0));
}

/// A unit whose system call filter blocks capset makes the drop a lie unless somebody looks at the answer.
pub(crate) fn capset_refused() {
    let supervisor = getpid();
    let end = run(Role::Worker, || {
        let filter = SeccompFilter::new(
            [(libc::SYS_capset, vec![])].into(),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::EPERM as u32),
            std::env::consts::ARCH.try_into().expect("arch"),
        );
        let program: seccompiler::BpfProgram = filter.expect("filter").try_into().expect("program");
        seccompiler::apply_filter(&program).expect("apply");
        let error =
            surrender(Role::Worker, (CLASS, CLASS), Isolation::DistinctUids, &LIMITS, supervisor.as_raw())
                .expect_err("told");
        assert!(matches!(error, SurrenderError::Capabilities { .. }), "{error}");
        assert!(error.to_string().contains("a filter around the service that blocks capset"), "{error}");
    });
    assert_eq!(end, End::Exit(0));
}

pub(crate) fn limit_refused() {
    let supervisor = getpid();
    let end = run(Role::Worker, || {
        setrlimit(Resource::RLIMIT_NOFILE, 64, 64).expect("limit");
        // Root may raise it again; a child that has changed its UID may not.
        let (uid, gid, isolation) = identity();
        let limits = ConfiguredLimits { open_files: 65, processes: None, build: None };
        let error =
            surrender(Role::Worker, (uid, gid), isolation, &limits, supervisor.as_raw()).expect_err("told");
        assert!(error.to_string().starts_with("set RLIMIT_NOFILE to 65: the hard limit is 64; "), "{error}");
    });
    assert_eq!(end, End::Exit(0));
}

/// One thing spoiled in each child, after everything was right.
pub(crate) fn given_names_what_was_left() {
    let (uid, gid, isolation) = identity();
    let spoilers: [(&str, fn()); 4] = [
        ("umask is 022, expected 077", || {
            umask(Mode::from_bits_truncate(0o022));
        }),
        ("working directory is /proc, expected /", || chdir("/proc").expect("chdir")),
        ("SigIgn (SIGABRT) is 0x20, expected 0x0", || {
            let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
            // SAFETY: installs no code.
            unsafe { sigaction(Signal::SIGABRT, &ignore) }.expect("sigaction");
        }),
        ("confine worker: 2 threads exist, expected 1", || {
            std::thread::spawn(std::thread::park);
        }),
    ];
    for (expected, spoil) in spoilers {
        let end = run_unsealed(Role::Worker, || {
            drop(Given::check(Role::Worker, uid, gid, isolation).expect("control"));
            spoil();
            let error = Given::check(Role::Worker, uid, gid, isolation).expect_err(expected);
            assert!(error.to_string().contains(expected), "{error}");
        });
        assert_eq!(end, End::Exit(0), "{expected}");
    }
    let end = run_unsealed(Role::Worker, || {
        let error = Given::check(Role::Worker, uid + 1, gid, isolation).expect_err("another uid");
        assert!(error.to_string().starts_with("check what was left to worker: Uid is ["), "{error}");
        let error = Given::check(Role::Worker, 0, 0, isolation).expect_err("uid 0");
        assert!(matches!(error, SealError::Root { role: Role::Worker }), "{error}");
    });
    assert_eq!(end, End::Exit(0));
}

pub(crate) fn dies_with_supervisor() {
    let (mut alive, ours) = pipe();
    let supervisor = start(Role::Supervisor, move || supervise_and_die(ours));
    end_of(supervisor, &mut alive);
}

pub(crate) fn stopped_dies_too() {
    let (mut alive, ours) = pipe();
    let this = this_program();
    let supervisor = start(Role::Supervisor, move || {
        // SAFETY: a number that nothing in this process uses.
        assert_eq!(unsafe { libc::dup2(ours.as_raw_fd(), INHERITED) }, INHERITED);
        drop(ours);
        become_service();
        exec(&this, "ambient-supervisor-that-dies");
    });
    end_of(supervisor, &mut alive);
}

const INHERITED: i32 = 7;

pub(crate) fn ambient_supervisor_that_dies() {
    assert_eq!(field("Uid"), [SERVICE.to_string().as_str(); 4].join("\t"));
    // SAFETY: dup2 has just put a pipe there, and nothing else in this process owns it.
    let alive = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(INHERITED) };
    supervise_and_die(alive);
}

/// Both children hold `alive`; one is given its parent death signal, one is not: the control. Both are stopped, so
/// that neither can see the end of its supervisor by itself.
fn supervise_and_die(alive: File) {
    let me = getpid();
    let (uid, gid, isolation) = match settle().expect("settle") {
        Isolation::DistinctUids => (CLASS, CLASS, Isolation::DistinctUids),
        Isolation::SharedUid => identity(),
    };
    let child = start(Role::Worker, || {
        surrender(Role::Worker, (uid, gid), isolation, &LIMITS, me.as_raw()).expect("surrender");
        raise(Signal::SIGSTOP).expect("stop");
        std::thread::park();
    });
    let control = start(Role::Worker, || {
        // Nothing of this one keeps the pipe open, or its end would never be seen.
        nix::unistd::close(alive.as_raw_fd()).expect("close");
        if isolation == Isolation::DistinctUids {
            change_uid(uid);
        }
        raise(Signal::SIGSTOP).expect("stop");
        std::thread::park();
    });
    for pid in [child, control] {
        let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("wait");
        assert_eq!(stopped, WaitStatus::Stopped(pid, Signal::SIGSTOP));
    }
    (&alive).write_all(&control.as_raw().to_le_bytes()).expect("report");
    kill(me, Signal::SIGKILL).expect("die");
}

fn end_of(supervisor: Pid, alive: &mut File) {
    assert_eq!(wait(supervisor), End::Signal(Signal::SIGKILL));
    // Ends when the surrendered child is gone, and not before.
    let mut told = Vec::new();
    alive.read_to_end(&mut told).expect("read");
    let control = Pid::from_raw(i32::from_le_bytes(told.try_into().expect("a pid")));
    let stat = std::fs::read_to_string(format!("/proc/{control}/stat")).expect("the control child lives");
    assert!(stat.contains(") T "), "{stat}");
    kill(control, Signal::SIGKILL).expect("clean up");
}

/// An ordinary user with the four capabilities in its ambient set, as systemd starts the supervisor.
fn become_service() {
    let four: CapsHashSet = SERVICE_NEEDS.into_iter().collect();
    setgroups(&[]).expect("groups");
    set_keepcaps(true).expect("keepcaps");
    change_uid(SERVICE);
    caps::set(None, CapSet::Effective, &four).expect("effective");
    caps::set(None, CapSet::Permitted, &four).expect("permitted");
    raise_everything(&four);
}

/// Also inheritable and ambient, so that they go through exec. Returns them as a mask.
fn raise_everything(set: &CapsHashSet) -> u64 {
    caps::set(None, CapSet::Inheritable, set).expect("inheritable");
    for capability in set {
        caps::raise(None, CapSet::Ambient, *capability).expect("ambient");
    }
    set.iter().map(Capability::bitmask).sum()
}

fn change_uid(uid: u32) {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    setresgid(group, group, group).expect("gid");
    setresuid(user, user, user).expect("uid");
}

/// Read here by other means than the code under test does.
pub(crate) fn field(name: &str) -> String {
    let text = std::fs::read_to_string("/proc/thread-self/status").expect("status");
    let fields: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once(':')).collect();
    fields.get(name).unwrap_or_else(|| panic!("{name}")).trim().to_owned()
}
