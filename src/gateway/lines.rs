//! The connections of one thread: to each class as many as it takes for all threads together to reach every thread of its
//! worker, since a worker answers each connection on one of them.
//!
//! Which one a question takes is a matter of what it costs. Waking a thread costs as much as many a guest, and one that is
//! awake takes several questions at once. So quick ones go the same way, as long as what is under way there is done soon; what
//! takes longer goes where the least is to be done, so that no thread of the worker has nothing to do while questions wait.
//! Nobody waits for a line to be opened as long as there is another, and none that cannot be opened is taken.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::desk::REACHED_WITHIN;
use crate::client::{Client, ClientError};
use crate::decision::{Decision, PolicyName, Tenant, Timing};
use crate::wire::gateway::GatewayClass;

/// What may be under way on a line before another is taken, nanoseconds: some wake-ups' worth.
const SOON_NS: u64 = 200_000;
/// What a question costs a worker besides its guest, in company: measured by what all of them together took with 2, 5 and 10 us.
const EACH_NS: u64 = 2_000;
/// How much of what a policy is known for its last decision is: one part in so many.
const MEMORY: u64 = 8;
/// No guest is known for more, whatever a worker says.
const LONGEST: Duration = Duration::from_secs(60);

/// One thread's. Clones are the same lines.
#[derive(Debug, Clone)]
pub(super) struct Lines(Arc<Shared>);

/// Classes have nothing in common here, so that none has to do with how busy another is.
#[derive(Debug)]
struct Shared {
    /// Places in `classes`.
    of: HashMap<Tenant, usize>,
    classes: Vec<OfClass>,
    /// For a tenant that a reload has brought meanwhile: the next gateway knows it.
    unknown: OfClass,
}

#[derive(Debug)]
struct OfClass {
    first: Arc<Line>,
    others: Vec<Arc<Line>>,
    costs: Mutex<Costs>,
}

#[derive(Debug)]
struct Line {
    /// Has one connection.
    client: Client,
    /// What is under way takes about so long.
    load_ns: AtomicU64,
    /// Somebody opens it.
    opening: AtomicBool,
}

/// How long a policy's guest ran, of late.
type Costs = HashMap<Tenant, HashMap<PolicyName, u64>>;

/// The line of one question, until this is dropped.
#[derive(Debug)]
pub(super) struct Taken<'a> {
    of: &'a OfClass,
    line: &'a Line,
    expected_ns: u64,
}

impl Lines {
    pub(super) fn new(classes: &[GatewayClass], client: impl Fn() -> Client) -> Self {
        let of = classes.iter().enumerate().flat_map(|(at, class)| {
            let tenants = class.tenants.iter().cloned();
            tenants.map(move |tenant| (tenant, at))
        });
        let of_class = |connections| OfClass::new(connections, &client);
        Self(Arc::new(Shared {
            of: of.collect(),
            classes: classes.iter().map(|class| of_class(class.connections)).collect(),
            unknown: of_class(1),
        }))
    }

    /// Whether the service answers for a tenant. Nothing is decided.
    pub(super) async fn reach(&self, tenant: &Tenant) -> Result<(), ClientError> {
        let line = self.of(tenant).choose(tenant);
        line.client.ping(tenant, REACHED_WITHIN).await.map(drop)
    }

    pub(super) fn take(&self, tenant: &Tenant, policy: &PolicyName) -> Taken<'_> {
        let of = self.of(tenant);
        let known = of.costs().get(tenant).and_then(|policies| policies.get(policy)).copied();
        let expected_ns = known.unwrap_or(0).saturating_add(EACH_NS);
        let line = of.choose(tenant);
        line.load_ns.fetch_add(expected_ns, Ordering::Relaxed);
        Taken { of, line, expected_ns }
    }

    fn of(&self, tenant: &Tenant) -> &OfClass {
        let shared = &*self.0;
        shared.of.get(tenant).and_then(|at| shared.classes.get(*at)).unwrap_or(&shared.unknown)
    }
}

impl OfClass {
    fn new(connections: u32, client: impl Fn() -> Client) -> Self {
        let line = || {
            let (load_ns, opening) = (AtomicU64::new(0), AtomicBool::new(false));
            Arc::new(Line { client: client(), load_ns, opening })
        };
        let others = (1..connections).map(|_| line()).collect();
        Self { first: line(), others, costs: Mutex::default() }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Line>> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Of those that are open the first on which nobody waits for long, else the one with the least to do; the first of all
    /// where none is open.
    fn choose(&self, tenant: &Tenant) -> &Line {
        let open = || self.all().filter(|line| line.client.is_connected(tenant));
        if let Some(line) = open().find(|line| line.waits_ns() == 0) {
            return line;
        }
        let Some(least) = open().min_by_key(|line| line.waits_ns()) else { return &self.first };
        if let Some(another) = self.all().find(|line| !line.client.is_connected(tenant)) {
            another.open(tenant);
        }
        least
    }

    /// What is behind the lock is whole at every point where a panic could leave it.
    fn costs(&self) -> MutexGuard<'_, Costs> {
        self.costs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// How much too long a question would wait here.
    fn waits_ns(&self) -> u64 {
        self.load_ns.load(Ordering::Relaxed).saturating_sub(SOON_NS)
    }

    /// For those who come later. If it cannot be opened, whoever asks next tries again, not before the client would.
    fn open(self: &Arc<Self>, tenant: &Tenant) {
        if self.opening.swap(true, Ordering::Relaxed) {
            return;
        }
        let (line, tenant) = (Arc::clone(self), tenant.clone());
        tokio::spawn(async move {
            let _ = line.client.ping(&tenant, REACHED_WITHIN).await;
            line.opening.store(false, Ordering::Relaxed);
        });
    }
}

impl Taken<'_> {
    pub(super) fn client(&self) -> &Client {
        &self.line.client
    }

    /// Remembers what it took. Those that may be asked are those of the listeners, so that is bounded.
    pub(super) fn decided(&self, tenant: &Tenant, policy: &PolicyName, decision: &Decision) {
        let Timing { instantiate_ns, run_ns, .. } = decision.timing;
        let longest = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
        let took = instantiate_ns.saturating_add(run_ns).min(longest);
        if took == 0 {
            // No guest has run.
            return;
        }
        let mut costs = self.of.costs();
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
    use std::io::{self, Write};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::client::{Connect, Pipeline, Settings};
    use crate::decision::{Refusal, TrustClass};
    use crate::wire::client::{PROTOCOL_VERSION, SERVER_FRAME_MAX, ServerFrame};
    use crate::wire::frame;

    const QUICK: &str = "quick";
    const SLOW: &str = "slow";

    /// Welcomes so many, and nobody after that.
    #[derive(Debug)]
    struct Seats(Mutex<(usize, Vec<UnixStream>)>);

    impl Connect for Seats {
        fn connect(&self, _tenant: &Tenant) -> io::Result<tokio::net::UnixStream> {
            let mut seats = self.0.lock().unwrap();
            seats.0 = seats.0.checked_sub(1).ok_or(io::ErrorKind::ConnectionRefused)?;
            let (ours, mut theirs) = UnixStream::pair()?;
            let mut bytes = bytes::BytesMut::new();
            let class = TrustClass::new("web").unwrap();
            let welcome = ServerFrame::Welcome { version: PROTOCOL_VERSION, class, generation: 1 };
            frame::encode_frame(&welcome, &mut bytes, SERVER_FRAME_MAX).unwrap();
            theirs.write_all(&bytes)?;
            seats.1.push(theirs);
            ours.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(ours)
        }

        fn pipeline(&self, _class: &TrustClass) -> Pipeline {
            Pipeline { questions: 64, shared: false }
        }
    }

    /// Three to the class of "acme", as many of them open as there are seats; one policy is known as quick, another as slow.
    async fn lines(seats: usize) -> Lines {
        let connect = Arc::new(Seats(Mutex::new((seats, Vec::new()))));
        let class = |class: &str, tenant: &str| GatewayClass {
            class: TrustClass::new(class).unwrap(),
            pipeline: 64,
            connections: 3,
            tenants: vec![Tenant::new(tenant).unwrap()],
        };
        let classes = [class("web", "acme"), class("other", "globex")];
        let lines = Lines::new(&classes, || Client::through(connect.clone(), Settings::default()));
        for (policy, run_ns) in [(QUICK, 20_000), (SLOW, 1_000_000)] {
            take(&lines, policy).decided(&tenant(), &named(policy), &ran(run_ns));
        }
        let of = lines.of(&tenant());
        for line in of.all().take(seats) {
            line.open(&tenant());
            while !line.client.is_connected(&tenant()) {
                tokio::task::yield_now().await;
            }
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
        let which = |line: &Arc<Line>| taken.iter().filter(|one| std::ptr::eq(one.line, &**line)).count();
        lines.of(&tenant()).all().map(which).collect()
    }

    #[tokio::test]
    async fn quick_questions_go_the_same_way_until_that_takes_too_long() {
        let lines = lines(3).await;
        let mut taken: Vec<Taken<'_>> = (0..10).map(|_| take(&lines, QUICK)).collect();
        assert_eq!(spread(&lines, &taken), [10, 0, 0], "9 x 22 us before the tenth");
        taken.extend((0..2).map(|_| take(&lines, QUICK)));
        assert_eq!(spread(&lines, &taken), [10, 2, 0]);
        taken.extend((0..21).map(|_| take(&lines, QUICK)));
        assert_eq!(spread(&lines, &taken), [11, 11, 11]);
        drop(taken);
        assert_eq!(spread(&lines, &[take(&lines, QUICK)]), [1, 0, 0], "all have ended");
    }

    #[tokio::test]
    async fn slow_questions_are_spread_and_quick_ones_go_around_them() {
        let lines = lines(3).await;
        let mut taken = vec![take(&lines, SLOW), take(&lines, SLOW)];
        assert_eq!(spread(&lines, &taken), [1, 1, 0]);
        taken.extend((0..3).map(|_| take(&lines, QUICK)));
        assert_eq!(spread(&lines, &taken), [1, 1, 3]);
        // Nor does another class hear of it.
        let other = lines.take(&Tenant::new("globex").unwrap(), &named(QUICK));
        assert_eq!(other.line.load_ns.load(Ordering::Relaxed), EACH_NS);
    }

    #[tokio::test]
    async fn what_a_policy_costs_is_what_it_cost_of_late() {
        let lines = lines(3).await;
        for _ in 0..100 {
            let taken = take(&lines, SLOW);
            taken.decided(&tenant(), &named(SLOW), &ran(1_000));
            // Nobody's guest.
            taken.decided(&tenant(), &named(SLOW), &ran(0));
        }
        let taken: Vec<Taken<'_>> = (0..15).map(|_| take(&lines, SLOW)).collect();
        assert_eq!(spread(&lines, &taken), [15, 0, 0], "as quick as others by now");
        drop(taken);
        // A worker may say what it likes.
        (0..100).for_each(|_| take(&lines, SLOW).decided(&tenant(), &named(SLOW), &ran(u64::MAX)));
        let taken: Vec<Taken<'_>> = (0..6).map(|_| take(&lines, SLOW)).collect();
        assert_eq!(spread(&lines, &taken), [2, 2, 2]);
    }

    /// The service has a seat for one connection and for no more.
    #[tokio::test]
    async fn a_line_that_cannot_be_opened_is_nobodys() {
        let lines = lines(1).await;
        let mut taken = Vec::new();
        for _ in 0..20 {
            taken.push(take(&lines, SLOW));
            tokio::task::yield_now().await;
        }
        assert_eq!(spread(&lines, &taken), [20, 0, 0]);
    }

    /// Who finds all of them busy has another one opened, and does not wait for it.
    #[tokio::test]
    async fn another_line_is_opened_once_there_is_something_to_do_for_it() {
        let lines = lines(1).await;
        let of = lines.of(&tenant());
        let Some(second) = of.others.first() else { panic!("three lines") };
        drop((take(&lines, QUICK), take(&lines, QUICK)));
        assert!(!second.opening.load(Ordering::Relaxed), "nothing to do");
        let taken = [take(&lines, SLOW), take(&lines, SLOW)];
        assert_eq!(spread(&lines, &taken), [2, 0, 0]);
        assert!(second.opening.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn where_none_is_open_the_first_one_is_opened_by_who_asks() {
        let lines = lines(0).await;
        let taken: Vec<Taken<'_>> = (0..3).map(|_| take(&lines, SLOW)).collect();
        assert_eq!(spread(&lines, &taken), [3, 0, 0]);
        let of = lines.of(&tenant());
        assert!(of.all().all(|line| !line.opening.load(Ordering::Relaxed)));
        // And so it is with a tenant that nobody has told of.
        assert!(std::ptr::eq(lines.of(&Tenant::new("new").unwrap()), &lines.0.unknown));
    }
}
