//! Ctrl-C and the like as something to wait for, together with what else the demo waits for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::DemoError;

/// SIGINT, SIGTERM and SIGHUP end the demo; SIGCHLD says that the supervisor has ended.
#[derive(Debug)]
pub(super) struct Signals {
    descriptor: SignalFd,
}

/// What ended a wait; nothing of it if the time was up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Woken {
    /// Somebody wants the demo to end.
    pub(super) stop: bool,
    pub(super) child: bool,
    pub(super) readable: bool,
}

impl Signals {
    /// Blocks them in this thread and in those it starts.
    pub(super) fn open() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
            set.add(signal);
        }
        set.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self { descriptor: SignalFd::with_flags(&set, flags)? })
    }

    /// An error if somebody wants the demo to end.
    pub(super) fn check(&self) -> Result<(), DemoError> {
        let woken = self.wait(None, Some(Instant::now())).map_err(DemoError::Signals)?;
        if woken.stop { Err(DemoError::Interrupted) } else { Ok(()) }
    }

    /// Waits for a signal or for `other` to be readable, at most until then.
    pub(super) fn wait(&self, other: Option<BorrowedFd<'_>>, until: Option<Instant>) -> io::Result<Woken> {
        let mut watched = vec![PollFd::new(self.descriptor.as_fd(), PollFlags::POLLIN)];
        watched.extend(other.map(|other| PollFd::new(other, PollFlags::POLLIN)));
        let timeout = match until {
            None => PollTimeout::NONE,
            Some(until) => {
                // Rounded up: waking a little early would only mean to wait twice.
                let left = until.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let readable = watched.get(1).and_then(PollFd::any).unwrap_or(false);
        let mut woken = Woken { readable, ..Woken::default() };
        while let Some(signal) = self.descriptor.read_signal()? {
            match i32::try_from(signal.ssi_signo).map(Signal::try_from) {
                Ok(Ok(Signal::SIGCHLD)) => woken.child = true,
                _ => woken.stop = true,
            }
        }
        Ok(woken)
    }
}
