//! The questions of one executor that are waiting or running.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use slab::Slab;

use super::policies::Served;
use super::tickets::TicketKey;
use crate::decision::{DecisionId, Stage};
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
    pub(super) flow: usize,
    pub(super) received_ns: u64,
    pub(super) deadline_ns: u64,
    /// The policy that is asked.
    pub(super) policy: Arc<Served>,
    pub(super) state: State,
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
        evaluation: Pin<Box<dyn Future<Output = Evaluated>>>,
    },
    /// Answered already; its slot is freed when the schedule comes by.
    Done,
}

impl Task {
    pub(super) fn start(&mut self, now: u64, slice: &Arc<Slice>) {
        if let State::Waiting { call } = std::mem::replace(&mut self.state, State::Done) {
            let policy = Arc::clone(self.policy.policy());
            let evaluation = Box::pin(evaluate(policy, call, Arc::clone(slice)));
            self.state = State::Running { started_ns: now, evaluation };
        }
    }

    /// Where it is when its deadline passes.
    pub(super) fn stage(&self) -> Stage {
        match self.state {
            State::Waiting { .. } => Stage::Queue,
            State::Running { .. } | State::Done => Stage::Run,
        }
    }
}
