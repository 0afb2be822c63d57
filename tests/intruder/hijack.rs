//! Native code in a running process, as an intruder would have it: root stops one of its threads with ptrace, lets it
//! make one system call at an instruction the process has anyway, reads the answer, and lets it run on as before.
//!
//! Nothing of the process is changed or rebuilt for that. Its filters, Landlock, UIDs and capabilities apply to the call
//! as they would to its own: the kernel asks seccomp after the tracer has set the registers.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::registers::{self, Registers};

/// How the process ended instead of answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    Exit(i32),
    Signal(Signal),
}

/// What a call answered: the kernel's result, negative if it is an errno.
pub(crate) type Answer = Result<i64, Death>;

/// Below the stack pointer, compilers keep 128 bytes for themselves.
const RED_ZONE: u64 = 256;

/// A thread of another process, stopped, doing what it is told. Let go of, it goes on where it was.
pub(crate) struct Thread {
    thread: Pid,
    before: Registers,
    /// Where a system call instruction is.
    instruction: u64,
    /// Stack that is used already; grows downwards.
    top: u64,
    memory: File,
    dead: bool,
    dumped_core: bool,
}

/// All threads of a process, the first one first.
pub(crate) fn threads(process: Pid) -> Vec<Pid> {
    let entries = std::fs::read_dir(format!("/proc/{process}/task")).expect("threads");
    let mut threads: Vec<i32> = entries
        .map(|entry| entry.expect("thread").file_name().to_str().expect("number").parse().expect("number"))
        .collect();
    threads.sort_unstable();
    threads.into_iter().map(Pid::from_raw).collect()
}

impl Thread {
    /// Takes over the first thread of a process.
    pub(crate) fn take_over(process: Pid) -> Self {
        Self::take_over_thread(process, process)
    }

    /// Takes over any thread.
    pub(crate) fn take_over_thread(process: Pid, thread: Pid) -> Self {
        ptrace::seize(thread, ptrace::Options::PTRACE_O_TRACESYSGOOD).expect("seize");
        ptrace::interrupt(thread).expect("interrupt");
        let stopped = waitpid(thread, Some(WaitPidFlag::__WALL)).expect("wait");
        assert!(matches!(stopped, WaitStatus::PtraceEvent(..)), "{stopped:?}");
        let mut before = ptrace::getregs(thread).expect("registers");
        registers::settle(&mut before);
        let memory = File::options().read(true).write(true).open(format!("/proc/{process}/mem"));
        let memory = memory.expect("memory");
        let instruction = find_instruction(process, &memory, registers::place(&before));
        let top = (registers::stack(&before) - RED_ZONE) & !15;
        Self { thread, before, instruction, top, memory, dead: false, dumped_core: false }
    }

    /// Puts bytes on the thread's stack and returns their address.
    pub(crate) fn place(&mut self, bytes: &[u8]) -> u64 {
        self.top = (self.top - bytes.len() as u64) & !15;
        self.memory.write_all_at(bytes, self.top).expect("write to its stack");
        self.top
    }

    pub(crate) fn place_words(&mut self, words: &[u64]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.place(&bytes)
    }

    /// A C string.
    pub(crate) fn text(&mut self, text: &str) -> u64 {
        self.place(&[text.as_bytes(), &[0]].concat())
    }

    /// Reads what a call has written.
    pub(crate) fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_exact_at(&mut bytes, at).expect("read its memory");
        bytes
    }

    /// Makes one system call.
    pub(crate) fn call(&mut self, number: i64, arguments: [u64; 6]) -> Answer {
        let mut registers = self.before;
        registers::prepare(&mut registers, self.instruction, number, arguments);
        // Fails for who was killed meanwhile, which is what the answer will be.
        let _ = ptrace::setregs(self.thread, registers);
        self.run_to_the_answer()
    }

    /// Makes one system call by the 32-bit gate of x86-64, whose numbers are others.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn call_32(&mut self, number: i64) -> Answer {
        const INT_80: [u8; 2] = [0xcd, 0x80];
        let kept = self.read(self.instruction, 2);
        self.memory.write_all_at(&INT_80, self.instruction).expect("write an instruction");
        let answer = self.call(number, [0; 6]);
        if answer.is_ok() {
            self.memory.write_all_at(&kept, self.instruction).expect("write the instruction back");
        }
        answer
    }

    /// Whether the kernel wrote a core when it ended.
    pub(crate) fn dumped_core(&self) -> bool {
        self.dumped_core
    }

    /// Lets it run, for as long as there is a process: a signal is on its way that ends it.
    pub(crate) fn run_to_its_end(&mut self) -> Death {
        loop {
            if let Err(death) = self.run_to_the_answer() {
                return death;
            }
        }
    }

    fn run_to_the_answer(&mut self) -> Answer {
        let mut signal = None;
        loop {
            match ptrace::syscall(self.thread, signal.take()) {
                // ESRCH: somebody has killed it meanwhile, and that is what is waited for.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => panic!("go on: {errno}"),
            }
            match waitpid(self.thread, Some(WaitPidFlag::__WALL)).expect("wait") {
                WaitStatus::PtraceSyscall(_) => {
                    if let Some(answer) = self.answer() {
                        return Ok(answer);
                    }
                }
                // Its own signals stay its own.
                WaitStatus::Stopped(_, of_its_own) => signal = Some(of_its_own),
                WaitStatus::PtraceEvent(..) => {}
                WaitStatus::Exited(_, code) => return Err(self.died(Death::Exit(code))),
                WaitStatus::Signaled(_, by, core) => {
                    self.dumped_core = core;
                    return Err(self.died(Death::Signal(by)));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// If it is on its way out of a call and will live. A call that the filter stopped is left like any other; the
    /// signal that ends the process is next.
    fn answer(&self) -> Option<i64> {
        let stop = ptrace::syscall_info(self.thread).ok()?;
        let registers = ptrace::getregs(self.thread).ok()?;
        let answered = stop.op == nix::libc::PTRACE_SYSCALL_INFO_EXIT && !self.is_doomed();
        answered.then(|| registers::result(&registers))
    }

    /// Whether a SIGSYS waits for the thread: the kernel lets nobody, not even a tracer, keep it from a process.
    fn is_doomed(&self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.thread)).unwrap_or_default();
        let Some(pending) = status.lines().find_map(|line| line.strip_prefix("SigPnd:")) else { return true };
        let pending = u64::from_str_radix(pending.trim(), 16).expect("SigPnd");
        pending & 1 << (nix::libc::SIGSYS - 1) != 0
    }

    fn died(&mut self, death: Death) -> Death {
        self.dead = true;
        death
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if self.dead {
            return;
        }
        // May have been killed by somebody else meanwhile.
        let _ = ptrace::setregs(self.thread, self.before);
        match ptrace::detach(self.thread, None) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => eprintln!("detach {}: {errno}", self.thread),
        }
    }
}

/// The instruction that the thread waits in, or, if it does not wait, any of the process's.
fn find_instruction(process: Pid, memory: &File, at: u64) -> u64 {
    let wanted = registers::INSTRUCTION;
    for near in [at.saturating_sub(wanted.len() as u64), at] {
        let mut bytes = vec![0; wanted.len()];
        if memory.read_exact_at(&mut bytes, near).is_ok() && bytes == wanted {
            return near;
        }
    }
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).expect("maps");
    for line in maps.lines().filter(|line| line.contains(" r-xp ") && line.contains("libc")) {
        let (from, to) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("range");
        let number = |text| u64::from_str_radix(text, 16).expect("address");
        let mut code = vec![0; usize::try_from(number(to) - number(from)).expect("length")];
        memory.read_exact_at(&mut code, number(from)).expect("read its code");
        if let Some(found) = code.windows(wanted.len()).position(|bytes| bytes == wanted) {
            return number(from) + found as u64;
        }
    }
    panic!("process {process} has no system call instruction");
}
