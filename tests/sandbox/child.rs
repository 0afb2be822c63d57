//! Children of a test: forked, stripped, confined and sealed as a role is.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use nix::fcntl::AtFlags;
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, geteuid, getgid, getpid};
use portcullis::sandbox::privileges::{ConfiguredLimits, endow, keep, settle, surrender};
use portcullis::sandbox::{Confined, Enclosed, Given, Places, Role, Sealed, enclose, install_panic_hook};
use portcullis::wire::control::Isolation;

/// A class's UID and GID in these tests.
pub(crate) const CLASS: u32 = 61_001;
/// An ordinary user the supervisor may run as.
pub(crate) const SERVICE: u32 = 61_000;

pub(crate) const LIMITS: ConfiguredLimits =
    ConfiguredLimits { open_files: 256, processes: None, build: None };

/// Whom a child becomes: another UID where the tests have the privilege to give it one.
pub(crate) fn identity() -> (u32, u32, Isolation) {
    if geteuid().is_root() {
        (CLASS, CLASS, Isolation::DistinctUids)
    } else {
        (geteuid().as_raw(), getgid().as_raw(), Isolation::SharedUid)
    }
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Exit(i32),
    Signal(Signal),
}

pub(crate) const KILLED_BY_FILTER: End = End::Signal(Signal::SIGSYS);

/// A child that runs `body` and exits 0; a panic in it is SIGABRT and a line on stderr.
pub(crate) fn start(role: Role, body: impl FnOnce()) -> Pid {
    // SAFETY: every test is a process with one thread (main.rs), so the child's memory is consistent.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            install_panic_hook(role);
            body();
            // SAFETY: ends the process at once; nothing of the test's is to run in the child.
            unsafe { libc::_exit(0) }
        }
    }
}

pub(crate) fn wait(child: Pid) -> End {
    match waitpid(child, None).expect("wait") {
        WaitStatus::Exited(_, code) => End::Exit(code),
        WaitStatus::Signaled(_, signal, _) => End::Signal(signal),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn run(role: Role, body: impl FnOnce()) -> End {
    wait(start(role, body))
}

/// In the child: what is done to it between fork and exec, or what it does to itself at its start.
pub(crate) fn strip(role: Role, supervisor: Pid) {
    let (uid, gid, isolation) = identity();
    match role {
        Role::Supervisor => {
            settle().expect("settle");
            keep(role, isolation).expect("keep");
        }
        Role::Spawner => {
            settle().expect("settle");
            endow(isolation, supervisor.as_raw()).expect("endow");
            keep(role, isolation).expect("keep");
        }
        Role::Frontend
        | Role::Worker
        | Role::Registry
        | Role::Builder
        | Role::Exporter
        | Role::Gateway
        | Role::Fetcher => {
            surrender(role, (uid, gid), isolation, &LIMITS, supervisor.as_raw()).expect("surrender");
        }
    }
}

/// The next step, by whom the process is by now.
pub(crate) fn check(role: Role) -> Given {
    let uid = geteuid().as_raw();
    let class_or_root = uid == CLASS || uid == 0 || uid == SERVICE;
    let isolation = if class_or_root { Isolation::DistinctUids } else { Isolation::SharedUid };
    Given::check(role, uid, getgid().as_raw(), isolation).expect("given")
}

pub(crate) fn confine(role: Role) -> Confined {
    let _enclosed: Option<Enclosed> = (role == Role::Supervisor).then(|| enclose().expect("enclose"));
    check(role).confine(&places(role)).expect("confine")
}

/// Somewhere a role of that name would have something.
pub(crate) fn places(role: Role) -> Places {
    match role {
        Role::Spawner => {
            let this = std::env::current_exe().expect("path");
            Places::default().with("programs", this.parent().expect("directory"))
        }
        _ => Places::default(),
    }
}

/// Runs `body` in a child that is stripped but not sealed.
pub(crate) fn run_unsealed(role: Role, body: impl FnOnce()) -> End {
    let supervisor = getpid();
    run(role, || {
        strip(role, supervisor);
        body();
    })
}

/// Runs `body` in a child that is sealed as `role`.
pub(crate) fn run_sealed(role: Role, body: impl FnOnce(&Sealed)) -> End {
    run_unsealed(role, || body(&confine(role).seal().expect("seal")))
}

/// Two ends of a way for bytes: a test waits for them or for its end, never for time. Sockets, since no sealed frontend
/// reads from anything else.
pub(crate) fn pipe() -> (File, File) {
    let (read, write) = UnixStream::pair().expect("pair");
    (OwnedFd::from(read).into(), OwnedFd::from(write).into())
}

/// Says that a child is where it is to be looked at, then waits until the other side closes or kills.
pub(crate) fn report_and_wait(mut ready: File, hold: File) {
    ready.write_all(b"!").expect("report");
    drop(ready);
    let _ = recv(hold.as_raw_fd(), &mut [0], MsgFlags::empty());
}

/// Blocks until a child reports; false if it ended without.
pub(crate) fn reported(mut ready: File) -> bool {
    matches!(ready.read(&mut [0]), Ok(1))
}

/// One call by number: its result, or the negative errno.
pub(crate) fn call(number: i64, arguments: [u64; 6]) -> i64 {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: callers pass arguments that the kernel refuses or that touch only memory made for them.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result == -1 { -i64::from(nix::errno::Errno::last_raw()) } else { result }
}

/// Programs that children exec, by name.
pub(crate) fn program(name: &str) -> ExitCode {
    match name {
        "worker" => super::life::program(Role::Worker),
        "frontend" => super::life::program(Role::Frontend),
        "ambient-supervisor" => super::power::ambient_supervisor(),
        "ambient-supervisor-that-dies" => super::power::ambient_supervisor_that_dies(),
        other => panic!("no program {other}"),
    }
    ExitCode::SUCCESS
}

/// This test program, to be started again by [`exec`]; opened before any Landlock, as the supervisor does.
pub(crate) fn this_program() -> File {
    File::open("/proc/self/exe").expect("open this program")
}

/// Becomes [`program`] `name`, with an empty environment, the way the supervisor starts a child.
pub(crate) fn exec(this: &File, name: &str) -> ! {
    let arguments = ["sandbox", "--program", name].map(|text| CString::new(text).expect("text"));
    let none: [CString; 0] = [];
    let error =
        nix::unistd::execveat(this, c"", &arguments, &none, AtFlags::AT_EMPTY_PATH).expect_err("exec");
    panic!("exec {name}: {error}");
}
