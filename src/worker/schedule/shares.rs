//! How much of the processor each tenant has had, in all executors of the worker together.

use std::sync::atomic::{AtomicU64, Ordering};

/// Virtual time is kept in fractions of a nanosecond, so that a heavy tenant's short slices still count.
pub(super) const SCALE: u64 = 64;

/// One for a worker: what one executor lets a tenant use counts in the others too, so that weights hold for the class.
#[derive(Debug)]
pub(in crate::worker) struct Shares {
    tenants: Box<[Share]>,
}

/// Alone in its cache line: executors write the shares of their own tenants without waiting for each other.
#[derive(Debug)]
#[repr(align(64))]
struct Share {
    weight: u64,
    /// Virtual time: only ever grows.
    served: AtomicU64,
}

impl Shares {
    /// One flow for each weight, in order; a weight of 0 counts as 1.
    pub(in crate::worker) fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let share = |weight: u32| Share { weight: u64::from(weight.max(1)), served: AtomicU64::new(0) };
        Self { tenants: weights.into_iter().map(share).collect() }
    }

    pub(super) fn len(&self) -> usize {
        self.tenants.len()
    }

    pub(super) fn weight(&self, flow: usize) -> u64 {
        self.tenants.get(flow).map_or(1, |share| share.weight)
    }

    /// Virtual time that a flow was served.
    pub(super) fn served(&self, flow: usize) -> u64 {
        self.tenants.get(flow).map_or(0, |share| share.served.load(Ordering::Relaxed))
    }

    /// A flow has used so many nanoseconds of a thread. Returns how much virtual time that is.
    pub(super) fn charge(&self, flow: usize, used_ns: u64) -> u64 {
        let Some(share) = self.tenants.get(flow) else { return 0 };
        let virtual_ns = used_ns.saturating_mul(SCALE) / share.weight;
        share.served.fetch_add(virtual_ns, Ordering::Relaxed);
        virtual_ns
    }
}
