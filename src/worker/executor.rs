//! One thread that owns connections and runs guests: read, admit, run a slice, write, and look again.
//!
//! Guests are never tasks of an I/O runtime: here one slice is polled, then I/O is polled, so a guest that spins
//! cannot keep a short request waiting for longer than its slice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use rand_chacha::ChaCha20Rng;
use slab::Slab;

use super::connection::Connection;
use super::counters::Counters;
use super::mailbox::Mailbox;
use super::outbound::{Flushed, Outbound};
use super::policies::PolicySet;
use super::schedule::{Pick, Schedule};
use super::tasks::{State, Tasks};
use super::ticker::{Pace, Ticker};
use super::tickets::Tickets;
use crate::decision::{Decision, Refusal, Stage};
use crate::engine::{Evaluated, Slice, monotonic_ns};
use crate::wire::handover::Cookie;

use running::Running;

mod endings;
mod intake;
mod questions;
mod running;
#[cfg(feature = "compiler")]
#[cfg(test)]
mod tests;

/// Longest a guest runs before others get their turn.
/// Less than a fine tick, so that the first tick after it ends it.
const SLICE_NS: u64 = 150_000;
/// Longest that guests run before I/O is looked at.
const IO_EVERY_NS: u64 = 100_000;
/// Longest that requests are taken in before guests run.
const INTAKE_NS: u64 = 100_000;
/// How often every deadline is looked at while guests do not end by themselves.
const SWEEP_EVERY_NS: u64 = 200_000;
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
    running: Running,
    connections: Slab<Connection>,
    connections_made: u64,
    /// Slots of connections with bytes to write.
    dirty: Vec<usize>,
    /// Slots of connections with frames that were read and not taken in yet.
    pending: Vec<usize>,
    intake_until_ns: u64,
    scratch: Vec<u8>,
    draining: Option<Draining>,
    last_work_ns: u64,
    last_yield_ns: u64,
    last_sweep_ns: u64,
}

#[derive(Debug, Clone, Copy)]
struct Draining {
    give_back: bool,
    said: bool,
}

/// What an executor is made of.
pub(super) struct Parts {
    pub(super) shared: Arc<Shared>,
    pub(super) steward: Arc<Mailbox<FromExecutor>>,
    pub(super) watchdog: Arc<Mailbox<()>>,
    pub(super) set: Arc<PolicySet>,
    pub(super) capacity: Capacity,
    pub(super) ticker: Ticker,
    pub(super) seeds: ChaCha20Rng,
}

impl Executor {
    /// Before sealing, on the thread that will run it: makes an epoll descriptor.
    pub(super) fn new(parts: Parts) -> nix::Result<Self> {
        let Parts { shared, steward, watchdog, set, capacity, ticker, seeds } = parts;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&shared.mailbox, EpollEvent::new(EpollFlags::EPOLLIN, MAILBOX))?;
        let schedule = Schedule::new(set.weights());
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
            running: Running {
                total: 0,
                by_flow: vec![0; tenants],
                asked: vec![0; tenants],
                parked: Vec::new(),
            },
            connections: Slab::new(),
            connections_made: 0,
            dirty: Vec::new(),
            pending: Vec::new(),
            intake_until_ns: 0,
            scratch: vec![0; SCRATCH],
            draining: None,
            last_work_ns: 0,
            last_yield_ns: 0,
            last_sweep_ns: 0,
        })
    }

    /// Serves until the process ends.
    pub(super) fn run(mut self) -> Errno {
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            self.shared.step_began_ns.store(0, Ordering::Relaxed);
            let ready = match self.epoll.wait(&mut events, self.patience()) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(errno) => return errno,
            };
            let now = monotonic_ns();
            self.shared.step_began_ns.store(now, Ordering::Relaxed);
            // However much arrives, guests get their turn, and what comes in waits where it is.
            self.intake_until_ns = now.saturating_add(INTAKE_NS);
            self.take_pending();
            for event in events.iter().take(ready) {
                self.on_event(event);
            }
            self.run_guests();
            self.flush_dirty();
            if self.draining.is_some() {
                self.let_go();
            }
            self.keep_pace();
        }
    }

    /// How long to wait for events: not at all while there is something to run.
    fn patience(&self) -> EpollTimeout {
        if self.schedule.len() > 0 || !self.pending.is_empty() {
            EpollTimeout::ZERO
        } else if self.ticker.pace() == Pace::Off {
            EpollTimeout::NONE
        } else {
            // Until the ticker can be switched off, milliseconds.
            EpollTimeout::from(6_u8)
        }
    }

    /// Runs guests until none is left to run, or it is time to look at I/O.
    fn run_guests(&mut self) {
        let mut now = monotonic_ns();
        let until = now.saturating_add(IO_EVERY_NS);
        while let Some(pick) = self.schedule.pick() {
            if self.ticker.pace() == Pace::Off {
                self.start_ticking();
            }
            self.shared.step_began_ns.store(now, Ordering::Relaxed);
            now = self.run_slice(pick, now);
            self.last_work_ns = now;
            if now >= until {
                break;
            }
        }
        let overdue = now.saturating_sub(self.last_sweep_ns) >= SWEEP_EVERY_NS;
        if overdue && (self.schedule.len() > 0 || !self.running.parked.is_empty()) {
            self.last_sweep_ns = now;
            self.sweep(now);
        }
    }

    /// One slice of one task. Returns the time after it.
    fn run_slice(&mut self, pick: Pick, now: u64) -> u64 {
        let Some(task) = self.tasks.get_mut(pick.task) else {
            self.schedule.settle(pick, 0, false);
            return now;
        };
        if let State::Done = task.state {
            self.schedule.settle(pick, 0, false);
            self.tasks.remove(pick.task);
            return now;
        }
        let refusal = if task.policy.is_withdrawn() {
            Some(Refusal::Revoked)
        } else {
            (task.deadline_ns <= now).then(|| Refusal::Deadline(task.stage()))
        };
        if let Some(refusal) = refusal {
            self.finish(pick.task, Err(refusal));
            self.schedule.settle(pick, 0, false);
            self.tasks.try_remove(pick.task);
            return now;
        }
        if let State::Waiting { .. } = task.state {
            if !self.running.has_room(task.flow, &self.capacity) {
                self.running.parked.push(pick);
                self.schedule.settle(pick, 0, false);
                return now;
            }
            task.start(now, &self.slice);
            self.running.began(task.flow);
            self.shared.tickets.started(task.ticket);
        }
        let State::Running { evaluation, started_ns } = &mut task.state else { return now };
        let queue_ns = started_ns.saturating_sub(task.received_ns);
        self.slice.set_end(task.deadline_ns.min(now.saturating_add(SLICE_NS)));
        let polled = evaluation.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let after = monotonic_ns();
        let used = after.saturating_sub(now);
        match polled {
            Poll::Pending => {
                self.last_yield_ns = after;
                self.schedule.settle(pick, used, true);
            }
            Poll::Ready(Evaluated { mut decision, malformed, residue, .. }) => {
                decision.timing.queue_ns = queue_ns;
                let too_late = if task.policy.is_withdrawn() {
                    Some(Refusal::Revoked)
                } else {
                    (after > task.deadline_ns).then_some(Refusal::Deadline(Stage::Reply))
                };
                if let Some(refusal) = too_late {
                    let Decision { digest, timing, id, .. } = decision;
                    decision = Decision { digest, timing, id, ..Decision::refused(refusal) };
                }
                let connection = task.connection;
                self.finish(pick.task, Ok(decision));
                if malformed {
                    self.malformed_input(connection);
                }
                self.schedule.settle(pick, used, false);
                self.tasks.try_remove(pick.task);
                // Not before the reply is on its way: see `Residue`.
                drop(residue);
            }
        }
        after
    }

    /// Answers a task and marks it done; its slot is freed by the caller or when the schedule comes by.
    fn finish(&mut self, key: usize, result: Result<Decision, Refusal>) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let state = std::mem::replace(&mut task.state, State::Done);
        if let Some(asked) = self.running.asked.get_mut(task.flow) {
            *asked = asked.saturating_sub(1);
        }
        let (ticket, index, connection, flow) = (task.ticket, task.index, task.connection, task.flow);
        let (digest, id) = (Some(task.policy.digest()), Some(task.id));
        let decision = result.unwrap_or_else(|refusal| Decision { digest, id, ..Decision::refused(refusal) });
        self.shared.counters.count(&decision.outcome);
        let reply = self.shared.tickets.answer(ticket, index, decision);
        if let Some(reply) = reply {
            reply.connection.push(&reply.frame);
        }
        self.settle_request(connection, ticket);
        if let State::Running { evaluation, .. } = state {
            // Dropping a suspended guest unwinds its fiber and frees its slot.
            drop(evaluation);
            self.running.ended(flow);
            self.unpark();
        }
    }

    /// Tasks that waited for an instance slot go back to the schedule.
    fn unpark(&mut self) {
        for pick in std::mem::take(&mut self.running.parked) {
            self.schedule.enqueue(pick.flow, pick.task);
        }
    }

    /// Refuses everything whose deadline has passed, wherever it waits.
    fn sweep(&mut self, now: u64) {
        let late: Vec<(usize, Stage)> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.deadline_ns <= now && !matches!(task.state, State::Done))
            .map(|(key, task)| (key, task.stage()))
            .collect();
        for (key, stage) in late {
            self.finish(key, Err(Refusal::Deadline(stage)));
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
                if connection.pending {
                    self.pending.push(slot);
                }
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
