use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const ROOMY: Slots = Slots { instances: 1_000, of_one: 1_000 };
const NEVER: u64 = u64::MAX;
/// Nanoseconds.
const SLICE: u64 = 150_000;

fn schedule(weights: &[u32]) -> Schedule {
    Schedule::new(Arc::new(Shares::new(weights.iter().copied())), ROOMY, [])
}

/// Waits for its turn for ever.
fn put(schedule: &mut Schedule, flow: usize, task: usize) -> Seat {
    schedule.enqueue(flow, task, NEVER, NEVER).unwrap()
}

/// Runs slices, each task for ever, and returns how many slices each flow got.
fn shares(weights: &[u32], slices: u32) -> Vec<u32> {
    let mut schedule = schedule(weights);
    (0..weights.len()).for_each(|flow| _ = put(&mut schedule, flow, flow));
    let mut got = vec![0; weights.len()];
    for _ in 0..slices {
        let pick = schedule.pick().unwrap();
        got[pick.seat.flow] += 1;
        schedule.settle(pick, SLICE, Next::Again);
    }
    got
}

#[test]
fn time_is_shared_by_weight() {
    assert_eq!(shares(&[1, 5], 6_000), [1_000, 5_000]);
    assert_eq!(shares(&[1, 1, 2], 4_000), [1_000, 1_000, 2_000]);
}

#[test]
fn within_a_tenant_the_earliest_deadline_runs_first_and_ties_run_in_order() {
    let mut schedule = schedule(&[1]);
    for (task, deadline) in [(0, 900), (1, 300), (2, 300), (3, 100)] {
        schedule.enqueue(0, task, deadline, deadline).unwrap();
    }
    let pick = schedule.pick().unwrap();
    assert_eq!(pick.task, 3);
    // One that is more urgent arrives while it runs; what runs goes back by its deadline.
    schedule.enqueue(0, 4, 50, 50).unwrap();
    schedule.settle(pick, SLICE, Next::Again);
    let mut order = vec![];
    while let Some(pick) = schedule.pick() {
        order.push(pick.task);
        schedule.settle(pick, SLICE, Next::Over);
    }
    assert_eq!(order, [4, 3, 1, 2, 0]);
}

/// Two loops came first, and their deadlines are first: what their tenant asks after them has every other turn.
#[test]
fn a_task_that_does_not_end_does_not_hold_up_its_tenant() {
    let mut schedule = schedule(&[1]);
    for task in [0, 1] {
        schedule.enqueue(0, task, 1_000 + task as u64, NEVER).unwrap();
    }
    for _ in 0..40 {
        let pick = schedule.pick().unwrap();
        schedule.settle(pick, SLICE, Next::Again);
    }
    (2..5).for_each(|task| _ = schedule.enqueue(0, task, 10_000, NEVER).unwrap());
    let mut order = vec![];
    for _ in 0..7 {
        let pick = schedule.pick().unwrap();
        order.push(pick.task);
        schedule.settle(pick, SLICE, if pick.task < 2 { Next::Again } else { Next::Over });
    }
    let short: Vec<_> = order.iter().copied().filter(|task| *task >= 2).collect();
    assert_eq!(short, [2, 3, 4], "{order:?}");
    assert!(order.windows(2).all(|two| two.iter().any(|task| *task >= 2) || two == [0, 0]), "{order:?}");
}

#[test]
fn a_waking_flow_runs_soon_and_not_for_long() {
    let mut schedule = schedule(&[1, 1]);
    put(&mut schedule, 0, 0);
    for _ in 0..1_000 {
        let pick = schedule.pick().unwrap();
        schedule.settle(pick, 200_000, Next::Again);
    }
    // It slept through 200 ms; its credit is 3 ms, 15 slices.
    put(&mut schedule, 1, 1);
    let mut in_a_row = 0;
    loop {
        let pick = schedule.pick().unwrap();
        schedule.settle(pick, 200_000, Next::Again);
        if pick.seat.flow == 0 {
            break;
        }
        in_a_row += 1;
    }
    assert!((1..=16).contains(&in_a_row), "{in_a_row}");
}

/// Who sleeps and wakes gains nothing on who is always there, whatever it does in between.
#[test]
fn sleeping_again_and_again_earns_no_more_than_the_credit() {
    let mut schedule = schedule(&[1, 1]);
    put(&mut schedule, 0, 0);
    put(&mut schedule, 1, 1);
    let mut got = [0_u64; 2];
    for _ in 0..10_000 {
        let pick = schedule.pick().unwrap();
        got[pick.seat.flow] += 1;
        if pick.seat.flow == 1 {
            schedule.settle(pick, SLICE, Next::Over);
            put(&mut schedule, 1, 1);
        } else {
            schedule.settle(pick, SLICE, Next::Again);
        }
    }
    assert!(got[0].abs_diff(got[1]) <= 1 + CREDIT / SLICE, "{got:?}");
}

/// A step that could not be interrupted is paid for, also by who comes and goes.
#[test]
fn what_a_flow_used_here_is_never_forgiven() {
    let mut schedule = schedule(&[1, 1]);
    put(&mut schedule, 0, 0);
    put(&mut schedule, 1, 1);
    let mut used = [0_u64; 2];
    for _ in 0..10_000 {
        let pick = schedule.pick().unwrap();
        if pick.seat.flow == 1 {
            used[1] += 40 * DEBT;
            schedule.settle(pick, 40 * DEBT, Next::Over);
            put(&mut schedule, 1, 1);
        } else {
            used[0] += SLICE;
            schedule.settle(pick, SLICE, Next::Again);
        }
    }
    assert!(used[1] <= used[0] + 41 * DEBT, "{used:?}");
}

#[test]
fn who_had_another_thread_to_itself_does_not_starve_on_this_one() {
    let shares = Arc::new(Shares::new([1, 1]));
    let [mut here, mut there] = [(); 2].map(|()| Schedule::new(Arc::clone(&shares), ROOMY, []));
    put(&mut here, 0, 0);
    put(&mut there, 1, 1);
    for _ in 0..10_000 {
        for one in [&mut here, &mut there] {
            let pick = one.pick().unwrap();
            // The first had less of a busy thread than the second of an idle one.
            one.settle(pick, if pick.seat.flow == 0 { SLICE / 10 } else { SLICE }, Next::Again);
        }
    }
    put(&mut here, 1, 2);
    let mut before = 0;
    loop {
        let pick = here.pick().unwrap();
        here.settle(pick, SLICE, Next::Again);
        if pick.seat.flow == 1 {
            break;
        }
        before += 1;
    }
    assert!(before <= 1 + DEBT / SLICE, "{before}");
}

#[test]
fn without_a_slot_what_has_begun_goes_on_and_the_rest_waits_in_order() {
    let slots = Slots { instances: 1, of_one: 1 };
    let mut schedule = Schedule::new(Arc::new(Shares::new([1, 1, 1])), slots, []);
    (0..3).for_each(|flow| _ = put(&mut schedule, flow, flow));
    let first = schedule.pick().unwrap();
    assert_eq!(first.task, 0);
    schedule.began(0);
    schedule.settle(first, SLICE, Next::Again);
    for _ in 0..10 {
        let pick = schedule.pick().unwrap();
        assert_eq!(pick.task, 0, "the others have no slot");
        schedule.settle(pick, SLICE, Next::Again);
    }
    assert_eq!((schedule.len(), schedule.instances()), (3, 1));
    let last = schedule.pick().unwrap();
    schedule.ended(0);
    schedule.settle(last, SLICE, Next::Over);
    assert_eq!(schedule.pick().map(|pick| pick.task), Some(1));
}

#[test]
fn reserved_slots_are_nobody_elses() {
    let slots = Slots { instances: 4, of_one: 4 };
    let three = || Arc::new(Shares::new([1, 1, 1]));
    let mut schedule = Schedule::new(three(), slots, [0, 1]);
    for task in 0..5 {
        put(&mut schedule, 0, task);
    }
    for _ in 0..2 {
        let pick = schedule.pick().unwrap();
        schedule.began(pick.seat.flow);
        // Long, so that it stands behind who has had nothing.
        schedule.settle(pick, SLICE, Next::Again);
    }
    let pick = schedule.pick().unwrap();
    assert!([0, 1].contains(&pick.task), "no third instance: {pick:?}");
    schedule.settle(pick, SLICE, Next::Again);
    // The third common slot is left to somebody else, and the reserved one to whose it is.
    for (flow, task) in [(2, 8), (1, 9)] {
        put(&mut schedule, flow, task);
        let pick = schedule.pick().unwrap();
        assert_eq!(pick.task, task);
        schedule.began(flow);
        schedule.settle(pick, SLICE, Next::Again);
    }
    // Half is common, whatever is reserved: one of it to each.
    let mut schedule = Schedule::new(three(), slots, [7, 7]);
    for flow in [1, 2] {
        put(&mut schedule, flow, flow);
        let pick = schedule.pick().unwrap();
        assert_eq!(pick.task, flow);
        schedule.began(flow);
        schedule.settle(pick, 0, Next::Over);
    }
}

#[test]
fn a_full_queue_gives_up_what_is_over_its_share_and_latest() {
    let mut schedule = schedule(&[1, 2, 1]);
    for task in 0..4 {
        schedule.enqueue(0, task, 1_000 + task as u64, NEVER).unwrap();
    }
    for task in 10..16 {
        schedule.enqueue(1, task, 1_000 + task as u64, NEVER).unwrap();
    }
    // 4 at weight 1 is longer than 6 at weight 2.
    assert_eq!(schedule.displace(2, 1, 1), Some(vec![3]));
    // Now both stand at 3: the one with the larger number goes first, then the other; both are more than 2.
    assert_eq!(schedule.displace(2, 1, 1), Some(vec![15]));
    // Two newcomers stand at 2, and 3 is longer; the next ones are not.
    assert_eq!(schedule.displace(2, 2, 2), Some(vec![2, 14]));
    let left = schedule.len();
    assert_eq!(schedule.displace(2, 2, 1), None, "nobody has more than they would");
    assert_eq!(schedule.displace(0, 1, 1), None, "nor than it has itself");
    assert_eq!(schedule.len(), left);
}

#[test]
fn what_has_begun_is_never_displaced_nor_is_anybodys_only_question() {
    let mut schedule = schedule(&[1, 1000]);
    for task in 0..3 {
        // Each more urgent than the last, so that it begins at once.
        schedule.enqueue(0, task, 100 - task as u64, NEVER).unwrap();
        let pick = schedule.pick().unwrap();
        assert_eq!(pick.task, task);
        schedule.began(0);
        schedule.settle(pick, SLICE, Next::Again);
    }
    put(&mut schedule, 0, 3);
    assert_eq!(schedule.displace(1, 1, 1), None);
    put(&mut schedule, 0, 4);
    assert_eq!(schedule.displace(1, 1, 2), None, "all or nothing");
    assert_eq!(schedule.displace(1, 1, 1), Some(vec![4]));
}

#[test]
fn what_waits_too_long_is_overdue_until_it_has_begun() {
    let mut schedule = schedule(&[1]);
    schedule.enqueue(0, 0, 1_000, 100).unwrap();
    assert_eq!((schedule.overdue(99), schedule.overdue(100)), (None, Some(0)));
    let pick = schedule.pick().unwrap();
    assert_eq!(schedule.overdue(NEVER), None, "who has it looks at it");
    schedule.began(0);
    schedule.settle(pick, SLICE, Next::Again);
    assert_eq!((schedule.overdue(999), schedule.overdue(1_000)), (None, Some(0)));
    schedule.remove(pick.seat);
    assert_eq!((schedule.overdue(NEVER), schedule.pick(), schedule.len()), (None, None, 0));
}

/// What can happen to a schedule.
#[derive(Debug, Clone)]
enum Step {
    Enqueue {
        flow: usize,
        deadline: u64,
        due: u64,
    },
    /// Picks and settles.
    Run {
        used: u64,
        again: bool,
    },
    Remove {
        which: usize,
    },
    Displace {
        flow: usize,
        count: usize,
        needed: usize,
    },
    /// Another executor served a flow.
    Elsewhere {
        flow: usize,
        used: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_usize..6, 0_u64..1_000, 0_u64..1_000)
            .prop_map(|(flow, deadline, due)| Step::Enqueue { flow, deadline, due }),
        4 => (0_u64..1_000_000, any::<bool>()).prop_map(|(used, again)| Step::Run { used, again }),
        1 => any::<usize>().prop_map(|which| Step::Remove { which }),
        1 => (0_usize..6, 1_usize..4, 1_usize..4)
            .prop_map(|(flow, count, needed)| Step::Displace { flow, count, needed }),
        1 => (0_usize..6, 0_u64..100_000_000).prop_map(|(flow, used)| Step::Elsewhere { flow, used }),
    ]
}

/// A task as the test knows it.
#[derive(Debug, Clone, Copy)]
struct Known {
    seat: Seat,
    deadline: u64,
    due: u64,
    begun: bool,
    used: u64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens: a task comes out once, one is picked whenever there is one, within a flow the most urgent that may
    /// run, never more instances than slots, what is overdue is known, and the end finds nothing left.
    #[test]
    fn nothing_is_lost_and_nothing_runs_twice(
        weights in prop::collection::vec(0_u32..10, 1..6),
        reserved in prop::collection::vec(0_usize..3, 0..6),
        (instances, of_one) in (1_usize..6, 1_usize..4),
        steps in prop::collection::vec(step(), 0..300),
    ) {
        let shares = Arc::new(Shares::new(weights.iter().copied()));
        let mut schedule = Schedule::new(Arc::clone(&shares), Slots { instances, of_one }, reserved);
        let mut known: BTreeMap<usize, Known> = BTreeMap::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Enqueue { flow, deadline, due } => {
                    let seat = schedule.enqueue(flow, number, deadline, due);
                    prop_assert_eq!(seat.is_some(), flow < weights.len());
                    let due = due.min(deadline);
                    known.extend(seat.map(|seat| (number, Known { seat, deadline, due, begun: false, used: 0 })));
                }
                Step::Run { used, again } => {
                    let pick = schedule.pick();
                    prop_assert_eq!(pick.is_some(), !known.is_empty());
                    let Some(pick) = pick else { continue };
                    let one = known[&pick.task];
                    prop_assert_eq!(one.seat, pick.seat);
                    let flow = pick.seat.flow;
                    let more_urgent = |other: &&Known| {
                        let alike = (other.used > LONG) == (one.used > LONG);
                        other.seat.flow == flow && alike && other.deadline < one.deadline
                    };
                    let begun = known.values().filter(more_urgent).any(|other| other.begun || !one.begun);
                    prop_assert!(!begun, "one that could run is more urgent");
                    if !one.begun {
                        schedule.began(flow);
                    }
                    prop_assert!(schedule.instances() <= instances);
                    if again {
                        known.insert(pick.task, Known { begun: true, due: one.deadline, used: one.used + used, ..one });
                    } else {
                        known.remove(&pick.task);
                        schedule.ended(flow);
                    }
                    schedule.settle(pick, used, if again { Next::Again } else { Next::Over });
                }
                Step::Remove { which } => {
                    let Some(task) = known.keys().nth(which % known.len().max(1)).copied() else { continue };
                    let one = known.remove(&task).unwrap();
                    schedule.remove(one.seat);
                    schedule.remove(one.seat);
                    if one.begun {
                        schedule.ended(one.seat.flow);
                    }
                }
                Step::Displace { flow, count, needed } => {
                    let displaced = schedule.displace(flow, count, needed);
                    let displaced = displaced.unwrap_or_default();
                    prop_assert!(displaced.is_empty() || displaced.len() == needed);
                    for task in displaced {
                        let one = known.remove(&task).unwrap();
                        prop_assert!(!one.begun && one.seat.flow != flow);
                        let others = |other: &&Known| other.seat.flow == one.seat.flow && !other.begun;
                        prop_assert!(known.values().any(|other| others(&other)), "its only one");
                    }
                }
                Step::Elsewhere { flow, used } => _ = shares.charge(flow, used),
            }
            prop_assert_eq!(schedule.len(), known.len());
            prop_assert_eq!(schedule.instances(), known.values().filter(|one| one.begun).count());
            let first = known.values().map(|one| one.due).min();
            prop_assert_eq!(schedule.overdue(u64::MAX).map(|task| known[&task].due), first);
        }
        let mut seen = vec![];
        while let Some(pick) = schedule.pick() {
            seen.push(pick.task);
            if known[&pick.task].begun {
                schedule.ended(pick.seat.flow);
            }
            schedule.settle(pick, SLICE, Next::Over);
        }
        seen.sort_unstable();
        prop_assert_eq!(seen, known.into_keys().collect::<Vec<_>>());
        prop_assert_eq!((schedule.len(), schedule.instances()), (0, 0));
        prop_assert!(schedule.ready.is_empty() && schedule.stalled.is_empty() && schedule.long.is_empty());
    }

    /// A queue is only shortened for one that will be shorter, and of it what has most time left goes first.
    #[test]
    fn who_is_displaced_had_more_than_who_comes(
        weights in prop::collection::vec(1_u32..20, 2..6),
        tasks in prop::collection::vec((0_usize..6, 0_u64..1_000), 0..80),
        count in 1_usize..4,
        needed in 1_usize..4,
    ) {
        let mut schedule = schedule(&weights);
        let mut queues: Vec<Vec<(u64, usize)>> = vec![vec![]; weights.len()];
        for (number, (flow, deadline)) in tasks.into_iter().enumerate() {
            if schedule.enqueue(flow, number, deadline, NEVER).is_some() {
                queues[flow].push((deadline, number));
            }
        }
        queues.iter_mut().for_each(|queue| queue.sort_unstable());
        let newcomer = schedule.relative(0, queues[0].len() + count);
        let possible: usize = (1..weights.len())
            .map(|flow| {
                let length = queues[flow].len();
                (2..=length).filter(|length| schedule.relative(flow, *length) > newcomer).count()
            })
            .sum();
        match schedule.displace(0, count, needed) {
            None => prop_assert!(possible < needed, "there were {possible}"),
            Some(displaced) => {
                prop_assert!(possible >= needed);
                for task in displaced {
                    let flow = queues.iter().position(|queue| queue.last().is_some_and(|one| one.1 == task));
                    let flow = flow.expect("the latest of its queue");
                    prop_assert!(schedule.relative(flow, queues[flow].len()) > newcomer);
                    queues[flow].pop();
                }
            }
        }
    }
}
