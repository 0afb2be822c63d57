//! A machine of several executors, simulated: shares, starvation and waiting, for few tenants and for ten thousand.

use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::*;

const ROOMY: Slots = Slots { instances: 100_000, of_one: 100_000 };
/// Nanoseconds.
const SLICE: u64 = 150_000;

/// Executors that run side by side: the one whose clock is least runs next.
struct Machine {
    executors: Vec<(u64, Schedule)>,
    used: Vec<u64>,
    rng: ChaCha20Rng,
}

impl Machine {
    fn new(weights: &[u32], executors: usize) -> Self {
        let shares = Arc::new(Shares::new(weights.iter().copied()));
        let one = |_| (0, Schedule::new(Arc::clone(&shares), ROOMY, []));
        Self {
            executors: (0..executors).map(one).collect(),
            used: vec![0; weights.len()],
            rng: ChaCha20Rng::from_seed([7; 32]),
        }
    }

    /// An endless guest of that flow, on that executor.
    fn spin(&mut self, executor: usize, flow: usize) {
        let task = self.used.len() * executor + flow;
        self.executors[executor].1.enqueue(flow, task, u64::MAX, u64::MAX).unwrap();
    }

    /// One slice, ended by the tick or somewhat before or after it. Returns whose it was.
    fn slice(&mut self) -> usize {
        let (clock, schedule) = self.executors.iter_mut().min_by_key(|(clock, _)| *clock).unwrap();
        let pick = schedule.pick().expect("somebody always wants to run");
        let used = SLICE / 2 + self.rng.next_u64() % SLICE;
        schedule.settle(pick, used, Next::Again);
        *clock += used;
        self.used[pick.seat.flow] += used;
        pick.seat.flow
    }

    /// The largest error of a share, relative to what it should be.
    fn error(&self, wanted: &[f64]) -> f64 {
        let total = self.used.iter().sum::<u64>() as f64;
        let of_all = wanted.iter().sum::<f64>();
        let error = |(used, wanted): (&u64, &f64)| (*used as f64 / total / (wanted / of_all) - 1.0).abs();
        self.used.iter().zip(wanted).map(error).fold(0.0, f64::max)
    }
}

fn wanted(weights: &[u32]) -> Vec<f64> {
    weights.iter().map(|weight| f64::from(*weight)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    /// Within 5 % for any weights, on one thread or several, as long as there is enough time to share.
    #[test]
    fn shares_are_as_the_weights(
        weights in prop::collection::vec(1_u32..100, 2..8),
        executors in 1_usize..4,
    ) {
        let mut machine = Machine::new(&weights, executors);
        for executor in 0..executors {
            (0..weights.len()).for_each(|flow| machine.spin(executor, flow));
        }
        let slices = weights.iter().sum::<u32>() / weights.iter().min().unwrap() * 60;
        (0..slices).for_each(|_| _ = machine.slice());
        let error = machine.error(&wanted(&weights));
        prop_assert!(error <= 0.05, "{error}: {:?}", machine.used);
    }

    /// One tenant is on all threads, the other on one only, beside it: both come out by weight, as far as one thread goes.
    #[test]
    fn who_is_on_one_thread_only_gets_its_share_there(heavy in 1_u32..4) {
        // At most half of two threads: more than one of them it cannot use.
        let mut machine = Machine::new(&[heavy, heavy * 3], 2);
        machine.spin(0, 0);
        machine.spin(0, 1);
        machine.spin(1, 1);
        (0..20_000).for_each(|_| _ = machine.slice());
        let error = machine.error(&[1.0, 3.0]);
        prop_assert!(error <= 0.05, "{error}: {:?}", machine.used);
    }
}

#[test]
fn equal_tenants_on_one_and_on_two_threads_come_out_equal() {
    let mut machine = Machine::new(&[1, 1], 2);
    machine.spin(0, 0);
    machine.spin(0, 1);
    machine.spin(1, 1);
    (0..20_000).for_each(|_| _ = machine.slice());
    let error = machine.error(&[1.0, 1.0]);
    assert!(error <= 0.05, "{error}: {:?}", machine.used);
}

#[test]
fn what_one_does_not_use_goes_to_the_rest_by_their_weights() {
    let mut machine = Machine::new(&[1, 5, 1000], 2);
    for executor in 0..2 {
        machine.spin(executor, 0);
        machine.spin(executor, 1);
    }
    (0..20_000).for_each(|_| _ = machine.slice());
    assert_eq!(machine.used[2], 0);
    machine.used.pop();
    let error = machine.error(&[1.0, 5.0]);
    assert!(error <= 0.05, "{error}: {:?}", machine.used);
}

/// It has a thread of its own, which nobody else wants, and one that others have too: there its turn comes all the same.
#[test]
fn who_has_more_than_its_share_elsewhere_is_put_off_and_not_for_ever() {
    let mut machine = Machine::new(&[1, 1], 2);
    machine.spin(0, 0);
    machine.spin(0, 1);
    machine.spin(1, 1);
    let (mut before, mut longest) = (0, 0);
    for _ in 0..20_000 {
        let clocks = machine.executors.iter().map(|(clock, _)| *clock).collect::<Vec<_>>();
        match (clocks[0] <= clocks[1], machine.slice()) {
            (true, 0) => before += SLICE,
            (true, _) => before = 0,
            (false, _) => {}
        }
        longest = longest.max(before);
    }
    assert!(longest <= 2 * (DEBT + ELSEWHERE), "{longest} ns");
}

/// Ten thousand tenants of different weights want all they can get: each gets its share, nobody waits for its first slice
/// longer than a round takes, and who wakes up among them is not forgotten.
#[test]
fn ten_thousand_tenants_share_two_threads() {
    const TENANTS: usize = 10_000;
    let weights: Vec<u32> = [1, 2, 3, 4, 5].into_iter().cycle().take(TENANTS).collect();
    let mut machine = Machine::new(&weights, 2);
    // The last one sleeps.
    for flow in 0..TENANTS - 1 {
        machine.spin(0, flow);
        machine.spin(1, flow);
    }
    let round = weights.iter().sum::<u32>() as usize;
    let mut served = vec![false; TENANTS];
    // Everybody once, on one thread or the other, whatever its weight.
    (0..2 * TENANTS).for_each(|_| served[machine.slice()] = true);
    assert!(served[..TENANTS - 1].iter().all(|served| *served), "never served");
    (0..round * 40).for_each(|_| _ = machine.slice());
    machine.spin(0, TENANTS - 1);
    let mut before = 0;
    while machine.slice() != TENANTS - 1 {
        before += 1;
    }
    assert!(before <= 4, "it wakes with credit: {before}");
    let (used, mut shares) = (std::mem::take(&mut machine.used), wanted(&weights));
    machine.used = used[..TENANTS - 1].to_vec();
    shares.pop();
    let error = machine.error(&shares);
    assert!(error <= 0.05, "{error}");
}

/// Ten thousand tenants ask now and then, one spins on every thread: whoever asks is served within some slices.
#[test]
fn ten_thousand_quiet_tenants_do_not_wait_behind_a_loud_one() {
    const TENANTS: usize = 10_000;
    const LOUD: usize = 0;
    let mut machine = Machine::new(&vec![1; TENANTS], 2);
    (0..2).for_each(|executor| machine.spin(executor, LOUD));
    let mut longest = 0;
    for round in 0..50_000_usize {
        // One asks at a time, each for the first time and again after all the others.
        let flow = 1 + round * 7919 % (TENANTS - 1);
        let executor = round % 2;
        let (_, schedule) = &mut machine.executors[executor];
        schedule.enqueue(flow, flow, u64::MAX, u64::MAX).unwrap();
        let mut before = 0;
        loop {
            let pick = schedule.pick().unwrap();
            if pick.seat.flow == flow {
                schedule.settle(pick, SLICE / 5, Next::Over);
                break;
            }
            before += 1;
            schedule.settle(pick, SLICE, Next::Again);
        }
        longest = longest.max(before);
    }
    assert!(longest <= 1, "{longest}");
}
