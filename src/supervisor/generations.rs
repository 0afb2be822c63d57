//! Which generation of a role is wanted: what has been tried, what went wrong, when to try again.
//!
//! A [`Lineage`] looks at what lives and says what to do next; nothing here starts or kills a process, so that every
//! rule can be tested without one.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::config::Config;
use crate::wire::spawner::Part;

/// Who served for this long is not what died quickly: the next start is immediate again.
const SERVED_A_WHILE: Duration = Duration::from_secs(10);
/// The second retry waits this long, each further one twice as long as the one before.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// A configuration and its number: 1 is what the service started with, each accepted reload makes the next.
#[derive(Debug, Clone)]
pub(super) struct Edition {
    pub(super) config: Rc<Config>,
    pub(super) epoch: u64,
}

/// What lives of a lineage, as far as it matters for the next step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Living {
    /// Epoch of the one that serves.
    pub(super) serving: Option<u64>,
    /// One is on its way.
    pub(super) coming: bool,
}

/// The frontend, or the workers of one class: one serves, another may be on its way, older ones drain.
#[derive(Debug)]
pub(super) struct Lineage {
    pub(super) part: Part,
    /// Of the newest that was started.
    pub(super) generation: u64,
    /// How often one that served had to be replaced because it died.
    pub(super) restarts: u32,
    backoff: Backoff,
    /// A successor was asked for.
    renew: bool,
    /// The edition that would not start, and why; the last good one is used instead.
    refused: Option<(u64, String)>,
    last_good: Option<Edition>,
}

impl Lineage {
    pub(super) fn new(part: Part) -> Self {
        Self {
            part,
            generation: 0,
            restarts: 0,
            backoff: Backoff::default(),
            renew: false,
            refused: None,
            last_good: None,
        }
    }

    /// The edition to start a new generation with, if one is to be started now.
    pub(super) fn wanted(&self, current: &Edition, living: Living, now: Instant) -> Option<Edition> {
        if living.coming || !self.backoff.is_over(now) {
            return None;
        }
        let refused = self.refuses(current.epoch);
        let outdated = |epoch| epoch < current.epoch && !refused;
        if living.serving.is_some_and(|epoch| !outdated(epoch)) && !self.renew {
            return None;
        }
        match &self.last_good {
            Some(good) if refused => Some(good.clone()),
            _ => Some(current.clone()),
        }
    }

    /// When [`Lineage::wanted`] may say something else than now, because time has passed.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.backoff.until.filter(|until| *until > now)
    }

    /// Numbers the generation that is started now.
    pub(super) fn start(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// A successor is wanted, although the one that serves is well.
    pub(super) fn renew(&mut self) {
        self.renew = true;
    }

    /// The new generation serves.
    pub(super) fn serves(&mut self, edition: Edition) {
        self.renew = false;
        if self.refused.as_ref().is_some_and(|(epoch, _)| *epoch <= edition.epoch) {
            self.refused = None;
        }
        self.last_good = Some(edition);
    }

    /// A generation of `epoch` died, or had to be killed, before it served.
    pub(super) fn did_not_start(&mut self, epoch: u64, why: &str, now: Instant) {
        self.backoff.failed(now);
        let good = self.last_good.as_ref().map(|edition| edition.epoch);
        if good.is_some_and(|good| good < epoch) {
            self.refused = Some((epoch, why.to_owned()));
        }
    }

    /// The one that served since `since` was killed, or ended with an error.
    pub(super) fn died(&mut self, since: Instant, now: Instant) {
        self.restarts = self.restarts.saturating_add(1);
        self.left(since, now);
    }

    /// The one that served since `since` ended by itself: a worker does when the frontend is gone, which may be seen
    /// a little later.
    pub(super) fn left(&mut self, since: Instant, now: Instant) {
        if now.saturating_duration_since(since) >= SERVED_A_WHILE {
            self.backoff = Backoff::default();
        }
        self.backoff.failed(now);
    }

    /// One that was on its way had to be ended, for no fault of its own.
    pub(super) fn cut_off(&mut self, now: Instant) {
        self.backoff.failed(now);
    }

    /// The operator asks for something new: try at once.
    pub(super) fn try_again(&mut self) {
        self.backoff = Backoff::default();
    }

    /// Whether this lineage is done with `epoch`: it serves, or would not start (then why).
    pub(super) fn settled(&self, epoch: u64, living: Living) -> Option<Result<(), &str>> {
        match &self.refused {
            Some((refused, why)) if *refused == epoch => Some(Err(why)),
            _ if living.serving.is_some_and(|serving| serving >= epoch) => Some(Ok(())),
            _ => None,
        }
    }

    fn refuses(&self, epoch: u64) -> bool {
        self.refused.as_ref().is_some_and(|(refused, _)| *refused == epoch)
    }
}

/// The first retry is immediate, later ones wait.
#[derive(Debug, Default)]
struct Backoff {
    wait: Option<Duration>,
    until: Option<Instant>,
}

impl Backoff {
    fn failed(&mut self, now: Instant) {
        let wait = self.wait.unwrap_or_default();
        self.until = Some(now + wait);
        self.wait = Some(if wait.is_zero() { FIRST_WAIT } else { (wait * 2).min(LONGEST_WAIT) });
    }

    fn is_over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::decision::TrustClass;
    use crate::supervisor::config::{
        Builder, Class, Frontend, Identity, Inode, Registry, Service, TrustFile,
    };
    use crate::wire::control::ClassLimits;

    pub(in crate::supervisor) fn config(classes: &[&str]) -> Config {
        let identity = Identity { uid: 61000, gid: 61000 };
        let limits = ClassLimits {
            threads: 1,
            memory: 4 << 20,
            instances: 8,
            queue: 16,
            pipeline: 8,
            connections: 8,
            stack_zeroing: true,
            renew_after_decisions: 0,
            renew_after_ms: 0,
        };
        let class = |name: &&str| Class {
            name: TrustClass::new(name).expect("name"),
            identity,
            cache: format!("/cache/{name}").into(),
            cache_inode: Inode::default(),
            limits: limits.clone(),
            ceiling: crate::artifact::Ceiling::MOST,
            group: crate::supervisor::config::GroupLimits::default(),
        };
        Config {
            service: Service {
                socket: "/run/decide.sock".into(),
                socket_mode: 0o666,
                operator_socket: "/run/operator.sock".into(),
                operators: vec![],
                store: "/store".into(),
                store_inode: Inode::default(),
                state: "/state".into(),
                state_inode: Inode::default(),
                trust: TrustFile { path: "/trust.toml".into(), text: String::new() },
                tenants: None,
                tenants_inode: Inode::default(),
                keep_previous: 3,
                require_distinct_uids: false,
                drain: Duration::from_secs(5),
                answer_within: Duration::from_millis(100),
            },
            frontend: Frontend {
                identity,
                hello_timeout: Duration::from_secs(1),
                max_connections: 16,
                max_connections_per_uid: Some(4),
            },
            registry: Registry { identity, secret: None },
            telemetry: None,
            gateway: None,
            builder: Builder::default(),
            classes: classes.iter().map(class).collect(),
            tenants: vec![],
            filed: vec![],
        }
    }

    fn edition(epoch: u64) -> Edition {
        Edition { config: Rc::new(config(&["a"])), epoch }
    }

    fn lineage() -> Lineage {
        Lineage::new(Part::Worker(TrustClass::new("a").expect("name")))
    }

    const NOBODY: Living = Living { serving: None, coming: false };

    fn serving(epoch: u64) -> Living {
        Living { serving: Some(epoch), coming: false }
    }

    /// The epoch of what is to be started.
    fn wanted(lineage: &Lineage, epoch: u64, living: Living, now: Instant) -> Option<u64> {
        lineage.wanted(&edition(epoch), living, now).map(|edition| edition.epoch)
    }

    #[test]
    fn one_is_started_and_only_one() {
        let now = Instant::now();
        let mut lineage = lineage();
        assert_eq!(wanted(&lineage, 1, NOBODY, now), Some(1));
        assert_eq!(lineage.start(), 1);
        assert_eq!(wanted(&lineage, 1, Living { serving: None, coming: true }, now), None);
        lineage.serves(edition(1));
        assert_eq!(wanted(&lineage, 1, serving(1), now), None);
    }

    #[test]
    fn a_reload_starts_a_successor_beside_the_one_that_serves() {
        let now = Instant::now();
        let mut lineage = lineage();
        lineage.serves(edition(1));
        assert_eq!(lineage.settled(2, serving(1)), None);
        assert_eq!(wanted(&lineage, 2, serving(1), now), Some(2));
        assert_eq!(wanted(&lineage, 2, Living { serving: Some(1), coming: true }, now), None);
        lineage.serves(edition(2));
        assert_eq!(lineage.settled(2, serving(2)), Some(Ok(())));
    }

    #[test]
    fn a_successor_that_does_not_start_is_not_tried_forever_and_the_old_one_stays() {
        let now = Instant::now();
        let mut lineage = lineage();
        lineage.serves(edition(1));
        lineage.did_not_start(2, "broken", now);
        assert_eq!(lineage.settled(2, serving(1)), Some(Err("broken")));
        assert_eq!(wanted(&lineage, 2, serving(1), now + LONGEST_WAIT), None);
        // It dies: what started before is started again, not what would not.
        lineage.died(now, now);
        assert_eq!(wanted(&lineage, 2, NOBODY, now + LONGEST_WAIT), Some(1));
        // The next reload tries again, and at once.
        lineage.try_again();
        assert_eq!(wanted(&lineage, 3, serving(1), now), Some(3));
        lineage.serves(edition(3));
        assert_eq!(lineage.settled(3, serving(3)), Some(Ok(())));
    }

    #[test]
    fn a_first_generation_that_does_not_start_is_tried_again() {
        let now = Instant::now();
        let mut lineage = lineage();
        lineage.did_not_start(1, "broken", now);
        assert_eq!(wanted(&lineage, 1, NOBODY, now), Some(1), "the first retry is immediate");
        lineage.did_not_start(1, "broken", now);
        assert_eq!(wanted(&lineage, 1, NOBODY, now), None);
        assert_eq!(lineage.next(now), Some(now + FIRST_WAIT));
        assert_eq!(wanted(&lineage, 1, NOBODY, now + FIRST_WAIT), Some(1));
    }

    #[test]
    fn renewal_is_asked_for_once_however_often_it_is_said() {
        let now = Instant::now();
        let mut lineage = lineage();
        lineage.serves(edition(1));
        lineage.renew();
        lineage.renew();
        assert_eq!(wanted(&lineage, 1, serving(1), now), Some(1));
        assert_eq!(wanted(&lineage, 1, Living { serving: Some(1), coming: true }, now), None);
        lineage.serves(edition(1));
        assert_eq!(wanted(&lineage, 1, serving(1), now), None);
    }

    #[test]
    fn renewals_that_do_not_start_wait_longer_and_longer() {
        let now = Instant::now();
        let mut lineage = lineage();
        lineage.serves(edition(1));
        lineage.renew();
        lineage.did_not_start(1, "out of memory", now);
        lineage.did_not_start(1, "out of memory", now);
        assert_eq!(wanted(&lineage, 1, serving(1), now), None);
        assert_eq!(wanted(&lineage, 1, serving(1), now + FIRST_WAIT), Some(1), "still wanted");
    }

    #[test]
    fn quick_deaths_wait_longer_up_to_a_limit_and_a_long_life_forgets_them() {
        let mut now = Instant::now();
        let mut lineage = lineage();
        lineage.serves(edition(1));
        let mut waits = Vec::new();
        for _ in 0..9 {
            lineage.died(now, now);
            waits.push(lineage.next(now).map_or(0, |until| (until - now).as_millis()));
            now += LONGEST_WAIT;
        }
        assert_eq!(waits, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        lineage.died(now, now + SERVED_A_WHILE);
        now += SERVED_A_WHILE;
        assert_eq!(wanted(&lineage, 1, NOBODY, now), Some(1), "immediate again");
        assert_eq!(lineage.restarts, 10);
    }
}
