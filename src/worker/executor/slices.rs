//! The executor's dealings with guests: pick one, see whether it may, run a slice of it, settle, answer.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use super::{Executor, IO_EVERY_NS, SLICE_NS};
use crate::accounts::Meter;
use crate::decision::{Decision, Refusal, Stage};
use crate::engine::{Evaluated, monotonic_ns, thread_cpu_ns};
use crate::worker::schedule::{Next, Pick};
use crate::worker::tally::{self, Times};
use crate::worker::tasks::State;
use crate::worker::ticker::Pace;

/// Memory of an instance whose reset is worth measuring, bytes.
const LARGE: usize = 1 << 20;

/// A guest that was not finished. It has its slot until it is dropped.
pub(super) struct Remains {
    flow: usize,
    module: u32,
    meter: Arc<Meter>,
    evaluation: Pin<Box<dyn Future<Output = Evaluated>>>,
}

impl Executor {
    /// Runs guests until none is left to run, or it is time to look at I/O.
    pub(super) fn run_guests(&mut self) {
        let mut now = monotonic_ns();
        let until = now.saturating_add(IO_EVERY_NS);
        if self.schedule.len() > 0 {
            self.processor.begin(thread_cpu_ns());
        }
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
        self.sweep(now);
    }

    /// One slice of one task. Returns the time after it.
    fn run_slice(&mut self, pick: Pick, now: u64) -> u64 {
        let Some(task) = self.tasks.get_mut(pick.task) else {
            self.schedule.settle(pick, 0, Next::Over);
            return now;
        };
        let reserved_ns = task.deadline_ns.saturating_sub(now).min(SLICE_NS);
        let reserved = match task.too_late(now) {
            Some(refusal) => Err(refusal),
            None => task.meter.reserve_cpu(now, reserved_ns).map_err(Refusal::from),
        };
        if let Err(refusal) = reserved {
            self.finish(pick.task, Err(refusal), now, None);
            self.schedule.settle(pick, 0, Next::Over);
            return now;
        }
        if task.start(now, &self.slice, &mut self.warm) {
            self.schedule.began(pick.seat.flow);
            self.shared.tickets.started(task.ticket);
        }
        // From here to where it is settled there is no other way.
        let State::Running { evaluation, started_ns, .. } = &mut task.state else { return now };
        let queue_ns = started_ns.saturating_sub(task.received_ns);
        self.slice.set_end(now.saturating_add(reserved_ns));
        let polled = evaluation.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let after = monotonic_ns();
        let used_ns = self.processor.used(after.saturating_sub(now), thread_cpu_ns);
        task.meter.settle_cpu(after, reserved_ns, used_ns);
        match polled {
            Poll::Pending => {
                self.last_yield_ns = after;
                self.schedule.settle(pick, used_ns, Next::Again);
                after
            }
            Poll::Ready(Evaluated { mut decision, malformed, instantiated, used, residue, .. }) => {
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
                let (connection, id, at_ns) = (task.connection, task.id, task.realtime_ns);
                let large = (used.memory >= LARGE).then(|| Arc::clone(&task.meter));
                self.finish(pick.task, Ok(decision), after, Some(instantiated));
                let replied = monotonic_ns();
                if instantiated {
                    tally::replied(self.set.accounts(), replied.saturating_sub(after), id, at_ns);
                }
                if malformed {
                    self.malformed_input(connection);
                }
                // Not before the reply is on its way: see `Residue`. Whose it was pays for it.
                drop(residue);
                let end = if large.is_some() { monotonic_ns() } else { replied };
                let after_ns = self.processor.used(end.saturating_sub(after), thread_cpu_ns);
                if let Some(meter) = large {
                    meter.settle_cpu(end, 0, after_ns.min(end.saturating_sub(replied)));
                }
                self.schedule.settle(pick, used_ns.saturating_add(after_ns), Next::Over);
                end
            }
        }
    }

    /// Answers a task, wherever it is, and gives back all that it had taken.
    pub(super) fn finish(
        &mut self,
        key: usize,
        result: Result<Decision, Refusal>,
        now: u64,
        instantiated: Option<bool>,
    ) {
        let Some(task) = self.tasks.try_remove(key) else { return };
        // Does nothing to one that is picked: who has it settles it.
        self.schedule.remove(task.seat);
        let flow = task.seat.flow;
        if let Some(asked) = self.asked.get_mut(flow) {
            asked.remove(task.input_bytes);
        }
        let (digest, id) = (Some(task.policy.digest()), Some(task.id));
        let decision = result.unwrap_or_else(|refusal| Decision { digest, id, ..Decision::refused(refusal) });
        let times = Times {
            received_ns: task.received_ns,
            deadline_ns: task.deadline_ns,
            now_ns: now,
            realtime_ns: task.realtime_ns.saturating_add(now.saturating_sub(task.received_ns)),
        };
        if let Some(trace) = task.trace {
            tally::traced(&task.meter, (trace, task.id), task.policy.module(), &decision, &times);
        }
        let counters = &self.shared.counters;
        if let State::Running { warm, .. } = task.state
            && instantiated != Some(false)
        {
            tally::invoked(&task.meter, task.policy.module(), warm);
        }
        let warm = matches!(task.state, State::Running { warm: true, .. });
        let reply = self.shared.tickets.answer(task.ticket, task.index, decision, |decision| {
            counters.count(&decision.outcome);
            tally::answered(&task.meter, decision, &times);
            if instantiated == Some(true) {
                tally::decided(task.meter.class(), warm, decision, &times);
            }
        });
        if let Some(reply) = reply {
            task.meter.sent(now, reply.connection.push(&reply.frame));
        }
        self.settle_request(task.connection, task.ticket);
        if let State::Running { evaluation, .. } = task.state {
            let module = task.policy.module();
            match instantiated {
                Some(made) => {
                    drop(evaluation);
                    self.schedule.ended(flow);
                    self.warm.end(module, warm || made);
                }
                None => {
                    let meter = task.meter;
                    self.remains.push_back(Remains { flow, module, meter, evaluation });
                }
            }
        }
    }

    /// Does away with guests that were not finished, and with so many at once that nobody waits for long. Whose they were
    /// pays for it.
    pub(super) fn clear_away(&mut self) {
        if self.remains.is_empty() {
            return;
        }
        let mut now = monotonic_ns();
        let until = now.saturating_add(SLICE_NS);
        self.processor.begin(thread_cpu_ns());
        while now < until
            && let Some(Remains { flow, module, meter, evaluation }) = self.remains.pop_front()
        {
            self.shared.step_began_ns.store(now, Ordering::Relaxed);
            // Dropping a suspended guest unwinds its fiber and frees its slot.
            drop(evaluation);
            let after = monotonic_ns();
            let used_ns = self.processor.used(after.saturating_sub(now), thread_cpu_ns);
            meter.settle_cpu(after, 0, used_ns);
            self.schedule.charge(flow, used_ns);
            self.schedule.ended(flow);
            self.warm.end(module, true);
            now = after;
        }
    }

    /// Refuses everything that has passed its deadline or waits for too long.
    pub(super) fn sweep(&mut self, now: u64) {
        while let Some(key) = self.schedule.overdue(now) {
            let refusal = self.tasks.get(key).and_then(|task| task.too_late(now));
            let Some(refusal) = refusal else { break };
            self.finish(key, Err(refusal), now, None);
        }
    }
}
