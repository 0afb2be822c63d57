//! Answers that their proxy has not taken. What is written to a stream waits in memory until its other side gives it room; one
//! that never does holds it, and keeps others out. So it is not waited for without end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, sleep_until};

use crate::gateway::desk::Place;

/// Those of one connection, by their number, so that the oldest is the first.
#[derive(Debug, Default)]
pub(super) struct Unsent(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    since: BTreeMap<u64, Instant>,
    next: u64,
}

impl Unsent {
    /// The same bytes. Their place, and their being waited for, end when nobody has them any more: when the last frame of them
    /// is written, or the stream is gone.
    pub(super) fn keep(self: &Arc<Self>, bytes: Bytes, place: Place) -> Bytes {
        let mut waiting = self.waiting();
        let number = waiting.next;
        waiting.next = number.wrapping_add(1);
        waiting.since.insert(number, Instant::now());
        drop(waiting);
        Bytes::from_owner(Kept { bytes, number, of: Arc::clone(self), _place: place })
    }

    /// Comes when an answer has waited for so long.
    pub(super) async fn overdue(&self, longest: Duration) {
        loop {
            let oldest = self.waiting().since.first_key_value().map(|(_, since)| *since);
            match oldest {
                Some(since) if since.elapsed() >= longest => return,
                Some(since) => sleep_until(since + longest).await,
                // Whatever comes meanwhile has waited for less, then.
                None => sleep(longest).await,
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Kept {
    bytes: Bytes,
    number: u64,
    of: Arc<Unsent>,
    _place: Place,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.of.waiting().since.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::desk::Room;

    #[tokio::test]
    async fn an_answer_waits_until_nobody_has_it() {
        let (unsent, room) = (Arc::new(Unsent::default()), Room::new(1000));
        let keep = || {
            let mut place = room.place();
            place.grow(500).unwrap();
            unsent.keep(Bytes::from_static(b"answer"), place)
        };
        let (first, second) = (keep(), keep());
        assert_eq!(first, "answer");
        unsent.overdue(Duration::from_millis(1)).await;
        let part = first.slice(..3);
        drop(first);
        assert!(room.place().grow(1).is_err(), "a part of it is still there");
        drop((part, second));
        assert!(unsent.waiting().since.is_empty());
        room.place().grow(900).unwrap();
    }
}
