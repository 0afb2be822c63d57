//! Signals as something to read: nothing ever runs inside a handler.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// SIGTERM, SIGINT, SIGHUP and SIGCHLD, blocked and readable.
#[derive(Debug)]
pub(super) struct Signals {
    descriptor: SignalFd,
}

/// What has been asked since the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) stop: bool,
    pub(super) reload: bool,
    /// A child stopped or died.
    pub(super) children: bool,
}

impl Signals {
    /// Blocks them from here on; children must unblock them (see [`super::spawn`]).
    pub(super) fn open() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
            set.add(signal);
        }
        // Ignored by whoever started us, it would take our children's ends away unseen.
        default_disposition(Signal::SIGCHLD)?;
        set.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self { descriptor: SignalFd::with_flags(&set, flags)? })
    }

    pub(super) fn read(&self) -> io::Result<Asked> {
        let mut asked = Asked::default();
        while let Some(signal) = self.descriptor.read_signal()? {
            match i32::try_from(signal.ssi_signo).map(Signal::try_from) {
                Ok(Ok(Signal::SIGTERM | Signal::SIGINT)) => asked.stop = true,
                Ok(Ok(Signal::SIGHUP)) => asked.reload = true,
                _ => asked.children = true,
            }
        }
        Ok(asked)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// JUSTIFICATION: dispositions survive exec, and std has no way to set one.
#[expect(unsafe_code, reason = "sigaction has no safe form")]
fn default_disposition(signal: Signal) -> io::Result<()> {
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default disposition runs no code of ours.
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}
