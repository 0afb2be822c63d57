//! One thread that owns connections and runs guests: read, admit, run a slice, write, and look again.
//!
//! Guests are never tasks of an I/O runtime: here one slice is polled, then I/O is polled, so a guest that spins
//! cannot keep a short request waiting for longer than its slice.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use rand_chacha::ChaCha20Rng;
use slab::Slab;

use super::admission::Load;
use super::connection::Connection;
use super::counters::Counters;
use super::mailbox::Mailbox;
use super::outbound::{Flushed, Outbound};
use super::policies::PolicySet;
use super::schedule::{Schedule, Shares, Slots};
use super::tasks::{ConnectionKey, Tasks};
use super::ticker::{Pace, Ticker};
use super::tickets::Tickets;
use super::warm::Warm;
use crate::accounts::Gauge;
use crate::engine::{Slice, monotonic_ns};
use crate::wire::handover::Cookie;

mod endings;
mod intake;
mod processor;
mod questions;
mod slices;
#[cfg(feature = "compiler")]
#[cfg(test)]
mod tests;

use intake::Turn;
use processor::ProcessorTime;
use slices::Remains;

/// Longest a guest runs before others get their turn.
/// Less than a fine tick, so that the first tick after it ends it.
const SLICE_NS: u64 = 150_000;
/// Longest that guests run before I/O is looked at.
const IO_EVERY_NS: u64 = 100_000;
/// Longest that requests are taken in before guests run.
const INTAKE_NS: u64 = 100_000;
/// The ticker goes off when nothing has run for that long.
const IDLE_NS: u64 = 5_000_000;
/// Back to coarse ticks when nothing has needed a fine one for that long.
const FINE_FOR_NS: u64 = 20_000_000;
/// Bytes read at a time.
const SCRATCH: usize = 64 << 10;
const EVENTS: usize = 64;
/// The mailbox's place among epoll's tokens; slots count from 0.
const MAILBOX: u64 = u64::MAX;

/// What an executor is told.
#[derive(Debug)]
pub(super) enum ToExecutor {
    Adopt(Adopted),
    /// The watchdog wrote to it and the socket was full.
    Blocked(Arc<Outbound>),
    /// A policy was withdrawn: what was asked of it is refused, whether it waits or has begun.
    Withdrawn,
    /// Give connections back (`true`) or close them (`false`) as soon as what is in progress is answered.
    Drain {
        give_back: bool,
    },
}

/// A connection and what goes with it.
#[derive(Debug)]
pub(super) struct Adopted {
    pub(super) outbound: Arc<Outbound>,
    pub(super) cookie: Cookie,
    pub(super) grant: Box<[bool]>,
    pub(super) unread: Vec<u8>,
}

/// What an executor tells the steward.
#[derive(Debug)]
pub(super) enum FromExecutor {
    Return {
        outbound: Arc<Outbound>,
        cookie: Cookie,
        unread: Vec<u8>,
    },
    Closed {
        cookie: Cookie,
    },
    /// After [`ToExecutor::Drain`]: no connection is left.
    Drained,
}

/// What others see of an executor.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) mailbox: Mailbox<ToExecutor>,
    pub(super) tickets: Tickets,
    pub(super) counters: Counters,
    /// When the current step began (CLOCK_MONOTONIC, nanoseconds); 0 while it waits for events.
    pub(super) step_began_ns: AtomicU64,
    /// Its ticker is on: it runs guests, or did a moment ago.
    pub(super) ticking: AtomicBool,
}

/// How much one executor takes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capacity {
    /// Instances at the same time.
    pub(super) instances: usize,
    /// Of one tenant, so that one that spins leaves slots to the others.
    pub(super) instances_per_tenant: usize,
    /// Questions that wait or run.
    pub(super) queue: usize,
    /// Of one tenant, so that others find room.
    pub(super) queue_per_tenant: usize,
    /// Of one connection.
    pub(super) pipeline: usize,
    /// Executors that share what is said of the class.
    pub(super) executors: usize,
}

pub(super) struct Executor {
    shared: Arc<Shared>,
    steward: Arc<Mailbox<FromExecutor>>,
    /// Rung when the ticker starts: from then on somebody looks after this thread.
    watchdog: Arc<Mailbox<()>>,
    set: Arc<PolicySet>,
    capacity: Capacity,
    epoll: Epoll,
    ticker: Ticker,
    slice: Arc<Slice>,
    seeds: ChaCha20Rng,
    schedule: Schedule,
    tasks: Tasks,
    /// Questions of each tenant that wait or run.
    asked: Vec<Load>,
    /// Guests whose questions have been answered before they were finished: to be done away with.
    remains: VecDeque<Remains>,
    processor: ProcessorTime,
    published: Published,
    warm: Warm,
    connections: Slab<Connection>,
    connections_made: u64,
    /// Slots of connections with bytes to write.
    dirty: Vec<usize>,
    /// Connections that have something to take in, in the order in which they get their turns.
    pending: VecDeque<ConnectionKey>,
    /// Of the one whose turn it is.
    turn: Turn,
    intake_until_ns: u64,
    scratch: Vec<u8>,
    draining: Option<Draining>,
    last_work_ns: u64,
    last_yield_ns: u64,
}

#[derive(Debug, Clone, Copy)]
struct Draining {
    give_back: bool,
    said: bool,
}

/// What the class's account has of this executor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Published {
    queued: u64,
    instances: u64,
    connections: u64,
}

/// Executors share one number: each changes its part of it.
fn change(gauge: &Gauge, before: u64, now: u64) {
    if now > before {
        gauge.add(now - before);
    } else {
        gauge.subtract(before - now);
    }
}

/// What an executor is made of.
pub(super) struct Parts {
    pub(super) shared: Arc<Shared>,
    pub(super) steward: Arc<Mailbox<FromExecutor>>,
    pub(super) watchdog: Arc<Mailbox<()>>,
    pub(super) set: Arc<PolicySet>,
    pub(super) shares: Arc<Shares>,
    pub(super) capacity: Capacity,
    pub(super) ticker: Ticker,
    pub(super) seeds: ChaCha20Rng,
}

impl Executor {
    /// Before sealing, on the thread that will run it: makes an epoll descriptor.
    pub(super) fn new(parts: Parts) -> nix::Result<Self> {
        let Parts { shared, steward, watchdog, set, shares, capacity, ticker, seeds } = parts;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&shared.mailbox, EpollEvent::new(EpollFlags::EPOLLIN, MAILBOX))?;
        let slots = Slots { instances: capacity.instances, of_one: capacity.instances_per_tenant };
        let reserved = set.reserved().map(|of_class| (of_class as usize).div_ceil(capacity.executors.max(1)));
        let schedule = Schedule::new(shares, slots, reserved);
        let tenants = set.weights().count();
        Ok(Self {
            shared,
            steward,
            watchdog,
            set,
            capacity,
            epoll,
            ticker,
            slice: Arc::default(),
            seeds,
            schedule,
            tasks: Tasks::new(),
            asked: vec![Load::default(); tenants],
            remains: VecDeque::new(),
            processor: ProcessorTime::default(),
            published: Published::default(),
            warm: Warm::new(capacity.instances),
            connections: Slab::new(),
            connections_made: 0,
            dirty: Vec::new(),
            pending: VecDeque::new(),
            turn: Turn::default(),
            intake_until_ns: 0,
            scratch: vec![0; SCRATCH],
            draining: None,
            last_work_ns: 0,
            last_yield_ns: 0,
        })
    }

    /// Serves until the process ends.
    pub(super) fn run(mut self) -> Errno {
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            if let Err(errno) = self.round(&mut events) {
                return errno;
            }
        }
    }

    /// Once everything: what has happened, what is to be read, guests, replies.
    fn round(&mut self, events: &mut [EpollEvent]) -> nix::Result<()> {
        self.shared.step_began_ns.store(0, Ordering::Relaxed);
        let ready = match self.epoll.wait(events, self.patience()) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno),
        };
        let now = monotonic_ns();
        self.shared.step_began_ns.store(now, Ordering::Relaxed);
        // However much arrives, guests get their turn, and what comes in waits where it is.
        self.intake_until_ns = now.saturating_add(INTAKE_NS);
        for event in events.iter().take(ready) {
            self.on_event(event);
        }
        self.take_turns();
        self.run_guests();
        self.clear_away();
        self.flush_dirty();
        if self.draining.is_some() {
            self.let_go();
        }
        self.publish();
        self.keep_pace();
        Ok(())
    }

    /// How long to wait for events: not at all while there is something to run.
    fn patience(&self) -> EpollTimeout {
        if self.schedule.len() > 0 || !self.pending.is_empty() || !self.remains.is_empty() {
            EpollTimeout::ZERO
        } else if self.ticker.pace() == Pace::Off {
            EpollTimeout::NONE
        } else {
            // Until the ticker can be switched off, milliseconds.
            EpollTimeout::from(6_u8)
        }
    }

    /// Tells of what there is now, if it is something else than at the end of the last round.
    fn publish(&mut self) {
        let instances = self.schedule.instances() as u64;
        let queued = (self.tasks.len() as u64).saturating_sub(instances);
        let now = Published { instances, queued, connections: self.connections.len() as u64 };
        if now != self.published
            && let Some(column) = self.set.column()
        {
            let before = std::mem::replace(&mut self.published, now);
            change(&column.queued, before.queued, now.queued);
            change(&column.instances, before.instances, now.instances);
            change(&column.connections, before.connections, now.connections);
        }
    }

    fn start_ticking(&mut self) {
        // If the timer cannot be set the watchdog still answers: it looks whenever its bell rang.
        if let Err(error) = self.ticker.set_pace(Pace::Coarse) {
            tracing::error!(%error, "set tick timer");
        }
        self.shared.ticking.store(true, Ordering::SeqCst);
        self.watchdog.put(());
    }

    /// Finer ticks while guests outlast a slice, coarse ones else, none when idle.
    fn keep_pace(&mut self) {
        let pace = self.ticker.pace();
        if pace == Pace::Off {
            return;
        }
        let wanted = if self.schedule.len() == 0 {
            if monotonic_ns().saturating_sub(self.last_work_ns) < IDLE_NS { return } else { Pace::Off }
        } else if self.last_work_ns.saturating_sub(self.last_yield_ns) < FINE_FOR_NS {
            Pace::Fine
        } else {
            Pace::Coarse
        };
        if let Err(error) = self.ticker.set_pace(wanted) {
            tracing::error!(%error, "set tick timer");
        }
        self.shared.ticking.store(wanted != Pace::Off, Ordering::SeqCst);
    }

    fn flush_dirty(&mut self) {
        while let Some(slot) = self.dirty.pop() {
            self.flush(slot);
        }
    }

    fn flush(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        match connection.outbound.flush() {
            Flushed::All if connection.blocked => {
                connection.blocked = false;
                // There may be frames that were read and not taken.
                self.queue_up(slot);
                self.watch(slot);
            }
            Flushed::All => {}
            Flushed::Blocked if connection.blocked => {}
            Flushed::Blocked => {
                connection.blocked = true;
                self.watch(slot);
            }
            Flushed::Broken => return self.close(slot),
        }
        self.close_if_finished(slot);
    }
}
