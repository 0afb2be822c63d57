//! Who runs next: start-time fair queueing between tenants by the time their guests used, earliest deadline first
//! within a tenant. No clock and no I/O in here.
//!
//! Each tenant has a virtual time that grows by the time its guests ran, in whichever executor, divided by its weight;
//! the smallest runs next. Where a tenant wakes up in an executor it starts at most [`CREDIT`] behind those it finds
//! there: enough that a short request does not wait behind those who used the processor meanwhile, too little to take it
//! from them for long. What it has had elsewhere is held against it up to [`DEBT`] when it wakes, and up to [`ELSEWHERE`] from
//! one turn to the next: else who is alone on one thread would starve on another. So each executor has a *now* of its own,
//! and knows of each tenant where it stands here.
//!
//! A task that has used more than [`LONG`] takes turns with the rest of its flow: one that does not end would otherwise hold
//! up all that its tenant asks after it until its deadline.
//!
//! Everything in here is exact: a task is in its queue, or picked, or not here. Nothing is parked and woken: a flow without
//! room for an instance is looked at whenever there is room.

mod room;
mod shares;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use room::Room;
pub(super) use room::Slots;
use shares::SCALE;
pub(super) use shares::Shares;

/// Virtual nanoseconds (at weight 1) that a waking tenant may be behind.
const CREDIT: u64 = 3_000_000;
/// Virtual nanoseconds that a waking tenant may be ahead.
const DEBT: u64 = 3_000_000;
/// Virtual nanoseconds that a tenant's turn is put off by what it has elsewhere meanwhile, at most.
const ELSEWHERE: u64 = 10_000_000;
/// Nanoseconds that a task may use before the others of its flow get every other turn, whatever their deadlines.
const LONG: u64 = 1_000_000;
/// Fineness of queue lengths relative to weights.
const LENGTHS: u64 = 1 << 20;

/// Tenants as flows, tasks as numbers that only the caller understands.
#[derive(Debug)]
pub(super) struct Schedule {
    shares: Arc<Shares>,
    flows: Vec<Flow>,
    room: Room,
    /// Every flow with tasks, unless it is picked or stalled, once, by its virtual time when it was put there.
    ready: BTreeSet<(u64, usize)>,
    /// The same for flows whose tasks have not begun, while no slot was free that they may take.
    stalled: BTreeSet<(u64, usize)>,
    /// Every task but a picked one, by when somebody has to look at it.
    due: BTreeSet<(u64, usize)>,
    /// Flows with two waiting tasks or more, by how many there are, relative to the flow's weight.
    long: BTreeSet<(u64, usize)>,
    /// Virtual time of the flow that was picked last, the largest yet.
    now: u64,
    serial: u64,
}

#[derive(Debug, Default)]
struct Flow {
    /// Not begun: no instance.
    waiting: BTreeMap<Order, Queued>,
    /// Begun, and put back at the end of a slice.
    begun: BTreeMap<Order, Queued>,
    /// Begun, and long.
    long: BTreeMap<Order, Queued>,
    /// The turn before was a long one's.
    was_long: bool,
    /// Virtual time here when the flow had been served `seen`.
    base: u64,
    seen: u64,
    /// Where what was done for it in this executor has brought it. That is never forgiven.
    finish: u64,
    picked: bool,
    /// Its place in `ready` or `stalled`.
    place: Option<(Place, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Ready,
    Stalled,
}

/// Deadline, then arrival.
type Order = (u64, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Queued {
    task: usize,
    due_ns: u64,
    used_ns: u64,
}

/// A task's ticket to the schedule. One for each; lost when the task is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) flow: usize,
    order: Order,
}

/// What to run, and whose it is. Must be given back to [`Schedule::settle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pick {
    pub(super) seat: Seat,
    pub(super) task: usize,
    used_ns: u64,
}

/// What becomes of a pick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It has an instance, and more to do.
    Again,
    /// It is done with, however it ended.
    Over,
}

impl Flow {
    /// Nothing of it is here, but for what may be picked.
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.begun.is_empty() && self.long.is_empty()
    }
}

impl Schedule {
    /// For one executor: `reserved` slots by flow, in the order of `shares`.
    pub(super) fn new(shares: Arc<Shares>, slots: Slots, reserved: impl IntoIterator<Item = usize>) -> Self {
        let count = shares.len();
        let reserved = reserved.into_iter().chain(std::iter::repeat(0)).take(count);
        Self {
            room: Room::new(slots, reserved),
            flows: std::iter::repeat_with(Flow::default).take(count).collect(),
            shares,
            ready: BTreeSet::new(),
            stalled: BTreeSet::new(),
            due: BTreeSet::new(),
            long: BTreeSet::new(),
            now: 0,
            serial: 0,
        }
    }

    /// Tasks in it: waiting, and begun. A picked one is not.
    pub(super) fn len(&self) -> usize {
        self.due.len()
    }

    /// Instances that were begun and have not ended.
    pub(super) fn instances(&self) -> usize {
        self.room.instances()
    }

    /// Takes in a task that has not begun. It is [`Schedule::overdue`] from `due_ns` on: its deadline, or before that when
    /// it is to wait no longer.
    pub(super) fn enqueue(
        &mut self,
        flow: usize,
        task: usize,
        deadline_ns: u64,
        due_ns: u64,
    ) -> Option<Seat> {
        self.serial += 1;
        let seat = Seat { flow, order: (deadline_ns, self.serial) };
        self.flows.get(flow)?;
        self.wake(flow);
        self.put_waiting(seat, Queued { task, due_ns: due_ns.min(deadline_ns), used_ns: 0 });
        self.place(flow);
        Some(seat)
    }

    /// The most urgent task of the flow that has had least, of those that can go on. There is one whenever there are tasks.
    pub(super) fn pick(&mut self) -> Option<Pick> {
        let mut without_room = Vec::new();
        let picked = loop {
            let Some((key, flow)) = self.first() else { break None };
            self.unplace(flow);
            let virtual_time = self.virtual_time(flow);
            if virtual_time > key && self.first().is_some_and(|other| other < (virtual_time, flow)) {
                // It has been served elsewhere since: others are first.
                self.place_at(flow, Place::Ready, virtual_time);
                continue;
            }
            match self.most_urgent(flow) {
                Some(order) => break Some((Seat { flow, order }, virtual_time)),
                None => without_room.push((flow, virtual_time)),
            }
        };
        for (flow, virtual_time) in without_room {
            self.place_at(flow, Place::Stalled, virtual_time);
        }
        let (seat, virtual_time) = picked?;
        let queued = self.take(seat)?;
        self.now = self.now.max(virtual_time);
        let served = self.shares.served(seat.flow);
        let of = self.flows.get_mut(seat.flow)?;
        of.picked = true;
        (of.base, of.seen, of.finish) = (virtual_time, served, virtual_time);
        of.was_long = queued.used_ns > LONG;
        Some(Pick { seat, task: queued.task, used_ns: queued.used_ns })
    }

    /// Whose turn it is, should it have a task that can go on.
    fn first(&self) -> Option<(u64, usize)> {
        let stalled = if self.room.has_common() { self.stalled.first() } else { None };
        self.ready.first().into_iter().chain(stalled).min().copied()
    }

    fn most_urgent(&self, flow: usize) -> Option<Order> {
        let of = self.flows.get(flow)?;
        let begun = of.begun.first_key_value();
        let waiting = of.waiting.first_key_value().filter(|_| self.room.has_for(flow));
        let short = begun.into_iter().chain(waiting).map(|(order, _)| *order).min();
        let long = of.long.first_key_value().map(|(order, _)| *order);
        if of.was_long { short.or(long) } else { long.or(short) }
    }

    /// A picked task has an instance from now on, until [`Schedule::ended`].
    pub(super) fn began(&mut self, flow: usize) {
        self.room.began(flow);
    }

    pub(super) fn ended(&mut self, flow: usize) {
        self.room.ended(flow);
        if self.flows.get(flow).is_some_and(|of| matches!(of.place, Some((Place::Stalled, _)))) {
            self.unplace(flow);
            self.place(flow);
        }
    }

    /// Charges what a pick used, and puts it back among the others of its flow if it has more to do.
    pub(super) fn settle(&mut self, pick: Pick, used_ns: u64, next: Next) {
        let Seat { flow, order } = pick.seat;
        self.charge(flow, used_ns);
        let Some(of) = self.flows.get_mut(flow) else { return };
        of.picked = false;
        if next == Next::Again {
            let (due_ns, used_ns) = (order.0, pick.used_ns.saturating_add(used_ns));
            let queue = if used_ns > LONG { &mut of.long } else { &mut of.begun };
            queue.insert(order, Queued { task: pick.task, due_ns, used_ns });
            self.due.insert((due_ns, pick.task));
        }
        self.place(flow);
    }

    /// What was done for a flow, in its slices or outside of them.
    pub(super) fn charge(&mut self, flow: usize, used_ns: u64) {
        let virtual_ns = self.shares.charge(flow, used_ns);
        if let Some(of) = self.flows.get_mut(flow) {
            of.base = of.base.saturating_add(virtual_ns);
            of.seen = of.seen.saturating_add(virtual_ns);
            let start = if of.picked { of.finish } else { of.finish.max(self.now) };
            of.finish = start.saturating_add(virtual_ns);
        }
    }

    /// Takes a task out, wherever it is; does nothing to one that is picked.
    pub(super) fn remove(&mut self, seat: Seat) {
        self.take(seat);
        if self.flows.get(seat.flow).is_some_and(Flow::is_empty) {
            self.unplace(seat.flow);
        }
    }

    /// A task that somebody has to look at by now. It stays where it is.
    pub(super) fn overdue(&self, now_ns: u64) -> Option<usize> {
        self.due.first().filter(|(due_ns, _)| *due_ns <= now_ns).map(|(_, task)| *task)
    }

    /// Makes room for `count` more of `flow` by taking out `needed` that wait: from whose queue is longest, relative to its
    /// weight, the ones that have most time left, as long as that queue is longer than this flow's will be. Never what has
    /// begun, and nobody's only one. `None`, and nothing is taken, if there are not that many.
    pub(super) fn displace(&mut self, flow: usize, count: usize, needed: usize) -> Option<Vec<usize>> {
        let own = self.flows.get(flow)?.waiting.len();
        let newcomer = self.relative(flow, own.saturating_add(count));
        let mut displaced = Vec::new();
        while displaced.len() < needed {
            let longest = self.long.last().copied().filter(|(length, _)| *length > newcomer);
            let last = longest.and_then(|(_, other)| {
                let order = *self.flows.get(other)?.waiting.last_key_value()?.0;
                let seat = Seat { flow: other, order };
                self.take(seat).map(|queued| (seat, queued))
            });
            match last {
                Some(one) => displaced.push(one),
                None => {
                    displaced.into_iter().for_each(|(seat, queued)| self.put_waiting(seat, queued));
                    return None;
                }
            }
        }
        Some(displaced.into_iter().map(|(_, queued)| queued.task).collect())
    }

    /// Where a flow stands in this executor.
    fn virtual_time(&self, flow: usize) -> u64 {
        let served = self.shares.served(flow);
        self.flows
            .get(flow)
            .map_or(0, |of| of.base.saturating_add(served.saturating_sub(of.seen).min(ELSEWHERE * SCALE)))
    }

    /// A flow that has nothing here is about to: it starts near the others.
    fn wake(&mut self, flow: usize) {
        let (served, virtual_time) = (self.shares.served(flow), self.virtual_time(flow));
        let (least, most) = (self.now.saturating_sub(CREDIT * SCALE), self.now.saturating_add(DEBT * SCALE));
        if let Some(of) = self.flows.get_mut(flow)
            && !of.picked
            && of.is_empty()
        {
            (of.base, of.seen) = (virtual_time.clamp(least, most.max(of.finish)), served);
        }
    }

    /// A queue's length, relative to its flow's weight.
    fn relative(&self, flow: usize, length: usize) -> u64 {
        (length as u64).saturating_mul(LENGTHS) / self.shares.weight(flow)
    }

    fn put_waiting(&mut self, seat: Seat, queued: Queued) {
        let Some(of) = self.flows.get_mut(seat.flow) else { return };
        let before = of.waiting.len();
        of.waiting.insert(seat.order, queued);
        self.due.insert((queued.due_ns, queued.task));
        self.measure(seat.flow, before, before + 1);
    }

    /// Takes a task out of its queue, and leaves the flow where it is.
    fn take(&mut self, seat: Seat) -> Option<Queued> {
        let of = self.flows.get_mut(seat.flow)?;
        let before = of.waiting.len();
        let queued = match of.waiting.remove(&seat.order) {
            Some(queued) => {
                self.measure(seat.flow, before, before - 1);
                queued
            }
            None => of.begun.remove(&seat.order).or_else(|| of.long.remove(&seat.order))?,
        };
        self.due.remove(&(queued.due_ns, queued.task));
        Some(queued)
    }

    /// Keeps `long` in order while a flow's queue changes its length.
    fn measure(&mut self, flow: usize, before: usize, after: usize) {
        if before >= 2 {
            self.long.remove(&(self.relative(flow, before), flow));
        }
        if after >= 2 {
            self.long.insert((self.relative(flow, after), flow));
        }
    }

    /// Sees to it that a flow with tasks is where it will be picked from.
    fn place(&mut self, flow: usize) {
        let Some(of) = self.flows.get(flow).filter(|of| !of.picked) else { return };
        let nothing = of.is_empty();
        match of.place {
            // What stalls it is that it has no instance, and a task that arrives has none either.
            Some(_) => {}
            None if nothing => {}
            None => self.place_at(flow, Place::Ready, self.virtual_time(flow)),
        }
    }

    fn place_at(&mut self, flow: usize, place: Place, virtual_time: u64) {
        if let Some(of) = self.flows.get_mut(flow) {
            of.place = Some((place, virtual_time));
            match place {
                Place::Ready => self.ready.insert((virtual_time, flow)),
                Place::Stalled => self.stalled.insert((virtual_time, flow)),
            };
        }
    }

    fn unplace(&mut self, flow: usize) {
        match self.flows.get_mut(flow).and_then(|of| of.place.take()) {
            Some((Place::Ready, key)) => self.ready.remove(&(key, flow)),
            Some((Place::Stalled, key)) => self.stalled.remove(&(key, flow)),
            None => false,
        };
    }
}
