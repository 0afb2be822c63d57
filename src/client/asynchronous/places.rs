//! The places of a connection: how many questions are under way on it, and whose.
//!
//! Where tenants share it, one may take another place as long as more are free than it has. So one that asks slow questions
//! keeps half of the places, two of them a third each, and however many there are, what is left is for those who have fewer:
//! the dynamic thresholds of shared buffers in switches (Choudhury and Hahne, 1998). What becomes free goes to whoever waits
//! and has the fewest, and among those to whoever has waited for longest.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::decision::Tenant;

/// A queue this long is looked through for those who have given up.
const QUEUE: usize = 64;

/// Of one connection. Clones are the same places.
#[derive(Debug, Clone)]
pub(super) struct Places(Arc<Mutex<Taken>>);

#[derive(Debug)]
struct Taken {
    free: usize,
    /// Whether tenants have to leave something to each other.
    shared: bool,
    /// Those who have or want any.
    of: HashMap<Tenant, Of>,
    /// Of those who had to wait: each has a number.
    arrived: u64,
    closed: bool,
}

#[derive(Debug, Default)]
struct Of {
    places: usize,
    queue: Queue,
}

/// Those of one tenant who wait: first come, first served.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// How long it may get before those are taken out of it who have given up.
    looks_at: usize,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    give: oneshot::Sender<Place>,
}

/// One of them, free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    of: Tenant,
    places: Places,
}

/// There will be no more places: the connection is over.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed;

impl Places {
    /// At least one.
    pub(super) fn new(count: usize, shared: bool) -> Self {
        let taken = Taken { free: count.max(1), shared, of: HashMap::new(), arrived: 0, closed: false };
        Self(Arc::new(Mutex::new(taken)))
    }

    /// Waits for one. Whoever gives up waiting leaves nothing behind.
    pub(super) async fn take(&self, tenant: &Tenant) -> Result<Place, Closed> {
        let given = {
            let mut taken = self.taken();
            if taken.closed {
                return Err(Closed);
            }
            if taken.try_take(tenant) {
                return Ok(self.place(tenant.clone()));
            }
            let (give, given) = oneshot::channel();
            taken.arrived = taken.arrived.wrapping_add(1);
            let one = Waiting { number: taken.arrived, give };
            taken.of.entry(tenant.clone()).or_default().queue.push(one);
            given
        };
        given.await.map_err(|_| Closed)
    }

    /// Nobody gets one any more, and whoever waits hears of it.
    pub(super) fn close(&self) {
        let mut taken = self.taken();
        taken.closed = true;
        for of in taken.of.values_mut() {
            of.queue.waiting.clear();
        }
    }

    fn place(&self, of: Tenant) -> Place {
        Place { of, places: self.clone() }
    }

    /// What is behind the lock is whole at every point where a panic could leave it.
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().give_back(&self.of);
        loop {
            // The lock is not held while somebody is given one: what nobody takes is dropped, and comes by here.
            let Some((of, give)) = self.places.taken().next() else { return };
            drop(give.send(self.places.place(of)));
        }
    }
}

impl Taken {
    fn admits(&self, places: usize) -> bool {
        if self.shared { places < self.free } else { self.free > 0 }
    }

    /// One, if it may have one, and none of its own waits before it.
    fn try_take(&mut self, tenant: &Tenant) -> bool {
        let (has, waits) =
            self.of.get_mut(tenant).map_or((0, false), |of| (of.places, of.queue.first().is_some()));
        if waits || !self.admits(has) {
            return false;
        }
        self.free -= 1;
        match self.of.get_mut(tenant) {
            Some(of) => of.places += 1,
            None => {
                self.of.insert(tenant.clone(), Of { places: 1, ..Of::default() });
            }
        }
        true
    }

    fn give_back(&mut self, tenant: &Tenant) {
        let Some(of) = self.of.get_mut(tenant) else { return };
        self.free += 1;
        of.places = of.places.saturating_sub(1);
        if of.places == 0 && of.queue.waiting.is_empty() {
            self.of.remove(tenant);
        }
    }

    /// Who gets what has become free.
    fn next(&mut self) -> Option<(Tenant, oneshot::Sender<Place>)> {
        if self.closed || self.free == 0 {
            return None;
        }
        // Whoever gave up may have been the last of its tenant to want anything: that one is forgotten.
        self.of.retain(|_, of| of.queue.first().is_some() || of.places > 0);
        let waiting = self.of.iter();
        let next = waiting.filter_map(|(tenant, of)| {
            of.queue.waiting.front().map(|first| (of.places, first.number, tenant))
        });
        let (places, _, tenant) = next.min()?;
        let tenant = tenant.clone();
        if !self.admits(places) {
            return None;
        }
        let of = self.of.get_mut(&tenant)?;
        let Waiting { give, .. } = of.queue.waiting.pop_front()?;
        of.places += 1;
        self.free -= 1;
        Some((tenant, give))
    }
}

impl Queue {
    /// The first that still waits; those before it are gone.
    fn first(&mut self) -> Option<&Waiting> {
        while self.waiting.pop_front_if(|first| !first.waits()).is_some() {}
        self.waiting.front()
    }

    /// Each is looked at a few times at most, however long the queue gets.
    fn push(&mut self, one: Waiting) {
        if self.waiting.len() >= self.looks_at {
            self.waiting.retain(Waiting::waits);
            self.looks_at = self.waiting.len().saturating_mul(2).max(QUEUE);
        }
        self.waiting.push_back(one);
    }
}

impl Waiting {
    fn waits(&self) -> bool {
        !self.give.is_closed()
    }
}

#[cfg(test)]
mod tests;
