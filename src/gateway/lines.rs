//! The connections of one thread: to each class as many as it takes for all threads together to reach every thread of its
//! worker, since a worker answers each connection on one of them.
//!
//! Which one a question takes is a matter of what it costs. Waking a thread costs as much as many a guest, and one that is
//! awake takes several questions at once. So quick ones go the same way, as long as what is under way there is done soon; what
//! takes longer goes where the least is to be done, so that no thread of the worker has nothing to do while questions wait.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::client::Client;
use crate::decision::{Decision, PolicyName, Tenant, Timing};

/// What may be under way on a line before another is taken, nanoseconds: some wake-ups' worth.
const SOON_NS: u64 = 200_000;
/// What a question costs a worker besides its guest.
const EACH_NS: u64 = 10_000;
/// How much of what a policy is known for its last decision is: one part in so many.
const MEMORY: u64 = 8;

/// One thread's. Clones are the same lines.
#[derive(Debug, Clone)]
pub(super) struct Lines(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    first: Line,
    others: Vec<Line>,
    costs: Mutex<Costs>,
}

#[derive(Debug)]
struct Line {
    /// Has one connection to each class.
    client: Client,
    /// What is under way takes about so long.
    load_ns: AtomicU64,
}

/// How long a policy's guest ran, of late.
type Costs = HashMap<Tenant, HashMap<PolicyName, u64>>;

/// The line of one question, until this is dropped.
#[derive(Debug)]
pub(super) struct Taken<'a> {
    shared: &'a Shared,
    line: &'a Line,
    expected_ns: u64,
}

impl Lines {
    /// So many; at least one.
    pub(super) fn new(count: u32, client: impl Fn() -> Client) -> Self {
        let line = || Line { client: client(), load_ns: AtomicU64::new(0) };
        let others = (1..count).map(|_| line()).collect();
        Self(Arc::new(Shared { first: line(), others, costs: Mutex::default() }))
    }

    /// For what decides nothing.
    pub(super) fn any(&self) -> &Client {
        &self.0.first.client
    }

    pub(super) fn take(&self, tenant: &Tenant, policy: &PolicyName) -> Taken<'_> {
        let shared = &*self.0;
        let known = shared.costs().get(tenant).and_then(|policies| policies.get(policy)).copied();
        let expected_ns = known.unwrap_or(0).saturating_add(EACH_NS);
        let line = shared
            .others
            .iter()
            .fold(&shared.first, |least, line| if line.waits_ns() < least.waits_ns() { line } else { least });
        line.load_ns.fetch_add(expected_ns, Ordering::Relaxed);
        Taken { shared, line, expected_ns }
    }
}

impl Line {
    /// How much too long a question would wait here.
    fn waits_ns(&self) -> u64 {
        self.load_ns.load(Ordering::Relaxed).saturating_sub(SOON_NS)
    }
}

impl Shared {
    /// What is behind the lock is whole at every point where a panic could leave it.
    fn costs(&self) -> MutexGuard<'_, Costs> {
        self.costs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken<'_> {
    pub(super) fn client(&self) -> &Client {
        &self.line.client
    }

    /// Remembers what it took. Those that may be asked are those of the listeners, so that is bounded.
    pub(super) fn decided(&self, tenant: &Tenant, policy: &PolicyName, decision: &Decision) {
        let Timing { instantiate_ns, run_ns, .. } = decision.timing;
        let took = instantiate_ns.saturating_add(run_ns);
        if took == 0 {
            // No guest has run.
            return;
        }
        let mut costs = self.shared.costs();
        let known = costs.get_mut(tenant).and_then(|policies| policies.get_mut(policy));
        match known {
            Some(known) => *known = *known - *known / MEMORY + took / MEMORY,
            None => _ = costs.entry(tenant.clone()).or_default().insert(policy.clone(), took),
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.line.load_ns.fetch_sub(self.expected_ns, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::Refusal;

    const QUICK: &str = "quick";
    const SLOW: &str = "slow";

    /// Three, that know one policy as quick and another as slow.
    fn lines() -> Lines {
        let lines = Lines::new(3, || Client::new("/nowhere"));
        for (policy, run_ns) in [(QUICK, 20_000), (SLOW, 1_000_000)] {
            take(&lines, policy).decided(&tenant(), &named(policy), &ran(run_ns));
        }
        lines
    }

    fn tenant() -> Tenant {
        Tenant::new("acme").unwrap()
    }

    fn named(policy: &str) -> PolicyName {
        PolicyName::new(policy).unwrap()
    }

    fn ran(run_ns: u64) -> Decision {
        let timing = Timing { run_ns, ..Timing::default() };
        Decision { timing, ..Decision::refused(Refusal::Unavailable) }
    }

    fn take<'a>(lines: &'a Lines, policy: &str) -> Taken<'a> {
        lines.take(&tenant(), &named(policy))
    }

    /// How many went each way.
    fn spread(lines: &Lines, taken: &[Taken<'_>]) -> Vec<usize> {
        let shared = &lines.0;
        let all = std::iter::once(&shared.first).chain(&shared.others);
        all.map(|line| taken.iter().filter(|one| std::ptr::eq(one.line, line)).count()).collect()
    }

    #[test]
    fn quick_questions_go_the_same_way_until_that_takes_too_long() {
        let lines = lines();
        let mut taken: Vec<Taken<'_>> = (0..7).map(|_| take(&lines, QUICK)).collect();
        assert_eq!(spread(&lines, &taken), [7, 0, 0], "7 x 30 us");
        taken.extend((0..2).map(|_| take(&lines, QUICK)));
        assert_eq!(spread(&lines, &taken), [7, 2, 0]);
        taken.extend((0..21).map(|_| take(&lines, QUICK)));
        assert_eq!(spread(&lines, &taken), [10, 10, 10]);
        drop(taken);
        assert_eq!(spread(&lines, &[take(&lines, QUICK)]), [1, 0, 0], "all have ended");
    }

    #[test]
    fn slow_questions_are_spread_and_quick_ones_go_around_them() {
        let lines = lines();
        let mut taken = vec![take(&lines, SLOW), take(&lines, SLOW)];
        assert_eq!(spread(&lines, &taken), [1, 1, 0]);
        taken.extend((0..3).map(|_| take(&lines, QUICK)));
        assert_eq!(spread(&lines, &taken), [1, 1, 3]);
    }

    #[test]
    fn what_a_policy_costs_is_what_it_cost_of_late() {
        let lines = lines();
        for _ in 0..100 {
            let taken = take(&lines, SLOW);
            taken.decided(&tenant(), &named(SLOW), &ran(1_000));
            // Nobody's guest.
            taken.decided(&tenant(), &named(SLOW), &ran(0));
        }
        let taken: Vec<Taken<'_>> = (0..15).map(|_| take(&lines, SLOW)).collect();
        assert_eq!(spread(&lines, &taken), [15, 0, 0], "as quick as others by now");
    }

    #[test]
    fn there_is_always_one() {
        let lines = Lines::new(0, || Client::new("/nowhere"));
        let taken: Vec<Taken<'_>> = (0..3).map(|_| take(&lines, "unknown")).collect();
        assert_eq!(spread(&lines, &taken), [3]);
    }
}
