//! Which slots of the pool still have whose image: kept as the pool keeps it, since it does not say.
//!
//! wasmtime gives a policy the slot that it had last, if nobody took that meanwhile, and maps it anew only where it has
//! none; when all slots have been somebody's, the one that has been idle for longest is taken from its policy.

use std::collections::{HashMap, VecDeque};

/// The slots of one executor.
#[derive(Debug)]
pub(super) struct Warm {
    capacity: usize,
    /// Slots that have an instance.
    taken: usize,
    /// Slots that are idle with a policy's image, by policy: when each was left, the latest last.
    idle: HashMap<u32, VecDeque<u64>>,
    idle_slots: usize,
    /// The same for all policies, with some that have been taken since.
    order: VecDeque<(u64, u32)>,
    serial: u64,
}

impl Warm {
    pub(super) fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        Self { capacity, taken: 0, idle: HashMap::new(), idle_slots: 0, order: VecDeque::new(), serial: 0 }
    }

    /// An instance of that policy is about to be made. True: in a slot that has its image.
    pub(super) fn begin(&mut self, module: u32) -> bool {
        self.taken += 1;
        if self.idle.get_mut(&module).and_then(VecDeque::pop_back).is_some() {
            self.idle_slots -= 1;
            return true;
        }
        while self.idle_slots + self.taken > self.capacity && self.take_oldest() {}
        false
    }

    /// It is gone, and its slot is idle; or it was never made, and whatever slot it might have had is as it was.
    pub(super) fn end(&mut self, module: u32, has_image: bool) {
        self.taken = self.taken.saturating_sub(1);
        if !has_image {
            return;
        }
        self.serial += 1;
        self.idle.entry(module).or_default().push_back(self.serial);
        self.idle_slots += 1;
        self.order.push_back((self.serial, module));
        if self.order.len() > 4 * self.capacity {
            let idle = &self.idle;
            let there = |(serial, module): &(u64, u32)| {
                idle.get(module).is_some_and(|slots| slots.binary_search(serial).is_ok())
            };
            self.order.retain(there);
        }
    }

    /// Takes the slot that has been idle for longest from its policy. False if there is none.
    fn take_oldest(&mut self) -> bool {
        while let Some((serial, module)) = self.order.pop_front() {
            let Some(slots) = self.idle.get_mut(&module) else { continue };
            if slots.front() == Some(&serial) {
                slots.pop_front();
                if slots.is_empty() {
                    self.idle.remove(&module);
                }
                self.idle_slots -= 1;
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_finds_its_slot_until_others_needed_it() {
        let mut warm = Warm::new(2);
        assert!(!warm.begin(1));
        warm.end(1, true);
        assert!(warm.begin(1));
        assert!(!warm.begin(1), "two at once take two slots");
        warm.end(1, true);
        warm.end(1, true);
        assert!(!warm.begin(2), "there is no third");
        warm.end(2, true);
        assert!(warm.begin(1) && warm.begin(2), "one was left to each");
        warm.end(1, true);
        warm.end(2, true);
        assert!(!warm.begin(3), "taken from who left first");
        warm.end(3, true);
        assert!(warm.begin(2));
        assert!(!warm.begin(1));
    }

    #[test]
    fn what_was_never_made_leaves_no_image() {
        let mut warm = Warm::new(2);
        assert!(!warm.begin(1));
        warm.end(1, false);
        assert!(!warm.begin(1));
        warm.end(1, true);
        assert!(warm.begin(1));
    }

    /// As many policies as there are slots stay warm for ever, and one more than that never is, in turn.
    #[test]
    fn policies_in_turn_are_warm_as_long_as_there_are_slots() {
        for (policies, hits) in [(8, true), (9, false)] {
            let mut warm = Warm::new(8);
            for round in 0..1_000 {
                for module in 0..policies {
                    assert_eq!(warm.begin(module), hits && round > 0, "{policies}: {round} {module}");
                    warm.end(module, true);
                }
                assert!(warm.order.len() <= 4 * 8 && warm.idle.len() <= 8);
            }
        }
    }
}
