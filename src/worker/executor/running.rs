//! What an executor has under way, counted.

use super::Capacity;
use crate::worker::schedule::Pick;

/// Instances that exist now, and tasks that wait for one to end.
#[derive(Debug, Default)]
pub(super) struct Running {
    pub(super) total: usize,
    pub(super) by_flow: Vec<usize>,
    /// Questions that wait or run, by flow.
    pub(super) asked: Vec<usize>,
    pub(super) parked: Vec<Pick>,
}

impl Running {
    pub(super) fn has_room(&self, flow: usize, capacity: &Capacity) -> bool {
        let of_flow = self.by_flow.get(flow).copied().unwrap_or(0);
        self.total < capacity.instances && of_flow < capacity.instances_per_tenant
    }

    pub(super) fn began(&mut self, flow: usize) {
        self.total += 1;
        if let Some(count) = self.by_flow.get_mut(flow) {
            *count += 1;
        }
    }

    pub(super) fn ended(&mut self, flow: usize) {
        self.total = self.total.saturating_sub(1);
        if let Some(count) = self.by_flow.get_mut(flow) {
            *count = count.saturating_sub(1);
        }
    }
}
