//! Answers for an executor that is stuck past a deadline. Runs no guests.
//!
//! Guests cannot hold an executor for long: every loop and every step of a bulk instruction looks at the clock. What
//! is left is the host's own work on a guest's behalf (resetting a large memory, a kernel that takes its time).

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::executor::{Shared, ToExecutor};
use super::mailbox::Mailbox;
use super::outbound::Flushed;
use crate::engine::monotonic_ns;

/// How long an executor may be in one step before it counts as stuck, and how late a reply may be before the
/// watchdog gives it.
const STUCK_NS: u64 = 1_000_000;
/// How often it looks while executors run, milliseconds.
const LOOK_EVERY_MS: u8 = 2;

pub(super) struct Watchdog {
    bell: Arc<Mailbox<()>>,
    executors: Vec<Arc<Shared>>,
    epoll: Epoll,
}

impl Watchdog {
    /// Before sealing: makes an epoll descriptor.
    pub(super) fn new(bell: Arc<Mailbox<()>>, executors: Vec<Arc<Shared>>) -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(bell.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        Ok(Self { bell, executors, epoll })
    }

    /// Watches until the process ends.
    pub(super) fn run(self) -> Errno {
        let mut events = [EpollEvent::empty(); 1];
        loop {
            // Whoever starts to tick rings the bell after saying so.
            let anybody_ticks = self.executors.iter().any(|executor| executor.ticking.load(Ordering::SeqCst));
            let timeout = if anybody_ticks { EpollTimeout::from(LOOK_EVERY_MS) } else { EpollTimeout::NONE };
            match self.epoll.wait(&mut events, timeout) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => drop(self.bell.take()),
                Err(errno) => return errno,
            }
            let now = monotonic_ns();
            for executor in &self.executors {
                let began = executor.step_began_ns.load(Ordering::Relaxed);
                if began != 0 && now.saturating_sub(began) > STUCK_NS {
                    answer_for(executor, now);
                }
            }
        }
    }
}

fn answer_for(executor: &Shared, now: u64) {
    for connection in executor.tickets.expire(now.saturating_sub(STUCK_NS), now) {
        executor.counters.watchdog.add(1);
        if connection.flush() == Flushed::Blocked {
            executor.mailbox.put(ToExecutor::Blocked(connection));
        }
    }
}
