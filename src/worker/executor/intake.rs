//! The executor's dealings with what arrives: adopt connections, read them, cut frames.

use std::os::fd::AsFd;
use std::sync::Arc;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::endings::interest;
use super::{Adopted, Draining, Executor, MAILBOX, ToExecutor};
use crate::engine::{monotonic_ns, realtime_ns};
use crate::worker::connection::{Connection, Phase, ReadOutcome, split_frame};
use crate::worker::tasks::ConnectionKey;

/// Reads of one connection before others get their turn.
const READS_IN_A_ROW: usize = 4;
/// Frames of one connection before others get their turn, and how long that may take, nanoseconds.
const FRAMES_IN_A_ROW: usize = 32;
const TURN_NS: u64 = 25_000;

/// Replies that may wait on a connection before it is asked for more, bytes.
const REPLIES_WAITING: usize = 256 << 10;

/// When some bytes were read.
#[derive(Clone, Copy)]
pub(super) struct Receipt {
    pub(super) monotonic_ns: u64,
    /// What guests see.
    pub(super) realtime_ns: u64,
    /// When their turn came (CLOCK_MONOTONIC, nanoseconds).
    pub(super) now_ns: u64,
}

/// How far one connection may go before others get their turn. It always gets as far as one frame.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Turn {
    until_ns: u64,
    frames: usize,
}

impl Turn {
    fn is_over(&self, now_ns: u64) -> bool {
        self.frames >= FRAMES_IN_A_ROW || (self.frames > 0 && now_ns >= self.until_ns)
    }
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
            self.queue_up(slot);
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
            ToExecutor::Withdrawn => self.refuse_withdrawn(),
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
        // There may be bytes that came with it.
        self.queue_up(slot);
    }

    /// It may have something to read: that is looked at when its turn comes.
    pub(super) fn queue_up(&mut self, slot: usize) {
        let idle = |one: &&mut Connection| !one.pending && !one.blocked && one.phase == Phase::Open;
        if let Some(connection) = self.connections.get_mut(slot).filter(idle) {
            connection.pending = true;
            self.pending.push_back(ConnectionKey { slot, serial: connection.serial });
        }
    }

    /// Connections in turn, until all have been seen to or guests have to run. Who is ready all the time is again behind
    /// everybody who became ready meanwhile.
    pub(super) fn take_turns(&mut self) {
        while let Some(key) = self.pending.pop_front() {
            let same = |one: &&mut Connection| one.serial == key.serial;
            let Some(connection) = self.connections.get_mut(key.slot).filter(same) else { continue };
            connection.pending = false;
            let now = monotonic_ns();
            self.turn = Turn { until_ns: now.saturating_add(TURN_NS), frames: 0 };
            self.take_turn(key.slot);
            if monotonic_ns() >= self.intake_until_ns {
                break;
            }
        }
    }

    /// What has been read comes first.
    fn take_turn(&mut self, slot: usize) {
        if self.connections.get(slot).is_some_and(|one| one.phase == Phase::Open && !one.partial.is_empty()) {
            self.take_partial(slot);
        }
        self.read(slot);
    }

    /// Reads what is there, frame by frame.
    fn read(&mut self, slot: usize) {
        let mut scratch = std::mem::take(&mut self.scratch);
        for _ in 0..READS_IN_A_ROW {
            // What is left at the end of a turn is told of by epoll again.
            let readable = |one: &&mut Connection| one.phase == Phase::Open && !one.pending && !one.blocked;
            let Some(connection) = self.connections.get_mut(slot).filter(readable) else { break };
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
                    if length < scratch.len() || monotonic_ns() >= self.turn.until_ns {
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

    /// Takes whole frames off the front of `bytes`; returns how many bytes that were. Stops when the connection does,
    /// when its replies are not taken, and when others have waited long enough; the rest is then pending.
    fn take_frames(&mut self, slot: usize, bytes: &[u8]) -> usize {
        let read_ns = self.connections.get(slot).map_or(0, |connection| connection.read_ns);
        let mut receipt = Receipt { monotonic_ns: read_ns, realtime_ns: realtime_ns(), now_ns: read_ns };
        let mut rest = bytes;
        while let Some(connection) = self.connections.get(slot).filter(|one| one.phase == Phase::Open) {
            if connection.outbound.len() > REPLIES_WAITING {
                self.flush(slot);
            }
            if self.connections.get(slot).is_none_or(|one| one.blocked) {
                // The rest has its turn when the replies have been taken.
                break;
            }
            receipt.now_ns = monotonic_ns();
            match split_frame(rest) {
                Ok(None) => break,
                Ok(Some(_)) if self.turn.is_over(receipt.now_ns) => {
                    self.queue_up(slot);
                    break;
                }
                Ok(Some((frame, after))) => {
                    rest = after;
                    self.turn.frames += 1;
                    if let Err(violation) = self.on_frame(slot, frame, receipt) {
                        self.break_off(slot, violation);
                    }
                }
                Err(violation) => self.break_off(slot, violation),
            }
        }
        bytes.len() - rest.len()
    }
}
