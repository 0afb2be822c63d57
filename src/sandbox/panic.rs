//! A panic or a crash is one line on stderr and SIGABRT. SIGSYS then means one thing: somebody tried a system call
//! that the profile does not have.
//!
//! No backtrace: it would open files. And no way back to the default action by `sigaction`, which is how std and
//! wasmtime end a fault that is not theirs: no profile allows that either, and the filter would take the blame.

use std::panic::PanicHookInfo;

use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::Role;
use crate::journal::stderr::offer;

/// Faults of machine code. wasmtime handles those of guests and passes the others on to what was there before it.
const FAULTS: [Signal; 4] = [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE];

/// From now on a panic on any thread of this process, or a fault in it, writes one line to stderr and aborts. Works
/// under every profile. Call it first in main, before wasmtime's engine is made.
pub fn install_panic_hook(role: Role) {
    std::panic::set_hook(Box::new(move |info| {
        let line = describe(role, info);
        // Whether anybody takes it or not: a process that waited here would not end.
        let _ = offer(line.as_bytes());
        std::process::abort();
    }));
    for fault in FAULTS {
        abort_on(fault);
    }
}

/// For a process with a limit on the length of files: from now on a write beyond it is an error, EFBIG, and not the end. The
/// log is such a file where somebody has it written to one that is already longer. Before the seal.
pub fn outlive_long_files() {
    let action = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // JUSTIFICATION: std has no signal dispositions.
    #[expect(unsafe_code, reason = "sigaction has no safe form")]
    // SAFETY: no handler comes with it. It fails only for signals that cannot be ignored.
    let _ = unsafe { sigaction(Signal::SIGXFSZ, &action) };
}

fn describe(role: Role, info: &PanicHookInfo<'_>) -> String {
    let what = info.payload_as_str().unwrap_or("a value that is not text");
    let place = info.location().map_or_else(String::new, |at| format!(" at {}:{}", at.file(), at.line()));
    format!("portcullis-{role}: panic{place}: {}\n", what.escape_debug())
}

/// JUSTIFICATION: std has no signal handlers.
#[expect(unsafe_code, reason = "a handler runs where most code must not")]
fn abort_on(fault: Signal) {
    let flags = SaFlags::SA_ONSTACK | SaFlags::SA_NODEFER;
    let action = SigAction::new(SigHandler::Handler(crash), flags, SigSet::empty());
    // SAFETY: `crash` is async-signal-safe, see there. It fails only for signals that cannot be handled.
    let _ = unsafe { sigaction(fault, &action) };
}

/// Only writing and `abort`, both async-signal-safe: no allocation, no lock, no formatting.
extern "C" fn crash(signal: i32) {
    let line: &[u8] = match signal {
        libc::SIGSEGV => b"portcullis: crash: SIGSEGV (invalid memory reference or stack overflow)\n",
        libc::SIGBUS => b"portcullis: crash: SIGBUS (memory that is not there)\n",
        libc::SIGILL => b"portcullis: crash: SIGILL (illegal instruction)\n",
        _ => b"portcullis: crash: SIGFPE (arithmetic)\n",
    };
    let _ = offer(line);
    std::process::abort();
}
