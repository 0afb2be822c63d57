//! What one executor counts. One thread writes, the steward reads: no locks, no lost counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::decision::{Outcome, Refusal};
use crate::wire::operator::WorkerCounters;

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) connections: Counter,
    allowed: Counter,
    denied: Counter,
    deadline: Counter,
    trap: Counter,
    invalid_output: Counter,
    policy_failed: Counter,
    overloaded: Counter,
    other: Counter,
    /// Written by the watchdog's thread alone.
    pub(super) watchdog: Counter,
}

/// A number with one writer.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(super) fn count(&self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::Allow => &self.allowed,
            Outcome::Deny { .. } => &self.denied,
            Outcome::Refused(refusal) => match refusal {
                Refusal::Deadline(_) => &self.deadline,
                Refusal::Trap(_) => &self.trap,
                Refusal::InvalidOutput(_) => &self.invalid_output,
                Refusal::PolicyFailed { .. } => &self.policy_failed,
                Refusal::Overloaded | Refusal::Quota { .. } => &self.overloaded,
                Refusal::UnknownPolicy
                | Refusal::UnknownTenant
                | Refusal::NotPermitted
                | Refusal::Unavailable
                | Refusal::BadRequest(_)
                | Refusal::Cancelled
                | Refusal::Revoked => &self.other,
            },
        };
        counter.add(1);
    }

    /// Adds this executor's to `total`.
    pub(super) fn add_to(&self, total: &mut WorkerCounters) {
        total.connections += self.connections.get();
        total.allowed += self.allowed.get();
        total.denied += self.denied.get();
        total.refused_deadline += self.deadline.get();
        total.refused_trap += self.trap.get();
        total.refused_invalid_output += self.invalid_output.get();
        total.refused_policy_failed += self.policy_failed.get();
        total.refused_overloaded += self.overloaded.get();
        total.refused_other += self.other.get();
        total.watchdog += self.watchdog.get();
        // What the watchdog answered passed its deadline too.
        total.refused_deadline += self.watchdog.get();
    }
}
