//! Every connection there is: those being greeted, counted by UID, and those a worker owns, by the kernel's name.

use std::collections::HashMap;

use super::peer::Peer;
use super::routes::LinkId;
use crate::decision::{Quota, TrustClass};
use crate::wire::handover::Cookie;

/// A connection that has been greeted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) peer: Peer,
    pub(super) class: TrustClass,
    /// The worker that owns it; `None` while it waits for one.
    pub(super) link: Option<LinkId>,
}

/// The table, and the limits it keeps.
#[derive(Debug)]
pub(super) struct Table {
    entries: HashMap<Cookie, Entry>,
    /// Seats taken by each UID: being greeted, or in `entries`. No zeros.
    seats: HashMap<u32, u32>,
    /// Connections of each class in `entries`. No zeros.
    classes: HashMap<TrustClass, u32>,
    taken: u32,
    max: u32,
    max_per_uid: u32,
}

impl Table {
    pub(super) fn new(max: u32, max_per_uid: u32) -> Self {
        Self {
            entries: HashMap::new(),
            seats: HashMap::new(),
            classes: HashMap::new(),
            taken: 0,
            max,
            max_per_uid,
        }
    }

    /// New limits hold for new connections; nobody is put out.
    pub(super) fn set_limits(&mut self, max: u32, max_per_uid: u32) {
        self.max = max;
        self.max_per_uid = max_per_uid;
    }

    /// Connections that hold a seat.
    pub(super) fn open(&self) -> u32 {
        self.taken
    }

    /// Takes a seat for a connection that was just accepted.
    pub(super) fn seat(&mut self, uid: u32) -> Result<(), Quota> {
        let of_uid = self.seats.get(&uid).copied().unwrap_or(0);
        if self.taken >= self.max || of_uid >= self.max_per_uid {
            return Err(Quota::Connections);
        }
        self.taken += 1;
        self.seats.insert(uid, of_uid + 1);
        Ok(())
    }

    /// Gives back the seat of a connection that was not entered.
    pub(super) fn leave(&mut self, uid: u32) {
        self.taken = self.taken.saturating_sub(1);
        if let Some(seats) = self.seats.get_mut(&uid) {
            *seats = seats.saturating_sub(1);
            if *seats == 0 {
                self.seats.remove(&uid);
            }
        }
    }

    /// Greeted connections of a class, whoever owns them now.
    pub(super) fn of_class(&self, class: &TrustClass) -> u32 {
        self.classes.get(class).copied().unwrap_or(0)
    }

    /// Whether it has been greeted already, and has not ended since.
    pub(super) fn knows(&self, cookie: Cookie) -> bool {
        self.entries.contains_key(&cookie)
    }

    /// A seated connection has been greeted. Nobody comes here twice: see [`Self::knows`].
    pub(super) fn enter(&mut self, cookie: Cookie, entry: Entry) {
        // The kernel does not give a name twice, and who brings one twice is not heard; were it so, there would be one seat too
        // many.
        self.forget(cookie);
        *self.classes.entry(entry.class.clone()).or_default() += 1;
        self.entries.insert(cookie, entry);
    }

    /// The entry, if the worker behind `link` owns it.
    pub(super) fn owned_by(&self, link: LinkId, cookie: Cookie) -> Option<&Entry> {
        self.entries.get(&cookie).filter(|entry| entry.link == Some(link))
    }

    /// Changes who owns it.
    pub(super) fn assign(&mut self, cookie: Cookie, link: Option<LinkId>) {
        if let Some(entry) = self.entries.get_mut(&cookie) {
            entry.link = link;
        }
    }

    /// The connection is closed.
    pub(super) fn forget(&mut self, cookie: Cookie) {
        let Some(entry) = self.entries.remove(&cookie) else { return };
        self.leave(entry.peer.uid);
        if let Some(count) = self.classes.get_mut(&entry.class) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.classes.remove(&entry.class);
            }
        }
    }

    /// A worker is gone, and all it owned.
    pub(super) fn forget_all_of(&mut self, link: LinkId) -> usize {
        let gone: Vec<Cookie> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.link == Some(link))
            .map(|(cookie, _)| *cookie)
            .collect();
        for cookie in &gone {
            self.forget(*cookie);
        }
        gone.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(uid: u32, link: u64) -> Entry {
        Entry {
            peer: Peer { uid, gid: uid },
            class: TrustClass::new("gold").unwrap(),
            link: Some(LinkId(link)),
        }
    }

    #[test]
    fn seats_are_limited_in_all_and_by_uid_and_come_back() {
        let mut table = Table::new(3, 2);
        assert_eq!([table.seat(7), table.seat(7), table.seat(7)], [Ok(()), Ok(()), Err(Quota::Connections)]);
        assert_eq!([table.seat(8), table.seat(8)], [Ok(()), Err(Quota::Connections)]);
        table.leave(7);
        assert_eq!(table.seat(8), Ok(()));
        table.enter(Cookie(1), entry(8, 1));
        table.enter(Cookie(2), entry(8, 1));
        table.enter(Cookie(3), entry(7, 2));
        assert_eq!(table.of_class(&entry(7, 2).class), 3);
        assert_eq!(table.forget_all_of(LinkId(1)), 2);
        assert_eq!(table.open(), 1);
        table.forget(Cookie(3));
        table.forget(Cookie(3));
        assert_eq!(table.open(), 0);
        assert!(table.seats.is_empty(), "a UID that left costs nothing");
        assert!(table.classes.is_empty(), "nor does a class that nobody asks");
    }

    #[test]
    fn only_the_owner_owns() {
        let mut table = Table::new(9, 9);
        table.seat(7).unwrap();
        table.enter(Cookie(1), entry(7, 1));
        assert!(table.owned_by(LinkId(1), Cookie(1)).is_some(), "the control");
        assert!(table.owned_by(LinkId(2), Cookie(1)).is_none());
        table.assign(Cookie(1), Some(LinkId(2)));
        assert!(table.owned_by(LinkId(1), Cookie(1)).is_none());
    }
}
