//! A command, and whatever it starts, whose power fails before any of its changes to the disk: every system call that writes,
//! names, removes, makes or syncs something is seen before it is made, by ptrace, and from there on none is made any more.
//!
//! A process that is ended has written what it wrote; a disk without power has not. So the same trace is also looked at for
//! what would be lost: whenever something gets the name by which others find it, all of it has to be on the disk already.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What a command did.
pub(crate) struct Run {
    /// How it ended by itself.
    pub(crate) code: Option<i32>,
    /// Changes that it made, or was about to make when its power failed.
    pub(crate) changes: usize,
    /// What got its name before all of it was on the disk.
    pub(crate) careless: Vec<String>,
}

/// Runs a command. Before its change number `cut`, the first being 0, it and all it started end.
pub(crate) fn run(command: &Command, below: &Path, cut: Option<usize>) -> Run {
    let mut traced = Traced::start(command, below, cut);
    while !traced.threads.is_empty() {
        // Of this thread only: other tests have children too.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        match waitpid(None, Some(flags)) {
            Ok(status) => traced.on(status),
            Err(nix::errno::Errno::ECHILD) => break,
            Err(errno) => panic!("wait: {errno}"),
        }
    }
    traced.end()
}

struct Traced {
    first: Pid,
    /// By thread: what it is in the middle of.
    threads: BTreeMap<Pid, Option<Call>>,
    below: PathBuf,
    cut: Option<usize>,
    changes: usize,
    code: Option<i32>,
    /// Files with contents, and directories with names, that are not on the disk yet.
    dirty: BTreeSet<PathBuf>,
    careless: Vec<String>,
}

/// A system call that changes what is on the disk, or brings it there.
#[derive(Debug, Clone)]
enum Call {
    Writes(PathBuf),
    Makes(PathBuf),
    Renames {
        from: PathBuf,
        to: PathBuf,
        exchange: bool,
    },
    /// What is gone may come back after a power cut, and is in nobody's way.
    Removes,
    /// Brings contents, or a directory's names, to the disk.
    Syncs(PathBuf),
}

impl Traced {
    fn start(command: &Command, below: &Path, cut: Option<usize>) -> Self {
        // It stops itself, so that it is seen from its first call on.
        let mut stopped = Command::new("sh");
        stopped.args(["-c", "kill -STOP $$; exec \"$0\" \"$@\""]).arg(command.get_program());
        stopped.args(command.get_args()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(directory) = command.get_current_dir() {
            stopped.current_dir(directory);
        }
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => stopped.env(name, value),
                None => stopped.env_remove(name),
            };
        }
        #[expect(clippy::zombie_processes, reason = "it is waited for as a tracer does")]
        let child = stopped.spawn().unwrap();
        let first = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let status = waitpid(first, Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(matches!(status, WaitStatus::Stopped(_, Signal::SIGSTOP)), "{status:?}");
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_EXITKILL;
        ptrace::seize(first, options).unwrap();
        kill(first, Signal::SIGCONT).unwrap();
        Self {
            first,
            threads: [(first, None)].into(),
            below: fs::canonicalize(below).unwrap(),
            cut,
            changes: 0,
            code: None,
            dirty: BTreeSet::new(),
            careless: Vec::new(),
        }
    }

    fn on(&mut self, status: WaitStatus) {
        let Some(thread) = status.pid() else { return };
        let signal = match status {
            WaitStatus::Exited(_, code) => {
                self.threads.remove(&thread);
                if thread == self.first {
                    self.code = Some(code);
                }
                return;
            }
            WaitStatus::Signaled(..) => return drop(self.threads.remove(&thread)),
            WaitStatus::PtraceSyscall(_) if self.on_call(thread) => return self.fail(),
            // What it began with.
            WaitStatus::Stopped(_, Signal::SIGSTOP | Signal::SIGCONT) => None,
            WaitStatus::Stopped(_, signal) => Some(signal),
            // A call, a birth, an exec.
            _ => None,
        };
        self.threads.entry(thread).or_default();
        // One that has been ended meanwhile needs no more.
        let _ = ptrace::syscall(thread, signal);
    }

    /// The power fails.
    fn fail(&self) {
        for thread in self.threads.keys() {
            let _ = kill(*thread, Signal::SIGKILL);
        }
    }

    /// Begins or ends a call. True: this is where it was to be cut.
    fn on_call(&mut self, thread: Pid) -> bool {
        let Ok(stop) = ptrace::syscall_info(thread) else { return false };
        if stop.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
            if let Some(call) = self.threads.get_mut(&thread).and_then(Option::take) {
                self.done(call);
            }
            return false;
        }
        let call = Tracee(thread).call().filter(|call| self.is_ours(call));
        if let Some(call) = &call {
            if self.cut == Some(self.changes) {
                return true;
            }
            self.changes += 1;
            self.look(call);
        }
        self.threads.insert(thread, call);
        false
    }

    fn is_ours(&self, call: &Call) -> bool {
        match call {
            Call::Writes(path) | Call::Makes(path) | Call::Syncs(path) => path.starts_with(&self.below),
            Call::Renames { to, .. } => to.starts_with(&self.below),
            Call::Removes => true,
        }
    }

    /// Whether a name by which others find something has on the disk what it says.
    fn look(&mut self, call: &Call) {
        let Call::Renames { from, to, .. } = call else { return };
        let parent = to.parent().unwrap();
        if self.is_hidden(to) {
            return;
        }
        for dirty in &self.dirty {
            let beside = dirty.starts_with(parent) && dirty != parent && !self.is_hidden(dirty);
            if dirty.starts_with(from) || beside {
                self.careless.push(format!("{dirty:?} was not on the disk when {to:?} got its name"));
            }
        }
    }

    fn done(&mut self, call: Call) {
        match call {
            Call::Writes(path) => drop(self.dirty.insert(path)),
            Call::Makes(path) => self.named(&path),
            Call::Syncs(path) => drop(self.dirty.remove(&path)),
            Call::Removes => {}
            Call::Renames { from, to, exchange } => {
                let moved = std::mem::take(&mut self.dirty).into_iter().filter_map(|path| {
                    match (path.strip_prefix(&from), path.strip_prefix(&to)) {
                        (Ok(rest), _) => Some(joined(&to, rest)),
                        (_, Ok(rest)) if exchange => Some(joined(&from, rest)),
                        // What had the name before is gone.
                        (_, Ok(_)) => None,
                        _ => Some(path),
                    }
                });
                self.dirty = moved.collect();
                self.named(&from);
                self.named(&to);
            }
        }
    }

    /// Something came into, or left, a directory. Of what is unfinished it does not matter whether it is there.
    fn named(&mut self, path: &Path) {
        if !path.file_name().unwrap().as_encoded_bytes().starts_with(b".") {
            self.dirty.insert(path.parent().unwrap().to_owned());
        }
    }

    /// What others could find, and would not after a power cut, though it was said to be done.
    fn end(mut self) -> Run {
        if self.code == Some(0) {
            let lost: Vec<_> = self.dirty.iter().filter(|path| !self.is_hidden(path)).collect();
            let lost: Vec<_> =
                lost.iter().map(|path| format!("{path:?} is not on the disk at the end")).collect();
            self.careless.extend(lost);
        }
        Run { code: self.code, changes: self.changes, careless: self.careless }
    }

    /// Unfinished: nobody takes such a name for anything.
    fn is_hidden(&self, path: &Path) -> bool {
        let name = path.strip_prefix(&self.below).unwrap_or(path);
        name.components().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b"."))
    }
}

/// Joining nothing would add a slash.
fn joined(path: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { path.to_owned() } else { path.join(rest) }
}

/// A thread that is stopped at the beginning of a system call.
struct Tracee(Pid);

impl Tracee {
    fn call(&self) -> Option<Call> {
        let text = fs::read_to_string(self.proc("syscall")).ok()?;
        let mut words = text.split_whitespace();
        let number: i64 = words.next()?.parse().ok()?;
        let numbers: Vec<u64> =
            words.filter_map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok()).collect();
        let [a, b, c, d, e, ..] = numbers[..] else { return None };
        const HERE: u64 = libc::AT_FDCWD as u64;
        let renames = |from: PathBuf, to: PathBuf, flags: u64| {
            let exchange = flags & u64::from(libc::RENAME_EXCHANGE) != 0;
            Call::Renames { from, to, exchange }
        };
        match number {
            libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_writev | libc::SYS_ftruncate => {
                Some(Call::Writes(self.descriptor(a)?))
            }
            libc::SYS_copy_file_range => Some(Call::Writes(self.descriptor(c)?)),
            libc::SYS_sendfile => Some(Call::Writes(self.descriptor(a)?)),
            libc::SYS_fsync | libc::SYS_fdatasync => Some(Call::Syncs(self.descriptor(a)?)),
            libc::SYS_openat => self.makes(a, b, c),
            libc::SYS_mkdirat => self.makes_folder(a, b),
            libc::SYS_unlinkat => Some(Call::Removes),
            libc::SYS_renameat => Some(renames(self.path(a, b)?, self.path(c, d)?, 0)),
            libc::SYS_renameat2 => Some(renames(self.path(a, b)?, self.path(c, d)?, e)),
            // Calls that only older machines have.
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => self.makes(HERE, a, b),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_mkdir => self.makes_folder(HERE, a),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_unlink | libc::SYS_rmdir => Some(Call::Removes),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_rename => Some(renames(self.path(HERE, a)?, self.path(HERE, b)?, 0)),
            _ => None,
        }
    }

    fn makes(&self, directory: u64, path: u64, flags: u64) -> Option<Call> {
        let path = self.path(directory, path)?;
        let has = |flag: i32| flags & flag as u64 != 0;
        match path.exists() {
            false if has(libc::O_CREAT) => Some(Call::Makes(path)),
            true if has(libc::O_TRUNC) => Some(Call::Writes(path)),
            _ => None,
        }
    }

    /// One that is there already stays as it is.
    fn makes_folder(&self, directory: u64, path: u64) -> Option<Call> {
        let path = self.path(directory, path)?;
        (!path.exists()).then_some(Call::Makes(path))
    }

    fn path(&self, directory: u64, address: u64) -> Option<PathBuf> {
        let memory = fs::File::open(self.proc("mem")).ok()?;
        // As much as there is before the end of what is mapped.
        let mut bytes = vec![0; 4096];
        let read = memory.read_at(&mut bytes, address).ok()?;
        bytes.truncate(read);
        bytes.truncate(bytes.iter().position(|byte| *byte == 0)?);
        let path = PathBuf::from(String::from_utf8(bytes).ok()?);
        let from = match directory as i32 {
            libc::AT_FDCWD => fs::read_link(self.proc("cwd")).ok()?,
            _ => self.descriptor(directory).unwrap_or_default(),
        };
        // The directory's own name may go through links; the last part is what is made.
        let whole = from.join(path);
        Some(fs::canonicalize(whole.parent()?).ok()?.join(whole.file_name()?))
    }

    fn descriptor(&self, number: u64) -> Option<PathBuf> {
        fs::read_link(self.proc(&format!("fd/{}", number as i32))).ok()
    }

    fn proc(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.0)
    }
}
