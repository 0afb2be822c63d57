//! Every system call of a service and of everything it starts, as the kernel saw it: a number and six arguments, and
//! whose filters were in force when it was made.
//!
//! The tracer is a process of its own beside the service, and the service's child, so that the service stays the child
//! of whoever started it: [`start`] becomes the service after a copy of this program has seized it.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getppid};

/// `--traced SOCKET PROGRAM ARGUMENTS..`: becomes the program, traced. What it did is written to the socket.
pub(crate) const START: &str = "--traced";
/// `--tracer SOCKET`: traces its parent.
pub(crate) const TRACER: &str = "--tracer";

/// One system call, and the roles whose filters it had to pass, the outermost first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Call {
    pub(crate) filters: Vec<String>,
    pub(crate) number: u64,
    pub(crate) arguments: [u64; 6],
}

#[expect(clippy::zombie_processes, reason = "it outlives this program, which becomes the service")]
pub(crate) fn start(socket: &str, program: &str, arguments: &[&str]) -> ! {
    let mut tracer = Command::new("/proc/self/exe")
        .args([TRACER, socket])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the tracer");
    let mut there = [0];
    tracer.stdout.as_mut().expect("stdout").read_exact(&mut there).expect("the tracer is there");
    drop(tracer.stdout.take());
    panic!("run {program}: {}", Command::new(program).args(arguments).exec())
}

/// What the tracer has sent, until it ended. Calls that only differ in nothing are there once.
pub(crate) fn calls(mut from: UnixStream) -> HashSet<Call> {
    let mut text = String::new();
    from.read_to_string(&mut text).expect("read the trace");
    let parse = |line: &str| {
        let (filters, numbers) = line.split_once(' ')?;
        let numbers: Vec<u64> =
            numbers.split(' ').map(|number| number.parse().ok()).collect::<Option<_>>()?;
        let (number, arguments) = numbers.split_first()?;
        let filters = filters.split(',').map(str::to_owned).collect();
        Some(Call { filters, number: *number, arguments: arguments.try_into().ok()? })
    };
    text.lines().map(|line| parse(line).unwrap_or_else(|| panic!("a line of the trace: {line}"))).collect()
}

/// A process that is traced.
#[derive(Debug, Clone, Default)]
struct Process {
    /// What its program's name says.
    role: String,
    /// The roles whose filters are on it. Inherited, and only ever added to.
    filters: Vec<String>,
}

struct Tracer {
    to: std::io::BufWriter<UnixStream>,
    /// By thread: the process's first thread, by which the processes are known.
    threads: HashMap<Pid, Pid>,
    processes: HashMap<Pid, Process>,
    /// Stopped at their birth, until the stop of who made them says whose they are.
    unknown: HashSet<Pid>,
    said: HashSet<Rc<Call>>,
    /// Threads on their way through seccomp(2).
    sealing: HashSet<Pid>,
}

/// Traces the parent, until nobody is left.
pub(crate) fn trace(socket: &str) {
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC;
    let service = getppid();
    let to = UnixStream::connect(Path::new(socket)).expect("connect to the test");
    ptrace::seize(service, options).expect("seize");
    ptrace::interrupt(service).expect("interrupt");
    let mut tracer = Tracer {
        to: std::io::BufWriter::new(to),
        threads: [(service, service)].into(),
        processes: [(service, Process::default())].into(),
        unknown: HashSet::new(),
        said: HashSet::new(),
        sealing: HashSet::new(),
    };
    // By now every call of the parent's is seen, since it is stopped or about to be.
    std::io::stdout().write_all(b"!").and_then(|()| std::io::stdout().flush()).expect("report");
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(status) => tracer.on_stop(status),
            Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => break,
            Err(errno) => panic!("wait: {errno}"),
        }
    }
    tracer.to.flush().expect("send the trace");
}

impl Tracer {
    fn on_stop(&mut self, status: WaitStatus) {
        let Some(thread) = status.pid() else { return };
        match status {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                self.threads.remove(&thread);
                return;
            }
            _ if !self.threads.contains_key(&thread) => {
                self.unknown.insert(thread);
                return;
            }
            WaitStatus::PtraceSyscall(_) => self.on_call(thread),
            WaitStatus::PtraceEvent(_, signal, libc::PTRACE_EVENT_STOP) if signal != Signal::SIGTRAP => {
                // Stopped like any other process is by that signal, until it is continued.
                return listen(thread);
            }
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC) => self.on_exec(thread),
            WaitStatus::PtraceEvent(_, _, event) if event != libc::PTRACE_EVENT_STOP => self.on_birth(thread),
            WaitStatus::Stopped(_, signal) => return go_on(thread, Some(signal)),
            _ => {}
        }
        go_on(thread, None);
    }

    fn on_call(&mut self, thread: Pid) {
        // Killed meanwhile.
        let Ok(stop) = ptrace::syscall_info(thread) else { return };
        let process = self.processes.get_mut(&self.threads[&thread]).expect("known");
        if stop.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
            // SAFETY: `op` says that this is what the kernel has filled in.
            let entry = unsafe { stop.u.entry };
            // SECCOMP_SET_MODE_FILTER
            if entry.nr == libc::SYS_seccomp.cast_unsigned() && entry.args[0] == 1 {
                self.sealing.insert(thread);
            }
            if process.filters.is_empty() {
                return;
            }
            let call =
                Rc::new(Call { filters: process.filters.clone(), number: entry.nr, arguments: entry.args });
            if self.said.insert(Rc::clone(&call)) {
                let numbers: Vec<String> =
                    [call.number].iter().chain(&call.arguments).map(u64::to_string).collect();
                writeln!(self.to, "{} {}", call.filters.join(","), numbers.join(" "))
                    .expect("send the trace");
            }
        } else if stop.op == libc::PTRACE_SYSCALL_INFO_EXIT && self.sealing.remove(&thread) {
            // SAFETY: `op` says that this is what the kernel has filled in.
            let answer = unsafe { stop.u.exit };
            if answer.sval == 0 {
                process.filters.push(process.role.clone());
            }
        }
    }

    fn on_exec(&mut self, thread: Pid) {
        let program = std::fs::read_link(format!("/proc/{thread}/exe")).unwrap_or_default();
        let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let process = self.processes.get_mut(&self.threads[&thread]).expect("known");
        process.role = name.strip_prefix("portcullis-").unwrap_or(name).to_owned();
    }

    fn on_birth(&mut self, parent: Pid) {
        let Ok(born) = ptrace::getevent(parent) else { return };
        let born = Pid::from_raw(i32::try_from(born).expect("pid"));
        let of = self.threads[&parent];
        if is_thread_of(born, of) {
            self.threads.insert(born, of);
        } else {
            self.threads.insert(born, born);
            self.processes.insert(born, self.processes[&of].clone());
        }
        if self.unknown.remove(&born) {
            go_on(born, None);
        }
    }
}

fn is_thread_of(thread: Pid, process: Pid) -> bool {
    Path::new(&format!("/proc/{process}/task/{thread}")).exists()
}

fn go_on(thread: Pid, signal: Option<Signal>) {
    match ptrace::syscall(thread, signal) {
        // ESRCH: killed meanwhile.
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => panic!("go on: {errno}"),
    }
}

/// Lets a stop of a whole process be one, which nix has no function for.
fn listen(thread: Pid) {
    const PTRACE_LISTEN: libc::c_uint = 0x4208;
    // SAFETY: takes no pointers; a thread that is gone is an error that does not matter.
    let _ = unsafe { libc::ptrace(PTRACE_LISTEN, thread.as_raw(), 0, 0) };
}
