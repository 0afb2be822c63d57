//! Exactly one answer for each request: who takes its ticket away answers it. Normally that is the executor; when it
//! is stuck past a deadline, the watchdog.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slab::Slab;

use super::outbound::Outbound;
use super::tally::{self, Times};
use crate::accounts::Meter;
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
    opened: Opened,
    /// A guest has been at it.
    started: bool,
    answers: Answers,
}

/// What there is to know of a request while it has no answer.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) id: u64,
    /// Of its first question; the others follow.
    pub(super) first: DecisionId,
    pub(super) received_ns: u64,
    pub(super) deadline_ns: u64,
    /// Of the policy that is asked.
    pub(super) digest: Digest,
    /// Whose it is.
    pub(super) meter: Arc<Meter>,
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
    /// For one request; `batch` is its number of questions if it is a batch.
    pub(super) fn open(&self, connection: &Arc<Outbound>, opened: Opened, batch: Option<usize>) -> TicketKey {
        let answers = match batch {
            None => Answers::One,
            Some(size) => Answers::Batch { decisions: vec![None; size], missing: size },
        };
        let mut open = self.lock();
        open.issued += 1;
        let serial = open.issued;
        let connection = Arc::clone(connection);
        let ticket = Ticket { serial, connection, opened, started: false, answers };
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
    /// somebody else was faster. `count` sees the decision if it is the one that the client is going to get.
    pub(super) fn answer(
        &self,
        key: TicketKey,
        index: usize,
        decision: Decision,
        count: impl FnOnce(&Decision),
    ) -> Option<Reply> {
        let mut open = self.lock();
        let ticket = open.slots.get_mut(key.slot).filter(|ticket| ticket.serial == key.serial)?;
        match &mut ticket.answers {
            Answers::One => {
                let Ticket { connection, opened, .. } = open.slots.remove(key.slot);
                drop(open);
                count(&decision);
                Some(Reply { connection, frame: ServerFrame::Decision { id: opened.id, decision } })
            }
            Answers::Batch { decisions, missing } => {
                if let Some(place @ None) = decisions.get_mut(index) {
                    count(place.insert(decision));
                    *missing -= 1;
                }
                if *missing > 0 { None } else { Some(open.slots.remove(key.slot).late().0) }
            }
        }
    }

    /// Takes away every ticket whose deadline was before `now_ns`, answered with what there is. The replies are handed to
    /// their connections before anybody can see that the tickets are gone: who finds one gone finds its reply there.
    /// What was missing is counted as refused at `told_ns`.
    pub(super) fn expire(&self, now_ns: u64, told_ns: u64) -> Vec<Arc<Outbound>> {
        let mut open = self.lock();
        let late: Vec<usize> = open
            .slots
            .iter()
            .filter(|(_, ticket)| ticket.opened.deadline_ns < now_ns)
            .map(|(slot, _)| slot)
            .collect();
        late.into_iter()
            .map(|slot| {
                let ticket = open.slots.remove(slot);
                let times = Times {
                    received_ns: ticket.opened.received_ns,
                    deadline_ns: ticket.opened.deadline_ns,
                    now_ns: told_ns,
                    realtime_ns: 0,
                };
                let (meter, refused) = (Arc::clone(&ticket.opened.meter), ticket.refused(0));
                let (Reply { connection, frame }, missing) = ticket.late();
                (0..missing).for_each(|_| tally::answered(&meter, &refused, &times));
                meter.sent(told_ns, connection.push(&frame));
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
    /// What is missing, at its deadline.
    fn refused(&self, index: usize) -> Decision {
        let stage = if self.started { Stage::Run } else { Stage::Queue };
        let digest = Some(self.opened.digest);
        let id = Some(self.opened.first.nth(index));
        Decision { digest, id, ..Decision::refused(Refusal::Deadline(stage)) }
    }

    /// The answer as it stands, and how many decisions of it are missing: those are refused.
    fn late(mut self) -> (Reply, usize) {
        let id = self.opened.id;
        let (frame, missing) = match std::mem::replace(&mut self.answers, Answers::One) {
            Answers::One => (ServerFrame::Decision { id, decision: self.refused(0) }, 1),
            Answers::Batch { decisions, missing } => {
                let decisions = decisions.into_iter().enumerate();
                let decisions = decisions.map(|(index, one)| one.unwrap_or_else(|| self.refused(index)));
                (ServerFrame::Decisions { id, decisions: decisions.collect() }, missing)
            }
        };
        (Reply { connection: self.connection, frame }, missing)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::worker::tally::samples;

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

    fn opened(id: u64, deadline_ns: u64) -> Opened {
        Opened { id, first: first(), received_ns: 0, deadline_ns, digest: policy(), meter: samples::meter() }
    }

    /// How many answers were counted.
    fn counted(meter: &Meter) -> u64 {
        meter.account().unwrap().outcomes.iter().map(|counter| counter.get()).sum()
    }

    fn decision() -> Decision {
        Decision::refused(Refusal::Overloaded)
    }

    #[test]
    fn a_ticket_is_answered_once() {
        let tickets = Tickets::default();
        let key = tickets.open(&connection(), opened(7, 100), None);
        assert!(tickets.answer(key, 0, decision(), |_| ()).is_some());
        assert!(tickets.answer(key, 0, decision(), |_| ()).is_none());
    }

    #[test]
    fn an_old_key_does_not_answer_the_slots_next_ticket() {
        let tickets = Tickets::default();
        let old = tickets.open(&connection(), opened(1, 100), None);
        assert_eq!(tickets.expire(101, 101).len(), 1);
        let new = tickets.open(&connection(), opened(2, 200), None);
        assert!(tickets.answer(old, 0, decision(), |_| ()).is_none());
        assert!(tickets.answer(new, 0, decision(), |_| ()).is_some());
    }

    #[test]
    fn a_batch_is_complete_when_all_are_in_or_time_is_up() {
        let tickets = Tickets::default();
        let key = tickets.open(&connection(), opened(1, 100), Some(2));
        assert!(tickets.answer(key, 1, decision(), |_| ()).is_none());
        assert!(
            tickets.answer(key, 1, decision(), |_| ()).is_none(),
            "the same answer again does not complete it"
        );
        let reply = tickets.answer(key, 0, decision(), |_| ()).unwrap();
        assert!(matches!(reply.frame, ServerFrame::Decisions { id: 1, decisions } if decisions.len() == 2));

        let key = tickets.open(&connection(), opened(2, 100), Some(3));
        tickets.started(key);
        assert!(tickets.answer(key, 2, decision(), |_| ()).is_none());
        assert!(tickets.expire(100, 100).is_empty(), "at the deadline it is not late yet");
        let (Reply { frame, .. }, missing) = tickets.lock().slots.remove(key.slot).late();
        assert_eq!(missing, 2);
        let ServerFrame::Decisions { decisions, .. } = frame else { panic!("{frame:?}") };
        let late = |index| Decision {
            digest: Some(policy()),
            id: Some(first().nth(index)),
            ..Decision::refused(Refusal::Deadline(Stage::Run))
        };
        assert_eq!(decisions[..], [late(0), late(1), decision()]);
    }

    #[test]
    fn every_decision_is_counted_once_by_whoever_gives_it() {
        let tickets = Tickets::default();
        let one = opened(1, 100);
        let meter = Arc::clone(&one.meter);
        let key = tickets.open(&connection(), one, Some(3));
        let count = |decision: &Decision| {
            tally::answered(
                &meter,
                decision,
                &Times { received_ns: 0, deadline_ns: 100, now_ns: 50, realtime_ns: 0 },
            )
        };
        assert!(tickets.answer(key, 1, decision(), count).is_none());
        assert_eq!(counted(&meter), 1);
        tickets.expire(101, 150);
        assert_eq!(counted(&meter), 3, "the watchdog gave two");
        assert!(tickets.answer(key, 0, decision(), count).is_none());
        assert_eq!(counted(&meter), 3, "too late is not counted");
        assert!(meter.account().unwrap().egress_bytes.get() > 0);
    }
}
