//! Time: the clocks, and the slice of processor time that a guest may use before it has to let others run.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use nix::time::{ClockId, clock_gettime};

/// When the guest that runs now has to yield. One for each thread that runs guests: it runs one at a time.
///
/// The epoch belongs to the whole engine, so every thread's tick reaches every guest. A guest that sees a tick
/// compares the clock with its own slice and goes on if there is some left: ticks are only a reason to look.
#[derive(Debug, Default)]
pub struct Slice {
    end_ns: AtomicU64,
    /// Instances that were made on this thread and can be asked.
    made: AtomicU64,
}

impl Slice {
    /// The guest that is resumed next may run until then (CLOCK_MONOTONIC, nanoseconds).
    pub fn set_end(&self, end_ns: u64) {
        // Read by the same thread, from within the guest it then resumes.
        self.end_ns.store(end_ns, Ordering::Relaxed);
    }

    pub(super) fn made_one(&self) {
        // Written by the same thread.
        self.made.store(self.made.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// How many instances were made: whoever has none after all of a slice has one that does not begin.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    pub(super) fn is_over(&self) -> bool {
        monotonic_ns() >= self.end_ns.load(Ordering::Relaxed)
    }
}

/// Resumes what a guest does, the only one of this thread, until it is done or has had so many nanoseconds of the processor:
/// unlike a deadline, what others take meanwhile does not count. Another thread has to tick.
pub fn run_for<F: Future>(mut evaluation: Pin<&mut F>, slice: &Slice, processor_ns: u64) -> Poll<F::Output> {
    let before = thread_cpu_ns();
    let mut left = processor_ns;
    loop {
        slice.set_end(monotonic_ns().saturating_add(left));
        let polled = evaluation.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        left = processor_ns.saturating_sub(thread_cpu_ns().saturating_sub(before));
        if polled.is_ready() || left == 0 {
            return polled;
        }
    }
}

/// CLOCK_MONOTONIC in nanoseconds: what deadlines are measured with.
#[must_use]
pub fn monotonic_ns() -> u64 {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Processor time of the calling thread, nanoseconds. A system call, unlike the others.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    read(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

/// CLOCK_REALTIME in nanoseconds since 1970: what policies see as the time of receipt.
#[must_use]
pub fn realtime_ns() -> u64 {
    read(ClockId::CLOCK_REALTIME)
}

fn read(clock: ClockId) -> u64 {
    // These clocks exist on every Linux. If reading one failed all the same, the end of time is the safe answer: every
    // deadline has passed, nothing is allowed.
    clock_gettime(clock).map_or(u64::MAX, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        let nanoseconds = u64::try_from(time.tv_nsec()).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
    })
}
