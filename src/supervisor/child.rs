//! The state of one child: what it may say now, and whether it still answers.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::config::{Identity, TenantState};
use super::generations::Edition;
use super::spawn::Launched;
use crate::decision::TrustClass;
use crate::wire::channel::Channel;
use crate::wire::control::{FromChild, Process, ProcessState, Ready, ToChild};
use crate::wire::spawner::Part;

/// Messages a child may send between two pings. It has no reason for more than a handful; a registry also asks for
/// builders, see [`Child::messages_allowed`].
const MESSAGES_PER_PING: u32 = 32;
/// A registry is off the path of requests, and may hash for seconds before it answers.
const REGISTRY_ANSWERS_WITHIN: Duration = Duration::from_secs(30);
/// The same of an exporter, which is busy with numbers of ten thousand tenants.
const EXPORTER_ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// The same of a gateway, each of whose threads answers for itself between requests of a megabyte.
const GATEWAY_ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// Longest public key that a registry may name, bytes.
const HOST_KEY_MAX: usize = 1024;
/// Our own wake-ups that must have passed before silence is the child's fault and not the machine's.
const ROUNDS: u32 = 3;

/// Where a child is in its life. It only ever goes down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Has to be ready by then.
    Starting {
        until: Instant,
    },
    /// Sealed and witnessed; those whom it is for do not know of it yet.
    Witnessed,
    Serving {
        since: Instant,
    },
    /// A builder that has a job. It answers nobody meanwhile, and has to be gone by then.
    Working {
        until: Instant,
    },
    /// Has to be gone by then.
    Draining {
        until: Instant,
    },
    /// Killed; only its end is awaited.
    Condemned,
}

/// One child process.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) part: Part,
    pub(super) generation: u64,
    /// The configuration it works with.
    edition: Edition,
    pub(super) identity: Identity,
    pub(super) pid: Pid,
    pub(super) channel: Channel<ToChild, FromChild>,
    /// The other's end of the channel to this worker (the frontend's) or builder (the registry's), until it is there; the
    /// frontend's of that to a gateway for as long as it lives.
    pub(super) handover: Option<OwnedFd>,
    /// Of a gateway: the generation of the frontend that knows it.
    pub(super) known_to: u64,
    /// The registry's end of this worker's supply channel, until it is there.
    pub(super) supply: Option<OwnedFd>,
    /// Of a worker: the generation of the registry it was to get its policies from.
    pub(super) supplier: Option<u64>,
    /// Of a builder: the registry's number for it.
    pub(super) job: Option<u64>,
    /// Of a registry: what it is to survey for and has not answered.
    pub(super) asked: Option<Edition>,
    /// Of a registry that has surveyed: what workers check its statements with.
    pub(super) host_key: Option<String>,
    pub(super) stage: Stage,
    pub(super) answers: Answers,
    pub(super) ready: Option<Ready>,
    pub(super) threads: u32,
    /// When it closed its control channel; it should end at that moment.
    pub(super) closed: Option<Instant>,
    /// A frontend that was told to open its doors.
    pub(super) accepts: bool,
    /// What it may still say before the next ping.
    messages_left: u32,
}

/// A message that is allowed where the child is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Permitted {
    Ready(Ready),
    Failed(String),
    Answered,
    Renew,
    Surveyed {
        host_key: String,
        refused: Option<String>,
    },
    Build {
        serial: u64,
        class: TrustClass,
    },
    Changed,
    GatewayCut {
        generation: u64,
    },
    /// Said before it knew better.
    Nothing,
}

/// A message that is not: the child breaks the agreement and is killed for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misbehaviour {
    #[error("unpermitted message {0} at this point")]
    Unpermitted(&'static str),
    #[error("answered a ping that was not sent")]
    WrongNonce,
    #[error("sent more messages between two pings than it has reason for")]
    Flood,
    #[error("asked for a builder under a serial that is not new")]
    OldSerial,
    #[error("named a key of this host that is none")]
    HostKey,
    #[error("sent a descriptor")]
    Descriptor,
}

impl Child {
    /// Just started, and has to be ready by `until`.
    pub(super) fn new(
        (part, generation): (Part, u64),
        edition: Edition,
        identity: Identity,
        launched: Launched,
        handover: Option<OwnedFd>,
        until: Instant,
    ) -> Self {
        let answers = Answers::new(edition.config.service.answer_within, until);
        let mut child = Self {
            part,
            generation,
            edition,
            identity,
            pid: launched.pid,
            channel: launched.channel,
            handover,
            known_to: 0,
            supply: None,
            supplier: None,
            job: None,
            asked: None,
            host_key: None,
            stage: Stage::Starting { until },
            answers,
            ready: None,
            threads: 0,
            closed: None,
            accepts: false,
            messages_left: 0,
        };
        child.refill_messages();
        child
    }

    /// From now on it has to answer.
    pub(super) fn begin_serving(&mut self, now: Instant) {
        self.stage = Stage::Serving { since: now };
        let within = self.edition.config.service.answer_within;
        let within = match self.part {
            Part::Registry => within.max(REGISTRY_ANSWERS_WITHIN),
            Part::Exporter => within.max(EXPORTER_ANSWERS_WITHIN),
            Part::Gateway => within.max(GATEWAY_ANSWERS_WITHIN),
            Part::Frontend | Part::Worker(_) | Part::Builder(_) => within,
        };
        self.answers = Answers::new(within, now);
    }

    /// A builder gets its job now.
    pub(super) fn begin_working(&mut self, now: Instant) {
        self.stage = Stage::Working { until: now + self.edition.config.builder.wall };
    }

    /// A registry was told to survey for `edition`.
    pub(super) fn expect_survey(&mut self, edition: Edition) {
        self.asked = Some(edition);
        self.refill_messages();
    }

    pub(super) fn epoch(&self) -> u64 {
        self.edition.epoch
    }

    pub(super) fn edition(&self) -> Edition {
        self.edition.clone()
    }

    /// It was told of another configuration while it serves.
    pub(super) fn adopt(&mut self, edition: Edition) {
        self.edition = edition;
    }

    /// Judges a message against what this child may say now.
    pub(super) fn judge(&mut self, message: FromChild) -> Result<Permitted, Misbehaviour> {
        self.messages_left = self.messages_left.checked_sub(1).ok_or(Misbehaviour::Flood)?;
        let worker = matches!(self.part, Part::Worker(_));
        let registry = self.part == Part::Registry;
        match (message, self.stage) {
            (FromChild::Ready(ready), Stage::Starting { .. }) => Ok(Permitted::Ready(ready)),
            (FromChild::Failed { why }, Stage::Starting { .. }) => Ok(Permitted::Failed(why)),
            (FromChild::Pong { nonce }, Stage::Serving { .. } | Stage::Draining { .. }) => {
                self.answers.answered(nonce).map(|()| Permitted::Answered)
            }
            (FromChild::Renew, Stage::Serving { .. }) if worker => Ok(Permitted::Renew),
            (FromChild::Renew, Stage::Draining { .. }) if worker => Ok(Permitted::Nothing),
            (FromChild::Surveyed { host_key, refused }, Stage::Serving { .. }) if self.asked.is_some() => {
                if refused.is_none() && !is_public_key(&host_key) {
                    return Err(Misbehaviour::HostKey);
                }
                Ok(Permitted::Surveyed { host_key, refused })
            }
            (FromChild::Build { serial, class }, Stage::Serving { .. }) if registry => {
                Ok(Permitted::Build { serial, class })
            }
            (FromChild::Changed, Stage::Serving { .. }) if registry => Ok(Permitted::Changed),
            (
                FromChild::Surveyed { .. } | FromChild::Build { .. } | FromChild::Changed,
                Stage::Draining { .. },
            ) if registry => Ok(Permitted::Nothing),
            (FromChild::GatewayCut { generation }, Stage::Serving { .. }) if self.part == Part::Frontend => {
                Ok(Permitted::GatewayCut { generation })
            }
            (FromChild::GatewayCut { .. }, Stage::Draining { .. }) if self.part == Part::Frontend => {
                Ok(Permitted::Nothing)
            }
            (_, Stage::Condemned) => Ok(Permitted::Nothing),
            (FromChild::Ready(_), _) => Err(Misbehaviour::Unpermitted("Ready")),
            (FromChild::Failed { .. }, _) => Err(Misbehaviour::Unpermitted("Failed")),
            (FromChild::Pong { .. }, _) => Err(Misbehaviour::Unpermitted("Pong")),
            (FromChild::Renew, _) => Err(Misbehaviour::Unpermitted("Renew")),
            (FromChild::Surveyed { .. }, _) => Err(Misbehaviour::Unpermitted("Surveyed")),
            (FromChild::Build { .. }, _) => Err(Misbehaviour::Unpermitted("Build")),
            (FromChild::Changed, _) => Err(Misbehaviour::Unpermitted("Changed")),
            (FromChild::GatewayCut { .. }, _) => Err(Misbehaviour::Unpermitted("GatewayCut")),
        }
    }

    pub(super) fn refill_messages(&mut self) {
        self.messages_left = u32::try_from(self.messages_allowed()).unwrap_or(u32::MAX);
    }

    /// How many messages it has reason for between two pings. A registry may want a builder for each policy, to look at it
    /// and to compile it, and one for each class's cache, or two where something of a removed tenant's is to go.
    pub(super) fn messages_allowed(&self) -> usize {
        let config = &self.asked.as_ref().unwrap_or(&self.edition).config;
        let policies =
            || config.tenants.iter().map(|tenant| tenant.policies.len()).fold(0, usize::saturating_add);
        let more = match self.part {
            Part::Registry => {
                let removed = config.filed.iter().any(|one| one.state == TenantState::Removed);
                let caches = config.classes.len().saturating_mul(1 + usize::from(removed));
                policies().saturating_mul(2).saturating_add(caches)
            }
            Part::Frontend | Part::Worker(_) | Part::Builder(_) | Part::Exporter | Part::Gateway => 0,
        };
        more.saturating_add(MESSAGES_PER_PING as usize)
    }

    pub(super) fn is_serving(&self) -> bool {
        matches!(self.stage, Stage::Serving { .. })
    }

    /// Serves, and hears us.
    pub(super) fn takes_orders(&self) -> bool {
        self.is_serving() && self.closed.is_none()
    }

    /// On its way to serve.
    pub(super) fn is_coming(&self) -> bool {
        matches!(self.stage, Stage::Starting { .. } | Stage::Witnessed)
    }

    /// For `status`.
    pub(super) fn row(&self, restarts: u32) -> Process {
        let state = match self.stage {
            Stage::Starting { .. } | Stage::Witnessed => ProcessState::Starting,
            Stage::Serving { .. } | Stage::Working { .. } => ProcessState::Serving,
            Stage::Draining { .. } | Stage::Condemned => ProcessState::Draining,
        };
        Process {
            role: self.part.role().name().to_owned(),
            class: self.part.class().cloned(),
            generation: self.generation,
            pid: self.pid.as_raw(),
            uid: self.identity.uid,
            state,
            threads: self.threads,
            restarts,
            ready: self.ready.clone(),
        }
    }
}

impl std::fmt::Display for Child {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} generation {} (pid {})", self.part, self.generation, self.pid)
    }
}

/// What it says goes to workers as it is; they parse it.
fn is_public_key(pem: &str) -> bool {
    pem.len() <= HOST_KEY_MAX && pem.starts_with("-----BEGIN PUBLIC KEY-----")
}

/// What the service manager's watchdog hears of: the frontend serves, and whoever serves answers in time. Who does not
/// is killed and replaced within about that time, so this can stay false only where we fail to do that. A class that
/// dies over and over does not serve, and must not take the others with it: it does not count. Nor does the exporter.
pub(super) fn all_well(children: &[Child], now: Instant) -> bool {
    let mut serving = children.iter().filter(|child| child.is_serving() && child.part != Part::Exporter);
    serving.clone().any(|child| child.part == Part::Frontend)
        && serving.all(|child| !child.answers.is_overdue(now))
}

/// Whether a child answers. Silence counts only while this process itself gets to run: when the whole machine stood
/// still, the child gets [`ROUNDS`] more of our wake-ups to answer in.
#[derive(Debug)]
pub(super) struct Answers {
    within: Duration,
    next_ping: Instant,
    nonce: u64,
    outstanding: Option<Outstanding>,
}

#[derive(Debug)]
struct Outstanding {
    sent: Instant,
    rounds: u32,
    last_round: Instant,
}

impl Answers {
    /// A child that has to answer `within` that time from now on.
    pub(super) fn new(within: Duration, now: Instant) -> Self {
        Self { within, next_ping: now, nonce: 0, outstanding: None }
    }

    /// The nonce of a ping that is to be sent now.
    pub(super) fn ping_due(&mut self, now: Instant) -> Option<u64> {
        if self.outstanding.is_some() || now < self.next_ping {
            return None;
        }
        self.nonce += 1;
        self.next_ping = now + self.within / 4;
        self.outstanding = Some(Outstanding { sent: now, rounds: 0, last_round: now });
        Some(self.nonce)
    }

    /// Counts one wake-up of ours, after everything that had arrived was read. True: it has been silent too long.
    pub(super) fn too_late(&mut self, now: Instant) -> bool {
        let step = self.within / 8;
        let Some(outstanding) = &mut self.outstanding else { return false };
        if now.saturating_duration_since(outstanding.last_round) >= step {
            outstanding.last_round = now;
            outstanding.rounds += 1;
        }
        outstanding.rounds >= ROUNDS && now.saturating_duration_since(outstanding.sent) > self.within
    }

    /// Silent for longer than it may be, whoever's fault that is.
    fn is_overdue(&self, now: Instant) -> bool {
        self.outstanding.as_ref().is_some_and(|ping| now.saturating_duration_since(ping.sent) > self.within)
    }

    /// When there is something to do: a ping, or to look whether it is too late.
    pub(super) fn next(&self) -> Instant {
        match &self.outstanding {
            None => self.next_ping,
            Some(outstanding) => outstanding.last_round + self.within / 8,
        }
    }

    fn answered(&mut self, nonce: u64) -> Result<(), Misbehaviour> {
        match self.outstanding.take() {
            Some(_) if nonce == self.nonce => Ok(()),
            _ => Err(Misbehaviour::WrongNonce),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::config::TenantConfig;
    use crate::wire::control::CONTROL_MAX;

    fn child(part: Part, stage: Stage) -> Child {
        let now = Instant::now();
        let (channel, _theirs) = Channel::pair(CONTROL_MAX).expect("channel");
        let config = crate::supervisor::generations::tests::config(&["a"]);
        let edition = Edition { config: config.into(), epoch: 1 };
        let identity = Identity { uid: 61001, gid: 61001 };
        let launched = Launched { pid: Pid::from_raw(i32::MAX), channel };
        let mut child = Child::new((part, 1), edition, identity, launched, None, now);
        child.begin_serving(now);
        child.stage = stage;
        child
    }

    fn worker(stage: Stage) -> Child {
        child(Part::Worker(TrustClass::new("a").expect("name")), stage)
    }

    fn ready() -> Ready {
        Ready { loaded: 1, refused: 0, pagemap_scan: true, landlock_abi: 7, landlock_proven_threads: 2 }
    }

    fn stages() -> [Stage; 6] {
        let now = Instant::now();
        [
            Stage::Starting { until: now },
            Stage::Witnessed,
            Stage::Serving { since: now },
            Stage::Working { until: now },
            Stage::Draining { until: now },
            Stage::Condemned,
        ]
    }

    /// Which of the stages above take the message without the child being killed for it.
    fn taken(message: &FromChild, make: impl Fn(Stage) -> Child) -> [bool; 6] {
        stages().map(|stage| {
            let mut child = make(stage);
            child.answers.ping_due(Instant::now() + Duration::from_secs(1)).expect("due");
            child.judge(message.clone()).is_ok()
        })
    }

    #[test]
    fn each_message_is_permitted_where_it_makes_sense_and_nowhere_else() {
        const NOWHERE: [bool; 6] = [false, false, false, false, false, true];
        let front = |stage| child(Part::Frontend, stage);
        let builder = |stage| child(Part::Builder(TrustClass::new("a").expect("name")), stage);
        let failed = FromChild::Failed { why: "x".into() };
        let pong = FromChild::Pong { nonce: 1 };
        let build = FromChild::Build { serial: 1, class: TrustClass::new("a").expect("name") };
        //                                     starting witnessed serving working draining condemned
        for part in [worker, front as fn(Stage) -> Child, registry, builder] {
            let at_first = [true, false, false, false, false, true];
            assert_eq!(taken(&FromChild::Ready(ready()), part), at_first, "Ready once");
            assert_eq!(taken(&failed, part), at_first);
            assert_eq!(taken(&pong, part), [false, false, true, false, true, true]);
        }
        let later = [false, false, true, false, true, true];
        assert_eq!(taken(&FromChild::Renew, worker), later);
        for part in [front as fn(Stage) -> Child, registry, builder] {
            assert_eq!(taken(&FromChild::Renew, part), NOWHERE, "workers only");
        }
        for message in [&build, &FromChild::Changed, &surveyed(KEY, None)] {
            assert_eq!(taken(message, registry), later, "{message:?}");
            for part in [worker, front as fn(Stage) -> Child, builder] {
                assert_eq!(taken(message, part), NOWHERE, "{message:?}: the registry only");
            }
        }
        let cut = FromChild::GatewayCut { generation: 1 };
        assert_eq!(taken(&cut, front), later);
        for part in [worker as fn(Stage) -> Child, registry, builder] {
            assert_eq!(taken(&cut, part), NOWHERE, "the frontend only");
        }
    }

    const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n";

    fn surveyed(host_key: &str, refused: Option<&str>) -> FromChild {
        FromChild::Surveyed { host_key: host_key.to_owned(), refused: refused.map(ToOwned::to_owned) }
    }

    /// One that was told to survey.
    fn registry(stage: Stage) -> Child {
        let mut registry = child(Part::Registry, stage);
        registry.expect_survey(registry.edition());
        registry
    }

    #[test]
    fn a_survey_is_answered_once_and_with_a_key() {
        let serving = Stage::Serving { since: Instant::now() };
        let mut asked = registry(serving);
        asked.asked = None;
        assert_eq!(
            asked.judge(surveyed(KEY, None)),
            Err(Misbehaviour::Unpermitted("Surveyed")),
            "nobody asked"
        );
        let long = KEY.repeat(64);
        for none in ["", "ssh-ed25519 AAAA", &long] {
            assert_eq!(registry(serving).judge(surveyed(none, None)), Err(Misbehaviour::HostKey));
            registry(serving).judge(surveyed(none, Some("no"))).expect("who refuses names no key");
        }
    }

    #[test]
    fn a_registry_may_ask_for_as_many_builders_as_there_is_to_build_and_not_more() {
        let mut registry = registry(Stage::Serving { since: Instant::now() });
        let allowed = registry.messages_allowed();
        assert_eq!(allowed, MESSAGES_PER_PING as usize + 1, "one class, no policy");
        let build = |serial| FromChild::Build { serial, class: TrustClass::new("a").expect("name") };
        for serial in 0..allowed as u64 {
            registry.judge(build(serial)).expect("permitted");
        }
        assert_eq!(registry.judge(build(1000)), Err(Misbehaviour::Flood));
        let mut edition = registry.edition();
        let mut config = (*edition.config).clone();
        config.tenants.push(TenantConfig {
            name: "acme".parse().expect("name"),
            class: TrustClass::new("a").expect("name"),
            policies: (0..100).map(|n| format!("p{n}").parse().expect("name")).collect(),
            data: vec![],
            uids: vec![1000],
            gids: vec![],
            weight: 1,
            max_deadline: Duration::from_secs(1),
            default_deadline: Duration::from_secs(1),
            ceiling: crate::artifact::Ceiling::MOST,
            plan: None,
            quotas: crate::accounts::Quotas::default(),
        });
        edition.config = config.into();
        registry.expect_survey(edition);
        assert_eq!(registry.messages_allowed(), allowed + 200, "to look at and to compile");
        registry.judge(build(1001)).expect("more to do, and not all of it used up");
    }

    #[test]
    fn a_registry_may_think_for_longer_than_those_that_clients_wait_for() {
        let now = Instant::now();
        let mut registry = child(Part::Registry, Stage::Witnessed);
        registry.begin_serving(now);
        registry.answers.ping_due(now).expect("due");
        let late = |child: &mut Child, after: Duration| {
            // Wake-ups of ours.
            (1..=8).map(|part| child.answers.too_late(now + after * part / 8)).last()
        };
        assert_eq!(late(&mut registry, REGISTRY_ANSWERS_WITHIN), Some(false));
        assert_eq!(late(&mut registry, REGISTRY_ANSWERS_WITHIN * 2), Some(true), "but not forever");
    }

    #[test]
    fn a_builder_that_works_is_not_waited_for_forever() {
        let now = Instant::now();
        let mut builder = child(Part::Builder(TrustClass::new("a").expect("name")), Stage::Witnessed);
        builder.begin_working(now);
        assert_eq!(builder.stage, Stage::Working { until: now + Duration::from_secs(60) });
    }

    #[test]
    fn an_answer_to_no_ping_is_misbehaviour() {
        let mut child = worker(Stage::Serving { since: Instant::now() });
        assert_eq!(child.judge(FromChild::Pong { nonce: 0 }), Err(Misbehaviour::WrongNonce));
        let nonce = child.answers.ping_due(Instant::now()).expect("due");
        assert_eq!(child.judge(FromChild::Pong { nonce: nonce + 1 }), Err(Misbehaviour::WrongNonce));
    }

    #[test]
    fn answering_twice_is_misbehaviour() {
        let mut child = worker(Stage::Serving { since: Instant::now() });
        let nonce = child.answers.ping_due(Instant::now()).expect("due");
        assert_eq!(child.judge(FromChild::Pong { nonce }), Ok(Permitted::Answered));
        assert_eq!(child.judge(FromChild::Pong { nonce }), Err(Misbehaviour::WrongNonce));
    }

    #[test]
    fn a_flood_is_misbehaviour() {
        let mut child = worker(Stage::Serving { since: Instant::now() });
        for _ in 0..MESSAGES_PER_PING {
            assert_eq!(child.judge(FromChild::Renew), Ok(Permitted::Renew));
        }
        assert_eq!(child.judge(FromChild::Renew), Err(Misbehaviour::Flood));
        child.refill_messages();
        assert_eq!(child.judge(FromChild::Renew), Ok(Permitted::Renew));
    }

    const WITHIN: Duration = Duration::from_millis(80);

    #[test]
    fn silence_is_noticed_after_the_time_given_and_not_before() {
        let start = Instant::now();
        let mut answers = Answers::new(WITHIN, start);
        assert_eq!(answers.ping_due(start), Some(1));
        for ms in (10..=80).step_by(10) {
            assert!(!answers.too_late(start + Duration::from_millis(ms)), "{ms} ms");
        }
        assert!(answers.too_late(start + Duration::from_millis(90)));
    }

    #[test]
    fn a_child_that_answers_is_pinged_again_four_times_in_that_time() {
        let start = Instant::now();
        let mut answers = Answers::new(WITHIN, start);
        assert_eq!(answers.ping_due(start), Some(1));
        assert_eq!(answers.ping_due(start + WITHIN), None, "one at a time");
        answers.answered(1).expect("right nonce");
        assert_eq!(answers.next(), start + WITHIN / 4);
        assert_eq!(answers.ping_due(start + WITHIN / 5), None);
        assert_eq!(answers.ping_due(start + WITHIN / 4), Some(2));
    }

    #[test]
    fn all_is_well_while_the_frontend_serves_and_whoever_serves_answers() {
        let serving = Stage::Serving { since: Instant::now() };
        let (frontend, mut silent) = (child(Part::Frontend, serving), worker(serving));
        let now = Instant::now();
        // As in the configuration of these children.
        let within = Duration::from_millis(100);
        let nonce = silent.answers.ping_due(now).expect("due");
        let mut children = [frontend, worker(serving), silent];
        assert!(all_well(&children, now + within), "it has time to answer");
        assert!(!all_well(&children, now + within * 2), "the frontend alone is not enough");
        children[2].answers.answered(nonce).expect("right nonce");
        assert!(all_well(&children, now + within * 2));
        for stage in stages() {
            children[2].answers.ping_due(now + within).expect("due");
            children[2].stage = stage;
            let serves = matches!(stage, Stage::Serving { .. });
            assert_eq!(all_well(&children, now + within * 3), !serves, "{stage:?}: only who serves counts");
            children[2].answers = Answers::new(within, now);
        }
        for stage in stages() {
            children[0].stage = stage;
            let serves = matches!(stage, Stage::Serving { .. });
            assert_eq!(all_well(&children, now), serves, "a frontend that is {stage:?}");
        }
        assert!(!all_well(&[], now));
    }

    #[test]
    fn when_the_whole_machine_stood_still_the_child_gets_time_to_answer() {
        let start = Instant::now();
        let mut answers = Answers::new(WITHIN, start);
        answers.ping_due(start).expect("due");
        let woke = start + Duration::from_secs(5);
        assert!(!answers.too_late(woke), "we slept too");
        assert!(!answers.too_late(woke), "many wake-ups at once are one");
        assert!(!answers.too_late(woke + Duration::from_millis(10)));
        assert!(answers.too_late(woke + Duration::from_millis(20)), "by now it had its chance");
    }
}
