//! The questions of one executor that are waiting or running.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use slab::Slab;

use super::policies::Served;
use super::schedule::Seat;
use super::tickets::TicketKey;
use super::warm::Warm;
use crate::accounts::{Meter, UnderWay};
use crate::decision::{DecisionId, Quota, Refusal, Stage, TraceContext};
use crate::engine::{Call, Evaluated, Slice, evaluate};

pub(super) type Tasks = Slab<Task>;

/// One question.
pub(super) struct Task {
    pub(super) ticket: TicketKey,
    /// Which question of the ticket's batch.
    pub(super) index: usize,
    /// What its decision is called.
    pub(super) id: DecisionId,
    /// Where it came from.
    pub(super) connection: ConnectionKey,
    /// Its place in the schedule, and its tenant's.
    pub(super) seat: Seat,
    pub(super) received_ns: u64,
    /// The same moment, nanoseconds since 1970.
    pub(super) realtime_ns: u64,
    pub(super) deadline_ns: u64,
    /// It begins before that or not at all; no earlier than its deadline if nothing is said of waiting.
    pub(super) due_ns: u64,
    /// The policy that is asked.
    pub(super) policy: Arc<Served>,
    pub(super) state: State,
    /// Of the client, if it records one.
    pub(super) trace: Option<TraceContext>,
    pub(super) meter: Arc<Meter>,
    /// Of its input, as it came.
    pub(super) input_bytes: usize,
    /// Given back with the task.
    pub(super) _under_way: UnderWay,
}

/// A connection's slot, and the serial that tells it from its successor there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConnectionKey {
    pub(super) slot: usize,
    pub(super) serial: u64,
}

pub(super) enum State {
    Waiting {
        call: Call,
    },
    Running {
        started_ns: u64,
        /// Its slot has the policy's image.
        warm: bool,
        evaluation: Pin<Box<dyn Future<Output = Evaluated>>>,
    },
}

impl Task {
    /// Begins its evaluation, if that is what it waits for.
    pub(super) fn start(&mut self, now: u64, slice: &Arc<Slice>, warm: &mut Warm) -> bool {
        let State::Waiting { call } = &mut self.state else { return false };
        let (call, policy) = (std::mem::take(call), Arc::clone(self.policy.policy()));
        let evaluation = Box::pin(evaluate(policy, call, Arc::clone(slice), Some(Arc::clone(&self.meter))));
        let warm = warm.begin(self.policy.module());
        self.state = State::Running { started_ns: now, warm, evaluation };
        true
    }

    /// Why nothing more is to be done for it, if that is so.
    pub(super) fn too_late(&self, now: u64) -> Option<Refusal> {
        if self.policy.is_withdrawn() {
            Some(Refusal::Revoked)
        } else if self.deadline_ns <= now {
            Some(Refusal::Deadline(self.stage()))
        } else if self.due_ns <= now && matches!(self.state, State::Waiting { .. }) {
            // Whoever asks again waits at the end: in the time that this one waited there may be room.
            let waited_ms = now.saturating_sub(self.received_ns) / 1_000_000;
            let retry_after_ms = u32::try_from(waited_ms).unwrap_or(u32::MAX).max(1);
            Some(Refusal::Quota { which: Quota::Wait, retry_after_ms })
        } else {
            None
        }
    }

    /// Where it is when its deadline passes.
    pub(super) fn stage(&self) -> Stage {
        match self.state {
            State::Waiting { .. } => Stage::Queue,
            State::Running { .. } => Stage::Run,
        }
    }
}
