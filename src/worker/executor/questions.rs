//! The executor's dealings with questions: take a frame apart, admit, cancel, settle.

use std::sync::Arc;

use bytes::Bytes;
use rand_chacha::rand_core::Rng;

use super::Executor;
use super::intake::Receipt;
use crate::decision::{Decision, DecisionId, Outcome, Refusal};
use crate::engine::Call;
use crate::wire::client::{BATCH_MAX, ClientFrame, Deadline, ServerFrame, Violation};
use crate::wire::frame;
use crate::worker::admission::{Room, admit};
use crate::worker::connection::InProgress;
use crate::worker::tasks::{ConnectionKey, State, Task};
use crate::worker::tickets::TicketKey;

/// A Decide or a DecideBatch, taken apart.
struct Question<'a> {
    id: u64,
    names: (&'a str, &'a str),
    deadline: Deadline,
    inputs: &'a [&'a [u8]],
    batch: bool,
}

impl Executor {
    pub(super) fn on_frame(&mut self, slot: usize, frame: &[u8], receipt: Receipt) -> Result<(), Violation> {
        match frame::decode(frame).map_err(|_| Violation::Malformed)? {
            ClientFrame::Hello { .. } => Err(Violation::HelloTwice),
            ClientFrame::Decide { id, tenant, policy, deadline, trace: _, input } => {
                let question =
                    Question { id, names: (tenant, policy), deadline, inputs: &[input], batch: false };
                self.on_question(slot, &question, receipt)
            }
            ClientFrame::DecideBatch { id, tenant, policy, deadline, trace: _, inputs } => {
                if inputs.is_empty() || inputs.len() > BATCH_MAX {
                    return Err(Violation::BatchSize);
                }
                let question =
                    Question { id, names: (tenant, policy), deadline, inputs: &inputs, batch: true };
                self.on_question(slot, &question, receipt)
            }
            ClientFrame::Cancel { id } => {
                self.cancel(slot, id);
                Ok(())
            }
            ClientFrame::Ping { nonce } => {
                if let Some(connection) = self.connections.get(slot) {
                    connection.outbound.push(&ServerFrame::Pong { nonce });
                    self.dirty.push(slot);
                }
                Ok(())
            }
        }
    }

    fn on_question(
        &mut self,
        slot: usize,
        question: &Question<'_>,
        receipt: Receipt,
    ) -> Result<(), Violation> {
        let Some(connection) = self.connections.get_mut(slot) else { return Ok(()) };
        let Question { id, names, deadline, inputs, batch } = *question;
        if connection.requests.iter().any(|request| request.id == id) {
            return Err(Violation::DuplicateId);
        }
        let first = self.draw_id();
        let Some(connection) = self.connections.get_mut(slot) else { return Ok(()) };
        let room = Room {
            connection: self.capacity.pipeline.saturating_sub(connection.in_progress()),
            executor: self.capacity.queue.saturating_sub(self.tasks.len()),
            asked: &self.running.asked,
            tenant: self.capacity.queue_per_tenant,
        };
        let admitted =
            admit(&self.set, &connection.grant, names, deadline, receipt.monotonic_ns, room, inputs.len());
        let admitted = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => {
                let refused =
                    |index| Decision { id: Some(first.nth(index)), ..Decision::refused(refusal.clone()) };
                let outcome = Outcome::Refused(refusal.clone());
                inputs.iter().for_each(|_| self.shared.counters.count(&outcome));
                let frame = if batch {
                    ServerFrame::Decisions { id, decisions: (0..inputs.len()).map(refused).collect() }
                } else {
                    ServerFrame::Decision { id, decision: refused(0) }
                };
                connection.outbound.push(&frame);
                self.dirty.push(slot);
                return Ok(());
            }
        };
        let size = batch.then_some(inputs.len());
        let (deadline_ns, digest) = (admitted.deadline_ns, admitted.policy.digest());
        let ticket = self.shared.tickets.open(&connection.outbound, (id, first), deadline_ns, digest, size);
        connection.requests.push(InProgress { id, ticket, left: inputs.len() });
        let connection = ConnectionKey { slot, serial: connection.serial };
        for (index, input) in inputs.iter().enumerate() {
            let mut seed = [0; 32];
            self.seeds.fill_bytes(&mut seed);
            let decision = first.nth(index);
            let input = Bytes::copy_from_slice(input);
            let call = Call { input, clock_ns: receipt.realtime_ns, seed, id: Some(decision) };
            let task = self.tasks.insert(Task {
                ticket,
                index,
                id: decision,
                connection,
                flow: admitted.flow,
                received_ns: receipt.monotonic_ns,
                deadline_ns: admitted.deadline_ns,
                policy: Arc::clone(&admitted.policy),
                state: State::Waiting { call },
            });
            self.schedule.enqueue(admitted.flow, task);
            if let Some(asked) = self.running.asked.get_mut(admitted.flow) {
                *asked += 1;
            }
        }
        Ok(())
    }

    /// A name for the first decision of a request.
    fn draw_id(&mut self) -> DecisionId {
        let mut bytes = [0; 16];
        self.seeds.fill_bytes(&mut bytes);
        DecisionId::from_random(bytes)
    }

    fn cancel(&mut self, slot: usize, id: u64) {
        let Some(connection) = self.connections.get(slot) else { return };
        let Some(request) = connection.requests.iter().find(|request| request.id == id) else { return };
        self.give_up(request.ticket);
    }

    /// Ends what is left of a request, unasked for.
    pub(super) fn give_up(&mut self, ticket: TicketKey) {
        self.refuse_all(|task| task.ticket == ticket, &Refusal::Cancelled);
    }

    /// Ends whatever was asked of policies that may not decide any more, wherever it is.
    pub(super) fn refuse_withdrawn(&mut self) {
        self.refuse_all(|task| task.policy.is_withdrawn(), &Refusal::Revoked);
    }

    fn refuse_all(&mut self, which: impl Fn(&Task) -> bool, refusal: &Refusal) {
        let unfinished = |task: &Task| which(task) && !matches!(task.state, State::Done);
        let tasks: Vec<usize> =
            self.tasks.iter().filter(|(_, task)| unfinished(task)).map(|(key, _)| key).collect();
        for task in tasks {
            self.finish(task, Err(refusal.clone()));
        }
    }

    /// One question of a request has been done with.
    pub(super) fn settle_request(&mut self, key: ConnectionKey, ticket: TicketKey) {
        let Some(connection) = self.connections.get_mut(key.slot).filter(|one| one.serial == key.serial)
        else {
            return;
        };
        let place = connection.requests.iter().position(|request| request.ticket == ticket);
        if let Some((place, request)) =
            place.and_then(|at| connection.requests.get_mut(at).map(|one| (at, one)))
        {
            request.left = request.left.saturating_sub(1);
            if request.left == 0 {
                connection.requests.swap_remove(place);
            }
        }
        if connection.requests.is_empty() {
            // No other reply is near: this one need not wait for company.
            self.flush(key.slot);
        } else if !self.dirty.contains(&key.slot) {
            self.dirty.push(key.slot);
        }
    }
}
