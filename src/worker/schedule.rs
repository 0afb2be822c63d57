//! Who runs next: weighted fair queueing between tenants by the time their guests used. No clock and no I/O in here.
//!
//! Each tenant has a virtual time that grows by the time its guests ran, divided by its weight; the smallest runs
//! next. A tenant that wakes up starts at most [`CREDIT`] behind the others: enough that a short request does not wait
//! behind those who used the processor meanwhile, too little to take it from them for long.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Virtual nanoseconds (at weight 1) that a waking tenant may be behind.
const CREDIT: u64 = 3_000_000;
/// Virtual time is kept in fractions of a nanosecond, so that a heavy tenant's short slices still count.
const SCALE: u64 = 1_000;

/// Tenants as flows, tasks as numbers that only the caller understands.
#[derive(Debug)]
pub(super) struct Schedule {
    flows: Vec<Flow>,
    /// Every flow that has tasks waiting and is not running, once.
    waiting: BinaryHeap<Reverse<(u64, usize)>>,
    /// Virtual time of the flow that was picked last.
    now: u64,
    length: usize,
}

#[derive(Debug)]
struct Flow {
    weight: u64,
    virtual_time: u64,
    tasks: VecDeque<usize>,
    picked: bool,
}

/// What to run, and whose it is. Must be given back to [`Schedule::settle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pick {
    pub(super) flow: usize,
    pub(super) task: usize,
}

impl Schedule {
    /// One flow for each weight, in order; a weight of 0 counts as 1.
    pub(super) fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let flow = |weight: u32| Flow {
            weight: u64::from(weight.max(1)),
            virtual_time: 0,
            tasks: VecDeque::new(),
            picked: false,
        };
        Self { flows: weights.into_iter().map(flow).collect(), waiting: BinaryHeap::new(), now: 0, length: 0 }
    }

    /// Tasks that wait, in all.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Puts a task behind the others of its flow.
    pub(super) fn enqueue(&mut self, flow: usize, task: usize) {
        let Some(queue) = self.flows.get_mut(flow) else { return };
        queue.tasks.push_back(task);
        self.length += 1;
        if queue.tasks.len() == 1 && !queue.picked {
            queue.virtual_time = queue.virtual_time.max(self.now.saturating_sub(CREDIT * SCALE));
            self.waiting.push(Reverse((queue.virtual_time, flow)));
        }
    }

    /// The first task of the flow that has used least.
    pub(super) fn pick(&mut self) -> Option<Pick> {
        let Reverse((virtual_time, flow)) = self.waiting.pop()?;
        let queue = self.flows.get_mut(flow)?;
        let task = queue.tasks.pop_front()?;
        self.length -= 1;
        queue.picked = true;
        self.now = self.now.max(virtual_time);
        Some(Pick { flow, task })
    }

    /// Charges what a pick used; `again` puts its task back behind the others of its flow.
    pub(super) fn settle(&mut self, pick: Pick, used_ns: u64, again: bool) {
        let Some(queue) = self.flows.get_mut(pick.flow) else { return };
        queue.picked = false;
        queue.virtual_time = queue.virtual_time.saturating_add(used_ns.saturating_mul(SCALE) / queue.weight);
        if again {
            queue.tasks.push_back(pick.task);
            self.length += 1;
        }
        if !queue.tasks.is_empty() {
            self.waiting.push(Reverse((queue.virtual_time, pick.flow)));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs slices of 200 us, each task for ever, and returns how many slices each flow got.
    fn shares(weights: &[u32], slices: u32) -> Vec<u32> {
        let mut schedule = Schedule::new(weights.iter().copied());
        (0..weights.len()).for_each(|flow| schedule.enqueue(flow, flow));
        let mut got = vec![0; weights.len()];
        for _ in 0..slices {
            let pick = schedule.pick().unwrap();
            got[pick.flow] += 1;
            schedule.settle(pick, 200_000, true);
        }
        got
    }

    #[test]
    fn time_is_shared_by_weight() {
        assert_eq!(shares(&[1, 5], 6_000), [1_000, 5_000]);
        assert_eq!(shares(&[1, 1, 2], 4_000), [1_000, 1_000, 2_000]);
    }

    #[test]
    fn tasks_of_one_flow_take_turns() {
        let mut schedule = Schedule::new([1]);
        schedule.enqueue(0, 7);
        schedule.enqueue(0, 8);
        let mut order = vec![];
        for _ in 0..4 {
            let pick = schedule.pick().unwrap();
            order.push(pick.task);
            schedule.settle(pick, 1, true);
        }
        assert_eq!(order, [7, 8, 7, 8]);
    }

    #[test]
    fn a_waking_flow_runs_soon_and_not_for_long() {
        let mut schedule = Schedule::new([1, 1]);
        schedule.enqueue(0, 0);
        for _ in 0..1_000 {
            let pick = schedule.pick().unwrap();
            schedule.settle(pick, 200_000, true);
        }
        // It slept through 200 ms; its credit is 3 ms, 15 slices.
        schedule.enqueue(1, 1);
        let mut in_a_row = 0;
        loop {
            let pick = schedule.pick().unwrap();
            schedule.settle(pick, 200_000, true);
            if pick.flow == 0 {
                break;
            }
            in_a_row += 1;
        }
        assert!((1..=16).contains(&in_a_row), "{in_a_row}");
    }

    proptest! {
        /// Whatever happens, no task is lost, none runs twice for one enqueue, and picks end.
        #[test]
        fn every_task_comes_out_once(
            weights in prop::collection::vec(0_u32..10, 1..6),
            tasks in prop::collection::vec((0_usize..6, 0_u64..1_000_000), 0..200),
        ) {
            let mut schedule = Schedule::new(weights.iter().copied());
            let mut expected = vec![];
            for (number, (flow, _)) in tasks.iter().enumerate() {
                if *flow < weights.len() {
                    expected.push(number);
                }
                schedule.enqueue(*flow, number);
            }
            prop_assert_eq!(schedule.len(), expected.len());
            let mut seen = vec![];
            while let Some(pick) = schedule.pick() {
                seen.push(pick.task);
                schedule.settle(pick, tasks[pick.task].1, false);
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, expected);
            prop_assert_eq!(schedule.len(), 0);
        }
    }
}
