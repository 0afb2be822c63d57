//! Numbers that many threads of several processes add to.

use std::sync::atomic::{AtomicU64, Ordering};

/// Only ever grows, until it begins again at 0.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How much there is now.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Never below 0: somebody who gave back too much would otherwise be taken for the largest user there is.
    pub fn subtract(&self, less: u64) {
        // Always `Some`, so it always succeeds.
        let _ = self.0.try_update(Ordering::Relaxed, Ordering::Relaxed, |now| Some(now.saturating_sub(less)));
    }

    /// Adds if it is no more than `limit` afterwards; the check and the addition are one.
    pub fn add_within(&self, more: u64, limit: u64) -> bool {
        self.0
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                now.checked_add(more).filter(|after| *after <= limit)
            })
            .is_ok()
    }

    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_between_threads() {
        let gauge = Gauge::default();
        let taken = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..1000).filter(|_| gauge.add_within(1, 1500)).count()))
                .collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).sum::<usize>()
        });
        assert_eq!((taken, gauge.get()), (1500, 1500));
        assert!(!gauge.add_within(u64::MAX, u64::MAX), "it does not wrap");
        gauge.subtract(u64::MAX);
        assert_eq!(gauge.get(), 0);
    }
}
