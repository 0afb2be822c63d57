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
    /// First come, first served.
    waiting: VecDeque<Waiting>,
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
            let waiting = &mut taken.of.entry(tenant.clone()).or_default().waiting;
            waiting.retain(Waiting::waits);
            waiting.push_back(one);
            given
        };
        given.await.map_err(|_| Closed)
    }

    /// Nobody gets one any more, and whoever waits hears of it.
    pub(super) fn close(&self) {
        let mut taken = self.taken();
        taken.closed = true;
        for of in taken.of.values_mut() {
            of.waiting.clear();
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
            self.of.get(tenant).map_or((0, false), |of| (of.places, of.waiting.iter().any(Waiting::waits)));
        if waits || !self.admits(has) {
            return false;
        }
        self.free -= 1;
        match self.of.get_mut(tenant) {
            Some(of) => of.places += 1,
            None => {
                self.of.insert(tenant.clone(), Of { places: 1, waiting: VecDeque::new() });
            }
        }
        true
    }

    fn give_back(&mut self, tenant: &Tenant) {
        let Some(of) = self.of.get_mut(tenant) else { return };
        self.free += 1;
        of.places = of.places.saturating_sub(1);
        if of.places == 0 && of.waiting.is_empty() {
            self.of.remove(tenant);
        }
    }

    /// Who gets what has become free.
    fn next(&mut self) -> Option<(Tenant, oneshot::Sender<Place>)> {
        if self.closed || self.free == 0 {
            return None;
        }
        let next = self.of.iter_mut().filter_map(|(tenant, of)| {
            of.waiting.retain(Waiting::waits);
            of.waiting.front().map(|first| (of.places, first.number, tenant))
        });
        let (places, _, tenant) = next.min()?;
        let tenant = tenant.clone();
        if !self.admits(places) {
            return None;
        }
        let of = self.of.get_mut(&tenant)?;
        let Waiting { give, .. } = of.waiting.pop_front()?;
        of.places += 1;
        self.free -= 1;
        Some((tenant, give))
    }
}

impl Waiting {
    fn waits(&self) -> bool {
        !self.give.is_closed()
    }
}

#[cfg(test)]
mod tests;
