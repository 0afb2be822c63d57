//! How many bytes of questions and answers are held at once: by the process, and by a part of it.
//!
//! Somebody who announces a large body, or does not take an answer, has us hold it. Each may for a while, all of them
//! together only as much as there is room for; then the gate stays down for whoever comes with more. What is small is let
//! in longer than what is large.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::gateway::verdict::{Code, Down};

/// Not more than this is small, bytes.
pub(in crate::gateway) const SMALL: usize = 64 << 10;
/// One part of so many of a room is for what is small.
const PARTS: usize = 16;

/// So many bytes. A place in a room that lies within another takes as much of both.
#[derive(Debug)]
pub(in crate::gateway) struct Room {
    free: AtomicUsize,
    for_small: usize,
    around: Option<Arc<Room>>,
}

/// There is no room for it now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("questions and answers under way take too much memory together; ask again, or with a smaller body")]
pub(in crate::gateway) struct Full;

impl From<Full> for Down {
    fn from(full: Full) -> Self {
        Self::new(Code::Overloaded, full.to_string())
    }
}

impl Room {
    pub(in crate::gateway) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { free: AtomicUsize::new(bytes), for_small: bytes / PARTS, around: None })
    }

    /// A part of this one.
    pub(in crate::gateway) fn part(self: &Arc<Self>, bytes: usize) -> Arc<Self> {
        let around = Some(Arc::clone(self));
        Arc::new(Self { free: AtomicUsize::new(bytes), for_small: bytes / PARTS, around })
    }

    /// A place without a byte, which can grow.
    pub(in crate::gateway) fn place(self: &Arc<Self>) -> Place {
        Place { of: Arc::clone(self), bytes: 0 }
    }

    fn take(&self, more: usize, large: bool) -> Result<(), Full> {
        let stays = if large { self.for_small } else { 0 };
        let less = |free: usize| free.checked_sub(more).filter(|left| *left >= stays);
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).map_err(|_| Full)?;
        let taken = self.around.as_ref().map_or(Ok(()), |around| around.take(more, large));
        if taken.is_err() {
            self.free.fetch_add(more, Ordering::Relaxed);
        }
        taken
    }

    fn give_back(&self, bytes: usize) {
        self.free.fetch_add(bytes, Ordering::Relaxed);
        if let Some(around) = &self.around {
            around.give_back(bytes);
        }
    }
}

/// Bytes that are held. Dropping it gives them back.
#[derive(Debug)]
pub(in crate::gateway) struct Place {
    of: Arc<Room>,
    bytes: usize,
}

impl Place {
    /// Makes it one of at least `bytes`. Where there is no room, it stays as it is.
    pub(in crate::gateway) fn grow(&mut self, bytes: usize) -> Result<(), Full> {
        if let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) {
            self.of.take(more, bytes > SMALL)?;
            self.bytes = bytes;
        }
        Ok(())
    }

    /// The same where what is small costs nothing: there are never more of these than connections.
    pub(in crate::gateway) fn grow_if_large(&mut self, bytes: usize) -> Result<(), Full> {
        if bytes > SMALL { self.grow(bytes) } else { Ok(()) }
    }

    /// Gives everything back.
    pub(in crate::gateway) fn leave(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes > 0 {
            self.of.give_back(bytes);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = SMALL + 1;

    fn taken(room: &Arc<Room>, bytes: usize) -> Result<Place, Full> {
        let mut place = room.place();
        place.grow(bytes).map(|()| place)
    }

    #[test]
    fn room_comes_back() {
        let room = Room::new(2 * SMALL);
        let most = taken(&room, 2 * SMALL - 10).unwrap_err();
        assert_eq!(most, Full, "a large one leaves room for small ones");
        let first = taken(&room, SMALL).unwrap();
        let mut second = taken(&room, SMALL).unwrap();
        assert!(taken(&room, 1).is_err());
        drop(first);
        second.grow(SMALL).unwrap();
        assert!(second.grow(2 * SMALL).is_err(), "it is a large one then");
        assert!(taken(&room, SMALL).is_ok(), "what did not grow took nothing");
        second.leave();
        drop(second);
        assert_eq!(room.free.load(Ordering::Relaxed), 2 * SMALL);
    }

    #[test]
    fn small_ones_get_in_when_large_ones_do_not() {
        let room = Room::new(PARTS * LARGE);
        let mut large: Vec<Place> = Vec::new();
        while let Ok(place) = taken(&room, LARGE) {
            large.push(place);
        }
        assert_eq!(large.len(), PARTS - 1);
        let small = taken(&room, SMALL).unwrap();
        large.pop();
        assert!(taken(&room, LARGE).is_err(), "one more would leave too little");
        drop(small);
        assert!(taken(&room, LARGE).is_ok());
    }

    #[test]
    fn a_part_has_no_more_than_what_is_around_it() {
        let all = Room::new(100);
        let (one, other) = (all.part(80), all.part(80));
        let place = taken(&one, 70).unwrap();
        assert!(taken(&one, 20).is_err(), "the part is full");
        assert!(taken(&other, 40).is_err(), "the whole is full");
        let rest = taken(&other, 30).unwrap();
        drop((place, rest));
        assert_eq!(all.free.load(Ordering::Relaxed), 100);
        assert_eq!(other.free.load(Ordering::Relaxed), 80, "what the whole did not have was given back");
    }

    #[test]
    fn what_is_small_costs_nothing_where_it_need_not() {
        let room = Room::new(0);
        let mut place = room.place();
        place.grow_if_large(SMALL).unwrap();
        assert!(place.grow_if_large(LARGE).is_err());
    }
}
