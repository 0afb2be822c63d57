//! The executor's dealings with connections: adopt, read, admit, settle, give back, close.

use std::os::fd::AsFd;
use std::sync::Arc;

use bytes::Bytes;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use rand_chacha::rand_core::Rng;

use super::{Adopted, Draining, Executor, FromExecutor, MAILBOX, ToExecutor};
use crate::decision::{Decision, Refusal};
use crate::engine::{Call, monotonic_ns, realtime_ns};
use crate::wire::client::{BATCH_MAX, ClientFrame, Deadline, Farewell, ServerFrame, Violation};
use crate::wire::frame;
use crate::worker::admission::{Room, admit};
use crate::worker::connection::{Connection, InProgress, Phase, ReadOutcome, split_frame};
use crate::worker::tasks::{ConnectionKey, State, Task};
use crate::worker::tickets::TicketKey;

/// Reads of one connection before others get their turn.
const READS_IN_A_ROW: usize = 4;

/// Replies that may wait on a connection before it is asked for more, bytes.
const REPLIES_WAITING: usize = 256 << 10;

/// When some bytes were read.
#[derive(Clone, Copy)]
struct Receipt {
    monotonic_ns: u64,
    /// What guests see.
    realtime_ns: u64,
}

/// A Decide or a DecideBatch, taken apart.
struct Question<'a> {
    id: u64,
    names: (&'a str, &'a str),
    deadline: Deadline,
    inputs: &'a [&'a [u8]],
    batch: bool,
}

impl Executor {
    pub(super) fn on_event(&mut self, event: &EpollEvent) {
        let token = event.data();
        if token == MAILBOX {
            for message in self.shared.mailbox.take() {
                self.on_message(message);
            }
            return;
        }
        let Ok(slot) = usize::try_from(token) else { return };
        let flags = event.events();
        if flags.contains(EpollFlags::EPOLLOUT) {
            self.flush(slot);
        }
        // EPOLLHUP means that the client has closed: nobody will read a reply.
        if flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR)
            && !flags.contains(EpollFlags::EPOLLIN)
        {
            return self.close(slot);
        }
        if flags.contains(EpollFlags::EPOLLIN) {
            self.read(slot);
        }
    }

    fn on_message(&mut self, message: ToExecutor) {
        match message {
            ToExecutor::Adopt(adopted) => self.adopt(adopted),
            ToExecutor::Blocked(outbound) => {
                let found = self.connections.iter().find(|(_, one)| Arc::ptr_eq(&one.outbound, &outbound));
                if let Some((slot, _)) = found {
                    self.dirty.push(slot);
                }
            }
            ToExecutor::Drain { give_back } => {
                self.draining = Some(Draining { give_back, said: false });
                let phase = if give_back { Phase::Returning } else { Phase::Closing };
                let slots: Vec<usize> = self.connections.iter().map(|(slot, _)| slot).collect();
                for slot in slots {
                    self.stop_reading(slot, phase);
                }
            }
        }
    }

    fn adopt(&mut self, adopted: Adopted) {
        let Adopted { outbound, cookie, grant, unread } = adopted;
        self.connections_made += 1;
        let phase = match self.draining {
            None => Phase::Open,
            Some(Draining { give_back: true, .. }) => Phase::Returning,
            Some(Draining { give_back: false, .. }) => Phase::Closing,
        };
        let connection = Connection {
            outbound,
            cookie,
            grant,
            partial: unread,
            requests: Vec::new(),
            phase,
            blocked: false,
            pending: false,
            read_ns: monotonic_ns(),
            serial: self.connections_made,
        };
        let flags = interest(&connection);
        let outbound = Arc::clone(&connection.outbound);
        let slot = self.connections.insert(connection);
        self.shared.counters.connections.set(self.connections.len() as u64);
        if let Err(errno) = self.epoll.add(outbound.as_fd(), EpollEvent::new(flags, slot as u64)) {
            tracing::error!(%errno, "watch adopted connection");
            return self.forget(slot);
        }
        self.dirty.push(slot);
        if phase == Phase::Open {
            // The bytes that came with it come first.
            self.take_partial(slot);
        }
    }

    /// Reads what is there, frame by frame.
    fn read(&mut self, slot: usize) {
        if self.intake_is_over() || self.connections.get(slot).is_none_or(|one| one.pending || one.blocked) {
            // Nothing is lost: epoll tells of it again.
            return;
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        for _ in 0..READS_IN_A_ROW {
            let Some(connection) = self.connections.get_mut(slot).filter(|one| one.phase == Phase::Open)
            else {
                break;
            };
            match connection.read(&mut scratch) {
                ReadOutcome::Nothing => break,
                ReadOutcome::End => {
                    self.stop_reading(slot, Phase::Closing);
                    break;
                }
                ReadOutcome::Broken => {
                    self.close(slot);
                    break;
                }
                ReadOutcome::Bytes(length) => {
                    let bytes = scratch.get(..length).unwrap_or_default();
                    connection.read_ns = monotonic_ns();
                    if connection.partial.is_empty() {
                        let used = self.take_frames(slot, bytes);
                        if let (Some(connection), Some(rest)) =
                            (self.connections.get_mut(slot), bytes.get(used..))
                        {
                            connection.partial.extend_from_slice(rest);
                        }
                    } else {
                        connection.partial.extend_from_slice(bytes);
                        self.take_partial(slot);
                    }
                    if length < scratch.len() || self.connections.get(slot).is_none_or(|one| one.pending) {
                        break;
                    }
                }
            }
        }
        self.scratch = scratch;
    }

    /// Takes the whole frames out of the bytes that were kept.
    fn take_partial(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.pending = false;
        let mut bytes = std::mem::take(&mut connection.partial);
        let used = self.take_frames(slot, &bytes);
        if let Some(connection) = self.connections.get_mut(slot) {
            bytes.drain(..used);
            if bytes.is_empty() {
                // An idle connection costs no buffer.
                bytes = Vec::new();
            }
            connection.partial = bytes;
        }
    }

    /// Goes on with the connections whose frames had to wait.
    pub(super) fn take_pending(&mut self) {
        for slot in std::mem::take(&mut self.pending) {
            let waits = |one: &&Connection| one.pending && !one.blocked && one.phase == Phase::Open;
            if self.connections.get(slot).filter(waits).is_some() {
                self.take_partial(slot);
            }
        }
    }

    fn intake_is_over(&self) -> bool {
        monotonic_ns() >= self.intake_until_ns
    }

    /// Takes whole frames off the front of `bytes`; returns how many bytes that were. Stops when the connection does,
    /// when its replies are not taken, and when others have waited long enough; the rest is then pending.
    fn take_frames(&mut self, slot: usize, bytes: &[u8]) -> usize {
        let read_ns = self.connections.get(slot).map_or(0, |connection| connection.read_ns);
        let receipt = Receipt { monotonic_ns: read_ns, realtime_ns: realtime_ns() };
        let mut rest = bytes;
        while let Some(connection) = self.connections.get(slot).filter(|one| one.phase == Phase::Open) {
            if connection.outbound.len() > REPLIES_WAITING {
                self.flush(slot);
            }
            let over = self.intake_is_over();
            let Some(connection) = self.connections.get_mut(slot) else { break };
            if over || connection.blocked {
                connection.pending = true;
                if !connection.blocked {
                    self.pending.push(slot);
                }
                break;
            }
            match split_frame(rest) {
                Ok(None) => break,
                Ok(Some((frame, after))) => {
                    rest = after;
                    if let Err(violation) = self.on_frame(slot, frame, receipt) {
                        self.break_off(slot, violation);
                    }
                }
                Err(violation) => self.break_off(slot, violation),
            }
        }
        bytes.len() - rest.len()
    }

    fn on_frame(&mut self, slot: usize, frame: &[u8], receipt: Receipt) -> Result<(), Violation> {
        match frame::decode(frame).map_err(|_| Violation::Malformed)? {
            ClientFrame::Hello { .. } => Err(Violation::HelloTwice),
            ClientFrame::Decide { id, tenant, policy, deadline, input } => {
                let question =
                    Question { id, names: (tenant, policy), deadline, inputs: &[input], batch: false };
                self.on_question(slot, &question, receipt)
            }
            ClientFrame::DecideBatch { id, tenant, policy, deadline, inputs } => {
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
                let decision = Decision::refused(refusal);
                inputs.iter().for_each(|_| self.shared.counters.count(&decision.outcome));
                let frame = if batch {
                    ServerFrame::Decisions { id, decisions: vec![decision; inputs.len()] }
                } else {
                    ServerFrame::Decision { id, decision }
                };
                connection.outbound.push(&frame);
                self.dirty.push(slot);
                return Ok(());
            }
        };
        let size = batch.then_some(inputs.len());
        let (deadline_ns, digest) = (admitted.deadline_ns, admitted.policy.digest());
        let ticket = self.shared.tickets.open(&connection.outbound, id, deadline_ns, digest, size);
        connection.requests.push(InProgress { id, ticket, left: inputs.len() });
        let connection = ConnectionKey { slot, serial: connection.serial };
        for (index, input) in inputs.iter().enumerate() {
            let mut seed = [0; 32];
            self.seeds.fill_bytes(&mut seed);
            let call = Call { input: Bytes::copy_from_slice(input), clock_ns: receipt.realtime_ns, seed };
            let task = self.tasks.insert(Task {
                ticket,
                index,
                connection,
                flow: admitted.flow,
                received_ns: receipt.monotonic_ns,
                deadline_ns: admitted.deadline_ns,
                digest: admitted.policy.digest(),
                state: State::Waiting { policy: Arc::clone(&admitted.policy), call },
            });
            self.schedule.enqueue(admitted.flow, task);
            if let Some(asked) = self.running.asked.get_mut(admitted.flow) {
                *asked += 1;
            }
        }
        Ok(())
    }

    fn cancel(&mut self, slot: usize, id: u64) {
        let Some(connection) = self.connections.get(slot) else { return };
        let Some(request) = connection.requests.iter().find(|request| request.id == id) else { return };
        self.give_up(request.ticket);
    }

    /// Ends what is left of a request, unasked for.
    fn give_up(&mut self, ticket: TicketKey) {
        let unfinished = |task: &Task| task.ticket == ticket && !matches!(task.state, State::Done);
        let tasks: Vec<usize> =
            self.tasks.iter().filter(|(_, task)| unfinished(task)).map(|(key, _)| key).collect();
        for task in tasks {
            self.finish(task, Err(Refusal::Cancelled));
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

    /// The client sent an input that does not decode; only the guest's side notices.
    pub(super) fn malformed_input(&mut self, key: ConnectionKey) {
        if self.connections.get(key.slot).is_some_and(|connection| connection.serial == key.serial) {
            self.break_off(key.slot, Violation::Input);
        }
    }

    /// The client broke the protocol: what is in progress ends, it is told why, and the connection is closed.
    fn break_off(&mut self, slot: usize, violation: Violation) {
        let Some(connection) = self.connections.get(slot).filter(|one| one.phase != Phase::Closing) else {
            return;
        };
        let tickets: Vec<TicketKey> = connection.requests.iter().map(|request| request.ticket).collect();
        tickets.into_iter().for_each(|ticket| self.give_up(ticket));
        if let Some(connection) = self.connections.get(slot) {
            connection.outbound.push(&ServerFrame::Farewell(Farewell::Protocol(violation)));
        }
        self.stop_reading(slot, Phase::Closing);
    }

    fn stop_reading(&mut self, slot: usize, phase: Phase) {
        let Some(connection) = self.connections.get_mut(slot).filter(|one| one.phase != Phase::Closing)
        else {
            return;
        };
        connection.phase = phase;
        self.watch(slot);
        self.dirty.push(slot);
    }

    /// Tells epoll what this connection waits for now.
    pub(super) fn watch(&mut self, slot: usize) {
        let Some(connection) = self.connections.get(slot) else { return };
        let mut event = EpollEvent::new(interest(connection), slot as u64);
        if let Err(errno) = self.epoll.modify(connection.outbound.as_fd(), &mut event) {
            tracing::error!(%errno, "watch connection");
            self.close(slot);
        }
    }

    /// Closes a connection that is to be closed and has nothing left to say.
    pub(super) fn close_if_finished(&mut self, slot: usize) {
        let finished =
            |one: &Connection| one.phase == Phase::Closing && one.requests.is_empty() && !one.blocked;
        if self.connections.get(slot).is_some_and(finished) {
            self.forget(slot);
        }
    }

    /// The client is gone: nobody waits for what is in progress.
    pub(super) fn close(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let requests = std::mem::take(&mut connection.requests);
        self.forget(slot);
        requests.into_iter().for_each(|request| self.give_up(request.ticket));
    }

    fn forget(&mut self, slot: usize) {
        let Some(connection) = self.connections.try_remove(slot) else { return };
        // Tickets may keep the descriptor open for a moment longer, so closing it is not enough for epoll.
        let _ = self.epoll.delete(connection.outbound.as_fd());
        self.shared.counters.connections.set(self.connections.len() as u64);
        self.steward.put(FromExecutor::Closed { cookie: connection.cookie });
    }

    /// Gives back what has nothing in progress; says so when nothing is left.
    pub(super) fn let_go(&mut self) {
        let returnable =
            |one: &Connection| one.phase == Phase::Returning && one.requests.is_empty() && !one.blocked;
        let idle: Vec<usize> =
            self.connections.iter().filter(|(_, one)| returnable(one)).map(|(slot, _)| slot).collect();
        for slot in idle {
            let Connection { outbound, cookie, partial, .. } = self.connections.remove(slot);
            let _ = self.epoll.delete(outbound.as_fd());
            self.steward.put(FromExecutor::Return { outbound, cookie, unread: partial });
        }
        self.shared.counters.connections.set(self.connections.len() as u64);
        let empty = self.connections.is_empty();
        if let Some(draining) = self.draining.as_mut().filter(|draining| empty && !draining.said) {
            draining.said = true;
            self.steward.put(FromExecutor::Drained);
        }
    }
}

fn interest(connection: &Connection) -> EpollFlags {
    let mut flags = EpollFlags::empty();
    if connection.blocked {
        // Who does not take answers is not asked for questions.
        flags |= EpollFlags::EPOLLOUT;
    } else if connection.phase == Phase::Open {
        flags |= EpollFlags::EPOLLIN;
    }
    flags
}
