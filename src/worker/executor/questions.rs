//! The executor's dealings with questions: take a frame apart, admit, cancel, settle.

use std::sync::Arc;

use bytes::Bytes;
use rand_chacha::rand_core::Rng;

use super::Executor;
use super::intake::Receipt;
use crate::accounts::Meter;
use crate::decision::{Decision, DecisionId, Outcome, Refusal, TraceContext};
use crate::engine::{Call, monotonic_ns};
use crate::wire::client::{BATCH_MAX, ClientFrame, Deadline, ServerFrame, Violation};
use crate::wire::frame;
use crate::worker::admission::{Admitted, Asked, NotAdmitted, Room, admit};
use crate::worker::connection::InProgress;
use crate::worker::tally;
use crate::worker::tasks::{ConnectionKey, State, Task};
use crate::worker::tickets::{Opened, TicketKey};

/// Bytes of inputs whose copying is worth measuring.
const LARGE: usize = 16 << 10;

/// A Decide or a DecideBatch, taken apart.
struct Question<'a> {
    id: u64,
    names: (&'a str, &'a str),
    deadline: Deadline,
    inputs: &'a [&'a [u8]],
    batch: bool,
    trace: Option<TraceContext>,
}

impl Executor {
    pub(super) fn on_frame(&mut self, slot: usize, frame: &[u8], receipt: Receipt) -> Result<(), Violation> {
        match frame::decode(frame).map_err(|_| Violation::Malformed)? {
            ClientFrame::Hello { .. } => Err(Violation::HelloTwice),
            ClientFrame::Decide { id, tenant, policy, deadline, trace, input } => {
                let question =
                    Question { id, names: (tenant, policy), deadline, inputs: &[input], batch: false, trace };
                self.on_question(slot, &question, receipt)
            }
            ClientFrame::DecideBatch { id, tenant, policy, deadline, trace, inputs } => {
                if inputs.is_empty() || inputs.len() > BATCH_MAX {
                    return Err(Violation::BatchSize);
                }
                let question =
                    Question { id, names: (tenant, policy), deadline, inputs: &inputs, batch: true, trace };
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
        let Question { id, names, deadline, inputs, .. } = *question;
        if connection.requests.iter().any(|request| request.id == id) {
            return Err(Violation::DuplicateId);
        }
        let asked = Asked {
            tenant: names.0,
            policy: names.1,
            deadline,
            received_ns: receipt.monotonic_ns,
            now_ns: receipt.now_ns,
            questions: inputs.len(),
            bytes: inputs.iter().map(|input| input.len()).sum(),
        };
        let room = Room {
            connection: self.capacity.pipeline.saturating_sub(connection.in_progress()),
            asked: &self.asked,
            tenant: self.capacity.queue_per_tenant,
        };
        let admitted = match admit(&self.set, &connection.grant, &asked, room) {
            Ok(admitted) => admitted,
            Err(NotAdmitted { refusal, meter }) => {
                let meter = meter.map(Arc::clone);
                self.refuse(slot, question, receipt, refusal, meter.as_deref());
                return Ok(());
            }
        };
        if !self.make_room(admitted.flow, inputs.len()) {
            self.refuse(slot, question, receipt, Refusal::Overloaded, Some(&admitted.meter));
            return Ok(());
        }
        let flow = admitted.flow;
        let began_ns = if asked.bytes > LARGE { monotonic_ns() } else { 0 };
        self.take_in(slot, question, admitted, receipt);
        if asked.bytes > LARGE {
            // Who sends much pays for it as for a slice.
            self.schedule.charge(flow, monotonic_ns().saturating_sub(began_ns));
        }
        Ok(())
    }

    /// Sees to it that so many more questions find room. What has expired goes first, then what others have in excess.
    fn make_room(&mut self, flow: usize, questions: usize) -> bool {
        if self.tasks.len() + questions <= self.capacity.queue {
            return true;
        }
        let now = monotonic_ns();
        self.sweep(now);
        let needed = (self.tasks.len() + questions).saturating_sub(self.capacity.queue);
        if needed == 0 {
            return true;
        }
        let Some(displaced) = self.schedule.displace(flow, questions, needed) else { return false };
        for task in displaced {
            self.finish(task, Err(Refusal::Overloaded), now, None);
        }
        true
    }

    /// Answers a request that is not admitted.
    fn refuse(
        &mut self,
        slot: usize,
        question: &Question<'_>,
        receipt: Receipt,
        refusal: Refusal,
        meter: Option<&Meter>,
    ) {
        let first = self.draw_id();
        let Some(connection) = self.connections.get(slot) else { return };
        let refused = |index| Decision { id: Some(first.nth(index)), ..Decision::refused(refusal.clone()) };
        let outcome = Outcome::Refused(refusal.clone());
        for _ in question.inputs {
            self.shared.counters.count(&outcome);
            tally::refused(self.set.accounts(), meter, &outcome);
        }
        let id = question.id;
        let frame = if question.batch {
            ServerFrame::Decisions { id, decisions: (0..question.inputs.len()).map(refused).collect() }
        } else {
            ServerFrame::Decision { id, decision: refused(0) }
        };
        let bytes = connection.outbound.push(&frame);
        self.dirty.push(slot);
        // A flood of refusals is a flood of answers.
        if let Some(meter) = meter {
            meter.sent(receipt.now_ns, bytes);
        }
    }

    /// Puts the questions of a request where their turn will come.
    fn take_in(&mut self, slot: usize, question: &Question<'_>, admitted: Admitted, receipt: Receipt) {
        let Admitted { flow, policy, meter, deadline_ns, due_ns, under_way } = admitted;
        let Question { id, inputs, batch, trace, .. } = *question;
        let size = batch.then_some(inputs.len());
        let first = self.draw_id();
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let opened = Opened {
            id,
            first,
            deadline_ns,
            digest: policy.digest(),
            received_ns: receipt.monotonic_ns,
            meter: Arc::clone(&meter),
        };
        let ticket = self.shared.tickets.open(&connection.outbound, opened, size);
        let alone = (!batch).then(|| self.tasks.vacant_key());
        connection.requests.push(InProgress { id, ticket, alone, left: inputs.len() });
        let connection = ConnectionKey { slot, serial: connection.serial };
        for ((index, input), under_way) in inputs.iter().enumerate().zip(under_way) {
            let mut seed = [0; 32];
            self.seeds.fill_bytes(&mut seed);
            let decision = first.nth(index);
            let (input, input_bytes) = (Bytes::copy_from_slice(input), input.len());
            let call = Call { input, clock_ns: receipt.realtime_ns, seed, id: Some(decision) };
            let entry = self.tasks.vacant_entry();
            // Every tenant of the set is a flow of the schedule.
            let Some(seat) = self.schedule.enqueue(flow, entry.key(), deadline_ns, due_ns) else { continue };
            entry.insert(Task {
                ticket,
                index,
                id: decision,
                connection,
                seat,
                received_ns: receipt.monotonic_ns,
                realtime_ns: receipt.realtime_ns,
                deadline_ns,
                due_ns,
                policy: Arc::clone(&policy),
                state: State::Waiting { call },
                trace: trace.filter(TraceContext::is_sampled),
                meter: Arc::clone(&meter),
                input_bytes,
                _under_way: under_way,
            });
            if let Some(asked) = self.asked.get_mut(flow) {
                asked.add(input_bytes);
            }
        }
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
        let ticket = request.ticket;
        match request.alone {
            Some(key) if self.tasks.get(key).is_some_and(|task| task.ticket == ticket) => {
                self.finish(key, Err(Refusal::Cancelled), monotonic_ns(), None);
            }
            Some(_) => {}
            None => self.refuse_all(|task| task.ticket == ticket, &Refusal::Cancelled),
        }
    }

    /// Ends whatever is left of what a connection has asked.
    pub(super) fn give_up(&mut self, key: ConnectionKey) {
        self.refuse_all(|task| task.connection == key, &Refusal::Cancelled);
    }

    /// Ends whatever was asked of policies that may not decide any more, wherever it is.
    pub(super) fn refuse_withdrawn(&mut self) {
        self.refuse_all(|task| task.policy.is_withdrawn(), &Refusal::Revoked);
    }

    fn refuse_all(&mut self, which: impl Fn(&Task) -> bool, refusal: &Refusal) {
        let tasks: Vec<usize> =
            self.tasks.iter().filter(|(_, task)| which(task)).map(|(key, _)| key).collect();
        let now = monotonic_ns();
        for task in tasks {
            self.finish(task, Err(refusal.clone()), now, None);
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
