//! How connections end: broken off, closed, or given back to the frontend.

use std::os::fd::AsFd;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{Executor, FromExecutor};
use crate::wire::client::{Farewell, ServerFrame, Violation};
use crate::worker::connection::{Connection, Phase};
use crate::worker::tasks::ConnectionKey;

impl Executor {
    /// The client sent an input that does not decode; only the guest's side notices.
    pub(super) fn malformed_input(&mut self, key: ConnectionKey) {
        if self.connections.get(key.slot).is_some_and(|connection| connection.serial == key.serial) {
            self.break_off(key.slot, Violation::Input);
        }
    }

    /// The client broke the protocol: what is in progress ends, it is told why, and the connection is closed.
    pub(super) fn break_off(&mut self, slot: usize, violation: Violation) {
        let Some(connection) = self.connections.get(slot).filter(|one| one.phase != Phase::Closing) else {
            return;
        };
        let (key, busy) =
            (ConnectionKey { slot, serial: connection.serial }, !connection.requests.is_empty());
        if busy {
            self.give_up(key);
        }
        if let Some(connection) = self.connections.get(slot) {
            connection.outbound.push(&ServerFrame::Farewell(Farewell::Protocol(violation)));
        }
        self.stop_reading(slot, Phase::Closing);
    }

    pub(super) fn stop_reading(&mut self, slot: usize, phase: Phase) {
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
        let Some(connection) = self.connections.get(slot) else { return };
        let (key, busy) =
            (ConnectionKey { slot, serial: connection.serial }, !connection.requests.is_empty());
        self.forget(slot);
        if busy {
            self.give_up(key);
        }
    }

    pub(super) fn forget(&mut self, slot: usize) {
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

pub(super) fn interest(connection: &Connection) -> EpollFlags {
    let mut flags = EpollFlags::empty();
    if connection.blocked {
        // Who does not take answers is not asked for questions.
        flags |= EpollFlags::EPOLLOUT;
    } else if connection.phase == Phase::Open {
        flags |= EpollFlags::EPOLLIN;
    }
    flags
}
