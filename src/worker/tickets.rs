//! Exactly one answer for each request: who takes its ticket away answers it. Normally that is the executor; when it
//! is stuck past a deadline, the watchdog.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slab::Slab;

use super::outbound::Outbound;
use crate::artifact::Digest;
use crate::decision::{Decision, DecisionId, Refusal, Stage};
use crate::wire::client::ServerFrame;

/// The requests of one executor that are not answered yet.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    slots: Slab<Ticket>,
    issued: u64,
}

/// One request, or one batch.
#[derive(Debug)]
struct Ticket {
    serial: u64,
    connection: Arc<Outbound>,
    id: u64,
    /// Of its first question; the others follow.
    first: DecisionId,
    deadline_ns: u64,
    /// Of the policy that is asked.
    digest: Digest,
    /// A guest has been at it.
    started: bool,
    answers: Answers,
}

#[derive(Debug)]
enum Answers {
    One,
    Batch { decisions: Vec<Option<Decision>>, missing: usize },
}

/// Refers to a ticket; stays harmless when somebody else has answered it and its slot is in use again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TicketKey {
    slot: usize,
    serial: u64,
}

/// A complete answer and where it goes.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) connection: Arc<Outbound>,
    pub(super) frame: ServerFrame,
}

impl Tickets {
    /// For one request, by its id and that of its first decision; `batch` is its number of questions if it is a batch.
    pub(super) fn open(
        &self,
        connection: &Arc<Outbound>,
        (id, first): (u64, DecisionId),
        deadline_ns: u64,
        digest: Digest,
        batch: Option<usize>,
    ) -> TicketKey {
        let answers = match batch {
            None => Answers::One,
            Some(size) => Answers::Batch { decisions: vec![None; size], missing: size },
        };
        let mut open = self.lock();
        open.issued += 1;
        let serial = open.issued;
        let connection = Arc::clone(connection);
        let ticket = Ticket { serial, connection, id, first, deadline_ns, digest, started: false, answers };
        TicketKey { slot: open.slots.insert(ticket), serial }
    }

    /// From now on it is not in the queue any more, should somebody else have to say where it was.
    pub(super) fn started(&self, key: TicketKey) {
        if let Some(ticket) = self.lock().slots.get_mut(key.slot).filter(|ticket| ticket.serial == key.serial)
        {
            ticket.started = true;
        }
    }

    /// Answers question `index` (0 if it is no batch). Returns the reply once it is complete; `None` as well if
    /// somebody else was faster.
    pub(super) fn answer(&self, key: TicketKey, index: usize, decision: Decision) -> Option<Reply> {
        let mut open = self.lock();
        let ticket = open.slots.get_mut(key.slot).filter(|ticket| ticket.serial == key.serial)?;
        match &mut ticket.answers {
            Answers::One => {
                let Ticket { connection, id, .. } = open.slots.remove(key.slot);
                Some(Reply { connection, frame: ServerFrame::Decision { id, decision } })
            }
            Answers::Batch { decisions, missing } => {
                if let Some(place @ None) = decisions.get_mut(index) {
                    *place = Some(decision);
                    *missing -= 1;
                }
                if *missing > 0 { None } else { Some(open.slots.remove(key.slot).late()) }
            }
        }
    }

    /// Takes away every ticket whose deadline was before `now_ns`, answered with what there is. The replies are handed to
    /// their connections before anybody can see that the tickets are gone: who finds one gone finds its reply there.
    pub(super) fn expire(&self, now_ns: u64) -> Vec<Arc<Outbound>> {
        let mut open = self.lock();
        let late: Vec<usize> = open
            .slots
            .iter()
            .filter(|(_, ticket)| ticket.deadline_ns < now_ns)
            .map(|(slot, _)| slot)
            .collect();
        late.into_iter()
            .map(|slot| {
                let Reply { connection, frame } = open.slots.remove(slot).late();
                connection.push(&frame);
                connection
            })
            .collect()
    }

    /// A thread that panics aborts the process, so a poisoned lock cannot be met.
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// The answer as it stands; what is missing is refused.
    fn late(self) -> Reply {
        let stage = if self.started { Stage::Run } else { Stage::Queue };
        let digest = Some(self.digest);
        let refused = |index| {
            let id = Some(self.first.nth(index));
            Decision { digest, id, ..Decision::refused(Refusal::Deadline(stage)) }
        };
        let id = self.id;
        let frame = match self.answers {
            Answers::One => ServerFrame::Decision { id, decision: refused(0) },
            Answers::Batch { decisions, .. } => {
                let decisions = decisions.into_iter().enumerate();
                let decisions = decisions.map(|(index, one)| one.unwrap_or_else(|| refused(index))).collect();
                ServerFrame::Decisions { id, decisions }
            }
        };
        Reply { connection: self.connection, frame }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn connection() -> Arc<Outbound> {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        Arc::new(Outbound::new(OwnedFd::from(ours)))
    }

    fn first() -> DecisionId {
        DecisionId::from_random([7; 16])
    }

    fn policy() -> Digest {
        Digest::of(b"policy")
    }

    fn decision() -> Decision {
        Decision::refused(Refusal::Overloaded)
    }

    #[test]
    fn a_ticket_is_answered_once() {
        let tickets = Tickets::default();
        let key = tickets.open(&connection(), (7, first()), 100, policy(), None);
        assert!(tickets.answer(key, 0, decision()).is_some());
        assert!(tickets.answer(key, 0, decision()).is_none());
    }

    #[test]
    fn an_old_key_does_not_answer_the_slots_next_ticket() {
        let tickets = Tickets::default();
        let old = tickets.open(&connection(), (1, first()), 100, policy(), None);
        assert_eq!(tickets.expire(101).len(), 1);
        let new = tickets.open(&connection(), (2, first()), 200, policy(), None);
        assert!(tickets.answer(old, 0, decision()).is_none());
        assert!(tickets.answer(new, 0, decision()).is_some());
    }

    #[test]
    fn a_batch_is_complete_when_all_are_in_or_time_is_up() {
        let tickets = Tickets::default();
        let key = tickets.open(&connection(), (1, first()), 100, policy(), Some(2));
        assert!(tickets.answer(key, 1, decision()).is_none());
        assert!(tickets.answer(key, 1, decision()).is_none(), "the same answer again does not complete it");
        let reply = tickets.answer(key, 0, decision()).unwrap();
        assert!(matches!(reply.frame, ServerFrame::Decisions { id: 1, decisions } if decisions.len() == 2));

        let key = tickets.open(&connection(), (2, first()), 100, policy(), Some(3));
        tickets.started(key);
        assert!(tickets.answer(key, 2, decision()).is_none());
        assert!(tickets.expire(100).is_empty(), "at the deadline it is not late yet");
        let Reply { frame, .. } = tickets.lock().slots.remove(key.slot).late();
        let ServerFrame::Decisions { decisions, .. } = frame else { panic!("{frame:?}") };
        let late = |index| Decision {
            digest: Some(policy()),
            id: Some(first().nth(index)),
            ..Decision::refused(Refusal::Deadline(Stage::Run))
        };
        assert_eq!(decisions[..], [late(0), late(1), decision()]);
    }
}
