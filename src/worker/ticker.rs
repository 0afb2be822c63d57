//! The tick that makes guests look at the clock: a timer signal to the thread that runs them.
//!
//! A signal to the thread itself arrives when the thread runs, however busy the machine is; a thread that ticks for
//! others has to be scheduled first. Arming a timer costs a system call and each tick some microseconds, so it is off
//! while nothing runs, coarse while everything ends within a tick, and fine while something does not.

use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::gettid;
use wasmtime::Engine;

/// How often a tick comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    Off,
    Coarse,
    Fine,
}

impl Pace {
    fn interval(self) -> Duration {
        match self {
            Self::Off => Duration::ZERO,
            Self::Coarse => Duration::from_millis(1),
            Self::Fine => Duration::from_micros(200),
        }
    }
}

/// The timer of the thread that made it.
#[derive(Debug)]
pub(super) struct Ticker {
    timer: Timer,
    pace: Pace,
}

static ENGINES: OnceLock<Box<[Engine]>> = OnceLock::new();

impl Ticker {
    /// For the calling thread; every ticker of a process ticks the same engines. Before sealing: makes a timer.
    pub(super) fn new(engines: &[Engine]) -> nix::Result<Self> {
        ENGINES.get_or_init(|| engines.into());
        install_handler()?;
        let notify =
            SigevNotify::SigevThreadId { signal: Signal::SIGALRM, thread_id: gettid().as_raw(), si_value: 0 };
        Ok(Self { timer: Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify))?, pace: Pace::Off })
    }

    pub(super) fn pace(&self) -> Pace {
        self.pace
    }

    /// Does nothing if it has that pace already.
    pub(super) fn set_pace(&mut self, pace: Pace) -> nix::Result<()> {
        if pace == self.pace {
            return Ok(());
        }
        let interval = TimeSpec::from_duration(pace.interval());
        let expiration = match pace {
            // A first expiration of zero disarms.
            Pace::Off => Expiration::OneShot(interval),
            Pace::Coarse | Pace::Fine => Expiration::Interval(interval),
        };
        self.timer.set(expiration, TimerSetTimeFlags::empty())?;
        self.pace = pace;
        Ok(())
    }
}

/// JUSTIFICATION: only a signal reaches a thread in the middle of a guest without another thread's help.
#[expect(unsafe_code, reason = "a signal handler")]
fn install_handler() -> nix::Result<()> {
    let action = SigAction::new(SigHandler::Handler(on_tick), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: `on_tick` only loads from a `OnceLock` that was set before and calls `Engine::increment_epoch`, which is
    // documented to be signal-safe; SIGALRM has no other user in this process.
    unsafe { sigaction(Signal::SIGALRM, &action) }.map(drop)
}

extern "C" fn on_tick(_: nix::libc::c_int) {
    for engine in ENGINES.get().into_iter().flatten() {
        engine.increment_epoch();
    }
}
